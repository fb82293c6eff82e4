"""Exact inference in linear networks, against a dense Hessian from the NumPy reference."""

import functools

import jax
import jax.numpy as jnp
import lineax
import numpy as np
import pytest
from flax import nnx

import pcflax as pc
from tests.conftest import Chain
from tests.references import numpy_pc as reference

pytestmark = pytest.mark.slow

CG = pc.inference.LinearSolve()
DENSE = pc.inference.LinearSolve(lineax.Cholesky())


def dense_minimum(chain, inputs, targets, free, held=None):
    """Newton's z - H^-1 dF/dz over the elements that `free` (a mask a layer) leaves, each example alone.

    The gradient is affine, so column j of H is the difference that one unit in element j makes.
    `held` are the activities where nothing is free.
    """
    batch = len(chain.targets)
    z = reference.feedforward(chain.reference, inputs, batch) if held is None else held
    z = [np.array(z_BD) for z_BD in z]
    if targets is not None:
        z[-1] = targets
    free = [np.broadcast_to(mask, z_BD.shape) for mask, z_BD in zip(free, z, strict=True)]
    flat_mask, flat = np.concatenate(free, axis=1), np.concatenate(z, axis=1)
    cuts = np.cumsum([z_BD.shape[1] for z_BD in z])[:-1]

    def gradient(flat):
        parts = np.split(flat, cuts, axis=1)
        return np.concatenate(
            reference.activity_gradients(chain.reference, inputs, parts, free), axis=1
        )

    base, units = gradient(flat), np.eye(flat.shape[1])
    hessian = np.stack([gradient(flat + unit) - base for unit in units], axis=2)
    for row in range(batch):
        (own,) = np.flatnonzero(flat_mask[row])[None]
        flat[row, own] -= np.linalg.solve(hessian[row][np.ix_(own, own)], base[row, own])
    return np.split(flat, cuts, axis=1)


def linear_chain(**options):
    return Chain(activation="identity", precision=1.7, **options)


@functools.cache
def masks():
    return np.random.RandomState(3).uniform(size=(7, 5)) < 0.5


def cases(name):
    """inputs, targets, clamps, free masks and held activities of a case."""
    chain = linear_chain(root=name != "input below")
    if name == "input below":
        return chain, chain.inputs, chain.targets, None, chain.free(), None
    if name == "root free":
        return chain, None, chain.targets, None, chain.free(root_free=True), None
    if name == "output free":
        return chain, chain.inputs, None, None, chain.free(output_free=True), None
    # and some elements of a hidden layer, other ones in each example
    mask, value = masks(), np.random.RandomState(4).normal(size=(7, 5))
    clamps = {"layer_1": pc.Clamp(np.where(mask, value, np.nan), mask)}
    free = chain.free(root_free=True)
    free[1] = ~mask
    held = reference.feedforward(chain.reference, None, 7)
    held[1] = np.where(mask, value, held[1])
    return chain, None, chain.targets, clamps, free, held


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("inference", [CG, DENSE], ids=["conjugate gradients", "cholesky"])
@pytest.mark.parametrize("case", ["input below", "root free", "output free", "hidden in part"])
def test_the_minimum_is_that_of_a_dense_solve(inference, case):
    chain, inputs, targets, clamps, free, held = cases(case)
    expected = dense_minimum(chain, inputs, targets, free, held)
    result = chain.network.infer(inputs, targets, clamps=clamps, inference=inference)
    for got, activity in zip(result.activities.values(), expected, strict=True):
        # three solves to 1e-4 each, less what the condition number, about 50, gives back
        np.testing.assert_allclose(got, activity, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(result.residual, 0, atol=1e-9)


@pytest.mark.usefixtures("double")
def test_the_minimum_does_not_depend_on_the_start():
    chain = linear_chain()
    expected = dense_minimum(chain, chain.inputs, chain.targets, chain.free())
    result = chain.network.infer(
        chain.inputs,
        chain.targets,
        inference=DENSE,
        initializer=pc.initializers.Normal(3.0),
        key=jax.random.key(0),
        trace=True,
    )
    for got, activity in zip(result.activities.values(), expected, strict=True):
        np.testing.assert_allclose(got, activity, rtol=1e-9, atol=1e-10)
    # the trace has the start and the end
    assert result.trace.energy.shape == result.trace.residual.shape == (2, 7)
    assert (result.trace.energy[0] > 2 * result.energy).all()
    np.testing.assert_allclose(result.trace.energy[1], result.energy, rtol=1e-12)


@pytest.mark.usefixtures("double")
def test_conjugate_gradients_take_no_more_products_than_there_are_free_elements():
    """But for rounding. From the feedforward start most of the gradient is zero, to any digit."""
    chain = linear_chain()
    once = pc.inference.LinearSolve(lineax.CG(rtol=1e-9, atol=1e-9), refinements=0)
    result = chain.network.infer(chain.inputs, chain.targets, inference=once)
    assert (result.num_steps <= 5 + 4 + 1).all()
    assert (result.residual < 1e-8).all()
    solves = 1 + CG.refinements
    result = chain.network.infer(chain.inputs, chain.targets, inference=CG)
    assert (result.num_steps <= solves * (5 + 4 + 1)).all()


def test_an_ill_conditioned_network_in_single_precision_reaches_the_closed_form():
    """Conjugate gradients that go on after their accuracy is used up divide 0 by 0.

    F* = 1/2 r^T S^-1 r, S = I + sum_l P_l^T P_l with P_l the product of the weights above layer l.
    """
    random = np.random.RandomState(0)
    widths = (5, 100, 100, 100, 4)
    pairs = list(zip(widths[:-1], widths[1:], strict=True))
    kernels = [3 * random.normal(size=pair) / np.sqrt(pair[0]) for pair in pairs]
    network = pc.PCNetwork([pc.PCDense(*pair, use_bias=False, rngs=nnx.Rngs(0)) for pair in pairs])
    for layer, kernel in zip(network.layers, kernels, strict=True):
        layer.linear.kernel.set_value(jnp.asarray(kernel, jnp.float32))
    x, y = (random.normal(size=(2, width)).astype(np.float32) for width in (5, 4))
    result = network.infer(x, y, inference=CG)
    r_BD = y - x.astype(np.float64) @ np.linalg.multi_dot(kernels)
    above, s_DD = np.eye(4), np.eye(4)
    for kernel in reversed(kernels[1:]):
        above = kernel @ above
        s_DD += above.T @ above
    expected = 0.5 * np.einsum("bi,bi->b", r_BD, np.linalg.solve(s_DD, r_BD.T).T)
    # single precision, and a first energy that is two thousand times larger
    np.testing.assert_allclose(result.energy, expected, rtol=1e-4)
    assert (result.residual < 1e-4).all()


@pytest.mark.parametrize(
    "inference", [CG, pc.inference.NewtonCG(num_steps=5)], ids=["linear", "newton"]
)
def test_a_common_factor_of_all_precisions_changes_no_minimum(inference):
    """In single precision too: wide layers, and a hundredth of the energy."""
    random = np.random.RandomState(0)
    x, y = (random.normal(size=(2, width)).astype(np.float32) for width in (4, 3))
    minima = []
    for precision in (1.0, 0.01):
        rngs, energy = nnx.Rngs(0), pc.energies.Gaussian(precision)
        network = pc.PCNetwork(
            [
                pc.PCDense(4, 2000, energy=energy, rngs=rngs),
                pc.PCDense(2000, 3, energy=energy, rngs=rngs),
            ]
        )
        minima.append(network.infer(x, y, inference=inference).activities["layer_0"])
    np.testing.assert_allclose(minima[1], minima[0], rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("double")
def test_a_minimum_that_is_not_unique_is_found_all_the_same():
    """A flat prior over five numbers that explain two: the Hessian is singular."""
    chain = Chain(widths=(5, 2), activation="identity", root=True)
    chain.network.layers[0].energy = pc.energies.Gaussian(0.0)
    result = chain.network.infer(None, chain.targets, inference=CG)
    np.testing.assert_allclose(result.energy, 0, atol=1e-12)
    np.testing.assert_allclose(result.residual, 0, atol=1e-8)


def test_a_nonlinearity_of_what_is_clamped_is_none():
    """A tanh of the input, and above a hidden layer that is held, is a constant of the free ones."""
    chain = Chain(widths=(3, 4, 2))
    x, y = chain.inputs.astype(np.float32), chain.targets.astype(np.float32)
    assert (chain.network.infer(x, y, inference=CG).residual < 1e-5).all()
    deep = Chain()
    held = {"layer_0": np.full((7, 5), 0.3, np.float32)}
    assert (deep.network.infer(x, y, clamps=held, inference=CG).residual < 1e-5).all()


def network_with(energy=None, activation=None, output=None):
    rngs = nnx.Rngs(0)
    return pc.PCNetwork(
        {
            "below": pc.PCDense(3, 4, energy=energy, rngs=rngs),
            "middle": pc.PCDense(4, 5, activation=activation, rngs=rngs),
            "above": pc.PCDense(5, 2, energy=output, rngs=rngs),
        }
    )


class Quartic(pc.Energy):
    def __call__(self, activity, prediction):
        return pc.energies.base.sum_features((activity - prediction) ** 4)


@pytest.mark.parametrize(
    ("options", "layer", "operation"),
    [
        ({"activation": jnp.tanh}, "middle", "tanh"),
        ({"activation": lambda z: z * z}, "middle", "a product of activities"),
        ({"energy": Quartic()}, "below", "integer_pow"),
        ({"energy": pc.energies.Laplace()}, "below", "sign"),
        ({"energy": pc.energies.Huber()}, "below", ""),
        ({"output": pc.energies.Categorical()}, "above", ""),
        ({"output": pc.energies.Bernoulli()}, "above", ""),
    ],
    ids=["tanh", "square", "quartic", "laplace", "huber", "categorical", "bernoulli"],
)
def test_what_is_not_linear_is_refused_with_the_layer_and_the_operation(options, layer, operation):
    network = network_with(**options)
    message = (
        f"needs an energy that is quadratic .* layer '{layer}' is not linear .*{operation}.*; "
        f"take pc.inference.NewtonCG"
    )
    with pytest.raises(ValueError, match=message):
        network.infer(jnp.ones((2, 3)), jnp.ones((2, 2)), inference=CG)


@pytest.mark.parametrize(
    "energy",
    [
        pc.energies.LearnedGaussian(precision=2.0),
        pc.energies.ActivityDecay(pc.energies.Gaussian(), 0.1),
    ],
    ids=["learned precision", "activity decay"],
)
def test_other_quadratic_energies_are_allowed(energy):
    result = network_with(energy).infer(jnp.ones((2, 3)), jnp.ones((2, 2)), inference=CG)
    assert (result.residual < 1e-5).all()


def test_half_precision_is_solved_in_32_bits():
    """Jax has no Cholesky factorisation of bfloat16."""
    half = jnp.bfloat16
    network = pc.PCNetwork(
        [
            pc.PCLayer(nnx.Linear(i, o, dtype=half, param_dtype=half, rngs=nnx.Rngs(0)))
            for i, o in ((3, 4), (4, 2))
        ]
    )
    result = network.infer(jnp.ones((2, 3), half), jnp.ones((2, 2), half), inference=DENSE)
    assert result.activities["layer_0"].dtype == half
    assert (result.residual < 0.05).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: pc.inference.LinearSolve("cg"),
            TypeError,
            r"LinearSolve expected a lineax solver such as lineax.CG.* got 'cg'",
        ),
        (
            lambda: pc.inference.LinearSolve(refinements=-1),
            ValueError,
            "LinearSolve expected refinements of at least 0, got -1",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
