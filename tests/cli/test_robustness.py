"""The command line where things around it are not as expected: files that moved, odd names, lost outputs.

One run of a user's own file serves all. Oracles: the same command under ordinary circumstances, and the
folder's files before and after.
"""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from pcflax.cli import main as main_module
from pcflax.cli.main import main
from pcflax.cli.options import TrainOptions
from pcflax.cli.train import new_run_dir
from tests.cli.test_main import digest, error, files_of, output, write_npz
from tests.training.checkpoints.test_lock import HOLD
from tests.training.test_loggers import Broken


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with `own.npz` and a run on it, of 4 steps."""
    folder = tmp_path_factory.mktemp("trained")
    data = write_npz(folder / "own.npz")
    options = ["--num-steps", "4", "--eval-every", "2", "--widths", "4", "--batch-size", "8"]
    options += ["--validation", "0"]
    main(["train", "--data", str(data), "--run-dir", str(folder / "run"), *options])
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of both, with the original out of the way."""
    shutil.copytree(trained / "run", tmp_path / "run")
    shutil.copyfile(trained / "own.npz", tmp_path / "moved.npz")
    (trained / "own.npz").rename(trained / "hidden.npz")
    yield tmp_path
    shutil.move(trained / "hidden.npz", trained / "own.npz")


class TestMovedData:
    def test_evaluate_takes_the_new_place(self, trained, folder, capsys):
        told = error(capsys, "evaluate", folder / "run")
        assert re.search(
            r"there is no file .*own\.npz; .*if the run's data have moved, add --d", told
        )
        moved = json.loads(
            output(capsys, "evaluate", folder / "run", "--data", folder / "moved.npz", "--json")
        )
        assert moved.pop("data") == "moved/test"
        rows = (folder / "run" / "metrics.jsonl").read_text().splitlines()
        measured = {f"eval/{name}": value for name, value in moved.items() if name != "step"}
        assert json.loads(rows[-1]) == {"step": moved["step"], **measured}

    def test_resume_takes_the_new_place_and_ends_as_before(self, folder, capsys):
        run = folder / "run"
        expected = digest(run)
        shutil.rmtree(run / "checkpoints" / "4")
        (run / "checkpoints" / "4.sha256").unlink()
        resume = ["train", "--resume", "--run-dir", run]
        printed = output(capsys, *resume, "--data", folder / "moved.npz")  # no warning
        assert "restored step 2" in printed
        assert digest(run) == expected
        options = json.loads((run / "config.json").read_text())["options"]
        assert options["data"] == str(folder / "moved.npz")


class TestOddNames:
    @pytest.mark.parametrize("name", ["sweep[lr=0.1]", "a[/b]", ":smile:"])
    def test_they_are_shown_as_they_are(self, trained, tmp_path, capsys, name):
        run = shutil.copytree(trained / "run", tmp_path / name)
        printed = output(capsys, "inspect", run)
        assert f"checkpoint  {run / 'checkpoints' / '4'}\n" in printed
        printed = output(capsys, "evaluate", run)
        assert name in "".join(printed.split())

    def test_home_is_expanded_behind_an_equals_sign_too(
        self, trained, tmp_path, monkeypatch, capsys
    ):
        monkeypatch.setenv("HOME", str(trained))
        data = json.loads(
            output(capsys, "evaluate", "~/run", "--data=~/own.npz", "--json", "--data-dir=~/x")
        )["data"]
        assert data == "own/test"
        told = error(capsys, "train", "--resume", "--run-dir=~/absent")
        assert f"there is no run in {trained}/absent" in told

    def test_an_ascii_terminal_shows_what_it_can(self, trained, tmp_path, monkeypatch):
        run = shutil.copytree(trained / "run", tmp_path / "münze")
        screen = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(screen, encoding="ascii"))
        main(["inspect", str(run)])
        main(["inspect", str(run), "--json"])
        shown = screen.getvalue()
        assert b"m\\xfcnze/checkpoints/4\n" in shown
        assert json.loads(shown.splitlines()[-1])["checkpoint"].endswith("münze/checkpoints/4")


class TestOutput:
    def test_a_piped_table_is_not_cut(self, trained, capsys, monkeypatch):
        """At 80 columns a program that reads it would miss names."""
        monkeypatch.delenv("COLUMNS", raising=False)
        (header,) = [
            line
            for line in output(capsys, "inspect", trained / "run").splitlines()
            if "std" in line
        ]
        printed = output(capsys, "train", "--resume", "--run-dir", trained / "run")
        assert "…" not in printed
        assert re.search(r"eval/accuracy .* eval/energy .* train/accuracy .* train/energy", printed)
        assert {"path", "shape", "dtype", "mean", "std"} <= set(header.split())

    @pytest.mark.parametrize("options", [["--json"], []], ids=["json", "tables"])
    def test_a_reader_that_has_gone_is_no_error(self, trained, monkeypatch, capsys, options):
        """As in `pcflax inspect RUN | head -1`."""
        monkeypatch.setattr(sys, "stdout", Broken(BrokenPipeError(32, "Broken pipe")))
        main(["inspect", str(trained / "run"), *options])
        assert capsys.readouterr().err == ""


def test_ctrl_c_while_modules_load_ends_the_process_with_a_sentence(monkeypatch, capsys):
    """Raised within an import it was lost, and training went on, or came out as another error."""

    def left(code):
        raise SystemExit(code)

    def loading(arguments):
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(os, "_exit", left)
    monkeypatch.setattr(main_module, "_run", loading)
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as stopped:
            main(["train"])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "stopped; go on with --resume\n"


class TestTwoAtOnce:
    def test_a_run_that_another_process_trains_is_left_alone(self, trained, tmp_path, capsys):
        """Both would write checkpoints and metrics there."""
        fresh, run = tmp_path / "fresh", shutil.copytree(trained / "run", tmp_path / "run")
        for folder in (fresh, run):
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        before = files_of(run)
        data = ["--data", trained / "own.npz", "--batch-size", 8, "--widths", 4]
        for arguments in (
            ["--run-dir", fresh, *data],
            ["--resume", "--run-dir", run, "--num-steps", 9],
        ):
            lock = arguments[arguments.index("--run-dir") + 1] / "checkpoints" / ".lock"
            holder = subprocess.Popen(
                [sys.executable, "-c", HOLD, str(lock)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            try:
                assert holder.stdout.readline() == "held\n"
                told = error(capsys, "train", *arguments)
            finally:
                holder.communicate()
            assert "is in use by another process (process 7 on elsewhere)" in told
            lock.unlink()
        assert files_of(run) == before
        assert files_of(fresh) == {}

    def test_runs_that_start_in_one_second_have_a_folder_each(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        options = main_module._defaults([], TrainOptions)
        folders = {new_run_dir(options) for _ in range(5)}
        assert len(folders) == 5
        assert all(folder.is_dir() for folder in folders)

    def test_a_run_that_is_refused_leaves_no_folder(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        random = np.random.default_rng(0).normal(size=(20, 3))
        data = write_npz(tmp_path / "own.npz", y_train=random, y_test=random)
        told = error(capsys, "train", "--data", data, "--output", "categorical", "--batch-size", 8)
        assert "--output categorical expects labels or rows of probabilities" in told
        assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            OSError(28, "No space left on device", "run/training.png"),
            "No space left on device: run/training.png; make room",
        ),
        (OSError(24, "Too many open files"), "Too many open files"),
        (PermissionError(13, "Permission denied", "run"), "Permission denied: run"),
        (OSError("our own words"), "our own words"),
    ],
)
def test_errors_of_the_system_are_told_without_numbers(error, expected):
    assert main_module._sentence(error) == expected


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text("x_train,y_train\n1,2\n"),
        lambda path: path.write_bytes(b""),
        lambda path: os.truncate(path, path.stat().st_size // 2),
        lambda path: path.write_bytes(path.read_bytes().replace(b"\x93NUMPY", b"\x93NUMPX", 1)),
        lambda path: np.save(path.open("wb"), np.ones(3)),
        lambda path: np.savez(path, x_train=np.array([{}], object), y_train=np.ones(1)),
    ],
    ids=["text", "empty", "cut", "header", "npy", "objects"],
)
def test_a_broken_npz_is_named(tmp_path, capsys, damage):
    path = write_npz(tmp_path / "mine.npz")
    damage(path)
    told = error(capsys, "train", "--data", path, "--run-dir", tmp_path / "new")
    assert re.match(rf"error: {path} (cannot be read|is no \.npz file|, or a damaged one)", told)
    assert re.search(r"write it (anew )?with np\.savez", told)
