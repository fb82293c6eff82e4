"""From stored examples to a batch, inside the compiled loop: scale, augment, normalize, one-hot.

Next file to read: `base.py`, whose data sets say which examples.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pcflax.dtypes import aligned
from pcflax.layers import Clamp, Evidence
from pcflax.typing import PyTree

from .augment import Augmentation, Seeded, augmented


@dataclasses.dataclass(frozen=True)
class Decoder:
    """Stored examples to a batch: scale, normalize, flatten, one-hot; pure, called inside jit.

    An image becomes (stored * scale - mean) / std, with mean and std along the last axis. Integers that
    nothing scales stay integers. "Image" and "label" stand for the two things that are stored of an
    example, whatever they are.

    Attributes:
        scale: factor of the stored images; 1/255 for bytes.
        mean: subtracted after scaling, one number or one for each channel.
        std: divided by last.
        flatten: whether one example's image becomes one axis.
        num_classes: where given, labels are integers of any shape and become one-hot rows of this width
            along a new last axis. Of several targets, pairs of a name and its width.
        inputs: which of the two is a batch's inputs, "image", "label" or None.
        targets: which of the two is its targets.
    """

    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    flatten: bool = False
    num_classes: int | tuple[tuple[str, int], ...] | None = None
    inputs: str | None = "image"
    targets: str | None = "label"

    def __call__(
        self, images: PyTree, labels: PyTree, change: Callable[[jax.Array], jax.Array] | None = None
    ) -> Evidence:
        """Return the batch that these stored examples stand for.

        Args:
            images: an array (batch, *features), several by name, or None.
            labels: the same of labels; a `Clamp` of either where some are unknown, by a mask of as many
                axes or, of labels, of one number a label.
            change: applied to the scaled images, before they are normalized.
        """
        found = {"image": self._images(images, change), "label": self._one_hot(labels), None: None}
        return Evidence(found[self.inputs], found[self.targets])

    def _images(self, images: PyTree, change: Callable | None) -> PyTree:
        dtype = jnp.result_type(float)
        normalizes = (self.scale, self.mean, self.std) != (1.0, (0.0,), (1.0,))
        if isinstance(images, Clamp):
            values = self._images(images.value, change)
            mask: Any = images.mask
            return Clamp(values, mask.reshape(len(values), -1) if self.flatten else mask)
        if normalizes and images is not None:
            images = images.astype(dtype) * self.scale
        if change is not None:
            images = change(images)
        if normalizes and images is not None:
            mean, std = (jnp.asarray(value, dtype) for value in (self.mean, self.std))
            images, mean, std = aligned(images, mean, std)
            images = (images - mean) / std
        if self.flatten:
            images = jax.tree.map(lambda image: image.reshape(image.shape[0], -1), images)
        return images

    def _one_hot(self, labels: PyTree) -> PyTree:
        if isinstance(self.num_classes, tuple):
            return {
                **labels,
                **{name: _rows(labels[name], width) for name, width in self.num_classes},
            }
        if labels is None or self.num_classes is None:
            return labels
        return _rows(labels, self.num_classes)


def _rows(labels: Any, width: int) -> Any:
    """Return labels as one-hot rows, those that are unknown with a mask of one number a row."""
    if isinstance(labels, Clamp):
        return Clamp(jax.nn.one_hot(labels.value, width), labels.mask[..., None])  # type: ignore
    return jax.nn.one_hot(labels, width)


@dataclasses.dataclass(frozen=True)
class Reader:
    """From constants and one item to a batch; hashable, so that compiled loops can be reused.

    The item holds indices into the constants where it is to `gather`, else the examples themselves.
    Images of items that are `Seeded`, the training batches', are augmented.
    """

    decoder: Decoder
    gather: bool
    augment: tuple[Augmentation, ...] = ()

    def __call__(self, constants: PyTree, item: PyTree) -> Evidence:
        """Return the batch of one item."""
        change = None
        if isinstance(item, Seeded):
            change, item = functools.partial(augmented, self.augment, seed=item.seed), item.stored
        stored = self.stored(constants, item)
        batch = self.decoder(stored.inputs, stored.targets, change)
        return dataclasses.replace(stored, inputs=batch.inputs, targets=batch.targets)

    def stored(self, constants: PyTree, item: PyTree) -> Evidence:
        """Return one item's examples as they are stored, with their places."""
        if self.gather:
            rows = jax.tree.map(lambda kept: kept[item], constants)
            return dataclasses.replace(rows, examples=item)
        inputs, targets, *places = item
        return Evidence(inputs, targets, examples=places[0] if places else None)
