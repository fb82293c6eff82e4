"""Functions that hide a module, whose parameters would then never be trained, moved or saved.

NNX finds a module's arrays through its attributes. A function such as `lambda z: linear(z.reshape(8, -1))`
is one static value to it: what the function closes over, or reads as a global name, is out of sight.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from typing import Any

import jax
from flax import nnx

from pcflax.functions import global_names, held_in

# Their own functions hide nothing of a user's.
_LIBRARIES = ("jax", "jaxlib", "flax", "numpy", "optax")


def refuse_hidden_modules(owner: object, **functions: Any) -> None:
    """Refuse functions, by the name of their argument, that hide variables of NNX, also inside of others."""
    for name, function in functions.items():
        hidden = hidden_module(function)
        if hidden is not None:
            raise TypeError(
                f"{type(owner).__name__} expected {name} to be a module, or a function without one, got "
                f"a function around a {type(hidden).__name__}, which would never be trained or saved; "
                f"give modules themselves, as in nnx.Sequential(pc.layers.Flatten(), linear), or make "
                f"them attributes of a subclass of PCLayer with its own `predict`"
            )


def hidden_module(value: Any) -> Any:
    """Return what holds variables within a function, or within what is called as one; None for nothing."""
    return next(_hidden(value, False, set()), None)


def _hidden(value: Any, inside: bool, seen: set[tuple[int, bool]]) -> Iterator[Any]:
    """Yield what holds variables and is reached through a function; `inside` says that one was passed."""
    if (id(value), inside) in seen:
        return
    seen.add((id(value), inside))
    if inside and _holds_variables(value):
        yield value
    elif isinstance(value, nnx.Pytree | list | tuple | dict):
        parts = value if isinstance(value, list | tuple) else _fields(value)
        for part in parts:
            yield from _hidden(part, inside, seen)
    elif callable(value) and not isinstance(value, type | nnx.Variable):
        for part in _reached(value):
            yield from _hidden(part, True, seen)


def _reached(function: Any) -> list[Any]:
    """Return what a function holds: arguments, cells, global variables, and what it wraps."""
    if isinstance(function, functools.partial):
        return [function.func, function.args, function.keywords]
    if isinstance(function, types.MethodType):
        return [function.__self__, function.__func__]
    if hasattr(function, "__wrapped__"):
        return [function.__wrapped__]
    if str(getattr(function, "__module__", "")).split(".")[0] in _LIBRARIES:
        return []
    if not isinstance(function, types.FunctionType):
        return _fields(function)
    values = map(function.__globals__.get, global_names(function.__code__))
    reached = list(filter(_holds_variables, values))  # other names lead anywhere
    return [*reached, *held_in(function), function.__defaults__, function.__kwdefaults__]


def _fields(value: Any) -> list[Any]:
    return list((value if isinstance(value, dict) else getattr(value, "__dict__", {})).values())


def _holds_variables(value: Any) -> bool:
    return isinstance(value, nnx.Variable) or (
        isinstance(value, nnx.Pytree) and bool(jax.tree.leaves(nnx.state(value)))
    )
