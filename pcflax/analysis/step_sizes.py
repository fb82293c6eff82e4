"""Step sizes of inference from the spectrum: which are stable, and how many steps each one needs.

On a quadratic energy gradient descent multiplies the distance to the equilibrium along an eigenvector of
eigenvalue l by 1 - a l at each step of size a, and heavy-ball momentum m by a root of
x^2 - (1 + m - a l) x + m. The largest of these over the spectrum is the rate. `spectrum.py` finds the
eigenvalues.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Array

from pcflax.checks import expect_number
from pcflax.inference.momentum import stable_curvature
from pcflax.layers import Clamp
from pcflax.networks import AbstractPCNetwork

from .spectrum import Spectrum, activity_spectrum


class StepSizeRange(NamedTuple):
    """The step sizes under which gradient descent on activities settles, in every example of a batch.

    Attributes:
        smallest: the smallest eigenvalue of the activity Hessian over the batch.
        largest: the largest.
        spectrum: those of each example.
    """

    smallest: float
    largest: float
    spectrum: Spectrum

    def limit(self, momentum: float = 0.0, *, nesterov: bool = False) -> float:
        """Return the step size below which inference is stable.

        2/lambda_max, with momentum m (1 + m) times that, and (1 + m)/(1 + 2m) times where it looks ahead
        (`nesterov`); infinite where no eigenvalue is above 0.

        Raises:
            ValueError: for a momentum outside of 0 to 1.
        """
        momentum = _expect_momentum(momentum)
        if not self.largest > 0:
            return math.inf
        return stable_curvature(momentum, nesterov=nesterov) / self.largest

    def rate(self, step_size: float, momentum: float = 0.0, *, nesterov: bool = False) -> float:
        """Return what the slowest direction is multiplied by at each step, in the long run.

        Below 1 inference settles.

        Raises:
            ValueError: for a step size that is not above 0, or a momentum outside of 0 to 1.
        """
        step_size = expect_number("rate", "step_size", step_size, above=0)
        momentum = _expect_momentum(momentum)
        # between the ends of a spectrum no direction is slower than at them
        ends = np.array([self.smallest, self.largest], np.float64) * step_size
        ahead = momentum * ends if nesterov else 0.0
        trace, product = 1 + momentum - ends - ahead, momentum - ahead
        root = np.emath.sqrt(trace**2 / 4 - product)
        return float(np.max(np.abs([trace / 2 + root, trace / 2 - root])))

    def steps(
        self,
        step_size: float,
        momentum: float = 0.0,
        *,
        nesterov: bool = False,
        reduction: float = 10.0,
    ) -> float:
        """Return how many steps divide the distance to the equilibrium by `reduction`, in the long run.

        ln(reduction)/-ln(rate), not rounded; infinite where inference does not settle: at the limit and
        above it, and where the energy is not convex.

        Raises:
            ValueError: as `rate` does, and for a reduction that is not above 1.
        """
        reduction = expect_number("steps", "reduction", reduction, above=1)
        rate = self.rate(step_size, momentum, nesterov=nesterov)
        if rate == 0:
            return 1.0  # there at once
        return math.log(reduction) / -math.log(rate) if rate < 1 else math.inf

    @property
    def best(self) -> float:
        """The step size that needs the fewest steps without momentum, 2/(lambda_min + lambda_max).

        Its rate is (k - 1)/(k + 1), for a condition number k.
        """
        return 2 / (max(self.smallest, 0.0) + self.largest) if self.largest > 0 else math.inf

    @property
    def best_with_momentum(self) -> tuple[float, float]:
        """The step size and the momentum that need the fewest steps together.

        4/(sqrt(lambda_min) + sqrt(lambda_max))^2 and the square of (sqrt(k) - 1)/(sqrt(k) + 1), which is
        their rate: about the square root of the steps that plain descent takes.
        """
        low, high = math.sqrt(max(self.smallest, 0.0)), math.sqrt(max(self.largest, 0.0))
        if high == 0:
            return math.inf, 0.0
        return 4 / (low + high) ** 2, ((high - low) / (high + low)) ** 2


def step_size_range(
    network: AbstractPCNetwork,
    inputs: Array | None,
    targets: Array | None,
    *,
    clamps: Mapping[str, Clamp | Array] | None = None,
    stored: bool = False,
    tolerance: float = 1e-3,
) -> StepSizeRange:
    """Return which step sizes of inference are stable on a batch, and how many steps each one needs.

    Measured once at the present weights, by `activity_spectrum`, in place of a search over runs. Exact
    where the energy is quadratic in the activities (linear layers, Gaussian energies), and near the
    equilibrium else. lambda_max grows while a network trains: look again, or leave room.

    Args:
        network: not changed.
        inputs: clamped below, or None; a few examples will do.
        targets: clamped above, or None.
        clamps: {layer name: value or `pc.Clamp(value, mask)`} for any other layer.
        stored: whether to look at the stored activities instead of the feedforward start.
        tolerance: relative accuracy of the eigenvalues.

    Raises:
        ValueError: as `activity_spectrum` does.

    Source: Polyak (1964), "Some methods of speeding up the convergence of iteration methods".

    >>> import jax.numpy as jnp, pcflax as pc
    >>> network = pc.PCNetwork([pc.PCRoot(3, energy=pc.energies.Gaussian(jnp.array([1., 2., 9.])))])
    >>> found = pc.analysis.step_size_range(network, None, None,
    ...     clamps={"layer_0": pc.Clamp(jnp.zeros((1, 3)), jnp.array([False, True, False]))})
    >>> round(found.limit(), 4), round(found.limit(momentum=0.5), 4)
    (0.2222, 0.3333)
    >>> found.best, round(found.steps(found.best), 1)  # each digit
    (0.2, 10.3)
    >>> found.best_with_momentum, round(found.steps(*found.best_with_momentum), 1)
    ((0.25, 0.25), 3.3)
    """
    spectrum = activity_spectrum(
        network, inputs, targets, clamps=clamps, stored=stored, tolerance=tolerance
    )
    return StepSizeRange(float(spectrum.smallest.min()), float(spectrum.largest.max()), spectrum)


def _expect_momentum(momentum: float) -> float:
    momentum = expect_number("StepSizeRange", "momentum", momentum, least=0)
    if momentum >= 1:
        raise ValueError(f"StepSizeRange expected a momentum from 0 to below 1, got {momentum}")
    return momentum
