"""The history: rows in, columns out."""

import pytest

from pcflax import History

ROWS = [
    {"step": 10, "train/loss": 2.0},
    {"step": 10, "eval/accuracy": 0.5, "eval/energy": 1.5},
    {"step": 20, "train/loss": 1.0},
    {"step": 20, "eval/accuracy": 0.75},
]


def test_a_metric_is_a_column_with_its_own_steps():
    """A curve against the wrong steps would shift a figure without anybody seeing it."""
    history = History(ROWS)
    assert history["train/loss"] == [2.0, 1.0]
    assert history["eval/energy"] == [1.5]
    assert history.steps("eval/energy") == [10]
    assert history.steps("eval/accuracy") == [10, 20]


def test_names_are_in_order_of_appearance_without_the_step():
    assert History(ROWS).names() == ["train/loss", "eval/accuracy", "eval/energy"]
    assert History().names() == []


def test_a_history_is_asked_for_a_metric_as_a_dictionary_is():
    assert "train/loss" in History(ROWS)
    assert "step" not in History(ROWS)
    assert "train/los" not in History(ROWS)
    assert list(History(ROWS)) == History(ROWS).names()


def test_last_is_the_newest_value_of_each_metric():
    assert History(ROWS).last() == {"train/loss": 1.0, "eval/accuracy": 0.75, "eval/energy": 1.5}
    assert History().last() == {}


def test_last_knows_of_rows_that_were_dropped():
    history = History(ROWS)
    history.last()
    del history.rows[2:]
    assert history.last() == {"train/loss": 2.0, "eval/accuracy": 0.5, "eval/energy": 1.5}
    del history.rows[1:]
    assert history.last() == {"train/loss": 2.0}
    history.append(11, {"train/loss": 0.5})
    assert history.last() == {"train/loss": 0.5}


def test_append_adds_a_row_with_its_step():
    history = History(ROWS)
    history.append(30, {"eval/accuracy": 1.0})
    assert history.rows == [*ROWS, {"step": 30, "eval/accuracy": 1.0}]


def test_a_history_does_not_change_the_rows_it_was_made_of():
    rows = list(ROWS)
    History(rows).append(30, {"eval/accuracy": 1.0})
    assert rows == ROWS


def test_an_unknown_metric_is_refused_with_those_there_are():
    text = "no metric 'eval/f1' was measured; measured are: train/loss, eval/accuracy, eval/energy"
    with pytest.raises(KeyError, match=text):
        History(ROWS)["eval/f1"]
    with pytest.raises(KeyError, match="measured are: none yet"):
        History()["eval/f1"]
    assert History().steps("eval/f1") == []


def test_its_representation_is_short():
    assert repr(History(ROWS)) == "History(4 rows: train/loss, eval/accuracy, eval/energy)"
    assert repr(History()) == "History(0 rows: empty)"
