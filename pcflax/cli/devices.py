"""`--mesh data=2,layers=4`: the devices that share a run's work, as `pc.sharding` places them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .usage import UsageError, nearest

if TYPE_CHECKING:
    from pcflax.sharding import Placement

_AXES = ("data", "layers", "features")


def parse_mesh(text: str) -> dict[str, int | None]:
    """Return {axis: how many devices; None for all that are left}.

    Raises:
        UsageError: for another axis, one that is there twice, what is no count, and two without one.
    """
    found: dict[str, int | None] = {}
    for part in text.split(","):
        axis, equals, count = (one.strip() for one in part.partition("="))
        if axis not in _AXES:
            guess = nearest(axis, _AXES)
            remedy = f"; did you mean {guess}?" if guess else ""
            raise UsageError(
                f"--mesh {text}: expected axes of {', '.join(_AXES)}, such as data=2,layers=4, got "
                f"'{axis}'{remedy}"
            )
        if axis in found:
            raise UsageError(f"--mesh {text} has {axis} twice; give it one number of devices")
        if equals and not (count.isascii() and count.isdecimal() and int(count) >= 1):
            raise UsageError(
                f"--mesh {text}: expected {axis}=N with N devices of at least 1, got '{count}'"
            )
        found[axis] = int(count) if equals else None
    if (left := [axis for axis, size in found.items() if size is None])[1:]:
        raise UsageError(
            f"--mesh {text}: {' and '.join(left)} both take all devices that are left; give a number to "
            f"one of them"
        )
    return found


def placement(text: str | None) -> Placement | None:
    """Return the placement that a --mesh stands for; None without one.

    Raises:
        ValueError: where there are fewer devices, or those that are left do not divide.
    """
    if text is None:
        return None
    import jax

    from pcflax.sharding import Placement

    sizes = parse_mesh(text)
    known, there = math.prod(size or 1 for size in sizes.values()), jax.device_count()
    if known > there or (None in sizes.values() and there % known):
        wanted = f"takes {known}" if known > there else f"wants a multiple of {known}"
        raise ValueError(
            f"--mesh {text} {wanted} devices, got {there} of {jax.devices()[0].platform}; give other "
            f"numbers, or --mesh None for one device"
        )
    return Placement(tuple(sizes.items()))


def divided(batch_size: int, text: str | None) -> int:
    """Return the largest batch size of at most this one that the devices of data divide."""
    found = placement(text)
    count = 1 if found is None else found.mesh().shape["data"]
    return max(batch_size // count, 1) * count
