"""Callbacks: objects that the Trainer tells what happens.

A callback is any object with some of the methods of `Callback`; nothing has to be inherited. Loggers
are callbacks too. A method whose name begins with `on_` but is none of these is refused, so that a
typo does not pass as silence.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from .trainer import Trainer


class Callback:
    """Every event, as a method that does nothing; define those you want.

    When a method is called, `trainer.network` holds the parameters as of `trainer.step` (but for
    `on_progress`, which comes after every compiled call and is for displays). What a callback changes
    in the network, in `trainer.optimizer_state` or by `trainer.restore()` is trained on from there.

    Attributes:
        reads_network: False where `on_log` and `on_measure` look at their arguments only, as loggers do;
            then the network need not be written for them, and training does not wait. It counts for the
            methods of the class that says it, not for those of a subclass.

    >>> import pcflax as pc
    >>> class Printer(pc.Callback):
    ...     def on_evaluate(self, trainer, step, metrics):
    ...         print(step, metrics)
    """

    reads_network: bool = True

    def on_fit_start(self, trainer: Trainer, num_steps: int) -> None:
        """Training begins at `trainer.step` and will go on until `num_steps`."""

    def on_progress(self, trainer: Trainer, step: int) -> None:
        """A compiled call has returned; only for progress displays, the network is not written."""

    def on_measure(self, trainer: Trainer, step: int) -> dict[str, float] | None:
        """More metrics for the training row that is about to be logged, by name; or None."""

    def on_log(self, trainer: Trainer, step: int, metrics: dict[str, float]) -> None:
        """Training metrics, means over the steps since the last call."""

    def on_evaluate(self, trainer: Trainer, step: int, metrics: dict[str, float]) -> None:
        """Metrics of the evaluation set."""

    def on_epoch_end(self, trainer: Trainer, epoch: int) -> None:
        """An epoch of the training data is complete; the first has number 0."""

    def on_checkpoint(self, trainer: Trainer, step: int, path: Path) -> None:
        """A checkpoint is being written to `path`."""

    def on_fit_end(self, trainer: Trainer) -> None:
        """Training is over, for whatever reason; close what was opened."""


EVENTS = tuple(name for name in vars(Callback) if name.startswith("on_"))
_DEFAULTS = tuple(getattr(Callback, event) for event in EVENTS)


class CallbackList:
    """Several callbacks as one.

    Raises:
        TypeError: for an object with none of the methods, or with an `on_` method of another name.
    """

    def __init__(self, callbacks: Iterable[Any]):
        self.callbacks = list(callbacks)
        for callback in self.callbacks:
            kind = type(callback).__name__
            methods = [name for name in dir(callback) if name.startswith("on_")]
            for name in methods:
                if name not in EVENTS:
                    close = difflib.get_close_matches(name, EVENTS, n=1)
                    hint = f"; did you mean {close[0]}?" if close else "."
                    raise TypeError(
                        f"callback {kind} has a method {name}, which is never called{hint} "
                        f"Expected some of {', '.join(EVENTS)}"
                    )
            if not methods:
                raise TypeError(
                    f"{kind} is no callback: expected some of the methods {', '.join(EVENTS)}"
                )

    def listens(self, *events: str, to_network: bool = False) -> bool:
        """Whether any callback has a method of its own for one of these events, and reads the network."""
        methods = (
            getattr(callback, event, None)
            for callback in self.callbacks
            for event in events
            if not to_network or _reads_network(callback, event)
        )
        return any(
            method is not None and getattr(method, "__func__", None) not in _DEFAULTS
            for method in methods
        )

    def notify(self, event: str, *args: Any) -> None:
        """Call the method of that name wherever there is one, in order."""
        for callback in self.callbacks:
            method = getattr(callback, event, None)
            if method is not None:
                method(*args)

    def measure(self, trainer: Any, step: int) -> dict[str, float]:
        """What the callbacks measure for a training row, together."""
        found: dict[str, float] = {}
        for callback in self.callbacks:
            method = getattr(callback, "on_measure", None)
            found |= (method(trainer, step) or {}) if method is not None else {}
        return found


class EarlyStopping(Callback):
    """Stop where a metric has not improved for a number of evaluations.

    It looks at the Trainer's history and keeps nothing, so a resumed run stops where the run never
    interrupted would have.

    Args:
        metric: a name of the history, such as "eval/accuracy".
        mode: whether better is "max" or "min".
        patience: evaluations without improvement before the stop.

    >>> EarlyStopping("eval/accuracy", "max", patience=3).patience
    3
    """

    def __init__(self, metric: str, mode: Literal["max", "min"] = "max", *, patience: int = 5):
        if mode not in ("max", "min"):
            raise ValueError(f"expected mode 'max' or 'min', got {mode!r}")
        if patience < 1:
            raise ValueError(f"expected a patience of at least 1 evaluation, got {patience}")
        self.metric, self.mode, self.patience = metric, mode, patience

    def on_fit_start(self, trainer: Trainer, num_steps: int) -> None:
        """Stop a run that had stopped before it was restored."""
        del num_steps
        if self.metric in trainer.history.names():
            self._judge(trainer)

    def on_evaluate(self, trainer: Trainer, step: int, metrics: dict[str, float]) -> None:
        """Stop the Trainer where the best value is too old."""
        del step, metrics  # the history holds them
        self._judge(trainer)

    def _judge(self, trainer: Trainer) -> None:
        values = trainer.history[self.metric]
        sign = 1.0 if self.mode == "max" else -1.0
        # a NaN is never the best
        scores = [-math.inf if math.isnan(value) else sign * value for value in values]
        if len(scores) - 1 - scores.index(max(scores)) >= self.patience:
            trainer.stop()


def _reads_network(callback: Any, event: str) -> bool:
    """What the class says that the method is of: a subclass that overrides it speaks for itself."""
    owner = next((kind for kind in type(callback).__mro__ if event in vars(kind)), None)
    return owner is None or vars(owner).get("reads_network", True)
