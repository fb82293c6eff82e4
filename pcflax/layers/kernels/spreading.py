"""Transposed convolution on CPUs as a sum of matrix products: each place below is spread by the kernel.

    out[i * stride + low - k * dilation] += below[i] @ kernel[k]    for places i below, k of the kernel

XLA computes it as a convolution of an input with zeros put between its values, and on CPUs that has no fast
kernel, nor have its derivatives. The products, and their derivatives, skip the zeros.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pcflax.dtypes import aligned

from .convolution import MOST_PLACES


def spread(
    conv: nnx.ConvTranspose, features: Float[Array, " batch *space in"]
) -> Float[Array, " batch *new out"]:
    """Return `conv(features)`: on CPUs by products, else, and for rare options, as flax computes it."""
    if (
        jax.default_backend() != "cpu"
        or conv.mask is not None
        or conv.transpose_kernel
        or conv.precision is not None
        or conv.preferred_element_type is not None
        or (isinstance(conv.padding, str) and conv.padding not in ("SAME", "VALID"))
        or math.prod(conv.kernel_size) > MOST_PLACES
    ):
        return conv(features)
    bias = None if conv.bias is None else conv.bias[...]
    features, kernel, bias = conv.promote_dtype(
        (features, conv.kernel[...], bias), dtype=conv.dtype
    )
    strides, dilation = (
        (value or 1,) * len(conv.kernel_size) if value is None or isinstance(value, int) else value
        for value in (conv.strides, conv.kernel_dilation)
    )
    reach = [d * (size - 1) + 1 for d, size in zip(dilation, conv.kernel_size, strict=True)]
    pads = _padding(conv.padding, reach, strides)
    found = spread_products(features, kernel, strides, pads, dilation)
    return found if bias is None else jnp.add(*aligned(found, bias))


def _padding(
    padding: str | int | Sequence[int | tuple[int, int]],
    reach: Sequence[int],
    strides: Sequence[int],
) -> list[tuple[int, int]]:
    """Return zeros before and behind along each axis, as `jax.lax.conv_transpose` counts them."""
    if isinstance(padding, int):
        return [(padding, padding)] * len(reach)
    if not isinstance(padding, str):
        return [(pad, pad) if isinstance(pad, int) else pad for pad in padding]
    pads = []
    for size, stride in zip(reach, strides, strict=True):
        total = size + stride - 2 + (max(size - stride, 0) if padding == "VALID" else 0)
        whole = padding == "VALID" or stride > size - 1
        low = size - 1 if whole else (total + 1) // 2
        pads.append((low, total - low))
    return pads


def spread_products(
    lhs: Float[Array, " batch *space in"],
    rhs: Float[Array, " *kernel in out"],
    strides: Sequence[int],
    pads: Sequence[tuple[int, int]],
    dilation: Sequence[int],
) -> Float[Array, " batch *new out"]:
    """Compute `jax.lax.conv_transpose` with explicit padding, as a sum over the places of the kernel.

    >>> import jax.numpy as jnp
    >>> spread_products(jnp.ones((1, 2, 1)), jnp.ones((3, 1, 1)), (2,), ((2, 2),), (1,)).ravel()
    Array([1., 1., 2., 1., 1.], dtype=float32)
    """
    kernel, space = rhs.shape[:-2], lhs.shape[1:-1]
    total = None
    for place in itertools.product(*map(range, kernel)):
        product = lhs @ rhs[place]
        moves = []  # zeros before, behind (fewer than none cuts off) and between the values
        for at, size, places, stride, (low, high), step in zip(
            place, kernel, space, strides, pads, dilation, strict=True
        ):
            length = (places - 1) * stride + 1
            new = length + low + high - step * (size - 1)
            first = low - at * step
            moves.append((first, new - length - first, stride - 1))
        zero = jax.numpy.zeros((), product.dtype)
        moved = jax.lax.pad(product, zero, [(0, 0, 0), *moves, (0, 0, 0)])
        total = moved if total is None else total + moved
    return total  # type: ignore[return-value]
