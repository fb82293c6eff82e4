"""The dense layer: an affine map and an activation, over `flax.nnx.Linear`."""

from __future__ import annotations

from collections.abc import Callable

from flax import nnx
from jaxtyping import Array, Float

from pcflax.energies import Energy
from pcflax.parameterizations import AbstractParameterization, Standard

from .affine import AbstractAffineLayer

_default_kernel_init = nnx.initializers.lecun_normal()


class PCDense(AbstractAffineLayer):
    """mu = activation(a * below @ W + b), or a * activation(below) @ W + b with `activation_first`.

    With `skip` the activity below is added to that: the residual layer of muPC is
    `PCDense(width, width, activation=..., activation_first=True, skip=True,
    parameterization=pc.parameterizations.MuPC())`. The multiplier a is the parameterization's; it
    multiplies the weights and never the bias or the skip.

    Args:
        in_features: width of the activity below.
        out_features: width of this layer's activity.
        activation: elementwise function such as `jnp.tanh`; None for the identity.
        activation_first: apply the activation to the activity below, before the weights. The
            notebook of reference applies it after them, as here by default.
        skip: add the activity below to the prediction; needs in_features == out_features.
        parameterization: the multiplier and the initial weights; `Standard()`, under which a = 1,
            unless given.
        use_bias: whether there is a bias b, of shape (out_features,), zero at the start.
        kernel_init: initializer of the weights W, of shape (in_features, out_features); unless given
            the parameterization's, and where it has none LeCun normal (variance 1/in_features).
        norm: a ready module such as `nnx.LayerNorm(out_features, rngs=rngs)`, applied between the
            weights and the activation; not together with `activation_first`.
        dropout: the share of features set to zero, of all but the skip, while the network is not in
            `eval()`; the rest are divided by 1 - dropout.
        energy: `Gaussian()` unless given.
        rngs: source of the initial weights, and of the masks of dropout.

    Attributes:
        multiplier: a, a float. It depends on the layer's place, which a network sets at construction;
            before that the layer counts as a network of its own, first and last at once.

    Raises:
        TypeError: where `parameterization` is not an `AbstractParameterization`, or `norm` no module.
        ValueError: for a skip between different widths, a norm with `activation_first`, a rate of
            dropout outside [0, 1), or an activity below of another width.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> layer = pc.PCDense(3, 5, activation=jnp.tanh, rngs=nnx.Rngs(0))
    >>> layer.predict(jnp.ones((2, 3))).shape
    (2, 5)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        activation: Callable[[Array], Array] | None = None,
        activation_first: bool = False,
        skip: bool = False,
        parameterization: AbstractParameterization | None = None,
        use_bias: bool = True,
        kernel_init: Callable[..., Array] | None = None,
        norm: Callable[[Array], Array] | None = None,
        dropout: float = 0.0,
        energy: Energy | None = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            in_features,
            out_features,
            activation=activation,
            activation_first=activation_first,
            skip=skip,
            norm=norm,
            dropout=dropout,
            energy=energy,
            rngs=rngs,
        )
        parameterization = Standard() if parameterization is None else parameterization
        if not isinstance(parameterization, AbstractParameterization):
            raise TypeError(
                f"{type(self).__name__} expected parameterization to be an object such as "
                f"pc.parameterizations.MuPC(), got {parameterization!r}"
            )
        self.linear = nnx.Linear(
            in_features,
            out_features,
            use_bias=use_bias,
            kernel_init=kernel_init or parameterization.kernel_init or _default_kernel_init,
            rngs=rngs,
        )
        self.parameterization = parameterization
        self.set_place(0, 1)

    def set_place(self, index: int, depth: int) -> None:
        """Choose the multiplier of this place: the layer is number `index` of `depth`, from 0."""
        self.multiplier = self.parameterization.multiplier(
            index=index, depth=depth, in_features=self.linear.in_features, skip=self.skip
        )

    def check_below(self, below: Float[Array, " batch in"]) -> None:
        """Refuse an activity below of another width than in_features."""
        if below.shape[-1] != self.linear.in_features:
            raise ValueError(
                f"expected an input of shape (batch, {self.linear.in_features}), got {below.shape}; "
                f"set in_features={below.shape[-1]} or change what is below"
            )

    def affine(self, features: Float[Array, " batch in"]) -> Float[Array, " batch out"]:
        """The map a * (features @ W) + b: the layer without its activation and its skip."""
        if self.multiplier != 1.0:
            # on this side of the product: it leaves the bias alone, and N(0, 1) weights sum to O(1)
            features = self.multiplier * features
        return self.linear(features)
