"""The fingerprint of an architecture: what decides a network's function besides its arrays.

Arrays of one shape fit many networks: tanh weights load into a relu network and are silently wrong there. So
a checkpoint stores, readable, each layer's kind, what it predicts from, its energy, and the functions and
switches that it was given. A lambda is one like any other, and a function goes by its name.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from pcflax.energies import Energy
from pcflax.errors import CheckpointError
from pcflax.networks import AbstractPCNetwork
from pcflax.networks.wiring import Combine
from pcflax.parameterizations import AbstractParameterization

# Switches of training, and what follows from a layer's place or from its arrays.
_LEFT_OUT = frozenset({"in_features", "out_features", "depth", "multiplier", "features"})


def describe(network: AbstractPCNetwork) -> dict[str, dict[str, Any]]:
    """Return {layer: what it is}, in the network's order, of what JSON can hold.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> network = pc.PCNetwork([pc.PCDense(3, 2, activation=jnp.tanh, rngs=nnx.Rngs(0))])
    >>> found = describe(network)["layer_0"]
    >>> found["kind"], found["activation"], found["energy"]
    ('PCDense', 'tanh', {'kind': 'Gaussian', 'precision': 1.0})
    """
    wiring = network.wiring
    parents = {name: own for name, own, *_ in (*wiring.parents, *wiring.predictors)}
    parents |= {name: own for name, own, _ in wiring.amortizers}
    targets = dict(wiring.targets) | {name: node for name, _, node in wiring.amortizers}
    found = {}
    for name in network.layer_names:
        layer = network.layer(name).top_node_layer()
        own = parents[name]
        from_ = repr(own) if isinstance(own, Combine) else list(own)
        found[name] = {"from": from_, "predicts": targets[name], **_object(layer)}
    return found


def check_fingerprint(stored: Any, network: AbstractPCNetwork) -> None:
    """Refuse a network that computes something else than the one that was saved, of what both tell.

    Raises:
        CheckpointError: naming what differs.
    """
    if not isinstance(stored, Mapping):  # of an earlier version
        return
    told = differences(stored, describe(network))
    if told:
        more = f" (and {len(told) - 3} more)" if len(told) > 3 else ""
        raise CheckpointError(
            f"the checkpoint is of another network: {'; '.join(told[:3])}{more}; build the network as it was "
            f"when saved, or take its arrays as they are by pc.load_partial"
        )


def differences(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each difference in what both tell, layer by layer.

    >>> differences({"a": {"activation": "tanh"}}, {"a": {"activation": "relu"}})
    ["layer 'a' was saved with activation tanh, and the network has relu"]
    """
    return [
        f"layer '{name}' was saved with {what} {was}, and the network has {has}"
        for name in stored
        if name in now
        for what, was, has in _unequal(stored[name], now[name], "")
    ]


def _unequal(stored: Mapping[str, Any], now: Mapping[str, Any], prefix: str) -> list[tuple]:
    found = []
    for key in stored:
        if key not in now:
            continue
        was, has = stored[key], now[key]
        if isinstance(was, Mapping) and isinstance(has, Mapping):
            found += _unequal(was, has, f"{prefix}{key} ")
        elif was != has:
            title = f"{prefix}{key}".removesuffix(" kind")
            found.append((title, was, has))
    return found


def _object(value: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": type(value).__name__}
    for key, part in vars(value).items():
        if key[0] == "_" or key in _LEFT_OUT:
            continue
        told = _part(part)
        if told is not None:
            found[key] = told
    return found


def _part(part: Any) -> Any:
    """Return what tells one attribute; None for what does not decide the function, arrays among it."""
    if isinstance(part, Energy):
        return _object(part)
    if isinstance(part, nnx.Variable | np.ndarray) or hasattr(part, "dtype"):
        return None
    if isinstance(part, AbstractParameterization):
        return repr(part)  # it decides the multipliers, which no array holds
    if isinstance(part, nnx.Dropout | nnx.Rngs):
        return None
    if isinstance(part, nnx.Module):
        return {"kind": type(part).__name__}
    if isinstance(part, bool | int | float | str):
        return part
    if isinstance(part, functools.partial):
        return f"partial {_part(part.func)} {part.args} {part.keywords}"
    if callable(part):
        return getattr(part, "__name__", type(part).__name__)
    return None
