"""Likelihoods of linear Gaussian models by scipy, and distances of Gaussians in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import integrate, linalg, stats

import pcflax as pc
from tests.conftest import in_double

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
G = pc.energies.Gaussian
bound = pc.analysis.log_likelihood_bound


def chain(activation=None):
    rngs = nnx.Rngs(1)
    layers = {
        "z": pc.PCRoot(2, mean=np.array([1.0, -1.0]), energy=G(2.0)),
        "h": pc.PCDense(
            2, 3, activation=activation, energy=G(np.array([1.0, 2.0, 4.0])), rngs=rngs
        ),
        "x": pc.PCDense(3, 4, energy=pc.energies.LearnedGaussian(4, precision=8.0), rngs=rngs),
    }
    return in_double(pc.PCNetwork(layers))


@pytest.mark.usefixtures("double")
class TestLikelihood:
    @pytest.mark.parametrize("num_samples", [1, 5])
    def test_that_of_a_linear_gaussian_model_is_exact(self, num_samples):
        """X ~ N(b2 + W2 (b1 + W1 m), W2 (W1 W1'/2 + diag) W2' + 1/8): q is then the posterior."""
        network, x = chain(), np.random.default_rng(0).normal(size=(5, 4))
        w1, w2 = (np.asarray(network.layer(n).linear.kernel[...]) for n in ("h", "x"))
        inner = w1.T @ w1 / 2 + np.diag([1, 1 / 2, 1 / 4])
        model = stats.multivariate_normal(
            np.array([1.0, -1.0]) @ w1 @ w2, w2.T @ inner @ w2 + np.eye(4) / 8
        )
        found = bound(
            network, pc.Evidence(targets=jnp.asarray(x)), inference=pc.inference.LinearSolve(),
            key=KEY, num_samples=num_samples,
        )  # fmt: skip
        np.testing.assert_allclose(found, model.logpdf(x), rtol=1e-5)

    def test_that_of_a_nonlinear_model_is_below_the_integral_and_nears_it(self):
        network = pc.PCNetwork(
            {
                "z": pc.PCRoot(1),
                "x": pc.PCDense(1, 2, activation=jnp.tanh, energy=G(6.0), rngs=nnx.Rngs(3)),
            }
        )
        in_double(network)
        x = jnp.array([[0.8, -0.9]])

        def integrand(z):
            mean = network.predict(jnp.array([[z]]))[0]
            return stats.norm.pdf(z) * stats.norm(np.asarray(mean), 6**-0.5).pdf(x[0]).prod()

        exact = np.log(integrate.quad(integrand, -6, 6, epsabs=1e-8)[0])
        settle = pc.inference.NewtonCG(num_steps=10)
        rows = pc.Evidence(targets=jnp.repeat(x, 400, axis=0))
        one, many = (
            np.asarray(bound(network, rows, inference=settle, key=KEY, num_samples=n))
            for n in (1, 64)
        )
        assert one.mean() < many.mean() < exact + 4 * many.std() / 20
        np.testing.assert_allclose(many.mean(), exact, atol=0.05)

    def test_a_clamped_root_is_conditioned_on(self):
        network, z, x = chain(), jnp.array([[0.3, 0.4]]), jnp.zeros((1, 4))
        w1, w2 = (np.asarray(network.layer(n).linear.kernel[...]) for n in ("h", "x"))
        model = stats.multivariate_normal(
            z[0] @ w1 @ w2, w2.T @ np.diag([1, 1 / 2, 1 / 4]) @ w2 + np.eye(4) / 8
        )
        found = bound(network, pc.Evidence(z, x), inference=pc.inference.LinearSolve(), key=KEY)
        np.testing.assert_allclose(found, [model.logpdf(x[0])], rtol=1e-5)

    def test_what_has_no_likelihood_is_refused(self):
        descent = pc.inference.GradientDescent(0.1)
        steep, x = pc.inference.GradientDescent(9.0, num_steps=2000), jnp.ones((1, 4))
        with pytest.raises(pc.NonFiniteEnergyError, match="peak diverged; lower its step size"):
            bound(chain(), pc.Evidence(targets=x), inference=steep, key=KEY)
        flat = in_double(pc.models.decoder(2, 3, rngs=nnx.Rngs(0)))
        with pytest.raises(ValueError, match="precision of 0 is flat"):
            bound(flat, pc.Evidence(targets=jnp.ones((1, 3))), inference=descent, key=KEY)
        half = {"x": pc.Clamp(jnp.ones((1, 4)), jnp.array([True, True, False, False]))}
        with pytest.raises(ValueError, match="layer 'x' is clamped in part"):
            bound(chain(), pc.Evidence(clamps=half), inference=descent, key=KEY)
        both = in_double(pc.models.bidirectional(4, 3, 2, rngs=nnx.Rngs(0)))
        with pytest.raises(ValueError, match="several predictors"):
            bound(both, pc.Evidence(jnp.ones((1, 4))), inference=descent, key=KEY)


def test_bits_of_a_gaussian_by_scipy():
    """Of pixels of 256 levels on [0, 1]: the density times 1/256 is a level's probability."""
    normal = stats.norm(0.5, 0.1)
    expected = -np.log2(normal.pdf(0.45) / 256)
    found = pc.analysis.bits_per_dimension(3 * normal.logpdf(0.45), (3,))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    coin = pc.analysis.bits_per_dimension(5 * np.log(0.5), 5, levels=1)
    np.testing.assert_allclose(coin, 1.0, rtol=1e-6)


class TestFrechet:
    def test_is_the_formula_with_scipys_root(self):
        random = np.random.default_rng(0)
        a = random.normal(size=(300, 4)) @ random.normal(size=(4, 4))
        b = 1 + random.normal(size=(200, 4)) @ random.normal(size=(4, 4))
        root = linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
        trace = np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
        expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + trace
        np.testing.assert_allclose(pc.analysis.frechet_distance(a, b), expected, rtol=1e-8)

    def test_of_commuting_covariances_is_that_of_standard_deviations(self):
        """|m|^2 + sum (s1 - s2)^2, for samples whitened to have their moments exactly."""
        random = np.random.default_rng(1)

        def exactly(mean, deviations):
            x = random.normal(size=(50, 3))
            x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
            return mean + x * deviations

        a, b = exactly(0.0, [1.0, 2.0, 0.0]), exactly([1.0, 0.0, 2.0], [3.0, 2.5, 0.5])
        expected = 5 + 4 + 0.25 + 0.25
        np.testing.assert_allclose(pc.analysis.frechet_distance(a, b), expected, rtol=1e-7)

    def test_other_shapes_are_refused(self):
        for a, b in (((5, 3), (5, 4)), ((5,), (5, 1)), ((1, 3), (5, 3))):
            with pytest.raises(ValueError, match="two arrays of"):
                pc.analysis.frechet_distance(np.zeros(a), np.zeros(b))
        with pytest.raises(ValueError, match="frechet_distance expected finite features, got NaN"):
            pc.analysis.frechet_distance(np.full((3, 2), np.nan), np.zeros((3, 2)))
