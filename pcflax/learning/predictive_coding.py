"""Predictive coding: infer the activities, then move the weights by local errors."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array

from pcflax.inference import AbstractInference, make_problem
from pcflax.networks import SplitNetwork
from pcflax.networks.base import Initializer, total_energy
from pcflax.typing import PRNGKey, PyTree

from .base import AbstractGradientLearning, LearningInfo, check_inference, prediction_of


@dataclasses.dataclass(frozen=True)
class PredictiveCoding(AbstractGradientLearning):
    """Clamp inputs and targets, infer z, then descend mean_i dF_i/dtheta at that z.

    z is held fixed while theta is differentiated, so each layer's gradient uses its own error and the
    activity below it only. The mean over the batch makes a learning rate mean the same at every
    batch size.

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
        check_inference(self, self.inference)

    def gradients(
        self, network: SplitNetwork, inputs: Array | None, targets: Array | None, *, key: PRNGKey
    ) -> tuple[PyTree, LearningInfo]:
        """The gradient of the batch-mean energy at the inferred activities."""
        start_key, solve_key = jax.random.split(key)
        problem = make_problem(
            network, inputs, targets, initializer=self.initializer, key=start_key
        )
        activities = self.inference.solve(problem, key=solve_key).activities

        def mean_energy(parameters):
            energies = network.replace(parameters=parameters).bind(activities).energies(inputs)
            return jnp.mean(total_energy(energies)), energies

        gradients, energies = jax.grad(mean_energy, has_aux=True)(network.parameters)
        batch_size = next(iter(energies.values())).shape[0]
        return gradients, LearningInfo(
            activities, energies, prediction_of(network.bind(), inputs, batch_size)
        )
