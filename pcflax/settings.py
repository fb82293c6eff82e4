"""Settings are values: algorithms, rules, starts, stops and problems as pytrees whose numbers are leaves.

A frozen dataclass that inherits from `Settings` passes through `jit`, `vmap` and `scan` as an argument.
Its floats, arrays and modules are leaves, so that another step size needs no other program, a rate can
be mapped over, and no array becomes a constant of a compiled program. All else is structure, compared by
value: functions, too, by their code and what they close over, so that two `optax.sgd(0.1)` are one.

`Argument` does the same for an object of a user's own, such as an initializer. `joined` makes one value of
several that differ in numbers alone, so that a program can be mapped over them.
"""

from __future__ import annotations

import dataclasses
import enum
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pcflax.functions import as_cell, global_names, held_in
from pcflax.typing import PyTree


class Settings:
    """A frozen dataclass whose floats and arrays are leaves of a pytree.

    A field with `metadata={"static": True}` stays part of the structure, whatever it holds.

    >>> import dataclasses, jax
    >>> @dataclasses.dataclass(frozen=True)
    ... class Decay(Settings):
    ...     rate: float
    ...     num_steps: int = 3
    >>> jax.tree.leaves(Decay(0.5)), jax.tree.map(lambda rate: 2 * rate, Decay(0.5))
    ([0.5], Decay(rate=1.0, num_steps=3))
    """

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        jax.tree_util.register_pytree_node(cls, _flatten, _unflatten)


@jax.tree_util.register_pytree_node_class
class Argument:
    """Any object as an argument of a compiled program; see the head of this file."""

    def __init__(self, value: Any):
        self.value = value

    def tree_flatten(self) -> tuple[list, Any]:
        """Return arrays and modules as leaves, and the rest."""
        leaves: list = []
        return leaves, _take(self.value, leaves)

    @classmethod
    def tree_unflatten(cls, structure: Any, leaves: Any) -> Argument:
        """Put the object together again."""
        return cls(structure.build(iter(leaves)))


def joined(values: Sequence[Any]) -> tuple[Any, list[jax.Array]]:
    """Return one value in the place of several, and its numbers that differ, each (len(values),).

    Numbers are floats and arrays wherever they are, in functions' closures too, so that the learning rates
    of `optax.adam(0.1)` and `optax.adam(0.2)` are joined. What is equal stays as it is.

    Raises:
        ValueError: where the values differ in more than numbers.

    >>> import optax
    >>> both, numbers = joined([optax.sgd(0.1), optax.sgd(0.2)])
    >>> numbers
    [Array([-0.1, -0.2], dtype=float32, weak_type=True)]
    """
    taken = []
    for value in values:
        leaves: list = []
        taken.append((_take(value, leaves, _Floats.ALL), leaves))
    structure = taken[0][0]
    columns = [own for _, own in taken]
    if any(other != structure for other, _ in taken) or any(
        list(map(np.shape, own)) != list(map(np.shape, columns[0])) for own in columns
    ):
        raise ValueError("the values differ in more than numbers")
    leaves, numbers, kept = [], [], []
    for first, *rest in zip(*columns, strict=True):
        differs = not all(np.array_equal(first, other) for other in rest)
        if differs:  # weakly typed where all are floats
            first = jnp.stack([jnp.asarray(one) for one in (first, *rest)])
            numbers.append(first)
        leaves.append((first, differs))
    return _fixed(structure, iter(leaves), kept).build(iter(kept)), numbers


def _fixed(part: Any, leaves: Iterator[tuple[Any, bool]], kept: list) -> Any:
    """Return the structure in which floats that are equal are no leaves; `kept` gets those that are."""
    if isinstance(part, _Leaf):
        leaf, differs = next(leaves)
        if type(leaf) is float and not differs:
            return _Static(leaf)
        kept.append(leaf)
    if isinstance(part, _Subtree):
        kept += [next(leaves)[0] for _ in range(part.count)]
    if isinstance(part, _Function):
        return dataclasses.replace(part, parts=_fixed(part.parts, leaves, kept))
    if isinstance(part, _Object):
        parts = tuple(_fixed(own, leaves, kept) for own in part.parts)
        return dataclasses.replace(part, parts=parts)
    return part


class _Floats(enum.IntEnum):
    """Which floats are leaves."""

    NONE = 0
    OF_FIELDS = 1  # but not those that functions read
    ALL = 2


def _read_by_functions(floats: _Floats) -> _Floats:
    return floats if floats is _Floats.ALL else _Floats.NONE


def _flatten(settings: Settings) -> tuple[list, Any]:
    leaves: list = []
    return leaves, _take_settings(settings, leaves, _Floats.OF_FIELDS)


def _unflatten(structure: Any, leaves: Any) -> Any:
    return structure.build(iter(leaves))


@dataclasses.dataclass(frozen=True)
class _Leaf:
    def build(self, leaves):
        return next(leaves)


@dataclasses.dataclass(frozen=True)
class _Static:
    value: Any

    def build(self, leaves):
        del leaves  # nothing in it changes
        return self.value

    def __eq__(self, other):
        # 1, 1.0 and True are equal, and not the same
        return (
            type(other) is _Static
            and type(self.value) is type(other.value)
            and (self.value is other.value or bool(self.value == other.value))
        )

    def __hash__(self):
        return hash((type(self.value), self.value))


@dataclasses.dataclass(frozen=True)
class _Subtree:
    """A pytree of jax's own, as modules are: its leaves, and how to put them together."""

    build_tree: Callable[..., Any]
    count: int
    structure: Any

    def build(self, leaves):
        return self.build_tree(self.structure, [next(leaves) for _ in range(self.count)])


@dataclasses.dataclass(frozen=True)
class _Object:
    """A dataclass, or a container, and what it holds by name."""

    kind: type
    names: tuple
    parts: tuple

    def build(self, leaves):
        values = [part.build(leaves) for part in self.parts]
        if issubclass(self.kind, Mapping):
            return dict(zip(self.names, values, strict=True))
        if issubclass(self.kind, list | tuple) and not hasattr(self.kind, "_fields"):
            return self.kind(values)
        if issubclass(self.kind, tuple) or self.kind is types.MethodType:
            return self.kind(*values)
        made = object.__new__(self.kind)  # past __init__, which would check what is traced
        for name, value in zip(self.names, values, strict=True):
            object.__setattr__(made, name, value)
        return made


@dataclasses.dataclass(frozen=True)
class _Function:
    """A function by its code and what it reads: cells, defaults and global names; arrays are leaves."""

    code: types.CodeType
    module: int
    parts: _Object
    function: _Identity

    def build(self, leaves):
        read: Any = self.parts.build(leaves)
        old = self.function.value
        if not _has_leaves(self.parts):
            return old
        made = types.FunctionType(
            old.__code__,
            {**old.__globals__, **read["globals"]},
            old.__name__,
            read["defaults"],
            tuple(map(as_cell, read["cells"])),
        )
        made.__kwdefaults__ = read["keywords"] or None
        return made


@dataclasses.dataclass(frozen=True)
class _Identity:
    """What is carried along and not compared."""

    value: Any

    def __eq__(self, other):
        return type(other) is _Identity

    def __hash__(self):
        return 0


def _has_leaves(part: Any) -> bool:
    if isinstance(part, _Object):
        return any(map(_has_leaves, part.parts))
    if isinstance(part, _Function):
        return _has_leaves(part.parts)
    return isinstance(part, _Leaf) or (isinstance(part, _Subtree) and part.count > 0)


_PLAIN = frozenset({type(None), bool, int, float, str, type, types.BuiltinFunctionType})


def _take(value: Any, leaves: list, floats: _Floats = _Floats.NONE) -> Any:
    """Return the structure of a value, and append its leaves to `leaves`."""
    if isinstance(value, np.generic):
        value = value.item()  # a number of NumPy's is as hashable as Python's
    if floats and type(value) is float:
        leaves.append(value)
        return _Leaf()
    # what there is most of first: this is walked at every call of a program
    kind = type(value)
    if kind in _PLAIN:
        return _Static(value)
    if kind is tuple or kind is list:
        parts = tuple([_take(part, leaves, floats) for part in value])
        return _Object(kind, tuple(range(len(parts))), parts)
    if kind is dict:
        parts = tuple([_take(part, leaves, floats) for part in value.values()])
        return _Object(dict, tuple(value), parts)
    if kind is types.FunctionType:
        return _take_function(value, leaves, _read_by_functions(floats))
    if isinstance(value, np.ndarray | jax.Array):
        leaves.append(value)
        return _Leaf()
    if isinstance(value, nnx.Module | nnx.Variable):
        graphdef, state = nnx.split(value)
        flat, structure = jax.tree.flatten(nnx.as_pure(state))
        leaves += flat
        return _Subtree(_merge, len(flat), (graphdef, structure))
    if isinstance(value, Settings):
        return _take_settings(value, leaves, max(floats, _Floats.OF_FIELDS))
    if _is_foreign_dataclass(value):
        return _Object(*_fields(value, leaves, floats))
    if kind is types.MethodType:
        read = (value.__func__, value.__self__)
        parts = tuple(_take(part, leaves, _read_by_functions(floats)) for part in read)
        return _Object(types.MethodType, ("func", "self"), parts)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        parts = tuple(_take(part, leaves, floats) for part in value)
        return _Object(kind, tuple(range(len(parts))), parts)
    return _other(value, leaves)


def _take_settings(settings: Settings, leaves: list, floats: _Floats) -> Any:
    """Return the structure of settings; a plain class is compared by what it holds now, if it can be."""
    kind = type(settings)
    if dataclasses.is_dataclass(settings):
        return _Object(*_fields(settings, leaves, floats))
    compares_itself = kind.__hash__ is not object.__hash__
    if compares_itself or any(vars(base).get("__slots__") for base in kind.__mro__):
        return _Static(settings)
    return _or_as_it_is(
        settings, leaves, lambda own: _Object(*_fields(settings, own, _Floats.NONE))
    )


_inside = threading.local()  # its `values`: the functions and objects that are being taken apart


class _AroundItselfError(Exception):
    """Something holds itself."""


def _or_as_it_is(value: Any, leaves: list, take: Callable[[list], Any]) -> Any:
    """Return what `take` finds in a value; one that is around itself, or cannot be compared, as it is."""
    found, inside = [], vars(_inside).setdefault("values", [])
    if any(value is one for one in inside):
        raise _AroundItselfError(value)
    inside.append(value)
    try:
        part = take(found)
    except (TypeError, ValueError, RecursionError, _AroundItselfError) as error:
        if isinstance(error, _AroundItselfError) and error.args[0] is not value:
            raise
        return _Static(value)
    finally:
        inside.pop()
    leaves += found
    return part


def _other(value: Any, leaves: list) -> Any:
    """Return a value that is structure where it can be compared, a pytree of jax's own where it cannot."""
    if _is_plain(value) and not vars(_inside).get("values"):  # what others hold may lead anywhere
        return _or_as_it_is(value, leaves, lambda own: _Object(*_fields(value, own, _Floats.NONE)))
    try:
        hash(value)
        return _Static(value)
    except TypeError:
        flat, structure = jax.tree.flatten(value)
        if len(flat) == 1 and flat[0] is value:
            raise TypeError(
                f"{value!r} can be no part of settings, since it can neither be compared nor traced; "
                f"make it a number, an array, a function or a frozen dataclass"
            ) from None
        leaves += flat
        return _Subtree(jax.tree.unflatten, len(flat), structure)


def _fields(value: Any, leaves: list, floats: _Floats) -> tuple[type, tuple, tuple]:
    """Return the class of an object, its attributes' names, and their structures."""
    fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
    fixed = {f.name for f in fields if f.metadata.get("static", False)}
    names = [f.name for f in fields]
    names += [name for name in getattr(value, "__dict__", {}) if name not in names]
    parts = []
    for name in names:
        own = getattr(value, name)
        parts.append(_Static(own) if name in fixed else _take(own, leaves, floats))
    return type(value), tuple(names), tuple(parts)


def _merge(structure: tuple[Any, Any], leaves: list) -> PyTree:
    graphdef, tree = structure
    return nnx.merge(graphdef, jax.tree.unflatten(tree, leaves), copy=True)


def _is_foreign_dataclass(value: Any) -> bool:
    """Return whether this is a dataclass that jax does not know as a pytree."""
    known = isinstance(value, type) or not jax.tree_util.all_leaves([value])
    return dataclasses.is_dataclass(value) and not known


def _is_plain(value: Any) -> bool:
    """Return whether this is an object of a user's class that Python compares by identity."""
    kind, plain = type(value), object
    own = kind.__new__ is plain.__new__ and kind.__hash__ is plain.__hash__
    return own and bool(getattr(value, "__dict__", None)) and _package(kind) not in _LIBRARIES


def _package(value: Any) -> str:
    return str(value.__module__).split(".")[0]


# Their functions read no global name that changes.
_LIBRARIES = ("jax", "jaxlib", "flax", "numpy", "optax", "pcflax", "lineax", "diffrax", "equinox")


def _take_function(function: types.FunctionType, leaves: list, floats: _Floats) -> Any:
    """Return a function's structure; one around what cannot be compared, or itself, is compared as it is."""
    names: list[str] = []
    if _package(function) not in _LIBRARIES:
        names = [name for name in global_names(function.__code__) if name in function.__globals__]

    def take(found: list) -> Any:
        read = {
            "cells": held_in(function),
            "defaults": function.__defaults__,
            "keywords": dict(function.__kwdefaults__ or {}),
            "globals": {name: function.__globals__[name] for name in names},
        }
        parts = _take(read, found, floats)
        return _Function(function.__code__, id(function.__globals__), parts, _Identity(function))

    return _or_as_it_is(function, leaves, take)
