"""Recall: fill in what is missing of a node, or clean what is noisy, from what the network has learned."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pcflax.layers import Clamp
from pcflax.typing import Inference, Initializer, Network, PRNGKey

from .given import node_of


def recall(
    network: Network,
    partial: Float[Array, " batch *features"],
    mask: Bool[Array, " *features"] | None,
    *,
    inference: Inference,
    node: str | None,
    initializer: Initializer | None,
    key: PRNGKey | None,
) -> Float[Array, " batch *features"]:
    """Return a node's activity where inference ends; see `AbstractPCNetwork.recall`."""
    name = network.output if node is None else node
    if node_of(network, name)[1] is not None or network.layer(name).num_nodes > 1:
        raise ValueError(
            f"recall reads a layer of one node, and '{name}' is of a stack; take infer"
        )
    partial = jnp.asarray(partial)
    start: Any = initializer
    if mask is None:
        # a clamp of no element tells the batch size and holds nothing
        mask = jnp.zeros(partial.shape[1:], bool)
        if initializer is not None:
            raise ValueError(
                "recall without a mask begins at the cue, so it takes no initializer; give a mask of what is "
                "known, or leave initializer out"
            )
        start = {name: partial}
    result = network.infer(
        inference=inference, clamps={name: Clamp(partial, mask)}, initializer=start, key=key
    )
    return result.activities[name]
