"""Many seeds in one compiled program: the Trainer's loop, mapped over the axis of seeds.

The program of `pcflax.training.loop`, whole, under `jax.vmap`: states, keys, items and counts have an axis of
seeds, and so do those numbers of the settings that differ; data and all other settings are shared. A seed
whose count is reached, or whose numbers are not finite, keeps its state while the others go on. Sums may be
made in another order than alone, so a seed ends as alone up to rounding. Next file to read: `replicas.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from pcflax.settings import Argument, joined
from pcflax.training import TrainState
from pcflax.training.fitting import Fit
from pcflax.training.loop import Measured, Recipe, learn_batches, sound
from pcflax.typing import PRNGKey, PyTree


class MappedFits:
    """Learns for several fits of one structure in one call.

    Args:
        fits: all, those included that will be over before others.
    """

    def __init__(self, fits: Sequence[Fit]):
        self._fits = tuple(fits)
        self._join(fits)
        constants = [fit.data.constants() for fit in fits]
        self._shared = len({tuple(map(id, jax.tree.leaves(one))) for one in constants}) == 1
        self._constants = constants[0] if self._shared else _stack(constants)

    def __call__(
        self, fits: Sequence[Fit], items: Sequence[PyTree], counts: Sequence[int]
    ) -> list[Measured]:
        """Learn from so many batches for each of these fits; the others stay as they are."""
        plans = {id(fit): plan for fit, *plan in zip(fits, items, counts, strict=True)}
        room = jax.tree.map(np.zeros_like, items[0]), 0
        planned = [plans.get(id(fit), room) for fit in self._fits]
        if any(fit.callbacks.has_own for fit in self._fits):  # as in `fitting.py`
            self._take_settings(fits)
        states = tuple(fit.run.take() for fit in self._fits)

        def call(counts, *, starts):
            return learn_mapped(
                tuple(dataclasses.replace(state, starts={}) for state in states),
                self._constants,
                tuple(own for own, _ in planned),
                counts,
                tuple(fit.run.key for fit in self._fits),
                self._numbers,
                starts=starts,
                recipe=self._fits[0].recipe._replace(settings=self._settings),
                axes=(None if self._shared else 0, self._axes),
            )

        steps = np.array([count for _, count in planned], np.int32)
        states_after, measured = sound(call, steps, tuple(state.starts for state in states))
        for fit, state in zip(self._fits, states_after, strict=True):
            fit.run.put(state)
        return [
            jax.tree.map(lambda leaf, place=place: leaf[place], measured)
            for place, fit in enumerate(self._fits)
            if id(fit) in plans
        ]

    def _take_settings(self, going: Sequence[Fit]) -> None:
        """Join the settings anew; fits that are over need not have followed the others.

        Raises:
            ValueError: where those that go on can no longer share a program.
        """
        try:
            self._join(self._fits)
        except ValueError:
            held = set(map(id, going))
            try:
                self._join([fit if id(fit) in held else going[0] for fit in self._fits])
            except ValueError:
                raise ValueError(
                    "a callback changed rule or optimizer of some runs in more than floats and arrays, so "
                    "that they can no longer share a program; give replicate how='in turn'"
                ) from None

    def _join(self, fits: Sequence[Fit]) -> None:
        (rule, optimizer), numbers = joined([(fit.rule, fit.optimizer.value) for fit in fits])
        self._numbers, self._settings = jax.tree.flatten((rule, Argument(optimizer)))
        differing = {id(number) for number in numbers}
        self._axes = tuple(0 if id(leaf) in differing else None for leaf in self._numbers)


@functools.partial(jax.jit, static_argnames=("recipe", "axes"), donate_argnames="starts")
def learn_mapped(
    states: tuple[TrainState, ...],
    constants: PyTree,
    items: tuple[PyTree, ...],
    counts: Int[Array, " seeds"],
    keys: tuple[PRNGKey, ...],
    numbers: list[Any],
    *,
    starts: tuple[PyTree, ...],
    recipe: Recipe,
    axes: tuple[int | None, tuple[int | None, ...]],
) -> tuple[tuple[TrainState, ...], Measured]:
    """Learn from the first `counts` of `items` of each seed.

    Args:
        states: one a seed.
        constants: of the data; with an axis of seeds where `axes` says so.
        items: one a seed, whose leaves begin with the axis (capacity,).
        counts: batches of each seed.
        keys: one a seed.
        numbers: of rule and optimizer; with an axis of seeds where `axes` says so.
        starts: as of `learn_batches`, one a seed.
        recipe: as of `learn_batches`.
        axes: 0 or None for the constants, and for each number.

    Returns:
        The states, and what was measured, whose leaves begin with the axis (seeds,).
    """

    def learn(state, starts, constants, items, count, key, numbers):
        given = state, constants, items, count, key, numbers
        return learn_batches(*given, starts=starts, recipe=recipe)

    in_axes = (0, 0, axes[0], 0, 0, 0, list(axes[1]))
    stacked, measured = jax.vmap(learn, in_axes)(
        _stack(states), _stack(starts), constants, _stack(items), counts, jnp.stack(keys), numbers
    )
    return tuple(
        jax.tree.map(lambda leaf, place=place: leaf[place], stacked) for place in range(len(states))
    ), measured


def _stack(trees: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
