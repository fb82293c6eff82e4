"""Backpropagation through the same network: the baseline of every comparison."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax

from pcflax.networks import AbstractPCNetwork
from pcflax.typing import PyTree

from .base import AbstractGradientLearning, LearningInfo


@dataclasses.dataclass(frozen=True)
class Backprop(AbstractGradientLearning):
    """Descend the batch mean of E_L(y, mu_L(x)) through the feedforward pass.

    Only the output's energy counts; hidden energies, and parameters that they alone hold, do not. The
    derivative goes through the feedforward pass (not at fixed activities, as in predictive coding).
    Layers with feedback weights send their deltas down through these: that is feedback alignment.

    Source: Rumelhart, Hinton & Williams (1986), Nature 323.

    >>> import pcflax as pc
    >>> pc.learning.Backprop()
    Backprop()
    """

    weighs_examples: ClassVar[bool] = True

    def check(self, network: AbstractPCNetwork) -> None:
        """Refuse layers that the pass upward leaves out."""
        network.check_one_predictor("Backprop trains by the pass upward, which leaves it out")

    def gradients(self, network, evidence, *, key, step=0) -> tuple[PyTree, LearningInfo]:
        """Return the gradient of the batch-mean output energy, by reverse-mode differentiation."""
        del key, step  # deterministic; alike at every step
        inputs, targets = evidence.inputs, evidence.targets
        if targets is None:
            raise ValueError("Backprop needs targets: the output's energy is all that it descends")
        known = network.bind().known(evidence)

        def mean_output_energy(parameters):
            bound = network.replace(parameters=parameters).bind()
            prediction = bound.predict(inputs, batch_size=known.batch_size, clamps=known.clamps)
            return evidence.mean(bound.output_energy(prediction, targets)), prediction

        gradients, prediction = jax.grad(mean_output_energy, has_aux=True)(network.parameters)
        activities = network.bind().start(known)
        return gradients, LearningInfo(
            activities, network.energies(activities, known.inputs), prediction
        )
