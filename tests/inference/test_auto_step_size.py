"""GradientDescent(step_size="auto"): 1/lambda_max of each example, by power iteration."""

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from tests.conftest import Chain, in_double, infer_traced

AUTO = pc.inference.GradientDescent(step_size="auto", num_steps=200)
FIXED = pc.inference.GradientDescent(optax.sgd(0.1), num_steps=200)

pytestmark = pytest.mark.usefixtures("double")


def scaled(factor, activation, seed=0):
    """A chain whose weights are `factor` times as large."""
    chain = Chain(activation=activation, seed=seed)
    for layer in chain.network.layers:
        layer.linear.kernel[...] *= factor
    return chain


@jax.jit
def hessians(network, inputs, targets):
    """d2F_i/dz_i2 of each example at the feedforward start, dense, by jax.hessian."""

    def one(x, y):
        problem = pc.inference.make_problem(network, pc.Evidence(x[None], y[None]))
        flat, unravel = jax.flatten_util.ravel_pytree(problem.start)
        return jax.hessian(lambda flat: problem.energy(unravel(flat))[0])(flat)

    return jax.vmap(one)(inputs, targets)


@jax.jit
def estimates(network, inputs, targets):
    return AUTO.init(pc.inference.make_problem(network, pc.Evidence(inputs, targets))).eigenvalue


@functools.cache
def spectrum(factor, activation, seed=0):
    """Eigenvalues of each example's Hessian (7, 9), and the algorithm's estimate of the largest."""
    chain = scaled(factor, activation, seed)
    data = (pc.networks.split(chain.network), chain.inputs, chain.targets)
    return np.linalg.eigvalsh(hessians(*data)), np.asarray(estimates(*data))


# The largest curvature is 4 to 1200 times the least.
CASES = [
    (factor, activation, seed)
    for factor in (0.5, 1.0, 4.0)
    for activation in ("tanh", "identity")
    for seed in (0, 1, 2)
]


@pytest.mark.parametrize(("factor", "activation", "seed"), CASES)
def test_the_estimate_is_the_largest_eigenvalue_within_a_quarter(factor, activation, seed):
    """From below, as every |H v| of a unit v is: above half of it, a step of 1/estimate is stable."""
    eigenvalues, estimate = spectrum(factor, activation, seed)
    largest = np.abs(eigenvalues).max(axis=1)
    assert (estimate <= largest * (1 + 1e-12)).all()
    assert (estimate >= 0.75 * largest).all()


def test_examples_have_their_own_step():
    """A tanh is flat where it saturates, so examples differ in curvature."""
    eigenvalues, estimate = spectrum(4.0, "tanh")
    largest = np.abs(eigenvalues).max(axis=1)
    assert largest.max() > 1.2 * largest.min()
    assert np.corrcoef(largest, estimate)[0, 1] > 0.9


@pytest.mark.parametrize("activation", ["tanh", "identity"])
def test_an_ill_conditioned_chain_is_descended_where_a_fixed_step_explodes(activation):
    eigenvalues, _ = spectrum(4.0, activation)
    assert (eigenvalues.max(axis=1) > 100 * np.abs(eigenvalues).min(axis=1)).any()
    assert (eigenvalues.max(axis=1) > 2 / 0.1).any()  # where optax.sgd(0.1) is not stable
    chain = scaled(4.0, activation)
    auto = chain.network.infer(chain.inputs, chain.targets, inference=AUTO, trace=True)
    energy = np.asarray(auto.trace.energy)
    # at the bottom, energies differ by rounding
    assert (np.diff(energy, axis=0) <= 1e-12 * energy[:-1]).all()
    assert (energy[-1] < energy[0]).all()
    fixed = infer_traced(chain, FIXED)
    exploded = ~(np.asarray(fixed.energy) < energy[0])
    assert exploded.any()


def test_one_step_is_the_gradient_over_the_estimate():
    """On a linear chain the Hessian is the same everywhere: lambda_max times the move is dF/dz."""
    chain = Chain(activation="identity")
    problem = pc.inference.make_problem(
        pc.networks.split(chain.network), pc.Evidence(chain.inputs, chain.targets)
    )
    eigenvalues, _ = spectrum(1.0, "identity")

    @jax.jit
    def one_step(start):
        state = AUTO.init(problem)
        return problem.gradient(start), *AUTO.step(problem, start, state, step=0, key=None)[:2]

    gradient, moved, state = one_step(problem.start)
    for name, start in problem.start.items():
        move = (start - moved[name]) * state.eigenvalue[:, None]
        np.testing.assert_allclose(move, gradient[name], rtol=1e-12, atol=1e-14)
    # an eleventh iteration came along with the step
    np.testing.assert_allclose(state.eigenvalue, eigenvalues[:, -1], rtol=0.1)


def test_a_flat_energy_leaves_activities_where_they_are():
    """Curvature zero: no step size follows from it, and nothing is divided by it."""
    network = pc.PCNetwork({"root": pc.PCRoot(3, energy=pc.energies.Gaussian(0.0))})
    half = pc.Clamp(jnp.full((2, 3), 0.7), np.array([True, False, False]))
    result = network.infer(clamps={"root": half}, inference=AUTO)
    np.testing.assert_array_equal(result.activities["root"], [[0.7, 0.0, 0.0]] * 2)


def test_an_energy_that_is_flat_at_first_shows_its_curvature_later():
    """A direction lost where H v = 0 would leave a step of 1, which is above 2/2.56, for good."""
    network = pc.PCNetwork(
        {
            "root": pc.PCRoot(3, energy=pc.energies.Gaussian(0.0)),
            "out": pc.PCDense(3, 2, energy=pc.energies.Huber(1.0), rngs=nnx.Rngs(0)),
        }
    )
    kernel = in_double(network).layer("out").linear.kernel
    kernel[...] *= 1.5
    assert np.linalg.norm(kernel[...], 2) ** 2 > 2.5
    # so far off that every output's energy is in its straight part
    targets = np.array([[5.0, -4.0], [-3.0, 6.0]])
    problem = pc.inference.make_problem(pc.networks.split(network), pc.Evidence(None, targets))
    np.testing.assert_array_equal(AUTO.init(problem).eigenvalue, 0.0)
    result = network.infer(None, targets, inference=AUTO)
    assert (result.residual < 1e-6).all()


def test_nothing_free_is_no_trouble():
    network = pc.PCNetwork({"root": pc.PCRoot(3)})
    result = network.infer(jnp.ones((2, 3)), inference=AUTO)
    np.testing.assert_array_equal(result.residual, [0.0, 0.0])


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((), {}, TypeError, r'expected a step size .*, an optax .* or step_size="auto", got None'),
        ((), {"step_size": "fast"}, TypeError, r"expected a step size such as 0.1.* got \'fast\'"),
        ((0.1,), {"step_size": 0.1}, ValueError, "got two step sizes; give one of them"),
        (
            (optax.sgd(0.1),),
            {"step_size": "auto"},
            ValueError,
            'got an optimizer and step_size="auto"; give one of them',
        ),
    ],
)
def test_refusals(arguments, options, error, message):
    with pytest.raises(error, match=f"GradientDescent {message}"):
        pc.inference.GradientDescent(*arguments, **options)
