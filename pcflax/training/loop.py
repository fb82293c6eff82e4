"""The compiled loop: many batches in one call.

For each batch: read it, take the step of `step.py`, and write its metrics into a row of a buffer. The
number of batches is a runtime value, so one program serves every length of call, and neither the length
nor an interruption changes a number. A step that is not finite ends the call, and is not applied: `sound`
takes the steps before it again. To choose at each step copies the state each time, and is done only where
the state keeps starts, which a call consumes: they may be one for each example of the data.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun
from jax.flatten_util import ravel_pytree
from jax.interpreters import partial_eval
from jaxtyping import Array, Bool, Float, Int

from pcflax.data.decoder import Reader
from pcflax.dtypes import promoted
from pcflax.sharding.inside import keep, split_examples, whole
from pcflax.typing import PRNGKey, PyTree

from .measure import at_least_32_bits, measure
from .metrics import MetricFunctions
from .reading import predicted
from .step import TrainState, layer_means, take_finite_step, take_step


class Recipe(NamedTuple):
    """What a compiled loop is made for; hashable, so that it is found again."""

    metrics: MetricFunctions
    reader: Reader
    settings: Any = None  # the structure of rule and optimizer: their numbers are arguments
    places: Any = None  # of the state's arrays on a mesh


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["rows", "count", "failed"],
    meta_fields=["names"],
)
@dataclasses.dataclass(frozen=True)
class Measured:
    """What a call measured, on the device or on the host."""

    rows: Float[Array | np.ndarray, "capacity columns"]  # one a batch; from `count` on no values
    count: Int[Array | np.ndarray, ""]  # of batches that were looked at, the failed one included
    failed: Bool[Array | np.ndarray, ""]  # whether the last of them was not finite
    names: tuple[str, ...]  # of the columns

    def columns(self) -> dict[str, np.ndarray]:
        """Return what was measured by name, (capacity,) each, on the host."""
        return dict(zip(self.names, self.rows.T, strict=True))  # type: ignore[arg-type]


def sound(
    call: Callable[..., tuple[PyTree, Measured]], counts: Any, starts: PyTree
) -> tuple[PyTree, Measured]:
    """Return states before a last step that was not finite, and on the host what was measured.

    Args:
        call: takes so many steps, and consumes the starts; returns states, and what it measured.
        counts: of steps; of several runs one each.
        starts: of the states.
    """
    states, measured = call(counts, starts=starts)
    measured = jax.device_get(measured)
    if np.any(measured.failed) and not jax.tree.leaves(starts):
        del states  # before there are others
        states, _ = call(np.asarray(measured.count - measured.failed), starts=starts)
    return states, measured


@functools.partial(jax.jit, static_argnames="recipe", donate_argnames="starts")
def learn_batches(
    state: TrainState,
    constants: PyTree,
    items: PyTree,
    count: Int[Array, ""],
    key: PRNGKey,
    numbers: Sequence[Any],
    *,
    starts: PyTree,
    recipe: Recipe,
) -> tuple[TrainState, Measured]:
    """Learn from the first `count` of `items`, whose leaves begin with the axis (capacity,).

    `numbers` are those of rule and optimizer, and `starts` the state's. Where a step is not finite, the state
    is the one after it; with starts, the one before it.
    """
    rule, optimizer = jax.tree.unflatten(recipe.settings, numbers)
    state = dataclasses.replace(state, starts=starts)
    capacity = jax.tree.leaves(items)[0].shape[0]

    def learn(state, index):
        batch = recipe.reader(constants, jax.tree.map(lambda leaf: item_at(leaf, index), items))
        state, batch = keep(state, recipe.places), split_examples(batch)
        take = take_finite_step if jax.tree.leaves(starts) else take_step
        new, info = take(state, batch, key, rule, optimizer)
        values = {"energy": info.energy}
        if batch.targets is not None:
            values["loss"] = info.loss
            values_and_truth = predicted(
                state.network.bind(), info.prediction, batch.targets, along_time=rule.along_time
            )
            measured, known = measure(*values_and_truth[:3], recipe.metrics), values_and_truth[3]
            if known is None:
                values |= {name: jnp.mean(at_least_32_bits(m)) for name, m in measured.items()}
            else:  # sums, and of how many: a batch may have no label
                counted = {n: jnp.where(known, at_least_32_bits(m), 0) for n, m in measured.items()}
                values |= {name: jnp.sum(column) for name, column in counted.items()}
                values["known"] = jnp.sum(known)
        if info.converged is not None:
            values["converged"] = info.converged
        values |= {f"energy/{name}": mean for name, mean in layer_means(info.energies).items()}
        return values, new, ~info.finite

    learn, specs = _without_dead_code(learn, state, jnp.int32(0))

    def body(carry):
        index, state, rows, _ = carry
        measured, state, failed = learn(state, index)
        row = _in_a_row(measured)
        # one row, and no scatter: less to compile and to run
        return (
            index + 1,
            state,
            jax.lax.dynamic_update_index_in_dim(
                rows, row.astype(rows.dtype), index, 0, allow_negative_indices=False
            ),
            failed,
        )

    def unfinished(carry):
        index, _, _, failed = carry
        return (index < count) & ~failed

    row = jax.eval_shape(_in_a_row, specs)
    rows = jnp.zeros((capacity, *row.shape), row.dtype)
    index, state, rows, failed = jax.lax.while_loop(
        unfinished, body, (jnp.int32(0), state, rows, jnp.bool_(False))
    )
    measured = Measured(rows, index, failed, _names(specs))
    return keep(state, recipe.places), whole(measured)


def _without_dead_code(function: Callable[..., Any], *like: PyTree) -> tuple[Any, Any]:
    """Return the function for such arguments without what no result comes from, and what its first is like.

    jax leaves such code out of a program and out of a scan, and not out of a `while_loop`: the keys of an
    algorithm that draws nothing, and energies that nobody looks at. XLA would do it, having read them.
    """
    structures = []

    def flat(*arguments):
        leaves, structure = jax.tree.flatten(function(*arguments))
        structures.append(structure)
        return leaves

    program, shapes = jax.make_jaxpr(flat, return_shape=True)(*like)
    lean, _ = partial_eval.dce_jaxpr(program.jaxpr, [True] * len(shapes), instantiate=True)
    run, structure = jaxpr_as_fun(program.replace(jaxpr=lean)), structures[0]
    first = structure.children()[0]
    specs = jax.tree.unflatten(first, shapes[: first.num_leaves])
    return lambda *args: jax.tree.unflatten(structure, run(*jax.tree.leaves(args))), specs


def _in_a_row(values: Mapping[str, Any]) -> Array:
    return ravel_pytree(promoted(*jax.tree.leaves(values)))[0]


def _names(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of a row's columns, in its order: "energy/hidden/1" for a layer of a stack."""
    return tuple(
        name if not value.ndim else f"{name}/{index}"
        for name, value in sorted(values.items())
        for index in range(value.size)
    )


def item_at(leaf: Array, index: Int[Array, ""] | int) -> Array:
    """Return one row, known to be there."""
    return jax.lax.dynamic_index_in_dim(
        leaf, index, 0, keepdims=False, allow_negative_indices=False
    )
