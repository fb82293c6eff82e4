"""Passes of the layers without a node of their own: amortizers' guesses, and predictors from above."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from pcflax.layers.evaluate import evaluate, failed
from pcflax.typing import Network

from .wiring import names_of


class Guess(NamedTuple):
    """What an amortizer predicts, of which node, and what from."""

    node: str
    belows: tuple[Array, ...]
    prediction: Array
    mean: Array


def descend(network: Network, inputs: Any, known: Mapping[str, Array]) -> dict[str, Array]:
    """Return the mean that predictors of other layers' nodes give, by node, as far as they can begin.

    Those of which all parents are known go first, then those that predict from what these gave. A node that
    has two predictors takes the first.
    """
    wiring = network.wiring
    seen = dict(known)
    if inputs is not None and wiring.outside:
        seen |= wiring.external(inputs)
    waiting = list(wiring.predictors)
    while ready := [one for one in waiting if set(names_of(one[1])) <= seen.keys()]:
        for name, parents, node in ready:
            if node not in seen:
                layer = network.layer(name)
                below = wiring.below(name, parents, seen)
                seen[node] = layer.energy.mean(evaluate(layer, below, network.numerics)[0])
        waiting = [one for one in waiting if one not in ready]
    return {node: value for node, value in seen.items() if node in network.names}


def amortize(network: Network, inputs: Any, known: Mapping[str, Array]) -> dict[str, Guess]:
    """Return every amortizer's guess, by layer: g_k = f_k(what is known, or guessed before).

    Args:
        network: the network.
        inputs: as they were given, or None.
        known: values of nodes that guesses begin at.

    Raises:
        ValueError: where an amortizer predicts from a node that is neither known nor guessed.
    """
    wiring = network.wiring
    seen = dict(known)
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
        found[name] = Guess(node, belows, prediction, jnp.asarray(layer.energy.mean(prediction)))
        seen[node] = found[name].mean
    return found
