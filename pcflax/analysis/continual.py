"""Continual learning: what a network that learns tasks in a row keeps, from its accuracies on each."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike


class Continual(NamedTuple):
    """What was kept and what was passed on; all in the unit of the accuracies, T tasks, A[i, j] from 0.

    Attributes:
        average_accuracy: mean over j of A[T-1, j], at the end.
        learned_accuracy: mean over j of A[j, j], right after each task.
        forgetting: mean over j < T-1 of max over i >= j of A[i, j], minus A[T-1, j]; smaller is better.
        backward_transfer: mean over j < T-1 of A[T-1, j] - A[j, j]; below zero where tasks are forgotten.
        forward_transfer: mean over j > 0 of A[j-1, j] - b[j], what a task has from those before it; None
            without b.
    """

    average_accuracy: float
    learned_accuracy: float
    forgetting: float
    backward_transfer: float
    forward_transfer: float | None


def continual(
    accuracies: Float[ArrayLike, " tasks tasks"],
    untrained: Float[ArrayLike, " tasks"] | None = None,
) -> Continual:
    """Summarize the accuracies of a network that learns tasks one after the other.

    Args:
        accuracies: A[i, j], of task j after task i was learned; above the diagonal only what stands next to
            it is looked at, and only with `untrained`.
        untrained: b[j], of task j before anything was learned.

    Raises:
        ValueError: for fewer than two tasks, a matrix that is not square and finite, or `untrained` of
            another length.

    Source: Lopez-Paz & Ranzato (2017), NeurIPS 30, for the average accuracy and both transfers; Chaudhry et
    al. (2018), ECCV, for forgetting, of which the form here is that of FabricPC's protocol: the best counts
    from task j on, the end included, so that it is never below zero.

    >>> found = continual([[1.0, 0.25], [0.5, 1.0]], untrained=[0.5, 0.5])
    >>> found.average_accuracy, found.forgetting, found.backward_transfer, found.forward_transfer
    (0.75, 0.5, -0.5, -0.25)
    """
    matrix = np.asarray(accuracies, np.float64)
    tasks = len(matrix) if matrix.ndim else 0
    if matrix.shape != (tasks, tasks) or tasks < 2:
        raise ValueError(
            f"continual expected accuracies of shape (tasks, tasks), of two tasks or more, got "
            f"{matrix.shape}; give A[i, j] of task j after task i"
        )
    if not np.isfinite(np.where(np.tri(tasks), matrix, 0)).all():
        raise ValueError(
            "continual expected finite accuracies; measure every task so far after each"
        )
    best = np.where(np.tri(tasks), matrix, -np.inf).max(0)
    last, diagonal = matrix[-1], np.diagonal(matrix)
    forward = None
    if untrained is not None:
        before = np.asarray(untrained, np.float64)
        if before.shape != (tasks,):
            raise ValueError(
                f"continual expected {tasks} untrained accuracies, one a task, got shape {before.shape}"
            )
        if not np.isfinite([np.diagonal(matrix, 1), before[1:]]).all():
            raise ValueError(
                "continual expected finite accuracies; with `untrained`, measure the next task after each, "
                "and all but the first before"
            )
        forward = float(np.mean(np.diagonal(matrix, 1) - before[1:]))
    return Continual(
        average_accuracy=float(last.mean()),
        learned_accuracy=float(diagonal.mean()),
        forgetting=float(np.mean((best - last)[:-1])),
        backward_transfer=float(np.mean(last[:-1] - diagonal[:-1])),
        forward_transfer=forward,
    )
