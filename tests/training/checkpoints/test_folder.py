"""A folder of checkpoints: what is ours there, what is the user's, and what is deleted when.

Oracle: the names and bytes that were there before.
"""

import errno
import json
import math
import os
import shutil
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

import pcflax as pc
from pcflax.training.checkpoints import store
from pcflax.training.checkpoints.folder import Folder
from pcflax.training.checkpoints.seals import find_damage
from scripts import crash_images
from tests.conftest import digits_trainer


def save(folder, *steps, metrics=None, evaluated=None, **options):
    """Checkpoints of these steps, without a network."""
    checkpoints = pc.Checkpoints(folder, **options)
    for step in steps:
        meta = {"metrics": metrics or {}, "evaluated": evaluated or {}, "history": [{"step": step}]}
        checkpoints.save(step, {"parameters": {"a": jnp.full(2, step)}}, meta)
    checkpoints.close()
    return checkpoints


def newest(folder):
    """The step of the newest good checkpoint, by what it holds."""
    stored = pc.load_checkpoint(folder)
    assert stored.sections["parameters"]["a"].tolist() == [stored.step] * 2
    return stored.step


# Class folders of images, years, another tool's steps and unfinished writing, a thesis.
FOREIGN_FOLDERS = ("0", "1", "007", "2023", "²", "6.writing", "thesis.writing", "7.superseded")
FOREIGN_FILES = ("5", "8.sha256", "9.orbax-checkpoint-tmp", "8.superseded.sha256")


class TestWhatIsTheUsers:
    def test_stays_whatever_is_saved_and_deleted(self, tmp_path):
        """A run once deleted folders of the user's whose names are numbers."""
        for name in FOREIGN_FOLDERS:
            (tmp_path / name).mkdir()
            (tmp_path / name / "mine.txt").write_text(name)
        for name in FOREIGN_FILES:
            (tmp_path / name).write_text(name)
        checkpoints = save(tmp_path, 2, 3, 4, keep_latest=1)
        assert checkpoints.all_steps() == [4]
        save(tmp_path, 3, keep_latest=1)  # goes back
        assert newest(tmp_path) == 3
        for name in FOREIGN_FOLDERS:
            assert (tmp_path / name / "mine.txt").read_text() == name
        for name in FOREIGN_FILES:
            assert (tmp_path / name).read_text() == name

    @pytest.mark.parametrize("name", ["2", "2.sha256"])
    def test_is_never_replaced(self, tmp_path, name):
        (tmp_path / name).write_text("mine")
        with pytest.raises(FileExistsError, match=r"2 or its \.sha256 is no checkpoint of pcflax"):
            save(tmp_path, 2)
        assert (tmp_path / name).read_text() == "mine"

    def test_is_told_before_training_where_a_checkpoint_needs_its_name(self, tmp_path):
        (tmp_path / "4").mkdir()
        trainer = digits_trainer(tmp_path, keep={"every": 2})
        with pytest.raises(FileExistsError, match="that of step 4 needs the name; move it"):
            trainer.fit(pc.data.load("digits"), num_steps=6)
        assert trainer.step == 0
        assert [path.name for path in tmp_path.iterdir()] == ["4"]


@pytest.mark.parametrize("name", ["x[lr=0.1]", "back\\slash", "what?*"])
def test_names_that_look_like_patterns(tmp_path, name):
    """Orbax takes them for patterns: it sealed checkpoints that nobody could read."""
    save(tmp_path / name, 1)
    assert newest(tmp_path / name) == 1


class TestInterruptions:
    def test_before_the_seal_of_the_first_there_is_none(self, tmp_path):
        """0.1 could be killed there; resuming then failed until somebody deleted the folder."""
        save(tmp_path, 3)
        (tmp_path / "3.sha256").unlink()
        with (
            pytest.warns(pc.CheckpointWarning, match="its writing was interrupted"),
            pytest.raises(FileNotFoundError, match="there is no checkpoint in"),
        ):
            pc.load_checkpoint(tmp_path)
        save(tmp_path, 3)
        assert newest(tmp_path) == 3
        assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "3.sha256"]

    def test_where_several_have_no_seal_none_is_given_up_in_silence(self, tmp_path):
        save(tmp_path, 3, 4)
        for step in (3, 4):
            (tmp_path / f"{step}.sha256").unlink()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pc.CheckpointWarning)
            with pytest.raises(pc.CheckpointError, match="none of the 2 checkpoints"):
                pc.load_checkpoint(tmp_path)

    @pytest.mark.parametrize("older", [(), (2,)])
    def test_between_the_seal_and_its_place_it_does_not_count(self, tmp_path, older):
        save(tmp_path, *older, 3)
        (tmp_path / "3").rename(tmp_path / "3.writing")
        if older:
            assert newest(tmp_path) == 2
        else:
            with pytest.raises(FileNotFoundError, match="there is no checkpoint in"):
                pc.load_checkpoint(tmp_path)
        checkpoints = save(tmp_path, 4, keep_latest=2)
        assert checkpoints.steps() == [*older, 4]
        assert not list(tmp_path.glob("3*"))

    def test_a_save_over_a_step_that_is_killed_leaves_that_step_at_every_operation(self, tmp_path):
        """Between the two renames the older one was read, and what was moved aside never again."""
        run, images = tmp_path / "run", tmp_path / "images"
        run.mkdir()
        images.mkdir()
        metric = {"keep_best": ("loss", "min"), "evaluated": {"loss": 0.0}}
        save(run, 1, 2, **metric)
        with crash_images.imaging(run, images) as names:
            save(run, 2, **metric)
        between = [images / str(n) for n in range(len(names)) if not (images / f"{n}/2").exists()]
        after = [image for image in images.iterdir() if list(image.glob("2.replaced*"))]
        assert len(between) >= 3
        assert set(after) > set(between)
        for image in after:
            assert newest(image) == 2
            checkpoints = pc.Checkpoints(image, keep_best=("loss", "min"))
            assert checkpoints.steps() == [1, 2]
            assert checkpoints.best_step() == checkpoints.read(best=True).step == 2
            assert checkpoints.read(2).step == 2
            save(image, 3)
            assert sorted(path.name for path in image.iterdir() if path.is_dir()) == ["1", "2", "3"]
            assert not (image / "2.replaced.sha256").exists()
            assert find_damage(image / "2") is None

    @pytest.mark.parametrize("name", ["seal", "move", "sync"])
    def test_a_save_over_a_step_that_fails_puts_the_old_one_back(self, tmp_path, monkeypatch, name):
        """The next process went on from the one before."""
        save(tmp_path, 1, 2)
        names = sorted(path.name for path in tmp_path.iterdir())

        def full(*paths):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(store, name, full)
        with pytest.raises(OSError, match="No space left on device"):
            save(tmp_path, 2)
        assert sorted(path.name for path in tmp_path.iterdir()) == names
        assert newest(tmp_path) == 2

    def test_what_is_the_users_is_not_put_back(self, tmp_path):
        (tmp_path / "2.replaced").mkdir()
        (tmp_path / "2.replaced" / "mine.txt").write_text("mine")
        save(tmp_path, 1, 3)
        save(tmp_path, 3)
        assert pc.Checkpoints(tmp_path).all_steps() == [1, 3]
        assert (tmp_path / "2.replaced" / "mine.txt").read_text() == "mine"

    def test_all_is_on_the_disk_before_the_old_is_deleted(self, tmp_path, monkeypatch):
        """Power may fail at any moment, and what was only in memory is gone then."""
        save(tmp_path, 1)
        inside = {path.name for path in (tmp_path / "1").rglob("*") if path.suffix != ".lock"}
        on_disk, fsync, rmtree = [], os.fsync, shutil.rmtree

        def noting(descriptor):
            fsync(descriptor)
            on_disk.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))

        def deleting(path, **options):
            if path == tmp_path / "1":
                assert tmp_path.name in on_disk
                assert {"2.writing", "2.sha256.part", tmp_path.name} <= set(on_disk)
                # the names of files are data of folders; those of arrays' differ from one to the next
                assert len(set(on_disk)) >= len(inside) + 3
            rmtree(path, **options)

        if not os.path.isdir("/proc/self/fd"):
            pytest.skip("there is no /proc here")
        monkeypatch.setattr(os, "fsync", noting)
        monkeypatch.setattr(shutil, "rmtree", deleting)
        assert save(tmp_path, 2, keep_latest=1).steps() == [2]


class TestUnfinished:
    """What a save leaves that was killed; here as Orbax and a kill between two renames leave it."""

    def unsealed(self, folder, step):
        save(folder, step)
        (folder / str(step)).rename(folder / f"{step}.writing")
        (folder / f"{step}.sha256").unlink()

    @pytest.mark.parametrize("beside", [False, True])
    def test_a_removal_that_is_killed_is_gone_on_with(self, tmp_path, monkeypatch, beside):
        """A folder without its record once stopped every later save of that step."""
        save(tmp_path, 1)
        self.unsealed(tmp_path, 2)
        if beside:
            (tmp_path / "2.writing.orbax-checkpoint-tmp").mkdir()
        whole = shutil.rmtree

        def killed(path, **options):
            if not (path / "meta").exists():
                return whole(path, **options)
            whole(path / "meta")
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(shutil, "rmtree", killed)
            with pytest.raises(KeyboardInterrupt):
                save(tmp_path, 2)
        assert save(tmp_path, 2).steps() == [1, 2]
        assert newest(tmp_path) == 2
        assert not list(tmp_path.glob("*.writing*"))

    def test_a_folder_of_the_users_in_its_place_is_told(self, tmp_path):
        (tmp_path / "2.writing").mkdir()
        (tmp_path / "2.writing" / "mine.txt").write_text("mine")
        told = (
            r"2\.writing is no checkpoint of pcflax, and that of step 2 is written there; move it"
        )
        with pytest.raises(FileExistsError, match=told):
            save(tmp_path, 2)
        assert (tmp_path / "2.writing" / "mine.txt").read_text() == "mine"


class TestSuperseded:
    def test_they_do_not_pile_up(self, tmp_path):
        for _ in range(4):
            save(tmp_path, 1, 2, keep_latest=2)
            save(tmp_path, 1, keep_latest=2)  # 2 is of a future that is not taken
        assert len(list(tmp_path.glob("*.superseded*/"))) == 2

    def test_the_one_that_was_moved_last_is_the_newest(self, tmp_path):
        """By name, 9 would come after 30."""
        save(tmp_path, 30, keep_latest=9)
        save(tmp_path, 9, 10, keep_latest=9)
        save(tmp_path, 9, keep_latest=9)
        names = [path.name for path in Folder(tmp_path).superseded()]
        assert names == ["10.superseded", "30.superseded"]
        for name in names:
            assert find_damage(tmp_path / name) is None


@pytest.mark.parametrize(
    "name", [".DS_Store", "state/._x", "Thumbs.db", "meta/desktop.ini", "@eaDir/x", ".nfs0001"]
)
def test_what_a_file_browser_leaves_is_no_damage(tmp_path, name):
    save(tmp_path, 1)
    (tmp_path / "1" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "1" / name).write_text("x")
    assert newest(tmp_path) == 1


class TestSettings:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"keep_latest": 1.5}, TypeError, "expected an int keep_latest, got 1.5"),
            ({"keep_latest": True}, TypeError, "expected an int keep_latest, got True"),
            ({"every": 2.5}, TypeError, "expected an int every, got 2.5"),
            ({"every": "2"}, TypeError, "expected an int every, got '2'"),
            ({"keep_best": 3}, ValueError, "expected keep_best as"),
            ({"keep_best": "eval/accuracy"}, ValueError, "expected keep_best as"),
            ({"keep_best": ("eval/accuracy", ["max"])}, ValueError, "expected keep_best as"),
        ],
    )
    def test_what_can_never_be_is_told_at_once(self, tmp_path, options, error, message):
        with pytest.raises(error, match=message):
            pc.Checkpoints(tmp_path, **options)

    def test_numpys_integers_are_integers(self, tmp_path):
        checkpoints = pc.Checkpoints(tmp_path, keep_latest=np.int64(2), every=np.int32(5))
        assert (checkpoints.keep_latest, checkpoints.every) == (2, 5)
        save(tmp_path, 1)
        assert pc.load_checkpoint(tmp_path, step=np.int64(1)).step == 1

    @pytest.mark.parametrize("address", ["s3://bucket/run", "gs://bucket/run", "file:///runs"])
    @pytest.mark.parametrize(
        "make",
        [
            *(pc.Checkpoints, pc.load_checkpoint, pc.JSONLinesLogger, pc.CSVLogger),
            *(pc.TensorBoardLogger, pc.WandbLogger, pc.MLflowLogger),
        ],
    )
    def test_addresses_are_refused(self, address, make):
        """They were taken for folders, or failed after the training was done."""
        with pytest.raises(ValueError, match=f"on a local disk, got the address '{address}'"):
            make(address)

    def test_a_path_that_leaves_no_room_for_names_is_told(self, tmp_path):
        """Orbax waited for ever."""
        folder = tmp_path
        while len(str(folder)) < 4000:
            folder = folder / ("x" * min(200, 4000 - len(str(folder))))
        with pytest.raises(OSError, match="cannot write checkpoints to .*: File name too long"):
            pc.Checkpoints(folder).prepare()

    def test_what_is_no_path_is_refused(self):
        with pytest.raises(TypeError, match="expected directory such as 'runs/mnist', got None"):
            pc.Checkpoints(None)

    def test_home_is_expanded_and_a_change_of_folder_moves_nothing(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.chdir(tmp_path)
        made = [
            pc.Checkpoints("run").directory,
            pc.JSONLinesLogger("run").path,
            pc.TensorBoardLogger("run").directory,
        ]
        monkeypatch.chdir("/")
        assert made == [tmp_path / "run"] * 3
        assert pc.Checkpoints("~/run").directory == tmp_path / "home" / "run"


def test_numbers_that_are_not_finite_are_stored_as_json_and_come_back(tmp_path):
    """RFC 8259 has no NaN, and many readers refuse a file with one."""

    def refuse(word):
        raise ValueError(f"{word} is no JSON")

    save(tmp_path, 1, metrics={"a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.5})
    text = (tmp_path / "1" / "meta" / "metadata").read_text()
    assert json.loads(text, parse_constant=refuse)["metrics"]["d"] == 0.5
    metrics = pc.load_checkpoint(tmp_path).metrics
    assert math.isnan(metrics.pop("a"))
    assert metrics == {"b": math.inf, "c": -math.inf, "d": 0.5}


def test_a_full_disk_is_told_with_the_folder_and_leaves_the_older_one(tmp_path, monkeypatch):
    """Libraries tell it in their own terms, some lines long."""
    save(tmp_path, 1)

    def full(folder, path):
        raise ValueError("RESOURCE_EXHAUSTED: write failed\n[OS error 28: No space left on device]")

    monkeypatch.setattr(store, "seal", full)
    with pytest.raises(OSError, match=r"step 2 to .*: No space left on device; .*; make room and"):
        save(tmp_path, 2)
    assert newest(tmp_path) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "1.sha256"]
