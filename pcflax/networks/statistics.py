"""Batch statistics: what a normalization over the batch means while activities are inferred.

`nnx.BatchNorm` in training mode would normalise every evaluation by the statistics of the activities at
hand: an example's energy would depend on its batch through them, and running statistics would move once
an inference step. Here the statistics of a batch are those of its feedforward pass, computed once and
held: inference sees constants, examples stay independent, and the number of its steps changes nothing.
The running statistics, which evaluation uses, move once a batch, at learning.

What other layers write while they predict is kept the same way: once a batch, from the feedforward pass.
"""

from __future__ import annotations

from typing import Any

from flax import nnx
from jaxtyping import Array

from pcflax.energies import Energy
from pcflax.layers import PCRoot
from pcflax.variables import Activity

from .base import AbstractPCNetwork
from .clamps import Clamps
from .nodes import observing, written
from .split import SplitNetwork, split


def with_batch_statistics(
    network: SplitNetwork, inputs: Array | None, *, batch_size: int, clamps: Clamps
) -> SplitNetwork:
    """The network with its normalizations held at the statistics of this batch's feedforward pass.

    Normalizations that use their running statistics already (`network.eval()`) stay as they are.
    """
    bound = network.bind()
    norms = normalizing(bound)
    if not norms:
        return network
    _check_below(bound, inputs, clamps)
    for norm in norms:
        norm.momentum = 0.0  # so that what the pass leaves behind is the batch's own
    _write(bound, inputs, batch_size, clamps)
    momenta = [norm.momentum for norm in normalizing(network.bind())]
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum, norm.use_running_average = momentum, True
    return split(bound)


def after_batch(network: SplitNetwork, inputs: Array | None, *, batch_size: int) -> SplitNetwork:
    """The network with what its layers write in one feedforward pass: running statistics, say."""
    bound = network.bind()
    if not nnx.to_flat_state(written(bound)):
        return network
    _write(bound, inputs, batch_size, {})
    return network.replace(other=split(bound).other)


def keeps_batch_state(bound: AbstractPCNetwork) -> bool:
    """Whether layers hold state of the whole batch: random streams, or statistics that are not held."""
    held = set()
    for _, module in nnx.iter_modules(bound):
        if getattr(module, "use_running_average", False) is True:
            held |= {id(getattr(module, name, None)) for name in ("mean", "var")}
        # a precision, say; and masks that are not drawn
        if isinstance(module, Energy) or getattr(module, "deterministic", False) is True:
            held |= {id(variable) for _, variable in nnx.to_flat_state(nnx.state(module))}
    varying = nnx.state(bound, nnx.Not(nnx.Any(nnx.Param, Activity)))
    return any(id(variable) not in held for _, variable in nnx.to_flat_state(varying))


def _check_below(bound: AbstractPCNetwork, inputs: Array | None, clamps: Clamps) -> None:
    """Refuse a batch that a feedforward pass knows nothing of."""
    free = [
        name
        for name in bound.names
        if isinstance(bound.layer(name), PCRoot) and inputs is None and name not in clamps
    ]
    if free:
        raise ValueError(
            f"a layer normalises over the batch, but the root '{free[0]}' is free, so that the feedforward "
            f"pass, whose statistics are taken, is the same for every example; take nnx.GroupNorm or "
            f"nnx.LayerNorm, or network.eval()"
        )


def _write(bound: AbstractPCNetwork, inputs: Array | None, batch_size: int, clamps: Clamps) -> None:
    with observing() as writes:
        bound.feedforward(inputs, batch_size=batch_size, clamps=clamps)
    for name, state in writes.items():
        layer = bound.layer(name)
        nnx.update(getattr(layer, "stacked", layer), state)


def normalizing(bound: AbstractPCNetwork) -> list[Any]:
    """The modules that normalise by the batch at hand."""
    return [
        module
        for _, module in nnx.iter_modules(bound)
        if getattr(module, "use_running_average", True) is False and hasattr(module, "momentum")
    ]
