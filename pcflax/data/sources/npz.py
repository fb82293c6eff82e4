"""A user's own .npz file with the arrays x_train, y_train, x_test and y_test."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from ..examples import check_examples, is_image_bytes, told
from .splits import Split


def read_npz(
    path: Path, split: Split, num_classes: int | None
) -> tuple[np.ndarray, np.ndarray, int | None]:
    """Return the images and labels of one split, checked, and how many classes the labels have.

    Images of one byte a number have a channel axis, as they have in other sets. The classes are those of
    both splits' labels unless given, so that both make rows of one width.
    """
    label = f"{path.stem}/{split.text}"
    arrays = _arrays(path)
    missing = [key for key in (f"x_{split.whole}", f"y_{split.whole}") if key not in arrays]
    if missing:
        raise ValueError(
            f"{path} holds {', '.join(arrays) or 'nothing'} but not {missing[0]}; expected x_train, "
            f"y_train, x_test and y_test"
        )
    images, targets = arrays[f"x_{split.whole}"], arrays[f"y_{split.whole}"]
    if split.is_part:
        rows = split.rows(len(images), label)
        images, targets = images[rows], targets[rows]
    if images.ndim == 3 and is_image_bytes(images):
        images = images[..., None]
    labels = [arrays[key] for key in ("y_train", "y_test") if key in arrays]
    whole = all(y.size and np.issubdtype(y.dtype, np.integer) for y in labels)
    if num_classes is None and whole and targets.ndim == 1:
        num_classes = max(int(y.max()) for y in labels) + 1
    stored, num_classes = check_examples(images, targets, num_classes=num_classes, name=label)
    return stored.inputs, stored.targets, num_classes


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """Return both splits' arrays; what else the file holds stays unread."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; expected an .npz file, or a set's name")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no .npz file, or a damaged one; write it with np.savez")
    known = ("x_train", "y_train", "x_test", "y_test")
    try:
        with np.load(path) as stored:
            return {key: stored[key] for key in stored.files if key in known}
    except (OSError, MemoryError):
        raise
    except Exception as error:  # damage has many: of zip, of zlib, of NumPy's header
        raise ValueError(
            f"{path} cannot be read ({told(error)}); write it anew with np.savez"
        ) from error
