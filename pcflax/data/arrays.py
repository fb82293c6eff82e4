"""A data set that fits in memory: checked once, kept on the device, gathered inside the loop.

Next files to read: `examples.py`, which checks arrays, and `stream.py`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import jax
import numpy as np

from pcflax.checks import expect_count, expect_kind
from pcflax.layers import Clamp, Evidence
from pcflax.typing import PyTree

from .augment import Augmentation, as_augmentations
from .base import Dataset
from .decoder import Decoder, Reader
from .examples import are_labels, check_examples, scale_of


class ArrayDataset(Dataset):
    """Examples held as arrays with one row each; made by `from_arrays` or `load`.

    The arguments are those of `from_arrays`, but that rows of inputs and targets are as stored, and

    Args:
        decoder: what turns stored examples into a batch.
        clamps: {name of a layer: `pc.Clamp`}, rows of what is clamped besides.
        weights: (examples,), or None.
        has_checksum: whether the description has a checksum of the arrays, since the name does not say
            which they are.
        classes: the labels that there are, where these are not all.

    Attributes:
        least_rows: how many rows the arrays on the device have at least, the added ones never being looked
            at: sets of one number share a compiled program.

    Raises:
        TypeError, ValueError: as `from_arrays`.
    """

    def __init__(
        self,
        inputs: PyTree,
        targets: PyTree,
        *,
        decoder: Decoder,
        batch_size: int,
        shuffle: bool,
        seed: int,
        name: str,
        augment: Augmentation | Sequence[Augmentation] | None = None,
        clamps: Mapping[str, Any] | None = None,
        weights: np.ndarray | None = None,
        has_checksum: bool = False,
        class_names: Sequence[str] | None = None,
        classes: Sequence[int] | None = None,
    ):
        self.inputs, self.targets, self.clamps = inputs, targets, dict(clamps or {})
        self.weights = weights
        self.least_rows = 0
        self._has_checksum = has_checksum
        self._checksum: int | None = None
        self._constants: PyTree = None
        super().__init__(
            name=name,
            num_examples=len(jax.tree.leaves((inputs, targets, self.clamps))[0]),
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            reader=Reader(decoder, gather=True, augment=as_augmentations(augment)),
            class_names=class_names,
        )
        self._classes = None if classes is None else tuple(sorted(map(int, classes)))

    @property
    def classes(self) -> tuple[int, ...]:
        """The labels that there are: all, or those of `only`; none where the targets are not labels."""
        return super().classes if self._classes is None else self._classes

    def constants(self) -> PyTree:
        """Return all examples on the device as one `Evidence`, moved there on first use."""
        if self._constants is None:
            stored = Evidence(self.inputs, self.targets, self.clamps, self.weights)
            added = max(0, self.least_rows - self.num_examples)
            if added:
                stored = jax.tree.map(
                    lambda a: np.concatenate([a, np.zeros((added, *a.shape[1:]), a.dtype)]), stored
                )
            self._constants = jax.device_put(stored)
        return self._constants

    def fetch(self, indices: np.ndarray) -> np.ndarray:
        """Return the indices themselves; the examples are on the device already."""
        return indices

    def description(self) -> dict[str, str | int | bool]:
        """Return what decides which examples the training batches hold, the arrays' checksum with it."""
        if not self._has_checksum:
            return super().description()
        if self._checksum is None:
            arrays = (self.inputs, self.targets, self.clamps)
            weights = () if self.weights is None else (self.weights,)
            self._checksum = checksum((*arrays, *weights))
        return {**super().description(), "checksum": self._checksum}

    def only(self, classes: Sequence[int]) -> ArrayDataset:
        """Return the examples of some classes alone, in stored order; rows stay as wide as they were.

        Args:
            classes: the labels to keep.

        Raises:
            TypeError: for classes that are no whole numbers.
            ValueError: where the set has no labels, or none of these.

        >>> import pcflax as pc
        >>> data = pc.data.load("digits").only([0, 1])
        >>> data.num_classes, data.num_examples, data.name
        (10, 294, 'digits/train of 0, 1')
        """
        expect_kind("only", "classes", classes, Iterable, "[0, 1]")
        wanted = sorted({expect_count("only", "class", label) for label in classes})
        told = ", ".join(map(str, wanted))
        return self.take(self.rows_of(wanted), f"{self.name} of {told}", wanted)

    def rows_of(self, classes: Sequence[int]) -> np.ndarray:
        """Return which examples have one of these labels, in stored order.

        Raises:
            ValueError: as `only`.
        """
        labels: Any = self.targets
        known: Any = True
        if isinstance(labels, Clamp):
            labels, known = labels
        if not isinstance(self.reader.decoder.num_classes, int) or np.ndim(labels) != 1:
            raise ValueError(f"{self._title} has no labels, one an example, to choose by")
        rows = np.flatnonzero(np.isin(labels, list(classes)) & known)
        if not len(rows):
            told = ", ".join(map(str, classes)) or "no class"
            raise ValueError(f"{self._title} has no example of {told}")
        return rows

    def take(self, rows: np.ndarray, name: str, classes: Sequence[int]) -> Self:
        """Return the examples of these rows, by another name and with the classes that these are of."""
        stored = (self.inputs, self.targets, self.clamps, self.weights)
        return self._holding(jax.tree.map(lambda array: array[rows], stored), name, classes)

    def with_images(self, change: Callable[[np.ndarray], np.ndarray], name: str) -> Self:
        """Return the same examples by another name, their stored images changed."""
        stored = (change(self.inputs), self.targets, self.clamps, self.weights)
        return self._holding(stored, name, self._classes)

    def _holding(self, stored: tuple, name: str, classes: Sequence[int] | None) -> Self:
        inputs, targets, clamps, weights = stored
        return type(self)(
            inputs,
            targets,
            clamps=clamps,
            weights=weights,
            decoder=self.reader.decoder,
            batch_size=self.batch_size,
            shuffle=self.shuffle,
            seed=self.seed,
            name=name,
            augment=self.reader.augment,
            has_checksum=self._has_checksum,
            class_names=self.class_names,
            classes=classes,
        )


def from_arrays(
    inputs: Any,
    targets: Any,
    *,
    batch_size: int,
    shuffle: bool = True,
    seed: int = 0,
    num_classes: int | Mapping[str, int] | None = None,
    name: str = "arrays",
    integer_inputs: bool = False,
    flatten: bool = False,
    augment: Augmentation | Sequence[Augmentation] | None = None,
    clamps: Mapping[str, Any] | None = None,
    weights: Any = None,
    class_names: Sequence[str] | None = None,
) -> ArrayDataset:
    """Return batches of arrays of one's own.

    Where only some elements are known, give (values, mask) in the place of values: of inputs, targets and
    clamps, and of labels, (labels, known) for data of which only some have one. The mask is True where a
    value is known, of the values' shape or one that broadcasts to it: (examples, 1) for rows of features
    that are known or not, (examples,) for labels. What stands elsewhere is not looked at, NaN included. A
    batch carries them as `pc.Clamp(value, mask)`.

    Args:
        inputs: (examples, *features), floating and finite, integer where `integer_inputs` says so, or
            bytes of images (uint8 with two axes of features or more), which are scaled to [0, 1]; None
            leaves a root free; {name: array} for a `PCGraph` with several inputs, of which integers
            other than bytes stay integers. With `num_classes`, integer labels (examples,) become one-hot
            rows.
        targets: (examples, *features), floating and finite, or integer labels (examples,), which
            become one-hot rows; labels (examples, length) do where `num_classes` is given. None leaves
            the output free; {name: array} for several outputs, those left out or None staying free.
        batch_size: examples in a batch.
        shuffle: whether each epoch has an order of its own, a function of (seed, epoch).
        seed: of the shuffling, and of the augmentation.
        num_classes: width of the one-hot rows; the largest label plus one unless given. Of several
            targets, one number for all labels, or {name: number}.
        name: what errors call the set.
        integer_inputs: whether inputs are whole numbers that stay so, (examples, length) tokens, say;
            they become int32.
        flatten: whether one example's inputs become one axis, after augmentation.
        augment: a random change of training images, or several in turn, such as
            `(pc.data.Flip(), pc.data.Crop(4))`; see `pcflax.data.Augmentation`.
        clamps: what else is known of the examples, by the layer's name: values (examples, *features),
            or (values, mask).
        weights: (examples,), finite and at least 0: how much each example counts in learning, whose
            gradient is mean_i w_i dF_i/dtheta. Energies and metrics count all alike.
        class_names: what the classes are called, label 0 first; the last may be left out.

    Raises:
        TypeError: for a dtype that is neither floating nor, for labels and where asked for, integer; for
            an augmentation that cannot be called or hashed.
        ValueError: for an empty set, arrays of different lengths, NaN or infinity, a label out of
            range, a batch larger than the set, inputs that cannot be augmented so, or more class_names than
            classes.

    >>> import numpy as np, pcflax as pc
    >>> data = pc.data.from_arrays(np.ones((6, 3)), np.array([0, 1, 2, 0, 1, 2]), batch_size=2)
    >>> batch = next(iter(data))
    >>> batch.inputs.shape, batch.targets.shape, len(data)
    ((2, 3), (2, 3), 3)
    >>> known = np.array([True, False, False, True, True, False])
    >>> few = pc.data.from_arrays(np.ones((6, 3)), (np.array([0, -1, -1, 1, 2, -1]), known), batch_size=2,
    ...                           shuffle=False)
    >>> next(iter(few)).targets
    Clamp(value=Array([[1., 0., 0.],
           [1., 0., 0.]], dtype=float32), mask=Array([[ True],
           [False]], dtype=bool))
    >>> half = {"hidden": (np.zeros((6, 5)), known[:, None])}
    >>> data = pc.data.from_arrays(np.ones((6, 3)), None, clamps=half, batch_size=2, shuffle=False)
    >>> next(iter(data)).clamps["hidden"].mask.all(axis=1)
    Array([ True, False], dtype=bool)
    """
    stored, decoder = stored_as(
        inputs,
        targets,
        clamps,
        num_classes=num_classes,
        integer_inputs=integer_inputs,
        weights=weights,
        name=name,
        flatten=flatten,
    )
    data = ArrayDataset(
        stored.inputs,
        stored.targets,
        clamps=stored.clamps,
        weights=stored.weights,
        decoder=decoder,
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
        name=name,
        augment=augment,
        has_checksum=True,
        class_names=class_names,
    )
    data.counts_classes = num_classes is None and data.num_classes is not None
    return data


def stored_as(
    inputs: Any,
    targets: Any,
    clamps: Mapping[str, Any] | None = None,
    *,
    num_classes: int | Mapping[str, int] | None,
    integer_inputs: bool,
    name: str,
    flatten: bool,
    weights: Any = None,
) -> tuple[Evidence, Decoder]:
    """Return a user's arrays as they are stored, and what makes batches of them; as `from_arrays` says."""
    # stored as images are that have labels
    given = num_classes is not None and not integer_inputs
    turned = given and are_labels(inputs) and not are_labels(targets)
    stored, classes = check_examples(
        *((targets, inputs) if turned else (inputs, targets)),
        clamps,
        num_classes=num_classes,
        integer_inputs=integer_inputs,
        weights=weights,
        name=name,
        roles=("targets", "inputs") if turned else ("inputs", "targets"),
    )
    roles: Any = {"inputs": "label", "targets": "image"} if turned else {}
    scale = scale_of(stored.inputs)
    return stored, Decoder(scale, flatten=bool(flatten), num_classes=classes, **roles)


def checksum(arrays: PyTree) -> int:
    """Return a number that changes where any of these arrays, or their names, do.

    >>> import numpy as np
    >>> checksum(np.arange(3)) == checksum(np.arange(3)) != checksum(np.arange(1, 4))
    True
    """
    found = 0
    for path, array in jax.tree.leaves_with_path(arrays):
        found = zlib.crc32(f"{jax.tree_util.keystr(path)} {array.shape}".encode(), found)
        found = zlib.crc32(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data, found)
    return found
