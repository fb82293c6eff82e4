"""A stack whose layers lie on several devices: activities travel from device to device, weights never do.

XLA's own partitioning would move the whole activity, or gather the weights of all layers on every device.
These functions are written as what one device does with its layers, and say what it sends to the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from pcflax.sharding.inside import devices_along
from pcflax.sharding.placement import DATA, LAYERS
from pcflax.typing import PyTree

_HERE, _ALL = PartitionSpec(LAYERS), PartitionSpec()


def is_spread(depth: int) -> bool:
    """Return whether a stack of this depth lies on several devices."""
    devices = devices_along(LAYERS)
    return devices > 1 and depth % devices == 0


def shifted(
    first: Float[Array, " 1 batch *features"], activity: Float[Array, " depth batch *features"]
) -> Float[Array, " depth batch *features"]:
    """Return [first, activity[:-1]]: each device hands its topmost activity to the next."""
    if not is_spread(activity.shape[0]):
        return jnp.concatenate([first, activity[:-1]])

    def shift(first, activity):
        coming = _to_next(activity[-1:])
        lowest = jax.lax.axis_index(LAYERS) == 0
        return jnp.concatenate([jnp.where(lowest, first, coming), activity[:-1]])

    return _on_each(shift, (_ALL, _HERE), _HERE)(first, activity)


def topmost(activity: Float[Array, " batch depth *features"]) -> Float[Array, " batch *features"]:
    """Return activity[:, -1], which its device sends to all."""
    if not is_spread(activity.shape[1]):
        return activity[:, -1]

    def top(activity):
        here, is_highest = (
            activity[:, -1],
            jax.lax.axis_index(LAYERS) == jax.lax.axis_size(LAYERS) - 1,
        )
        return jax.lax.psum(jnp.where(is_highest, here, jnp.zeros_like(here)), LAYERS)

    return _on_each(top, PartitionSpec(None, LAYERS), _ALL)(activity)


def on_own_layers(function: Callable[[PyTree], PyTree], by_layer: PyTree) -> PyTree:
    """Return the function of arrays with the layers in front; each device calls it with its own."""
    if not is_spread(jax.tree.leaves(by_layer)[0].shape[0]):
        return function(by_layer)
    return _on_each(function, (_HERE,), _HERE)(by_layer)


def in_stages(
    one: Callable[..., Any],
    below: Float[Array, " batch *features"],
    state: PyTree,
    rows: PyTree,
    *,
    is_whole: bool,
) -> tuple[Array, Array, PyTree]:
    """Scan over all layers, as a pipeline: a part of the batch passes over a device's layers, and goes on.

    Args:
        one: `activity, (activity, prediction, writes) = one(activity, (state, *rows))` of one layer, as in
            `jax.lax.scan`.
        below: what the lowest layer predicts from.
        state: of the layers, depth first.
        rows: what else a layer is given, (depth, batch, ...).
        is_whole: whether the batch stays in one part, since what a layer keeps or draws is of all of it.

    Returns:
        Activities, predictions and writes, depth first.
    """
    devices, shares = devices_along(LAYERS), devices_along(DATA)
    # as many parts as devices, so that all are busy but at the ends
    fitting = [n for n in range(1, devices + 1) if below.shape[0] % (n * shares) == 0]
    parts = 1 if is_whole or not fitting else fitting[-1]

    def stages(below, state, rows):
        place = jax.lax.axis_index(LAYERS)
        below, rows = _cut(below, parts, 0), jax.tree.map(lambda row: _cut(row, parts, 1), rows)

        def run(coming, rows):
            return jax.lax.scan(one, coming, (state, *rows))

        def tick(coming, time):
            number = time - place  # which part of the batch is here
            coming = jnp.where(place == 0, _part(below, time, 0), coming)
            own = jax.tree.map(lambda row: _part(row, number, 1), rows)
            is_busy = (number >= 0) & (number < parts)
            top, found = jax.lax.cond(is_busy, run, idle, coming, own)
            return _to_next(top), found

        def idle(coming, rows):
            return _zeros(jax.eval_shape(run, coming, rows))

        begin = _zeros(jax.eval_shape(lambda: _part(below, 0, 0)))
        _, found = jax.lax.scan(tick, begin, jnp.arange(parts + devices - 1, dtype=place.dtype))
        found = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, place, parts), found)
        activities, predictions, writes = found
        writes = jax.tree.map(lambda leaf: leaf[0], writes)
        return _joined(activities), _joined(predictions), writes

    return _on_each(stages, (_ALL, _HERE, _HERE), _HERE)(below, state, rows)


def _on_each(function: Callable[..., Any], given: Any, found: Any) -> Callable[..., Any]:
    return jax.shard_map(function, in_specs=given, out_specs=found, axis_names={LAYERS})


def _to_next(array: Array) -> Array:
    """Return what the device below sends; zeros on the lowest."""
    pairs = [(place, place + 1) for place in range(jax.lax.axis_size(LAYERS) - 1)]
    return jax.lax.ppermute(array, LAYERS, pairs)


def _zeros(specs: PyTree) -> PyTree:
    """Return zeros that may differ between the devices later on."""
    return jax.tree.map(
        lambda spec: jax.lax.pcast(jnp.zeros(spec.shape, spec.dtype), LAYERS, to="varying"), specs
    )


def _cut(array: Array, parts: int, axis: int) -> Array:
    """Return the batch as (examples of a part, parts): so each device of `data` has some of every part."""
    shape = array.shape
    return array.reshape(*shape[:axis], shape[axis] // parts, parts, *shape[axis + 1 :])


def _part(array: Array, number: Any, axis: int) -> Array:
    return jax.lax.dynamic_index_in_dim(array, number, axis + 1, keepdims=False)


def _joined(array: Array) -> Array:
    """Return (parts, depth, examples of a part, ...) as (depth, batch, ...): what `_cut` undoes."""
    array = jnp.moveaxis(array, 0, 2)
    return array.reshape(array.shape[0], -1, *array.shape[3:])
