"""Decoders, autoencoders without an encoder: a free root that inference fits to each example."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array

from pcflax.checks import expect_count, expect_kind
from pcflax.energies import Energy, Gaussian
from pcflax.layers import PCConvTranspose, PCLayer, PCRoot, Reshape
from pcflax.layers.affine import PCAffine
from pcflax.networks import PCNetwork

from .images import check_image_shape
from .mlp import dense_layers


def decoder(
    *widths: int,
    activation: Callable[[Array], Array] | None = jax.nn.hard_tanh,
    prior: Energy | PCRoot | None = None,
    energy: Energy | None = None,
    rngs: nnx.Rngs,
    **options: Any,
) -> PCNetwork:
    """Return a root and dense layers above it: latent, hidden_1, ..., output.

    Clamp the data as targets and give no inputs: inference finds the latent code,
    `network.layer("latent").activity`, and `network.predict(code)` is its reconstruction.

    Args:
        *widths: of the latent code, of each hidden layer and of the data; 64, 128, 128, 784 unless
            given.
        activation: of the hidden layers, after the weights; the output is linear.
        prior: energy of the latent code, or a `PCRoot` with one and a mean; flat, `Gaussian(0.0)`, unless
            given, as in the source. `network.sample` wants one that is not flat.
        energy: of the output; `Gaussian()` unless given.
        rngs: source of the initial weights.
        **options: compute_dtype and remat, as in `PCNetwork`.

    Raises:
        TypeError: for a prior that is neither an `Energy` nor a `PCRoot`, or widths that are not ints.
        ValueError: for a single width, or a root of another.

    Source: the autoencoding task of Pinchetti et al. (2024), arXiv 2407.01163, with their sizes for
    MNIST: activities start at zero (`pc.initializers.Zeros()`), 20 inference steps, 30 epochs; the mean
    squared error of a pixel in [0, 1] is about 9e-3 there, by predictive coding and by an autoencoder
    trained by backpropagation alike.

    >>> import jax.numpy as jnp, optax, pcflax as pc
    >>> from flax import nnx
    >>> network = pc.models.decoder(2, 8, 5, rngs=nnx.Rngs(0))
    >>> descent = pc.inference.GradientDescent(optax.sgd(0.1), num_steps=20)
    >>> result = network.infer(None, jnp.ones((3, 5)), inference=descent)
    >>> code = network.layer("latent").activity[...]
    >>> code.shape, network.predict(code).shape
    ((3, 2), (3, 5))
    """
    widths = widths or (64, 128, 128, 784)
    root = _root("decoder", widths[0], prior)
    layers = dense_layers("decoder", "the latent code", widths, activation, energy, rngs=rngs)
    return PCNetwork({"latent": root} | layers, **options)


def conv_decoder(
    latent: int = 64,
    image_shape: tuple[int, int, int] = (28, 28, 1),
    *,
    widths: Sequence[int] = (64, 32),
    kernel_size: int = 4,
    activation: Callable[[Array], Array] | None = jax.nn.hard_tanh,
    prior: Energy | PCRoot | None = None,
    energy: Energy | None = None,
    rngs: nnx.Rngs,
    **options: Any,
) -> PCNetwork:
    """Return a root, a dense layer to a coarse image, and transposed convolutions that double its size.

    Layers are latent, hidden_1, ..., output. Clamp images, (batch, height, width, channels), as targets; load
    them by `flatten=False`. The rest is as in `decoder`.

    Args:
        latent: width of the latent code.
        image_shape: (height, width, channels) of the data; 2^len(widths) divides height and width.
        widths: channels of each hidden layer, from the coarsest on.
        kernel_size: of the transposed convolutions; their stride is 2.
        activation: of the hidden layers; the output is linear.
        prior: energy of the latent code, or a `PCRoot`; flat unless given.
        energy: of the output; `Gaussian()` unless given.
        rngs: source of the initial weights.
        **options: compute_dtype and remat, as in `PCNetwork`.

    Raises:
        TypeError: as `decoder`.
        ValueError: for images whose size no coarse image doubles to, channels first, no widths, or a root of
            another width.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> network = pc.models.conv_decoder(8, (12, 8, 3), widths=(6, 4), rngs=nnx.Rngs(0))
    >>> network.predict(jnp.ones((2, 8))).shape
    (2, 12, 8, 3)
    """
    check_image_shape("conv_decoder", image_shape)
    root = _root("conv_decoder", latent, prior)
    expect_kind("conv_decoder", "widths", widths, Sequence, "(64, 32)")
    height, width, channels = image_shape
    doublings = len(widths)
    if not doublings or height % 2**doublings or width % 2**doublings:
        raise ValueError(
            f"conv_decoder doubles a coarse image {doublings} times, once for each of the widths "
            f"{tuple(widths)}, but {height} x {width} is no such size; give images of a multiple of "
            f"{2 ** max(doublings, 1)}, or other widths"
        )
    coarse = (height // 2**doublings, width // 2**doublings, widths[0])
    spread = nnx.Sequential(nnx.Linear(latent, math.prod(coarse), rngs=rngs), Reshape(*coarse))
    layers: dict[str, PCLayer] = {"latent": root}
    layers["hidden_1"] = PCAffine(spread, activation=activation)
    for number, (below, above) in enumerate(
        zip(widths, [*widths[1:], channels], strict=True), start=2
    ):
        last = number > doublings
        layers["output" if last else f"hidden_{number}"] = PCConvTranspose(
            below,
            above,
            kernel_size,
            strides=2,
            activation=None if last else activation,
            energy=energy if last else None,
            rngs=rngs,
        )
    return PCNetwork(layers, **options)


def _root(model: str, width: int, prior: Energy | PCRoot | None) -> PCRoot:
    width = expect_count(model, "latent", width, least=1)
    if prior is None or isinstance(prior, Energy):
        return PCRoot(width, energy=Gaussian(0.0) if prior is None else prior)
    expect_kind(model, "prior", prior, PCRoot, f"pc.energies.Gaussian() or pc.PCRoot({width})")
    if prior.features != (width,):
        raise ValueError(
            f"{model} has a latent code of width {width}, got a prior PCRoot{prior.features}; give one of "
            f"that width"
        )
    return prior
