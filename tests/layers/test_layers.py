"""Layers: what predicts, how a user's own predicts, and the equations of the dense layer.

Oracles: NumPy matrix products in float64, with unequal widths so that a transpose shows.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pcflax as pc
from tests.conftest import in_double

EXACT = {"rtol": 1e-12, "atol": 1e-12}  # float64


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def below(batch=4, width=3, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, width))


class TestPCLayer:
    @pytest.mark.parametrize("batch", [1, 4])
    def test_wraps_any_module(self, batch):
        linear = nnx.Linear(3, 5, rngs=nnx.Rngs(0))
        layer = pc.PCLayer(linear)
        x = jnp.asarray(below(batch), jnp.float32)
        np.testing.assert_array_equal(layer.predict(x), linear(x))
        assert layer.module is linear

    def test_wraps_a_plain_function(self):
        np.testing.assert_array_equal(pc.PCLayer(jnp.tanh).predict(jnp.zeros((1, 2))), [[0, 0]])

    def test_wraps_modules_of_several_axes(self):
        layer = pc.PCLayer(nnx.Conv(2, 3, kernel_size=(3, 3), rngs=nnx.Rngs(0)))
        assert layer.predict(jnp.zeros((2, 4, 5, 2))).shape == (2, 4, 5, 3)

    def test_is_gaussian_unless_told(self):
        assert isinstance(pc.PCLayer(jnp.tanh).energy, pc.energies.Gaussian)
        assert pc.PCLayer(jnp.tanh).energy.precision == 1.0
        energy = pc.energies.Bernoulli()
        assert pc.PCLayer(jnp.tanh, energy=energy).energy is energy

    def test_its_activity_is_empty_until_a_network_sizes_it(self):
        layer = pc.PCDense(3, 5, rngs=nnx.Rngs(0))
        assert isinstance(layer.activity, pc.Activity)
        assert layer.activity[...].shape == (0,)
        network = pc.PCNetwork([layer])
        network.init_activities(jnp.ones((4, 3)))
        assert network.layers[0].activity[...].shape == (4, 5)

    def test_its_activity_is_no_parameter(self):
        """An optimizer that saw activities as weights would learn the last batch."""
        layer = pc.PCDense(3, 5, rngs=nnx.Rngs(0))
        parameters = nnx.to_flat_state(nnx.state(layer, nnx.Param))
        assert sorted(path for path, _ in parameters) == [("linear", "bias"), ("linear", "kernel")]
        assert [path for path, _ in nnx.to_flat_state(nnx.state(layer, pc.Activity))] == [
            ("activity",)
        ]

    def test_a_subclass_writes_only_predict(self):
        class Bottleneck(pc.PCLayer):
            def __init__(self, width, hidden, *, rngs):
                super().__init__(energy=pc.energies.Gaussian(2.0))
                self.down = nnx.Linear(width, hidden, rngs=rngs)
                self.up = nnx.Linear(hidden, width, rngs=rngs)

            def predict(self, below):
                return below + self.up(nnx.gelu(self.down(below)))

        rngs = nnx.Rngs(0)
        network = pc.PCNetwork([Bottleneck(3, 2, rngs=rngs), pc.PCDense(3, 4, rngs=rngs)])
        x = jnp.asarray(below(), jnp.float32)
        first = network.layers[0]
        expected = x + first.up(nnx.gelu(first.down(x)))
        network.init_activities(x)
        np.testing.assert_allclose(network.predictions(x)["layer_0"], expected, rtol=1e-6)
        # moved by 1 in each of 3 features: precision 2 / 2 * 3 for each example
        network.set_activities({"layer_0": expected + 1.0})
        np.testing.assert_allclose(network.energies(x)["layer_0"], 3.0, rtol=1e-5)

    @pytest.mark.parametrize("energy", ["mse", pc.energies.Gaussian, 1.0])
    def test_what_is_no_energy_is_refused(self, energy):
        text = (
            r"PCLayer expected energy to be an Energy object such as pc\.energies\.Gaussian\(\), "
        )
        with pytest.raises(TypeError, match=text + "got "):
            pc.PCLayer(jnp.tanh, energy=energy)

    def test_what_cannot_be_called_is_refused(self):
        text = "PCLayer expected a module that can be called on the activity below, got 3"
        with pytest.raises(TypeError, match=text):
            pc.PCLayer(3)

    def test_a_subclass_is_called_by_its_own_name(self):
        class Mine(pc.PCLayer):
            pass

        with pytest.raises(TypeError, match="Mine expected energy to be an Energy object"):
            Mine(energy="mse")
        with pytest.raises(TypeError, match="Mine expected a module that can be called"):
            Mine("linear")
        text = "Mine predicts nothing yet: give PCLayer a module, or write `def predict"
        with pytest.raises(NotImplementedError, match=text):
            Mine().predict(jnp.ones((1, 2)))


def make_dense(**options):
    """A dense layer 3 -> 5 with a bias that is not zero, and its weights in NumPy."""
    layer = in_double(pc.PCDense(3, 5, rngs=nnx.Rngs(0), **options))
    bias = None
    if layer.linear.bias is not None:
        bias = np.linspace(-1.0, 2.0, 5)
        layer.linear.bias.set_value(jnp.asarray(bias, layer.linear.kernel[...].dtype))
    return layer, np.asarray(layer.linear.kernel[...], np.float64), bias


@pytest.mark.usefixtures("x64")
class TestPCDense:
    @pytest.mark.parametrize("batch", [1, 4])
    def test_applies_the_activation_after_the_weights(self, batch):
        """Activation first is another network: the reference notebook has it after the weights."""
        layer, kernel, bias = make_dense(activation=jnp.tanh)
        assert kernel.shape == (3, 5)
        expected = np.tanh(below(batch) @ kernel + bias)
        np.testing.assert_allclose(layer.predict(jnp.asarray(below(batch))), expected, **EXACT)

    def test_activation_first_applies_it_before_the_weights(self):
        layer, kernel, bias = make_dense(activation=jnp.tanh, activation_first=True)
        expected = np.tanh(below()) @ kernel + bias
        np.testing.assert_allclose(layer.predict(jnp.asarray(below())), expected, **EXACT)

    @pytest.mark.parametrize("activation_first", [False, True])
    def test_without_an_activation_it_is_affine(self, activation_first):
        layer, kernel, bias = make_dense(activation_first=activation_first)
        expected = below() @ kernel + bias
        np.testing.assert_allclose(layer.predict(jnp.asarray(below())), expected, **EXACT)

    def test_without_a_bias_zero_stays_zero(self):
        layer, kernel, _ = make_dense(use_bias=False, activation=jnp.tanh)
        np.testing.assert_allclose(
            layer.predict(jnp.asarray(below())), np.tanh(below() @ kernel), **EXACT
        )
        np.testing.assert_array_equal(layer.predict(jnp.zeros((2, 3))), np.zeros((2, 5)))

    def test_the_initializer_is_the_one_given_and_the_bias_starts_at_zero(self):
        layer = pc.PCDense(3, 5, kernel_init=nnx.initializers.constant(0.5), rngs=nnx.Rngs(0))
        np.testing.assert_array_equal(layer.linear.kernel[...], np.full((3, 5), 0.5))
        np.testing.assert_array_equal(layer.linear.bias[...], np.zeros(5))

    def test_weights_have_variance_one_over_the_width_below(self):
        """One over the width above would make deep activities shrink or grow."""
        kernel = np.asarray(pc.PCDense(400, 200, rngs=nnx.Rngs(0)).linear.kernel[...])
        # 80,000 draws: the standard error of the variance is about 0.5 %
        assert kernel.var() * 400 == pytest.approx(1, rel=0.03)
        assert kernel.mean() * 20 == pytest.approx(0, abs=0.03)

    @pytest.mark.parametrize("shape", [(4, 2), (1, 5), (2, 3, 4)])
    def test_another_width_below_is_refused_with_the_remedy(self, shape):
        layer, *_ = make_dense()
        text = (
            rf"expected an input of shape \(batch, 3\), got \({', '.join(map(str, shape))}\); set "
            rf"in_features={shape[-1]} or change what is below"
        )
        with pytest.raises(ValueError, match=text):
            layer.predict(jnp.zeros(shape))

    def test_one_number_an_example_is_refused(self):
        """Of as many examples as units, the weights would mix the examples."""
        text = r"expected an input of shape \(batch, 4\), got \(4,\); change what is below"
        with pytest.raises(ValueError, match=text):
            pc.PCDense(4, 4, rngs=nnx.Rngs(0)).predict(jnp.ones(4))

    def test_a_network_tells_which_layer_does_not_fit(self):
        rngs = nnx.Rngs(0)
        layers = {"wide": pc.PCDense(3, 5, rngs=rngs), "narrow": pc.PCDense(4, 2, rngs=rngs)}
        text = r"layer 'narrow' \(PCDense\) could not predict .*\(7, 5\).*set in_features=5"
        with pytest.raises(ValueError, match=text):
            pc.PCNetwork(layers).predict(jnp.ones((7, 3), jnp.float32))

    def test_passes_its_energy_on(self):
        layer = pc.PCDense(3, 5, energy=pc.energies.Categorical(), rngs=nnx.Rngs(0))
        assert isinstance(layer.energy, pc.energies.Categorical)
        with pytest.raises(TypeError, match="PCDense expected energy to be an Energy object"):
            pc.PCDense(3, 5, energy="softmax", rngs=nnx.Rngs(0))


class TestPCRoot:
    @pytest.mark.parametrize("features", [(4,), (2, 3)])
    def test_predicts_the_mean_of_its_prior_without_a_batch_axis(self, features):
        root = pc.PCRoot(*features)
        assert root.features == features
        np.testing.assert_array_equal(root.predict(), np.zeros(features))

    @pytest.mark.parametrize("batch", [1, 4])
    def test_pays_for_leaving_its_prior(self, batch):
        """Without the prior's energy a free root is not regularised at all."""
        rngs = nnx.Rngs(0)
        root = pc.PCRoot(3, energy=pc.energies.Gaussian(0.5))
        network = pc.PCNetwork([root, pc.PCDense(3, 5, rngs=rngs)])
        z = below(batch).astype(np.float32)
        network.init_activities(jnp.asarray(z))
        np.testing.assert_array_equal(network.layers[0].activity[...], z)
        expected = 0.5 / 2 * (z**2).sum(axis=1)
        np.testing.assert_allclose(network.energies()["layer_0"], expected, rtol=1e-5)

    def test_a_prior_of_ones_own_is_a_subclass(self):
        class Shifted(pc.PCRoot):
            def predict(self):
                return jnp.array([1.0, -2.0, 3.0])

        network = pc.PCNetwork([Shifted(3), pc.PCDense(3, 5, rngs=nnx.Rngs(0))])
        network.init_activities(jnp.zeros((2, 3)))
        np.testing.assert_allclose(network.energies()["layer_0"], [7.0, 7.0])  # (1 + 4 + 9) / 2

    def test_features_are_counts(self):
        for features in [(10.0,), ((2, 3),), (pc.energies.Gaussian(),), (True,)]:
            with pytest.raises(TypeError, match="PCRoot expected an int number of features, got"):
                pc.PCRoot(*features)
        with pytest.raises(ValueError, match="number of features of at least 1, got -1"):
            pc.PCRoot(2, -1)
        assert pc.PCRoot(np.int64(2)).features == (2,)
        assert type(pc.PCRoot(np.int64(2)).features[0]) is int

    def test_stands_only_at_the_bottom(self):
        text = "layer 'layer_1' is a PCRoot but not the first layer; a root has nothing below it"
        with pytest.raises(ValueError, match=text):
            pc.PCNetwork([pc.PCDense(3, 5, rngs=nnx.Rngs(0)), pc.PCRoot(5)])
