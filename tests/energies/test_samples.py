"""Samples and normalizers of energies against scipy.stats, and the integrals that define them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

import pcflax as pc

E = pc.energies
KEY = jax.random.key(3)
MEAN = np.array([[-1.0, 0.25, 2.0]])
PRECISION = np.array([0.5, 1.0, 4.0])


def learned(precision, **options):
    energy = E.LearnedGaussian(3, **options)
    energy.log_precision[...] = jnp.log(jnp.asarray(precision, jnp.float32))
    return energy


def normal(precision):
    return [stats.norm(m, p**-0.5) for m, p in zip(MEAN[0], precision, strict=True)]


CONTINUOUS = {
    "gaussian": (lambda: E.Gaussian(4.0), normal([4.0] * 3)),
    "precisions": (lambda: E.Gaussian(PRECISION), normal(PRECISION)),
    "learned": (lambda: learned(PRECISION), normal(PRECISION)),
    "least variance": (lambda: learned(PRECISION, least_variance=0.3), normal(PRECISION)),
    "laplace": (lambda: E.Laplace(0.5), [stats.laplace(m, 0.5) for m in MEAN[0]]),
}


@pytest.mark.parametrize("name", CONTINUOUS)
class TestDensities:
    def test_samples_have_the_distribution_by_kolmogorov_and_smirnov(self, name):
        make, distributions = CONTINUOUS[name]
        prediction = jnp.broadcast_to(jnp.asarray(MEAN, jnp.float32), (4000, 3))
        samples = np.asarray(make().sample(prediction, KEY))
        assert samples.shape == (4000, 3)
        for feature, distribution in zip(samples.T, distributions, strict=True):
            assert stats.kstest(feature, distribution.cdf).pvalue > 0.01
        # features draw apart from each other: 4 standard errors of a correlation
        assert abs(np.corrcoef(samples.T)[np.triu_indices(3, 1)]).max() < 4 / 4000**0.5

    def test_the_energy_and_its_normalizer_are_minus_the_log_density(self, name):
        make, distributions = CONTINUOUS[name]
        energy, activity = make(), np.array([[0.3, -2.0, 1.5]])
        found = -energy(jnp.asarray(activity, jnp.float32), jnp.asarray(MEAN, jnp.float32))
        found = found - energy.log_normalizer((3,))
        expected = sum(d.logpdf(z) for d, z in zip(distributions, activity[0], strict=True))
        np.testing.assert_allclose(found, [expected], rtol=1e-6)


def test_a_normalizer_is_the_log_of_the_integral_of_exp_of_minus_the_energy():
    energy = E.Laplace(2.0)

    def density(z):
        return float(jnp.exp(-energy(jnp.array([[z]]), jnp.array([[0.5]])))[0])

    total = integrate.quad(density, -40, 40, points=[0.5], epsrel=1e-5)[0]
    np.testing.assert_allclose(energy.log_normalizer((1,)), np.log(total), rtol=1e-4)


def test_bits_and_classes_come_with_their_probabilities():
    logits = jnp.log(jnp.array([[0.2, 0.5, 0.3]]))
    classes = E.Categorical().sample(jnp.broadcast_to(logits, (6000, 3)), KEY)
    assert set(np.unique(classes)) == {0.0, 1.0}
    assert (classes.sum(axis=1) == 1).all()
    assert stats.chisquare(classes.sum(axis=0), 6000 * np.array([0.2, 0.5, 0.3])).pvalue > 0.01
    odds = jnp.array([[0.0, 1.5, -2.0]])
    bits = E.Bernoulli().sample(jnp.broadcast_to(odds, (6000, 3)), KEY)
    assert set(np.unique(bits)) == {0.0, 1.0}
    for found, logit in zip(np.asarray(bits.sum(axis=0)), odds[0], strict=True):
        probability = 1 / (1 + np.exp(-float(logit)))
        assert stats.binomtest(int(found), 6000, probability).pvalue > 0.01
    # their energies are likelihoods as they are
    assert E.Bernoulli().log_normalizer((3,)) == E.Categorical().log_normalizer((3,)) == 0
    np.testing.assert_allclose(-E.Categorical()(jnp.eye(3)[:1], logits), np.log(0.2), rtol=1e-6)


@pytest.mark.parametrize(
    "energy",
    [E.KL(), E.Huber(), E.ActivityDecay(E.Gaussian(), 0.1)],
    ids=lambda e: type(e).__name__,
)
def test_an_energy_without_a_distribution_says_so(energy):
    with pytest.raises(ValueError, match="has no distribution to draw from; give the layer"):
        energy.sample(jnp.zeros((1, 3)), KEY)
    with pytest.raises(ValueError, match="is not the negative log of a density"):
        energy.log_normalizer((3,))


@pytest.mark.parametrize("precision", [0.0, np.array([1.0, 0.0, 2.0])])
def test_a_flat_prior_has_no_samples_and_no_likelihood(precision):
    energy = E.Gaussian(precision)
    with pytest.raises(ValueError, match="precision of 0 is flat"):
        energy.sample(jnp.zeros((1, 3)), KEY)
    with pytest.raises(ValueError, match="precision of 0 is flat"):
        energy.log_normalizer((3,))
