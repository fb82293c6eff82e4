"""Arrays of whole numbers: tokens as inputs, and a label at every position.

Oracles: NumPy indexing and rows of `np.eye`.
"""

import re

import numpy as np
import pytest

import pcflax as pc

TOKENS = np.array([[3, 1, 4], [1, 5, 9], [2, 6, 5], [3, 5, 8]])
LABELS = np.array([[0, 2, 1], [1, 1, 0], [2, 0, 0], [2, 2, 1]])


def make_data(inputs=TOKENS, targets=LABELS, **options):
    options = {"batch_size": 2, "shuffle": False, "num_classes": 3, "name": "mine", **options}
    return pc.data.from_arrays(inputs, targets, integer_inputs=True, **options)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_tokens_stay_whole_numbers(dtype):
    batches = list(make_data(TOKENS.astype(dtype)))
    for batch in batches:
        assert batch.inputs.dtype == np.int32
    np.testing.assert_array_equal(np.concatenate([batch.inputs for batch in batches]), TOKENS)


def test_labels_at_every_position_become_one_hot_along_the_last_axis():
    targets = np.concatenate([batch.targets for batch in make_data(num_classes=4)])
    np.testing.assert_array_equal(targets, np.eye(4)[LABELS])
    assert make_data(num_classes=4).num_classes == 4


def test_floating_inputs_may_have_labels_at_every_position():
    inputs = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    data = pc.data.from_arrays(inputs, LABELS, batch_size=4, shuffle=False, num_classes=3)
    batch = next(iter(data))
    np.testing.assert_array_equal(batch.inputs, inputs)
    np.testing.assert_array_equal(batch.targets, np.eye(3)[LABELS])


def test_tokens_may_have_one_label_an_example_or_floating_targets():
    labels = next(iter(make_data(targets=np.array([0, 1, 2, 0]), batch_size=4))).targets
    np.testing.assert_array_equal(labels, np.eye(3)[[0, 1, 2, 0]])
    assert next(iter(make_data(targets=TOKENS / 9))).targets.shape == (2, 3)


def test_labels_at_every_position_want_num_classes():
    """Without it, rows of whole numbers are taken for targets that should be floating."""
    with pytest.raises(TypeError, match="the targets of 'mine' have dtype int64, expected a float"):
        make_data(num_classes=None)


@pytest.mark.parametrize(("wrong", "count"), [(3, 3), (-1, 3)])
def test_a_label_out_of_range_is_named_with_its_example(wrong, count):
    labels = LABELS.copy()
    labels[2, 1] = wrong
    text = f"label {wrong} of example 2 in 'mine' is out of range; expected 0 to {count - 1}"
    with pytest.raises(ValueError, match=text):
        make_data(targets=labels)


@pytest.mark.parametrize(
    ("inputs", "kind", "text"),
    [
        (
            TOKENS / 2,
            TypeError,
            "the inputs of 'mine' have dtype float64, expected an integer dtype; leave out integer_",
        ),
        (TOKENS > 2, TypeError, "the inputs of 'mine' have dtype bool, expected an integer dtype"),
        (TOKENS[:, 0], ValueError, "the inputs of 'mine' have shape (4,), expected (examples, fea"),
        (TOKENS + 2**31, ValueError, "the inputs of 'mine' hold numbers that int32 cannot; stay"),
        (TOKENS[:3], ValueError, "'mine' has 3 inputs but 4 targets; give one row of each"),
    ],
)
def test_unusable_integers_are_refused_in_words(inputs, kind, text):
    with pytest.raises(kind, match=re.escape(text)):
        make_data(inputs)


def test_integers_are_refused_unless_asked_for():
    with pytest.raises(TypeError, match="the inputs of 'mine' have dtype int64, expected a float"):
        pc.data.from_arrays(TOKENS, LABELS, batch_size=2, num_classes=3, name="mine")
