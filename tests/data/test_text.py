"""Text as tokens: which windows an epoch holds, what they become, and what is refused.

Oracles: Python's own slices of the text, `sorted(set(text))`, and counting by hand.
"""

import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import pcflax as pc
from pcflax.data.text import bounds, read_text
from tests.conftest import parameters_of

PROPERTY = settings(max_examples=30, deadline=None, derandomize=True, database=None)
SHAKESPEARE = (
    Path(os.environ.get("PCFLAX_TEST_TEXTS") or Path(__file__).parents[3] / "shared/data/text")
    / "tiny_shakespeare.txt"
)

# Several line ends, a character beyond ASCII and one beyond 16 bits.
TEXT = "Zwölf Boxkämpfer jagen Viktor 😀\r\nquer über den großen Sylter Deich.\n" * 3


def make_data(text=TEXT, *, sequence_length=10, batch_size=3, **options):
    return pc.data.TextDataset(
        text, sequence_length=sequence_length, batch_size=batch_size, **options
    )


def rows_of(data, batches):
    """[(text of the window, text of what follows each of its characters)] of all rows."""
    return [
        (data.decode(inputs), data.decode(targets.argmax(axis=-1)))
        for batch in batches
        for inputs, targets in zip(batch.inputs, np.asarray(batch.targets), strict=True)
    ]


def evaluation_rows(data):
    """The same of evaluation, read on the host: a text of each length would compile anew."""
    rows = []
    for items, valid in data.evaluation_items(2):
        for item, counts in zip(items, valid, strict=True):
            windows, after = data.reader.stored(data.tokens, item[counts])
            rows += [(data.decode(x), data.decode(y)) for x, y in zip(windows, after, strict=True)]
    return rows


class TestTokens:
    def test_the_vocabulary_is_the_sorted_characters(self):
        assert make_data().vocabulary == "".join(sorted(set(TEXT)))

    @PROPERTY
    @given(st.text(st.characters(codec="utf-8"), min_size=2, max_size=40), st.sampled_from([0, 1]))
    def test_decoding_undoes_encoding(self, text, reverse):
        """In whatever order the vocabulary is."""
        vocabulary = "".join(sorted(set(text), reverse=bool(reverse)))
        data = make_data(text, sequence_length=1, batch_size=1, vocabulary=vocabulary)
        tokens = data.encode(text)
        assert tokens.dtype == np.int32
        assert tokens.tolist() == [vocabulary.index(character) for character in text]
        assert data.decode(tokens) == text

    def test_nothing_encodes_to_nothing(self):
        data = make_data()
        assert data.encode("").shape == (0,)
        assert data.decode([]) == data.decode(data.encode("")) == ""

    @pytest.mark.parametrize(
        ("size", "dtype"), [(2, np.uint8), (256, np.uint8), (257, np.uint16), (70000, np.uint32)]
    )
    def test_the_device_holds_each_character_once_in_the_fewest_bytes(self, size, dtype):
        """Windows copied out would take sequence_length times the memory."""
        characters = "".join(chr(0x10000 + i) for i in range(size))
        data = make_data(characters * 2, sequence_length=1, batch_size=1, shuffle=False)
        assert data.constants().shape == (2 * size,)
        assert data.constants().dtype == dtype
        batch = data.reader(data.constants(), data.items(size - 1, 1)[0])
        assert batch.inputs.tolist() == [[size - 1]]  # the largest token does not wrap around


class TestWindows:
    @PROPERTY
    @given(
        length=st.integers(2, 60),
        sequence_length=st.integers(1, 20),
        batch_size=st.integers(1, 9),
    )
    def test_evaluation_scores_every_character_at_most_once_in_order(
        self, length, sequence_length, batch_size
    ):
        """A character scored twice or never would change the perplexity."""
        text = "".join(chr(ord("A") + i) for i in range(length))  # no two characters are equal
        number = (length - 1) // sequence_length
        if not number:
            return
        data = make_data(text, sequence_length=sequence_length, batch_size=min(batch_size, number))
        assert data.num_examples == number
        rows = evaluation_rows(data)
        assert "".join(window for window, _ in rows) == text[: number * sequence_length]
        assert "".join(after for _, after in rows) == text[1 : number * sequence_length + 1]
        assert length - 1 - number * sequence_length < sequence_length

    def test_a_batch_is_tokens_and_the_one_hot_tokens_that_follow(self):
        data = make_data(shuffle=False)
        batch = next(iter(data))
        assert (batch.inputs.shape, batch.inputs.dtype) == ((3, 10), jnp.int32)
        assert (batch.targets.shape, batch.targets.dtype) == ((3, 10, data.num_classes), np.float32)
        assert data.num_classes == len(set(TEXT))
        np.testing.assert_array_equal(np.sum(batch.targets, axis=-1), 1)
        assert rows_of(data, [batch]) == [
            (TEXT[begin : begin + 10], TEXT[begin + 1 : begin + 11]) for begin in (0, 10, 20)
        ]
        assert data.spec() == jax.eval_shape(lambda: batch)
        assert data.has_sequences

    @pytest.mark.parametrize("length", [97, 100, 101, 105])
    def test_an_epochs_windows_lie_side_by_side_from_its_offset(self, length):
        text = "".join(chr(ord("A") + i) for i in range(length))
        data = make_data(text, batch_size=1, seed=3)
        for epoch in range(8):
            offset, rows = data.offset(epoch), rows_of(data, data.epoch(epoch))
            begins = sorted(text.index(window) for window, _ in rows)
            number = (length - 1) // 10
            expected = [min(offset + 10 * k, length - 11) for k in range(number)]
            assert begins == expected
            assert all(text[text.index(window) + 1 :].startswith(after) for window, after in rows)

    def test_in_time_every_place_begins_a_window(self):
        """Fixed windows would always show the same characters without what came before them."""
        data = make_data(batch_size=1)
        offsets = [data.offset(epoch) for epoch in range(200)]
        assert set(offsets) == set(range(10))
        assert np.bincount(offsets).min() > 10

    def test_windows_are_those_of_numpys_frozen_random_state_stream(self):
        """Were they another generator's, a resumed run of an older version would see other windows."""
        data = make_data(seed=4)
        number = data.num_batches
        for epoch in (0, 6):
            order = np.random.RandomState([4, epoch]).permutation(data.num_examples)
            offset = np.random.RandomState([4, epoch, 1]).randint(10)
            begins = np.minimum(order[: 3 * number] * 10 + offset, len(TEXT) - 11)
            found = data.items(epoch * number, number)
            np.testing.assert_array_equal(found, begins.reshape(number, 3))

    def test_offset_and_order_are_functions_of_seed_and_epoch(self):
        straight, jumping = make_data(seed=4), make_data(seed=4)
        expected = straight.items(0, 40)
        number = straight.num_batches
        assert number < 10  # so that the calls below go over the ends of epochs
        for start, count in ((31, 9), (0, 7), (5, 13), (39, 1)):
            np.testing.assert_array_equal(
                jumping.items(start, count), expected[start : start + count]
            )
        assert not np.array_equal(expected, make_data(seed=5).items(0, 40))
        epochs = expected[: 5 * number].reshape(5, -1)
        assert len({row.tobytes() for row in epochs}) == 5

    def test_without_shuffling_windows_are_evaluations(self):
        data = make_data(shuffle=False, batch_size=1)
        for epoch in (0, 3):
            assert rows_of(data, data.epoch(epoch)) == evaluation_rows(data)

    def test_the_shortest_text_is_one_window(self):
        data = make_data("abc", sequence_length=2, batch_size=1)
        assert data.num_examples == 1
        for epoch in range(4):
            assert rows_of(data, data.epoch(epoch)) == [("ab", "bc")]

    def test_descriptions_tell_the_length_of_windows(self):
        assert make_data().description() == make_data().description()
        texts = ["ab" * 105, "ab" * 105]
        one, other = (
            make_data(text, sequence_length=length, batch_size=1).description()
            for text, length in zip(texts, (100, 70), strict=True)
        )
        assert one["num_examples"] == other["num_examples"] == 2
        assert one != other


class TestFiles:
    @pytest.fixture
    def path(self, tmp_path):
        path = tmp_path / "own.txt"
        path.write_bytes(TEXT.encode())
        return path

    def load(self, path, **options):
        return pc.data.load(f"text:{path}", **{"batch_size": 1, "sequence_length": 5, **options})

    def text_of(self, data):
        return data.decode(data.tokens)

    def test_the_first_nine_tenths_train_and_the_rest_tests(self, path):
        train, test = self.load(path), self.load(path, split="test")
        cut = len(TEXT) * 9 // 10
        assert (self.text_of(train), self.text_of(test)) == (TEXT[:cut], TEXT[cut:])
        assert (train.name, test.name) == ("own/train", "own/test")
        assert (train.shuffle, test.shuffle) == (True, False)

    def test_both_splits_have_the_whole_files_vocabulary(self, tmp_path):
        """Else a character of one split would be another one's token in the other."""
        path = tmp_path / "own.txt"
        path.write_text("b" * 90 + "abacabacab")
        train, test = self.load(path), self.load(path, split="test")
        assert train.vocabulary == test.vocabulary == "abc"
        assert train.num_classes == 3
        assert set(train.tokens) == {1}

    def test_line_ends_stay_as_they_are(self, path):
        assert read_text(path) == TEXT
        assert "\r\n" in TEXT

    def test_parts_count_characters(self, path):
        train = self.text_of(self.load(path))
        assert self.text_of(self.load(path, split="train[:50]")) == train[:50]
        assert self.text_of(self.load(path, split="train[-20:]")) == train[-20:]
        half = round(len(train) * 0.5)
        assert self.text_of(self.load(path, split="train[50%:]")) == train[half:]
        assert self.load(path, split="train[:50]").vocabulary == "".join(sorted(set(TEXT)))

    def test_128_characters_make_an_example_unless_told(self, path):
        assert pc.data.load(f"text:{path}", batch_size=1).sequence_length == 128

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"there is no file .*absent\.txt; expected a"):
            pc.data.load(f"text:{tmp_path / 'absent.txt'}")

    def test_what_is_not_utf_8_is_refused_with_the_place(self, tmp_path):
        path = tmp_path / "latin.txt"
        path.write_bytes("größe".encode("latin-1"))
        with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8 text \(byte 2 begins no"):
            pc.data.load(f"text:{path}")

    @pytest.mark.parametrize("content", ["", "a", "abcdef"])
    def test_a_short_text_is_refused_with_its_length(self, tmp_path, content):
        path = tmp_path / "short.txt"
        path.write_text(content)
        count = len(content) * 9 // 10
        text = (
            f"'short/train' has {count} characters, but one window of sequence_length=8 and the "
            f"character after it need 9"
        )
        with pytest.raises(ValueError, match=re.escape(text)):
            self.load(path, sequence_length=8)

    def test_an_empty_part_is_refused(self, path):
        with pytest.raises(ValueError, match="'own/train\\[5:5\\]' is empty: the split has"):
            self.load(path, split="train[5:5]")

    def test_a_batch_larger_than_the_set_is_refused(self, path):
        with pytest.raises(ValueError, match="batch_size 64 is larger than data set 'own/test'"):
            self.load(path, split="test", batch_size=64)

    @pytest.mark.parametrize(("option", "value"), [("augment", pc.data.Flip()), ("stream", True)])
    def test_options_of_images_are_refused(self, path, option, value):
        with pytest.raises(ValueError, match=f"is a text, which has no {option}; leave it out"):
            self.load(path, **{option: value})

    @pytest.mark.parametrize("name", ["digits", "own.npz"])
    def test_a_sequence_length_is_of_texts_only(self, name):
        text = f"sequence_length is an option of texts, 'text:PATH', and '{name}' is none"
        with pytest.raises(ValueError, match=text):
            pc.data.load(name, sequence_length=10)

    def test_where_a_text_is_cut(self):
        for length in (0, 1, 9, 10, 11, 1_115_394):
            train, test = bounds("train", length), bounds("test", length)
            assert (train.start, train.stop, test.stop) == (0, test.start, length)
            assert train.stop == int(0.9 * length)


class TestErrors:
    def test_an_unknown_character_is_named_with_its_place(self):
        text = "character 'q' at place 2 is none of the 3 in the vocabulary of 'mine'"
        with pytest.raises(ValueError, match=text):
            make_data("abcabc", sequence_length=2, batch_size=1, name="mine").encode("abq")

    def test_a_text_beyond_its_vocabulary_is_refused(self):
        with pytest.raises(ValueError, match="character 'c' at place 2 is none of the 2 in the"):
            make_data("abc", sequence_length=1, vocabulary="ab")
        with pytest.raises(ValueError, match="character 'a' at place 0 is none of the 0 in the"):
            make_data("abc", sequence_length=1, vocabulary="")

    def test_a_vocabulary_with_a_character_twice_is_refused(self):
        with pytest.raises(ValueError, match="the vocabulary of 'text' has a character twice: 'ab"):
            make_data("abc", sequence_length=1, vocabulary="abca")

    @pytest.mark.parametrize("length", [1.5, True, "8"])
    def test_a_sequence_length_that_is_none_is_refused(self, length):
        with pytest.raises(
            TypeError, match="data set 'text' expected an int sequence_length, got "
        ):
            make_data(sequence_length=length)

    @pytest.mark.parametrize("length", [0, -1])
    def test_a_sequence_length_of_nothing_is_refused(self, length):
        with pytest.raises(
            ValueError, match=f"expected sequence_length of at least 1, got {length}"
        ):
            make_data(sequence_length=length)

    @pytest.mark.parametrize(
        ("tokens", "kind", "text"),
        [
            ([0, 3], ValueError, "token 3 is out of range; expected 0 to 2"),
            ([0, -1], ValueError, "token -1 is out of range; expected 0 to 2"),
            ([[0]], ValueError, "expected tokens of shape (length,), got (1, 1)"),
            ([0.5], TypeError, "expected integer tokens, got dtype float64"),
        ],
    )
    def test_tokens_that_are_none_are_refused(self, tokens, kind, text):
        with pytest.raises(kind, match=re.escape(text)):
            make_data("abcabc", sequence_length=2, batch_size=1).decode(tokens)


# One of each for all trainers, which then share their compiled programs.
RULE = pc.learning.PredictiveCoding(pc.inference.GradientDescent(optax.sgd(0.1), num_steps=1))
OPTIMIZER = optax.adam(0.3)


def bigram_trainer(num_tokens, folder=None):
    """A table of logits by token: a bigram model, whose best perplexity counting gives."""
    layer = pc.PCEmbedding(
        num_tokens, num_tokens, energy=pc.energies.Categorical(), rngs=nnx.Rngs(0)
    )
    return pc.Trainer(
        pc.PCNetwork([layer]),
        OPTIMIZER,
        learning=RULE,
        checkpoints=None
        if folder is None
        else pc.Checkpoints(folder, every=5, keep_best=("eval/perplexity", "min")),
        progress=False,
    )


class TestTraining:
    def data(self, **options):
        return make_data("abracadabra " * 9, sequence_length=8, batch_size=4, **options)

    def test_a_bigram_model_learns_the_bigrams_perplexity(self):
        """The minimum is known: exp of the entropy of a character given the one before."""
        data = self.data()
        trainer = bigram_trainer(data.num_classes)
        measured = []
        for steps in (1, 150):
            trainer.fit(data, num_steps=steps)
            measured.append(trainer.evaluate(data)["perplexity"])
        text = ("abracadabra " * 9)[: 8 * data.num_examples + 1]
        counts = np.zeros((data.num_classes, data.num_classes))
        np.add.at(counts, (data.encode(text[:-1]), data.encode(text[1:])), 1)
        given_before = counts / counts.sum(axis=1, keepdims=True)
        scored = counts > 0
        nats = -(counts[scored] * np.log(given_before[scored])).sum() / counts.sum()
        assert measured[0] > 1.5 * np.exp(nats)
        # the logits of what never follows go to -inf only in the limit
        assert np.exp(nats) * (1 - 1e-6) < measured[1] < 1.02 * np.exp(nats)

    @pytest.mark.filterwarnings("ignore:keep_best judges")  # as nothing is evaluated
    def test_one_fit_equals_several_and_a_restored_one_bitwise(self, tmp_path):
        data = self.data()
        whole, parts, stopped = (
            bigram_trainer(data.num_classes),
            bigram_trainer(data.num_classes),
            bigram_trainer(data.num_classes, tmp_path),
        )
        whole.fit(data, num_steps=11, log_every=4)
        for total in (1, 4, 9, 11):
            parts.fit(self.data(), num_steps=total, log_every=4)
        stopped.fit(self.data(), num_steps=7, log_every=4)
        resumed = bigram_trainer(data.num_classes, tmp_path)
        assert resumed.restore(5) == 5
        resumed.fit(self.data(), num_steps=11, log_every=4)
        for other in (parts, resumed):
            for one, two in zip(
                parameters_of(whole.network), parameters_of(other.network), strict=True
            ):
                np.testing.assert_array_equal(one, two)
        assert resumed.history.rows == whole.history.rows
        assert len(whole.history["train/perplexity"]) == 3


@pytest.mark.skipif(
    not SHAKESPEARE.is_file(), reason="no tiny_shakespeare.txt: set PCFLAX_TEST_TEXTS to its folder"
)
def test_tiny_shakespeare_has_its_65_characters():
    train = pc.data.load(f"text:{SHAKESPEARE}", batch_size=64)
    test = pc.data.load(f"text:{SHAKESPEARE}", split="test", batch_size=64)
    assert len(train.vocabulary) == len(test.vocabulary) == 65
    assert len(train.tokens) + len(test.tokens) == 1_115_394
    assert train.decode(train.tokens[:14]) == "First Citizen:"
    assert next(iter(train)).targets.shape == (64, 128, 65)
