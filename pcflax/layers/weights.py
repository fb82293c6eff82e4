"""Initial weights, drawn by a program that weights of many shapes share."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pcflax.typing import PRNGKey

# The standard deviation of a standard normal that is cut at two.
_CUT_AT_TWO = 0.87962566103423978


def lecun_normal(key: PRNGKey, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Draw weights of mean 0 and variance 1/fan_in from a normal that is cut at two standard deviations.

    To rounding the numbers of `nnx.initializers.lecun_normal()`, which compiles a program for each shape, for
    about a third of a second. The n-th number of a key does not depend on how many are drawn (as jax numbers
    them since 0.5), so that more are drawn than wanted, of one of a few counts.

    Args:
        key: randomness.
        shape: (..., in_features, out_features), of two axes at least.
        dtype: floating.

    >>> import jax
    >>> lecun_normal(jax.random.key(0), (3, 5)).shape
    (3, 5)
    """
    row = _draw(key, _at_least(math.prod(shape)), dtype)
    fan_in = math.prod(shape[:-1])
    deviation = np.sqrt(np.asarray(1 / fan_in, row.dtype)) / np.asarray(_CUT_AT_TWO, row.dtype)
    return _scaled(row, deviation, tuple(shape))


def zeros(key: PRNGKey, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Return zeros, of which `jnp.zeros` compiles a program for each shape.

    Args:
        key: of no use here.
        shape: of any number of axes.
        dtype: of any kind.

    >>> import jax
    >>> zeros(jax.random.key(0), (2,))
    Array([0., 0.], dtype=float32)
    """
    del key
    return jax.device_put(np.zeros(shape, dtype))


def _at_least(count: int) -> int:
    """Return a power of 4 up to a million, then whole millions."""
    million = 4**10
    if count > million:
        return -(-count // million) * million
    return next(4**power for power in range(6, 11) if 4**power >= count)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _draw(key: PRNGKey, count: int, dtype: Any) -> Array:
    return jax.random.truncated_normal(key, -2, 2, (count,), dtype)


@functools.partial(jax.jit, static_argnums=2)
def _scaled(row: Array, deviation: Any, shape: tuple[int, ...]) -> Array:
    return row[: math.prod(shape)].reshape(shape) * deviation
