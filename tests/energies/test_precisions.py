"""Gaussians with a precision for each feature, fixed or learned, against scipy's normal densities."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy import stats

import pcflax as pc
from pcflax.energies import Gaussian, LearnedGaussian
from pcflax.training.checkpoints.arrays import network_arrays
from tests.conftest import in_double

EXACT = {"rtol": 1e-12, "atol": 1e-12}  # float64, sums of a few dozen terms
KEY = jax.random.key(0)
PRECISIONS = np.array([0.25, 1.0, 3.0, 7.0])


def draw(shape, seed=0):
    """An activity and a prediction that has nothing to do with it; float64."""
    random = np.random.default_rng(seed)
    return random.normal(size=shape), 2 * random.normal(size=shape)


def minus_log_density(activity, prediction, precision):
    """-log N(activity; prediction, 1/precision) of each example, by scipy."""
    normal = stats.norm(loc=prediction, scale=np.asarray(precision) ** -0.5)
    return -normal.logpdf(activity).reshape(activity.shape[0], -1).sum(axis=1)


def regression(energy, *, noise, batch=64):
    """One linear layer under `energy`, and data that it cannot explain but for `noise` a feature."""
    random = np.random.default_rng(0)
    x = random.normal(size=(batch, 3))
    y = x @ random.normal(size=(3, len(noise))) + np.asarray(noise) * random.normal(
        size=(batch, len(noise))
    )
    network = pc.PCNetwork([pc.PCDense(3, len(noise), energy=energy, rngs=nnx.Rngs(0))])
    return in_double(network), x, y


class TestDiagonalGaussian:
    @pytest.mark.usefixtures("double")
    @pytest.mark.parametrize("batch", [1, 5])
    def test_is_minus_the_normal_log_density_up_to_its_constant(self, batch):
        """A precision given to the wrong feature, or used as a variance, would show here."""
        activity, prediction = draw((batch, 4))
        constant = minus_log_density(prediction, prediction, PRECISIONS)
        expected = minus_log_density(activity, prediction, PRECISIONS) - constant
        found = Gaussian(PRECISIONS)(jnp.asarray(activity), jnp.asarray(prediction))
        np.testing.assert_allclose(found, expected, **EXACT)

    @pytest.mark.usefixtures("double")
    def test_takes_features_with_several_axes(self):
        activity, prediction = draw((3, 2, 4))
        precision = np.random.default_rng(1).uniform(0.1, 3, size=(2, 4))
        constant = minus_log_density(prediction, prediction, precision)
        expected = minus_log_density(activity, prediction, precision) - constant
        found = Gaussian(precision)(jnp.asarray(activity), jnp.asarray(prediction))
        np.testing.assert_allclose(found, expected, **EXACT)

    @pytest.mark.usefixtures("double")
    def test_gradient_is_each_features_precision_times_its_error(self):
        activity, prediction = map(jnp.asarray, draw((5, 4)))
        energy = Gaussian(PRECISIONS)
        slopes = jax.grad(lambda z, mu: energy(z, mu).sum(), argnums=(0, 1))(activity, prediction)
        expected = PRECISIONS * np.asarray(activity - prediction)
        np.testing.assert_allclose(slopes[0], expected, **EXACT)
        np.testing.assert_allclose(slopes[1], -expected, **EXACT)

    def test_of_equal_precisions_is_the_scalar_one(self):
        activity, prediction = map(jnp.float32, draw((5, 4)))
        found = Gaussian(jnp.full(4, 2.5))(activity, prediction)
        np.testing.assert_allclose(found, Gaussian(2.5)(activity, prediction), rtol=1e-6)

    def test_a_feature_of_precision_0_costs_nothing(self):
        activity, prediction = map(jnp.float32, draw((5, 2)))
        found = Gaussian([0, 2])(activity, prediction)
        np.testing.assert_allclose(found, (activity[:, 1] - prediction[:, 1]) ** 2, rtol=1e-6)

    def test_a_number_stays_a_float_whatever_holds_it(self):
        """Static, as it was: no state, and the same compiled program for a float and an array of one."""
        for precision in (2, 2.0, np.float32(2), jnp.array(2.0)):
            energy = Gaussian(precision)
            assert isinstance(energy.precision, float)
            assert not jax.tree.leaves(nnx.state(energy))

    def test_is_saved_and_not_learned(self):
        """As a parameter it would run off to 0, where nothing costs anything."""
        network, x, y = regression(Gaussian(np.array([0.5, 2.0])), noise=[0.1, 1.0])
        parameters, other = network_arrays(network)
        assert list(parameters) == ["layer_0.linear.bias", "layer_0.linear.kernel"]
        np.testing.assert_array_equal(other["layer_0.energy.precision"], [0.5, 2.0])
        data = pc.data.from_arrays(x.astype(np.float32), y.astype(np.float32), batch_size=16)
        before = np.asarray(network.layers[0].linear.kernel[...])
        pc.Trainer(network, optax.adam(0.1), learning=pc.learning.Backprop(), progress=False).fit(
            data, epochs=2
        )
        assert np.abs(np.asarray(network.layers[0].linear.kernel[...]) - before).max() > 0.1
        np.testing.assert_array_equal(network.layers[0].energy.precision[...], [0.5, 2.0])

    def test_comes_back_from_a_checkpoint(self, tmp_path):
        def trainer(precision):
            network, x, y = regression(Gaussian(np.array(precision)), noise=[0.1, 1.0])
            data = pc.data.from_arrays(x.astype(np.float32), y.astype(np.float32), batch_size=16)
            made = pc.Trainer(
                network,
                optax.sgd(0.1),
                learning=pc.learning.Backprop(),
                checkpoints=pc.Checkpoints(tmp_path),
                progress=False,
            )
            return made, data

        saved, data = trainer([0.5, 2.0])
        saved.fit(data, epochs=1)
        restored, _ = trainer([1.0, 1.0])
        restored.restore()
        precision = restored.network.layers[0].energy.precision[...]
        np.testing.assert_array_equal(precision, [0.5, 2.0])

    def test_weighs_features_in_inference(self):
        """A free layer between two clamps: each feature ends at its own weighted mean of both."""
        network = pc.PCNetwork(
            [
                pc.PCRoot(2, energy=Gaussian(jnp.array([1.0, 3.0]))),
                pc.PCLayer(lambda below: below, energy=Gaussian(jnp.array([1.0, 0.5]))),
            ]
        )
        network.infer(
            targets=jnp.ones((3, 2)),
            inference=pc.inference.GradientDescent(optax.sgd(0.2), num_steps=200),
        )
        # precision above / (precision above + precision of the prior), whose mean is 0
        expected = np.broadcast_to([1 / 2, 0.5 / 3.5], (3, 2))
        np.testing.assert_allclose(network.layers[0].activity[...], expected, rtol=1e-5)

    def test_can_be_built_where_arrays_have_no_values(self):
        energy = nnx.eval_shape(lambda: Gaussian(jnp.ones(3)))
        assert energy.precision.shape == (3,)

    @pytest.mark.parametrize("wrong", [-0.5, np.nan, np.inf])
    def test_a_precision_that_is_none_is_refused(self, wrong):
        with pytest.raises(ValueError, match=r"finite precision of at least 0, got \[ ?1\. "):
            Gaussian(np.array([1.0, wrong]))

    @pytest.mark.parametrize("shape", [(5, 3), (5, 1), (5, 2, 4)])
    def test_refuses_features_of_another_shape(self, shape):
        """(5, 1) and (5, 2, 4) would broadcast without a word."""
        text = (
            rf"Gaussian has precisions of shape \(4,\), but one example of the activity has shape "
            rf"\({shape[1]},.*; give precisions of shape \({shape[1]},.*, or a float"
        )
        with pytest.raises(ValueError, match=text):
            Gaussian(PRECISIONS)(jnp.zeros(shape), jnp.zeros(shape))


class TestLearnedGaussian:
    @pytest.mark.usefixtures("double")
    @pytest.mark.parametrize("features", [(), (4,), (2, 4)])
    def test_is_minus_the_normal_log_density_up_to_log_2_pi(self, features):
        """Here the log of the precision is no constant: without it learning would take it to 0."""
        shape = (5, 2, 4) if len(features) == 2 else (5, 4)
        activity, prediction = draw(shape)
        precision = np.random.default_rng(1).uniform(0.1, 5, size=features)
        energy = LearnedGaussian(*features)
        energy.log_precision.set_value(jnp.log(precision))
        count = np.prod(shape[1:])
        expected = (
            minus_log_density(activity, prediction, precision) - count * np.log(2 * np.pi) / 2
        )
        found = energy(jnp.asarray(activity), jnp.asarray(prediction))
        np.testing.assert_allclose(found, expected, **EXACT)

    @pytest.mark.usefixtures("double")
    @pytest.mark.parametrize("features", [(), (4,)])
    def test_its_slopes_are_those_of_finite_differences(self, features):
        activity, prediction = map(jnp.asarray, draw((3, 4)))
        graphdef, state = nnx.split(LearnedGaussian(*features, precision=1.7))

        def energy(log_precision, activity, prediction):
            made = nnx.merge(graphdef, state, copy=True)
            made.log_precision.set_value(log_precision)
            return made(activity, prediction).sum()

        point = (jnp.asarray(np.full(features, 0.3)), activity, prediction)
        slopes = jax.grad(energy, argnums=(0, 1, 2))(*point)
        for number, slope in enumerate(slopes):
            for index in np.ndindex(slope.shape):
                step = np.zeros(slope.shape)
                step[index] = 1e-6
                ahead, behind = (
                    energy(*(p + sign * step if i == number else p for i, p in enumerate(point)))
                    for sign in (1, -1)
                )
                # central differences of a step 1e-6 have about 1e-9 of energies of order 10
                np.testing.assert_allclose(slope[index], (ahead - behind) / 2e-6, atol=1e-7)

    @pytest.mark.parametrize("features", [(), (3,)])
    def test_starts_at_the_precision_it_is_given(self, features):
        activity, prediction = map(jnp.float32, draw((5, 3)))
        logs = 3 * np.log(4.0) / 2  # the log counts once for each of the 3 features
        found = LearnedGaussian(*features, precision=4.0)(activity, prediction)
        expected = Gaussian(4.0)(activity, prediction) - logs
        np.testing.assert_allclose(found, expected, rtol=1e-5)

    @pytest.mark.usefixtures("double")
    @pytest.mark.parametrize("features", [(), (2,)])
    def test_no_precision_is_better_than_one_over_the_mean_squared_error(self, features):
        """The maximum likelihood of a variance is the mean squared error."""
        network, x, y = regression(LearnedGaussian(*features), noise=[0.1, 1.0])
        network.init_activities(x, targets=y)
        squares = np.square(y - np.asarray(network.predict(x)))
        precision = network.layers[0].energy.log_precision
        best = -np.log(squares.mean(axis=0) if features else squares.mean())
        for offset, sign in ((0.0, 0), (0.3, 1), (-0.3, -1)):
            precision.set_value(jnp.asarray(best + offset))
            gradient = network.parameter_gradients(x)["layers"]["layer_0"]["energy"][
                "log_precision"
            ][...]
            assert gradient.shape == features
            if sign:
                assert (np.sign(gradient) == sign).all()  # descent leads back
            else:
                np.testing.assert_allclose(gradient, 0, atol=1e-12)

    @pytest.mark.usefixtures("double")
    def test_training_finds_the_noise_of_each_output(self):
        """What it is for: two outputs of different noise, told apart without being told."""
        network, x, y = regression(LearnedGaussian(2), noise=[0.1, 1.0])
        data = pc.data.from_arrays(x, y, batch_size=64)
        # at a constant rate Adam goes round the minimum at a distance that rounding decides
        optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 1000))
        trainer = pc.Trainer(network, optimizer, learning=pc.learning.Backprop(), progress=False)
        trainer.fit(data, num_steps=1000)
        solution, *_ = np.linalg.lstsq(np.column_stack([x, np.ones(64)]), y)
        errors = y - np.column_stack([x, np.ones(64)]) @ solution
        found = np.exp(network.layers[0].energy.log_precision[...])
        np.testing.assert_allclose(found, 1 / np.square(errors).mean(axis=0), rtol=1e-3)

    @pytest.mark.usefixtures("double")
    @pytest.mark.parametrize("features", [(), (4,)])
    def test_a_least_variance_holds_the_precision_where_the_error_is_zero(self, features):
        """dE/dlog pi = (pi (e^2 + v) - 1)/2 of each feature: the precision settles at 1/(v + e^2)."""
        graphdef, state = nnx.split(LearnedGaussian(*features, least_variance=np.float32(0.25)))

        def energy(log_precision, error):
            made = nnx.merge(graphdef, state, copy=True)
            made.log_precision.set_value(log_precision)
            return made(error, jnp.zeros((1, 4))).sum()

        for error in (0.0, 0.5):
            best = jnp.full(features, -np.log(0.25 + error**2))
            errors = jnp.full((1, 4), error)
            np.testing.assert_allclose(jax.grad(energy)(best, errors), 0, atol=1e-12)
            lowest = 4 * (1 + np.log(0.25 + error**2)) / 2
            np.testing.assert_allclose(energy(best, errors), lowest, rtol=1e-12)
            assert energy(best + 5, errors) > lowest
        pull = jax.grad(energy, argnums=1)(jnp.zeros(features), jnp.full((1, 4), 3.0))
        np.testing.assert_allclose(pull, np.full((1, 4), 3.0))  # activities feel none of it

    def test_sizes_and_numbers_of_a_sweep(self):
        energy = LearnedGaussian(*np.arange(2, 4), precision=np.float32(2.0))
        assert energy.log_precision.shape == (2, 3)
        assert pc.energies.Huber(np.int64(2)).delta == 2.0
        assert pc.energies.Laplace(np.float32(2)).scale == 2.0
        assert Gaussian(np.int8(2)).precision == 2.0

    @pytest.mark.parametrize("precision", [0.0, -1.0, float("nan"), float("inf")])
    def test_a_start_without_a_logarithm_is_refused(self, precision):
        text = f"LearnedGaussian expected a precision above 0, got {precision}"
        with pytest.raises(ValueError, match=text):
            LearnedGaussian(precision=precision)

    @pytest.mark.parametrize("features", [(10.0,), ((2, 3),)])
    def test_features_that_are_no_sizes_are_refused(self, features):
        text = "LearnedGaussian expected an int number of features, got "
        with pytest.raises(TypeError, match=text):
            LearnedGaussian(*features)

    @pytest.mark.parametrize("shape", [(5, 3), (5, 1), (5, 2, 4)])
    def test_refuses_features_of_another_shape(self, shape):
        text = (
            rf"LearnedGaussian has precisions of shape \(4,\), but one example of the activity has "
            rf"shape \({shape[1]},.*; make it LearnedGaussian\({shape[1]},"
        )
        with pytest.raises(ValueError, match=text):
            LearnedGaussian(4)(jnp.zeros(shape), jnp.zeros(shape))

    def test_is_a_parameter_of_a_dtype_of_its_own(self):
        """A weak dtype gives way to that of activities, and is another program after the first update."""
        for energy in (LearnedGaussian(), LearnedGaussian(3, precision=2.0)):
            assert not energy.log_precision[...].weak_type
            half = jnp.ones((2, 3), jnp.bfloat16)
            assert energy(half, half).dtype == jnp.float32


@pytest.mark.parametrize("precision", [["a", "b"], np.array([1j, 2]), [True, False]])
def test_precisions_that_are_no_numbers_are_refused(precision):
    with pytest.raises(
        TypeError, match="Gaussian expected precisions of a real dtype, got .*; give"
    ):
        Gaussian(precision)
