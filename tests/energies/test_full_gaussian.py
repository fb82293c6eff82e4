"""The Gaussian energy with a full precision matrix. Oracle: SciPy's multivariate normal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import pcflax as pc

COVARIANCE = np.array([[2.0, 0.6, -0.3], [0.6, 1.0, 0.2], [-0.3, 0.2, 0.5]])


def test_it_is_the_negative_log_density_up_to_the_constant(double):
    random = np.random.default_rng(0)
    z, mu = random.normal(size=(2, 5, 3))
    energy = pc.energies.FullGaussian(np.linalg.inv(COVARIANCE))
    density = stats.multivariate_normal(np.zeros(3), COVARIANCE)
    expected = density.logpdf(np.zeros(3)) - density.logpdf(z - mu)
    np.testing.assert_allclose(energy(z, mu), expected, rtol=1e-12)
    gradient = jax.grad(lambda z: energy(z, mu).sum())(jnp.asarray(z))
    np.testing.assert_allclose(gradient, (z - mu) @ np.linalg.inv(COVARIANCE), rtol=1e-12)


def test_a_diagonal_matrix_is_gaussian():
    z, mu = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    precision = jnp.array([1.0, 0.0, 4.0])
    np.testing.assert_allclose(
        pc.energies.FullGaussian(jnp.diag(precision))(z, mu),
        pc.energies.Gaussian(precision)(z, mu),
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    "precision",
    [
        [[1.0, 0.5], [0.0, 1.0]],
        [[1.0, 2.0], [2.0, 1.0]],
        [[np.nan, 0], [0, 1]],
        [[np.inf, 0], [0, 1]],
    ],
)
def test_what_is_no_precision_is_refused(precision):
    with pytest.raises(ValueError, match="symmetric and positive semidefinite; give the inverse"):
        pc.energies.FullGaussian(np.array(precision))


def test_wrong_shapes_are_refused():
    with pytest.raises(
        ValueError, match=r"shape \(features, features\), got \(3,\); for one number"
    ):
        pc.energies.FullGaussian(np.ones(3))
    with pytest.raises(ValueError, match=r"precision of shape \(3, 3\), but one example .* \(2,\)"):
        pc.energies.FullGaussian(np.eye(3))(jnp.ones((1, 2)), jnp.ones((1, 2)))
