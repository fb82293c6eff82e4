"""momentum="auto": Nesterov's sequence with restarts, against NumPy, closed forms, and heavy ball."""

import dataclasses
import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from tests import test_conformance as conformance
from tests.conftest import Chain, in_double

GradientDescent, CurvatureDescent = pc.inference.GradientDescent, pc.inference.CurvatureDescent
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("double")]


def problem_of(chain, clamps=None):
    evidence = pc.Evidence(chain.inputs, chain.targets, clamps)
    return pc.inference.make_problem(pc.networks.split(chain.network), evidence)


def quadratic(problem, row):
    """(H, slope at the start, the flat start, unravel) of one example, by jax.hessian."""
    one = problem.take(jnp.array([row]))
    start, unravel = jax.flatten_util.ravel_pytree(one.start)

    @jax.jit
    def of(start):
        energy = lambda flat: one.energy(unravel(flat))[0]  # noqa: E731
        return energy(start), jax.grad(energy)(start), jax.hessian(energy)(start)

    energy, slope, hessian = map(np.asarray, of(start))
    return energy, slope, hessian, np.asarray(start), unravel


@functools.cache
def linear_chain():
    chain = Chain(activation="identity", batch=3)
    problem = problem_of(chain)
    return chain, problem, [quadratic(problem, row) for row in range(3)]


@pytest.mark.parametrize("scale", [0.8, 2.2])
def test_the_way_is_nesterovs_with_both_restarts(scale):
    """Step after step as in NumPy; above the stable 4/3 of 1/lambda_max energies rise, too."""
    _, problem, quadratics = linear_chain()
    top = max(np.linalg.eigvalsh(hessian)[-1] for _, _, hessian, *_ in quadratics)
    step_size, steps = scale / top, 60
    algorithm = GradientDescent(step_size, momentum="auto", num_steps=steps)
    result = jax.jit(lambda: algorithm.solve(problem, trace=True))()
    backs, uphills = [], []
    for row, (energy, slope, hessian, start, unravel) in enumerate(quadratics):
        ahead = reached = start.copy()
        count, kept = 1.0, np.inf
        for step in range(steps):
            off = ahead - start
            gradient = hessian @ off + slope
            now = energy + slope @ off + off @ hessian @ off / 2
            np.testing.assert_allclose(result.trace.energy[step, row], now, rtol=1e-8)
            stepped = ahead - step_size * gradient
            velocity = stepped - reached
            back = now > kept * (1 + 8 * np.finfo(float).eps) and count > 2
            uphill = gradient @ velocity > 0
            backs.append((row, step)) if back else uphills.append((row, step)) if uphill else None
            old, count = count, 1.0 if back or uphill else (1 + np.sqrt(1 + 4 * count**2)) / 2
            factor = 0.0 if back or uphill or step == steps - 1 else (old - 1) / count
            if not back:
                reached, kept = stepped, now
            ahead = reached + factor * velocity
        expected = unravel(jnp.asarray(ahead))
        for name, got in problem.encode(result.activities).items():
            np.testing.assert_allclose(got[row : row + 1], expected[name], rtol=1e-7, atol=1e-10)
    assert uphills if scale < 1 else backs
    assert len({tuple(s for r, s in backs + uphills if r == row) for row in range(3)}) > 1


def expect_closed_form(algorithm, *, rtol, atol):
    """On a linear chain: z* = start - H^-1 slope."""
    _, problem, quadratics = linear_chain()
    result = jax.jit(lambda: algorithm.solve(problem))()
    for row, (_, slope, hessian, start, unravel) in enumerate(quadratics):
        expected = unravel(jnp.asarray(start - np.linalg.solve(hessian, slope)))
        for name, got in problem.encode(result.activities).items():
            np.testing.assert_allclose(got[row : row + 1], expected[name], rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    "algorithm",
    [
        GradientDescent(0.1, momentum="auto", tolerance=1e-11, max_steps=2000),
        GradientDescent({"layer_0": 0.05, "*": 0.1}, momentum="auto", num_steps=800),
        CurvatureDescent(momentum="auto", tolerance=1e-11, max_steps=2000),
        GradientDescent(step_size="auto", momentum="auto", num_steps=800),
    ],
    ids=["given", "by layer", "auto", "auto, fixed count"],
)
def test_a_linear_chain_reaches_the_closed_form(algorithm):
    expect_closed_form(algorithm, rtol=1e-8, atol=1e-9)


def relu_chain(depth=12, width=8, batch=6):
    rngs = nnx.Rngs(1)
    network = pc.PCNetwork(
        [pc.PCDense(width, width, activation=jax.nn.relu, rngs=rngs) for _ in range(depth)]
        + [pc.PCDense(width, 2, rngs=rngs)]
    )
    for layer in network.layers:
        layer.linear.kernel[...] *= 2.0
    random = np.random.default_rng(0)
    return in_double(network), random.normal(size=(batch, width)), random.normal(size=(batch, 2))


def test_heavy_ball_from_the_spectrum_diverges_late_and_this_does_not():
    """Polyak's step and momentum of the start's own spectrum; a relu's curvature is another on the way."""
    network, inputs, targets = relu_chain()
    problem = pc.inference.make_problem(pc.networks.split(network), pc.Evidence(inputs, targets))
    unravel = jax.flatten_util.ravel_pytree(problem.take(jnp.array([0])).start)[1]

    @jax.jit
    @jax.vmap
    def hessians(row):
        one = problem.take(row[None])
        return jax.hessian(lambda flat: one.energy(unravel(flat))[0])(
            jax.flatten_util.ravel_pytree(one.start)[0]
        )

    values = np.linalg.eigvalsh(hessians(jnp.arange(len(inputs))))
    largest, smallest = values.max(), values.min()
    root = np.sqrt(largest / smallest)
    heavy = GradientDescent(
        4 / (np.sqrt(largest) + np.sqrt(smallest)) ** 2,
        momentum=((root - 1) / (root + 1)) ** 2,
        num_steps=600,
    )
    solve = jax.jit(lambda algorithm: algorithm.solve(problem, trace=True).trace.energy)
    energy = np.asarray(solve(heavy))
    assert (energy[:30].min(axis=0) < 0.6 * energy[0]).all()  # at first it helps
    assert (energy[-1] > energy[0]).any()
    late = energy[-1] > 100 * energy[100]  # after it had seemed to settle
    assert late.any()
    for algorithm in (
        GradientDescent(1 / largest, momentum="auto", num_steps=600),
        GradientDescent(1 / largest, momentum="auto", num_steps=7),
        CurvatureDescent(momentum="auto", num_steps=600),
    ):
        ours = np.asarray(solve(algorithm))
        assert (ours <= ours[0] * (1 + 1e-12)).all()
        assert (ours[-1] < 0.6 * ours[0]).all()
        # nothing comes late: a look ahead that rises is gone back from at once
        assert (ours[100:].max(axis=0, initial=0) <= 1.1 * ours[min(100, len(ours) - 1)]).all()


def test_each_example_stops_on_its_own():
    """Alone and among others: the rows of the momentum go with their examples, also when few are left."""
    chain = Chain(batch=16)
    network = pc.networks.split(chain.network)
    algorithm = GradientDescent(0.1, momentum="auto", tolerance=1e-8, max_steps=2000)
    together = conformance.solve(algorithm, network, chain.inputs, chain.targets)
    assert (together.residual <= 1e-8).all()
    assert len(set(together.num_steps.tolist())) > 3
    rows = slice(7, 8)
    alone = conformance.solve(algorithm, network, chain.inputs[rows], chain.targets[rows])
    assert alone.num_steps[0] == together.num_steps[7]


def test_held_elements_stay_and_the_others_reach_their_minimum():
    chain, _, _ = linear_chain()
    mask = np.array([[True, False, True, False, False]] * 3)
    clamps = {"layer_0": pc.Clamp(jnp.full((3, 5), 0.3), jnp.asarray(mask))}
    problem = problem_of(chain, clamps)
    algorithm = CurvatureDescent(momentum="auto", tolerance=1e-10, max_steps=2000)
    result = jax.jit(lambda: algorithm.solve(problem))()
    np.testing.assert_array_equal(result.activities["layer_0"][mask], 0.3)
    assert (result.status == pc.inference.Status.CONVERGED).all()


def test_steps_grow_as_the_root_of_the_condition():
    """To a residual of 1e-6 in a linear chain of six layers: fewer than a fifth of plain descent's."""
    rngs = nnx.Rngs(0)
    network = in_double(pc.PCNetwork([pc.PCDense(5, 5, rngs=rngs) for _ in range(6)]))
    random = np.random.default_rng(0)
    data = (pc.networks.split(network), random.normal(size=(2, 5)), random.normal(size=(2, 5)))
    steps = [
        np.asarray(
            conformance.solve(
                CurvatureDescent(momentum=momentum, tolerance=1e-6, max_steps=20_000), *data
            ).num_steps
        )
        for momentum in (None, "auto")
    ]
    assert (steps[0] < 20_000).all()
    assert (5 * steps[1] < steps[0]).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradientDescent(0.1, momentum="fast"), r'such as 0.9, or "auto", got \'fast\''),
        (lambda: GradientDescent(0.1, momentum="auto", nesterov=True), "leave nesterov out"),
        (
            lambda: GradientDescent(optax.sgd(0.1), momentum="auto"),
            "got an optimizer and momentum; give one",
        ),
        (
            lambda: GradientDescent(step_size="auto", momentum=0.9),
            r'CurvatureDescent expected momentum="auto", or none, got 0.9; a number goes with',
        ),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_guard_holds_a_step_that_is_too_large():
    """Far above 2/lambda_max the momentum alone ends at infinity; what is held ends at the equilibrium."""
    chain = Chain(activation="identity", batch=3)
    network = chain.network
    x, y = chain.inputs, chain.targets
    exact = network.infer(x, y, inference=pc.inference.LinearSolve()).energy
    wild = GradientDescent(3.0, momentum="auto", num_steps=300)
    with pytest.raises(pc.errors.NonFiniteEnergyError, match="not finite"):
        network.infer(x, y, inference=dataclasses.replace(wild, num_steps=3000))
    held = network.infer(x, y, inference=dataclasses.replace(wild, guard="clip"))
    np.testing.assert_allclose(held.energy, exact, rtol=1e-6)
    with pytest.raises(ValueError, match='backoff and momentum="auto", which goes back by itself'):
        GradientDescent(0.1, momentum="auto", backoff=0.5)


@pytest.mark.parametrize(
    "algorithm", [GradientDescent(0.1, momentum="auto"), CurvatureDescent(momentum="auto")]
)
def test_feedback_weights_have_no_energy_to_watch(algorithm):
    rngs = nnx.Rngs(0)
    network = pc.PCNetwork(
        [
            pc.PCDense(3, 4, rngs=rngs),
            pc.PCDense(4, 2, feedback=pc.layers.Feedback(), rngs=rngs),
        ]
    )
    with pytest.raises(ValueError, match="along the gradient of no energy, but .* needs"):
        in_double(network).infer(jnp.ones((2, 3)), jnp.ones((2, 2)), inference=algorithm)


def test_nothing_free_is_no_trouble():
    network = pc.PCNetwork({"root": pc.PCRoot(3)})
    for algorithm in (GradientDescent(0.1, momentum="auto"), CurvatureDescent(momentum="auto")):
        np.testing.assert_array_equal(
            network.infer(jnp.ones((2, 3)), inference=algorithm).residual, 0
        )
