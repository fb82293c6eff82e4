"""Blocks with a shortcut around them, each one layer: the halves of a transformer's block, ResNet's block."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pcflax.checks import expect_count
from pcflax.energies import Energy

from .affine import Function, add_shortcut, make_affine, make_dropout
from .base import PCLayer
from .closures import refuse_hidden_modules


class PCAttention(PCLayer):
    """mu = z + dropout(MultiHeadAttention(LayerNorm(z))) for sequences z (batch, length, features).

    The pre-norm order: what is below passes unchanged, attention adds to it. Every place of the
    sequence attends to all, or with `causal` to itself and those before it. The length is that of the
    input; it may change from batch to batch.

    Args:
        features: width of the activity below and of this layer's.
        num_heads: number of heads; must divide features.
        causal: whether a place sees only itself and the places before it.
        dropout: of what is added, as in `pc.layers.PCAffine`.
        energy: `Gaussian()` unless given.
        rngs: source of the initial weights, and of the masks of dropout.
        **options: others of `nnx.MultiHeadAttention`: kernel_init, param_dtype, ...

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
        **options: Any,
    ):
        super().__init__(energy=energy)
        features = expect_count(self, "features", features, least=1)
        num_heads = expect_count(self, "num_heads", num_heads)
        if num_heads < 1 or features % num_heads:
            raise ValueError(
                f"PCAttention expected num_heads that divides features={features}, got {num_heads}"
            )
        self.norm = make_norm(features, rngs, options)
        options = {"decode": False} | options
        self.attention: nnx.MultiHeadAttention = make_affine(
            self, nnx.MultiHeadAttention, num_heads, features, rngs=rngs, **options
        )
        self.causal = causal
        self.dropout = make_dropout(self, dropout, rngs)

    def predict(
        self, below: Float[Array, " batch length features"]
    ) -> Float[Array, " batch length features"]:
        """Predict this layer's activity from the one below."""
        features = self.attention.in_features
        if below.ndim != 3 or below.shape[-1] != features:
            raise ValueError(
                f"expected an input of shape (batch, length, {features}), got {below.shape}; set "
                f"features={below.shape[-1]} or change what is below"
            )
        # one mask for all examples and heads
        mask = nnx.make_causal_mask(jnp.ones((1, below.shape[1]))) if self.causal else None
        branch = self.attention(self.norm(below), mask=mask)
        return below + (branch if self.dropout is None else self.dropout(branch))


class PCMLP(PCLayer):
    """mu = z + dropout(W2 activation(W1 LayerNorm(z) + b1) + b2), over the last axis of z.

    All other axes count as examples, so that it works on (batch, features) and on every place of
    (batch, length, features) alike.

    Args:
        features: width of the activity below and of this layer's.
        hidden_features: width in between; four times features is usual in transformers.
        activation: elementwise function.
        dropout: of what is added to z, as in `pc.layers.PCAffine`.
        energy: `Gaussian()` unless given.
        rngs: source of the initial weights, and of the masks of dropout.
        **options: others of both `nnx.Linear`: kernel_init, param_dtype, ...

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
        activation: Function = jax.nn.gelu,
        dropout: float = 0.0,
        energy: Energy | None = None,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(energy=energy)
        widths = (
            expect_count(self, "features", features, least=1),
            expect_count(self, "hidden_features", hidden_features, least=1),
        )
        refuse_hidden_modules(self, activation=activation)
        self.norm = make_norm(widths[0], rngs, options)
        self.up: nnx.Linear = make_affine(self, nnx.Linear, *widths, rngs=rngs, **options)
        self.down: nnx.Linear = make_affine(self, nnx.Linear, *widths[::-1], rngs=rngs, **options)
        self.activation = activation
        self.dropout = make_dropout(self, dropout, rngs)

    def predict(
        self, below: Float[Array, " batch *places features"]
    ) -> Float[Array, " batch *places features"]:
        """Predict this layer's activity from the one below."""
        if below.shape[-1] != self.up.in_features:
            raise ValueError(
                f"expected an input of shape (batch, ..., {self.up.in_features}), got {below.shape}; "
                f"set features={below.shape[-1]} or change what is below"
            )
        branch = self.down(self.activation(self.up(self.norm(below))))
        return below + (branch if self.dropout is None else self.dropout(branch))


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
        TypeError: for a module or a shortcut that cannot be called, or a function that hides a module.
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
        module: Function,
        *,
        shortcut: Function | None = None,
        activation: Function | None = None,
        energy: Energy | None = None,
    ):
        super().__init__(module, energy=energy)
        if shortcut is not None and not callable(shortcut):
            raise TypeError(
                f"PCResidual expected a shortcut that can be called on the activity below, got "
                f"{shortcut!r}"
            )
        refuse_hidden_modules(self, shortcut=shortcut, activation=activation)
        self.shortcut: Any = shortcut
        self.activation = activation

    def predict(self, below: Float[Array, " batch *below"]) -> Float[Array, " batch *features"]:
        """Predict this layer's activity from the one below."""
        shortcut = below if self.shortcut is None else self.shortcut(below)
        total = add_shortcut(self, shortcut, self.module(below))
        return total if self.activation is None else self.activation(total)


def make_norm(features: int, rngs: nnx.Rngs, options: dict[str, Any]) -> nnx.LayerNorm:
    """Make the norm of a block, of the dtypes that its options give to its weights."""
    dtypes = {name: options[name] for name in ("dtype", "param_dtype") if name in options}
    return nnx.LayerNorm(features, rngs=rngs, **dtypes)
