"""Sequences as data: lengths, windows, horizons. Oracle: NumPy slices."""

import numpy as np
import pytest

import pcflax as pc

RANDOM = np.random.default_rng(0)
X, U = RANDOM.normal(size=(4, 10, 3)).astype("f"), RANDOM.normal(size=(4, 10, 1)).astype("f")
make = pc.data.from_sequences


def all_of(data):
    return list(data.batches())


def test_a_batch_is_sequences():
    data = make(U, X, batch_size=2, shuffle=False)
    for number, batch in enumerate(data):
        rows = slice(2 * number, 2 * number + 2)
        np.testing.assert_array_equal(batch.inputs, U[rows])
        np.testing.assert_array_equal(batch.targets, X[rows])


def test_windows_of_long_series_begin_a_stride_apart():
    data = make(U, X, batch_size=1, window=4, stride=3, shuffle=False)
    assert data.num_examples == 4 * 3
    for (row, begin), batch in zip(
        [(row, begin) for row in range(4) for begin in (0, 3, 6)], data, strict=True
    ):
        np.testing.assert_array_equal(batch.inputs[0], U[row, begin : begin + 4])
        np.testing.assert_array_equal(batch.targets[0], X[row, begin : begin + 4])


def test_with_a_horizon_targets_are_so_many_steps_ahead():
    (batch,) = all_of(make(X, None, horizon=2, clamps={"z": U}, batch_size=4))
    np.testing.assert_array_equal(batch.clamps["z"].value, U[:, 2:])
    np.testing.assert_array_equal(batch.inputs, X[:, :8])
    np.testing.assert_array_equal(batch.targets, X[:, 2:])


def test_what_fills_up_a_sequence_is_not_looked_at():
    lengths = np.array([10, 3, 1, 7])
    known = np.arange(10) < lengths[:, None]
    filled = [np.where(known[..., None], array, np.nan) for array in (U, X)]
    (batch,) = all_of(make(*filled, lengths=lengths, clamps={"z": filled[1]}, batch_size=4))
    np.testing.assert_array_equal(batch.inputs, np.where(known[..., None], U, 0))
    for clamp in (batch.targets, batch.clamps["z"]):
        np.testing.assert_array_equal(clamp.value, np.where(known[..., None], X, 0))
        np.testing.assert_array_equal(np.broadcast_to(clamp.mask, X.shape).all(-1), known)


def test_windows_end_with_their_sequence_and_those_past_it_are_left_out():
    data = make(None, X, lengths=[10, 3, 2, 7], window=4, horizon=1, batch_size=1, shuffle=False)
    found = [np.asarray(batch.targets.mask)[0, :, 0].sum() for batch in data]
    assert found == [4, 4, 2, 1, 4, 2]  # of 9, 2, 1 and 6 steps, in windows of 4 that fit into 9
    batches = list(data)
    np.testing.assert_array_equal(batches[5].targets.value[0, :2], X[3, 5:7])


def test_a_list_of_sequences_has_their_lengths():
    (batch,) = all_of(make(None, [X[0], X[1, :4]], batch_size=2, shuffle=False))
    np.testing.assert_array_equal(batch.targets.value[1, :4], X[1, :4])
    np.testing.assert_array_equal(batch.targets.mask[..., 0].sum(1), [10, 4])


def test_sequences_of_a_list_may_be_of_several_dtypes():
    """A label of 300 is no number of int8, in which 44 would stand."""
    labels = [np.array([1, 2], np.int8), np.array([300, 0, 1])]
    (batch,) = all_of(make(None, labels, num_classes=301, batch_size=2, shuffle=False))
    np.testing.assert_array_equal(batch.targets.value.argmax(-1), [[1, 2, 0], [300, 0, 1]])


@pytest.mark.parametrize("place", [0, 1])
def test_masks_are_refused(place):
    """An array of values and masks would be two sequences."""
    arguments = [None, None]
    arguments[place] = (X, X > 0)
    with pytest.raises(TypeError, match="'sequences' are a tuple, expected an array, or a list"):
        make(*arguments, horizon=1, batch_size=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((U, None, {}), "has no targets; give them, or a horizon"),
        ((X[0], X, {}), r"have shape \(10, 3\), a sequence without time; expected"),
        (
            (U[:, :5], X, {}),
            r"\(4, 5\) \(sequences, steps\) in the inputs but \(4, 10\) in the targets",
        ),
        ((U, X, {"window": 11}), "window 11 is longer than the 10 steps"),
        ((U, X, {"horizon": 10}), "horizon 10 leaves no step"),
        ((U, X, {"lengths": [1, 2]}), r"expected lengths of shape \(4,\), one whole number"),
        ((U, X, {"lengths": [0, 1, 2, 3]}), "expected lengths from 1 to 10, got 0 to 3"),
        (
            (None, [X[0], X[1, :4]], {"lengths": [10, 5]}),
            "sequence 1 of 'sequences' has 4 steps, got a length of 5; give at most",
        ),
        ((None, X[:0], {}), "data set 'sequences' is empty; expected at least one sequence"),
        ((None, [X[0], X[1, :, :2]], {}), "have to be of one shape but for"),
        ((None, [1, 2], {"num_classes": 3}), "have to be of one shape but for"),
        (
            ([U[0], U[1, :4]], [X[0], X[1, :5]], {}),
            "sequences of other lengths; give one length each",
        ),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    inputs, targets, options = arguments
    with pytest.raises(ValueError, match=message):
        make(inputs, targets, batch_size=1, **options)
