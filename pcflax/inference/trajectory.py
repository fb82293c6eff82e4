"""The problem of a whole sequence: the activities of all its steps, inferred together.

F_i = sum_t F_i(z_t, z_{t-1}) over the steps of example i, each predicted from the step before, which now is
free, too: what comes later corrects what came before. Steps after the last that is known follow from those
before at no cost. Coordinates are (batch, time, *features), and every
algorithm solves it as it solves one step. Next file to read: `problem.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from pcflax.layers import Clamp, Evidence
from pcflax.networks import SplitNetwork
from pcflax.networks.along import along, left_behind
from pcflax.typing import Activities, Energies, PyTree

from .problem import InferenceProblem, make_problem


@dataclasses.dataclass(frozen=True)
class TrajectoryProblem(InferenceProblem):
    """Minimize F_i over the free activities of all steps; see the head of this file.

    Attributes:
        inputs: {"given": inputs along time, "before": what stands before the first step}.
    """

    def energies(self, coordinates: PyTree) -> Energies:
        """Return the energy of each example at each layer, summed over its steps."""
        return self.energies_of_pairs(self.activities_and_predictions(coordinates))

    def activities_and_predictions(self, coordinates: PyTree) -> tuple[Activities, Activities]:
        """Return every layer's z and mu at every step, (batch, time, *features)."""
        activities = self.decode(coordinates)
        bound = self.network.bind(_flat(activities))
        predictions = bound.predictions(_flat(self.seen(activities)))
        shape = next(iter(activities.values())).shape[:2]
        return activities, jax.tree.map(lambda p: p.reshape(*shape, *p.shape[1:]), predictions)

    def energies_of_pairs(self, pairs: tuple[Activities, Activities]) -> Energies:
        """Return the energies as a function of activities and predictions."""
        shape = next(iter(pairs[0].values())).shape[:2]
        each = super().energies_of_pairs(_flat(pairs))
        return {name: e.reshape(*shape, *e.shape[1:]).sum(axis=1) for name, e in each.items()}

    def seen(self, activities: Mapping[str, Array]) -> dict[str, Array]:
        """Return what each step gets from outside: the inputs, and the activities one step earlier."""
        earlier = {
            name: jnp.concatenate([first[:, None].astype(z.dtype), z[:, :-1]], axis=1)
            for name, first in self.inputs["before"].items()
            for z in [activities[name.rpartition("@")[0]]]
        }
        return {**self.inputs["given"], **earlier}


def make_trajectory(network: SplitNetwork, evidence: Evidence) -> TrajectoryProblem:
    """Return the problem of inferring what the evidence leaves free of whole sequences.

    It starts where the network goes from step to step by itself, without a look at what it is to explain.

    Args:
        network: of one step, from `pc.networks.split`.
        evidence: inputs, targets and clamps, (batch, time, *features); see `pcflax/networks/along.py`.

    Raises:
        ValueError, TypeError: as for `make_problem`.
    """
    bound = network.bind()
    line = along(bound, evidence)

    def go(before, own):
        given = line.at(before, own)
        problem = make_problem(network, given)
        start = problem.decode(problem.start)
        return left_behind(bound, start), (problem.start, dict(problem.clamps))

    _, (start, clamps) = jax.lax.scan(go, line.before, line.steps)
    start, clamps, given = jax.tree.map(
        lambda leaf: jnp.moveaxis(leaf, 0, 1), (start, clamps, line.steps.inputs)
    )
    given = {name: value for name, value in given.items() if not isinstance(value, Clamp)}
    inputs: Any = {"given": given, "before": line.before}
    return TrajectoryProblem(network, inputs, clamps, start)


def _one_axis(array: Array) -> Array:
    return array.reshape(-1, *array.shape[2:])


def _flat(tree: PyTree) -> PyTree:
    return jax.tree.map(_one_axis, tree)
