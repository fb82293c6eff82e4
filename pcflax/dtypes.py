"""The dtype that arrays share, said aloud, since strict promotion (`jax_numpy_dtype_promotion`) has none."""

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


def product(left: Any, right: Any) -> Array:
    """Return left * right in their common dtype."""
    return jnp.multiply(*promoted(left, right))


def total(values: Iterable[Any]) -> Any:
    """Return the sum, one after another, of two dtypes in their common one; 0 of none."""
    first, *others = list(values) or [0]
    return functools.reduce(lambda found, value: jnp.add(*promoted(found, value)), others, first)
