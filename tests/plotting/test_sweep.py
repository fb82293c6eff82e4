"""The figure of a sweep: where each trial's dot is. Oracle: the numbers that were given."""

import numpy as np
import pytest

from pcflax.plotting import sweep_figure

SETTINGS = {
    "rate": [0.1, 0.001, 0.01],
    "activation": ["tanh", "relu", "tanh"],
    "steps": [4, 8, 6],
    "nesterov": [True, False, True],
}
VALUES = [0.8, float("nan"), 0.9]


@pytest.fixture(scope="module")
def axes():
    return sweep_figure(SETTINGS, VALUES, best=2, log=["rate"], label="accuracy").axes


def dots(axis):
    return np.asarray(axis.collections[0].get_offsets())


def test_a_dot_a_trial_at_its_setting_and_value(axes):
    np.testing.assert_allclose(dots(axes[0])[:, 0], SETTINGS["rate"])
    np.testing.assert_allclose(dots(axes[0])[[0, 2], 1], [0.8, 0.9])
    np.testing.assert_allclose(dots(axes[2])[:, 0], SETTINGS["steps"])
    np.testing.assert_allclose(np.asarray(axes[0].collections[1].get_offsets()), [[0.01, 0.9]])
    assert [axis.get_xscale() for axis in axes[:3]] == ["log", "linear", "linear"]
    assert axes[0].get_ylabel() == "accuracy"


def test_words_stand_side_by_side_with_their_names(axes):
    assert [text.get_text() for text in axes[1].get_xticklabels()] == ["relu", "tanh"]
    np.testing.assert_allclose(dots(axes[1])[:, 0], [1, 0, 1])
    assert [text.get_text() for text in axes[3].get_xticklabels()] == ["False", "True"]


@pytest.mark.parametrize("dtype", [np.int64, np.float32])
def test_numbers_of_numpy_are_numbers(dtype):
    """As words they stood side by side, 10 before 2."""
    steps = np.array([2, 10, 4], dtype)
    panel = sweep_figure({"steps": steps, "nesterov": steps > 3}, VALUES, log=["steps"]).axes
    np.testing.assert_allclose(dots(panel[0])[:, 0], steps)
    assert [text.get_text() for text in panel[1].get_xticklabels()] == ["False", "True"]


def test_a_panel_that_is_left_over_is_not_shown(axes):
    assert [axis.get_visible() for axis in axes] == [True] * 4 + [False] * 2


def test_refusals():
    with pytest.raises(ValueError, match="sweep_figure expected at least one option, got none"):
        sweep_figure({}, [])
    with pytest.raises(ValueError, match="expected 2 settings of 'rate', one a value, got 1"):
        sweep_figure({"rate": [1.0]}, [1.0, 2.0])
