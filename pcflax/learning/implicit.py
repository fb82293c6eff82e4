"""Backpropagation through the equilibrium: the baseline of networks with cycles."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax

from pcflax.inference import AbstractInference, InferenceProblem, expect_algorithm, make_problem
from pcflax.layers import Evidence
from pcflax.networks import AbstractPCNetwork, SplitNetwork
from pcflax.typing import Initializer, PRNGKey, PyTree

from .base import AbstractGradientLearning, LearningInfo


@dataclasses.dataclass(frozen=True)
class Implicit(AbstractGradientLearning):
    """Descend the batch mean of E_out(y, z*_out), with z* the equilibrium that knows no target.

    z* solves dF_i/dz = 0 with the output free, so dz*/dtheta = -H^-1 d2F/dz dtheta, and the gradient is
    -(d2F/dtheta dz) H^-1 dE_out/dz: one linear solve with the activity Hessian H for each batch, and nothing
    kept of the way to z*. It is recurrent backpropagation, and not predictive coding: inference never sees a
    target, and the error reaches a weight through all others. On a chain it is `Backprop`; on a network with
    cycles, what predictive coding is to be compared with.

    Args:
        inference: the algorithm that finds z*, by a tolerance, or one that ends at the equilibrium, such as
            `pc.inference.NewtonCG()`.
        initializer: where the free activities start: the feedforward pass unless given.

    Raises:
        TypeError: where `inference` is not an algorithm.
        ValueError: where it takes a number of steps and ends anywhere; on use, without targets.

    Source: Almeida (1987); Pineda (1987), Physical Review Letters 59(19); Scellier & Bengio (2017), who
    compare equilibrium propagation with it.

    >>> import pcflax as pc
    >>> rule = pc.learning.Implicit(pc.inference.NewtonCG(tolerance=1e-5))
    >>> rule.inference.tolerance
    1e-05
    """

    inference: AbstractInference
    initializer: Initializer | None = None

    weighs_examples: ClassVar[bool] = True

    def __post_init__(self):
        expect_algorithm(self, self.inference)
        if not (self.inference.stops_at_tolerance or self.inference.finds_equilibrium):
            raise ValueError(
                f"Implicit differentiates the equilibrium, and {type(self.inference).__name__} with a fixed "
                f"number of steps stops before it; give it a tolerance"
            )

    def check(self, network: AbstractPCNetwork) -> None:
        """Refuse several outputs, and feedback weights."""
        super().check(network)
        network.check_one_output("Implicit descends the energy of one")
        network.check_no_feedback("Implicit goes by the minimum of one")

    def problem(
        self, network: SplitNetwork, evidence: Evidence, *, key: PRNGKey
    ) -> InferenceProblem:
        """Return what is inferred: the free activities, without a look at the targets."""
        question = dataclasses.replace(evidence, targets=None)
        return make_problem(network, question, initializer=self.initializer, key=key)

    def gradients(self, network, evidence, *, key, step=0) -> tuple[PyTree, LearningInfo]:
        """Return the gradient of the batch-mean output energy, which is the output's among those seen."""
        del step  # alike at every step
        if evidence.targets is None:
            raise ValueError("Implicit needs targets: the output's energy is all that it descends")
        start_key, solve_key = jax.random.split(key)

        def mean_output_energy(parameters):
            problem = self.problem(network.replace(parameters=parameters), evidence, key=start_key)
            result = self.inference.solve(problem, key=solve_key)
            bound = problem.network.bind()
            answer = bound.layer(bound.output).top_node(result.activities[bound.output])
            losses = bound.output_energy(answer, evidence.targets)
            own = result.energies[bound.output]  # of z*_out; what is descended stands in its place
            own = losses if own.ndim == 1 else own.at[:, -1].set(losses)
            energies = {**result.energies, bound.output: own}
            return evidence.mean(losses), (result, energies, answer)

        gradient = jax.grad(mean_output_energy, has_aux=True)
        gradients, (result, energies, answer) = gradient(network.parameters)
        status = result.status if self.inference.stops_at_tolerance else None
        return gradients, LearningInfo(result.activities, energies, answer, status)
