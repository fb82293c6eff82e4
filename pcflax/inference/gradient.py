"""Gradient inference: every activity descends its example's energy, by any optax transformation."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from pcflax.typing import PRNGKey, PyTree

from .base import AbstractIterativeInference, StepInfo, observe
from .curvature import largest_eigenvalue, power_iteration, random_direction
from .problem import InferenceProblem

# Power iterations before the first step; one more goes along with every step.
_FIRST_ITERATIONS = 10


@dataclasses.dataclass(frozen=True)
class GradientDescent(AbstractIterativeInference):
    """z <- z - update(dF/dz), for `num_steps` steps or until each example's own tolerance.

    Minimises: F_i(z), the energy of each example, over its free activities.
    Fixed point: dF_i/dz_i = 0.
    Rate: linear with `optax.sgd(step_size)`; stable for step_size < 2/lambda_max of the Hessian.
    Cost a step: one evaluation of the energy and its gradient; twice that with `step_size="auto"`.
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
        step_size: "auto" instead of an optimizer: each example descends with 1/lambda_max, its own
            largest curvature, estimated by power iteration on Hessian-vector products: ten iterations
            before the first step, then one with every step.
        num_steps: a fixed count, 20 unless given; or
        tolerance: the residual at which an example stops, and
        max_steps: after how many steps at most; see `AbstractIterativeInference`.

    Raises:
        TypeError: where `optimizer` is not an optax transformation.
        ValueError: for a wrong number of steps, a step size that is not "auto", or both an optimizer
            and a step size.

    >>> import optax, pcflax as pc
    >>> pc.inference.GradientDescent(optax.sgd(0.1), num_steps=5).num_steps
    5
    >>> pc.inference.GradientDescent(step_size="auto", tolerance=1e-4).max_steps
    1000
    """

    optimizer: optax.GradientTransformation | None = None
    step_size: Literal["auto"] | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if self.step_size is None and not isinstance(self.optimizer, optax.GradientTransformation):
            raise TypeError(
                f"GradientDescent expected an optax transformation such as optax.sgd(0.1), or "
                f'step_size="auto", got {self.optimizer!r}'
            )
        if self.step_size not in (None, "auto"):
            raise ValueError(
                f'GradientDescent expected step_size="auto", got {self.step_size!r}; for a step size '
                f"of your own give optax.sgd({self.step_size!r})"
            )
        if self.step_size is not None and self.optimizer is not None:
            raise ValueError(
                'GradientDescent got an optimizer and step_size="auto"; give one of them'
            )

    def init(self, problem: InferenceProblem) -> PyTree:
        """One optimizer state for each example; with "auto", a direction and its curvature."""
        if not problem.start:
            return ()
        if self.optimizer is not None:
            return jax.vmap(self.optimizer.init)(problem.start)
        return largest_eigenvalue(
            problem, problem.start, random_direction(problem), _FIRST_ITERATIONS
        )

    def step(
        self, problem: InferenceProblem, coordinates, state, *, step, key: PRNGKey | None
    ) -> tuple[PyTree, PyTree, StepInfo]:
        """One update of every free activity."""
        del step, key  # the optimizer counts for itself; deterministic
        if not coordinates:
            return coordinates, state, observe(problem, coordinates)[0]
        if self.optimizer is not None:
            info, gradient = observe(problem, coordinates)
            updates, state = jax.vmap(self.optimizer.update)(gradient, state, coordinates)
            return optax.apply_updates(coordinates, updates), state, info
        state, energies, gradient = power_iteration(problem, coordinates, state)
        info = StepInfo(energies, problem.residual(gradient))
        # 1/lambda, half the largest stable step: an estimate from below stays stable
        moved = jax.tree.map(
            lambda z, g: z - (g / _over(state.eigenvalue, g)).astype(z.dtype), coordinates, gradient
        )
        return moved, state, info


def _over(values, leaf):
    positive = jnp.where(values > 0, values, 1.0)
    return positive.reshape(values.shape + (1,) * (leaf.ndim - 1))
