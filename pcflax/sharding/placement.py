"""Placements: over how many devices examples, a stack's layers and features are spread.

    mesh = pc.sharding.data(2) | pc.sharding.layers(4)      # eight devices
    trainer = pc.Trainer(network, optimizer, learning=rule, mesh=mesh)

A placement is a value that names devices by axis. What lies where on them is in `layout.py`, the next file
to read.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from pcflax.checks import expect_count, expect_kind

DATA, LAYERS, FEATURES = AXES = ("data", "layers", "features")


@dataclasses.dataclass(frozen=True)
class Placement:
    """Devices by axis, and rules of the user's own; made by `data`, `layers`, `features` and `rules`.

    Placements are combined by `|`. The devices of one example are neighbors, those of one feature most of
    all, since they talk the most.

    Attributes:
        sizes: ((axis, how many devices; None for all that are left), ...).
        rules: ((pattern, `PartitionSpec`), ...), of which the first that fits counts.

    Raises:
        ValueError: for an axis that is there twice, and two axes that take what is left.

    >>> import pcflax as pc
    >>> pc.sharding.data(2) | pc.sharding.layers(4)
    data(2) | layers(4)
    """

    sizes: tuple[tuple[str, int | None], ...] = ()
    rules: tuple[tuple[str, PartitionSpec], ...] = ()

    def __post_init__(self):
        names = [name for name, _ in self.sizes]
        if len(set(names)) < len(names):
            raise ValueError(f"{self} has an axis twice; give it one number of devices")
        if [size for _, size in self.sizes].count(None) > 1:
            raise ValueError(
                f"{self} has two axes that take all devices that are left; give a number to one of them"
            )

    def __or__(self, other: Placement) -> Placement:
        """Return both at once."""
        if not isinstance(other, Placement):
            return NotImplemented
        return Placement(self.sizes + other.sizes, self.rules + other.rules)

    def __repr__(self) -> str:
        """Return it as it is written."""
        parts = [f"{name}({'' if size is None else size})" for name, size in self.sizes]
        parts += [f"rules({dict(self.rules)!r})"] * bool(self.rules)
        return " | ".join(parts) or "Placement()"

    def mesh(self, devices: Sequence[Any] | None = None) -> Mesh:
        """Return the mesh of these devices, the first ones there are, with the three axes in order.

        Args:
            devices: all devices unless given.

        Raises:
            ValueError: where there are fewer, or those that are left do not divide.

        >>> import pcflax as pc
        >>> dict(pc.sharding.data(1).mesh().shape)
        {'data': 1, 'layers': 1, 'features': 1}
        """
        devices = jax.devices() if devices is None else list(devices)
        sizes = dict(self.sizes)
        known = math.prod(size for size in sizes.values() if size is not None)
        if known > len(devices):
            raise ValueError(
                f"{self} takes {known} devices, and there are {len(devices)}; give smaller numbers"
            )
        left = len(devices) // known
        if None in sizes.values() and len(devices) % known:
            raise ValueError(
                f"{self} leaves {len(devices)} devices to be divided by {known}; give numbers that divide "
                f"them"
            )
        shape = tuple(left if (n := sizes.get(name, 1)) is None else n for name in AXES)
        return _mesh(shape, tuple(devices[: math.prod(shape)]))


@functools.cache
def _mesh(shape: tuple[int, ...], devices: tuple[Any, ...]) -> Mesh:
    # Auto: XLA moves what has to be moved, and the numbers are those of one device
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def data(n: int | None = None) -> Placement:
    """Return the placement of a batch's examples over n devices, all that are left unless given.

    Every device holds all parameters. Nothing moves in inference, since no example depends on another; a
    batch ends with one sum of the gradient over the devices. The batch size is a multiple of n.

    Raises:
        TypeError, ValueError: for what is no count of at least 1.

    >>> import pcflax as pc
    >>> pc.sharding.data(4)
    data(4)
    """
    return _one(DATA, n)


def layers(n: int | None = None) -> Placement:
    """Return the placement of the layers of each `PCStack` over n devices, all that are left unless given.

    Every device holds depth/n neighboring layers, with their weights, activities and the optimizer's state,
    and the layers outside of stacks. In a step of inference neighbors exchange one activity,
    (batch, width), each way. The pass upward, and error coordinates, go from device to device; weights never
    move. Each stack's depth is a multiple of n.

    Raises:
        TypeError, ValueError: for what is no count of at least 1.

    >>> import pcflax as pc
    >>> pc.sharding.layers(4)
    layers(4)
    """
    return _one(LAYERS, n)


def features(n: int | None = None) -> Placement:
    """Return the placement of every parameter's last axis over n devices, all that are left unless given.

    Known as tensor parallelism: each device computes its part of every prediction, and activities move at
    every step. A parameter whose last axis n does not divide is whole on each device.

    Raises:
        TypeError, ValueError: for what is no count of at least 1.

    >>> import pcflax as pc
    >>> pc.sharding.features(4)
    features(4)
    """
    return _one(FEATURES, n)


def rules(places: Mapping[str, PartitionSpec]) -> Placement:
    """Return places of one's own for some parameters and their optimizer's state, before all others.

    Args:
        places: {name or pattern of a layer or of a parameter's path: `jax.sharding.PartitionSpec` over the
            axes "data", "layers" and "features"}; `PartitionSpec()` is whole on each device.

    Raises:
        TypeError: for another kind of place.

    >>> import pcflax as pc
    >>> from jax.sharding import PartitionSpec as P
    >>> placement = pc.sharding.features(2) | pc.sharding.rules({"output": P(), "*.bias": P()})
    """
    expect_kind("rules", "places", places, Mapping, "{'output': PartitionSpec()}")
    for pattern, spec in places.items():
        expect_kind("rules", f"a place for '{pattern}'", spec, PartitionSpec, "PartitionSpec()")
    return Placement(rules=tuple(places.items()))


def _one(axis: str, n: int | None) -> Placement:
    return Placement(((axis, None if n is None else expect_count(axis, "n", n, least=1)),))


def as_mesh(owner: str, mesh: Any) -> Mesh:
    """Return the mesh of a placement, or of the user's own with the same names of axes, all of them Auto.

    Raises:
        TypeError: for what is neither.
        ValueError: for another name of an axis.
    """
    if isinstance(mesh, Placement):
        return mesh.mesh()
    expect_kind(owner, "mesh", mesh, Mesh, "pc.sharding.data()")
    unknown = [name for name in mesh.axis_names if name not in AXES]
    if unknown:
        raise ValueError(
            f"{owner} got a mesh with the axis '{unknown[0]}'; expected axes named {', '.join(AXES)}"
        )
    devices = np.asarray(mesh.devices)
    return Mesh(devices, mesh.axis_names, axis_types=(AxisType.Auto,) * devices.ndim)
