"""TensorFlow Datasets, read without TensorFlow.

A prepared set is a folder of array_record files, which TFDS reads by itself; only preparing one (the
first download) needs TensorFlow. What is not prepared and cannot be fetched is said at once, before
TFDS begins to retry.
"""

from __future__ import annotations

import importlib.util
import logging
import socket
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ..examples import told

_READ_AT_ONCE = 1000  # examples decoded in one call


class TfdsSource:
    """Random access to one split of an image set as (image, label) pairs of NumPy arrays."""

    def __init__(self, name: str, split: str, data_dir: str | Path | None):
        builder = _prepared_builder(name, data_dir)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._source: Any = builder.as_data_source(split=split)
        self._place = f"'{name}' in {builder.data_path}"
        image = builder.info.features["image"]
        self.num_bytes = len(self._source) * int(np.prod(image.shape))  # of the decoded images

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        example = self._source[index]
        return example["image"], np.asarray(example["label"], np.int32)

    def read_all(self) -> tuple[np.ndarray, np.ndarray]:
        """Return all images (examples, height, width, channels), uint8, and labels (examples,), int32."""
        images, labels = [], []
        for begin in range(0, len(self), _READ_AT_ONCE):
            chunk = range(begin, min(begin + _READ_AT_ONCE, len(self)))
            try:
                examples = self._source.__getitems__(list(chunk))
            except Exception as error:
                raise ValueError(
                    f"{self._place} is damaged ({told(error)}); prepare it anew"
                ) from error
            images += [example["image"] for example in examples]
            labels += [example["label"] for example in examples]
        return np.stack(images), np.asarray(labels, np.int32)


def place_of(name: str, data_dir: str | Path | None) -> tuple[str, bool]:
    """Return the folder of a set, and whether it is prepared there."""
    builder = _builder(name, data_dir)
    return str(builder.data_path), builder.is_prepared()


def _builder(name: str, data_dir: str | Path | None) -> Any:
    logging.getLogger("absl").setLevel(logging.ERROR)  # TFDS warns of what is handled below
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow_datasets as tfds

        return tfds.builder(
            name, data_dir=None if data_dir is None else str(data_dir), file_format="array_record"
        )


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
    """Whether the host that TFDS downloads from answers within a few seconds."""
    try:
        socket.create_connection((host, 443), timeout=timeout).close()
    except OSError:
        return False
    return True
