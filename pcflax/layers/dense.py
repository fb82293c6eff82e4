"""The dense layer: an affine map and an activation, over `flax.nnx.Linear`."""

from __future__ import annotations

from collections.abc import Callable

from flax import nnx
from jaxtyping import Array, Float

from pcflax.energies import Energy

from .base import PCLayer

_default_kernel_init = nnx.initializers.lecun_normal()


class PCDense(PCLayer):
    """mu = activation(below @ W + b), or activation(below) @ W + b with `activation_first`.

    Args:
        in_features: width of the activity below.
        out_features: width of this layer's activity.
        activation: elementwise function such as `jnp.tanh`; None for the identity.
        activation_first: apply the activation to the activity below, before the weights. The
            notebook of reference applies it after them, as here by default.
        use_bias: whether there is a bias b, of shape (out_features,), zero at the start.
        kernel_init: initializer of the weights W, of shape (in_features, out_features); LeCun normal
            (variance 1/in_features) unless given.
        energy: `Gaussian()` unless given.
        rngs: source of the initial weights.

    Raises:
        ValueError: where the activity below has another width.

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
        use_bias: bool = True,
        kernel_init: Callable[..., Array] = _default_kernel_init,
        energy: Energy | None = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(energy=energy)
        self.linear = nnx.Linear(
            in_features, out_features, use_bias=use_bias, kernel_init=kernel_init, rngs=rngs
        )
        self.activation = activation
        self.activation_first = activation_first

    def predict(self, below: Float[Array, " batch in"]) -> Float[Array, " batch out"]:
        """The prediction of this layer's activity from the one below."""
        if below.shape[-1] != self.linear.in_features:
            raise ValueError(
                f"expected an input of shape (batch, {self.linear.in_features}), got {below.shape}; "
                f"set in_features={below.shape[-1]} or change what is below"
            )
        if self.activation is None:
            return self.linear(below)
        if self.activation_first:
            return self.linear(self.activation(below))
        return self.activation(self.linear(below))
