"""Which metrics are measured, and one batch measured: what each gives of what was read."""

from __future__ import annotations

import hashlib
import types
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from pcflax.data import Dataset
from pcflax.dtypes import common_dtype
from pcflax.layers import Clamp
from pcflax.networks import SplitNetwork
from pcflax.settings import Argument
from pcflax.typing import MetricFunction, PyTree

from .metrics import AtNode, MetricFunctions, OfMean, default_metrics
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
        return _AsTheyAre(given.items())
    role = reads.role(network)
    sequences = role == "targets" and data.has_sequences
    return _AsTheyAre(default_metrics(data.classes_of(role), sequences=sequences).items())


class _AsTheyAre(tuple):
    """Metrics by name, hashed by what each holds now: one that has changed since is another program."""

    def __init__(self, metrics: Iterable[tuple[str, MetricFunction]]):
        del metrics  # which `tuple` has taken
        held = Argument([(name, _held(metric)) for name, metric in self])
        leaves, structure = jax.tree.flatten(held)
        self._key = structure, tuple(map(_digest, leaves))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _AsTheyAre) and self._key == other._key

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self._key)


def _held(metric: Any) -> Any:
    """Return what a metric is compared by: an object of a plain class by its attributes, if it can be.

    `Argument` would look at them too, but not at those of an object that one of them is.
    """
    if isinstance(metric, OfMean):
        return OfMean, metric.function, _held(metric.metric)
    if isinstance(metric, AtNode):
        return AtNode, metric.node, _held(metric.metric)
    kind = type(metric)
    ours = isinstance(kind.__call__, types.FunctionType) and not isinstance(metric, nnx.Module)
    slots = any(vars(base).get("__slots__") for base in kind.__mro__)
    if not ours or slots or kind.__hash__ is not object.__hash__:
        return metric
    held = kind, dict(vars(metric))
    try:
        jax.tree.flatten(Argument(held))
    except TypeError:  # it holds what has no value
        return metric
    return held


def _digest(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    numbers = np.asarray(leaf)
    return numbers.shape, numbers.dtype, hashlib.sha256(numbers.tobytes()).digest()


def at_least_32_bits(values: Array) -> Array:
    """Return the values as they are, or in 32 bits where they have less: sums of 16 bits go wrong."""
    return values.astype(common_dtype(values.dtype, jnp.float32))
