"""Which run of a tracker goes with a folder: its id, in a file there.

A run is known by the first row of its history, which no checkpoint takes back: a training that goes on from a
checkpoint, or begins again in the same way, has the same one. Next file to read: `wandb.py`.
"""

from __future__ import annotations

import json
import math
import sys
import uuid
from pathlib import Path
from typing import Any

from ..checkpoints.disk import telling, write_atomically
from ..plain_json import dumps, numbers


class KeptId:
    """The id of a run, in a file that is written before the tracker hears of it."""

    def __init__(self, path: Path):
        self.path = path

    def of(self, first: dict[str, Any]) -> str:
        """Return the id of the run whose history begins with this row: the one there, or a new one."""
        try:
            kept = json.loads(self.path.read_text())
            same = agree(numbers(kept["first"]), first)
        except FileNotFoundError:
            return self.renew(first)
        except (ValueError, KeyError, TypeError, AttributeError):  # a file of anything else
            raise ValueError(
                f"{self.path} is to hold a tracker's run and holds something else; move it away, or choose "
                f"another folder"
            ) from None
        return kept["id"] if same else self.renew(first)

    def renew(self, first: dict[str, Any]) -> str:
        """Return a new id, which is the folder's from now on."""
        made = uuid.uuid4().hex[:16]
        with telling(f"the run's id to {self.path}"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, dumps({"id": made, "first": first}, spell=True) + "\n")
        return made


def agree(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two rows have the same metrics, and equal numbers up to sums in another order.

    A run that goes on on another machine, or on a GPU, does not add up in the same order.

    >>> agree({"step": 1, "loss": 0.5}, {"step": 1, "loss": 0.50001})
    True
    >>> agree({"step": 1, "loss": 0.5}, {"step": 1, "loss": 0.6})
    False
    """
    return row.keys() == other.keys() and all(close(row[name], other[name]) for name in row)


def close(value: float, other: float) -> bool:
    """Return whether two numbers are equal up to sums in another order; NaN is equal to NaN."""
    if math.isnan(value) or math.isnan(other):
        return math.isnan(value) and math.isnan(other)
    return math.isclose(stored(value), stored(other), rel_tol=1e-3)


def stored(value: float) -> float:
    """Return a number as a database holds it, which has no infinity."""
    if math.isnan(value):
        return value
    return max(-sys.float_info.max, min(sys.float_info.max, value))
