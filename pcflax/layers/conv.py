"""Convolution and transposed convolution, over `flax.nnx.Conv` and `flax.nnx.ConvTranspose`.

Norm, activation and pool are part of the layer. A pool that is a layer of its own has an error to settle
between each window and its maximum, and the credit that comes down reaches one value in each window only
as inference moves it: published VGGs learn with the pool inside and hardly with a node for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from pcflax.checks import expect_count
from pcflax.energies import Energy
from pcflax.parameterizations import AbstractParameterization

from .affine import Function, Sizes, as_ints, make_affine, mask_weights, multiplied
from .feedback import Feedback, make_feedback
from .kernels.convolution import convolve
from .kernels.spreading import spread
from .scaled import PCScaled, as_parameterization
from .weights import lecun_normal

Padding: TypeAlias = str | int | Sequence[int | tuple[int, int]]


class _Convolution(PCScaled):
    """What both convolutions share: how `conv`, the module, is made, and what fits below it."""

    _make: type[nnx.Conv] | type[nnx.ConvTranspose]

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sizes,
        *,
        strides: Sizes = 1,
        padding: Padding = "SAME",
        dilation: Sizes = 1,
        groups: int = 1,
        activation: Function | None = None,
        activation_first: bool = False,
        norm: Function | None = None,
        pool: str | None = None,
        pool_size: Sizes = 2,
        dropout: float = 0.0,
        skip: bool = False,
        parameterization: AbstractParameterization | None = None,
        use_bias: bool = True,
        kernel_init: Callable[..., Array] | None = None,
        mask: Any = None,
        feedback: Feedback | None = None,
        energy: Energy | None = None,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        name = type(self).__name__
        self.in_features = expect_count(self, "in_features", in_features, least=1)
        self.out_features = expect_count(self, "out_features", out_features, least=1)
        dimensions = len(kernel_size) if isinstance(kernel_size, Sequence | np.ndarray) else 2
        kernel_size = for_each_dimension("kernel_size", kernel_size, dimensions)
        strides = for_each_dimension("strides", strides, dimensions)
        if skip and (pool is not None or any(stride != 1 for stride in strides)):
            raise ValueError(
                f"{name} expected no pool and strides of 1 with a skip, which adds the activity below "
                f"to the prediction, got pool={pool!r} and strides={strides}; use pc.PCResidual with a "
                f"shortcut that changes space alike"
            )
        groups = expect_count(self, "groups", groups, least=1)
        if self.in_features % groups or self.out_features % groups:
            raise ValueError(
                f"{name} expected in_features and out_features that groups={groups} divides, got "
                f"{in_features} and {out_features}"
            )
        super().__init__(
            activation=activation,
            activation_first=activation_first,
            norm=norm,
            pool=pool,
            pool_size=for_each_dimension("pool_size", pool_size, dimensions),
            dropout=dropout,
            skip=skip,
            energy=energy,
            rngs=rngs,
        )
        self.parameterization = as_parameterization(self, parameterization)
        init = kernel_init or self.parameterization.kernel_init or lecun_normal
        if options.get("transpose_kernel") and init is lecun_normal:
            init = nnx.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        if groups > 1:
            if self._make is nnx.ConvTranspose:
                raise TypeError(
                    f"{name} and its nnx.ConvTranspose have no option 'feature_group_count', got "
                    f"groups={groups}; leave groups out"
                )
            options["feature_group_count"] = groups
        if self._make is nnx.Conv:
            options.setdefault("conv_general_dilated", convolve)
        self.conv = make_affine(
            self,
            self._make,
            self.in_features,
            self.out_features,
            kernel_size,
            strides,
            padding=as_padding(padding, strides, transposed=self._make is nnx.ConvTranspose),
            kernel_dilation=for_each_dimension("dilation", dilation, dimensions),
            use_bias=use_bias,
            kernel_init=init,
            rngs=rngs,
            **options,
        )
        mask_weights(self, self.conv.kernel, mask)
        if feedback is not None:
            self.feedback = make_feedback(self, feedback, self.conv.kernel, init, rngs)
        self.set_place(0, 1)

    @property
    def fan_in(self) -> float:
        """The area of the kernel times the channels that it sees.

        A transposed convolution spreads them over as many places as its strides make of one.
        """
        conv: Any = self.conv
        *area, below, above = conv.kernel.shape
        if self._make is nnx.Conv:
            return math.prod(area) * below
        channels = above if conv.transpose_kernel else below
        return math.prod(area) * channels / math.prod(conv.strides)

    def _check(self, below: Float[Array, " batch *space in"]) -> None:
        """Refuse an activity below of another number of axes or channels."""
        dimensions, channels = len(self.conv.kernel_size), self.conv.in_features
        names = ("length", "height, width", "depth, height, width")[min(dimensions, 3) - 1]
        wanted = f"expected an input of shape (batch, {names}, {channels})"
        if below.ndim != dimensions + 2:
            raise ValueError(
                f"{wanted}, got {below.shape}; set kernel_size to one number for each dimension of "
                f"space, or reshape the input (pc.layers.Reshape)"
            )
        if below.shape[-1] != channels:
            first = below.shape[1] == channels
            raise ValueError(
                f"{wanted}, channels last, got {below.shape}; set in_features={below.shape[-1]} or "
                f"change what is below{', jnp.moveaxis(below, 1, -1) it seems' if first else ''}"
            )

    def affine(self, features: Float[Array, " batch *space in"]) -> Float[Array, " batch *new out"]:
        """Compute the convolution and its bias: the layer without norm, activation, pool and skip."""
        self._check(features)
        conv = self.conv
        if self.mask is not None:
            conv = nnx.clone(conv)  # with the weights that there are
            conv.kernel.set_value(conv.kernel[...] * self.mask[...].astype(conv.kernel.dtype))
        features = multiplied(features, self.multiplier)
        found = spread(conv, features) if isinstance(conv, nnx.ConvTranspose) else conv(features)
        if 0 in found.shape[1:-1]:
            raise ValueError(
                f"a kernel of {self.conv.kernel_size} with padding={self.conv.padding!r} leaves "
                f"nothing of an input of shape {features.shape}; give larger inputs or padding='SAME'"
            )
        return found


class PCConv(_Convolution):
    """mu = pool(dropout(activation(norm(conv(below))))), channels last, in one, two or three dimensions.

    From (batch, *space, in_features) to (batch, *space', out_features). In space an axis of n becomes
    ceil(n / stride) under "SAME", and floor((n - dilation * (kernel - 1) - 1) / stride) + 1 under
    "VALID"; a pool divides it by `pool_size` and leaves out what does not fill a window. The other
    options are those of `pc.layers.PCAffine`.

    Args:
        in_features: channels of the activity below.
        out_features: channels of this layer's activity.
        kernel_size: (height, width); an int k is (k, k). A tuple of one is a convolution over
            (batch, length, features), one of three over volumes.
        strides: step of the kernel, an int or one for each dimension.
        padding: "SAME", "VALID", "CIRCULAR", "REFLECT", "CAUSAL" (one dimension), or pairs of ints, as
            in `nnx.Conv`.
        dilation: distance between the kernel's taps, an int or one for each dimension.
        groups: blocks that the channels are divided into, each seeing only its own.
        parameterization: the multiplier of the weights and their initializer, as in `pc.layers.PCDense`;
            a unit's in_features are the kernel's area times the channels of a group.
        use_bias: whether there is a bias, one for each channel, zero at the start.
        kernel_init: initializer of the weights, (*kernel_size, in_features/groups, out_features); unless
            given the parameterization's, and where it has none LeCun normal.
        mask: which weights there are, of the weights' shape, of Booleans or of 0 and 1. The others are 0, get
            no gradient and stay 0, but count in the in_features of a parameterization. A checkpoint holds
            the mask.
        feedback: weights of their own that errors go down through, `pc.layers.Feedback()`.
        rngs: source of the initial weights, and of the masks of dropout.
        **options: others of `nnx.Conv`: bias_init, param_dtype, precision, kernel_metadata, ...

    Raises:
        TypeError: for an option that nobody has, and as `PCAffine`.
        ValueError: for sizes that do not go together, an activity below of another shape, and as
            `PCAffine`.

    Source: one energy for convolution, activation and pool, as in the convolutional networks of
    Pinchetti et al. (2024), arXiv 2407.01163.

    >>> import jax, jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> layer = pc.PCConv(3, 8, 3, activation=jax.nn.relu, pool="max", rngs=nnx.Rngs(0))
    >>> layer.predict(jnp.ones((2, 32, 32, 3))).shape
    (2, 16, 16, 8)
    >>> pc.PCConv(3, 8, (5,), strides=2, rngs=nnx.Rngs(0)).predict(jnp.ones((2, 9, 3))).shape
    (2, 5, 8)
    """

    _make = nnx.Conv


class PCConvTranspose(_Convolution):
    """mu = dropout(activation(norm(conv_transpose(below)))), channels last; decoders are built of it.

    From (batch, *space, in_features) to (batch, *space', out_features): an axis of n becomes
    n * stride under "SAME", and n * stride + max(dilation * (kernel - 1) + 1 - stride, 0) under
    "VALID". The numbers are those of `nnx.ConvTranspose` and `jax.lax.conv_transpose`, which do not
    flip the kernel (torch does).

    The arguments are those of `PCConv`, where `strides` say by how much space grows; there are no
    groups, and a parameterization counts the area of the kernel over that of the strides. Further options
    are those of `nnx.ConvTranspose`.

    >>> import jax, jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> layer = pc.PCConvTranspose(8, 3, 3, strides=2, activation=jax.nn.relu, rngs=nnx.Rngs(0))
    >>> layer.predict(jnp.ones((2, 4, 5, 8))).shape
    (2, 8, 10, 3)
    """

    _make = nnx.ConvTranspose


def for_each_dimension(name: str, value: Sizes, dimensions: int) -> tuple[int, ...]:
    """Return one positive number for each dimension of space; an int is the same for all.

    >>> for_each_dimension("strides", 2, 3)
    (2, 2, 2)
    """
    try:
        values = as_ints(value)
    except TypeError:  # a float, say
        values = ()
    values = (values,) * dimensions if isinstance(values, int) else values
    if not dimensions or len(values) != dimensions or any(one < 1 for one in values):
        raise ValueError(
            f"expected {name} to be an int of at least 1, or {dimensions} of them for a kernel of "
            f"{dimensions} dimensions, got {value}"
        )
    return values


def as_padding(value: Padding, strides: tuple[int, ...], *, transposed: bool = False) -> Any:
    """Return a padding's word, or its ints: one for all dimensions of space, or one or a pair for each.

    >>> as_padding([1, (0, 2)], (1, 1)), as_padding("same", (1, 1))
    ((1, (0, 2)), 'SAME')
    """
    dimensions, words = len(strides), ["SAME", "VALID", "SAME_LOWER", "CIRCULAR"]
    if transposed and max(strides) > 1:
        words.remove("SAME_LOWER")  # under which jax spreads no places
    if not transposed:
        words += ["REFLECT", "CAUSAL"] if dimensions == 1 else ["REFLECT"]
    try:
        padding = as_ints(value)
    except TypeError:  # a float, say
        padding = ()
    if isinstance(padding, str):
        padding = padding.upper()
        fits = padding in words
    elif isinstance(padding, int):
        fits = True
    else:
        pairs = [(one, one) if isinstance(one, int) else one for one in padding]
        fits = len(pairs) == dimensions and all(
            isinstance(pair, tuple) and [type(one) for one in pair] == [int, int] for pair in pairs
        )
    if not fits:
        raise ValueError(
            f"expected padding to be one of {', '.join(words)}, an int, or an int or a pair of them for "
            f"each of {dimensions} dimensions, got {value!r}"
        )
    return padding
