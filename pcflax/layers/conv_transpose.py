"""The transposed convolution, over `flax.nnx.ConvTranspose`: a layer that predicts more places."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flax import nnx
from jaxtyping import Array, Float

from pcflax.energies import Energy

from .affine import AbstractAffineLayer
from .conv import Padding, as_kernel_size, as_padding, check_channels, for_each_dimension

_default_kernel_init = nnx.initializers.lecun_normal()


class PCConvTranspose(AbstractAffineLayer):
    """mu = dropout(activation(norm(conv_transpose(below)))), channels last; decoders are built of it.

    From (batch, *space, in_features) to (batch, *space', out_features): an axis of n becomes
    n * stride under "SAME", and n * stride + max(dilation * (kernel - 1) + 1 - stride, 0) under
    "VALID". The numbers are those of `nnx.ConvTranspose` and `jax.lax.conv_transpose`, which do not
    flip the kernel (torch does).

    Args:
        in_features: channels of the activity below.
        out_features: channels of this layer's activity.
        kernel_size: (height, width); an int k is (k, k), a tuple of one or three another dimension.
        strides: by how much space grows, an int or one for each dimension.
        padding: "SAME", "VALID", "CIRCULAR", or pairs of ints, as in `nnx.ConvTranspose`.
        dilation: distance between the kernel's taps, an int or one for each dimension.
        activation: elementwise function such as `jax.nn.relu`; None for the identity.
        activation_first: apply the activation to the activity below, before the weights.
        norm: a ready module called on the convolution, such as
            `nnx.GroupNorm(out_features, num_groups=8, rngs=rngs)`; not with `activation_first`.
        dropout: the share of features set to zero while the network is not in `eval()`; the rest are
            divided by 1 - dropout.
        skip: add the activity below to the prediction; needs equal shapes.
        use_bias: whether there is a bias, one for each channel, zero at the start.
        kernel_init: initializer of the weights, (*kernel_size, in_features, out_features); LeCun
            normal unless given.
        energy: `Gaussian()` unless given.
        rngs: source of the initial weights, and of the masks of dropout.

    Raises:
        TypeError: for a norm that is not a ready module.
        ValueError: for sizes that do not go together, or an activity below of another shape.

    >>> import jax, jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> layer = pc.PCConvTranspose(8, 3, 3, strides=2, activation=jax.nn.relu, rngs=nnx.Rngs(0))
    >>> layer.predict(jnp.ones((2, 4, 5, 8))).shape
    (2, 8, 10, 3)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        *,
        strides: int | Sequence[int] = 1,
        padding: Padding = "SAME",
        dilation: int | Sequence[int] = 1,
        activation: Callable[[Array], Array] | None = None,
        activation_first: bool = False,
        norm: Callable[[Array], Array] | None = None,
        dropout: float = 0.0,
        skip: bool = False,
        use_bias: bool = True,
        kernel_init: Callable[..., Array] | None = None,
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
        kernel_size = as_kernel_size(kernel_size)
        strides = for_each_dimension("strides", strides, len(kernel_size))
        if skip and any(stride != 1 for stride in strides):
            raise ValueError(
                f"PCConvTranspose expected strides of 1 with a skip, which adds the activity below to "
                f"the prediction, got {strides}; use pc.PCResidual with a shortcut that grows alike"
            )
        self.conv = nnx.ConvTranspose(
            in_features,
            out_features,
            kernel_size,
            strides,
            padding=as_padding(padding),
            kernel_dilation=for_each_dimension("dilation", dilation, len(kernel_size)),
            use_bias=use_bias,
            kernel_init=kernel_init or _default_kernel_init,
            rngs=rngs,
        )

    def check_below(self, below: Float[Array, " batch *space in"]) -> None:
        """Refuse an activity below of another number of axes or channels."""
        check_channels(below, self.conv.in_features, len(self.conv.kernel_size))

    def affine(self, features: Float[Array, " batch *space in"]) -> Float[Array, " batch *new out"]:
        """The transposed convolution and its bias: the layer without norm, activation and skip."""
        return self.conv(features)
