"""What loggers of files share: an error of the disk in one sentence, and names for what is moved aside."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def telling(what: str) -> Iterator[None]:
    """Say what could not be written."""
    try:
        yield
    except OSError as error:
        raise OSError(f"cannot write {what}: {error.strerror}") from error


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
