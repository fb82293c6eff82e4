"""What a function reads besides its arguments: the cells of its closure and global names.

And whether two objects hold the same.
"""

from __future__ import annotations

import dis
import enum
import functools
import types
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


class Empty(enum.Enum):
    """What a cell holds whose variable was never set."""

    CELL = 0


def held_in(function: types.FunctionType) -> tuple[Any, ...]:
    """Return what a function closes over, `Empty.CELL` in the place of a variable that was never set."""
    return tuple(map(_held, function.__closure__ or ()))


def _held(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return Empty.CELL


def as_cell(value: Any) -> types.CellType:
    """Return a cell that holds this, or nothing for `Empty.CELL`."""
    return types.CellType() if value is Empty.CELL else types.CellType(value)


@functools.cache
def global_names(code: types.CodeType) -> tuple[str, ...]:
    """Return the global names that a function, and those within it, read."""
    names: list[str] = []
    for instruction in dis.get_instructions(code):
        if instruction.opname == "LOAD_GLOBAL":
            names.append(instruction.argval)
        elif isinstance(instruction.argval, types.CodeType):  # a function inside
            names += global_names(instruction.argval)
    return tuple(dict.fromkeys(names))


def same_values(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two mappings hold equal values, arrays by their numbers.

    >>> same_values({"w": np.ones(2)}, {"w": np.ones(2)}), same_values({"w": np.ones(2)}, {"w": 1.0})
    (True, False)
    """
    return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)


def _same(one: Any, other: Any) -> bool:
    arrays = [isinstance(value, np.ndarray | jax.Array) for value in (one, other)]
    if any(arrays):
        return all(arrays) and one.dtype == other.dtype and np.array_equal(one, other)
    return one is other or bool(one == other)
