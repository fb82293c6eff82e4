"""Every kind of model, killed with -9 and resumed, ends bitwise as the run that was never stopped."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import pcflax as pc
from tests.conftest import ROOT, kill_once_saved
from tests.training import fed
from tests.training.families import FAMILIES, train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder of runs, one a family, that one SIGKILL ended while all were training."""
    folder = tmp_path_factory.mktemp("killed")
    kill_once_saved(
        ["-m", "tests.training.families", str(folder)], [folder / name for name in FAMILIES]
    )
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_a_killed_run_ends_as_the_one_never_stopped(name, killed, tmp_path):
    resumed = train(name, killed / name, 7, resume=True, every=10**6)
    whole = train(name, tmp_path, resumed.step, every=10**6)
    assert resumed.step >= 12  # of which the killed run had saved 5 or more
    assert_same_end(killed / name, tmp_path)
    for metric in whole.history.names():
        np.testing.assert_array_equal(resumed.history[metric], whole.history[metric])


def assert_same_end(folder, other):
    """The newest checkpoints of two runs are bitwise equal."""
    found, expected = map(pc.load_checkpoint, (folder, other))
    assert found.step == expected.step
    assert found.digest() == expected.digest()
    assert found.sections.keys() == expected.sections.keys()
    for section, arrays in expected.sections.items():
        for path, array in arrays.items():
            np.testing.assert_array_equal(found.sections[section][path], array)


def start(folder):
    """Start training that workers feed, as the first of a group of processes."""
    command = [sys.executable, "-m", "tests.training.fed", str(folder), "20"]
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True)


def group_of(process):
    """How many processes are alive of those that this one began, itself with them."""
    alive = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it just ended
            state, _, group, *_ = stat.read_text().rpartition(")")[2].split()
            alive += int(group) == process.pid and state != "Z"
    return alive


def assert_nobody_stays(process):
    """Within some seconds."""
    end = time.monotonic() + 20
    while group_of(process):
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="processes are counted in /proc")
def test_training_that_workers_feed_ends_as_the_one_never_stopped(tmp_path):
    """Killed at some moment, the process alone; its workers end too, as after a run that ended by itself."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    processes = [start(killed)]
    try:
        while not all(list((killed / kind).glob("*.sha256")) for kind in fed.KINDS):
            assert processes[0].poll() is None
            time.sleep(0.02)
        time.sleep(random.uniform(0, 0.5))
        assert group_of(processes[0]) >= 5  # itself, and two workers for each loader
        assert processes[0].poll() is None
        processes[0].kill()
        assert_nobody_stays(processes[0])
        processes.append(start(killed))
        fed.train(whole, 20)
        assert processes[1].wait(timeout=240) == 0
        assert_nobody_stays(processes[1])
    finally:
        for process in processes:
            if group_of(process):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    for kind in fed.KINDS:
        assert_same_end(killed / kind, whole / kind)
        rows = [pc.load_checkpoint(folder / kind).rows() for folder in (killed, whole)]
        assert rows[0] == rows[1]
        assert rows[0][-1]["step"] == 20
