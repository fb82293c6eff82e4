"""What inference returns: where it ended, how good that is, and how it got there."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int

from pcflax.networks.base import total_energy
from pcflax.typing import Activities, Energies


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
        energies: {layer name: (batch,)} at those activities; of a stack, (batch, depth).
        residual: (batch,), root mean square over the free elements of dF_i/dz_i at those activities;
            zero at an equilibrium.
        num_steps: (batch,), how many steps each example took.
        trace: energies and residuals by step, or None where it was not asked for.
        samples: {layer name: (num_samples, batch, *features)} from an algorithm that samples and was
            asked to keep them, else None.
        expectation: the mean over samples of the statistic that a sampling algorithm was given, else
            None.
    """

    activities: Activities
    energies: Energies
    residual: Float[Array, " batch"]
    num_steps: Int[Array, " batch"]
    trace: Trace | None = None
    samples: Activities | None = None
    expectation: Any = None

    @property
    def energy(self) -> Float[Array, " batch"]:
        """F of each example, summed over layers."""
        return total_energy(self.energies, leading=self.residual.ndim)
