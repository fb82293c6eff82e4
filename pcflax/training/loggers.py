"""Loggers: where measurements go. Each is a callback.

The console shows what a person waits for; JSON lines are what programs read, and hold nothing that
two equal runs would not share; TensorBoard files are for its browser.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .callbacks import Callback

if TYPE_CHECKING:
    from .trainer import Trainer


class ConsoleLogger(Callback):
    """A progress bar with rate and time left, and a line for each evaluation.

    Where the output is no terminal there is no bar, and the lines remain.

    Args:
        console: rich's console; standard output unless given.
    """

    reads_network = False

    def __init__(self, console: Console | None = None):
        self.console = console or Console()
        self._progress: Progress | None = None

    def on_fit_start(self, trainer: Trainer, num_steps: int) -> None:
        """Show the bar."""
        self._progress = Progress(
            BarColumn(bar_width=16),  # the whole line fits 80 columns
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task(
            "training", total=num_steps, completed=trainer.step, rate="compiling", metrics=""
        )
        self._progress.start()

    def on_progress(self, trainer: Trainer, step: int) -> None:
        """Move the bar."""
        if self._progress is not None:
            rate = trainer.steps_per_second
            text = (
                ""
                if rate is None
                else f"{rate:,.0f} steps/s"
                if rate >= 10
                else f"{rate:.2f} steps/s"
            )
            self._progress.update(self._task, completed=step, rate=text)

    def on_log(self, trainer: Trainer, step: int, metrics: dict[str, float]) -> None:
        """Show the current metrics beside the bar."""
        if self._progress is not None:
            self._progress.update(self._task, metrics=_headline(metrics))

    def on_evaluate(self, trainer: Trainer, step: int, metrics: dict[str, float]) -> None:
        """Print one line."""
        self.console.print(f"step {step:>6}  {_short(metrics)}", highlight=False)

    def on_fit_end(self, trainer: Trainer) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class JSONLinesLogger(Callback):
    """One JSON object a line: {"step": n, name: value, ...}, as in the Trainer's history.

    A resumed run drops what was written after its checkpoint, so that the file ends as that of a run
    never interrupted.

    Args:
        path: the file; it is made with its folder.
    """

    reads_network = False

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._file: Any = None

    def on_fit_start(self, trainer: Trainer, num_steps: int) -> None:
        """Write the history so far, and open the file for more."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(self.path.name + ".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in trainer.history.rows))
        os.replace(part, self.path)
        self._file = self.path.open("a", buffering=1)

    def on_log(self, trainer: Trainer, step: int, metrics: dict[str, float]) -> None:
        """Write a row of training metrics."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")

    on_evaluate = on_log

    def on_fit_end(self, trainer: Trainer) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


class TensorBoardLogger(Callback):
    """TensorBoard event files, written with tensorboardX.

    Args:
        directory: the folder that `tensorboard --logdir` is given.
    """

    reads_network = False

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        self._writer: Any = None

    def on_fit_start(self, trainer: Trainer, num_steps: int) -> None:
        """Open a new event file; TensorBoard forgets what older ones hold after the current step."""
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(self.directory), purge_step=trainer.step + 1)

    def on_log(self, trainer: Trainer, step: int, metrics: dict[str, float]) -> None:
        """Write one scalar a metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    on_evaluate = on_log

    def on_fit_end(self, trainer: Trainer) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


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
