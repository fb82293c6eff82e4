"""A data set too large for memory: read by grain in threads while the device computes.

The order of the examples is the same as that of an in-memory set with the same seed; grain reads
ahead in that order, as much as memory allows, and a jump to another batch (a resumed run) starts a new
read there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np

from pcflax.checks import expect_count
from pcflax.typing import PyTree

from .augment import Augmentation, as_augmentations
from .base import ALL_ROWS, Dataset
from .decoder import Decoder, Reader
from .examples import native, told

# Two processor cores decode about this many batches ahead of a compiled step, where they are small.
_BATCHES_AHEAD = 16
# Of larger ones about this much, as one compiled call holds, but two, so that reading never waits for a step.
STREAMED_BYTES = 64 * 2**20


class StreamDataset(Dataset):
    """Examples read one by one from a random-access source of (inputs, target) pairs.

    Args:
        source: has `__len__` and `__getitem__(index) -> (inputs, target)` as NumPy arrays, every
            example of one shape; called from several threads.
        decoder: what turns stored examples into a batch.
        num_threads: threads that read ahead: about 64 MB, but at least 2 batches and at most 16. All
            others are as in `pcflax.data.load`.

    Raises:
        RuntimeError: while reading, where the source raises; names the set and the example.
        ValueError: while reading, for an example of another shape, or a label out of range.
        TypeError: for an augmentation that is no function, or cannot be hashed.
    """

    def __init__(
        self,
        source: Any,
        *,
        decoder: Decoder,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        name: str = "stream",
        num_threads: int = 4,
        augment: Augmentation | Sequence[Augmentation] | None = None,
        class_names: Sequence[str] | None = None,
    ):
        self.source = source
        self.num_threads = expect_count(f"data set '{name}'", "num_threads", num_threads)
        self._shapes: tuple | None = None  # of every example
        self._opened: tuple = ()  # batch size and rows of the open iterator
        self._next_batch = -1  # the batch that the open iterator gives next
        self._iterator: Iterator[PyTree] | None = None
        super().__init__(
            name=name,
            num_examples=len(source),
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            reader=Reader(decoder, gather=False, augment=as_augmentations(augment)),
            class_names=class_names,
        )

    def with_seed(self, seed: int) -> Self:
        """Return the same examples, shuffled and augmented by another seed, with a reader of their own."""
        other = super().with_seed(seed)
        other._iterator, other._next_batch = None, -1
        return other

    def constants(self) -> PyTree:
        """Return nothing, for nothing lives on the device."""
        return ()

    def fetch(self, indices: np.ndarray) -> PyTree:
        """Return the examples themselves, read in order, and their places."""
        rows = [_stack([self.read(int(i)) for i in row]) for row in indices]
        return (*self._checked(_stack(rows)), np.asarray(indices, np.int32))

    def items(self, start: int, count: int, rows: slice = ALL_ROWS) -> PyTree:
        """Return the raw examples of training batches start, start + 1, ..., read ahead by grain.

        Of each batch these `rows` alone are read.
        """
        wanted = (self.batch_size, rows.start, rows.stop)
        if self._iterator is None or self._next_batch != start or self._opened != wanted:
            self._iterator, self._opened = self._open(start, rows), wanted
        self._next_batch = -1  # where reading fails, the next call opens anew
        batches = [next(self._iterator) for _ in range(count)]
        self._next_batch = start + count
        places = self.indices(start, count)[:, rows]
        return self.with_seeds((*self._checked(_stack(batches)), places), start)

    def read(self, index: int) -> tuple[np.ndarray, ...]:
        """Return one example of the source, checked.

        Raises:
            RuntimeError: where the source raises; StopIteration, too, which would end an epoch early.
            ValueError: where the example has other shapes than those before.
        """
        try:
            example = tuple(native(part) for part in self.source[index])
        except Exception as error:
            where = f"the source of '{self.name}' failed at example {index}"
            raise RuntimeError(f"{where}: {told(error)}") from error
        shapes = tuple(part.shape for part in example)
        if self._shapes is None:
            self._shapes = shapes
        if shapes != self._shapes:
            raise ValueError(
                f"example {index} of '{self.name}' has shapes {shapes}, and examples before it "
                f"{self._shapes}; give all of them one shape"
            )
        return example

    def _checked(self, items: PyTree) -> PyTree:
        """Return the items where every label is in range; one-hot rows of others would be all zeros."""
        classes = self.reader.decoder.num_classes
        if isinstance(classes, int) and items[1].size:
            low, high = items[1].min(), items[1].max()
            if low < 0 or high >= classes:
                raise ValueError(
                    f"label {low if low < 0 else high} in '{self.name}' is out of range; expected 0 to "
                    f"{classes - 1}"
                )
        return items

    def _ahead(self, example: tuple[np.ndarray, ...], num_rows: int) -> int:
        """Return how many examples of this size are read ahead: about 64 MB, two batches to sixteen."""
        fitting = STREAMED_BYTES // max(1, sum(part.nbytes for part in example))
        most, least = _BATCHES_AHEAD * num_rows, 2 * num_rows
        return max(least, min(most, fitting))

    def _open(self, start: int, rows: slice) -> Iterator[PyTree]:
        import grain  # half a second, which only streaming needs

        epoch, position = divmod(start, self.num_batches)
        first = self.indices(start, 1)[0, rows]
        options = grain.ReadOptions(
            num_threads=self.num_threads,
            prefetch_buffer_size=self._ahead(self.read(int(first[0])), len(first)),
        )
        while True:
            # the order of whole batches, cut: whoever else reads changes none of it
            complete = self.order(epoch)[: self.num_batches * self.batch_size]
            own = complete.reshape(self.num_batches, self.batch_size)[position:, rows]
            examples = grain.MapDataset.source(own.reshape(-1))  # type: ignore[arg-type]
            examples = examples.map(lambda index: self.read(int(index)))
            yield from examples.to_iter_dataset(options).batch(len(first), drop_remainder=True)
            epoch, position = epoch + 1, 0


def _stack(examples: list[PyTree]) -> PyTree:
    return tuple(np.stack(column) for column in zip(*examples, strict=True))
