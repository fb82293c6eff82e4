"""Activity decay: another energy plus rate/2 ||z||^2, in value, in slope and at the minimum."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import special, stats

import pcflax as pc
from pcflax.energies import KL, ActivityDecay, Bernoulli, Categorical, Gaussian, LearnedGaussian
from tests.conftest import in_double

PROPERTY = settings(max_examples=25, deadline=None, derandomize=True, database=None)
EXACT = {"rtol": 1e-12, "atol": 1e-12}  # float64, sums of a few dozen terms
pairs = arrays(np.float64, (2, 3, 4), elements=st.floats(-50, 50, width=32))


def draw(shape):
    """An activity and a prediction; float64."""
    random = np.random.default_rng(0)
    return random.normal(size=shape), 2 * random.normal(size=shape)


@pytest.mark.usefixtures("double")
class TestValues:
    @pytest.mark.parametrize("shape", [(1, 3), (5, 4), (3, 2, 4)])
    def test_is_minus_the_log_density_of_two_normals(self, shape):
        """One with the prediction for its mean, one with 0 and precision `rate`: both count."""
        activity, prediction = draw(shape)
        expected = 0.0
        for mean, precision in ((prediction, 3.0), (np.zeros(shape), 0.4)):
            normal = stats.norm(loc=mean, scale=precision**-0.5)
            expected = expected + normal.logpdf(mean) - normal.logpdf(activity)
        found = ActivityDecay(Gaussian(3.0), 0.4)(jnp.asarray(activity), jnp.asarray(prediction))
        np.testing.assert_allclose(found, expected.reshape(shape[0], -1).sum(axis=1), **EXACT)

    def test_the_gradient_gains_rate_times_activity_and_nothing_by_the_prediction(self):
        activity, prediction = draw((5, 4))
        energy = ActivityDecay(KL(), 0.4)
        found, plain = (
            jax.grad(lambda z, mu, e=e: e(z, mu).sum(), argnums=(0, 1))(
                jnp.asarray(activity), jnp.asarray(prediction)
            )
            for e in (energy, KL())
        )
        np.testing.assert_allclose(found[0], plain[0] + 0.4 * activity, **EXACT)
        np.testing.assert_array_equal(found[1], plain[1])

    def test_a_rate_of_0_leaves_the_energy_as_it_is(self):
        activity, prediction = map(jnp.asarray, draw((5, 4)))
        found = ActivityDecay(KL(), 0.0)(activity, prediction)
        np.testing.assert_array_equal(found, KL()(activity, prediction))


def test_a_precision_of_32_bits_goes_with_activities_of_16():
    """The precision's energy has 32 bits, and the decay 16."""
    low = jnp.full((2, 3), 0.5, jnp.bfloat16)
    found = ActivityDecay(LearnedGaussian(3), 0.5)(low, jnp.zeros_like(low))
    np.testing.assert_array_equal(found, [0.375 + 0.1875] * 2)


class TestInNetworks:
    @pytest.mark.usefixtures("double")
    def test_a_free_activity_ends_at_its_closed_form(self):
        """Where precision (z - mu) + rate z = 0: at precision mu / (precision + rate), short of mu."""
        layer = pc.PCDense(3, 2, energy=ActivityDecay(Gaussian(2.0), 0.5), rngs=nnx.Rngs(0))
        network = in_double(pc.PCNetwork([layer]))
        x = np.random.default_rng(0).normal(size=(4, 3))
        network.infer(x, inference=pc.inference.GradientDescent(optax.sgd(0.2), num_steps=200))
        expected = 2.0 * network.predict(x) / 2.5
        np.testing.assert_allclose(layer.activity[...], expected, rtol=1e-10)

    def test_parameters_of_the_energy_inside_are_learned(self):
        energy = ActivityDecay(LearnedGaussian(2), 0.5)
        network = pc.PCNetwork([pc.PCDense(3, 2, energy=energy, rngs=nnx.Rngs(0))])
        x = jnp.ones((4, 3))
        network.init_activities(x, targets=jnp.full((4, 2), 5.0))
        gradient = network.parameter_gradients(x)["layers"]["layer_0"]["energy"]["energy"][
            "log_precision"
        ]
        errors = 5.0 - np.asarray(network.predict(x))
        by_hand = (np.square(errors).mean(axis=0) - 1) / 2
        np.testing.assert_allclose(gradient[...], by_hand, rtol=1e-5)

    @pytest.mark.parametrize(
        ("energy", "mean"),
        [
            (Categorical(), lambda mu: special.softmax(mu, axis=-1)),
            (Bernoulli(), special.expit),
            (Gaussian(), lambda mu: mu),
        ],
        ids=["categorical", "bernoulli", "gaussian"],
    )
    def test_passes_on_the_mean_and_whether_the_layer_must_be_clamped(self, energy, mean):
        """A feedforward start at logits instead of probabilities would be far off."""
        decayed = ActivityDecay(energy, 0.1)
        assert decayed.clamped_only == energy.clamped_only == (not isinstance(energy, Gaussian))
        prediction = np.float32([[0.5, -1.0, 2.0]])
        np.testing.assert_allclose(
            decayed.mean(jnp.asarray(prediction)), mean(prediction), rtol=1e-6
        )

    def test_a_free_layer_of_an_energy_without_a_minimum_stays_refused(self):
        energy = ActivityDecay(Categorical(), 0.1)
        network = pc.PCNetwork([pc.PCDense(3, 2, energy=energy, rngs=nnx.Rngs(0))])
        with pytest.raises(ValueError, match="'layer_0' is free, but its energy ActivityDecay has"):
            network.infer(jnp.ones((4, 3)), inference=pc.inference.GradientDescent(optax.sgd(0.1)))


@PROPERTY
@given(pairs, st.floats(0, 8, width=32))
def test_is_never_less_than_the_energy_inside(pair, rate):
    with jax.enable_x64(True):
        activity, prediction = jnp.asarray(pair)
        plain = np.asarray(Gaussian()(activity, prediction))
        assert (np.asarray(ActivityDecay(Gaussian(), rate)(activity, prediction)) >= plain).all()


@pytest.mark.parametrize("rate", [-0.1, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(rate):
    text = f"ActivityDecay expected a rate of at least 0, got {rate}"
    with pytest.raises(ValueError, match=text):
        ActivityDecay(Gaussian(), rate)


@pytest.mark.parametrize("energy", ["gaussian", Gaussian, None])
def test_what_is_no_energy_is_refused(energy):
    text = r"ActivityDecay expected energy such as pc\.energies\.Gaussian\(\), got "
    with pytest.raises(TypeError, match=text):
        ActivityDecay(energy, 0.1)


class TestOtherEnergies:
    def test_one_that_measures_goes_on_measuring(self):
        """Training asks `observes`, and calls `observe` of the energy that the layer has."""
        energy = ActivityDecay(pc.energies.RunningGaussian(momentum=0.5), 0.1)
        assert energy.observes
        assert not ActivityDecay(Gaussian(), 0.1).observes
        network = pc.PCNetwork([pc.PCDense(3, 2, energy=energy, rngs=nnx.Rngs(0))])
        x, y = jnp.ones((4, 3)), jnp.zeros((4, 2))
        network.infer(x, y, inference=pc.inference.GradientDescent(0.1, num_steps=1))
        network.parameter_gradients(x)
        error = y - network.layers[0].predict(x)
        # half of the start, 1, and half of what was seen
        expected = 0.5 + 0.5 * np.mean(np.square(error))
        np.testing.assert_allclose(energy.energy.variance[...], expected, rtol=1e-6)

    def test_one_whose_prediction_is_wider_than_its_activity(self):
        activity = np.array([[1.0, -2.0]], np.float32)
        prediction = np.array([[0.5, 0.0, np.log(4.0), 0.0]], np.float32)  # precisions 4 and 1
        found = ActivityDecay(pc.energies.Heteroscedastic(), 0.3)(activity, prediction)
        expected = 0.5 * (4 * 0.5**2 + 2.0**2 - np.log(4.0)) + 0.15 * 5
        np.testing.assert_allclose(found, [expected], rtol=1e-6)
