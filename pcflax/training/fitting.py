"""Fits: plan a call, call the compiled loop, tell what came of it, until the last step.

One loop drives one fit, or several at once. When to log, evaluate and save is the `Calendar`'s, a function of
step numbers only. Next file to read: `loop.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from pcflax.data import Dataset
from pcflax.data.base import ALL_ROWS
from pcflax.errors import NonFiniteEnergyError, non_finite_error
from pcflax.layers import Evidence
from pcflax.learning import AbstractLearning
from pcflax.networks.given import not_finite
from pcflax.settings import Argument
from pcflax.sharding.inside import readable
from pcflax.sharding.processes import connected, largest, settled, together
from pcflax.typing import PyTree

from .calendar import Calendar
from .callbacks import CallbackList, RunningTrainer
from .loop import Measured, Recipe, learn_batches, sound
from .memory import memory_told
from .metrics import of_means
from .placement import constants_on, items_on, own_rows
from .run import Run
from .saving import Saving
from .signals import SignalCatcher
from .staging import Pace, call_capacity, pad
from .step_limit import StepLimit


@dataclasses.dataclass
class Fit:
    """What one call of `Trainer.fit` works with.

    `failure` is the error that ended it where others go on.
    """

    trainer: RunningTrainer
    run: Run
    data: Dataset
    recipe: Recipe
    rule: AbstractLearning
    optimizer: Argument
    calendar: Calendar
    evaluate: Callable[[], dict[str, float]]
    callbacks: CallbackList
    saving: Saving
    pace: Pace
    limit: StepLimit
    constants: PyTree = None
    numbers: Sequence[Any] = ()  # of rule and optimizer
    failure: NonFiniteEnergyError | None = None
    _told: int = -1  # the step that `tell` was about, unless a callback went back

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the folder of checkpoints and tell the callbacks start and end, while the fit trains."""
        with (
            self.run.training(),
            self.saving.opened(self.run, self.calendar),
            self.callbacks.running(self.trainer, self.calendar.total),
        ):
            yield

    @property
    def mesh(self) -> Mesh | None:
        """Where the state lies, if on several devices."""
        return None if self.run.layout is None else self.run.layout.mesh

    def reads_rows(self) -> bool:
        """Return whether anything looks at the state when a row is made."""
        return self.callbacks.read_rows or self.limit.asks(self.rule)

    def begin(self, *, rows_end_calls: bool) -> None:
        """Begin with the program that this fit is for, and the data where it looks for them."""
        self.calendar = dataclasses.replace(
            self.calendar, stops=self.callbacks.stops, rows_end_calls=rows_end_calls
        )
        self.recipe = self.recipe._replace(places=self.run.places())
        self.take_settings()
        self.constants = constants_on(self.mesh, self.data)
        self.pace.begin((self.recipe, self.data.spec()))

    def take_settings(self) -> None:
        """Take rule and optimizer apart, which takes longer than to call a small program."""
        self.numbers, settings = jax.tree.flatten((self.rule, self.optimizer))
        self.recipe = self.recipe._replace(settings=settings)

    def goes_on(self) -> bool:
        """Return whether there is a step to take."""
        step, over = self.run.step, self.failure is not None or self.run.stop_asked
        return step < self.calendar.total and not over

    def plan(self, capacity: int) -> int:
        """Return how many batches the next call takes."""
        if not self.goes_on():
            return 0
        step = self.run.step
        return self.pace.plan(min(self.calendar.next(step) - step, capacity))

    def items(self, count: int, capacity: int) -> PyTree:
        """Return what the next `count` batches are read from."""
        start, rows = self.run.step - self.calendar.start, own_rows(self.mesh, self.data)
        self.run.record.set_source(self.data, self.run.step)
        # whole batches where they are few numbers, as indices are
        cut = () if rows == ALL_ROWS else (rows,)
        items = pad(self.data.items(start, count, *cut), capacity)
        return items_on(self.mesh, items, self.data.batch_size, rows)

    def learned(self, measured: Measured, items: PyTree) -> None:
        """Note what a call measured on these items.

        Raises:
            NonFiniteEnergyError: where its last step was not applied.
        """
        # a failed step was not applied
        done, values = int(measured.count) - int(measured.failed), measured.columns()
        begin = self.run.step
        rows = self.calendar.rows_between(begin, begin + done)
        for step, end in zip((begin, *rows), (*rows, begin + done), strict=True):
            cut = {name: column[step - begin :] for name, column in values.items()}
            self.run.learned(cut, end - step)
            if end in rows:
                self.run.untold.append((end, self.run.record.take_means(self.recipe.metrics), {}))
        if done:
            self.run.owed = {"log", "evaluate", "epoch", "save"}
        if measured.failed:
            self._log()
            found = {name: float(column[done]) for name, column in values.items()}
            given = not_finite(self._batch(items, done), self.data.name)
            raise non_finite_error(self.run.step + 1, found, self.saving.last_good(), given)

    def _batch(self, items: PyTree, number: int) -> Evidence:
        """Return one batch as every process can read it."""

        def read(constants, items):
            item = jax.tree.map(lambda leaf: leaf[number], items)
            return readable(self.data.reader(constants, item))

        with self.run.state().network.on_mesh():
            return jax.jit(read)(self.constants, items)

    def tell(self) -> None:
        """Log and evaluate what is due after this step."""
        step, calendar = self.run.step, self.calendar
        self.callbacks.notify("on_progress", self.trainer, step)
        self._log()
        for event, tell in (("evaluate", self._evaluate), ("epoch", self._end)):
            # A callback may have gone back by restore(): then nothing more is due here.
            if self.run.step == step and event in self.run.owed and calendar.is_due(event, step):
                tell()
        self._told = step

    def save(self, *, asked: bool) -> None:
        """Save where it is due after this step, or asked."""
        step, calendar = self.run.step, self.calendar
        asked = calendar.save is not None and (asked or self.run.stop_asked)
        due = "save" in self.run.owed and calendar.is_due("save", step)
        if self._told == step and (asked or due):
            path = self.saving.save(self.run)
            self.callbacks.notify("on_checkpoint", self.trainer, step, path)
        self.run.owed = set()

    def _log(self) -> None:
        step, record = self.run.step, self.run.record
        self._log_untold()
        due = "log" in self.run.owed and self.calendar.is_due("log", step)
        if not due or not record.pending:
            return
        measured = self.callbacks.measure(self.trainer, step)  # where it raises, the row is owed
        if self.run.step == step:
            self.run.owed.discard("log")
            self.run.untold.append((step, record.take_means(self.recipe.metrics), measured))
            self._log_untold()
            self.limit.look(self.rule, self.run, self.data, self.run.step - self.calendar.start)

    def _log_untold(self) -> None:
        while untold := self.run.untold:
            step, means, measured = untold[0]
            row = of_means(
                means, self.recipe.metrics, "train/"
            )  # a user's functions, which may raise
            del untold[0]
            self._add(step, row | measured, "log")

    def _evaluate(self) -> None:
        row = {f"eval/{name}": value for name, value in self.evaluate().items()}
        self.run.owed.discard("evaluate")
        self._add(self.run.step, row, "evaluate")

    def _add(self, step: int, row: dict[str, float], event: str) -> None:
        self.run.record.history.append(step, row)
        self.callbacks.notify(f"on_{event}", self.trainer, step, row)

    def _end(self) -> None:
        self.run.owed.discard("epoch")
        epoch = self.calendar.epochs(self.run.step) - 1
        self.callbacks.notify("on_epoch_end", self.trainer, epoch)


# Fits that go on, the items of each, and how many of these to learn from; what was measured, on the host.
Learn = Callable[[Sequence[Fit], Sequence[PyTree], Sequence[int]], Sequence[Measured]]


def learn_alone(
    fits: Sequence[Fit], items: Sequence[PyTree], counts: Sequence[int]
) -> list[Measured]:
    """Learn for one fit after the other."""
    return [_learn(*one) for one in zip(fits, items, counts, strict=True)]


def train(
    fits: Sequence[Fit],
    signals: SignalCatcher,
    learn: Learn = learn_alone,
    *,
    told: Callable[[], Any] = lambda: None,
) -> None:
    """Train until the last step, a stop or an error; then the objects hold the newest states.

    Of several, one whose numbers are not finite ends alone: its `failure` says why.

    Args:
        fits: each at a step of its own.
        signals: what the process was asked.
        learn: what makes the calls.
        told: called after each call, when everything is told.
    """
    capacity = min(call_capacity(fit.data, len(fits)) for fit in fits)
    rows_end_calls = any(fit.reads_rows() for fit in fits)  # of all, so that none is ahead
    for fit in fits:
        fit.begin(rows_end_calls=rows_end_calls)
    with contextlib.ExitStack() as stack:
        stack.enter_context(connected())
        for fit in fits:
            stack.callback(fit.run.settle)
        for fit in fits:
            if fit.run.owed:  # an error came between
                with _failing_alone(fit, several=len(fits) > 1):
                    fit.tell()
                    fit.save(asked=False)
        while going := [fit for fit in fits if fit.goes_on()]:
            counts = [fit.plan(capacity) for fit in going]
            with together():
                items = [
                    fit.items(count, capacity) for fit, count in zip(going, counts, strict=True)
                ]
            begin = time.perf_counter()
            with signals.held():  # the states are ahead of the records until all is noted
                with memory_told("training", lambda: [f.run.state() for f in fits], fits[0].data):
                    found = learn(going, items, counts)
                seconds = time.perf_counter() - begin
                for fit, measured, own in zip(going, found, items, strict=True):
                    fit.pace.note(int(measured.count) - int(measured.failed), seconds)
                    with _failing_alone(fit, several=len(fits) > 1):
                        fit.learned(measured, own)
            for fit in going:
                if fit.failure is None:
                    with _failing_alone(fit, several=len(fits) > 1):
                        fit.tell()
            asked, stopped = _agree(fits, signals)
            for fit in going:
                if fit.failure is None:
                    with _failing_alone(fit, several=len(fits) > 1):
                        fit.save(asked=asked)
            told()
            # by what was agreed: a signal that came since is for after the next call, which saves
            if stopped:
                break


def _agree(fits: Sequence[Fit], signals: SignalCatcher) -> tuple[bool, bool]:
    """Return whether a checkpoint and whether a stop was asked for, which asks for one, too.

    Stops and clocks become those of all processes.
    """
    saves = signals.save_asked()
    saves, caught, *rest = largest(
        saves,
        signals.caught or 0,
        *(fit.run.stop_asked for fit in fits),
        # the slowest one's rate, so that their calls are equally long
        *(-(fit.pace.steps_per_second or 0.0) for fit in fits),
    )
    if caught:  # else one may have come meanwhile
        signals.caught = int(caught)
    for number, fit in enumerate(fits):
        fit.run.stop_asked = bool(rest[number])
        fit.pace.steps_per_second = -rest[len(fits) + number] or None
    return bool(saves or caught), bool(caught)


@contextlib.contextmanager
def _failing_alone(fit: Fit, *, several: bool) -> Iterator[None]:
    try:
        yield
    except NonFiniteEnergyError as error:
        if not several:
            raise
        fit.failure = error


def _learn(fit: Fit, items: PyTree, count: int) -> Measured:
    state = fit.run.take(as_read=not fit.callbacks.has_own)
    if fit.callbacks.has_own:  # which may have changed what a rule of a plain class holds
        fit.take_settings()

    def call(count, *, starts):
        given = dataclasses.replace(state, starts={}), fit.constants, items, count
        done = learn_batches(*given, fit.run.key, fit.numbers, starts=starts, recipe=fit.recipe)
        return settled(done)

    with state.network.on_mesh():
        state_after, measured = sound(call, np.int32(count), state.starts)
    fit.run.put(state_after)
    return measured
