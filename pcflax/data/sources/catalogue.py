"""Data sets by name: the one function that turns a name into a `Dataset`."""

from __future__ import annotations

import functools
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pcflax.checks import did_you_mean, expect_count

from ..arrays import ArrayDataset
from ..augment import Augmentation
from ..base import Dataset
from ..decoder import Decoder
from ..examples import scale_of
from ..stream import StreamDataset
from ..text import TextDataset, bounds, read_text
from .digits import read_digits
from .npz import read_npz
from .splits import Split
from .tfds import Part, TfdsSource, UnknownName, moments, splits_of


class _Images(NamedTuple):
    """How the stored images of a set become inputs; mean and std are of its training images."""

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] | None = None  # where TFDS does not have them


_OBJECTS = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
_KNOWN = {
    "digits": _Images(1 / 16, (0.3054,), (0.3759,)),
    "mnist": _Images(1 / 255, (0.1307,), (0.3081,)),
    "fashion_mnist": _Images(1 / 255, (0.2860,), (0.3530,)),
    "cifar10": _Images(1 / 255, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), _OBJECTS),
}
NAMES = (
    *_KNOWN,
    *("cifar100", "kmnist", "emnist/balanced", "svhn_cropped", "imagenet_resized/32x32"),
)
_CHARACTERS = string.digits + string.ascii_uppercase
# What the labels of EMNIST stand for (Cohen et al., 2017); 15 small letters look like their capitals.
_NAMED = {
    "emnist/byclass": tuple(_CHARACTERS + string.ascii_lowercase),
    "emnist/bymerge": tuple(_CHARACTERS + "abdefghnqrt"),
    "emnist/balanced": tuple(_CHARACTERS + "abdefghnqrt"),
}
_KEPT_BYTES = 2**30  # decoded, as bytes
_MEASURED = 10_000  # training images that tell the mean and the deviation of a set


def is_tfds(name: str) -> bool:
    """Return whether a name is one of TFDS.

    >>> [is_tfds(name) for name in ("digits", "mnist", "own.npz", "text:book.txt")]
    [False, True, False, False]
    """
    return not (name == "digits" or name.startswith("text:") or name.endswith(".npz"))


def testing_split(name: str, data_dir: str | Path | None) -> str:
    """Return the split that tests: of a set that has none, as ImageNet, its validation split."""
    if not is_tfds(name):
        return "test"
    try:
        splits = splits_of(name, data_dir)
    except ValueError:  # which `load` tells
        return "test"
    return "validation" if "validation" in splits and "test" not in splits else "test"


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
    normalize: bool = True,
    num_classes: int | None = None,
    inputs: str | None = "image",
    targets: str | None = "label",
) -> Dataset:
    """Return a data set by name, or a user's own file.

    Names: `digits` (embedded, 8x8, needs no network); any set of TFDS that has one image of a fixed shape
    and one label an example, prepared once, such as `mnist`, `fashion_mnist`, `kmnist`, `cifar10`,
    `cifar100`, `svhn_cropped`, `emnist/balanced` and `imagenet_resized/32x32`; the path of an .npz file with
    the arrays x_train, y_train, x_test and y_test (floating inputs, or bytes of images; integer labels or
    floating targets); or `text:PATH`, a UTF-8 text read character by character, whose first 90 % train and
    last 10 % test. Of EMNIST, images are turned upright.

    Args:
        name: a name of the above, a path that ends in .npz, or "text:" and a path.
        split: "train" or "test", or a part of one in TFDS's notation: "train[:55000]",
            "train[-5000:]", "train[:90%]"; a validation split, say. Of a text, the bounds count
            characters. A set of TFDS may have other splits, "extra" or "train+extra" of `svhn_cropped`.
        batch_size: examples in a batch.
        data_dir: folder of prepared TFDS sets; TFDS's default (or TFDS_DATA_DIR) unless given.
        shuffle: whether each epoch has an order of its own; unless given, True but for test and
            validation.
        seed: of the shuffling, whose order is a function of (seed, epoch), and of the augmentation,
            which is one of (seed, batch number).
        flatten: whether an image becomes one axis of features; else (height, width, channels). Text
            has no images.
        stream: read a TFDS set from disk while training (True), or decode it once and keep it on the
            device (False); by its size unless given: sets of more than a gigabyte are streamed.
        augment: a random change of training images, or several in turn, such as
            `(pc.data.Flip(), pc.data.Crop(4))`. It sees images scaled to [0, 1], before they are
            normalized or flattened; evaluation and prediction see them unchanged.
        sequence_length: characters in an example of a text; 128 unless given.
        normalize: whether images of a set by name are normalized by the mean and the standard deviation
            of its training images, by channel; scaled to [0, 1] alone otherwise. They are known of
            `digits`, `mnist`, `fashion_mnist` and `cifar10`, and measured on the first 10,000 of others.
            Images of a file never are normalized.
        num_classes: width of the one-hot rows, where it is more than the labels tell: of a file, the
            largest label of both splits plus one.
        inputs: what of an example is the inputs: "image", "label" or None, which leaves a root free.
        targets: what of it is the targets; None leaves the output free. So `inputs="label",
            targets="image"` trains a network that draws.

    Returns:
        A `Dataset`; images are scaled to [0, 1] and normalized, labels become one-hot rows. Of a text, a
        `TextDataset`, whose tokens are numbered by the characters of the whole file.

    Raises:
        TypeError: for an augmentation that cannot be called or hashed, a count that is no whole number,
            or arrays of a file that are neither floating nor bytes of images nor labels.
        ValueError: for an unknown name or split, a name that stands for several sets, a set without one
            image and one label an example, a split that reaches beyond the set, an empty set, a batch
            larger than the set, NaN, a label out of range, a damaged file, a text that is too short or not
            UTF-8, or an option that the set does not have.
        FileNotFoundError: for a file that is missing, or a set that is not prepared and cannot be
            fetched.

    >>> import pcflax as pc
    >>> data = pc.data.load("digits", split="test", batch_size=360)
    >>> next(iter(data)).inputs.shape
    (360, 64)
    >>> drawing = pc.data.load("digits", normalize=False, inputs="label", targets="image")
    >>> batch = next(iter(drawing))
    >>> batch.inputs.shape, batch.targets.shape, float(batch.targets.min()), float(batch.targets.max())
    ((64, 10), (64, 64), 0.0, 1.0)
    """
    part = Split.parse(split)
    name, label = str(name), f"{name}/{split}"
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "shuffle": part.trains if shuffle is None else shuffle,
        "seed": seed,
    }
    if not is_tfds(name):
        part.expect_usual()
    if name.startswith("text:"):
        given = {"augment": augment, "stream": stream, "num_classes": num_classes}
        given |= {"inputs": inputs != "image", "targets": targets != "label"}
        for option, value in given.items():
            if value:
                raise ValueError(f"'{name}' is a text, which has no {option}; leave it out")
        length = 128 if sequence_length is None else sequence_length
        return _from_text(Path(name[5:]), part, {**options, "sequence_length": length})
    if sequence_length is not None:
        raise ValueError(
            f"sequence_length is an option of texts, 'text:PATH', and '{name}' is none; leave it out"
        )
    _check_roles(inputs, targets)
    roles: dict[str, Any] = {"inputs": inputs, "targets": targets}
    options["augment"] = augment
    if name.endswith(".npz"):
        path = Path(name).expanduser()
        images, labels, num_classes = read_npz(path, part, num_classes)
        decoder = Decoder(scale_of(images), flatten=flatten, num_classes=num_classes, **roles)
        label = f"{path.stem}/{split}"
        return ArrayDataset(
            images, labels, decoder=decoder, name=label, has_checksum=True, **options
        )
    source = None if name == "digits" else _source(name, part.whole, data_dir)
    known = 10 if source is None else source.num_classes
    if num_classes is not None:
        num_classes = expect_count(label, "num_classes", num_classes, least=known)
    known_by = name if source is None else source.name
    scale, mean, std, names = _KNOWN.get(known_by) or _measured(name, data_dir, normalize)
    options["decoder"] = Decoder(
        scale,
        mean if normalize else (0.0,),
        std if normalize else (1.0,),
        flatten=flatten,
        num_classes=num_classes or known,
        **roles,
    )
    options["name"] = label
    if source is None:
        images, labels = read_digits(part.whole)
        rows = part.rows(len(images), label)
        return ArrayDataset(images[rows], labels[rows], **options)
    options["class_names"] = source.class_names or names
    rows = part.rows(len(source), label)
    if source.num_bytes > _KEPT_BYTES if stream is None else stream:
        return StreamDataset(Part(source, rows) if part.is_part else source, **options)
    images, labels = source.read(range(len(source))[rows])
    if labels.min() < 0 and "label" in (inputs, targets):
        raise ValueError(f"'{label}' has examples without a label; take another split")
    return ArrayDataset(images, labels, **options)


def _source(name: str, split: str, data_dir: str | Path | None) -> TfdsSource:
    try:
        return TfdsSource(name, split, data_dir)
    except UnknownName as error:
        hint = did_you_mean(name, NAMES) or str(error) or ";"
        raise ValueError(
            f"unknown data set '{name}'{hint} expected one of {', '.join(NAMES)}, another set of TFDS with "
            f"one image and one label, the path of an .npz file with x_train, y_train, x_test, y_test, or "
            f"text:PATH"
        ) from error


@functools.lru_cache(maxsize=8)
def _measured(name: str, data_dir: str | Path | None, normalize: bool) -> _Images:
    """Return what is known of a set by its training images, where it is to be."""
    mean, std = (0.0,), (1.0,)
    if normalize:
        train = TfdsSource(name, "train", data_dir)
        mean, std = moments(train.read(range(min(len(train), _MEASURED)))[0])
    return _Images(1 / 255, mean, std, _NAMED.get(name.partition(":")[0]))


def _check_roles(inputs: object, targets: object) -> None:
    for role, what in (("inputs", inputs), ("targets", targets)):
        if what not in ("image", "label", None):
            raise ValueError(f"expected {role} of 'image', 'label' or None, got {what!r}")
    if inputs is None and targets is None:
        raise ValueError("inputs and targets are both None; give at least one")


def _from_text(path: Path, split: Split, options: dict) -> TextDataset:
    text, label = read_text(path), f"{path.stem}/{split.text}"
    vocabulary = "".join(sorted(set(text)))  # of the whole file: one for both splits
    characters = text[bounds(split.whole, len(text))]
    characters = characters[split.rows(len(characters), label, "characters")]
    return TextDataset(characters, vocabulary=vocabulary, name=label, **options)
