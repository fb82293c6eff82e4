"""Where a metric is read for a comparison: the last evaluation, a step, or what a validation metric chose.

The best of a metric over its own evaluations is never read: the more evaluations there are, the better it is,
by noise alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pcflax.checks import expect_count

from .runs import Runs
from .statistics import Sample

At = str | int | tuple[str, str]


def expect_at(owner: str, metric: str, at: Any) -> At:
    """Return where to read in the form that the code works with; refuse what is none.

    Raises:
        ValueError: also where the step would be chosen by what is read, or by the same data.
    """
    if at == "last":
        return at
    if isinstance(at, list | tuple):
        if len(at) != 2 or at[1] not in ("max", "min"):
            raise ValueError(f"{owner} expected at=(metric, 'max') or (metric, 'min'), got {at!r}")
        chosen, mode = at
        if _data(chosen) == _data(metric):
            raise ValueError(
                f"{owner} cannot choose a step by '{chosen}' and read '{metric}' there: both are of the "
                f"same data, so that it is better than on new data; choose by a validation metric, or "
                f"take at='last'"
            )
        return chosen, mode
    if isinstance(at, str):
        raise ValueError(f"{owner} expected at 'last', a step, or (metric, 'max'), got {at!r}")
    return expect_count(owner, "at", at)


def _data(metric: str) -> str:
    """Return what it was measured on: "eval" of "eval/accuracy"."""
    return metric.partition("/")[0]


def told(at: At) -> str:
    """Return where it is, in words."""
    if isinstance(at, tuple):
        return f"the step of the {'highest' if at[1] == 'max' else 'lowest'} {at[0]}"
    return "the last evaluation" if at == "last" else f"step {at}"


def read(runs: Runs, name: str, metric: str, at: At) -> tuple[Sample, list[str]]:
    """Return each seed's value, and notes.

    Raises:
        KeyError, ValueError: as of `compare`.
    """
    for title, why in runs.ended.items():
        raise ValueError(
            f"{title} of '{name}' ended early, and its last value is of before that: {why}; compare "
            f"runs.finished, and say how many ended so"
        )
    curves = runs[metric]
    if isinstance(at, int):
        sample, steps = curves.at(at), [at]
    elif isinstance(at, tuple):
        chosen = runs[at[0]]
        signed = chosen.values if at[1] == "max" else -chosen.values
        best = np.argmax(np.where(np.isnan(signed), -np.inf, signed), axis=1)
        steps = [int(step) for step in chosen.steps[best]]
        values = [
            curves.at(step).values[place] if step in curves.steps else np.nan
            for place, step in enumerate(steps)
        ]
        sample = Sample(np.array(values), curves.seeds, metric)
    else:
        sample = curves.last
        measured = [curves.steps[~np.isnan(row)] for row in curves.values]
        steps = [int(own[-1]) for own in measured if len(own)]
    for seed, value in zip(sample.seeds, sample.values, strict=True):
        if not np.isfinite(value):
            what = f"no '{metric}'" if value != value else f"'{metric}' {value}"
            raise ValueError(
                f"seed {seed} of '{name}' has {what} at {told(at)}; train it, or leave the seed out"
            )
    if at == "last" and len(set(steps)) > 1:
        return sample, [f"the last evaluations of {name} are at steps {min(steps)} to {max(steps)}"]
    return sample, []
