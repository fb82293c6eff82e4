"""The wiring: which node is predicted from which, as one pure value.

A chain is the wiring in which every layer's parent is the one before it. Cycles are allowed: given the
activities, every prediction is one call; only a pass upward needs an order, and where a cycle leaves
none, sweeps. A wiring knows names alone, so that it is static in compiled programs. Next file to read:
`base.py`.
"""

from __future__ import annotations

import dataclasses
import graphlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array

from pcflax.checks import did_you_mean
from pcflax.functions import same_values
from pcflax.layers import Clamp, PCLayer

# What a chain's first layer predicts from; no layer is called so.
INPUTS = "<inputs>"


class Combine:
    """Parents that a layer sees as one activity; subclass it and write `__call__`.

    Compared by value, as what decides a compiled program must be.

    Args:
        *names: the parents.

    >>> import pcflax as pc
    >>> class Product(pc.networks.Combine):
    ...     def __call__(self, first, second):
    ...         return first * second
    >>> Product("a", "b")
    Product('a', 'b')
    """

    def __init__(self, *names: str):
        self.names = names

    def __call__(self, *activities: Array) -> Array:
        """Return the one activity that the layer predicts from.

        Raises:
            ValueError: where the shapes do not go together.
            NotImplementedError: where the subclass has none.
        """
        raise NotImplementedError(f"{type(self).__name__} needs `def __call__(self, *activities)`")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and same_values(vars(self), vars(other))

    def __hash__(self) -> int:
        return hash((type(self), self.names))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.names))})"


class Sum(Combine):
    """Parents whose activities are added up before the layer predicts from them.

    >>> import pcflax as pc
    >>> pc.networks.Sum("a", "b")
    Sum('a', 'b')
    """

    def __call__(self, *activities: Array) -> Array:
        """Add up."""
        if len({activity.shape for activity in activities}) > 1:
            raise ValueError("adds up its parents, whose shapes differ")
        return sum(activities[1:], activities[0])


class Concatenate(Combine):
    """Parents whose activities are joined along the last axis before the layer predicts from them.

    A linear layer then predicts W_a z_a + W_b z_b, a weight for each connection.

    >>> import pcflax as pc
    >>> pc.networks.Concatenate("a", "b")
    Concatenate('a', 'b')
    """

    def __call__(self, *activities: Array) -> Array:
        """Join along the last axis."""
        if len({activity.shape[:-1] for activity in activities}) > 1:
            raise ValueError("joins its parents along the last axis, but the others differ")
        return jnp.concatenate(activities, axis=-1)


Parents: TypeAlias = str | Sequence[str] | Combine
"""One name, or several; in a `Sum`, a `Concatenate` or a `Combine` of one's own they become one first."""


@dataclasses.dataclass(frozen=True)
class Wiring:
    """Names, and who predicts whom; hashable.

    Attributes:
        parents: ((name, parents), ...) of every layer, parents before children where cycles let; parents
            are a tuple of names or a `Combine`.
        inputs: the names that inputs are given for: arrays from outside, or roots, which they clamp.
        outputs: the names that targets clamp and `predict` predicts.
        cyclic: the names on cycles.
        shapes: ((name, shape of one example), ...) of those, which start from zeros.
        sweeps: how often a pass upward goes over them.
        one_output: whether targets and predictions are one array, not a dictionary of several.
        is_chain: whether every layer's parent is the one before it.
        predictors: ((layer, parents, node), ...) of layers that predict another layer's node, too: their
            energies count beside its own.
        amortizers: the same of layers whose energies count in learning alone, in an order in which each
            comes after those that it predicts from.
        previous: (("z@-1", shape of one example), ...) of nodes of the step before, which come from
            outside, too.
        names: the names of layers with a node of their own, parents before children where there is no
            cycle.
        outside: the inputs that are no roots, those of the step before last.
        layer_names: the names of all layers.
        targets: {layer: node} of every layer whose energy counts.
    """

    parents: tuple[tuple[str, Any], ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    cyclic: tuple[str, ...] = ()
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    sweeps: int = 10
    one_output: bool = True
    is_chain: bool = False
    predictors: tuple[tuple[str, Any, str], ...] = ()
    amortizers: tuple[tuple[str, Any, str], ...] = ()
    previous: tuple[tuple[str, tuple[int, ...]], ...] = ()
    names: tuple[str, ...] = dataclasses.field(init=False)
    outside: tuple[str, ...] = dataclasses.field(init=False)
    layer_names: tuple[str, ...] = dataclasses.field(init=False)
    targets: Mapping[str, str] = dataclasses.field(init=False, compare=False, repr=False)

    def __post_init__(self):
        names = tuple(name for name, _ in self.parents)
        object.__setattr__(self, "names", names)
        outside = tuple(name for name in self.inputs if name not in names)
        object.__setattr__(self, "outside", (*outside, *(name for name, _ in self.previous)))
        others = tuple(name for name, *_ in (*self.predictors, *self.amortizers))
        object.__setattr__(self, "layer_names", (*names, *others))
        targets = {name: name for name in names} | {name: node for name, _, node in self.predictors}
        object.__setattr__(self, "targets", targets)

    def belows(self, inputs: Any, tops: Mapping[str, Array]) -> dict[str, tuple[Array, ...]]:
        """Return what each layer predicts from.

        Args:
            inputs: as the user gave them.
            tops: what layers show to those above them.
        """
        seen = dict(tops)
        if len(self.inputs) == 1 and self.inputs == self.outside and hasattr(inputs, "shape"):
            seen[self.outside[0]] = inputs
        elif self.outside:
            seen |= self.external(inputs)
        belows = {}
        for name, parents, *_ in (*self.parents, *self.predictors):
            if isinstance(parents, Combine):
                belows[name] = self.below(name, parents, seen)
            else:
                belows[name] = tuple(seen[parent] for parent in parents)
        return belows

    def below(self, name: str, parents: Any, seen: Mapping[str, Array]) -> tuple[Array, ...]:
        """Return what one layer predicts from.

        Raises:
            ValueError: where a `Combine` refuses its parents' shapes.
        """
        arrays = tuple(seen[parent] for parent in names_of(parents))
        if not isinstance(parents, Combine):
            return arrays
        try:
            return (parents(*arrays),)
        except (TypeError, ValueError) as error:
            told = " and ".join(f"'{p}' {seen[p].shape}" for p in parents.names)
            raise ValueError(f"layer '{name}' {error}: {told}") from error

    def external(self, inputs: Any) -> dict[str, Array]:
        """Return the inputs that are no roots, by name.

        Raises:
            ValueError: for one that is missing or unknown.
        """
        given = self._given(inputs)
        found = {name: given.get(name) for name in self.outside}
        for name, array in found.items():
            if array is None:
                if self.is_chain:
                    raise ValueError(
                        "inputs are None, but the network has no root; give inputs, or put "
                        "pc.PCRoot(features) first to leave the root free"
                    )
                if name in dict(self.previous):
                    raise ValueError(
                        f"the network is predicted from the step before, but this is a sequence without "
                        f"time: '{name}' is missing; give it among the inputs, or go along a sequence by "
                        f"pc.learning.Temporal and pc.Filter"
                    )
                raise ValueError(f"input '{name}' is missing; give it, or make it a pc.PCRoot")
        return found  # type: ignore[return-value]

    def clamped_roots(self, inputs: Any) -> dict[str, Clamp]:
        """Return the roots that these inputs clamp.

        Raises:
            ValueError: for an unknown name, or a mask on what is no root.
        """
        given = self._given(inputs)
        return {
            name: array if isinstance(array, Clamp) else Clamp(jnp.asarray(array))
            for name, array in given.items()
            if name in self.names and array is not None
        }

    def _given(self, inputs: Any) -> dict[str, Any]:
        """Return the inputs by name."""
        names = self.inputs
        if isinstance(inputs, Mapping):
            names = (*names, *(name for name, _ in self.previous))
        given = {} if inputs is None else by_name(inputs, names)
        for name in self.outside:
            if isinstance(given.get(name), Clamp):
                title = "the inputs" if self.is_chain else f"the input '{name}'"
                raise ValueError(
                    f"{title} are known in part, but come from outside, so that nothing predicts the rest; "
                    f"make them a pc.PCRoot, which they clamp"
                )
        return given

    def groups(self) -> list[list[str]]:
        """Return the order in runs: a layer alone, or neighboring layers on cycles together."""
        groups: list[list[str]] = []
        for name in self.names:
            if name in self.cyclic and groups and groups[-1][0] in self.cyclic:
                groups[-1].append(name)
            else:
                groups.append([name])
        return groups


def by_name(value: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Return an array, or a dictionary of arrays, as a dictionary by these names."""
    if not isinstance(value, Mapping):
        if len(names) != 1:
            raise ValueError(
                f"expected a dictionary of arrays for {', '.join(names) or 'no name'}, got one array"
            )
        return {names[0]: value}
    for name in value:
        if name not in names:
            raise ValueError(f"unknown '{name}'; {known(name, names)}")
    return dict(value)


def names_of(parents: tuple[str, ...] | Combine) -> tuple[str, ...]:
    """Return the names of a layer's parents."""
    return parents.names if isinstance(parents, Combine) else parents


def known(name: str, names: Any) -> str:
    """Return what the names are, and which one was meant."""
    hint = did_you_mean(name, names).removeprefix("; ")
    return f"{hint + ' ' if hint else ''}expected some of {', '.join(names) or 'none'}"


def chain(layers: Mapping[str, PCLayer]) -> Wiring:
    """Return the wiring in which every layer's parent is the one before it."""
    names = tuple(layers)
    for name in names[1:]:
        if layers[name].is_root_node:
            raise ValueError(
                f"layer '{name}' is a PCRoot but not the first layer; a root has nothing below it"
            )
    first = names[0] if layers[names[0]].is_root_node else INPUTS
    belows = [() if first == names[0] else (INPUTS,), *((name,) for name in names[:-1])]
    parents = tuple(zip(names, belows, strict=True))
    return Wiring(parents, (first,), names[-1:], is_chain=True)


def checked_parents(
    layers: Mapping[str, PCLayer],
    parents: Mapping[str, Parents],
    inputs: tuple[str, ...],
    external: Mapping[str, tuple[int, ...]],
) -> dict[str, Any]:
    """Return every layer's parents as a tuple or a `Combine`; refuse what cannot be wired."""
    for name in parents:
        if name not in layers:
            raise ValueError(
                f"parents are given of '{name}', which is no layer; {known(name, layers)}"
            )
    for name in inputs:
        if name in external and name in layers:
            raise ValueError(f"'{name}' is an input and a layer at once; rename one of them")
        if name not in external and name not in layers:
            raise ValueError(
                f"the input '{name}' is no layer; give its shape, inputs={{'{name}': shape}}, or name a "
                f"PCRoot: {known(name, layers)}"
            )
        if name in layers and not layers[name].is_root_node:
            raise ValueError(
                f"the input '{name}' is a {type(layers[name]).__name__}; inputs are arrays from outside "
                f"(give a shape) or a pc.PCRoot, which they clamp"
            )
    wiring = {}
    for name, layer in layers.items():
        own = as_parents(parents.get(name, ()))
        for parent in names_of(own):
            if parent not in layers and parent not in external:
                raise ValueError(
                    f"layer '{name}' has the unknown parent '{parent}'; "
                    f"{known(parent, (*layers, *external))}"
                )
        if layer.is_root_node and names_of(own):
            raise ValueError(
                f"layer '{name}' is a PCRoot, which has no parents, got {names_of(own)}"
            )
        if not layer.is_root_node and not names_of(own):
            raise ValueError(
                f"layer '{name}' has no parents and no prior; give it parents, or make it a pc.PCRoot"
            )
        wiring[name] = own
    used = {parent for own in wiring.values() for parent in names_of(own)}
    for name in external:
        if name not in used:
            raise ValueError(f"the input '{name}' is no layer's parent; wire it, or leave it out")
    return wiring


def as_parents(parents: Parents) -> Any:
    """Return parents as a tuple of names or a `Combine`."""
    if isinstance(parents, Combine):
        return parents
    return (parents,) if isinstance(parents, str) else tuple(parents)


def order(parents: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the layers' names, parents first as far as cycles let, and those on cycles."""
    wiring = {name: names_of(own) for name, own in parents.items()}
    reach: dict[str, set[str]] = {}
    for name in wiring:
        seen: set[str] = set()
        waiting = [parent for parent in wiring[name] if parent in wiring]
        while waiting:
            parent = waiting.pop()
            if parent not in seen:
                seen.add(parent)
                waiting += [above for above in wiring[parent] if above in wiring]
        reach[name] = seen
    # layers that reach each other are one group; groups have no cycles
    group = {
        name: min((other for other in reach[name] if name in reach[other]), default=name)
        for name in wiring
    }
    sorter = graphlib.TopologicalSorter(
        {
            # a dictionary, whose order is that of insertion: an order of a set's would differ by process
            mine: dict.fromkeys(
                group[p]
                for n in wiring
                if group[n] == mine
                for p in wiring[n]
                if p in wiring and group[p] != mine
            )
            for mine in dict.fromkeys(group.values())
        }
    )
    ordered = [name for mine in sorter.static_order() for name in wiring if group[name] == mine]
    return tuple(ordered), tuple(name for name in ordered if name in reach[name])


def places(layers: Mapping[str, PCLayer], wiring: Wiring) -> dict[str, tuple[int, int]]:
    """Return (index, depth) of every layer that predicts from another.

    index: how many predicting nodes are below it on the longest path from an input. depth: one more than
    the largest index of a layer that is no output. Outputs have the largest index.
    """
    tops: dict[str, int] = {}
    for name, parents in wiring.parents:
        if not layers[name].is_root_node:
            below = max((tops.get(parent, 0) for parent in names_of(parents)), default=0)
            tops[name] = below + layers[name].num_nodes
    last = wiring.outputs
    depth = max((top if name in last else top + 1 for name, top in tops.items()), default=1)
    return {
        name: ((depth if name in last else top) - layers[name].num_nodes, depth)
        for name, top in tops.items()
    }
