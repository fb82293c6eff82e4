"""Memory that does not suffice, in words: what it was for, and what asks for less."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

import jax

from pcflax.data import Dataset
from pcflax.typing import PyTree


@contextlib.contextmanager
def memory_told(doing: str, state: Callable[[], PyTree], data: Dataset) -> Iterator[None]:
    """Tell where the device runs out of memory what was done, and the sizes that it depends on.

    Args:
        doing: what was done.
        state: returns what lies on the device for it.
        data: whose batches are read.

    Raises:
        MemoryError: in place of XLA's own error.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        found = re.search(r"allocating ([0-9]+) bytes", str(error))
        if found is None and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state()))
        asked = f" for {_in_words(int(found[1]))} more" if found else ""
        raise MemoryError(
            f"there is no memory{asked} on {jax.local_devices()[0].device_kind} for {doing}: the state takes "
            f"{_in_words(held)}, and a batch has {data.batch_size} examples of '{data.name}'; take a smaller "
            f"batch_size, a smaller network, or a device with more memory"
        ) from error


def _in_words(size: int) -> str:
    """Return a number of bytes.

    >>> _in_words(1_739_479_904), _in_words(5_000)
    ('1.74 GB', '0.01 MB')
    """
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"
