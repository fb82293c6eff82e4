"""One process at a time writes checkpoints to a folder. Oracle: the kernel's own lock, held by another."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import pcflax as pc
from tests.training.checkpoints.test_folder import save

fcntl = pytest.importorskip("fcntl")

HOLD = """
import fcntl, sys
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
file.write("process 7 on elsewhere")
file.flush()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def another_process(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_folder_that_another_process_writes_to_is_refused_until_it_ends(
    tmp_path, another_process
):
    """Two jobs on one folder left a mixture of two runs."""
    for call in (pc.Checkpoints(tmp_path).prepare, lambda: save(tmp_path, 1)):
        with pytest.raises(
            FileExistsError, match=r"is in use by another process \(process 7 on elsewhere\)"
        ):
            call()
    another_process.kill()  # even so the kernel lets go
    another_process.wait()
    assert save(tmp_path, 1).steps() == [1]


def test_one_process_may_open_a_folder_twice_and_leaves_nothing(tmp_path):
    """A Trainer that failed in a notebook must not keep the next one out."""
    one, other = pc.Checkpoints(tmp_path), pc.Checkpoints(tmp_path)
    one.prepare()
    other.prepare()
    one.close()
    assert (tmp_path / ".lock").exists()
    other.close()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_deleted_is_made_and_held_anew(tmp_path):
    """A run of days goes on and saves, and no other begins in its folder."""
    folder = tmp_path / "run"
    checkpoints = pc.Checkpoints(folder)
    empty = {"metrics": {}, "evaluated": {}}
    checkpoints.save(1, {"parameters": {"a": np.ones(1)}}, empty)
    checkpoints.wait()
    shutil.rmtree(folder)
    checkpoints.save(2, {"parameters": {"a": np.ones(1)}}, empty)
    hold = subprocess.run(
        [
            sys.executable,
            "-c",
            HOLD.replace("LOCK_EX", "LOCK_EX | fcntl.LOCK_NB"),
            folder / ".lock",
        ],
        capture_output=True,
        text=True,
    )
    assert "BlockingIOError" in hold.stderr
    checkpoints.close()
    assert checkpoints.steps() == [2]


def test_a_folder_that_was_deleted_and_taken_by_another_is_refused(tmp_path, another_process):
    (tmp_path / ".lock").rename(tmp_path / "theirs")
    checkpoints = pc.Checkpoints(tmp_path)
    checkpoints.prepare()
    (tmp_path / "theirs").rename(tmp_path / ".lock")
    with pytest.raises(
        FileExistsError, match=r"in use by another process \(process 7 on elsewhere\)"
    ):
        checkpoints.save(1, {"parameters": {"a": np.ones(1)}}, {"metrics": {}, "evaluated": {}})
    checkpoints.close()
    assert (tmp_path / ".lock").exists()  # theirs


def test_what_a_full_disk_does_not_take_is_no_error_later(tmp_path, monkeypatch):
    """The lock is held without a word in it, and closing it wrote that word again."""

    def full(descriptor, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    checkpoints = pc.Checkpoints(tmp_path)
    checkpoints.prepare()
    checkpoints.close()


def test_where_the_file_system_has_no_locks_it_goes_on_without(tmp_path, monkeypatch):
    def unsupported(file, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    assert save(tmp_path, 1).steps() == [1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "1.sha256"]


def test_reading_needs_no_lock(tmp_path, another_process):
    save(tmp_path / "copy", 1)
    (tmp_path / "copy" / "1").rename(tmp_path / "1")
    (tmp_path / "copy" / "1.sha256").rename(tmp_path / "1.sha256")
    assert pc.load_checkpoint(tmp_path).step == 1
