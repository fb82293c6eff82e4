"""Incremental predictive coding: activities and weights move together, at every inference step."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool

from pcflax.inference import (
    AbstractIterativeInference,
    InferenceProblem,
    expect_algorithm,
    make_problem,
)
from pcflax.inference.reach import Reach, reach
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
        reaching = self._reach(problem)

        def both(carry, number):
            coordinates, state, parameters, optimizer_state, moved = carry
            reached = {}
            if reaching is not None:
                # by momentum of the batch before, say, weights move without an error, and make one
                changed = _changed(network, parameters, reaching.nodes)
                erring, moved = reaching.after(moved, changed)
                reached = _by_layer(network, reaching.nodes, erring)
            now = problem.network.replace(parameters=parameters)
            current = dataclasses.replace(problem, network=now)
            activities = current.decode(coordinates)
            gradients, energies = now.mean_gradients(
                activities,
                problem.inputs,
                reached,
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
            now, optimizer_state = apply(
                now, optimizer, optimizer_state, gradients, energies, weights=evidence.weights
            )
            return (coordinates, state, now.parameters, optimizer_state, moved), energies

        begun = (problem.start, self.inference.init(problem), network.parameters)
        moved = None if reaching is None else jnp.zeros(len(reaching.nodes), jnp.bool_)
        carry = (*begun, optimizer_state, moved)
        carry, energies = jax.lax.scan(both, carry, jnp.arange(self.inference.num_steps))
        coordinates, _, parameters, optimizer_state, _ = carry
        info = LearningInfo(
            problem.decode(coordinates),
            {name: energies[name][-1] for name in energies},
            prediction,
        )
        return network.replace(parameters=parameters), optimizer_state, info

    def _reach(self, problem: InferenceProblem) -> Reach | None:
        """Return how errors get from node to node in a step of inference.

        None where it is not known, where a step takes them further, or where layers share weights.
        """
        steps = self.inference.gradient_steps(problem)
        if steps != self.inference.num_steps or not self.inference.rests():
            return None
        bound = problem.network.bind()
        for name in bound.names:
            own = jax.tree.leaves(problem.network.parameters.get(name, {}))
            if len(jax.tree.leaves(nnx.state(bound.layer(name), nnx.Param))) != len(own):
                return None
        return reach(problem)


def _changed(
    network: SplitNetwork, parameters: PyTree, nodes: tuple[str, ...]
) -> Bool[Array, " nodes"]:
    """Return which nodes' weights are others than the network's; all are where those of no layer are."""
    bound, found = network.bind(), dict.fromkeys(nodes, jnp.array(False))
    for name, before in network.parameters.items():
        for old, new in zip(*map(jax.tree.leaves, (before, parameters[name])), strict=True):
            other = (old != new).astype(jnp.int32)
            if name in bound.names:
                layer = bound.layer(name)
                own, others = layer.each_node_name(name), layer.sum_nodes(other).reshape(-1)
            else:
                own, others = nodes, [jnp.sum(other)] * len(nodes)
            found |= {n: found[n] | (some > 0) for n, some in zip(own, others, strict=True)}
    return jnp.stack([found[node] for node in nodes])


def _by_layer(
    network: SplitNetwork, nodes: tuple[str, ...], flags: Bool[Array, " nodes"]
) -> dict[str, Array]:
    """Return 1.0 or 0.0 by layer, (depth,) for a stack."""
    bound, by_node = network.bind(), dict(zip(nodes, jnp.where(flags, 1.0, 0.0), strict=True))
    found = {}
    for name in bound.names:
        layer = bound.layer(name)
        own = jnp.stack([by_node[node] for node in layer.each_node_name(name)])
        found[name] = own if layer.node_axis else own[0]
    return found
