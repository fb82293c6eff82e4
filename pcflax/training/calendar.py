"""The calendar of a run: after which steps to log, evaluate, save and end an epoch.

It depends on step numbers only, so that a run which was interrupted and restored measures and saves at
the same steps as one never interrupted.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Calendar:
    """Periods in steps; None for what does not happen. All but epochs end at the last step, too.

    `total` is the last step of all, and at `stops` calls end, too. Periods count from `start`, the step
    before the data set's first batch.

    >>> calendar = Calendar(total=100, log=30, evaluate=50, save=None, epoch=None)
    >>> calendar.next(20), calendar.next(30), calendar.next(95)
    (30, 50, 100)
    >>> calendar.is_due("log", 60), calendar.is_due("log", 100), calendar.is_due("save", 100)
    (True, True, False)
    """

    total: int
    log: int
    evaluate: int | None
    save: int | None
    epoch: int | None
    start: int = 0
    stops: tuple[int, ...] = ()

    def next(self, step: int) -> int:
        """Return the first step after this one on which something happens."""
        periods = (self.log, self.evaluate, self.save, self.epoch)
        since = step - self.start
        stops = (stop for stop in self.stops if stop > step)
        return min(
            self.total, *stops, *(step + period - since % period for period in periods if period)
        )

    def is_due(self, event: str, step: int) -> bool:
        """Return whether an event happens after this step."""
        period = getattr(self, event)
        if period is None:
            return False
        return (step - self.start) % period == 0 or (step == self.total and event != "epoch")

    def epochs(self, step: int) -> int:
        """Return how many epochs are complete at this step."""
        return (step - self.start) // self.epoch if self.epoch else 0
