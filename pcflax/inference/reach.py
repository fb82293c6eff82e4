"""How far an error gets: one node a step of gradient inference, from where something is clamped.

At the feedforward start the errors of free Gaussian layers are 0, but a program that computes a prediction
in two places may round it in two ways. Adam would make whole steps of such an error of 1e-8. So what is known
to be 0 is told by counting: a learning rule takes the prediction of those nodes for their activity.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pcflax.energies import Gaussian
from pcflax.layers import PCLayer
from pcflax.layers.evaluate import reads_itself
from pcflax.networks.wiring import names_of

from .problem import InferenceProblem


def arrivals(problem: InferenceProblem) -> dict[str, int]:
    """Return after how many steps from the feedforward pass each node first has an error that is not 0.

    Nothing is known in networks with cycles or several predictors of a node, and where a layer without a
    clamp has another energy than a Gaussian one or sees its own activity. A layer of which a part is clamped
    has an error from the start, and a part that moves.
    """
    bound, clamps = problem.network.bind(), problem.clamps
    if bound.cyclic or bound.wiring.predictors:
        return {}
    layers = {name: bound.layer(name) for name in bound.names}
    unclamped = {name: layer for name, layer in layers.items() if name not in clamps}
    energies = {type(layer.top_node_layer().energy) for layer in unclamped.values()}
    if energies - {Gaussian} or _see_themselves(problem, unclamped):
        return {}
    parents, free, begun = _parents(bound), set(), set()
    for name, layer in layers.items():
        nodes = layer.each_node_name(name)
        free |= {*nodes} if name in problem.start else set()
        begun |= {*nodes} if name in clamps else set()
    erring, moved, found = begun, set(), dict.fromkeys(parents, len(parents))
    for number in range(len(parents)):
        found |= {node: number for node in erring if found[node] > number}
        moved = moved | free & (erring | {below for node in erring for below in parents[node]})
        erring = begun | moved | {node for node in free if parents[node] & moved}
    return found


def _see_themselves(problem: InferenceProblem, layers: Mapping[str, PCLayer]) -> bool:
    """Return whether one of these layers predicts from its own activity; ours do not."""
    own = [n for n, one in layers.items() if type(one).predict.__module__.split(".")[0] != "pcflax"]
    if not own:
        return False
    bound = problem.network.bind(problem.decode(problem.start))
    belows = bound.belows(problem.inputs)
    return any(reads_itself(bound.layer(name), belows[name], bound.numerics) for name in own)


def _parents(bound: Any) -> dict[str, set[str]]:
    """Return the nodes that each node is predicted from: in a stack the one below."""
    top = {name: bound.layer(name).each_node_name(name)[-1] for name in bound.names}
    found = {}
    for name, own in bound.wiring.parents:
        below = {top.get(parent, parent) for parent in names_of(own)}
        for node in bound.layer(name).each_node_name(name):
            found[node], below = below, {node}
    return found
