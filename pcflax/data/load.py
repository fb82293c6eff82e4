"""Data sets by name: the one function that turns a name into a `Dataset`."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .arrays import ArrayDataset, from_arrays
from .base import Dataset, Decoder
from .digits import read_digits
from .stream import StreamDataset
from .tfds import TfdsSource


class _Images(NamedTuple):
    """How the stored images of a set become inputs; mean and std are of its training images."""

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int = 10


_IMAGES = {
    "digits": _Images(1 / 16, (0.3054,), (0.3759,)),
    "mnist": _Images(1 / 255, (0.1307,), (0.3081,)),
    "fashion_mnist": _Images(1 / 255, (0.2860,), (0.3530,)),
    "cifar10": _Images(1 / 255, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}
NAMES = tuple(_IMAGES)
_KEPT_BYTES = 2**30  # decoded, as bytes; the sets named here are all smaller


def load(
    name: str,
    *,
    split: str = "train",
    batch_size: int = 64,
    data_dir: str | Path | None = None,
    shuffle: bool | None = None,
    seed: int = 0,
    flatten: bool = True,
    stream: bool | None = None,
) -> Dataset:
    """A data set by name, or a user's own file.

    Names: `digits` (embedded, 8x8, needs no network), `mnist`, `fashion_mnist` and `cifar10` (through
    TFDS, prepared once), or the path of an .npz file with the arrays x_train, y_train, x_test and
    y_test (floating inputs; integer labels or floating targets).

    Args:
        name: a name of the above, or a path that ends in .npz.
        split: "train" or "test".
        batch_size: examples in a batch.
        data_dir: folder of prepared TFDS sets; TFDS's default (or TFDS_DATA_DIR) unless given.
        shuffle: whether each epoch has an order of its own; True for train, False for test unless
            given.
        seed: of the shuffling, whose order is a function of (seed, epoch).
        flatten: whether an image becomes one axis of features; else (height, width, channels).
        stream: read a TFDS set from disk while training (True), or decode it once and keep it on the
            device (False); by its size unless given: sets of more than a gigabyte are streamed.

    Returns:
        A `Dataset`; images are normalised by the training set's mean and standard deviation, labels
        become one-hot rows.

    Raises:
        ValueError: for an unknown name or split, an empty set, a batch larger than the set, NaN, or
            a label out of range.
        FileNotFoundError: for a file that is missing, or a set that is not prepared and cannot be
            fetched.

    >>> import pcflax as pc
    >>> data = pc.data.load("digits", split="test", batch_size=360)
    >>> next(iter(data)).inputs.shape
    (360, 64)
    """
    if split not in ("train", "test"):
        raise ValueError(f"expected split 'train' or 'test', got {split!r}")
    shuffle = split == "train" if shuffle is None else shuffle
    options = {"batch_size": batch_size, "shuffle": shuffle, "seed": seed}
    if str(name).endswith(".npz"):
        return _from_file(Path(name), split, flatten, options)
    if name not in _IMAGES:
        close = difflib.get_close_matches(str(name), NAMES, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise ValueError(
            f"unknown data set '{name}'; {hint}expected one of {', '.join(NAMES)}, or the path of an "
            f".npz file with x_train, y_train, x_test, y_test"
        )
    images = _IMAGES[name]
    decoder = Decoder(images.scale, images.mean, images.std, flatten, images.num_classes)
    label = f"{name}/{split}"
    if name == "digits":
        return ArrayDataset(*read_digits(split), decoder=decoder, name=label, **options)
    source = TfdsSource(name, split, data_dir)
    if stream is None:
        stream = source.num_bytes > _KEPT_BYTES
    if stream:
        return StreamDataset(source, decoder=decoder, name=label, **options)
    return ArrayDataset(*source.read_all(), decoder=decoder, name=label, **options)


def _from_file(path: Path, split: str, flatten: bool, options: dict) -> ArrayDataset:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; expected an .npz file, or a set's name")
    with np.load(path) as stored:
        missing = [key for key in (f"x_{split}", f"y_{split}") if key not in stored]
        if missing:
            raise ValueError(
                f"{path} holds {', '.join(stored.files) or 'nothing'} but not {missing[0]}; expected "
                f"x_train, y_train, x_test and y_test"
            )
        inputs, targets = stored[f"x_{split}"], stored[f"y_{split}"]
        # Both splits' labels make rows of one width.
        labels = [stored[key] for key in ("y_train", "y_test") if key in stored]
    if flatten and inputs.ndim > 2 and len(inputs):
        inputs = inputs.reshape(len(inputs), -1)
    num_classes = None
    if targets.ndim == 1 and all(y.size and np.issubdtype(y.dtype, np.integer) for y in labels):
        num_classes = max(int(y.max()) for y in labels) + 1
    return from_arrays(
        inputs, targets, num_classes=num_classes, name=f"{path.stem}/{split}", **options
    )
