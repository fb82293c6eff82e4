"""One fit: plan a call, call the compiled loop, tell what came of it, until the last step.

When to log, evaluate and save is the `Calendar`'s, a function of step numbers only. Next file to read:
`loop.py`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from pcflax.data import Dataset
from pcflax.errors import non_finite_error
from pcflax.learning import AbstractLearning
from pcflax.settings import Argument

from .calendar import Calendar
from .callbacks import CallbackList, RunningTrainer
from .loop import Recipe, learn_batches
from .placement import constants_on, items_on
from .run import Run
from .saving import Saving
from .signals import SignalCatcher
from .staging import Pace, call_capacity, columns, pad
from .step_limit import StepLimit


@dataclasses.dataclass(frozen=True)
class Fit:
    """What one call of `Trainer.fit` works with."""

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

    @property
    def mesh(self) -> Mesh | None:
        """Where the state lies, if on several devices."""
        return None if self.run.layout is None else self.run.layout.mesh

    def train(self, signals: SignalCatcher) -> None:
        """Train until the last step, a stop or an error; then the objects hold the newest state."""
        constants, capacity = constants_on(self.mesh, self.data), call_capacity(self.data)
        made_for = jax.tree.structure((self.rule, self.optimizer))
        recipe = self.recipe._replace(places=self.run.places())
        self.pace.begin((made_for, recipe, self.data.spec()))
        try:
            while self.run.step < self.calendar.total and not self.run.stop_asked:
                # plan
                step = self.run.step
                count = self.pace.plan(min(self.calendar.next(step) - step, capacity))
                items = pad(self.data.items(step - self.calendar.start, count), capacity)
                items = items_on(self.mesh, items, self.data.batch_size)
                # call
                self._call(constants, items, count, recipe)
                # tell
                if self._tell(signals):
                    break
        finally:
            self.run.settle()

    def _call(self, constants, items, count: int, recipe: Recipe) -> None:
        """Learn from `count` batches."""
        begin = time.perf_counter()
        state = self.run.take()
        with state.network.on_mesh():
            state, measured = learn_batches(
                state,
                constants,
                items,
                jnp.int32(count),
                self.run.key,
                self.rule,
                self.optimizer,
                recipe=recipe,
            )
        self.run.put(state)
        values, looked, failed = jax.device_get(measured)
        done, values = int(looked) - int(failed), columns(values)  # a failed step was not applied
        self.pace.note(done, time.perf_counter() - begin)
        self.run.learned(values, done)
        if failed:
            found = {name: float(column[done]) for name, column in values.items()}
            raise non_finite_error(self.run.step + 1, found, self.saving.last_good())

    def _tell(self, signals: SignalCatcher) -> bool:
        """Log, evaluate and save what is due after this step; return whether to stop here."""
        step, calendar = self.run.step, self.calendar
        self.callbacks.notify("on_progress", self.trainer, step)
        for event, tell in (("log", self._log), ("evaluate", self._evaluate), ("epoch", self._end)):
            # A callback may have gone back by restore(): then nothing more is due here.
            if self.run.step == step and calendar.is_due(event, step):
                tell()
        stopping = self.run.stop_asked or signals.caught is not None
        asked = calendar.save is not None and (stopping or signals.save_asked())
        if self.run.step == step and (asked or calendar.is_due("save", step)):
            path = self.saving.save(self.run)
            self.callbacks.notify("on_checkpoint", self.trainer, step, path)
        return stopping

    def _log(self) -> None:
        row = self.run.record.take_row(self.recipe.metrics)
        if row:
            row |= self.callbacks.measure(self.trainer, self.run.step)
            self._add(row, "on_log")
            self.limit.look(self.rule, self.run, self.data, self.run.step - self.calendar.start)

    def _evaluate(self) -> None:
        self.run.write()  # so that a fault within a call goes back to the last evaluation at most
        self._add({f"eval/{k}": value for k, value in self.evaluate().items()}, "on_evaluate")

    def _add(self, row: dict[str, float], event: str) -> None:
        self.run.record.history.append(self.run.step, row)
        self.callbacks.notify(event, self.trainer, self.run.step, row)

    def _end(self) -> None:
        epoch = self.calendar.epochs(self.run.step) - 1
        self.callbacks.notify("on_epoch_end", self.trainer, epoch)
