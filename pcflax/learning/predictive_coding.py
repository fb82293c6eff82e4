"""Predictive coding: infer the activities, then move the weights by local errors."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from pcflax.inference import AbstractInference, InferenceProblem, expect_algorithm, make_problem
from pcflax.layers import Evidence
from pcflax.layers.clamps import Known
from pcflax.networks import SplitNetwork
from pcflax.typing import Initializer, PRNGKey, PyTree

from .base import AbstractGradientLearning, LearningInfo, with_start


@dataclasses.dataclass(frozen=True)
class PredictiveCoding(AbstractGradientLearning):
    """Clamp inputs and targets, infer z, then descend mean_i dF_i/dtheta at that z.

    z is held fixed while theta is differentiated, so each layer's gradient uses its own error and the
    activity below it only. The mean over the batch makes a learning rate mean the same at every
    batch size. Where the algorithm keeps samples (`Langevin`), the gradient is the mean over them, as
    in Monte Carlo predictive coding.

    Args:
        inference: the algorithm that infers z.
        initializer: where the free activities start: the feedforward pass unless given.

    Raises:
        TypeError: where `inference` is not an algorithm.

    Source: Whittington & Bogacz (2017), Neural Computation 29(5).

    >>> import pcflax as pc
    >>> rule = pc.learning.PredictiveCoding(pc.inference.GradientDescent(0.1))
    >>> rule.inference.num_steps
    20
    """

    weighs_examples: ClassVar[bool] = True
    teaches_start: ClassVar[bool] = True
    inference: AbstractInference
    initializer: Initializer | None = None

    def __post_init__(self):
        expect_algorithm(self, self.inference)

    def problem(
        self, network: SplitNetwork, evidence: Evidence, *, key: PRNGKey
    ) -> InferenceProblem:
        """Return what is inferred: the free activities from this rule's start."""
        return make_problem(network, evidence, initializer=self.initializer, key=key)

    def gradients(
        self,
        network: SplitNetwork,
        evidence: Evidence,
        *,
        key: PRNGKey,
        step: Int[Array, ""] | int = 0,
    ) -> tuple[PyTree, LearningInfo]:
        """Return the gradient of the batch-mean energy at the inferred activities."""
        del step  # alike at every step
        start_key, solve_key = jax.random.split(key)
        problem = self.problem(network, evidence, key=start_key)
        result = self.inference.solve(problem, key=solve_key)
        frozen = problem.network  # at the batch's statistics, where layers keep any
        gradients, energies = frozen.mean_gradients(
            result.activities,
            problem.inputs,
            untouched=() if self.initializer is not None else self.inference.untouched(problem),
            of_examples=evidence.weights,
        )
        if result.samples is not None:

            def at(sample):
                return frozen.mean_gradients(sample, problem.inputs, of_examples=evidence.weights)

            at_samples = jax.vmap(at)(result.samples)[0]
            gradients = jax.tree.map(lambda g: jnp.mean(g, axis=0), at_samples)
        known = Known(problem.inputs, dict(problem.clamps), evidence.weights)
        gradients = with_start(self.initializer, gradients, frozen, known, result.activities)
        prediction = problem.predicted(network)
        status = result.status if self.inference.stops_at_tolerance else None
        return gradients, LearningInfo(result.activities, energies, prediction, status)
