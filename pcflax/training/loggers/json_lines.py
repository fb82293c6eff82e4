"""A file of JSON lines."""

from __future__ import annotations

from pathlib import Path

from pcflax.checks import expect_local_path

from ..callbacks import RunningTrainer
from ..checkpoints.disk import write_atomically
from ..history import History
from ..plain_json import dumps
from .telling import FileLogger, set_aside


class JSONLinesLogger(FileLogger):
    """One JSON object a line: {"step": n, name: value, ...}, as in the Trainer's history.

    A run that goes back to a checkpoint, resumed or by a callback, drops what was written after it, so that
    the file ends as that of a run never interrupted. A file of anything else is moved aside to
    `<name>.superseded`. Numbers that are not finite, which JSON does not know, are null.

    Args:
        path: the file; it is made with its folder.

    Raises:
        TypeError, ValueError: for what is no path, or the address of a bucket.
        OSError: while training, where the file cannot be written.
    """

    def __init__(self, path: str | Path):
        self.path = expect_local_path("JSONLinesLogger", "path", path)
        self._what = f"metrics to {self.path}"

    def on_fit_start(self, trainer: RunningTrainer, num_steps: int) -> None:
        """Write the history so far, and open the file for more."""
        lines = _lines(trainer.history)
        with self._telling():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and not _begins(self.path, lines):
                set_aside(self.path)
            self._write_all(trainer.history)

    def on_log(self, trainer: RunningTrainer, step: int, metrics: dict[str, float]) -> None:
        """Write a row of training metrics."""
        with self._telling():
            # a callback may have gone back to a checkpoint
            if len(trainer.history.rows) != self._count + 1:
                self._write_all(trainer.history)  # the row among them
                return
            self._file.write(dumps({"step": step, **metrics}) + "\n")
            self._count += 1

    on_evaluate = on_log

    def _write_all(self, history: History) -> None:
        self._close()
        lines = _lines(history)
        write_atomically(self.path, "".join(lines))
        self._file, self._count = self.path.open("a", buffering=1), len(lines)


def _lines(history: History) -> list[str]:
    return [dumps(row) + "\n" for row in history.rows]


def _begins(path: Path, lines: list[str]) -> bool:
    """Return whether a file begins with these lines, as far as it goes; an empty one may be anybody's."""
    found = path.read_bytes()
    begin = "".join(lines).encode()
    return found == b"" or (begin != b"" and (found.startswith(begin) or begin.startswith(found)))
