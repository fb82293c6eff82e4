"""Data sets by name: the one function that turns a name into a `Dataset`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .arrays import ArrayDataset, from_arrays
from .augment import Augmentation
from .base import Dataset, Decoder
from .digits import read_digits
from .stream import StreamDataset
from .text import TextDataset, bounds, read_text
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
    augment: Augmentation | Sequence[Augmentation] | None = None,
    sequence_length: int | None = None,
) -> Dataset:
    """A data set by name, or a user's own file.

    Names: `digits` (embedded, 8x8, needs no network), `mnist`, `fashion_mnist` and `cifar10` (through
    TFDS, prepared once), the path of an .npz file with the arrays x_train, y_train, x_test and
    y_test (floating inputs; integer labels or floating targets), or `text:PATH`, a UTF-8 text read
    character by character, whose first 90 % train and last 10 % test.

    Args:
        name: a name of the above, a path that ends in .npz, or "text:" and a path.
        split: "train" or "test", or a part of one in TFDS's notation: "train[:55000]",
            "train[-5000:]", "train[:90%]"; a validation split, say. Of a text, the bounds count
            characters.
        batch_size: examples in a batch.
        data_dir: folder of prepared TFDS sets; TFDS's default (or TFDS_DATA_DIR) unless given.
        shuffle: whether each epoch has an order of its own; True for train, False for test unless
            given.
        seed: of the shuffling, whose order is a function of (seed, epoch), and of the augmentation,
            which is one of (seed, batch number).
        flatten: whether an image becomes one axis of features; else (height, width, channels). Text
            has no images.
        stream: read a TFDS set from disk while training (True), or decode it once and keep it on the
            device (False); by its size unless given: sets of more than a gigabyte are streamed.
        augment: a random change of training images, or several in turn, such as
            `(pc.data.Flip(), pc.data.Crop(4))`. It sees images scaled to [0, 1], before they are
            normalised or flattened; evaluation and prediction see them unchanged.
        sequence_length: characters in an example of a text; 128 unless given.

    Returns:
        A `Dataset`; images are normalised by the training set's mean and standard deviation, labels
        become one-hot rows. Of a text, a `TextDataset`, whose tokens are numbered by the characters of
        the whole file.

    Raises:
        TypeError: for an augmentation that cannot be called or hashed.
        ValueError: for an unknown name or split, a part of a streamed set, an empty set, a batch
            larger than the set, NaN, a label out of range, a text that is too short or not UTF-8, or an
            option that the set does not have.
        FileNotFoundError: for a file that is missing, or a set that is not prepared and cannot be
            fetched.

    >>> import pcflax as pc
    >>> data = pc.data.load("digits", split="test", batch_size=360)
    >>> next(iter(data)).inputs.shape
    (360, 64)
    """
    whole, part = _parse_split(split)
    shuffle = whole == "train" if shuffle is None else shuffle
    options = {"batch_size": batch_size, "shuffle": shuffle, "seed": seed}
    if str(name).startswith("text:"):
        for option, value in (("augment", augment), ("stream", stream)):
            if value:
                raise ValueError(f"'{name}' is a text, which has no {option}; leave it out")
        length = 128 if sequence_length is None else sequence_length
        return _from_text(Path(str(name)[5:]), split, {**options, "sequence_length": length})
    if sequence_length is not None:
        raise ValueError(
            f"sequence_length is an option of texts, 'text:PATH', and '{name}' is none; leave it out"
        )
    options["augment"] = augment
    if str(name).endswith(".npz"):
        return _from_file(Path(name), split, {**options, "flatten": flatten})
    if name not in _IMAGES:
        close = difflib.get_close_matches(str(name), NAMES, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise ValueError(
            f"unknown data set '{name}'; {hint}expected one of {', '.join(NAMES)}, the path of an "
            f".npz file with x_train, y_train, x_test, y_test, or text:PATH"
        )
    images = _IMAGES[name]
    decoder = Decoder(images.scale, images.mean, images.std, flatten, images.num_classes)
    label = f"{name}/{split}"
    if name == "digits":
        arrays = _sliced(read_digits(whole), part, label)
        return ArrayDataset(*arrays, decoder=decoder, name=label, **options)
    source = TfdsSource(name, whole, data_dir)
    if stream is None:
        stream = source.num_bytes > _KEPT_BYTES
    if stream:
        if part is not None:
            raise ValueError(
                f"'{label}' is a part of a streamed set; give stream=False to hold it in memory, or the "
                f"whole split"
            )
        return StreamDataset(source, decoder=decoder, name=label, **options)
    arrays = _sliced(source.read_all(), part, label)
    return ArrayDataset(*arrays, decoder=decoder, name=label, **options)


def _parse_split(split: str) -> tuple[str, tuple[str, str] | None]:
    """("train" or "test", and the bounds of its part or None)."""
    matched = re.fullmatch(r"(train|test)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", str(split))
    if matched is None:
        raise ValueError(
            f"expected split 'train' or 'test', or a part of one such as 'train[:90%]', got {split!r}"
        )
    whole, begin, end = matched.groups()
    return whole, None if split == whole else (begin or "", end or "")


def _sliced(
    arrays: tuple[np.ndarray, ...], part: tuple[str, str] | None, label: str
) -> list[np.ndarray]:
    """The rows of the part, in stored order."""
    rows = _rows(len(arrays[0]), part, label)
    return [array[rows] for array in arrays]


def _rows(count: int, part: tuple[str, str] | None, label: str) -> slice:
    """Which of `count` rows are the part."""
    if part is None:
        return slice(None)

    def position(bound: str) -> int | None:
        if not bound:
            return None
        return round(count * int(bound[:-1]) / 100) if bound.endswith("%") else int(bound)

    rows = slice(position(part[0]), position(part[1]))
    if not len(range(count)[rows]):
        raise ValueError(f"'{label}' is empty: the split has {count} examples")
    return rows


def _from_text(path: Path, split: str, options: dict) -> TextDataset:
    whole, part = _parse_split(split)
    text, label = read_text(path), f"{path.stem}/{split}"
    vocabulary = "".join(sorted(set(text)))  # of the whole file: one for both splits
    characters = text[bounds(whole, len(text))]
    characters = characters[_rows(len(characters), part, label)]
    return TextDataset(characters, vocabulary=vocabulary, name=label, **options)


def _read_npz(path: Path, wanted: Sequence[str]) -> dict[str, Any]:
    """Every array's name, and the arrays of the wanted names."""
    try:
        with np.load(path) as stored:
            return {name: stored[name] if name in wanted else None for name in stored.files}
    except MemoryError:
        raise
    # NumPy, zip and zlib each tell damage in errors of their own
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as an .npz file of plain arrays, so it is damaged or of another "
            f"kind: {str(error).splitlines()[0] if str(error) else type(error).__name__}; write it anew "
            f"with np.savez"
        ) from error


def _from_file(path: Path, split: str, options: dict) -> ArrayDataset:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; expected an .npz file, or a set's name")
    whole, part = _parse_split(split)
    stored = _read_npz(path, (f"x_{whole}", "y_train", "y_test"))
    missing = [key for key in (f"x_{whole}", f"y_{whole}") if key not in stored]
    if missing:
        raise ValueError(
            f"{path} holds {', '.join(stored) or 'nothing'} but not {missing[0]}; expected "
            f"x_train, y_train, x_test and y_test"
        )
    inputs, targets = stored[f"x_{whole}"], stored[f"y_{whole}"]
    if part is not None:
        inputs, targets = _sliced((inputs, targets), part, f"{path.stem}/{split}")
    # Both splits' labels make rows of one width.
    labels = [stored[key] for key in ("y_train", "y_test") if key in stored]
    num_classes = None
    if targets.ndim == 1 and all(y.size and np.issubdtype(y.dtype, np.integer) for y in labels):
        num_classes = max(int(y.max()) for y in labels) + 1
    return from_arrays(
        inputs, targets, num_classes=num_classes, name=f"{path.stem}/{split}", **options
    )
