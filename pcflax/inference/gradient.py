"""Gradient inference: every activity descends its example's energy, by any optax transformation."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Float

from pcflax.checks import did_you_mean, expect_number
from pcflax.energies import total_energy
from pcflax.typing import PRNGKey, PyTree

from . import guard as guarding
from .base import AbstractIterativeInference
from .curvature_descent import CurvatureDescent
from .momentum import accelerated, at_rest, stable_curvature
from .problem import InferenceProblem, VectorField
from .solve import StepInfo, expect_energy, observe


@dataclasses.dataclass(frozen=True)
class GradientDescent(AbstractIterativeInference):
    """z <- z - step_size * dF/dz, for `num_steps` steps or until each example's own tolerance.

    Minimizes: F_i(z), the energy of each example, over its free activities.

    Fixed point: dF_i/dz_i = 0.

    Rate: linear; stable for step_size < 2/lambda_max of the Hessian. With `momentum="auto"` and a step of
    1/lambda_max, in the square root of the steps that plain descent takes: about sqrt(condition number).

    Cost a step: one evaluation of the energy and its gradient.

    Fails: slowly in deep chains, where the Hessian is ill-conditioned; by divergence above the
    stable step, unless it is guarded.

    Source: Rao & Ballard (1999); Whittington & Bogacz (2017). Back-off: Song et al. (2024), who shrink one
    rate for the whole batch and keep the place whose energy rose.

    **Step sizes are per example.** The energy is not averaged over the batch, so a step size means
    the same at every batch size. A rate r that descends the batch mean (as in JPC and the reference
    notebook) is r/batch_size here; the notebook also leaves out the 1/2 of the energy, so its 0.1 at
    batch 64 is 2 * 0.1 / 64 = 0.003125 here.

    **Guards hold a step size that was given**, for lambda_max grows while a network trains. "clip"
    scales the steps of an example, all layers alike, so that step_size <= safety * 2/lambda_max, or less
    where a momentum looks ahead, and for step sizes by layer. Power iteration, 4 times at the start and once
    in 5 steps, finds lambda_max from below, so half of what is stable is the most to ask for. With `backoff`
    a step that would raise an example's energy is not made: the example keeps its old place, forgets
    its velocity, and its later steps of this batch are shorter. Its energy never rises, for one more
    evaluation of the energy a step; but where the step size is far too large, all its steps may go into
    making it smaller. A step of learning, 8 or 20 steps of inference long, takes 1.6 to 2 times as long
    with "clip", 1.1 to 1.3 times with `backoff`.

    Args:
        optimizer: a step size; {layer name or pattern: step size}; or any optax transformation, applied
            to each example on its own, so that one that looks at a whole tree
            (`optax.clip_by_global_norm`) still looks at one example. Its state starts anew for every
            batch.
        step_size: the step size, or the step sizes by pattern, by keyword: the first pattern that fits a
            layer's name counts, and "*" fits any. Another number needs no new program. "auto" makes a
            `CurvatureDescent`.
        momentum: of the velocity v <- momentum * v + dF/dz, z <- z - step_size * v; none unless given.
            "auto" is Nesterov's, which grows by the count of steps and begins anew for each example
            whose energy rises or whose gradient points against its velocity (O'Donoghue & Candès,
            2015); see `pcflax/inference/momentum.py`. Give it a step size of 1/lambda_max at most, or
            guard="clip": before it begins anew an energy may rise, and above 2/lambda_max without end.
        nesterov: whether to look ahead along the velocity of a momentum that is a number.
        guard: "clip" holds the steps of each example under its curvature; "warn" leaves them as they are, and
            `infer`, or a Trainer once, when it logs, warns where they are above the largest stable one:
            2/lambda_max, which a momentum changes.
        safety: the part of 2/lambda_max that "clip" allows; 0.5 unless given. Four iterations may find
            lambda_max a tenth too small, so that above 0.9 nothing is certain.
        backoff: a factor below 1 by which an example's steps shrink where its energy would rise; none unless
            given.
        num_steps: a fixed count, 20 unless given; or
        tolerance: the residual at which an example stops, and
        max_steps: after how many steps at most; see `AbstractIterativeInference`.

    Raises:
        TypeError: where `optimizer` is neither a number nor an optax transformation; on use, for a guard or
            a backoff where the vector field is the gradient of no energy.
        ValueError: for a wrong number of steps, a step size that is not positive, a momentum outside of
            [0, 1), a safety or backoff outside of (0, 1), both an optimizer and a step size, an optimizer and
            a guard, or momentum="auto" and a backoff; on use, for a pattern that fits no layer, a
            layer that no pattern fits, a guard of a network with feedback weights, or momentum="auto" where
            there is no energy.

    >>> import optax, pcflax as pc
    >>> pc.inference.GradientDescent(0.1, num_steps=5).step_size
    0.1
    >>> pc.inference.GradientDescent({"hidden*": 0.1, "*": 0.02}, momentum=0.9).momentum
    0.9
    >>> pc.inference.GradientDescent(optax.sgd(0.1), tolerance=1e-4).max_steps
    1000
    >>> pc.inference.GradientDescent(0.1, guard="clip", backoff=0.5).backoff
    0.5
    """

    optimizer: Any = None
    step_size: Any = dataclasses.field(default=None, kw_only=True)
    momentum: float | str | None = dataclasses.field(default=None, kw_only=True)
    nesterov: bool = dataclasses.field(default=False, kw_only=True)
    guard: Literal["clip", "warn"] | None = dataclasses.field(default=None, kw_only=True)
    safety: float = dataclasses.field(default=0.5, kw_only=True)
    backoff: float | None = dataclasses.field(default=None, kw_only=True)

    def __new__(cls, optimizer: Any = None, *, step_size: Any = None, **others: Any) -> Any:
        """Make a `CurvatureDescent` where the step size is "auto"."""
        if not (isinstance(step_size, str) and step_size == "auto"):
            return super().__new__(cls)
        if optimizer is not None:
            raise ValueError(
                'GradientDescent got an optimizer and step_size="auto"; give one of them'
            )
        return CurvatureDescent(**others)

    def __post_init__(self):
        super().__post_init__()
        optimizer, step_size = self.optimizer, self.step_size
        self._check_guard()
        if isinstance(optimizer, optax.GradientTransformation):
            given = [name for name in ("step_size", "momentum") if getattr(self, name) is not None]
            if given or self.nesterov:
                raise ValueError(
                    f"GradientDescent got an optimizer and {(given or ['nesterov'])[0]}; give one of "
                    f"them"
                )
            return
        if optimizer is not None and step_size is not None:
            raise ValueError("GradientDescent got two step sizes; give one of them")
        step_size = optimizer if step_size is None else step_size
        if isinstance(step_size, Mapping):
            step_size = {
                name: expect_number(self, f"step_size of '{name}'", value, above=0)
                for name, value in step_size.items()
            }
        else:
            step_size = self._expect_step_size(step_size)
        object.__setattr__(self, "optimizer", None)
        object.__setattr__(self, "step_size", step_size)
        if self._auto:
            if self.momentum != "auto":
                raise ValueError(
                    f'GradientDescent expected a momentum such as 0.9, or "auto", got {self.momentum!r}'
                )
            if self.nesterov:
                raise ValueError(
                    'GradientDescent got nesterov and momentum="auto", which looks ahead itself; leave '
                    "nesterov out"
                )
        elif self.momentum is not None:
            momentum = expect_number(self, "momentum", self.momentum, least=0)
            if not isinstance(momentum, Tracer) and momentum >= 1:
                raise ValueError(f"GradientDescent expected a momentum below 1, got {momentum}")
            object.__setattr__(self, "momentum", momentum)

    def _check_guard(self) -> None:
        if self.guard not in (None, "clip", "warn"):
            raise ValueError(
                f'GradientDescent expected a guard "clip" or "warn", or None, got {self.guard!r}'
            )
        for field in ("safety", "backoff"):
            if getattr(self, field) is not None:
                part = expect_number(self, field, getattr(self, field), above=0)
                if not isinstance(part, Tracer) and part >= 1:
                    raise ValueError(f"GradientDescent expected a {field} below 1, got {part}")
                object.__setattr__(self, field, part)
        held = "guard" if self.guard is not None else "backoff"
        optax_given = isinstance(self.optimizer, optax.GradientTransformation)
        if optax_given and getattr(self, held) is not None:
            raise ValueError(
                f"GradientDescent got a {held} and an optax transformation, which has no step size to "
                f"hold; give a number such as GradientDescent(0.1, {held}={getattr(self, held)!r})"
            )
        if self._auto and self.backoff is not None:
            raise ValueError(
                'GradientDescent got a backoff and momentum="auto", which goes back by itself where an '
                "energy has risen; give one of them"
            )

    @property
    def _auto(self) -> bool:
        return isinstance(self.momentum, str)

    def _expect_step_size(self, step_size: Any) -> Any:
        try:
            return expect_number(self, "step_size", step_size, above=0)
        except TypeError:
            raise TypeError(
                f"GradientDescent expected a step size such as 0.1, an optax transformation such as "
                f'optax.sgd(0.1), or step_size="auto", got {step_size!r}'
            ) from None

    def transformation(
        self, coordinates: Any, names: tuple[str, ...]
    ) -> optax.GradientTransformationExtraArgs:
        """Return the optax transformation of these coordinates, in a network of layers of these names.

        Raises:
            ValueError: for a pattern that fits no layer, and a layer that no pattern fits.
        """
        if self.optimizer is not None:
            return optax.with_extra_args_support(self.optimizer)
        rates = self.step_size
        momentum: Any = None if self._auto else self.momentum  # `step` adds that one
        if not isinstance(rates, Mapping):
            return optax.sgd(rates, momentum, self.nesterov)
        by_name = self.rates(coordinates)
        for pattern in rates:
            if not fnmatch.filter(names, pattern):
                raise ValueError(
                    f"GradientDescent has a step size for '{pattern}', which fits none of the layers "
                    f"{', '.join(names)}{did_you_mean(pattern, names)}"
                )

        def scaled(updates: Any, _: Any) -> Any:
            return {name: -by_name[name] * update for name, update in updates.items()}

        scale = optax.stateless(scaled)
        if momentum is None:
            return optax.with_extra_args_support(scale)
        return optax.with_extra_args_support(
            optax.chain(optax.trace(momentum, self.nesterov), scale)
        )

    def rates(self, coordinates: Any) -> dict[str, Any]:
        """Return the step size of each layer with coordinates; of numbers alone, not of a transformation.

        Raises:
            ValueError: for a layer that no pattern fits.
        """
        one = not isinstance(self.step_size, Mapping)
        return {name: self.step_size if one else self._rate(name) for name in coordinates}

    def _rate(self, name: str) -> Any:
        for pattern, rate in self.step_size.items():
            if fnmatch.fnmatchcase(name, pattern):
                return rate
        raise ValueError(
            f"GradientDescent has no step size for layer '{name}'; name it, or give one for '*'"
        )

    def gradient_steps(self, problem: InferenceProblem) -> int:
        """Return the number of steps: each is one along the gradient."""
        return self.stop.most_steps

    def rests(self) -> bool:
        """Return whether the optimizer, too, leaves what has no gradient; no where it cannot be asked."""
        if not super().rests():
            return False
        if self.optimizer is None:
            return True
        optimizer = optax.with_extra_args_support(self.optimizer)
        # NumPy's arrays, which a mere rate multiplies without a program
        one, none = ({"x": np.full(1, number, np.float32)} for number in (1, 0))
        try:
            with jax.ensure_compile_time_eval(), jax.numpy_dtype_promotion("standard"):
                state = optimizer.init(one)
                update: Any = optimizer.update(none, state, one, value=np.float32(0))[0]
                return bool(update["x"][0] == 0)
        except Exception:  # an optimizer of one's own may want other coordinates
            return False

    @property
    def stable_curvature(self) -> Any:
        """The step size times lambda_max below which descent is stable."""
        if self._auto:
            return stable_curvature(1.0, nesterov=True)  # which it comes to
        momentum = 0.0 if self.momentum is None else self.momentum
        return stable_curvature(momentum, nesterov=self.nesterov)

    @property
    def compares_energies(self) -> bool:
        """Whether the momentum is "auto", which begins anew where an energy has risen."""
        return self._auto

    @property
    def _holds(self) -> bool:
        """Whether steps are held back; a warning holds none."""
        return self.guard == "clip" or self.backoff is not None

    @property
    def warns_of_steps(self) -> bool:
        """Whether it is to be told where a step size is above the largest stable one."""
        return self.guard == "warn"

    def overstep(self, problem: InferenceProblem) -> Float[Array, " batch"] | None:
        """Return each example's step size over the largest stable one at the start, where it warns."""
        return guarding.overstep(self, problem) if self.warns_of_steps else None

    def resting(self, problem: VectorField, coordinates: PyTree) -> PyTree:
        """Return the transformation's state of each example before its first step."""
        return jax.vmap(self.transformation(coordinates, _nodes(problem)).init)(coordinates)

    def init(self, problem: VectorField) -> PyTree:
        """Return one optimizer state for each example, with what a guard or momentum="auto" keeps."""
        if self.guard is not None or self.backoff is not None:
            guarding.expect_energy_and_curvature(problem)
        if not problem.start:
            return ()
        state = self.resting(problem, problem.start)
        if self._holds:
            state = guarding.begin(self, problem, state)
        if not self._auto:
            return state
        expect_energy(self, problem).network.bind().check_no_feedback('momentum="auto" needs one')
        return state, at_rest(problem)

    def step(
        self, problem: VectorField, coordinates, state, *, step, key: PRNGKey | None
    ) -> tuple[PyTree, PyTree, StepInfo]:
        """Update every free activity once."""
        del key  # deterministic
        if not coordinates:
            return coordinates, state, observe(problem, coordinates)[0]
        state, momentum = state if self._auto else (state, None)
        if self._holds:
            moved, state, info, field = guarding.step(self, problem, coordinates, state, step)
        else:
            info, field = observe(problem, coordinates)
            energy = total_energy(info.energies)
            moved, state = self.moved(problem, coordinates, state, field, energy)
        if momentum is None:
            return moved, state, info
        energy, last = total_energy(info.energies), self.is_last(step)
        moved, momentum = accelerated(momentum, moved, field, energy, last=last)
        return moved, (state, momentum), info

    def moved(
        self, problem: VectorField, coordinates, state, field, energy, part=None
    ) -> tuple[PyTree, PyTree]:
        """Return where the transformation goes from here, or each example a part (batch,) of the way."""
        update = self.transformation(coordinates, _nodes(problem)).update

        def move(field, state, coordinates, energy, part):  # of one example
            with jax.numpy_dtype_promotion("standard"):  # optax counts in integers
                updates, new = update(field, state, coordinates, value=energy)
                if part is not None:
                    updates = jax.tree.map(lambda u: (part * u).astype(u.dtype), updates)
                moved = optax.apply_updates(coordinates, updates)
            return moved, jax.tree.map(_as_before, new, state)

        return jax.vmap(move)(field, state, coordinates, energy, part)


def _as_before(new: Any, old: Any) -> Any:
    """Return the new state in the dtype of the old: a momentum that is mapped over has 32 bits of its own."""
    return new if new.dtype == old.dtype else new.astype(old.dtype)


def _nodes(problem: VectorField) -> tuple[str, ...]:
    """Return the names of the layers with an activity."""
    return tuple(dict.fromkeys((*problem.start, *problem.clamps)))
