"""Evaluation and prediction: a data set through a network that does not change.

Every example counts once, at any batch size: the last batch is filled up and its filling does not count.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from pcflax.checks import expect_count
from pcflax.data import Dataset
from pcflax.data.base import Reader
from pcflax.networks import SplitNetwork
from pcflax.typing import PyTree

from .measure import at_least_32_bits, measure
from .metrics import MetricFunctions, of_means
from .staging import call_capacity


def evaluate(network: SplitNetwork, data: Dataset, metrics: MetricFunctions) -> dict[str, float]:
    """Return means over every example: the metrics (`OfMean` applied to theirs), then the energy."""
    constants = data.constants()
    totals: dict[str, float] = {}
    for items, valid in data.evaluation_items(call_capacity(data)):
        sums = measure_batches(
            network, constants, items, valid, reader=data.reader, metrics=metrics
        )
        for name, column in jax.device_get(sums).items():
            # in float64 on the host: the same at every batch size, but for rounding
            totals[name] = totals.get(name, 0.0) + float(np.sum(column, dtype=np.float64))
    means = {name: value / data.num_examples for name, value in totals.items()}
    means = of_means(means, metrics)
    return {**{name: means[name] for name, _ in metrics if name in means}, **means}


def predict(network: SplitNetwork, inputs: Any, batch_size: int) -> Any:
    """Return feedforward predictions of an array (examples, *in), or of a data set in stored order.

    Of a network with several outputs, a dictionary by name; several inputs are one, too.
    """
    rows = []
    if isinstance(inputs, Dataset):
        read, constants = jax.jit(inputs.reader), inputs.constants()
        for items, valid in inputs.evaluation_items(1):
            batch = read(constants, jax.tree.map(lambda leaf: leaf[0], items))
            found = predict_batch(network, batch.inputs, len(valid[0]))
            rows.append(jax.tree.map(lambda p, counts=valid[0]: np.asarray(p)[counts], found))
        return jax.tree.map(lambda *parts: np.concatenate(parts), *rows)
    batch_size = expect_count("predict", "batch_size", batch_size, least=1)
    several = isinstance(inputs, Mapping)
    inputs = jax.tree.map(np.asarray, dict(inputs)) if several else np.asarray(inputs)
    total = network.bind().check_batch(inputs, None)
    for begin in range(0, total, batch_size):
        chunk = jax.tree.map(lambda a, rows=slice(begin, begin + batch_size): a[rows], inputs)
        size = min(batch_size, total - begin)
        rows.append(jax.tree.map(np.asarray, predict_batch(network, chunk, size)))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *rows)


@functools.partial(jax.jit, static_argnames=("reader", "metrics"))
def measure_batches(
    network: SplitNetwork,
    constants: PyTree,
    items: PyTree,
    valid: Bool[Array, " count batch"],
    *,
    reader: Reader,
    metrics: MetricFunctions,
) -> dict[str, Array]:
    """Return {name: (count,)}: for each batch the sum over its valid examples of energy and metrics.

    The energy is as in `Trainer.evaluate`.
    """

    def measure_one(_, item_and_valid):
        item, counts = item_and_valid
        batch = reader(constants, item)
        bound = network.bind()
        bound.eval()  # dropout, say, is of training only
        known = bound.known(batch)
        prediction = bound.predict(batch.inputs, batch_size=counts.shape[0], clamps=known.clamps)
        bound.set_activities(bound.start(known))
        values = {"energy": bound.energy(batch.inputs)}
        if batch.targets is not None:
            values |= measure(bound, prediction, batch.targets, metrics)
        return None, {
            name: jnp.sum(jnp.where(counts, at_least_32_bits(value), 0))
            for name, value in values.items()
        }

    return jax.lax.scan(measure_one, None, (items, valid))[1]


@functools.partial(jax.jit, static_argnames="batch_size")
def predict_batch(network: SplitNetwork, inputs: PyTree, batch_size: int) -> PyTree:
    """Return the feedforward prediction of one batch; without inputs the prior's, for every example."""
    bound = network.bind()
    bound.eval()
    return bound.predict(inputs, batch_size=batch_size)
