"""Predictive coding: infer the activities, then move the weights by local errors."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from pcflax.inference import AbstractInference, InferenceProblem, expect_algorithm, make_problem
from pcflax.inference.scheduled import check_weights_fit, expect_weights, weights_by_layer
from pcflax.layers import Evidence
from pcflax.layers.clamps import Known
from pcflax.networks import AbstractPCNetwork, SplitNetwork
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
        weights: factors of the layers' energies, and so of their precisions, in inference and learning:
            {layer name or pattern: a number, or a function of the batches learned from so far, such as an
            optax schedule}. What is measured is the network's own energy. `pc.inference.Scheduled` has those
            that follow the steps of inference.

    Raises:
        TypeError: where `inference` is not an algorithm.
        ValueError: for a negative weight, or on use for one that fits no layer.

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
    weights: Any = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self):
        expect_algorithm(self, self.inference)
        if self.weights is not None and not isinstance(self.weights, tuple):
            object.__setattr__(self, "weights", expect_weights(self, self.weights))

    def check(self, network: AbstractPCNetwork) -> None:
        """Refuse what inference refuses, and weights that fit no layer."""
        super().check(network)
        check_weights_fit(self, self.weights or (), network)

    def problem(
        self,
        network: SplitNetwork,
        evidence: Evidence,
        *,
        key: PRNGKey,
        step: Int[Array, ""] | int = 0,
    ) -> InferenceProblem:
        """Return what is inferred: the free activities from this rule's start, with this step's weights."""
        problem = make_problem(network, evidence, initializer=self.initializer, key=key)
        if not self.weights:
            return problem
        weights = weights_by_layer(network.bind(), self.weights)
        now = {name: weight(jnp.asarray(step)) for name, weight in weights.items()}
        return dataclasses.replace(problem, weights=now)

    def gradients(self, network, evidence, *, key, step=0) -> tuple[PyTree, LearningInfo]:
        """Return the gradient of the batch-mean energy at the inferred activities."""
        start_key, solve_key = jax.random.split(key)
        problem = self.problem(network, evidence, key=start_key, step=step)
        result = self.inference.solve(problem, key=solve_key)
        frozen = problem.network  # at the batch's statistics, where layers keep any
        gradients, energies = frozen.mean_gradients(
            result.activities,
            problem.inputs,
            problem.weights,
            untouched=self.inference.untouched(problem),
            of_examples=evidence.weights,
        )
        if result.samples is not None:

            def at(sample):
                return frozen.mean_gradients(
                    sample, problem.inputs, problem.weights, of_examples=evidence.weights
                )

            at_samples = jax.vmap(at)(result.samples)[0]
            gradients = jax.tree.map(lambda g: jnp.mean(g, axis=0), at_samples)
        known = Known(problem.inputs, dict(problem.clamps), evidence.weights)
        gradients = with_start(self.initializer, gradients, frozen, known, result.activities)
        prediction = problem.predicted(network)
        status = result.status if self.inference.stops_at_tolerance else None
        return gradients, LearningInfo(result.activities, energies, prediction, status)
