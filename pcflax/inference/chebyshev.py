"""Chebyshev semi-iteration: the best row of steps for a Hessian of which the ends of the spectrum are known.

    d_k = rho_k rho_{k-1} d_{k-1} - 2 rho_k/delta dF/dz,   rho_k = 1/(2 theta/delta - rho_{k-1})

with theta and delta the middle and half the width of [smallest, largest]. On a quadratic energy it leaves
T_k((theta - lambda)/delta) / T_k(theta/delta) of the error along an eigenvector, T_k the polynomial of
Chebyshev: no other row of k gradient steps has a smaller worst case.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pcflax.checks import expect_count, expect_number
from pcflax.dtypes import common_dtype
from pcflax.energies import total_energy
from pcflax.typing import PRNGKey, PyTree

from .base import AbstractIterativeInference
from .curvature import expect_curvature, spectrum_ends
from .problem import InferenceProblem
from .solve import StepInfo, observe, rounding

# This part of the largest eigenvalue stands for a smallest one that is negative, or nearly 0.
_LEAST = 1e-4


class ChebyshevState(NamedTuple):
    """What is remembered of each example."""

    direction: PyTree  # d_k, the last move
    ratio: Float[Array, " batch"]  # rho_k; 0 where the next step is a first one
    plain: Float[Array, " batch"]  # 1 where the last move was a first one
    energy: Float[Array, " batch"]  # at the last place that was kept
    smallest: Float[Array, " batch"]
    largest: Float[Array, " batch"]


@dataclasses.dataclass(frozen=True)
class Chebyshev(AbstractIterativeInference):
    """z <- z + d_k, gradient descent whose steps are those of Chebyshev's polynomials (semi-iteration).

    Minimizes: F_i(z), the energy of each example, over its free activities.

    Fixed point: dF_i/dz_i = 0.

    Rate: (sqrt(k) - 1)/(sqrt(k) + 1) a step, with k = largest/smallest, where all eigenvalues lie between.
    Those below are reached more slowly; one above smallest + largest would diverge.

    Cost a step: one evaluation of the energy and its gradient. Before the first, two for each Lanczos
    iteration, where the ends are not given.

    Fails: slowly in deep chains, where so few Lanczos iterations find a smallest eigenvalue that is too
    large: `momentum="auto"` needs none. Where an example's energy rises, mostly because its Hessian is
    another on the way, it takes the last move back and begins anew; and with twice the largest eigenvalue
    if that move was a first one. Near the end of a row an energy may rise for a moment by right, too, which
    then costs a step. The last move of all is seen by nobody.

    Source: Golub & Varga (1961); Saad (2003), Iterative Methods for Sparse Linear Systems, algorithm 12.1;
    the bound of the largest eigenvalue: Zhou & Li (2011). The restarts are ours.

    Args:
        smallest: the smallest eigenvalue of the Hessian, for all examples; or
        largest: and the largest. Left out, both are each example's own, measured at the start.
        iterations: how many Lanczos iterations measure them.
        num_steps: a fixed count, 20 unless given; or
        tolerance: the residual at which an example stops, and
        max_steps: after how many steps at most; see `AbstractIterativeInference`.

    Raises:
        ValueError: for one end without the other, or ends that are not positive and in order; on use, for
            feedback weights, which have no energy.

    >>> import pcflax as pc
    >>> pc.inference.Chebyshev(tolerance=1e-4).iterations
    20
    """

    smallest: float | None = dataclasses.field(default=None, kw_only=True)
    largest: float | None = dataclasses.field(default=None, kw_only=True)
    iterations: int = dataclasses.field(default=20, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(
            self, "iterations", expect_count(self, "iterations", self.iterations, least=1)
        )
        ends = {"smallest": self.smallest, "largest": self.largest}
        if None in ends.values():
            for name, end in ends.items():
                if end is not None:
                    raise ValueError(
                        f"Chebyshev got {name} alone; give both ends of the spectrum, or none"
                    )
            return
        for name, end in ends.items():
            object.__setattr__(self, name, expect_number(self, name, end, above=0))
        smallest, largest = self.smallest, self.largest
        if isinstance(smallest, float) and isinstance(largest, float) and smallest > largest:
            raise ValueError(
                f"Chebyshev expected smallest to be at most largest, got {smallest} and {largest}"
            )

    @property
    def compares_energies(self) -> bool:
        """A row of steps begins anew where an energy has risen."""
        return True

    def gradient_steps(self, problem: InferenceProblem) -> int:
        """Return the number of steps: each is one along the gradient."""
        return self.stop.most_steps

    def init(self, problem: InferenceProblem) -> ChebyshevState | tuple:
        """Measure the ends of each example's spectrum, unless they are given."""
        expect_curvature(self, problem)
        if not problem.start:
            return ()
        zeros = jnp.zeros(
            (problem.batch_size,), common_dtype(jnp.float32, *jax.tree.leaves(problem.start))
        )
        if self.smallest is None or self.largest is None:
            smallest, largest = spectrum_ends(problem, problem.start, self.iterations)
            largest = jnp.where(largest > 0, largest, 1.0)
            smallest = jnp.maximum(smallest, _LEAST * largest)
        else:
            smallest, largest = zeros + self.smallest, zeros + self.largest
        nothing = jax.tree.map(jnp.zeros_like, problem.start)
        return ChebyshevState(nothing, zeros, zeros, zeros + jnp.inf, smallest, largest)

    def step(
        self, problem: InferenceProblem, coordinates, state, *, step, key: PRNGKey | None
    ) -> tuple[PyTree, PyTree, StepInfo]:
        """Update every free activity once."""
        del step, key  # each example counts for itself since it began anew; deterministic
        info, gradient = observe(problem, coordinates)
        if not coordinates:
            return coordinates, state, info
        moved, state = jax.vmap(_move)(coordinates, gradient, total_energy(info.energies), state)
        return moved, state, info


def _move(z: PyTree, gradient: PyTree, energy: Array, state: ChebyshevState) -> tuple:
    """Move one example, or go back by its last move."""
    direction, ratio, plain, kept, smallest, largest = state
    energy = energy.astype(kept.dtype)
    first = ratio == 0
    # back where the energy is known: another one there says that F has changed since, not that z has moved
    back = first & (plain == 0)
    rises = (energy > kept + rounding(energy)) & ~back
    largest = jnp.where(rises & (plain > 0), 2 * largest, largest)
    middle, half = (largest + smallest) / 2, (largest - smallest) / 2
    divisor = jnp.where(first, middle, 2 * middle - ratio * half)
    grown = half / divisor
    carried, pushed = grown * ratio, jnp.where(first, 1.0, 2.0) / divisor

    def turned(d, g):
        on = carried * d.astype(carried.dtype) - pushed * g.astype(pushed.dtype)
        return jnp.where(rises, -d, on.astype(d.dtype))

    moves = jax.tree.map(turned, direction, gradient)
    moved = jax.tree.map(jnp.add, z, moves)
    direction = jax.tree.map(lambda move: jnp.where(rises, 0, move).astype(move.dtype), moves)
    return moved, ChebyshevState(
        direction,
        jnp.where(rises, 0.0, grown),
        jnp.where(first & ~rises, 1.0, 0.0),
        jnp.where(rises, kept, energy),
        smallest,
        largest,
    )
