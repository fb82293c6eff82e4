"""Rows of training: those of steps within a compiled call are those of calls that end at each row."""

import jax
import numpy as np
import optax
import pytest

import pcflax as pc
from pcflax.training import fitting
from tests.conftest import digits_trainer, parameters_of

STEPS = 47


class Lines(pc.Callback):
    """What is told to a callback that looks at no state, as pcflax's own loggers."""

    def __init__(self, fails_at=()):
        self.told, self.fails_at = [], list(fails_at)

    def on_log(self, trainer, step, metrics):
        if step in self.fails_at:
            self.fails_at.remove(step)
            raise OSError("the disk is full")
        self.told.append((step, metrics))


Lines.__module__ = "pcflax.training.loggers.lines"


class Reader(pc.Callback):
    """A user's own, which may read the state of each row."""

    def __init__(self):
        self.steps = []

    def on_log(self, trainer, step, metrics):
        self.steps.append((step, trainer.step))


@pytest.fixture
def calls(monkeypatch):
    """The number of batches of each compiled call."""
    found, real = [], fitting.learn_batches

    def counted(state, constants, items, count, *rest, **options):
        found.append(int(count))
        return real(state, constants, items, count, *rest, **options)

    monkeypatch.setattr(fitting, "learn_batches", counted)
    return found


def fit(trainer, steps=STEPS):
    trainer.fit(pc.data.load("digits", batch_size=32), num_steps=steps, log_every=5)
    return trainer


def test_rows_within_a_call_are_those_of_calls_that_end_at_them(calls):
    reader, lines = Reader(), Lines()
    apart = fit(digits_trainer(callbacks=[reader]))
    ends, calls[:] = list(calls), []
    within = fit(digits_trainer(callbacks=[lines]))
    assert ends == [5] * 9 + [2]
    assert calls[:2] == [8, 8]  # then as many as its pace says
    assert sum(calls) == STEPS
    assert reader.steps == [(step, step) for step in (*range(5, STEPS, 5), STEPS)]
    assert within.history.rows == apart.history.rows
    assert [{"step": step, **row} for step, row in lines.told] == within.history.rows


def test_a_measurement_at_rows_is_made_of_the_state_at_each(calls):
    class Measures:
        def on_measure(self, trainer, step):
            return {"norm": float(np.sum(trainer.network.layers[0].linear.kernel[...] ** 2))}

    found = fit(digits_trainer(callbacks=[Measures()]), 10).history
    assert calls == [5, 5]
    once = fit(digits_trainer(), 5).network.layers[0].linear.kernel[...]
    np.testing.assert_allclose(found["norm"][0], np.sum(np.square(once)), rtol=1e-6)


def test_rows_before_a_step_that_is_not_finite_are_kept_and_told():
    inputs = np.random.default_rng(0).normal(size=(64 * 20, 64)).astype(np.float32)
    data = pc.data.from_arrays(inputs, np.arange(64 * 20) % 10, batch_size=64, shuffle=False)
    data.inputs[64 * 17] = np.nan  # unseen by from_arrays
    lines = Lines()
    trainer = digits_trainer(callbacks=[lines])
    with pytest.raises(pc.NonFiniteEnergyError, match="not finite at step 18"):
        trainer.fit(data, num_steps=20, log_every=4)
    assert trainer.step == 17
    told = [step for step, _ in lines.told]
    assert told == trainer.history.steps("train/energy") == [4, 8, 12, 16]


def test_a_logger_that_fails_within_a_call_is_told_the_rest_in_the_next_fit():
    lines = Lines(fails_at=[20])
    trainer = digits_trainer(callbacks=[lines])
    with pytest.raises(OSError, match="full"):
        fit(trainer)
    assert trainer.step == STEPS
    fit(trainer)
    assert trainer.history.rows == fit(digits_trainer()).history.rows
    # the row at which it failed is in the history
    assert [step for step, _ in lines.told] == [5, 10, 15, 25, 30, 35, 40, 45, STEPS]


@pytest.mark.parametrize("own", [False, True], ids=["within a call", "at its end"])
@pytest.mark.parametrize("fails_at", [1, 2, 10])
def test_a_metrics_function_that_raises_loses_no_row(own, fails_at):
    """The logarithm of a mean that is zero, say: the next fit makes the row, and those after it."""
    calls = []

    def function(mean):
        calls.append(mean)
        if len(calls) == fails_at:
            raise ValueError("math domain error")
        return 2 * mean

    twice = pc.metrics.OfMean(function, pc.metrics.squared_error)
    options = {"callbacks": [Reader()] if own else []}
    trainer = digits_trainer(metrics={"twice": twice}, **options)
    with pytest.raises(ValueError, match="math domain error"):
        fit(trainer)
    fit(trainer)
    whole = digits_trainer(metrics={"twice": pc.metrics.squared_error})
    expected = [
        {name: 2 * value if name == "train/twice" else value for name, value in row.items()}
        for row in fit(whole).history.rows
    ]
    assert trainer.history.rows == expected
    assert trainer.step == STEPS


def test_a_restore_forgets_rows_that_were_not_told(tmp_path):
    lines = Lines(fails_at=[20])
    trainer = digits_trainer(tmp_path, keep={"every": 15}, callbacks=[lines])
    with pytest.raises(OSError, match="full"):
        fit(trainer)  # within the call that ends at 30
    assert trainer.restore() == 15
    fit(trainer)
    assert trainer.history.rows == fit(digits_trainer()).history.rows
    assert [step for step, _ in lines.told] == [5, 10, 15, *range(20, STEPS, 5), STEPS]


class Scaled(pc.learning.AbstractGradientLearning):
    """A rule of a plain class, that is no frozen dataclass: what it holds may be changed."""

    def __init__(self):
        self.factor = np.float32(1.0)

    def gradients(self, network, evidence, *, key, step=0):
        found, info = pc.learning.Backprop().gradients(network, evidence, key=key, step=step)
        return jax.tree.map(lambda leaf: self.factor * leaf, found), info


def test_what_a_callback_changes_in_a_rule_is_learned_by():
    rule = Scaled()

    class Stops:
        def on_log(self, trainer, step, metrics):
            rule.factor = np.float32(0.0)

    stopped = digits_trainer(learning=rule, optimizer=optax.sgd(0.1), callbacks=[Stops()])
    fit(stopped, 15)  # the row at 5 changes it
    straight = digits_trainer(learning=Scaled(), optimizer=optax.sgd(0.1))
    fit(straight, 5)
    for one, other in zip(
        parameters_of(stopped.network), parameters_of(straight.network), strict=True
    ):
        np.testing.assert_array_equal(one, other)
