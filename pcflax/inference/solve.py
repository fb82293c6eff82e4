"""The loop that iterative algorithms share, and its parts: when to stop, and what to record.

An algorithm steps; `FixedSteps` and `UntilTolerance` say when that ends, and a `record` function what is
kept of the way. Next file to read: `gradient.py`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from pcflax.checks import expect_count, expect_number
from pcflax.dtypes import promoted
from pcflax.energies import total_energy
from pcflax.settings import Settings
from pcflax.sharding.inside import devices_along
from pcflax.sharding.placement import DATA
from pcflax.typing import Energies, PRNGKey, PyTree

from .problem import InferenceProblem, VectorField
from .result import InferenceResult, Seen, Status, Trace

# What an algorithm takes where it is told nothing.
NUM_STEPS, MAX_STEPS = 20, 1000


class StepInfo(NamedTuple):
    """The view of one step before it moves; costs nothing where nobody looks at it.

    Attributes:
        energies: {layer name: (batch,)} at the coordinates the step started from.
        residual: (batch,), root mean square of the gradient there, dF/dz.
    """

    energies: Energies
    residual: Float[Array, " batch"]


@dataclasses.dataclass(frozen=True)
class FixedSteps(Settings):
    """A stop after `num_steps` steps, the same for every example.

    Raises:
        TypeError, ValueError: for a count that is no whole number, or below 0.

    >>> import pcflax as pc
    >>> pc.inference.GradientDescent(0.1, num_steps=5).stop
    FixedSteps(num_steps=5)
    """

    num_steps: int = NUM_STEPS

    def __post_init__(self):
        count = expect_count(self, "num_steps", self.num_steps)
        object.__setattr__(self, "num_steps", count)

    @property
    def most_steps(self) -> int:
        """As many as there are."""
        return self.num_steps


@dataclasses.dataclass(frozen=True)
class UntilTolerance(Settings):
    """A stop for each example where its residual is at most the tolerance, or after `max_steps`.

    The residual is the root mean square of the vector field dF/dz, not of z. An example that stopped
    moves no more and reports its own number of steps.

    Raises:
        TypeError, ValueError: for a tolerance that is no number above 0, or a count as of `FixedSteps`.

    >>> import pcflax as pc
    >>> pc.inference.GradientDescent(0.1, tolerance=1e-3).stop
    UntilTolerance(tolerance=0.001, max_steps=1000)
    """

    tolerance: float | Array
    max_steps: int = MAX_STEPS

    def __post_init__(self):
        tolerance = expect_number(self, "tolerance", self.tolerance, above=0)
        object.__setattr__(self, "tolerance", tolerance)
        object.__setattr__(self, "max_steps", expect_count(self, "max_steps", self.max_steps))

    @property
    def most_steps(self) -> int:
        """How many steps an example takes at most."""
        return self.max_steps


@runtime_checkable
class Steps(Protocol):
    """An algorithm made of equal steps; see `AbstractIterativeInference`."""

    finds_equilibrium: bool

    @property
    def stop(self) -> FixedSteps | UntilTolerance:
        """When it ends."""
        ...

    def init(self, problem: Any) -> PyTree:
        """Return its state before the first step."""
        ...

    def step(
        self, problem: Any, coordinates: PyTree, state: PyTree, *, step: Any, key: PRNGKey | None
    ) -> tuple[PyTree, PyTree, StepInfo]:
        """Make one step."""
        ...


class _Carry(NamedTuple):
    coordinates: PyTree
    state: PyTree
    active: Bool[Array, " batch"] | None
    taken: Int[Array, " *batch"]


def iterate(
    problem: VectorField,
    algorithm: Steps,
    *,
    key: PRNGKey | None = None,
    trace: bool = False,
    record: Callable[[Seen], PyTree] | None = None,
) -> InferenceResult:
    """Step from the start until the algorithm's stop says so, and report."""
    stop = algorithm.stop
    looks = trace or record is not None

    def advance(problem: VectorField, carry: _Carry, step) -> tuple[_Carry, StepInfo]:
        step_key = None if key is None else jax.random.fold_in(key, step)
        coordinates, state, info = algorithm.step(
            problem.at(step), carry.coordinates, carry.state, step=step, key=step_key
        )
        if carry.active is None or not isinstance(stop, UntilTolerance):
            return _Carry(coordinates, state, None, carry.taken + 1), info
        # not "<=": an example whose residual is not a number goes on, and is told of at the end
        active = carry.active & ~jnp.less_equal(*promoted(info.residual, stop.tolerance))
        coordinates = choose(active, coordinates, carry.coordinates)
        state = choose(active, state, carry.state)
        return _Carry(coordinates, state, active, carry.taken + active.astype(jnp.int32)), info

    def begin(start: PyTree) -> _Carry:
        state = algorithm.init(problem.at(0))
        if isinstance(stop, FixedSteps):
            # one number for all examples; only the result spreads it over them
            return _Carry(start, state, None, jnp.int32(0))
        batch = (problem.batch_size,)
        return _Carry(start, state, jnp.ones(batch, jnp.bool_), jnp.zeros(batch, jnp.int32))

    def scan(carry: _Carry, length: int) -> tuple[_Carry, Any]:
        def body(carry, step):
            before = carry.coordinates
            carry, info = advance(problem, carry, step)
            return carry, (keep_step(problem, before, info, trace, record) if looks else None)

        return jax.lax.scan(body, carry, jnp.arange(length))

    steps = stop.num_steps if isinstance(stop, FixedSteps) else stop.max_steps

    def solve(start: PyTree) -> tuple[PyTree, Any]:
        if isinstance(stop, UntilTolerance) and not looks:
            ended, kept = _until_stopped(problem, begin(start), advance, steps), None
        else:
            ended, kept = scan(begin(start), steps)
        return ended.coordinates, (ended.taken, kept)

    if isinstance(stop, UntilTolerance) or algorithm.finds_equilibrium:
        coordinates, (taken, kept) = at_equilibrium(problem, solve)
    else:
        coordinates, (taken, kept) = solve(problem.start)
    last = observe(problem.at(steps), coordinates)[0]
    way = (None, None)
    if kept is not None:
        way = way_of(kept, keep_place(problem, coordinates, trace, record, last))
    tolerance = stop.tolerance if isinstance(stop, UntilTolerance) else None
    return finished(problem, coordinates, taken, last, *way, tolerance=tolerance)


def at_equilibrium(
    problem: VectorField, solve: Callable[[PyTree], tuple[PyTree, PyTree]]
) -> tuple[PyTree, PyTree]:
    """Solve, with the derivative of the equilibrium: dz*/dtheta = -H^-1 d2F/dz dtheta.

    How the solver got there does not matter, so no derivative goes through its steps, and reverse mode
    works where they are a loop without a fixed length. Where it did not converge the derivative is as
    wrong as the equilibrium.
    """
    if not problem.start:
        return solve(problem.start)

    def tangent_solve(product, vector):
        # H is one block for each example, and symmetric. One flat vector: jax transposes no solve of which
        # some parts depend on what is differentiated and others do not.
        flat, unravel = ravel_pytree(vector)
        tolerance = 8 * float(jnp.finfo(flat.dtype).eps)

        symmetric = isinstance(problem, InferenceProblem)  # the derivative of a gradient is
        method = jax.scipy.sparse.linalg.cg if symmetric else jax.scipy.sparse.linalg.bicgstab

        def iterate(matrix, vector):
            return method(matrix, vector, tol=tolerance, maxiter=1000)[0]

        def flat_product(v):
            return ravel_pytree(product(unravel(v)))[0]

        return unravel(
            jax.lax.custom_linear_solve(flat_product, flat, iterate, iterate, symmetric=symmetric)
        )

    dtypes: list = []

    def solve_in_floats(_, start):
        # whole numbers have no derivative, for which custom_root has no word
        ended, found = solve(start)
        leaves, structure = jax.tree.flatten(found)
        dtypes[:] = [leaf.dtype for leaf in leaves]
        whole = [not jnp.issubdtype(dtype, jnp.inexact) for dtype in dtypes]
        floats = [x.astype(jnp.float32) if w else x for x, w in zip(leaves, whole, strict=True)]
        return ended, jax.tree.unflatten(structure, floats)

    ended, found = jax.lax.custom_root(
        lambda coordinates: problem.field(coordinates)[1],
        problem.start,
        solve_in_floats,
        tangent_solve,
        has_aux=True,
    )
    leaves, structure = jax.tree.flatten(found)
    leaves = [leaf.astype(dtype) for leaf, dtype in zip(leaves, dtypes, strict=True)]
    return ended, jax.tree.unflatten(structure, leaves)


def _until_stopped(problem: VectorField, carry: _Carry, advance: Any, max_steps: int) -> _Carry:
    """Step until every example has stopped; once few are left, only those are computed."""

    def loop(problem, carry, step, left):
        """Step until at most `left` examples go on."""
        return jax.lax.while_loop(
            lambda now: (now[1] < max_steps) & (jnp.sum(now[0].active) > left),
            lambda now: (advance(problem, *now)[0], now[1] + 1),
            (carry, step),
        )

    # the whole batch, then the last quarter of it, then the last sixteenth; not where devices share a batch,
    # since each has its own part of it at hand
    shared = devices_along(DATA) > 1
    parts = (4, 16) if problem.separable and not shared else ()
    sizes = [problem.batch_size // part for part in parts if problem.batch_size >= part]
    carry, step = loop(problem, carry, jnp.int32(0), sizes[0] if sizes else 0)
    for size, left in itertools.pairwise([*sizes, 0]):
        going = jnp.argsort(~carry.active, stable=True)[:size]  # type: ignore[operator]
        some = jax.tree.map(lambda leaf, rows=going: leaf[rows], carry)
        some, step = loop(problem.take(going), some, step, left)
        carry = jax.tree.map(lambda leaf, part, rows=going: leaf.at[rows].set(part), carry, some)
    return carry


def observe(problem: VectorField, coordinates: PyTree) -> tuple[StepInfo, PyTree]:
    """Return energies and residual at these coordinates, and the field they come with."""
    energies, field = problem.field(coordinates)
    return StepInfo(energies, problem.residual(field)), field


def keep_step(problem, coordinates, info: StepInfo, trace, record) -> tuple[Any, Any]:
    """Return what a trace and a record keep of one step, None for one that is not asked for."""
    records = None
    if record is not None:
        records = record(Seen(problem.decode(coordinates), info.energies, info.residual))
    return (info if trace else None), records


def keep_place(
    problem, coordinates, trace, record, info: StepInfo | None = None
) -> tuple[Any, Any]:
    """Return what they keep of one place, as a way of this place alone; `info` if it is known."""
    info = observe(problem, coordinates)[0] if info is None else info
    kept = keep_step(problem, coordinates, info, trace, record)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], kept)


def way_of(*kept: PyTree) -> tuple[Trace | None, PyTree]:
    """Return the trace and the records of what `keep_step` kept of several stretches in a row."""
    info, records = in_a_row(*kept)
    return (None if info is None else Trace(info.energies, info.residual)), records


def in_a_row(*parts: PyTree) -> PyTree:
    """Return what is kept by step, of several stretches, as that of one."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def finished(
    problem: VectorField,
    coordinates: PyTree,
    num_steps: Any,
    last: StepInfo | None = None,
    trace: Trace | None = None,
    records: PyTree = None,
    *,
    tolerance: float | Array | None = None,
) -> InferenceResult:
    """Return the result of a solve that ended at these coordinates.

    Args:
        problem: what was solved.
        coordinates: where it ended.
        num_steps: how many steps it took, one number or one an example.
        last: what `observe` sees there, if it is known.
        trace: energies and residuals by step.
        records: what a `record` function kept.
        tolerance: the residual that was to be reached, if any was.
    """
    last = observe(problem, coordinates)[0] if last is None else last
    residual, status = last.residual, jnp.int32(Status.RAN)
    if tolerance is not None:
        reached = jnp.less_equal(*promoted(residual, tolerance))
        status = jnp.where(reached, int(Status.CONVERGED), int(Status.MAX_STEPS))
    sound = jnp.isfinite(total_energy(last.energies)) & jnp.isfinite(residual)
    return InferenceResult(
        activities=problem.decode(coordinates),
        energies=last.energies,
        residual=residual,
        num_steps=jnp.broadcast_to(jnp.asarray(num_steps, jnp.int32), residual.shape),
        status=jnp.where(sound, status, int(Status.NOT_FINITE)).astype(jnp.int32),
        trace=trace,
        records=records,
    )


def finish_at_start(
    problem: VectorField, trace: bool, record: Callable[[Seen], PyTree] | None
) -> InferenceResult:
    """Return the result where no activity is free: no step, and the one place there is."""
    last = observe(problem, problem.start)[0]
    way = way_of(keep_place(problem, problem.start, trace, record, last))
    return finished(problem, problem.start, 0, last, *way)


def expect_energy(owner: object, problem: VectorField) -> InferenceProblem:
    """Refuse a vector field that is the gradient of no energy."""
    if not isinstance(problem, InferenceProblem):
        raise TypeError(
            f"{type(owner).__name__} needs an energy, but {type(problem).__name__} is a vector field "
            f"that is the gradient of none; take pc.inference.GradientDescent"
        )
    return problem


def over(flags: Array, leaf: Array) -> Array:
    """Return one value an example, or one a node of each, shaped to go with this leaf."""
    return flags.reshape(flags.shape + (1,) * (leaf.ndim - flags.ndim))


def choose(flags: Array, new: PyTree, old: PyTree) -> PyTree:
    """Return each example of `new` where its flag is True, and of `old` elsewhere."""
    return jax.tree.map(lambda n, o: jnp.where(over(flags, n), n, o), new, old)


def rounding(energy: Array) -> Array:
    """Return how much of an energy may be rounding: one that rises by less is at rest."""
    return 8 * jnp.finfo(energy.dtype).eps * jnp.abs(energy)
