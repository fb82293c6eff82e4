"""Exact inference in linear networks: the energy is quadratic, so its minimum solves H z = b."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from pcflax.checks import expect_count
from pcflax.typing import PRNGKey, PyTree

from .base import AbstractInference
from .curvature import (
    check_solver,
    conjugate_gradients,
    expect_curvature,
    hessian_vector,
    solve_symmetric,
)
from .problem import InferenceProblem
from .result import InferenceResult, Seen
from .solve import finish_at_start, finished, keep_place, way_of

if TYPE_CHECKING:
    import lineax

# Loose, since each solve but the first works on the residual that the one before left: 32-bit floats do
# not get far in one.
_TOLERANCE, _ITERATIONS = 1e-4, 1000


@dataclasses.dataclass(frozen=True)
class LinearSolve(AbstractInference):
    """z* = z - H^-1 dF/dz from any z, where F is quadratic in the free activities.

    Minimizes: F_i(z), exactly, in one step.

    Fixed point: dF_i/dz_i = 0.

    Rate: conjugate gradients take at most as many products as there are free elements, about
    sqrt(condition number) in practice; a dense solver one factorization.

    Cost: a Hessian-vector product (about two gradients) for each iteration of CG; the whole Hessian of
    each example, free elements squared, for a dense solver.

    Fails: with a dense solver where H is singular (a flat prior of a root that nothing determines: take
    CG). A network that is not linear is refused, with the layer and the operation.

    Source: Innocenti et al. (2024), arXiv 2408.11979, for the Hessian of linear networks.

    Args:
        solver: any lineax solver of symmetric positive systems: `lineax.CG(rtol, atol)`, which forms
            no matrix, or `lineax.Cholesky()` for small networks. CG to a relative residual of 1e-4,
            in at most 1000 iterations, unless given. Its tolerances are relative to the gradient's
            largest element.
        refinements: solves after the first, each of the residual that is left.

    Raises:
        TypeError: where `solver` is not a lineax solver.
        ValueError: for a negative number of refinements.
        ValueError: on use, for a network whose energy is not quadratic.

    >>> import jax.numpy as jnp, lineax, pcflax as pc
    >>> from flax import nnx
    >>> rngs = nnx.Rngs(0)
    >>> network = pc.PCNetwork([pc.PCDense(3, 4, rngs=rngs), pc.PCDense(4, 2, rngs=rngs)])
    >>> exact = pc.inference.LinearSolve(lineax.Cholesky())
    >>> result = network.infer(jnp.ones((1, 3)), jnp.ones((1, 2)), inference=exact)
    >>> float(result.residual[0]) < 1e-6
    True
    """

    solver: lineax.AbstractLinearSolver | None = None
    refinements: int = dataclasses.field(default=2, kw_only=True)

    finds_equilibrium = True

    def __post_init__(self):
        check_solver(self, self.solver, "lineax.CG(rtol=1e-6, atol=1e-6) or lineax.Cholesky()")
        refinements = expect_count(self, "refinements", self.refinements)
        object.__setattr__(self, "refinements", refinements)

    def solve(
        self,
        problem: InferenceProblem,
        *,
        key: PRNGKey | None = None,
        trace: bool = False,
        record: Callable[[Seen], PyTree] | None = None,
    ) -> InferenceResult:
        """Solve one linear system for each example; trace and records have its start and its end."""
        del key  # deterministic
        expect_curvature(self, problem)
        if not problem.start:
            return finish_at_start(problem, trace, record)
        refuse_nonlinear(problem)

        def alone(problem: InferenceProblem):
            start, held = problem.start, problem.held()

            def product(vector):
                # a held element has no curvature; 1 keeps the matrix regular and its move at 0
                return jax.tree.map(
                    lambda c, v, h: jnp.where(h, v, c),
                    hessian_vector(problem, start, vector),
                    vector,
                    held,
                )

            solver = self.solver or conjugate_gradients(start, _TOLERANCE, _ITERATIONS)

            def refine(at, _):
                move, taken = solve_symmetric(product, problem.gradient(at), solver)
                return jax.tree.map(lambda z, m: z - m, at, move), taken

            moved, taken = jax.lax.scan(refine, start, length=1 + self.refinements)
            return moved, jnp.sum(taken)[None]

        coordinates, num_steps = problem.for_each_example(alone)
        way = (None, None)
        if trace or record is not None:
            ends = (keep_place(problem, z, trace, record) for z in (problem.start, coordinates))
            way = way_of(*ends)
        return finished(problem, coordinates, num_steps, None, *way)


def refuse_nonlinear(problem: InferenceProblem) -> None:
    """Refuse an energy whose gradient is not affine in the free coordinates, by tracing alone.

    An affine function is one that jax can transpose, constants aside.
    """
    if _reason(problem.gradient, problem.start) is None:
        return
    for name in problem.network.bind().wiring.targets:

        def own_prediction(coordinates, name=name):
            return problem.activities_and_predictions(coordinates)[1][name]

        def own_gradient(coordinates, name=name):
            return jax.grad(lambda z: jnp.sum(problem.energies(z)[name]))(coordinates)

        # the prediction first: it names an operation, its derivative mostly a product
        reason = _reason(own_prediction, problem.start) or _reason(own_gradient, problem.start)
        if reason is not None:
            raise ValueError(
                f"LinearSolve needs an energy that is quadratic in the activities, but layer '{name}' "
                f"is not linear ({reason}); take pc.inference.NewtonCG() or another algorithm"
            )
    raise ValueError("LinearSolve needs an energy that is quadratic in the activities")


def _reason(function: Callable[[PyTree], PyTree], at: PyTree) -> str | None:
    """Return why jax cannot transpose the function; None where it can."""
    structure = jax.eval_shape(lambda: at)
    try:
        out = jax.eval_shape(function, structure)
        jax.eval_shape(jax.linear_transpose(function, structure), out)
    except NotImplementedError as error:
        operation = str(error).split("'")
        return f"'{operation[1]}'" if len(operation) > 2 else "its operations"
    except (AssertionError, TypeError, ValueError, RuntimeError):
        return "a product of activities"
    return None
