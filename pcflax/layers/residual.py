"""A block with a shortcut around it as one layer: the residual block of ResNets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Float

from pcflax.energies import Energy

from .affine import added
from .base import PCLayer


class PCResidual(PCLayer):
    """mu = activation(shortcut(z) + module(z)).

    The whole block is one node of the network: what lies inside `module` has no activity and no
    energy.

    Args:
        module: the branch, a callable from (batch, *features_below) to (batch, *features): an
            `nnx.Sequential`, say.
        shortcut: what the branch is added to, a callable of the activity below; the activity itself
            unless given. Where the branch changes the shape, give a projection.
        activation: elementwise function of the sum; None for the identity.
        energy: `Gaussian()` unless given.

    Raises:
        TypeError: for a module or a shortcut that cannot be called.
        ValueError: where branch and shortcut have different shapes.

    Source: He et al. (2016), arXiv 1512.03385, equations 1 and 2.

    >>> import jax, jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> rngs = nnx.Rngs(0)
    >>> branch = nnx.Sequential(nnx.Linear(3, 8, rngs=rngs), jax.nn.relu, nnx.Linear(8, 4, rngs=rngs))
    >>> layer = pc.PCResidual(branch, shortcut=nnx.Linear(3, 4, rngs=rngs), activation=jax.nn.relu)
    >>> layer.predict(jnp.ones((2, 3))).shape
    (2, 4)
    """

    def __init__(
        self,
        module: Callable[[Array], Array],
        *,
        shortcut: Callable[[Array], Array] | None = None,
        activation: Callable[[Array], Array] | None = None,
        energy: Energy | None = None,
    ):
        super().__init__(module, energy=energy)
        if shortcut is not None and not callable(shortcut):
            raise TypeError(
                f"PCResidual expected a shortcut that can be called on the activity below, got "
                f"{shortcut!r}"
            )
        self.shortcut: Any = shortcut
        self.activation = activation

    def predict(self, below: Float[Array, " batch *below"]) -> Float[Array, " batch *features"]:
        """The prediction of this layer's activity from the one below."""
        shortcut = below if self.shortcut is None else self.shortcut(below)
        total = added(self, shortcut, self.module(below))
        return total if self.activation is None else self.activation(total)
