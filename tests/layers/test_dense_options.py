"""The dense layer's skip and multiplier, and how a layer learns its place.

Oracles: NumPy in float64 with a bias that is not zero; the wrapped `nnx.Linear` for what must not
change at all.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pcflax as pc
from pcflax.parameterizations import NTK, MuPC, Standard
from tests.conftest import in_double

EXACT = {"rtol": 1e-12, "atol": 1e-12}  # float64
BIAS = np.linspace(-1.0, 2.0, 5)


def below(batch=4, width=5):
    return np.random.default_rng(0).normal(size=(batch, width))


def make(in_features=5, *, place=None, **options):
    layer = in_double(pc.PCDense(in_features, 5, rngs=nnx.Rngs(0), **options))
    if place is not None:
        layer.set_place(*place)
    if layer.linear.bias is not None:
        layer.linear.bias.set_value(jnp.asarray(BIAS))
    return layer, np.asarray(layer.linear.kernel[...], np.float64)


@pytest.mark.usefixtures("double")
class TestPrediction:
    @pytest.mark.parametrize("batch", [1, 4])
    def test_mupc_residual_layer(self, batch):
        """That is z + a W phi(z) + b: neither the skip nor the bias is scaled."""
        options = {"activation": jnp.tanh, "activation_first": True, "skip": True}
        layer, kernel = make(place=(1, 4), parameterization=MuPC(), **options)
        z = below(batch)
        expected = z + np.tanh(z) @ kernel / np.sqrt(5 * 4) + BIAS
        np.testing.assert_allclose(layer.predict(jnp.asarray(z)), expected, **EXACT)

    def test_activation_after_the_weights_bends_the_scaled_sum_and_not_the_skip(self):
        layer, kernel = make(place=(1, 4), parameterization=MuPC(), activation=jnp.tanh, skip=True)
        expected = below() + np.tanh(below() @ kernel / np.sqrt(5 * 4) + BIAS)
        np.testing.assert_allclose(layer.predict(jnp.asarray(below())), expected, **EXACT)

    @pytest.mark.parametrize("activation_first", [False, True])
    def test_linear_with_a_skip(self, activation_first):
        layer, kernel = make(skip=True, activation_first=activation_first)
        expected = below() + below() @ kernel + BIAS
        np.testing.assert_allclose(layer.predict(jnp.asarray(below())), expected, **EXACT)

    @pytest.mark.parametrize("activation_first", [False, True])
    def test_multiplier_without_a_skip_over_unequal_widths(self, activation_first):
        layer, kernel = make(
            3,
            place=(2, 3),
            parameterization=MuPC(gamma=2.5),
            activation=jnp.tanh,
            activation_first=activation_first,
        )
        z, multiplier = below(width=3), 1 / (3 * 2.5)
        if activation_first:
            expected = multiplier * np.tanh(z) @ kernel + BIAS
        else:
            expected = np.tanh(multiplier * z @ kernel + BIAS)
        np.testing.assert_allclose(layer.predict(jnp.asarray(z)), expected, **EXACT)

    def test_gamma_divides_the_last_standard_layer(self):
        layer, kernel = make(place=(3, 4), parameterization=Standard(gamma=2.5))
        expected = below() @ kernel / 2.5 + BIAS
        np.testing.assert_allclose(layer.predict(jnp.asarray(below())), expected, **EXACT)


class TestStandardIsUntouched:
    @pytest.mark.parametrize("activation", [None, jnp.tanh])
    @pytest.mark.parametrize("activation_first", [False, True])
    def test_it_compiles_to_the_wrapped_module_and_nothing_else(self, activation, activation_first):
        """No product with 1 and no sum with 0, so that numbers and speed are as without them."""
        layer, _ = make(
            3,
            activation=activation,
            activation_first=activation_first,
            parameterization=Standard(),
            skip=False,
        )

        def plain(z):
            phi = activation or (lambda value: value)
            return layer.linear(phi(z)) if activation_first else phi(layer.linear(z))

        def program(function):
            lowered = jax.jit(lambda z: function(z)).lower(jnp.ones((4, 3)))
            return lowered.as_text()

        assert program(layer.predict) == program(plain)

    def test_it_draws_the_weights_it_always_drew(self):
        plain, given = (pc.PCDense(3, 5, rngs=nnx.Rngs(0), **o) for o in ({}, {"skip": False}))
        linear = nnx.Linear(3, 5, kernel_init=nnx.initializers.lecun_normal(), rngs=nnx.Rngs(0))
        np.testing.assert_array_equal(plain.linear.kernel[...], linear.kernel[...])
        np.testing.assert_array_equal(given.linear.kernel[...], linear.kernel[...])


@pytest.mark.usefixtures("double")
class TestNormAndDropout:
    @pytest.mark.promotes("flax's LayerNorm does not run in 64 bits under strict promotion")
    def test_the_norm_stands_between_the_weights_and_the_activation(self):
        norm = nnx.LayerNorm(5, rngs=nnx.Rngs(1))
        norm.bias.set_value(jnp.linspace(-1.0, 1.0, 5))
        layer, kernel = make(3, norm=norm, activation=jnp.tanh)
        sums = below(width=3) @ kernel + BIAS
        centred = sums - sums.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
        expected = np.tanh(scaled + np.linspace(-1.0, 1.0, 5))
        # the norm's own offset is float32
        found = layer.predict(jnp.asarray(below(width=3)))
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("activation_first", [False, True])
    def test_dropout_spares_the_skip(self, activation_first):
        options = {"activation": jnp.tanh, "activation_first": activation_first, "skip": True}
        layer, _ = make(dropout=0.5, **options)
        x = jnp.asarray(below(40))
        dropped = np.asarray(layer.predict(x) - x)
        layer.eval()
        branch = np.asarray(layer.predict(x) - x)
        zero = np.abs(dropped) < 1e-12
        assert 0.3 < zero.mean() < 0.7  # 200 coins: seven standard deviations
        np.testing.assert_allclose(dropped[~zero], 2 * branch[~zero], rtol=1e-6)

    def test_neither_changes_what_is_drawn_where_it_is_not_used(self):
        rngs, others = nnx.Rngs(0), nnx.Rngs(0)
        plain = [pc.PCDense(3, 5, norm=None, dropout=0.0, rngs=rngs) for _ in range(2)]
        linear = [nnx.Linear(3, 5, rngs=others) for _ in range(2)]
        for one, other in zip(plain, linear, strict=True):
            np.testing.assert_array_equal(one.linear.kernel[...], other.kernel[...])
            assert sorted(path[-1] for path, _ in nnx.to_flat_state(nnx.state(one))) == [
                "activity",
                "bias",
                "kernel",
            ]


class TestInitialWeights:
    @pytest.mark.parametrize("parameterization", [NTK(), MuPC()])
    def test_are_the_parameterizations(self, parameterization):
        layer = pc.PCDense(400, 200, parameterization=parameterization, rngs=nnx.Rngs(0))
        # 80,000 draws: the standard error of the variance is about 0.5 %
        assert np.asarray(layer.linear.kernel[...]).var() == pytest.approx(1, rel=0.03)

    def test_are_the_users_before_those(self):
        _, kernel = make(parameterization=MuPC(), kernel_init=nnx.initializers.constant(0.5))
        np.testing.assert_array_equal(kernel, np.full((5, 5), 0.5))


class TestPlace:
    def test_a_network_places_the_layers_that_predict(self):
        """A root is no weight layer: counted as one, every multiplier above it would be wrong."""
        rngs = nnx.Rngs(0)
        mupc = {"parameterization": MuPC(gamma=2.0), "rngs": rngs}

        def layers():
            return [
                pc.PCDense(3, 5, **mupc),
                pc.PCDense(5, 5, skip=True, **mupc),
                pc.PCDense(5, 2, **mupc),
            ]

        expected = [3**-0.5, 15**-0.5, 1 / 10]
        for network in (pc.PCNetwork(layers()), pc.PCNetwork([pc.PCRoot(3), *layers()])):
            found = [x.multiplier for x in network.layers if isinstance(x, pc.PCDense)]
            assert found == pytest.approx(expected)

    def test_any_layer_may_ask_for_its_place(self):
        class Placed(pc.PCLayer):
            def set_place(self, index, depth):
                self.place = (index, depth)

            def predict(self, below):
                return below

        network = pc.PCNetwork([pc.PCRoot(3), Placed(), pc.PCLayer(jnp.tanh), Placed()])
        assert [network.layers[number].place for number in (1, 3)] == [(0, 3), (2, 3)]

    def test_before_a_network_a_layer_counts_as_one_of_its_own(self):
        layer, _ = make(3, parameterization=MuPC(gamma=2.0))
        assert layer.multiplier == pytest.approx(3**-0.5 / 2)
        assert pc.PCNetwork([layer]).layers[0].multiplier == pytest.approx(3**-0.5 / 2)

    def test_the_last_network_to_place_a_layer_decides(self):
        rngs = nnx.Rngs(0)
        layer = pc.PCDense(4, 4, parameterization=MuPC(), rngs=rngs)
        pc.PCNetwork([layer, pc.PCDense(4, 2, rngs=rngs)])
        assert layer.multiplier == 1 / 2
        pc.PCNetwork([pc.PCDense(3, 4, rngs=rngs), layer])
        assert layer.multiplier == 1 / 4

    def test_compiled_code_keeps_the_multipliers(self):
        """Merged copies never pass the constructor; the multiplier travels in the graph definition."""
        rngs = nnx.Rngs(0)
        options = {"parameterization": MuPC(), "rngs": rngs}
        network = pc.PCNetwork([pc.PCDense(3, 5, **options), pc.PCDense(5, 2, **options)])
        split, x = pc.networks.split(network), jnp.ones((4, 3))
        np.testing.assert_allclose(
            jax.jit(lambda s: s.bind().predict(x))(split), network.predict(x), rtol=1e-6
        )
        assert nnx.clone(network).layers[1].multiplier == 1 / 5


class TestRefusals:
    def test_a_skip_between_different_widths(self):
        text = (
            r"PCDense expected as many in_features as out_features with a skip, which adds the "
            r"activity below to the prediction, got 3 and 5; make them equal or set skip=False"
        )
        with pytest.raises(ValueError, match=text):
            pc.PCDense(3, 5, skip=True, rngs=nnx.Rngs(0))

    @pytest.mark.parametrize("parameterization", ["mupc", MuPC, 1.0])
    def test_what_is_no_parameterization(self, parameterization):
        text = r"PCDense expected parameterization such as pc\.parameterizations\.MuPC\(\), got "
        with pytest.raises(TypeError, match=text):
            pc.PCDense(3, 5, parameterization=parameterization, rngs=nnx.Rngs(0))

    def test_a_norm_with_the_activation_first(self):
        norm = nnx.LayerNorm(5, rngs=nnx.Rngs(0))
        text = (
            "PCDense applies a norm between the weights and the activation, got a norm and "
            "activation_first=True; drop one of them"
        )
        with pytest.raises(ValueError, match=text):
            pc.PCDense(3, 5, norm=norm, activation_first=True, rngs=nnx.Rngs(0))

    def test_an_activation_or_rngs_that_are_none(self):
        with pytest.raises(
            TypeError, match="PCDense expected activation to be a function such as jnp"
        ):
            pc.PCDense(3, 5, activation="tanh", rngs=nnx.Rngs(0))
        with pytest.raises(TypeError, match=r"PCDense expected rngs such as nnx.Rngs\(0\), got 7"):
            pc.PCDense(3, 5, rngs=7)

    @pytest.mark.parametrize("norm", [nnx.LayerNorm, "layer"])
    def test_a_norm_that_is_not_ready(self, norm):
        text = r"PCDense expected norm to be a ready module such as nnx\.LayerNorm\(5, rngs=rngs\), got "
        with pytest.raises(TypeError, match=text):
            pc.PCDense(3, 5, norm=norm, rngs=nnx.Rngs(0))
