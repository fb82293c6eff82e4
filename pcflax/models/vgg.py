"""The convolutional networks of the predictive coding benchmarks: VGG5, VGG7 and VGG10."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array

from pcflax.checks import expect_count, expect_kind, expect_number
from pcflax.energies import Categorical, Energy
from pcflax.layers import Flatten, PCConv, PCLayer
from pcflax.layers.kernels.pooling import POOLS
from pcflax.layers.weights import lecun_normal
from pcflax.networks import PCNetwork

from .images import MakeNorm, as_norm, check_image_shape


def vgg5(
    image_shape: tuple[int, int, int] = (32, 32, 3),
    num_classes: int = 10,
    *,
    widths: tuple[int, int, int, int] = (128, 256, 512, 512),
    activation: Callable[[Array], Array] | None = jax.nn.gelu,
    pool: str = "max",
    norm: MakeNorm | str | None = None,
    kernel_init: Callable[..., Array] | None = None,
    energy: Energy | None = None,
    rngs: nnx.Rngs,
    **options: Any,
) -> PCNetwork:
    """Return four layers of convolution, activation and pool, and a linear one: conv_1, ..., conv_4, output.

    Each layer is a 3 x 3 convolution that keeps the size, and a pool that halves it.

    Args:
        image_shape: (height, width, channels) of the input, at least 16 x 16.
        num_classes: width of the output.
        widths: channels of the convolutions.
        activation: elementwise function between convolution and pool; None for the identity.
        pool: "max" or "average".
        norm: a function from a number of channels to a norm, such as
            `lambda features: nnx.LayerNorm(features, rngs=rngs)`; "group" (at most 32 groups) and
            "batch" for short. The networks of the source have none.
        kernel_init: of all weights; LeCun normal unless given. The source's code draws from
            `nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")`.
        energy: of the output; `Gaussian()` unless given, `Categorical()` for cross-entropy.
        rngs: source of the initial weights.
        **options: output_gain, as in `vgg10`; compute_dtype and remat, as in `PCNetwork`.

    Raises:
        TypeError: for sizes that are not ints.
        ValueError: for images that are too small, or have their channels first, another number of widths, or
            another pool.

    Source: Pinchetti et al. (2024), arXiv 2407.01163. On CIFAR-10, 50 epochs in batches of 128 with
    flips and crops: 89.47 % with centred nudging, 85.51 % by incremental predictive coding, 89.43 % by
    backpropagation of squared errors.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> network = pc.models.vgg5(widths=(8, 16, 16, 16), rngs=nnx.Rngs(0))
    >>> network.names
    ('conv_1', 'conv_2', 'conv_3', 'conv_4', 'output')
    >>> network.predict(jnp.ones((2, 32, 32, 3))).shape
    (2, 10)
    """
    options |= {"activation": activation, "pool": pool, "norm": norm}
    options |= {"kernel_init": kernel_init, "energy": energy, "rngs": rngs}
    convolutions = [(features, "SAME", True) for features in _counted("vgg5", widths, 4)]
    return _vgg("vgg5", image_shape, num_classes, convolutions, **options)


def vgg7(
    image_shape: tuple[int, int, int] = (32, 32, 3),
    num_classes: int = 10,
    *,
    widths: tuple[int, int, int, int, int, int] = (128, 128, 256, 256, 512, 512),
    rngs: nnx.Rngs,
    **options: Any,
) -> PCNetwork:
    """Return six convolutional layers, then a linear layer: conv_1, ..., conv_6, output.

    All convolutions are 3 x 3. Layers 1, 3 and 5 have a pool that halves the size; layers 4 and 6 have
    no padding, which takes two places from each side length. Images have at least 32 x 32 places. All
    other options are those of `vgg5`.

    Raises:
        TypeError, ValueError: as `vgg5`.

    Source: Pinchetti et al. (2024), arXiv 2407.01163, for CIFAR-100 and Tiny ImageNet (56 x 56 crops). Of
    CIFAR-10 the code that accompanies it holds single runs: 82.7 % by predictive coding in 11 steps,
    89.6 % by backpropagation.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> network = pc.models.vgg7(num_classes=100, widths=(4, 4, 8, 8, 8, 8), rngs=nnx.Rngs(0))
    >>> network.predict(jnp.ones((2, 32, 32, 3))).shape
    (2, 100)
    """
    paddings = ("SAME", "SAME", "SAME", "VALID", "SAME", "VALID")
    pools = (True, False, True, False, True, False)
    convolutions = list(zip(_counted("vgg7", widths, 6), paddings, pools, strict=True))
    return _vgg("vgg7", image_shape, num_classes, convolutions, rngs=rngs, **options)


def vgg10(
    image_shape: tuple[int, int, int] = (224, 224, 3),
    num_classes: int = 1000,
    *,
    widths: tuple[int, int, int, int, int, int, int, int] = (64, 128, 256, 256, 512, 512, 512, 512),
    dense: int = 2048,
    activation: Callable[[Array], Array] | None = jax.nn.relu,
    kernel_init: Callable[..., Array] | None = None,
    output_gain: float = 1.0,
    energy: Energy | None = None,
    rngs: nnx.Rngs,
    **options: Any,
) -> PCNetwork:
    """Return eight convolutions, a dense layer, then a linear one: conv_1, ..., conv_8, dense, output.

    All convolutions are 3 x 3 and keep the size; layers 1, 2, 4, 6 and 8 have a pool that halves it. It is
    the network of the first predictive coding network on ImageNet, trained by equilibrium propagation:
    `pc.learning.Nudged(inference, beta=0.05, centred=True, weighted=True)` with 10 steps of inference, SGD
    with Nesterov momentum .9 at .02 falling by a cosine over 50 epochs, a decay of 2e-4, batches of 256.
    There the output is a node of its own with the cross-entropy as a cost above it; ours is the prediction
    that the cross-entropy weighs, which is the same as beta goes to 0. There, too, a step updates even
    layers, then odd ones, sets each activity to its prediction plus what comes from above, and keeps it at
    0 or more; `pc.inference.Sweeps(1.0, num_steps=10)` is that without the last.

    Args:
        image_shape: (height, width, channels) of the input, at least 32 x 32.
        num_classes: width of the output.
        widths: channels of the convolutions.
        dense: width of the dense layer.
        activation: elementwise function; None for the identity.
        kernel_init: of all weights; unless given uniform in +-1/sqrt(fan_out), the source's.
        output_gain: factor of the output's initial weights. The source's VGG5 on ImageNet at 32 x 32 under
            squared errors starts best at .2, everything else at 1.
        energy: of the output; `Categorical()` unless given.
        rngs: source of the initial weights.
        **options: pool and norm, as in `vgg5`; compute_dtype and remat, as in `PCNetwork`.

    Raises:
        TypeError, ValueError: as `vgg5`, and for a gain that is not above 0.

    Source: Kerjan, Høier & Scellier (2026), arXiv 2606.03584, tables 6 and 8: 13.23 % top-5 error, where
    backpropagation has 12.20 %.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> widths = (2, 3, 4, 4, 5, 5, 6, 6)
    >>> network = pc.models.vgg10((32, 32, 3), 10, widths=widths, dense=8, rngs=nnx.Rngs(0))
    >>> network.names[-3:], network.predict(jnp.ones((2, 32, 32, 3))).shape
    (('conv_8', 'dense', 'output'), (2, 10))
    """
    pools = (True, True, False, True, False, True, False, True)
    widths = _counted("vgg10", widths, 8)
    convolutions = [(width, "SAME", pool) for width, pool in zip(widths, pools, strict=True)]
    options |= {"activation": activation, "output_gain": output_gain, "rngs": rngs}
    return _vgg(
        "vgg10",
        image_shape,
        num_classes,
        convolutions,
        dense=dense,
        kernel_init=kernel_init or nnx.initializers.variance_scaling(1 / 3, "fan_out", "uniform"),
        energy=Categorical() if energy is None else energy,
        **options,
    )


def _counted(name: str, widths: Any, count: int) -> Any:
    """Return as many widths as there are convolutions; refuse others."""
    expect_kind(name, "widths", widths, Sequence, f"{(64,) * count}")
    if len(widths) != count:
        raise ValueError(
            f"{name} expected {count} widths, one for each convolution, got {tuple(widths)}"
        )
    return widths


def _vgg(
    name: str,
    image_shape: tuple[int, int, int],
    num_classes: int,
    convolutions: Sequence[tuple[int, str, bool]],
    *,
    dense: int | None = None,
    output_gain: float = 1.0,
    activation: Callable[[Array], Array] | None = jax.nn.gelu,
    pool: str = "max",
    norm: MakeNorm | str | None = None,
    kernel_init: Callable[..., Array] | None = None,
    energy: Energy | None = None,
    rngs: nnx.Rngs,
    **options: Any,
) -> PCNetwork:
    """Build a network of convolutions, each (channels, padding, whether it pools)."""
    check_image_shape(name, image_shape)
    num_classes = expect_count(name, "num_classes", num_classes, least=1)
    if pool not in POOLS:
        raise ValueError(f"{name} expected pool to be 'max' or 'average', got {pool!r}")
    gain = expect_number(name, "output_gain", output_gain, above=0)
    make_norm = as_norm(name, norm, rngs)
    *space, channels = image_shape
    layers: dict[str, PCLayer] = {}
    for number, (features, padding, pools) in enumerate(convolutions, start=1):
        layers[f"conv_{number}"] = PCConv(
            channels,
            features,
            3,
            padding=padding,
            activation=activation,
            norm=make_norm(features),
            pool=pool if pools else None,
            kernel_init=kernel_init,
            rngs=rngs,
        )
        channels = features
        space = [(size - 2 * (padding == "VALID")) // (1 + pools) for size in space]
        if min(space) < 1:
            raise ValueError(
                f"{name} expected images of which something is left at conv_{number}, got an "
                f"image_shape of {image_shape}; give larger images"
            )
    init = kernel_init or lecun_normal
    below = math.prod(space) * channels
    flat: list[Callable[..., Array]] = [Flatten()]
    if dense is not None:
        dense = expect_count(name, "dense", dense, least=1)
        hidden = nnx.Linear(below, dense, kernel_init=init, rngs=rngs)
        bend = [] if activation is None else [activation]
        layers["dense"] = PCLayer(nnx.Sequential(Flatten(), hidden, *bend))
        below, flat = dense, []
    linear = nnx.Linear(below, num_classes, kernel_init=init, rngs=rngs)
    if gain != 1:
        linear.kernel.set_value(gain * linear.kernel[...])
    layers["output"] = PCLayer(nnx.Sequential(*flat, linear), energy=energy)
    return PCNetwork(layers, **options)
