"""The dense models: mlp, residual_mlp and decoder. Oracle: the same chains in NumPy, float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc

pytestmark = pytest.mark.slow

CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # float32 against float64


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def kernel(layer):
    return np.asarray(layer.linear.kernel[...], np.float64)


class TestMLP:
    @pytest.mark.parametrize("widths", [(3, 2), (3, 5, 2), (3, 5, 4, 2)])
    def test_bends_after_all_weights_but_the_last(self, widths):
        network = pc.models.mlp(*widths, rngs=nnx.Rngs(0))
        x = random(4, 3)
        expected = x
        for number, layer in enumerate(network.layers, start=1):
            expected = expected @ kernel(layer)
            expected = expected if number == len(widths) - 1 else np.tanh(expected)
        np.testing.assert_allclose(network.predict(jnp.asarray(x, jnp.float32)), expected, **CLOSE)
        assert network.names[-1] == "output"
        assert network.names[:-1] == tuple(f"hidden_{n}" for n in range(1, len(widths) - 1))

    def test_options_reach_the_layers(self):
        network = pc.models.mlp(
            3,
            5,
            2,
            activation=None,
            parameterization=pc.parameterizations.MuPC(),
            energy=pc.energies.Categorical(),
            rngs=nnx.Rngs(0),
        )
        x = random(4, 3)
        expected = x @ kernel(network.layers[0]) / np.sqrt(3) @ kernel(network.layers[1]) / 5
        np.testing.assert_allclose(network.predict(jnp.asarray(x, jnp.float32)), expected, **CLOSE)
        assert isinstance(network.layers[1].energy, pc.energies.Categorical)
        assert isinstance(network.layers[0].energy, pc.energies.Gaussian)

    def test_activations_come_first_and_equal_widths_skip(self):
        network = pc.models.mlp(3, 5, 5, 5, activation_first=True, skip=True, rngs=nnx.Rngs(0))
        x = random(4, 3)
        first, second, last = map(kernel, network.layers)
        below = x @ first
        below = below + np.tanh(below) @ second
        expected = np.tanh(below) @ last
        np.testing.assert_allclose(network.predict(jnp.asarray(x, jnp.float32)), expected, **CLOSE)

    def test_a_single_width_is_refused(self):
        with pytest.raises(ValueError, match=r"mlp expected a width of the input, .* got \(3,\)"):
            pc.models.mlp(3, rngs=nnx.Rngs(0))


class TestResidualMLP:
    def make(self, **options):
        return pc.models.residual_mlp(3, 6, 2, **{"depth": 5, "rngs": nnx.Rngs(0)} | options)

    def test_is_the_network_of_mupc(self):
        network, x = self.make(stacked=False), random(4, 3)
        first, *hidden, last = network.layers
        assert network.names == ("first", "hidden_1", "hidden_2", "hidden_3", "output")
        z = x @ kernel(first) / np.sqrt(3)
        for layer in hidden:
            z = z + np.maximum(z, 0) @ kernel(layer) / np.sqrt(6 * 5)
        expected = np.maximum(z, 0) @ kernel(last) / 6
        np.testing.assert_allclose(network.predict(jnp.asarray(x, jnp.float32)), expected, **CLOSE)
        assert len(nnx.to_flat_state(nnx.state(network, nnx.Param))) == 5  # no biases

    def test_stacked_and_plain_have_equal_numbers(self):
        """The stack is a matter of speed: same draws, same predictions, same inference."""
        stacked, plain = self.make(use_bias=True), self.make(use_bias=True, stacked=False)
        assert stacked.names == ("first", "hidden", "output")
        assert len(stacked.nodes) == len(plain.nodes) == 5
        hidden = [kernel(layer) for layer in plain.layers[1:-1]]
        np.testing.assert_array_equal(
            stacked.layer("hidden").stacked.linear.kernel[...], np.stack(hidden).astype(np.float32)
        )
        np.testing.assert_array_equal(kernel(stacked.layers[-1]), kernel(plain.layers[-1]))
        x, y = (
            jnp.asarray(random(4, 3), jnp.float32),
            jnp.asarray(random(4, 2, seed=1), jnp.float32),
        )
        np.testing.assert_allclose(stacked.predict(x), plain.predict(x), **CLOSE)
        descent = pc.inference.GradientDescent(optax.sgd(0.1), num_steps=10)
        results = [network.infer(x, y, inference=descent) for network in (stacked, plain)]
        np.testing.assert_allclose(results[0].energy, results[1].energy, **CLOSE)
        np.testing.assert_allclose(
            stacked.layer("hidden").activity[...][1], plain.layer("hidden_2").activity[...], **CLOSE
        )

    @pytest.mark.parametrize("stacked", [True, False])
    def test_two_layers_have_nothing_in_between(self, stacked):
        assert self.make(depth=2, stacked=stacked).names == ("first", "output")

    def test_a_depth_below_two_is_refused(self):
        text = "residual_mlp expected depth of at least 2, got 1"
        with pytest.raises(ValueError, match=text):
            self.make(depth=1)


class TestDecoder:
    def test_has_the_published_sizes(self):
        network = pc.models.decoder(rngs=nnx.Rngs(0))
        assert network.names == ("latent", "hidden_1", "hidden_2", "output")
        shapes = [layer.linear.kernel.shape for layer in network.layers[1:]]
        assert shapes == [(64, 128), (128, 128), (128, 784)]

    def test_decodes(self):
        network, code = pc.models.decoder(2, 5, 4, rngs=nnx.Rngs(0)), 3 * random(4, 2)
        hidden = np.clip(code @ kernel(network.layers[1]), -1, 1)
        expected = hidden @ kernel(network.layers[2])
        np.testing.assert_allclose(
            network.predict(jnp.asarray(code, jnp.float32)), expected, **CLOSE
        )

    @pytest.mark.parametrize(("prior", "precision"), [(None, 0.0), (pc.energies.Gaussian(), 1.0)])
    def test_the_prior_is_flat_unless_given(self, prior, precision):
        network = pc.models.decoder(2, 5, 4, prior=prior, rngs=nnx.Rngs(0))
        network.init_activities(None, targets=jnp.ones((3, 4)))
        network.set_activities({"latent": jnp.full((3, 2), 2.0)})
        np.testing.assert_allclose(network.energies()["latent"], precision * 4.0)

    def test_inference_finds_a_code_that_explains_the_data(self):
        network = pc.models.decoder(2, 4, activation=None, rngs=nnx.Rngs(0))
        data = jnp.asarray(random(3, 2), jnp.float32) @ network.layers[1].linear.kernel[...]
        descent = pc.inference.GradientDescent(optax.sgd(0.2), num_steps=2000)
        network.infer(None, data, inference=descent, initializer=pc.initializers.Zeros())
        code = network.layer("latent").activity[...]
        assert code.dtype == jnp.float32
        np.testing.assert_allclose(network.predict(code), data, atol=1e-3)

    def test_a_single_width_is_refused(self):
        with pytest.raises(
            ValueError, match=r"decoder expected a width of the latent code, .*\(3,\)"
        ):
            pc.models.decoder(3, rngs=nnx.Rngs(0))


def test_residual_mlp_compiles_in_bfloat16_and_with_remat():
    plain, low = (
        pc.models.residual_mlp(3, 6, 2, depth=4, rngs=nnx.Rngs(0), **options)
        for options in ({}, {"compute_dtype": jnp.bfloat16, "remat": True})
    )
    x = jax.random.normal(jax.random.key(0), (4, 3))
    assert low.predict(x).dtype == jnp.float32
    np.testing.assert_allclose(low.predict(x), plain.predict(x), atol=0.02)
    assert not np.array_equal(low.predict(x), plain.predict(x))

    def test_a_root_may_be_the_prior(self):
        root = pc.PCRoot(2, mean=3.0, energy=pc.energies.Gaussian())
        network = pc.models.decoder(2, 5, 4, prior=root, rngs=nnx.Rngs(0))
        assert network.layer("latent").predict().tolist() == [3.0, 3.0]
        with pytest.raises(ValueError, match=r"code of width 3, got a prior PCRoot\(2,\)"):
            pc.models.decoder(3, 5, 4, prior=root, rngs=nnx.Rngs(0))

    def test_what_is_no_prior_is_refused(self):
        for prior in ("flat", 1.0, pc.energies.Gaussian):
            with pytest.raises(TypeError, match="decoder expected prior such as .*PCRoot"):
                pc.models.decoder(3, 5, 4, prior=prior, rngs=nnx.Rngs(0))


class TestTransition:
    def test_controls_are_neither_left_out_nor_added(self):
        """Left out, a control with weights of its own would do nothing."""
        one = jnp.ones((1, 2))
        with pytest.raises(
            TypeError, match="with controls expected the step before and the controls, "
        ):
            pc.models.Transition(2, controls=2, rngs=nnx.Rngs(0)).predict(one)
        with pytest.raises(TypeError, match="without controls expected the step before, got 2"):
            pc.models.Transition(2, rngs=nnx.Rngs(0)).predict(one, one)

    def test_what_is_no_size_is_refused(self):
        with pytest.raises(ValueError, match="Transition expected features of at least 1, got -1"):
            pc.models.Transition(-1, rngs=nnx.Rngs(0))
        with pytest.raises(TypeError, match="Transition expected activation to be a function"):
            pc.models.Transition(2, activation="tanh", rngs=nnx.Rngs(0))
