"""The convolutional layer: its equation in one, two and three dimensions, its pool, its refusals.

Oracles: `jax.lax.conv_general_dilated` for the convolution, NumPy loops over windows for the pool,
`nnx.max_pool` for the pool's gradient.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pcflax as pc
from pcflax.layers.kernels.pooling import average_pool, max_pool

LAYOUT = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}
SPACE = {1: (7,), 2: (7, 6), 3: (5, 6, 7)}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32 sums in another order


def below(dimensions=2, batch=2, channels=4, seed=0):
    shape = (batch, *SPACE[dimensions], channels)
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def plain(layer, x, **options):
    """The convolution with the layer's weights, by lax alone."""
    dimensions = x.ndim - 2
    options = {"window_strides": (1,) * dimensions, "padding": "SAME"} | options
    found = jax.lax.conv_general_dilated(
        x, layer.conv.kernel[...], dimension_numbers=LAYOUT[dimensions], **options
    )
    return found + jnp.broadcast_to(layer.conv.bias[...], found.shape)


def with_bias(layer):
    layer.conv.bias.set_value(jnp.linspace(-1.0, 2.0, layer.conv.bias.shape[0]))
    return layer


def windows(x, window):
    """Each window of a NumPy array, (batch, *pooled, prod(window), features), by loops."""
    pooled = [size // one for size, one in zip(x.shape[1:-1], window, strict=True)]
    out = np.empty((x.shape[0], *pooled, int(np.prod(window)), x.shape[-1]), x.dtype)
    for place in np.ndindex(*pooled):
        part = tuple(slice(at * one, (at + 1) * one) for at, one in zip(place, window, strict=True))
        out[(slice(None), *place)] = x[(slice(None), *part)].reshape(x.shape[0], -1, x.shape[-1])
    return out


class TestPrediction:
    @pytest.mark.parametrize("kernel_size", [(3,), (3, 2), (3, 2, 3)])
    @pytest.mark.parametrize("batch", [1, 2])
    def test_in_each_dimension(self, kernel_size, batch):
        dimensions = len(kernel_size)
        layer = with_bias(pc.PCConv(4, 6, kernel_size, activation=jnp.tanh, rngs=nnx.Rngs(0)))
        x = below(dimensions, batch)
        prediction = layer.predict(x)
        assert prediction.shape == (batch, *SPACE[dimensions], 6)
        np.testing.assert_allclose(prediction, jnp.tanh(plain(layer, x)), **CLOSE)

    def test_an_int_is_a_square(self):
        layer = pc.PCConv(4, 6, 3, rngs=nnx.Rngs(0))
        assert layer.conv.kernel.shape == (3, 3, 4, 6)
        np.testing.assert_allclose(layer.predict(below()), plain(layer, below()), **CLOSE)

    @pytest.mark.parametrize(
        ("own", "lax"),
        [
            ({"strides": 2}, {"window_strides": (2, 2)}),
            ({"strides": (2, 1)}, {"window_strides": (2, 1)}),
            ({"padding": "VALID"}, {"padding": "VALID"}),
            ({"padding": [(1, 0), (2, 1)]}, {"padding": ((1, 0), (2, 1))}),
            ({"dilation": 2}, {"rhs_dilation": (2, 2)}),
            ({"dilation": (1, 3)}, {"rhs_dilation": (1, 3)}),
            ({"groups": 2}, {"feature_group_count": 2}),
        ],
    )
    def test_options_of_the_convolution(self, own, lax):
        layer = with_bias(pc.PCConv(4, 6, 3, rngs=nnx.Rngs(0), **own))
        np.testing.assert_allclose(layer.predict(below()), plain(layer, below(), **lax), **CLOSE)

    def test_norm_then_activation_then_pool(self):
        """Another order is another network."""
        norm = nnx.GroupNorm(6, num_groups=3, rngs=nnx.Rngs(1))
        norm.bias.set_value(jnp.linspace(-1.0, 1.0, 6))
        layer = pc.PCConv(
            4,
            6,
            3,
            norm=norm,
            activation=jnp.square,
            pool="max",
            pool_size=(2, 3),
            rngs=nnx.Rngs(0),
        )
        expected = windows(np.asarray(jnp.square(norm(plain(layer, below())))), (2, 3)).max(axis=-2)
        assert layer.predict(below()).shape == (2, 3, 2, 6)
        np.testing.assert_allclose(layer.predict(below()), expected, **CLOSE)

    def test_a_batch_norm_is_called_too(self):
        norm = nnx.BatchNorm(6, rngs=nnx.Rngs(1))
        layer = pc.PCConv(4, 6, 3, norm=norm, rngs=nnx.Rngs(0))
        prediction = np.asarray(layer.predict(below()))
        np.testing.assert_allclose(prediction.mean(axis=(0, 1, 2)), 0.0, atol=1e-5)
        np.testing.assert_allclose(prediction.std(axis=(0, 1, 2)), 1.0, rtol=1e-3)

    def test_activation_first_and_skip(self):
        layer = with_bias(
            pc.PCConv(
                4, 4, 3, activation=jnp.tanh, activation_first=True, skip=True, rngs=nnx.Rngs(0)
            )
        )
        expected = below() + plain(layer, jnp.tanh(below()))
        np.testing.assert_allclose(layer.predict(below()), expected, **CLOSE)

    def test_a_skip_passes_the_activation_by(self):
        layer = pc.PCConv(4, 4, 3, activation=jnp.tanh, skip=True, rngs=nnx.Rngs(0))
        expected = below() + jnp.tanh(plain(layer, below()))
        np.testing.assert_allclose(layer.predict(below()), expected, **CLOSE)

    def test_without_bias_and_with_weights_of_ones_own(self):
        ones = nnx.initializers.ones
        layer = pc.PCConv(4, 6, (3,), use_bias=False, kernel_init=ones, rngs=nnx.Rngs(0))
        assert layer.conv.bias is None
        x = below(1)
        expected = np.asarray(x)[:, :3].sum(axis=(1, 2))  # the window of the second place
        np.testing.assert_allclose(layer.predict(x)[:, 1], expected[:, None] * np.ones(6), **CLOSE)


class TestPool:
    @pytest.mark.parametrize(
        ("shape", "window"),
        [
            ((2, 7, 3), (2,)),
            ((2, 6, 7, 3), (2, 2)),
            ((1, 7, 8, 3), (3, 2)),
            ((2, 4, 5, 6, 2), (2,) * 3),
        ],
    )
    def test_values_with_uneven_sizes(self, shape, window):
        x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        expected = windows(x, window)
        np.testing.assert_array_equal(max_pool(jnp.asarray(x), window), expected.max(axis=-2))
        np.testing.assert_array_equal(
            max_pool(jnp.asarray(x), window), nnx.max_pool(x, window, strides=window)
        )
        found = average_pool(jnp.asarray(x), window)
        np.testing.assert_allclose(found, expected.mean(axis=-2), **CLOSE)

    @pytest.mark.parametrize(("shape", "window"), [((2, 7, 3), (3,)), ((2, 6, 7, 3), (2, 3))])
    def test_gradient_without_ties_is_that_of_reduce_window(self, shape, window):
        x = jax.random.permutation(jax.random.key(0), jnp.arange(float(np.prod(shape)))).reshape(
            shape
        )

        def loss(pool):
            return lambda x: jnp.sum(jnp.sin(pool(x)))

        expected = jax.grad(loss(lambda x: nnx.max_pool(x, window, strides=window)))(x)
        np.testing.assert_array_equal(jax.grad(loss(lambda x: max_pool(x, window)))(x), expected)

    def test_equal_values_share_the_gradient(self):
        gradient = jax.grad(lambda x: max_pool(x, (2, 2)).sum())(jnp.zeros((1, 4, 4, 1)))
        np.testing.assert_array_equal(gradient, np.full((1, 4, 4, 1), 0.25))

    @pytest.mark.parametrize("pool", ["max", "average"])
    def test_is_part_of_the_layer(self, pool):
        """One activity and one energy for convolution and pool."""
        layer = pc.PCConv(4, 6, 3, pool=pool, rngs=nnx.Rngs(0))
        network = pc.PCNetwork([layer])
        network.init_activities(below())
        assert layer.activity[...].shape == (2, 3, 3, 6)
        assert network.energies(below())["layer_0"].shape == (2,)


class TestRefusals:
    def test_another_number_of_channels(self):
        layer = pc.PCConv(3, 5, 3, rngs=nnx.Rngs(0))
        text = (
            r"expected an input of shape \(batch, height, width, 3\), channels last, got "
            r"\(2, 3, 8, 8\); set in_features=8 or change what is below, "
            r"jnp\.moveaxis\(below, 1, -1\) it seems"
        )
        with pytest.raises(ValueError, match=text):
            layer.predict(jnp.zeros((2, 3, 8, 8)))

    def test_another_number_of_axes(self):
        layer = pc.PCConv(3, 5, (3,), rngs=nnx.Rngs(0))
        text = (
            r"expected an input of shape \(batch, length, 3\), got \(2, 8, 8, 3\); set kernel_size to "
            r"one number for each dimension of space, or reshape the input \(pc\.layers\.Reshape\)"
        )
        with pytest.raises(ValueError, match=text):
            layer.predict(jnp.zeros((2, 8, 8, 3)))

    def test_a_network_names_the_layer(self):
        rngs = nnx.Rngs(0)
        network = pc.PCNetwork({"image": pc.PCConv(3, 5, 3, rngs=rngs)})
        with pytest.raises(
            ValueError, match=r"layer 'image' \(PCConv\) could not predict .*in_features=4"
        ):
            network.predict(jnp.zeros((2, 8, 8, 4)))

    def test_another_pool(self):
        text = "PCConv expected pool to be 'max', 'average' or None, got 'mean'"
        with pytest.raises(ValueError, match=text):
            pc.PCConv(3, 5, 3, pool="mean", rngs=nnx.Rngs(0))

    @pytest.mark.parametrize("name", ["strides", "dilation", "pool_size"])
    @pytest.mark.parametrize("value", [0, (2,), (1, 1, 1), (2, 0)])
    def test_numbers_that_do_not_fit_the_kernel(self, name, value):
        text = (
            rf"expected {name} to be an int of at least 1, or 2 of them for a kernel of 2 dimensions, "
            rf"got "
        )
        with pytest.raises(ValueError, match=text):
            pc.PCConv(3, 5, 3, rngs=nnx.Rngs(0), **{name: value})

    @pytest.mark.parametrize("options", [{"pool": "max"}, {"strides": 2}])
    def test_a_skip_around_what_shrinks(self, options):
        text = r"PCConv expected no pool and strides of 1 with a skip.*use pc\.PCResidual with a shortcut"
        with pytest.raises(ValueError, match=text):
            pc.PCConv(3, 3, 3, skip=True, rngs=nnx.Rngs(0), **options)

    def test_a_skip_between_channels(self):
        with pytest.raises(ValueError, match="as many in_features as out_features .* got 3 and 5"):
            pc.PCConv(3, 5, 3, skip=True, rngs=nnx.Rngs(0))

    def test_a_skip_around_what_pads_nothing(self):
        layer = pc.PCConv(3, 3, 3, padding="VALID", skip=True, rngs=nnx.Rngs(0))
        text = (
            r"PCConv adds a shortcut of shape \(1, 4, 4, 3\) to a branch of shape \(1, 2, 2, 3\); give "
            r"the branch equal features and, in space, strides of 1 with padding='SAME'"
        )
        with pytest.raises(ValueError, match=text):
            layer.predict(jnp.zeros((1, 4, 4, 3)))

    def test_groups_that_do_not_divide(self):
        text = "in_features and out_features that groups=2 divides, got 3 and 4"
        with pytest.raises(ValueError, match=text):
            pc.PCConv(3, 4, 3, groups=2, rngs=nnx.Rngs(0))

    @pytest.mark.parametrize("norm", [nnx.LayerNorm, "layer", 3])
    def test_a_norm_that_is_not_ready(self, norm):
        text = r"PCConv expected norm to be a ready module such as nnx\.LayerNorm\(4, rngs=rngs\), got "
        with pytest.raises(TypeError, match=text):
            pc.PCConv(3, 4, 3, norm=norm, rngs=nnx.Rngs(0))

    def test_a_norm_with_the_activation_first(self):
        norm = nnx.LayerNorm(4, rngs=nnx.Rngs(0))
        text = "PCConv applies a norm between the weights and the activation, got a norm and "
        with pytest.raises(ValueError, match=text + "activation_first=True"):
            pc.PCConv(3, 4, 3, norm=norm, activation_first=True, rngs=nnx.Rngs(0))

    def test_images_smaller_than_the_pool_or_the_kernel(self):
        pooled = pc.PCConv(3, 4, 3, pool="max", pool_size=4, rngs=nnx.Rngs(0))
        text = r"the pool of windows \(4, 4\) expected at least as many places, got \(5, 3\) from an input"
        with pytest.raises(ValueError, match=text):
            pooled.predict(jnp.zeros((1, 5, 3, 3)))
        valid = pc.PCConv(3, 4, 5, padding="VALID", rngs=nnx.Rngs(0))
        text = r"a kernel of \(5, 5\) with padding='VALID' leaves nothing of an input of shape"
        with pytest.raises(ValueError, match=text):
            valid.predict(jnp.zeros((1, 4, 9, 3)))

    def test_what_is_no_energy(self):
        with pytest.raises(TypeError, match="PCConv expected energy to be an Energy object"):
            pc.PCConv(3, 4, 3, energy="mse", rngs=nnx.Rngs(0))


class TestPadding:
    @pytest.mark.parametrize("kind", [pc.PCConv, pc.PCConvTranspose])
    @pytest.mark.parametrize("given", [1.5, None, "SAM", (1,), ((1, 2), (3,)), "CAUSAL"])
    def test_what_is_none_is_refused_where_it_is_given(self, kind, given):
        further = ", REFLECT" if kind is pc.PCConv else ""
        text = (
            f"expected padding to be one of SAME, VALID, SAME_LOWER, CIRCULAR{further}, an int, or an int or "
            f"a pair of them for each of 2 dimensions, got {given!r}"
        )
        with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
            kind(3, 4, 3, padding=given, rngs=nnx.Rngs(0))

    def test_words_may_be_small(self):
        small, large = (
            pc.PCConv(3, 4, 3, padding=word, rngs=nnx.Rngs(0)) for word in ("valid", "VALID")
        )
        x = np.ones((1, 5, 5, 3), np.float32)
        np.testing.assert_array_equal(small.predict(x), large.predict(x))
        assert small.predict(x).shape == (1, 3, 3, 4)
