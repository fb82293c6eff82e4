"""What loggers of files share: their end, and names for files that are set aside."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from ..callbacks import Callback, RunningTrainer
from ..checkpoints.disk import telling


class FileLogger(Callback):
    """A logger into one open file, which is closed when a fit ends; `_what` is what it writes, and where."""

    every_process = False
    _file: Any = None
    _what: str

    def on_fit_end(self, trainer: RunningTrainer) -> None:
        """Close the file."""
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
