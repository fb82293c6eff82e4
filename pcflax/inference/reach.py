"""How far an error gets: one node a step of gradient inference, from where something is clamped.

At the feedforward start the errors of free Gaussian layers are 0, but a program that computes a prediction
in two places may round it in two ways. Adam would make whole steps of such an error of 1e-8. So what is known
to be 0 is told by counting: a learning rule takes the prediction of those nodes for their activity.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from pcflax.energies import Gaussian
from pcflax.layers import PCLayer
from pcflax.layers.evaluate import reads_itself
from pcflax.networks.wiring import names_of

from .problem import InferenceProblem


class Reach(NamedTuple):
    """Which node's error and activity depend on which; Booleans by node, in one order.

    Attributes:
        nodes: their names.
        parents: (nodes, nodes), whether a node is predicted from another.
        free: whether its activity moves.
        begun: whether it has an error from the start: a clamped one, or one of which a part is.
    """

    nodes: tuple[str, ...]
    parents: np.ndarray
    free: np.ndarray
    begun: np.ndarray

    def after(self, moved: Any, changed: Any = False) -> tuple[Any, Any]:
        """Return which nodes have an error, and which activities have moved after a step from there.

        Args:
            moved: which activities have moved before it.
            changed: which nodes' weights have.
        """
        erring = self.begun | moved | changed | (self.parents & moved[None]).any(axis=1)
        below = (self.parents & erring[:, None]).any(axis=0)
        return erring, moved | (self.free & (erring | below))


def later_than(steps: int, problem: InferenceProblem) -> tuple[str, ...]:
    """Return the nodes without an error after so many steps along the gradient, none where not known."""
    known = reach(problem)
    if known is None:
        return ()
    erring, moved = known.after(np.zeros(len(known.nodes), bool))
    for _ in range(min(steps, len(known.nodes))):
        erring, moved = known.after(moved)
    return tuple(node for node, errs in zip(known.nodes, erring, strict=True) if not errs)


def reach(problem: InferenceProblem) -> Reach | None:
    """Return how errors get from node to node; None where it is not known.

    Nothing is known from another start than the feedforward pass, in networks with cycles or several
    predictors of a node, and where a layer without a clamp has another energy than a Gaussian one or sees its
    own activity. A layer of which a part is clamped has an error from the start, and a part that moves.
    """
    bound, clamps = problem.network.bind(), problem.clamps
    if not problem.from_feedforward or bound.cyclic or bound.wiring.predictors:
        return None
    layers = {name: bound.layer(name) for name in bound.names}
    unclamped = {name: layer for name, layer in layers.items() if name not in clamps}
    energies = {type(layer.top_node_layer().energy) for layer in unclamped.values()}
    if energies - {Gaussian} or _see_themselves(problem, unclamped):
        return None
    parents = _parents(bound)
    owners = {node: name for name, layer in layers.items() for node in layer.each_node_name(name)}
    return Reach(
        tuple(parents),
        np.array([[other in own for other in parents] for own in parents.values()]),
        np.array([owners[node] in problem.start for node in parents]),
        np.array([owners[node] in clamps for node in parents]),
    )


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
