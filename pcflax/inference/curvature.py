"""The curvature of the energy over the free coordinates, by Hessian-vector products alone.

H_i = d2F_i/dz_i2 is never formed: H v is the derivative of the gradient along v, at about the cost of
two gradients. Its largest eigenvalue bounds the step of gradient descent, step_size < 2/lambda_max.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pcflax.dtypes import common_dtype
from pcflax.typing import Energies, PyTree

from .problem import InferenceProblem
from .solve import choose, expect_energy, over

if TYPE_CHECKING:
    import lineax


class Direction(NamedTuple):
    """A direction for each example, and the curvature found along it."""

    vector: PyTree  # shaped as the coordinates, of norm 1 for each example
    eigenvalue: Float[Array, " batch"]  # |H v|: at most the largest |eigenvalue| of the Hessian


def expect_curvature(owner: object, problem: Any) -> None:
    """Refuse what has no symmetric Hessian: what is no energy's, or has feedback weights.

    Raises:
        TypeError, ValueError: naming the owner.
    """
    name = owner if isinstance(owner, str) else type(owner).__name__
    bound = expect_energy(owner, problem).network.bind()
    bound.check_no_feedback(f"{name} needs the curvature of one")


def hessian_vector(problem: InferenceProblem, coordinates: PyTree, vector: PyTree) -> PyTree:
    """Return H_i v_i of each example."""
    return jax.jvp(problem.gradient, (coordinates,), (vector,))[1]


def random_direction(problem: InferenceProblem) -> Direction:
    """Return a pseudo-random direction, the same for every example, with a part along each eigenvector."""
    leaves, structure = jax.tree.flatten(problem.start)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    vector = [
        jnp.broadcast_to(jax.random.normal(key, leaf.shape[1:], leaf.dtype), leaf.shape)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    direction = normalized(jax.tree.unflatten(structure, vector))
    return direction._replace(eigenvalue=jnp.zeros_like(direction.eigenvalue))  # not looked for yet


def power_iteration(
    problem: InferenceProblem, coordinates: PyTree, direction: Direction, scales: PyTree = None
) -> tuple[Direction, Energies, PyTree]:
    """Return v <- H v / |H v| of each example, and the energies and the gradient, which come with it.

    With `scales` S, numbers shaped as the coordinates are or broadcast to them, it is that of S H S.
    """

    def scaled(vector):
        return vector if scales is None else jax.tree.map(jnp.multiply, vector, scales)

    def gradient(coordinates):
        energies, gradient = problem.energy_and_gradient(coordinates)
        return gradient, energies

    gradient, product, energies = jax.jvp(
        gradient, (coordinates,), (scaled(direction.vector),), has_aux=True
    )
    found = normalized(scaled(product))
    # where the energy has no curvature along v, v is kept: it may have some at the next place
    flat = found.eigenvalue == 0
    kept = choose(~flat, found.vector, direction.vector)
    eigenvalue = jnp.where(flat, direction.eigenvalue, found.eigenvalue)
    return Direction(kept, eigenvalue), energies, gradient


def largest_eigenvalue(
    problem: InferenceProblem,
    coordinates: PyTree,
    direction: Direction,
    num_iterations: int,
    scales: PyTree = None,
) -> Direction:
    """Make `num_iterations` power iterations from this direction, at fixed coordinates."""
    return jax.lax.fori_loop(
        0,
        num_iterations,
        lambda _, direction: power_iteration(problem, coordinates, direction, scales)[0],
        direction,
    )


def spectrum_ends(
    problem: InferenceProblem, coordinates: PyTree, num_iterations: int
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """Return the ends of each example's spectrum, by so many Lanczos iterations from a random direction.

    The smallest eigenvalue comes out from above, further the fewer iterations there are. The largest is
    the Ritz value and its residual added, below which it lies (Zhou & Li, 2011). Elements that a mask
    holds have no part in either.
    """
    begin = jax.tree.map(
        lambda leaf, held: jnp.where(held, 0, leaf).astype(leaf.dtype),
        random_direction(problem).vector,
        problem.held(),
    )
    dtype = common_dtype(jnp.float32, *jax.tree.leaves(begin))

    def iterate(carry, _):
        vector, before, off = carry
        product = hessian_vector(problem, coordinates, vector)
        pairs = zip(jax.tree.leaves(product), jax.tree.leaves(vector), strict=True)
        dots = [jnp.sum(p * v, axis=range(1, v.ndim), dtype=dtype) for p, v in pairs]
        diagonal = jnp.sum(jnp.stack(dots), axis=0)

        def orthogonal(p, v, w):
            wide, one, other = (leaf.astype(dtype) for leaf in (p, v, w))
            return (wide - over(diagonal, v) * one - over(off, w) * other).astype(v.dtype)

        found = normalized(jax.tree.map(orthogonal, product, vector, before))
        off = found.eigenvalue.astype(dtype)
        return (found.vector, vector, off), (diagonal, off)

    vector, none = normalized(begin).vector, jax.tree.map(jnp.zeros_like, begin)
    carry = vector, none, jnp.zeros((problem.batch_size,), dtype)
    _, (diagonals, offs) = jax.lax.scan(iterate, carry, length=num_iterations)
    # after a direction of 0 there is none; the first one's curvature, within the spectrum, stands there
    ended = jnp.cumsum(jnp.roll(offs == 0, 1, axis=0).at[0].set(False), axis=0) > 0
    diagonals = jnp.where(ended, diagonals[0], diagonals)
    shifted = jax.vmap(lambda off: jnp.diag(off, 1) + jnp.diag(off, -1))(offs[:-1].T)
    matrix = jax.vmap(jnp.diag)(diagonals.T) + shifted
    values, vectors = jnp.linalg.eigh(matrix)
    return values[:, 0], values[:, -1] + offs[-1] * jnp.abs(vectors[:, -1, -1])


def check_solver(owner: object, solver: object, example: str) -> None:
    """Raise TypeError where a solver is given that is not lineax's."""
    if solver is None:
        return
    import lineax  # loads Equinox too, which most runs do without

    if not isinstance(solver, lineax.AbstractLinearSolver):
        raise TypeError(
            f"{type(owner).__name__} expected a lineax solver such as {example}, got {solver!r}"
        )


def solve_symmetric(
    product: Callable[[PyTree], PyTree], vector: PyTree, solver: lineax.AbstractLinearSolver
) -> tuple[PyTree, Int[Array, ""]]:
    """Solve C x = vector for one example; return x and the iterations taken.

    Vector and matrix are scaled to largest elements of about 1, so that a solver's `atol` is relative to
    them: from a feedforward start most elements are exactly zero, and no `rtol` of zero is ever reached.
    The solver works in 32 bits at least. Where it breaks down, the answer is 0: no move.
    """
    import lineax

    dtypes = jax.tree.map(lambda leaf: leaf.dtype, vector)

    def wide(tree):
        return jax.tree.map(lambda leaf: leaf.astype(common_dtype(leaf.dtype, jnp.float32)), tree)

    def narrow(tree):
        return jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), tree, dtypes)

    def times(tree, factor):
        return jax.tree.map(lambda leaf: leaf * factor, tree)

    vector = wide(vector)
    size = _largest(vector)
    scaled = times(vector, 1 / size)
    stretch = _largest(wide(product(narrow(scaled))))
    operator = lineax.FunctionLinearOperator(
        lambda v: times(wide(product(narrow(v))), 1 / stretch),
        jax.eval_shape(lambda: vector),
        lineax.positive_semidefinite_tag,
    )
    solution = lineax.linear_solve(operator, scaled, solver, throw=False)
    taken = jnp.asarray(solution.stats.get("num_steps", 1), jnp.int32)
    sound = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(solution.value)]).all()
    value = jax.tree.map(lambda x: jnp.where(sound, x, 0), solution.value)
    return narrow(times(value, size / stretch)), taken


def conjugate_gradients(like: PyTree, tolerance: float, iterations: int) -> lineax.CG:
    """Return a solver by conjugate gradients, to this tolerance or what floats of this width allow."""
    import lineax

    eps = max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(like))
    tolerance = max(tolerance, min(8 * eps, 0.01))
    return lineax.CG(rtol=tolerance, atol=tolerance, max_steps=iterations)


def _largest(tree: PyTree) -> Array:
    """Return the largest magnitude of any element; 1 where all are 0."""
    size = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(tree)]))
    return jnp.where(size > 0, size, 1.0).astype(size.dtype)


def normalized(vector: PyTree) -> Direction:
    """Return the vector of each example at norm 1, and its norm; 0 stays 0."""
    leaves = jax.tree.leaves(vector)
    squares = sum(jnp.sum(leaf * leaf, axis=range(1, leaf.ndim)) for leaf in leaves)
    norm, scale = norm_of(jnp.asarray(squares))
    unit = jax.tree.map(lambda leaf: leaf / over(scale, leaf), vector)
    return Direction(unit, norm)


def norm_of(squares: Array) -> tuple[Array, Array]:
    """Return the root of a sum of squares, and what to divide by: 1 where it is 0, with a derivative of 0."""
    some = squares > 0
    # the slope of a root has no end at 0
    scale = jnp.sqrt(jnp.where(some, squares, 1).astype(squares.dtype))
    return jnp.where(some, scale, 0).astype(squares.dtype), scale
