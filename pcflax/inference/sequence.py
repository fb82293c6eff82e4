"""A sequence of algorithms, each begun where the one before ended."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from pcflax.typing import PRNGKey, PyTree

from .base import AbstractInference, expect_algorithm
from .problem import InferenceProblem
from .result import InferenceResult, Seen
from .solve import in_a_row


@dataclasses.dataclass(frozen=True, init=False)
class Sequence(AbstractInference):
    """Run algorithms one after the other: a fast one for the way, an exact one for the end, say.

    Each starts from the activities that the one before ended at; an algorithm's own state (momentum)
    starts anew. `num_steps` of the result is the sum, the status is the last one's, and trace and records are
    those of all in a row.

    Args:
        *algorithms: at least one inference algorithm.

    Raises:
        TypeError: for something that is not an algorithm.
        ValueError: for none.

    >>> import optax, pcflax as pc
    >>> descent = pc.inference.GradientDescent(optax.sgd(0.1), num_steps=5)
    >>> schedule = pc.inference.Sequence(pc.inference.ErrorCoordinates(descent), descent)
    >>> len(schedule.algorithms)
    2
    """

    algorithms: tuple[AbstractInference, ...]

    def __init__(self, *algorithms: AbstractInference):
        if not algorithms:
            raise ValueError("Sequence expected at least one inference algorithm, got none")
        for algorithm in algorithms:
            expect_algorithm(self, algorithm)
        object.__setattr__(self, "algorithms", algorithms)

    @property
    def parts(self) -> tuple[AbstractInference, ...]:
        """The algorithms."""
        return self.algorithms

    @property
    def finds_equilibrium(self) -> bool:  # type: ignore[override]
        """Whether the last algorithm does."""
        return self.algorithms[-1].finds_equilibrium

    def gradient_steps(self, problem: InferenceProblem) -> int | None:
        """Return the sum of the algorithms'."""
        found = [algorithm.gradient_steps(problem) for algorithm in self.algorithms]
        return None if None in found else sum(steps for steps in found if steps is not None)

    def rests(self) -> bool:
        """Return whether all of them do."""
        return all(algorithm.rests() for algorithm in self.algorithms)

    def solve(
        self,
        problem: InferenceProblem,
        *,
        key: PRNGKey | None = None,
        trace: bool = False,
        record: Callable[[Seen], PyTree] | None = None,
    ) -> InferenceResult:
        """Solve in order; the result is the last one's, with all steps counted."""
        more: dict[str, Any] = {} if record is None else {"record": record}
        ways, num_steps = [], 0
        for number, algorithm in enumerate(self.algorithms):
            own_key = None if key is None else jax.random.fold_in(key, number)
            result = algorithm.solve(problem, key=own_key, trace=trace, **more)
            problem = problem.restarted(result.activities)
            num_steps = num_steps + result.num_steps
            ways.append((result.trace, result.records))
        # where one ends the next begins: that point once
        *before, last = ways
        whole, records = in_a_row(*jax.tree.map(lambda leaf: leaf[:-1], before), last)
        return result._replace(num_steps=num_steps, trace=whole, records=records)
