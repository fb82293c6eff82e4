"""The figure of gradient alignment: the cosines given are the cosines drawn, each at its own layer."""

import io

import matplotlib.pyplot
import numpy as np
import pytest
from PIL import Image

from pcflax.plotting import alignment_figure

STEPS = [0, 10, 40]
ALIGNMENT = {
    "hidden": (STEPS, [0.2, 0.5, 0.9]),
    "output": (STEPS, [1.0, 0.99, 0.98]),
    "total": (STEPS, [0.6, 0.7, 0.95]),
}


def curves(axis):
    return {line.get_label(): (line.get_xdata(), line.get_ydata()) for line in axis.lines}


def legend(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def labels(ticks):
    return [text.get_text() for text in ticks]


def draw(figure):
    """Matplotlib warns when it draws, and warnings are errors here."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=40)
    file.seek(0)
    with Image.open(file) as image:
        image.verify()
        assert image.format == "PNG"


def test_curves_are_those_given():
    drawn = curves(alignment_figure(ALIGNMENT).axes[0])
    assert list(drawn) == ["hidden", "output", "total"]
    for name, (steps, values) in ALIGNMENT.items():
        np.testing.assert_array_equal(drawn[name][0], steps)
        np.testing.assert_array_equal(drawn[name][1], values)


def test_total_is_black_and_dashed_wherever_it_stands():
    first = {"total": ALIGNMENT["total"], **ALIGNMENT}
    for alignment in (ALIGNMENT, first):
        lines = {line.get_label(): line for line in alignment_figure(alignment).axes[0].lines}
        assert lines["total"].get_color() == "black"
        assert lines["total"].get_linestyle() == "--"
        assert lines["hidden"].get_linestyle() == lines["output"].get_linestyle() == "-"


def test_words():
    figure = alignment_figure(ALIGNMENT, title="digits")
    lines, heat_map, bar = figure.axes
    assert figure.get_suptitle() == "digits"
    assert lines.get_xlabel() == heat_map.get_xlabel() == "training step"
    assert lines.get_ylabel() == "cosine with backpropagation's gradient"
    assert bar.get_ylabel() == "cosine"
    assert legend(lines) == ["hidden", "output", "total"]


def test_without_a_total_none_is_drawn():
    alignment = {name: ALIGNMENT[name] for name in ("hidden", "output")}
    assert list(curves(alignment_figure(alignment).axes[0])) == ["hidden", "output"]


@pytest.mark.parametrize(("lowest", "bottom"), [(0.4, 0.0), (-0.3, -0.3)])
def test_the_axis_shows_zero_and_one(lowest, bottom):
    """Cut off above zero, an alignment that is merely poor would look like none."""
    figure = alignment_figure({"a": ([0, 1], [lowest, 0.9])})
    assert figure.axes[0].get_ylim() == (bottom, 1.02)


class TestHeatMap:
    def test_rows_are_layers_and_columns_are_measurements(self):
        _, axis, _ = alignment_figure(ALIGNMENT).axes
        (image,) = axis.images
        np.testing.assert_array_equal(image.get_array(), [[0.2, 0.5, 0.9], [1.0, 0.99, 0.98]])
        assert image.get_clim() == (-1, 1)
        assert image.get_cmap().name == "RdBu_r"
        assert labels(axis.get_yticklabels()) == ["hidden", "output"]
        assert labels(axis.get_xticklabels()) == ["0", "10", "40"]
        # upwards: the layer nearest the input stands at the bottom
        assert image.origin == "lower"
        low, high = axis.get_ylim()
        assert low < high

    def test_it_needs_two_layers(self):
        """The total is no layer."""
        one = {name: ALIGNMENT[name] for name in ("hidden", "total")}
        assert [len(axis.images) for axis in alignment_figure(one).axes] == [0]
        assert len(alignment_figure({"total": ALIGNMENT["total"]}).axes) == 1

    def test_a_layer_that_was_not_measured_is_grey_there(self):
        figure = alignment_figure({"a": ([0, 5], [0.1, 0.2]), "b": ([5, 2], [0.4, 0.3])})
        _, axis, _ = figure.axes
        drawn = np.ma.filled(axis.images[0].get_array(), np.nan)
        np.testing.assert_array_equal(drawn, [[0.1, np.nan, 0.2], [np.nan, 0.3, 0.4]])
        assert labels(axis.get_xticklabels()) == ["0", "2", "5"]
        np.testing.assert_allclose(axis.images[0].get_cmap().get_bad(), (0.8, 0.8, 0.8, 1.0))
        draw(figure)

    @pytest.mark.parametrize("count", [12, 64])
    def test_ticks_stand_at_their_layers_and_steps(self, count):
        steps = list(range(0, 700, 7))
        alignment = {f"layer_{i}": (steps, np.full(100, 0.5)) for i in range(count)}
        axis = alignment_figure(alignment).axes[1]
        for tick, label in zip(axis.get_yticks(), labels(axis.get_yticklabels()), strict=True):
            assert label == f"layer_{tick}"
        for tick, label in zip(axis.get_xticks(), labels(axis.get_xticklabels()), strict=True):
            assert label == str(steps[tick])
        assert len(axis.get_yticks()) <= 10
        assert len(axis.get_xticks()) <= 6


@pytest.mark.parametrize("count", [10, 11, 64])
def test_many_layers_have_a_color_bar_and_not_a_legend_of_all(count):
    random = np.random.default_rng(0)
    alignment = {f"layer_{i}": (STEPS, random.uniform(-1, 1, 3)) for i in range(count)}
    alignment["total"] = (STEPS, [0.1, 0.2, 0.3])
    figure = alignment_figure(alignment)
    assert len(figure.axes) == (3 if count == 10 else 4)
    assert legend(figure.axes[0]) == (list(alignment) if count == 10 else ["total"])
    del alignment["total"]
    untold = alignment_figure(alignment)
    assert (untold.axes[0].get_legend() is None) == (count > 10)
    for each in (figure, untold):
        draw(each)


@pytest.mark.parametrize("steps", [[0], [5000]])
def test_one_measurement_is_a_marker_at_its_step(steps):
    figure = alignment_figure({"a": (steps, [0.3]), "b": (steps, [-0.4]), "total": (steps, [0.1])})
    draw(figure)
    lines = figure.axes[0]
    assert {line.get_marker() for line in lines.lines} == {"."}
    low, high = lines.get_xlim()
    assert [tick for tick in lines.get_xticks() if low <= tick <= high] == steps


def test_a_gradient_of_zero_length_has_no_cosine():
    """0/0: a gap in the line, grey in the heat map, and no warning."""
    nothing = (STEPS, [np.nan] * 3)
    draw(alignment_figure({"a": nothing}))
    figure = alignment_figure({"a": nothing, "b": (STEPS, [np.nan, -0.2, 0.4])})
    assert figure.axes[0].get_ylim() == (-0.2, 1.02)
    draw(figure)


def test_figures_do_not_stay_in_pyplot():
    before = matplotlib.pyplot.get_fignums()
    alignment_figure(ALIGNMENT)
    assert matplotlib.pyplot.get_fignums() == before


def test_no_layers():
    with pytest.raises(
        ValueError, match=r"^expected the alignment of at least one layer, got none$"
    ):
        alignment_figure({})


@pytest.mark.parametrize(
    ("curve", "shapes"),
    [
        (([], []), r"\(0,\) and \(0,\)"),
        (([0, 1, 2], [0.1, 0.2]), r"\(3,\) and \(2,\)"),
        (([[0, 1]], [[0.1, 0.2]]), r"\(1, 2\) and \(1, 2\)"),
    ],
)
def test_a_curve_that_is_none(curve, shapes):
    with pytest.raises(
        ValueError,
        match=r"^expected the curve of layer 'a' to be \(steps, values\) of one length, at least 1, "
        rf"got shapes {shapes}$",
    ):
        alignment_figure({"b": ([0], [1.0]), "a": curve})


@pytest.mark.parametrize("value", [1.1, -3.0])
def test_what_is_no_cosine(value):
    """An inner product that nobody divided by the norms would leave the axis unseen."""
    with pytest.raises(
        ValueError,
        match=rf"^expected cosines from -1 to 1, got {value:g} for layer 'a'; divide the inner "
        r"product by both norms$",
    ):
        alignment_figure({"a": ([0, 1], [np.nan, value])})


def test_a_cosine_may_be_rounded_beyond_one():
    draw(alignment_figure({"a": ([0, 1], [1.0000001, -1.01])}))
