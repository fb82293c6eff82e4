"""Gradient descent whose step follows the curvature: each example's own 1/lambda_max."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from pcflax.energies import total_energy
from pcflax.typing import PRNGKey, PyTree

from .base import AbstractIterativeInference
from .curvature import (
    Direction,
    expect_curvature,
    largest_eigenvalue,
    power_iteration,
    random_direction,
)
from .momentum import accelerated, at_rest, stable_curvature
from .problem import InferenceProblem
from .solve import StepInfo, observe, over

# Power iterations before the first step; one more goes along with every step.
_FIRST_ITERATIONS = 10


@dataclasses.dataclass(frozen=True)
class CurvatureDescent(AbstractIterativeInference):
    """z <- z - dF/dz / lambda_max, the largest curvature of each example's energy.

    `GradientDescent(step_size="auto")` is another way to write it.

    Minimizes: F_i(z), the energy of each example, over its free activities.

    Fixed point: dF_i/dz_i = 0.

    Rate: linear, with half the largest stable step; with `momentum="auto"`, about sqrt(condition number)
    steps where plain descent takes as many as the condition number.

    Cost a step: two gradients: lambda_max is estimated by power iteration on Hessian-vector products,
    ten before the first step, then one with every step.

    Fails: slowly in deep chains, where the Hessian is ill-conditioned.

    Source: ours; power iteration is standard. Momentum: Nesterov (1983), with the restarts of O'Donoghue &
    Candès (2015); see `pcflax/inference/momentum.py`.

    Args:
        momentum: "auto" for Nesterov's, which grows by the count of steps and begins anew for each example
            whose energy rises or whose gradient points against its velocity; none unless given.
        num_steps: a fixed count, 20 unless given; or
        tolerance: the residual at which an example stops, and
        max_steps: after how many steps at most; see `AbstractIterativeInference`.

    Raises:
        TypeError: on use, where there is no energy; and as `AbstractIterativeInference`.
        ValueError: for another momentum than "auto", and as `AbstractIterativeInference`.

    >>> import pcflax as pc
    >>> pc.inference.CurvatureDescent(momentum="auto", tolerance=1e-4).max_steps
    1000
    """

    momentum: str | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if self.momentum not in (None, "auto"):
            raise ValueError(
                f'CurvatureDescent expected momentum="auto", or none, got {self.momentum!r}; a number goes '
                f"with a step size that is one, pc.inference.GradientDescent(0.1, momentum=0.9)"
            )

    @property
    def stable_curvature(self) -> float:
        """The step size times lambda_max below which it is stable, of which it takes half or more."""
        auto = self.momentum is not None
        return stable_curvature(float(auto), nesterov=auto)

    @property
    def compares_energies(self) -> bool:
        """Whether there is a momentum, which begins anew where an energy has risen."""
        return self.momentum is not None

    def gradient_steps(self, problem: InferenceProblem) -> int:
        """Return the number of steps: each is one along the gradient."""
        return self.stop.most_steps

    def init(self, problem: InferenceProblem) -> Direction | tuple:
        """Return a direction for each example, the curvature along it, and the momentum."""
        expect_curvature(self, problem)
        if not problem.start:
            return ()
        direction = largest_eigenvalue(
            problem, problem.start, random_direction(problem), _FIRST_ITERATIONS
        )
        return direction if self.momentum is None else (direction, at_rest(problem))

    def step(
        self, problem: InferenceProblem, coordinates, state, *, step, key: PRNGKey | None
    ) -> tuple[PyTree, PyTree, StepInfo]:
        """Update every free activity once."""
        del key  # deterministic
        if not coordinates:
            return coordinates, state, observe(problem, coordinates)[0]
        direction, *momentum = (state,) if self.momentum is None else state
        direction, energies, gradient = power_iteration(problem, coordinates, direction)
        info = StepInfo(energies, problem.residual(gradient))
        # half of 2/lambda_max, and at most three quarters of what is stable: an estimate from below stays so
        part = jnp.minimum(1.0, 1.5 * problem.stable_part)
        curvature = jnp.where(direction.eigenvalue > 0, direction.eigenvalue, 1.0)
        moved = jax.tree.map(
            lambda z, g: z - (part * g / over(curvature, g)).astype(z.dtype), coordinates, gradient
        )
        if not momentum:
            return moved, direction, info
        energy, last = total_energy(energies), self.is_last(step)
        moved, own = accelerated(momentum[0], moved, gradient, energy, last=last)
        return moved, (direction, own), info
