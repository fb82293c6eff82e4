"""The contract of a data set: which examples a step trains on is a function of (seed, epoch).

A data set hands the compiled training loop two things: `constants`, arrays that live on the device
(all examples of a small set, nothing for a streamed one), and `items`, what each batch needs beside
them (indices into the constants, or the raw examples themselves). `reader`, a pure function called
inside the compiled loop, makes `Evidence` of both. So a small set costs one gather a step and no copy,
a large one is streamed, and the Trainer cannot tell them apart. A step's position in the data is its
number: nothing has to be saved to resume, but of another library's loader its `position`. Where training
images are augmented, items carry the numbers that their keys are drawn from; those of evaluation carry
none. Next files to read: `decoder.py` and `arrays.py`.
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import jax
import numpy as np

from pcflax.checks import expect_count, expect_seed
from pcflax.layers import Clamp, Evidence
from pcflax.typing import PyTree

from .augment import describe, seeded
from .decoder import Reader

ALL_ROWS = slice(None)


class Dataset(abc.ABC):
    """Examples in batches, in an order that (seed, epoch) determines.

    Iterating gives the training batches of epoch 0; of a set that is neither shuffled nor augmented, as
    a test split, it gives every example once, the last batch being smaller where `batch_size` does not
    divide `num_examples`. `epoch` and `batches` say which of the two is meant.

    Attributes:
        name: what errors and run folders call the set.
        num_examples: how many examples there are.
        batch_size: examples in a batch. Training leaves out an epoch's incomplete last one, evaluation none.
        shuffle: whether each epoch has an order of its own; in stored order otherwise.
        seed: of the shuffling, and of the augmentation.
        reader: makes `Evidence` of constants and an item, inside jit.
        class_names: what the classes are called, in the order of the rows; None where they are numbers.
        counts_classes: whether nobody told how many classes there are: the largest label plus one.

    Raises:
        ValueError: for no examples, a batch larger than the set, a seed of 2**32 or more, or extra names.
    """

    counts_classes: bool = False

    def __init__(
        self,
        *,
        name: str,
        num_examples: int | None,
        batch_size: int,
        shuffle: bool,
        seed: int,
        reader: Reader,
        class_names: Sequence[str] | None = None,
    ):
        if num_examples == 0:
            raise ValueError(f"data set '{name}' is empty; expected at least one example")
        self.name = name
        self._num_examples = num_examples  # None: not known
        self.batch_size = batch_size  # checked by its setter
        self.shuffle = bool(shuffle)
        self.seed = expect_seed(self._title, seed)
        self.reader = reader
        self.class_names = self._expect_names(class_names)
        if reader.augment:
            self.spec()  # what does not fit is told here, and not when training begins

    def __repr__(self) -> str:
        count = self._num_examples if self.has_length else "unknown"
        return (
            f"{type(self).__name__}('{self.name}', num_examples={count}, "
            f"batch_size={self.batch_size}, shuffle={self.shuffle}, seed={self.seed})"
        )

    @property
    def _title(self) -> str:
        return f"data set '{self.name}'"

    def _expect_names(self, names: Sequence[str] | None) -> tuple[str, ...] | None:
        if names is None:
            return None
        found, classes = tuple(map(str, names)), self.reader.decoder.num_classes
        if not isinstance(classes, int) or len(found) > classes:
            raise ValueError(
                f"{self._title} has {classes if isinstance(classes, int) else 'no'} classes, and "
                f"{len(found)} class_names; give a name a class"
            )
        return found + tuple(map(str, range(len(found), classes)))

    @property
    def has_length(self) -> bool:
        """Whether it is known how many examples there are."""
        return self._num_examples is not None

    @property
    def num_examples(self) -> int:
        """How many examples there are.

        Raises:
            ValueError: where a loader does not say.
        """
        if self._num_examples is None:
            raise ValueError(
                f"{self._title} has no length, so it has no epochs; give num_steps, and eval_every where "
                f"there is something to evaluate or save"
            )
        return self._num_examples

    @property
    def batch_size(self) -> int:
        """Examples in a batch; from 1 to `num_examples`.

        Raises:
            ValueError: where it is set to another number.
        """
        return self._batch_size

    @batch_size.setter
    def batch_size(self, batch_size: int) -> None:
        self._batch_size = self._expect_batch_size(batch_size)

    def _expect_batch_size(self, batch_size: int) -> int:
        batch_size = expect_count(self._title, "batch_size", batch_size, least=1)
        if batch_size > self.num_examples:
            raise ValueError(
                f"batch_size {batch_size} is larger than {self._title} with its {self.num_examples} "
                f"examples; give a batch_size of at most {self.num_examples}"
            )
        return batch_size

    @property
    def num_batches(self) -> int:
        """Complete batches in an epoch."""
        return self.num_examples // self.batch_size

    @property
    def num_classes(self) -> int | None:
        """How many classes the labels have, or None where the targets are not labels."""
        return self.classes_of("targets")

    @property
    def classes(self) -> tuple[int, ...]:
        """The labels that there are: all of them; none where the targets are not labels."""
        return tuple(range(self.num_classes or 0))

    def classes_of(self, role: str | None) -> int | None:
        """Return how many classes "inputs" or "targets" have, or None where they are not labels.

        >>> import pcflax as pc
        >>> pc.data.load("digits").classes_of("targets")
        10
        """
        decoder = self.reader.decoder
        labels = role is not None and getattr(decoder, role) == "label"
        return decoder.num_classes if labels and isinstance(decoder.num_classes, int) else None

    @property
    def has_sequences(self) -> bool:
        """Whether an example has targets at several positions, as a text has: (batch, length, classes)."""
        targets = self.spec().targets
        targets = targets.value if isinstance(targets, Clamp) else targets
        return getattr(targets, "ndim", 0) > 2  # several targets, or none, are no sequence

    def with_seed(self, seed: int) -> Self:
        """Return the same examples, shuffled and augmented by another seed; those on the device are shared.

        Raises:
            ValueError: for a seed below 0, or of 2**32 or more.

        >>> import pcflax as pc
        >>> data = pc.data.load("digits")
        >>> other = data.with_seed(3)
        >>> bool((other.order(0) == data.order(0)).all()), other.constants() is data.constants()
        (False, True)
        """
        self.constants()
        other = copy.copy(self)
        other._order = None
        other.seed = expect_seed(self._title, seed)
        return other

    @abc.abstractmethod
    def constants(self) -> PyTree:
        """Return the arrays on the device that every batch is read from."""

    @abc.abstractmethod
    def fetch(self, indices: np.ndarray) -> PyTree:
        """Return what the reader needs for batches of these examples.

        Indices are (count, batch), and leaves of the result begin with these two axes.
        """

    def items(self, start: int, count: int, rows: slice = ALL_ROWS) -> PyTree:
        """Return what the reader needs for training batches start, ..., over epoch boundaries.

        Of each batch these `rows` alone: a process among several reads those of its devices.
        """
        return self.with_seeds(self.fetch(self.indices(start, count)[:, rows]), start)

    def probe(self) -> PyTree:
        """Return the items of one batch, whichever, to see what is in it; training does not move."""
        return self.fetch(self.indices(0, 1))

    def first_batch(self) -> Evidence:
        """Return the batch of `probe`."""
        return self._read()(self.probe())

    def position(self, number: int) -> dict[str, Any] | None:
        """Return what a checkpoint holds to go on with training batch `number`; here the number says all."""
        del number

    def go_to(self, number: int, position: Mapping[str, Any]) -> None:
        """Go on with training batch `number`, where `position` was told of it."""
        del number, position

    def with_seeds(self, items: PyTree, start: int) -> PyTree:
        """Return the items of training batches start, ..., `Seeded` where these are augmented."""
        if not self.reader.augment:
            return items
        return seeded(items, self.seed, start, len(jax.tree.leaves(items)[0]))

    def indices(self, start: int, count: int) -> np.ndarray:
        """Return which examples training batches start, ... hold: (count, batch), int32."""
        rows, end = [], start + count
        while start < end:
            epoch, first = divmod(start, self.num_batches)
            last = min(first + end - start, self.num_batches)
            order = self.order(epoch)[first * self.batch_size : last * self.batch_size]
            rows.append(order.reshape(-1, self.batch_size))
            start += last - first
        return np.concatenate(rows)

    def order(self, epoch: int) -> np.ndarray:
        """Return the order of all examples in this epoch: (num_examples,), int32."""
        cached, key = getattr(self, "_order", None), (epoch, self.seed, self.shuffle)
        if cached is None or cached[0] != key:
            order = np.arange(self.num_examples, dtype=np.int32)
            if self.shuffle:
                # RandomState's stream is frozen for good, so a seed means the same on any NumPy.
                order = np.random.RandomState([self.seed, epoch]).permutation(order)
            cached = self._order = (key, order)
        return cached[1]

    def evaluation_items(
        self, count: int, rows: slice = ALL_ROWS
    ) -> Iterator[tuple[PyTree, np.ndarray]]:
        """Yield every example once in stored order: up to `count` batches, and which rows count.

        The last batch is filled up with copies of example 0, which do not count. Of each batch these `rows`
        are read; which of all rows count is told whole.
        """
        total = -(-self.num_examples // self.batch_size)
        padded = np.zeros(total * self.batch_size, np.int32)
        padded[: self.num_examples] = np.arange(self.num_examples)
        valid = np.arange(len(padded)) < self.num_examples
        padded, valid = (array.reshape(total, self.batch_size) for array in (padded, valid))
        for begin in range(0, total, count):
            places = padded[begin : begin + count, rows]
            yield self.fetch(places), valid[begin : begin + count]

    def epoch(self, epoch: int = 0) -> Iterator[Evidence]:
        """Return the training batches of one epoch, for loops of one's own; complete ones only."""
        numbers = range(epoch * self.num_batches, (epoch + 1) * self.num_batches)
        return map(self._read(), (self.items(number, 1) for number in numbers))

    def batches(self) -> Iterator[Evidence]:
        """Yield every example once, in stored order, as evaluation sees it; the last batch may be smaller.

        >>> import pcflax as pc
        >>> test = pc.data.load("digits", split="test", batch_size=100)
        >>> [len(batch.inputs) for batch in test.batches()]
        [100, 100, 100, 60]
        """
        read = self._read()
        for items, valid in self.evaluation_items(1):
            count, batch = int(valid.sum()), read(items)
            whole = count == self.batch_size
            yield batch if whole else jax.tree.map(lambda leaf, n=count: leaf[:n], batch)

    def _read(self) -> Callable[[PyTree], Evidence]:
        """Return what makes a batch of the first of items."""
        read, constants = jax.jit(self.reader), self.constants()
        return lambda items: read(constants, jax.tree.map(lambda leaf: leaf[0], items))

    def __iter__(self) -> Iterator[Evidence]:
        """Yield the batches of epoch 0; every example once where these are as evaluation sees them."""
        return self.epoch(0) if self.shuffle or self.reader.augment else self.batches()

    def __len__(self) -> int:
        """Return how many batches iterating gives."""
        drops = self.shuffle or self.reader.augment
        return self.num_batches if drops else -(-self.num_examples // self.batch_size)

    def spec(self) -> Evidence:
        """Return shapes and dtypes of a batch; read one, the first time it is asked.

        Raises:
            ValueError: where augmentation gives images of another shape or dtype than evaluation has, or
                there is not one array of them.
        """
        if getattr(self, "_spec", (None,))[0] == self.batch_size:
            return self._spec[1]
        items = self.probe()

        def shapes(items: PyTree) -> Evidence:
            item = jax.tree.map(lambda leaf: leaf[0], items)
            return jax.eval_shape(self.reader, self.constants(), item)

        spec = shapes(items)
        if self.reader.augment:
            role = "targets" if self.reader.decoder.targets == "image" else "inputs"
            plain: Any = getattr(spec, role)
            if plain is None or isinstance(plain, Mapping | Clamp):
                number = {type(None): "no", Clamp: "masked"}.get(type(plain), "several")
                raise ValueError(f"'{self.name}' has {number} {role} to augment; leave out augment")
            changed: Any = getattr(shapes(self.with_seeds(items, 0)), role)
            if (changed.shape, changed.dtype) != (plain.shape, plain.dtype):
                raise ValueError(
                    f"augmentation by {describe(self.reader.augment)} makes {role} of '{self.name}' "
                    f"{changed.dtype} {changed.shape}, but as evaluation sees them they are "
                    f"{plain.dtype} {plain.shape}; keep dtype and shape"
                )
        self._spec = (self.batch_size, spec)
        return spec

    def description(self) -> dict[str, str | int | bool]:
        """Return what decides which examples the training batches hold.

        Sets of one description have the same batches, as far as their name says what the examples are.
        """
        found: dict[str, str | int | bool] = {
            "name": self.name,
            "num_examples": self.num_examples,
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "seed": self.seed,
        }
        if self.reader.augment:
            found["augment"] = describe(self.reader.augment)
        return found
