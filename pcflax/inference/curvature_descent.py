"""Gradient descent whose step follows the curvature: each example's own 1/lambda_max."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from pcflax.typing import PRNGKey, PyTree

from .base import AbstractIterativeInference
from .curvature import (
    Direction,
    expect_curvature,
    largest_eigenvalue,
    power_iteration,
    random_direction,
)
from .problem import InferenceProblem
from .solve import StepInfo, observe, over

# Power iterations before the first step; one more goes along with every step.
_FIRST_ITERATIONS = 10


@dataclasses.dataclass(frozen=True)
class CurvatureDescent(AbstractIterativeInference):
    """z <- z - dF/dz / lambda_max, the largest curvature of each example's energy.

    `GradientDescent(step_size="auto")` is another way to write it.

    Minimises: F_i(z), the energy of each example, over its free activities.

    Fixed point: dF_i/dz_i = 0.

    Rate: linear, with half the largest stable step.

    Cost a step: two gradients: lambda_max is estimated by power iteration on Hessian-vector products,
    ten before the first step, then one with every step.

    Fails: slowly in deep chains, where the Hessian is ill-conditioned.

    Source: ours; power iteration is standard.

    Args:
        num_steps: a fixed count, 20 unless given; or
        tolerance: the residual at which an example stops, and
        max_steps: after how many steps at most; see `AbstractIterativeInference`.

    >>> import pcflax as pc
    >>> pc.inference.CurvatureDescent(tolerance=1e-4).max_steps
    1000
    """

    def init(self, problem: InferenceProblem) -> Direction | tuple:
        """Return a direction for each example, and the curvature along it."""
        expect_curvature(self, problem)
        if not problem.start:
            return ()
        return largest_eigenvalue(
            problem, problem.start, random_direction(problem), _FIRST_ITERATIONS
        )

    def step(
        self, problem: InferenceProblem, coordinates, state, *, step, key: PRNGKey | None
    ) -> tuple[PyTree, PyTree, StepInfo]:
        """Update every free activity once."""
        del step, key  # alike at every step; deterministic
        if not coordinates:
            return coordinates, state, observe(problem, coordinates)[0]
        state, energies, gradient = power_iteration(problem, coordinates, state)
        info = StepInfo(energies, problem.residual(gradient))
        # half the largest stable step: an estimate from below stays stable
        curvature = jnp.where(state.eigenvalue > 0, state.eigenvalue, 1.0)
        moved = jax.tree.map(
            lambda z, g: z - (g / over(curvature, g)).astype(z.dtype), coordinates, gradient
        )
        return moved, state, info
