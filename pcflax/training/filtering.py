"""Readings along time: what is inferred of each step from the past, of all steps together, and of the next.

`Filter` infers z_t from what is known up to t, `Smoother` from all of the sequence, and `Forecast` reads what
the past predicts of the outputs at t before they are seen. All read (batch, time, *features).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from pcflax.inference import AbstractInference, expect_algorithm, make_problem
from pcflax.inference.trajectory import make_trajectory
from pcflax.layers import Clamp, Evidence
from pcflax.learning import AbstractLearning
from pcflax.networks import AbstractPCNetwork, SplitNetwork
from pcflax.networks.along import Along, along, known_along, left_behind
from pcflax.typing import PRNGKey, PyTree

from .hiding import check_node, part_of
from .reading import AbstractReading, Answer, Feedforward, predicted


@dataclasses.dataclass(frozen=True)
class _AlongTime(AbstractReading):
    """A reading of sequences by an algorithm."""

    along_time: ClassVar[bool] = True
    inference: AbstractInference

    def __post_init__(self):
        expect_algorithm(self, self.inference)

    def _step_by_step(
        self, network: SplitNetwork, line: Along, key: PRNGKey, see: Callable[..., PyTree]
    ) -> tuple[PyTree, Array, Array]:
        """Infer step after step; return what is seen of each, the energies' sum and the worst status."""
        bound = network.bind()

        def go(before, now):
            number, own = now
            problem = make_problem(network, line.at(before, own))
            result = self.inference.solve(problem, key=jax.random.fold_in(key, number))
            seen = (see(problem, result), result.energy, result.status)
            return left_behind(bound, result.activities), seen

        steps = (jnp.arange(line.length), line.steps)
        values, energies, status = jax.lax.scan(go, line.before, steps)[1]
        values = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), values)
        return values, line.counted(energies).sum(axis=0), line.counted(status).max(axis=0)


@dataclasses.dataclass(frozen=True)
class _OfNode(_AlongTime):
    """One that reads a node's activities."""

    read: str

    def role(self, network: SplitNetwork) -> str | None:
        """Return whether the node that is read is the data's "inputs" or "targets"."""
        return "targets" if self.read in network.bind().outputs else None


@dataclasses.dataclass(frozen=True)
class Filter(_OfNode):
    """Infer step by step, z_t from what is known up to t, and read a node.

    At each step F_i(z_t, z_{t-1}) is minimized with z_{t-1} where the step before left it. What the data say
    of the node that is read is hidden from inference, and what it is compared with.

    With a linear network, exact inference and `pc.energies.FullGaussian` of the steady state's precision
    it is the Kalman filter in its steady state. With other precisions its gain is another fixed one, for it
    does not know how uncertain z_{t-1} is.

    Args:
        inference: the algorithm of each step.
        read: the node.

    Raises:
        TypeError: where `inference` is no algorithm.
        ValueError: on use, for a node that is not there, or arrays without an axis of time.

    Source: Millidge et al. (2024), PLoS Computational Biology 20(4), for the comparison with Kalman's.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> network = pc.models.temporal(2, 4, rngs=nnx.Rngs(0))
    >>> seen = pc.Evidence(targets=jnp.ones((3, 7, 4)))
    >>> pc.training.answer(network, seen, pc.Filter(pc.inference.GradientDescent(0.1), "z")).values.shape
    (3, 7, 2)
    """

    def answer(self, network: SplitNetwork, evidence: Evidence, *, key: PRNGKey) -> Answer:
        """Go along the sequences, and read the activities."""
        bound = network.bind()
        self.inference.check(bound)
        question, told = _hidden(bound, evidence, self.read)
        line = along(bound, question)
        values, *ended = self._step_by_step(
            network, line, key, lambda _, result: part_of(bound, result.activities, self.read)
        )
        return Answer(values, values, *_truth(told, line), *ended)


@dataclasses.dataclass(frozen=True)
class Smoother(_OfNode):
    """Infer all steps of a sequence together, z_t from what is known before and after t, and read a node.

    sum_t F_i(z_t, z_{t-1}) is minimized over all z_t at once. With a linear network and exact inference, the
    Kalman smoother's means. What the data say of the node that is read is hidden.

    Args:
        inference: the algorithm, of the whole sequence; its step size and number of steps are not those of a
            filter, since what is far off has to come through all steps between.
        read: the node.

    Raises:
        TypeError: where `inference` is no algorithm.
        ValueError: on use, for a node that is not there, or arrays without an axis of time.

    Source: Rauch, Tung & Striebel (1965), AIAA Journal 3(8), for what it is in the linear case.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> network = pc.models.temporal(2, 4, rngs=nnx.Rngs(0))
    >>> seen = pc.Evidence(targets=jnp.ones((3, 7, 4)))
    >>> pc.training.answer(network, seen, pc.Smoother(pc.inference.LinearSolve(), "z")).values.shape
    (3, 7, 2)
    """

    def answer(self, network: SplitNetwork, evidence: Evidence, *, key: PRNGKey) -> Answer:
        """Infer the whole sequences, and read the activities."""
        bound = network.bind()
        self.inference.check(bound)
        question, told = _hidden(bound, evidence, self.read)
        result = self.inference.solve(make_trajectory(network, question), key=key)
        values = result.activities[self.read]
        line = along(bound, question)
        return Answer(values, values, *_truth(told, line), result.energy, result.status)


@dataclasses.dataclass(frozen=True)
class Forecast(_AlongTime):
    """Infer step by step, and read what the past predicts of the outputs at t, before they are seen.

    The prediction passes upward from z_{t-1} as the filter left it, and from the inputs at t. It is what
    learning with `pc.learning.Temporal` improves, and the Trainer's reading with that rule. Where targets are
    missing (a mask), the network goes on by itself, so that a forecast of many steps is a sequence whose end
    is not known.

    Args:
        inference: the algorithm of each step.

    Raises:
        TypeError: where `inference` is no algorithm.
        ValueError: on use, for arrays without an axis of time.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> network = pc.models.temporal(2, 4, rngs=nnx.Rngs(0))
    >>> seen = pc.Evidence(targets=jnp.ones((3, 7, 4)))
    >>> pc.training.answer(network, seen, pc.Forecast(pc.inference.GradientDescent(0.1))).values.shape
    (3, 7, 4)
    """

    @classmethod
    def of(cls, rule: AbstractLearning) -> AbstractReading:
        """Return the reading of what a rule learns to predict without inference of the outputs."""
        inference = getattr(rule, "inference", None)
        return cls(inference) if rule.along_time and inference is not None else Feedforward()

    def answer(self, network: SplitNetwork, evidence: Evidence, *, key: PRNGKey) -> Answer:
        """Go along the sequences, and read the predictions."""
        bound = network.bind()
        self.inference.check(bound)
        line = along(bound, evidence)
        values, *ended = self._step_by_step(
            network, line, key, lambda problem, _: problem.predicted(network)
        )
        return Answer(*predicted(bound, values, evidence.targets, along_time=True), *ended)


def _hidden(bound: AbstractPCNetwork, evidence: Evidence, name: str) -> tuple[Evidence, Any]:
    """Return the evidence without a node, and what it says of that node."""
    check_node(bound, name)
    clamps = dict(evidence.clamps or {})
    told = clamps.pop(name, None)
    targets = evidence.targets
    if name in bound.outputs and targets is not None:
        if isinstance(targets, dict):
            targets = dict(targets)
            told = targets.pop(name, None)
        else:
            told, targets = targets, None
    return dataclasses.replace(evidence, clamps=clamps, targets=targets), told


def _truth(told: Any, line: Along) -> tuple[Any, Any]:
    """Return what is compared with a reading, and of which examples some of it is known."""
    if told is None:
        return None, None
    value, known = known_along(told)
    if line.counts is not None:
        known = line.counts.T if known is None else known & line.counts.T
    return (value, None) if known is None else (Clamp(value, known), known.any(axis=1))
