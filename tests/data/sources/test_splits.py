"""Parts of a split in TFDS's notation.

Oracle: Python's slices of the whole.
"""

import re

import numpy as np
import pytest

import pcflax as pc


def test_a_part_of_a_split_is_those_rows():
    whole = pc.data.load("digits", batch_size=1)
    count = whole.num_examples
    for split, rows in (
        ("train[:1000]", slice(0, 1000)),
        ("train[-100:]", slice(count - 100, count)),
        ("train[:90%]", slice(0, round(0.9 * count))),
        ("train[90%:]", slice(round(0.9 * count), count)),
        ("test[10:20]", None),
    ):
        part = pc.data.load("digits", split=split, batch_size=1)
        if rows is None:
            expected = pc.data.load("digits", split="test", batch_size=1).inputs[10:20]
        else:
            expected = whole.inputs[rows]
        np.testing.assert_array_equal(part.inputs, expected)
        assert part.name == f"digits/{split}"


@pytest.mark.parametrize("split", ["validation", "train[1:2:3]", "train[]", "train[a:]"])
def test_a_split_that_is_none_is_refused(split):
    with pytest.raises(ValueError, match="expected split 'train' or 'test', or a part of one"):
        pc.data.load("digits", split=split)


def test_an_empty_part_is_refused():
    with pytest.raises(ValueError, match="'digits/train\\[5:5\\]' is empty: the split has 1437"):
        pc.data.load("digits", split="train[5:5]")


@pytest.mark.parametrize(
    ("split", "bound", "most"),
    [
        ("train[:1438]", "1438", "1437"),
        ("train[-1438:]", "-1438", "1437"),
        ("train[:110%]", "110%", "100%"),
        ("test[-361:]", "-361", "360"),
        ("test[9999:]", "9999", "360"),
    ],
)
def test_a_bound_beyond_the_split_is_refused(split, bound, most):
    """As TFDS refuses it: cut to the set in silence, a run would have fewer examples than it says."""
    text = f"leave the bound {bound} out, or give one of at most {most}"
    with pytest.raises(ValueError, match=re.escape(text)) as caught:
        pc.data.load("digits", split=split)
    assert f"'digits/{split}' reaches beyond the split, which has" in str(caught.value)


def test_the_bounds_themselves_are_in_the_split():
    for split in ("train[:1437]", "train[-1437:]", "train[0%:100%]", "train[:]"):
        assert pc.data.load("digits", split=split).num_examples == 1437
