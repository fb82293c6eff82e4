"""Guards of a step size that was given: how far an example may step, and what happens where it was too far.

Gradient descent is stable for step sizes below 2/lambda_max of the Hessian, and lambda_max grows while a
network trains. With step sizes by layer, D = diag(step sizes), that is lambda_max(D^1/2 H D^1/2) < 2; power
iteration finds the one as it finds the other. Next file to read: `gradient.py`, which asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pcflax.dtypes import product, promoted
from pcflax.energies import total_energy
from pcflax.typing import PyTree

from .curvature import (
    Direction,
    largest_eigenvalue,
    normalized,
    power_iteration,
    random_direction,
)
from .problem import InferenceProblem, VectorField
from .solve import StepInfo, choose, observe, rounding

# Power iterations before the first step, and of how many steps one brings another along: an odd number, since
# a step that is too large goes back and forth, and the energy may be steep on one side alone.
FIRST_ITERATIONS, EVERY = 4, 5
# Before a warning, which changes nothing and may take its time.
WARNING_ITERATIONS = 20


class GuardState(NamedTuple):
    """The state of a descent that is guarded."""

    inner: PyTree  # of the transformation itself
    direction: Direction | None  # with the largest curvature, in steps; None unless "clip"
    shrunk: Float[Array, " batch"] | None  # what back-off has left of each example's steps


def expect_energy_and_curvature(problem: VectorField) -> InferenceProblem:
    """Refuse a field that is no energy's, or is followed by feedback weights.

    Raises:
        TypeError, ValueError: saying which.
    """
    if not isinstance(problem, InferenceProblem):
        raise TypeError(
            f"a guard or a backoff needs an energy that falls, but {type(problem).__name__} is a vector "
            f"field that is the gradient of none; leave guard and backoff of GradientDescent out"
        )
    problem.network.bind().check_no_feedback("a guard or a backoff needs the curvature of one")
    return problem


def begin(descent: Any, problem: Any, inner: PyTree) -> GuardState:
    """Return the state before the first step."""
    direction = None
    if descent.guard == "clip":
        direction = largest_curvature(problem, descent.rates(problem.start), FIRST_ITERATIONS)
    energy = jax.eval_shape(problem.energy, problem.start)
    shrunk = None if descent.backoff is None else jnp.ones(energy.shape, energy.dtype)
    return GuardState(inner, direction, shrunk)


def step(
    descent: Any,
    problem: Any,
    coordinates: PyTree,
    state: GuardState,
    number: Int[Array, ""] | int,
) -> tuple[PyTree, GuardState, StepInfo, PyTree]:
    """Make a step that is stable as far as the curvature is known, and take back one that was not.

    Returns:
        where it leads, the state, what was seen before it, and dF/dz there.
    """
    inner, direction, shrunk = state
    info, field, direction = _look(descent, problem, coordinates, direction, number)
    part = jnp.ones_like(info.residual) if shrunk is None else shrunk
    if direction is not None:
        most = descent.safety * jnp.minimum(2.0, descent.stable_curvature) * problem.stable_part
        # not "<=": where the curvature is not a number nothing is known, and the step is as it was given
        above = jnp.greater(*promoted(part * direction.eigenvalue, most))
        least = jnp.divide(*promoted(most, direction.eigenvalue)).astype(part.dtype)
        part = jnp.where(above, least, part)
    energy = total_energy(info.energies)
    moved, after = descent.moved(problem, coordinates, inner, field, energy, part)
    if shrunk is None:
        return moved, GuardState(after, direction, None), info, field
    fell = problem.energy(moved) <= energy + rounding(energy)  # not where it is no number
    moved = choose(fell, moved, coordinates)
    after = choose(fell, after, descent.resting(problem, coordinates))
    shrunk = jnp.where(fell, shrunk, product(descent.backoff, part).astype(shrunk.dtype))
    return moved, GuardState(after, direction, shrunk), info, field


def overstep(descent: Any, problem: InferenceProblem) -> Float[Array, " batch"]:
    """Return each example's step size as a multiple of the largest stable one, at the start."""
    expect_energy_and_curvature(problem)
    if not problem.start:
        return jnp.zeros((problem.batch_size,))
    found = largest_curvature(problem, descent.rates(problem.start), WARNING_ITERATIONS)
    return found.eigenvalue / (descent.stable_curvature * problem.stable_part)


def largest_curvature(
    problem: InferenceProblem, rates: Mapping[str, Any], num_iterations: int
) -> Direction:
    """Return lambda_max(D^1/2 H D^1/2) of each example at the start, by so many power iterations.

    From the gradient, along which the first steps go, and half as much of a random direction: the gradient of
    a feedforward start has no part in lower layers, and a random one little where the energy is steepest.
    Unequal parts never cancel, which equal ones do where one element is free.
    """
    roots = _roots(rates, problem.start)
    slope = normalized(jax.tree.map(jnp.multiply, roots, problem.gradient(problem.start))).vector
    mixed = jax.tree.map(lambda g, r: g + r / 2, slope, random_direction(problem).vector)
    return largest_eigenvalue(problem, problem.start, normalized(mixed), num_iterations, roots)


def _look(
    descent: Any,
    problem: InferenceProblem,
    coordinates: PyTree,
    direction: Direction | None,
    number,
) -> tuple[StepInfo, PyTree, Direction | None]:
    """Return what a step sees before it moves, and the curvature, which is looked at now and then."""
    if direction is None:
        return *observe(problem, coordinates), None

    def follow(direction):
        roots = _roots(descent.rates(coordinates), coordinates)
        direction, energies, field = power_iteration(problem, coordinates, direction, roots)
        return StepInfo(energies, problem.residual(field)), field, direction

    def keep(direction):
        return *observe(problem, coordinates), direction

    return jax.lax.cond(jnp.asarray(number) % EVERY == EVERY - 1, follow, keep, direction)


def _roots(rates: Mapping[str, Any], coordinates: PyTree) -> PyTree:
    return {name: jnp.sqrt(jnp.asarray(rates[name], z.dtype)) for name, z in coordinates.items()}
