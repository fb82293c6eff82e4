"""TensorFlow Datasets, read without TensorFlow: any set of images that have one label each.

A prepared set is a folder of array_record files, which TFDS reads by itself; only preparing one (the
first download) needs TensorFlow. What is not prepared and cannot be fetched is said at once, before
TFDS begins to retry. What a set's images, labels and splits are called, TFDS says.
"""

from __future__ import annotations

import importlib.util
import logging
import socket
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from pcflax.checks import did_you_mean

from ..examples import told

_READ_AT_ONCE = 1000  # examples decoded in one call
# Stored with rows and columns exchanged, as TFDS says in the set's description; here they stand upright.
_TRANSPOSED = ("emnist",)
_TOLD = 10  # configurations that a sentence names


class TfdsSource:
    """Random access to one split of an image set as (image, label) pairs of NumPy arrays.

    Attributes:
        name: what TFDS calls the set: of "mnist:3.0.1" it is "mnist".
        num_bytes: of the decoded images.
        num_classes: how many labels there are.
        class_names: what TFDS calls them; None where they are numbers.
        splits: the names of the set's splits.

    Raises:
        ValueError: for a name that TFDS does not know, or that stands for several configurations; a set
            without one image and one label an example, or without this split.
        FileNotFoundError: where the set is not prepared and cannot be fetched.
    """

    def __init__(self, name: str, split: str, data_dir: str | Path | None):
        builder = _prepared_builder(name, data_dir)
        self._place = f"'{name}' in {builder.data_path}"
        config = builder.builder_config
        self.name = builder.name if config is None else f"{builder.name}/{config.name}"
        self.splits = tuple(builder.info.splits)
        unknown = [one for one in split.split("+") if one not in self.splits]
        if unknown and self.splits:
            raise ValueError(
                f"'{name}' has no split '{unknown[0]}'; expected {', '.join(self.splits)}, or a part of one "
                f"such as '{self.splits[0]}[:90%]'"
            )
        self._image, self._label = _keys(name, builder.info)
        image, label = (builder.info.features[key] for key in (self._image, self._label))
        self._transposed = builder.name in _TRANSPOSED
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._source: Any = builder.as_data_source(split=split)
        self.num_bytes = len(self._source) * int(np.prod(image.shape))
        self.num_classes = int(label.num_classes)
        names = tuple(label.names)
        numbers = tuple(map(str, range(self.num_classes)))
        self.class_names: tuple[str, ...] | None = None if names == numbers else names

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        example = self._source[index]
        return self._upright(example[self._image]), np.asarray(example[self._label], np.int32)

    def read(self, rows: range | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return images (examples, height, width, channels), uint8, and labels (examples,), int32.

        All of them unless `rows` says which.

        Raises:
            ValueError: where they cannot be read.
        """
        images, labels = [], []
        wanted = range(len(self)) if rows is None else rows
        for begin in range(0, len(wanted), _READ_AT_ONCE):
            try:
                examples = self._source.__getitems__(list(wanted[begin : begin + _READ_AT_ONCE]))
            except Exception as error:
                raise ValueError(
                    f"{self._place} is damaged ({told(error)}); prepare it anew"
                ) from error
            images += [self._upright(example[self._image]) for example in examples]
            labels += [example[self._label] for example in examples]
        return np.stack(images), np.asarray(labels, np.int32)

    def _upright(self, image: np.ndarray) -> np.ndarray:
        return image.swapaxes(0, 1) if self._transposed else image


class Part:
    """Some rows of a source, in the place of all."""

    def __init__(self, source: Any, rows: slice):
        self._source, self._rows = source, range(len(source))[rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        return self._source[self._rows[index]]


def moments(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of bytes / 255, one a channel, to four digits.

    >>> import numpy as np
    >>> moments(np.array([0, 255, 0, 255], np.uint8).reshape(4, 1, 1, 1))
    ((0.5,), (0.5,))
    """
    levels, means, deviations = np.arange(256) / 255, [], []
    for channel in range(images.shape[-1]):
        counts = np.zeros(256)
        for begin in range(0, len(images), _READ_AT_ONCE):
            part = images[begin : begin + _READ_AT_ONCE, ..., channel]
            counts += np.bincount(part.ravel(), minlength=256)
        mean = counts @ levels / counts.sum()
        deviation = np.sqrt(counts @ (levels - mean) ** 2 / counts.sum())
        means.append(float(f"{mean:.4g}"))
        # a channel of one value has nothing to divide by
        deviations.append(float(f"{deviation:.4g}") or 1.0)
    return tuple(means), tuple(deviations)


def place_of(name: str, data_dir: str | Path | None) -> tuple[str, bool]:
    """Return the folder of a set, and whether it is prepared there."""
    builder = _builder(name, data_dir)
    return str(builder.data_path), builder.is_prepared()


def splits_of(name: str, data_dir: str | Path | None) -> tuple[str, ...]:
    """Return the names of a set's splits; none where it is not prepared.

    Raises:
        ValueError: for a name that TFDS does not know.
    """
    return tuple(_builder(name, data_dir).info.splits)


def _keys(name: str, info: Any) -> tuple[str, str]:
    """Return what the set calls its image and its label."""
    import tensorflow_datasets as tfds

    given: Any = info.features
    features = dict(given) if isinstance(given, tfds.features.FeaturesDict) else {}
    images = [key for key, one in features.items() if isinstance(one, tfds.features.Image)]
    labels = [key for key, one in features.items() if isinstance(one, tfds.features.ClassLabel)]
    pair = info.supervised_keys or ()
    if len(pair) == 2 and pair[0] in images and pair[1] in labels:
        images, labels = [pair[0]], [pair[1]]
    if (len(images), len(labels)) != (1, 1):
        raise ValueError(
            f"'{name}' has the features {', '.join(features)}, which are not one image and one label; take a "
            f"classification set, or pc.data.from_arrays"
        )
    image: Any = features[images[0]]
    dtype = np.dtype(image.np_dtype)
    if None in image.shape or dtype != np.uint8:
        raise ValueError(
            f"'{name}' has images of shape {image.shape} and dtype {dtype.name}, expected "
            f"bytes of one shape; take another set, or resize them and use pc.data.from_arrays"
        )
    return images[0], labels[0]


def _builder(name: str, data_dir: str | Path | None) -> Any:
    logging.getLogger("absl").setLevel(logging.ERROR)  # TFDS warns of what is handled below
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core.registered import DatasetNotFoundError

        try:
            builder = tfds.builder(
                name,
                data_dir=None if data_dir is None else str(data_dir),
                file_format="array_record",
            )
        except DatasetNotFoundError as error:
            raise UnknownName(
                did_you_mean(name, tfds.list_builders(with_community_datasets=False))
            ) from error
        except (ValueError, AssertionError, ImportError) as error:  # a configuration or a version
            if "Parsing builder name" in str(error):  # no name of TFDS's, a file's perhaps
                raise UnknownName("") from error
            raise ValueError(f"TFDS has no '{name}': {told(error)}") from error
        except Exception as error:  # of its files, which were not written to their end
            raise ValueError(f"'{name}' is damaged ({told(error)}); prepare it anew") from error
    configs = [one.name for one in builder.BUILDER_CONFIGS]
    if len(configs) > 1 and "/" not in name:
        more = f" and {len(configs) - _TOLD} more" if len(configs) > _TOLD else ""
        known = ", ".join(f"{name}/{one}" for one in configs[:_TOLD])
        raise ValueError(f"'{name}' stands for several sets; name one of {known}{more}")
    return builder


class UnknownName(ValueError):
    """TFDS has no set of this name; the text is what it may have been, or nothing."""


def _prepared_builder(name: str, data_dir: str | Path | None) -> Any:
    builder = _builder(name, data_dir)
    if builder.is_prepared():
        return builder
    where = f"'{name}' is not prepared in {builder.data_path}"
    remedy = (
        "pass --data-dir (data_dir=...) with a folder where it is prepared, or use the embedded set: "
        "--data digits"
    )
    if importlib.util.find_spec("tensorflow") is None:
        raise FileNotFoundError(
            f"{where}, and preparing it needs TensorFlow (pip install 'pcflax[tfds]'); {remedy}"
        )
    if not _online():
        raise FileNotFoundError(f"{where}, and there is no network to fetch it; {remedy}")
    builder.download_and_prepare()
    return builder


def _online(host: str = "storage.googleapis.com", timeout: float = 3.0) -> bool:
    """Return whether the host that TFDS downloads from answers within a few seconds."""
    try:
        socket.create_connection((host, 443), timeout=timeout).close()
    except OSError:
        return False
    return True
