"""Laplace and Huber, whose pull does not grow with the error, against scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import special, stats

import pcflax as pc
from pcflax.energies import Gaussian, Huber, Laplace

PROPERTY = settings(max_examples=25, deadline=None, derandomize=True, database=None)
EXACT = {"rtol": 1e-12, "atol": 1e-12}  # float64, sums of a few dozen terms
pairs = arrays(np.float64, (2, 3, 4), elements=st.floats(-50, 50, width=32))
widths = st.floats(0.125, 8, width=32)


def draw(shape):
    """An activity and a prediction with errors on both sides of 1; float64."""
    random = np.random.default_rng(0)
    return random.normal(size=shape), 2 * random.normal(size=shape)


def slopes(energy, activity, prediction):
    """d(sum of energies)/d(activity, prediction)."""
    slope = jax.grad(lambda *arguments: energy(*arguments).sum(), argnums=(0, 1))
    return slope(jnp.asarray(activity), jnp.asarray(prediction))


@pytest.mark.usefixtures("double")
class TestLaplace:
    @pytest.mark.parametrize("shape", [(1, 3), (5, 4), (3, 2, 4)])
    @pytest.mark.parametrize("scale", [0.25, 1.0, 3.0])
    def test_is_minus_the_laplace_log_density_up_to_its_constant(self, shape, scale):
        activity, prediction = draw(shape)
        laplace = stats.laplace(loc=prediction, scale=scale)
        expected = (laplace.logpdf(prediction) - laplace.logpdf(activity)).reshape(shape[0], -1)
        found = Laplace(scale)(jnp.asarray(activity), jnp.asarray(prediction))
        np.testing.assert_allclose(found, expected.sum(axis=1), **EXACT)

    def test_gradient_is_the_sign_of_the_error_over_the_scale(self):
        """An outlier of any size pulls as hard as any other error."""
        activity, prediction = draw((4, 3))
        activity[0, 0] += 1e6
        by_activity, by_prediction = slopes(Laplace(2.5), activity, prediction)
        np.testing.assert_allclose(by_activity, np.sign(activity - prediction) / 2.5, **EXACT)
        np.testing.assert_allclose(by_prediction, -np.sign(activity - prediction) / 2.5, **EXACT)

    def test_gradient_is_0_at_an_error_of_0(self):
        """Where every feedforward start lies: a slope of 1, as of jnp.abs, would push it away."""
        activity, _ = draw((4, 3))
        for slope in slopes(Laplace(), activity, activity):
            np.testing.assert_array_equal(slope, np.zeros((4, 3)))

    def test_a_free_activity_ends_at_the_median_of_its_predictions(self):
        """The L1 minimum: with three of one weight, the middle one, however far the outlier is."""
        votes = np.array([[-1.0, 2.0, 1000.0]])
        energy = Laplace()
        candidates = np.linspace(-3, 5, 801)[:, None]
        totals = energy(
            jnp.asarray(np.repeat(candidates, 3, axis=1)),
            jnp.asarray(np.repeat(votes, 801, axis=0)),
        )
        assert candidates[np.argmin(totals), 0] == pytest.approx(2.0)


@pytest.mark.usefixtures("double")
class TestHuber:
    @pytest.mark.parametrize("shape", [(1, 3), (5, 4), (3, 2, 4)])
    @pytest.mark.parametrize("delta", [0.25, 1.0, 3.0])
    def test_is_scipys_huber_function_of_the_error(self, shape, delta):
        activity, prediction = draw(shape)
        expected = special.huber(delta, activity - prediction).reshape(shape[0], -1).sum(axis=1)
        found = Huber(delta)(jnp.asarray(activity), jnp.asarray(prediction))
        np.testing.assert_allclose(found, expected, **EXACT)

    def test_gradient_is_the_clipped_error(self):
        activity, prediction = draw((4, 3))
        clipped = np.clip(activity - prediction, -1.5, 1.5)
        assert (np.abs(clipped) == 1.5).any()
        assert (np.abs(clipped) < 1.5).any()
        by_activity, by_prediction = slopes(Huber(1.5), activity, prediction)
        np.testing.assert_allclose(by_activity, clipped, **EXACT)
        np.testing.assert_allclose(by_prediction, -clipped, **EXACT)

    @pytest.mark.parametrize("error", [0.0, 1.5, -1.5])
    def test_gradient_where_its_pieces_meet(self, error):
        """Differentiating an absolute value and a minimum at their kinks must not double the slope."""
        by_activity, _ = slopes(Huber(1.5), [[error]], [[0.0]])
        np.testing.assert_array_equal(by_activity, [[error]])


class TestInference:
    @pytest.mark.parametrize("energy", [Laplace(2.0), Huber(0.5)], ids=["laplace", "huber"])
    def test_an_outlier_pulls_no_harder_than_it_may(self, energy):
        """A free root under a clamp of 1000 moves until its prior holds the largest pull: to 1/2."""
        network = pc.PCNetwork([pc.PCRoot(1), pc.PCLayer(lambda below: below, energy=energy)])
        network.infer(
            targets=jnp.full((1, 1), 1000.0),
            inference=pc.inference.GradientDescent(optax.sgd(0.2), num_steps=100),
        )
        np.testing.assert_allclose(network.layers[0].activity[...], [[0.5]], rtol=1e-5)


class TestProperties:
    @PROPERTY
    @given(pairs, widths)
    def test_neither_is_negative_and_both_are_0_at_the_prediction(self, pair, width):
        with jax.enable_x64(True):
            one, other = jnp.asarray(pair)
            for energy in (Laplace(width), Huber(width)):
                found = np.asarray(energy(one, other))
                assert (found >= 0).all()
                np.testing.assert_array_equal(found, energy(other, one))
                np.testing.assert_array_equal(energy(one, one), np.zeros(3))

    @PROPERTY
    @given(pairs, widths)
    def test_huber_lies_under_gaussian_and_under_laplace(self, pair, delta):
        with jax.enable_x64(True):
            one, other = jnp.asarray(pair)
            found = np.asarray(Huber(delta)(one, other))
            assert (found <= np.asarray(Gaussian()(one, other)) + 1e-9).all()
            assert (found <= np.asarray(Laplace(1 / delta)(one, other)) + 1e-9).all()

    @PROPERTY
    @given(pairs)
    def test_a_wide_huber_is_gaussian(self, pair):
        with jax.enable_x64(True):
            one, other = jnp.asarray(pair)
            np.testing.assert_allclose(Huber(101.0)(one, other), Gaussian()(one, other), **EXACT)


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_widths_that_are_none_are_refused(wrong):
    with pytest.raises(ValueError, match=f"Laplace expected a scale above 0, got {wrong}"):
        Laplace(wrong)
    with pytest.raises(ValueError, match=f"Huber expected a delta above 0, got {wrong}"):
        Huber(wrong)
