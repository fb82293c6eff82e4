"""The two contracts of an inference algorithm.

`AbstractInference.solve` turns a problem into a result. An iterative algorithm implements `init` and
`step` instead and gets the loop, the adaptive stop, traces and results of `solve.py`. Algorithms are
frozen dataclasses and pytrees whose numbers are leaves: equal settings share one compiled program, and
another step size needs no other. `curvature_descent.py` is the shortest example.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax.errors import TraceContextError
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from pcflax.checks import expect_count, expect_key, expect_number, shown
from pcflax.layers import Evidence
from pcflax.networks import AbstractPCNetwork, SplitNetwork, split
from pcflax.networks.given import not_finite
from pcflax.settings import Argument, Settings
from pcflax.sharding.inside import readable
from pcflax.typing import Activities, Initializer, PRNGKey, PyTree

from .problem import InferenceProblem, VectorField, make_problem
from .reach import later_than
from .result import InferenceResult, Seen, concatenated, warn_of_steps
from .solve import FixedSteps, StepInfo, UntilTolerance, iterate


class AbstractInference(Settings, abc.ABC):
    """An algorithm that minimizes (or samples) the energy over free coordinates.

    Attributes:
        finds_equilibrium: whether it ends at the equilibrium without a tolerance, with the derivatives there.
    """

    finds_equilibrium = False

    @property
    def parts(self) -> tuple[AbstractInference, ...]:
        """The algorithms that it runs, in order: none, unless it is made of others."""
        return ()

    def check(self, network: AbstractPCNetwork) -> None:
        """Refuse a network that the algorithm cannot take; any will do unless a subclass says otherwise.

        Raises:
            ValueError: naming the layer.
        """
        for part in self.parts:
            part.check(network)

    @property
    def stops_at_tolerance(self) -> bool:
        """Whether an example ends where it converged: whether the last part stops so."""
        if self.parts:
            return self.parts[-1].stops_at_tolerance
        return getattr(self, "tolerance", None) is not None

    @property
    def warns_of_steps(self) -> bool:
        """Whether it is to be told where a step size is above the largest stable one."""
        return any(part.warns_of_steps for part in self.parts)

    def overstep(self, problem: InferenceProblem) -> Float[Array, " batch"] | None:
        """Return each example's step size over the largest stable one at the start, where it warns."""
        warning = (part.overstep(problem) for part in self.parts if part.warns_of_steps)
        return next(warning, None)

    def untouched(self, problem: InferenceProblem) -> tuple[str, ...]:
        """Return the nodes whose error is known to be 0 at the end, as it is at the feedforward pass."""
        steps = self.gradient_steps(problem)
        late = () if steps is None else later_than(steps, problem)
        return late if late and self.rests() else ()  # asked last: an optimizer's answer compiles

    def gradient_steps(self, problem: InferenceProblem) -> int | None:
        """Return after how many steps along the gradient errors have got at least as far; None: not known."""
        del problem
        return None

    def rests(self) -> bool:
        """Return whether activities without a gradient stay; nobody knows it of a subclass with own steps."""
        kind = type(self)
        return kind.__module__.split(".")[0] == "pcflax" or "gradient_steps" in vars(kind)

    @abc.abstractmethod
    def solve(
        self, problem: InferenceProblem, *, key: PRNGKey | None = None, trace: bool = False
    ) -> InferenceResult:
        """Solve the problem for every example on its own; a pure function, called inside jit.

        One that can keep more than a trace takes `record=`, too.
        """

    def run(
        self,
        network: AbstractPCNetwork,
        evidence: Evidence,
        *,
        initializer: Initializer | Mapping[str, Array] | None = None,
        key: PRNGKey | None = None,
        trace: bool = False,
        record: Callable[[Seen], PyTree] | None = None,
        throw: bool = False,
    ) -> InferenceResult:
        """Solve for a network object in one compiled call and store the activities in its layers.

        This is what `network.infer(..., inference=self)` calls.

        Raises:
            TypeError: for a key or a record that is none; else as `network.infer`.
        """
        expect_key("infer", key)
        if record is not None and not callable(record):
            raise TypeError(
                f"infer expected record such as lambda seen: seen.activities, got {shown(record)}"
            )
        solve = self._run_all if hasattr(evidence, "batches") else self._run_one
        result, activities = solve(network, evidence, initializer, key, trace, record)
        if not isinstance(result.status, Tracer):
            result.raise_failures(throw=throw, look=lambda: _not_finite(evidence))
        # A function that is traced may not change a network from outside.
        with contextlib.suppress(TraceContextError):
            network.set_activities(activities)
        return result

    def _run_one(
        self, network, evidence, initializer, key, trace, record
    ) -> tuple[InferenceResult, Activities]:
        """Solve for one batch, and return what the network keeps, too."""
        if record is not None:
            _expect_to_record(self)
        self.check(network)
        known, pure = network.known(evidence), split(network)
        start, keep = Argument(initializer), Argument(record)
        with pure.on_mesh():
            result = _run(pure, known, self, start, key, keep, trace=trace)
            if self.warns_of_steps and not isinstance(result.status, Tracer):
                warn_of_steps(_overstep(pure, known, self, start, key), stacklevel=5)
        result = result.in_order(network.names, network.layer_names)
        return result, result.activities

    def _run_all(
        self, network, data, initializer, key, trace, record
    ) -> tuple[InferenceResult, Activities]:
        """Solve for every example of a data set, batch by batch; the network keeps the last one's."""
        if record is not None or isinstance(initializer, Mapping):
            what = "record" if record is not None else "an initializer of given activities"
            raise ValueError(f"{what} is of one batch; write `for batch in data.batches()`")
        found = []
        for number, batch in enumerate(data.batches()):
            own = None if key is None else jax.random.fold_in(key, number)
            result, _ = self._run_one(network, batch, initializer, own, trace, None)
            found.append(jax.device_get(result))
        joined = concatenated(found).in_order(network.names, network.layer_names)
        return joined, found[-1].activities


@dataclasses.dataclass(frozen=True)
class AbstractIterativeInference(AbstractInference):
    """An algorithm made of equal steps, run under `jax.lax.scan`.

    Without a tolerance every example takes `num_steps` steps. With one, each example stops on its own,
    where the root mean square of its gradient dF/dz (the vector field, not z) is at most the
    tolerance: it moves no more and reports how many steps it took, and the loop ends with the last
    example or after `max_steps`. The derivative of such a result is that of the equilibrium.

    Attributes:
        num_steps: how many steps to take, the same for every example; 20 unless given.
        tolerance: the residual at which an example stops; None for a fixed number of steps.
        max_steps: how many steps to take at most where there is a tolerance; 1000 unless given.

    Raises:
        TypeError: for numbers of steps that are not whole.
        ValueError: for a negative number of steps, a tolerance that is not positive, or a fixed and an
            adaptive count at once.
    """

    num_steps: int | None = dataclasses.field(default=None, kw_only=True)
    tolerance: float | None = dataclasses.field(default=None, kw_only=True)
    max_steps: int | None = dataclasses.field(default=None, kw_only=True)

    @property
    def stable_curvature(self) -> Any:
        """The step size times lambda_max below which it is stable; None where it takes no such step."""
        return None

    @property
    def compares_energies(self) -> bool:
        """Whether a step compares F with that of a step before, so that F must not change in between."""
        return False

    def __post_init__(self):
        name = type(self).__name__
        if self.tolerance is not None:
            tolerance = expect_number(self, "tolerance", self.tolerance, above=0)
            object.__setattr__(self, "tolerance", tolerance)
        for field in ("num_steps", "max_steps"):
            value = getattr(self, field)
            if value is not None:
                object.__setattr__(self, field, expect_count(self, field, value))
        if self.tolerance is None and self.max_steps is not None:
            raise ValueError(
                f"{name} got max_steps={self.max_steps} without a tolerance; give num_steps for a "
                f"fixed count, or tolerance and max_steps to stop where converged"
            )
        if self.tolerance is not None and self.num_steps is not None:
            raise ValueError(
                f"{name} got num_steps={self.num_steps} and a tolerance; give num_steps for a fixed "
                f"count, or tolerance and max_steps to stop where converged"
            )
        for field, value in vars(self.stop).items():
            object.__setattr__(self, field, value)

    @property
    def stop(self) -> FixedSteps | UntilTolerance:
        """Say when inference ends: a `FixedSteps` or an `UntilTolerance`."""
        if self.tolerance is None:
            return FixedSteps() if self.num_steps is None else FixedSteps(self.num_steps)
        if self.max_steps is None:
            return UntilTolerance(self.tolerance)
        return UntilTolerance(self.tolerance, self.max_steps)

    def is_last(self, step: Int[Array, ""]) -> Bool[Array, ""]:
        """Return whether no step comes after this one."""
        return step + 1 == self.stop.most_steps

    @abc.abstractmethod
    def init(self, problem: VectorField) -> PyTree:
        """Return the algorithm's own state before the first step; every leaf has the batch first."""

    @abc.abstractmethod
    def step(
        self,
        problem: VectorField,
        coordinates: PyTree,
        state: PyTree,
        *,
        step: Int[Array, ""],
        key: PRNGKey | None,
    ) -> tuple[PyTree, PyTree, StepInfo]:
        """Make one step: return new coordinates, new state, and what was seen before moving."""

    def solve(
        self,
        problem: VectorField,
        *,
        key: PRNGKey | None = None,
        trace: bool = False,
        record: Callable[[Seen], PyTree] | None = None,
    ) -> InferenceResult:
        """Step from the start until the count, or each example's tolerance, is reached."""
        return iterate(problem, self, key=key, trace=trace, record=record)


def expect_algorithm(owner: object, inference: object, kind: type = AbstractInference) -> None:
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
            f"pc.inference.GradientDescent(0.1, num_steps=20), got {got!r}"
        )


def _expect_to_record(inference: AbstractInference) -> None:
    """Refuse an algorithm of which a part keeps no record."""
    if "record" not in inspect.signature(inference.solve).parameters:
        raise TypeError(f"{type(inference).__name__} keeps no record of its way; leave record out")
    for part in inference.parts:
        _expect_to_record(part)


def _not_finite(evidence: Any) -> str | None:
    """Say what of a batch is not finite; nothing of a data set, or of what other processes hold."""
    here = all(getattr(leaf, "is_fully_addressable", True) for leaf in jax.tree.leaves(evidence))
    return not_finite(evidence) if isinstance(evidence, Evidence) and here else None


@jax.jit
def _overstep(network: SplitNetwork, known, inference, initializer, key):
    start_key = None if key is None else jax.random.split(key)[0]
    problem = make_problem(network, known, initializer=initializer.value, key=start_key)
    return readable(inference.overstep(problem))


@functools.partial(jax.jit, static_argnames="trace")
def _run(network: SplitNetwork, known, inference, initializer, key, record, *, trace):
    start_key, solve_key = (None, None) if key is None else jax.random.split(key)
    problem = make_problem(network, known, initializer=initializer.value, key=start_key)
    more = {} if record.value is None else {"record": record.value}
    return readable(inference.solve(problem, key=solve_key, trace=trace, **more))
