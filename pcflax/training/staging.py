"""Staging: the host's side of a compiled call, which batches go in, and how many."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from pcflax.data import Dataset
from pcflax.data.stream import STREAMED_BYTES
from pcflax.typing import PyTree

# A call is made about this long: short enough for a smooth progress bar and a prompt stop, long enough
# that Python's share of the time is small.
SECONDS_A_CALL = 0.25
# One compiled call holds at most this many batches, and about this much of streamed examples.
CAPACITY = 256


def call_capacity(data: Dataset, copies: int = 1) -> int:
    """Return how many batches one call has room for: fewer where the items hold the examples themselves.

    A function of the data and of how many fits there are, so that every `fit` on it finds the same compiled
    program.
    """
    item_bytes = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(data.probe()))
    return max(1, min(CAPACITY, STREAMED_BYTES // max(item_bytes * copies, 1)))


def pad(items: PyTree, capacity: int) -> PyTree:
    """Return items with room for `capacity` batches; the rows added are never looked at."""

    def pad_one(leaf):
        room = np.zeros((capacity - leaf.shape[0], *leaf.shape[1:]), leaf.dtype)
        return np.concatenate([leaf, room])

    return jax.tree.map(pad_one, items)


class Pace:
    """How many batches a call takes: few in the first, which compiles, then about a quarter second's."""

    def __init__(self):
        self.steps_per_second: float | None = None
        self._program: Any = None
        self._compiled = False

    def begin(self, program: Any) -> None:
        """Begin a fit with this program; another one has a rate of its own."""
        if program != self._program:
            self._program, self.steps_per_second = program, None
        self._compiled = False

    def plan(self, room: int) -> int:
        """Return how many batches the next call takes, at most `room`."""
        rate = self.steps_per_second
        return min(room, 8 if rate is None else max(1, int(SECONDS_A_CALL * rate)))

    def note(self, count: int, seconds: float) -> None:
        """Note how long a call of `count` steps took; a fit's first, which may compile, tells nothing."""
        if self._compiled and count:
            self.steps_per_second = count / seconds
        self._compiled = True
