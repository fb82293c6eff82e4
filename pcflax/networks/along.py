"""Evidence along a sequence: taken apart into steps of time, which hand the activities on.

A batch of sequences is evidence whose arrays are (batch, time, *features). Each step asks the network of
one step, with the activities of the step before among its inputs. What a mask leaves unknown to the very end
of an example, such as the filling of a shorter sequence, does not count: nothing that was seen depends on it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from pcflax.dtypes import common_dtype
from pcflax.layers import Clamp, Evidence
from pcflax.typing import Activities, Network, PyTree

from .wiring import by_name


class Along(NamedTuple):
    """A batch of sequences, step by step.

    Attributes:
        steps: evidence whose leaves begin with the axes (time, batch); inputs are by name.
        before: {"z@-1": (batch, *features)}, what is known of the time before the first step.
        counts: (time, batch), whether a step is part of the example's sequence; None where all are.
        length: how many steps there are.
    """

    steps: Evidence
    before: dict[str, Array]
    counts: Bool[Array, "time batch"] | None
    length: int

    def at(self, before: Mapping[str, Array], step: Evidence) -> Evidence:
        """Return what is known at one step, after what the step before left."""
        return dataclasses.replace(step, inputs={**step.inputs, **before} or None)

    def counted(self, values: PyTree) -> PyTree:
        """Return values, (time, batch, ...), with 0 where a step does not count, NaN included."""
        counts = self.counts
        if counts is None:
            return values
        return jax.tree.map(lambda v: jnp.where(_like(counts, v), v, 0), values)


def along(network: Network, evidence: Evidence) -> Along:
    """Take a batch of sequences apart, step by step.

    Args:
        network: of one step. Activities of the step before are 0 before the first, unless its inputs say
            otherwise: "z@-1", (batch, *features).
        evidence: inputs, targets and clamps of shape (batch, time, *features). A mask of inputs, targets or
            clamps says which are known. Weights are (batch,).

    Raises:
        ValueError: where an array has no axis of time, or another number of steps than the others.
    """
    wiring = network.wiring
    names = (*wiring.inputs, *(name for name, _ in wiring.previous))
    one = not isinstance(evidence.inputs, Mapping)
    inputs = (
        {} if evidence.inputs is None else by_name(evidence.inputs, wiring.inputs if one else names)
    )
    first = {name: inputs.pop(name) for name, _ in wiring.previous if name in inputs}
    inputs = {name: value for name, value in inputs.items() if value is not None}
    targets = {} if evidence.targets is None else by_name(evidence.targets, network.outputs)
    targets = {name: value for name, value in targets.items() if value is not None}
    parts = {"input": inputs, "target": targets, "clamp": dict(evidence.clamps or {})}
    shape = _shape(parts)
    taken = {
        part: {name: _full(value) for name, value in values.items()}
        for part, values in parts.items()
    }
    counts = _counts(taken, set(wiring.inputs) - set(wiring.outside))
    if counts is not None:  # what fills up an input may be anything
        taken["input"] = {
            name: value
            if isinstance(value, Clamp)
            else jnp.where(_like(counts, value), value, jnp.zeros_like(value))
            for name, value in taken["input"].items()
        }
    weights = evidence.weights
    if weights is not None or counts is not None:
        each = jnp.ones(shape[:1]) if weights is None else jnp.asarray(weights)
        weights = jnp.broadcast_to(each[:, None], shape)
        weights = weights if counts is None else jnp.where(counts, weights, 0)
    goal: Any = taken["target"] or None
    if goal is not None and network.one_output:
        goal = goal[network.output]
    steps = Evidence(taken["input"], goal, taken["clamp"], weights)
    steps = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), steps)
    floats = [x.dtype for x in jax.tree.leaves(taken) if jnp.issubdtype(x.dtype, jnp.floating)]
    dtype = common_dtype(*floats) if floats else jnp.result_type(float)
    before = {
        name: jnp.asarray(first.get(name, jnp.zeros((shape[0], *features))), dtype)
        for name, features in wiring.previous
    }
    for name, features in wiring.previous:
        if before[name].shape != (shape[0], *features):
            raise ValueError(
                f"'{name}' is what stands before the first step, of shape {(shape[0], *features)}, got "
                f"{before[name].shape}; give one row an example"
            )
    return Along(steps, before, None if counts is None else counts.T, shape[1])


def left_behind(network: Network, activities: Activities) -> dict[str, Array]:
    """Return what a step leaves to the next: {"z@-1": the activity of z}; no gradient goes through it."""
    return {
        name: jax.lax.stop_gradient(activities[name.rpartition("@")[0]])
        for name, _ in network.wiring.previous
    }


def output_energy_along(network: Network, prediction: Any, targets: Any) -> Array:
    """Return the outputs' energy of targets under predictions, summed over the steps: (batch,)."""
    targets = jax.tree.map(_full, targets, is_leaf=_is_clamp)
    return jax.vmap(network.output_energy, in_axes=1, out_axes=1)(prediction, targets).sum(axis=1)


def known_along(targets: Any) -> tuple[Any, Array | None]:
    """Return targets without masks, and (batch, time), at which steps all of them is known; None of all."""
    full = jax.tree.leaves(jax.tree.map(_full, targets, is_leaf=_is_clamp), is_leaf=_is_clamp)
    masks = [c.mask.all(axis=tuple(range(2, c.mask.ndim))) for c in full if _is_masked(c)]
    values = jax.tree.map(
        lambda t: t.value if isinstance(t, Clamp) else t, targets, is_leaf=_is_clamp
    )
    return values, jnp.stack(masks).all(axis=0) if masks else None


def _is_clamp(value: Any) -> bool:
    return isinstance(value, Clamp)


def _is_masked(value: Any) -> bool:
    return isinstance(value, Clamp) and value.mask is not None


def _full(value: Any) -> Any:
    """Return a clamp with a mask's row for each example and step; one number for all features stays one."""
    if not isinstance(value, Clamp):
        return jnp.asarray(value)
    array, mask = jnp.asarray(value.value), value.mask
    if mask is None:
        return Clamp(array)
    axes = (1,) * (array.ndim - jnp.ndim(mask)) + jnp.shape(mask)
    return Clamp(array, jnp.broadcast_to(jnp.reshape(mask, axes), array.shape[:2] + axes[2:]))


def _like(counts: Array, value: Array) -> Array:
    return counts.reshape(*counts.shape, *[1] * (value.ndim - 2))


def _shape(parts: Mapping[str, Mapping[str, Any]]) -> tuple[int, int]:
    """Return batch and time of all arrays."""
    found: dict[str, tuple[int, int]] = {}
    for part, values in parts.items():
        for name, value in values.items():
            shape = jnp.shape(value.value if isinstance(value, Clamp) else value)
            if len(shape) < 3:
                raise ValueError(
                    f"expected the {part} '{name}' of shape (batch, time, features), got {shape}: a sequence "
                    f"without time; give one row a step, or take the rule or reading of one step"
                )
            found[f"the {part} '{name}'"] = shape[:2]
    if not found:
        raise ValueError("a sequence of nothing: give inputs, targets or clamps along time")
    (first, shape), *others = found.items()
    for title, other in others:
        if other != shape:
            raise ValueError(
                f"{first} has (batch, time) {shape} but {title} {other}; give both of one length"
            )
    return shape


def _counts(
    taken: Mapping[str, Mapping[str, Any]], roots: set[str]
) -> Bool[Array, "batch time"] | None:
    """Return until when anything is known of what is predicted; None where that is all along."""
    seen = [*taken["target"].values(), *taken["clamp"].values()]
    seen += [value for name, value in taken["input"].items() if name in roots]
    if not seen or not all(_is_masked(value) for value in seen):
        return None
    known = [value.mask.any(axis=tuple(range(2, value.mask.ndim))) for value in seen]
    any_of = jnp.stack(known).any(axis=0)
    return jax.lax.associative_scan(jnp.logical_or, any_of, reverse=True, axis=1)
