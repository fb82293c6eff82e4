"""The convolutional layer, over `flax.nnx.Conv`, with its norm, activation and pooling.

All of them are ONE layer with one energy. A pool that is a layer of its own has an error to settle
between each window and its maximum, and the credit that comes down reaches one value in each window only
as inference moves it: published VGGs learn with the pool inside and hardly with a node for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from flax import nnx
from jaxtyping import Array, Float

from pcflax.energies import Energy

from .affine import AbstractAffineLayer
from .convolution import convolve
from .pooling import average_pool, max_pool

_default_kernel_init = nnx.initializers.lecun_normal()
Padding: TypeAlias = str | int | Sequence[int | tuple[int, int]]
_POOLS = {"max": max_pool, "average": average_pool}


class PCConv(AbstractAffineLayer):
    """mu = pool(dropout(activation(norm(conv(below))))), channels last, in one, two or three dimensions.

    From (batch, *space, in_features) to (batch, *space', out_features). With `activation_first` it is
    pool(dropout(conv(activation(below)))); with `skip` the activity below is added, and there is no
    pool. In space an axis of n becomes ceil(n / stride) under "SAME", and
    floor((n - dilation * (kernel - 1) - 1) / stride) + 1 under "VALID"; a pool divides it by
    `pool_size` and leaves out what does not fill a window.

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
        activation: elementwise function such as `jax.nn.relu`; None for the identity.
        activation_first: apply the activation to the activity below, before the weights.
        norm: a ready module called on the convolution, such as
            `nnx.GroupNorm(out_features, num_groups=8, rngs=rngs)`; not with `activation_first`.
        pool: "max", "average" or None.
        pool_size: window of the pool and its stride, an int or one for each dimension.
        dropout: the share of features set to zero before the pool, while the network is not in
            `eval()`; the rest are divided by 1 - dropout.
        skip: add the activity below to the prediction; needs equal shapes.
        use_bias: whether there is a bias, one for each channel, zero at the start.
        kernel_init: initializer of the weights, (*kernel_size, in_features/groups, out_features);
            LeCun normal unless given.
        energy: `Gaussian()` unless given.
        rngs: source of the initial weights, and of the masks of dropout.

    Raises:
        TypeError: for a norm that is not a ready module.
        ValueError: for sizes that do not go together, another name of a pool, or an activity below of
            another shape.

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

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        *,
        strides: int | Sequence[int] = 1,
        padding: Padding = "SAME",
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        activation: Callable[[Array], Array] | None = None,
        activation_first: bool = False,
        norm: Callable[[Array], Array] | None = None,
        pool: str | None = None,
        pool_size: int | Sequence[int] = 2,
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
        dimensions = len(kernel_size)
        strides = for_each_dimension("strides", strides, dimensions)
        if pool is not None and pool not in _POOLS:
            raise ValueError(f"PCConv expected pool to be 'max', 'average' or None, got {pool!r}")
        if skip and (pool is not None or any(stride != 1 for stride in strides)):
            raise ValueError(
                f"PCConv expected no pool and strides of 1 with a skip, which adds the activity below "
                f"to the prediction, got pool={pool!r} and strides={strides}; use pc.PCResidual with "
                f"a shortcut that shrinks alike"
            )
        if in_features % groups or out_features % groups:
            raise ValueError(
                f"PCConv expected in_features and out_features that groups={groups} divides, got "
                f"{in_features} and {out_features}"
            )
        self.conv = nnx.Conv(
            in_features,
            out_features,
            kernel_size,
            strides,
            padding=as_padding(padding),
            kernel_dilation=for_each_dimension("dilation", dilation, dimensions),
            feature_group_count=groups,
            use_bias=use_bias,
            kernel_init=kernel_init or _default_kernel_init,
            conv_general_dilated=convolve,
            rngs=rngs,
        )
        self.pool = pool
        self.pool_size = for_each_dimension("pool_size", pool_size, dimensions)

    def check_below(self, below: Float[Array, " batch *space in"]) -> None:
        """Refuse an activity below of another number of axes or channels."""
        check_channels(below, self.conv.in_features, len(self.conv.kernel_size))

    def affine(self, features: Float[Array, " batch *space in"]) -> Float[Array, " batch *new out"]:
        """The convolution and its bias: the layer without norm, activation, pool and skip."""
        return self.conv(features)

    def predict(self, below: Float[Array, " batch *space in"]) -> Float[Array, " batch *new out"]:
        """The prediction of this layer's activity from the one below."""
        prediction = super().predict(below)
        space = prediction.shape[1:-1]
        if self.pool is not None:
            if any(size < window for size, window in zip(space, self.pool_size, strict=True)):
                raise ValueError(
                    f"the pool of windows {self.pool_size} expected at least as many places, got "
                    f"{space} from an input of shape {below.shape}; set pool=None or give larger inputs"
                )
            prediction = _POOLS[self.pool](prediction, self.pool_size)
        elif 0 in space:
            raise ValueError(
                f"a kernel of {self.conv.kernel_size} with padding={self.conv.padding!r} leaves "
                f"nothing of an input of shape {below.shape}; give larger inputs or padding='SAME'"
            )
        return prediction


def as_kernel_size(size: int | Sequence[int]) -> tuple[int, ...]:
    """A kernel's size, one number for each dimension of space; an int is a square.

    >>> as_kernel_size(3), as_kernel_size([5])
    ((3, 3), (5,))
    """
    return (size, size) if isinstance(size, int) else tuple(size)


def for_each_dimension(name: str, value: int | Sequence[int], dimensions: int) -> tuple[int, ...]:
    """One positive number for each dimension of space; an int is the same for all.

    Raises:
        ValueError: for another number of them, or one below 1.

    >>> for_each_dimension("strides", 2, 3)
    (2, 2, 2)
    """
    values = (value,) * dimensions if isinstance(value, int) else tuple(value)
    if len(values) != dimensions or any(one < 1 for one in values):
        raise ValueError(
            f"expected {name} to be an int of at least 1, or {dimensions} of them for a kernel of "
            f"{dimensions} dimensions, got {value}"
        )
    return values


def as_padding(padding: Padding) -> Any:
    """Padding as a value that compares equal to itself: lists become tuples."""
    if isinstance(padding, str | int):
        return padding
    return tuple(one if isinstance(one, int) else tuple(one) for one in padding)


def check_channels(below: Array, in_features: int, dimensions: int) -> None:
    """Refuse what is not (batch, *space, in_features) with that many dimensions of space.

    Raises:
        ValueError: for another number of axes or channels.
    """
    space = ("length", "height, width", "depth, height, width")
    names = space[dimensions - 1] if dimensions <= len(space) else f"{dimensions} axes of space"
    if below.ndim != dimensions + 2:
        raise ValueError(
            f"expected an input of shape (batch, {names}, {in_features}), got {below.shape}; set "
            f"kernel_size to one number for each dimension of space, or reshape the input "
            f"(pc.layers.Reshape)"
        )
    if below.shape[-1] != in_features:
        raise ValueError(
            f"expected an input of shape (batch, {names}, {in_features}), channels last, got "
            f"{below.shape}; set in_features={below.shape[-1]} or change what is below"
        )
