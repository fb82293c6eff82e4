"""One batched call in parts, a part for each core of a CPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

# Parts of a stack on a CPU, and how many layers make one worth while.
_MOST_PARTS, _LEAST_LAYERS = 8, 8


def in_parts(function: Callable[..., Any], depth: int, *arguments: Any) -> Any:
    """Call the function of arrays with a leading layer axis: once, on CPUs once for each core.

    XLA runs one batched product on one core, and products that do not depend on each other on several.
    The barrier keeps it from cutting the weights apart again at every step of inference. On a mesh of
    devices it stays one call.
    """
    parts = 1
    if jax.default_backend() == "cpu" and jax.sharding.get_abstract_mesh().empty:
        parts = max(1, min(os.cpu_count() or 1, _MOST_PARTS, depth // _LEAST_LAYERS))
    if parts == 1:
        return function(*arguments)
    sizes = [depth // parts + (number < depth % parts) for number in range(parts)]

    def split(leaf: Array) -> list[Array]:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return [
                leaf[end - size : end] for end, size in zip(np.cumsum(sizes), sizes, strict=True)
            ]
        return list(jax.lax.optimization_barrier(jax.lax.split(leaf, sizes)))

    leaves, structure = jax.tree.flatten(arguments)
    shares = zip(*map(split, leaves), strict=True)
    found = [function(*jax.tree.unflatten(structure, share)) for share in shares]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *found)
