"""Signals: those that are ours save and stop, the others stay as they were.

Oracle: what the system says of the handlers, and the shell's exit codes.
"""

import os
import signal

import pytest

import pcflax as pc
from pcflax.training import fitting
from pcflax.training.run import Run
from pcflax.training.signals import SignalCatcher
from tests.conftest import digits_trainer
from tests.training.test_loggers import fit

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has other signals")


@pytest.fixture(autouse=True)
def as_before():
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_stop_is_noted_and_ends_with_the_shells_code(number, code):
    before = signal.getsignal(number)
    with SignalCatcher() as signals:
        os.kill(os.getpid(), number)
        assert signals.caught == number
    assert signal.getsignal(number) == before
    with pytest.raises(pc.training.Terminated) as stopped:
        signals.raise_caught()
    assert stopped.value.code == code


def test_a_second_ctrl_c_loses_no_row(monkeypatch):
    """It came when the state had taken the steps of a call, and the history not yet."""

    def train(trainer):
        trainer.fit(pc.data.load("digits", batch_size=32), num_steps=40, log_every=5)
        return trainer.history.rows

    expected = train(digits_trainer())
    trainer, put, calls = digits_trainer(), Run.put, []

    def interrupted(run, state):
        put(run, state)
        calls.append(state)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(Run, "put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(trainer)
    assert len(calls) == 2
    assert train(trainer) == expected


def test_a_second_ctrl_c_does_not_wait_elsewhere():
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with SignalCatcher() as signals:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        done = []

        def work():
            with signals.held():
                signal.raise_signal(signal.SIGINT)
                done.append("all")

        with pytest.raises(KeyboardInterrupt):
            work()
        assert done == ["all"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_an_ignored_signal_stays_ignored(number):
    """As under nohup, or in a shell's background jobs."""
    signal.signal(number, signal.SIG_IGN)
    with SignalCatcher() as signals:
        assert signal.getsignal(number) == signal.SIG_IGN
        os.kill(os.getpid(), number)
        assert signals.caught is None
        assert not signals.save_asked()
    assert signal.getsignal(number) == signal.SIG_IGN


def test_a_handler_that_is_not_pythons_is_left_alone(monkeypatch):
    """It could not be put back: Python knows it as None."""
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    taken = []
    monkeypatch.setattr(signal, "signal", lambda *arguments: taken.append(arguments))
    with SignalCatcher():
        pass
    assert taken == []


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_that_the_program_has_a_use_for_is_left_to_it(number):
    seen = []
    signal.signal(number, lambda *arguments: seen.append(arguments[0]))
    with SignalCatcher() as signals:
        os.kill(os.getpid(), number)
        assert signals.caught is None
    assert seen == [number]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_worker_that_is_forked_meanwhile_ends_as_it_would_have(number):
    """It noted the signal as if it were the trainer, and lived on."""
    with SignalCatcher() as signals:
        if (worker := os.fork()) == 0:
            os.kill(os.getpid(), number)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == -number
        assert signals.caught is None
        assert not signals.save_asked()


@pytest.mark.filterwarnings("ignore:os.fork")  # jax warns once a device is awake
def test_a_forked_worker_keeps_the_programs_own_handler():
    signal.signal(signal.SIGTERM, lambda *arguments: os._exit(7))
    with SignalCatcher():
        if (worker := os.fork()) == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == 7


def test_sigusr1_saves_and_training_goes_on(tmp_path):
    """Batch systems send it some time before they kill."""

    class Ask:
        def on_evaluate(self, trainer, step, metrics):
            if step == 4:
                os.kill(os.getpid(), signal.SIGUSR1)

    checkpoints = pc.Checkpoints(tmp_path, every=100, keep_latest=9)
    trainer = fit(8, [Ask()], checkpoints=checkpoints)
    assert trainer.step == 8
    assert checkpoints.steps() == [4, 8]
    straight = fit(8, [])
    assert trainer.history.rows == straight.history.rows


class Kill(pc.Callback):
    """Sends SIGTERM while the step's callbacks are told."""

    def __init__(self, step):
        self.step = step

    def on_progress(self, trainer, step):
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


class TestASignalAtAnyTime:
    """Votes are between two calls of the compiled loop."""

    def stopped_at(self, folder, callbacks=()):
        checkpoints = pc.Checkpoints(folder, every=100)
        with pytest.raises(pc.training.Terminated):
            fit(20, callbacks, checkpoints=checkpoints)
        (step,) = checkpoints.steps()
        rows = [row for row in fit(20, []).history.rows if row["step"] <= step]
        assert pc.load_checkpoint(folder).rows() == rows
        return step

    def test_while_processes_wait_for_each_others_votes_counts_at_the_next_vote(
        self, tmp_path, monkeypatch
    ):
        """It was forgotten: what had been read before was noted after."""
        votes, real = [], fitting.largest

        def waiting(*values):
            votes.append(values)
            if len(votes) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(*values)

        monkeypatch.setattr(fitting, "largest", waiting)
        self.stopped_at(tmp_path)
        assert [caught for _, caught, *_ in votes[:3]] == [0, 0, signal.SIGTERM]

    def test_after_the_vote_stops_after_the_next_call_which_is_saved(self, tmp_path, monkeypatch):
        """It ended the fit at once, without a checkpoint."""
        real, calls = fitting.Fit.save, []

        def save(fit, *, asked):
            calls.append(fit.run.step)
            if len(calls) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            real(fit, asked=asked)

        monkeypatch.setattr(fitting.Fit, "save", save)
        assert self.stopped_at(tmp_path) == calls[2]

    def test_within_a_fit_of_a_callbacks_lets_that_end_and_stops_the_outer_one(self, tmp_path):
        """The fit within took it for itself; the outer one ended without a checkpoint."""
        ended = []

        class Probe(pc.Callback):
            def on_evaluate(self, trainer, step, metrics):
                if step == 4:
                    ended.append(fit(6, [Kill(2)]).step)

        assert self.stopped_at(tmp_path, [Probe()]) == 4
        assert ended == [6]
