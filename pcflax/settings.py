"""Settings are values: algorithms, rules, starts and stops as pytrees whose numbers are leaves.

A frozen dataclass that inherits from `Settings` passes through `jit`, `vmap` and `scan` as an argument.
Its floats, arrays and modules are leaves, so that another step size needs no other program, a rate can
be mapped over, and no array becomes a constant of a compiled program. All else is structure, compared by
value: functions, too, by their code and what they close over, so that two `optax.sgd(0.1)` are one.

`Argument` does the same for an object of a user's own, such as an initializer.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

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
        return leaves, _take(self.value, leaves, floats=False)

    @classmethod
    def tree_unflatten(cls, structure: Any, leaves: Any) -> Argument:
        """Put the object together again."""
        return cls(structure.build(iter(leaves)))


def _flatten(settings: Settings) -> tuple[list, Any]:
    leaves: list = []
    if not dataclasses.is_dataclass(settings):  # a plain class is compared as it compares itself
        return leaves, _Static(settings)
    return leaves, _Object(*_fields(settings, leaves, floats=True))


def _unflatten(structure: _Object, leaves: Any) -> Any:
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
        if self.kind is dict:
            return dict(zip(self.names, values, strict=True))
        if self.kind in (list, tuple):
            return self.kind(values)
        if issubclass(self.kind, tuple):
            return self.kind(*values)
        made = object.__new__(self.kind)  # past __init__, which would check what is traced
        for name, value in zip(self.names, values, strict=True):
            object.__setattr__(made, name, value)
        return made


@dataclasses.dataclass(frozen=True, eq=False)
class _Function:
    """A function by its code and what it closes over; the arrays in it are leaves."""

    function: Any
    cells: tuple
    has_leaves: bool

    def build(self, leaves):
        values = [part.build(leaves) for part in self.cells]
        if not self.has_leaves:
            return self.function
        old = self.function
        closure = tuple(types.CellType(value) for value in values)
        return types.FunctionType(
            old.__code__, old.__globals__, old.__name__, old.__defaults__, closure
        )

    def _key(self):
        own = self.function  # the same code means something else among other globals
        return own.__code__, id(own.__globals__), self.cells, own.__defaults__

    def __eq__(self, other):
        if type(other) is not _Function:
            return False
        return self.function is other.function or self._key() == other._key()

    def __hash__(self):
        return hash((self.function.__code__, self.cells))


def _take(value: Any, leaves: list, *, floats: bool) -> Any:
    """Return the structure of a value, and append its leaves to `leaves`."""
    if isinstance(value, np.generic):
        value = value.item()  # a number of NumPy's is as hashable as Python's
    if isinstance(value, np.ndarray | jax.Array) or (floats and type(value) is float):
        leaves.append(value)
        return _Leaf()
    if isinstance(value, nnx.Module | nnx.Variable):
        graphdef, state = nnx.split(value)
        flat, structure = jax.tree.flatten(nnx.as_pure(state))
        leaves += flat
        return _Subtree(_merge, len(flat), (graphdef, structure))
    if isinstance(value, Settings) or _is_foreign_dataclass(value):
        return _Object(*_fields(value, leaves, floats=floats))
    if isinstance(value, types.FunctionType) and not value.__kwdefaults__:
        found: list = []
        try:
            cells = tuple(
                _take(cell.cell_contents, found, floats=False) for cell in value.__closure__ or ()
            )
        except (TypeError, ValueError, RecursionError):
            return _Static(value)  # it holds what cannot be compared, nothing yet, or itself
        leaves += found
        return _Function(value, cells, bool(found))
    if type(value) in (tuple, list, dict) or (
        isinstance(value, tuple) and hasattr(value, "_fields")
    ):
        items = value if isinstance(value, dict) else dict(enumerate(value))  # type: ignore
        parts = tuple(_take(part, leaves, floats=floats) for part in items.values())
        return _Object(type(value), tuple(items), parts)
    return _other(value, leaves)


def _other(value: Any, leaves: list) -> Any:
    """A value that is structure where it can be compared, a pytree of jax's own where it cannot."""
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


def _fields(value: Any, leaves: list, *, floats: bool) -> tuple[type, tuple, tuple]:
    """The class of a dataclass, its fields' names, and their structures."""
    names, parts = [], []
    for field in dataclasses.fields(value):
        names.append(field.name)
        own = getattr(value, field.name)
        fixed = field.metadata.get("static", False)
        parts.append(_Static(own) if fixed else _take(own, leaves, floats=floats))
    return type(value), tuple(names), tuple(parts)


def _merge(structure: tuple[Any, Any], leaves: list) -> PyTree:
    graphdef, tree = structure
    return nnx.merge(graphdef, jax.tree.unflatten(tree, leaves), copy=True)


def _is_foreign_dataclass(value: Any) -> bool:
    """Whether this is a dataclass that jax does not know as a pytree."""
    known = isinstance(value, type) or not jax.tree_util.all_leaves([value])
    return dataclasses.is_dataclass(value) and not known
