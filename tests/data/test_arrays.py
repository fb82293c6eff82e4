"""In-memory data: which examples a batch holds, what they become, and what is refused.

Oracles: the definition of an epoch (a permutation), NumPy indexing, and `np.eye` for one-hot rows.
"""

import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pcflax as pc
from pcflax.data.decoder import Decoder

PROPERTY = settings(max_examples=30, deadline=None, derandomize=True, database=None)


def make_arrays(num_examples=11, width=3, num_classes=4):
    """Asymmetric inputs (each row its own), and labels that hit the last class."""
    random = np.random.default_rng(0)
    inputs = random.normal(size=(num_examples, width)).astype(np.float32)
    labels = (num_classes - 1 - np.arange(num_examples)) % num_classes
    return inputs, labels


def make_data(num_examples=11, batch_size=3, *, shuffle=True, seed=5):
    inputs, labels = make_arrays(num_examples)
    return pc.data.from_arrays(inputs, labels, batch_size=batch_size, shuffle=shuffle, seed=seed)


class TestOrder:
    @PROPERTY
    @given(
        num_examples=st.integers(1, 40), seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 1000)
    )
    def test_every_epoch_is_a_permutation_of_all_examples(self, num_examples, seed, epoch):
        """Otherwise some examples would be trained on twice as often as others."""
        order = make_data(num_examples, batch_size=1, seed=seed).order(epoch)
        np.testing.assert_array_equal(np.sort(order), np.arange(num_examples))

    def test_order_depends_on_seed_and_epoch_and_nothing_else(self):
        """A resumed run, which asks for late epochs first, would otherwise see another order."""
        straight, jumping = make_data(50), make_data(50)
        expected = [straight.order(epoch).copy() for epoch in range(5)]
        for epoch in (4, 0, 3, 3, 1, 2, 4):
            np.testing.assert_array_equal(jumping.order(epoch), expected[epoch])
        orders = [*expected, make_data(50, seed=6).order(0)]
        assert len({order.tobytes() for order in orders}) == 6

    def test_order_is_numpys_frozen_random_state_stream(self):
        """Were it another generator's, a NumPy upgrade could change published runs."""
        expected = np.random.RandomState([5, 7]).permutation(20)
        np.testing.assert_array_equal(make_data(20).order(7), expected)

    def test_without_shuffling_every_epoch_is_in_stored_order(self):
        data = make_data(shuffle=False)
        for epoch in (0, 3):
            np.testing.assert_array_equal(data.order(epoch), np.arange(11))

    def test_batch_size_does_not_change_the_order(self):
        first = make_data(12, batch_size=2).indices(0, 6).ravel()
        np.testing.assert_array_equal(first, make_data(12, batch_size=4).indices(0, 3).ravel())


class TestIndices:
    def test_indices_go_over_epoch_boundaries(self):
        """A chunk that spans two epochs must hold what the two epochs hold, or chunking counts."""
        data = make_data(11, batch_size=3)  # 3 complete batches an epoch, 2 examples left out
        expected = np.concatenate([data.order(epoch)[:9].reshape(3, 3) for epoch in range(4)])
        np.testing.assert_array_equal(data.indices(0, 12), expected)
        np.testing.assert_array_equal(data.indices(2, 5), expected[2:7])
        np.testing.assert_array_equal(data.indices(11, 1), expected[11:])

    @PROPERTY
    @given(
        num_examples=st.integers(1, 20),
        batch_size=st.integers(1, 20),
        start=st.integers(0, 100),
        count=st.integers(1, 12),
    )
    def test_chunking_changes_no_index(self, num_examples, batch_size, start, count):
        data = make_data(num_examples, min(batch_size, num_examples))
        singles = [data.indices(start + step, 1)[0] for step in range(count)]
        np.testing.assert_array_equal(data.indices(start, count), np.stack(singles))

    @pytest.mark.parametrize(("batch_size", "batches"), [(1, 11), (3, 3), (11, 1)])
    def test_an_epoch_leaves_out_the_incomplete_last_batch(self, batch_size, batches):
        data = make_data(11, batch_size)
        assert data.num_batches == len(data) == batches
        assert [batch.inputs.shape for batch in data] == [(batch_size, 3)] * batches

    def test_no_example_comes_twice_in_an_epoch(self):
        seen = make_data(11, batch_size=2).indices(5, 5).ravel()
        assert len(set(seen.tolist())) == 10


class TestEvaluationItems:
    @PROPERTY
    @given(num_examples=st.integers(1, 30), batch_size=st.integers(1, 30), count=st.integers(1, 5))
    def test_each_example_counts_exactly_once(self, num_examples, batch_size, count):
        """An accuracy over the wrong denominator would follow from a row counted twice or never."""
        data = make_data(num_examples, min(batch_size, num_examples))
        seen = []
        for items, valid in data.evaluation_items(count):
            assert items.shape == valid.shape
            assert len(items) <= count
            assert items.shape[1] == data.batch_size
            seen.extend(np.asarray(items)[valid].tolist())
        assert seen == list(range(num_examples))

    def test_filling_is_example_0_and_does_not_count(self):
        ((items, valid),) = make_data(11, batch_size=4).evaluation_items(100)
        np.testing.assert_array_equal(items[-1], [8, 9, 10, 0])
        np.testing.assert_array_equal(valid[-1], [True, True, True, False])
        assert valid.sum() == 11


class TestBatches:
    @pytest.mark.parametrize("batch_size", [1, 4])
    def test_a_batch_holds_the_rows_its_indices_name(self, batch_size):
        """A misaligned gather would pair inputs with the labels of other inputs."""
        inputs, labels = make_arrays()
        data = pc.data.from_arrays(inputs, labels, batch_size=batch_size, seed=3)
        for epoch in (0, 2):
            rows = data.indices(epoch * data.num_batches, data.num_batches)
            for row, batch in zip(rows, data.epoch(epoch), strict=True):
                np.testing.assert_array_equal(batch.inputs, inputs[row])
                np.testing.assert_array_equal(
                    batch.targets, np.eye(4, dtype=np.float32)[labels[row]]
                )

    @pytest.mark.parametrize("batch_size", [1, 4, 11])
    def test_a_loop_of_ones_own_sees_every_example_once(self, batch_size):
        """An accuracy by hand would else be one of the examples that happen to fill batches."""
        inputs, labels = make_arrays()
        sizes = [batch_size] * (11 // batch_size) + [11 % batch_size] * (11 % batch_size > 0)
        stored = make_data(batch_size=batch_size, shuffle=False)
        for batches in (list(stored), list(make_data(batch_size=batch_size).batches())):
            assert [len(batch.inputs) for batch in batches] == sizes
            assert len(batches) == len(stored)
            np.testing.assert_array_equal(np.concatenate([b.inputs for b in batches]), inputs)
            targets = np.concatenate([b.targets for b in batches])
            np.testing.assert_array_equal(targets, np.eye(4)[labels])
        assert [len(batch.inputs) for batch in stored.epoch()] == sizes[: 11 // batch_size]

    def test_the_last_batch_has_its_own_clamps(self):
        inputs, labels = make_arrays()
        clamps = {"hidden": (inputs, inputs > 0)}
        data = pc.data.from_arrays(inputs, labels, batch_size=4, shuffle=False, clamps=clamps)
        *_, last = data.batches()
        np.testing.assert_array_equal(last.clamps["hidden"].value, inputs[8:])
        np.testing.assert_array_equal(last.clamps["hidden"].mask, inputs[8:] > 0)

    def test_iterating_gives_epoch_0(self):
        data = make_data()
        for one, other in zip(data, data.epoch(0), strict=True):
            np.testing.assert_array_equal(one.inputs, other.inputs)

    @pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64])
    def test_one_hot_rows_are_rows_of_the_identity(self, dtype):
        labels = np.array([2, 0, 1, 2], dtype)
        data = pc.data.from_arrays(np.ones((4, 2)), labels, batch_size=4, shuffle=False)
        assert data.num_classes == 3
        np.testing.assert_array_equal(next(iter(data)).targets, np.eye(3)[labels])

    def test_num_classes_widens_one_hot_rows(self):
        data = pc.data.from_arrays(
            np.ones((2, 2)), np.array([1, 0]), batch_size=2, shuffle=False, num_classes=5
        )
        np.testing.assert_array_equal(next(iter(data)).targets, np.eye(5)[[1, 0]])

    def test_floating_targets_stay_as_they_are(self):
        inputs, _ = make_arrays(6)
        targets = np.random.default_rng(1).normal(size=(6, 2)).astype(np.float32)
        data = pc.data.from_arrays(inputs, targets, batch_size=6, shuffle=False)
        assert data.num_classes is None
        np.testing.assert_array_equal(next(iter(data)).targets, targets)

    def test_without_inputs_or_without_targets(self):
        inputs, labels = make_arrays(6)
        unlabelled = next(iter(pc.data.from_arrays(inputs, None, batch_size=2, shuffle=False)))
        assert unlabelled.targets is None
        np.testing.assert_array_equal(unlabelled.inputs, inputs[:2])
        rootless = next(iter(pc.data.from_arrays(None, labels, batch_size=2, shuffle=False)))
        assert rootless.inputs is None
        np.testing.assert_array_equal(rootless.targets, np.eye(4)[labels[:2]])

    def test_images_keep_their_axes(self):
        images = np.random.default_rng(2).random((4, 2, 3, 1))
        data = pc.data.from_arrays(images, np.arange(4), batch_size=2, shuffle=False)
        assert next(iter(data)).inputs.shape == (2, 2, 3, 1)

    def test_float64_becomes_float32_unless_64_bit_mode_is_on(self):
        inputs = np.full((2, 3), 1 / 3)
        narrow = pc.data.from_arrays(inputs, np.array([0, 1]), batch_size=2)
        assert next(iter(narrow)).inputs.dtype == np.float32
        with jax.enable_x64(True):
            wide = pc.data.from_arrays(inputs, np.array([0, 1]), batch_size=2)
            np.testing.assert_array_equal(next(iter(wide)).inputs, inputs)

    def test_spec_tells_shapes_and_dtypes(self):
        spec = make_data(batch_size=2).spec()
        assert (spec.inputs.shape, spec.inputs.dtype) == ((2, 3), np.float32)
        assert (spec.targets.shape, spec.targets.dtype) == ((2, 4), np.float32)

    def test_descriptions_differ_where_the_order_would(self):
        assert make_data().description() == make_data().description()
        for other in (make_data(seed=6), make_data(12), make_data(batch_size=2)):
            assert other.description() != make_data().description()


class TestDecoder:
    def test_normalizes_along_the_last_axis(self):
        """A mean taken along the wrong axis would color every image."""
        images = np.random.default_rng(3).integers(0, 256, (2, 4, 5, 3)).astype(np.uint8)
        mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
        inputs = Decoder(1 / 255, mean, std)(jax.numpy.asarray(images), None).inputs
        expected = (images.astype(np.float64) / 255 - np.array(mean)) / np.array(std)
        np.testing.assert_allclose(inputs, expected, rtol=1e-5, atol=1e-6)  # float32

    def test_flattens_in_row_major_order(self):
        images = np.arange(2 * 3 * 4 * 2, dtype=np.float32).reshape(2, 3, 4, 2)
        inputs = Decoder(flatten=True)(jax.numpy.asarray(images), None).inputs
        np.testing.assert_array_equal(inputs, images.reshape(2, 24))

    def test_leaves_what_needs_nothing_alone(self):
        inputs, targets = np.float32([[0.1]]), np.float32([[0.2, 0.3]])
        batch = Decoder()(jax.numpy.asarray(inputs), jax.numpy.asarray(targets))
        np.testing.assert_array_equal(batch.inputs, inputs)
        np.testing.assert_array_equal(batch.targets, targets)


INPUTS, LABELS = np.ones((3, 2)), np.array([0, 1, 2])
NAN = np.array([[0.0, 1.0], [np.inf, 0.0], [0.0, np.nan]])

VALUE_ERRORS = {
    "neither": ((None, None), {}, "inputs and targets are both None; give at least one"),
    "lengths": ((INPUTS, LABELS[:2]), {}, "'mine' has 3 inputs but 2 targets; give one row of"),
    "bool labels": (
        (INPUTS, LABELS > 1),
        {},
        "the targets of 'mine' have shape (3,) and dtype bool; expected integer labels of that shape, or "
        "floating targets (examples, features); cast them: targets.astype(int)",
    ),
    "names for labels": (
        (INPUTS, np.array(["a", "b", "a"], object)),
        {},
        "features); number the names: np.unique(targets, return_inverse=True)[1]",
    ),
    "float labels": (
        (INPUTS, LABELS / 2),
        {},
        "features); cast labels: targets.astype(int); of one number an example make a column: targets[:, N",
    ),
    "flat inputs": (
        (INPUTS[:, 0], LABELS),
        {},
        "the inputs of 'mine' have shape (3,), expected (examples, features)",
    ),
    "nan inputs": (
        (NAN, LABELS),
        {},
        "the inputs of 'mine' hold NaN or infinity in 2 of 3 examples, first in example 1; drop",
    ),
    "nan targets": ((INPUTS, NAN), {}, "the targets of 'mine' hold NaN or infinity in 2 of 3"),
    "negative label": (
        (INPUTS, np.array([0, 2, -1])),
        {},
        "label -1 of example 2 in 'mine' is out of range; expected 0 to 2 for num_classes=3",
    ),
    "large label": (
        (INPUTS, LABELS),
        {"num_classes": 2},
        "label 2 of example 2 in 'mine' is out of range; expected 0 to 1 for num_classes=2",
    ),
    "empty labels": (
        (None, LABELS[:0]),
        {},
        "data set 'mine' is empty; expected at least one example",
    ),
    "batch 0": (
        (INPUTS, LABELS),
        {"batch_size": 0},
        "data set 'mine' expected batch_size of at least 1, got 0",
    ),
    "no classes": (
        (INPUTS, LABELS),
        {"num_classes": 0},
        "'mine' expected num_classes of at least 1, got 0",
    ),
    "batch larger": (
        (INPUTS, LABELS),
        {"batch_size": 4},
        "batch_size 4 is larger than data set 'mine' with its 3 examples; give a batch_size of at "
        "most 3",
    ),
    "seed": ((INPUTS, LABELS), {"seed": -1}, "data set 'mine' expected seed of at least 0, got -1"),
    "large seed": ((INPUTS, LABELS), {"seed": 2**32}, "expected seed < 2**32, got 4294967296"),
}
NOT_WHOLE = [
    (option, value)
    for option in ("batch_size", "seed", "num_classes")
    for value in (1.5, True, "8", np.ones(1, int))
]


class TestErrors:
    @pytest.mark.parametrize("case", VALUE_ERRORS)
    def test_unusable_arrays_are_refused_in_words(self, case):
        arrays, options, text = VALUE_ERRORS[case]
        with pytest.raises(ValueError, match=re.escape(text)):
            pc.data.from_arrays(*arrays, **{"batch_size": 1, "name": "mine", **options})

    @pytest.mark.parametrize(("option", "value"), NOT_WHOLE)
    def test_what_is_no_whole_number_is_refused(self, option, value):
        with pytest.raises(TypeError, match=f"data set 'mine' expected an int {option}, got "):
            pc.data.from_arrays(INPUTS, LABELS, **{"batch_size": 1, "name": "mine", option: value})

    def test_integer_inputs_are_refused_with_the_remedy(self):
        """Bytes taken for numbers would train on inputs 255 times too large."""
        text = (
            "the inputs of 'mine' have dtype uint8, expected a floating dtype; scale and cast them"
        )
        with pytest.raises(TypeError, match=text):
            pc.data.from_arrays(np.ones((3, 2), np.uint8), LABELS, batch_size=1, name="mine")

    def test_integer_target_rows_are_refused_with_the_remedy(self):
        text = (
            "the targets of 'mine' have dtype int64, expected a floating dtype; give integer labels"
        )
        with pytest.raises(TypeError, match=text):
            pc.data.from_arrays(INPUTS, np.eye(3, dtype=np.int64), batch_size=1, name="mine")

    @pytest.mark.parametrize("targets", [np.zeros(0, np.int64), np.zeros((0, 2))])
    def test_empty_inputs_are_called_empty(self, targets):
        with pytest.raises(ValueError, match="data set 'mine' is empty; expected at least one"):
            pc.data.from_arrays(np.zeros((0, 3)), targets, batch_size=1, name="mine")

    def test_what_overflows_in_float32_is_refused(self):
        inputs = np.array([[0.0, 1.0], [0.0, 1e300], [0.0, 1.0]])
        with pytest.raises(ValueError, match="the inputs of 'mine' hold"):
            pc.data.from_arrays(inputs, LABELS, batch_size=1, name="mine")


def test_a_checksum_tells_other_examples_from_the_same():
    """A file that was written anew under its old name would go unnoticed."""
    inputs, labels = np.arange(12.0).reshape(6, 2), np.arange(6) % 3

    def contents(inputs, labels, **options):
        return pc.data.from_arrays(inputs, labels, batch_size=2, **options).description()[
            "checksum"
        ]

    same = contents(inputs, labels)
    assert contents(inputs.copy(), labels, seed=1) == same
    assert contents(np.asfortranarray(inputs), labels) == same
    changed = inputs.copy()
    changed[4, 1] = 7.5
    assert contents(changed, labels) != same
    assert contents(inputs, labels[::-1]) != same
    text = [
        pc.data.TextDataset(t, sequence_length=2, batch_size=1).description()["checksum"]
        for t in ("abab", "abba", "acac")
    ]
    assert len(set(text)) == 3
