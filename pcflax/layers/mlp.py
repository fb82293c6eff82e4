"""Two dense maps with a norm and a skip: the other half of a transformer's block."""

from __future__ import annotations

from collections.abc import Callable

import jax
from flax import nnx
from jaxtyping import Array, Float

from pcflax.energies import Energy

from .affine import make_dropout
from .base import PCLayer


class PCMLP(PCLayer):
    """mu = z + dropout(W2 activation(W1 LayerNorm(z) + b1) + b2), over the last axis of z.

    All other axes count as examples, so that it works on (batch, features) and on every place of
    (batch, length, features) alike.

    Args:
        features: width of the activity below and of this layer's.
        hidden_features: width in between; four times features is usual in transformers.
        activation: elementwise function.
        dropout: the share of features set to zero before they are added to z, while the network is
            not in `eval()`; the rest are divided by 1 - dropout.
        energy: `Gaussian()` unless given.
        rngs: source of the initial weights, and of the masks of dropout.

    Raises:
        ValueError: for a rate of dropout outside [0, 1), or an activity below of another width.

    Source: Vaswani et al. (2017), arXiv 1706.03762, section 3.3; the norm on the branch as in GPT-2
    (Radford et al., 2019).

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> pc.PCMLP(8, 32, rngs=nnx.Rngs(0)).predict(jnp.ones((2, 5, 8))).shape
    (2, 5, 8)
    """

    def __init__(
        self,
        features: int,
        hidden_features: int,
        *,
        activation: Callable[[Array], Array] = jax.nn.gelu,
        dropout: float = 0.0,
        energy: Energy | None = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(energy=energy)
        self.norm = nnx.LayerNorm(features, rngs=rngs)
        self.up = nnx.Linear(features, hidden_features, rngs=rngs)
        self.down = nnx.Linear(hidden_features, features, rngs=rngs)
        self.activation = activation
        self.dropout = make_dropout("PCMLP", dropout, rngs=rngs)

    def predict(
        self, below: Float[Array, " batch *places features"]
    ) -> Float[Array, " batch *places features"]:
        """The prediction of this layer's activity from the one below."""
        if below.shape[-1] != self.up.in_features:
            raise ValueError(
                f"expected an input of shape (batch, ..., {self.up.in_features}), got {below.shape}; "
                f"set features={below.shape[-1]} or change what is below"
            )
        branch = self.down(self.activation(self.up(self.norm(below))))
        return below + (branch if self.dropout is None else self.dropout(branch))
