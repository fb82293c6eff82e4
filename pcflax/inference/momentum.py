"""Nesterov's momentum with nothing to choose: it grows by the count of steps and begins anew where it hurts.

    z_{k+1} = y_k - step_size * dF(y_k)/dz,   y_{k+1} = z_{k+1} + (t_k - 1)/t_{k+1} (z_{k+1} - z_k)

with t_0 = 1 and t_{k+1} = (1 + sqrt(1 + 4 t_k^2))/2. Where an example's gradient points against its
velocity, or its energy has risen, t begins at 1 again (O'Donoghue & Candès, 2015, the gradient and the
function scheme). The sequence needs no smallest eigenvalue, and an energy that rises goes back to where it
did not: what momentum alone diverges by, late and without a sign, cannot come about.

The coordinates of an algorithm are y, where the gradient is taken. Users: `gradient.py` and
`curvature_descent.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from pcflax.dtypes import common_dtype
from pcflax.typing import PyTree

from .problem import VectorField
from .solve import rounding


def stable_curvature(momentum: Any = 0.0, *, nesterov: bool = False) -> Any:
    """Return the step size times lambda_max below which descent with a momentum m is stable.

    2, with momentum (1 + m) times that, and (1 + m)/(1 + 2m) times where it looks ahead: there the slowest
    root of x^2 - (1 + m - c) x + m, or of x^2 - (1 + m)(1 - c) x + m (1 - c), comes to -1.
    """
    return 2 * (1 + momentum) / (1 + 2 * momentum if nesterov else 1)


class Momentum(NamedTuple):
    """What is remembered of each example."""

    reached: PyTree  # z_k, shaped as the coordinates
    count: Float[Array, " batch"]  # t_k
    energy: Float[Array, " batch"]  # at the last y that was kept


def at_rest(problem: VectorField) -> Momentum:
    """Return the momentum before the first step: none."""
    dtype = common_dtype(jnp.float32, *jax.tree.leaves(problem.start))
    ones = jnp.ones((problem.batch_size,), dtype)
    return Momentum(problem.start, ones, jnp.full_like(ones, jnp.inf))


def accelerated(
    momentum: Momentum,
    stepped: PyTree,
    gradient: PyTree,
    energy: Float[Array, " batch"],
    *,
    last: Bool[Array, ""] | bool = False,
) -> tuple[PyTree, Momentum]:
    """Return the next y of each example, and its momentum.

    Args:
        momentum: of the step before.
        stepped: y - step_size * dF/dz, where the plain step leads.
        gradient: dF/dz at y.
        energy: F at y.
        last: whether this is the last step, which ends at z: nobody would see an energy risen beyond it.
    """

    def one(momentum, stepped, gradient, energy):
        reached, count, kept = momentum
        energy = energy.astype(kept.dtype)
        # t is 1, 1.62, 2.19, ...: y is z itself until it is above 2, and there is nothing to go back to
        back = (energy > kept + rounding(energy)) & (count > 2)
        velocity = jax.tree.map(jnp.subtract, stepped, reached)
        uphill = jnp.asarray(optax.tree.vdot(gradient, velocity)) > 0
        anew = back | uphill
        grown = jnp.where(anew, 1.0, (1 + jnp.sqrt(1 + 4 * count**2)) / 2)
        factor = jnp.where(anew | last, 0.0, (count - 1) / grown)
        reached = jax.tree.map(lambda old, new: jnp.where(back, old, new), reached, stepped)
        ahead = jax.tree.map(
            lambda z, v: z + (factor * v.astype(factor.dtype)).astype(z.dtype), reached, velocity
        )
        return ahead, Momentum(reached, grown, jnp.where(back, kept, energy))

    return jax.vmap(one)(momentum, stepped, gradient, energy)
