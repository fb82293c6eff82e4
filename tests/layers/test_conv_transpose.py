"""The transposed convolution: its equation, its sizes, its refusals.

Oracles: `jax.lax.conv_transpose`, and a sum over the kernel's taps in NumPy.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pcflax as pc

LAYOUT = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32 sums in another order


def below(*space, batch=2, channels=4):
    x = np.random.default_rng(0).normal(size=(batch, *space, channels))
    return jnp.asarray(x, jnp.float32)


def make(kernel_size=3, **options):
    layer = pc.PCConvTranspose(4, 6, kernel_size, rngs=nnx.Rngs(0), **options)
    layer.conv.bias.set_value(jnp.linspace(-1.0, 2.0, 6))
    return layer


@pytest.mark.parametrize(
    ("kernel_size", "space"), [((3,), (5,)), (3, (5, 4)), ((3, 2, 3), (2, 3, 4))]
)
@pytest.mark.parametrize("batch", [1, 2])
def test_in_each_dimension(kernel_size, space, batch):
    layer, x = make(kernel_size, strides=2, activation=jnp.tanh), below(*space, batch=batch)
    kernel = layer.conv.kernel[...]
    expected = jax.lax.conv_transpose(
        x, kernel, (2,) * len(space), "SAME", dimension_numbers=LAYOUT[len(space)]
    )
    prediction = layer.predict(x)
    assert prediction.shape == (batch, *(2 * size for size in space), 6)
    np.testing.assert_allclose(
        prediction,
        jnp.tanh(expected + jnp.broadcast_to(layer.conv.bias[...], expected.shape)),
        **CLOSE,
    )


def test_each_value_below_is_spread_by_the_kernel():
    """Without lax: the place i below adds kernel[k] at i * stride + k, the kernel read from its end."""
    layer, x = make((3,), strides=2, padding="VALID"), below(5)
    kernel = np.asarray(layer.conv.kernel[...])
    expected = np.zeros((2, 5 * 2 + 1, 6)) + np.asarray(layer.conv.bias[...])
    for i in range(5):
        for k in range(3):
            expected[:, 2 * i + k] += np.asarray(x)[:, i] @ kernel[2 - k]
    np.testing.assert_allclose(layer.predict(x), expected, **CLOSE)


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "padding"),
    [(3, 1, 1, "VALID"), (2, 3, 1, "VALID"), (3, 2, 2, "VALID"), (3, 3, 2, "SAME")],
)
def test_sizes_are_those_of_the_docstring(kernel, stride, dilation, padding):
    layer = make((kernel,), strides=stride, dilation=dilation, padding=padding)
    grown = max(dilation * (kernel - 1) + 1 - stride, 0) if padding == "VALID" else 0
    assert layer.predict(below(5)).shape == (2, 5 * stride + grown, 6)


def test_norm_and_skip():
    norm = nnx.LayerNorm(4, rngs=nnx.Rngs(1))
    norm.bias.set_value(jnp.arange(4.0))
    layer = pc.PCConvTranspose(4, 4, 3, norm=norm, activation=jnp.tanh, skip=True, rngs=nnx.Rngs(0))
    x = below(3, 5)
    np.testing.assert_allclose(layer.predict(x), x + jnp.tanh(norm(layer.conv(x))), **CLOSE)


def test_refusals():
    with pytest.raises(
        ValueError, match=r"\(batch, height, width, 4\), channels last, got .*in_features=3"
    ):
        make().predict(jnp.zeros((2, 5, 5, 3)))
    with pytest.raises(
        ValueError, match=r"expected an input of shape \(batch, height, width, 4\), got"
    ):
        make().predict(jnp.zeros((2, 5, 4)))
    with pytest.raises(
        ValueError, match="expected strides to be an int of at least 1, or 2 of them"
    ):
        make(strides=(2,))
    text = r"PCConvTranspose expected no pool and strides of 1 with a skip.*strides=\(2, 2\); use"
    with pytest.raises(ValueError, match=text + r" pc\.PCResidual"):
        pc.PCConvTranspose(4, 4, 3, strides=2, skip=True, rngs=nnx.Rngs(0))

    with pytest.raises(TypeError, match="'feature_group_count', got groups=2; leave groups out"):
        make(groups=2)
    with pytest.raises(ValueError, match="one of SAME, VALID, CIRCULAR, an int.*'SAME_LOWER'"):
        make(strides=2, padding="SAME_LOWER")
    make(padding="SAME_LOWER")


@pytest.mark.parametrize("transpose_kernel", [False, True])
def test_predictions_have_the_size_of_what_is_below(transpose_kernel):
    """A transposed kernel is stored as (*kernel_size, out, in): the channels below are its last axis."""
    options = {"transpose_kernel": transpose_kernel, "use_bias": False, "rngs": nnx.Rngs(0)}
    plain = pc.PCConvTranspose(4, 64, 4, **options)
    scaled = pc.PCConvTranspose(
        4, 64, 4, strides=2, parameterization=pc.parameterizations.NTK(), **options
    )
    assert plain.fan_in == 4 * 16
    assert scaled.fan_in == 4 * 16 / 4
    x = jax.random.normal(jax.random.key(0), (4, 24, 24, 4))
    for layer in (plain, scaled):
        inner = layer.predict(x)[:, 4:-4, 4:-4]  # where the whole kernel meets values
        # 4,000 weights decide: the standard error is about 3 %
        assert np.mean(np.square(inner)) == pytest.approx(1, rel=0.12)
