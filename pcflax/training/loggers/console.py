"""The console: a bar with rate and time left, and a line for each evaluation."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..callbacks import Callback, RunningTrainer


class ConsoleLogger(Callback):
    """A progress bar with rate and time left, and a line for each evaluation.

    Where the output is no terminal there is no bar, and the lines remain.

    Args:
        console: rich's console; `plain_console()` unless given.
    """

    def __init__(self, console: Console | None = None):
        self.console = console or plain_console()
        self._progress: Progress | None = None

    def on_fit_start(self, trainer: RunningTrainer, num_steps: int) -> None:
        """Show the bar."""
        self._progress = Progress(
            BarColumn(bar_width=16),  # the whole line fits 80 columns
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}", markup=False),
            console=self.console,
            disable=not self.console.is_terminal,
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
            self._progress.update(self._task, metrics=_headline(metrics))

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
    screen = _Screen()
    width = None if screen.isatty() or "COLUMNS" in os.environ else _UNCUT
    return Console(file=screen, width=width, markup=False, emoji=False, highlight=False)  # type: ignore


_UNCUT = 10_000  # columns


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


def _headline(metrics: dict[str, float]) -> str:
    """The first two metrics of the whole network, without their prefix: the bar has no room for more."""
    overall = {
        name.removeprefix("train/"): value
        for name, value in metrics.items()
        if name.count("/") < 2 and name != "train/loss"
    }
    first = ("accuracy", "squared_error", "energy")
    order = sorted(overall, key=lambda name: first.index(name) if name in first else len(first))
    return _short({name: overall[name] for name in order[:2]})


def _short(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
