"""Activity decay: another energy, and a pull of the activity itself towards zero."""

from __future__ import annotations

from jaxtyping import ArrayLike

from pcflax.checks import expect_kind, expect_number
from pcflax.dtypes import total

from .base import Energy, PerExample, Values, check_same_shape, sum_features


class ActivityDecay(Energy):
    """E(z, mu) = energy(z, mu) + rate/2 * ||z||^2, summed over features, one for each example.

    A standard normal prior of precision `rate` on the activity, on top of its prediction. The gradient
    with respect to z gains rate * z, the curvature gains rate (which helps where a Hessian is close to
    singular), and that with respect to mu is the energy's own. On a clamped layer the decay is a
    constant. On free layers the feedforward pass is no longer the minimum of a network whose output is
    free: inference ends closer to zero than `predict` says.

    What the energy says of itself goes for this one, too: `clamped_only`, `mean`, `check_targets`, and what
    it observes of a batch.

    Args:
        energy: the `Energy` that scores the mismatch.
        rate: how strong the pull is, at least 0; the same at every batch size, as energies are per
            example.

    Raises:
        TypeError: where `energy` is not an `Energy`.
        ValueError: for a rate that is negative or not finite.

    Source: the `activity_decay` of the JPC library's energies, arXiv 2412.03676; there the mean over
    the batch, here each example.

    >>> import jax.numpy as jnp
    >>> import pcflax as pc
    >>> energy = ActivityDecay(pc.energies.Gaussian(), 0.5)
    >>> energy(jnp.ones((2, 3)), jnp.zeros((2, 3)))
    Array([2.25, 2.25], dtype=float32)
    """

    def __init__(self, energy: Energy, rate: float):
        self.energy = expect_kind(self, "energy", energy, Energy, "pc.energies.Gaussian()")
        self.rate = expect_number(self, "rate", rate, least=0)
        self.clamped_only = energy.clamped_only
        self.silent_at_zero = energy.silent_at_zero

    def __call__(self, activity: Values, prediction: Values) -> PerExample:
        """Return the energy of each example, and rate/2 * ||activity||^2."""
        if self.energy.predicts_activity:
            check_same_shape(self, activity, prediction)
        decay = 0.5 * self.rate * sum_features(activity * activity)
        return total([self.energy(activity, prediction), decay])

    @property
    def observes(self) -> bool:
        """Whether the energy itself keeps something of every batch."""
        return self.energy.observes

    def observe(self, activity: Values, prediction: Values) -> None:
        """Let the energy itself keep what it wants of a batch."""
        self.energy.observe(activity, prediction)

    def mean(self, prediction: Values) -> Values:
        """Return what the energy itself takes for the mean; the decay does not move it."""
        return self.energy.mean(prediction)

    def check_targets(self, targets: ArrayLike) -> None:
        """Refuse what the energy itself refuses."""
        self.energy.check_targets(targets)
