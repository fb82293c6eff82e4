"""Loggers: where measurements go. Each is a callback.

The console shows what a person waits for; JSON lines are what programs read, and hold nothing that
two equal runs would not share; TensorBoard files are for its browser. Paths are fixed when a logger is
made: a later change of folder moves nothing.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pcflax.checks import expect_local_path

from .callbacks import Callback, RunningTrainer
from .plain_json import dumps


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


class JSONLinesLogger(Callback):
    """One JSON object a line: {"step": n, name: value, ...}, as in the Trainer's history.

    A resumed run drops what was written after its checkpoint, so that the file ends as that of a run
    never interrupted. A file of anything else is moved aside to `<name>.superseded`. Numbers that are not
    finite, which JSON does not know, are null.

    Args:
        path: the file; it is made with its folder.
    """

    def __init__(self, path: str | Path):
        self.path = expect_local_path("JSONLinesLogger", "path", path)
        self._file: Any = None

    def on_fit_start(self, trainer: RunningTrainer, num_steps: int) -> None:
        """Write the history so far, and open the file for more."""
        lines = [dumps(row) + "\n" for row in trainer.history.rows]
        with self._telling():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and not _begins(self.path, lines):
                self.path.rename(_free(self.path.with_name(self.path.name + ".superseded")))
            part = self.path.with_name(self.path.name + ".part")
            part.write_text("".join(lines))
            os.replace(part, self.path)
            self._file = self.path.open("a", buffering=1)

    def on_log(self, trainer: RunningTrainer, step: int, metrics: dict[str, float]) -> None:
        """Write a row of training metrics."""
        with self._telling():
            self._file.write(dumps({"step": step, **metrics}) + "\n")

    on_evaluate = on_log

    def on_fit_end(self, trainer: RunningTrainer) -> None:
        """Close the file."""
        if self._file is not None:
            file, self._file = self._file, None
            with self._telling():
                file.close()

    def _telling(self):
        return _telling(f"metrics to {self.path}")


class TensorBoardLogger(Callback):
    """TensorBoard event files, in the format of tensorboardX.

    Its `SummaryWriter` is not used: the thread in which that writes dies of a full disk, and whoever gives it
    more then waits for ever.

    Args:
        directory: the folder that `tensorboard --logdir` is given.
    """

    def __init__(self, directory: str | Path):
        self.directory = expect_local_path("TensorBoardLogger", "directory", directory)
        self._writer: Any = None
        self._flush_at = 0.0

    def on_fit_start(self, trainer: RunningTrainer, num_steps: int) -> None:
        """Open a new event file; TensorBoard forgets what older ones hold after the current step."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog  # type: ignore

        with self._telling():
            self.directory.mkdir(parents=True, exist_ok=True)
            # its own suffix is of seconds: a fit that begins in the same one would write over this
            suffix = f".{time.time_ns()}"
            self._writer = EventsWriter(str(self.directory / "events"), suffix)
        self._write(trainer.step + 1, session_log=SessionLog(status=SessionLog.START))

    def on_log(self, trainer: RunningTrainer, step: int, metrics: dict[str, float]) -> None:
        """Write one scalar a metric."""
        from tensorboardX.proto.summary_pb2 import Summary  # type: ignore

        # the names as they are: SummaryWriter would make one of "a b" and "a_b"
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._write(step, summary=Summary(value=values))

    on_evaluate = on_log

    def on_fit_end(self, trainer: RunningTrainer) -> None:
        """Close the file."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            with self._telling():
                writer.close()

    def _write(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event  # type: ignore

        with self._telling():
            self._writer.write_event(Event(wall_time=time.time(), step=step, **content))
            if time.monotonic() > self._flush_at:
                self._writer.flush()  # which waits for the disk
                self._flush_at = time.monotonic() + _FLUSH_EVERY

    def _telling(self):
        return _telling(f"TensorBoard's events to {self.directory}")


_FLUSH_EVERY = 10.0  # seconds


@contextlib.contextmanager
def _telling(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(f"cannot write {what}: {error.strerror}") from error


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


def _begins(path: Path, lines: list[str]) -> bool:
    """Whether a file begins with these lines, as far as it goes; an empty one may be anybody's."""
    found = path.read_bytes()
    begin = "".join(lines).encode()
    return found == b"" or (begin != b"" and (found.startswith(begin) or begin.startswith(found)))


def _free(path: Path) -> Path:
    """The path, or with a number behind it, where there is nothing yet."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


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
