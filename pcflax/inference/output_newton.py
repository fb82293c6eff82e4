"""Gauss-Newton inference solved at the output: the equilibrium in a few steps, at any depth.

In error coordinates the energy is a sum of squares of the errors, plus the energies of what is clamped.
Its curvature is the precisions plus a part of the rank of the clamped predictions, ten for ten classes,
however many layers there are. Such a matrix is inverted exactly through one of that rank.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from pcflax.dtypes import common_dtype, product
from pcflax.energies import Gaussian, total_energy
from pcflax.networks import AbstractPCNetwork
from pcflax.networks.wiring import names_of
from pcflax.typing import PRNGKey, PyTree

from .base import AbstractIterativeInference
from .curvature import expect_curvature
from .error_coordinates import ErrorProblem, solve_over_errors
from .problem import InferenceProblem
from .result import InferenceResult
from .solve import StepInfo, iterate, observe, over, rounding

# Of each step that part is taken after which the energy is lowest: activations may bend on the way.
_FRACTIONS = (1.0, 0.5, 0.25, 0.125)


class _Pull(NamedTuple):
    """What one pass upward and one pass down for each clamped element tell, of every example."""

    energy: Float[Array, " batch"]  # F, without what does not depend on the coordinates
    gradient: PyTree  # dF/de
    rows: PyTree  # J, the derivative of the clamped predictions: (elements, batch, *features)
    curvature: Float[
        Array, " batch elements elements"
    ]  # of the clamped energies in their predictions


@dataclasses.dataclass(frozen=True)
class OutputNewton(AbstractIterativeInference):
    """e <- e - (P + J^T H J)^-1 dF/de over the errors e_l, solved in the size of the output.

    e_l = z_l - mu_l, P is the precision of the free layers, J the derivative of the predictions of all that
    is clamped with respect to the errors, and H the second derivative of the clamped energies in those
    predictions. By Woodbury's identity

        (P + J^T H J)^-1 = P^-1 - P^-1 J^T (I + H A)^-1 H J P^-1,    A = J P^-1 J^T,

    so that for M clamped elements only M x M systems are solved, one an example. For a Gaussian output of
    precision 1, one step from the pass upward is e = J^T (I + J J^T)^-1 (y - mu): backpropagation's deltas,
    but of an output error from which the hidden layers have taken their share.

    Minimizes: F_i(z), the energy of each example, over its free activities.

    Fixed point: dF_i/dz_i = 0.

    Rate: one step in networks that are linear in the errors, whatever the depth; linear where activations
    bend, the faster the smaller the errors are at the minimum. Of the whole step, a half, a quarter and an
    eighth, each example takes the one after which its energy is lowest, and none where each raises it.

    Cost a step: M passes down and five upward, M being the elements that are clamped above free layers:
    about 8 steps of gradient descent for 10 classes. Memory: M times the activities.

    Fails: slowly where errors stay large and activations bend; not at all cheap where M is large, as for
    images above a code: take `ErrorCoordinates(GaussNewton())`, which forms no J.

    Source: ours; Woodbury (1950), and the Gauss-Newton method as in Nocedal & Wright (2006), section 10.3,
    on the coordinates of Goemaere et al. (2025), arXiv 2505.20137. The error of the output divided by
    I + J J^T is that of the closed forms of linear chains: Innocenti et al. (2024), arXiv 2408.11979.

    Args:
        num_steps: a fixed count, 20 unless given; 1 to 3 will do.
        tolerance: the residual of dF/de at which an example stops, instead, and
        max_steps: after how many steps at most.

    Raises:
        ValueError: on use, for a free layer whose energy is not `Gaussian` or has a precision of 0, cycles,
            several predictors of a node, feedback weights, or layers that draw at random.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> network = pc.models.residual_mlp(3, 8, 2, depth=64, activation=lambda z: z,
    ...                                  rngs=nnx.Rngs(0))
    >>> exact = pc.inference.OutputNewton(num_steps=1)
    >>> result = network.infer(jnp.ones((1, 3)), jnp.ones((1, 2)), inference=exact)
    >>> float(result.residual[0]) < 1e-5
    True
    """

    finds_equilibrium = True

    def check(self, network: AbstractPCNetwork) -> None:
        """Refuse cycles and several predictors of a node."""
        network.check_acyclic("OutputNewton makes activities of errors in an order")
        network.check_one_predictor("OutputNewton takes each error from one prediction")

    def solve(
        self, problem: InferenceProblem, *, key=None, trace=False, record=None
    ) -> InferenceResult:
        """Solve over errors, then tell energies and residual at the activities they stand for."""

        def solve(problem, **options):
            return iterate(problem, self, **options)

        return solve_over_errors(self, problem, solve, key=key, trace=trace, record=record)

    def init(self, problem: ErrorProblem) -> tuple:
        """Keep nothing."""
        self._expect(problem)
        return ()

    def step(
        self, problem: ErrorProblem, coordinates, state, *, step, key: PRNGKey | None
    ) -> tuple[PyTree, tuple, StepInfo]:
        """Make one step of each example, by the part after which its energy is lowest."""
        del step, key  # alike at every step; deterministic
        if not _seen(problem):  # no clamp pulls at any error
            info, _ = observe(problem, coordinates)
            return jax.tree.map(jnp.zeros_like, coordinates), state, info
        precision = _precision(problem)
        pull = _pull(problem, coordinates, precision)
        info = StepInfo(problem.energies(coordinates), problem.residual(pull.gradient))
        move = _solve(pull, precision)

        def moved_by(fraction):
            return jax.tree.map(lambda e, m: e - (fraction * m).astype(e.dtype), coordinates, move)

        parts = jnp.asarray(_FRACTIONS, pull.energy.dtype)
        trials = jax.vmap(lambda part: _look(problem, moved_by(part), precision)[1])(parts)
        # at the minimum the energy only changes by rounding: such a step is as good as any
        lower = jnp.min(trials, axis=0) <= pull.energy + rounding(pull.energy)
        taken = jnp.where(lower, parts[jnp.argmin(trials, axis=0)], 0)
        moved = jax.tree.map(
            lambda e, m: e - (over(taken, m) * m).astype(e.dtype), coordinates, move
        )
        return moved, state, info

    def _expect(self, problem: ErrorProblem) -> None:
        expect_curvature(self, problem)
        bound = problem.network.bind()
        self.check(bound)
        remedy = "take pc.inference.ErrorCoordinates(pc.inference.GaussNewton())"
        if not problem.separable:
            raise ValueError(
                "OutputNewton solves each example alone, but the network draws at random or keeps state "
                "for the whole batch (dropout, say); take pc.inference.GradientDescent, or network.eval()"
            )
        for name in problem.start:
            energy = bound.layer(name).top_node_layer().energy
            if type(energy) is not Gaussian:
                raise ValueError(
                    f"OutputNewton expected free layers with a Gaussian energy, but that of '{name}' is "
                    f"{type(energy).__name__}; {remedy}"
                )
            if isinstance(energy.precision, float) and energy.precision == 0:
                raise ValueError(
                    f"OutputNewton divides by the precisions of free layers, but '{name}' has a precision of "
                    f"0; {remedy}"
                )


def _precision(problem: ErrorProblem) -> PyTree:
    """Return the precision of every error, times its layer's weight: dE/dz where z - mu is 1."""
    bound = problem.network.bind()

    def own(activities):
        energies = {
            name: product(
                problem.weights.get(name, 1), bound.layer(name).energy(z, jnp.zeros_like(z))
            )
            for name, z in activities.items()
        }
        return jnp.sum(total_energy(energies))

    return jax.grad(own)(jax.tree.map(jnp.ones_like, problem.start))


def _seen(problem: ErrorProblem) -> tuple[str, ...]:
    """Return the clamped layers whose predictions depend on the errors."""
    parents = dict(problem.network.bind().wiring.parents)
    return tuple(
        name for name in problem.clamps if set(names_of(parents[name])) & set(problem.start)
    )


def _look(
    problem: ErrorProblem, errors: PyTree, precision: PyTree
) -> tuple[PyTree, Float[Array, " batch"]]:
    """Return the predictions of what is clamped, and F of each example without its constants."""
    predictions = problem.activities_and_predictions(errors)[1]
    seen = {name: predictions[name] for name in _seen(problem)}
    squares = jax.tree.map(
        lambda p, e: jnp.sum(p * e * e, axis=range(1, e.ndim)) / 2,
        precision,
        _free(problem, errors),
    )
    return seen, total_energy(squares) + _clamped_energy(problem, seen)


def _free(problem: ErrorProblem, errors: PyTree) -> PyTree:
    """Return the errors with 0 where a mask clamps: what stands there does not count."""
    return jax.tree.map(lambda held, e: jnp.where(held, 0, e), problem.held(), errors)


def _clamped_energy(problem: ErrorProblem, seen: PyTree) -> Float[Array, " batch"] | float:
    bound = problem.network.bind()
    energies = {
        name: product(
            problem.weights.get(name, 1),
            bound.layer(name).energy(problem.clamps[name].apply(prediction), prediction),
        )
        for name, prediction in seen.items()
    }
    return total_energy(energies) if energies else 0.0


def _pull(problem: ErrorProblem, errors: PyTree, precision: PyTree) -> _Pull:
    """Go up once, and down once for each clamped element."""
    seen, pull, energy = jax.vjp(lambda e: _look(problem, e, precision), errors, has_aux=True)
    unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], seen))[1]
    flat = jax.vmap(lambda one: ravel_pytree(one)[0])(seen)
    basis = jnp.eye(flat.shape[1], dtype=flat.dtype)

    def of_each(row):  # the same for every example
        return jnp.broadcast_to(row, flat.shape)

    rows = jax.vmap(lambda row: pull(jax.vmap(unravel)(of_each(row)))[0])(basis)
    slope_at = jax.grad(lambda flat: jnp.sum(_clamped_energy(problem, jax.vmap(unravel)(flat))))
    slope, push = jax.linearize(slope_at, flat)
    curvature = jax.vmap(lambda row: push(of_each(row)), out_axes=2)(basis)
    gradient = jax.tree.map(
        lambda row, p, e: p * e + jnp.einsum("mb...,bm->b...", row, slope),
        rows,
        precision,
        _free(problem, errors),
    )
    return _Pull(energy, gradient, rows, curvature)


def _solve(pull: _Pull, precision: PyTree) -> PyTree:
    """Return (P + J^T H J)^-1 dF/de of each example, by Woodbury's identity."""
    scaled = jax.tree.map(lambda row, p: row / p[None], pull.rows, precision)
    inner = _sum("mbf,nbf->bmn", pull.rows, scaled)
    pushed = _sum("mbf,abf->bm", scaled, jax.tree.map(lambda g: g[None], pull.gradient))
    system = jnp.eye(inner.shape[-1], dtype=inner.dtype)[None] + pull.curvature @ inner
    right = jnp.einsum("bmn,bn->bm", pull.curvature, pushed)
    wide = common_dtype(system.dtype, jnp.float32)  # LAPACK has no 16-bit floats
    share = jnp.linalg.solve(system.astype(wide), right.astype(wide)[..., None])[..., 0]
    share = share.astype(system.dtype)
    return jax.tree.map(
        lambda g, p, row: g / p - jnp.einsum("mb...,bm->b...", row, share),
        pull.gradient,
        precision,
        scaled,
    )


def _sum(product: str, left: PyTree, right: PyTree) -> Array:
    """Return the sum over all layers of an einsum over (elements, batch, features)."""

    def term(left, right):
        flat = [leaf.reshape(*leaf.shape[:2], -1) for leaf in (left, right)]
        return jnp.einsum(product, *flat)

    return sum(jax.tree.leaves(jax.tree.map(term, left, right)))  # type: ignore[return-value]
