"""Embedding of tokens, the first layer of a language model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from pcflax.checks import expect_count
from pcflax.dtypes import common_dtype
from pcflax.energies import Energy

from .affine import make_affine
from .base import PCLayer


class PCEmbedding(PCLayer):
    """mu[t] = embedding[token[t]], plus position[t] where there are learned positions.

    From integer tokens (batch, length), the clamped input of a network, to (batch, length, features).
    Tokens are never inferred. A token outside 0 to num_embeddings - 1 has no row: it predicts NaN.

    Args:
        num_embeddings: how many tokens there are.
        features: width of this layer's activity.
        num_positions: the longest sequence that has learned positions; None for no positions.
        embedding_init: initializer of both tables. Unless given, their numbers have variance 1/features;
            `nnx.initializers.normal(1.0)` makes features of size 1, which is that of what a norm puts out.
        energy: `Gaussian()` unless given.
        rngs: source of the initial weights.
        **options: others of `nnx.Embed`: param_dtype, embedding_metadata, ...

    Raises:
        TypeError: for an input that is not of an integer dtype, or an option that nobody has.
        ValueError: for an input of another number of axes, or sequences longer than num_positions.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> layer = pc.PCEmbedding(65, 16, num_positions=8, rngs=nnx.Rngs(0))
    >>> layer.predict(jnp.array([[3, 1, 4]])).shape
    (1, 3, 16)
    """

    takes_integers = True

    def __init__(
        self,
        num_embeddings: int,
        features: int,
        *,
        num_positions: int | None = None,
        embedding_init: Callable[..., Array] | None = None,
        energy: Energy | None = None,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(energy=energy)
        features = expect_count(self, "features", features, least=1)
        options |= {} if embedding_init is None else {"embedding_init": embedding_init}

        def make(name: str, rows: int) -> nnx.Embed:
            rows = expect_count(self, name, rows, least=1)
            return make_affine(self, nnx.Embed, rows, features, rngs=rngs, **options)

        self.embedding = make("num_embeddings", num_embeddings)
        self.positions = None if num_positions is None else make("num_positions", num_positions)

    def predict(  # type: ignore[override]
        self, below: Int[Array, " batch length"]
    ) -> Float[Array, " batch length features"]:
        """Predict this layer's activity from the tokens below."""
        if not jnp.issubdtype(below.dtype, jnp.integer):
            raise TypeError(
                f"PCEmbedding expected tokens of an integer dtype, got {below.dtype}; cast them: "
                f"tokens.astype(jnp.int32)"
            )
        if below.ndim != 2:
            raise ValueError(
                f"PCEmbedding expected tokens of shape (batch, length), got {below.shape}"
            )
        # below 0 no row either, where an index would count from the end; a byte may not hold that number
        tokens = jnp.asarray(below)
        tokens = tokens.astype(common_dtype(tokens.dtype, jnp.int32))
        tokens = jnp.where(tokens < 0, self.embedding.num_embeddings, tokens)
        features = self.embedding(tokens)
        if self.embedding.num_embeddings == 1:  # which flax looks up without a look at the tokens
            known = jnp.expand_dims(tokens == 0, 2)
            features = jnp.where(known, features, jnp.full((), jnp.nan, features.dtype))
        if self.positions is None:
            return features
        length, longest = below.shape[1], self.positions.num_embeddings
        if length > longest:
            raise ValueError(
                f"PCEmbedding has positions for sequences of at most {longest} tokens, got {length}; "
                f"set num_positions={length} or give shorter sequences"
            )
        return features + self.positions(jnp.arange(length)[None])
