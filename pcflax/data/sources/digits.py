"""The embedded digits: 1,797 handwritten 8x8 digits that need no network.

The optical recognition of handwritten digits set (E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning
Repository, CC BY 4.0), in the copy that scikit-learn bundles, in an order shuffled once: the first
1,437 examples train, the last 360 test.
"""

from __future__ import annotations

import importlib.resources
import io

import numpy as np

NUM_TRAIN = 1437


def read_digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images (examples, 8, 8, 1), uint8 from 0 to 16, and labels (examples,), of one split.

    >>> images, labels = read_digits("test")
    >>> images.shape, labels.shape
    ((360, 8, 8, 1), (360,))
    """
    raw = importlib.resources.files("pcflax.data.sources").joinpath("digits.npz").read_bytes()
    with np.load(io.BytesIO(raw)) as stored:
        images, labels = stored["images"][..., None], stored["labels"].astype(np.int32)
    part = slice(None, NUM_TRAIN) if split == "train" else slice(NUM_TRAIN, None)
    return images[part], labels[part]
