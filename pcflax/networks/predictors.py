"""Layers without a node of their own: predictors and amortizers, checked and put in order."""

from __future__ import annotations

import graphlib
from collections.abc import Mapping
from typing import Any

from pcflax.layers import PCLayer

from .wiring import known, names_of


def take_predictors(
    layers: Mapping[str, PCLayer],
    parents: Mapping[str, Any],
    predicts: Mapping[str, str],
    amortizers: Mapping[str, str],
) -> tuple[dict[str, Any], tuple, tuple]:
    """Take the layers without a node of their own out of the wiring; refuse what cannot be.

    Returns:
        The parents of the others, and (layer, parents, node) of predictors and of amortizers.
    """
    both = {**predicts, **amortizers}
    for name, node in both.items():
        if name not in layers:
            raise ValueError(
                f"'{name}' is to predict '{node}', but is no layer; {known(name, layers)}"
            )
        if name in predicts and name in amortizers:
            raise ValueError(
                f"layer '{name}' is a predictor and an amortizer at once; name it once"
            )
        if node not in layers or node in both:
            nodes = [other for other in layers if other not in both]
            raise ValueError(
                f"layer '{name}' is to predict '{node}', which is no layer with an activity; "
                f"{known(node, nodes)}"
            )
        for one in (name, node):
            if layers[one].num_nodes > 1 or (one == name and layers[one].is_root_node):
                raise ValueError(
                    f"layer '{name}' predicts '{node}', but '{one}' is a {type(layers[one]).__name__}; a "
                    f"predictor and what it predicts are single layers"
                )
    for name, own in parents.items():
        for parent in names_of(own):
            if parent in both:
                raise ValueError(
                    f"layer '{name}' has the parent '{parent}', which has no activity, since it predicts "
                    f"'{both[parent]}'; name that"
                )
    amortized = [amortizers[name] for name in amortizers]
    for node in amortized:
        if amortized.count(node) > 1:
            raise ValueError(f"node '{node}' has two amortizers; give it one")
    after = {
        name: [other for other, node in amortizers.items() if node in names_of(parents[name])]
        for name in amortizers
    }
    try:
        ordered = tuple(graphlib.TopologicalSorter(after).static_order())
    except graphlib.CycleError as error:
        circle = ", ".join(dict.fromkeys(error.args[1]))
        raise ValueError(
            f"amortizers go round in a circle: {circle}; begin at what is known"
        ) from None
    return (
        {name: own for name, own in parents.items() if name not in both},
        tuple((name, parents[name], node) for name, node in predicts.items()),
        tuple((name, parents[name], amortizers[name]) for name in ordered),
    )
