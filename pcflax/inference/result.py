"""The result of inference: where it ended, how good that is, and how it got there."""

from __future__ import annotations

import enum
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int
from wadler_lindig import pformat

from pcflax.energies import total_energy
from pcflax.errors import ConvergenceError, NonFiniteEnergyError
from pcflax.typing import Activities, Energies, PyTree


class Status(enum.IntEnum):
    """The way in which inference ended for one example.

    >>> Status(2).sentence
    'inference was still above its tolerance after max_steps; give more, or a larger step size'
    """

    RAN = 0
    CONVERGED = 1
    MAX_STEPS = 2
    NOT_FINITE = 3

    @property
    def sentence(self) -> str:
        """What happened, and what to try."""
        return _SENTENCES[self]


_SENTENCES = {
    Status.RAN: "inference took its steps",
    Status.CONVERGED: "inference reached its tolerance",
    Status.MAX_STEPS: "inference was still above its tolerance after max_steps; give more, or a larger "
    "step size",
    Status.NOT_FINITE: "inference diverged: an energy or its gradient is not finite; lower the step size, "
    "or look at the data",
}


class Seen(NamedTuple):
    """One step as a `record` function sees it, before the step is made.

    Attributes:
        activities: every layer's activity by name, clamped ones included.
        energies: {layer name: (batch,)} there.
        residual: (batch,), root mean square of the vector field there.
    """

    activities: Activities
    energies: Energies
    residual: Float[Array, " batch"]


class Trace(NamedTuple):
    """The way of inference, from the start (index 0) to the end (the last index).

    Attributes:
        energies: {layer name: (num_steps + 1, batch)}.
        residual: (num_steps + 1, batch), root mean square of the gradient at each step: dF/dz, or of
            the coordinates that were moved where those are others (error coordinates).

    An example that stopped early repeats its last values.
    """

    energies: Energies
    residual: Float[Array, " steps batch"]

    @property
    def energy(self) -> Float[Array, " steps batch"]:
        """F of each example at each step, summed over layers."""
        return total_energy(self.energies, leading=self.residual.ndim)


class InferenceResult(NamedTuple):
    """The end of inference; every number is one example's own.

    Attributes:
        activities: every layer's activity by name, clamped ones included.
        energies: {layer name: (batch,)} at those activities; (batch, depth) for a stack.
        residual: (batch,), root mean square over the free elements of dF_i/dz_i at those activities;
            zero at an equilibrium.
        num_steps: (batch,), how many steps each example took.
        status: (batch,), a `Status` for each example: it ran its steps, converged, was stopped by
            max_steps, or is not finite.
        trace: energies and residuals by step, or None where it was not asked for.
        records: what a `record` function returned, (num_steps + 1, ...), or None.
        samples: {layer name: (num_samples, batch, *features)} from an algorithm that samples and was
            asked to keep them, else None.
        expectation: the mean over samples of the statistic that a sampling algorithm was given, else
            None.
    """

    activities: Activities
    energies: Energies
    residual: Float[Array, " batch"]
    num_steps: Int[Array, " batch"]
    status: Int[Array, " batch"]
    trace: Trace | None = None
    records: PyTree = None
    samples: Activities | None = None
    expectation: Any = None

    @property
    def energy(self) -> Float[Array, " batch"]:
        """F of each example, summed over layers."""
        return total_energy(self.energies, leading=self.residual.ndim)

    def __repr__(self) -> str:
        return pformat(self)  # dtypes and shapes, no numbers

    def in_order(self, names: tuple[str, ...], layers: tuple[str, ...]) -> InferenceResult:
        """Return the same with all dictionaries of layers in the network's order."""
        return in_order(self, names, layers)

    def raise_failures(
        self, *, throw: bool = False, look: Callable[[], str | None] = lambda: None
    ) -> None:
        """Raise what the status says; call it outside of compiled code.

        Args:
            throw: whether an example that did not converge is an error, too.
            look: says what of the data is not finite, where that is why.

        Raises:
            NonFiniteEnergyError: where an example is not finite.
            ConvergenceError: with `throw`, where one was stopped by max_steps.
        """
        status = np.asarray(self.status).reshape(-1)
        for failure, error in (
            (Status.NOT_FINITE, NonFiniteEnergyError),
            (Status.MAX_STEPS, ConvergenceError if throw else None),
        ):
            failed = np.flatnonzero(status == failure)
            if error is not None and failed.size:
                given = look() if failure is Status.NOT_FINITE else None
                why = failure.sentence if given is None else f"{given}; drop or mend them"
                raise error(
                    f"{failed.size} of {status.size} examples, the first of them example "
                    f"{failed[0]}: {why}"
                )


def in_order(tree: PyTree, names: tuple[str, ...], layers: tuple[str, ...]) -> PyTree:
    """Return the same with each dictionary of layers in the network's order: jax sorts them by their keys.

    Args:
        tree: what a compiled call returned. A dictionary in it whose keys are names of layers, all or
            some, is one of layers.
        names: of the layers that have activities, in the network's order.
        layers: of all layers, those that predict another layer's node too.
    """

    def order_of(part: Any) -> tuple[str, ...] | None:
        if type(part) is not dict:
            return None
        return next((order for order in (names, layers) if part.keys() <= set(order)), None)

    def ordered(part: Any) -> Any:
        order = order_of(part)
        if order is None:
            return part
        return {name: in_order(part[name], names, layers) for name in order if name in part}

    return jax.tree.map(ordered, tree, is_leaf=lambda part: order_of(part) is not None)


def warn_of_steps(overstep: Any, at: str = "", *, stacklevel: int = 2) -> bool:
    """Warn where examples step further than is stable, and return whether any does; outside compiled code.

    Args:
        overstep: (batch,), each example's step size as a multiple of the largest stable one.
        at: when that is, such as "at step 240 ".
        stacklevel: as of `warnings.warn`.

    Warns:
        UserWarning: how many do, and by how much.
    """
    multiples = np.asarray(overstep).reshape(-1)
    above = int(np.sum(multiples > 1))
    if above:
        warnings.warn(
            f"{at}the step size of inference is above the largest stable one, where it diverges, in {above} "
            f"of {multiples.size} examples, by a factor of {multiples.max():.2g} at most; divide it by as "
            f'much, or take GradientDescent(..., guard="clip")',
            UserWarning,
            stacklevel=stacklevel + 1,
        )
    return above > 0


def concatenated(results: list[InferenceResult]) -> InferenceResult:
    """Return the results of several batches as one, in NumPy arrays."""

    def join(axis: int, *parts: PyTree) -> PyTree:
        return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis), *parts)

    # what was kept at every step, or of every sample, has that axis first
    first = {name: 1 if name in ("trace", "samples") else 0 for name in InferenceResult._fields}
    columns = zip(*results, strict=True)
    return InferenceResult(
        *(join(axis, *parts) for axis, parts in zip(first.values(), columns, strict=True))
    )
