"""`pcflax sweep`, by one of three trials.

Oracles: `pcflax train` and `pcflax evaluate` of what it says, and its folder before and after.
"""

import contextlib
import io
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

import pcflax as pc
from pcflax.cli import sweep as sweep_verb
from pcflax.cli.main import main
from pcflax.cli.options import write_config
from pcflax.cli.verbs import SweepOptions
from tests.cli.test_main import digest, error, files_of, output, wide_terminal  # noqa: F401

pytestmark = pytest.mark.slow

pytest.importorskip("optuna")

OPTIONS = ["--num-steps", "4", "--eval-every", "2", "--widths", "4", "--batch-size", "32"]
SEARCH = ["--search", "learning-rate=1e-3:1e-1:log", "--search", "activation=tanh,relu"]


def printed_by(capsys, *arguments):
    return output(capsys, "sweep", *arguments)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of a sweep of 3 trials, what it printed, and which splits it loaded."""
    folder, loaded = tmp_path_factory.mktemp("sweep") / "s", []
    real = sweep_verb.load_data

    def load(options, split, **others):
        loaded.append(split)
        return real(options, split, **others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        patch.setattr(sweep_verb, "load_data", load)
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            main(["sweep", *OPTIONS, *SEARCH, "--trials", "3", "--run-dir", str(folder)])
    return folder, shown.getvalue(), loaded


@pytest.fixture
def folder(done, tmp_path):
    """A copy of the sweep's folder."""
    return shutil.copytree(done[0], tmp_path / "s")


class TestSweep:
    def test_each_trial_is_a_run_of_its_own(self, done, capsys):
        folder, printed, _ = done
        assert {path.name for path in folder.iterdir()} == {
            "sweep.json",
            "journal.log",
            "sweep.png",
            "trials",
        }
        runs = sorted((folder / "trials").iterdir())
        assert [run.name for run in runs] == ["0000", "0001", "0002"]
        told = re.findall(r"^trial +(\d+)  complete  accuracy (\S+) .*$", printed, re.MULTILINE)
        assert len(told) == 3
        for run, (number, accuracy) in zip(runs, told, strict=True):
            measured = output(capsys, "evaluate", run, "--split", "validation", "--best", "--json")
            assert f"{json.loads(measured)['accuracy']:.4f}" == accuracy
            assert int(run.name) == int(number)

    def test_the_test_split_is_never_looked_at(self, done):
        assert set(done[2]) == {"train", "validation"}

    def test_the_line_it_says_trains_the_best_again_bitwise(self, done, tmp_path, capsys):
        _, printed, _ = done
        best = re.search(r"^best +(\S+)$", printed, re.MULTILINE)[1]
        (line,) = re.findall(r"^again +pcflax (.*)$", printed, re.MULTILINE)
        run = tmp_path / "again"
        main([*shlex.split(line), "--run-dir", str(run)])
        assert digest(run) == digest(best)

    def test_more_trials_are_added_and_none_is_run_again(self, folder, capsys):
        before = files_of(folder / "trials")
        printed = printed_by(capsys, "--resume", "--run-dir", folder, "--trials", "4")
        assert re.findall(r"^trial +(\d+)", printed, re.MULTILINE) == ["3"]
        assert "best of 4 trials (" in printed
        after = files_of(folder / "trials")
        assert {name: after[name] for name in before} == before
        assert json.loads((folder / "sweep.json").read_text())["options"]["trials"] == 4

    def test_the_line_that_began_it_goes_on_when_typed_again(self, folder, capsys):
        """What --search says was added to what the sweep had, and so refused."""
        line = (*OPTIONS, *SEARCH, "--trials", "3", "--run-dir", folder, "--resume")
        assert "best of 3 trials" in printed_by(capsys, *line)
        told = error(capsys, "sweep", "--run-dir", folder, "--resume", "--search", "width=1,2")
        first, second = SEARCH[1::2]
        assert f"was started with --search {first} {second}, got width=1,2; leave" in told

    def test_json_tells_what_the_words_do(self, folder, done, capsys):
        told = json.loads(printed_by(capsys, "--resume", "--run-dir", folder, "--json"))
        assert [one["number"] for one in told["trials"]] == [0, 1, 2]
        assert told["best"] in told["trials"]
        assert told["best"]["value"] == max(one["value"] for one in told["trials"])
        assert f"again       {told['again']}\n" in done[1]

    def test_a_finished_sweep_tells_its_result_again(self, folder, done, capsys):
        printed = printed_by(capsys, "--resume", "--run-dir", folder)
        assert "trial    0" not in printed
        tail = re.search(r"again .*", printed)[0]
        assert tail in done[1]

    def test_settings_that_are_refused_have_failed_with_the_sentence(self, tmp_path, capsys):
        """As a linear solve of a network that is not linear."""
        arguments = [
            "--search",
            "inference=linear,gradient",
            "--trials",
            "4",
            "--pruner",
            "halving",
        ]
        options = ["--activation", "identity", "--widths", "4", "--num-steps", "2"]
        printed = printed_by(
            capsys,
            *(
                "--run-dir",
                tmp_path / "s",
                *options,
                *arguments,
                "--search",
                "output=gaussian,categorical",
            ),
        )
        assert len(re.findall(r"^trial .*(complete|failed)", printed, re.MULTILINE)) == 4
        for line in re.findall(r"^trial .*failed .*$", printed, re.MULTILINE):
            assert "inference linear  output categorical" in line
            assert "(--inference linear solves linear networks only" in line

    def test_cost_and_objective_are_columns(self, tmp_path, capsys):
        printed = printed_by(
            capsys,
            *("--run-dir", tmp_path / "s", *OPTIONS, "--search", "inference-steps=1,9"),
            *("--trials", "2", "--cost", "gradients", "--objective", "energy", "--pruner", "none"),
        )
        costs = [float(one) for one in re.findall(r"cost (\S+)  inference-steps", printed)]
        assert len(costs) == 2
        header = " ".join(printed.split())
        assert "┃ trial ┃ energy ┃ step ┃ cost ┃ objective ┃ inference-steps ┃" in header

    def test_without_a_folder_it_makes_one(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        printed_by(capsys, *OPTIONS, *SEARCH, "--trials", "1")
        (folder,) = (tmp_path / "sweeps").iterdir()
        assert re.fullmatch(r"digits-\d{8}-\d{6}", folder.name)


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["--validation", "0", *SEARCH], 2, "--validation 0 leaves none but the test split"),
            (["--trials", "0", *SEARCH], 2, "expected --trials of at least 1, got 0"),
            ([], 2, "a sweep searches over something; add --search"),
            (["--objective", "acuracy", *SEARCH], 1, "got acuracy; did you mean 'accuracy'?"),
            (
                ["--objective", "test/accuracy", *SEARCH],
                1,
                "expected --objective accuracy or energy",
            ),
            (["--beta", "0.3", *SEARCH], 2, "--beta does nothing with --learning pc"),
            (["--search", "batch-size=4000:5000"], 1, "batch_size 4000 is larger than data set"),
            (["--resume"], 2, "--resume needs to know which sweep: add --run-dir SWEEP"),
            (["--resume", "--run-dir", "absent"], 1, "there is no sweep in absent (no sweep.json)"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_before_there_is_a_folder(
        self, arguments, code, message, tmp_path, monkeypatch, capsys
    ):
        monkeypatch.chdir(tmp_path)
        assert message in error(capsys, "sweep", *arguments, code=code)
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_holds_a_sweep_is_left_alone(self, folder, capsys):
        before = files_of(folder)
        told = error(capsys, "sweep", "--run-dir", folder, *SEARCH)
        assert f"the folder {folder} already holds a sweep; add --resume" in told
        told = error(capsys, "sweep", "--run-dir", folder, "--resume", "--widths", "5")
        assert "was started with --widths 4, got 5; leave the option out" in told
        told = error(capsys, "train", "--run-dir", folder, "--resume")
        assert "there is no run in" in told
        assert files_of(folder) == before

    def test_without_optuna_it_says_what_installs_it(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "optuna", None)
        told = error(capsys, "sweep", *SEARCH, "--run-dir", tmp_path / "s")
        assert told == "error: a sweep wants optuna; pip install 'pcflax[tune]'\n"


def test_a_trial_can_be_read_as_any_run(done):
    assert pc.load_checkpoint(done[0] / "trials" / "0001").step == 4


def test_a_sweep_goes_on_with_the_line_that_began_it(tmp_path, monkeypatch):
    """Paths are kept as seen from anywhere, and of a run to begin from its checkpoint."""
    monkeypatch.chdir(tmp_path)
    folder, checkpoint = tmp_path / "sweep", tmp_path / "first" / "checkpoints" / "8"
    line = {"data": "mine.npz", "search": ("batch-size=8,16",), "run_dir": folder}
    begun = SweepOptions(**line, begin_from=checkpoint)
    write_config(folder, begun)
    for given in (Path("first"), checkpoint):
        found = sweep_verb._resumed(SweepOptions(**line, begin_from=given, resume=True))
        assert found.begin_from == checkpoint
        assert found.data == str(tmp_path / "mine.npz")
    for other in ({"data": "other.npz"}, {"begin_from": Path("fir")}, {"begin_from": None}):
        wrong = {"begin_from": checkpoint} | line | other
        with pytest.raises(ValueError, match="leave the option out to resume"):
            sweep_verb._resumed(SweepOptions(**wrong, resume=True))
