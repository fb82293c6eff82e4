"""Meta-PCN: the errors of fixed prediction as the minimum of a loss, the meta-prediction error."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from pcflax.layers import Evidence
from pcflax.networks import SplitNetwork
from pcflax.typing import Energies, PyTree

from .fixed_prediction import FixedPrediction, FixedPredictionProblem


@dataclasses.dataclass(frozen=True)
class MetaProblem(FixedPredictionProblem):
    """Inference that descends half the squared field of `FixedPredictionProblem`, by its whole gradient."""

    def field(self, coordinates: PyTree) -> tuple[Energies, PyTree]:
        """Return E_l(z_l, mu^_l) by layer, and A^T r of each example, where r = A e is the other's field."""

        def residual(coordinates):
            energies, field = FixedPredictionProblem.field(self, coordinates)
            return field, energies

        field, back, energies = jax.vjp(residual, coordinates, has_aux=True)
        (gradient,) = back(field)
        for name, clamp in self.partial.items():
            gradient[name] = jnp.where(clamp.held(), 0, gradient[name])
        return energies, gradient


@dataclasses.dataclass(frozen=True)
class MetaPCN(FixedPrediction):
    """Descend J = 1/2 sum_l ||e_l - J_{l+1}^T e_{l+1}||^2, with e = z - c and c, J of the feedforward pass.

    **Its fixed point is backpropagation's**: J is 0 where e_l = J_{l+1}^T e_{l+1}, which are
    `FixedPrediction`'s errors and backpropagation's deltas exactly, and weights learn from them as they do
    there. What the source's networks gain over backpropagation, they gain by the normalization of weights
    that goes with it, `pc.learning.normalize_spectral`, and by errors that have not settled.

    The source holds the error above while it differentiates, like temporal-difference learning does. That
    semi-gradient is the vector field of `FixedPrediction` at precision 1, so that `semi_gradient=True` is
    that rule step by step, and settles in as many steps of size 1 as there are hidden layers. The whole
    gradient moves each error for the sake of the one below, too: slower, since its condition number is the
    square, and stable where step_size is below 2 over the largest squared singular value of the field.
    Hidden energies of another precision weigh the errors in J.

    Args:
        inference: gradient descent that moves the activities.
        semi_gradient: whether the error above is held, as in the source.

    Raises:
        TypeError: where `inference` is not `GradientDescent`.

    Source: "Stable and Scalable Deep Predictive Coding Networks with Meta-Prediction Errors", ICLR 2026,
    openreview kE5jJUHl9i; its formulas from a published summary, which we could not check against the
    paper. It reports 89.53 % with a VGG-13 on CIFAR-10, where backpropagation has 87.85 %.

    >>> import optax, pcflax as pc
    >>> rule = pc.learning.MetaPCN(pc.inference.GradientDescent(1.0, num_steps=2))
    >>> optimizer = optax.chain(optax.adam(1e-3), pc.learning.normalize_spectral())
    >>> rule.semi_gradient
    True
    """

    semi_gradient: bool = dataclasses.field(default=True, kw_only=True)

    def field_problem(self, network: SplitNetwork, evidence: Evidence) -> FixedPredictionProblem:
        """Return what is followed: the field of `FixedPrediction`, or the gradient of half its square."""
        problem = super().field_problem(network, evidence)
        if self.semi_gradient:
            return problem
        parts = {part.name: getattr(problem, part.name) for part in dataclasses.fields(problem)}
        return MetaProblem(**parts)
