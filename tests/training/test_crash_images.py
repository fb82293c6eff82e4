"""What a kill leaves on the disk, at file operations of saves: each image goes on exactly.

A sample of them; `scripts/crash_images.py` restores every one. Oracle: the run that nothing happened to.
"""

import shutil

import numpy as np
import pytest

import pcflax as pc
from pcflax.training.checkpoints import store
from scripts import crash_images

pytestmark = pytest.mark.slow

SAMPLE = 14


@pytest.fixture(scope="module")
def taken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    run_dir, names = crash_images.take_images(folder)
    return folder / "images", names, crash_images.outcome(run_dir)


def faults(images, expected, chosen):
    return [fault for n in chosen if (fault := crash_images.fault_of(images / str(n), expected))]


@pytest.mark.filterwarnings("ignore::pcflax.CheckpointWarning")
def test_each_image_ends_as_the_run_that_was_never_killed(taken):
    images, names, expected = taken
    operations = {name.split()[1] for name in names}
    assert {"replace", "mkdir", "unlink", "rmdir", "fsync"} <= operations
    chosen = sorted({round(place) for place in np.linspace(0, len(names) - 1, SAMPLE)})
    assert faults(images, expected, chosen) == []


@pytest.mark.filterwarnings("ignore::pcflax.CheckpointWarning")
def test_an_order_that_loses_the_run_would_be_seen(tmp_path, monkeypatch):
    """The old checkpoint deleted before the new one is in its place."""
    finish = store.Checkpoints._finish

    def early(self, step):
        for old in self.steps():
            shutil.rmtree(self.path(old))
        finish(self, step)

    monkeypatch.setattr(store.Checkpoints, "_finish", early)
    (tmp_path / "run").mkdir()
    (tmp_path / "images").mkdir()
    with crash_images.imaging(tmp_path / "run", tmp_path / "images") as names:
        crash_images.train(crash_images.make_trainer(tmp_path / "run"), 4)
    monkeypatch.undo()
    (gone,) = (
        n for n, name in enumerate(names) if name.endswith("4.writing") and "replace" in name
    )
    trainer = crash_images.make_trainer(tmp_path / "images" / str(gone))
    with pytest.raises((FileNotFoundError, pc.CheckpointError)):
        trainer.restore()
