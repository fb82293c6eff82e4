"""What a person sees of many seeds: one bar, and a line for each evaluation, of means over the seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from pcflax.training import ConsoleLogger
from pcflax.training.fitting import Fit


class Progress:
    """Shows several fits as one, while it is entered.

    Args:
        fits: what is trained.
        points: the settings of each; those of one setting share a line.
    """

    def __init__(self, fits: Sequence[Fit], points: Sequence[Mapping[str, Any]]):
        self._logger, self._shown = ConsoleLogger(), 0
        self._fits: dict[str, list[Fit]] = {}
        for fit, point in zip(fits, points, strict=True):
            title = "".join(f"{name} {value}  " for name, value in point.items())
            self._fits.setdefault(title, []).append(fit)
        self._total = max(fit.calendar.total for fit in fits)

    def __enter__(self) -> Progress:
        self._shown = self._running().step
        self._logger.on_fit_start(self._running(), self._total)
        return self

    def __exit__(self, *exception: object) -> None:
        self._logger.on_fit_end(self._running())

    def tell(self) -> None:
        """Move the bar, and print what was evaluated at the newest step that all have reached."""
        now = self._running()
        self._logger.on_progress(now, now.step)
        for title, fits in self._fits.items():
            found: dict[str, list[float]] = {}
            for fit in fits:
                for name, value in _evaluated(fit, now.step).items():
                    found.setdefault(name, []).append(value)
            if found and now.step > self._shown:
                means = "  ".join(f"{name} {np.mean(own):.4g}" for name, own in found.items())
                seeds = len(next(iter(found.values())))
                self._logger.console.print(
                    f"step {now.step:>6}  {title}{means}  (means of {seeds} seeds)",
                    markup=False,
                    emoji=False,
                    highlight=False,
                    soft_wrap=True,
                )
        self._shown = max(self._shown, now.step)

    def _running(self) -> Any:
        """Return what a logger asks of a Trainer, of the last of those that go on."""
        fits = [fit for own in self._fits.values() for fit in own]
        going = [fit for fit in fits if fit.goes_on()]
        last = min(going, key=lambda fit: fit.run.step, default=None)
        step = max(fit.run.step for fit in fits) if last is None else last.run.step
        rate = None if last is None else last.pace.steps_per_second
        return SimpleNamespace(step=step, steps_per_second=rate)


def _evaluated(fit: Fit, step: int) -> dict[str, float]:
    """Return what was evaluated at this step."""
    found: dict[str, float] = {}
    for row in reversed(fit.run.record.history.rows):
        if row["step"] < step:
            break
        if row["step"] == step:
            found |= {name: value for name, value in row.items() if name.startswith("eval/")}
    return found
