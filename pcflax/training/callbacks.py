"""Callbacks: objects that the Trainer tells what happens.

A callback is any object with some of the methods of `Callback`; nothing has to be inherited. Loggers
are callbacks too. A method whose name begins with `on_` but is none of these is refused, so that a
typo does not pass as silence.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from pcflax.checks import did_you_mean, expect_count
from pcflax.networks import AbstractPCNetwork
from pcflax.sharding.processes import together
from pcflax.typing import PyTree

from .checks import check_measured
from .history import History
from .metrics import as_number


@runtime_checkable
class RunningTrainer(Protocol):
    """What callbacks may use of the `Trainer`, which has more."""

    measures: tuple[str, ...]

    @property
    def network(self) -> AbstractPCNetwork:
        """The network as of `step`."""
        ...

    @property
    def optimizer_state(self) -> PyTree:
        """The optimizer's state as of `step`."""
        ...

    @property
    def step(self) -> int:
        """Batches learned from so far."""
        ...

    @property
    def steps_per_second(self) -> float | None:
        """The newest rate."""
        ...

    @property
    def history(self) -> History:
        """What was measured so far."""
        ...

    @property
    def began(self) -> int:
        """The step at which this fit began."""
        ...

    def stop(self) -> None:
        """End the fit after the step at hand."""
        ...

    def restore(self, step: int | None = None, *, best: bool = False) -> int:
        """Go back to a checkpoint."""
        ...


class Callback:
    """Every event, as a method that does nothing; define those you want.

    `trainer.network`, read in a method, holds the parameters as of `trainer.step`. What a callback
    changes in it, in `trainer.optimizer_state` or by `trainer.restore()` is trained on from there.

    Attributes:
        stops: steps after which a compiled call ends, so that `on_progress` is told of them; how calls are
            cut changes no number.
        every_process: whether it is told in each of several processes of `jax.distributed`; False for what
            writes files or to the terminal, which is the first one's. It must not evaluate, infer or restore
            then, which is work of all.

    >>> import pcflax as pc
    >>> class Printer(pc.Callback):
    ...     every_process = False
    ...     def on_evaluate(self, trainer, step, metrics):
    ...         print(step, metrics)
    """

    stops: tuple[int, ...] = ()
    every_process: bool = True

    def on_fit_start(self, trainer: RunningTrainer, num_steps: int) -> None:
        """Hear that training begins at `trainer.step` and will go on until `num_steps`."""

    def on_progress(self, trainer: RunningTrainer, step: int) -> None:
        """Hear that a compiled call has returned; for progress displays."""

    def on_measure(self, trainer: RunningTrainer, step: int) -> dict[str, float] | None:
        """Return more metrics for the training row that is about to be logged, by name; or None."""

    def on_log(self, trainer: RunningTrainer, step: int, metrics: dict[str, float]) -> None:
        """Hear training metrics, means over the steps since the last call."""

    def on_evaluate(self, trainer: RunningTrainer, step: int, metrics: dict[str, float]) -> None:
        """Hear metrics of the evaluation set."""

    def on_epoch_end(self, trainer: RunningTrainer, epoch: int) -> None:
        """Hear that an epoch of the training data is complete; the first has number 0."""

    def on_checkpoint(self, trainer: RunningTrainer, step: int, path: Path) -> None:
        """Hear that a checkpoint is being written to `path`."""

    def on_fit_end(self, trainer: RunningTrainer) -> None:
        """Hear that training is over, for whatever reason; close what was opened in `on_fit_start`."""


EVENTS = tuple(name for name in vars(Callback) if name.startswith("on_"))
_DEFAULTS = tuple(getattr(Callback, event) for event in EVENTS)


class CallbackList:
    """Several callbacks as one."""

    def __init__(self, callbacks: Iterable[Any]):
        self.callbacks = list(callbacks)
        for callback in self.callbacks:
            kind = type(callback).__name__
            methods = [name for name in dir(callback) if name.startswith("on_")]
            for name in methods:
                if name not in EVENTS:
                    hint = did_you_mean(name, EVENTS) or "."
                    raise TypeError(
                        f"callback {kind} has a method {name}, which is never called{hint} "
                        f"Expected some of {', '.join(EVENTS)}"
                    )
            if not methods:
                raise TypeError(
                    f"{kind} is no callback: expected some of the methods {', '.join(EVENTS)}"
                )

    def listens(self, event: str) -> bool:
        """Return whether any callback has a method of its own for this event."""
        methods = (getattr(callback, event, None) for callback in self.callbacks)
        return any(
            method is not None and getattr(method, "__func__", None) not in _DEFAULTS
            for method in methods
        )

    @property
    def has_own(self) -> bool:
        """Whether any is of a user's own class."""
        kinds = map(type, self.callbacks)
        return any(not kind.__module__.startswith("pcflax.") for kind in kinds)

    @property
    def read_rows(self) -> bool:
        """Whether any may look at the state when a row is made; pcflax's own loggers do not."""
        return self.listens("on_measure") or (self.has_own and self.listens("on_log"))

    @property
    def stops(self) -> tuple[int, ...]:
        """The steps at which callbacks want calls to end."""
        return tuple(stop for one in self.callbacks for stop in getattr(one, "stops", ()))

    def notify(self, event: str, *args: Any) -> None:
        """Call the method of that name wherever there is one, in order."""
        for callback in self.callbacks:
            _tell(callback, event, *args)

    @contextlib.contextmanager
    def running(self, trainer: RunningTrainer, num_steps: int) -> Iterator[None]:
        """Tell the start, and on leaving the end: to each that has started, whatever is raised."""
        with contextlib.ExitStack() as ends:
            started = []
            try:
                for callback in self.callbacks:
                    _tell(callback, "on_fit_start", trainer, num_steps)
                    started.append(callback)
                yield
            finally:
                for callback in reversed(started):  # a stack: the first pushed is told last
                    ends.callback(_tell, callback, "on_fit_end", trainer)

    def measure(self, trainer: RunningTrainer, step: int) -> dict[str, float]:
        """Return what the callbacks measure for a training row, together.

        Raises:
            TypeError, ValueError: for what is no number, and the name of the row's step.
        """
        found: dict[str, float] = {}
        for callback in self.callbacks:
            kind = type(callback).__name__
            for name, value in (_tell(callback, "on_measure", trainer, step) or {}).items():
                if name == "step":
                    raise ValueError(
                        f"callback {kind} measured 'step', which is the row's own; give it another name"
                    )
                found[name] = as_number(f"on_measure of callback {kind}", name, value)
        return found


def _tell(callback: Any, event: str, *args: Any) -> Any:
    method = getattr(callback, event, None)
    if method is None:
        return None
    with together() as first:
        return method(*args) if first or getattr(callback, "every_process", True) else None


def mode_of(metric: str, mode: Literal["max", "min"] | None = None) -> Literal["max", "min"]:
    """Return whether more of a metric is better or less: what is given, or by its name.

    Raises:
        ValueError: for another mode.

    >>> mode_of("eval/accuracy"), mode_of("eval/squared_error"), mode_of("eval/energy", "max")
    ('max', 'min', 'max')
    """
    if mode is None:
        falls = ("energy", "loss", "error", "entropy", "perplexity")
        return "min" if any(word in metric for word in falls) else "max"
    if mode not in ("max", "min"):
        raise ValueError(f"expected mode 'max' or 'min', got {mode!r}")
    return mode


class EarlyStopping(Callback):
    """Stop where a metric has not improved for a number of evaluations of this fit.

    What it judges is the Trainer's history, so a resumed run stops where the run never interrupted would
    have. Another `fit` of the same Trainer is judged by its own evaluations.

    Args:
        metric: a name of the history, such as "eval/accuracy"; of "train/loss", which has rows of its own,
            an evaluation sees those since the one before.
        mode: whether better is "max" or "min"; "min" for energies, losses and errors unless given, else
            "max".
        patience: evaluations without improvement before the stop.

    Raises:
        ValueError: for another mode or a patience below 1; and when a fit begins that does not measure
            the metric.

    >>> EarlyStopping("eval/accuracy", patience=3).mode, EarlyStopping("eval/energy").mode
    ('max', 'min')
    """

    def __init__(
        self, metric: str, mode: Literal["max", "min"] | None = None, *, patience: int = 5
    ):
        self.metric, self.mode = metric, mode_of(metric, mode)
        self.patience = expect_count("EarlyStopping", "patience", patience, least=1)
        self._judged = _Judged(History(), 0)

    def on_fit_start(self, trainer: RunningTrainer, num_steps: int) -> None:
        """Refuse a metric that is not measured; stop a run that had stopped before it was restored."""
        self._judged = _Judged(trainer.history, trainer.began)
        if not any(name.startswith("eval/") for name in trainer.measures):
            raise ValueError(
                f"EarlyStopping judges '{self.metric}' after evaluations, and this fit has none; give "
                f"fit eval_data"
            )
        ours = self.metric.startswith(("train/", "eval/"))  # others are what callbacks measure
        if ours and not self.metric.startswith("train/energy/"):
            check_measured("EarlyStopping", self.metric, trainer.measures)
        if self.metric in trainer.history.names() and self._is_over(trainer):
            trainer.stop()
            warnings.warn(
                f"nothing to do: the run had stopped at step {trainer.step}, since '{self.metric}' no "
                f"longer improved; to go on until {num_steps}, leave EarlyStopping out or give it more "
                f"patience than {self.patience}",
                UserWarning,
                stacklevel=2,
            )

    def on_evaluate(self, trainer: RunningTrainer, step: int, metrics: dict[str, float]) -> None:
        """Stop the Trainer where the best value is too old."""
        del step, metrics  # the history holds them
        if self._is_over(trainer):
            trainer.stop()

    def _is_over(self, trainer: RunningTrainer) -> bool:
        judged, history = self._judged, trainer.history
        if judged.history is not history or judged.began != trainer.began:
            judged = self._judged = _Judged(history, trainer.began)
        names = history.names()
        if self.metric not in names and ("train/energy" in names or self.metric[:5] == "eval/"):
            history[self.metric]  # which raises; before the first row of training it may come yet
        sign = 1.0 if self.mode == "max" else -1.0
        for row in history.rows[judged.rows :]:
            if row["step"] <= judged.began:
                continue
            if self.metric in row:
                score = sign * row[self.metric]
                judged.see(-math.inf if math.isnan(score) else score)  # a NaN is never the best
            if any(name.startswith("eval/") for name in row):
                judged.count()
        judged.rows = len(history.rows)
        return judged.since_best >= self.patience


@dataclasses.dataclass
class _Judged:
    """How far a history was gone through, so that a long one is not at each evaluation."""

    history: History
    began: int
    rows: int = 0
    best: float | None = None
    since_best: int = -1  # evaluations

    def see(self, score: float) -> None:
        """Look at the next score, of which a higher one is better."""
        if self.best is None or score > self.best:
            self.best, self.since_best = score, -1

    def count(self) -> None:
        """Count an evaluation, after the scores that came before it or with it."""
        self.since_best += self.best is not None
