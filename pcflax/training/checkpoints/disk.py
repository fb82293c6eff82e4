"""What a disk is asked for: to move a name, in a second try where it was busy, and to keep what it is given.

File systems of a network tell "stale handle" or "busy" of what works a moment later.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

_PASSING = (errno.ESTALE, errno.EBUSY, errno.EAGAIN)
_PAUSES = (0.05, 0.3, 1.0)  # seconds before another try
FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def telling(what: str, remedy: str = "choose another folder") -> Iterator[None]:
    """Say what could not be written, and what to do; the system says why."""
    try:
        yield
    except OSError as error:
        advice = "make room" if error.errno in FULL else remedy
        raise OSError(f"cannot write {what}: {error.strerror or error}; {advice}") from error


@contextlib.contextmanager
def replacing(path: Path, remedy: str = "choose another folder") -> Iterator[Path]:
    """Yield a name to write to: what is at the path stays as it was until all is written.

    A link stays one. What is no plain file, as /dev/stdout, is written to at once.

    Raises:
        OSError: where that fails; nothing is left of it.
    """
    with telling(str(path), remedy):
        target = Path(os.path.realpath(path))
        if target.exists() and not target.is_file():
            yield target
            return
        part = target.with_name(f".{os.getpid()}.part{target.suffix}")
        try:
            yield part
            move(part, target)
        finally:
            with contextlib.suppress(OSError):  # it was moved, or never made
                part.unlink()


def move(source: Path, target: Path) -> None:
    """Give a file or a folder another name, in place of a file that has it.

    Raises:
        OSError: where that fails for good.
    """
    for pause in _PAUSES:
        try:
            os.replace(source, target)
            return
        except OSError as error:
            if error.errno not in _PASSING:
                raise
        time.sleep(pause)
        if not source.exists() and target.exists():
            return  # it was done, and only the answer was lost
    os.replace(source, target)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk; where that can be asked."""
    try:
        opened = os.open(path, os.O_RDONLY)
    except OSError:
        return  # Windows opens no folders
    try:
        os.fsync(opened)
    except OSError:
        pass  # nor do all file systems sync them
    finally:
        os.close(opened)


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is whole or as it was, whatever happens."""
    part = path.with_name(path.name + ".part")
    with part.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    move(part, path)
