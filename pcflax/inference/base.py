"""The two contracts of an inference algorithm, and the loop that iterative ones share.

`AbstractInference.solve` turns a problem into a result. An iterative algorithm implements `init` and
`step` instead and gets the scan, the adaptive stop, the trace and the result from
`AbstractIterativeInference`. Algorithms are frozen dataclasses: hashable, so that a compiled program
can be found again by its algorithm. `langevin.py` and `gradient.py` are the shortest examples.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pcflax.networks import AbstractPCNetwork, Clamp, SplitNetwork, split
from pcflax.networks.base import Initializer
from pcflax.networks.clamps import as_clamp
from pcflax.typing import Energies, PRNGKey, PyTree

from .problem import InferenceProblem, make_problem
from .result import InferenceResult, Trace

# What an algorithm takes where it is told nothing.
_NUM_STEPS, _MAX_STEPS = 20, 1000


class StepInfo(NamedTuple):
    """What one step saw before it moved; costs nothing where nobody looks at it.

    Attributes:
        energies: {layer name: (batch,)} at the coordinates the step started from.
        residual: (batch,), root mean square of the gradient there, dF/dz.
    """

    energies: Energies
    residual: Float[Array, " batch"]


class AbstractInference(abc.ABC):
    """An algorithm that minimises (or samples) the energy over free coordinates."""

    def check(self, network: AbstractPCNetwork) -> None:
        """Refuse a network that the algorithm cannot take; any will do unless a subclass says otherwise.

        Raises:
            ValueError: naming the layer.
        """
        inner = getattr(self, "inference", None)
        if inner is not None:
            inner.check(network)

    @abc.abstractmethod
    def solve(
        self, problem: InferenceProblem, *, key: PRNGKey | None = None, trace: bool = False
    ) -> InferenceResult:
        """Solve the problem for every example on its own; a pure function, called inside jit."""

    def run(
        self,
        network: AbstractPCNetwork,
        inputs: Array | None = None,
        targets: Array | None = None,
        *,
        clamps: Mapping[str, Clamp | Array] | None = None,
        initializer: Initializer | None = None,
        key: PRNGKey | None = None,
        trace: bool = False,
    ) -> InferenceResult:
        """Solve for a network object in one compiled call and store the activities in its layers.

        This is what `network.infer(..., inference=self)` calls.
        """
        self.check(network)
        network.check_batch(inputs, targets, clamps)
        network.clamps(None, None, clamps)  # refuses, outside of compiled code
        result = _run(
            split(network),
            inputs,
            targets,
            {name: as_clamp(name, value) for name, value in (clamps or {}).items()},
            key,
            inference=self,
            initializer=initializer,
            trace=trace,
        )
        # jit hands dictionaries back in the order of their keys; ours are in the network's.
        result = _in_order(result, network.names)
        # The caller keeps the result and the network its activities: two buffers, so that neither
        # loses them when the other is donated to a compiled call.
        network.set_activities(jax.tree.map(jnp.copy, result.activities))
        return result


@dataclasses.dataclass(frozen=True)
class AbstractIterativeInference(AbstractInference):
    """An algorithm made of equal steps, run under `jax.lax.scan`.

    Without a tolerance every example takes `num_steps` steps. With one, each example stops on its own,
    where the root mean square of its gradient dF/dz (the vector field, not z) is at most the
    tolerance: it moves no more and reports how many steps it took, and the loop ends with the last
    example or after `max_steps`.

    Attributes:
        num_steps: how many steps to take, the same for every example; 20 unless given.
        tolerance: the residual at which an example stops; None for a fixed number of steps.
        max_steps: how many steps to take at most where there is a tolerance; 1000 unless given.

    Raises:
        TypeError: for numbers of steps that are not int.
        ValueError: for a negative number of steps, a tolerance that is not positive, or a fixed and an
            adaptive count at once.
    """

    num_steps: int | None = dataclasses.field(default=None, kw_only=True)
    tolerance: float | None = dataclasses.field(default=None, kw_only=True)
    max_steps: int | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self):
        name = type(self).__name__
        for field in ("num_steps", "max_steps"):
            value = getattr(self, field)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} expected an int {field}, got {value!r}")
            if value < 0:
                raise ValueError(f"{name} expected {field} >= 0, got {value}")
        if self.tolerance is None:
            if self.max_steps is not None:
                raise ValueError(
                    f"{name} got max_steps={self.max_steps} without a tolerance; give num_steps for a "
                    f"fixed count, or tolerance and max_steps to stop where converged"
                )
            if self.num_steps is None:
                object.__setattr__(self, "num_steps", _NUM_STEPS)
            return
        check_positive(self, "tolerance", self.tolerance)
        if self.num_steps is not None:
            raise ValueError(
                f"{name} got num_steps={self.num_steps} and a tolerance; give num_steps for a fixed "
                f"count, or tolerance and max_steps to stop where converged"
            )
        if self.max_steps is None:
            object.__setattr__(self, "max_steps", _MAX_STEPS)

    @abc.abstractmethod
    def init(self, problem: InferenceProblem) -> PyTree:
        """The algorithm's own state before the first step; every leaf has the batch as first axis."""

    @abc.abstractmethod
    def step(
        self,
        problem: InferenceProblem,
        coordinates: PyTree,
        state: PyTree,
        *,
        step: Int[Array, ""],
        key: PRNGKey | None,
    ) -> tuple[PyTree, PyTree, StepInfo]:
        """One step: new coordinates, new state, and what was seen before moving."""

    def solve(
        self, problem: InferenceProblem, *, key: PRNGKey | None = None, trace: bool = False
    ) -> InferenceResult:
        """Step from the start until the count, or each example's tolerance, is reached."""
        tolerance, adaptive = self.tolerance, self.tolerance is not None

        def advance(problem: InferenceProblem, carry: _Carry, step) -> tuple[_Carry, StepInfo]:
            step_key = None if key is None else jax.random.fold_in(key, step)
            coordinates, state, info = self.step(
                problem, carry.coordinates, carry.state, step=step, key=step_key
            )
            if tolerance is None or carry.active is None:
                return _Carry(coordinates, state, None, carry.taken + 1), info
            # not "<=": an example whose residual is not a number goes on, and is told of at the end
            active = carry.active & ~(info.residual <= tolerance)
            coordinates, state = jax.tree.map(
                lambda new, old: jnp.where(_over(active, new), new, old),
                (coordinates, state),
                (carry.coordinates, carry.state),
            )
            return _Carry(coordinates, state, active, carry.taken + active), info

        batch = (problem.batch_size,)
        # A fixed count is one number for all examples; only the result spreads it over them.
        carry = _Carry(
            problem.start,
            self.init(problem),
            jnp.ones(batch, jnp.bool_) if adaptive else None,
            jnp.zeros(batch, jnp.int32) if adaptive else jnp.int32(0),
        )
        infos = None
        if adaptive and not trace:
            carry = self._until_stopped(problem, carry, advance)
        else:
            length = self.max_steps if adaptive else self.num_steps

            def body(carry, step):
                carry, info = advance(problem, carry, step)
                return carry, (info if trace else None)

            carry, infos = jax.lax.scan(body, carry, jnp.arange(length))
        last = observe(problem, carry.coordinates)[0]
        recorded = None
        if infos is not None:
            full = jax.tree.map(lambda steps, end: jnp.append(steps, end[None], 0), infos, last)
            recorded = Trace(full.energies, full.residual)
        return finished(problem, carry.coordinates, carry.taken, last, recorded)

    def _until_stopped(self, problem: InferenceProblem, carry: _Carry, advance: Any) -> _Carry:
        """Step until every example has stopped; once few are left, only those are computed."""

        def loop(problem, carry, step, left):
            """Steps until at most `left` examples go on."""
            return jax.lax.while_loop(
                lambda now: (now[1] < self.max_steps) & (jnp.sum(now[0].active) > left),
                lambda now: (advance(problem, *now)[0], now[1] + 1),
                (carry, step),
            )

        # the whole batch, then the last quarter of it, then the last sixteenth
        parts = [problem.batch_size // part for part in (4, 16)] if problem.separable else []
        sizes = [size for size in parts if size > 0]
        carry, step = loop(problem, carry, jnp.int32(0), sizes[0] if sizes else 0)
        for size, left in itertools.pairwise([*sizes, 0]):
            going = jnp.argsort(~carry.active, stable=True)[:size]  # type: ignore[operator]
            some = _rows(carry, going)
            some, step = loop(problem.take(going), some, step, left)
            carry = _with_rows(carry, going, some)
        return carry


class _Carry(NamedTuple):
    coordinates: PyTree
    state: PyTree
    active: Bool[Array, " batch"] | None
    taken: Int[Array, " *batch"]


def _rows(carry: _Carry, rows: Array) -> _Carry:
    return jax.tree.map(lambda leaf: leaf[rows], carry)


def _with_rows(carry: _Carry, rows: Array, some: _Carry) -> _Carry:
    return jax.tree.map(lambda leaf, part: leaf.at[rows].set(part), carry, some)


def observe(problem: InferenceProblem, coordinates: PyTree) -> tuple[StepInfo, PyTree]:
    """Energies and residual at these coordinates, and the gradient they come with."""
    energies, gradient = problem.energy_and_gradient(coordinates)
    return StepInfo(energies, problem.residual(gradient)), gradient


def finished(
    problem: InferenceProblem,
    coordinates: PyTree,
    num_steps: Any,
    last: StepInfo | None = None,
    trace: Trace | None = None,
) -> InferenceResult:
    """The result of a solve that ended at these coordinates, with all names in the network's order."""
    last = observe(problem, coordinates)[0] if last is None else last
    result = InferenceResult(
        activities=problem.decode(coordinates),
        energies=last.energies,
        residual=last.residual,
        num_steps=jnp.broadcast_to(jnp.asarray(num_steps, jnp.int32), last.residual.shape),
        trace=trace,
    )
    return _in_order(result, problem.network.bind().names)


def nothing_to_do(problem: InferenceProblem, trace: bool) -> InferenceResult:
    """The result where no activity is free: no step, and a trace of the one place there is."""
    last = observe(problem, problem.start)[0]
    place = jax.tree.map(lambda leaf: leaf[None], last)
    recorded = Trace(place.energies, place.residual) if trace else None
    return finished(problem, problem.start, 0, last, recorded)


def _in_order(result: InferenceResult, names: tuple[str, ...]) -> InferenceResult:
    def ordered(mapping):
        return {name: mapping[name] for name in names}

    trace, samples = result.trace, result.samples
    return result._replace(
        activities=ordered(result.activities),
        energies=ordered(result.energies),
        trace=None if trace is None else trace._replace(energies=ordered(trace.energies)),
        samples=None if samples is None else ordered(samples),
    )


def _over(flags: Bool[Array, " batch"], leaf: Array) -> Array:
    """One flag an example, shaped to select rows of this leaf."""
    return flags.reshape(flags.shape + (1,) * (leaf.ndim - 1))


def check_positive(owner: object, name: str, value: object, least: float | None = None) -> None:
    """Refuse what is not a finite number above 0 (or at least `least`).

    Raises:
        TypeError: for what is no Python number.
        ValueError: for one that is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{type(owner).__name__} expected {name} to be a number, got {value!r}")
    if not (value > 0 if least is None else value >= least) or math.isinf(value):
        bound = "above 0" if least is None else f"of at least {least:g}"
        raise ValueError(f"{type(owner).__name__} expected a {name} {bound}, got {value}")


def check_count(owner: object, name: str, value: object, least: int) -> None:
    """Refuse what is not a whole number of at least `least`.

    Raises:
        TypeError: for what is no int.
        ValueError: for one that is too small.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{type(owner).__name__} expected an int {name}, got {value!r}")
    if value < least:
        raise ValueError(f"{type(owner).__name__} expected {name} of at least {least}, got {value}")


def check_algorithm(owner: object, inference: object, kind: type = AbstractInference) -> None:
    """Refuse what is not an inference algorithm (of this kind).

    Raises:
        TypeError: naming the owner and what it got.
    """
    if not isinstance(inference, kind):
        article = "an inference" if kind is AbstractInference else "an iterative inference"
        got = type(inference).__name__ if isinstance(inference, AbstractInference) else inference
        name = getattr(owner, "__name__", type(owner).__name__)
        raise TypeError(
            f"{name} expected {article} algorithm such as "
            f"pc.inference.GradientDescent(optax.sgd(0.1), num_steps=20), got {got!r}"
        )


@functools.partial(jax.jit, static_argnames=("inference", "initializer", "trace"))
def _run(network: SplitNetwork, inputs, targets, clamps, key, *, inference, initializer, trace):
    start_key, solve_key = (None, None) if key is None else jax.random.split(key)
    problem = make_problem(
        network, inputs, targets, clamps=clamps, initializer=initializer, key=start_key
    )
    return inference.solve(problem, key=solve_key, trace=trace)
