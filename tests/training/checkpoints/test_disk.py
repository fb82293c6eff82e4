"""A disk that is busy, gone or closed: a second try, or one sentence. Oracle: what lies there afterwards."""

import errno
import os
import shutil

import numpy as np
import pytest

import pcflax as pc
from pcflax.training.checkpoints import disk, store
from pcflax.training.checkpoints.disk import move
from tests.training.checkpoints.test_folder import newest, save


@pytest.fixture
def failing(monkeypatch):
    """Let a function of os fail with a number of the system, so many times for names that end so."""

    def fail(name, number, times, ending=""):
        real, calls = getattr(os, name), []

        def broken(path, *arguments, **options):
            if str(path).endswith(ending):
                calls.append(path)
                if len(calls) <= times:
                    raise OSError(number, os.strerror(number), str(path))
            return real(path, *arguments, **options)

        monkeypatch.setattr(os, name, broken)
        return calls

    monkeypatch.setattr(disk.time, "sleep", lambda seconds: None)
    return fail


class TestMove:
    @pytest.mark.parametrize("number", [errno.ESTALE, errno.EBUSY])
    def test_what_passes_is_tried_again(self, tmp_path, failing, number):
        (tmp_path / "a").write_text("a")
        failing("replace", number, 2)
        move(tmp_path / "a", tmp_path / "b")
        assert (tmp_path / "b").read_text() == "a"

    @pytest.mark.parametrize(("number", "tries"), [(errno.EBUSY, 4), (errno.EPERM, 1)])
    def test_what_stays_is_raised(self, tmp_path, failing, number, tries):
        (tmp_path / "a").write_text("a")
        calls = failing("replace", number, 99)
        with pytest.raises(OSError, match=os.strerror(number)):
            move(tmp_path / "a", tmp_path / "b")
        assert len(calls) == tries
        assert (tmp_path / "a").read_text() == "a"

    def test_what_was_done_though_the_answer_was_lost_is_done(self, tmp_path, monkeypatch):
        """As NFS does when the server's reply does not arrive."""
        (tmp_path / "a").write_text("a")
        real = os.replace

        def lost(source, target):
            real(source, target)
            raise OSError(errno.ESTALE, "Stale file handle")

        monkeypatch.setattr(os, "replace", lost)
        move(tmp_path / "a", tmp_path / "b")
        assert (tmp_path / "b").read_text() == "a"


@pytest.mark.parametrize("ending", ["2.writing", "2.sha256.part"])
def test_a_checkpoint_is_put_in_its_place_at_the_second_try(tmp_path, failing, ending):
    calls = failing("replace", errno.ESTALE, 1, ending)
    save(tmp_path, 1, 2)
    assert len(calls) == 2
    assert newest(tmp_path) == 2


def test_what_fails_for_good_is_one_sentence_and_leaves_the_older_one(tmp_path, failing):
    """It was some dozen lines of Orbax's log, or a name without a word what was being done."""
    save(tmp_path, 1)
    failing("replace", errno.EBUSY, 99, "2.writing")
    with pytest.raises(
        OSError,
        match=f"cannot write the checkpoint of step 2 to {tmp_path}: Device or resource busy; .* restore$",
    ):
        save(tmp_path, 2)
    assert newest(tmp_path) == 1  # without a word of the other
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "1.sha256"]


def test_a_folder_that_was_closed_is_told_without_waiting_for_ever(tmp_path):
    """Orbax makes its folders in a thread, and never ended where that failed."""
    checkpoints = pc.Checkpoints(tmp_path / "run")
    checkpoints.prepare()
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").write_text("in its place")
    with pytest.raises(
        OSError, match=r"cannot write checkpoints to .*run: .*; choose another folder"
    ):
        checkpoints.save(1, {"parameters": {"a": np.ones(1)}}, {"metrics": {}, "evaluated": {}})
    checkpoints.close()


def test_no_file_of_a_checkpoint_is_larger_than_orbax_may_hold_in_memory(tmp_path, monkeypatch):
    """It held all of a checkpoint, compressed, until its one file was whole."""
    assert store._FILE_BYTES == 64 * 2**20
    monkeypatch.setattr(store, "_FILE_BYTES", 50_000)
    noise = np.random.default_rng(0).standard_normal((3, 200, 100)).astype(np.float32)  # 80 KB each
    arrays = {f"a{number}": own for number, own in enumerate(noise)}
    checkpoints = pc.Checkpoints(tmp_path)
    checkpoints.save(1, {"parameters": arrays}, {"metrics": {}, "evaluated": {}})
    checkpoints.close()
    files = [file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()]
    assert sum(files) > 0.8 * noise.nbytes  # noise is hardly compressed
    assert max(files) < 2 * 50_000  # the last part goes over the limit
    stored = checkpoints.read(1).sections["parameters"]
    for name, own in arrays.items():
        np.testing.assert_array_equal(stored[name], own)
