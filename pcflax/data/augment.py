"""Augmentations: random changes of training images, drawn inside the compiled loop.

An augmentation is a function of (images, key). Training batch n of a data set draws its key from
(the set's seed, n), so neither the length of a compiled call, nor an interruption, nor a resume changes
a number, and every epoch sees each image changed anew. Evaluation and prediction see images as stored.
Next file to read: `base.py`, whose `Reader` calls them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt32

from pcflax.checks import expect_count
from pcflax.typing import PRNGKey, PyTree

# Keeps these keys apart from a Trainer's, which folds its steps (below 2**31) into its seed's key.
_STREAM = 2**32 - 1


@runtime_checkable
class Augmentation(Protocol):
    """A random change of a batch of images; any such function will do, where it can be hashed.

    It runs under `jit`, on images that are scaled (bytes to [0, 1]) and neither normalized nor flattened
    yet, so that 0 is black; it keeps their shape and dtype. All its randomness comes from the key. Make
    one with fields a frozen dataclass: jax finds a compiled program again by its hash.

    >>> import dataclasses, jax, numpy as np, pcflax as pc
    >>> @dataclasses.dataclass(frozen=True)
    ... class Brightness:
    ...     spread: float = 0.2
    ...     def __call__(self, images, key):
    ...         factor = jax.random.uniform(key, (len(images), 1, 1, 1), images.dtype, 1 - self.spread, 1)
    ...         return images * factor
    >>> images, labels = np.ones((4, 2, 2, 1), np.float32), np.array([0, 1, 0, 1])
    >>> data = pc.data.from_arrays(images, labels, batch_size=4, augment=Brightness(0.5))
    >>> batch = next(iter(data))
    >>> batch.inputs.shape, bool((batch.inputs < 1).all()), bool((batch.inputs >= 0.5).all())
    ((4, 2, 2, 1), True, True)
    """

    def __call__(
        self, images: Float[Array, " batch height width channels"], key: PRNGKey
    ) -> Float[Array, " batch height width channels"]:
        """Return the images of one batch, changed at random, each in its own way."""
        ...


@dataclasses.dataclass(frozen=True)
class Flip:
    """Each image is turned left to right with probability 1/2.

    Raises:
        ValueError: where the images lack an axis.

    >>> import jax, jax.numpy as jnp
    >>> image = jnp.array([[[[1.0], [2.0], [3.0]]]])  # one row of three pixels
    >>> for seed in (0, 1):
    ...     print(seed, Flip()(image, jax.random.key(seed)).ravel())
    0 [1. 2. 3.]
    1 [3. 2. 1.]
    """

    def __call__(
        self, images: Float[Array, " batch height width channels"], key: PRNGKey
    ) -> Float[Array, " batch height width channels"]:
        """Return the images, about half of them mirrored."""
        _check_images(self, images)
        turned = jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1))
        return jnp.where(turned, images[:, :, ::-1], images)


@dataclasses.dataclass(frozen=True)
class Crop:
    """Each image is padded on all four sides and cut back to its size at a random place.

    All (2 padding + 1)^2 places are equally likely. With 4 and black, on images of 32x32, this is the
    usual augmentation of CIFAR-10 (with `Flip`).

    Args:
        padding: pixels added on each side.
        reflect: whether to pad with the image mirrored at its border (whose own pixels are not
            repeated); else with 0, which is black, for augmentation comes before normalization.

    Raises:
        TypeError: for a padding that is no whole number.
        ValueError: for a padding below 1, or images that lack an axis.

    >>> import jax, jax.numpy as jnp
    >>> Crop(4)(jnp.ones((2, 32, 32, 3)), jax.random.key(0)).shape
    (2, 32, 32, 3)
    """

    padding: int = 4
    reflect: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "padding", expect_count(self, "padding", self.padding, least=1))

    def __call__(
        self, images: Float[Array, " batch height width channels"], key: PRNGKey
    ) -> Float[Array, " batch height width channels"]:
        """Return the images, each moved by up to `padding` pixels along both axes."""
        _check_images(self, images)
        sides = ((0, 0), (self.padding, self.padding), (self.padding, self.padding), (0, 0))
        padded = jnp.pad(images, sides, mode="reflect" if self.reflect else "constant")
        places = jax.random.randint(key, (len(images), 2), 0, 2 * self.padding + 1)

        def cut(image, place):
            return jax.lax.dynamic_slice(image, (place[0], place[1], 0), images.shape[1:])

        return jax.vmap(cut)(padded, places)


class Seeded(NamedTuple):
    """What the reader needs for a batch as stored, and the numbers that its key is drawn from."""

    stored: PyTree
    seed: UInt32[Any, " *count 2"]  # the set's and the batch's: one program serves all seeds


def seeded(stored: PyTree, seed: int, start: int, count: int) -> Seeded:
    """Return the items of training batches start, start + 1, ..., with what each draws its key from."""
    numbers = np.arange(start, start + count, dtype=np.uint64).astype(np.uint32)
    return Seeded(stored, np.stack([np.full_like(numbers, seed), numbers], axis=-1))


def augmented(
    augmentations: Sequence[Augmentation], images: Array, seed: UInt32[Array, " 2"]
) -> Array:
    """Return one batch after every augmentation in turn, each with a key of its own."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed[0]), _STREAM), seed[1])
    for number, augmentation in enumerate(augmentations):
        images = augmentation(images, jax.random.fold_in(key, number))
    return images


def as_augmentations(
    augment: Augmentation | Sequence[Augmentation] | None,
) -> tuple[Augmentation, ...]:
    """Return None, one or several augmentations as a tuple."""
    if augment is None:
        return ()
    found: tuple[Any, ...] = tuple(augment) if isinstance(augment, tuple | list) else (augment,)
    for augmentation in found:
        if not callable(augmentation) or isinstance(augmentation, type):
            raise TypeError(
                f"expected augment as a function of (images, key) or a tuple of them, such as "
                f"(pc.data.Flip(), pc.data.Crop(4)), got {augmentation!r}"
            )
        try:
            hash(augmentation)
        except TypeError:
            raise TypeError(
                f"the augmentation {type(augmentation).__name__} cannot be hashed, which finding its "
                f"compiled program needs; make it a @dataclasses.dataclass(frozen=True)"
            ) from None
    return found


def describe(augmentations: Sequence[Augmentation]) -> str:
    """Return what a checkpoint notes of them; a function's address, which no two runs share, is left out."""
    return ", ".join(re.sub(r" at 0x[0-9a-f]+", "", repr(each)) for each in augmentations)


def _check_images(augmentation: Augmentation, images: Array) -> None:
    if images.ndim != 4:
        raise ValueError(
            f"{type(augmentation).__name__} expected images (batch, height, width, channels), got shape "
            f"{images.shape}; give inputs their image axes (flatten=True flattens after augmentation)"
        )
