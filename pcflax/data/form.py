"""The form of a loader's batches: taken from the first, which every other is checked against.

A batch goes the way of a user's arrays, through `examples.py`. Next file to read: `loader.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from pcflax.checks import did_you_mean
from pcflax.typing import PyTree

from .arrays import stored_as
from .examples import told


class Form:
    """Makes stored inputs and targets of what a loader gives.

    Args:
        raw: the first batch. All others are as in `from_loader`, but
        num_classes: may be a function of the first batch's inputs as the network sees them.

    Attributes:
        first: the first batch, as it is stored.
        size: its number of examples.
        decoder: what makes a batch of stored ones.
    """

    def __init__(
        self,
        name: str,
        raw: Any,
        *,
        keys: tuple[str | None, str | None] | None,
        num_classes: int | Mapping[str, int] | Callable[[PyTree], int | None] | None,
        flatten: bool,
        integer_inputs: bool,
    ):
        self.name, self.keys = name, keys
        self._options = {"integer_inputs": integer_inputs, "name": name, "flatten": flatten}
        parts = self._parts(raw, 0)
        self._options["num_classes"] = classes = self._width(parts, num_classes)
        stored, self.decoder = stored_as(*parts, **self._options)
        if self.decoder.num_classes is not None and classes is None:
            raise ValueError(
                f"'{name}' has whole numbers as labels, and a batch does not say how many classes there "
                f"are; write pc.data.from_loader(loader, num_classes=10)"
            )
        self.first = (stored.inputs, stored.targets)
        self.size = size_of(self.first)
        self._shapes = _shapes(self.first)

    def __call__(self, raw: Any, number: int) -> PyTree:
        """Return a batch as it is stored, like the first but for its size, which may be smaller."""
        parts = self._parts(raw, number)
        try:
            stored, _ = stored_as(*parts, **self._options)
        except (TypeError, ValueError) as error:
            raise type(error)(f"batch {number} of '{self.name}': {error}") from None
        items = (stored.inputs, stored.targets)
        if _shapes(items) != self._shapes or size_of(items) > self.size:
            raise ValueError(
                f"batch {number} of '{self.name}' has {_shown(items)}, and the first had "
                f"{_shown(self.first)}; give batches of one shape and dtype"
            )
        return items

    def count(self, raw: Any, number: int) -> int | None:
        """Return how many examples a batch has, as the loader gives it; None where it gives none."""
        parts = jax.tree.leaves(self._parts(raw, number))
        return len(parts[0]) if parts else None

    def _parts(self, raw: Any, number: int) -> tuple[Any, Any]:
        """Return inputs and targets of a batch, as NumPy's arrays."""
        title = f"batch {number} of '{self.name}'"
        if isinstance(raw, Mapping):
            parts = [None if key is None else raw[key] for key in self._keys_of(raw)]
        elif self.keys is not None:
            kind = type(raw).__name__
            raise TypeError(f"{title} is a {kind}, which has no keys; leave out keys")
        else:
            parts = list(raw) if isinstance(raw, tuple | list) else [raw]
        if not 1 <= len(parts) <= 2:
            raise ValueError(f"{title} has {len(parts)} parts, expected (inputs, targets)")
        try:
            inputs, targets = map(_as_arrays, [*parts, None][:2])
        except Exception as error:
            raise TypeError(
                f"{title} cannot become NumPy's arrays ({told(error)}); give arrays or tensors on the CPU"
            ) from error
        if any(leaf.ndim == 0 for leaf in jax.tree.leaves((inputs, targets))):
            raise ValueError(
                f"'{self.name}' gives one example at a time, expected batches; end the pipeline with "
                f".batch(64)"
            )
        return inputs, targets

    def _keys_of(self, raw: Mapping[Any, Any]) -> tuple[Any, Any]:
        known = [str(key) for key in raw]
        title = f"batches of '{self.name}' have the keys {', '.join(map(repr, known))}"
        if self.keys is None:
            two = ", ".join([*map(repr, known), "None"][:2])
            raise ValueError(
                f"{title}; say which are inputs and targets: pc.data.from_loader(loader, keys=({two}))"
            )
        for key in self.keys:
            if key is not None and key not in raw:
                raise ValueError(f"{title}, and not '{key}'{did_you_mean(key, known)}")
        return self.keys

    def _width(self, parts: tuple[Any, Any], num_classes: Any) -> Any:
        """Return `num_classes`, found from the inputs where it is a function and there are labels."""
        if not callable(num_classes):
            return num_classes
        inputs, labels = parts
        if isinstance(labels, tuple):
            labels = labels[0]
        whole = isinstance(labels, np.ndarray) and labels.dtype.kind in "iu" and labels.ndim < 3
        if not whole or inputs is None:
            return None
        stored, decoder = stored_as(inputs, None, num_classes=None, **self._options)
        return num_classes(decoder(stored.inputs, None).inputs)


def size_of(items: PyTree) -> int:
    """Return how many examples a batch has."""
    return len(jax.tree.leaves(items)[0])


def _as_arrays(part: Any) -> Any:
    """Return inputs or targets as arrays: one, several by name, or (values, mask)."""
    if part is None:
        return None
    if isinstance(part, Mapping):
        return {key: _as_arrays(value) for key, value in part.items()}
    if isinstance(part, tuple) and len(part) == 2:
        return tuple(np.asarray(each) for each in part)
    return np.asarray(part)


def _shapes(items: PyTree) -> PyTree:
    """Return everything but the size of a batch."""
    leaves, structure = jax.tree.flatten(items)
    return structure, [(leaf.shape[1:], leaf.dtype) for leaf in leaves]


def _shown(items: PyTree) -> str:
    return ", ".join(f"{leaf.dtype} {leaf.shape}" for leaf in jax.tree.leaves(items))
