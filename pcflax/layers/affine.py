"""What dense and convolutional layers share: an affine map among norm, activation, dropout and skip.

mu = dropout(activation(norm(affine(z)))), or dropout(affine(activation(z))) with `activation_first`,
and with a skip z is added to that. A subclass gives the affine map. All of it is one layer with one
energy: a norm or a pool with an energy of its own would be one more thing for inference to settle.
Next file to read: `dense.py`.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from pcflax.energies import Energy

from .base import PCLayer


class AbstractAffineLayer(PCLayer, abc.ABC):
    """A layer around an affine map; the arguments are those of `PCDense` and `PCConv`.

    Raises:
        TypeError: for a norm that is not a ready module.
        ValueError: for a norm with `activation_first`, a rate of dropout outside [0, 1), or a skip
            between different numbers of features.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        activation: Callable[[Array], Array] | None,
        activation_first: bool,
        skip: bool,
        norm: Callable[[Array], Array] | None,
        dropout: float,
        energy: Energy | None,
        rngs: nnx.Rngs,
    ):
        super().__init__(energy=energy)
        name = type(self).__name__
        if skip and in_features != out_features:
            raise ValueError(
                f"{name} expected as many in_features as out_features with a skip, which adds the "
                f"activity below to the prediction, got {in_features} and {out_features}; make them "
                f"equal or set skip=False"
            )
        if norm is not None and (isinstance(norm, type) or not callable(norm)):
            raise TypeError(
                f"{name} expected norm to be a ready module such as "
                f"nnx.LayerNorm({out_features}, rngs=rngs), got {norm!r}"
            )
        if norm is not None and activation_first:
            raise ValueError(
                f"{name} applies a norm between the weights and the activation, got a norm and "
                f"activation_first=True; drop one of them, or write the order you mean in a "
                f"subclass's predict"
            )
        self.activation = activation
        self.activation_first = activation_first
        self.skip = skip
        self.norm: Any = norm
        self.dropout = make_dropout(name, dropout, rngs=rngs)

    @abc.abstractmethod
    def check_below(self, below: Float[Array, " batch *below"]) -> None:
        """Refuse an activity below that does not fit, with the remedy."""

    @abc.abstractmethod
    def affine(self, features: Float[Array, " batch *below"]) -> Float[Array, " batch *features"]:
        """The layer without norm, activation, dropout and skip."""

    def predict(self, below: Float[Array, " batch *below"]) -> Float[Array, " batch *features"]:
        """The prediction of this layer's activity from the one below."""
        self.check_below(below)
        activation, features = self.activation, below
        if activation is not None and self.activation_first:
            features = activation(features)
        prediction = self.affine(features)
        if self.norm is not None:
            prediction = self.norm(prediction)
        if activation is not None and not self.activation_first:
            prediction = activation(prediction)
        if self.dropout is not None:
            prediction = self.dropout(prediction)
        return added(self, below, prediction) if self.skip else prediction


def make_dropout(name: str, rate: float, *, rngs: nnx.Rngs) -> nnx.Dropout | None:
    """Dropout of this rate; None where it is 0, so that no random state is kept for nothing.

    Raises:
        ValueError: for a rate outside [0, 1).
    """
    if not 0 <= rate < 1:
        raise ValueError(
            f"{name} expected dropout to be at least 0 and below 1, the share of features that are "
            f"set to zero, got {rate}"
        )
    return nnx.Dropout(rate, rngs=rngs) if rate else None


def added(layer: PCLayer, shortcut: Array, branch: Array) -> Array:
    """Their sum, where the shapes are equal; sums that would broadcast are refused.

    Raises:
        ValueError: where the shapes differ.
    """
    if shortcut.shape != branch.shape:
        raise ValueError(
            f"{type(layer).__name__} adds a shortcut of shape {shortcut.shape} to a branch of shape "
            f"{branch.shape}; give the branch equal features and, in space, strides of 1 with "
            f"padding='SAME', or project the shortcut"
        )
    return shortcut + branch
