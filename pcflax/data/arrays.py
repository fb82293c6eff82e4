"""A data set that fits in memory: decoded once, kept on the device, gathered inside the loop."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from pcflax.typing import PyTree

from .augment import Augmentation, as_augmentations
from .base import Dataset, Decoder, Reader


class ArrayDataset(Dataset):
    """Examples held as two arrays with one row each; made by `from_arrays` or `load`."""

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
    ):
        self.inputs, self.targets = inputs, targets
        super().__init__(
            name=name,
            num_examples=len(jax.tree.leaves((inputs, targets))[0]),
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            reader=Reader(decoder, gather=True, augment=as_augmentations(augment)),
        )
        self._constants: PyTree = None
        if self.reader.augment:
            if inputs is None:
                raise ValueError(f"'{name}' has no inputs to augment; leave out augment")
            self.spec()  # what does not fit is told here, and not when training begins

    def constants(self) -> PyTree:
        """(inputs, targets) on the device, moved there on first use."""
        if self._constants is None:
            self._constants = jax.device_put((self.inputs, self.targets))
        return self._constants

    def contents(self) -> str:
        """A checksum of the examples as they are stored."""
        return checksum(*jax.tree.leaves((self.inputs, self.targets)))

    def fetch(self, indices: np.ndarray) -> np.ndarray:
        """The indices themselves; the examples are on the device already."""
        return indices


def checksum(*arrays: Any) -> str:
    """Return a CRC-32 of arrays, which tells a changed file, not a forged one."""
    total = 0
    for array in arrays:
        total = zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data, total)
    return f"crc32:{total:08x}"


def from_arrays(
    inputs: Any,
    targets: Any,
    *,
    batch_size: int,
    shuffle: bool = True,
    seed: int = 0,
    num_classes: int | None = None,
    name: str = "arrays",
    integer_inputs: bool = False,
    flatten: bool = False,
    augment: Augmentation | Sequence[Augmentation] | None = None,
) -> ArrayDataset:
    """Batches from arrays of one's own.

    Args:
        inputs: (examples, *features), floating and finite, or integer where `integer_inputs` says so;
            None leaves a root free; {name: array} for a `PCGraph` with several inputs.
        targets: (examples, *features), floating and finite, or integer labels (examples,), which
            become one-hot rows; labels (examples, length) do where `num_classes` is given. None leaves
            the output free; {name: array}, floating, for several outputs.
        batch_size: examples in a batch.
        shuffle: whether each epoch has an order of its own, a function of (seed, epoch).
        seed: of the shuffling, and of the augmentation.
        num_classes: width of the one-hot rows; the largest label plus one unless given.
        name: what errors call the set.
        integer_inputs: whether inputs are whole numbers that stay so, (examples, length) tokens, say;
            they become int32.
        flatten: whether one example's inputs become one axis, after augmentation.
        augment: a random change of training images, or several in turn, such as
            `(pc.data.Flip(), pc.data.Crop(4))`; see `pcflax.data.Augmentation`.

    Raises:
        TypeError: for a dtype that is neither floating nor, for labels and where asked for, integer; for
            an augmentation that cannot be called or hashed.
        ValueError: for an empty set, arrays of different lengths, NaN or infinity, a label out of
            range, a batch larger than the set, or inputs that cannot be augmented so.

    >>> import numpy as np, pcflax as pc
    >>> data = pc.data.from_arrays(np.ones((6, 3)), np.array([0, 1, 2, 0, 1, 2]), batch_size=2)
    >>> batch = next(iter(data))
    >>> batch.inputs.shape, batch.targets.shape, len(data)
    ((2, 3), (2, 3), 3)
    """
    if inputs is None and targets is None:
        raise ValueError("inputs and targets are both None; give at least one")
    if isinstance(inputs, Mapping) or isinstance(targets, Mapping):
        options = (num_classes, integer_inputs or None, flatten or None, augment)
        return _from_several(inputs, targets, name, options, batch_size, shuffle, seed)
    for array in (inputs, targets):
        if array is not None and np.shape(array)[:1] == (0,):
            raise ValueError(f"data set '{name}' is empty; expected at least one example")
    sizes = {}
    if inputs is not None:
        inputs = _integer(inputs, name) if integer_inputs else _floating(inputs, "inputs", name)
        sizes["inputs"] = len(inputs)
    if targets is not None:
        targets = np.asarray(targets)
        most_axes = 1 if num_classes is None else 2  # of labels
        if 1 <= targets.ndim <= most_axes and np.issubdtype(targets.dtype, np.integer):
            num_classes = _checked_num_classes(targets, num_classes, name)
            targets = targets.astype(np.int32)
        elif targets.ndim == 1:
            raise ValueError(
                f"the targets of '{name}' have shape {targets.shape} and dtype {targets.dtype}; "
                f"expected integer labels of that shape, or floating targets (examples, features)"
            )
        else:
            targets = _floating(targets, "targets", name)
            num_classes = None
        sizes["targets"] = len(targets)
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"'{name}' has {sizes['inputs']} inputs but {sizes['targets']} targets; give one target "
            f"for each input"
        )
    return ArrayDataset(
        inputs,
        targets,
        decoder=Decoder(flatten=flatten, num_classes=num_classes),
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
        name=name,
        augment=augment,
    )


def _from_several(
    inputs: Any, targets: Any, name: str, options: tuple, batch_size: int, shuffle: bool, seed: int
) -> ArrayDataset:
    """A data set of several inputs or targets by name."""
    if any(option is not None for option in options):
        raise ValueError(
            f"the inputs or targets of '{name}' are dictionaries, which take no num_classes, "
            f"integer_inputs, flatten or augment; give arrays that are ready"
        )
    lengths: dict[str, int] = {}

    def checked(value: Any, role: str) -> Any:
        if value is None:
            return None
        if not isinstance(value, Mapping):
            lengths[role] = len(array := _floating(value, role, name))
            return array
        arrays = {key: _floating(array, f"{role} '{key}'", name) for key, array in value.items()}
        lengths.update({f"{role} '{key}'": len(array) for key, array in arrays.items()})
        return arrays

    inputs, targets = checked(inputs, "inputs"), checked(targets, "targets")
    if len(set(lengths.values())) != 1:
        told = ", ".join(f"{length} of the {role}" for role, length in lengths.items())
        raise ValueError(f"'{name}' has {told or 'no arrays'}; give arrays of one length")
    return ArrayDataset(
        inputs,
        targets,
        decoder=Decoder(),
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
        name=name,
    )


def _integer(array: Any, name: str) -> np.ndarray:
    array = np.asarray(array)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(
            f"the inputs of '{name}' have dtype {array.dtype}, expected an integer dtype; leave out "
            f"integer_inputs"
        )
    if array.ndim < 2 or array.size == 0:
        raise ValueError(
            f"the inputs of '{name}' have shape {array.shape}, expected (examples, features)"
        )
    narrow = array.astype(np.int32)
    if (narrow != array).any():
        raise ValueError(f"the inputs of '{name}' hold numbers that int32 cannot; stay below 2**31")
    return narrow


def _floating(array: Any, role: str, name: str) -> np.ndarray:
    array = np.asarray(array)
    if not jax.numpy.issubdtype(array.dtype, np.floating):
        remedy = "scale and cast them: inputs.astype('float32') / 255"
        if role == "targets":
            remedy = "give integer labels of shape (examples,), or cast: targets.astype('float32')"
        raise TypeError(
            f"the {role} of '{name}' have dtype {array.dtype}, expected a floating dtype; {remedy}"
        )
    if array.ndim < 2 or array.size == 0:
        raise ValueError(
            f"the {role} of '{name}' have shape {array.shape}, expected (examples, features)"
        )
    # float64 becomes float32 here, as jax would have it, unless 64-bit mode is on; what float32 cannot
    # hold becomes infinite and is told below
    with np.errstate(over="ignore"):
        array = array.astype(jax.dtypes.canonicalize_dtype(array.dtype))
    finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if not finite.all():
        first = int(np.argmin(finite))
        raise ValueError(
            f"the {role} of '{name}' hold NaN or infinity in {int((~finite).sum())} of {len(array)} "
            f"examples, first in example {first}; drop or mend them"
        )
    return array


def _checked_num_classes(labels: np.ndarray, num_classes: int | None, name: str) -> int:
    if num_classes is None:
        num_classes = max(int(labels.max()), 0) + 1
    wrong = (labels < 0) | (labels >= num_classes)
    if wrong.any():
        first = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(
            f"label {int(labels[first])} of example {first[0]} in '{name}' is out of range; expected 0 "
            f"to {num_classes - 1} for num_classes={num_classes}"
        )
    return num_classes
