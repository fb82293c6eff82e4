"""Batch state: what a normalization over the batch means while activities are inferred.

`nnx.BatchNorm` in training mode would normalize every evaluation by the statistics of the activities at
hand: an example's energy would depend on its batch through them, and running statistics would move once
an inference step. Here the statistics of a batch are those of its feedforward pass, computed once and
frozen: inference sees constants, examples stay independent, and the number of its steps changes nothing.
The running statistics, which evaluation uses, move once a batch, at learning.

What other layers write while they predict is kept the same way: once a batch, from the feedforward pass.
What an energy keeps of errors (`Energy.observe`) is of the activities where inference ended.
"""

from __future__ import annotations

from typing import Any

from flax import nnx

from pcflax.energies import Energy
from pcflax.layers.clamps import Evidence, Known
from pcflax.layers.evaluate import written
from pcflax.typing import Activities, Network

from .amortize import amortize
from .pure import SplitNetwork, split, write


def with_batch_statistics(network: SplitNetwork, known: Known) -> SplitNetwork:
    """Return the network with its normalizations frozen at this batch's feedforward pass.

    Normalizations that use their running statistics already (`network.eval()`) stay as they are.
    """
    if not network.other:
        return network
    bound = network.bind()
    norms = find_normalizations(bound)
    if not norms:
        return network
    _check_below(bound, known)
    for norm in norms:
        norm.momentum = 0.0  # so that what the pass leaves behind is the batch's own
    _write(bound, known)
    momenta = [norm.momentum for norm in find_normalizations(network.bind())]
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum, norm.use_running_average = momentum, True
    return split(bound)


def after_batch(
    network: SplitNetwork,
    evidence: Evidence | Known,
    *,
    batch_size: int,
    activities: Activities | None = None,
) -> SplitNetwork:
    """Return the network with what it keeps of a batch.

    What layers write in one feedforward pass, running statistics, say; and what energies observe at the
    activities where inference ended, if they are given.
    """
    if not network.other:
        return network
    bound = network.bind()
    if not nnx.to_flat_state(written(bound)):
        return network
    known = bound.known(evidence)
    _write(bound, known, batch_size)
    if activities and any(layer.energy.observes for layer in bound.layers):
        inferred = with_batch_statistics(network, known).bind(activities)
        predictions = inferred.predictions(known.inputs)
        for name, node in bound.wiring.targets.items():
            bound.layer(name).energy.observe(activities[node], predictions[name])
    return network.replace(other=split(bound).other)


def after_guesses(
    network: SplitNetwork, before: SplitNetwork, evidence: Evidence | Known, activities: Activities
) -> SplitNetwork:
    """Return the network with what amortizers' energies observe of a batch: how far off their guesses were.

    Args:
        network: what `after_batch` returned.
        before: the network that guessed.
        evidence: what the guesses began at.
        activities: where inference ended.

    Raises:
        ValueError: where an amortizer predicts from a node that is neither known nor amortized.
    """
    if not network.other:
        return network
    bound = network.bind()
    if not any(bound.layer(name).energy.observes for name, *_ in bound.wiring.amortizers):
        return network
    guessing = before.bind()
    known = guessing.known(evidence)
    for name, guess in amortize(guessing, known.inputs, known.clamps).items():
        bound.layer(name).energy.observe(activities[guess.node], guess.prediction)
    return network.replace(other=split(bound).other)


def at_batch_statistics(network: Network, known: Known) -> Network:
    """Return a network with its normalizations frozen at this batch's statistics, if it has any."""
    if not find_normalizations(network):
        return network
    activities = network.activities()
    return with_batch_statistics(split(network), known).bind(activities)


def end_batch(network: Network, known: Known) -> None:
    """Write into a network object what its layers keep of a batch, and go on in its random streams."""
    pure = split(network)
    if not pure.other:
        return
    activities = network.activities()
    size = next(iter(activities.values())).shape[0]
    kept = after_batch(pure, known, batch_size=size, activities=activities)
    write(network, kept.other)
    for _, count in nnx.to_flat_state(nnx.state(network, nnx.RngCount)):
        count.set_value(count[...] + 1)


def keeps_batch_state(bound: Network) -> bool:
    """Return whether predictions depend on the batch, or draw at random.

    That is so of random streams, of statistics that are not frozen, and of what a layer of one's own
    writes. A constant, such as a connectivity mask, does not.
    """
    frozen = set()
    for _, module in nnx.iter_modules(bound):
        if getattr(module, "use_running_average", False) is True:
            frozen |= {id(getattr(module, name, None)) for name in ("mean", "var")}
        # a precision, say; and masks that are not drawn
        if isinstance(module, Energy) or getattr(module, "deterministic", False) is True:
            frozen |= {id(variable) for _, variable in nnx.to_flat_state(nnx.state(module))}
    varying = nnx.state(bound, nnx.Any(nnx.RngState, nnx.BatchStat))
    return any(id(variable) not in frozen for _, variable in nnx.to_flat_state(varying))


def find_normalizations(bound: Network) -> list[Any]:
    """Return the modules that normalize by the batch at hand."""
    return [
        module
        for _, module in nnx.iter_modules(bound)
        if getattr(module, "use_running_average", True) is False and hasattr(module, "momentum")
    ]


def _check_below(bound: Network, known: Known) -> None:
    """Refuse a batch that a feedforward pass knows nothing of."""
    for name in bound.names:
        if bound.layer(name).is_root_node and name not in known.clamps and known.inputs is None:
            raise ValueError(
                f"a layer normalizes over the batch, but the root '{name}' is free, so that the "
                f"feedforward pass, whose statistics are taken, is the same for every example; take "
                f"nnx.GroupNorm or nnx.LayerNorm, or network.eval()"
            )
    for name in bound.layer_names[len(bound.names) :]:
        if find_normalizations(bound.layer(name)):
            raise ValueError(
                f"layer '{name}' normalizes over the batch, but predicts another layer's node, so that the "
                f"feedforward pass, whose statistics are taken, leaves it out; take nnx.GroupNorm or "
                f"nnx.LayerNorm"
            )


def _write(bound: Network, known: Known, batch_size: int | None = None) -> None:
    passed = bound.pass_upward(
        known.inputs, batch_size=batch_size or known.batch_size, clamps=known.clamps
    )
    for name, state in passed.writes.items():
        bound.layer(name).update_nodes(state)
