"""The Kullback-Leibler energy of two sets of logits, against scipy's relative entropy."""

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
from pcflax.energies import KL, Categorical
from tests.conftest import in_double

PROPERTY = settings(max_examples=25, deadline=None, derandomize=True, database=None)
CLOSE = {"rtol": 1e-9, "atol": 1e-11}  # float64; scipy's logarithms of probabilities lose a few
pairs = arrays(np.float64, (2, 3, 4), elements=st.floats(-50, 50, width=32))


def draw(shape):
    """Two unlike sets of logits; float64."""
    random = np.random.default_rng(0)
    return random.normal(size=shape), 2 * random.normal(size=shape)


def slopes(activity, prediction):
    """d(sum of energies)/d(activity, prediction)."""
    slope = jax.grad(lambda *arguments: KL()(*arguments).sum(), argnums=(0, 1))
    return slope(jnp.asarray(activity), jnp.asarray(prediction))


@pytest.mark.usefixtures("double")
class TestValues:
    @pytest.mark.parametrize("shape", [(1, 3), (5, 4), (3, 2, 4)])
    def test_is_scipys_relative_entropy(self, shape):
        """The divergence is not symmetric: the activity's probabilities weigh."""
        activity, prediction = draw(shape)
        p, q = special.softmax(activity, axis=-1), special.softmax(prediction, axis=-1)
        expected = stats.entropy(p, q, axis=-1).reshape(shape[0], -1).sum(axis=1)
        found = KL()(jnp.asarray(activity), jnp.asarray(prediction))
        np.testing.assert_allclose(found, expected, **CLOSE)
        assert not np.allclose(found, KL()(jnp.asarray(prediction), jnp.asarray(activity)))

    def test_gradients_are_those_of_the_formulas(self):
        activity, prediction = draw((4, 5))
        p, q = special.softmax(activity, axis=1), special.softmax(prediction, axis=1)
        by_activity, by_prediction = slopes(activity, prediction)
        np.testing.assert_allclose(by_prediction, q - p, **CLOSE)
        divergence = stats.entropy(p, q, axis=1)[:, None]
        np.testing.assert_allclose(by_activity, p * (np.log(p / q) - divergence), **CLOSE)

    def test_gradients_are_those_of_finite_differences(self):
        point = draw((2, 3))
        for number, slope in enumerate(slopes(*point)):
            for index in np.ndindex(slope.shape):
                step = np.zeros(slope.shape)
                step[index] = 1e-6
                ahead, behind = (
                    KL()(*(jnp.asarray(p + s * step * (i == number)) for i, p in enumerate(point)))
                    for s in (1, -1)
                )
                # central differences of a step 1e-6 have about 1e-9 of energies of order 1
                expected = (ahead - behind).sum() / 2e-6
                np.testing.assert_allclose(slope[index], expected, atol=1e-8)

    def test_is_cross_entropy_less_the_activitys_own(self):
        activity, prediction = draw((5, 4))
        p = special.softmax(activity, axis=1)
        cross = Categorical()(jnp.asarray(p), jnp.asarray(prediction))
        found = KL()(jnp.asarray(activity), jnp.asarray(prediction))
        np.testing.assert_allclose(found, cross - stats.entropy(p, axis=1), **CLOSE)

    def test_at_the_prediction_everything_vanishes(self):
        activity, _ = draw((5, 4))
        assert (KL()(jnp.asarray(activity), jnp.asarray(activity)) == 0).all()
        for slope in slopes(activity, activity):
            np.testing.assert_allclose(slope, 0, atol=1e-15)

    def test_a_one_hot_vector_is_read_as_logits(self):
        """The mistake that the docstring warns of: the right class may cost more than a flat guess."""
        one_hot, sure, flat = jnp.eye(3)[:1], jnp.array([[20.0, 0.0, 0.0]]), jnp.zeros((1, 3))
        assert KL()(one_hot, sure) > KL()(one_hot, flat)
        assert Categorical()(one_hot, sure) < Categorical()(one_hot, flat)


@pytest.mark.parametrize(
    ("activity", "prediction"),
    [
        ([1e4, -1e4, 0.0], [0.0, 1e4, -1e4]),
        ([1e4, 1e4, -1e4], [-1e4, 1e4, 1e4]),
        ([0.0, 0.0, 0.0], [1e4, 0.0, -1e4]),
        ([1e4, -1e4, 0.0], [0.0, 0.0, 0.0]),
    ],
)
def test_large_logits_stay_finite_and_right(activity, prediction):
    """In float32, whose exp overflows at 89; softmax before a logarithm would give 0 times infinity."""
    activity, prediction = np.float32([activity]), np.float32([prediction])
    log_p, log_q = (special.log_softmax(np.float64(v), axis=1) for v in (activity, prediction))
    p, q = np.exp(log_p), np.exp(log_q)
    expected = (p * (log_p - log_q)).sum(axis=1)
    found = KL()(jnp.asarray(activity), jnp.asarray(prediction))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    by_activity, by_prediction = slopes(activity, prediction)
    np.testing.assert_allclose(by_prediction, q - p, atol=1e-6)
    # differences of numbers of order 1e4 have about 1e-3 in float32
    np.testing.assert_allclose(by_activity, p * (log_p - log_q - expected), atol=4e-3)


class TestInNetworks:
    def make_network(self):
        rngs = nnx.Rngs(0)
        return pc.PCNetwork(
            [
                pc.PCDense(3, 4, energy=KL(), rngs=rngs),
                pc.PCDense(4, 2, activation=jax.nn.softmax, activation_first=True, rngs=rngs),
            ]
        )

    @pytest.mark.usefixtures("double")
    def test_serves_a_free_hidden_layer(self):
        """Inference starts where the divergence is 0 and pays it for a smaller output error."""
        network = in_double(self.make_network())
        random = np.random.default_rng(0)
        x, y = random.normal(size=(5, 3)), random.normal(size=(5, 2))
        network.init_activities(x, targets=y)
        start = network.energies(x)
        np.testing.assert_allclose(start["layer_0"], 0, atol=1e-15)
        result = network.infer(
            x, y, inference=pc.inference.GradientDescent(optax.sgd(0.5), num_steps=3000)
        )
        assert (result.residual < 1e-6).all()
        assert (result.energies["layer_0"] > 0).all()
        assert (result.energies["layer_1"] < start["layer_1"]).all()
        assert (result.energy < start["layer_1"]).all()

    def test_the_mean_is_the_logits_and_the_layer_may_be_free(self):
        logits = jnp.array([[1.0, -2.0]])
        np.testing.assert_array_equal(KL().mean(logits), logits)
        assert not KL().clamped_only


class TestProperties:
    @PROPERTY
    @given(pairs)
    def test_is_never_negative(self, pair):
        """Gibbs' inequality; but for rounding."""
        with jax.enable_x64(True):
            assert (np.asarray(KL()(*jnp.asarray(pair))) >= -1e-12).all()

    @PROPERTY
    @given(pairs, st.floats(-50, 50, width=32), st.floats(-50, 50, width=32))
    def test_does_not_see_a_shift_of_all_logits(self, pair, shift, other_shift):
        with jax.enable_x64(True):
            activity, prediction = jnp.asarray(pair)
            moved = KL()(activity + shift, prediction + other_shift)
            np.testing.assert_allclose(moved, KL()(activity, prediction), rtol=1e-9, atol=1e-9)

    @PROPERTY
    @given(pairs)
    def test_two_sets_of_classes_cost_what_each_costs(self, pair):
        with jax.enable_x64(True):
            activity, prediction = jnp.asarray(pair)
            together = KL()(activity[None], prediction[None])
            np.testing.assert_allclose(together[0], KL()(activity, prediction).sum(), rtol=1e-12)
