"""Zero-divergence inference learning: predictive coding timed so that it is backpropagation."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from pcflax.energies import Gaussian
from pcflax.inference import GradientDescent, make_problem
from pcflax.networks import AbstractPCNetwork
from pcflax.typing import PyTree

from .base import AbstractGradientLearning, LearningInfo


@dataclasses.dataclass(frozen=True)
class ZIL(AbstractGradientLearning):
    """Layer l learns at inference step t = L - l, with step size 1 from the feedforward start (Z-IL).

    At step t the error first reaches layer L - t, untouched yet by what relaxes above it: it is
    backpropagation's delta, and each layer's local gradient is exactly backpropagation's. L gradients
    of the energy a batch.

    All updates are applied together at the end of the batch: nothing computed after step t looks at
    the weights of the layers above L - t again, so this is the same.

    Raises:
        ValueError: on use, for hidden layers whose energy is not Gaussian with precision 1 (the first
            step from zero error would not be the delta), without targets, with other clamps, and for what
            is no chain.

    Source: Song, Lukasiewicz, Xu & Bogacz (2020), NeurIPS 33.

    >>> import pcflax as pc
    >>> pc.learning.ZIL()
    ZIL()
    """

    weighs_examples: ClassVar[bool] = True

    def check(self, network: AbstractPCNetwork) -> None:
        """Refuse what is no chain."""
        if not network.wiring.is_chain:
            raise ValueError(
                f"ZIL is timed for a chain of layers, a PCNetwork, got a {type(network).__name__}; take "
                f"FixedPrediction instead"
            )

    def gradients(self, network, evidence, *, key, step=0) -> tuple[PyTree, LearningInfo]:
        """Return each layer's gradient of the batch-mean energy, taken at its own inference step."""
        del key, step  # deterministic; alike at every step
        if evidence.targets is None:
            raise ValueError("ZIL needs targets: the output's error is all that it sends down")
        bound = network.bind()
        self.check(bound)
        nodes = len(bound.nodes)
        if evidence.clamps:
            name = next(iter(evidence.clamps))
            raise ValueError(
                f"ZIL is timed for errors that come from the output alone, but '{name}' is clamped, too; "
                f"take PredictiveCoding instead"
            )
        problem = make_problem(network, evidence)
        network = problem.network
        for name in [name for name in problem.start if name not in problem.clamps]:
            energy = bound.layer(name).top_node_layer().energy
            precision = energy.precision if type(energy) is Gaussian else None
            if not isinstance(precision, float) or precision != 1.0:
                raise ValueError(
                    f"ZIL expected hidden layers with pc.energies.Gaussian() of precision 1, got "
                    f"{type(energy).__name__} in layer '{name}'; take FixedPrediction instead"
                )
        inference = GradientDescent(1.0)

        def learn_one(carry, number):
            coordinates, state, total = carry
            learns = jnp.arange(nodes) == nodes - 1 - number

            def own_energy(parameters):
                now = network.replace(parameters=parameters)
                energies = now.energies(problem.decode(coordinates), problem.inputs)
                means = [evidence.mean(energies[name]).reshape(-1) for name in bound.names]
                return jnp.sum(jnp.where(learns, jnp.concatenate(means), 0))

            total = jax.tree.map(jnp.add, total, jax.grad(own_energy)(network.parameters))
            coordinates, state, _ = inference.step(
                problem, coordinates, state, step=number, key=None
            )
            return (coordinates, state, total), None

        zeros = jax.tree.map(jnp.zeros_like, network.parameters)
        carry = (problem.start, inference.init(problem), zeros)
        (coordinates, _, gradients), _ = jax.lax.scan(learn_one, carry, jnp.arange(nodes))
        activities = problem.decode(coordinates)
        energies = network.energies(activities, problem.inputs)
        prediction = problem.predicted(network)
        return gradients, LearningInfo(activities, energies, prediction)
