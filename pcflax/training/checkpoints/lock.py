"""One process writes to a folder of checkpoints at a time, or several that train together.

The lock is the kernel's, so a process that is killed does not leave it behind, and on file systems that
are shared it holds between machines. Where the system has no locks, two processes are not told apart.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import jax

from pcflax.sharding.processes import is_first, number_of_processes, together

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# Folder: its lock, and how often this process entered it.
_held: dict[Path, tuple[IO | None, int]] = {}


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a folder against other processes; within one process it may be held several times."""
    file, times = _held.get(directory) or (_locked_file(directory / ".lock"), 0)
    _held[directory] = (file, times + 1)
    try:
        yield
    finally:
        file, times = _held.pop(directory)
        if times > 1:
            _held[directory] = (file, times - 1)
        elif file is not None:
            with contextlib.suppress(OSError):  # a folder that was closed to us
                if _is_there(file, Path(file.name)):
                    Path(file.name).unlink()  # while it is held: nobody loses a lock
            file.close()


def expect_shared(directory: Path) -> None:
    """See that the folder is one for all processes that train together.

    Raises:
        FileNotFoundError: naming a process that does not see what the first one writes there.
    """
    if number_of_processes() == 1:
        return
    sign = directory / ".shared"
    with together() as first:
        if first:
            sign.touch()
    try:
        with together():
            if not _appears(sign):
                raise FileNotFoundError(
                    f"process {jax.process_index()} does not see what the first one writes to {directory}; "
                    f"give all processes one folder, on a disk that they share"
                )
    finally:
        if is_first():
            sign.unlink(missing_ok=True)


def _appears(path: Path) -> bool:
    """Return whether a file is there, or soon is: a file system of a network may take a moment."""
    for _ in range(30):
        if path.exists():
            return True
        time.sleep(0.1)
    return False


def keep(directory: Path) -> None:
    """See that a held folder is still held; hold it anew where somebody deleted it with its lock.

    Raises:
        FileExistsError: where another process has taken it since.
    """
    file, times = _held[directory]
    if file is not None and not _is_there(file, directory / ".lock"):
        _held[directory] = (_locked_file(directory / ".lock"), times)
        file.close()


def _is_there(file: IO, path: Path) -> bool:
    """Return whether an open file is the one of that name."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _locked_file(path: Path) -> IO | None:
    if fcntl is None:
        return None
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read() or "another process"
            file.close()
            raise FileExistsError(
                f"{path.parent} is in use by another process ({holder}), which writes checkpoints "
                f"there; wait for its end, or choose another folder"
            ) from None
        except OSError:  # a file system without locks
            file.close()
            path.unlink(missing_ok=True)
            return None
        if _is_there(file, path):
            break
        file.close()  # its holder has just deleted it: ours would keep nobody out
    file.truncate(0)
    # past the buffer, which would meet a full disk on closing, too
    with contextlib.suppress(OSError):
        os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
    return file
