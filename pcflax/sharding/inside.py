"""Inside compiled code: what is known of the mesh there, and how arrays are kept in their places.

Without a mesh each of these functions does nothing.
"""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import PartitionSpec

from pcflax.typing import PyTree

from .placement import DATA
from .processes import number_of_processes


def devices_along(axis: str) -> int:
    """Return how many devices the axis has in the code that is being traced; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape.get(axis, 1) if not mesh.empty and mesh.are_all_axes_auto else 1


def split_examples(tree: PyTree, *axes: str) -> PyTree:
    """Spread arrays, the batch first, over `data`, and their next axes over these.

    An axis that does not divide, and all that come behind, are left to XLA.
    """
    counts = [devices_along(axis) for axis in (DATA, *axes)]
    if max(counts) == 1:
        return tree

    def one(leaf):
        free: Any = PartitionSpec.UNCONSTRAINED
        parts = [
            axis if count > 1 and size % count == 0 else free
            for axis, count, size in zip((DATA, *axes), counts, leaf.shape, strict=False)
        ]
        if all(part is free for part in parts):
            return leaf
        parts += [free] * (leaf.ndim - len(parts))
        return jax.lax.with_sharding_constraint(leaf, PartitionSpec(*parts))

    return jax.tree.map(one, tree)


def keep(tree: PyTree, places: tuple[Any, ...] | None) -> PyTree:
    """Keep a tree's arrays in these places, leaf by leaf, or where XLA chooses."""
    if places is None:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    kept = map(jax.lax.with_sharding_constraint, leaves, places)
    return jax.tree.unflatten(structure, kept)


def readable(tree: PyTree) -> PyTree:
    """Let every process read all of each array; where there is one process, it can."""
    return tree if number_of_processes() == 1 else whole(tree)


def whole(tree: PyTree) -> PyTree:
    """Let every device hold all of each array, which every process can then read."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not mesh.are_all_axes_auto:
        return tree
    return jax.lax.with_sharding_constraint(tree, jax.tree.map(lambda _: PartitionSpec(), tree))
