"""Two real processes of four devices each train as one device does, and one of them may end at any time.

All that needs no end of a process is done in one pair, by `two/jobs.py`, whose files the tests read; the
oracle is the same function on one device, in this process.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import pcflax as pc
from scripts import distributed
from tests.conftest import ROOT
from tests.sharding.two import jobs

pytestmark = pytest.mark.slow
SECONDS = 240  # until something hangs


@pytest.fixture(scope="module", autouse=True)
def double_throughout():
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def started(devices, *arguments):
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**environment, "JAX_ENABLE_X64": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a group of processes that is killed as one
    )


def ended(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_address():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{found.getsockname()[1]}"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folder that the pair wrote to, after both ended; eight devices were killed between."""
    folder, address = tmp_path_factory.mktemp("two"), free_address()
    worker = "tests/sharding/two/worker.py"
    eight = started(8, worker, folder, "eight", "", 0)
    two = [started(4, worker, folder, "both", address, number) for number in range(2)]
    try:
        output = eight.communicate(timeout=SECONDS)[0]
        assert eight.returncode == -signal.SIGKILL, output[-3000:]
        shutil.copytree(folder / "eight", folder / "eight-alone")
        (folder / "eight" / "killed").touch()
        outputs = [process.communicate(timeout=SECONDS)[0] for process in two]
    finally:
        for process in (eight, *two):
            ended(process)
    codes = [process.returncode for process in two]
    assert codes == [143, 143], "\n".join(output[-5000:] for output in outputs)
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The folder of the run on one device that nothing happened to."""
    folder = tmp_path_factory.mktemp("one")
    jobs.deep(folder, None, 8)
    return folder


def found(folder):
    return [json.loads((folder / f"found-{number}.json").read_text()) for number in range(2)]


def assert_equal_runs(folder, reference, step):
    """All arrays of a step, and the rows until then."""
    ours, theirs = (
        pc.load_checkpoint(where / "checkpoints", step=step) for where in (folder, reference)
    )
    for section, arrays in theirs.sections.items():
        assert arrays.keys() == ours.sections[section].keys()
        for path, array in arrays.items():
            exact = not np.issubdtype(array.dtype, np.floating)
            tolerance = 0 if exact else 1e-12
            np.testing.assert_allclose(
                ours.sections[section][path], array, rtol=0, atol=tolerance, err_msg=path
            )
    assert ours.sections["activities"]
    rows = [
        [json.loads(line) for line in (f / "metrics.jsonl").open()] for f in (folder, reference)
    ]
    rows = [[row for row in column if row["step"] <= step] for column in rows]
    assert [row.keys() for row in rows[0]] == [row.keys() for row in rows[1]]
    for row, expected in zip(*rows, strict=True):
        assert row == pytest.approx(expected, rel=1e-11, abs=1e-12)


def assert_both_equal(folder, name, expected):
    """Each process has the same arrays."""
    for number in range(2):
        ours = np.load(folder / f"{name}-{number}.npz")
        assert set(ours) == set(expected)
        for key, array in expected.items():
            np.testing.assert_allclose(ours[key], array, rtol=1e-11, atol=1e-12, err_msg=key)


def test_two_processes_end_as_one_device(pair, one):
    """With dropout and Langevin noise; one writer of rows, and whole checkpoints alone."""
    assert_equal_runs(pair / "deep", one, 4)
    names = {entry.name for entry in (pair / "deep" / "checkpoints").iterdir()}
    assert names == {"2", "2.sha256", "4", "4.sha256", "history.pcflax.jsonl"}
    rows = pc.load_checkpoint(pair / "deep").rows()
    assert [row["step"] for row in rows] == [1, 2, 2, 3, 4, 4]


def test_other_rules_end_as_on_one_device(pair):
    assert_both_equal(pair, "rules", jobs.rules(None))


def test_each_process_can_read_every_answer(pair):
    """Of evaluation, prediction and inference, whether a batch divides among the devices or not."""
    assert_both_equal(pair, "questions", jobs.questions(None))


def test_each_process_reads_its_rows_of_a_stream(pair):
    """And the batches are those of one process."""
    expected, read = jobs.streamed(None)
    assert_both_equal(pair, "streamed", expected)
    for process in found(pair):
        assert len(process["read"]) < 0.6 * len(read)


def test_killed_on_eight_devices_a_run_goes_on_on_two_processes_and_on_one_device(pair, one):
    """Eight, then two processes of four, then one; and from eight to one."""
    assert_equal_runs(pair / "eight", one, 6)
    for name in ("eight", "eight-alone"):
        jobs.deep(pair / name, None, 8)
        assert_equal_runs(pair / name, one, 8)


def test_what_fails_in_one_process_ends_all_in_a_sentence(pair):
    first, second = (process["failures"] for process in found(pair))
    assert second["callback"] == "ValueError: this one's own fault"
    assert first["callback"] == "RuntimeError: process 1 of 2 failed: this one's own fault"
    assert second["source"].startswith("RuntimeError: the source of 'stream' failed at example 25")
    assert first["source"].startswith("RuntimeError: process 1 of 2 failed: the source of 'stream'")
    assert first["folders"].startswith(
        "RuntimeError: process 1 of 2 failed: process 1 does not see"
    )
    assert second["folders"].startswith(
        "FileNotFoundError: process 1 does not see what the first one writes to "
    )
    assert second["folders"].endswith("give all processes one folder, on a disk that they share")
    for told in (first, second):
        assert told["no mesh"] == (
            "ValueError: Trainer got no mesh, but jax.distributed joins 2 processes, and each would train "
            "and save alone; give mesh=pc.sharding.data()"
        )
        assert told["a part"] == (
            "ValueError: Trainer got a mesh of 2 devices with none of process 1, of 2 processes; give a mesh "
            "of all 8 devices, such as pc.sharding.data()"
        )
        assert told["replicate"] == (
            "ValueError: replicate runs in one process, but jax.distributed joins 2; start it in each "
            "without jax.distributed, with a folder of its own"
        )
        assert told["taken"].startswith("FileExistsError: ")
        assert "is no checkpoint of pcflax" in told["taken"]
        assert told["no checkpoint"].startswith("FileNotFoundError: there is no checkpoint in ")


def test_sigterm_to_either_stops_both_after_one_checkpoint_of_one_step(pair):
    """Caught for the second; for the first the pair's own end, both with 143."""
    assert [process["stopped"] for process in found(pair)] == [[143, 3], [143, 3]]
    for name in ("term", "again"):
        names = {entry.name for entry in (pair / name / "checkpoints").iterdir()}
        assert names == {"3", "3.sha256", "history.pcflax.jsonl"}
        assert pc.load_checkpoint(pair / name).step == 3


def trained_on_one(folder):
    trainer = distributed.make_trainer(folder, None)
    distributed.train(trainer, 200)
    return trainer


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """The run on one device that nothing happens to."""
    return trained_on_one(tmp_path_factory.mktemp("untouched"))


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_other_and_loses_nothing(victim, tmp_path, untouched):
    """The run resumed on one device ends as the run that nothing happened to."""
    launcher = started(2, "scripts/distributed.py", "--run-dir", tmp_path / "run", "--processes", 2)
    try:
        begin = time.monotonic()
        while not list((tmp_path / "run").glob("checkpoints/*.sha256")):
            assert launcher.poll() is None
            assert time.monotonic() - begin < SECONDS
            time.sleep(0.02)
        assert launcher.stdout is not None
        told = [launcher.stdout.readline() for _ in range(2)]
        os.kill(int(told[victim].split()[-1]), signal.SIGKILL)
        # by our error, by jax's or by gloo's, which may end the process itself
        launcher.communicate(timeout=SECONDS)
    finally:
        ended(launcher)
    assert launcher.returncode != 0
    assert pc.load_checkpoint(tmp_path / "run").step < 400
    runs = trained_on_one(tmp_path / "run"), untouched
    resumed, whole = map(jobs.parameters, runs)
    for path, array in whole.items():
        np.testing.assert_allclose(resumed[path], array, rtol=0, atol=1e-12, err_msg=path)
    rows = [trainer.history.rows for trainer in runs]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
