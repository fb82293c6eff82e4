"""The console: a bar with rate and time left, and a line for each evaluation."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..callbacks import Callback, RunningTrainer


class ConsoleLogger(Callback):
    """A progress bar with rate and time left, and a line for each evaluation.

    Where the output is no terminal, and no notebook with ipywidgets, there is no bar, and the lines remain.
    On a narrow terminal the bar leaves out metrics, then the rate.

    Args:
        console: rich's console; `plain_console()` unless given.
    """

    every_process = False

    def __init__(self, console: Console | None = None):
        self.console = console or plain_console()
        self._progress: Progress | None = None

    def on_fit_start(self, trainer: RunningTrainer, num_steps: int) -> None:
        """Show the bar, and beside it what has room on one line."""
        left = self.console.width - (2 * len(str(num_steps)) + 1) - _TIME - 2
        bar = max(1, min(_BAR, left))
        has_rate = left - bar > _RATE
        self._room = left - bar - (_RATE + 1) * has_rate - 1
        self._progress = Progress(
            BarColumn(bar_width=bar),
            MofNCompleteColumn(),
            *([TextColumn("{task.fields[rate]}", markup=False)] if has_rate else []),
            TimeRemainingColumn(),
            *([TextColumn("{task.fields[metrics]}", markup=False)] if self._room > 0 else []),
            console=self.console,
            disable=not _shows_bars(self.console),
            transient=True,
        )
        self._task = self._progress.add_task(
            "training", total=num_steps, completed=trainer.step, rate="compiling", metrics=""
        )
        self._progress.start()

    def on_progress(self, trainer: RunningTrainer, step: int) -> None:
        """Move the bar."""
        if self._progress is not None:
            rate = trainer.steps_per_second
            text = "" if rate is None else f"{rate:,.{0 if rate >= 10 else 2}f} steps/s"
            self._progress.update(self._task, completed=step, rate=text)

    def on_log(self, trainer: RunningTrainer, step: int, metrics: dict[str, float]) -> None:
        """Show the current metrics beside the bar."""
        if self._progress is not None:
            self._progress.update(self._task, metrics=_headline(metrics, self._room))

    def on_evaluate(self, trainer: RunningTrainer, step: int, metrics: dict[str, float]) -> None:
        """Print one line."""
        line = f"step {step:>6}  {_short(metrics)}"
        self.console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def on_fit_end(self, trainer: RunningTrainer) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def plain_console() -> Console:
    """Return a console on standard output that shows text as it is.

    Brackets are no markup. Where the output is no terminal, lines and tables are as wide as they need
    to be. A pipe that nobody reads any more, or a terminal that was closed, stops nothing.
    """
    console = Console(file=_Screen(), markup=False, emoji=False, highlight=False)  # type: ignore
    if not (console.is_terminal or console.is_jupyter or "COLUMNS" in os.environ):
        console.width = _UNCUT
    return console


def _shows_bars(console: Console) -> bool:
    """Return whether a bar can move there: on a terminal, and in a notebook that has widgets."""
    has_widgets = console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None
    return console.is_terminal or has_widgets


_UNCUT = 10_000  # columns
_BAR, _RATE, _TIME = 14, 14, 7  # columns of the bar, of a rate and of the time left


class _Screen:
    """Standard output, for showing: what cannot be shown there is dropped."""

    @property
    def _file(self) -> Any:
        return getattr(sys.stdout, "rich_proxied_file", sys.stdout)  # under a progress bar

    @property
    def encoding(self) -> str:
        return getattr(self._file, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        with contextlib.suppress(AttributeError, ValueError):  # there is none, or it is closed
            return self._file.isatty()
        return False

    def fileno(self) -> int:
        return self._file.fileno()

    def write(self, text: str) -> int:
        shown = text.encode(self.encoding, "backslashreplace").decode(self.encoding)
        with contextlib.suppress(AttributeError, OSError, ValueError):
            self._file.write(shown)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(AttributeError, OSError, ValueError):
            self._file.flush()


def _headline(metrics: dict[str, float], room: int) -> str:
    """Return the first two metrics of the whole network, without their prefix, as far as there is room."""
    overall = {
        name.removeprefix("train/"): value
        for name, value in metrics.items()
        if name.count("/") < 2 and name != "train/loss"
    }
    first = ("accuracy", "squared_error", "energy")
    order = sorted(overall, key=lambda name: first.index(name) if name in first else len(first))
    told = [_short({name: overall[name] for name in order[:count]}) for count in (2, 1, 0)]
    return next(text for text in told if len(text) <= max(0, room))


def _short(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
