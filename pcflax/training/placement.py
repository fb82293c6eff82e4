"""Placement: the state of training, data and batches on a mesh of devices.

Where each array lies is `pcflax/sharding/layout.py`'s; without a mesh nothing here does anything. Next file
to read: `run.py`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pcflax.data import Dataset
from pcflax.data.augment import Seeded
from pcflax.data.base import ALL_ROWS
from pcflax.networks import AbstractPCNetwork, split, write
from pcflax.sharding import Placement
from pcflax.sharding.arrays import everywhere, put
from pcflax.sharding.layout import Layout
from pcflax.sharding.placement import DATA
from pcflax.sharding.processes import check_processes, number_of_processes
from pcflax.typing import PyTree

from .checkpoints.arrays import as_arrays
from .step import TrainState


def layout_of(
    owner: str, placement: Placement | Mesh | None, network: AbstractPCNetwork
) -> Layout | None:
    """Return the layout of a network's state, and put the network there; None where there is no mesh.

    Raises:
        TypeError, ValueError: for a placement that the network does not fit, or that leaves out a process.
    """
    parts = split(network)
    if placement is not None:
        layout = Layout.of(owner, placement, network)
    elif parts.mesh is not None:
        layout = Layout.lying(parts.mesh, network)
    else:
        layout = None
    check_processes(owner, None if layout is None else layout.mesh)
    if layout is None:
        return None
    write(network, layout.put(parts.parameters), layout.put(parts.other))
    sized = {n: z for n in network.names if (z := network.layer(n).activity[...]).ndim > 1}
    stored = {n: jnp.moveaxis(z, 0, network.layer(n).node_axis) for n, z in sized.items()}
    network.set_activities(put(stored, layout.places_of_activities(stored)))
    return layout


def initial_optimizer_state(
    optimizer: optax.GradientTransformation, parameters: PyTree, layout: Layout | None
) -> PyTree:
    """Return the optimizer's state before the first step; on a mesh, no device ever holds all of it."""
    if layout is None:
        return as_arrays(optimizer.init(parameters))

    def init(parameters):
        return as_arrays(optimizer.init(parameters))

    places = layout.places(jax.eval_shape(init, parameters))
    return jax.jit(init, out_shardings=places)(parameters)


def places_of(state: TrainState, layout: Layout) -> TrainState:
    """Return where each array of a state lies."""
    return dataclasses.replace(
        layout.places(state), activities=layout.places_of_activities(state.activities)
    )


def placed(state: TrainState, layout: Layout) -> TrainState:
    """Return the state on the mesh; what lies there already is shared."""
    return put(state, places_of(state, layout))


def constants_on(mesh: Mesh | None, data: Dataset) -> PyTree:
    """Return what a data set's batches are read from, on a mesh whole on each device; put there once."""
    if mesh is None:
        return data.constants()
    kept = getattr(data, "_on_mesh", None)
    if kept is None or kept[0] != mesh:
        kept = data._on_mesh = (mesh, everywhere(data.constants(), mesh))  # type: ignore
    return kept[1]


def own_rows(mesh: Mesh | None, data: Dataset) -> slice:
    """Return which rows of a batch this process has to read: of examples that are streamed, its devices'."""
    if mesh is None or number_of_processes() == 1 or data.reader.gather:
        return ALL_ROWS
    place = NamedSharding(mesh, PartitionSpec(DATA) if DATA in mesh.axis_names else PartitionSpec())
    parts = place.addressable_devices_indices_map((data.batch_size,)).values()
    bounds = [part[0].indices(data.batch_size)[:2] for part in parts if part]
    begins, ends = zip(*bounds, strict=True)
    return slice(min(begins), max(ends))


def items_on(mesh: Mesh | None, items: PyTree, batch_size: int, rows: slice = ALL_ROWS) -> PyTree:
    """Return the items of several batches, (count, batch, ...), on a mesh with the examples over `data`.

    Of each batch these `rows` are given, in which those of the process's own devices are.
    """
    if mesh is None:
        return items
    if isinstance(items, Seeded):
        stored = items_on(mesh, items.stored, batch_size, rows)
        return Seeded(stored, everywhere(items.seed, mesh))
    begin, end, _ = rows.indices(batch_size)

    def put_rows(leaf: np.ndarray) -> jax.Array:
        by_example = leaf.ndim > 1 and leaf.shape[1] == end - begin and DATA in mesh.axis_names
        place = NamedSharding(mesh, PartitionSpec(None, DATA) if by_example else PartitionSpec())
        if not by_example or end - begin == batch_size:
            return put(leaf, place)

        def own(index: Any) -> np.ndarray:
            low, high, _ = index[1].indices(batch_size)
            return leaf[:, low - begin : high - begin].copy()

        return jax.make_array_from_callback(
            (len(leaf), batch_size, *leaf.shape[2:]), place, own, dtype=leaf.dtype
        )

    return jax.tree.map(put_rows, items)


def filled_up(mesh: Mesh | None, rows: PyTree) -> tuple[PyTree, int]:
    """Return rows for all devices of `data`, the last ones copies of row 0, and how many count."""
    count = jax.tree.leaves(rows)[0].shape[0]
    room = -count % (1 if mesh is None else mesh.shape.get(DATA, 1))
    if not room:
        return rows, count
    return jax.tree.map(lambda a: np.concatenate([a, np.repeat(a[:1], room, 0)]), rows), count
