"""Hiding: what a reading keeps from inference, by node or by element.

Evidence that a network has parsed is split into what inference gets and what its answer is compared with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from pcflax.layers import Clamp
from pcflax.layers.clamps import Known
from pcflax.networks import AbstractPCNetwork
from pcflax.networks.given import node_of


def check_node(bound: AbstractPCNetwork, name: str) -> None:
    """Refuse what is no node, an input from outside above all."""
    if name in bound.wiring.outside:
        raise ValueError(
            f"'{name}' is an input from outside, which no prediction explains; make it a pc.PCRoot to "
            f"hide or read it"
        )
    node_of(bound, name)  # refuses


def place_of(bound: AbstractPCNetwork, name: str) -> tuple[str, Any]:
    """Return the layer of a node, and where in the layer's activity the node is."""
    layer, index = node_of(bound, name)
    return layer, (slice(None) if index is None else (slice(None), index))


def part_of(bound: AbstractPCNetwork, activities: Mapping[str, Array], name: str) -> Array:
    """Return a node's part of its layer's activity."""
    layer, place = place_of(bound, name)
    return activities[layer][place]


def told_of(bound: AbstractPCNetwork, known: Known, name: str) -> Clamp | None:
    """Return what the data say of a node; None where nothing."""
    layer, place = place_of(bound, name)
    clamp = known.clamps.get(layer)
    if clamp is None:
        return None
    if clamp.mask is None:
        return Clamp(clamp.value[place])
    mask = clamp.held()[place]
    if not isinstance(mask, Tracer) and not mask.any():  # another node of a stack
        return None
    return Clamp(clamp.value[place], mask)


def is_clamped(bound: AbstractPCNetwork, known: Known, name: str) -> bool:
    """Return whether all elements of a node are held."""
    clamp = told_of(bound, known, name)
    return clamp is not None and clamp.mask is None


def without(bound: AbstractPCNetwork, known: Known, name: str, mask: Any) -> Known:
    """Return the evidence without a node, or without these elements of it."""
    layer, place = place_of(bound, name)
    clamps = dict(known.clamps)
    clamp = clamps.pop(layer)
    inputs = known.inputs
    if layer in bound.wiring.inputs:  # a root: what the inputs say of it is hidden with its clamp
        if isinstance(inputs, Mapping):
            inputs = {key: value for key, value in inputs.items() if key != layer} or None
        else:
            inputs = None
    if mask is None and place == slice(None):
        return Known(inputs, clamps)
    hidden = jnp.zeros(clamp.value.shape, bool)
    hidden = hidden.at[place].set(True if mask is None else jnp.asarray(mask))
    clamps[layer] = Clamp(clamp.value, clamp.held() & ~hidden)
    return Known(inputs, clamps)


def known_rows(masks: list[Array]) -> Array | None:
    """Return of which examples all is known; None where no mask says otherwise."""
    rows = [jnp.all(mask, axis=tuple(range(1, mask.ndim))) for mask in masks]
    return None if not rows else jnp.stack(rows).all(axis=0)


def expect_mask(name: str, mask: Any) -> Any:
    """Return the mask; refuse one that is not Boolean or hides nothing."""
    dtype = getattr(mask, "dtype", None)
    if mask is not None and dtype != jnp.bool_:
        raise TypeError(
            f"the reading hides elements of '{name}' where a mask is True; expected a Boolean array, got "
            f"{type(mask).__name__ if dtype is None else dtype}; compare: mask > 0.5"
        )
    if mask is not None and not isinstance(mask, Tracer) and not np.any(mask):
        raise ValueError(
            f"the reading hides no element of '{name}': its mask is False everywhere; make it True where "
            f"inference is to find the answer"
        )
    return mask
