"""What loggers of files share: their end, and names for files that are set aside."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from ..callbacks import Callback, RunningTrainer
from ..checkpoints.disk import telling
from ..history import History


class FileLogger(Callback):
    """A logger into one open file, which is closed when a fit ends; `_what` is what it writes, and where."""

    every_process = False
    _file: Any = None
    _what: str
    _count = 0  # rows of the history that are in the file

    def on_fit_end(self, trainer: RunningTrainer) -> None:
        """Close the file, without the rows that a callback gave up last, by going back to a checkpoint."""
        if self._file is not None and self._count and len(trainer.history.rows) < self._count:
            with self._telling():
                self._write_all(trainer.history)
        self._close()

    def _write_all(self, history: History) -> None:
        """Write the whole file in the place of what was there, and open it for more."""

    def _close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            with self._telling():
                file.close()

    def _telling(self) -> contextlib.AbstractContextManager[None]:
        return telling(self._what)


def set_aside(path: Path) -> None:
    """Move a file aside, to `<name>.superseded` or that with a number behind it."""
    path.rename(free_path(path.with_name(path.name + ".superseded")))


def free_path(path: Path) -> Path:
    """Return the path, or with a number behind it, where there is nothing yet."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free
