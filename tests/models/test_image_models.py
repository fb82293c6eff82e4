"""The convolutional models: vgg5, vgg7 and resnet18.

Oracles: parameter counts by hand and as published; the same network written with plain flax modules and
`nnx.max_pool`; one example alone against its batch.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from tests.conftest import energies_at_start

pytestmark = pytest.mark.slow

CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # float32 sums in another order
KEY = jax.random.key(0)
DESCENT = pc.inference.GradientDescent(optax.sgd(0.02), num_steps=4)


def images(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def count(make):
    """The number of parameters, without making them."""
    state = nnx.state(nnx.eval_shape(make), nnx.Param)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state))


def convolved(layer, x, padding="SAME"):
    return jax.lax.conv_general_dilated(
        x, layer.conv.kernel[...], (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def pooled(x):
    return nnx.max_pool(x, (2, 2), strides=(2, 2))


def small_vgg5(**options):
    return pc.models.vgg5((16, 16, 2), 3, widths=(4, 5, 6, 7), rngs=nnx.Rngs(0), **options)


def small_vgg10(**options):
    options = {"widths": (2, 3, 4, 4, 5, 5, 6, 6), "dense": 7} | options
    return pc.models.vgg10((32, 32, 3), 3, **options, rngs=nnx.Rngs(0))


def network_path(path):
    """The layer's name and the array's, of a path in a network's state."""
    return path[1], path[-1]


class TestVGG:
    def test_counts_of_parameters(self):
        """3 * 3 * in * out + out for each convolution, in * out + out for the linear layer."""
        expected = 3584 + 295168 + 1180160 + 2359808 + (2 * 2 * 512 * 10 + 10)
        assert count(lambda: pc.models.vgg5(rngs=nnx.Rngs(0))) == expected
        expected = 3584 + 147584 + 295168 + 590080 + 1180160 + 2359808 + (512 * 100 + 100)
        assert count(lambda: pc.models.vgg7(num_classes=100, rngs=nnx.Rngs(0))) == expected

    def test_vgg5_is_convolution_activation_and_pool_four_times(self):
        network = small_vgg5()
        assert network.names == ("conv_1", "conv_2", "conv_3", "conv_4", "output")
        x = images(2, 16, 16, 2)
        expected = x
        for layer in network.layers[:-1]:
            expected = pooled(jax.nn.gelu(convolved(layer, expected)))
        linear = network.layers[-1].module.layers[1]
        expected = expected.reshape(2, -1) @ linear.kernel[...]
        np.testing.assert_allclose(network.predict(x), expected, **CLOSE)

    def test_vgg7_pools_every_second_layer_and_leaves_two_without_padding(self):
        network = pc.models.vgg7(num_classes=3, widths=(2, 3, 4, 5, 6, 7), rngs=nnx.Rngs(0))
        x = images(1, 32, 32, 3)
        expected, sizes = x, []
        for number, layer in enumerate(network.layers[:-1]):
            padding = "VALID" if number in (3, 5) else "SAME"
            expected = jax.nn.gelu(convolved(layer, expected, padding))
            expected = pooled(expected) if number in (0, 2, 4) else expected
            sizes.append(expected.shape[1])
        assert sizes == [16, 16, 8, 6, 3, 1]
        linear = network.layers[-1].module.layers[1]
        np.testing.assert_allclose(
            network.predict(x), expected.reshape(1, -1) @ linear.kernel[...], **CLOSE
        )

    def test_vgg10_is_the_table_of_its_source(self):
        """Eight convolutions from 3 to 512 channels, 7 x 7 places, 2,048 and 1,000 units."""
        channels = (3, 64, 128, 256, 256, 512, 512, 512, 512)
        convolutions = sum(
            9 * below * above + above
            for below, above in zip(channels[:-1], channels[1:], strict=True)
        )
        dense = 7 * 7 * 512 * 2048 + 2048 + 2048 * 1000 + 1000
        assert count(lambda: pc.models.vgg10(rngs=nnx.Rngs(0))) == convolutions + dense

    def test_vgg10_is_convolutions_pools_a_dense_and_a_linear_layer(self):
        network = small_vgg10(output_gain=0.2)
        x = images(2, 32, 32, 3)
        expected = x
        for number, layer in enumerate(network.layers[:-2], start=1):
            expected = jax.nn.relu(convolved(layer, expected))
            expected = pooled(expected) if number in (1, 2, 4, 6, 8) else expected
        dense, linear = network.layers[-2].module.layers[1], network.layers[-1].module.layers[0]
        expected = jax.nn.relu(expected.reshape(2, -1) @ dense.kernel[...]) @ linear.kernel[...]
        np.testing.assert_allclose(network.predict(x), expected, **CLOSE)

    def test_the_output_gain_scales_the_output_weights_alone(self):
        plain, scaled = small_vgg10(), small_vgg10(output_gain=0.2)
        for name, left in nnx.to_flat_state(nnx.state(plain, nnx.Param)):
            right = dict(nnx.to_flat_state(nnx.state(scaled, nnx.Param)))[name]
            gain = 0.2 if network_path(name) == ("output", "kernel") else 1
            np.testing.assert_allclose(right[...], gain * left[...], rtol=1e-6)
        # uniform within +-1/sqrt(fan_out) of 3 x 3 x 6
        largest = np.abs(plain.layers[7].conv.kernel[...]).max()
        assert 0.95 * 54**-0.5 < largest <= 54**-0.5
        with pytest.raises(ValueError, match="vgg10 expected a output_gain above 0, got 0"):
            small_vgg10(output_gain=0.0)

    def test_centred_nudging_of_vgg10_goes_to_backpropagation_as_the_square_of_beta(self):
        """The recipe of arXiv 2606.03584 at equilibrium: half of beta leaves a quarter of the difference."""
        network = pc.networks.split(small_vgg10(activation=jnp.tanh, pool="average"))
        x, y = images(2, 32, 32, 3), jax.nn.one_hot(jnp.array([0, 2]), 3)

        def both(network, betas):
            evidence = pc.Evidence(x.astype(float), y.astype(float))
            exact, _ = pc.learning.Backprop().gradients(network, evidence, key=KEY)
            descent = pc.inference.GradientDescent(optax.sgd(0.5), num_steps=60)
            rule = pc.learning.Nudged(
                descent, beta=lambda step: betas[step], centred=True, weighted=True
            )

            def distances(step):
                found, _ = rule.gradients(network, evidence, key=KEY, step=step)
                return jax.tree.map(
                    lambda a, b: jnp.linalg.norm(a - b) / jnp.linalg.norm(b), found, exact
                )

            return jax.lax.map(distances, jnp.arange(2))

        with jax.enable_x64(True):
            double = jax.tree.map(
                lambda leaf: leaf.astype(float) if leaf.dtype == jnp.float32 else leaf, network
            )
            left = jax.jit(both)(double, jnp.array([0.5, 0.25]))
        first = np.asarray(left["conv_1"]["conv"]["kernel"])
        assert first[0] < 0.2
        assert first[0] / first[1] == pytest.approx(4, rel=0.1)

    @pytest.mark.parametrize("energy", [None, pc.energies.Categorical()])
    def test_inference_descends_for_each_example_as_if_it_were_alone(self, energy):
        network = small_vgg5(energy=energy)
        x, y = images(3, 16, 16, 2), jax.nn.one_hot(jnp.array([0, 2, 1]), 3)
        before = sum(energies_at_start(network, x, y).values())
        result = network.infer(x, y, inference=DESCENT)
        assert (result.energy < before).all()
        alone = network.infer(x[1:2], y[1:2], inference=DESCENT)
        np.testing.assert_allclose(alone.energy[0], result.energy[1], rtol=1e-4)

    def test_options_reach_the_layers(self):
        network = small_vgg5(
            norm=lambda features: nnx.LayerNorm(features, rngs=nnx.Rngs(1)),
            pool="average",
            activation=jax.nn.hard_tanh,
            kernel_init=nnx.initializers.constant(0.5),
            compute_dtype=jnp.bfloat16,
            remat=True,
        )
        layer = network.layer("conv_2")
        assert isinstance(layer.norm, nnx.LayerNorm)
        assert (layer.pool, layer.activation) == ("average", jax.nn.hard_tanh)
        np.testing.assert_array_equal(layer.conv.kernel[...], np.full((3, 3, 4, 5), 0.5))
        assert network.numerics.compute_dtype == "bfloat16"
        assert network.numerics.remat

    @pytest.mark.parametrize(
        ("make", "size", "place"), [(pc.models.vgg5, 15, "conv_4"), (pc.models.vgg7, 31, "conv_6")]
    )
    def test_images_that_are_too_small_are_refused(self, make, size, place):
        text = (
            rf"expected images of which something is left at {place}, got an image_shape of "
            rf"\({size}, {size}, 3\); give larger images"
        )
        with pytest.raises(ValueError, match=make.__name__ + " " + text):
            nnx.eval_shape(lambda: make((size, size, 3), rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("make", [pc.models.vgg5, pc.models.vgg7, pc.models.resnet18])
def test_channels_first_and_missing_channels_are_told(make):
    text = (
        rf"{make.__name__} expected an image_shape of \(height, width, channels\), channels last, got "
        r"\(3, 32, 32\); make the images \(32, 32, 3\): jnp\.moveaxis\(images, 1, -1\)"
    )
    with pytest.raises(ValueError, match=text):
        make((3, 32, 32), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"got \(28, 28\); make the images \(28, 28, 1\)$"):
        make((28, 28), rngs=nnx.Rngs(0))


def test_a_norm_has_one_meaning_in_all_models():
    """A name or a function from channels to a norm."""
    vgg, resnet = (
        small_vgg5(norm="group"),
        small_resnet(lambda n: nnx.LayerNorm(n, rngs=nnx.Rngs(1))),
    )
    assert [layer.norm.num_groups for layer in vgg.layers[:-1]] == [4, 1, 2, 1]  # gcd(32, channels)
    assert isinstance(resnet.layer("stem").norm, nnx.LayerNorm)
    assert isinstance(resnet.layer("block_3").shortcut.layers[1], nnx.LayerNorm)
    batch = nnx.eval_shape(lambda: small_vgg5(norm="batch"))
    assert isinstance(batch.layer("conv_1").norm, nnx.BatchNorm)


def small_resnet(norm="group", **options):
    return pc.models.resnet18((8, 8, 3), 5, width=4, norm=norm, rngs=nnx.Rngs(0), **options)


class TestResNet18:
    @pytest.mark.parametrize("norm", ["batch", "group"])
    def test_has_as_many_parameters_as_the_original_with_its_stem_for_small_images(self, norm):
        """11,173,962: what the usual PyTorch ResNet-18 for CIFAR-10 has."""
        assert count(lambda: pc.models.resnet18(norm=norm, rngs=nnx.Rngs(0))) == 11_173_962

    def test_is_the_plain_network(self):
        network, x = small_resnet(), images(2, 8, 8, 3)
        stem, *blocks, output = network.layers
        expected = jax.nn.relu(stem.norm(stem.conv(x)))
        shapes = []
        for block in blocks:
            first, norm_1, _, second, norm_2 = block.module.layers
            branch = norm_2(second(jax.nn.relu(norm_1(first(expected)))))
            if block.shortcut is not None:
                conv, norm = block.shortcut.layers
                expected = norm(conv(expected))
            expected = jax.nn.relu(expected + branch)
            shapes.append(expected.shape[1:])
        assert shapes == [(8, 8, 4)] * 2 + [(4, 4, 8)] * 2 + [(2, 2, 16)] * 2 + [(1, 1, 32)] * 2
        expected = output.module.layers[1](expected.mean(axis=(1, 2)))
        np.testing.assert_allclose(network.predict(x), expected, **CLOSE)

    def test_each_block_is_one_node(self):
        network = small_resnet()
        assert network.names == ("stem", *(f"block_{n}" for n in range(1, 9)), "output")
        assert len(nnx.to_flat_state(nnx.state(network, pc.Activity))) == 10

    @pytest.mark.parametrize("norm", ["group", None])
    def test_inference_descends_for_each_example_as_if_it_were_alone(self, norm):
        network, x = small_resnet(norm), images(3, 8, 8, 3)
        y = jax.nn.one_hot(jnp.array([0, 2, 1]), 5)
        before = sum(energies_at_start(network, x, y).values())
        descent = pc.inference.GradientDescent(optax.sgd(1e-3), num_steps=4)
        result = network.infer(x, y, inference=descent)
        assert (result.energy < before).all()
        alone = network.infer(x[1:2], y[1:2], inference=descent)
        np.testing.assert_allclose(alone.energy[0], result.energy[1], rtol=1e-4)

    def test_without_a_norm_convolutions_have_biases(self):
        parameters = nnx.to_flat_state(nnx.state(small_resnet(None), nnx.Param))
        assert sum(path[-1] == "bias" for path, _ in parameters) == 1 + 16 + 3 + 1
        assert not any(path[-1] == "scale" for path, _ in parameters)

    def test_another_norm_is_refused(self):
        text = "resnet18 expected norm to be 'group', 'batch', None or a function that makes one"
        for wrong in ("layer", nnx.LayerNorm, nnx.LayerNorm(4, rngs=nnx.Rngs(0))):
            with pytest.raises(ValueError, match=text):
                small_resnet(wrong)


class TestConvDecoder:
    def test_each_layer_doubles_the_image(self):
        network = pc.models.conv_decoder(3, (8, 12, 2), widths=(5, 4), rngs=nnx.Rngs(0))
        assert network.names == ("latent", "hidden_1", "hidden_2", "output")
        network.init_activities(None, targets=jnp.ones((2, 8, 12, 2)))
        shapes = {name: value.shape[1:] for name, value in network.activities().items()}
        assert shapes == {
            "latent": (3,), "hidden_1": (2, 3, 5), "hidden_2": (4, 6, 4), "output": (8, 12, 2),
        }  # fmt: skip

    def test_is_the_same_layers_one_after_the_other(self):
        network = pc.models.conv_decoder(3, (4, 4, 1), widths=(2,), rngs=nnx.Rngs(0))
        code = 3 * jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)), jnp.float32)
        linear = network.layer("hidden_1").module.layers[0]
        hidden = jnp.clip(code @ linear.kernel[...] + linear.bias[None], -1, 1).reshape(2, 2, 2, 2)
        expected = jax.lax.conv_transpose(
            hidden, network.layer("output").conv.kernel[...], (2, 2), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        np.testing.assert_allclose(network.predict(code), expected, rtol=1e-5, atol=1e-6)

    def test_is_sampled_and_learns_its_prior(self):
        root = pc.PCRoot(3, learn_mean=True, energy=pc.energies.LearnedGaussian(3))
        network = pc.models.conv_decoder(3, (4, 4, 1), widths=(2,), prior=root, rngs=nnx.Rngs(0))
        assert network.sample(5, key=jax.random.key(0)).shape == (5, 4, 4, 1)

    @pytest.mark.parametrize(
        ("shape", "widths", "message"),
        [
            ((28, 28, 1), (8, 8, 8), "28 x 28 is no such size; give images of a multiple of 8"),
            ((28, 28, 1), (), "is no such size"),
            ((1, 28, 28), (8,), "channels last"),
        ],
    )
    def test_other_sizes_are_refused(self, shape, widths, message):
        with pytest.raises(ValueError, match=message):
            pc.models.conv_decoder(3, shape, widths=widths, rngs=nnx.Rngs(0))

    def test_what_is_no_size_is_refused(self):
        with pytest.raises(ValueError, match="conv_decoder expected latent of at least 1, got 0"):
            pc.models.conv_decoder(0, (4, 4, 1), widths=(2,), rngs=nnx.Rngs(0))
        with pytest.raises(
            TypeError, match=r"conv_decoder expected widths such as \(64, 32\), got 4"
        ):
            pc.models.conv_decoder(3, (4, 4, 1), widths=4, rngs=nnx.Rngs(0))


class TestSizes:
    @pytest.mark.parametrize(
        ("make", "count"), [(pc.models.vgg5, 4), (pc.models.vgg7, 6), (pc.models.vgg10, 8)]
    )
    def test_a_width_for_each_convolution(self, make, count):
        """Fewer made a smaller network of the same name."""
        for widths in ((3,) * (count - 1), (3,) * (count + 1)):
            with pytest.raises(ValueError, match=f"expected {count} widths, one for each conv"):
                make((32, 32, 3), 10, widths=widths, rngs=nnx.Rngs(0))
        with pytest.raises(TypeError, match=r"expected widths such as \(64, 64, .*, got 3"):
            make((32, 32, 3), 10, widths=3, rngs=nnx.Rngs(0))

    @pytest.mark.parametrize("make", [pc.models.vgg5, pc.models.resnet18])
    def test_images_and_classes_are_counts(self, make):
        options = {"rngs": nnx.Rngs(0)}
        with pytest.raises(TypeError, match="expected an int image_shape, got 32.0"):
            make((32.0, 32.0, 3), 10, **options)
        with pytest.raises(ValueError, match="expected num_classes of at least 1, got 0"):
            make((32, 32, 3), 0, **options)
        with pytest.raises(TypeError, match=r"expected image_shape such as \(32, 32, 3\), got 32"):
            make(32, 10, **options)

    def test_a_vgg_has_a_pool(self):
        with pytest.raises(
            ValueError, match="vgg5 expected pool to be 'max' or 'average', got None"
        ):
            pc.models.vgg5((16, 16, 3), widths=(2, 2, 2, 2), pool=None, rngs=nnx.Rngs(0))

    def test_an_activation_may_be_none(self):
        """Such a network is linear but for its pool of means: f(2x) - f(0) is twice f(x) - f(0)."""
        options = {"activation": None, "rngs": nnx.Rngs(0)}
        widths = (2, 2, 2, 2, 2, 2, 2, 2)
        networks = (
            pc.models.vgg10((32, 32, 1), 3, widths=widths, dense=4, pool="average", **options),
            pc.models.resnet18((8, 8, 1), 3, width=2, norm=None, **options),
        )
        for network, size in zip(networks, (32, 8), strict=True):
            x = jax.random.normal(jax.random.key(0), (1, size, size, 1))
            zero, one, two = (network.predict(k * x) for k in (0, 1, 2))
            np.testing.assert_allclose(two - zero, 2 * (one - zero), rtol=1e-3, atol=1e-5)
