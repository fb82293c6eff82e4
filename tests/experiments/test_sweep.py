"""Sweeps: trials proposed, pruned, failed, stopped anywhere and gone on with, none lost.

Oracles: a sweep never interrupted, the rules of the pruner and of the objective by hand, and
`network.summary`. Trials train 64-10 on a tenth of the digits.
"""

import errno
import json
import math
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

import pcflax as pc
from pcflax.experiments import Outcome, Sweep, sweep
from pcflax.experiments.journal import Journal
from pcflax.experiments.trial import Objective
from pcflax.training import evaluation, fitting
from pcflax.training.saving import Saving
from tests.conftest import digits_trainer, parameters_of
from tests.training.checkpoints.test_lock import HOLD

pytestmark = pytest.mark.slow

optuna = pytest.importorskip("optuna")
distributions = optuna.distributions

RATES = {"rate": distributions.FloatDistribution(1e-4, 1e-1, log=True)}
FIT = {"num_steps": 6, "eval_every": 2, "log_every": 2}


@pytest.fixture(scope="module")
def data():
    """What is trained on, and what the trials are judged by."""
    return pc.data.load("digits", split="train[:10%]"), pc.data.load(
        "digits", split="train[90%:]", batch_size=144
    )


def make(trial, **options):
    """A trial's Trainer."""
    if "rate" in trial.settings:
        options.setdefault("optimizer", optax.adam(trial["rate"]))
    options.setdefault("learning", pc.learning.Backprop())
    return digits_trainer(trial.folder, **{"widths": (64, 10), **options})


def training(data, *, stop=lambda trial, step: False, made=None, **options):
    """The function that a sweep trains by; `stop` says where the process is to end."""

    class Ends(pc.Callback):
        def __init__(self, trial):
            self.trial = trial

        def on_checkpoint(self, trainer, step, path):
            if stop(self.trial.number, step):
                raise Killed

    def train(trial):
        trainer = make(trial, callbacks=[Ends(trial)], **options)
        if made is not None:
            made.append(trial.number)
        trial.fit(trainer, data[0], eval_data=data[1], **FIT)

    return train


class Killed(BaseException):
    """Nothing of ours catches it."""


def killed(train, search, folder, **options):
    with pytest.raises(Killed):
        sweep(train, search, folder=folder, **options)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A sweep of 4 trials that nobody interrupted, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    return sweep(training(data), RATES, folder=folder, num_trials=4, seed=1), folder


def without_folders(found):
    return [(o.number, o.settings, o.state, o.value, o.metric, o.step) for o in found.outcomes]


class TestResume:
    def test_stopped_anywhere_it_ends_with_the_trials_of_one_never_stopped(
        self, data, whole, tmp_path
    ):
        """At a trial's first checkpoint, at its last, and before the next one has begun."""
        made, ends = [], [(0, 2), (0, 6), (2, 4)]

        def stop(number, step):
            if (number, step) in ends:
                ends.remove((number, step))
                return True
            return False

        train = training(data, stop=stop, made=made)
        for _ in range(3):
            killed(train, RATES, tmp_path, num_trials=4, seed=1)

        def tell(outcome):
            if outcome.number == 2:
                raise Killed

        killed(train, RATES, tmp_path, num_trials=4, seed=1, on_trial=tell)
        found = sweep(train, RATES, folder=tmp_path, num_trials=4, seed=1)
        assert without_folders(found) == without_folders(whole[0])
        assert made == [0, 0, 0, 1, 2, 2, 3]
        for one, other in zip(found.outcomes, whole[0].outcomes, strict=True):
            ours, theirs = (pc.load_checkpoint(each.folder) for each in (one, other))
            assert ours.digest() == theirs.digest()
        again = sweep(train, RATES, folder=tmp_path, num_trials=4, seed=1)
        assert without_folders(again) == without_folders(found)
        assert made == [0, 0, 0, 1, 2, 2, 3]  # nothing was trained again

    def test_a_trial_goes_on_from_its_checkpoint(self, data, tmp_path):
        begun, made = [], []

        class Begins(pc.Callback):
            def on_fit_start(self, trainer, num_steps):
                begun.append(trainer.step)

        def train(trial):
            made.append(trial.number)
            trial.fit(make(trial, callbacks=[Begins()]), data[0], eval_data=data[1], **FIT)
            if len(made) == 1:
                raise Killed  # it had all but told its end

        killed(train, RATES, tmp_path, num_trials=1)
        assert len(sweep(train, RATES, folder=tmp_path, num_trials=1).outcomes) == 1
        assert (begun, made) == ([0], [0, 0])  # the second time there was nothing to train

    def test_more_trials_are_those_of_a_longer_sweep(self, data, whole, tmp_path):
        train = training(data)
        sweep(train, RATES, folder=tmp_path, num_trials=2, seed=1)
        found = sweep(train, RATES, folder=tmp_path, num_trials=4, seed=1)
        assert without_folders(found) == without_folders(whole[0])

    def test_a_torn_last_line_is_cut_off(self, data, whole, tmp_path):
        """As a machine that crashed leaves it; optuna refuses to read a journal that goes on after it."""
        train = training(data)
        sweep(train, RATES, folder=tmp_path, num_trials=2, seed=1)
        with (tmp_path / "journal.log").open("a") as file:
            file.write('{"op_code":4,"worker')
        found = sweep(train, RATES, folder=tmp_path, num_trials=4, seed=1)
        assert without_folders(found) == without_folders(whole[0])

    def test_on_a_full_disk_it_says_so_and_goes_on_once_there_is_room(self, tmp_path, monkeypatch):
        def begun(folder):
            folder.mkdir(exist_ok=True)
            return Journal(folder, RATES, mode="max", pruner=None, seed=1, objective={})

        def write_half(file, logs):
            with (tmp_path / "full" / "journal.log").open("a") as opened:
                opened.write(json.dumps(logs[0])[:30])
            raise OSError(errno.ENOSPC, "No space left on device")

        journal = begun(tmp_path / "full")
        with monkeypatch.context() as patch:
            patch.setattr(optuna.storages.journal.JournalFileBackend, "append_logs", write_half)
            with pytest.raises(OSError, match="cannot write .*journal.log: No space .*; make room"):
                journal.next_trial()
        settings = [begun(tmp_path / name).next_trial().params for name in ("full", "other")]
        assert settings[0] == settings[1]

    def test_settings_are_drawn_in_the_order_in_which_the_sweep_began(self, tmp_path):
        search = RATES | {"steps": distributions.IntDistribution(1, 9)}
        settings = []
        for order in (search, dict(reversed(search.items()))):
            folder = tmp_path / str(len(settings))
            folder.mkdir()
            for given in (search, order):
                journal = Journal(folder, given, mode="max", pruner=None, seed=1, objective={})
            settings.append(journal.next_trial().params)
        assert settings[0] == settings[1]

    def test_a_journal_that_is_not_whole_is_refused(self, tmp_path):
        (tmp_path / "journal.log").write_text('{"op_code":\n{}\n')
        with pytest.raises(
            ValueError, match="journal.log cannot be read as the journal of a sweep"
        ):
            sweep(print, RATES, folder=tmp_path, num_trials=1)

    def test_another_seed_proposes_other_settings(self, data, whole, tmp_path):
        found = sweep(training(data), RATES, folder=tmp_path, num_trials=1, seed=2)
        assert found.outcomes[0].settings != whole[0].outcomes[0].settings

    def test_another_sweep_in_the_folder_is_refused(self, data, whole):
        _, folder = whole
        other = {"rate": distributions.FloatDistribution(1e-3, 1e-1, log=True)}
        for search, options, name in (
            (other, {"seed": 1}, "search"),
            (RATES, {"seed": 1, "metric": "eval/energy"}, "objective"),
            (RATES, {"seed": 3}, "seed"),
        ):
            with pytest.raises(ValueError, match=f"was begun with {name} .*, got .*another folder"):
                sweep(training(data), search, folder=folder, num_trials=4, **options)

    def test_another_process_in_the_folder_is_refused(self, data, tmp_path):
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path / ".lock")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(FileExistsError, match="is in use by another process"):
                sweep(training(data), RATES, folder=tmp_path, num_trials=1)
        finally:
            holder.communicate()


class TestOutcomes:
    def test_a_value_is_the_best_of_a_trials_evaluations(self, whole):
        for one in whole[0].outcomes:
            trainer = digits_trainer(
                one.folder,
                widths=(64, 10),
                learning=pc.learning.Backprop(),
                optimizer=optax.adam(0.1),
            )
            trainer.restore()
            rows = [row for row in trainer.history.rows if "eval/accuracy" in row]
            best = max(rows, key=lambda row: row["eval/accuracy"])
            assert (one.metric, one.step) == (best["eval/accuracy"], best["step"])
            assert one.value == one.metric
            assert one.state == "complete"
        assert whole[0].best.value == max(one.value for one in whole[0].outcomes)

    def test_the_journal_is_optunas_own(self, whole):
        """Its dashboard and its pictures read it."""
        storage = optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(whole[1] / "journal.log"))
        )
        study = optuna.load_study(study_name="sweep", storage=storage)
        assert [t.value for t in study.trials] == [one.value for one in whole[0].outcomes]
        assert study.best_params == whole[0].best.settings
        values = [list(t.intermediate_values) for t in study.trials]
        assert values == [[0, 1, 2]] * 4  # one an evaluation

    def test_a_trial_that_is_behind_is_stopped(self, data, tmp_path):
        """After one complete trial: behind its value at the same evaluation."""
        pruner = optuna.pruners.MedianPruner(n_startup_trials=1)
        rates = iter([0.03, 0.0])

        def train(trial):
            trainer = make(trial, optimizer=optax.sgd(next(rates)))
            trial.fit(trainer, data[0], eval_data=data[1], **FIT)

        options = {"metric": "eval/energy", "num_trials": 2, "pruner": pruner}
        found = sweep(train, RATES, folder=tmp_path, **options)
        first, second = found.outcomes
        assert (first.state, second.state) == ("complete", "pruned")
        assert second.step == 2
        assert pc.load_checkpoint(second.folder).step == 2
        assert found.ranked == [first]

    def test_killed_between_an_evaluation_and_its_checkpoint_it_is_stopped_there_again(
        self, data, tmp_path, monkeypatch
    ):
        """The journal knows that it is behind before the Trainer has come to that evaluation again."""
        trials = []

        def train(trial):
            trials.append(trial.number)
            rate = 0.0 if trial.number else 0.03
            trainer = make(trial, optimizer=optax.sgd(rate))
            trial.fit(trainer, data[0], eval_data=data[1], **FIT)

        def save(saving, run):
            if trials == [0, 1]:
                raise Killed
            return real(saving, run)

        real = Saving.save
        monkeypatch.setattr(Saving, "save", save)
        pruner = optuna.pruners.MedianPruner(n_startup_trials=1)
        options = {"metric": "eval/energy", "num_trials": 2, "pruner": pruner}
        killed(train, RATES, tmp_path, **options)
        with pytest.raises(FileNotFoundError):
            pc.load_checkpoint(tmp_path / "trials/0001")
        second = sweep(train, RATES, folder=tmp_path, **options).outcomes[1]
        assert trials == [0, 1, 1]
        assert (second.state, second.step, second.why) == ("pruned", 2, "")
        assert pc.load_checkpoint(second.folder).step == 2

    def test_a_trial_that_diverges_has_failed_and_counts(self, data, tmp_path):
        def train(trial):
            descent = pc.inference.GradientDescent(trial["size"], num_steps=30)
            trainer = digits_trainer(
                trial.folder,
                widths=(64, 4, 10),
                learning=pc.learning.PredictiveCoding(descent),
            )
            trial.fit(trainer, data[0], eval_data=data[1], num_steps=2, eval_every=1)

        search = {"size": distributions.CategoricalDistribution([1e9])}
        found = sweep(train, search, folder=tmp_path, num_trials=2)
        assert [one.state for one in found.outcomes] == ["failed", "failed"]
        assert found.outcomes[0].why.startswith("the energy is not finite at step 1: layer")
        with pytest.raises(ValueError, match="none of 2 trials is complete; the last: the energy"):
            found.best  # noqa: B018

    def test_what_does_not_fit_the_memory_has_failed_and_other_faults_are_raised(self, tmp_path):
        faults = iter(["RESOURCE_EXHAUSTED: out of memory\nmore", "INTERNAL: a fault"])

        def train(trial):
            raise jax.errors.JaxRuntimeError(next(faults))

        with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
            sweep(train, RATES, folder=tmp_path, num_trials=2)
        lines = (tmp_path / "journal.log").read_text().splitlines()
        why = [
            record["user_attr"].get("why")
            for record in map(json.loads, lines)
            if "user_attr" in record
        ]
        assert "out of memory: RESOURCE_EXHAUSTED: out of memory" in why

    @pytest.mark.parametrize("call", ["learn_batches", "measure_batches"])
    def test_a_trial_whose_training_does_not_fit_the_memory_has_failed_and_the_next_is_tried(
        self, data, tmp_path, monkeypatch, call
    ):
        """XLA's error reaches the sweep in the Trainer's words."""
        module = {"learn_batches": fitting, "measure_batches": evaluation}[call]
        real, trials = getattr(module, call), []

        def learn(*args, **options):
            if trials[-1] == 1:
                raise jax.errors.JaxRuntimeError(
                    "RESOURCE_EXHAUSTED: Out of memory allocating 1099511627776 bytes."
                )
            return real(*args, **options)

        monkeypatch.setattr(module, call, learn)
        found = sweep(training(data, made=trials), RATES, folder=tmp_path, num_trials=3)
        assert trials == [0, 1, 2]
        assert [one.state for one in found.outcomes] == ["complete", "failed", "complete"]
        why = found.outcomes[1].why
        assert why.startswith("out of memory: there is no memory for 1099.51 GB more on ")

    def test_a_memory_error_without_words_has_failed_too(self, tmp_path):
        def train(trial):
            raise MemoryError

        (one,) = sweep(train, RATES, folder=tmp_path, num_trials=1).outcomes
        assert (one.state, one.why) == ("failed", "out of memory")

    def test_less_is_better_of_an_error(self):
        def outcome(number, state, value):
            return Outcome(number, {}, state, value, value, 1, None, "", None)

        found = Sweep(
            (outcome(0, "complete", 2.0), outcome(1, "pruned", 0.1), outcome(2, "complete", 1.0)),
            "min",
        )
        assert [one.number for one in found.ranked] == [2, 0]


class TestObjective:
    def test_twice_the_cost_must_bring_its_weight(self):
        more = Objective("eval/accuracy", "max", "gradients", 0.02)
        assert more.value(0.9, 8.0) == pytest.approx(0.9 - 0.02 * 3)
        assert more.value(0.92, 8.0) == pytest.approx(more.value(0.9, 4.0))
        less = Objective("eval/energy", "min", "seconds", 0.5)
        assert less.value(3.0, 0.25) == pytest.approx(3.0 - 0.5 * 2)
        assert Objective("eval/accuracy", "max").value(0.9, None) == 0.9

    def test_the_best_is_the_first_of_equal_finite_values(self):
        assert Objective("x", "max").best([math.nan, 1.0, 2.0, 2.0]) == 2
        assert Objective("x", "min").best([math.inf, 1.0, 2.0, 1.0]) == 1
        assert Objective("x", "max").best([math.nan]) is None

    def test_gradients_are_the_rules_operations_over_backpropagations(self, data, tmp_path):
        rule = pc.learning.PredictiveCoding(pc.inference.GradientDescent(0.1, num_steps=5))

        def train(trial):
            trainer = digits_trainer(trial.folder, widths=(64, 12, 10), learning=rule)
            trial.fit(trainer, data[0], eval_data=data[1], **FIT)

        options = {"cost": "gradients", "cost_weight": 0.1, "num_trials": 1}
        (one,) = sweep(train, RATES, folder=tmp_path, **options).outcomes
        summary = digits_trainer(widths=(64, 12, 10)).network.summary((64, 64), learning=rule)
        flops = {name: cost.flops for name, cost in summary.costs.items()}
        expected = flops["PredictiveCoding(GradientDescent)"] / flops["backpropagation's gradient"]
        assert one.cost == pytest.approx(expected)
        assert one.value == pytest.approx(one.metric - 0.1 * math.log2(expected))

    def test_gradients_of_an_adaptive_stop_cannot_be_counted(self, data, tmp_path):
        descent = pc.inference.GradientDescent(0.1, tolerance=1e-3, max_steps=20)
        rule = pc.learning.PredictiveCoding(descent)
        with pytest.raises(ValueError, match="PredictiveCoding here ends where it converged; give"):
            sweep(
                training(data, learning=rule, widths=(64, 12, 10)),
                RATES,
                folder=tmp_path,
                num_trials=1,
                cost="gradients",
            )

    def test_seconds_are_measured_and_enter(self, data, tmp_path):
        options = {"cost": "seconds", "cost_weight": 0.1, "num_trials": 1}
        (one,) = sweep(training(data), RATES, folder=tmp_path, **options).outcomes
        assert 0 < one.cost < 100
        assert one.value > one.metric  # less than a second


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"search": {}}, "a sweep searches over something; give"),
            ({"num_trials": 0}, "sweep expected num_trials of at least 1, got 0"),
            ({"metric": "train/loss"}, "a metric of evaluations, 'eval/...', got 'train/loss'"),
            (
                {"metric": "eval/accurac"},
                "a sweep names the metric .* did you mean 'eval/accuracy'",
            ),
            ({"mode": "most"}, "expected mode 'max' or 'min', got 'most'"),
            ({"cost": "steps"}, "sweep expected cost 'gradients', 'seconds' or None, got 'steps'"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_of_the_sweep(self, data, tmp_path, change, message):
        options = {"search": RATES, "num_trials": 1, **change}
        with pytest.raises(ValueError, match=message):
            sweep(training(data), options.pop("search"), folder=tmp_path, **options)

    def test_of_what_is_no_distribution(self, data, tmp_path):
        with pytest.raises(TypeError, match=r"sweep expected rate such as optuna\.distributions"):
            sweep(training(data), {"rate": (0, 1)}, folder=tmp_path, num_trials=1)

    @pytest.mark.parametrize("choices", [(math.exp, math.log), ((32,), (8, 8)), (np.int64(1),)])
    @pytest.mark.filterwarnings("ignore:Choices for a categorical distribution")
    def test_of_choices_that_the_journal_would_change(self, data, tmp_path, choices):
        search = {"widths": distributions.CategoricalDistribution(choices)}
        with pytest.raises(TypeError, match="choices of widths that its journal can hold, numbers"):
            sweep(training(data), search, folder=tmp_path, num_trials=1)

    def test_of_a_pruner_that_is_a_class(self, data, tmp_path):
        options = {"folder": tmp_path, "num_trials": 1, "pruner": optuna.pruners.MedianPruner}
        with pytest.raises(TypeError, match="sweep expected pruner such as optuna.pruners.Median"):
            sweep(training(data), RATES, **options)

    def test_of_a_test_split(self, data, tmp_path):
        """What is chosen by it measures nothing any more."""
        test = pc.data.load("digits", split="test[:50%]")
        with pytest.raises(ValueError, match=r"'digits/test\[:50%\]' is a test split; give a part"):
            sweep(training((data[0], test)), RATES, folder=tmp_path, num_trials=1)

    def test_of_a_trainer_without_checkpoints(self, data, tmp_path):
        def train(trial):
            trial.fit(digits_trainer(widths=(64, 10)), data[0], eval_data=data[1], **FIT)

        with pytest.raises(ValueError, match="give its Trainer checkpoints=pc.Checkpoints"):
            sweep(train, RATES, folder=tmp_path, num_trials=1)

    @pytest.mark.parametrize("place", ["shared", "trials/0000x", "trials"])
    def test_of_checkpoints_elsewhere(self, data, tmp_path, place):
        """Trials of one folder would go on from one another."""

        def train(trial):
            trainer = digits_trainer(tmp_path / place, widths=(64, 10))
            trial.fit(trainer, data[0], eval_data=data[1], **FIT)

        with pytest.raises(ValueError, match="^trial 0 goes on from .* keeps them in .*; give it"):
            sweep(train, RATES, folder=tmp_path, num_trials=1)

    def test_checkpoints_below_the_trials_folder_are_its_own(self, data, tmp_path):
        def train(trial):
            trainer = digits_trainer(trial.folder / "kept", widths=(64, 10))
            trial.fit(trainer, data[0], eval_data=data[1], **FIT)

        assert sweep(train, RATES, folder=tmp_path, num_trials=1).best.step is not None

    def test_of_a_function_that_does_not_fit(self, tmp_path):
        with pytest.raises(ValueError, match="expected to call trial.fit"):
            sweep(lambda trial: None, RATES, folder=tmp_path, num_trials=1)

    def test_without_optuna_it_says_what_installs_it(self, data, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "optuna", None)
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'pcflax\[tune\]'"):
            sweep(training(data), RATES, folder=tmp_path, num_trials=1)


def test_a_trial_trains_as_the_same_trainer_by_itself(data, whole, tmp_path):
    """Watching it changes nothing."""
    one = whole[0].outcomes[0]
    trainer = digits_trainer(
        widths=(64, 10), learning=pc.learning.Backprop(), optimizer=optax.adam(one.settings["rate"])
    )
    trainer.fit(data[0], eval_data=data[1], **FIT)
    alone = digits_trainer(
        one.folder,
        widths=(64, 10),
        learning=pc.learning.Backprop(),
        optimizer=optax.adam(one.settings["rate"]),
    )
    alone.restore(6)
    for found, expected in zip(
        parameters_of(alone.network), parameters_of(trainer.network), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
