"""Options of benchmarks and scripts: wrong use ends in one sentence before any work, and loses no results."""

import json
import pathlib
import re
import sys

import pytest
from rich.console import Console

from benchmarks import (
    adaptive_stop,
    costs,
    depth,
    guard,
    inference,
    on_paper,
    options,
    records,
    replicas,
    stack,
    suite,
    time_to_accuracy,
)
from benchmarks.answers import answer_parser
from scripts import crash_images, decoder, hybrid, kill_resume, mlp_table, vgg5_cifar10

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).resolve().parent.parent
COUNT = "expected a whole number of at least 1, got "
WRONG = {  # command line: what it is told
    (suite, "times", "--rounds", "0"): f"--rounds: {COUNT}'0'",
    (suite, "times", "--iterations", "-2"): f"--iterations: {COUNT}'-2'",
    (suite, "accuracy", "--budget", "soon"): "--budget: expected a number above 0, got 'soon'",
    (suite, "times", "--against", "none.json"): "expected a results file in JSON, got 'none.json'",
    (suite, "sweeps", "--contenders", "pcx"): "a part of the contenders or iterations goes to",
    (
        suite,
        "times",
        "sweeps",
        "--output",
        "new.json",
    ): "--output takes one part, got times, sweeps",
    (suite, "sweeps", "--output", "answers.json"): "answers.json holds no sweeps; name a file",
    (suite, "times", "--against", "answers.json"): "--against expected a results file of times",
    (costs, "--output", "folder"): "expected a file, got the folder 'folder'; name a file in it",
    (costs, "--output", "notes.md"): "expected a results file in JSON, got 'notes.md'",
    (costs, "--output", "notes.md/new.json"): "expected a file that can be written, got 'notes.md/",
    (guard, "--rounds", "0"): COUNT,
    (adaptive_stop, "--rounds", "many"): f"--rounds: {COUNT}'many'",
    (stack, "--depths", "8", "0"): COUNT,
    (inference, "--depths", "4,8"): f"--depths: {COUNT}'4,8'",
    (depth, "--seeds", "0"): f"--seeds: {COUNT}'0'",
    (on_paper, "--width", "-3"): COUNT,
    (on_paper, "--reached", "0"): "--reached: expected a number above 0, got '0'",
    (replicas, "--alone", "none", "mapped"): "--alone expected one of ",
    (
        time_to_accuracy,
        "--rules",
        "error coordinates",
        "--output",
        "new.json",
    ): "which is not there",
    (hybrid, "--seeds", "0"): COUNT,
    (decoder, "--rules", "pc,hebb"): "unknown rules hebb; known are pc, ipc",
    (mlp_table, "--seeds", "1,x"): "expected a whole number from 0 to 2**32 - 1, got 'x'",
    (vgg5_cifar10, "--widths", "8", "12", "16", "0"): COUNT,
    (kill_resume, "--seed", "4294967296"): "from 0 to 2**32 - 1, got '4294967296'",
    (crash_images, "--images", "0"): COUNT,
}


@pytest.mark.parametrize(
    "line", WRONG, ids=lambda line: " ".join([line[0].__name__.split(".")[-1], *line[1:]])
)
def test_wrong_use_ends_in_a_sentence_and_exit_code_2(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = {"answers.json": '{"hybrid": {}}', "notes.md": "mine"}
    for name, text in files.items():
        pathlib.Path(name).write_text(text)
    pathlib.Path("folder").mkdir()
    module, *arguments = line
    monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 2
    assert WRONG[line] in capsys.readouterr().err
    assert {path.name: path.read_text() for path in tmp_path.glob("*.*")} == files


def test_no_number_is_taken_unread():
    """Those that need pcflax alone leave it to pcflax."""
    alone = {"distributed", "notebook", "overview", "subclass_layer"}
    files = [*ROOT.glob("benchmarks/*.py"), *ROOT.glob("scripts/*.py")]
    unread = [path.stem for path in files if re.search("type=(int|float)", path.read_text())]
    assert set(unread) == alone


def test_an_algorithm_that_is_none_is_told_with_those_that_are(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["inference.py", "--quick", "--only", "Newton"])
    with pytest.raises(SystemExit, match=r"fits --only 'Newton'; known are .*Newton-CG"):
        inference.main()


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (FileNotFoundError("'mnist' is not prepared"), 1, "error: 'mnist' is not prepared\n"),
        (PermissionError(13, "Permission denied", "/data"), 1, "error: Permission denied: /data\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
        (None, 0, ""),
    ],
)
def test_what_ends_a_program_is_a_sentence_and_a_code(error, code, told, capsys):
    def main():
        if error is not None:
            raise error
        return 0

    with pytest.raises(SystemExit) as ended:
        options.run_main(main)
    assert ended.value.code == code
    assert capsys.readouterr().err == told


def test_accuracy_asked_for_by_name_without_data_is_an_error(tmp_path, monkeypatch):
    arguments = ["accuracy", "--data-dir", str(tmp_path), "--output", str(tmp_path / "new.json")]
    monkeypatch.setattr(sys, "argv", ["suite.py", *arguments])
    with pytest.raises(FileNotFoundError, match="'mnist' is not prepared"):
        suite.main()


def test_a_results_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    records.write_results({"seconds": 1.0}, path)
    write = pathlib.Path.write_text

    def stopped(self, text):
        write(self, text[: len(text) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(pathlib.Path, "write_text", stopped)
    with pytest.raises(KeyboardInterrupt):
        records.write_results({"seconds": 2.0}, path)
    assert json.loads(path.read_text()) == {"seconds": 1.0}


def test_jobs_that_are_not_measured_anew_keep_their_date(tmp_path, capsys):
    path = tmp_path / "suite.json"
    for date, jobs in (("2026-01-01", ["notebook", "tiny"]), ("2026-02-02", ["tiny"])):
        record = {"device": "cpu", "date": date, "jobs": {name: {"rounds": 1} for name in jobs}}
        suite.save("suite", record, path, Console())
    found = json.loads(path.read_text())
    dates = {name: job.get("date", found["date"]) for name, job in found["jobs"].items()}
    assert dates == {"notebook": "2026-01-01", "tiny": "2026-02-02"}


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ([], "committed.json"),
        (["--rounds", "9"], "committed.json"),
        (["--depths", "8", "32", "128"], "committed.json"),
        (["--depths", "8"], None),
        (["--quick"], None),
        (["--quick", "--output", "own.json"], "own.json"),
    ],
)
def test_committed_results_are_those_of_a_run_as_it_is_by_itself(given, where, monkeypatch, capsys):
    def stopped(parser, given, committed):
        raise SystemExit(options.output_of(parser, given, pathlib.Path("committed.json")))

    monkeypatch.setattr(stack, "output_of", stopped)
    monkeypatch.setattr(sys, "argv", ["stack.py", *given])
    with pytest.raises(SystemExit) as ended:
        stack.main()
    assert ended.value.code == (where and pathlib.Path(where))
    told = "" if where else f"nothing is written with {given[0]}, unless --output names a file\n"
    assert capsys.readouterr().out == told


def test_small_forms_leave_the_committed_results_alone(monkeypatch):
    parser = answer_parser("A script.", quick="small")
    assert parser.parse_args(["--quick"]).output == pathlib.Path("runs/quick/answers.json")
    assert parser.parse_args(["--quick", "--output", "my.json"]).output == pathlib.Path("my.json")
    assert parser.parse_args([]).output is None  # the committed ones
    assert parser.parse_args(["--seeds", "3"]).output is None
    assert parser.parse_args(["--seeds", "1"]).output == pathlib.Path("runs/quick/answers.json")

    def opened(path):
        raise SystemExit(str(path))

    monkeypatch.setattr(depth, "Runs", opened)
    with pytest.raises(SystemExit, match="runs/quick/depth_runs.json"):
        depth.main(["--quick"])
