"""Newton and Gauss-Newton inference: rates near the minimum, and descent far from it."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import lineax
import numpy as np
import optax
import pytest

import pcflax as pc
from tests.conftest import Chain, infer_traced

NEWTON = pc.inference.NewtonCG(num_steps=30)
GAUSS_NEWTON = pc.inference.GaussNewton(num_steps=30)
BOTH = pytest.mark.parametrize("inference", [NEWTON, GAUSS_NEWTON], ids=["newton", "gauss-newton"])

pytestmark = pytest.mark.usefixtures("double")


def infer(chain, inference, **options):
    return chain.network.infer(chain.inputs, chain.targets, inference=inference, **options)


def problem_of(chain):
    return pc.inference.make_problem(
        pc.networks.split(chain.network), pc.Evidence(chain.inputs, chain.targets)
    )


def test_the_residual_falls_faster_and_faster_near_the_minimum():
    """Superlinear: each step shrinks it by a larger factor than the one before.

    The damping shrinks tenfold a step and the linear solves are exact here, so twice is safe.
    """
    descent = pc.inference.GradientDescent(optax.sgd(0.1), num_steps=200)
    newton = pc.inference.NewtonCG(linear_solver=lineax.CG(rtol=1e-10, atol=1e-10), num_steps=3)
    chain = Chain()
    result = infer(chain, pc.inference.Sequence(descent, newton), trace=True)
    residual = np.asarray(result.trace.residual)[200:]
    first, second, third = residual[1:] / residual[:-1]
    assert (first < 0.05).all()
    assert (second < first / 2).all()
    # unless it has arrived at rounding
    assert ((third < second / 2) | (residual[3] < 1e-14)).all()


def test_the_residual_shrinks_a_thousandfold_a_step_near_the_minimum():
    """With the linear solver of its own, to 1e-3; the first steps may still be damped."""
    residual = np.asarray(infer(Chain(), NEWTON, trace=True).trace.residual)
    before, after = residual[:-1], residual[1:]
    # below 1e-5 steps are full ones; below 1e-11, rounding is next
    near = (before < 1e-5) & (before > 1e-11)
    assert near.any(axis=0).all()
    assert (after[near] < 1e-3 * before[near]).all()


@BOTH
def test_no_step_ever_raises_an_energy(inference):
    """From starts far off, where the Hessian is indefinite and full steps overshoot."""
    chain = Chain()
    result = infer(
        chain,
        inference,
        initializer=pc.initializers.Normal(3.0),
        key=jax.random.key(1),
        trace=True,
    )
    energy = np.asarray(result.trace.energy)
    # a step that changes the energy by rounding alone, 8 units in the last place, is allowed
    assert (np.diff(energy, axis=0) <= 8 * np.finfo(float).eps * energy[:-1]).all()
    assert (energy[-1] < 0.1 * energy[0]).all()
    # and some were refused: the example stood still before it went on
    still = np.diff(energy, axis=0) == 0
    assert any(np.any(still[:-1, row] & (np.diff(energy[1:, row]) < 0)) for row in range(7))


def test_such_starts_are_indefinite():
    """What the test above is about: negative curvature, along which a Newton step goes uphill."""
    chain = Chain()
    problem = pc.inference.make_problem(
        pc.networks.split(chain.network),
        pc.Evidence(chain.inputs, chain.targets),
        initializer=pc.initializers.Normal(3.0),
        key=jax.random.key(1),
    )

    def energy(flat, row):
        own = {"layer_0": flat[:5], "layer_1": flat[5:]}
        moved = {name: problem.start[name].at[row].set(own[name]) for name in own}
        return problem.energy(moved)[row]

    start = jnp.concatenate([problem.start["layer_0"], problem.start["layer_1"]], axis=1)
    hessians = jax.jit(jax.vmap(jax.hessian(energy)))(start, jnp.arange(7))
    assert np.linalg.eigvalsh(hessians).min() < -0.1


def test_gauss_newton_goes_on_to_the_tolerance_where_errors_are_large():
    """Linearly, as it says, also where energies differ by no more than rounding.

    At the square root of rounding, about 1e-8, an energy tells nothing of a step: one that is taken
    all the same must not make the damping smaller, or steps overshoot for ever.
    """
    result = infer(Chain(), pc.inference.GaussNewton(tolerance=1e-10, max_steps=999))
    assert (result.residual <= 1e-10).all()


def test_the_gauss_newton_matrix_is_the_hessian_without_second_derivatives():
    """J^T P J of all errors, P their precisions."""
    chain = Chain(batch=1)
    first, second, third = chain.reference

    def weighted_errors(flat):
        z0, z1 = flat[:5], flat[5:]
        errors = (
            z0 - jnp.tanh(chain.inputs[0] @ first.kernel + first.bias),
            z1 - jnp.tanh(z0 @ second.kernel + second.bias),
            chain.targets[0] - z1 @ third.kernel - third.bias,
        )
        precisions = (first.precision, second.precision, third.precision)
        return jnp.concatenate([np.sqrt(p) * e for p, e in zip(precisions, errors, strict=True)])

    problem = problem_of(chain)
    anywhere = jnp.asarray(chain.random.normal(size=9))
    coordinates = {"layer_0": anywhere[None, :5], "layer_1": anywhere[None, 5:]}

    def column(unit):
        product = GAUSS_NEWTON.curvature(problem, coordinates)
        parts = product({"layer_0": unit[None, :5], "layer_1": unit[None, 5:]})
        return jnp.concatenate([parts["layer_0"][0], parts["layer_1"][0]])

    jacobian = jax.jacobian(weighted_errors)(anywhere)
    got = jax.jit(jax.vmap(column))(jnp.eye(9))
    np.testing.assert_allclose(got, jacobian.T @ jacobian, rtol=1e-10, atol=1e-12)


@BOTH
def test_free_roots_and_held_elements_relax_with_the_rest(inference):
    """The same minimum as descent's, with a free root and a mask of each example's own."""
    chain = Chain(root=True)
    mask = chain.random.uniform(size=(7, 5)) < 0.4
    held = {"layer_1": pc.Clamp(np.where(mask, 0.3, np.nan), mask)}
    descent = pc.inference.GradientDescent(optax.sgd(0.05, momentum=0.9), num_steps=2500)
    expected, got = (
        chain.network.infer(None, chain.targets, clamps=held, inference=algorithm)
        for algorithm in (descent, inference)
    )
    np.testing.assert_array_equal(np.asarray(got.activities["layer_1"])[mask], 0.3)
    # thirty steps are not quite all the way for the other
    np.testing.assert_allclose(got.energy, expected.energy, rtol=1e-4)
    if inference is NEWTON:
        for name, activity in expected.activities.items():
            np.testing.assert_allclose(got.activities[name], activity, rtol=1e-6, atol=1e-7)


def test_an_example_that_is_not_a_number_leaves_the_others_alone():
    before, chain = infer(Chain(), NEWTON), Chain()
    chain.inputs[2] = np.nan
    result = infer_traced(chain, NEWTON)
    others = np.arange(7) != 2
    assert np.isnan(result.energy[2])
    np.testing.assert_allclose(result.energy[others], before.energy[others], rtol=1e-10)


def test_a_dense_linear_solver_goes_the_same_way():
    exact = pc.inference.NewtonCG(linear_solver=lineax.LU(), num_steps=30)
    chain = Chain()
    dense, by_products = infer(chain, exact), infer(chain, NEWTON)
    for name, activity in by_products.activities.items():
        np.testing.assert_allclose(dense.activities[name], activity, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", [pc.inference.NewtonCG, pc.inference.GaussNewton])
def test_refuses_what_is_not_a_linear_solver(kind):
    message = rf"{kind.__name__} expected a lineax solver such as lineax.CG.*, got 'cg'"
    with pytest.raises(TypeError, match=message):
        kind(linear_solver="cg")
