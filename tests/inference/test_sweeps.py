"""Sweeps against Gauss-Seidel and successive over-relaxation in NumPy; colours of graphs; stacks unrolled."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pcflax as pc
from pcflax.inference.sweeps import _colours
from tests import test_conformance as conformance
from tests.conftest import Chain, in_double
from tests.inference.test_momentum import problem_of, quadratic

Sweeps = pc.inference.Sweeps
ORDERS = ("red-black", "sequential")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("double")]


def visits(order, blocks):
    """The order in which the blocks of a chain move, from the bottom up: `blocks` are slices."""
    return [*blocks[::2], *blocks[1::2]] if order == "red-black" else blocks[::-1]


def blocks_of(problem):
    """Slices of a flat example, a layer each, in the network's order."""
    sizes = {
        name: leaf[0].size for name, leaf in sorted(problem.start.items())
    }  # as ravel_pytree has them
    ends = np.cumsum([0, *sizes.values()])
    places = {n: slice(a, b) for n, a, b in zip(sizes, ends[:-1], ends[1:], strict=True)}
    return [places[name] for name in problem.network.bind().names if name in places]


@pytest.mark.parametrize("order", ORDERS)
def test_layers_move_one_after_the_other(order):
    """Block after block of H z = b, each against the newest of its neighbours, by a loop in NumPy."""
    problem = problem_of(Chain(widths=(3, 5, 4, 6, 2), activation="identity", batch=2))
    algorithm = Sweeps(0.12, order=order, num_steps=9)
    result = jax.jit(lambda: algorithm.solve(problem))()
    for row in range(2):
        _, slope, hessian, start, unravel = quadratic(problem, row)
        z = start.copy()
        for _ in range(9):
            for block in visits(order, blocks_of(problem)):
                z[block] -= 0.12 * (hessian[block] @ (z - start) + slope[block])
        expected = unravel(jnp.asarray(z))
        for name, got in problem.encode(result.activities).items():
            np.testing.assert_allclose(got[row : row + 1], expected[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("relaxed", [None, 1.4])
def test_single_units_are_gauss_seidel_and_over_relaxation(order, relaxed):
    """Each block is one number, H_ll: "auto" solves for its unit, and w/H_ll goes w times as far."""
    chain = Chain(widths=(1, 1, 1, 1, 1, 1, 1), activation="identity", batch=1)
    for layer in chain.network.layers:
        layer.energy = pc.energies.Gaussian()
        layer.linear.kernel[...] = 0.9 * np.ones((1, 1))  # so that every H_ll is 1.81
    problem = problem_of(chain)
    step_size = "auto" if relaxed is None else relaxed / 1.81
    algorithm = Sweeps(step_size, order=order, num_steps=15)
    result = jax.jit(lambda: algorithm.solve(problem))()
    _, slope, hessian, start, unravel = quadratic(problem, 0)
    right = hessian @ start - slope
    z, units = start.copy(), [block.start for block in blocks_of(problem)]
    for _ in range(15):
        for unit in visits(order, units):
            others = hessian[unit] @ z - hessian[unit, unit] * z[unit]
            solved = (right[unit] - others) / hessian[unit, unit]
            z[unit] += (relaxed or 1.0) * (solved - z[unit])
    expected = unravel(jnp.asarray(z))
    for name, got in problem.encode(result.activities).items():
        np.testing.assert_allclose(got, expected[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("order", ORDERS)
def test_each_layer_has_the_step_of_its_own_block(order):
    """1/lambda_max of each diagonal block, found from below, by eigvalsh."""
    problem = problem_of(Chain(widths=(3, 5, 4, 6, 2), batch=3))
    state = jax.jit(lambda: Sweeps(order=order).init(problem))()
    for row in range(3):
        hessian = quadratic(problem, row)[2]
        for name, block in zip(("layer_0", "layer_1", "layer_2"), blocks_of(problem), strict=True):
            largest = np.linalg.eigvalsh(hessian[block, block])[-1]
            found = state[name].eigenvalue[row]
            assert 0.75 * largest <= found <= largest * (1 + 1e-12)


@pytest.mark.parametrize(
    "algorithm",
    [Sweeps(tolerance=1e-11, max_steps=3000), Sweeps(order="sequential", num_steps=800)],
)
def test_a_linear_chain_reaches_the_closed_form(algorithm):
    """z* = start - H^-1 slope; no sweep raises the energy."""
    problem = problem_of(Chain(widths=(3, 5, 4, 6, 2), activation="identity", batch=2))
    result = jax.jit(lambda: algorithm.solve(problem))()
    for row in range(2):
        _, slope, hessian, start, unravel = quadratic(problem, row)
        expected = unravel(jnp.asarray(start - np.linalg.solve(hessian, slope)))
        for name, got in problem.encode(result.activities).items():
            np.testing.assert_allclose(got[row : row + 1], expected[name], rtol=1e-8, atol=1e-9)


def graph():
    """A triangle on a cycle, a skip, and an energy that two parents share: three colours or more."""
    rngs = nnx.Rngs(0)

    layers = {
        "a": pc.PCDense(3, 4, activation=jnp.tanh, rngs=rngs),
        "b": pc.PCDense(4, 4, activation=jnp.tanh, rngs=rngs),
        "c": pc.PCDense(4, 4, activation=jnp.tanh, rngs=rngs),
        "out": pc.PCDense(8, 2, rngs=rngs),
    }
    parents = {
        "a": "x",
        "b": pc.networks.Sum("a", "c"),
        "c": "b",
        "out": pc.networks.Concatenate("a", "c"),
    }
    shapes = dict.fromkeys("bc", 4)
    network = pc.PCGraph(layers, parents=parents, inputs={"x": 3}, output="out", shapes=shapes)
    return in_double(network)


def test_layers_of_one_colour_share_no_energy():
    """Their block of the Hessian is 0 outside of its diagonal blocks, by jax.hessian."""
    random = np.random.default_rng(0)
    data = random.normal(size=(1, 3)), random.normal(size=(1, 2))
    problem = pc.inference.make_problem(pc.networks.split(graph()), pc.Evidence(*data))
    groups = [set(group) for group in _colours(problem)]
    assert groups == [{"a"}, {"b"}, {"c"}]  # a and c are parents of one sum: no two move together
    hessian = quadratic(problem, 0)[2]
    assert np.abs(hessian[:4, 8:]).max() > 1e-3  # a and c
    chain = problem_of(Chain(widths=(3, 5, 4, 6, 3, 2)))
    assert [set(group) for group in _colours(chain)] == [
        {"layer_0", "layer_2"},
        {"layer_1", "layer_3"},
    ]


@pytest.mark.parametrize("order", ORDERS)
def test_a_graph_with_a_cycle_comes_to_rest(order):
    random = np.random.default_rng(0)
    data = random.normal(size=(3, 3)), random.normal(size=(3, 2))
    network = pc.networks.split(graph())
    result = conformance.solve(Sweeps(order=order, tolerance=1e-9, max_steps=3000), network, *data)
    descent = pc.inference.GradientDescent(0.1, tolerance=1e-9, max_steps=5000)
    expected = conformance.solve(descent, network, *data)
    np.testing.assert_allclose(result.energy, expected.energy, rtol=1e-8)
    assert (result.residual <= 1e-9).all()


@pytest.mark.parametrize("order", ORDERS)
def test_a_stack_is_swept_as_its_layers_are(order):
    """Even and odd, or one by one: the same numbers as of the same chain unrolled."""
    rngs = nnx.Rngs(0)
    hidden = [in_double(pc.PCDense(4, 4, activation=jnp.tanh, rngs=rngs)) for _ in range(5)]
    ends = [in_double(pc.PCDense(*sizes, rngs=rngs)) for sizes in ((3, 4), (4, 2))]
    unrolled = pc.PCNetwork([ends[0], *hidden, ends[1]])
    stacked = pc.PCNetwork({"first": ends[0], "hidden": pc.PCStack(hidden), "last": ends[1]})
    random = np.random.default_rng(0)
    data = random.normal(size=(3, 3)), random.normal(size=(3, 2))
    algorithm = Sweeps(0.2, order=order, num_steps=4)
    found = [
        conformance.solve(algorithm, pc.networks.split(net), *data) for net in (stacked, unrolled)
    ]
    for index in range(5):
        left, right = (
            found[0].activities["hidden"][:, index],
            found[1].activities[f"layer_{index + 1}"],
        )
        np.testing.assert_allclose(left, right, rtol=1e-10, atol=1e-12)


def test_each_layer_of_a_stack_has_its_own_step():
    """1/lambda_max of its block, as of layers on their own."""
    rngs = nnx.Rngs(0)
    stack = pc.PCStack(lambda: pc.PCDense(4, 4, activation=jnp.tanh, rngs=rngs), 3)
    layers = {
        "first": pc.PCDense(3, 4, rngs=rngs),
        "hidden": stack,
        "last": pc.PCDense(4, 2, rngs=rngs),
    }
    random = np.random.default_rng(0)
    evidence = pc.Evidence(random.normal(size=(2, 3)), random.normal(size=(2, 2)))
    network = in_double(pc.PCNetwork(layers))
    problem = pc.inference.make_problem(pc.networks.split(network), evidence)
    state = jax.jit(lambda: Sweeps().init(problem))()
    assert state["hidden"].eigenvalue.shape == (2, 3)
    for row in range(2):
        hessian = quadratic(problem, row)[2]  # "first", then the three of "hidden"
        for index in range(3):
            block = slice(4 * index + 4, 4 * index + 8)
            largest = np.linalg.eigvalsh(hessian[block, block])[-1]
            found = state["hidden"].eigenvalue[row, index]
            assert 0.75 * largest <= found <= largest * (1 + 1e-12)


def test_each_example_stops_on_its_own_and_held_elements_stay():
    chain = Chain(batch=16)
    mask = np.array([[True, False, True, False, False]] * 16)
    clamps = {"layer_0": pc.Clamp(jnp.full((16, 5), 0.3), jnp.asarray(mask))}
    problem = problem_of(chain, clamps)
    algorithm = Sweeps(tolerance=1e-8, max_steps=2000)
    together = jax.jit(lambda: algorithm.solve(problem))()
    assert (together.residual <= 1e-8).all()
    assert len(set(together.num_steps.tolist())) > 3
    np.testing.assert_array_equal(together.activities["layer_0"][mask], 0.3)
    alone = jax.jit(lambda: algorithm.solve(problem.take(jnp.array([7]))))()
    assert alone.num_steps[0] == together.num_steps[7]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: Sweeps(order="random"),
            ValueError,
            r"order=\"red-black\" or .* got 'random'; all",
        ),
        (
            lambda: Sweeps("fast"),
            TypeError,
            r"step_size \(or \"auto\"\) to be a number, got 'fast'",
        ),
        (lambda: Sweeps(0.0), ValueError, "above 0, got 0.0"),
    ],
)
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_what_has_no_layers_of_its_own_is_refused():
    chain = Chain(batch=2)
    with pytest.raises(TypeError, match="Sweeps moves the activities of .* got a ErrorProblem"):
        chain.network.infer(
            chain.inputs, chain.targets, inference=pc.inference.ErrorCoordinates(Sweeps(0.1))
        )
    layers = [
        pc.PCDense(3, 4, rngs=nnx.Rngs(0)),
        pc.PCDense(4, 2, feedback=pc.layers.Feedback(), rngs=nnx.Rngs(0)),
    ]
    network = in_double(pc.PCNetwork(layers))
    with pytest.raises(ValueError, match="Sweeps needs the curvature of one"):
        network.infer(jnp.ones((2, 3)), jnp.ones((2, 2)), inference=Sweeps())


def test_nothing_free_is_no_trouble():
    network = pc.PCNetwork({"root": pc.PCRoot(3)})
    np.testing.assert_array_equal(network.infer(jnp.ones((2, 3)), inference=Sweeps()).residual, 0)
