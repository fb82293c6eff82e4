"""What the models of images share: the shape they expect, and how a norm is chosen."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from flax import nnx

from pcflax.checks import expect_count, expect_kind

MakeNorm = Callable[[int], Any]


def check_image_shape(model: str, shape: tuple[int, ...]) -> None:
    """Refuse what is no (height, width, channels)."""
    expect_kind(model, "image_shape", shape, tuple | list, "(32, 32, 3)")
    for size in shape:
        expect_count(model, "image_shape", size, least=1)
    first = len(shape) == 3 and shape[0] <= 4 < min(shape[1:])
    if len(shape) != 3 or first:
        moved = (*shape[1:], shape[0]) if first else (*shape[:2], 1)
        raise ValueError(
            f"{model} expected an image_shape of (height, width, channels), channels last, got {shape}; "
            f"make the images {moved}{': jnp.moveaxis(images, 1, -1)' if first else ''}"
        )


def as_norm(model: str, norm: MakeNorm | str | None, rngs: nnx.Rngs) -> MakeNorm:
    """Return the function from a number of channels to a norm of theirs, or to None."""
    if norm is None:
        return lambda features: None
    if norm == "group":
        return lambda features: nnx.GroupNorm(
            features, num_groups=math.gcd(32, features), rngs=rngs
        )
    if norm == "batch":
        return lambda features: nnx.BatchNorm(features, rngs=rngs)
    if not callable(norm) or isinstance(norm, type | nnx.Module):
        raise ValueError(
            f"{model} expected norm to be 'group', 'batch', None or a function that makes one, such as "
            f"lambda features: nnx.LayerNorm(features, rngs=rngs), got {norm!r}"
        )
    return norm
