"""The dtype and the rank that arrays share, said aloud.

Under `jax_numpy_dtype_promotion="strict"` and `jax_numpy_rank_promotion="raise"` jax finds neither itself.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


def common_dtype(*values: Any) -> jnp.dtype:
    """Return the dtype of arrays, dtypes and numbers together, be promotion strict or not."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*values)


def promoted(*values: Any) -> tuple[Array, ...]:
    """Return arrays and numbers as arrays of their common dtype."""
    kinds = {v.dtype if isinstance(v, jax.Array) and not v.weak_type else None for v in values}
    if len(kinds) == 1 and None not in kinds:  # as nearly always
        return values
    dtype = common_dtype(*values)
    return tuple(jnp.asarray(value, dtype) for value in values)


def aligned(*values: Any) -> tuple[Array, ...]:
    """Return arrays in their common dtype and rank: all but scalars get leading axes of 1."""
    values = promoted(*values)
    rank = max(jnp.ndim(value) for value in values)
    return tuple(
        jnp.expand_dims(value, range(rank - value.ndim)) if 0 < value.ndim < rank else value
        for value in values
    )


def product(left: Any, right: Any) -> Array:
    """Return left * right in their common dtype and rank."""
    return jnp.multiply(*aligned(left, right))


def total(values: Iterable[Any]) -> Any:
    """Return the sum, one after another, of two dtypes in their common one; 0 of none."""
    first, *others = list(values) or [0]
    return functools.reduce(lambda found, value: jnp.add(*promoted(found, value)), others, first)
