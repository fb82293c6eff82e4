"""The calendar of a run: after which steps to log, evaluate, save and end an epoch.

It depends on step numbers only, so that a run which was interrupted and restored measures and saves at
the same steps as one never interrupted.
"""

from __future__ import annotations

import dataclasses
import warnings

from pcflax.checks import expect_count
from pcflax.data import Dataset

from .callbacks import CallbackList
from .checkpoints import Checkpoints


@dataclasses.dataclass(frozen=True)
class Calendar:
    """Periods in steps; None for what does not happen. All but epochs end at the last step, too.

    `total` is the last step of all, and at `stops` calls end, too. Periods count from `start`, the step
    before the data set's first batch. A call goes on past a row where nobody reads the state at it.

    >>> calendar = Calendar(total=100, log=30, evaluate=50, save=None, epoch=None)
    >>> calendar.next(20), calendar.next(30), calendar.next(95)
    (30, 50, 100)
    >>> calendar.is_due("log", 60), calendar.is_due("log", 100), calendar.is_due("save", 100)
    (True, True, False)
    >>> list(calendar.rows_between(20, 90))
    [30, 60]
    """

    total: int
    log: int
    evaluate: int | None
    save: int | None
    epoch: int | None
    start: int = 0
    stops: tuple[int, ...] = ()
    rows_end_calls: bool = True

    def next(self, step: int) -> int:
        """Return the first step after this one at which a call ends."""
        log = self.log if self.rows_end_calls else None
        periods = (log, self.evaluate, self.save, self.epoch)
        stops = (stop for stop in self.stops if stop > step)
        ends = (self._end_of(period, step) for period in periods if period)
        return min([self.total, *stops, *ends])

    def is_due(self, event: str, step: int) -> bool:
        """Return whether an event happens after this step."""
        period = getattr(self, event)
        if period is None:
            return False
        return (step - self.start) % period == 0 or (step == self.total and event != "epoch")

    def rows_between(self, step: int, later: int) -> range:
        """Return the steps after one and before a later one on which a row is due."""
        return range(self._end_of(self.log, step), later, self.log)

    def _end_of(self, period: int, step: int) -> int:
        """Return the first step after this one at which a period ends."""
        return step + period - (step - self.start) % period

    def epochs(self, step: int) -> int:
        """Return how many epochs are complete at this step."""
        return (step - self.start) // self.epoch if self.epoch else 0


def make_calendar(
    data: Dataset,
    total: int,
    log_every: int,
    eval_every: int | None,
    eval_data: Dataset | None,
    checkpoints: Checkpoints | None,
    callbacks: CallbackList,
) -> Calendar:
    """Return the calendar of a fit from step 0; its arguments are those of `Trainer.fit`.

    `eval_every` is an epoch unless given. Data without a length have no epochs: where it is needed, it is to
    be given.

    Raises:
        TypeError, ValueError: for periods that are no counts, and data without a length where one is needed.
    """
    log_every = expect_count("fit", "log_every", log_every, least=1)
    own = None if checkpoints is None else checkpoints.every
    given = eval_every is not None
    if eval_every is None:
        needed = eval_data is not None or (checkpoints is not None and own is None)
        eval_every = data.num_batches if needed or data.has_length else 1
    eval_every = expect_count("fit", "eval_every", eval_every, least=1)
    if given and eval_data is None and (checkpoints is None or own is not None):
        warnings.warn(
            f"fit got eval_every={eval_every} and no eval_data, so that nothing is evaluated; give "
            f"eval_data, or leave eval_every out",
            UserWarning,
            stacklevel=4,  # where fit was called
        )
    has_epochs = data.has_length and callbacks.listens("on_epoch_end")
    return Calendar(
        total=total,
        log=log_every,
        evaluate=None if eval_data is None else eval_every,
        save=None if checkpoints is None else own or eval_every,
        epoch=data.num_batches if has_epochs else None,
    )
