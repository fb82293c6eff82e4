"""Arrays by their path, the form in which a checkpoint stores them.

A flat dictionary from "hidden_1.linear.kernel" to an array makes the first difference between what is
stored and what is expected easy to name, and any tool can read it. A checkpoint of 0.1 tells a layer by
its place, "layers.0.linear.kernel", and is read by name: `renamed`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from pcflax.errors import CheckpointError
from pcflax.networks import AbstractPCNetwork, split, write
from pcflax.sharding.arrays import put_like
from pcflax.sharding.processes import number_of_processes
from pcflax.typing import PyTree
from pcflax.variables import STACKED

FlatArrays = dict[str, Any]

# "layers.3", or behind the path of an optimizer's state "0.mu.layers.3": a layer by its place; where it is a
# stack, "layers.3.stacked", a name that no other layer could have.
_PLACE = re.compile(r"(^|\.)layers\.(\d+)(\.stacked)?(?=\.)")


def flatten(tree: PyTree) -> FlatArrays:
    """Return arrays by their path in a tree, "hidden_1.linear.kernel"; random keys as their raw data.

    >>> import numpy as np
    >>> list(flatten({"hidden_1": {"kernel": np.zeros(2)}}))
    ['hidden_1.kernel']
    """
    flat = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if name in flat:
            raise ValueError(
                f"two arrays have the path '{name}'; leave dots out of the names of attributes and keys"
            )
        flat[name] = leaf
    return flat


def unflatten(tree: PyTree, flat: Mapping[str, Any]) -> PyTree:
    """Return the tree again, with the arrays of `flat`; leaves it does not name keep their value."""

    def pick(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if name not in flat:
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = put_like(flat[name], jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        # A copy of our own: the caller may donate it, and keeps what was read.
        return put_like(flat[name], leaf)

    return jax.tree_util.tree_map_with_path(pick, tree)


def network_arrays(network: AbstractPCNetwork) -> tuple[FlatArrays, FlatArrays]:
    """Return a network's parameters and its other state but for activities, by path."""
    pure = split(network)
    return flatten(pure.parameters), flatten(pure.other)


def write_network_arrays(network: AbstractPCNetwork, flat: Mapping[str, Any]) -> None:
    """Write arrays by path into a network's Variables."""
    pure = split(network)
    write(network, unflatten(pure.parameters, flat), unflatten(pure.other, flat))


def by_place(paths: Iterable[str]) -> bool:
    """Return whether paths name layers by their place, as all did in 0.1."""
    paths = list(paths)
    return bool(paths) and all(_PLACE.match(path) for path in paths)


def renamed(flat: Mapping[str, Any], names: Sequence[str]) -> FlatArrays:
    """Return arrays that were stored by their layers' places by the names that these layers had.

    >>> renamed({"0.mu.layers.1.kernel": 7, "0.count": 3}, ["a", "b"])
    {'0.mu.b.kernel': 7, '0.count': 3}
    """

    def path_today(matched: re.Match) -> str:
        dot, place, stacked = matched[1], int(matched[2]), matched[3]
        if place >= len(names):
            return matched[0]
        return f"{dot}{names[place]}" + (f".{STACKED}" if stacked else "")

    # the first alone: a layer may hold a list called `layers` of its own
    return {_PLACE.sub(path_today, path, count=1): array for path, array in flat.items()}


def check_arrays(
    kind: str, stored: Mapping[str, Any], expected: Mapping[str, Any], *, owner: str = "network"
) -> None:
    """Refuse stored arrays that differ from the expected ones in path, shape or dtype, naming the first."""
    remedy = f"build the {owner} as it was when saved"
    if owner == "optimizer":
        remedy += (
            ", or begin with another: pc.load_checkpoint(folder, network) takes the network alone"
        )
    expected = {name: array for name, array in expected.items() if np.size(array) > 0}
    for name, array in expected.items():
        if name not in stored:
            raise CheckpointError(
                f"the checkpoint has no {kind} '{name}', which the {owner} has with shape "
                f"{tuple(array.shape)}; {remedy}"
            )
        for what in ("shape", "dtype"):
            was, now = getattr(stored[name], what), getattr(array, what)
            if was != now:
                raise CheckpointError(
                    f"{kind} '{name}' has {what} {was} in the checkpoint but {now} in the {owner}; "
                    f"{remedy}"
                )
    for name in stored:
        if name not in expected:
            raise CheckpointError(
                f"the checkpoint has {kind} '{name}' of shape {tuple(stored[name].shape)}, which the "
                f"{owner} lacks; {remedy}"
            )


_copied = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


def copied(tree: PyTree) -> PyTree:
    """Return a copy of every array, where it lies; compiled only where several processes share arrays."""
    if number_of_processes() > 1:
        return _copied(tree)
    leaves, structure = jax.tree.flatten(tree)
    # device_put shares the memory of NumPy's arrays whatever it is told
    leaves = [leaf.copy() if isinstance(leaf, np.ndarray) else leaf for leaf in leaves]
    made = jax.device_put(leaves, [_place_of_keys(leaf) for leaf in leaves], may_alias=False)
    return jax.tree.unflatten(structure, made)


def _place_of_keys(leaf: Any) -> Any:
    """Return where random keys lie, which device_put does not ask them; None for all else."""
    if isinstance(leaf, Tracer) or not isinstance(leaf, jax.Array):
        return None
    keys = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return leaf.sharding if keys and leaf.committed else None


def as_arrays(tree: PyTree) -> PyTree:
    """Return the same tree with every leaf an array (some optax states hold Python numbers)."""
    return jax.tree.map(jnp.asarray, tree)
