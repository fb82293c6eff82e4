"""Networks that answer from below and from above: hybrid and bidirectional predictive coding."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array

from pcflax.energies import Gaussian
from pcflax.layers import PCDense, PCLayer, PCRoot
from pcflax.networks import PCGraph


def hybrid(
    *widths: int,
    activation: Callable[[Array], Array] | None = jax.nn.relu,
    kernel_init: Callable[..., Array] | None = None,
    guess_init: Callable[..., Array] | None = None,
    rngs: nnx.Rngs,
    **options: Any,
) -> PCGraph:
    """Return a generator from a latent code to data, and amortizers that guess its activities from the data.

    Layers are latent, hidden_1, ..., output, and guess_latent, guess_hidden_1, ...: the output is known,
    guess_hidden_k predicts hidden_k from the guess above it, and the lowest predicts the latent code. Train
    and infer with `initializer=pc.initializers.Amortized()`; no inference step is pure amortization.

    Args:
        *widths: of the latent code (or the classes), of each hidden layer and of the data.
        activation: before the weights of all layers but those that predict from code or data.
        kernel_init: an initializer of the generator's weights; `nnx.Linear`'s own unless given.
        guess_init: one of the amortizers' weights; `kernel_init` unless given.
        rngs: source of the initial weights.
        **options: compute_dtype and remat, as in `PCGraph`.

    Raises:
        ValueError: for less than two widths.

    Source: Tschantz et al. (2023), arXiv 2204.02169.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> network = pc.models.hybrid(10, 32, 64, rngs=nnx.Rngs(0))
    >>> network.names, network.layer_names[3:]
    (('latent', 'hidden_1', 'output'), ('guess_hidden_1', 'guess_latent'))
    """
    names = _names("hybrid", widths, ("latent", "output"))
    layers, parents = _chain(names, widths, activation, "{}", **_made(kernel_init, rngs))
    made = _made(kernel_init if guess_init is None else guess_init, rngs)
    guesses, above = _chain(names[::-1], widths[::-1], activation, "guess_{}", **made)
    root = {names[0]: PCRoot(widths[0], energy=Gaussian(0.0))}
    return PCGraph(
        root | layers | guesses,
        parents=parents | above,
        inputs=names[0],
        output=names[-1],
        amortizers={name: name.removeprefix("guess_") for name in guesses},
        **options,
    )


def bidirectional(
    *widths: int,
    alpha_up: float = 1.0,
    alpha_down: float = 1e-4,
    activation: Callable[[Array], Array] | None = jax.nn.relu,
    kernel_init: Callable[..., Array] | None = None,
    rngs: nnx.Rngs,
    **options: Any,
) -> PCGraph:
    """Return a network whose every node is predicted from below and from above: it classifies and it draws.

    F = sum_l alpha_up/2 |z_l - f_l(z_{l-1})|^2 + alpha_down/2 |z_{l-1} - g_l(z_l)|^2 over l = 1..L. Layers
    are image, hidden_1, ..., label, and down_image, down_hidden_1, ..., which predict the node of their name
    from the one above. Images are inputs and clamp the lowest node, labels are targets; either may be free.

    Args:
        *widths: of the data, of each hidden layer and of the label.
        alpha_up: factor of the energies from below: the precision of these predictions.
        alpha_down: factor of those from above.
        activation: before the weights of all layers but the lowest upward, and the highest downward.
        kernel_init: an initializer of all weights; `nnx.Linear`'s own unless given.
        rngs: source of the initial weights.
        **options: compute_dtype and remat, as in `PCGraph`.

    Raises:
        ValueError: for less than two widths.

    Source: Oliviers et al. (2025), bidirectional predictive coding, arXiv 2505.23415.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> network = pc.models.bidirectional(64, 32, 10, rngs=nnx.Rngs(0))
    >>> network.names, network.layer_names[3:]
    (('image', 'hidden_1', 'label'), ('down_hidden_1', 'down_image'))
    >>> network.predict(jnp.ones((2, 64))).shape
    (2, 10)
    """
    names = _names("bidirectional", widths, ("image", "label"))
    made = _made(kernel_init, rngs)
    up, parents = _chain(names, widths, activation, "{}", Gaussian(alpha_up), **made)
    down, above = _chain(
        names[::-1], widths[::-1], activation, "down_{}", Gaussian(alpha_down), **made
    )
    return PCGraph(
        {names[0]: PCRoot(widths[0], energy=Gaussian(0.0))} | up | down,
        parents=parents | above,
        inputs=names[0],
        output=names[-1],
        predicts={name: name.removeprefix("down_") for name in down},
        **options,
    )


def _made(kernel_init: Callable[..., Array] | None, rngs: nnx.Rngs) -> dict[str, Any]:
    return {"rngs": rngs} | ({} if kernel_init is None else {"kernel_init": kernel_init})


def _names(model: str, widths: tuple[int, ...], ends: tuple[str, str]) -> list[str]:
    if len(widths) < 2:
        raise ValueError(
            f"{model} expected a width of '{ends[0]}', one of '{ends[1]}' and any in between, got {widths}"
        )
    return [ends[0], *(f"hidden_{number}" for number in range(1, len(widths) - 1)), ends[1]]


def _chain(
    names: list[str],
    widths: tuple[int, ...],
    activation: Callable[[Array], Array] | None,
    title: str,
    energy: Gaussian | None = None,
    **options: Any,
) -> tuple[dict[str, PCLayer], dict[str, str]]:
    """Make dense layers along these nodes, each predicted from the one before it, and their parents."""
    layers: dict[str, PCLayer] = {}
    parents = {}
    for number, ((below, above), (size, width)) in enumerate(
        zip(itertools.pairwise(names), itertools.pairwise(widths), strict=True)
    ):
        layers[title.format(above)] = PCDense(
            size,
            width,
            activation=activation if number else None,
            activation_first=True,
            energy=energy,
            **options,
        )
        parents[title.format(above)] = below
    return layers, parents
