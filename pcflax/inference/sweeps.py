"""Sweeps: layers move one after the other, or in colors, each against neighbors that have moved already.

Gradient descent moves all layers at once, each against where its neighbors were (Jacobi). A layer shares
energies with those that it predicts, those that it is predicted from, and those beside it in a prediction
alone, so layers that share none may move together, and what moves next sees them where they are now
(Gauss-Seidel). In a chain two colors do: even and odd layers.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pcflax.checks import expect_number
from pcflax.dtypes import product
from pcflax.energies import total_energy
from pcflax.networks.wiring import names_of
from pcflax.typing import PRNGKey, PyTree

from .base import AbstractIterativeInference
from .curvature import Direction, expect_curvature, norm_of, random_direction
from .problem import InferenceProblem
from .solve import StepInfo, expect_energy, observe, over

ORDERS = ("red-black", "sequential")

# Power iterations of each block before the first sweep; one more goes along with every move.
_FIRST_ITERATIONS = 10

Group: TypeAlias = Mapping[str, Any]
"""What moves together: {layer: which of a stack's nodes, (depth,), or True}."""


@dataclasses.dataclass(frozen=True)
class Sweeps(AbstractIterativeInference):
    """z_l <- z_l - step_size * dF/dz_l, layer after layer, each against what has moved before it.

    Minimizes: F_i(z), the energy of each example, over its free activities.

    Fixed point: dF_i/dz_i = 0.

    Rate: linear; on a linear chain of single units, with steps of w/H_ll, that of successive
    over-relaxation, and of Gauss-Seidel at w = 1, which takes half the steps of Jacobi's iteration. A
    deep chain's number of sweeps still grows as the square of its depth.

    Cost a step, which is one whole sweep: two gradients in "red-black" order, one for each color (a graph
    may need more), each of the energies that its layers share. In "sequential" order, each energy is
    evaluated once for every layer that shares it, about two gradients in all, but one after the other; a
    stack evaluates all its layers once for each: unroll it there. "auto" doubles this.

    Fails: as gradient descent; by divergence for a step_size of 2/lambda_max of a layer's own block of the
    Hessian and above, which is more than gradient descent bears.

    Source: Scellier et al. (2023), arXiv 2312.15103, asynchronous updates of even and odd layers; Alonso
    et al. (2023), arXiv 2305.13562, from top to bottom. The coloring, the greedy one from the bottom up,
    and the blocks' own steps are ours.

    Args:
        step_size: one number for all layers, or "auto" for 1/lambda_max of each layer's own block, in each
            example.
        order: "red-black", every second layer, from the lowest free one, then the others; or
            "sequential", from the top to the bottom.
        num_steps: a fixed count of sweeps, 20 unless given; or
        tolerance: the residual at which an example stops, and
        max_steps: after how many sweeps at most; see `AbstractIterativeInference`.

    Raises:
        ValueError: for another order; on use, for "auto" with feedback weights, which have no energy.
        TypeError: on use, in other coordinates than activities, where layers share other energies.

    >>> import pcflax as pc
    >>> pc.inference.Sweeps(0.2, order="sequential", num_steps=5).order
    'sequential'
    """

    step_size: Any = "auto"
    order: Literal["red-black", "sequential"] = dataclasses.field(default="red-black", kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if self.order not in ORDERS:
            raise ValueError(
                f'Sweeps expected order="red-black" or "sequential", got {self.order!r}; all layers at once '
                f"are pc.inference.GradientDescent"
            )
        if not self._auto:
            step_size = expect_number(self, 'step_size (or "auto")', self.step_size, above=0)
            object.__setattr__(self, "step_size", step_size)

    @property
    def _auto(self) -> bool:
        return isinstance(self.step_size, str) and self.step_size == "auto"

    def gradient_steps(self, problem: InferenceProblem) -> int:
        """Return one for each group of each sweep, which moves by nothing but its own gradient."""
        alone = self.order == "sequential"
        groups = problem.network.bind().nodes if alone else tuple(_colours(problem))
        return self.stop.most_steps * len(groups)

    def init(self, problem: InferenceProblem) -> Mapping[str, Direction]:
        """Return a direction for each node of each example, and the curvature along it, for "auto"."""
        expect_energy(self, problem)
        if type(problem) is not InferenceProblem:
            raise TypeError(
                f"Sweeps moves the activities of a network's own energy, layer by layer, got a "
                f"{type(problem).__name__}; take pc.inference.GradientDescent there"
            )
        if not self._auto:
            return {}
        expect_curvature(self, problem)
        if not problem.start:
            return {}
        vectors, stacks = random_direction(problem).vector, _stacks(problem)
        state = {name: _of_nodes(leaf, name in stacks) for name, leaf in vectors.items()}

        def iterate(_, state):
            for group in _colours(problem):
                state = _curved(problem, problem.start, state, group)[1]
            return state

        return jax.lax.fori_loop(0, _FIRST_ITERATIONS, iterate, state)

    def step(
        self, problem: InferenceProblem, coordinates, state, *, step, key: PRNGKey | None
    ) -> tuple[PyTree, PyTree, StepInfo]:
        """Make one sweep over every free activity."""
        del step, key  # alike at every step; deterministic
        info = observe(problem, coordinates)[0]
        if self.order == "red-black":
            for group in _colours(problem):
                coordinates, state = self._moved(problem, coordinates, state, group)
            return coordinates, state, info
        stacks = _stacks(problem)
        for name in reversed(
            [name for name in problem.network.bind().names if name in coordinates]
        ):
            depth = stacks.get(name, 1)

            def move(index, carry, name=name, depth=depth):
                which = jnp.arange(depth) == depth - 1 - index if name in stacks else True
                return self._moved(problem, carry[0], carry[1], {name: which})

            carry = (coordinates, state)
            carry = jax.lax.fori_loop(0, depth, move, carry) if depth > 1 else move(0, carry)
            coordinates, state = carry
        return coordinates, state, info

    def _moved(
        self, problem: InferenceProblem, coordinates: PyTree, state: PyTree, group: Group
    ) -> tuple[PyTree, PyTree]:
        """Move one group, and its directions with it."""
        if self._auto:
            gradient, state = _curved(problem, coordinates, state, group)
        else:
            gradient = _gradient(problem, coordinates, group)
        moved = dict(coordinates)
        for name, slope in gradient.items():
            if self._auto:
                found = over(state[name].eigenvalue, slope)
                move = slope / jnp.where(found > 0, found, 1.0)
            else:
                move = product(self.step_size, slope)
            moved[name] = coordinates[name] - _part(move, group[name]).astype(
                coordinates[name].dtype
            )
        return moved, state


def _gradient(problem: InferenceProblem, coordinates: PyTree, group: Group) -> PyTree:
    """Return dF/dz of the layers of a group: of the energies that they have a part in."""
    bound = problem.network.bind()
    seen = {layer for layer, nodes in _sharing(bound).items() if nodes & group.keys()}

    def energy(own):
        return jnp.sum(total_energy(problem.energies({**coordinates, **own}, seen)))

    return jax.grad(energy)({name: coordinates[name] for name in group})


def _curved(
    problem: InferenceProblem, coordinates: PyTree, state: PyTree, group: Group
) -> tuple[PyTree, PyTree]:
    """Return the gradient of a group, and one power iteration with its block of the Hessian.

    Nodes of one group share no energy, so its block consists of theirs, each with a norm of its own.
    """
    vectors = {name: _part(state[name].vector, which) for name, which in group.items()}
    own = {name: coordinates[name] for name in group}
    gradient, products = jax.jvp(
        lambda own: _gradient(problem, {**coordinates, **own}, group), (own,), (vectors,)
    )
    state = dict(state)
    for name, which in group.items():
        old = state[name]
        new = _of_nodes(_part(products[name], which), old.eigenvalue.ndim > 1)
        # as it was where it has not moved, or the energy has no curvature along it
        keep = new.eigenvalue > 0
        state[name] = Direction(
            jnp.where(over(keep, old.vector), new.vector, old.vector),
            jnp.where(keep, new.eigenvalue, old.eigenvalue),
        )
    return gradient, state


def _of_nodes(leaf: Array, stacked: bool) -> Direction:
    """Return an array of norm 1 for each node of each example, and the norms that it had."""
    axes = tuple(range(2 if stacked else 1, leaf.ndim))
    norm, scale = norm_of(jnp.sum(leaf * leaf, axis=axes))
    return Direction((leaf / over(scale, leaf)).astype(leaf.dtype), norm)


def _part(leaf: Array, which: Any) -> Array:
    """Return an array with 0 at the nodes of a stack that are not meant."""
    if which is True:
        return leaf
    return jnp.where(jnp.reshape(which, (1, -1) + (1,) * (leaf.ndim - 2)), leaf, 0)


def _sharing(bound: Any) -> dict[str, set[str]]:
    """Return which layers' activities each energy is a function of, by the layer that predicts."""
    parents = [(name, own) for name, own, *_ in (*bound.wiring.parents, *bound.wiring.predictors)]
    return {name: {bound.wiring.targets[name], *names_of(own)} for name, own in parents}


def _stacks(problem: InferenceProblem) -> dict[str, int]:
    """Return {name: depth} of the free stacks."""
    bound = problem.network.bind()
    return {n: bound.layer(n).num_nodes for n in problem.start if bound.layer(n).node_axis}


def _colours(problem: InferenceProblem) -> Iterator[Group]:
    """Yield groups of free nodes that share no energy, by the greedy coloring from the bottom up."""
    bound, stacks = problem.network.bind(), _stacks(problem)
    beside: dict[tuple[str, int], set] = {}
    for name, nodes in _sharing(bound).items():
        target = bound.wiring.targets[name]
        tops = {(node, stacks.get(node, 1) - 1) for node in nodes - {target}}
        chain = [tops, *({(target, index)} for index in range(stacks.get(target, 1)))]
        for below, above in itertools.pairwise(chain):
            for node in below | above:
                beside.setdefault(node, set()).update((below | above) - {node})
    colours: dict[tuple[str, int], int] = {}
    for name in bound.names:
        for index in range(stacks.get(name, 1) if name in problem.start else 0):
            taken = {colours.get(other) for other in beside.get((name, index), ())}
            colours[name, index] = next(c for c in range(len(taken) + 1) if c not in taken)
    for colour in sorted(set(colours.values())):
        group = {}
        for name in problem.start:
            which = np.array([colours[name, i] == colour for i in range(stacks.get(name, 1))])
            if which.any():
                group[name] = which if name in stacks else True
        yield group
