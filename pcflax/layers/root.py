"""The root of a generative network: an activity with a prior and nothing below it."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from pcflax.energies import Energy

from .base import PCLayer


class PCRoot(PCLayer):
    """A first layer without a layer below: z_0 ~ N(0, I/precision), clamped or free.

    Put it first in a network. `inputs` then clamp its activity; without inputs it is free, and
    inference finds the z_0 that best explains what is clamped above. A prior of one's own is a
    subclass whose `predict` takes nothing and returns the prior's mean, of shape (*features,).

    Args:
        *features: the shape of one example's activity.
        energy: the prior; `Gaussian()` is a standard normal, `Gaussian(precision=0.0)` is flat.

    >>> import pcflax as pc
    >>> pc.PCRoot(10).predict().shape
    (10,)
    """

    def __init__(self, *features: int, energy: Energy | None = None):
        super().__init__(energy=energy)
        self.features = tuple(features)

    def predict(self) -> Float[Array, " *features"]:  # type: ignore[override]
        """The mean of the prior: zero, the same for every example, hence without a batch axis."""
        return jnp.zeros(self.features)
