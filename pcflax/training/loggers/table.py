"""A table in a file of comma-separated values."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from pcflax.checks import expect_local_path

from ..callbacks import RunningTrainer
from ..history import History
from .telling import FileLogger, set_aside


class CSVLogger(FileLogger):
    """A table with a line for each step and a column for each metric, as `history.to_pandas()` is one.

    A cell is empty where nothing was measured. A metric that is measured for the first time adds a column.
    A resumed run drops what was written after its checkpoint; a file of anything else is moved aside to
    `<name>.superseded`.

    Args:
        path: the file; it is made with its folder.

    Raises:
        OSError: while training, where the file cannot be written.
        TypeError, ValueError: for what is no path, or the address of a bucket.

    >>> import tempfile, types
    >>> logger = CSVLogger(tempfile.mkdtemp() + "/metrics.csv")
    >>> trainer = types.SimpleNamespace(history=History([{"step": 50, "train/loss": 0.2}]))
    >>> logger.on_fit_start(trainer, 100)
    >>> logger.on_fit_end(trainer)
    >>> print(logger.path.read_text().strip())
    step,train/loss
    50,0.2
    """

    def __init__(self, path: str | Path):
        self.path = expect_local_path("CSVLogger", "path", path)
        self._what = f"metrics to {self.path}"
        self._columns: list[str] = []
        # The newest line, which the next row of its step is added to, and where it begins.
        self._line: dict[str, Any] = {}
        self._begin = 0

    def on_fit_start(self, trainer: RunningTrainer, num_steps: int) -> None:
        """Write the history so far, and open the file for more."""
        with self._telling():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and not self._is_of(trainer.history):
                set_aside(self.path)
            self._write_all(trainer.history)

    def on_log(self, trainer: RunningTrainer, step: int, metrics: dict[str, float]) -> None:
        """Write a row, or add it to the line of its step."""
        with self._telling():
            # a callback may have gone back to a checkpoint
            goes_on = len(trainer.history.rows) == self._count + 1
            if not goes_on or not metrics.keys() <= set(self._columns):
                self._write_all(trainer.history)  # which holds the row
                return
            self._count += 1
            if step != self._line.get("step"):
                self._begin, self._line = self._file.tell(), {"step": step}
            self._line |= metrics
            self._file.seek(self._begin)
            self._file.truncate()
            self._writer().writerow(self._line)
            self._file.flush()

    on_evaluate = on_log

    def _write_all(self, history: History) -> None:
        self._close()
        self._count = len(history.rows)
        self._columns, lines = ["step", *history.names()], history.by_step()
        part = self.path.with_name(self.path.name + ".part")
        self._file = part.open("w", newline="", encoding="utf-8")
        if history.rows:
            self._writer().writeheader()
        self._writer().writerows(lines[:-1])
        self._begin, self._line = self._file.tell(), lines[-1] if lines else {}
        self._writer().writerows(lines[-1:])
        self._file.flush()
        os.replace(part, self.path)

    def _writer(self) -> csv.DictWriter:
        return csv.DictWriter(self._file, self._columns, lineterminator="\n")

    def _is_of(self, history: History) -> bool:
        """Return whether a file begins with the history's first line; an empty one may be anybody's."""
        with self.path.open(newline="", encoding="utf-8", errors="replace") as file:
            try:
                found = next(csv.DictReader(file), None)
            except csv.Error:  # no table
                return False
        if found is None or not history.rows:
            return self.path.stat().st_size == 0
        first = {name: str(value) for name, value in history.by_step()[0].items()}
        # a kill may have come between the rows of the step
        return all(first.get(name) == text for name, text in found.items() if text)
