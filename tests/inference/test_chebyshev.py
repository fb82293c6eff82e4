"""Chebyshev semi-iteration against Chebyshev's polynomials, and its spectrum against eigvalsh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.polynomial import chebyshev as polynomials

import pcflax as pc
from pcflax.inference.curvature import spectrum_ends
from tests import test_conformance as conformance
from tests.conftest import Chain
from tests.inference.test_momentum import expect_closed_form, linear_chain, problem_of, quadratic

Chebyshev = pc.inference.Chebyshev
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("double")]


def test_it_leaves_of_an_error_what_chebyshevs_polynomial_does():
    """T_k((theta - lambda)/delta)/T_k(theta/delta) along each eigenvector: no recurrence of ours."""
    _, problem, quadratics = linear_chain()
    values = np.stack([np.linalg.eigvalsh(hessian) for _, _, hessian, *_ in quadratics])
    smallest, largest = values.min(), values.max()
    middle, half = (largest + smallest) / 2, (largest - smallest) / 2
    condition = largest / smallest
    rate = (np.sqrt(condition) - 1) / (np.sqrt(condition) + 1)
    for steps in (1, 2, 4):
        algorithm = Chebyshev(smallest=smallest, largest=largest, num_steps=steps)
        result = jax.jit(lambda a=algorithm: a.solve(problem, trace=True))()
        assert (np.diff(result.trace.energy, axis=0) < 0).all()  # so that nothing begins anew
        one = np.eye(steps + 1)[steps]
        for row, (_, slope, hessian, start, _) in enumerate(quadratics):
            values, vectors = np.linalg.eigh(hessian)
            minimum = start - np.linalg.solve(hessian, slope)
            left = polynomials.chebval((middle - values) / half, one)
            left /= polynomials.chebval(middle / half, one)
            expected = minimum + vectors @ (left * (vectors.T @ (start - minimum)))
            own = jax.tree.leaves(problem.encode(result.activities))
            got = np.concatenate([leaf[row].ravel() for leaf in own])
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-11)
            error = np.linalg.norm(got - minimum) / np.linalg.norm(start - minimum)
            assert error <= 2 * rate**steps / (1 + rate ** (2 * steps)) * (1 + 1e-9)


def test_the_ends_of_the_spectrum_are_lanczos():
    """With as many iterations as coordinates both are exact; with few, inside and above."""
    chain = Chain(batch=3)
    problem = problem_of(chain)
    values = np.stack([np.linalg.eigvalsh(quadratic(problem, row)[2]) for row in range(3)])

    @functools.partial(jax.jit, static_argnums=0)
    def find(iterations):
        return spectrum_ends(problem, problem.start, iterations)

    smallest, largest = find(values.shape[1])
    np.testing.assert_allclose(smallest, values[:, 0], rtol=1e-6)
    np.testing.assert_allclose(largest, values[:, -1], rtol=1e-6)
    for iterations in (2, 5):
        smallest, largest = find(iterations)
        assert (smallest >= values[:, 0] * (1 - 1e-9)).all()
        assert (largest >= values[:, -1] * (1 - 1e-9)).all()
        assert (largest < 2 * values[:, -1]).all()


def test_iterations_beyond_the_free_elements_find_no_other_end():
    """With one free unit, whose Hessian is 1 + w^2, one step is the minimum, in closed form."""
    network = pc.PCNetwork(
        [
            pc.PCDense(3, 1, param_dtype=jnp.float64, rngs=nnx.Rngs(0)),
            pc.PCDense(1, 2, param_dtype=jnp.float64, rngs=nnx.Rngs(1)),
        ]
    )
    kernels = [np.asarray(layer.linear.kernel[...]) for layer in network.layers]
    x, y = np.array([[1.0, -2.0, 0.5], [0.3, 0.2, 0.1]]), np.array([[2.0, -1.0], [0.5, 3.0]])
    result = network.infer(x, y, inference=Chebyshev(tolerance=1e-10))
    curvature = 1 + kernels[1] @ kernels[1].T
    minimum = (x @ kernels[0] + y @ kernels[1].T) / curvature
    np.testing.assert_allclose(result.activities["layer_0"], minimum, rtol=1e-12)
    np.testing.assert_array_equal(result.num_steps, 1)


def test_held_elements_have_no_part_in_the_spectrum():
    """Their rows of the Hessian are 0, which would be the smallest eigenvalue."""
    chain = Chain(batch=3)
    mask = jnp.asarray([[True, False, True, False, False]] * 3)
    problem = problem_of(chain, {"layer_0": pc.Clamp(jnp.full((3, 5), 0.3), mask)})
    smallest, largest = jax.jit(lambda: spectrum_ends(problem, problem.start, 7))()
    for row in range(3):
        values = np.linalg.eigvalsh(quadratic(problem, row)[2])
        np.testing.assert_allclose(values[:2], 0, atol=1e-12)  # those that are held
        np.testing.assert_allclose(smallest[row], values[2], rtol=1e-6)
        np.testing.assert_allclose(largest[row], values[-1], rtol=1e-6)


def test_an_example_goes_back_from_where_its_energy_rises():
    """By a fifth of the largest eigenvalue, plain steps rise and it doubles, as in NumPy."""
    _, problem, quadratics = linear_chain()
    top = max(np.linalg.eigvalsh(hessian)[-1] for _, _, hessian, *_ in quadratics)
    steps, ends = 60, (top / 40, top / 5)
    algorithm = Chebyshev(smallest=ends[0], largest=ends[1], num_steps=steps)
    trace = jax.jit(lambda: algorithm.solve(problem, trace=True))().trace
    for row, (energy, slope, hessian, start, _) in enumerate(quadratics):
        z, before, largest, kept, backs = start.copy(), None, ends[1], np.inf, 0
        move = first = None
        for step in range(steps):
            off = z - start
            now = energy + slope @ off + off @ hessian @ off / 2
            np.testing.assert_allclose(trace.energy[step, row], now, rtol=1e-7)
            if now > kept * (1 + 8 * np.finfo(float).eps):
                z, move, backs = before, None, backs + 1
                largest *= 2 if first else 1
                continue
            kept, before, gradient = now, z, hessian @ off + slope
            middle, half = (largest + ends[0]) / 2, (largest - ends[0]) / 2
            first = move is None
            if first:
                ratio, move = half / middle, -gradient / middle
            else:
                new = 1 / (2 * middle / half - ratio)
                move, ratio = new * ratio * move - 2 * new / half * gradient, new
            z = z + move
        assert backs > 1
    assert (trace.energy[-1] < trace.energy[0]).all()


@pytest.mark.parametrize(
    "algorithm", [Chebyshev(tolerance=1e-9, max_steps=2000), Chebyshev(num_steps=150)]
)
def test_a_linear_chain_reaches_the_closed_form(algorithm):
    """With ends that were measured."""
    expect_closed_form(algorithm, rtol=1e-7, atol=1e-7)


def test_each_example_stops_on_its_own():
    chain = Chain(batch=16)
    network = pc.networks.split(chain.network)
    algorithm = Chebyshev(tolerance=1e-8, max_steps=2000)
    together = conformance.solve(algorithm, network, chain.inputs, chain.targets)
    assert (together.residual <= 1e-8).all()
    assert len(set(together.num_steps.tolist())) > 3
    rows = slice(7, 8)
    alone = conformance.solve(algorithm, network, chain.inputs[rows], chain.targets[rows])
    assert alone.num_steps[0] == together.num_steps[7]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smallest": 0.1}, "got smallest alone; give both ends"),
        ({"largest": 0.1}, "got largest alone; give both ends"),
        ({"smallest": 2.0, "largest": 1.0}, "smallest to be at most largest, got 2.0 and 1.0"),
        ({"smallest": 0.0, "largest": 1.0}, "a smallest above 0, got 0.0"),
        ({"iterations": 0}, "iterations of at least 1, got 0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=f"Chebyshev .*{message}"):
        Chebyshev(**options)
