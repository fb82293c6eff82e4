"""`--config FILE` and `--quiet`. Oracle: the same options on the command line."""

import dataclasses
import json

import pytest

from pcflax.cli.checking import check_resumable
from pcflax.cli.config import with_config
from pcflax.cli.main import main
from pcflax.cli.options import TrainOptions, read_config, write_config
from pcflax.cli.verbs import SweepOptions
from tests.cli.test_main import error
from tests.training import test_runs_of_0_1

stored_runs = test_runs_of_0_1.runs
YAML = """\
num-steps: 4
eval_every: 2
learning-rate: 1e-3  # text to YAML 1.1
widths: [8, 6]
validation: 0
momentum: 0.5
health: no
quiet: yes
"""
TYPED = [*"--num-steps 4 --eval-every 2 --learning-rate 1e-3 --widths 8 6".split()]
TYPED += [*"--validation 0 --momentum 0.5 --no-health --quiet".split()]


@pytest.fixture
def write(tmp_path):
    """Writes a file of options."""

    def written(text, name="run.yaml"):
        (tmp_path / name).write_text(text if isinstance(text, str) else json.dumps(text))
        return str(tmp_path / name)

    return written


def words(arguments, kind=TrainOptions):
    verb = "train" if kind is TrainOptions else "sweep"
    return with_config([verb, *map(str, arguments)], kind)[1:]


def test_a_file_stands_for_the_options_it_holds(write):
    path = write(YAML)
    assert words(["--config", path, "--seed", 1]) == [*TYPED, "--seed", "1"]
    assert words(["--seed", 1, f"--config={path}"]) == [*TYPED, "--seed", "1"]
    assert words(["--seed", 1]) == ["--seed", "1"]


@pytest.fixture
def chosen(monkeypatch):
    """Runs a command line of `train` up to the training, and returns its options."""
    found = []

    def train(options):
        print("told")
        found.append(options)

    monkeypatch.setattr("pcflax.cli.train.train", train)

    def choose(*arguments):
        main(["train", *map(str, arguments)])
        return found[-1]

    return choose


def test_a_file_its_options_and_a_runs_own_config_choose_the_same(write, tmp_path, chosen):
    path, run = write(YAML), tmp_path / "run"
    # what is typed goes first
    options = chosen("--config", path, "--widths", 4, "--run-dir", run)
    assert options == chosen(*TYPED, "--widths", 4, "--run-dir", run)
    assert options == TrainOptions(
        num_steps=4,
        eval_every=2,
        widths=(4,),
        validation=0,
        momentum=0.5,
        run_dir=run,
        quiet=True,
    )
    write_config(run, options)
    again = chosen("--config", run / "config.json")
    assert again == dataclasses.replace(options, run_dir=None, quiet=False)
    # a line with a file goes on as others do
    resumed = chosen("--config", path, "--widths", 4, "--run-dir", run, "--resume")
    check_resumable(read_config(run), resumed)


def test_a_run_of_0_1_can_be_made_again(stored_runs, chosen):
    stored = read_config(stored_runs / "stack")
    options = chosen("--config", stored_runs / "stack" / "config.json")
    assert options == dataclasses.replace(stored, run_dir=None)


def test_a_quiet_command_prints_nothing(chosen, capsys):
    chosen("--quiet")
    assert capsys.readouterr().out == ""
    chosen()
    assert capsys.readouterr().out == "told\n"


def test_other_kinds_of_values_are_words_too(write):
    path = write({"step-size": {"hidden.*": 0.1, "output": 0.2}, "decay": True, "tolerance": None})
    given = words(["--config", write({}, "empty.json"), "--config", path])  # the last counts
    assert given == ["--step-size", "hidden.*", "0.1", "output", "0.2", "--decay"]
    path = write({"search": ["seed=1,2", "width=3,4"], "trials": 3}, "sweep.json")
    given = words(["--config", path], SweepOptions)
    assert given == ["--search", "seed=1,2", "--search", "width=3,4", "--trials", "3"]
    # null says that the option is absent, also where the model brings one
    path = write({"model": "residual-mlp", "activation": None, "learning-rate": 0.1})
    given = words(["--config", path])
    assert given[:2] == ["--model", "residual-mlp"]
    assert given[-2:] == ["--learning-rate", "0.1"]


@pytest.mark.parametrize(
    ("text", "code", "told"),
    [
        ("learning-rat: 1", 2, "no option 'learning-rat' of pcflax train; did you mean 'learning-rate'?"),
        ("config: other.yaml", 2, "no option 'config' of pcflax train"),
        ("trials: 3", 2, "no option 'trials' of pcflax train"),
        ("num-steps: 3\nnum_steps: 4", 2, "gives --num-steps twice; leave one of them out"),
        ("widths: [[1, 2]]", 2, "expected --widths to be a value or a list, got [[1, 2]]"),
        ("- 3", 1, "holds no options; write one a line: num-steps: 500"),
        ("", 1, "holds no options"),
        ("a: [", 1, "is no YAML: "),
    ],
)  # fmt: skip
def test_what_is_no_option_is_refused_in_a_sentence(write, capsys, text, code, told):
    assert told in error(capsys, "train", "--config", write(text), code=code)


def test_files_that_cannot_be_read_are_refused_in_a_sentence(write, tmp_path, capsys):
    assert "there is no file" in error(capsys, "train", "--config", tmp_path / "a.yaml")
    told = error(capsys, "train", "--config", tmp_path / "a", code=2)
    assert "end in .yaml, .yml, .json, got" in told
    assert "cannot be read: Expecting" in error(capsys, "train", "--config", write("{", "a.json"))


def test_a_value_that_its_option_cannot_have_is_wrong_usage(write, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "--config", write("num-steps: many")])
    assert ended.value.code == 2
    assert "--num-steps" in capsys.readouterr().err
