"""Evaluation and prediction: a data set through a network that does not change.

Every example counts once, at any batch size: the last batch is filled up and its filling does not count.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from pcflax.checks import expect_count
from pcflax.data import Dataset
from pcflax.data.decoder import Reader
from pcflax.errors import NonFiniteEnergyError
from pcflax.inference import Status
from pcflax.layers import Clamp, Evidence
from pcflax.networks import SplitNetwork
from pcflax.sharding.inside import split_examples, whole
from pcflax.sharding.processes import settled
from pcflax.typing import PRNGKey, PyTree

from .checks import check_batch_size
from .measure import at_least_32_bits, measure
from .memory import memory_told
from .metrics import MetricFunctions, of_means
from .placement import constants_on, filled_up, items_on, own_rows
from .reading import AbstractReading, Feedforward, in_evaluation
from .staging import call_capacity


def evaluate(
    network: SplitNetwork,
    data: Dataset,
    metrics: MetricFunctions,
    reads: AbstractReading,
    key: PRNGKey,
) -> dict[str, float]:
    """Return means over every example: the metrics (`OfMean` applied to theirs), then the energy.

    A metric is the mean over those examples of which the data say what was read. `converged` is the share
    that reached the reading's tolerance, if it has one.

    Raises:
        NonFiniteEnergyError: where a reading's inference ended at numbers that are not finite.
    """
    mesh = network.mesh
    constants = constants_on(mesh, data)
    totals: dict[str, float] = {}
    rows, examples, number = own_rows(mesh, data), 0, 0
    for items, valid in data.evaluation_items(call_capacity(data), rows):
        examples += int(valid.sum())
        items = items_on(mesh, items, data.batch_size, rows)
        valid = items_on(mesh, valid, data.batch_size)
        with memory_told("evaluation", lambda: network, data), network.on_mesh():
            measured = measure_batches(
                network,
                constants,
                items,
                valid,
                number,
                reads,
                key,
                reader=data.reader,
                metrics=metrics,
            )
            sums = jax.device_get(settled(measured))
        number += len(valid)
        for name, column in sums.items():
            # in float64 on the host: the same at every batch size, but for rounding
            totals[name] = totals.get(name, 0.0) + float(np.sum(column, dtype=np.float64))
    failed, known = totals.pop("failed", 0.0), totals.pop("known", examples)
    if failed:
        raise NonFiniteEnergyError(
            f"inference ended at numbers that are not finite in {failed:.0f} of {examples} examples of "
            f"'{data.name}'; lower the step size of {type(reads).__name__}'s inference"
        )
    counts = {name: known for name, _ in metrics}
    means = {
        name: value / counts.get(name, examples) if counts.get(name, 1) else math.nan
        for name, value in totals.items()
    }
    means = of_means(means, metrics)
    return {**{name: means[name] for name, _ in metrics if name in means}, **means}


def predict(
    network: SplitNetwork, inputs: Any, batch_size: int, reads: AbstractReading, key: PRNGKey
) -> Any:
    """Return what is read of an array (examples, *in), evidence, or a data set in stored order.

    Several nodes come as a dictionary by name.

    Raises:
        NonFiniteEnergyError: where a reading's inference ended at numbers that are not finite.
    """
    rows = []
    for number, (batch, counts) in enumerate(_batches(network, inputs, batch_size)):
        with network.on_mesh():
            found = predict_batch(network, batch, number, reads, key)
        rows.append(jax.tree.map(lambda leaf, counts=counts: np.asarray(leaf)[counts], found))
        _expect_finite(rows[-1][1], reads)
    return jax.tree.map(lambda *parts: np.concatenate(parts), *(row for row, _ in rows))


def _batches(network: SplitNetwork, inputs: Any, batch_size: int) -> Iterator[tuple[Evidence, Any]]:
    """Yield the batches of what is asked, and which rows of each count."""
    mesh = network.mesh
    if isinstance(inputs, Dataset):
        check_batch_size(mesh, inputs, "data set")
        constants = constants_on(mesh, inputs)
        read = jax.jit(
            lambda item: inputs.reader(constants, jax.tree.map(lambda leaf: leaf[0], item))
        )
        own = own_rows(mesh, inputs)
        for items, valid in inputs.evaluation_items(1, own):
            items = items_on(mesh, items, inputs.batch_size, own)
            with network.on_mesh():
                batch = read(items)
            yield batch, valid[0]
        return
    batch_size = expect_count("predict", "batch_size", batch_size, least=1)
    evidence = inputs if isinstance(inputs, Evidence) else Evidence(inputs)
    evidence = jax.tree.map(np.asarray, evidence)
    total = network.bind().known(evidence).batch_size
    evidence = _with_whole_masks(evidence)
    for begin in range(0, total, batch_size):
        chunk = jax.tree.map(lambda a, rows=slice(begin, begin + batch_size): a[rows], evidence)
        chunk, count = filled_up(mesh, chunk)
        yield chunk, slice(count)


def _with_whole_masks(evidence: Evidence) -> Evidence:
    """Return the evidence with each mask at its value's shape, so that rows of it can be cut."""

    def whole_mask(leaf: Any) -> Any:
        masked = isinstance(leaf, Clamp) and leaf.mask is not None
        return leaf._replace(mask=np.asarray(leaf.held())) if masked else leaf

    return jax.tree.map(whole_mask, evidence, is_leaf=lambda node: isinstance(node, Clamp))


def _expect_finite(status: np.ndarray | None, reads: AbstractReading) -> None:
    """Refuse answers that are not numbers: the largest of them would be class 0."""
    if status is None:
        return
    failed = int(np.sum(status == Status.NOT_FINITE))
    if failed:
        raise NonFiniteEnergyError(
            f"inference ended at numbers that are not finite in {failed} of a batch's {len(status)} "
            f"examples; lower the step size of {type(reads).__name__}'s inference"
        )


@functools.partial(jax.jit, static_argnames=("reader", "metrics"))
def measure_batches(
    network: SplitNetwork,
    constants: PyTree,
    items: PyTree,
    valid: Bool[Array, " count batch"],
    number: Int[Array, ""] | int,
    reads: AbstractReading,
    key: PRNGKey,
    *,
    reader: Reader,
    metrics: MetricFunctions,
) -> dict[str, Array]:
    """Return {name: (count,)}: for each batch the sum over its valid examples of energy and metrics.

    The energy is as in `Trainer.evaluate`; `known` counts the examples that metrics look at, and `failed`
    those whose inference is not finite.
    """
    network = in_evaluation(network)

    def measure_one(number, item_and_valid):
        item, valid = item_and_valid
        batch = split_examples(reader(constants, item))
        answer = reads.answer(network, batch, key=jax.random.fold_in(key, number))
        known = valid if answer.known is None else valid & answer.known
        values = {"energy": (answer.energy, valid)}
        if answer.truth is not None:
            measured = measure(answer.values, answer.means, answer.truth, metrics)
            values |= {name: (value, known) for name, value in measured.items()}
        if answer.known is not None:
            values["known"] = (known, valid)
        if answer.status is not None:
            values["failed"] = (answer.status == Status.NOT_FINITE, valid)
            if reads.stops_at_tolerance:
                values["converged"] = (answer.status == Status.CONVERGED, valid)
        return number + 1, {
            name: jnp.sum(jnp.where(counts, at_least_32_bits(value), 0))
            for name, (value, counts) in values.items()
        }

    return whole(jax.lax.scan(measure_one, jnp.int32(number), (items, valid))[1])


@jax.jit
def predict_batch(
    network: SplitNetwork,
    evidence: Evidence,
    number: Int[Array, ""] | int,
    reads: AbstractReading,
    key: PRNGKey,
) -> tuple[PyTree, Array | None]:
    """Return what is read of one batch, and its status if there was inference."""
    network, evidence = in_evaluation(network), split_examples(evidence)
    if isinstance(reads, Feedforward):  # of all outputs, with targets or without
        bound = network.bind()
        return whole(reads.prediction(bound, bound.known(evidence))), None
    answer = reads.answer(network, evidence, key=jax.random.fold_in(key, number))
    return whole((answer.values, answer.status))
