"""Gradient flow: inference as a differential equation, dz/dt = -dF/dz, solved by diffrax."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from pcflax.checks import expect_count, expect_number
from pcflax.typing import PRNGKey, PyTree

from .base import AbstractInference
from .problem import VectorField
from .result import InferenceResult, Seen
from .solve import at_equilibrium, choose, finish_at_start, finished, keep_step, observe, way_of

if TYPE_CHECKING:
    import diffrax


@dataclasses.dataclass(frozen=True)
class GradientFlow(AbstractInference):
    """Integrate dz/dt = -dF/dz until each example's vector field is at rest.

    Minimizes: F_i(z), along the path of continuous gradient descent.

    Fixed point: dF_i/dz_i = 0.

    Rate: exponential in time, exp(-lambda_min t); an adaptive controller grows its steps to the limit
    of stability, as `CurvatureDescent` does.

    Cost a step: as many gradients as the solver has stages, and one for the stop.

    Fails: slowly on stiff (deep) networks with an explicit solver.

    Source: Innocenti et al. (2024), arXiv 2412.03676, which integrates the whole batch as one system.

    The steps counted, traced and recorded are those that the controller accepted; `max_steps` bounds all that
    it tried.

    Each example is a system of its own here, with its own steps and its own stop, which looks at the
    vector field dF/dz and not at z: a test on z never fires. Layers therefore see one example at a
    time: statistics over the batch, or a mask drawn for it, are not what they are elsewhere.

    Args:
        solver: any diffrax solver of ordinary differential equations; `diffrax.Tsit5()` unless given.
        controller: any diffrax step-size controller; `diffrax.PIDController(rtol=tolerance / 10,
            atol=tolerance / 100)` unless given: a looser one keeps the state jittering above the
            tolerance, at the edge of stability. With `diffrax.ConstantStepSize()`, `first_step` is the
            step.
        first_step: the first step in time; chosen by the controller unless given.
        tolerance: the residual (root mean square of dF/dz) at which an example stops.
        max_time: the time at which it stops at the latest.
        max_steps: the number of steps after which it stops at the latest.

    Raises:
        TypeError: where solver or controller are not diffrax's.
        ValueError: for a tolerance, time or number of steps that is not positive.

    >>> import diffrax, pcflax as pc
    >>> pc.inference.GradientFlow(diffrax.Heun(), tolerance=1e-4).max_steps
    1000
    """

    solver: diffrax.AbstractSolver | None = None
    controller: diffrax.AbstractStepSizeController | None = None
    first_step: float | None = dataclasses.field(default=None, kw_only=True)
    tolerance: float = dataclasses.field(default=1e-4, kw_only=True)
    max_time: float = dataclasses.field(default=1000.0, kw_only=True)
    max_steps: int = dataclasses.field(default=1000, kw_only=True)

    def __post_init__(self):
        import diffrax  # a second of import time that few runs need

        if self.solver is None:
            object.__setattr__(self, "solver", diffrax.Tsit5())
        for field in ("tolerance", "max_time", "first_step"):
            value = getattr(self, field)
            if value is not None or field != "first_step":
                object.__setattr__(self, field, expect_number(self, field, value, above=0))
        object.__setattr__(self, "max_steps", expect_count(self, "max_steps", self.max_steps, 1))
        if self.controller is None:
            controller = diffrax.PIDController(rtol=self.tolerance / 10, atol=self.tolerance / 100)
            object.__setattr__(self, "controller", controller)
        for field, kind, example in (
            ("solver", diffrax.AbstractSolver, "diffrax.Tsit5()"),
            (
                "controller",
                diffrax.AbstractStepSizeController,
                "diffrax.PIDController(rtol=1e-3, atol=1e-4)",
            ),
        ):
            if not isinstance(getattr(self, field), kind):
                raise TypeError(
                    f"GradientFlow expected a {field} such as {example}, got "
                    f"{getattr(self, field)!r}"
                )

    def solve(
        self,
        problem: VectorField,
        *,
        key: PRNGKey | None = None,
        trace: bool = False,
        record: Callable[[Seen], PyTree] | None = None,
    ) -> InferenceResult:
        """Integrate each example's own system."""
        del key  # deterministic
        if not problem.start:
            return finish_at_start(problem, trace, record)

        looks = (trace, record is not None)

        def integrate(start):
            begun = dataclasses.replace(problem, start=start)
            ended, *found = begun.for_each_example(lambda one: self._integrate(one, *looks))
            return ended, found

        coordinates, (num_steps, way) = at_equilibrium(problem, integrate)
        last = observe(problem, coordinates)[0]
        # (batch, steps, ...) to (steps, batch, ...); rows after an example's last step are its end
        rows = jnp.arange(self.max_steps + 1, dtype=num_steps.dtype)[:, None] < num_steps[None]
        ends = (last if trace else None), (None if record is None else coordinates)
        infos, places = jax.tree.map(
            lambda steps, end: choose(rows, jnp.swapaxes(steps, 0, 1), end[None]), way, ends
        )

        def recorded(place):
            return keep_step(problem, place, observe(problem, place)[0], False, record)[1]

        # a record sees the whole batch, and so comes after each example was solved alone
        records = None if record is None else jax.lax.map(recorded, places)
        way = way_of((infos, records))
        return finished(problem, coordinates, num_steps, last, *way, tolerance=self.tolerance)

    def _integrate(
        self, problem: VectorField, trace: bool, record: bool
    ) -> tuple[Any, Any, tuple[Any, Any]]:
        """Return where one example ended, in how many steps, and what it saw and where it was at each."""
        import diffrax

        def field(time, coordinates, args):
            del time, args  # autonomous
            return jax.tree.map(jnp.negative, problem.field(coordinates)[1])

        def at_rest(time, coordinates, args, **others):
            del time, args, others
            return problem.residual(problem.field(coordinates)[1])[0] <= self.tolerance

        def seen(time, coordinates, args) -> tuple[Any, Any]:
            del time, args
            info = observe(problem, coordinates)[0] if trace else None
            return info, (coordinates if record else None)

        saves = [diffrax.SubSaveAt(t1=True)]
        if trace or record:
            saves.append(diffrax.SubSaveAt(t0=True, steps=True, fn=seen))
        with jax.numpy_dtype_promotion("standard"):  # diffrax steps 16 bits in 32
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(field),
                self.solver,  # type: ignore[arg-type]
                t0=0.0,
                t1=self.max_time,
                dt0=self.first_step,
                y0=problem.start,
                stepsize_controller=self.controller,  # type: ignore[arg-type]
                saveat=diffrax.SaveAt(subs=saves),
                event=diffrax.Event(at_rest),
                max_steps=self.max_steps,
                adjoint=diffrax.ForwardMode(),  # keeps nothing for a backward pass
                throw=False,
            )
        ended, *seen_by_step = solution.ys  # type: ignore[misc]
        infos, places = seen_by_step[0] if seen_by_step else (None, None)
        infos = jax.tree.map(lambda leaf: leaf[:, 0][None], infos)
        if record:
            places = jax.tree.map(
                lambda leaf, start: leaf[:, 0][None].astype(start.dtype), places, problem.start
            )
        coordinates = jax.tree.map(
            lambda leaf, start: leaf[0].astype(start.dtype), ended, problem.start
        )
        num_steps = jnp.asarray(solution.stats["num_accepted_steps"], jnp.int32)[None]
        return coordinates, num_steps, (infos, places)
