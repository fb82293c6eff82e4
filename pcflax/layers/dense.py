"""The dense layer: an affine map and an activation, over `flax.nnx.Linear`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pcflax.checks import expect_count
from pcflax.dtypes import aligned
from pcflax.energies import Energy
from pcflax.parameterizations import AbstractParameterization

from .affine import Function, make_affine, mask_weights, multiplied
from .feedback import Feedback, make_feedback
from .scaled import PCScaled, as_parameterization
from .weights import lecun_normal


class PCDense(PCScaled):
    """mu = activation(a * below @ W + b), or a * activation(below) @ W + b with `activation_first`.

    With `skip` the activity below is added to that: the residual layer of muPC is
    `PCDense(width, width, activation=..., activation_first=True, skip=True,
    parameterization=pc.parameterizations.MuPC())`. The multiplier a is the parameterization's; it
    multiplies the weights and never the bias or the skip. The other options are those of
    `pc.layers.PCAffine`.

    Args:
        in_features: width of the activity below.
        out_features: width of this layer's activity.
        parameterization: the multiplier and the initial weights; `Standard()`, under which a = 1,
            unless given.
        use_bias: whether there is a bias b, of shape (out_features,), zero at the start.
        kernel_init: initializer of the weights W, of shape (in_features, out_features); unless given
            the parameterization's, and where it has none LeCun normal (variance 1/in_features).
        mask: which weights there are: (in_features, out_features) of Booleans, or of 0 and 1, or
            "no-diagonal" for a node that predicts itself. The others are 0, get no gradient and stay 0, but
            count in the width by which a parameterization, or LeCun's variance, goes. A checkpoint holds the
            mask.
        feedback: weights of their own that the layer's error goes down through, `pc.layers.Feedback()`.
        rngs: source of the initial weights, and of the masks of dropout.
        **options: others of `nnx.Linear`: bias_init, param_dtype, precision, kernel_metadata (such as
            the names of axes for sharding), ...

    Attributes:
        linear: the `nnx.Linear`.
        multiplier: a, a float. It depends on the layer's place, which a network sets at construction;
            before that the layer counts as a network of its own, first and last at once.

    Raises:
        TypeError: where `parameterization` is not an `AbstractParameterization`, for an option that
            nobody has, and as `PCAffine`.
        ValueError: for an activity below of another width, a mask of another shape or of other numbers,
            and as `PCAffine`.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> layer = pc.PCDense(3, 5, activation=jnp.tanh, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    >>> layer.predict(jnp.ones((2, 3), jnp.bfloat16)).shape, layer.linear.kernel.dtype
    ((2, 5), dtype(bfloat16))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        activation: Function | None = None,
        activation_first: bool = False,
        skip: bool = False,
        parameterization: AbstractParameterization | None = None,
        use_bias: bool = True,
        kernel_init: Callable[..., Array] | None = None,
        mask: Any = None,
        feedback: Feedback | None = None,
        norm: Function | None = None,
        dropout: float = 0.0,
        energy: Energy | None = None,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        self.in_features = expect_count(self, "in_features", in_features, least=1)
        self.out_features = expect_count(self, "out_features", out_features, least=1)
        super().__init__(
            activation=activation,
            activation_first=activation_first,
            norm=norm,
            dropout=dropout,
            skip=skip,
            energy=energy,
            rngs=rngs,
        )
        self.parameterization = as_parameterization(self, parameterization)
        init = kernel_init or self.parameterization.kernel_init or lecun_normal
        self.linear: nnx.Linear = make_affine(
            self,
            nnx.Linear,
            self.in_features,
            self.out_features,
            use_bias=use_bias,
            kernel_init=init,
            rngs=rngs,
            **options,
        )
        if isinstance(mask, str):
            mask = _without_diagonal(mask, self.in_features, self.out_features)
        mask_weights(self, self.linear.kernel, mask)
        if feedback is not None:
            self.feedback = make_feedback(self, feedback, self.linear.kernel, init, rngs)
        self.set_place(0, 1)

    @property
    def known_shape(self) -> tuple[int, ...]:
        """The width of this layer's activity."""
        return (self.linear.out_features,)

    @property
    def fan_in(self) -> float:
        """The width of the activity below."""
        return self.linear.in_features

    def affine(self, features: Float[Array, " batch in"]) -> Float[Array, " batch out"]:
        """Compute a * (features @ W) + b: the layer without its activation and its skip.

        Raises:
            ValueError: for features of another width than in_features.
        """
        if features.ndim < 2 or features.shape[-1] != self.linear.in_features:
            raise ValueError(
                f"expected an input of shape (batch, {self.linear.in_features}), got {features.shape}; "
                f"{f'set in_features={features.shape[-1]} or ' if features.ndim > 1 else ''}change what is "
                f"below"
            )
        if self.multiplier != 1.0:
            features = multiplied(features, self.multiplier)
        if self.mask is None:
            return self.linear(features)
        linear = self.linear
        kernel = linear.kernel[...] * self.mask[...].astype(linear.kernel.dtype)
        bias = None if linear.bias is None else linear.bias[...]
        features, kernel, bias = linear.promote_dtype((features, kernel, bias), dtype=linear.dtype)
        sums = (((features.ndim - 1,), (0,)), ((), ()))
        options: dict[str, Any] = {"precision": linear.precision}
        if linear.preferred_element_type is not None:
            options["preferred_element_type"] = linear.preferred_element_type
        product = linear.dot_general(features, kernel, sums, **options)
        return product if bias is None else jnp.add(*aligned(product, bias))


def _without_diagonal(mask: str, in_features: int, out_features: int) -> Array:
    if mask != "no-diagonal" or in_features != out_features:
        raise ValueError(
            f"PCDense expected a mask of shape {(in_features, out_features)}, or 'no-diagonal' of a square "
            f"one, got {mask!r}"
        )
    return ~jnp.eye(in_features, dtype=bool)
