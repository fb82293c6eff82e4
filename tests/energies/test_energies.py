"""Energies against the likelihoods they are the negative logarithms of, and their closed-form slopes.

Oracles: scipy.stats and scipy.special in float64, and gradients derived by hand. Where an oracle is
compared to more digits than float32 has, jax runs in 64-bit mode.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import special, stats

import pcflax as pc
from pcflax.energies import (
    KL,
    ActivityDecay,
    Bernoulli,
    Categorical,
    Gaussian,
    Huber,
    Laplace,
    LearnedGaussian,
)
from pcflax.energies.base import sum_features

PROPERTY = settings(max_examples=25, deadline=None, derandomize=True, database=None)
EXACT = {"rtol": 1e-12, "atol": 1e-12}  # float64, sums of a few dozen terms
ENERGIES = {
    "gaussian": Gaussian(0.7),
    "learned gaussian": LearnedGaussian(precision=0.7),
    "laplace": Laplace(0.6),
    "huber": Huber(0.8),
    "kl": KL(),
    "activity decay": ActivityDecay(Gaussian(0.7), 0.3),
    "categorical": Categorical(),
    "bernoulli": Bernoulli(),
}


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def draw(kind, shape, seed=0, spread=2.0):
    """An activity that this energy may be clamped to, and a prediction; float64."""
    random = np.random.default_rng(seed)
    prediction = spread * random.normal(size=shape)
    if kind == "bernoulli":
        return random.uniform(0.05, 0.95, size=shape), prediction
    if kind == "categorical":
        return special.softmax(random.normal(size=shape), axis=-1), prediction
    return random.normal(size=shape), prediction


def single(kind, shape):
    """A draw in float32."""
    return [np.float32(array) for array in draw(kind, shape)]


@functools.cache
def compiled(kind):
    """An energy of the table as one program for each shape."""
    energy = jax.jit(ENERGIES[kind].__call__)
    return lambda activity, prediction: np.asarray(energy(activity, prediction))


def gradients(energy, activity, prediction):
    """d(sum of energies)/d(activity, prediction): rows are examples, which do not interact."""
    slope = jax.grad(lambda *arguments: energy(*arguments).sum(), argnums=(0, 1))
    return jax.jit(slope)(activity, prediction)


def curvature(energy, activity, prediction):
    """d2E/d(activity)^2 of one example, (features, features)."""
    hessian = jax.jit(jax.hessian(lambda z: energy(z, prediction)[0]))
    return hessian(activity).reshape(activity.size, activity.size)


@pytest.mark.usefixtures("x64")
class TestGaussian:
    @pytest.mark.parametrize("shape", [(1, 3), (5, 4), (3, 2, 4)])
    @pytest.mark.parametrize("precision", [0.25, 1.0, 3.0])
    def test_is_minus_the_normal_log_density_up_to_its_constant(self, shape, precision):
        """A missing 1/2 or a precision used as a variance would change every step size."""
        activity, prediction = draw("gaussian", shape)
        normal = stats.norm(loc=prediction, scale=precision**-0.5)
        expected = (normal.logpdf(prediction) - normal.logpdf(activity)).reshape(shape[0], -1)
        found = Gaussian(precision)(jnp.asarray(activity), jnp.asarray(prediction))
        np.testing.assert_allclose(found, expected.sum(axis=1), **EXACT)

    def test_gradient_is_precision_times_the_error(self):
        """Inference moves activities by this; a sign or a factor wrong and it climbs or creeps."""
        activity, prediction = draw("gaussian", (4, 3))
        by_activity, by_prediction = gradients(Gaussian(2.5), activity, prediction)
        np.testing.assert_allclose(by_activity, 2.5 * (activity - prediction), **EXACT)
        np.testing.assert_allclose(by_prediction, -2.5 * (activity - prediction), **EXACT)

    def test_curvature_is_the_precision(self):
        activity, prediction = draw("gaussian", (1, 3))
        found = curvature(Gaussian(2.5), activity, prediction)
        np.testing.assert_allclose(found, 2.5 * np.eye(3), **EXACT)

    def test_without_precision_the_prior_is_flat(self):
        activity, prediction = draw("gaussian", (2, 3))
        np.testing.assert_array_equal(
            Gaussian(0.0)(jnp.asarray(activity), jnp.asarray(prediction)), [0, 0]
        )

    def test_the_mean_is_the_prediction(self):
        _, prediction = draw("gaussian", (2, 3))
        np.testing.assert_array_equal(Gaussian(3.0).mean(jnp.asarray(prediction)), prediction)

    @pytest.mark.parametrize("precision", [-0.1, float("nan"), float("inf")])
    def test_a_precision_that_is_none_is_refused(self, precision):
        text = f"Gaussian expected a precision of at least 0, got {precision}"
        with pytest.raises(ValueError, match=text):
            Gaussian(precision)


@pytest.mark.usefixtures("x64")
class TestCategorical:
    @pytest.mark.parametrize("shape", [(1, 3), (5, 4), (3, 2, 4)])
    def test_is_cross_entropy_with_scipys_log_softmax(self, shape):
        activity, prediction = draw("categorical", shape)
        expected = -(activity * special.log_softmax(prediction, axis=-1)).reshape(shape[0], -1)
        found = Categorical()(jnp.asarray(activity), jnp.asarray(prediction))
        np.testing.assert_allclose(found, expected.sum(axis=1), **EXACT)

    def test_of_one_hot_targets_is_minus_the_log_probability_of_the_class(self):
        _, logits = draw("categorical", (6, 4))
        labels = np.array([3, 0, 1, 2, 3, 1])
        expected = [
            -stats.multinomial(1, special.softmax(row)).logpmf(np.eye(4)[label])
            for row, label in zip(logits, labels, strict=True)
        ]
        found = Categorical()(jnp.asarray(np.eye(4)[labels]), jnp.asarray(logits))
        np.testing.assert_allclose(found, expected, **EXACT)

    @pytest.mark.parametrize("shape", [(4, 5), (3, 2, 4)])
    def test_gradients_are_softmax_minus_activity_and_minus_log_softmax(self, shape):
        """The error signal of every classifier trained here, and of every token of a text."""
        activity, prediction = draw("categorical", shape)
        by_activity, by_prediction = gradients(Categorical(), activity, prediction)
        expected = special.softmax(prediction, axis=-1) - activity
        np.testing.assert_allclose(by_prediction, expected, **EXACT)
        np.testing.assert_allclose(by_activity, -special.log_softmax(prediction, axis=-1), **EXACT)

    def test_gradient_where_the_activity_does_not_sum_to_one(self):
        activity, prediction = draw("categorical", (3, 4))
        activity = activity * np.array([[0.5], [1.0], [2.0]])
        expected = activity.sum(axis=1, keepdims=True) * special.softmax(prediction, axis=-1)
        _, by_prediction = gradients(Categorical(), activity, prediction)
        np.testing.assert_allclose(by_prediction, expected - activity, **EXACT)

    def test_impossible_classes_with_probability_zero_cost_nothing(self):
        """0 times minus infinity must not become NaN: masked logits are common."""
        target, logits = jnp.array([[1.0, 0.0, 0.0]]), jnp.array([[1.0, 2.0, -jnp.inf]])
        expected = -special.log_softmax([1.0, 2.0])[0]
        np.testing.assert_allclose(Categorical()(target, logits), [expected], **EXACT)

    def test_the_mean_is_softmax_over_the_last_axis(self):
        _, prediction = draw("categorical", (2, 3, 4))
        found = Categorical().mean(jnp.asarray(prediction))
        np.testing.assert_allclose(found, special.softmax(prediction, axis=-1), **EXACT)


@pytest.mark.usefixtures("x64")
class TestBernoulli:
    @pytest.mark.parametrize("shape", [(1, 3), (5, 4), (3, 2, 4)])
    def test_of_bits_is_minus_scipys_log_mass(self, shape):
        _, logits = draw("bernoulli", shape)
        bits = np.random.default_rng(1).integers(0, 2, shape)
        expected = -stats.bernoulli(special.expit(logits)).logpmf(bits).reshape(shape[0], -1)
        found = Bernoulli()(jnp.asarray(bits, float), jnp.asarray(logits))
        np.testing.assert_allclose(found, expected.sum(axis=1), rtol=1e-10)  # logpmf's own digits

    def test_of_probabilities_is_binary_cross_entropy(self):
        activity, logits = draw("bernoulli", (4, 5))
        probability = special.expit(logits)
        expected = -special.xlogy(activity, probability) - special.xlog1py(
            1 - activity, -probability
        )
        found = Bernoulli()(jnp.asarray(activity), jnp.asarray(logits))
        np.testing.assert_allclose(found, expected.sum(axis=1), rtol=1e-10)

    def test_gradients_are_sigmoid_minus_activity_and_minus_the_logits(self):
        activity, prediction = draw("bernoulli", (4, 3))
        by_activity, by_prediction = gradients(Bernoulli(), activity, prediction)
        np.testing.assert_allclose(by_prediction, special.expit(prediction) - activity, **EXACT)
        np.testing.assert_allclose(by_activity, -prediction, **EXACT)

    def test_the_mean_is_the_sigmoid(self):
        _, prediction = draw("bernoulli", (2, 3))
        found = Bernoulli().mean(jnp.asarray(prediction))
        np.testing.assert_allclose(found, special.expit(prediction), **EXACT)


class TestLargeLogits:
    """In float32, whose exp overflows at 89."""

    def test_categorical_stays_finite_and_right(self):
        logits = np.float32([[1e4, -1e4, 0.0], [3e4, 3e4, -3e4]])
        targets = np.float32([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
        expected = -(targets * special.log_softmax(logits.astype(np.float64), axis=1)).sum(axis=1)
        found = Categorical()(jnp.asarray(targets), jnp.asarray(logits))
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        _, slope = gradients(Categorical(), targets, logits)
        np.testing.assert_allclose(slope, special.softmax(logits, axis=1) - targets, atol=1e-6)

    def test_bernoulli_stays_finite_and_right(self):
        logits = np.float32([[1e4, -1e4, 200.0], [-3e4, 90.0, 0.0]])
        bits = np.float32([[0.0, 0.0, 1.0], [1.0, 0.0, 1.0]])
        wide = logits.astype(np.float64)
        expected = -(bits * special.log_expit(wide) + (1 - bits) * special.log_expit(-wide))
        found = Bernoulli()(jnp.asarray(bits), jnp.asarray(logits))
        np.testing.assert_allclose(found, expected.sum(axis=1), rtol=1e-6)
        _, slope = gradients(Bernoulli(), bits, logits)
        np.testing.assert_allclose(slope, special.expit(wide) - bits, atol=1e-6)


@pytest.mark.parametrize("kind", ENERGIES)
class TestEveryEnergy:
    @pytest.mark.parametrize("shape", [(1, 3), (6, 5), (4, 3, 2)])
    def test_gives_each_example_its_own_number_whatever_the_batch(self, kind, shape):
        """Averaged over the batch, a step size would mean something else at every batch size."""
        (activity, prediction), energy = single(kind, shape), compiled(kind)
        together = energy(activity, prediction)
        assert together.shape == shape[:1]
        alone = [energy(activity[i : i + 1], prediction[i : i + 1])[0] for i in range(shape[0])]
        np.testing.assert_allclose(together, alone, rtol=1e-6)  # float32 sums

    def test_sums_over_features_and_does_not_average(self, kind):
        pair, energy = single(kind, (2, 4)), compiled(kind)
        once = energy(*(array[:, None] for array in pair))
        twice = energy(*(np.repeat(array[:, None], 2, axis=1) for array in pair))
        np.testing.assert_allclose(twice, 2 * once, rtol=1e-6)

    @pytest.mark.parametrize("shape", [(2, 1), (1, 3), (2, 3, 1), (3,)])
    def test_refuses_shapes_that_would_broadcast(self, kind, shape):
        """A (batch, 1) prediction of ten classes would train, and mean nothing."""
        name = type(ENERGIES[kind]).__name__
        text = rf"{name} expected an activity and a prediction of one shape, got \(2, 3\) and \({shape[0]},"
        with pytest.raises(ValueError, match=text):
            ENERGIES[kind](np.zeros((2, 3)), np.zeros(shape))

    def test_survives_jit_and_a_round_trip_through_split_and_merge(self, kind):
        activity, prediction = single(kind, (3, 4))
        expected = ENERGIES[kind](jnp.asarray(activity), jnp.asarray(prediction))
        graphdef, state = nnx.split(ENERGIES[kind])

        @jax.jit
        def evaluate(state, activity, prediction):
            return nnx.merge(graphdef, state)(activity, prediction)

        np.testing.assert_allclose(evaluate(state, activity, prediction), expected, rtol=1e-6)

    def test_says_whether_it_can_be_free(self, kind):
        """Linear in the activity means without a minimum: free inference would run away."""
        activity, prediction = single(kind, (1, 3))
        here, _ = gradients(ENERGIES[kind], activity, prediction)
        mirrored, _ = gradients(ENERGIES[kind], 2 * prediction - activity, prediction)
        same_slope = bool(np.allclose(here, mirrored, rtol=1e-3))
        assert ENERGIES[kind].clamped_only == same_slope


finite = st.floats(-50, 50, width=32)
pairs = arrays(np.float64, (2, 3, 4), elements=finite)


class TestProperties:
    @PROPERTY
    @given(pairs)
    def test_gaussian_is_symmetric_and_zero_only_at_the_prediction(self, pair):
        with jax.enable_x64(True):
            one, other = jnp.asarray(pair)
            energy = np.asarray(Gaussian()(one, other))
            np.testing.assert_array_equal(energy, Gaussian()(other, one))
            assert (energy >= 0).all()
            np.testing.assert_array_equal(Gaussian()(one, one), np.zeros(3))
            apart = (np.abs(pair[0] - pair[1]) > 1e-100).any(axis=1)
            assert (energy[apart] > 0).all()

    @PROPERTY
    @given(pairs)
    def test_gaussian_depends_on_the_error_alone(self, pair):
        with jax.enable_x64(True):
            one, other = jnp.asarray(pair)
            moved = Gaussian()(one + 7.0, other + 7.0)
            np.testing.assert_allclose(moved, Gaussian()(one, other), rtol=1e-9, atol=1e-9)

    @PROPERTY
    @given(pairs, finite)
    def test_categorical_does_not_see_a_shift_of_all_logits(self, pair, shift):
        with jax.enable_x64(True):
            target, logits = jax.nn.softmax(jnp.asarray(pair[0])), jnp.asarray(pair[1])
            shifted = Categorical()(target, logits + shift)
            np.testing.assert_allclose(shifted, Categorical()(target, logits), rtol=1e-9, atol=1e-9)

    @PROPERTY
    @given(pairs)
    def test_categorical_is_at_least_the_entropy_of_the_activity(self, pair):
        """Gibbs' inequality, with equality where the prediction is the activity."""
        with jax.enable_x64(True):
            target = jax.nn.softmax(jnp.asarray(pair[0]))
            entropy = stats.entropy(np.asarray(target), axis=1)
            assert (np.asarray(Categorical()(target, jnp.asarray(pair[1]))) >= entropy - 1e-9).all()
            same = Categorical()(target, jnp.asarray(pair[0]))
            np.testing.assert_allclose(same, entropy, rtol=1e-9, atol=1e-9)

    @PROPERTY
    @given(pairs)
    def test_bernoulli_is_the_same_with_bits_and_logits_flipped(self, pair):
        with jax.enable_x64(True):
            target, logits = jax.nn.sigmoid(jnp.asarray(pair[0])), jnp.asarray(pair[1])
            energy = Bernoulli()(target, logits)
            assert (np.asarray(energy) >= 0).all()
            flipped = Bernoulli()(1 - target, -logits)
            np.testing.assert_allclose(flipped, energy, rtol=1e-9, atol=1e-9)

    @PROPERTY
    @given(pairs)
    def test_bernoulli_is_categorical_over_two_classes(self, pair):
        with jax.enable_x64(True):
            target, logits = jax.nn.sigmoid(jnp.asarray(pair[0])), jnp.asarray(pair[1])
            two = Categorical()(
                jnp.stack([target, 1 - target], axis=-1),
                jnp.stack([logits, jnp.zeros_like(logits)], axis=-1),
            )
            np.testing.assert_allclose(Bernoulli()(target, logits), two, rtol=1e-9, atol=1e-9)


class LearnedLaplace(pc.Energy):
    """A user's own: |z - mu| / scale + log(scale) for each feature, with a learned scale."""

    def __init__(self, scale):
        self.log_scale = nnx.Param(jnp.log(scale))

    def __call__(self, activity, prediction):
        scaled = jnp.abs(activity - prediction) * jnp.exp(-self.log_scale[...])[None]
        return sum_features(scaled + self.log_scale[...][None])


class TestUsersOwnEnergy:
    def make_network(self, energy):
        rngs = nnx.Rngs(0)
        return pc.PCNetwork(
            [pc.PCDense(3, 4, rngs=rngs), pc.PCDense(4, 2, energy=energy, rngs=rngs)]
        )

    def test_scores_a_layer_and_learns_its_own_parameters(self):
        """Extending by subclassing is the promise; a parameter that got no gradient would break it."""
        network = self.make_network(LearnedLaplace(jnp.array([0.5, 2.0])))
        random = np.random.default_rng(0)
        x, y = (jnp.asarray(random.normal(size=(5, n)), jnp.float32) for n in (3, 2))
        network.init_activities(x, targets=y)
        prediction = np.asarray(network.predictions(x)["layer_1"], np.float64)
        scale = np.array([0.5, 2.0])
        laplace = stats.laplace(prediction, scale)
        expected = -(laplace.logpdf(np.asarray(y)) + np.log(2)).sum(axis=1)  # less its constant
        np.testing.assert_allclose(network.energies(x)["layer_1"], expected, rtol=1e-5, atol=1e-5)
        # d/dlog(scale) of the batch mean, by hand: 1 - mean |error| / scale
        gradient = network.parameter_gradients(x)["layers"]["layer_1"]["energy"]["log_scale"][...]
        by_hand = 1 - (np.abs(np.asarray(y) - prediction) / scale).mean(axis=0)
        np.testing.assert_allclose(gradient, by_hand, rtol=1e-4, atol=1e-5)

    def test_starts_at_its_prediction_and_may_be_free_unless_it_says_otherwise(self):
        energy = LearnedLaplace(jnp.array(1.0))
        assert not energy.clamped_only
        np.testing.assert_array_equal(energy.mean(jnp.array([[1.0, -2.0]])), [[1.0, -2.0]])

    def test_that_averages_over_the_batch_is_refused(self):
        class Averaged(pc.Energy):
            def __call__(self, activity, prediction):
                return jnp.mean((activity - prediction) ** 2)

        network = self.make_network(Averaged())
        x = jnp.ones((5, 3))
        network.init_activities(x)
        text = (
            r"the energy Averaged of layer 'layer_1' returned shape \(\), expected one number an "
            r"example, \(5,\); sum over features"
        )
        with pytest.raises(ValueError, match=text):
            network.energies(x)

    def test_without_a_call_cannot_be_made(self):
        class Forgotten(pc.Energy):
            pass

        with pytest.raises(TypeError, match="abstract"):
            Forgotten()


def test_sum_features_sums_all_axes_but_the_first():
    values = np.random.default_rng(0).normal(size=(3, 4, 2, 5)).astype(np.float32)
    np.testing.assert_allclose(
        sum_features(jnp.asarray(values)), values.reshape(3, -1).sum(axis=1), rtol=1e-5
    )
    np.testing.assert_array_equal(sum_features(jnp.asarray(values[:, 0, 0, 0])), values[:, 0, 0, 0])
