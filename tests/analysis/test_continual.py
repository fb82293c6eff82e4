"""Scores of continual learning. Oracle: the formulas on a matrix of three tasks, worked out by hand."""

import numpy as np
import pytest

import pcflax as pc

MATRIX = [
    [0.9, 0.2, 0.1],
    [0.6, 0.8, 0.3],
    [0.7, 0.5, 1.0],
]


class TestContinual:
    def test_three_tasks_by_hand(self):
        found = pc.analysis.continual(MATRIX, [0.1, 0.1, 0.2])
        assert found.average_accuracy == pytest.approx((0.7 + 0.5 + 1.0) / 3)
        assert found.learned_accuracy == pytest.approx((0.9 + 0.8 + 1.0) / 3)
        assert found.forgetting == pytest.approx(((0.9 - 0.7) + (0.8 - 0.5)) / 2)
        assert found.backward_transfer == pytest.approx(((0.7 - 0.9) + (0.5 - 0.8)) / 2)
        assert found.forward_transfer == pytest.approx(((0.2 - 0.1) + (0.3 - 0.2)) / 2)

    def test_forgetting_is_from_the_best_and_transfer_from_the_first(self):
        """A task that gets better after it was learned, and then worse; one that was best untaught."""
        found = pc.analysis.continual([[0.5, 0.9, 0], [0.9, 0.5, 0], [0.6, 0.5, 0.5]])
        assert found.forgetting == pytest.approx(0.3 / 2)
        assert found.backward_transfer == pytest.approx(0.1 / 2)
        assert found.forward_transfer is None

    @pytest.mark.parametrize(
        ("matrix", "untrained", "message"),
        [
            ([[1.0]], None, r"two tasks or more, got \(1, 1\)"),
            (np.ones((2, 3)), None, r"got \(2, 3\)"),
            (0.5, None, r"got \(\)"),
            ([[1.0, 0.0], [np.nan, 1.0]], None, "expected finite accuracies; measure every task"),
            ([[1.0, np.nan], [1.0, 1.0]], [0.1, 0.1], "measure the next task after each"),
            ([[1.0, 1.0], [1.0, 1.0]], [0.1, np.nan], "and all but the first before"),
            (MATRIX, [0.1, 0.1], r"expected 3 untrained accuracies.*\(2,\)"),
        ],
    )
    def test_other_matrices_are_refused(self, matrix, untrained, message):
        with pytest.raises(ValueError, match=message):
            pc.analysis.continual(matrix, untrained)
