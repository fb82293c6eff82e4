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
from pcflax.networks import AbstractPCNetwork, split, write
from pcflax.sharding import Placement
from pcflax.sharding.arrays import everywhere, put
from pcflax.sharding.layout import Layout
from pcflax.sharding.placement import DATA
from pcflax.typing import PyTree

from .checkpoints.arrays import as_arrays
from .step import TrainState


def layout_of(
    owner: str, placement: Placement | Mesh | None, network: AbstractPCNetwork
) -> Layout | None:
    """Return the layout of a network's state, and put the network there; None where there is no mesh.

    Raises:
        TypeError, ValueError: for a placement that the network does not fit, and for several processes.
    """
    if jax.process_count() > 1:  # each would save, and prune, the same checkpoints
        raise ValueError(
            f"{owner} expected one process, got {jax.process_count()} joined by jax.distributed; start one "
            f"process with all the devices of its machine (mesh=pc.sharding.data())"
        )
    parts = split(network)
    if placement is not None:
        layout = Layout.of(owner, placement, network)
    elif parts.mesh is not None:
        layout = Layout.lying(parts.mesh, network)
    else:
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


def items_on(mesh: Mesh | None, items: PyTree, batch_size: int) -> PyTree:
    """Return the items of several batches, (count, batch, ...), on a mesh with the examples over `data`."""
    if mesh is None:
        return items

    def place(leaf: Any) -> NamedSharding:
        by_example = leaf.ndim > 1 and leaf.shape[1] == batch_size and DATA in mesh.axis_names
        return NamedSharding(mesh, PartitionSpec(None, DATA) if by_example else PartitionSpec())

    return put(items, jax.tree.map(place, items))


def filled_up(mesh: Mesh | None, rows: PyTree) -> tuple[PyTree, int]:
    """Return rows for all devices of `data`, the last ones copies of row 0, and how many count."""
    count = jax.tree.leaves(rows)[0].shape[0]
    room = -count % (1 if mesh is None else mesh.shape.get(DATA, 1))
    if not room:
        return rows, count
    return jax.tree.map(lambda a: np.concatenate([a, np.repeat(a[:1], room, 0)]), rows), count
