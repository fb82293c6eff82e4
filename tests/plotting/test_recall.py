"""The figure of a memory: the patterns given are those drawn, on one scale, gaps in a colour of their own."""

import io

import numpy as np
import pytest
from PIL import Image

from pcflax.plotting import recall_figure

STORED = np.random.default_rng(0).random((5, 12))
CUES = np.where(np.arange(12) < 7, STORED, np.nan)


def test_rows_are_cues_memories_and_what_was_stored():
    half = {"one": STORED * 0, "two": STORED + 0.1}
    figure = recall_figure(CUES, half, STORED, examples=2)
    drawn = [np.ma.filled(axis.images[0].get_array(), np.nan) for axis in figure.axes]
    for axis in figure.axes:
        assert axis.images[0].get_clim() == (STORED.min(), STORED.max())
    expected = [values[at] for values in (CUES, *half.values(), STORED) for at in (0, 4)]
    for picture, values in zip(drawn, expected, strict=True):
        np.testing.assert_array_equal(picture, values.reshape(1, 12))
    labels = [axis.get_ylabel() for axis in figure.axes[::2]]
    assert labels == ["cue", f"one\nMSE {np.mean(STORED**2):.1e}", "two\nMSE 1.0e-02", "stored"]


def test_it_is_drawn_without_warnings_and_squares_are_squares():
    square = np.random.default_rng(1).random((3, 16))
    figure = recall_figure(square, square, square, title="exact")
    assert figure.axes[0].images[0].get_array().shape == (4, 4)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=40)
    file.seek(0)
    with Image.open(file) as image:
        image.verify()
    wide = np.zeros((2, 3, 5))
    assert recall_figure(wide, wide, wide).axes[0].images[0].get_array().shape == (3, 5)


@pytest.mark.parametrize(
    ("cues", "recalled", "stored"),
    [
        (CUES[:, :3], STORED, STORED),
        (CUES, STORED[:2], STORED),
        (CUES[0], STORED[0], STORED[0]),
        (CUES[:0], STORED[:0], STORED[:0]),
    ],
)
def test_other_shapes_are_refused(cues, recalled, stored):
    with pytest.raises(ValueError, match="expected cues, recalled and stored of one shape"):
        recall_figure(cues, recalled, stored)


def test_no_columns_are_refused():
    with pytest.raises(ValueError, match="expected examples >= 1, got 0"):
        recall_figure(CUES, STORED, STORED, examples=0)
