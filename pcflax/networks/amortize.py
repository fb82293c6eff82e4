"""Passes of the layers without a node of their own: amortizers' guesses, and predictors from above."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from pcflax.layers.clamps import Clamps, held_at, whole_values
from pcflax.layers.evaluate import evaluate, failed
from pcflax.typing import Network

from .wiring import names_of


class Guess(NamedTuple):
    """What an amortizer predicts, of which node, what from, and where the node begins by it."""

    node: str
    belows: tuple[Array, ...]
    prediction: Array
    start: Array


def descend(network: Network, inputs: Any, clamps: Clamps) -> dict[str, Array]:
    """Return the mean that predictors of other layers' nodes give, by node, as far as they can begin.

    Those of which all parents are known go first, then those that predict from what these gave. A node that
    has two predictors takes the first. What is known of a node stands in its place.
    """
    wiring = network.wiring
    seen = whole_values(clamps)
    if inputs is not None and wiring.outside:
        seen |= wiring.external(inputs)
    waiting = list(wiring.predictors)
    while ready := [one for one in waiting if set(names_of(one[1])) <= seen.keys()]:
        for name, parents, node in ready:
            if node not in seen:
                layer = network.layer(name)
                below = wiring.below(name, parents, seen)
                mean = layer.energy.mean(evaluate(layer, below, network.numerics)[0])
                seen[node] = _held(node, clamps, mean)
        waiting = [one for one in waiting if one not in ready]
    return {node: value for node, value in seen.items() if node in network.names}


def amortize(network: Network, inputs: Any, clamps: Clamps) -> dict[str, Guess]:
    """Return every amortizer's guess, by layer: g_k = f_k(what is known, or guessed before).

    Args:
        network: the network.
        inputs: as they were given, or None.
        clamps: nodes that guesses begin at, and what is known of those that are guessed.

    Raises:
        ValueError: where an amortizer predicts from a node that is neither known nor guessed.
    """
    wiring = network.wiring
    seen = whole_values(clamps)
    if inputs is not None or wiring.outside:
        seen |= wiring.external(inputs)
    found: dict[str, Guess] = {}
    for name, parents, node in wiring.amortizers:
        layer = network.layer(name)
        try:
            belows = wiring.below(name, parents, seen)
        except KeyError as error:
            raise ValueError(
                f"amortizer '{name}' predicts '{node}' from {error}, which is neither known nor amortized; "
                f"clamp it, or give it an amortizer"
            ) from None
        try:
            prediction = evaluate(layer, belows, network.numerics)[0]
        except (TypeError, ValueError) as error:
            raise failed(name, layer, belows, error) from error
        seen[node] = _held(node, clamps, jnp.asarray(layer.energy.mean(prediction)))
        found[name] = Guess(node, belows, prediction, seen[node])
    return found


def _held(node: str, clamps: Clamps, mean: Array) -> Array:
    """Return a node's mean, and what is known of it in its place."""
    if node not in clamps:
        return mean
    return clamps[node].value if clamps[node].mask is None else held_at(node, clamps[node], mean)
