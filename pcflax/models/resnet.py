"""ResNet-18 for small images, each basic block one node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from pcflax.checks import expect_count
from pcflax.energies import Energy
from pcflax.layers import PCConv, PCLayer, PCResidual
from pcflax.layers.kernels.convolution import convolve
from pcflax.networks import PCNetwork

from .images import MakeNorm, as_norm, check_image_shape


def resnet18(
    image_shape: tuple[int, int, int] = (32, 32, 3),
    num_classes: int = 10,
    *,
    width: int = 64,
    norm: MakeNorm | str | None = "group",
    activation: Callable[[Array], Array] | None = jax.nn.relu,
    kernel_init: Callable[..., Array] | None = None,
    energy: Energy | None = None,
    rngs: nnx.Rngs,
    **options: Any,
) -> PCNetwork:
    """Return a stem, eight basic blocks and a linear layer: stem, block_1, ..., block_8, output.

    The stem is a 3 x 3 convolution, without the stride and the pool of the original, as is usual for
    32 x 32 images. A block is activation(shortcut(z) + norm(conv(activation(norm(conv(z)))))) with
    3 x 3 convolutions; blocks 3, 5 and 7 double the channels and halve the size, their shortcut being a
    1 x 1 convolution of stride 2 with a norm. The output is a linear map of the mean over space.

    Args:
        image_shape: (height, width, channels) of the input.
        num_classes: width of the output.
        width: channels of the stem and the first two blocks; the last have eight times as many.
        norm: as in `vgg5`: "group", under which examples stay independent, "batch", a function, or
            None, for convolutions with biases and no norm.
        activation: elementwise function; None for the identity.
        kernel_init: of the convolutions; He normal (variance 2/fan_in) unless given.
        energy: of the output; `Gaussian()` unless given, `Categorical()` for cross-entropy.
        rngs: source of the initial weights.
        **options: compute_dtype and remat, as in `PCNetwork`.

    Raises:
        TypeError: for sizes that are not ints.
        ValueError: for a norm of another name, or images that have their channels first.

    Source: He et al. (2016), arXiv 1512.03385, sections 3.4 and 4.2, with "batch". Published for predictive
    coding on CIFAR-10: 43 to 54 %, where backpropagation reaches 92.8 % (Pinchetti et al., 2024,
    arXiv 2407.01163); one step in error coordinates reaches 76.7 % after 100 epochs elsewhere.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> network = pc.models.resnet18(width=8, rngs=nnx.Rngs(0))
    >>> len(network.names), network.predict(jnp.ones((2, 32, 32, 3))).shape
    (10, (2, 10))
    """
    check_image_shape("resnet18", image_shape)
    num_classes = expect_count("resnet18", "num_classes", num_classes, least=1)
    make_norm = as_norm("resnet18", norm, rngs)
    kernel_init = kernel_init or nnx.initializers.he_normal()

    def normed(below: int, above: int, size: int, strides: int) -> list[Any]:
        conv = nnx.Conv(
            below,
            above,
            (size, size),
            strides,
            use_bias=norm is None,  # a norm has one of its own
            kernel_init=kernel_init,
            conv_general_dilated=convolve,
            rngs=rngs,
        )
        return [conv, *filter(None, [make_norm(above)])]

    def block(below: int, above: int, strides: int) -> PCResidual:
        bend = [] if activation is None else [activation]
        branch = [*normed(below, above, 3, strides), *bend, *normed(above, above, 3, 1)]
        shortcut = nnx.Sequential(*normed(below, above, 1, strides)) if strides != 1 else None
        return PCResidual(nnx.Sequential(*branch), shortcut=shortcut, activation=activation)

    stem = PCConv(
        image_shape[-1],
        width,
        3,
        norm=make_norm(width),
        activation=activation,
        use_bias=norm is None,
        kernel_init=kernel_init,
        rngs=rngs,
    )
    layers: dict[str, PCLayer] = {"stem": stem}
    below = width
    for number in range(8):
        above = width * 2 ** (number // 2)
        layers[f"block_{number + 1}"] = block(below, above, 1 if below == above else 2)
        below = above
    linear = nnx.Linear(below, num_classes, rngs=rngs)
    layers["output"] = PCLayer(nnx.Sequential(_mean_over_space, linear), energy=energy)
    return PCNetwork(layers, **options)


def _mean_over_space(features: Array) -> Array:
    return jnp.mean(features, axis=range(1, features.ndim - 1))
