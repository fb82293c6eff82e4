"""Newton inference: equilibria in few steps, from curvature-vector products and conjugate gradients."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pcflax.dtypes import common_dtype
from pcflax.energies import total_energy
from pcflax.typing import PRNGKey, PyTree

from .base import AbstractIterativeInference
from .curvature import (
    check_solver,
    conjugate_gradients,
    expect_curvature,
    hessian_vector,
    solve_symmetric,
)
from .problem import InferenceProblem
from .solve import StepInfo, choose, observe, rounding

if TYPE_CHECKING:
    import lineax

# Loose enough that far from the minimum no product is wasted, tight enough that each full step near it
# shrinks the residual a thousandfold.
_TOLERANCE, _ITERATIONS = 1e-3, 200

_FIRST_DAMPING, _LEAST_DAMPING = 1e-3, 1e-9


class NewtonState(NamedTuple):
    """The damping of each example, (batch,): small where its steps succeed."""

    damping: Float[Array, " batch"]


@dataclasses.dataclass(frozen=True)
class AbstractNewton(AbstractIterativeInference):
    """Damped steps z <- z - (C + damping I)^-1 dF/dz with a curvature C; see the two final classes.

    A step that raises an example's energy (by more than rounding) is not taken, and its damping grows
    tenfold; one that does not is, and the damping shrinks tenfold (Levenberg's and Marquardt's rule).
    Each example has its own.
    """

    linear_solver: lineax.AbstractLinearSolver | None = dataclasses.field(
        default=None, kw_only=True
    )

    finds_equilibrium = True  # derivatives through a few inexact solves would be wrong

    def __post_init__(self):
        super().__post_init__()
        check_solver(self, self.linear_solver, "lineax.CG(rtol=1e-3, atol=1e-6)")

    @abc.abstractmethod
    def curvature(
        self, problem: InferenceProblem, coordinates: PyTree
    ) -> Callable[[PyTree], PyTree]:
        """Return the product v -> C v at these coordinates."""

    def init(self, problem: InferenceProblem) -> NewtonState:
        """Return a small damping for each example."""
        expect_curvature(self, problem)
        dtype = common_dtype(float, *jax.tree.leaves(problem.start))
        return NewtonState(jnp.full((problem.batch_size,), _FIRST_DAMPING, dtype))

    def step(
        self,
        problem: InferenceProblem,
        coordinates,
        state: NewtonState,
        *,
        step,
        key: PRNGKey | None,
    ) -> tuple[PyTree, NewtonState, StepInfo]:
        """Make one damped step of each example, where its energy does not rise."""
        del step, key  # alike at every step; deterministic
        info, gradient = observe(problem, coordinates)
        if not coordinates:
            return coordinates, state, info

        def direction(problem, coordinates, gradient, damping):
            product = self.curvature(problem, coordinates)

            def damped(vector):
                return jax.tree.map(
                    lambda c, v: c + damping[0].astype(v.dtype) * v, product(vector), vector
                )

            solver = self.linear_solver or conjugate_gradients(gradient, _TOLERANCE, _ITERATIONS)
            return solve_symmetric(damped, gradient, solver)[0]

        moves = problem.for_each_example(direction, coordinates, gradient, state.damping)
        trial = jax.tree.map(lambda z, move: z - move, coordinates, moves)
        before, after = total_energy(info.energies), problem.energy(trial)
        # At the minimum the energy only changes by rounding: such a step is as good as any.
        slack = rounding(before)
        better = after <= before + slack
        moved = choose(better, trial, coordinates)
        # ... and says nothing of the damping: smaller, steps might overshoot for ever
        success = after < before - slack
        damping = state.damping * jnp.where(success, 0.1, jnp.where(better, 1.0, 10.0))
        return (
            moved,
            NewtonState(jnp.maximum(damping, _LEAST_DAMPING).astype(state.damping.dtype)),
            info,
        )


@dataclasses.dataclass(frozen=True)
class NewtonCG(AbstractNewton):
    """Newton steps on the energy's own Hessian, C = d2F/dz2, solved by conjugate gradients.

    Minimizes: F_i(z) over the free activities of each example.

    Fixed point: dF_i/dz_i = 0.

    Rate: superlinear near the minimum, with a residual a thousandfold smaller a step at least.

    Cost a step: two gradients and a Hessian-vector product (about two gradients) for each iteration of
    the linear solver; the example that needs most decides for the batch.

    Fails: slowly where the Hessian is indefinite, far from a minimum: steps are then refused until the
    damping outweighs its negative eigenvalues. `GaussNewton` has none, for Gaussian energies.

    Source: Nocedal & Wright (2006), Numerical Optimization, sections 7.1 and 10.3.

    Args:
        linear_solver: any lineax solver of symmetric systems; `lineax.CG` works without a matrix,
            `lineax.LU()` forms it. Its tolerances are relative to the gradient's largest element.
        num_steps: a fixed count, 20 unless given; or
        tolerance: the residual at which an example stops, and
        max_steps: after how many steps at most.

    >>> import pcflax as pc
    >>> pc.inference.NewtonCG(tolerance=1e-5, max_steps=30).max_steps
    30
    """

    def curvature(self, problem: InferenceProblem, coordinates) -> Callable[[PyTree], PyTree]:
        """Return the product with d2F/dz2."""
        return lambda vector: hessian_vector(problem, coordinates, vector)


@dataclasses.dataclass(frozen=True)
class GaussNewton(AbstractNewton):
    """Newton steps on the generalized Gauss-Newton matrix, without the curvature of predictions.

    C = J^T (d2E/d(z, mu)2) J, with J the derivative of all activities and predictions with respect to
    the free coordinates: what the Hessian is without the second derivatives of the predictions. It has
    no negative eigenvalues where the energies are convex in (z, mu) together, as Gaussian ones are: there
    it is J_e^T J_e of the errors. On a linear network it is the Hessian.

    Minimizes: F_i(z) over the free activities of each example.

    Fixed point: dF_i/dz_i = 0.

    Rate: as `NewtonCG` where the errors at the minimum are small or the network nearly linear, linear
    otherwise.

    Cost a step: as `NewtonCG`.

    Fails: slowly where errors stay large and activations are curved.

    Source: Schraudolph (2002), Neural Computation 14(7); Nocedal & Wright (2006), section 10.3.

    Args:
        linear_solver: any lineax solver of symmetric systems; `lineax.CG` works without a matrix.
        num_steps: a fixed count, 20 unless given; or
        tolerance: the residual at which an example stops, and
        max_steps: after how many steps at most.

    >>> import pcflax as pc
    >>> pc.inference.GaussNewton(num_steps=5).num_steps
    5
    """

    def curvature(self, problem: InferenceProblem, coordinates) -> Callable[[PyTree], PyTree]:
        """Return the product with J^T (d2E/d(z, mu)2) J."""
        pairs, pushed = jax.linearize(problem.activities_and_predictions, coordinates)
        pulled = jax.linear_transpose(pushed, coordinates)
        outer = jax.grad(lambda pairs: jnp.sum(total_energy(problem.energies_of_pairs(pairs))))

        def product(vector):
            return pulled(jax.jvp(outer, (pairs,), (pushed(vector),))[1])[0]

        return product
