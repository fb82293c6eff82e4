"""Ancestral sampling: every activity is drawn from its energy, parents first.

z_l ~ p(z_l | z_{l-1}), which is proportional to exp(-E_l(z_l, mu_l)), from the priors of the roots to the
outputs: samples of the network's joint distribution, exactly and in one pass. Given an activity further
up, `pc.inference.Langevin` samples the rest instead. Next file to read: `base.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jaxtyping import Array

from pcflax.checks import did_you_mean, expect_count, expect_key
from pcflax.layers import Clamp, Evidence, PCLayer
from pcflax.layers.clamps import Known, held_at
from pcflax.layers.evaluate import failed
from pcflax.typing import Network, PRNGKey

from .given import parse


def sample(
    network: Network,
    batch_size: int | None,
    inputs: Any,
    clamps: Mapping[str, Any] | None,
    nodes: str | Sequence[str] | None,
    means: str | Sequence[str],
    key: PRNGKey,
) -> Any:
    """Draw activities, parents first; see `AbstractPCNetwork.sample`."""
    _check_order(network)
    expect_key("sample", key)
    named = [node for name in network.names for node in network.layer(name).each_node_name(name)]
    tops = [network.layer(name).each_node_name(name)[-1] for name in network.outputs]
    asked = [nodes] if isinstance(nodes, str) else list(nodes or tops)
    at_mean = [means] if isinstance(means, str) else list(means)
    for name in (*asked, *at_mean):
        if name not in named:
            raise ValueError(
                f"no node '{name}' to sample; the nodes are {', '.join(named)}"
                f"{did_you_mean(name, named)}"
            )
    known = Known(inputs, {})
    if inputs is not None or clamps:
        known = parse(network, Evidence(inputs, None, clamps))
    batch_size = _batch_size(batch_size, known)
    drawn: dict[str, Array] = {}
    seen = network.wiring.external(inputs)
    for name, parents in network.wiring.parents:
        belows = network.wiring.below(name, parents, seen)
        for place, (node, layer) in enumerate(network.layer(name).each_node(name).items()):
            clamp = known.clamps.get(name)
            if clamp is not None and network.layer(name).node_axes > 1:  # of a whole stack
                mask = None if clamp.mask is None else clamp.held()[:, place]
                clamp = Clamp(clamp.value[:, place], mask)
            own = None if node in at_mean else jax.random.fold_in(key, len(drawn))
            drawn[node] = _draw(network, node, layer, belows, batch_size, clamp, own)
            belows = (drawn[node],)
        seen |= {name: belows[0]}
    if isinstance(nodes, str) or (nodes is None and network.one_output):
        return drawn[asked[0]]
    return {name: drawn[name] for name in asked}


def _draw(
    network: Network,
    name: str,
    layer: PCLayer,
    belows: tuple[Array, ...],
    batch_size: int,
    clamp: Clamp | None,
    key: PRNGKey | None,
) -> Array:
    """Return one node's activity: under its clamp, drawn, or at its mean where there is no key."""
    try:
        activity, prediction, _ = layer.advance_nodes(
            belows, network.numerics, batch_size=batch_size, clamp=clamp
        )
    except (TypeError, ValueError) as error:
        raise failed(name, layer, belows, error) from error
    if key is None or (clamp is not None and clamp.mask is None):
        return activity
    try:
        activity = layer.energy.sample(prediction, key)
    except ValueError as error:
        raise ValueError(f"layer '{name}' cannot be sampled: {error}") from None
    return activity if clamp is None else held_at(name, clamp, activity)


def _check_order(network: Network) -> None:
    """Refuse a network that has no order in which each node is drawn once."""
    if network.cyclic:
        reason = f"layer '{network.cyclic[0]}' is on a cycle ({', '.join(network.cyclic)})"
    elif network.wiring.predictors:
        name, _, node = network.wiring.predictors[0]
        reason = f"node '{node}' is predicted by '{name}' besides its own layer"
    else:
        return
    raise ValueError(
        f"{reason}, so that no order draws each node once; take samples by network.infer(..., "
        f"inference=pc.inference.Langevin(0.01, burn_in=1000), key=key)"
    )


def _batch_size(given: int | None, known: Known) -> int:
    if given is not None:
        given = expect_count("sample", "batch_size", given, least=1)
    if known.inputs is None and not known.clamps:
        if given is None:
            raise ValueError("sample expected how many to draw: network.sample(16, key=key)")
        return given
    if given not in (None, known.batch_size):
        raise ValueError(
            f"sample got batch_size={given} and values of {known.batch_size} examples; leave batch_size out"
        )
    return known.batch_size
