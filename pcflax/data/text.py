"""Text, character by character: windows of tokens, each scored by the token that follows.

The text lies on the device once, one small integer a character; an example is where its window begins,
and the reader cuts the windows out inside the compiled loop. With T tokens in a window and N in the
text, there are (N - 1) // T examples, in training as in evaluation.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pcflax.checks import expect_count
from pcflax.layers import Evidence
from pcflax.typing import PyTree

from .arrays import checksum
from .base import Dataset
from .decoder import Decoder, Reader


@dataclasses.dataclass(frozen=True)
class WindowReader(Reader):
    """From the text and where windows begin to a batch of tokens and the tokens that follow them."""

    sequence_length: int = 1

    def stored(self, constants: PyTree, item: PyTree) -> Evidence:
        """Return tokens and next tokens, each int32 (batch, length)."""
        places = item[:, None] + jnp.arange(self.sequence_length + 1)[None]
        tokens = constants[places].astype(jnp.int32)
        return Evidence(tokens[:, :-1], tokens[:, 1:])


class TextDataset(Dataset):
    """Windows of a text: inputs are int32 tokens (batch, length), targets the next tokens, one-hot.

    Evaluation passes over windows side by side, in order: every token but the first, and fewer than
    `sequence_length` at the end, is scored exactly once, those early in a window with little before
    them. Training, where it shuffles, moves all windows of an epoch by one offset from 0 to
    `sequence_length` - 1, so that in time every place begins a window; the last of them is moved back
    where it would pass the end, and what lies before the first waits for another epoch. Offset and
    order are functions of (seed, epoch).

    Args:
        text: the characters.
        sequence_length: tokens in a window.
        batch_size: windows in a batch.
        vocabulary: the characters that are tokens 0, 1, ...; those of the text, sorted, unless given.
        shuffle: whether each epoch has an offset and an order of its own.
        seed: of both.
        name: what errors call the set.

    Attributes:
        vocabulary: the character of every token, in order: token i is `vocabulary[i]`.
        sequence_length: tokens in a window.

    Raises:
        TypeError: for a sequence_length or batch_size that is no whole number.
        ValueError: for a sequence_length below 1, a text too short for one window, a character that the
            vocabulary lacks or has twice, or a batch larger than the set.

    >>> import pcflax as pc
    >>> data = pc.data.TextDataset("abracadabra", sequence_length=4, batch_size=2, shuffle=False)
    >>> batch = next(iter(data))
    >>> batch.inputs.shape, batch.inputs.dtype, batch.targets.shape
    ((2, 4), dtype('int32'), (2, 4, 5))
    >>> data.vocabulary, data.decode(batch.inputs[0]), data.decode(batch.targets[0].argmax(-1))
    ('abcdr', 'abra', 'brac')
    """

    def __init__(
        self,
        text: str,
        *,
        sequence_length: int = 128,
        batch_size: int = 64,
        vocabulary: str | None = None,
        shuffle: bool = True,
        seed: int = 0,
        name: str = "text",
    ):
        self.name = name
        self.sequence_length = expect_count(self._title, "sequence_length", sequence_length, 1)
        self.vocabulary = "".join(sorted(set(text))) if vocabulary is None else vocabulary
        self._points = _code_points(self.vocabulary)
        self._sorted = np.argsort(self._points)
        if len(set(self.vocabulary)) < len(self.vocabulary):
            raise ValueError(f"the vocabulary of '{name}' has a character twice: {vocabulary!r}")
        if len(text) <= self.sequence_length:
            raise ValueError(
                f"'{name}' has {len(text)} characters, but one window of sequence_length="
                f"{self.sequence_length} and the character after it need {self.sequence_length + 1}"
            )
        # bytes, as a rule: a quarter of what int32 would take on the device
        self.tokens = self.encode(text).astype(np.min_scalar_type(len(self.vocabulary) - 1))
        self._checksum = checksum({self.vocabulary: self.tokens})
        self._constants: PyTree = None
        super().__init__(
            name=name,
            num_examples=(len(text) - 1) // self.sequence_length,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            reader=WindowReader(
                Decoder(num_classes=len(self.vocabulary)),
                gather=True,
                sequence_length=self.sequence_length,
            ),
        )

    def encode(self, text: str) -> np.ndarray:
        """Return the tokens of a text: (len(text),), int32.

        Raises:
            ValueError: for a character that is not in the vocabulary.
        """
        points = _code_points(text)
        sorted_points = self._points[self._sorted]
        places = np.searchsorted(sorted_points, points).clip(max=len(self._points) - 1)
        unknown = sorted_points[places] != points if len(self._points) else points >= 0
        if unknown.any():
            place = int(np.argmax(unknown))
            raise ValueError(
                f"character {text[place]!r} at place {place} is none of the {len(self.vocabulary)} in "
                f"the vocabulary of '{self.name}'"
            )
        return self._sorted[places].astype(np.int32)

    def decode(self, tokens: Any) -> str:
        """Return the text of tokens (length,).

        Raises:
            TypeError: for tokens that are no integers.
            ValueError: for another number of axes, or a token that is none of the vocabulary.
        """
        tokens = np.asarray(tokens)
        if tokens.size == 0:
            return ""
        if not np.issubdtype(tokens.dtype, np.integer):
            raise TypeError(f"expected integer tokens, got dtype {tokens.dtype}")
        if tokens.ndim != 1:
            raise ValueError(f"expected tokens of shape (length,), got {tokens.shape}")
        wrong = (tokens < 0) | (tokens >= len(self.vocabulary))
        if wrong.any():
            raise ValueError(
                f"token {tokens[wrong][0]} is out of range; expected 0 to {len(self.vocabulary) - 1}"
            )
        return "".join(self.vocabulary[token] for token in tokens)

    def constants(self) -> PyTree:
        """Return the whole text's tokens on the device, moved there on first use: (characters,)."""
        if self._constants is None:
            self._constants = jax.device_put(self.tokens)
        return self._constants

    def fetch(self, indices: np.ndarray) -> np.ndarray:
        """Return where these windows begin when nothing moves them."""
        return (indices * self.sequence_length).astype(np.int32)

    def items(self, start: int, count: int) -> PyTree:
        """Return where the windows of training batches start, start + 1, ... begin."""
        epochs = np.arange(start, start + count) // self.num_batches
        offsets = np.asarray([self.offset(int(epoch)) for epoch in epochs], np.int32)
        last = len(self.tokens) - self.sequence_length - 1
        return np.minimum(self.fetch(self.indices(start, count)) + offsets[:, None], last)

    def offset(self, epoch: int) -> int:
        """Return how far this epoch's windows are moved: 0 to `sequence_length` - 1; 0 without shuffling."""
        if not self.shuffle:
            return 0
        # a stream of its own: the order of the windows is that of [seed, epoch]
        return int(np.random.RandomState([self.seed, epoch, 1]).randint(self.sequence_length))

    def description(self) -> dict[str, str | int | bool]:
        """Return what decides which examples the training batches hold, the text's checksum with it."""
        own = {"sequence_length": self.sequence_length, "checksum": self._checksum}
        return {**super().description(), **own}


def read_text(path: Path) -> str:
    """Return the characters of a UTF-8 file, line ends as they are.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "own.txt")
    >>> _ = path.write_bytes("eins\\r\\nzwölf".encode())
    >>> read_text(path)
    'eins\\r\\nzwölf'
    """
    path = path.expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; expected a text, as in 'text:PATH'")
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text (byte {error.start} begins no character); convert it to UTF-8"
        ) from None


def bounds(split: str, length: int) -> slice:
    """Return which characters of a text are its "train" (the first 90 %) and its "test" (the rest).

    >>> bounds("train", 25), bounds("test", 25)
    (slice(0, 22, None), slice(22, 25, None))
    """
    cut = length * 9 // 10
    return slice(0, cut) if split == "train" else slice(cut, length)


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)
