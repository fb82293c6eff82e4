"""R-hat and effective sample sizes of chains, against formulas of AR(1) and the published definition."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal, stats

import pcflax as pc

diagnose = pc.analysis.chain_diagnostics


def autoregression(rho, shape):
    """Chains x_t = rho x_{t-1} + sqrt(1 - rho^2) e_t, in equilibrium, along the first axis."""
    noise = np.random.default_rng(0).standard_normal(shape)
    noise[1:] *= (1 - rho**2) ** 0.5
    return signal.lfilter([1.0], [1.0, -rho], noise, axis=0)


def r_hat_by_hand(chains):
    """The larger of split R-hat of the ranks and of the folded ranks; chains are (chain, draw)."""

    def split(values):
        half = values.shape[1] // 2
        return np.concatenate([values[:, :half], values[:, -half:]])

    def of_ranks(values):
        ranks = stats.rankdata(values).reshape(values.shape)
        z = stats.norm.ppf((ranks - 3 / 8) / (values.size + 1 / 4))
        within = z.var(axis=1, ddof=1).mean()
        between = z.mean(axis=1).var(ddof=1)
        n = z.shape[1]
        return np.sqrt(((n - 1) / n * within + between) / within)

    halves = split(chains)
    return max(of_ranks(halves), of_ranks(abs(halves - np.median(halves))))


class TestDiagnostics:
    @pytest.fixture(autouse=True)
    def _needs_arviz(self):
        pytest.importorskip("arviz_stats")

    @pytest.mark.parametrize("rho", [0.0, 0.6, -0.3])
    def test_the_effective_sample_size_of_an_autoregression(self, rho):
        """N (1 - rho)/(1 + rho): of a sum over its correlations rho^|k|."""
        samples = autoregression(rho, (8000, 8))
        found = diagnose(samples, chains=4)
        np.testing.assert_allclose(found["ess"], 32000 * (1 - rho) / (1 + rho), rtol=0.12)
        assert (found["r_hat"] < 1.01).all()

    def test_r_hat_is_that_of_the_source(self):
        samples = autoregression(0.5, (400, 8, 3))
        samples += np.repeat([0.0, 0.3], 4)[:, None] * np.tile([0.0, 1.0, 2.0, 3.0], 2)[:, None]
        found = diagnose({"z": jnp.asarray(samples)}, chains=4)["r_hat"]["z"]
        assert found.shape == (2, 3)
        for example in range(2):
            chains = np.asarray(jnp.asarray(samples), np.float64)[:, 4 * example : 4 * example + 4]
            expected = [r_hat_by_hand(chains[:, :, k].T) for k in range(3)]
            np.testing.assert_allclose(found[example], expected, rtol=1e-6)
        assert (found[0] < 1.02).all()
        assert (found[1] > 1.05).all()

    def test_chains_of_a_posterior_mix(self):
        """Z ~ N(0, 1), x | z ~ N(z, 1/3): four chains of each of two examples."""
        network = pc.PCNetwork({"z": pc.PCRoot(1), "x": Copy(energy=pc.energies.Gaussian(3.0))})
        x = jnp.repeat(jnp.array([[0.4], [2.0]]), 4, axis=0)
        sampler = pc.inference.Langevin(0.1, burn_in=200, num_samples=2000, keep_samples=True)
        result = network.infer(None, x, inference=sampler, key=jax.random.key(0))
        found = diagnose({"z": result.samples["z"]}, chains=4)
        assert (found["r_hat"]["z"] < 1.01).all()
        # an autoregression with rho = 1 - 0.1 * 4
        np.testing.assert_allclose(found["ess"]["z"], 8000 * 0.4 / 1.6, rtol=0.2)

    def test_what_is_no_chains_is_refused(self):
        for shape, chains in (((3, 8), 4), ((100, 7), 4)):
            with pytest.raises(ValueError, match=f"rows in groups of {chains} chains"):
                diagnose(np.zeros(shape), chains=chains)
        with pytest.raises(ValueError, match="chains of at least 2"):
            diagnose(np.zeros((100, 4)), chains=1)


class Copy(pc.PCLayer):
    def predict(self, below):
        return below


def test_without_arviz_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz_stats", None)
    monkeypatch.setitem(sys.modules, "arviz_stats.base", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'pcflax\[sampling\]'"):
        diagnose(np.zeros((100, 4)))
