"""Blocks with a shortcut around them, each one layer: the halves of a transformer's block, ResNet's block."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pcflax.checks import expect_count, expect_number
from pcflax.energies import Energy
from pcflax.parameterizations import AbstractParameterization

from .affine import (
    Function,
    add_shortcut,
    check_activation,
    make_affine,
    make_dropout,
    multiplied,
)
from .base import PCLayer
from .closures import refuse_hidden_modules
from .scaled import as_parameterization


class PCBranch(PCLayer):
    """What `PCAttention` and `PCMLP` share: matrices within a branch, and one at its end that adds to z.

    The former have a hidden layer's multiplier and rate, the latter those of a layer with a skip at the
    block's own place.
    """

    parameterization: AbstractParameterization
    inner: float = 1.0  # the multiplier of the matrices within
    outer: float = 1.0  # of the one at the end
    end: str = ""  # its name

    @property
    def fan_ins(self) -> tuple[int, int]:
        """How many products the units within sum up, and those at the end."""
        raise NotImplementedError

    def set_place(self, index: int, depth: int) -> None:
        """Choose the multipliers of this place: the block is number `index` of `depth`, from 0."""
        (within, end), make = self.fan_ins, self.parameterization.multiplier
        self.inner = make(index=1, depth=3, in_features=within, skip=False)
        self.outer = make(index=index, depth=depth, in_features=end, skip=True)

    def rate_of(self, path: Sequence[str], index: int, depth: int) -> float:
        """Return the parameterization's factors of Adam's rate: for weights, and for biases and norms."""
        within = self.end not in path
        if path[0] == "energy":
            return 1.0
        if path[-1] != "kernel":
            return self.parameterization.bias_rate(
                index=index, depth=depth, skip=True, within=within
            )
        # no matrix within is a network's last; the last block's share no depth, since its skip does not count
        skip = not (within and index == depth - 1)
        if not skip:
            index, depth = 1, 3
        return self.parameterization.weight_rate(
            index=index, depth=depth, in_features=self.fan_ins[not within], skip=skip
        )

    def _parameterized(self, parameterization: Any) -> dict[str, Any]:
        """Keep the parameterization; return the options of the modules that follow from it."""
        self.parameterization = as_parameterization(self, parameterization)
        init = self.parameterization.kernel_init
        return {} if init is None else {"kernel_init": init}


@dataclasses.dataclass(frozen=True)
class ScaledAttention:
    """Attention with its queries multiplied on the way in and its result on the way out; equal by value."""

    attend: Callable[..., Array]
    query: float
    result: float

    def __call__(self, query: Array, key: Array, value: Array, **options: Any) -> Array:
        """Return result * attend(query multiplied, key, value)."""
        return self.result * self.attend(self.query * query, key, value, **options)


class PCAttention(PCBranch):
    """mu = z + dropout(MultiHeadAttention(LayerNorm(z))) for sequences z (batch, length, features).

    The pre-norm order: what is below passes unchanged, attention adds to it. Every place of the
    sequence attends to all, or with `causal` to itself and those before it. The length is that of the
    input; it may change from batch to batch.

    Args:
        features: width of the activity below and of this layer's.
        num_heads: number of heads; must divide features.
        causal: whether a place sees only itself and the places before it.
        parameterization: multipliers and initial weights, as in `pc.layers.PCDense`: of queries, keys and
            values those of a hidden layer, of the projection at the end those of one with a skip, and of
            the products of queries and keys its `attention_multiplier`.
        dropout: of what is added, as in `pc.layers.PCAffine`.
        energy: `Gaussian()` unless given.
        rngs: source of the initial weights, and of the masks of dropout.
        **options: others of `nnx.MultiHeadAttention`: kernel_init, param_dtype, ...

    Raises:
        TypeError: for an option that nobody has.
        ValueError: where num_heads does not divide features, for other in_kv_features or out_features, a
            rate of dropout outside [0, 1), or an activity below of another shape.

    Source: Vaswani et al. (2017), arXiv 1706.03762, section 3.2; the norm on the branch as in GPT-2
    (Radford et al., 2019).

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> layer = pc.PCAttention(8, 2, causal=True, rngs=nnx.Rngs(0))
    >>> layer.predict(jnp.ones((2, 5, 8))).shape
    (2, 5, 8)
    """

    end = "out"

    def __init__(
        self,
        features: int,
        num_heads: int,
        *,
        causal: bool = False,
        parameterization: AbstractParameterization | None = None,
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
        options = {"decode": False} | self._parameterized(parameterization) | options
        self.attention: nnx.MultiHeadAttention = make_affine(
            self, nnx.MultiHeadAttention, num_heads, features, rngs=rngs, **options
        )
        if self.attention.out_features != features or self.attention.in_kv_features != features:
            raise ValueError(
                f"PCAttention adds attention within z to z, so that in_kv_features and out_features are "
                f"features={features}, got {self.attention.in_kv_features} and "
                f"{self.attention.out_features}; leave them out"
            )
        self.attend = self.attention.attention_fn
        self.causal = causal
        self.dropout = make_dropout(self, dropout, rngs)
        self.set_place(0, 1)

    @property
    def fan_ins(self) -> tuple[int, int]:
        """The width of z, and that of all heads together."""
        return self.attention.in_features, self.attention.qkv_features

    def set_place(self, index: int, depth: int) -> None:
        """Choose the multipliers of this place: the block is number `index` of `depth`, from 0."""
        super().set_place(index, depth)
        own = self.parameterization
        of_query = own.attention_multiplier(self.attention.head_dim)
        of_query = expect_number(own, "attention_multiplier", of_query)
        scaled = ScaledAttention(self.attend, of_query, self.outer)
        plain = (of_query, self.outer) == (1.0, 1.0)
        self.attention.attention_fn = self.attend if plain else scaled

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
        branch = self.attention(multiplied(self.norm(below), self.inner), mask=mask)
        return below + (branch if self.dropout is None else self.dropout(branch))


class PCMLP(PCBranch):
    """mu = z + dropout(W2 activation(W1 LayerNorm(z) + b1) + b2), over the last axis of z.

    All other axes count as examples, so that it works on (batch, features) and on every place of
    (batch, length, features) alike.

    Args:
        features: width of the activity below and of this layer's.
        hidden_features: width in between; four times features is usual in transformers.
        activation: elementwise function; None for the identity.
        parameterization: multipliers and initial weights, as in `pc.layers.PCDense`: of W1 those of a
            hidden layer, of W2 those of one with a skip.
        dropout: of what is added to z, as in `pc.layers.PCAffine`.
        energy: `Gaussian()` unless given.
        rngs: source of the initial weights, and of the masks of dropout.
        **options: others of both `nnx.Linear`: kernel_init, param_dtype, ...

    Raises:
        TypeError: for an option that nobody has, or an activation that is no function.
        ValueError: for a rate of dropout outside [0, 1), or an activity below of another width.

    Source: Vaswani et al. (2017), arXiv 1706.03762, section 3.3; the norm on the branch as in GPT-2
    (Radford et al., 2019).

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> pc.PCMLP(8, 32, rngs=nnx.Rngs(0)).predict(jnp.ones((2, 5, 8))).shape
    (2, 5, 8)
    """

    end = "down"

    def __init__(
        self,
        features: int,
        hidden_features: int,
        *,
        activation: Function | None = jax.nn.gelu,
        parameterization: AbstractParameterization | None = None,
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
        check_activation(self, activation)
        self.norm = make_norm(widths[0], rngs, options)
        options = self._parameterized(parameterization) | options
        self.up: nnx.Linear = make_affine(self, nnx.Linear, *widths, rngs=rngs, **options)
        self.down: nnx.Linear = make_affine(self, nnx.Linear, *widths[::-1], rngs=rngs, **options)
        self.activation = activation
        self.dropout = make_dropout(self, dropout, rngs)
        self.set_place(0, 1)

    @property
    def fan_ins(self) -> tuple[int, int]:
        """The width of z, and the one in between."""
        return self.up.in_features, self.down.in_features

    def predict(
        self, below: Float[Array, " batch *places features"]
    ) -> Float[Array, " batch *places features"]:
        """Predict this layer's activity from the one below."""
        if below.ndim < 2 or below.shape[-1] != self.up.in_features:
            raise ValueError(
                f"expected an input of shape (batch, ..., {self.up.in_features}), got {below.shape}; "
                f"{f'set features={below.shape[-1]} or ' if below.ndim > 1 else ''}change what is below"
            )
        hidden = self.up(multiplied(self.norm(below), self.inner))
        hidden = hidden if self.activation is None else self.activation(hidden)
        branch = self.down(multiplied(hidden, self.outer))
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
        TypeError: for a module, a shortcut or an activation that cannot be called, or a function that hides
            a module.
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
        refuse_hidden_modules(self, shortcut=shortcut)
        check_activation(self, activation)
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
