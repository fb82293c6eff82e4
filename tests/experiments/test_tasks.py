"""Tasks learned in a row. Oracles: a loop by hand with NumPy's accuracies, and the run never interrupted."""

import shutil

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from tests.conftest import parameters_of

DRAW = np.random.RandomState(0)
LABELS = np.tile(np.arange(6), 6)
ROWS = (np.eye(6)[LABELS] + 0.3 * DRAW.randn(36, 6)).astype(np.float32)
TASKS = [(0, 1), (2, 5), (3, 4)]
RULE = pc.learning.PredictiveCoding(pc.inference.GradientDescent(0.1, num_steps=3))


def split(rows=slice(None)):
    return pc.data.scenarios.split(
        pc.data.from_arrays(ROWS[rows], LABELS[rows], batch_size=4), TASKS
    )


TRAIN, TEST = split(), split(slice(12))  # three batches an epoch


def make(folder=None, seed=0, **options):
    network = pc.models.mlp(6, 5, 6, activation=jnp.tanh, rngs=nnx.Rngs(seed))
    checkpoints = folder and pc.Checkpoints(folder, every=1, keep_latest=99)
    return pc.Trainer(
        network,
        optax.sgd(0.3),
        learning=RULE,
        checkpoints=checkpoints,
        progress=False,
        **options,
    )


def by_hand(trainer):
    """Both accuracies on each task."""
    answers, found = np.asarray(trainer.predict(ROWS[:12])), []
    for classes in TASKS:
        own = np.isin(LABELS[:12], classes)
        rows, right = answers[own], LABELS[:12][own]
        among = np.array(classes)[rows[:, list(classes)].argmax(1)]
        found.append([np.mean(rows.argmax(1) == right), np.mean(among == right)])
    return np.array(found).T


def test_the_matrix_is_that_of_a_loop_by_hand():
    trainer = make()
    rows = [by_hand(trainer)]
    for task, data in enumerate(TRAIN):
        trainer.fit(data, num_steps=6 * (task + 1))
        rows.append(by_hand(trainer))
    expected = np.stack(rows, axis=1)
    for options in ({"epochs": 2}, {"num_steps": 6}):
        learner = make()
        found = pc.experiments.learn_tasks(learner, TRAIN, TEST, **options)
        for reading, table in zip(found, expected, strict=True):
            np.testing.assert_allclose(reading.untrained, table[0])
            np.testing.assert_allclose(reading.matrix, table[1:])
        for one, other in zip(
            parameters_of(learner.network), parameters_of(trainer.network), strict=True
        ):
            np.testing.assert_array_equal(one, other)
    assert not np.array_equal(*expected)  # or the readings could be exchanged
    assert learner.history.steps("tasks/task_incremental/2") == [0, 6, 12, 18]
    assert learner.history["tasks/class_incremental/0"] == expected[0, :, 0].tolist()


def test_killed_after_any_step_it_ends_as_the_run_never_interrupted(tmp_path):
    """Also between two tasks, where nothing is to warn that the data have changed."""
    steps = {"num_steps": 2, "eval_data": TEST, "log_every": 1}
    whole = make(tmp_path / "whole")
    expected = pc.experiments.learn_tasks(whole, TRAIN, TEST, **steps)
    for step in (1, 2, 5, 6):
        shutil.copytree(tmp_path / "whole", folder := tmp_path / str(step))
        resumed = make(folder, seed=9)
        resumed.restore(step)
        found = pc.experiments.learn_tasks(resumed, TRAIN, TEST, **steps)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one.matrix, other.matrix)
            np.testing.assert_array_equal(one.untrained, other.untrained)
        assert resumed.history.rows == whole.history.rows
        for one, other in zip(
            parameters_of(resumed.network), parameters_of(whole.network), strict=True
        ):
            np.testing.assert_array_equal(one, other)
    again = pc.experiments.learn_tasks(whole, TRAIN, TEST, **steps)
    np.testing.assert_array_equal(again[0].matrix, expected[0].matrix)
    assert whole.step == 6


def test_a_task_that_was_stopped_is_over_and_the_next_begins_there(tmp_path):
    class Stop(pc.Callback):
        def on_evaluate(self, trainer, step, metrics):
            if step == 3:
                trainer.stop()

    options = {"num_steps": 5, "eval_data": TEST, "eval_every": 1}
    trainer = make(tmp_path, callbacks=[Stop()])
    found = pc.experiments.learn_tasks(trainer, TRAIN, TEST, **options)
    assert trainer.history.steps("tasks/class_incremental/0") == [0, 3, 8, 13]
    resumed = make(tmp_path, callbacks=[Stop()])
    resumed.restore(4)  # in the second, where the first could have gone on to 5
    again = pc.experiments.learn_tasks(resumed, TRAIN, TEST, **options)
    np.testing.assert_array_equal(again.class_incremental.matrix, found.class_incremental.matrix)
    assert resumed.step == 13


def test_tasks_that_are_over_are_given_back_without_a_warning():
    options = {"num_steps": 2, "eval_data": TEST, "eval_every": 1}
    trainer = make()
    found = pc.experiments.learn_tasks(trainer, TRAIN, TEST, **options)
    again = pc.experiments.learn_tasks(trainer, TRAIN, TEST, **options)
    np.testing.assert_array_equal(again.class_incremental.matrix, found.class_incremental.matrix)


def test_with_all_classes_in_each_task_both_readings_are_one():
    tasks = pc.data.scenarios.permuted(pc.data.from_arrays(ROWS, LABELS, batch_size=4), 2)
    trainer = make()
    found = pc.experiments.learn_tasks(trainer, tasks, tasks, num_steps=2)
    np.testing.assert_array_equal(*[reading.matrix for reading in found])
    scores = pc.analysis.continual(*found.class_incremental)
    matrix, untrained = found.class_incremental
    assert scores.forward_transfer == matrix[0, 1] - untrained[1]
    for others in ((TRAIN, TEST), (tasks[::-1], tasks), (tasks, tasks[::-1])):
        with pytest.raises(ValueError, match="accuracies of other tasks; give the tasks of before"):
            pc.experiments.learn_tasks(trainer, *others, num_steps=2)


@pytest.mark.parametrize(
    ("train", "test", "options", "message"),
    [
        (TRAIN, TEST[:2], {"epochs": 1}, "for each task, and as many .* got 3, 2; give one each"),
        ((), (), {"epochs": 1}, "got 0, 0; give one each"),
        (TRAIN, TEST, {"epochs": 1, "eval_data": TEST[:1]}, "got 3, 3, 1; give one each"),
        (TRAIN, TEST, {}, "give either epochs or num_steps, of each task"),
        (TRAIN, TEST, {"epochs": 1, "num_steps": 1}, "give either epochs or num_steps"),
        (TRAIN, TEST, {"epochs": 0}, "learn_tasks expected epochs of at least 1, got 0"),
    ],
)
def test_what_does_not_fit_together_is_refused(train, test, options, message):
    with pytest.raises(ValueError, match=message):
        pc.experiments.learn_tasks(make(), train, test, **options)


def test_test_data_without_labels_are_refused():
    data = pc.data.from_arrays(ROWS, np.eye(6)[LABELS], batch_size=4)
    with pytest.raises(ValueError, match="the test data 'arrays' have no labels; give integer"):
        pc.experiments.learn_tasks(make(), [data], [data], epochs=1)
