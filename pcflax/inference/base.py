"""The two contracts of an inference algorithm, and the scan that iterative ones share.

`AbstractInference.solve` turns a problem into a result. An iterative algorithm implements `init` and
`step` instead and gets the scan, the trace and the result from `AbstractIterativeInference`. Algorithms
are frozen dataclasses: hashable, so that a compiled program can be found again by its algorithm.
`gradient.py` is the shortest example.
"""

from __future__ import annotations

import abc
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pcflax.networks import AbstractPCNetwork, SplitNetwork, split
from pcflax.networks.base import Initializer, check_batch
from pcflax.typing import Energies, PRNGKey, PyTree

from .problem import InferenceProblem, make_problem, residual
from .result import InferenceResult, Trace


class StepInfo(NamedTuple):
    """What one step saw before it moved; costs nothing where nobody looks at it.

    Attributes:
        energies: {layer name: (batch,)} at the coordinates the step started from.
        residual: (batch,), root mean square of dF/dz there.
    """

    energies: Energies
    residual: Float[Array, " batch"]


class AbstractInference(abc.ABC):
    """An algorithm that minimises (or samples) the energy over free coordinates."""

    @abc.abstractmethod
    def solve(
        self, problem: InferenceProblem, *, key: PRNGKey | None = None, trace: bool = False
    ) -> InferenceResult:
        """Solve the problem for every example on its own; a pure function, called inside jit."""

    def run(
        self,
        network: AbstractPCNetwork,
        inputs: Array | None = None,
        targets: Array | None = None,
        *,
        initializer: Initializer | None = None,
        key: PRNGKey | None = None,
        trace: bool = False,
    ) -> InferenceResult:
        """Solve for a network object in one compiled call and store the activities in its layers.

        This is what `network.infer(..., inference=self)` calls.
        """
        check_batch(inputs, targets)
        result = _run(
            split(network),
            inputs,
            targets,
            key,
            inference=self,
            initializer=initializer,
            trace=trace,
        )
        # jit hands dictionaries back in the order of their keys; ours are in the network's.
        names = network.names
        result = result._replace(
            activities={name: result.activities[name] for name in names},
            energies={name: result.energies[name] for name in names},
        )
        if result.trace is not None:
            ordered = {name: result.trace.energies[name] for name in names}
            result = result._replace(trace=result.trace._replace(energies=ordered))
        # The caller keeps the result and the network its activities: two buffers, so that neither
        # loses them when the other is donated to a compiled call.
        network.set_activities(jax.tree.map(jnp.copy, result.activities))
        return result


class AbstractIterativeInference(AbstractInference):
    """An algorithm made of equal steps, run under `jax.lax.scan`.

    Attributes:
        num_steps: how many steps to take, the same for every example.
    """

    num_steps: int

    @abc.abstractmethod
    def init(self, problem: InferenceProblem) -> PyTree:
        """The algorithm's own state before the first step."""

    @abc.abstractmethod
    def step(
        self,
        problem: InferenceProblem,
        coordinates: PyTree,
        state: PyTree,
        *,
        step: Int[Array, ""],
        key: PRNGKey | None,
    ) -> tuple[PyTree, PyTree, StepInfo]:
        """One step: new coordinates, new state, and what was seen before moving."""

    def solve(
        self, problem: InferenceProblem, *, key: PRNGKey | None = None, trace: bool = False
    ) -> InferenceResult:
        """Take `num_steps` steps from the start, then look once at where they ended."""

        def body(carry, step):
            coordinates, state = carry
            step_key = None if key is None else jax.random.fold_in(key, step)
            coordinates, state, info = self.step(
                problem, coordinates, state, step=step, key=step_key
            )
            return (coordinates, state), (info if trace else None)

        carry = (problem.start, self.init(problem))
        (coordinates, _), infos = jax.lax.scan(body, carry, jnp.arange(self.num_steps))
        last = observe(problem, coordinates)[0]
        recorded = None
        if trace:
            full = jax.tree.map(lambda steps, end: jnp.append(steps, end[None], 0), infos, last)
            recorded = Trace(full.energies, full.residual)
        return InferenceResult(
            activities=problem.decode(coordinates),
            energies=last.energies,
            residual=last.residual,
            num_steps=jnp.full(last.residual.shape, self.num_steps, jnp.int32),
            trace=recorded,
        )


def observe(problem: InferenceProblem, coordinates: PyTree) -> tuple[StepInfo, PyTree]:
    """Energies and residual at these coordinates, and the gradient they come with."""
    energies, gradient = problem.energy_and_gradient(coordinates)
    batch_size = next(iter(energies.values())).shape[0]
    return StepInfo(energies, residual(gradient, batch_size)), gradient


@functools.partial(jax.jit, static_argnames=("inference", "initializer", "trace"))
def _run(network: SplitNetwork, inputs, targets, key, *, inference, initializer, trace):
    start_key, solve_key = (None, None) if key is None else jax.random.split(key)
    problem = make_problem(network, inputs, targets, initializer=initializer, key=start_key)
    return inference.solve(problem, key=solve_key, trace=trace)
