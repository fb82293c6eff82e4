"""One batch measured: what each metric gives of what was read."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from pcflax.typing import PyTree

from .metrics import MetricFunctions


def measure(
    values: PyTree, means: PyTree, truth: PyTree, metrics: MetricFunctions
) -> dict[str, Float[Array, " batch"]]:
    """Return what each metric gives, by name, of values, or of the means that these stand for."""
    return {
        name: metric(means if getattr(metric, "reads_mean", False) else values, truth)
        for name, metric in metrics
    }


def at_least_32_bits(values: Array) -> Array:
    """Return the values as they are, or in 32 bits where they have less: sums of 16 bits go wrong."""
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))
