"""Freezing: which parameters an optimizer moves."""

from __future__ import annotations

import fnmatch
from typing import Any

import jax
import optax
from flax import nnx

from pcflax.checks import did_you_mean
from pcflax.networks import AbstractPCNetwork, split
from pcflax.typing import PyTree


def restrict(
    optimizer: optax.GradientTransformation, network: AbstractPCNetwork, wrt: Any
) -> optax.GradientTransformation:
    """Return the optimizer, which moves some of a network's parameters alone; the others keep no state.

    Args:
        optimizer: an optax transformation.
        network: whose parameters are meant.
        wrt: None for all; a name or pattern such as "output" or "hidden_*", of layers or of paths
            ("*.bias"), or several; or a filter of nnx, such as `nnx.LoRAParam`.

    `Trainer(wrt=)` does so; for `make_step` and `TrainState.of`, restrict the optimizer yourself.

    Raises:
        ValueError: for a pattern or a filter that fits no parameter.
        TypeError: for what is neither.

    >>> import optax, pcflax as pc
    >>> from flax import nnx
    >>> network = pc.models.mlp(3, 4, 2, rngs=nnx.Rngs(0))
    >>> head = pc.training.restrict(optax.sgd(0.1), network, "output")
    >>> state = pc.training.TrainState.of(network, head)
    """
    if wrt is None:
        return optimizer
    parameters = split(network).parameters
    if isinstance(wrt, str) or (
        isinstance(wrt, tuple | list) and all(isinstance(one, str) for one in wrt)
    ):
        patterns = (wrt,) if isinstance(wrt, str) else tuple(wrt)
        labels = _labels(parameters, patterns, network)
    else:
        labels = _filtered(parameters, wrt, network)
    return optax.partition({"learn": optimizer, "keep": optax.set_to_zero()}, labels)


def _labels(parameters: PyTree, patterns: tuple[str, ...], network: AbstractPCNetwork) -> PyTree:
    used = set()

    def label(path, leaf):
        del leaf  # its place tells
        name = ".".join(str(part.key) for part in path)
        fits = {
            one
            for one in patterns
            if fnmatch.fnmatchcase(name, one) or fnmatch.fnmatchcase(str(path[0].key), one)
        }
        used.update(fits)
        return "learn" if fits else "keep"

    labels = jax.tree_util.tree_map_with_path(label, parameters)
    for pattern in patterns:
        if pattern not in used:
            raise ValueError(
                f"wrt names '{pattern}', which fits no layer and no parameter"
                f"{did_you_mean(pattern, network.layer_names)}; the layers are "
                f"{', '.join(network.layer_names)}"
            )
    if not patterns:
        raise ValueError("wrt is empty, so nothing would learn; name a layer, or leave wrt out")
    return labels


def _filtered(parameters: PyTree, wrt: Any, network: AbstractPCNetwork) -> PyTree:
    try:
        chosen = nnx.to_flat_state(nnx.state(network, nnx.All(nnx.Param, wrt)))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"wrt expected names or patterns of layers, or a filter of nnx such as nnx.LoRAParam, got "
            f"{wrt!r}"
        ) from error
    paths = {path[1:] if path[0] == "layers" else path for path, _ in chosen}

    def label(path, leaf):
        del leaf  # its place tells
        return "learn" if tuple(part.key for part in path) in paths else "keep"

    if not paths:
        raise ValueError(f"wrt={wrt!r} fits no parameter of the network, so nothing would learn")
    return jax.tree_util.tree_map_with_path(label, parameters)
