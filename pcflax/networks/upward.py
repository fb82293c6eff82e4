"""The pass upward: every activity at its prediction, parents first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from pcflax.checks import did_you_mean
from pcflax.dtypes import common_dtype
from pcflax.layers import Clamp, PCLayer
from pcflax.layers.clamps import held_at
from pcflax.layers.evaluate import failed, has_rows, no_rows
from pcflax.typing import Activities, Network, PyTree


class Pass(NamedTuple):
    """A pass upward: the activities, the predictions of all nodes, and what layers wrote, by layer."""

    activities: Activities
    predictions: dict[str, Array]
    writes: dict[str, PyTree]


def pass_upward(
    network: Network,
    inputs: Any,
    batch_size: int | None,
    clamps: Mapping[str, Clamp],
    errors: Mapping[str, Array],
) -> Pass:
    """Pass over all layers, parents first; see `AbstractPCNetwork.feedforward`.

    Layers on cycles start from zero and are passed over `wiring.sweeps` times.
    """
    wiring = network.wiring
    for name in (*clamps, *errors):
        if name not in network.names:
            raise ValueError(
                f"no layer '{name}' to hold or to move; the layers are {', '.join(network.names)}"
                f"{did_you_mean(name, network.names)}"
            )
    seen, parents = wiring.external(inputs), dict(wiring.parents)
    held = {**wiring.clamped_roots(inputs), **clamps}
    for array in (*seen.values(), *(held[name].value for name in wiring.inputs if name in held)):
        batch_size = array.shape[0]
    activities: Activities = {}
    predictions: dict[str, Array] = {}
    writes: dict[str, PyTree] = {}

    def over(group: Sequence[str], now: Activities) -> tuple[Activities, dict[str, Array]]:
        """Pass over the group once; return its activities and predictions."""
        now, predicted, known = dict(now), {}, dict(seen)
        known |= {name: network.layer(name).top_node(now[name]) for name in now}
        for name in group:
            layer, belows = network.layer(name), wiring.below(name, parents[name], known)
            try:
                now[name], predicted[name], written = layer.advance_nodes(
                    belows,
                    network.numerics,
                    batch_size=batch_size,
                    clamp=held.get(name),
                    error=errors.get(name),
                )
            except (TypeError, ValueError) as error:
                raise failed(name, layer, belows, error) from error
            if not has_rows(predicted[name], belows):
                raise no_rows(name, layer, predicted[name], belows)
            error = errors.get(name)
            if error is not None and error.shape != now[name].shape:
                raise ValueError(
                    f"layer '{name}' has activities of shape {now[name].shape}, got an error of shape "
                    f"{error.shape}; give one of that shape"
                )
            if not jnp.issubdtype(predicted[name].dtype, jnp.floating):
                raise TypeError(
                    f"layer '{name}' ({type(layer).__name__}) predicted an array of {predicted[name].dtype}; "
                    f"expected a floating dtype, in which activities are inferred: cast it"
                )
            if jax.tree.leaves(written):
                writes[name] = written
            known[name] = layer.top_node(now[name])
        return now, predicted

    def swept(group: Sequence[str]) -> Activities:
        """Sweep over a cycle from zero, but for the last time."""
        floats = [a.dtype for a in seen.values() if jnp.issubdtype(a.dtype, jnp.floating)]
        dtype = common_dtype(*floats) if floats else jnp.result_type(float)
        now = {}
        for name in group:
            zeros = jnp.zeros((batch_size, *dict(wiring.shapes)[name]), dtype)  # type: ignore
            now[name] = held_at(name, held[name], zeros) if name in held else zeros

        def sweep(now, _):
            after = over(group, now)[0]
            for name in group:
                if after[name].shape != now[name].shape:
                    raise wrong_shape(name, after[name], now[name])
            return {name: after[name].astype(now[name].dtype) for name in now}, None

        now, _ = jax.lax.scan(sweep, now, None, length=wiring.sweeps - 1)
        for name in group:
            writes.pop(name, None)  # what is written before the last sweep is not kept
        return now

    for group in wiring.groups():
        now, predicted = over(group, swept(group) if group[0] in wiring.cyclic else {})
        activities |= now
        predictions |= predicted
        seen |= {name: network.layer(name).top_node(now[name]) for name in group}
    return Pass({name: activities[name] for name in network.names}, predictions, writes)


def wrong_shape(name: str, prediction: Any, activity: Any) -> ValueError:
    """Return the error for a layer whose prediction does not have its activity's shape."""
    shape = prediction.shape[1:]
    return ValueError(
        f"layer '{name}' predicts shape {shape} for one example but its activity has "
        f"{activity.shape[1:]}; give shapes={{'{name}': {shape}}}"
    )


def check_shapes(name: str, layer: PCLayer, activity: Array, prediction: Array) -> None:
    """Refuse an activity that has not the shape of the mean which the prediction stands for."""
    means = prediction
    if not layer.energy.predicts_activity:
        try:
            means = jax.eval_shape(layer.energy.mean, prediction)
        except ValueError as error:
            raise ValueError(f"layer '{name}': {error}") from error
    if activity.shape == means.shape:
        return
    factor = prediction.shape[-1] / max(means.shape[-1], 1)
    raise ValueError(
        f"layer '{name}' predicts shape {means.shape} but its activity is {activity.shape}; "
        + (
            f"set out_features={round(factor * activity.shape[-1])} or give an activity (or targets) of "
            f"that width"
            if activity.shape[:1] == prediction.shape[:1]
            else "give inputs and activities of one batch size"
        )
    )
