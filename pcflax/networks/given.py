"""Parse evidence: check once what is known of a batch, and bring every clamp to its layer.

What has passed here is handed on unchanged, and nobody looks at shapes, dtypes or names again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from pcflax.checks import did_you_mean, shown
from pcflax.layers import Clamp, Evidence
from pcflax.layers.clamps import Known, as_clamp, check_weights
from pcflax.typing import Initializer, Network

from .wiring import by_name, names_of


def parse(network: Network, evidence: Evidence) -> Known:
    """Return the evidence with every clamp by layer, checked."""
    clamps = {} if evidence.clamps is None else evidence.clamps
    if not isinstance(clamps, Mapping):
        raise TypeError(
            f"expected clamps as {{layer name: value or pc.Clamp(value, mask)}}, got "
            f"{type(clamps).__name__}"
        )
    named = {name: as_clamp(name, value) for name, value in clamps.items()}
    integers = network.takes_integers
    batch_size = check_batch(evidence.inputs, evidence.targets, named, integers=integers)
    check_weights(evidence.weights, batch_size)
    ends = {
        name: as_clamp(name, clamp) if clamp.mask is not None else clamp
        for name, clamp in network.wiring.clamped_roots(evidence.inputs).items()
    }
    if evidence.targets is not None:
        for name, array in by_name(evidence.targets, network.outputs).items():
            if array is not None:
                top = list(network.layer(name).each_node_name(name))[-1]
                ends[top] = as_clamp(top, array)
                network.layer(name).energy.check_targets(known_part(ends[top]))
    found: dict[str, dict[int | None, Clamp]] = {}
    for name, clamp in [*ends.items(), *named.items()]:
        layer, index = node_of(network, name)
        if name in named and clamp.mask is None:
            network.layer(layer).energy.check_targets(clamp.value)
        own = found.setdefault(layer, {})
        all_of = clamp if index is None else own.get(None)
        if index in own or (own and all_of is not None and all_of.mask is None):
            role = (
                "targets" if layer in network.outputs and evidence.targets is not None else "inputs"
            )
            twice = f"by the {role} and by clamps" if name in ends else "by clamps"
            raise ValueError(f"layer '{name}' is clamped twice, {twice}; give one of them")
        own[index] = clamp
    held = {}
    for name, own in found.items():
        whole = own.pop(None, None)
        nodes = {index: clamp for index, clamp in own.items() if index is not None}
        merged = network.layer(name).clamp_nodes(name, whole, nodes)
        if merged is not None:
            held[name] = merged
    return Known(_whole(evidence.inputs), held, evidence.weights)


def known_part(clamp: Clamp) -> Any:
    """Return the values that are known, for a look at them: rows without a gap, where some have one."""
    if clamp.mask is None or isinstance(clamp.value, Tracer) or isinstance(clamp.mask, Tracer):
        return clamp.value
    value = np.asarray(clamp.value)
    held = np.broadcast_to(np.asarray(clamp.mask), value.shape)
    return value[held.all(axis=tuple(range(1, value.ndim)))]


def says_nothing(network: Network, name: str, mask: Any) -> bool:
    """Return whether what this mask leaves unknown of a layer stands at 0, where it costs nothing.

    So it is of rows without a label under a cross-entropy, of which no minimum over a free activity exists,
    where nothing else predicts the node or is predicted from it.
    """
    energy, wiring = network.layer(name).energy, network.wiring
    if mask is None or not (energy.clamped_only and energy.silent_at_zero):
        return False
    others = [(parents, node) for _, parents, node in (*wiring.predictors, *wiring.amortizers)]
    others += [(parents, None) for _, parents in wiring.parents]
    alone = not any(name == node or name in names_of(parents) for parents, node in others)
    return alone and jnp.shape(mask)[-1:] == (1,)


def _whole(inputs: Any) -> Any:
    """Return the inputs without those roots that are known in part, whose clamps say all."""
    if isinstance(inputs, Clamp):
        return None
    if not isinstance(inputs, Mapping):
        return inputs
    whole = {name: array for name, array in inputs.items() if not isinstance(array, Clamp)}
    return whole or None


def as_initializer(value: Any) -> Initializer:
    """Return an initializer; refuse a class of them, and what cannot be called."""
    if isinstance(value, type) or not callable(value):
        raise TypeError(
            f"expected initializer to be an object such as pc.initializers.Normal(0.1), or activities by "
            f"layer name, got {shown(value)}"
        )
    return value  # type: ignore[return-value]


def node_of(network: Network, name: str) -> tuple[str, int | None]:
    """Return the layer of this name, or the layer and the place in it of a node's name."""
    if name in network.names:
        return name, None
    layer, _, place = name.rpartition("/")
    if layer in network.names and place.isdecimal():
        nodes = list(network.layer(layer).each_node_name(layer))
        if name in nodes:
            return layer, nodes.index(name)
        if len(nodes) > 1:
            raise ValueError(f"no layer '{name}'; that stack has layers 0 to {len(nodes) - 1}")
    for other, _, node in (*network.wiring.predictors, *network.wiring.amortizers):
        if name == other:
            raise ValueError(
                f"layer '{name}' has no activity, since it predicts '{node}'; name that"
            )
    raise ValueError(
        f"no layer '{name}'; the layers are {', '.join(network.names)}"
        f"{did_you_mean(name, network.names)}"
    )


def check_batch(
    inputs: Any, targets: Any, clamps: Mapping[str, Clamp] | None = None, *, integers: bool = False
) -> int:
    """Refuse what is not a batch of floating arrays with one batch size; return that size.

    With `integers`, inputs may be integers, too.
    """
    sizes = {}
    roles = []
    for role, value in (("inputs", inputs), ("targets", targets)):
        several = value.items() if isinstance(value, Mapping) else [("", value)]
        roles += [(role, f"{role} '{name}'" if name else role, array) for name, array in several]
    for role, title, array in roles:
        if array is None:
            continue
        array = array.value if isinstance(array, Clamp) else array
        dtype = getattr(array, "dtype", None)
        tokens = integers and role == "inputs" and dtype is not None
        if dtype is None or not (
            jnp.issubdtype(dtype, jnp.floating) or (tokens and jnp.issubdtype(dtype, jnp.integer))
        ):
            kind = type(array).__name__ if dtype is None else dtype
            remedy = "cast them: inputs.astype(jnp.float32)"
            if dtype is None:
                remedy = f"make them an array: jnp.asarray({role}, jnp.float32)"
            elif role == "targets":
                remedy = "make them one-hot: jax.nn.one_hot(labels, num_classes)"
            raise TypeError(f"expected {title} of a floating dtype, got {kind}; {remedy}")
        if array.ndim < 2:
            raise ValueError(
                f"expected {title} of shape (batch, features), got {array.shape}; a single example "
                f"needs a batch axis: {role}[None]"
            )
        sizes[title] = array.shape[0]
    for name, clamp in (clamps or {}).items():
        sizes[f"the clamp of '{name}'"] = clamp.value.shape[0]
    if not sizes:
        raise ValueError("inputs and targets are both None, so the batch size is unknown; give one")
    (first, batch_size), *others = sizes.items()
    for role, size in others:
        if size != batch_size:
            raise ValueError(
                f"{first} have batch size {batch_size} but {role} {size}; give one "
                f"{'target' if role == 'targets' else 'row'} for each "
                f"{'input' if first == 'inputs' else 'example'}"
            )
    if batch_size == 0:
        raise ValueError("expected at least one example, got an empty batch")
    return batch_size


def not_finite(batch: Evidence, name: str | None = None) -> str | None:
    """Return in words which examples of a batch hold numbers that are not finite; None for none.

    >>> import numpy as np
    >>> batch = Evidence(np.array([[1.0], [np.nan], [np.inf]]), examples=np.array([7, 8, 9]))
    >>> not_finite(batch, "mine")
    "inputs of 'mine' are not finite in 2 of the batch's 3 examples, first in example 8"
    """
    for role in ("inputs", "targets", "clamps"):
        wrong = []
        leaves = jax.tree.leaves(getattr(batch, role), is_leaf=lambda leaf: isinstance(leaf, Clamp))
        for leaf in leaves:
            value, known = (leaf.value, leaf.held()) if isinstance(leaf, Clamp) else (leaf, True)
            finite = np.isfinite(np.asarray(value, float)) | ~np.asarray(known)
            wrong.append(~finite.reshape(len(finite), -1).all(axis=1))
        if wrong and (bad := np.any(wrong, axis=0)).any():
            first = int(np.argmax(bad))
            where = first if batch.examples is None else batch.examples[first]
            counted = f"{int(bad.sum())} of the batch's {len(bad)} examples"
            whose = "" if name is None else f" of '{name}'"
            return f"{role}{whose} are not finite in {counted}, first in example {where}"
    return None
