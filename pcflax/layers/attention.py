"""Self-attention as a layer, over `flax.nnx.MultiHeadAttention`: half of a transformer's block.

The other half is `mlp.py`. Each half is a layer with an energy of its own, so that a block of a
transformer is two nodes of the network.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pcflax.energies import Energy

from .affine import make_dropout
from .base import PCLayer


class PCAttention(PCLayer):
    """mu = z + dropout(MultiHeadAttention(LayerNorm(z))) for sequences z (batch, length, features).

    The pre-norm order: what is below passes unchanged, attention adds to it. Every place of the
    sequence attends to all, or with `causal` to itself and those before it. The length is that of the
    input; it may change from batch to batch.

    Args:
        features: width of the activity below and of this layer's.
        num_heads: number of heads; must divide features.
        causal: whether a place sees only itself and the places before it.
        dropout: the share of attention's features set to zero before they are added, while the
            network is not in `eval()`; the rest are divided by 1 - dropout.
        energy: `Gaussian()` unless given.
        rngs: source of the initial weights, and of the masks of dropout.

    Raises:
        ValueError: where num_heads does not divide features, for a rate of dropout outside [0, 1), or
            an activity below of another shape.

    Source: Vaswani et al. (2017), arXiv 1706.03762, section 3.2; the norm on the branch as in GPT-2
    (Radford et al., 2019).

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> layer = pc.PCAttention(8, 2, causal=True, rngs=nnx.Rngs(0))
    >>> layer.predict(jnp.ones((2, 5, 8))).shape
    (2, 5, 8)
    """

    def __init__(
        self,
        features: int,
        num_heads: int,
        *,
        causal: bool = False,
        dropout: float = 0.0,
        energy: Energy | None = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(energy=energy)
        if num_heads < 1 or features % num_heads:
            raise ValueError(
                f"PCAttention expected num_heads that divides features={features}, got {num_heads}"
            )
        self.norm = nnx.LayerNorm(features, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(num_heads, features, decode=False, rngs=rngs)
        self.causal = causal
        self.dropout = make_dropout("PCAttention", dropout, rngs=rngs)

    def predict(
        self, below: Float[Array, " batch length features"]
    ) -> Float[Array, " batch length features"]:
        """The prediction of this layer's activity from the one below."""
        check_sequence(below, self.attention.in_features)
        # one mask for all examples and heads
        mask = nnx.make_causal_mask(jnp.ones((1, below.shape[1]))) if self.causal else None
        branch = self.attention(self.norm(below), mask=mask)
        return below + (branch if self.dropout is None else self.dropout(branch))


def check_sequence(below: Array, features: int) -> None:
    """Refuse what is not (batch, length, features).

    Raises:
        ValueError: for another number of axes or features.
    """
    if below.ndim != 3 or below.shape[-1] != features:
        raise ValueError(
            f"expected an input of shape (batch, length, {features}), got {below.shape}; set "
            f"features={below.shape[-1]} or change what is below"
        )
