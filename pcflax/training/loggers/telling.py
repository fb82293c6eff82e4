"""What loggers of files share: an error of the disk in one sentence, and a name that is free."""

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


def free_path(path: Path) -> Path:
    """Return the path, or with a number behind it, where there is nothing yet."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free
