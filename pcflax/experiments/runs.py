"""What several seeds measured: their histories, and the statistics of any metric."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pcflax.checks import did_you_mean
from pcflax.training import History

from .statistics import Curves, curves_of


@dataclasses.dataclass(frozen=True)
class OneRun:
    """One seed's run.

    Attributes:
        seed: its seed.
        history: what it measured.
        point: the settings that it was made with besides, by name.
        ended: why it ended before the others, where its numbers were not finite.
    """

    seed: int
    history: History
    point: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ended: str | None = None

    @property
    def title(self) -> str:
        """Which it is, in words."""
        return ", ".join([f"seed {self.seed}", *(f"{k} {v}" for k, v in self.point.items())])


class Runs:
    """Runs of several seeds, and the statistics of what they measured.

    Args:
        runs: one a seed; of several settings, one a seed and setting.
        name: what tables call them.
        how: how they were trained, "mapped" or "in turn".
        begun: when the first step was made, empty where that is not known.

    Iterating gives each `OneRun`, and `runs["eval/accuracy"]` the `Curves` of a metric.

    >>> import pcflax as pc
    >>> accuracies = enumerate([0.90, 0.92, 0.94])
    >>> runs = pc.experiments.Runs(
    ...     [pc.experiments.OneRun(seed, pc.History([{"step": 9, "eval/accuracy": value}]))
    ...      for seed, value in accuracies]
    ... )
    >>> print(runs["eval/accuracy"])
    eval/accuracy 0.92 [0.8703, 0.9697] (mean and 95% interval, 3 seeds), the last of 1 evaluations
    """

    def __init__(self, runs: Sequence[OneRun], *, name: str = "", how: str = "", begun: str = ""):
        self._runs, self.name, self.how, self.begun = tuple(runs), name, how, begun

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each."""
        return tuple(run.seed for run in self._runs)

    @property
    def histories(self) -> tuple[History, ...]:
        """What each measured."""
        return tuple(run.history for run in self._runs)

    @property
    def ended(self) -> dict[str, str]:
        """{which run: why}, of those that ended because their numbers were not finite."""
        return {run.title: run.ended for run in self._runs if run.ended is not None}

    @property
    def finished(self) -> Runs:
        """Those that did not end so. Of a part of the seeds, say of how many."""
        return self._of([run for run in self._runs if run.ended is None])

    @property
    def points(self) -> list[Mapping[str, Any]]:
        """The settings, each once: [{}] where all runs have the same."""
        found: list[Mapping[str, Any]] = []
        for run in self._runs:
            if run.point not in found:
                found.append(run.point)
        return found

    def at(self, **point: Any) -> Runs:
        """Return the runs with these settings.

        Raises:
            ValueError: where there is none.
        """
        chosen = [
            run
            for run in self._runs
            if all(name in run.point and run.point[name] == value for name, value in point.items())
        ]
        if not chosen:
            known = "; ".join(", ".join(f"{k}={v}" for k, v in own.items()) for own in self.points)
            raise ValueError(f"there is no run of {point}; there are {known or 'no settings'}")
        return self._of(chosen)

    def names(self) -> list[str]:
        """Return the names of all metrics measured."""
        return list(dict.fromkeys(name for own in self.histories for name in own.names()))

    def __getitem__(self, metric: str) -> Curves:
        """Return the curves of a metric.

        Raises:
            KeyError: where nothing of that name was measured, naming what was.
            ValueError: for runs of several settings, over which no mean makes sense.
        """
        if metric not in self.names():
            known = self.names()
            raise KeyError(
                f"no metric '{metric}' was measured; measured are: {', '.join(known) or 'none yet'}"
                f"{did_you_mean(metric, known)}"
            )
        if len(self.points) > 1:
            name, value = next(iter(self.points[0].items()))
            raise ValueError(
                f"these are runs of {len(self.points)} settings; take those of one by "
                f"runs.at({name}={value!r})"
            )
        return curves_of(self.histories, self.seeds, metric)

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[OneRun]:
        return iter(self._runs)

    def __repr__(self) -> str:
        name = f"{self.name!r}, " if self.name else ""
        return f"Runs({name}{len(self)} runs of {len(self.points)} settings: {', '.join(self.names())})"

    def _of(self, runs: Sequence[OneRun]) -> Runs:
        return Runs(runs, name=self.name, how=self.how, begun=self.begun)
