"""Convolution whose derivatives on CPUs are sums of matrix products.

Inference and training run in loops, and there XLA on CPUs computes the gradients of a convolution, which
are convolutions with their axes in another order, without its fast kernels: 3.7 seconds for a 3 x 3 kernel
of 128 to 256 channels on 16 images of 16 x 16, where the products below take 0.1. The value itself stays
XLA's convolution, and so do derivatives on other devices.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

# Kernels of more places than this make too long a sum.
MOST_PLACES = 64


def convolve(
    lhs: Float[Array, " batch *space in"],
    rhs: Float[Array, " *kernel in out"],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    feature_group_count: int = 1,
    **options: Any,
) -> Float[Array, " batch *new out"]:
    """Compute `jax.lax.conv_general_dilated`, channels last, for the `conv_general_dilated` of `nnx.Conv`."""
    strides = tuple(window_strides)
    dilation = tuple(rhs_dilation or (1,) * len(strides))
    kernel = rhs.shape[:-2]
    if isinstance(padding, str):
        reach = [d * (size - 1) + 1 for size, d in zip(kernel, dilation, strict=True)]
        padding = jax.lax.padtype_to_pads(lhs.shape[1:-1], reach, strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    if (
        jax.default_backend() != "cpu"
        or feature_group_count != 1
        or math.prod(kernel) > MOST_PLACES
        or any(step != 1 for step in lhs_dilation or ())
        or min(itertools.chain(*pads), default=0) < 0
        or options.get("precision") is not None
        or options.get("preferred_element_type") is not None
    ):
        return jax.lax.conv_general_dilated(
            lhs,
            rhs,
            strides,
            pads,
            lhs_dilation=lhs_dilation,
            rhs_dilation=dilation,
            feature_group_count=feature_group_count,
            **options,
        )
    return _convolve(lhs, rhs, strides, pads, dilation)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def _convolve(lhs: Array, rhs: Array, strides: Any, pads: Any, dilation: Any) -> Array:
    last = (0, lhs.ndim - 1, *range(1, lhs.ndim - 1))
    kernel = (rhs.ndim - 1, rhs.ndim - 2, *range(rhs.ndim - 2))
    numbers = jax.lax.ConvDimensionNumbers(last, kernel, last)
    return jax.lax.conv_general_dilated(
        lhs, rhs, strides, pads, rhs_dilation=dilation, dimension_numbers=numbers
    )


@functools.partial(_convolve.defjvp, symbolic_zeros=True)
def _derivative(strides, pads, dilation, primals, tangents):
    lhs, rhs = primals
    value = _convolve(lhs, rhs, strides, pads, dilation)
    moved = [
        as_products(*pair, strides, pads, dilation)
        for pair, tangent in (((tangents[0], rhs), tangents[0]), ((lhs, tangents[1]), tangents[1]))
        if not isinstance(tangent, SymbolicZero)
    ]
    return value, sum(moved) if moved else jnp.zeros_like(value)


def as_products(
    lhs: Float[Array, " batch *space in"],
    rhs: Float[Array, " *kernel in out"],
    strides: Sequence[int],
    pads: Sequence[tuple[int, int]],
    dilation: Sequence[int],
) -> Float[Array, " batch *new out"]:
    """Return the convolution as a sum over its kernel's places: what stands there times the weights there.

    >>> import jax.numpy as jnp
    >>> as_products(jnp.ones((1, 4, 1)), jnp.ones((3, 1, 1)), (1,), ((1, 1),), (1,)).ravel()
    Array([2., 3., 3., 2.], dtype=float32)
    """
    padded = jnp.pad(lhs, ((0, 0), *pads, (0, 0)))
    kernel = rhs.shape[:-2]
    sizes = [
        (length - step * (size - 1) - 1) // stride + 1
        for length, size, stride, step in zip(
            padded.shape[1:-1], kernel, strides, dilation, strict=True
        )
    ]
    total = None
    for place in itertools.product(*map(range, kernel)):
        begin = [index * step for index, step in zip(place, dilation, strict=True)]
        end = [
            start + (size - 1) * stride + 1
            for start, size, stride in zip(begin, sizes, strides, strict=True)
        ]
        window = jax.lax.slice(
            padded, (0, *begin, 0), (padded.shape[0], *end, padded.shape[-1]), (1, *strides, 1)
        )
        product = window @ rhs[place]
        total = product if total is None else total + product
    return total  # type: ignore[return-value]
