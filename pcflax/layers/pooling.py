"""Pooling for layers of their own: `max_pool` and `average_pool`, windows that do not overlap.

Pooling has no energy: it belongs to the layer whose features it pools (see `conv.py`).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


def max_pool(
    features: Float[Array, " batch *space features"], window: tuple[int, ...]
) -> Float[Array, " batch *pooled features"]:
    """The largest value in each window, axis by axis; what does not fill a window is left out.

    The values are those of `nnx.max_pool(features, window, strides=window)`. The gradient goes to the
    largest value, as there, and only where several are equal it is shared among them, where
    `nnx.max_pool` gives all of it to the first. Inference takes this gradient at every step, and as
    elementwise maxima it costs a fifth to a tenth of the `select_and_scatter` of `nnx.max_pool` on a
    CPU: 80 ms against 360 for a batch of 128 x 32 x 32 x 128 and a window of 2 x 2 on two cores.

    >>> import jax.numpy as jnp
    >>> max_pool(jnp.arange(5.0).reshape(1, 5, 1), (2,)).ravel()
    Array([1., 3.], dtype=float32)
    """
    for axis, size in enumerate(window, start=1):
        end = features.shape[axis] // size * size
        parts = [
            jax.lax.slice_in_dim(features, offset, end, size, axis=axis) for offset in range(size)
        ]
        features = functools.reduce(jnp.maximum, parts)
    return features


def average_pool(
    features: Float[Array, " batch *space features"], window: tuple[int, ...]
) -> Float[Array, " batch *pooled features"]:
    """The mean of each window; what does not fill a window is left out.

    >>> import jax.numpy as jnp
    >>> average_pool(jnp.arange(5.0).reshape(1, 5, 1), (2,)).ravel()
    Array([0.5, 2.5], dtype=float32)
    """
    return nnx.avg_pool(features, window, strides=window)
