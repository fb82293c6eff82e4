"""A trial of a sweep: one training with settings of its own, in a folder of its own.

It tells the sweep's journal every evaluation, stops where others did better at its age, and goes on from
its checkpoint where the sweep was killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pcflax.data import Dataset
from pcflax.training import Callback, History, RunningTrainer, Trainer
from pcflax.training.checks import check_is_dataset, check_measured

if TYPE_CHECKING:
    import optuna


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a sweep looks for: a metric of evaluations and, if wanted, little cost.

    With a cost its value is the metric less `cost_weight` times the cost's logarithm to base 2 (plus it,
    where less of the metric is better): twice the cost must bring that much of the metric.
    """

    metric: str
    mode: Literal["max", "min"]
    cost: Literal["gradients", "seconds"] | None = None
    cost_weight: float = 0.01

    def value(self, measured: float, cost: float | None) -> float:
        """Return the value of an evaluation."""
        if cost is None:
            return measured
        return measured - self._sign * self.cost_weight * math.log2(cost)

    def best(self, values: list[float]) -> int | None:
        """Return the place of the best value, the first of equal ones; None where none is finite."""
        places = [place for place, value in enumerate(values) if math.isfinite(value)]
        return max(places, key=lambda place: self._sign * values[place], default=None)

    @property
    def _sign(self) -> int:
        return 1 if self.mode == "max" else -1


class Record:
    """What the journal knows of a running trial, and its history.

    Attributes:
        cost: of a batch; None where the sweep has none, or it is not known yet.
        history: of its Trainer; None before `Trial.fit`.
        pruned: whether others had done better at its age.
        why: what it failed by.
    """

    def __init__(self, told: optuna.Trial, objective: Objective):
        self.told, self.objective = told, objective
        self.cost: float | None = told.user_attrs.get("cost")
        self.history: History | None = None
        self.pruned, self.why = False, ""
        self._known = set(told.study.trials[told.number].intermediate_values)

    def take_cost(self, cost: float) -> None:
        """Note what a batch costs."""
        self.cost = cost
        self.told.set_user_attr("cost", cost)

    def values(self) -> list[float]:
        """Return the value of every evaluation so far."""
        metric = self.objective.metric
        if self.history is None or metric not in self.history.names():
            return []
        if self.objective.cost is not None and self.cost is None:
            return []
        return [self.objective.value(one, self.cost) for one in self.history[metric]]

    def report(self) -> None:
        """Tell the journal the evaluations that it does not know."""
        for number, value in enumerate(self.values()):
            if number not in self._known:
                self.told.report(value, number)
                self._known.add(number)

    def is_behind(self) -> bool:
        """Return whether others did better at its age.

        After a kill the journal may know evaluations that the Trainer, back at its newest checkpoint, has yet
        to make again: it was not behind at those before the newest, and is judged when it is there.
        """
        caught_up = len(self.values()) >= len(self._known) > 0
        return caught_up and self.told.should_prune()


class Trial:
    """One trial, as `sweep` gives it to the function that trains.

    Attributes:
        number: counted from 0.
        settings: {name: value}, what it is to train with; `trial[name]` is one of them.
        folder: its own, for checkpoints and whatever else is kept of it.

    >>> import optax, pcflax as pc
    >>> from flax import nnx
    >>> def train(trial):
    ...     network = pc.PCNetwork([pc.PCDense(64, 10, rngs=nnx.Rngs(0))])
    ...     trainer = pc.Trainer(network, optax.adam(trial["rate"]), learning=pc.learning.Backprop(),
    ...                          checkpoints=pc.Checkpoints(trial.folder), progress=False)
    ...     trial.fit(trainer, pc.data.load("digits", split="train[:90%]"), num_steps=20,
    ...               eval_data=pc.data.load("digits", split="train[90%:]"), eval_every=10)
    """

    def __init__(self, record: Record, folder: Path):
        self.number, self.folder = record.told.number, folder
        self.settings: Mapping[str, Any] = dict(record.told.params)
        self._record = record

    def __getitem__(self, name: str) -> Any:
        return self.settings[name]

    def fit(
        self, trainer: Trainer, data: Dataset, *, eval_data: Dataset, **options: Any
    ) -> History:
        """Train as `trainer.fit` does; from the newest checkpoint, where there is one.

        Args:
            trainer: with `checkpoints`, in `folder` or below it.
            data: to train on.
            eval_data: what the trial is judged by: a part of the training split that is not trained on.
            options: of `trainer.fit`: num_steps or epochs, eval_every, log_every.

        Raises:
            ValueError: for a test split, a Trainer without checkpoints or with some outside of `folder`, a
                metric of the sweep's that is not measured, or a cost that cannot be told; and as
                `trainer.fit` does.
        """
        record = self._record
        check_is_dataset(eval_data, "evaluation data")
        if eval_data.name.rpartition("/")[2].startswith("test"):
            raise ValueError(
                f"a sweep chooses by what it evaluates, and '{eval_data.name}' is a test split; give a part "
                f"of the training split that is not trained on, such as split='train[90%:]'"
            )
        if trainer.checkpoints is None:
            raise ValueError(
                "a trial goes on from a checkpoint after a kill; give its Trainer "
                "checkpoints=pc.Checkpoints(trial.folder)"
            )
        kept = trainer.checkpoints.directory
        if not kept.resolve().is_relative_to(self.folder.resolve()):
            raise ValueError(
                f"trial {self.number} goes on from checkpoints in its own folder, {self.folder}, but its "
                f"Trainer keeps them in {kept}, where another trial's may be; give it "
                f"checkpoints=pc.Checkpoints(trial.folder)"
            )
        with contextlib.suppress(FileNotFoundError):  # it had saved none
            trainer.restore()
        if record.objective.cost == "gradients" and record.cost is None:
            record.take_cost(_gradients(trainer, data))
        callbacks, watch = trainer.callbacks.callbacks, _Watch(record)
        callbacks.append(watch)
        try:
            with warnings.catch_warnings():
                # killed between its last step and the journal's last line
                warnings.filterwarnings("ignore", "nothing to do")
                trainer.fit(data, eval_data=eval_data, **options)
        finally:
            callbacks.remove(watch)
            record.history = trainer.history
        record.report()
        return trainer.history


class _Watch(Callback):
    """Tells the journal each evaluation, and stops a trial that others leave behind."""

    def __init__(self, record: Record):
        self._record, self._last = record, 0

    def on_fit_start(self, trainer: RunningTrainer, num_steps: int) -> None:
        """Refuse a metric that is not measured; tell what was measured before a kill."""
        check_measured("a sweep", self._record.objective.metric, trainer.measures)
        self._last = num_steps
        self._tell(trainer)

    def on_evaluate(self, trainer: RunningTrainer, step: int, metrics: dict[str, float]) -> None:
        """Tell it."""
        del step, metrics  # the history holds them
        self._tell(trainer)

    def _tell(self, trainer: RunningTrainer) -> None:
        record, rate = self._record, trainer.steps_per_second
        record.history = trainer.history
        if record.objective.cost == "seconds" and rate is not None:
            record.take_cost(1 / rate)
        record.report()
        if trainer.step < self._last and record.is_behind():
            record.pruned = True
            trainer.stop()


def _gradients(trainer: Trainer, data: Dataset) -> float:
    """Return what the rule does with a batch, in gradients of backpropagation, by operations."""
    inputs = data.spec().inputs
    costs = trainer.network.summary(
        inputs, batch_size=data.batch_size, learning={"rule": trainer.learning}
    ).costs
    base = costs.get("backpropagation's gradient")
    if base is None or not base.flops or not costs["rule"].bounded:
        why = "ends where it converged" if base else "has no gradient of backpropagation beside it"
        raise ValueError(
            f"a cost in gradients counts a fixed number of steps, and {type(trainer.learning).__name__} "
            f"here {why}; give a fixed number of steps, or a cost in seconds"
        )
    return costs["rule"].flops / base.flops
