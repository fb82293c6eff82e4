"""The command line: what a run leaves, how it resumes, and how errors are told.

Most runs are made in this process by `main`. Oracles: a run never interrupted, NumPy's forward pass
over the stored weights, and the digest of every file of a folder that must not change.
"""

import hashlib
import importlib.metadata
import json
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from scipy import special

import pcflax as pc
from pcflax.cli import inspect as inspect_verb
from pcflax.cli.main import main
from pcflax.cli.options import TrainOptions, preset
from pcflax.data.sources.digits import read_digits
from pcflax.recipes import PRESETS

# 64 -> 16 -> 10, two evaluations, two checkpoints.
WHOLE = ["--validation", "0"]  # trained on the whole split, and evaluated on the test split
SMALL = ["--num-steps", "20", "--eval-every", "10", "--widths", "16", *WHOLE]


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    """Tables are not cut, whatever terminal the tests run in."""
    monkeypatch.setenv("COLUMNS", "200")


def train(run_dir, *options):
    """A small run; of two equal options the last counts."""
    main(["train", "--run-dir", str(run_dir), *SMALL, *map(str, options)])
    return run_dir


@pytest.fixture(scope="module")
def base_run(tmp_path_factory):
    """A finished run of 20 steps, never written to."""
    return train(tmp_path_factory.mktemp("base") / "run")


@pytest.fixture
def run(base_run, tmp_path):
    """A copy of the finished run."""
    return shutil.copytree(base_run, tmp_path / "run")


def rows_of(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def last_eval(run_dir):
    """The last evaluation row without its prefixes."""
    row = [row for row in rows_of(run_dir) if "eval/energy" in row][-1]
    return {name.removeprefix("eval/"): value for name, value in row.items()}


def digest(run_dir, *options):
    """The digest of parameters and optimizer state, without the command line."""
    return pc.load_checkpoint(run_dir, *options).digest()


def files_of(folder):
    """{path: sha256} of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def output(capsys, *arguments):
    """What a command that succeeds prints; nothing on standard error."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) is None
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def error(capsys, *arguments, code=1):
    """The one sentence of a command that fails with this exit code."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert exit_info.value.code == code
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert captured.err.endswith("\n")
    assert "Traceback" not in captured.err + captured.out
    return captured.err


class TestTrain:
    def test_a_run_folder_holds_what_is_promised(self, base_run):
        assert {path.name for path in base_run.iterdir()} == {
            "config.json",
            "metrics.jsonl",
            "checkpoints",
            "tensorboard",
            "training.png",
        }
        assert {"10", "10.sha256", "20", "20.sha256"} <= {
            path.name for path in (base_run / "checkpoints").iterdir()
        }
        (events,) = (base_run / "tensorboard").glob("events.out.tfevents.*")
        assert events.stat().st_size > 0
        with Image.open(base_run / "training.png") as image:
            image.verify()
            assert image.format == "PNG"

    def test_config_tells_options_and_versions(self, base_run):
        config = json.loads((base_run / "config.json").read_text())
        given = {"data": "digits", "num_steps": 20, "eval_every": 10, "widths": [16], "seed": 0}
        assert given.items() <= config["options"].items()
        assert config["versions"].keys() == {"python", "pcflax", "jax", "flax", "optax"}

    def test_metrics_are_one_object_a_line_in_order(self, base_run):
        rows = rows_of(base_run)
        assert all(isinstance(row["step"], int) for row in rows)
        assert [row["step"] for row in rows] == [10, 20, 20]
        assert [row["step"] for row in rows if "eval/accuracy" in row] == [10, 20]
        assert {"train/energy", "train/loss", "train/accuracy"} <= rows[1].keys()

    def test_the_energy_falls(self, base_run):
        """20 steps of learning must help, or the sign of the update is wrong."""
        first, last = (row["eval/energy"] for row in rows_of(base_run) if "eval/energy" in row)
        assert last < first

    def test_equal_seeds_give_equal_runs_and_print_what_they_measured(
        self, base_run, tmp_path, capsys
    ):
        """Without that no result could be repeated."""
        run_dir = tmp_path / "run"
        printed = output(capsys, "train", "--run-dir", run_dir, *SMALL, "--seed", 0)
        assert digest(run_dir) == digest(base_run)
        metrics = (run_dir / "metrics.jsonl").read_bytes()
        assert metrics == (base_run / "metrics.jsonl").read_bytes()
        for row in rows_of(run_dir):
            if "eval/accuracy" in row:
                assert re.search(rf"{row['step']} .* {row['eval/accuracy']:.4f} ", printed)
        assert f"checkpoint  {run_dir / 'checkpoints' / '20'}\n" in printed
        assert f"figure      {run_dir / 'training.png'}\n" in printed

    def test_another_seed_gives_another_run(self, base_run, tmp_path):
        assert digest(train(tmp_path / "run", "--seed", 1)) != digest(base_run)

    @pytest.mark.parametrize(
        "options",
        [
            ("--learning", "backprop"),
            ("--output", "categorical"),
            ("--activation", "relu", "--widths", "12", "7", "--batch-size", "1"),
        ],
        ids=lambda options: options[1],
    )
    def test_every_choice_trains_and_can_be_measured_again(
        self, base_run, tmp_path, capsys, options
    ):
        run_dir = train(tmp_path / "run", *options)
        rows = [row["eval/energy"] for row in rows_of(run_dir) if "eval/energy" in row]
        assert rows[-1] < rows[0]
        measured = json.loads(output(capsys, "evaluate", run_dir, "--json"))
        assert measured["energy"] == pytest.approx(last_eval(run_dir)["energy"], rel=1e-6)
        assert digest(run_dir) != digest(base_run)
        if "categorical" in options:  # its energy is the cross-entropy of its logits, by NumPy
            prediction, labels = forward(run_dir)
            entropy = -special.log_softmax(prediction, axis=1)[np.arange(360), labels].mean()
            assert measured["energy"] == pytest.approx(entropy, rel=1e-5)  # float32

    def test_a_file_with_floating_targets_trains(self, tmp_path, capsys):
        random = np.random.default_rng(0)
        inputs = random.normal(size=(40, 5))
        targets = inputs @ random.normal(size=(5, 3))
        path = tmp_path / "mine.npz"
        np.savez(path, x_train=inputs, y_train=targets, x_test=inputs[:7], y_test=targets[:7])
        run_dir = train(tmp_path / "run", "--data", path, "--batch-size", "8")
        assert last_eval(run_dir).keys() == {"step", "energy", "squared_error"}
        record = json.loads(output(capsys, "inspect", run_dir, "--json", "--best"))
        evaluated = [row for row in rows_of(run_dir) if "eval/squared_error" in row]
        best = min(evaluated, key=lambda row: row["eval/squared_error"])
        assert record["step"] == best["step"]

    def test_without_a_folder_it_makes_one_named_after_data_and_time(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        main(["train", "--num-steps", "2", "--widths", "4"])
        (run_dir,) = (tmp_path / "runs").iterdir()
        assert re.fullmatch(r"digits-\d{8}-\d{6}", run_dir.name)
        assert digest(run_dir)


def forward(run_dir):
    """NumPy's predictions of a run's network for the test digits, and their labels."""
    images, labels = read_digits("test")
    activity = (images.reshape(360, 64) / 16 - 0.3054) / 0.3759
    layers = pc.load_checkpoint(run_dir).parameters
    for name in sorted(layers):  # hidden_1, hidden_2, ..., output
        linear = layers[name]["linear"]
        activity = activity @ linear["kernel"].astype(np.float64) + linear["bias"]
        if name != "output":
            activity = np.tanh(activity)
    return activity, labels


class TestPreset:
    def options(self, run_dir):
        return json.loads((run_dir / "config.json").read_text())["options"]

    def test_fast_is_a_set_of_defaults_which_other_options_go_over(self, tmp_path):
        run_dir = train(tmp_path / "run", "--preset", "fast", "--learning-rate", "0.01")
        options = self.options(run_dir)
        assert options["preset"] == "fast"
        assert options["learning_rate"] == 0.01
        assert options["num_steps"] == 20  # of SMALL
        for name, value in PRESETS["fast"].items():
            if name not in ("learning_rate", "num_steps"):
                assert options[name] == value

    def test_it_resumes_bitwise(self, tmp_path):
        whole = train(tmp_path / "whole", "--preset=fast")
        part = shutil.copytree(whole, tmp_path / "part")
        shutil.rmtree(part / "checkpoints/20")
        (part / "checkpoints/20.sha256").unlink()
        main(["train", "--run-dir", str(part), "--resume"])
        assert digest(part) == digest(whole)

    def test_a_run_whose_rate_decays_ends_where_it_was_to(self, tmp_path, capsys):
        run_dir = train(tmp_path / "run", "--preset", "fast")
        with pytest.raises(SystemExit):
            main(["train", "--run-dir", str(run_dir), "--resume", "--num-steps", "30"])
        assert "lets its rate fall to zero at step 20 (--decay)" in capsys.readouterr().err

    def test_cross_entropy_of_what_is_no_probability_is_refused(self, tmp_path, capsys):
        random = np.random.default_rng(0)
        arrays = {
            f"{n}_{s}": random.normal(size=(40, 3)).astype("float32")
            for n in "xy"
            for s in ("train", "test")
        }
        np.savez(tmp_path / "data.npz", **arrays)
        with pytest.raises(SystemExit):
            train(
                tmp_path / "run",
                "--preset",
                "fast",
                "--data",
                tmp_path / "data.npz",
                "--batch-size",
                8,
            )
        assert "expects labels or rows of probabilities" in capsys.readouterr().err
        assert not (tmp_path / "run").exists()

    def test_a_decaying_rate_changes_the_end(self, tmp_path, base_run):
        """The first step has the whole rate and the last almost none."""
        decayed = train(tmp_path / "run", "--decay")
        first, last = (
            [row["eval/energy"] for row in rows_of(folder) if "eval/energy" in row]
            for folder in (base_run, decayed)
        )
        assert first != last
        assert abs(last[1] - last[0]) < abs(first[1] - first[0])

    def test_pc_infers_most_of_the_way_in_every_layer(self, tmp_path, capsys):
        """80 % is what real predictive coding is taken to be; the notebook's preset is told apart."""
        run_dir = train(tmp_path / "run", "--preset", "pc", "--widths", "300", "300")
        found = json.loads(output(capsys, "inspect", run_dir, "--health", "--json"))
        assert min(found["inference"]["layer_gap_closed"].values()) > 0.8
        assert found["inference"]["stability"] < 0.5
        assert "in every layer: this is predictive coding; " in found["summary"]
        assert set(found["displacement"]) == {"hidden_1", "hidden_2", "output", "total"}

    def test_the_notebooks_preset_changes_nothing(self):
        assert preset("notebook") == TrainOptions()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--preset", "fats"], "expected --preset notebook or pc or fast, got fats"),
        ],
    )
    def test_refusals(self, tmp_path, capsys, options, message):
        with pytest.raises(SystemExit) as stop:
            train(tmp_path / "run", *options)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    """A finished run that leaves a fifth of the training digits out."""
    return train(tmp_path_factory.mktemp("held_out") / "run", "--validation", 20)


class TestValidation:
    """Nothing is chosen on the test split unless one asks for it."""

    def test_evaluations_are_of_the_part_that_is_not_trained_on(self, held_out, capsys):
        measured = json.loads(output(capsys, "evaluate", held_out, "--split=validation", "--json"))
        assert measured.pop("data") == "digits/train[80%:]"
        assert measured == last_eval(held_out)
        trained = output(capsys, "evaluate", held_out, "--split", "train")
        assert "on digits/train[:80%] (1,150 examples)" in " ".join(trained.split())

    def test_the_best_is_chosen_by_it_and_the_test_split_is_told_at_the_end(
        self, held_out, tmp_path, capsys
    ):
        printed = output(capsys, "train", "--resume", "--run-dir", held_out)
        measured = json.loads(output(capsys, "evaluate", held_out, "--json"))
        assert measured["data"] == "digits/test"
        assert re.search(rf"test split .*accuracy {measured['accuracy']:.4f}.*\(360 ex", printed)
        assert "eval is digits/train[80%:]" in " ".join(printed.split())
        rows = {
            row["step"]: row["eval/accuracy"] for row in rows_of(held_out) if "eval/accuracy" in row
        }
        best = max(rows, key=lambda step: (rows[step], step))
        measured = json.loads(output(capsys, "evaluate", held_out, "--json", "--best"))
        assert measured["step"] == best

    def test_a_run_without_has_none_to_measure(self, base_run, capsys):
        told = error(capsys, "evaluate", base_run, "--split", "validation")
        assert "the run was trained with --validation 0; take --split test" in told

    def test_all_of_the_training_split_cannot_be_left_out(self, tmp_path, capsys):
        told = error(capsys, "train", "--run-dir", tmp_path / "run", "--validation", 95, code=2)
        assert "expected --validation from 0 to 90 percent, got 95" in told


class TestEvaluate:
    def test_it_agrees_with_the_runs_last_evaluation(self, base_run, capsys):
        measured = json.loads(output(capsys, "evaluate", base_run, "--json"))
        assert measured.pop("data") == "digits/test"
        assert measured == last_eval(base_run)

    def test_a_narrow_terminal_leaves_no_digit_out(self, base_run, monkeypatch, capsys):
        """Cells were cut, and the title broken into words above a table of two columns."""
        monkeypatch.setenv("COLUMNS", "40")
        measured = last_eval(base_run)
        title, *_ = output(capsys, "evaluate", base_run).splitlines()
        assert title == f"{base_run} at step 20 on digits/test (360 examples)"
        printed = output(capsys, "inspect", base_run)
        assert "…" not in printed
        assert f"{measured['accuracy']:.4g}" in printed

    def test_it_agrees_with_numpys_forward_pass(self, base_run, capsys):
        """Accuracy and energy from the stored weights alone: what a paper would report."""
        measured = json.loads(output(capsys, "evaluate", base_run, "--json"))
        prediction, labels = forward(base_run)
        assert measured["accuracy"] == np.mean(prediction.argmax(axis=1) == labels)
        energy = 0.5 * ((np.eye(10)[labels] - prediction) ** 2).sum(axis=1).mean()
        assert measured["energy"] == pytest.approx(energy, rel=1e-5)  # float32

    @pytest.mark.parametrize("batch_size", [1, 7, 1000])
    def test_the_batch_size_does_not_matter(self, base_run, capsys, batch_size):
        measured = output(capsys, "evaluate", base_run, "--json", "--batch-size", batch_size)
        measured = json.loads(measured)
        expected = last_eval(base_run)
        assert measured["accuracy"] == expected["accuracy"]
        assert measured["energy"] == pytest.approx(expected["energy"], rel=1e-5)

    def test_steps_and_the_best_can_be_asked_for(self, base_run, capsys):
        evaluated = {row["step"]: row for row in rows_of(base_run) if "eval/accuracy" in row}
        for step in (10, 20):
            measured = json.loads(output(capsys, "evaluate", base_run, "--json", "--step", step))
            assert (measured["step"], measured["energy"]) == (step, evaluated[step]["eval/energy"])
        best = max(evaluated, key=lambda step: (evaluated[step]["eval/accuracy"], step))
        measured = json.loads(output(capsys, "evaluate", base_run, "--json", "--best"))
        assert measured["step"] == best

    def test_other_data_of_ones_own_can_be_measured(self, base_run, tmp_path, capsys):
        images, labels = read_digits("test")
        inputs = (images.reshape(360, 64) / 16 - 0.3054) / 0.3759
        path = tmp_path / "mine.npz"
        np.savez(path, x_test=inputs[:90], y_test=labels[:90])
        measured = json.loads(output(capsys, "evaluate", base_run, "--data", path, "--json"))
        prediction, _ = forward(base_run)
        assert measured["data"] == "mine/test"
        assert measured["accuracy"] == np.mean(prediction[:90].argmax(axis=1) == labels[:90])

    def test_it_prints_a_table_and_writes_nothing(self, base_run, capsys):
        before = files_of(base_run)
        printed = output(capsys, "evaluate", base_run, "--split", "train")
        assert "at step 20 on digits/train (1,437 examples)" in " ".join(printed.split())
        assert re.search(r"accuracy .* 0\.\d{4}", printed)
        assert files_of(base_run) == before

    @pytest.mark.filterwarnings("default")
    def test_a_damaged_checkpoint_is_skipped_with_a_warning(self, run, capsys):
        """Measured as if nothing were wrong, one flipped byte would be a wrong result."""
        path = max(
            (run / "checkpoints" / "20" / "state").rglob("d/*"), key=lambda p: p.stat().st_size
        )
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))
        capsys.readouterr()
        main(["evaluate", str(run), "--json"])
        captured = capsys.readouterr()
        assert json.loads(captured.out)["step"] == 10
        assert re.fullmatch(r"warning: checkpoint .*20 is skipped: .*\n", captured.err)
        told = error(capsys, "evaluate", run, "--step", 20)
        assert re.search(r"checkpoint .*20 is damaged: .*the newest good one is .*10", told)


class TestInspect:
    def test_json_tells_step_metrics_shapes_and_digest(self, base_run, capsys):
        record = json.loads(output(capsys, "inspect", base_run, "--json"))
        assert record["step"] == 20
        shapes = sorted(map(tuple, record["parameters"].values()))
        assert shapes == [(10,), (16,), (16, 10), (64, 16)]
        assert record["parameters"]["hidden_1.linear.kernel"] == [64, 16]
        assert re.fullmatch("[0-9a-f]{64}", record["digest"])
        assert record["digest"] == digest(base_run)
        expected = {f"eval/{name}": value for name, value in last_eval(base_run).items()}
        del expected["eval/step"]
        assert expected.items() <= record["metrics"].items()

    def test_steps_can_be_asked_for_and_differ(self, base_run, capsys):
        records = [
            json.loads(output(capsys, "inspect", base_run, "--json", "--step", step))
            for step in (10, 20)
        ]
        assert [record["step"] for record in records] == [10, 20]
        assert records[0]["digest"] != records[1]["digest"]

    def test_it_prints_the_same_in_words(self, base_run, capsys):
        printed = output(capsys, "inspect", base_run)
        assert f"digest      {digest(base_run)}\n" in printed
        assert "1,210 parameters" in printed  # 64 * 16 + 16 + 16 * 10 + 10


class TestResume:
    def test_more_steps_end_as_the_straight_run(self, base_run, tmp_path):
        """The promise of exact resume; Adam's moments or the data's place lost would show here."""
        run_dir = train(tmp_path / "run", "--num-steps", 10)
        assert digest(run_dir) != digest(base_run)
        before = (run_dir / "checkpoints" / "10.sha256").read_bytes()
        main(["train", "--resume", "--run-dir", str(run_dir), "--num-steps", "20"])
        assert digest(run_dir) == digest(base_run)
        assert last_eval(run_dir) == last_eval(base_run)
        assert (run_dir / "checkpoints" / "10.sha256").read_bytes() == before
        assert json.loads((run_dir / "config.json").read_text())["options"]["num_steps"] == 20

    def test_a_finished_run_has_nothing_to_do(self, run, base_run, capsys):
        printed = output(capsys, "train", "--resume", f"--run-dir={run}")
        assert "restored step 20" in printed
        assert "nothing to do: all 20 steps are done" in printed
        assert files_of(run / "checkpoints") == files_of(base_run / "checkpoints")
        assert rows_of(run) == rows_of(base_run)

    def test_json_tells_what_the_words_do(self, run, capsys):
        told = json.loads(output(capsys, "train", "--resume", f"--run-dir={run}", "--json"))
        rows = rows_of(run)
        last = {name: value for row in rows for name, value in row.items() if name != "step"}
        figure = str(run / "training.png")
        checkpoint = str(run / "checkpoints" / "20")
        expected = {"step": 20, "run": str(run), "metrics": last}
        assert told == {**expected, "checkpoint": checkpoint, "figure": figure}

    def test_a_run_stopped_before_its_first_checkpoint_begins_again(self, run, base_run, capsys):
        shutil.rmtree(run / "checkpoints")
        printed = output(capsys, "train", "--resume", "--run-dir", run)
        assert "no checkpoint yet, so the run begins at step 0" in printed
        assert digest(run) == digest(base_run)
        assert rows_of(run) == rows_of(base_run)

    def test_other_options_are_refused_with_both_values(self, run, capsys):
        """A resumed run of another width would be another experiment under the old name."""
        before = files_of(run)
        told = error(capsys, "train", "--resume", "--run-dir", run, "--widths", 16, 8)
        assert "was started with --widths 16, got --widths 16 8; leave the option out" in told
        told = error(capsys, "train", "--resume", "--run-dir", run, "--learning-rate", 0.5)
        assert "was started with --learning-rate 0.001, got --learning-rate 0.5" in told
        assert files_of(run) == before

    def test_nothing_to_resume_is_told(self, tmp_path, capsys):
        told = error(capsys, "train", "--resume", "--run-dir", tmp_path / "absent")
        assert re.search(
            r"there is no run in .*absent \(no config\.json\); start one: pcflax", told
        )
        assert list(tmp_path.iterdir()) == []

    def test_without_a_folder_it_asks_for_one(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        told = error(capsys, "train", "--resume", code=2)
        assert "--resume needs to know which run: add --run-dir RUN" in told
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "content", ["{", "[]", '{"options": {"widths": 3}}', '{"options": {}}']
    )
    def test_a_config_that_cannot_be_read_is_named(self, run, capsys, content):
        (run / "config.json").write_text(content)
        before = files_of(run)
        told = error(capsys, "train", "--resume", "--run-dir", run)
        assert "config.json cannot be read as a run's options: " in told
        assert files_of(run) == before


def write_npz(path, **changes):
    """20 examples that fit a network for the digits, where `changes` do not say otherwise."""
    random = np.random.default_rng(0)
    inputs, labels = random.normal(size=(20, 64)), np.arange(20) % 10
    arrays = {"x_train": inputs, "y_train": labels, "x_test": inputs, "y_test": labels, **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def both_splits(inputs=None, labels=None):
    """The same arrays for training and testing; what is not given stays as it is."""
    arrays = {"x_train": inputs, "x_test": inputs, "y_train": labels, "y_test": labels}
    return {name: array for name, array in arrays.items() if array is not None}


NORMAL = np.random.default_rng(1).normal(size=(20, 64))
NAN = np.where(np.arange(20)[:, None] == 3, np.nan, NORMAL)
NEGATIVE = np.where(np.arange(20) == 2, -1, np.arange(20) % 10)
EMPTY = (np.zeros((0, 64)), np.zeros(0, np.int64))

BAD_FILES = {
    "dtype": (
        both_splits(inputs=np.ones((20, 64), np.int64)),
        r"the inputs of 'mine/\w+' have dtype int64, expected a floating dtype; scale and cast",
    ),
    "label": (
        both_splits(labels=NEGATIVE),
        r"label -1 of example 2 in 'mine/\w+' is out of range; expected 0 to 9",
    ),
    "nan": (
        both_splits(inputs=NAN),
        r"the inputs of 'mine/\w+' hold NaN or infinity in 1 of 20 examples, first in example 3",
    ),
    "lengths": (both_splits(inputs=NORMAL[:7]), r"'mine/\w+' has 7 inputs but 20 targets"),
    "missing array": (
        {"y_train": None, "y_test": None},
        r"mine\.npz holds x_train, x_test but not y_\w+; expected x_train, y_train",
    ),
    "float labels": (
        both_splits(labels=np.arange(20) / 2),
        r"the targets of 'mine/\w+' have shape \(20,\) and dtype float64; expected integer labels",
    ),
    "empty": (both_splits(*EMPTY), r"data set 'mine/\w+' is empty; expected at least one example"),
}
bad_files = pytest.mark.parametrize("case", BAD_FILES)


class TestBadData:
    @bad_files
    def test_evaluate_tells_what_is_wrong_and_changes_nothing(self, run, tmp_path, capsys, case):
        arrays, text = BAD_FILES[case]
        path, before = write_npz(tmp_path / "mine.npz", **arrays), files_of(run)
        assert re.search(text, error(capsys, "evaluate", run, "--data", path))
        assert files_of(run) == before

    @bad_files
    def test_train_tells_what_is_wrong_and_leaves_no_folder(self, tmp_path, capsys, case):
        arrays, text = BAD_FILES[case]
        path, run_dir = write_npz(tmp_path / "mine.npz", **arrays), tmp_path / "new"
        told = error(
            capsys, "train", "--data", path, "--run-dir", run_dir, "--batch-size", 4, *WHOLE
        )
        assert re.search(text, told)
        assert not run_dir.exists()

    @pytest.mark.parametrize("width", [1, 63, 65])
    def test_inputs_of_another_width_than_the_networks(self, run, tmp_path, capsys, width):
        """Cut or broadcast instead, they would give an accuracy that means nothing."""
        path = write_npz(tmp_path / "mine.npz", **both_splits(inputs=np.ones((20, width))))
        before = files_of(run)
        told = error(capsys, "evaluate", run, "--data", path)
        assert "the evaluation data 'mine/test' does not fit the network: layer 'hidden_1'" in told
        assert "expected an input of shape (batch, 64), got (20, " in told
        assert f"set in_features={width}" in told
        assert files_of(run) == before

    def test_more_classes_than_the_network_has(self, run, tmp_path, capsys):
        path = write_npz(tmp_path / "mine.npz", **both_splits(labels=np.arange(20) % 12))
        before = files_of(run)
        told = error(capsys, "evaluate", run, "--data", path)
        assert "the evaluation data 'mine/test' does not fit the network: layer 'output'" in told
        assert "(20, 10)" in told
        assert "(20, 12)" in told
        assert files_of(run) == before

    def test_a_file_without_the_networks_last_classes_is_measured(self, run, tmp_path, capsys):
        """As it is where the same file's training labels tell of them."""
        measured = []
        for name, highest in (("some.npz", 3), ("all.npz", 9)):
            arrays = both_splits(inputs=NORMAL, labels=np.arange(20) % 4)
            path = write_npz(tmp_path / name, **{**arrays, "y_train": np.full(20, highest)})
            found = json.loads(output(capsys, "evaluate", run, "--data", path, "--json"))
            measured.append((found["accuracy"], found["energy"]))
        assert measured[0] == measured[1]

    @pytest.mark.parametrize("verb", ["train", "evaluate"])
    def test_an_unknown_name_is_told_with_the_nearest(self, run, tmp_path, capsys, verb):
        before = files_of(run)
        place = [run] if verb == "evaluate" else ["--run-dir", tmp_path / "new"]
        told = error(capsys, verb, *place, "--data", "mnits")
        assert "unknown data set 'mnits'; did you mean 'mnist'?" in told
        assert files_of(run) == before
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize("verb", ["train", "evaluate"])
    def test_a_missing_file_is_named(self, run, tmp_path, capsys, verb):
        before = files_of(run)
        place = [run] if verb == "evaluate" else ["--run-dir", tmp_path / "new"]
        told = error(capsys, verb, *place, "--data", tmp_path / "absent.npz")
        assert f"there is no file {tmp_path / 'absent.npz'}; expected an .npz file" in told
        assert files_of(run) == before
        assert not (tmp_path / "new").exists()

    def test_a_file_that_is_no_npz_is_told_in_one_sentence(self, run, tmp_path, capsys):
        path = tmp_path / "text.npz"
        path.write_text("x_train,y_train\n1,2\n")
        error(capsys, "evaluate", run, "--data", path)

    def test_a_set_that_is_not_prepared_is_told_with_both_ways_out(self, tmp_path, capsys):
        pytest.importorskip("tensorflow_datasets", exc_type=ImportError)
        told = error(
            capsys,
            "train",
            "--data",
            "mnist",
            "--data-dir",
            tmp_path,
            "--run-dir",
            tmp_path / "new",
        )
        for part in (f"'mnist' is not prepared in {tmp_path}", "--data digits", "--data-dir"):
            assert part in told
        assert not (tmp_path / "new").exists()

    def test_a_batch_larger_than_the_set(self, tmp_path, capsys):
        run_dir = tmp_path / "new"
        told = error(capsys, "train", "--run-dir", run_dir, "--batch-size", 5000)
        assert "batch_size 5000 is larger than data set 'digits/train[:90%]' with its 1293" in told
        assert not run_dir.exists()

    @pytest.mark.parametrize("batch_size", [0, -3])
    def test_a_training_batch_of_nothing(self, tmp_path, capsys, batch_size):
        arguments = ["--run-dir", tmp_path / "new", "--batch-size", batch_size]
        told = error(capsys, "train", *arguments, code=2)
        assert f"expected --batch-size of at least 1, got {batch_size}" in told
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize("batch_size", [0, -3])
    def test_an_evaluation_batch_of_nothing(self, base_run, capsys, batch_size):
        told = error(capsys, "evaluate", base_run, "--batch-size", batch_size, code=2)
        assert f"expected --batch-size of at least 1, got {batch_size}" in told


class TestBadRuns:
    def test_a_folder_that_holds_a_run_is_not_written_to(self, run, capsys):
        """Somebody's results would be lost."""
        before = files_of(run)
        told = error(capsys, "train", "--run-dir", run, *SMALL, "--seed", 3)
        assert f"the folder {run} already holds a run; add --resume" in told
        assert files_of(run) == before

    def test_a_folder_below_a_file_cannot_be_made(self, tmp_path, capsys):
        (tmp_path / "file").write_text("mine")
        told = error(capsys, "train", "--run-dir", tmp_path / "file" / "run", *SMALL)
        assert re.search(r"cannot write the run folder .*run: .*; choose another --run-dir", told)
        assert (tmp_path / "file").read_text() == "mine"
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    @pytest.mark.parametrize("option", [["--step-size", "1e6"], ["--learning-rate", "1e30"]])
    def test_a_run_that_diverges_is_stopped_and_says_where(self, tmp_path, capsys, option):
        """NaN must not reach a checkpoint: it would be restored as if it were a result."""
        run_dir = tmp_path / "run"
        told = error(capsys, "train", "--run-dir", run_dir, *SMALL, *option)
        assert re.search(r"the energy is not finite at step \d+: layer '\w+' has energy", told)
        assert "the step was not applied; there is no checkpoint; lower the step sizes" in told
        assert not list((run_dir / "checkpoints").glob("[0-9]*"))

    @pytest.mark.parametrize("verb", ["evaluate", "inspect"])
    def test_a_folder_without_a_run_is_told(self, tmp_path, capsys, verb):
        (tmp_path / "empty").mkdir()
        for name in ("absent", "empty"):
            told = error(capsys, verb, tmp_path / name)
            assert re.search(rf"there is no (run|checkpoint) in .*{name}", told)
        assert [path.name for path in tmp_path.rglob("*")] == ["empty"]

    def test_a_step_without_a_checkpoint_is_told_with_those_there_are(self, run, capsys):
        before = files_of(run)
        for verb in ("evaluate", "inspect"):
            told = error(capsys, verb, run, "--step", 15)
            assert re.search(r"there is no checkpoint of step 15 in .*; there are 10, 20\n", told)
        told = error(capsys, "inspect", run, "--step=10", "--best", code=2)
        assert "give --step or --best, not both" in told
        assert files_of(run) == before

    @pytest.mark.filterwarnings("default")
    def test_a_run_whose_checkpoints_are_all_damaged_is_left_alone(self, run, capsys):
        for seal in (run / "checkpoints").glob("*.sha256"):
            seal.write_text("0" * 64 + "  20/nothing\n")
        before = files_of(run)
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            main(["inspect", str(run)])
        *warned, told = capsys.readouterr().err.splitlines()
        assert exit_info.value.code == 1
        assert len(warned) == 2
        assert all(line.startswith("warning: ") for line in warned)
        assert re.match("error: none of the 2 checkpoints in .* is good; the newest, 20: ", told)
        assert files_of(run) == before

    def test_widths_below_one_are_refused(self, tmp_path, capsys):
        told = error(capsys, "train", "--run-dir", tmp_path / "new", "--widths", "16", "0", code=2)
        assert "expected hidden widths of at least 1, got (16, 0)" in told
        assert not (tmp_path / "new").exists()

    def test_a_negative_number_of_steps_is_refused(self, tmp_path, capsys):
        told = error(capsys, "train", "--run-dir", tmp_path / "new", "--num-steps", "-5", code=2)
        assert "expected --num-steps of at least 1, got -5" in told

    def test_options_refused_before_training_leave_no_folder(self, tmp_path, capsys):
        run_dir = tmp_path / "new"
        told = error(capsys, "train", "--run-dir", run_dir, *SMALL, "--eval-every", "0", code=2)
        assert "expected --eval-every of at least 1, got 0" in told
        assert not run_dir.exists()


def test_the_version_is_that_of_the_package(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"pcflax {importlib.metadata.version('pcflax')}\n"


class TestExitCodes:
    @pytest.mark.parametrize(
        "arguments",
        [
            [],
            ["fly"],
            ["train", "--num-steps", "many"],
            ["train", "--num_stepz", "3"],
            ["train", "--output", "laplace"],
            ["train", "--run-dir"],
            ["evaluate"],
            ["evaluate", "run", "--split", "held-out"],
            ["inspect"],
        ],
        ids=" ".join,
    )
    def test_wrong_usage_is_2(self, arguments, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as exit_info:
            main(arguments)
        assert exit_info.value.code == 2
        captured = capsys.readouterr()
        assert captured.err
        assert "Traceback" not in captured.out + captured.err
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("verb", ["train", "evaluate", "inspect"])
    def test_help_is_0_and_names_the_options(self, verb, capsys):
        with pytest.raises(SystemExit) as exit_info:
            main([verb, "--help"])
        assert exit_info.value.code == 0
        printed = capsys.readouterr().out
        options = {
            "train": "data data-dir num-steps batch-size seed run-dir resume debug",
            "evaluate": "data data-dir split batch-size step best json debug",
            "inspect": "step best json debug",
        }
        for option in options[verb].split():
            assert f"--{option}" in printed

    def test_debug_lets_the_exception_through(self, tmp_path):
        """Whoever looks for the cause needs to see where it came from."""
        with pytest.raises(FileNotFoundError, match="there is no checkpoint in"):
            main(["inspect", str(tmp_path / "absent"), "--debug"])

    def test_a_kind_of_error_nobody_worded_is_named(self, monkeypatch, capsys, tmp_path):
        def fail(options):
            raise RuntimeError("first line\nsecond line")

        monkeypatch.setattr(inspect_verb, "inspect", fail)
        told = error(capsys, "inspect", tmp_path)
        assert told == "error: RuntimeError: first line (add --debug for the traceback)\n"

    def test_ctrl_c_is_130(self, monkeypatch, capsys, tmp_path):
        def interrupt(options):
            raise KeyboardInterrupt

        monkeypatch.setattr(inspect_verb, "inspect", interrupt)
        with pytest.raises(SystemExit) as exit_info:
            main(["inspect", str(tmp_path)])
        assert exit_info.value.code == 130
        assert capsys.readouterr().err == "stopped\n"  # it has no --resume


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "pcflax", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class TestProcess:
    """As a shell sees it: nothing but our own words on standard error."""

    def test_an_error_is_one_line_and_exit_code_1(self, run, tmp_path):
        path = write_npz(tmp_path / "mine.npz", **both_splits(inputs=NAN))
        before = files_of(run)
        process = start("evaluate", run, "--data", path)
        _, told = process.communicate(timeout=120)
        assert process.returncode == 1
        assert re.fullmatch(r"error: the inputs of 'mine/test' hold NaN .*\n", told)
        assert files_of(run) == before

    def test_sigterm_saves_and_a_resumed_run_ends_as_the_straight_one(self, tmp_path, capsys):
        """A preempted job on a cluster gets exactly this signal."""
        run_dir = tmp_path / "run"
        process = start("train", "--run-dir", run_dir, *SMALL, "--num-steps", 1_000_000)
        try:
            begin = time.monotonic()
            while not (run_dir / "checkpoints" / "10.sha256").exists():
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() - begin < 120
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            _, told = process.communicate(timeout=120)
        finally:
            if process.poll() is None:
                process.kill()
        assert process.returncode == 143
        assert "Traceback" not in told
        stopped = pc.load_checkpoint(run_dir)
        assert 10 <= stopped.step < 1_000_000

        total = str(stopped.step + 7)
        printed = output(capsys, "train", "--resume", "--run-dir", run_dir, "--num-steps", total)
        assert f"restored step {stopped.step}\n" in printed
        straight = train(tmp_path / "straight", "--num-steps", total)
        assert pc.load_checkpoint(run_dir).step == int(total)
        assert digest(run_dir) == digest(straight)
        assert rows_of(run_dir) == rows_of(straight)
