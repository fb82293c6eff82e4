"""Callbacks: who is told what and when, and stopping early.

Oracles: the calendar of a fit, derived by hand from its step numbers.
"""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from pcflax.training.callbacks import EVENTS, CallbackList

# Made once, so that the fits of this file share one compiled loop.
LEARNING = pc.learning.PredictiveCoding(pc.inference.GradientDescent(optax.sgd(0.1), num_steps=2))
OPTIMIZER = optax.adam(1e-2)
STILL = optax.sgd(0.0)  # parameters that never move, so that no metric ever improves


def make_data():
    """12 examples of width 3 in 4 batches of 3."""
    inputs = np.random.default_rng(0).normal(size=(12, 3))
    return pc.data.from_arrays(inputs, np.arange(12) % 2, batch_size=3)


def make_trainer(callbacks, *, optimizer=OPTIMIZER, **options):
    rngs = nnx.Rngs(0)
    network = pc.PCNetwork(
        [pc.PCDense(3, 5, activation=jnp.tanh, rngs=rngs), pc.PCDense(5, 2, rngs=rngs)]
    )
    return pc.Trainer(
        network, optimizer, learning=LEARNING, callbacks=callbacks, progress=False, **options
    )


class Recorder(pc.Callback):
    """Writes down every event but progress, and whether the Trainer stands where it says."""

    def __init__(self):
        self.events = []

    def on_fit_start(self, trainer, num_steps):
        self.events.append(("start", trainer.step, num_steps))

    def on_log(self, trainer, step, metrics):
        assert trainer.step == step
        assert all(name.startswith("train/") for name in metrics)
        assert trainer.history.rows[-1] == {"step": step, **metrics}
        self.events.append(("log", step))

    def on_evaluate(self, trainer, step, metrics):
        assert trainer.step == step
        assert all(name.startswith("eval/") for name in metrics)
        assert trainer.history.rows[-1] == {"step": step, **metrics}
        self.events.append(("evaluate", step))

    def on_epoch_end(self, trainer, epoch):
        assert trainer.step == 4 * (epoch + 1)
        self.events.append(("epoch", epoch))

    def on_checkpoint(self, trainer, step, path):
        assert (trainer.step, path.name) == (step, str(step))
        self.events.append(("checkpoint", step))

    def on_fit_end(self, trainer):
        self.events.append(("end", trainer.step))


def test_events_come_at_the_steps_of_the_calendar(tmp_path):
    """A metric told at another step than it was measured at would mislabel every curve."""
    recorder = Recorder()
    trainer = make_trainer([recorder], checkpoints=pc.Checkpoints(tmp_path, every=6))
    trainer.fit(make_data(), num_steps=9, eval_data=make_data(), eval_every=3, log_every=5)
    assert recorder.events == [
        ("start", 0, 9),
        ("evaluate", 3),
        ("epoch", 0),
        ("log", 5),
        ("evaluate", 6),
        ("checkpoint", 6),
        ("epoch", 1),
        ("log", 9),
        ("evaluate", 9),
        ("checkpoint", 9),
        ("end", 9),
    ]


def test_progress_reaches_the_last_step_and_never_goes_back():
    steps = []

    class Progress:
        def on_progress(self, trainer, step):
            steps.append(step)

    make_trainer([Progress()]).fit(make_data(), num_steps=9)
    assert steps == sorted(set(steps))
    assert steps[-1] == 9


def test_callbacks_see_the_parameters_of_their_step():
    """A callback that saved the weights would otherwise save those of another step."""
    weights = {}

    class Watcher:
        def on_evaluate(self, trainer, step, metrics):
            weights[step] = np.array(trainer.network.layers[0].linear.kernel[...])

    make_trainer([Watcher()]).fit(make_data(), num_steps=4, eval_data=make_data(), eval_every=2)
    for step in (2, 4):
        trainer = make_trainer([])
        trainer.fit(make_data(), num_steps=step)
        np.testing.assert_array_equal(trainer.network.layers[0].linear.kernel[...], weights[step])


def test_the_end_is_told_even_where_training_fails():
    """Files that a callback opened would stay open, their last lines unwritten."""

    class Failing(Recorder):
        def on_log(self, trainer, step, metrics):
            raise RuntimeError("disk full")

    failing = Failing()
    with pytest.raises(RuntimeError, match="disk full"):
        make_trainer([failing]).fit(make_data(), num_steps=9, log_every=2)
    assert failing.events == [("start", 0, 9), ("end", 2)]


@pytest.mark.parametrize("when", ["between fits", "on_fit_start"])
@pytest.mark.parametrize("changes", [False, True])
def test_what_is_changed_in_the_network_object_is_trained_on(when, changes):
    """By whoever holds it, asked of the Trainer or not."""

    def halve(*_):
        if changes and armed:
            kernel.set_value(kernel[...] / 2)

    class Halves(pc.Callback):
        on_fit_start = halve

    armed = []
    callbacks = [Halves()] if when == "on_fit_start" else []
    trainer = make_trainer(callbacks, optimizer=optax.sgd(0.0))
    kernel = trainer.network.layers[0].linear.kernel
    before = np.array(kernel[...])
    trainer.fit(make_data(), num_steps=1, log_every=1)
    armed.append(True)
    if when == "between fits":
        halve()
    trainer.fit(make_data(), num_steps=2, log_every=1)
    factor = 0.5 if changes else 1.0
    np.testing.assert_allclose(np.array(kernel[...]), factor * before, rtol=1e-6)


class Ended(pc.Callback):
    """Notes that it was told the end."""

    ended = False

    def on_fit_start(self, trainer, num_steps):
        self.ended = False

    def on_fit_end(self, trainer):
        self.ended = True


class TestFailuresAtStartAndEnd:
    """Whatever a callback raises, the others end, and the last checkpoint is whole."""

    def test_those_that_have_started_are_told_the_end_where_another_cannot_start(self):
        """A bar would stay on the screen with its cursor hidden, a file open."""

        class Unreachable(Ended):
            def on_fit_start(self, trainer, num_steps):
                raise RuntimeError("cannot connect")

        first, failing, never = Ended(), Unreachable(), Ended()
        with pytest.raises(RuntimeError, match="cannot connect"):
            make_trainer([first, failing, never]).fit(make_data(), num_steps=1)
        assert (first.ended, failing.ended, never.ended) == (True, False, False)

    def test_all_are_told_the_end_and_the_last_checkpoint_is_sealed(self, tmp_path):
        class Failing:
            def on_fit_end(self, trainer):
                raise RuntimeError("upload failed")

        first, last, checkpoints = Ended(), Ended(), pc.Checkpoints(tmp_path)
        trainer = make_trainer([first, Failing(), last], checkpoints=checkpoints)
        with pytest.raises(RuntimeError, match="upload failed"):
            trainer.fit(make_data(), num_steps=3)
        assert first.ended
        assert last.ended
        assert checkpoints._sealing is None  # nothing is being written any more
        assert make_trainer([], checkpoints=pc.Checkpoints(tmp_path)).restore() == 3


class TestCallbackList:
    def test_every_method_is_optional_and_nothing_needs_inheriting(self):
        class OnlyLogs:
            def __init__(self):
                self.rows = []

            def on_log(self, trainer, step, metrics):
                self.rows.append((step, metrics))

        logs = OnlyLogs()
        callbacks = CallbackList([logs, pc.Callback()])
        for event in EVENTS:
            arguments = (None, 7, {"train/loss": 1.0}) if event == "on_log" else (None, 1, {})
            if event == "on_fit_end":
                arguments = (None,)
            elif event in ("on_fit_start", "on_progress", "on_measure", "on_epoch_end"):
                arguments = (None, 1)
            callbacks.notify(event, *arguments)
        assert logs.rows == [(7, {"train/loss": 1.0})]

    def test_they_are_told_in_order(self):
        told = []

        class Named:
            def __init__(self, name):
                self.name = name

            def on_fit_end(self, trainer):
                told.append(self.name)

        CallbackList([Named("b"), Named("a"), Named("c")]).notify("on_fit_end", None)
        assert told == ["b", "a", "c"]

    def test_listens_only_to_methods_of_ones_own(self):
        class Epochs(pc.Callback):
            def on_epoch_end(self, trainer, epoch):
                pass

        assert CallbackList([pc.Callback(), Epochs()]).listens("on_epoch_end")
        assert not CallbackList([Epochs()]).listens("on_evaluate")
        assert not CallbackList([]).listens("on_epoch_end")

    def test_a_typo_is_refused_with_the_nearest_event(self):
        """It would otherwise be a callback that silently never runs."""

        class Typo:
            def on_evalute(self, trainer, step, metrics):
                pass

        text = "callback Typo has a method on_evalute, which is never called; did you mean 'on_evaluate'?"
        with pytest.raises(TypeError, match=text.replace("?", r"\?")):
            CallbackList([Typo()])
        with pytest.raises(TypeError, match="callback Typo has a method on_evalute"):
            make_trainer([Typo()])

    def test_a_name_like_none_is_refused_with_all_events(self):
        class Unknown:
            def on_zzz(self):
                pass

        with pytest.raises(TypeError, match=f"has a method on_zzz.*{', '.join(EVENTS)}"):
            CallbackList([Unknown()])

    def test_a_name_like_none_is_refused_in_a_whole_sentence(self):
        class Unknown:
            def on_zzz(self):
                pass

        with pytest.raises(TypeError, match=r"which is never called[.;] [Ee]xpected some of"):
            CallbackList([Unknown()])

    @pytest.mark.parametrize("value", [print, "console", object()])
    def test_what_has_no_event_is_refused(self, value):
        with pytest.raises(TypeError, match=r"is no callback: expected some of the methods on_fit"):
            CallbackList([value])


class FakeTrainer:
    """A history, and whether somebody asked to stop."""

    def __init__(self, metric, values):
        rows = [{"step": n, metric: v} for n, v in enumerate(values, start=1)]
        self.history, self.began = pc.History(rows), 0
        self.stopped = False

    def stop(self):
        self.stopped = True


def stops(callback, values):
    """After how many evaluations a run with these values is stopped; None if never."""
    for count in range(1, len(values) + 1):
        trainer = FakeTrainer(callback.metric, values[:count])
        callback.on_evaluate(trainer, count, {})
        if trainer.stopped:
            return count
    return None


class TestEarlyStopping:
    @pytest.mark.parametrize(
        ("mode", "patience", "values", "expected"),
        [
            ("max", 2, [0.1, 0.5, 0.4, 0.4], 4),  # two evaluations after the best, the second
            ("max", 2, [0.1, 0.5, 0.4, 0.6, 0.5, 0.5], 6),  # an improvement starts the count anew
            ("max", 1, [0.5, 0.5], 2),  # as good is not better
            ("max", 3, [0.1, 0.2, 0.3, 0.4], None),
            ("min", 2, [0.9, 0.5, 0.6, 0.5], 4),
            ("min", 2, [0.5, 0.4, 0.3, 0.2], None),
        ],
    )
    def test_stops_when_the_best_is_too_old(self, mode, patience, values, expected):
        """Stopped too early, a run is compared by a model that had not converged."""
        callback = pc.EarlyStopping("eval/score", mode, patience=patience)
        assert stops(callback, values) == expected

    def test_keeps_nothing_so_that_a_resumed_run_stops_where_the_straight_one_does(self):
        values = [0.1, 0.5, 0.4, 0.4, 0.3]
        straight = pc.EarlyStopping("eval/score", patience=3)
        assert stops(straight, values) == 5
        trainer = FakeTrainer("eval/score", values)
        pc.EarlyStopping("eval/score", patience=3).on_evaluate(trainer, 5, {})
        assert trainer.stopped

    def test_ends_a_fit_and_leaves_a_checkpoint_of_its_last_step(self, tmp_path):
        """Weights that never move never improve: patience evaluations after the first it ends."""
        callback = pc.EarlyStopping("eval/energy", "min", patience=2)
        checkpoints = pc.Checkpoints(tmp_path)
        trainer = make_trainer([callback], optimizer=STILL, checkpoints=checkpoints)
        history = trainer.fit(make_data(), num_steps=30, eval_data=make_data(), eval_every=2)
        assert trainer.step == 6
        assert history.steps("eval/energy") == [2, 4, 6]
        assert checkpoints.steps()[-1] == 6

    @pytest.mark.parametrize(
        ("metric", "mode"),
        [
            ("eval/accuracy", "max"),
            ("eval/energy", "min"),
            ("train/energy/hidden", "min"),
            ("train/loss", "min"),
            ("eval/squared_error", "min"),
            ("eval/cross_entropy", "min"),
            ("eval/perplexity", "min"),
        ],
    )
    def test_the_mode_is_by_the_metric_unless_given(self, metric, mode):
        """By the maximum, a run whose energy falls would be stopped."""
        assert pc.EarlyStopping(metric).mode == mode

    def test_another_fit_is_judged_by_its_own_evaluations(self, tmp_path):
        """By the first fit's best, the second would end before its first step."""
        callback = pc.EarlyStopping("eval/energy", patience=np.int64(2))
        options = {"eval_data": make_data(), "eval_every": 2}
        trainer = make_trainer(
            [callback], optimizer=STILL, checkpoints=pc.Checkpoints(tmp_path, every=2)
        )
        trainer.fit(make_data(), num_steps=30, **options)
        assert trainer.step == 6
        trainer.fit(make_data(), num_steps=30, **options)
        assert trainer.step == 12
        # interrupted within the second fit and restored, it stops where that did
        resumed = make_trainer([callback], optimizer=STILL, checkpoints=pc.Checkpoints(tmp_path))
        resumed.restore(10)
        resumed.fit(make_data(), num_steps=30, **options)
        assert resumed.step == 12

    def test_the_patience_of_a_metric_of_training_counts_evaluations_too(self):
        """Three rows an evaluation, it ended after the first."""
        callback = pc.EarlyStopping("train/loss", patience=2)
        trainer = FakeTrainer(
            "train/loss", [0.5, 0.5, 0.5, 0.5, 0.4, 0.5, 0.5, 0.5, 0.5, 0.4, 0.6, 0.5]
        )
        rows, trainer.history, ended = trainer.history.rows, pc.History(), []
        for row in rows:
            trainer.history.append(row.pop("step"), row)
            if (step := len(trainer.history.steps("train/loss"))) % 3 == 0:
                trainer.history.append(step, {"eval/energy": 0.0})
                callback.on_evaluate(trainer, step, {})
                ended.append(trainer.stopped)
        assert ended == [False, False, False, True]  # the second brought the best

    def test_an_evaluation_before_the_first_row_of_training_ends_nothing(self):
        trainer = make_trainer([pc.EarlyStopping("train/loss", patience=1)], optimizer=STILL)
        trainer.fit(make_data(), num_steps=6, eval_data=make_data(), eval_every=2)  # a row at 6
        assert trainer.step == 6

    @pytest.mark.parametrize(
        ("metric", "options", "message"),
        [
            ("eval/energy", {}, "and this fit has none; give fit eval_data"),
            ("train/energy", {}, "and this fit has none; give fit eval_data"),
            ("eval/enrgy", {"eval_data": True}, "measure eval/.*did you mean 'eval/energy'"),
            ("train/los", {"eval_data": True}, "measure train/.*did you mean 'train/loss'"),
        ],
    )
    def test_a_metric_that_will_not_be_measured_is_refused_before_training(
        self, metric, options, message
    ):
        """Else nothing ever stops, or the first evaluation ends the run."""
        trainer = make_trainer([pc.EarlyStopping(metric)])
        options = {name: make_data() for name in options}
        with pytest.raises(ValueError, match=message):
            trainer.fit(make_data(), num_steps=8, **options)
        assert trainer.step == 0

    @pytest.mark.parametrize("patience", [0, 1.5, True])
    def test_a_patience_that_is_no_count_is_refused(self, patience):
        with pytest.raises((TypeError, ValueError), match="EarlyStopping expected .*patience"):
            pc.EarlyStopping("eval/energy", patience=patience)

    def test_an_unknown_mode_is_refused(self):
        with pytest.raises(ValueError, match="expected mode 'max' or 'min', got 'maximum'"):
            pc.EarlyStopping("eval/accuracy", "maximum")

    def test_a_metric_that_is_not_measured_is_told_with_those_that_are(self):
        trainer = FakeTrainer("eval/energy", [1.0])
        with pytest.raises(KeyError, match="no metric 'eval/acuracy' was measured; measured are"):
            pc.EarlyStopping("eval/acuracy").on_evaluate(trainer, 1, {})

    def test_a_value_that_is_nan_is_never_the_best(self):
        callback = pc.EarlyStopping("eval/score", "min", patience=2)
        assert stops(callback, [float("nan"), 0.5, 0.4, 0.3, 0.2]) is None


EVERY_SECOND = {"eval_data": make_data(), "eval_every": 2, "log_every": 2}


@pytest.fixture(scope="module")
def straight():
    trainer = make_trainer([])
    trainer.fit(make_data(), num_steps=6, **EVERY_SECOND)
    return trainer


def fails_once(event, time):
    """A callback that raises when it is told an event for the so-manieth time."""
    calls = []

    def once(self, *arguments):
        calls.append(event)
        if len(calls) == time:
            raise RuntimeError("broken")

    return type("Fails", (), {event: once})()


class TestAnErrorBetween:
    """What was due after a step when something was raised is done when the same fit goes on."""

    @pytest.mark.parametrize(
        ("event", "time"),
        [
            ("on_progress", 2),
            ("on_measure", 2),
            ("on_log", 2),
            ("on_evaluate", 2),
            ("on_checkpoint", 2),
            ("on_progress", 3),  # after the last step, where all steps are done
            ("on_evaluate", 3),
        ],
    )
    def test_rows_evaluations_and_checkpoints_are_those_of_the_run_without_it(
        self, tmp_path, straight, event, time
    ):
        checkpoints = pc.Checkpoints(tmp_path, keep_latest=9)
        trainer = make_trainer([fails_once(event, time)], checkpoints=checkpoints)
        with pytest.raises(RuntimeError, match="broken"):
            trainer.fit(make_data(), num_steps=6, **EVERY_SECOND)
        trainer.fit(make_data(), num_steps=6, **EVERY_SECOND)
        assert trainer.history.rows == straight.history.rows
        assert checkpoints.steps() == [2, 4, 6]

    def test_another_data_set_owes_nothing(self):
        trainer = make_trainer([fails_once("on_progress", 1)])
        with pytest.raises(RuntimeError, match="broken"):
            trainer.fit(make_data(), num_steps=2, log_every=2)
        other = make_data()
        other.seed = 1
        assert trainer.fit(other, num_steps=3).steps("train/energy") == [3]


def test_a_fit_within_a_fit_of_the_same_trainer_is_refused(tmp_path):
    """It gave the folder of checkpoints free, and the outer fit went on with other data than it said."""
    refused = []

    class Again(pc.Callback):
        def on_evaluate(self, trainer, step, metrics):
            if step == 4:
                with pytest.raises(RuntimeError, match="within a fit of the same Trainer") as error:
                    trainer.fit(data, num_steps=6)
                refused.append(str(error.value))

    def ended(callbacks, folder):
        checkpoints = pc.Checkpoints(tmp_path / folder, every=4)
        trainer = make_trainer(callbacks, checkpoints=checkpoints)
        return trainer.fit(data, num_steps=8, eval_data=data).rows

    data = make_data()
    assert ended([Again()], "again") == ended([], "straight")
    assert len(refused) == 1
