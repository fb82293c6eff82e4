"""Which metrics are measured, and one batch measured: what each gives of what was read."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pcflax.data import Dataset
from pcflax.dtypes import common_dtype
from pcflax.layers import Clamp
from pcflax.networks import SplitNetwork
from pcflax.typing import MetricFunction, PyTree

from .metrics import MetricFunctions, default_metrics
from .reading import AbstractReading


def measure(
    values: PyTree, means: PyTree, truth: PyTree, metrics: MetricFunctions
) -> dict[str, Float[Array, " batch"]]:
    """Return what each metric gives, by name, of values, or of the means that these stand for.

    Of a truth that is a `Clamp`, (batch, time, *features), of which (batch, time) is known, it is the mean of
    what it gives at each step that is; where the mask is of elements, of what it gives at each of these.
    """
    if not isinstance(truth, Clamp):
        return {
            name: metric(means if getattr(metric, "reads_mean", False) else values, truth)
            for name, metric in metrics
        }
    known: Array = truth.mask  # type: ignore
    if known.shape == truth.value.shape:  # an element is a step of one feature
        values, means, truth = jax.tree.map(
            lambda leaf: leaf.reshape(len(leaf), -1, 1), (values, means, Clamp(truth.value))
        )
        known = known.reshape(len(known), -1)
    count = jnp.maximum(jnp.sum(known, axis=1), 1)
    found = {}
    for name, metric in metrics:
        seen = means if getattr(metric, "reads_mean", False) else values
        each = jax.vmap(metric, in_axes=1, out_axes=1)(seen, truth.value)
        total = jnp.sum(jnp.where(known, at_least_32_bits(each), 0), axis=1)
        found[name] = total / count.astype(total.dtype)
    return found


def metrics_for(
    given: Mapping[str, MetricFunction] | None,
    reads: AbstractReading,
    network: SplitNetwork,
    data: Dataset,
) -> MetricFunctions:
    """Return the metrics that were given, or those that are usual for what is read of such data."""
    if given is not None:
        return tuple(given.items())
    role = reads.role(network)
    sequences = role == "targets" and data.has_sequences
    return tuple(default_metrics(data.classes_of(role), sequences=sequences).items())


def at_least_32_bits(values: Array) -> Array:
    """Return the values as they are, or in 32 bits where they have less: sums of 16 bits go wrong."""
    return values.astype(common_dtype(values.dtype, jnp.float32))
