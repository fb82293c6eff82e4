"""Backpropagation through the same network: the baseline of every comparison."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array

from pcflax.networks import SplitNetwork
from pcflax.networks.base import total_energy
from pcflax.typing import PRNGKey, PyTree

from .base import AbstractGradientLearning, LearningInfo


@dataclasses.dataclass(frozen=True)
class Backprop(AbstractGradientLearning):
    """Descend the batch mean of E_L(y, mu_L(x)) through the feedforward pass.

    At the feedforward activities with the output clamped, every hidden error is zero and F is the
    output's energy alone; differentiating through the pass (not at fixed activities, as predictive
    coding does) is ordinary backpropagation.

    Source: Rumelhart, Hinton & Williams (1986), Nature 323.

    >>> import pcflax as pc
    >>> pc.learning.Backprop()
    Backprop()
    """

    def gradients(
        self, network: SplitNetwork, inputs: Array | None, targets: Array | None, *, key: PRNGKey
    ) -> tuple[PyTree, LearningInfo]:
        """The gradient of the batch-mean output energy, by reverse-mode differentiation."""
        del key  # deterministic
        if targets is None:
            raise ValueError("Backprop needs targets: the output's energy is all that it descends")

        def mean_energy(parameters):
            bound = network.replace(parameters=parameters).bind()
            activities = bound.start(inputs, targets)
            prediction = bound.predict(inputs)
            bound.set_activities(activities)
            energies = bound.energies(inputs)
            return jnp.mean(total_energy(energies)), (activities, energies, prediction)

        gradients, seen = jax.grad(mean_energy, has_aux=True)(network.parameters)
        return gradients, LearningInfo(*seen)
