"""Several processes of `jax.distributed`, each with devices of its own, that train as one.

All make the same calls in the same order. Files and the terminal are the first one's; what a clock, a signal
or a disk decides in one is agreed on before any acts on it. In a single process nothing here does anything.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from pcflax.typing import PyTree

_LETTERS = 1000  # of an error that the others are told
_TRANSPORT = re.compile(r"gloo|nccl|connection|coordination|heartbeat|barrier", re.IGNORECASE)
_lost: list[BaseException] = []  # what told that another process has ended


def number_of_processes() -> int:
    """Return how many processes `jax.distributed` joins; asks no device, which would wake it."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def check_processes(owner: str, mesh: Mesh | None) -> None:
    """Refuse a mesh that leaves out a process: that one would train something of its own.

    Raises:
        ValueError: for no mesh, too, where there are several processes.
    """
    count = number_of_processes()
    if count == 1:
        return
    if mesh is None:
        raise ValueError(
            f"{owner} got no mesh, but jax.distributed joins {count} processes, and each would train and "
            f"save alone; give mesh=pc.sharding.data()"
        )
    if left := sorted(set(range(count)) - {d.process_index for d in mesh.devices.flat}):
        raise ValueError(
            f"{owner} got a mesh of {mesh.size} devices with none of process {left[0]}, of {count} "
            f"processes; give a mesh of all {jax.device_count()} devices, such as pc.sharding.data()"
        )


def check_alone(owner: str) -> None:
    """Refuse several processes.

    Raises:
        ValueError: saying how many there are.
    """
    if (count := number_of_processes()) > 1:
        raise ValueError(
            f"{owner} runs in one process, but jax.distributed joins {count}; start it in each without "
            f"jax.distributed, with a folder of its own"
        )


def is_first() -> bool:
    """Return whether files and the terminal are this process's."""
    return number_of_processes() == 1 or jax.process_index() == 0


def is_lost() -> bool:
    """Return whether another process has ended, so that nothing can be waited for."""
    return bool(_lost)


def settled(tree: PyTree) -> PyTree:
    """Wait in several processes until all own devices are done: the next call may find them in no order."""
    return jax.block_until_ready(tree) if number_of_processes() > 1 else tree


def largest(*values: float) -> tuple[float, ...]:
    """Return the largest of what the processes give, value by value."""
    if number_of_processes() == 1 or _lost:
        return values
    # as the bits of doubles, which jax would round to float32: steps beyond 2**24 stay apart
    bits = np.asarray(values, np.float64).view(np.uint32)
    return tuple(_gathered(bits).view(np.float64).max(axis=0).tolist())


@contextlib.contextmanager
def together() -> Iterator[bool]:
    """Run a block that fails in all processes where it fails in one; yields whether this is the first one.

    Raises:
        RuntimeError: in the others, with the words of the one that failed.
        ConnectionError: where another has ended; nothing is agreed on then.
    """
    if number_of_processes() == 1 or _lost:
        yield is_first()
        return
    error = None
    try:
        with connected():
            yield is_first()
    except Exception as caught:
        error = caught
        if _lost:
            raise
    told = "" if error is None else str(error) or type(error).__name__
    letters = np.zeros(_LETTERS, np.uint8)
    spelled = np.frombuffer(told.encode()[:_LETTERS], np.uint8)
    letters[: len(spelled)] = spelled
    found = _gathered(letters)
    if error is not None:
        raise error
    for process, row in enumerate(found):
        if row.any():
            words = row.tobytes().rstrip(b"\0").decode("utf-8", "ignore")
            raise RuntimeError(f"process {process} of {number_of_processes()} failed: {words}")


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Tell where a call of all processes fails, since one of them ended, in place of the transport's words.

    Raises:
        ConnectionError: after which nothing is agreed on any more.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if number_of_processes() == 1 or not _TRANSPORT.search(str(error)):
            raise
        _lost.append(error)
        first_line = str(error).partition("\n")[0]
        raise ConnectionError(
            f"process {jax.process_index()} lost another of the {number_of_processes()}, which has ended; "
            f"start all of them again and restore the newest checkpoint ({first_line})"
        ) from error


def _gathered(value: np.ndarray) -> np.ndarray:
    from jax.experimental import multihost_utils

    with connected():
        found = multihost_utils.process_allgather(value)
    return np.asarray(found).reshape(-1, *value.shape)
