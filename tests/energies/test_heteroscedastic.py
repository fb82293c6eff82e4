"""The energy whose mean and precision are both predicted, against scipy's normal densities."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy import stats

import pcflax as pc
from pcflax.energies import Heteroscedastic
from tests.conftest import in_double, parameters_of

EXACT = {"rtol": 1e-12, "atol": 1e-12}  # float64


def draw(shape, seed=0):
    """An activity, means and log precisions that have nothing to do with each other; float64."""
    random = np.random.default_rng(seed)
    return random.normal(size=shape), 2 * random.normal(size=shape), random.normal(size=shape)


def density(mean, log_precision):
    return stats.norm(loc=mean, scale=np.exp(-0.5 * log_precision))


def network(hidden=pc.energies.Gaussian, width=6):
    rngs = nnx.Rngs(0)
    layers = {
        "h": pc.PCDense(3, 5, activation=jnp.tanh, energy=hidden(), rngs=rngs),
        "y": pc.PCDense(5, width, energy=Heteroscedastic(), rngs=rngs),
    }
    return in_double(pc.PCNetwork(layers))


@pytest.mark.usefixtures("double")
class TestHeteroscedastic:
    @pytest.mark.parametrize("shape", [(1, 4), (5, 4), (3, 2, 4)])
    def test_is_minus_the_normal_log_density_but_for_its_constant(self, shape):
        activity, mean, log_precision = draw(shape)
        logpdf = density(mean, log_precision).logpdf(activity).reshape(shape[0], -1).sum(axis=1)
        energy = Heteroscedastic()
        prediction = jnp.concatenate([mean, log_precision], axis=-1)
        found = energy(jnp.asarray(activity), prediction) + energy.log_normalizer(shape[1:])
        np.testing.assert_allclose(found, -logpdf, **EXACT)

    def test_samples_have_the_predicted_means_and_deviations(self):
        _, mean, log_precision = draw((1, 4))
        many = jnp.tile(jnp.concatenate([mean, log_precision], axis=-1), (20_000, 1))
        found = np.asarray(Heteroscedastic().sample(many, jax.random.key(0)))
        for feature in range(4):
            exact = density(mean[0, feature], log_precision[0, feature])
            # Kolmogorov and Smirnov's distance, which 20,000 right samples keep in all but 1 of 10^4 cases
            assert stats.kstest(found[:, feature], exact.cdf).statistic < 2.3 / 20_000**0.5

    def test_a_network_predicts_twice_what_it_is_clamped_to(self):
        """Starts stand at the mean, metrics see it, and the energy is the density's."""
        net, (x, y) = network(), (np.ones((4, 3)), draw((4, 3))[0])
        prediction = net.predict(jnp.asarray(x))
        assert prediction.shape == (4, 6)
        mean, log_precision = np.split(np.asarray(prediction), 2, axis=1)
        np.testing.assert_array_equal(net.feedforward(jnp.asarray(x))["y"], mean)
        expected = density(0, log_precision).logpdf(y - mean).sum(axis=1)
        net.init_activities(jnp.asarray(x), targets=jnp.asarray(y))
        found = net.energies(jnp.asarray(x))["y"] + 1.5 * np.log(2 * np.pi)
        np.testing.assert_allclose(found, -expected, **EXACT)
        trainer = pc.Trainer(net, optax.sgd(0.1), learning=pc.learning.Backprop(), progress=False)
        data = pc.data.from_arrays(x, y, batch_size=4)
        error = trainer.evaluate(data)["squared_error"]
        np.testing.assert_allclose(error, ((y - mean) ** 2).mean(), rtol=1e-6)

    @pytest.mark.parametrize(
        "inference",
        [
            pc.inference.GradientDescent(0.1, num_steps=3000),
            pc.inference.ErrorCoordinates(pc.inference.GradientDescent(0.1, num_steps=3000)),
            pc.inference.NewtonCG(num_steps=30),
            pc.inference.GaussNewton(num_steps=100),
            pc.inference.GradientDescent(step_size="auto", num_steps=2000),
        ],
        ids=lambda inference: type(inference).__name__,
    )
    def test_every_algorithm_reaches_the_equilibrium(self, inference):
        """Where dF/dh = (h - mu) + J^T dE/d(mu, l) = 0, with both slopes written out."""
        net, x, y = network(), jnp.ones((2, 3)), jnp.asarray(draw((2, 3))[0])
        result = net.infer(x, y, inference=inference)
        h = np.asarray(result.activities["h"])
        bias, kernel = parameters_of(net)[-2:]
        mean, log_precision = np.split(h @ kernel + bias, 2, axis=1)
        precision, error = np.exp(log_precision), np.asarray(y) - mean
        slopes = np.concatenate([-precision * error, 0.5 * (precision * error**2 - 1)], axis=1)
        below = np.asarray(net.layer("h").predict(x))
        np.testing.assert_allclose(h - below + slopes @ kernel.T, 0, atol=1e-7)

    def test_fixed_prediction_is_backpropagation(self):
        """With step size 1, after as many steps as there are hidden layers, as for any output."""
        net, x, y = network(), jnp.ones((2, 3)), jnp.asarray(draw((2, 3))[0])
        rule = pc.learning.FixedPrediction(pc.inference.GradientDescent(1.0, num_steps=1))
        credit = pc.analysis.gradient_alignment(net, x, y, learning=rule)
        np.testing.assert_allclose(credit.cosine["total"], 1, rtol=1e-12)
        np.testing.assert_allclose(credit.norm["total"], credit.backprop_norm["total"], rtol=1e-9)

    def test_a_nudged_output_backpropagates_in_the_limit(self):
        net, x, y = network(), jnp.ones((2, 3)), jnp.asarray(draw((2, 3))[0])
        descent = pc.inference.GradientDescent(0.1, num_steps=2000)
        rule = pc.learning.Nudged(descent, beta=1e-4, centred=True, weighted=True)
        credit = pc.analysis.gradient_alignment(net, x, y, learning=rule)
        np.testing.assert_allclose(credit.cosine["total"], 1, atol=1e-6)

    def test_linear_inference_refuses_it(self):
        net, x, y = network(), jnp.ones((2, 3)), jnp.zeros((2, 3))
        with pytest.raises(ValueError, match="layer 'y'"):
            net.infer(x, y, inference=pc.inference.LinearSolve())


class TestRefusals:
    def test_targets_of_the_width_of_the_prediction(self):
        with pytest.raises(
            ValueError, match=r"'y' predicts shape \(2, 3\).*\(2, 6\).*targets of width 3"
        ):
            network().infer(jnp.ones((2, 3)), jnp.ones((2, 6)), inference=pc.inference.NewtonCG())

    def test_an_odd_prediction(self):
        with pytest.raises(ValueError, match="'y'.*got the odd width 5; give the layer twice"):
            network(width=5).predict(jnp.ones((2, 3)))


def test_it_learns_noise_that_depends_on_the_input():
    """One linear layer, y = sd(x) noise with log sd linear in x: maximum likelihood finds the line."""
    random = np.random.default_rng(0)
    x = random.uniform(-1, 1, (4000, 1)).astype(np.float32)
    y = (np.exp(x - 0.5) * random.normal(size=x.shape)).astype(np.float32)
    layer = pc.PCDense(1, 2, energy=Heteroscedastic(), rngs=nnx.Rngs(0))
    rule = pc.learning.PredictiveCoding(pc.inference.GradientDescent(0.1))
    trainer = pc.Trainer(pc.PCNetwork([layer]), optax.adam(0.05), learning=rule, progress=False)
    trainer.fit(pc.data.from_arrays(x, y, batch_size=1000), num_steps=200)
    # log precision = -2 (x - 1/2): slope -2, bias 1; the Fisher information says .04 for 4,000 examples
    np.testing.assert_allclose(layer.linear.kernel[0, 1], -2, atol=0.15)
    np.testing.assert_allclose(layer.linear.bias[1], 1, atol=0.1)


def test_a_width_that_does_not_fit_is_told_with_the_one_that_does():
    """Twice the target's: the layer predicts means and log precisions."""
    with pytest.raises(
        ValueError, match=r"'y' predicts shape \(4, 3\).*set out_features=4 or give"
    ):
        network().infer(np.ones((4, 3)), np.ones((4, 2)), inference=pc.inference.LinearSolve())
    with pytest.raises(
        ValueError, match=r"twice as wide as the activity, got \(4, 6\) for \(4, 2\)"
    ):
        Heteroscedastic()(np.ones((4, 2)), np.ones((4, 6)))
