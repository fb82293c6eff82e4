"""A stack in parts on CPUs, a handful whatever its depth."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pcflax.typing import PyTree

# Parts of a stack on a CPU: enough to keep its cores busy, too few to compile for long.
_MOST_PARTS = 8


def cut(tree: PyTree, depth: int, *, fixed: bool = False) -> list[PyTree]:
    """Cut arrays with a leading layer axis into parts, one on anything but a CPU.

    XLA runs products that do not depend on each other on several cores, one after the other where their
    operands are in the cache. The derivative of a cut is one concatenation, and what was joined and is
    cut again costs nothing.

    Args:
        tree: arrays whose first axis is `depth`.
        depth: how many layers there are.
        fixed: whether the arrays stay as they are during inference, as weights do: a barrier then keeps
            XLA from cutting them again at every step.

    >>> import jax.numpy as jnp
    >>> parts = cut(jnp.arange(3), 3)
    >>> join(parts)
    Array([0, 1, 2], dtype=int32)
    """
    parts = min(_MOST_PARTS, depth) if jax.default_backend() == "cpu" else 1
    if parts == 1:
        return [tree]
    sizes = [depth // parts + (number < depth % parts) for number in range(parts)]

    def split(leaf: Array) -> Any:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            ends = [sum(sizes[: number + 1]) for number in range(parts)]
            return [leaf[end - size : end] for end, size in zip(ends, sizes, strict=True)]
        pieces = jax.lax.split(leaf, sizes)
        return jax.lax.optimization_barrier(pieces) if fixed else pieces

    leaves, structure = jax.tree.flatten(tree)
    cuts = [split(leaf) for leaf in leaves]
    return [jax.tree.unflatten(structure, [own[number] for own in cuts]) for number in range(parts)]


def join(parts: list[PyTree], axis: int = 0) -> PyTree:
    """Join what was computed of each part along the layer axis."""
    if len(parts) == 1:
        return parts[0]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis), *parts)


def depth_first(value: Float[Array, " batch depth *features"]) -> Array:
    """The same with the axis depth in front of the batch: (depth, batch, *features)."""
    return jnp.moveaxis(value, 1, 0)


def batch_first(value: Float[Array, " depth batch *features"]) -> Array:
    """The same with the batch in front of the axis depth: (batch, depth, *features)."""
    return jnp.moveaxis(value, 0, 1)
