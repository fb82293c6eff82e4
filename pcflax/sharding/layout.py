"""What lies where on a mesh: a few rules by the kind of state and its path.

- Parameters: a rule of the user's, else what the layer says itself (nnx's `out_sharding`), else the first
  axis of a stack's over `layers`, and the last axis over `features` where it divides.
- The optimizer's state: each array as the parameter whose path ends its own, such as
  `0.mu.hidden.linear.kernel`.
- Activities, and batches: the examples over `data`, a stack's layers over `layers`.
- All else: a stack's over `layers`, and whole on each device else.

Next file to read: `arrays.py`, which puts arrays there.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pcflax.checks import did_you_mean
from pcflax.typing import PyTree
from pcflax.variables import STACKED

from .arrays import put
from .placement import AXES, DATA, FEATURES, LAYERS, Placement, as_mesh


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh, and the places of a network's parameters on it.

    Attributes:
        mesh: the devices, with Auto axes.
        parameters: {path: (shape, spec)}.
    """

    mesh: Mesh
    parameters: Mapping[str, tuple[tuple[int, ...], PartitionSpec]]

    @classmethod
    def of(cls, owner: str, placement: Placement | Mesh, network: nnx.Module) -> Layout:
        """Return the layout of a network's state under a placement, or on a mesh of the user's own.

        Raises:
            TypeError, ValueError: for a placement that the network does not fit, naming what does not.
        """
        mesh, variables = as_mesh(owner, placement), _variables(network)
        rules = placement.rules if isinstance(placement, Placement) else ()
        names = {path.split(".")[0] for path in variables}
        for pattern, _ in rules:
            if not any(_fits(pattern, path) for path in variables):
                raise ValueError(
                    f"pc.sharding.rules names '{pattern}', which fits no layer and no parameter"
                    f"{did_you_mean(pattern, names)}; the layers are {', '.join(sorted(names))}"
                )
        layout = cls(mesh, {p: (v.shape, _spec(p, v, mesh, rules)) for p, v in variables.items()})
        if layout.size(LAYERS) > 1 and not layout.stacks:
            raise ValueError(
                f"the mesh spreads layers over {layout.size(LAYERS)} devices, but the network has no "
                f"pc.PCStack whose layers could be; leave layers out, or stack equal layers"
            )
        used = {axis for _, spec in layout.parameters.values() for axis in _axes(spec)}
        if (count := layout.size(FEATURES)) > 1 and FEATURES not in used:
            raise ValueError(
                f"the mesh spreads features over {count} devices, which divide the last axis of no "
                f"parameter; choose widths that are multiples of {count}, or leave features out"
            )
        return layout

    @classmethod
    def lying(cls, mesh: Mesh, network: nnx.Module) -> Layout:
        """Return the layout of a network that lies on a mesh already, as it does."""

        def spec(variable):
            place = variable[...].sharding
            return place.spec if isinstance(place, NamedSharding) else PartitionSpec()

        return cls(mesh, {p: (v.shape, trimmed(spec(v))) for p, v in _variables(network).items()})

    @property
    def stacks(self) -> set[str]:
        """The names of layers that are stacks."""
        return {path.split(".")[0] for path in self.parameters if STACKED in path.split(".")}

    def size(self, axis: str) -> int:
        """Return how many devices an axis has; 1 where the mesh has none of the name."""
        return self.mesh.shape.get(axis, 1)

    def place(self, path: str, shape: tuple[int, ...]) -> NamedSharding:
        """Return where the array of this path lies: a parameter, what is kept of one, or another."""
        parts = path.split(".")
        for begin in range(len(parts)):
            known = self.parameters.get(".".join(parts[begin:]))
            if known is not None and known[0] == shape:
                return NamedSharding(self.mesh, known[1])
        count = self.size(LAYERS)
        layered = STACKED in parts and count > 1 and shape and shape[0] % count == 0
        return NamedSharding(self.mesh, PartitionSpec(LAYERS) if layered else PartitionSpec())

    def places(self, tree: PyTree) -> PyTree:
        """Return where each array of a tree lies, by its path."""

        def one(path, leaf):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            return self.place(name, tuple(leaf.shape))

        return jax.tree_util.tree_map_with_path(one, tree)

    def places_of_activities(self, activities: Mapping[str, Any]) -> dict[str, NamedSharding]:
        """Return where activities by layer name lie, the batch first."""

        def one(name, leaf):
            wanted = (DATA, LAYERS) if name in self.stacks else (DATA,)
            axes = [
                axis if self.size(axis) > 1 and leaf.shape[number] % self.size(axis) == 0 else None
                for number, axis in enumerate(wanted)
            ]
            return NamedSharding(self.mesh, trimmed(axes))

        return {name: one(name, leaf) for name, leaf in activities.items()}

    def put(self, tree: PyTree) -> PyTree:
        """Return the tree where it belongs, by paths."""
        return put(tree, self.places(tree))


def _variables(network: nnx.Module) -> dict[str, Any]:
    """Return parameters by path."""
    return {
        ".".join(map(str, path[1:] if path[0] == "layers" else path)): variable
        for path, variable in nnx.to_flat_state(nnx.state(network, nnx.Param))
    }


def trimmed(axes: Any) -> PartitionSpec:
    """Return a spec in the one spelling that compiled programs return, without None at its end."""
    axes = list(axes)
    while axes and axes[-1] is None:
        axes.pop()
    return PartitionSpec(*axes)


def _spec(path: str, variable: Any, mesh: Mesh, rules: Any) -> PartitionSpec:
    shape = variable.shape
    for pattern, spec in rules:
        if _fits(pattern, path):
            _check(f"pc.sharding.rules place '{path}'", shape, spec, mesh)
            return trimmed(spec)
    stacked = STACKED in path.split(".")
    axes: list[Any] = [None] * len(shape)
    count = mesh.shape.get(LAYERS, 1)
    if stacked and count > 1:
        if shape[0] % count:
            raise ValueError(
                f"layer '{path.split('.')[0]}' stacks {shape[0]} layers, which do not divide among the "
                f"{count} devices of the axis '{LAYERS}'; choose a multiple, or other devices"
            )
        axes[0] = LAYERS
    said = variable.get_metadata().get("out_sharding")
    if said:
        own = PartitionSpec(*getattr(said, "spec", said))
        _check(f"the layer places '{path}'", shape[stacked:], own, mesh)
        axes[stacked : stacked + len(own)] = [_present(part, mesh) for part in own]
    elif len(shape) > stacked and (count := mesh.shape.get(FEATURES, 1)) > 1:
        axes[-1] = FEATURES if shape[-1] % count == 0 else None
    return trimmed(axes)


def _check(what: str, shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh) -> None:
    """Refuse unknown axes, and what does not divide."""
    for name in _axes(spec):
        if name not in AXES:
            raise ValueError(f"{what} on the axis '{name}'; expected the axes {', '.join(AXES)}")
    for number, part in enumerate(spec):
        count = math.prod(mesh.shape.get(name, 1) for name in _axes((part,)))
        if number >= len(shape) or shape[number] % count:
            raise ValueError(
                f"{what} at PartitionSpec{tuple(spec)}, but its shape {shape} has no axis {number} that "
                f"divides among {count} devices; choose another place"
            )


def _axes(spec: Any) -> list[str]:
    parts = [(part,) if isinstance(part, str) else (part or ()) for part in spec]
    return [name for part in parts for name in part]


def _present(part: Any, mesh: Mesh) -> Any:
    """Return the part of a spec that the mesh has."""
    found = tuple(name for name in _axes((part,)) if name in mesh.axis_names)
    return found[0] if len(found) == 1 else (found or None)


def _fits(pattern: str, path: str) -> bool:
    layer = path.split(".")[0]
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(layer, pattern)
