"""Newton steps solved at the output: against the dense system, closed forms and other algorithms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

import pcflax as pc
from pcflax.inference.error_coordinates import error_problem
from tests.conftest import in_double

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("double")]

OUTPUTS = {
    "gaussian": pc.energies.Gaussian,
    "precise": lambda: pc.energies.Gaussian(jnp.array([1.0, 4.0, 0.5])),
    "categorical": pc.energies.Categorical,
    "bernoulli": pc.energies.Bernoulli,
}


def chain(activation=jnp.tanh, output=pc.energies.Gaussian, widths=(5, 7, 6, 3)) -> pc.PCNetwork:
    """A chain whose hidden layers have a precision for each feature, and one for all."""
    rngs = nnx.Rngs(0)
    precisions = [jnp.linspace(0.5, 2.0, widths[1]), *[2.0] * (len(widths) - 3)]
    energies = [pc.energies.Gaussian(precision) for precision in precisions] + [output()]
    activations = [activation] * (len(widths) - 2) + [None]
    layers = [
        pc.PCDense(*pair, activation=function, energy=energy, rngs=rngs)
        for pair, function, energy in zip(
            itertools.pairwise(widths), activations, energies, strict=True
        )
    ]
    return in_double(pc.PCNetwork(layers))


def batch(classes: int = 3):
    inputs = jax.random.normal(jax.random.key(1), (4, 5), jnp.float64)
    return inputs, jnp.eye(classes)[jnp.arange(4) % classes]


def test_one_step_solves_a_linear_chain():
    """The minimum of a quadratic, whose Hessian and gradient NumPy solves."""
    network, (inputs, targets) = chain(activation=None, widths=(5, 7, 6, 4, 3)), batch()
    result = network.infer(inputs, targets, inference=pc.inference.OutputNewton(num_steps=1))
    problem = pc.inference.make_problem(pc.networks.split(network), pc.Evidence(inputs, targets))

    @jax.jit
    def derivatives(example):
        alone = problem.take(example[None])
        flat, unravel = ravel_pytree(alone.start)

        def energy(flat):
            return alone.energy(unravel(flat))[0]

        return flat, jax.hessian(energy)(flat), jax.grad(energy)(flat)

    for example in range(4):
        flat, hessian, gradient = derivatives(jnp.array(example))
        found = flat - np.linalg.solve(hessian, gradient)
        own = {name: result.activities[name][example] for name in problem.start}
        np.testing.assert_allclose(ravel_pytree(own)[0], found, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("output", OUTPUTS.values(), ids=OUTPUTS)
def test_a_step_is_that_of_the_dense_gauss_newton_matrix(output):
    """(P + J^T H J)^-1 dF/de, with every matrix formed by jax's own derivatives, in errors."""
    network, (inputs, targets) = chain(output=output), batch()
    problem = error_problem(
        pc.inference.make_problem(pc.networks.split(network), pc.Evidence(inputs, targets))
    )
    ended = network.infer(inputs, targets, inference=pc.inference.OutputNewton(num_steps=1))
    steps = problem.encode(ended.activities)
    bound = problem.network.bind()
    precision = np.concatenate([np.linspace(0.5, 2.0, 7), np.full(6, 2.0)])

    @jax.jit
    def whole_step(example):
        alone, target = problem.take(example[None]), targets[example]
        flat, unravel = ravel_pytree(alone.start)

        def predicted(flat):
            return alone.activities_and_predictions(unravel(flat))[1]["layer_2"][0]

        def clamped(mu):
            return bound.layer("layer_2").energy(target[None], mu[None])[0]

        jacobian, mu = jax.jacobian(predicted)(flat), predicted(flat)
        matrix = jnp.diag(precision) + jacobian.T @ jax.hessian(clamped)(mu) @ jacobian
        whole = -jnp.linalg.solve(matrix, jacobian.T @ jax.grad(clamped)(mu))
        # the whole step, or the half, quarter or eighth of it with the least energy
        parts = jnp.array([1, 0.5, 0.25, 0.125])
        energies = [alone.energy(unravel(part * whole))[0] for part in parts]
        return parts[jnp.argmin(jnp.stack(energies))] * whole

    for example in range(4):
        expected = whole_step(jnp.array(example))
        own = ravel_pytree({name: steps[name][example] for name in problem.start})[0]
        np.testing.assert_allclose(own, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("output", OUTPUTS.values(), ids=OUTPUTS)
def test_it_ends_where_newtons_method_does(output):
    network, (inputs, targets) = chain(output=output), batch()
    own = network.infer(
        inputs, targets, inference=pc.inference.OutputNewton(tolerance=1e-10, max_steps=60)
    )
    other = network.infer(inputs, targets, inference=pc.inference.NewtonCG(num_steps=40))
    assert (own.status == pc.inference.Status.CONVERGED).all()
    for name, activity in other.activities.items():
        np.testing.assert_allclose(own.activities[name], activity, atol=1e-7)


def test_the_equilibrium_of_a_residual_network_is_as_near_at_any_depth():
    """Linear activations: one step, at 4 layers as at 64, stacked or not."""
    for depth, stacked in ((4, True), (64, True), (6, True), (6, False)):
        network = pc.models.residual_mlp(
            5, 8, 3, depth=depth, activation=lambda z: z, stacked=stacked, rngs=nnx.Rngs(0)
        )
        result = in_double(network).infer(
            *batch(), inference=pc.inference.OutputNewton(num_steps=1)
        )
        assert float(result.residual.max()) < 1e-9


def test_no_step_raises_an_energy():
    """Not of relu, whose energies have kinks, nor far from the minimum."""
    network = in_double(pc.models.residual_mlp(5, 8, 3, depth=12, rngs=nnx.Rngs(0)))
    inputs, targets = batch()
    trace = network.infer(
        inputs, 5 * targets, inference=pc.inference.OutputNewton(num_steps=8), trace=True
    ).trace
    energy = np.asarray(trace.energy)
    assert (np.diff(energy, axis=0) <= 1e-12 * energy[:-1]).all()


def test_clamps_in_the_middle_and_weights_of_energies():
    """Two clamped predictions, one of them far down; a layer above a clamp alone is solved too."""
    network = chain(activation=None, widths=(5, 7, 6, 4, 3))
    inputs, targets = batch()
    middle = jnp.ones((4, 6))
    result = network.infer(
        inputs,
        targets,
        clamps={"layer_1": middle},
        inference=pc.inference.OutputNewton(num_steps=1),
    )
    assert float(result.residual.max()) < 1e-12
    np.testing.assert_array_equal(result.activities["layer_1"], middle)
    rule = pc.learning.Nudged(pc.inference.OutputNewton(num_steps=1), beta=0.1, weighted=True)
    other = pc.learning.Nudged(pc.inference.NewtonCG(num_steps=20), beta=0.1, weighted=True)
    split, evidence = pc.networks.split(network), pc.Evidence(inputs, targets)
    own, same = (
        jax.jit(lambda split, one=one: one.gradients(split, evidence, key=jax.random.key(0))[0])(
            split
        )
        for one in (rule, other)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), own, same)


def test_layers_that_are_clamped_in_part():
    """A third of the output, and some of a layer in the middle by example: as Newton's method."""
    network, (inputs, targets) = chain(), batch()
    mask = jnp.arange(4 * 6).reshape(4, 6) % 5 == 0
    question = {
        "targets": pc.Clamp(targets, jnp.array([True, False, True])),
        "clamps": {"layer_1": pc.Clamp(jnp.full((4, 6), 0.3), mask)},
    }
    own = network.infer(
        inputs, **question, inference=pc.inference.OutputNewton(tolerance=1e-11, max_steps=60)
    )
    other = network.infer(inputs, **question, inference=pc.inference.NewtonCG(num_steps=40))
    for name, activity in other.activities.items():
        np.testing.assert_allclose(own.activities[name], activity, atol=1e-7)


def test_nothing_clamped_above_leaves_the_pass_upward():
    network, (inputs, _) = chain(), batch()
    result = network.infer(inputs, inference=pc.inference.OutputNewton(num_steps=1))
    np.testing.assert_allclose(result.energy, 0, atol=1e-12)


def test_what_it_cannot_solve_is_refused():
    inputs, targets = batch()
    newton = pc.inference.OutputNewton(num_steps=1)
    rngs = nnx.Rngs(0)
    heavy = pc.PCNetwork(
        [pc.PCDense(5, 4, energy=pc.energies.Huber(), rngs=rngs), pc.PCDense(4, 3, rngs=rngs)]
    )
    with pytest.raises(ValueError, match=r"Gaussian energy, but that of 'layer_0' is Huber"):
        in_double(heavy).infer(inputs, targets, inference=newton)
    flat = pc.PCNetwork(
        [pc.PCRoot(4, energy=pc.energies.Gaussian(0.0)), pc.PCDense(4, 3, rngs=rngs)]
    )
    with pytest.raises(ValueError, match=r"'layer_0' has a precision of 0"):
        in_double(flat).infer(None, targets, inference=newton)
