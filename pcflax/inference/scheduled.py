"""Scheduled inference: how much each layer's energy weighs, as a function of the inference step."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from pcflax.checks import did_you_mean, expect_kind, expect_number
from pcflax.networks import AbstractPCNetwork
from pcflax.typing import PRNGKey, PyTree

from .base import AbstractInference, AbstractIterativeInference, expect_algorithm
from .problem import InferenceProblem
from .result import InferenceResult
from .solve import StepInfo, expect_energy, finished

Problem = TypeVar("Problem", bound=InferenceProblem)


@dataclasses.dataclass(frozen=True, init=False)
class Scheduled(AbstractIterativeInference):
    """Run an iterative algorithm on sum_l w_l(t) E_l at step t: precisions that change on the way.

    A weight w_l is a factor of layer l's energy, and so of a Gaussian's precision. In a deep chain the error
    of the output reaches lower layers weakly; weights that are high where it arrives, and while it does, send
    it on.

    Minimizes: where the schedule has ended, sum_l w_l E_l. What the result tells, its energies and its
    residual, is of the network's own energy, as is what a rule learns from; a trace has the energies as they
    are weighed at each step.

    Fixed point: that of the last weights.

    Rate, cost a step, failures: those of the algorithm. With Langevin, temperatures of single layers.

    Source: precisions that follow the steps of inference are of Qi et al. (2025), arXiv 2506.23800; the
    patterns are ours.

    Args:
        inference: an iterative algorithm with a fixed number of steps, such as `GradientDescent`.
        weights: {layer name or pattern: a number, or a function of the step t = 0, 1, ..., such as an optax
            schedule}. The first pattern that fits a layer's name counts; a layer that none fits has 1. One
            layer of a stack goes by its node's name, `hidden/3`.

    Raises:
        TypeError: for an algorithm that does not step.
        ValueError: for one that stops at a tolerance or finds the equilibrium, where the way does not
            matter; for one that compares energies of two steps (momentum="auto", `Chebyshev`); for a negative
            weight; on use, for a pattern that fits no layer.

    >>> import optax, pcflax as pc
    >>> ramp = optax.linear_schedule(10.0, 1.0, 20)
    >>> descent = pc.inference.GradientDescent(0.05, num_steps=20)
    >>> pc.inference.Scheduled(descent, {"hidden*": ramp, "output": 2.0}).num_steps
    20
    """

    inference: AbstractIterativeInference
    weights: tuple[tuple[str, Any], ...]

    def __init__(
        self, inference: AbstractIterativeInference, weights: Mapping[str, float | Callable]
    ):
        expect_algorithm(self, inference, AbstractIterativeInference)
        if inference.stops_at_tolerance or inference.finds_equilibrium:
            raise ValueError(
                f"Scheduled changes the energy step by step, but {type(inference).__name__} goes on to an "
                f"equilibrium; give an algorithm that takes a fixed num_steps, such as "
                f"pc.inference.GradientDescent(0.1, num_steps=20)"
            )
        if inference.compares_energies:
            raise ValueError(
                f"Scheduled changes the energy step by step, but {type(inference).__name__} compares it with "
                f"that of a step before; give one that does not, without momentum='auto'"
            )
        checked = expect_weights(self, weights)
        given = {
            "inference": inference,
            "weights": checked,
            "num_steps": inference.num_steps,
            "tolerance": None,
            "max_steps": None,
        }
        for name, value in given.items():
            object.__setattr__(self, name, value)

    @property
    def parts(self) -> tuple[AbstractInference, ...]:
        """The algorithm that runs at these weights."""
        return (self.inference,)

    def check(self, network: AbstractPCNetwork) -> None:
        """Refuse a pattern that fits no layer."""
        super().check(network)
        check_weights_fit(self, self.weights, network)

    def gradient_steps(self, problem: InferenceProblem) -> int | None:
        """Return the algorithm's: weights take no error further."""
        return self.inference.gradient_steps(problem)

    def rests(self) -> bool:
        """Return the algorithm's."""
        return self.inference.rests()

    def init(self, problem: InferenceProblem) -> PyTree:
        """Return the algorithm's state at the first weights."""
        return self.inference.init(self.weighed(problem).at(0))

    def step(
        self, problem: InferenceProblem, coordinates, state, *, step, key: PRNGKey | None
    ) -> tuple[PyTree, PyTree, StepInfo]:
        """Make the algorithm's step at this step's weights."""
        now = self.weighed(problem).at(step)
        return self.inference.step(now, coordinates, state, step=step, key=key)

    def overstep(self, problem: InferenceProblem) -> Float[Array, " batch"] | None:
        """Return how far steps are above the largest stable one at the first weights, if it warns."""
        return super().overstep(self.weighed(problem).at(0))

    def solve(
        self, problem: InferenceProblem, *, key=None, trace=False, record=None
    ) -> InferenceResult:
        """Solve by the algorithm, then tell energies and residual of the network's own energy."""
        expect_energy(self, problem)
        result = self.inference.solve(self.weighed(problem), key=key, trace=trace, record=record)
        own = problem.at(self.num_steps or 0)
        ended = finished(own, own.encode(result.activities), result.num_steps)
        return result._replace(
            energies=ended.energies, residual=ended.residual, status=ended.status
        )

    def weighed(self, problem: Problem) -> Problem:
        """Return the problem with the layers' weights, functions of the step among them."""
        bound = problem.network.bind()
        weights = dict(problem.weights)
        for name, own in weights_by_layer(bound, self.weights).items():
            other = weights.get(name, 1)
            weights[name] = lambda step, own=own, other=other: own(step) * _at(other, step)
        return dataclasses.replace(problem, weights=weights)


def expect_weights(owner: object, weights: Any) -> tuple[tuple[str, Any], ...]:
    """Return weights by layer or pattern as settings hold them: hashable; refuse a negative one."""
    expect_kind(owner, "weights", weights, Mapping, '{"hidden*": optax.linear_schedule(10, 1, 20)}')
    checked = {
        name: weight
        if callable(weight)
        else expect_number(owner, f"weight of '{name}'", weight, least=0)
        for name, weight in weights.items()
    }
    return tuple(checked.items())


def check_weights_fit(
    owner: object, weights: tuple[tuple[str, Any], ...], network: AbstractPCNetwork
) -> None:
    """Refuse a pattern that fits no layer."""
    names = (*network.layer_names, *network.nodes)
    for pattern, _ in weights:
        if not fnmatch.filter(names, pattern):
            raise ValueError(
                f"{type(owner).__name__} has a weight for '{pattern}', which fits none of the layers "
                f"{', '.join(network.layer_names)}{did_you_mean(pattern, names)}"
            )


def weights_by_layer(
    bound: AbstractPCNetwork, weights: tuple[tuple[str, Any], ...]
) -> dict[str, Callable[[Any], Array]]:
    """Return each layer's weight as a function of a step, (depth,) for a stack; of layers that have one."""
    found = {}
    for name in bound.layer_names:
        whole = _first_fit(weights, name)
        nodes = bound.layer(name).each_node_name(name)
        single = [_first_fit(weights, node) if len(nodes) > 1 else None for node in nodes]
        if any(weight is not None for weight in single):
            ones = [whole if weight is None else weight for weight in single]
            found[name] = lambda step, ones=ones: jnp.stack(
                [jnp.asarray(_at(weight, step)) for weight in ones]
            )
        elif whole is not None:
            found[name] = lambda step, whole=whole: _at(whole, step)
    return found


def _first_fit(weights: tuple[tuple[str, Any], ...], name: str) -> Any:
    return next((w for pattern, w in weights if fnmatch.fnmatchcase(name, pattern)), None)


def _at(weight: Any, step: Any) -> Any:
    if weight is None:
        return 1.0
    return weight(step) if callable(weight) else weight
