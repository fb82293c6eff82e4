"""Gradient inference: every activity descends its example's energy, by any optax transformation."""

from __future__ import annotations

import dataclasses

import jax
import optax

from pcflax.typing import PRNGKey, PyTree

from .base import AbstractIterativeInference, StepInfo, observe
from .problem import InferenceProblem


@dataclasses.dataclass(frozen=True)
class GradientDescent(AbstractIterativeInference):
    """z <- z - update(dF/dz) for `num_steps` steps.

    Minimises: F_i(z), the energy of each example, over its free activities.
    Fixed point: dF_i/dz_i = 0.
    Rate: linear with `optax.sgd(step_size)`; stable for step_size < 2/lambda_max of the Hessian.
    Cost a step: one evaluation of the energy and its gradient.
    Fails: slowly in deep chains, where the Hessian is ill-conditioned; by divergence above the
    stable step.
    Source: Rao & Ballard (1999); Whittington & Bogacz (2017).

    **Step sizes are per example.** The energy is not averaged over the batch, so a step size means
    the same at every batch size. A rate r that descends the batch mean (as in JPC and the notebook of
    reference) is r/batch_size here; the notebook also leaves out the 1/2 of the energy, so its 0.1 at
    batch 64 is 2 * 0.1 / 64 = 0.003125 here.

    Args:
        optimizer: an optax transformation, applied to each example on its own, so that one that looks
            at a whole tree (`optax.clip_by_global_norm`) still looks at one example. Its state starts
            anew for every batch.
        num_steps: how many steps to take.

    Raises:
        TypeError: where `optimizer` is not an optax transformation.
        ValueError: for a negative number of steps.

    >>> import optax, pcflax as pc
    >>> pc.inference.GradientDescent(optax.sgd(0.1), num_steps=5).num_steps
    5
    """

    optimizer: optax.GradientTransformation
    num_steps: int = 20

    def __post_init__(self):
        if not isinstance(self.optimizer, optax.GradientTransformation):
            raise TypeError(
                f"GradientDescent expected an optax transformation such as optax.sgd(0.1), got "
                f"{self.optimizer!r}"
            )
        if isinstance(self.num_steps, bool) or not isinstance(self.num_steps, int):
            raise TypeError(f"GradientDescent expected an int num_steps, got {self.num_steps!r}")
        if self.num_steps < 0:
            raise ValueError(f"GradientDescent expected num_steps >= 0, got {self.num_steps}")

    def init(self, problem: InferenceProblem) -> PyTree:
        """One optimizer state for each example."""
        return jax.vmap(self.optimizer.init)(problem.start) if problem.start else ()

    def step(
        self, problem: InferenceProblem, coordinates, state, *, step, key: PRNGKey | None
    ) -> tuple[PyTree, PyTree, StepInfo]:
        """One update of every free activity."""
        del step, key  # the optimizer counts for itself; deterministic
        info, gradient = observe(problem, coordinates)
        if not coordinates:
            return coordinates, state, info
        updates, state = jax.vmap(self.optimizer.update)(gradient, state, coordinates)
        return optax.apply_updates(coordinates, updates), state, info
