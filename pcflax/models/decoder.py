"""The decoder of an autoencoder without an encoder: a free root that inference fits to each example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array

from pcflax.energies import Energy, Gaussian
from pcflax.layers import PCRoot
from pcflax.networks import PCNetwork

from .mlp import dense_layers


def decoder(
    *widths: int,
    activation: Callable[[Array], Array] | None = jax.nn.hard_tanh,
    prior: Energy | None = None,
    energy: Energy | None = None,
    rngs: nnx.Rngs,
    **options: Any,
) -> PCNetwork:
    """A root and dense layers above it: latent, hidden_1, ..., output.

    Clamp the data as targets and give no inputs: inference finds the latent code,
    `network.layer("latent").activity`, and `network.predict(code)` is its reconstruction.

    Args:
        *widths: of the latent code, of each hidden layer and of the data; 64, 128, 128, 784 unless
            given.
        activation: of the hidden layers, after the weights; the output is linear.
        prior: energy of the latent code; flat, `Gaussian(0.0)`, unless given, as in the source.
        energy: of the output; `Gaussian()` unless given.
        rngs: source of the initial weights.
        **options: compute_dtype and remat, as in `PCNetwork`.

    Raises:
        ValueError: for a single width.

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
    root = PCRoot(widths[0], energy=Gaussian(0.0) if prior is None else prior)
    layers = dense_layers("decoder", "the latent code", widths, activation, energy, rngs=rngs)
    return PCNetwork({"latent": root} | layers, **options)
