"""Predictive coding: infer the activities, then move the weights by local errors."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from pcflax.inference import AbstractInference, InferenceProblem, make_problem
from pcflax.inference.base import check_algorithm
from pcflax.networks import SplitNetwork
from pcflax.networks.base import Initializer
from pcflax.typing import PRNGKey, PyTree

from .base import AbstractGradientLearning, LearningInfo, mean_gradients, prediction_of


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

    >>> import optax, pcflax as pc
    >>> rule = pc.learning.PredictiveCoding(pc.inference.GradientDescent(optax.sgd(0.1)))
    >>> rule.inference.num_steps
    20
    """

    inference: AbstractInference
    initializer: Initializer | None = None

    def __post_init__(self):
        check_algorithm(self, self.inference)

    def problem(
        self, network: SplitNetwork, inputs: Array | None, targets: Array | None, *, key: PRNGKey
    ) -> InferenceProblem:
        """What is inferred: the free activities from this rule's start."""
        return make_problem(network, inputs, targets, initializer=self.initializer, key=key)

    def gradients(
        self,
        network: SplitNetwork,
        inputs: Array | None,
        targets: Array | None,
        *,
        key: PRNGKey,
        step: Int[Array, ""] | int = 0,
    ) -> tuple[PyTree, LearningInfo]:
        """The gradient of the batch-mean energy at the inferred activities."""
        del step  # alike at every step
        start_key, solve_key = jax.random.split(key)
        problem = self.problem(network, inputs, targets, key=start_key)
        result = self.inference.solve(problem, key=solve_key)
        held = problem.network  # with the batch's statistics, where layers keep any
        gradients, energies = mean_gradients(held, result.activities, inputs)
        if result.samples is not None:
            at_samples = jax.vmap(lambda sample: mean_gradients(held, sample, inputs)[0])
            gradients = jax.tree.map(lambda g: jnp.mean(g, axis=0), at_samples(result.samples))
        prediction = prediction_of(network.bind(), inputs, problem.batch_size)
        return gradients, LearningInfo(result.activities, energies, prediction)
