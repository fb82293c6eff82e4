"""Incremental predictive coding: activities and weights move together, at every inference step."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from pcflax.inference import (
    AbstractIterativeInference,
    InferenceProblem,
    expect_algorithm,
    make_problem,
)
from pcflax.layers import Evidence
from pcflax.layers.clamps import Known
from pcflax.networks import SplitNetwork
from pcflax.typing import Initializer, PRNGKey, PyTree

from .base import AbstractLearning, LearningInfo, apply, with_start


@dataclasses.dataclass(frozen=True)
class IncrementalPC(AbstractLearning):
    """At each inference step, one step of z on dF_i/dz and one of theta on mean_i dF_i/dtheta (iPC).

    Both gradients are taken at the same (z, theta), so a step costs one evaluation of the energy and
    its gradient. The weights make `num_steps` optimizer steps a batch, and the optimizer's state goes
    along. Learning rates are not `num_steps` times smaller for that: those of `scripts/mlp_table.py` are
    nearly predictive coding's.

    Args:
        inference: an iterative algorithm with a fixed number of steps, which moves z.
        initializer: where the free activities start: the feedforward pass unless given.

    Raises:
        TypeError: where `inference` is no iterative algorithm.
        ValueError: where it stops adaptively: the number of weight steps would depend on the batch; or
            where it takes no steps.

    Source: Salvatori et al. (2022), arXiv 2212.00720.

    >>> import pcflax as pc
    >>> rule = pc.learning.IncrementalPC(pc.inference.GradientDescent(0.5, num_steps=8))
    >>> rule.inference.num_steps
    8
    """

    weighs_examples: ClassVar[bool] = True
    teaches_start: ClassVar[bool] = True
    inference: AbstractIterativeInference
    initializer: Initializer | None = None

    def __post_init__(self):
        expect_algorithm(self, self.inference, AbstractIterativeInference)
        if self.inference.tolerance is not None:
            raise ValueError(
                "IncrementalPC expected a fixed num_steps, since the weights move at every step, got "
                "a tolerance; give the algorithm num_steps instead"
            )
        if not self.inference.num_steps:
            raise ValueError(
                "IncrementalPC moves the weights once a step of inference, got num_steps=0; take at "
                "least 1"
            )

    def problem(
        self, network: SplitNetwork, evidence: Evidence, *, key: PRNGKey
    ) -> InferenceProblem:
        """Return what is inferred, at the weights before the first step."""
        return make_problem(network, evidence, initializer=self.initializer, key=key)

    def update(
        self, network, optimizer, optimizer_state, evidence, *, key, step=0
    ) -> tuple[SplitNetwork, PyTree, LearningInfo]:
        """Make `num_steps` steps of activities and weights; energies are those before the last of them."""
        del step  # alike at every step
        start_key, solve_key = jax.random.split(key)
        problem = self.problem(network, evidence, key=start_key)
        prediction = problem.predicted(network)
        known = Known(problem.inputs, dict(problem.clamps), evidence.weights)

        def both(carry, number):
            coordinates, state, parameters, optimizer_state = carry
            now = problem.network.replace(parameters=parameters)
            current = dataclasses.replace(problem, network=now)
            activities = current.decode(coordinates)
            gradients, energies = now.mean_gradients(
                activities,
                problem.inputs,
                clamps=problem.clamps,
                of_examples=evidence.weights,
            )
            gradients = with_start(self.initializer, gradients, now, known, activities)
            coordinates, state, _ = self.inference.step(
                current,
                coordinates,
                state,
                step=number,
                key=jax.random.fold_in(solve_key, number),
            )
            now, optimizer_state = apply(now, optimizer, optimizer_state, gradients, energies)
            return (coordinates, state, now.parameters, optimizer_state), energies

        carry = (problem.start, self.inference.init(problem), network.parameters, optimizer_state)
        carry, energies = jax.lax.scan(both, carry, jnp.arange(self.inference.num_steps))
        coordinates, _, parameters, optimizer_state = carry
        info = LearningInfo(
            problem.decode(coordinates),
            {name: energies[name][-1] for name in energies},
            prediction,
        )
        return network.replace(parameters=parameters), optimizer_state, info
