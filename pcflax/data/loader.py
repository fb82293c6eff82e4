"""A data set whose batches another library makes: grain, torch, or any iterable of batches.

The loader decides what a batch holds and in which order batches come; here they are checked as arrays are,
and stacked for the compiled loop. A step's number does not say where a loader stands, so that a checkpoint
keeps the loader's own word for it, where it has one. Next files to read: `passes.py` and `form.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn, Self

import jax
import numpy as np

from pcflax.errors import CheckpointWarning
from pcflax.typing import PyTree

from .base import ALL_ROWS, Dataset
from .decoder import Reader
from .examples import told
from .form import Form, size_of
from .passes import (
    Mark,
    advice,
    count_examples,
    default_name,
    is_map,
    never_ends,
    open_pass,
    warn_of,
)
from .places import is_stateful, open_at, set_state, state_of
from .stream import STREAMED_BYTES

_END = object()
# So many batches in one evaluation look as if a loader without a length had no end.
_MANY = 10_000


class LoaderDataset(Dataset):
    """Batches of a loader, in its order; made by `from_loader`, or by a `Trainer` that is given a loader.

    `num_examples` and `num_batches` raise ValueError where the loader does not say how long a pass is.

    Args:
        loader: as in `from_loader`, as are all others, but
        num_classes: may be a function of the first batch's inputs as the network sees them.

    Attributes:
        loader: what was given.

    Raises:
        TypeError, ValueError, RuntimeError: as `from_loader`.

    >>> import numpy as np
    >>> data = LoaderDataset([(np.ones((4, 3)), np.zeros((4, 2)))] * 5)
    >>> data.batch_size, data.num_batches, data.position(0)
    (4, 5, {'seen': 0, 'state': None})
    """

    def __init__(
        self,
        loader: Iterable[Any],
        *,
        keys: tuple[str | None, str | None] | None = None,
        num_classes: int | Mapping[str, int] | Callable[[PyTree], int | None] | None = None,
        flatten: bool = False,
        integer_inputs: bool = False,
        name: str | None = None,
    ):
        self.loader = loader
        self.name = default_name(loader) if name is None else name
        if not isinstance(loader, Iterable):
            raise TypeError(f"'{self.name}' cannot be iterated; give a loader that gives batches")
        self._ahead = 2  # batches that grain reads ahead
        self._begun = False
        iterator = self._open(again=True)
        if iterator is loader:
            raise TypeError(
                f"'{self.name}' is an iterator, which gives one pass; give the loader that it came from"
            )
        # a pass that is opened anew may be shuffled otherwise
        self._first = Mark(0, state_of(loader, iterator) if is_stateful(loader) else None)
        self._reset(0, self._first)
        raw = self._next(iterator, 0)
        if raw is _END:
            raise ValueError(f"'{self.name}' gives no batch; expected at least one")
        self._form = Form(
            self.name,
            raw,
            keys=keys,
            num_classes=num_classes,
            flatten=flatten,
            integer_inputs=integer_inputs,
        )
        super().__init__(
            name=self.name,
            num_examples=count_examples(loader, self._form.size, self._size_at),
            batch_size=self._form.size,
            shuffle=False,
            seed=0,
            reader=Reader(self._form.decoder, gather=False),
        )
        num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self._form.first))
        self._ahead = max(2, min(16, STREAMED_BYTES // max(1, num_bytes)))
        state = state_of(loader, iterator)
        self._keeps_place = state is not None
        self._window.append((self._form.first, Mark(1, state)))
        if not is_map(loader):  # which is opened anew, as far ahead
            self._iterator = iterator
        warn_of(loader, self.name, state, stacklevel=4)

    # What a data set is asked.

    def constants(self) -> PyTree:
        """Return nothing: batches come whole."""
        return ()

    def probe(self) -> PyTree:
        """Return the first batch; training does not move."""
        return _stack([self._form.first])

    def fetch(self, indices: np.ndarray) -> NoReturn:
        """Refuse: a loader's examples have no numbers."""
        del indices
        raise TypeError(
            f"'{self.name}' gives batches in its loader's order, not examples by number"
        )

    def indices(self, start: int, count: int) -> NoReturn:
        """Refuse, likewise."""
        return self.fetch(np.arange(start, start + count))

    def order(self, epoch: int) -> NoReturn:
        """Refuse, likewise."""
        return self.fetch(np.array(epoch))

    def with_seed(self, seed: int) -> Self:
        """Refuse: the loader has the seed."""
        raise TypeError(
            f"the order of '{self.name}' is its loader's, so it has none of seed {seed}; give a function of "
            f"the seed: lambda seed, **point: pc.data.from_loader(make_loader(seed))"
        )

    def _expect_batch_size(self, batch_size: int) -> int:
        if batch_size != getattr(self, "_batch_size", batch_size):
            raise ValueError(f"the batch_size of '{self.name}' is its loader's; set it there")
        return batch_size

    def __len__(self) -> int:
        """Return how many batches a pass has, a smaller last one with them."""
        return -(-self.num_examples // self.batch_size)

    def description(self) -> dict[str, str | int | bool]:
        """Return what tells loaders apart: name, kind, batch size and length; not what they hold."""
        kind = type(self.loader).__name__
        found: dict[str, str | int | bool] = {"name": self.name, "loader": kind}
        found["batch_size"] = self.batch_size
        return {**found, "num_examples": self.num_examples} if self.has_length else found

    # Training. The window holds the batches that were read last: a step that failed is taken again.

    def items(self, start: int, count: int, rows: slice = ALL_ROWS) -> PyTree:
        """Return training batches start, start + 1, ..., pass after pass; of each these `rows`."""
        self._begun = True
        if not self._at <= start <= self._at + len(self._window):
            if self._keeps_place:
                self._reset(0, self._first)
            else:  # passes are taken to be alike
                self._reset(start, Mark(start % self.num_batches if self.has_length else start))
        while self._at < start:
            if not self._window:
                self._window.append(self._take())
            _, self._mark = self._window.pop(0)
            self._at += 1
        while len(self._window) < count:
            self._window.append(self._take())
        return _stack([items for items, _ in self._window[:count]], rows)

    def position(self, number: int) -> dict[str, Any] | None:
        """Return where the loader stood before training batch `number`; None where that is not known."""
        place = number - self._at
        if not 0 <= place <= len(self._window):
            return None
        return (self._window[place - 1][1] if place else self._mark)._asdict()

    def go_to(self, number: int, position: Mapping[str, Any]) -> None:
        """Take the loader where it stood before training batch `number`."""
        is_there = self._begun and self.position(number) == position
        if not is_there:
            self._reset(number, Mark(**position))

    def _reset(self, at: int, mark: Mark) -> None:
        self._at, self._mark = at, mark  # the first batch of the window, and the place before it
        self._window: list[tuple[PyTree, Mark]] = []  # batches, and the place after each
        self._iterator: Iterator[Any] | None = None

    def _take(self) -> tuple[PyTree, Mark]:
        """Return the next complete batch, and the place after it."""
        mark = self._window[-1][1] if self._window else self._mark
        number, seen = self._at + len(self._window), mark.seen
        # where reading fails, the next call opens anew
        iterator, self._iterator = self._iterator, None
        if iterator is None:
            iterator, seen = self._opened(mark, number)
        items, self._iterator, seen = self._complete(iterator, seen, number)
        return items, Mark(seen, state_of(self.loader, self._iterator))

    def _opened(self, mark: Mark, number: int) -> tuple[Iterator[Any], int]:
        """Return an iterator at this mark, and how many batches of its pass it has given."""
        if mark.state is not None:
            try:
                if is_stateful(self.loader):
                    iterator = open_at(self.loader, mark.state, self.name)
                else:
                    iterator = self._open(again=True)
                    set_state(iterator, mark.state)
            except Exception as error:
                raise ValueError(
                    f"'{self.name}' cannot go to where training stood before batch {number} "
                    f"({told(error)}); give the loader as it was, or another name= in pc.data.from_loader"
                ) from error
            return iterator, mark.seen
        iterator, seen = self._open(again=True), 0
        if number and not self._keeps_place:
            warnings.warn(
                f"'{self.name}' keeps no place in its batches, so training goes on after the first "
                f"{mark.seen} of a new pass, as the uninterrupted run only where the loader does not shuffle",
                CheckpointWarning,
                stacklevel=6,
            )
        for _ in range(mark.seen):
            _, iterator, seen = self._complete(iterator, seen, number)
        return iterator, seen

    def _complete(
        self, iterator: Iterator[Any], seen: int, number: int
    ) -> tuple[PyTree, Iterator[Any], int]:
        """Return the next complete batch, the iterator after it, and how many its pass has given."""
        left_out, allowed = 0, max(1, getattr(self.loader, "num_workers", 0))  # each worker's last
        is_new = False
        while True:
            raw = self._next(iterator, number)
            if raw is _END:
                self._expect_pass(seen, is_new)
                iterator, seen, is_new = self._open(again=True), 0, True
                continue
            items = self._form(raw, number)
            if size_of(items) == self.batch_size:
                return items, iterator, seen + 1
            left_out += 1
            if left_out > allowed:
                raise ValueError(
                    f"batch {number} of '{self.name}' has {size_of(items)} examples, as few as others, and "
                    f"the first had {self.batch_size}; give batches of one size, only the last smaller"
                )

    def _expect_pass(self, seen: int, is_new: bool) -> None:
        """Refuse a pass that is over at once, or is not as long as the loader said."""
        if is_new and not seen:
            raise ValueError(
                f"a new pass over '{self.name}' gave no batch of {self.batch_size} examples, as its first "
                f"one did; give a loader that begins again each time it is iterated"
            )
        if self.has_length and seen != self.num_batches:
            raise ValueError(
                f"a pass over '{self.name}' gave {seen} batches of {self.batch_size} examples, and its "
                f"length says {self.num_batches}; give batches of one size, by drop_last=True"
            )

    # Evaluation.

    def evaluation_items(
        self, count: int, rows: slice = ALL_ROWS
    ) -> Iterator[tuple[PyTree, np.ndarray]]:
        """Yield one pass over the loader: up to `count` batches, these `rows` of each, and which count.

        A smaller batch is filled up with copies of its first example, which do not count. Of a loader without
        a length, 10,000 batches are a warning.
        """
        if never_ends(self.loader):
            raise ValueError(
                f"'{self.name}' never ends, and evaluation is one pass; leave out repeat()"
            )
        if not self._begun:
            self._reset(0, self._first)  # one pass at a time
        elif is_stateful(self.loader):
            self._iterator = None  # it keeps one place: training goes back to its own
        iterator = self._open(again=False)
        if iterator is self._iterator:
            raise ValueError(
                f"'{self.name}' has persistent workers, so a pass for evaluation would end that of "
                f"training; give each a DataLoader of its own"
            )
        read, valid, number = [], [], 0
        while (raw := self._next(iterator, number)) is not _END:
            items = self._form(raw, number)
            room = self.batch_size - size_of(items)
            valid.append(np.arange(self.batch_size) < size_of(items))
            read.append(jax.tree.map(lambda leaf, room=room: _filled(leaf, room), items))
            number += 1
            if number == _MANY and not self.has_length:
                warnings.warn(
                    f"evaluation has read {number} batches of '{self.name}', which has no length; if it "
                    f"never ends, give its first ones: "
                    f"pc.data.from_loader(list(itertools.islice(loader, 100)))",
                    UserWarning,
                    stacklevel=2,
                )
            if len(read) == count:
                yield _stack(read, rows), np.stack(valid)
                read, valid = [], []
        if not number:
            self._expect_pass(0, is_new=True)
        if read:
            yield _stack(read, rows), np.stack(valid)

    def _open(self, *, again: bool) -> Iterator[Any]:
        return open_pass(self.loader, ahead=self._ahead, again=again)

    def _next(self, iterator: Iterator[Any], number: int) -> Any:
        """Return what the loader gives next, as it is."""
        return self._told(lambda: next(iterator, _END), number)

    def _size_at(self, number: int) -> int | None:
        return self._form.count(self._told(lambda: self.loader[number], number), number)  # type: ignore

    def _told(self, read: Callable[[], Any], number: int) -> Any:
        try:
            return read()
        except Exception as error:
            where = f"the loader of '{self.name}' failed at batch {number}"
            raise RuntimeError(f"{where}: {told(error)}{advice(error)}") from error


def from_loader(
    loader: Iterable[Any],
    *,
    keys: tuple[str | None, str | None] | None = None,
    num_classes: int | Mapping[str, int] | None = None,
    flatten: bool = False,
    integer_inputs: bool = False,
    name: str | None = None,
) -> LoaderDataset:
    """Return the batches of a loader of one's own: a grain pipeline, torch's `DataLoader`, a list of batches.

    A batch is (inputs, targets), inputs alone, or a dictionary, of arrays or of tensors on the CPU, and is
    checked as `from_arrays` checks. Order and augmentation are the loader's. Training goes through it pass
    after pass: a `grain.MapDataset` is repeated, its shuffling anew; any other begins again at its end, in
    whatever order it then has. A smaller batch, the last, is left out of training, and counts in evaluation.

    A checkpoint holds where an iterator of grain's stands, or a loader with `state_dict` and
    `load_state_dict`, as torchdata's `StatefulDataLoader`, so that a resumed run ends bitwise as the one
    never interrupted. Of other loaders it holds how many batches of the pass were seen: a resumed run warns,
    and leaves these out of a new pass, which is the same where the loader does not shuffle.

    Among several processes, each has a loader that gives the same whole batches.

    Args:
        loader: gives batches of one size each time it is iterated.
        keys: which entries of a dictionary are inputs and targets, such as ("image", "label"); None for
            none.
        num_classes: width of the one-hot rows that integer labels become, as in `from_arrays`; a `Trainer`
            that is given the loader itself takes that of its network's output.
        flatten: whether one example's inputs become one axis.
        integer_inputs: whether inputs are whole numbers that stay so, such as tokens.
        name: what errors call it. By name, kind, batch size and length a resumed run knows its data.

    Raises:
        TypeError, ValueError: for a batch that cannot be taken, the first here, others when they are read,
            by number.
        RuntimeError: where the loader raises; names the batch.

    >>> import grain, numpy as np, pcflax as pc
    >>> examples = grain.MapDataset.range(10).shuffle(seed=0)
    >>> loader = examples.map(lambda i: {"x": np.full(3, i / 10), "y": i % 2}).batch(4)
    >>> data = pc.data.from_loader(loader, keys=("x", "y"), num_classes=2)
    >>> [batch.targets.shape for batch in data.batches()], data.num_batches
    ([(4, 2), (4, 2), (2, 2)], 2)
    """
    return LoaderDataset(
        loader,
        keys=keys,
        num_classes=num_classes,
        flatten=flatten,
        integer_inputs=integer_inputs,
        name=name,
    )


def _filled(leaf: np.ndarray, room: int) -> np.ndarray:
    return np.concatenate([leaf, np.repeat(leaf[:1], room, 0)]) if room else leaf


def _stack(batches: list[PyTree], rows: slice = ALL_ROWS) -> PyTree:
    return jax.tree.map(lambda *leaves: np.stack([leaf[rows] for leaf in leaves]), *batches)
