"""Arrays on a mesh, from the host: each process gives the same values, and keeps those of its devices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pcflax.typing import PyTree


def put(tree: PyTree, places: PyTree) -> PyTree:
    """Return the tree with each array at its place, a `NamedSharding`; what lies there already stays.

    The others are copies, which may be donated.
    """
    return jax.tree.map(_put, tree, places)


def _put(leaf: Any, place: NamedSharding) -> jax.Array:
    if isinstance(leaf, jax.Array):
        if leaf.sharding == place:
            return leaf
        if not leaf.is_fully_addressable:  # from mesh to mesh
            return jax.jit(lambda x: x, out_shardings=place)(leaf)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = _put(jax.random.key_data(leaf), place)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    value = np.asarray(leaf)
    # a copy: on a CPU jax may take NumPy's memory as it is
    return jax.make_array_from_callback(value.shape, place, lambda index: value[index].copy())


def put_like(value: Any, old: Any) -> jax.Array:
    """Return a copy of an array on the mesh where another lies, or on the default device."""
    place = getattr(old, "sharding", None)
    if not isinstance(place, NamedSharding):
        return jnp.array(value, copy=True)
    return _put(np.asarray(value), place)


def everywhere(tree: PyTree, mesh: Mesh) -> PyTree:
    """Return the tree whole on each device."""
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: _put(leaf, whole), tree)
