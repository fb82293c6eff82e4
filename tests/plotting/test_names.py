"""Names, styles and legends of every figure. Oracle: what matplotlib draws, and where."""

import io

import matplotlib
import numpy as np
import pytest

from pcflax import plotting
from pcflax.plotting.lines import line_style

STEPS = np.arange(0, 100, 10)
CURVE = STEPS, np.linspace(0.1, 0.9, 10)
BAND = *CURVE, CURVE[1] - 0.1, CURVE[1] + 0.1
NAMES = ("_run", r"$\x{$", "a$b$c")


def training(names):
    curves = dict.fromkeys(names, CURVE)
    inference = dict.fromkeys(names, np.ones(5))
    return plotting.training_figure(
        accuracy=curves, energy=curves, inference=inference, weights=None
    )


FIGURES = {
    "training": training,
    "bands": lambda names: plotting.band_figure(dict.fromkeys(names, BAND)),
    "inference": lambda names: plotting.inference_figure(
        energies=dict.fromkeys(names, np.ones(5)), residual=np.ones(5)
    ),
    "alignment": lambda names: plotting.alignment_figure(dict.fromkeys(names, CURVE)),
}


def draw(figure):
    figure.savefig(io.BytesIO(), format="png", dpi=50)
    return figure


@pytest.mark.parametrize("kind", FIGURES)
def test_names_are_shown_as_they_are(kind):
    """A dollar began a formula, which ended the figure, and an underscore left a line out of the legend."""
    for axis in draw(FIGURES[kind](NAMES)).axes:
        if axis.get_legend() is None:
            continue
        texts = axis.get_legend().get_texts()
        # what is drawn: without a formula matplotlib takes the backslash before a dollar away
        shown = [text._preprocess_math(text.get_text()) for text in texts[: len(NAMES)]]
        assert [(one.strip(), formula) for one, formula in shown] == [(n, False) for n in NAMES]


@pytest.mark.parametrize("kind", FIGURES)
@pytest.mark.parametrize("count", [2, 9])
def test_no_legend_stands_over_data(kind, count):
    figure = draw(FIGURES[kind]([f"a long name of line {number}" for number in range(count)]))
    legends = [axis for axis in figure.axes if axis.get_legend() is not None]
    assert legends
    for axis in legends:
        box = axis.get_legend().get_window_extent()
        assert not box.overlaps(axis.get_window_extent().padded(-2))
        assert box.x1 <= figure.bbox.x1


def test_other_words_for_names_are_drawn_too():
    draw(plotting.sweep_figure({n: ["$\\x$", "_y"] for n in NAMES}, [1.0, 2.0], best=1))
    draw(plotting.trajectory_figure(dict.fromkeys(NAMES, np.ones((3, 2)))))
    pictures = np.ones((2, 4))
    draw(plotting.recall_figure(pictures, dict.fromkeys(NAMES, pictures), pictures))


def test_many_lines_are_told_apart():
    """The eleventh had the color of the first."""
    figure = plotting.band_figure({str(number): BAND for number in range(28)})
    styles = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(styles) == 28
    assert len({line_style(number)["color"] for number in range(7)}) == 7


@pytest.mark.parametrize("energies", [[1.0, -3.0], [-1.0, -3.0], [0.0, 0.0]])
def test_energies_that_have_no_logarithm_are_drawn(energies):
    """Those below zero had no place on the scale, and were left out without a word."""
    figure = plotting.training_figure(
        accuracy={}, energy={"eval": ([1, 2], energies)}, inference={}, weights=None
    )
    axis = draw(figure).axes[1]
    assert axis.get_yscale() == "linear"
    low, high = axis.get_ylim()
    assert all(low < energy < high for energy in energies)


def test_lines_are_seen_on_a_dark_background():
    with matplotlib.rc_context({"text.color": "white", "axes.facecolor": "black"}):
        figure = FIGURES["inference"](["a", "b"])
    assert figure.axes[0].lines[-1].get_color() == figure.axes[1].lines[0].get_color() == "white"


def test_a_best_that_is_no_trial_is_refused():
    with pytest.raises(ValueError, match="expected best of 0 to 1, a place, got 7"):
        plotting.sweep_figure({"a": [1, 2]}, [1.0, 2.0], best=7)
