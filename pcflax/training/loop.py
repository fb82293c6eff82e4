"""The compiled loop: many batches in one call, on donated state.

For each batch: read it, fold its key from (seed, step), let the learning rule update the network, and
write its metrics into a row of a buffer. The number of batches is a runtime value, so one program
serves every length of call, and neither the length nor an interruption changes a number. A step whose
energy is not finite is not applied and ends the call.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Int

from pcflax.data import Dataset
from pcflax.data.base import Reader
from pcflax.layers import Evidence
from pcflax.learning import AbstractLearning
from pcflax.networks import SplitNetwork, after_batch
from pcflax.typing import Activities, Batch, MetricFunction, PRNGKey, PyTree

MetricFunctions = tuple[tuple[str, MetricFunction], ...]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["network", "optimizer_state", "step", "activities"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step of learning changes.

    Attributes:
        network: parameters and other state.
        optimizer_state: optax's.
        step: batches learned from so far, int32.
        activities: the last batch's inferred activities by layer name; empty where nobody asked.
    """

    network: SplitNetwork
    optimizer_state: PyTree
    step: Int[Array, ""]
    activities: Activities


class Recipe(NamedTuple):
    """What stays fixed during a run; hashable, so that a compiled loop can be found again.

    Attributes:
        learning: the rule.
        optimizer: optax's transformation of the rule's gradients.
        metrics: (name, function) of prediction and targets.
        reader: makes a batch of constants and an item.
        keep_activities: whether the state carries the last batch's activities.
    """

    learning: AbstractLearning
    optimizer: optax.GradientTransformation
    metrics: MetricFunctions
    reader: Reader
    keep_activities: bool = False


class Measured(NamedTuple):
    """What a call measured.

    Attributes:
        values: {name: (capacity,)}, one number a batch, or (capacity, depth) for a stack's layers; rows
            from `count` on mean nothing.
        count: how many batches were looked at, the failed one included.
        failed: whether the last of them had an energy that is not finite.
    """

    values: dict[str, Array]
    count: Int[Array, ""]
    failed: Bool[Array, ""]


def reseeded(network: SplitNetwork, key: PRNGKey) -> SplitNetwork:
    """The network with its random streams (of dropout, say) begun anew from this key.

    Inference evaluates the energy many times on copies of the network, so all evaluations of one step
    see one mask, and every step sees another: a function of (seed, step), like all other randomness.
    """
    leaves, structure = jax.tree.flatten(network.other)
    streams = [
        jax.random.split(jax.random.fold_in(key, number), leaf.shape)
        if leaf.dtype == key.dtype
        else leaf
        for number, leaf in enumerate(leaves)
    ]
    return network.replace(other=jax.tree.unflatten(structure, streams))


@functools.partial(jax.jit, static_argnames="recipe", inline=True)  # which traces it once
def learn(
    state: TrainState, batch: Batch, key: PRNGKey, recipe: Recipe
) -> tuple[TrainState, dict[str, Array], Bool[Array, ""]]:
    """One step of learning on one batch: the new state, what was measured, and whether it holds."""
    step_key, noise_key = jax.random.split(jax.random.fold_in(key, state.step))
    before = reseeded(state.network, noise_key)
    network, optimizer_state, info = recipe.learning.update(
        before,
        recipe.optimizer,
        state.optimizer_state,
        Evidence(batch.inputs, batch.targets),
        key=step_key,
        step=state.step,
    )
    network = network.replace(
        other=after_batch(
            before, batch.inputs, batch_size=jax.tree.leaves(info.prediction)[0].shape[0]
        ).other
    )
    by_layer = {name: jnp.mean(energy, axis=0) for name, energy in info.energies.items()}
    energy = jnp.concatenate([mean.reshape(-1) for mean in by_layer.values()]).sum()
    values = {"energy": energy}
    if batch.targets is not None:
        bound = state.network.bind()
        values["loss"] = jnp.mean(bound.output_energy(info.prediction, batch.targets))
        for name, metric in recipe.metrics:
            values[name] = jnp.mean(metric(info.prediction, batch.targets))
    values |= {f"energy/{name}": mean for name, mean in by_layer.items()}
    # Parameters may turn NaN while the energy they come from is finite (the slope of a square root).
    whole = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(network.parameters)]
    sound = jnp.isfinite(energy) & jnp.stack(whole).all()
    new = TrainState(
        network,
        optimizer_state,
        state.step + 1,
        info.activities if recipe.keep_activities else state.activities,
    )
    # A select, not a branch: it melts into the optimizer's own elementwise loops.
    kept = jax.tree.map(lambda after, before: jnp.where(sound, after, before), new, state)
    return kept, {name: value.astype(jnp.float32) for name, value in values.items()}, ~sound


@functools.partial(jax.jit, static_argnames="recipe", donate_argnames="state")
def learn_batches(
    state: TrainState,
    constants: PyTree,
    items: PyTree,
    count: Int[Array, ""],
    key: PRNGKey,
    *,
    recipe: Recipe,
) -> tuple[TrainState, Measured]:
    """Learn from the first `count` of `items`, whose leaves begin with the axis (capacity,)."""
    capacity = jax.tree.leaves(items)[0].shape[0]

    def read(index):
        return recipe.reader(constants, jax.tree.map(lambda leaf: leaf[index], items))

    def body(carry):
        index, state, values, _ = carry
        state, measured, failed = learn(state, read(index), key, recipe)
        values = {name: values[name].at[index].set(value) for name, value in measured.items()}
        return index + 1, state, values, failed

    def unfinished(carry):
        index, _, _, failed = carry
        return (index < count) & ~failed

    specs = jax.eval_shape(lambda: learn(state, read(0), key, recipe)[1])
    values = {name: jnp.zeros((capacity, *spec.shape), jnp.float32) for name, spec in specs.items()}
    index, state, values, failed = jax.lax.while_loop(
        unfinished, body, (jnp.int32(0), state, values, jnp.bool_(False))
    )
    return state, Measured(values, index, failed)


def expanded(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A column for each layer of a stack, in the place of one with the axis depth.

    >>> import numpy as np
    >>> sorted(expanded({"energy/hidden": np.zeros((5, 2)), "energy": np.zeros(5)}))
    ['energy', 'energy/hidden/0', 'energy/hidden/1']
    """
    columns = {}
    for name, column in values.items():
        if column.ndim == 1:
            columns[name] = column
        else:
            columns |= {f"{name}/{index}": part for index, part in enumerate(column.T)}
    return columns


# Staging, on the host.

# One compiled call holds at most this many batches, and about this much of streamed examples.
CAPACITY = 256
_STREAMED_BYTES = 64 * 2**20


def call_capacity(data: Dataset) -> int:
    """How many batches one call has room for: fewer where the items hold the examples themselves.

    A function of the data alone, so that every `fit` on it finds the same compiled program.
    """
    item_bytes = sum(
        np.asarray(leaf).nbytes for leaf in jax.tree.leaves(data.fetch(data.indices(0, 1)))
    )
    return max(1, min(CAPACITY, _STREAMED_BYTES // max(item_bytes, 1)))


def padded(items: PyTree, capacity: int) -> PyTree:
    """Items with room for `capacity` batches; the rows added are never looked at."""

    def pad(leaf):
        room = np.zeros((capacity - leaf.shape[0], *leaf.shape[1:]), leaf.dtype)
        return np.concatenate([leaf, room])

    return jax.tree.map(pad, items)
