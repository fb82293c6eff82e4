"""Clamps: activities, or some of their elements, that inference holds fixed.

Inputs and targets are clamps of the first and the last layer; `Clamp` does the same for any layer by
name, whole or by a mask, for each example on its own. Next file to read: `base.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Clamp(NamedTuple):
    """Hold the elements of one layer's activity where the mask is True.

    Attributes:
        value: what they are held at, (batch, *features); what stands where the mask is False is
            never looked at, NaN included.
        mask: True where held: Boolean, of the value's shape or one that broadcasts to it (a mask of
            shape (*features,) is the same for every example). None holds all elements.

    >>> import jax.numpy as jnp, optax, pcflax as pc
    >>> from flax import nnx
    >>> network = pc.PCNetwork({"hidden": pc.PCDense(2, 3, rngs=nnx.Rngs(0))})
    >>> half = pc.Clamp(jnp.ones((1, 3)), mask=jnp.array([True, False, False]))
    >>> result = network.infer(jnp.zeros((1, 2)), clamps={"hidden": half},
    ...                        inference=pc.inference.GradientDescent(optax.sgd(0.5)))
    >>> result.activities["hidden"]
    Array([[1., 0., 0.]], dtype=float32)
    """

    value: Float[Array, " batch *features"]
    mask: Bool[Array, " *features"] | None = None

    def held(self) -> Bool[Array, " batch *features"]:
        """The mask at the value's full shape."""
        mask = True if self.mask is None else self.mask
        return jnp.broadcast_to(jnp.asarray(mask), self.value.shape)

    def apply(self, activity: Float[Array, " batch *features"]) -> Float[Array, " batch *features"]:
        """The activity with its held elements at their values."""
        value = self.value.astype(activity.dtype)
        return value if self.mask is None else jnp.where(self.mask, value, activity)


Clamps: TypeAlias = Mapping[str, Clamp]
"""A clamp for each clamped layer, by the layer's name."""


def as_clamp(name: str, value: Any) -> Clamp:
    """A user's clamp of the layer of that name, checked: an array stands for all of its elements.

    Raises:
        TypeError: for a value that is not floating, or a mask that is not Boolean.
        ValueError: for a value without a batch axis, or a mask that does not broadcast to it.
    """
    clamp = value if isinstance(value, Clamp) else Clamp(value)
    value, mask = clamp
    if not hasattr(value, "dtype") or not jnp.issubdtype(value.dtype, jnp.floating):
        kind = getattr(value, "dtype", type(value).__name__)
        raise TypeError(
            f"expected layer '{name}' to be clamped to an array of a floating dtype, got {kind}; "
            f"cast it, or give pc.Clamp(value, mask)"
        )
    if value.ndim < 2:
        raise ValueError(
            f"expected layer '{name}' to be clamped to an array of shape (batch, features), got "
            f"{value.shape}; a single example needs a batch axis: value[None]"
        )
    if mask is None:
        return Clamp(jnp.asarray(value))
    if not hasattr(mask, "dtype") or mask.dtype != jnp.bool_:
        kind = getattr(mask, "dtype", type(mask).__name__)
        raise TypeError(
            f"expected the mask of layer '{name}' to be Boolean (True where held), got {kind}; "
            f"compare: mask > 0.5"
        )
    try:
        fits = jnp.broadcast_shapes(mask.shape, value.shape) == value.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"layer '{name}' is clamped to a value of shape {value.shape} with a mask of shape "
            f"{mask.shape}; give a mask of that shape, or one that broadcasts to it"
        )
    return Clamp(jnp.asarray(value), jnp.asarray(mask))


def clamp_of_stack(
    name: str, clamp: Clamp, index: int, depth: int, other: Clamp | None = None
) -> Clamp:
    """The clamp of a whole stack, (batch, depth, *features), that holds one of its layers.

    Args:
        name: the node's, for errors.
        clamp: of that layer, (batch, *features).
        index: which layer, from 0.
        depth: how many there are.
        other: a clamp of other layers of the stack, to be kept.

    Raises:
        ValueError: where the stack has no such layer, or holds it already.
    """
    if not 0 <= index < depth:
        raise ValueError(f"no layer '{name}'; that stack has layers 0 to {depth - 1}")
    batch, *features = clamp.value.shape
    here = (jnp.arange(depth) == index).reshape(depth, *[1] * len(features))
    value = jnp.broadcast_to(clamp.value[:, None], (batch, depth, *features))
    mask = here & clamp.held()[:, None]
    if other is not None:
        if other.value.shape != value.shape:
            raise ValueError(
                f"layer '{name}' is clamped to a value of shape {clamp.value.shape}, but another layer of "
                f"its stack to {(batch, *other.value.shape[2:])}; give one shape"
            )
        if other.mask is None or jnp.broadcast_to(other.mask, value.shape)[:, index].any():
            raise ValueError(f"layer '{name}' is clamped twice, by its own name and otherwise")
        value = jnp.where(here, value, other.value)
        mask = mask | other.held()
    return Clamp(value, mask)
