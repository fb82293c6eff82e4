"""The causal language model: tokens in, the next token's logits out at every place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array

from pcflax.checks import expect_count
from pcflax.energies import Categorical, Energy
from pcflax.layers import PCMLP, PCAttention, PCDense, PCEmbedding, PCLayer
from pcflax.networks import PCNetwork
from pcflax.parameterizations import AbstractParameterization


def transformer(
    num_tokens: int,
    length: int,
    features: int = 128,
    *,
    num_heads: int = 4,
    num_blocks: int = 4,
    hidden_features: int | None = None,
    activation: Callable[[Array], Array] = jax.nn.gelu,
    dropout: float = 0.0,
    parameterization: AbstractParameterization | None = None,
    energy: Energy | None = None,
    rngs: nnx.Rngs,
    **options: Any,
) -> PCNetwork:
    """Return an embedding, blocks of causal attention and MLP with a norm in front of each, logits.

    Layers are called embedding, attention_1, mlp_1, attention_2, ..., output: a block is two nodes. The
    inputs are integer tokens (batch, length), the targets one-hot, (batch, length, num_tokens):
    `jax.nn.one_hot(tokens[:, 1:], num_tokens)` for tokens[:, :-1]. An example's energy is a sum over
    its places.

    Args:
        num_tokens: size of the vocabulary.
        length: the longest sequence, the number of learned positions.
        features: width of all nodes but the output.
        num_heads: heads of attention; must divide features.
        num_blocks: how many blocks.
        hidden_features: width inside the MLPs; four times features unless given.
        activation: of the MLPs.
        dropout: the share of features set to zero in each branch, while the network is not in `eval()`.
        parameterization: of all layers, such as `pc.parameterizations.CompleteP()`, with
            `pc.learning.scale_by_layer` behind Adam; embeddings are then drawn by its initializer, and the
            norm before the logits has no parameters, which the weights behind it make up for.
        energy: of the output; `Categorical()` unless given.
        rngs: source of the initial weights, and of the masks of dropout.
        **options: compute_dtype and remat, as in `PCNetwork`.

    Raises:
        TypeError, ValueError: for sizes that are not counts, and as the layers.

    Source: the order of GPT-2 (Radford et al., 2019) after Vaswani et al. (2017), arXiv 1706.03762. As a
    predictive coding network by Pinchetti et al. (2022), arXiv 2211.03481. Character models of about
    100,000 parameters reach a test perplexity of 9.1 after 5 epochs of Tiny Shakespeare in another
    library.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> network = pc.models.transformer(65, 16, 32, num_blocks=1, rngs=nnx.Rngs(0))
    >>> network.names
    ('embedding', 'attention_1', 'mlp_1', 'output')
    >>> network.predict(jnp.array([[3, 1, 4, 1, 5]])).shape
    (1, 5, 65)
    """
    init = None if parameterization is None else parameterization.kernel_init
    layers: dict[str, PCLayer] = {
        "embedding": PCEmbedding(
            num_tokens, features, num_positions=length, embedding_init=init, rngs=rngs
        )
    }
    shared: dict[str, Any] = {
        "dropout": dropout,
        "parameterization": parameterization,
        "rngs": rngs,
    }
    num_blocks = expect_count("transformer", "num_blocks", num_blocks)
    if hidden_features is None:
        hidden_features = 4 * features
    for number in range(1, num_blocks + 1):
        layers[f"attention_{number}"] = PCAttention(features, num_heads, causal=True, **shared)
        layers[f"mlp_{number}"] = PCMLP(features, hidden_features, activation=activation, **shared)
    energy = Categorical() if energy is None else energy
    if parameterization is None:
        linear = nnx.Linear(features, num_tokens, rngs=rngs)
        logits = nnx.Sequential(nnx.LayerNorm(features, rngs=rngs), linear)
        layers["output"] = PCLayer(logits, energy=energy)
    else:
        layers["output"] = PCDense(
            features,
            num_tokens,
            activation=jax.nn.standardize,
            activation_first=True,
            parameterization=parameterization,
            energy=energy,
            rngs=rngs,
        )
    return PCNetwork(layers, **options)
