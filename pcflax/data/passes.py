"""Loaders of one's own: what is one, how long a pass over it is, and an iterator at its beginning.

A grain pipeline, torch's `DataLoader` and any other iterable of batches are known by what they can do;
neither library is imported here. Next file to read: `places.py`.
"""

from __future__ import annotations

import multiprocessing
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from .base import Dataset


class Mark(NamedTuple):
    """A place between two batches.

    Attributes:
        seen: complete batches of the pass before it.
        state: what `places.state_of` says there, as JSON; None of a loader that keeps no place.
    """

    seen: int = 0
    state: str | None = None


def is_loader(given: object) -> bool:
    """Return whether this is a pipeline of grain's, or has the protocol of torch's `DataLoader`.

    >>> is_loader([1, 2])
    False
    """
    if isinstance(given, Dataset):
        return False
    grain = sys.modules.get("grain")  # nobody has a pipeline of a library that is not imported
    kinds = () if grain is None else (grain.MapDataset, grain.IterDataset, grain.DataLoader)
    protocol = ("__iter__", "dataset", "batch_size")
    return isinstance(given, kinds) or all(hasattr(given, name) for name in protocol)


def default_name(loader: Any) -> str:
    """Return what a loader is called that has no name: the kind of its data set, or its own."""
    return type(getattr(loader, "dataset", loader)).__name__


def is_map(loader: Any) -> bool:
    """Return whether this is a `MapDataset` of grain's."""
    grain = sys.modules.get("grain")
    return grain is not None and isinstance(loader, grain.MapDataset)


def never_ends(loader: Any) -> bool:
    """Return whether a pass has no end, as far as grain says: of a data set that is repeated for ever."""
    grain = sys.modules.get("grain")
    if grain is None or not isinstance(loader, grain.MapDataset | grain.IterDataset):
        return False
    is_endless = is_map(loader) and len(loader) >= sys.maxsize
    return is_endless or any(never_ends(parent) for parent in loader.parents)


def count_examples(
    loader: Any, batch_size: int, size_at: Callable[[int], int | None]
) -> int | None:
    """Return how many examples a pass has, or None where the loader does not say.

    Of a loader with items, `size_at` tells how many batch `number` has.
    """
    try:
        batches = len(loader)
    except TypeError:
        return None
    if batches == 0 or never_ends(loader):
        return None
    if isinstance(getattr(loader, "batch_size", None), int):  # torch's
        examples: Any
        for examples in (getattr(loader, "sampler", None), getattr(loader, "dataset", None)):
            if hasattr(examples, "__len__"):
                whole = getattr(loader, "drop_last", False)
                return batches * batch_size if whole else len(examples)
    if hasattr(loader, "__getitem__"):
        last = size_at(batches - 1)
        return None if last is None else (batches - 1) * batch_size + last  # some are left out
    return batches * batch_size


def open_pass(loader: Any, *, ahead: int, again: bool) -> Iterator[Any]:
    """Return an iterator at the beginning.

    Args:
        loader: whose batches these are.
        ahead: batches that grain reads ahead of a `MapDataset`.
        again: whether a `MapDataset` of grain's begins anew at its end, shuffled anew.
    """
    if not is_map(loader):
        return iter(loader)
    import grain

    options = grain.ReadOptions(num_threads=min(16, ahead), prefetch_buffer_size=ahead)
    repeated = loader.repeat() if again and not never_ends(loader) else loader
    return iter(repeated.to_iter_dataset(options))


def forks(loader: Any) -> bool:
    """Return whether worker processes of torch's `DataLoader` begin as copies of this process."""
    if not getattr(loader, "num_workers", 0):
        return False
    context = getattr(loader, "multiprocessing_context", None)
    if context is not None:
        return (context if isinstance(context, str) else context.get_start_method()) == "fork"
    default = multiprocessing.get_all_start_methods()[0]
    return (multiprocessing.get_start_method(allow_none=True) or default) == "fork"


def warn_of(loader: Any, name: str, state: str | None, *, stacklevel: int) -> None:
    """Warn where workers may hang, or where no resumed run would know what it read.

    Args:
        loader: whose batches these are.
        name: what it is called.
        state: where it stands, as `places.state_of` says it.
        stacklevel: as of `warnings.warn`, from here.
    """
    # grain.DataLoader tells its source by repr()
    if state is not None and " object at 0x" in state:
        warnings.warn(
            f"'{name}' knows its data by repr(), which is another in each process, so that no run resumes; "
            f"give the class of its data source a __repr__",
            UserWarning,
            stacklevel=stacklevel,
        )
    if forks(loader):
        warnings.warn(
            f"the workers of '{name}' are forked from a process in which jax has threads, and may hang; "
            f"write DataLoader(..., multiprocessing_context='forkserver')",
            UserWarning,
            stacklevel=stacklevel,
        )


def advice(error: Exception) -> str:
    """Return what to write where grain's worker processes ask for flags that nobody has parsed."""
    is_asked = type(error).__name__ == "UnparsedFlagAccessError"
    return " Write absl.flags.FLAGS.mark_as_parsed() first." if is_asked else ""
