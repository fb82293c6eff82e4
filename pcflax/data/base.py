"""The contract of a data set: which examples a step trains on is a function of (seed, epoch).

A data set hands the compiled training loop two things: `constants`, arrays that live on the device
(all examples of a small set, nothing for a streamed one), and `items`, what each batch needs beside
them (indices into the constants, or the raw examples themselves). `reader`, a pure function called
inside the compiled loop, makes a `Batch` of both. So a small set costs one gather a step and no copy,
a large one is streamed, and the Trainer cannot tell them apart. A step's position in the data is its
number: nothing has to be saved to resume. Where training images are augmented, items carry the numbers
that their keys are drawn from; those of evaluation carry none.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from pcflax.typing import Batch, PyTree

from .augment import Augmentation, Seeded, augmented, describe, seeded


@dataclasses.dataclass(frozen=True)
class Decoder:
    """Stored examples to a batch: scale, normalise, flatten, one-hot; pure, called inside jit.

    inputs = (stored * scale - mean) / std, with mean and std along the last axis. Integers that nothing
    scales stay integers.

    Attributes:
        scale: factor of the stored inputs; 1/255 for bytes.
        mean: subtracted after scaling, one number or one for each channel.
        std: divided by last.
        flatten: whether one example's inputs become one axis.
        num_classes: where given, targets are labels of any shape and become one-hot rows of this width
            along a new last axis.
    """

    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    flatten: bool = False
    num_classes: int | None = None

    def __call__(
        self,
        inputs: jax.Array | None,
        targets: jax.Array | None,
        change: Callable[[jax.Array], jax.Array] | None = None,
    ) -> Batch:
        """The batch that these stored examples stand for; `change` is applied to the scaled inputs."""
        if inputs is not None:
            dtype = jnp.result_type(float)
            normalises = (self.scale, self.mean, self.std) != (1.0, (0.0,), (1.0,))
            if normalises:
                inputs = inputs.astype(dtype) * self.scale
            if change is not None:
                inputs = change(inputs)
            if normalises:
                mean, std = jnp.asarray(self.mean, dtype), jnp.asarray(self.std, dtype)
                inputs = (inputs - mean) / std
            if self.flatten:
                inputs = inputs.reshape(inputs.shape[0], -1)
        if targets is not None and self.num_classes is not None:
            targets = jax.nn.one_hot(targets, self.num_classes)
        return Batch(inputs, targets)


@dataclasses.dataclass(frozen=True)
class Reader:
    """From constants and one item to a batch; hashable, so that compiled loops can be reused.

    Attributes:
        decoder: what turns stored examples into a batch.
        gather: whether the item holds indices into the constants, or the examples themselves.
        augment: applied in turn to the inputs of items that are `Seeded`: the training batches'.
    """

    decoder: Decoder
    gather: bool
    augment: tuple[Augmentation, ...] = ()

    def __call__(self, constants: PyTree, item: PyTree) -> Batch:
        """The batch of one item."""
        if isinstance(item, Seeded):
            inputs, targets = self.stored(constants, item.stored)
            return self.decoder(inputs, targets, lambda x: augmented(self.augment, x, item.seed))
        return self.decoder(*self.stored(constants, item))

    def stored(self, constants: PyTree, item: PyTree) -> PyTree:
        """The stored (inputs, targets) of one item."""
        return jax.tree.map(lambda kept: kept[item], constants) if self.gather else item


class Dataset(abc.ABC):
    """Examples in batches, in an order that (seed, epoch) determines.

    Attributes:
        name: what errors and run folders call the set.
        num_examples: how many examples there are.
        batch_size: examples in a batch. Training leaves out an epoch's incomplete last batch;
            evaluation measures every example.
        shuffle: whether each epoch has an order of its own; in stored order otherwise.
        seed: of the shuffling, and of the augmentation.
        reader: makes a `Batch` of constants and an item, inside jit.
    """

    def __init__(
        self,
        *,
        name: str,
        num_examples: int,
        batch_size: int,
        shuffle: bool,
        seed: int,
        reader: Reader,
    ):
        if num_examples == 0:
            raise ValueError(f"data set '{name}' is empty; expected at least one example")
        if not 0 <= seed < 2**32:
            raise ValueError(f"expected a seed from 0 to 2**32 - 1, got {seed}")
        self.name = name
        self.num_examples = num_examples
        self.batch_size = batch_size  # checked by its setter
        self.shuffle = shuffle
        self.seed = int(seed)
        self.reader = reader

    @property
    def batch_size(self) -> int:
        """Examples in a batch; from 1 to `num_examples`."""
        return self._batch_size

    @batch_size.setter
    def batch_size(self, batch_size: int) -> None:
        whole = isinstance(batch_size, int | np.integer) and not isinstance(batch_size, bool)
        if not whole or batch_size < 1:
            raise ValueError(f"expected a batch_size of at least 1, got {batch_size!r}")
        if batch_size > self.num_examples:
            raise ValueError(
                f"batch_size {batch_size} is larger than data set '{self.name}' with its "
                f"{self.num_examples} examples; give a batch_size of at most {self.num_examples}"
            )
        self._batch_size = int(batch_size)

    @property
    def num_batches(self) -> int:
        """Complete batches in an epoch."""
        return self.num_examples // self.batch_size

    @property
    def num_classes(self) -> int | None:
        """How many classes the labels have, or None where the targets are not labels."""
        return self.reader.decoder.num_classes

    @property
    def has_sequences(self) -> bool:
        """Whether an example has targets at several positions, as a text has: (batch, length, classes)."""
        targets = self.spec().targets
        return getattr(targets, "ndim", 0) > 2  # several targets, or none, are no sequence

    @abc.abstractmethod
    def constants(self) -> PyTree:
        """Arrays on the device that every batch is read from."""

    @abc.abstractmethod
    def fetch(self, indices: np.ndarray) -> PyTree:
        """What the reader needs for batches of these examples; indices (count, batch) -> a pytree
        whose leaves begin with the axes (count, batch)."""

    def items(self, start: int, count: int) -> PyTree:
        """What the reader needs for training batches start, start + 1, ..., over epoch boundaries."""
        return self.with_seeds(self.fetch(self.indices(start, count)), start)

    def with_seeds(self, items: PyTree, start: int) -> PyTree:
        """The items of training batches start, start + 1, ..., `Seeded` where these are augmented."""
        if not self.reader.augment:
            return items
        return seeded(items, self.seed, start, len(jax.tree.leaves(items)[0]))

    def indices(self, start: int, count: int) -> np.ndarray:
        """Which examples training batches start, start + 1, ... hold: (count, batch), int32."""
        rows = []
        for number in range(start, start + count):
            epoch, position = divmod(number, self.num_batches)
            begin = position * self.batch_size
            rows.append(self.order(epoch)[begin : begin + self.batch_size])
        return np.stack(rows)

    def order(self, epoch: int) -> np.ndarray:
        """The order of all examples in this epoch: (num_examples,), int32."""
        cached, key = getattr(self, "_order", None), (epoch, self.seed, self.shuffle)
        if cached is None or cached[0] != key:
            order = np.arange(self.num_examples, dtype=np.int32)
            if self.shuffle:
                # RandomState's stream is frozen for good, so a seed means the same on any NumPy.
                order = np.random.RandomState([self.seed, epoch]).permutation(order)
            cached = self._order = (key, order)
        return cached[1]

    def evaluation_items(self, count: int) -> Iterator[tuple[PyTree, np.ndarray]]:
        """Every example once in stored order: items of up to `count` batches, and which rows count.

        The last batch is filled up with copies of example 0, which do not count.
        """
        total = -(-self.num_examples // self.batch_size)
        padded = np.zeros(total * self.batch_size, np.int32)
        padded[: self.num_examples] = np.arange(self.num_examples)
        valid = np.arange(len(padded)) < self.num_examples
        padded, valid = (array.reshape(total, self.batch_size) for array in (padded, valid))
        for begin in range(0, total, count):
            yield self.fetch(padded[begin : begin + count]), valid[begin : begin + count]

    def epoch(self, epoch: int = 0) -> Iterator[Batch]:
        """The training batches of one epoch, one after the other, for loops of one's own."""
        constants, read = self.constants(), jax.jit(self.reader)
        for number in range(epoch * self.num_batches, (epoch + 1) * self.num_batches):
            yield read(constants, jax.tree.map(lambda leaf: leaf[0], self.items(number, 1)))

    def __iter__(self) -> Iterator[Batch]:
        """The batches of epoch 0."""
        return self.epoch(0)

    def __len__(self) -> int:
        """Complete batches in an epoch."""
        return self.num_batches

    def spec(self) -> Batch:
        """Shapes and dtypes of a batch; reads one, the first time it is asked.

        Raises:
            ValueError: where augmentation gives inputs of another shape or dtype than evaluation has.
        """
        if getattr(self, "_spec", (None,))[0] == self.batch_size:
            return self._spec[1]
        items = self.fetch(self.indices(0, 1))

        def shapes(items):
            item = jax.tree.map(lambda leaf: leaf[0], items)
            return jax.eval_shape(self.reader, self.constants(), item)

        spec = shapes(items)
        if self.reader.augment:
            plain, changed = spec.inputs, shapes(self.with_seeds(items, 0)).inputs
            if (changed.shape, changed.dtype) != (plain.shape, plain.dtype):
                raise ValueError(
                    f"augmentation by {describe(self.reader.augment)} makes inputs of '{self.name}' "
                    f"{changed.dtype} {changed.shape}, but as evaluation sees them they are "
                    f"{plain.dtype} {plain.shape}; keep dtype and shape"
                )
        self._spec = (self.batch_size, spec)
        return spec

    def contents(self) -> str | None:
        """A checksum of the examples where they are in memory, else None."""
        return None

    def description(self) -> dict[str, str | int | bool]:
        """What decides the training batches: two equal descriptions give equal batches."""
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
