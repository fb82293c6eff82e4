"""The fingerprint of an architecture: what decides a network's function besides its arrays.

Arrays of one shape fit many networks: tanh weights load into a relu network and are silently wrong there. So
a checkpoint stores, readable, each layer's kind, what it predicts from, its energy, and the functions and
switches that it was given; of modules within it, such as flax's, all that, too. A lambda is one like any
other, and a function goes by its name.
"""

from __future__ import annotations

import functools
import math
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
# The same of flax's own modules, and how they compute it: names that mean something else elsewhere.
_LEFT_OUT_OF_FLAX = frozenset(
    {
        *("num_features", "hidden_features", "num_embeddings", "kernel_shape"),
        *("qkv_features", "in_kv_features", "head_dim"),
        *("deterministic", "use_running_average", "decode", "momentum", "rngs"),
        *("dropout_rate", "broadcast_dropout", "keep_rngs", "axis_name", "axis_index_groups"),
        *("dtype", "param_dtype", "precision", "preferred_element_type", "promote_dtype"),
        *("qkv_promote_dtype", "out_promote_dtype", "ln_promote_dtype", "conv_general_dilated"),
        *("dot_general", "dot_general_cls", "qkv_dot_general", "qkv_dot_general_cls"),
        *("out_dot_general", "out_dot_general_cls", "use_fast_variance", "unroll"),
    }
)
_UNTOLD = object()  # of what does not decide the function, arrays among it


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
        elif not _is_same(was, has):
            title = f"{prefix}{key}".removesuffix(" kind")
            found.append((title, *map(_shown, (was, has))))
    return found


def _is_same(one: Any, other: Any) -> bool:
    """Return whether two values are equal; one number stands for as many along the axes."""
    if isinstance(one, list) and isinstance(other, int):
        return bool(one) and all(value == other for value in one)
    if isinstance(other, list) and isinstance(one, int):
        return _is_same(other, one)
    return one == other


def _shown(value: Any) -> Any:
    return value.get("kind", "several") if isinstance(value, Mapping) else value


def _object(value: Any, above: tuple[int, ...] = ()) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": type(value).__name__}
    if id(value) in above:  # it holds itself
        return found
    is_flax = any(kind.__module__.startswith("flax.nnx.nn.") for kind in type(value).__mro__)
    left_out = _LEFT_OUT | _LEFT_OUT_OF_FLAX if is_flax else _LEFT_OUT
    for key, part in vars(value).items():
        if key[0] == "_" or key in left_out or key.endswith(("_init", "_initializer")):
            continue
        told = _part(part, (*above, id(value)))
        if told is not _UNTOLD:
            found[key] = told
    return found


def _part(part: Any, above: tuple[int, ...]) -> Any:
    """Return what tells one attribute of an object within those above, or `_UNTOLD`."""
    if isinstance(part, nnx.Variable | nnx.Dropout | nnx.Rngs | nnx.RngStream):
        return _UNTOLD
    if isinstance(part, nnx.List):
        return {"kind": "List", **_places(list(part), above)}
    if isinstance(part, list | tuple):
        told = [_part(one, above) for one in part]
        return told if all(map(_is_plain, told)) else _places(list(part), above)
    if isinstance(part, Energy | nnx.Module):
        return _object(part, above)
    if isinstance(part, Mapping):
        told = {str(key): _part(value, above) for key, value in part.items()}
        return {key: value for key, value in told.items() if value is not _UNTOLD}
    if isinstance(part, np.ndarray) or hasattr(part, "dtype"):
        return _UNTOLD
    if isinstance(part, AbstractParameterization):
        return repr(part)  # it decides the multipliers, which no array holds
    if isinstance(part, float) and not math.isfinite(part):
        return str(part)  # as JSON has it
    if _is_plain(part):
        return part
    if isinstance(part, functools.partial):
        args = tuple(map(_named, part.args))
        keywords = {key: _named(value) for key, value in part.keywords.items()}
        return f"partial {_named(part.func)} {args} {keywords}"
    return _named(part) if callable(part) else _UNTOLD


def _places(parts: list, above: tuple[int, ...]) -> dict[str, Any]:
    """Return how many parts there are, and what each is by its place."""
    told = {str(place): _part(part, above) for place, part in enumerate(parts)}
    return {"length": len(parts)} | {k: part for k, part in told.items() if part is not _UNTOLD}


def _is_plain(told: Any) -> bool:
    return told is None or isinstance(told, bool | int | float | str | list)


def _named(value: Any) -> Any:
    """Return a function's name, which is the same in every process; anything else as it is."""
    if not callable(value):
        return value
    if isinstance(value, functools.partial):
        return _part(value, ())
    return getattr(value, "__name__", type(value).__name__)
