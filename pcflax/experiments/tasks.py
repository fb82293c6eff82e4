"""Continual learning: tasks learned in a row, and the accuracy on each after each.

A[i, j] is the accuracy on task j after task i, in two readings: the largest of all outputs must be right, or
the task is told, and the largest of its classes' must be. A row of it is one of the Trainer's history, and so
in the checkpoints: a run that was interrupted knows by it which tasks are over, and where each began.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from pcflax.checks import expect_count
from pcflax.data import Dataset
from pcflax.training import Trainer, metrics

_READINGS = ("class_incremental", "task_incremental")
_DIGEST = "tasks/digest"


class AccuracyMatrix(NamedTuple):
    """Accuracies in one reading: what `pc.analysis.continual` takes.

    Attributes:
        matrix: A[i, j], of task j after task i.
        untrained: b[j], of task j before the first.
    """

    matrix: Float[np.ndarray, "tasks tasks"]
    untrained: Float[np.ndarray, " tasks"]


class TaskAccuracies(NamedTuple):
    """The accuracy on each task after each, in two readings.

    Attributes:
        class_incremental: the largest of all outputs counts.
        task_incremental: the largest among the classes of the example's task.
    """

    class_incremental: AccuracyMatrix
    task_incremental: AccuracyMatrix


def learn_tasks(
    trainer: Trainer,
    train: Sequence[Dataset],
    test: Sequence[Dataset],
    *,
    epochs: int | None = None,
    num_steps: int | None = None,
    eval_data: Sequence[Dataset] | None = None,
    eval_every: int | None = None,
    log_every: int = 50,
) -> TaskAccuracies:
    """Learn one task after the other, and measure all of them before the first and after each.

    Each is one `trainer.fit`, until the step at which the task began and as many more; a callback may stop it
    before. After `trainer.restore()` the same call goes on in the task at hand, and gives the matrix of the
    run never interrupted. Accuracies are in `trainer.history` as "tasks/class_incremental/0" and so on.

    Args:
        trainer: learns; the network keeps all its outputs.
        train: a data set for each task, as of `pc.data.scenarios`.
        test: what each task is measured on, with the task's `classes`.
        epochs: passes over each task; or
        num_steps: batches of each task.
        eval_data: for each task what its fit evaluates on, as `EarlyStopping` wants it.
        eval_every: as in `fit`.
        log_every: as in `fit`.

    Raises:
        ValueError: for no task, another number of test or evaluation sets, test data without labels, both or
            neither of epochs and num_steps, or a history with accuracies of other tasks.
        TypeError, ValueError, NonFiniteEnergyError: as `fit` and `evaluate`.

    >>> import optax, pcflax as pc
    >>> from flax import nnx
    >>> train = pc.data.scenarios.split(pc.data.load("digits"), tasks=[(0, 1), (2, 3)])
    >>> test = pc.data.scenarios.split(pc.data.load("digits", split="test"), tasks=[(0, 1), (2, 3)])
    >>> rule = pc.learning.PredictiveCoding(pc.inference.GradientDescent(0.1, num_steps=20))
    >>> network = pc.models.mlp(64, 32, 10, rngs=nnx.Rngs(0))
    >>> trainer = pc.Trainer(network, optax.sgd(0.1), learning=rule, progress=False)
    >>> found = learn_tasks(trainer, train, test, num_steps=40)
    >>> bool(found.class_incremental.matrix[1, 0] < 0.5 < found.task_incremental.matrix[1, 0])
    True
    >>> scores = pc.analysis.continual(*found.task_incremental)
    >>> scores.average_accuracy > 0.8 > scores.forgetting
    True
    """
    given = [len(sets) for sets in (train, test, eval_data) if sets is not None]
    if min(given) != max(given) or not train:
        raise ValueError(
            f"learn_tasks expected a training set for each task, and as many for tests and evaluations, got "
            f"{', '.join(map(str, given))}; give one each"
        )
    if (epochs is None) == (num_steps is None):
        raise ValueError("give either epochs or num_steps, of each task")
    name = "num_steps" if epochs is None else "epochs"
    count = expect_count("learn_tasks", name, num_steps if epochs is None else epochs, least=1)
    rows = _measured(trainer, train, test)
    if not rows:
        rows.append(_measure(trainer, train, test))
    for task, data in enumerate(train):
        is_over = len(rows) > task + 1
        if is_over:
            end = rows[task + 1]["step"]
        else:
            end = rows[task]["step"] + count * (1 if epochs is None else data.num_batches)
        measured = None if eval_data is None else eval_data[task]
        if trainer.step < end:
            trainer.fit(
                data,
                num_steps=end,
                eval_data=measured,
                eval_every=eval_every,
                log_every=log_every,
            )
        elif trainer.step == end:  # a restored run ended here, and goes on with the next task
            trainer.prepare(data, None, end, measured, eval_every, log_every, done_too=True)
        if not is_over:
            rows.append(_measure(trainer, train, test))
    table = np.array(
        [
            [[row[_name(reading, j)] for j in range(len(test))] for row in rows]
            for reading in _READINGS
        ]
    )
    return TaskAccuracies(*(AccuracyMatrix(own[1:], own[0]) for own in table))


def _name(reading: str, task: int) -> str:
    return f"tasks/{reading}/{task}"


def _digest(*sets: Sequence[Dataset]) -> int:
    """Return a number that tells tasks from others: of their names, sizes and order."""
    told = [[(data.name, data.num_examples) for data in own] for own in sets]
    return zlib.crc32(repr(told).encode())


def _measured(trainer: Trainer, *sets: Sequence[Dataset]) -> list[dict[str, Any]]:
    """Return the rows of the history that hold accuracies of tasks; refuse those of others."""
    rows = [row for row in trainer.history.rows if _DIGEST in row]
    if any(row[_DIGEST] != _digest(*sets) for row in rows):
        raise ValueError(
            "the Trainer's history has accuracies of other tasks; give the tasks of before, or a new Trainer"
        )
    return rows


def _measure(trainer: Trainer, train: Sequence[Dataset], test: Sequence[Dataset]) -> dict[str, Any]:
    """Measure all tasks, in a new row of the history."""
    found: dict[str, float] = {_DIGEST: _digest(train, test)}
    for task, data in enumerate(test):
        if not data.classes:
            raise ValueError(f"the test data '{data.name}' have no labels; give integer labels")
        both = (metrics.accuracy, metrics.AccuracyAmong(data.classes))
        measured = trainer.evaluate(data, metrics=dict(zip(_READINGS, both, strict=True)))
        found |= {_name(reading, task): measured[reading] for reading in _READINGS}
    trainer.history.append(trainer.step, found)
    return trainer.history.rows[-1]
