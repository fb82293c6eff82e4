"""One batch measured: metrics and loss of what was predicted, for the outputs that have targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from pcflax.networks import AbstractPCNetwork
from pcflax.typing import PyTree

from .metrics import MetricFunctions


def measure(
    network: AbstractPCNetwork, prediction: PyTree, targets: PyTree, metrics: MetricFunctions
) -> dict[str, Float[Array, " batch"]]:
    """Return what each metric gives, by name; an output without targets is not looked at."""
    prediction, targets = _paired(prediction, targets)
    means = _by_output(lambda layer, prediction: layer.energy.mean(prediction), network, prediction)
    return {
        name: metric(means if getattr(metric, "reads_mean", False) else prediction, targets)
        for name, metric in metrics
    }


def at_least_32_bits(values: Array) -> Array:
    """Return the values as they are, or in 32 bits where they have less: sums of 16 bits go wrong."""
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def _paired(prediction: PyTree, targets: PyTree) -> tuple[PyTree, PyTree]:
    """Leave out of predictions by name what has no targets; take the only target out of its dictionary."""
    if not isinstance(targets, Mapping):
        return prediction, targets
    if isinstance(prediction, Mapping):
        return {name: prediction[name] for name in targets}, dict(targets)
    return prediction, next(iter(targets.values()))


def _by_output(function: Callable, network: AbstractPCNetwork, *trees: PyTree) -> PyTree:
    """Return function(layer, *values) of the output, or of each output by name."""
    if not isinstance(trees[0], Mapping):
        return function(network.output_layer, *trees)
    found = {}
    for name in trees[0]:
        layer = network.layer(name).top_node_layer()
        found[name] = function(layer, *(tree[name] for tree in trees))
    return found
