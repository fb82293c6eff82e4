"""What a function reads besides its arguments: the cells of its closure and global names."""

from __future__ import annotations

import dis
import enum
import functools
import types
from typing import Any


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
