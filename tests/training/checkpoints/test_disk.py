"""A disk that is busy, gone or closed: a second try, or one sentence. Oracle: what lies there afterwards."""

import contextlib
import errno
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

import pcflax as pc
from pcflax.training.checkpoints import disk, store
from pcflax.training.checkpoints.disk import move, replacing
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


@contextlib.contextmanager
def files_of_at_most(size):
    """The system writes so many bytes of a file, and refuses the next, as a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class TestReplacing:
    def test_what_was_there_stays_until_all_is_written(self, tmp_path):
        path = tmp_path / "report.html"
        path.write_text("older")
        told = f"cannot write {path}: File too large; choose another --output"
        with (
            files_of_at_most(100),
            pytest.raises(OSError, match=told),
            replacing(path, "choose another --output") as file,
        ):
            file.write_text("newer" * 100)
        assert [one.name for one in tmp_path.iterdir()] == ["report.html"]
        assert path.read_text() == "older"
        with replacing(path) as file:
            file.write_text("newer")
        assert path.read_text() == "newer"

    def test_a_full_disk_is_told_with_what_to_do(self, tmp_path):
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with (
            pytest.raises(OSError, match="x: No space left on device; make room$"),
            replacing(tmp_path / "x", "choose another --output"),
        ):
            raise full

    def test_links_stay_links_and_devices_are_written_to(self, tmp_path):
        (tmp_path / "there").write_text("older")
        (tmp_path / "link").symlink_to("there")
        with replacing(tmp_path / "link") as file:
            file.write_text("newer")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "there").read_text() == "newer"
        with replacing(Path("/dev/null")) as file:
            assert file == Path("/dev/null")

    def test_weights_are_kept_so(self, tmp_path):
        pytest.importorskip("safetensors")
        network = pc.models.mlp(64, 32, 10, rngs=nnx.Rngs(0))
        path = tmp_path / "a.safetensors"
        pc.save_weights(network, path)
        before = path.read_bytes()
        with (
            files_of_at_most(1000),
            pytest.raises(OSError, match=f"^cannot write {path}: File too large; choose another"),
        ):
            pc.save_weights(network, path)
        assert path.read_bytes() == before
        assert len(list(tmp_path.iterdir())) == 1


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
