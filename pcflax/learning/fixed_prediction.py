"""The fixed-prediction assumption: errors relax around a feedforward pass that stays as it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from pcflax.energies import total_energy
from pcflax.inference import GradientDescent, VectorField, expect_algorithm, make_problem
from pcflax.layers import Evidence
from pcflax.layers.clamps import weighted_mean
from pcflax.networks import AbstractPCNetwork, SplitNetwork
from pcflax.typing import Activities, Energies, PyTree

from .base import AbstractGradientLearning, LearningInfo


@dataclasses.dataclass(frozen=True)
class FixedPredictionProblem(VectorField):
    """Inference with every prediction, and its slope, fixed at the feedforward pass.

    The vector field of z_l is dE_l/dz_l + J_{l+1}^T dE_{l+1}/dmu_{l+1}, with mu and J from the
    feedforward pass: for Gaussian energies of precision 1, e_l - J_{l+1}^T e_{l+1}. It is the gradient
    of no energy, so this is no `InferenceProblem`, and only gradient descent can follow it. `pull` is
    v -> J^T v, from a cotangent of the predictions to one of the free activities.
    """

    feedforward: Activities
    predictions: Activities
    pull: Callable[[Activities], Activities]

    @property
    def separable(self) -> bool:
        """Always False: `pull` is the whole batch's."""
        return False

    def field(self, coordinates: PyTree) -> tuple[Energies, PyTree]:
        """Return E_l(z_l, mu^_l) by layer, and the vector field of each example."""
        energies, direct, on_predictions = self.slopes(coordinates)
        through = self.pull(on_predictions)
        field = {name: direct[name] + through[name] for name in coordinates}
        for name, clamp in self.partial.items():
            field[name] = jnp.where(clamp.held(), 0, field[name])
        return energies, field

    def slopes(self, coordinates: PyTree) -> tuple[Energies, Activities, Activities]:
        """Return energies by layer, dE/dz and dE/dmu, each layer on its own."""

        def summed(pairs):
            energies = self._energies(*pairs)
            return jnp.sum(total_energy(energies)), energies

        pairs = (self.decode(coordinates), self.predictions)
        (_, energies), slopes = jax.value_and_grad(summed, has_aux=True)(pairs)
        return energies, *slopes

    def parameter_gradients(self, coordinates: PyTree, weights: Array | None = None) -> PyTree:
        """Pull dE_l/dmu_l at these activities through mu^_l to its parameters; return the batch mean.

        Each example counts by its weight, (batch,), where there are weights.
        """
        activities = self.decode(coordinates)
        _, _, on_predictions = self.slopes(coordinates)

        def linearised_mean(parameters):
            network = self.network.replace(parameters=parameters)
            predictions = network.bind(self.feedforward).predictions(self.inputs)
            through = [predictions[name] * on_predictions[name] for name in predictions]
            # what an energy itself holds (a learned precision) learns at the fixed prediction
            own = dataclasses.replace(self, network=network)._energies(activities, self.predictions)
            means = [weighted_mean(each, weights) for each in (*through, *own.values())]
            return jnp.stack([jnp.sum(mean) for mean in means]).sum()

        return jax.grad(linearised_mean)(self.network.parameters)

    def _energies(self, activities: Activities, predictions: Activities) -> Energies:
        bound = self.network.bind()
        return {
            name: bound.layer(name).energy(activities[name], predictions[name])
            for name in self.network.names
        }


@dataclasses.dataclass(frozen=True)
class FixedPrediction(AbstractGradientLearning):
    """e_l <- e_l + step_size * (-e_l + J_{l+1}^T e_{l+1}), with mu and J of the feedforward pass (FPA).

    The fixed point is e_l = J_{l+1}^T e_{l+1}, backpropagation's deltas, exactly; with step size 1
    (and precision 1) it is reached after as many steps as there are hidden layers. Weight gradients
    are local: e_l, and the feedforward activity below. At the start, the deltas below the output are
    all zero, and each step carries them one layer down.

    Args:
        inference: gradient descent that moves the activities, from which the errors follow.

    Raises:
        TypeError: where `inference` is not `GradientDescent`: the vector field here is the gradient of
            no energy.

    Source: Millidge, Tschantz & Buckley (2020), arXiv 2006.04182; Rosenbaum (2022), arXiv 2106.13082.

    >>> import pcflax as pc
    >>> rule = pc.learning.FixedPrediction(pc.inference.GradientDescent(1.0, num_steps=2))
    >>> rule.inference.num_steps
    2
    """

    weighs_examples: ClassVar[bool] = True
    inference: GradientDescent

    def __post_init__(self):
        expect_algorithm(self, self.inference)
        if not isinstance(self.inference, GradientDescent):
            raise TypeError(
                f"{type(self).__name__} follows a vector field that is the gradient of no energy, so it "
                f"expected pc.inference.GradientDescent, got {type(self.inference).__name__}; with "
                f"precision 1, a step size of 1 settles in as many steps as there are hidden layers"
            )

    def check(self, network: AbstractPCNetwork) -> None:
        """Refuse cycles."""
        name = type(self).__name__
        network.check_acyclic(f"{name} takes all predictions from one feedforward pass")
        network.check_one_predictor(f"{name} takes a node's one prediction from that pass")

    def field_problem(self, network: SplitNetwork, evidence: Evidence) -> FixedPredictionProblem:
        """Return what is followed."""
        return fixed_prediction_problem(network, evidence)

    def gradients(self, network, evidence, *, key, step=0) -> tuple[PyTree, LearningInfo]:
        """Return the gradient of the batch-mean energy at the relaxed errors and fixed predictions."""
        del step  # alike at every step
        self.check(network.bind())
        problem = self.field_problem(network, evidence)
        result = self.inference.solve(problem, key=key)
        coordinates = problem.encode(result.activities)
        prediction = problem.predicted(network)
        return problem.parameter_gradients(coordinates, evidence.weights), LearningInfo(
            result.activities,
            result.energies,
            prediction,
            result.status if self.inference.stops_at_tolerance else None,
        )


def fixed_prediction_problem(network: SplitNetwork, evidence: Evidence) -> FixedPredictionProblem:
    """Return the problem of `make_problem`, with predictions and slopes of the feedforward pass."""
    problem = make_problem(network, evidence)
    network, inputs = problem.network, problem.inputs
    bound = network.bind()
    known = {name: c for name, c in problem.clamps.items() if name not in bound.outputs}
    feedforward = bound.feedforward(inputs, batch_size=problem.batch_size, clamps=known)

    def predictions(free):
        return network.bind({**feedforward, **free}).predictions(inputs)

    free = {name: feedforward[name] for name in problem.start}
    fixed, pull = jax.vjp(predictions, free)
    return FixedPredictionProblem(
        network, inputs, problem.clamps, problem.start, feedforward, fixed, lambda v: pull(v)[0]
    )
