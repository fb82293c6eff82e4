"""Changes of shape, to be fused into the layer that wants them.

A layer that only reshapes would hold an activity and an energy for nothing:
`PCLayer(nnx.Sequential(pc.layers.Flatten(), nnx.Linear(...)))` is one layer.
"""

from __future__ import annotations

import math

from flax import nnx
from jaxtyping import Array, Float

from pcflax.checks import expect_count


class Flatten(nnx.Module):
    """All features of an example in one axis: (batch, *features) to (batch, prod(features)).

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> linear = nnx.Linear(12, 5, rngs=nnx.Rngs(0))
    >>> layer = pc.PCLayer(nnx.Sequential(pc.layers.Flatten(), linear))
    >>> layer.predict(jnp.ones((2, 2, 2, 3))).shape
    (2, 5)
    """

    def __call__(self, below: Float[Array, " batch *features"]) -> Float[Array, " batch flat"]:
        """Return the same values in the order of the axes, the last axis fastest."""
        return below.reshape(below.shape[0], math.prod(below.shape[1:]))


class Reshape(nnx.Module):
    """The features of each example in another shape: (batch, *features) to (batch, *shape).

    Args:
        *shape: the shape of one example.

    Raises:
        ValueError: for an input with another number of features.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> pc.layers.Reshape(2, 2, 3)(jnp.ones((5, 12))).shape
    (5, 2, 2, 3)
    """

    def __init__(self, *shape: int):
        self.shape = tuple(expect_count(self, "shape", size) for size in shape)

    def __call__(self, below: Float[Array, " batch *features"]) -> Float[Array, " batch *shape"]:
        """Return the same values in the order of the axes, the last axis fastest."""
        if math.prod(below.shape[1:]) != math.prod(self.shape):
            raise ValueError(
                f"Reshape{self.shape} expected {math.prod(self.shape)} features in each example, got "
                f"an input of shape {below.shape}"
            )
        return below.reshape(below.shape[0], *self.shape)
