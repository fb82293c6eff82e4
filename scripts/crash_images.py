"""Does a run go on exactly from whatever a kill leaves on the disk, at every file operation of its saves?

    python scripts/crash_images.py            # every image, about two minutes on 2 CPU cores
    python scripts/crash_images.py --images 20

A small run saves, goes back to an earlier checkpoint, and saves other futures over what is there. Before each
operation that changes its folder (rename, remove, make, and after each that waits for the disk) the folder is
copied: the image that a kill there leaves. Each image is then restored, and trained to the end. Expected:
every image ends with the digest and the metrics.jsonl of the run that nothing happened to, byte for byte, and
none goes back behind its newest sealed checkpoint; the last line printed says "0 of them did not". The
exit code is 1 where one did not.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import pcflax as pc
from benchmarks.options import read_count, run_main

STEPS = 6
# What changes a folder, as Python tells it; fsync comes when something was written.
OPERATIONS = ("rename", "replace", "remove", "unlink", "mkdir", "rmdir", "fsync")

RULE = pc.learning.PredictiveCoding(pc.inference.GradientDescent(0.1, num_steps=2))
OPTIMIZER = optax.adam(1e-2)


def make_trainer(run_dir: Path) -> pc.Trainer:
    """The run's Trainer, which keeps one checkpoint and the best."""
    rngs = nnx.Rngs(0)
    network = pc.PCNetwork(
        [pc.PCDense(3, 5, activation=jnp.tanh, rngs=rngs), pc.PCDense(5, 2, rngs=rngs)]
    )
    keep = {"keep_latest": 1, "keep_best": ("eval/energy", "max"), "every": 2}
    return pc.Trainer(
        network,
        OPTIMIZER,
        learning=RULE,
        checkpoints=pc.Checkpoints(run_dir / "checkpoints", **keep),
        callbacks=[pc.JSONLinesLogger(run_dir / "metrics.jsonl")],
        progress=False,
    )


def train(trainer: pc.Trainer, num_steps: int = STEPS) -> None:
    """Train until a step, with rows, evaluations and checkpoints on the way."""
    inputs = np.random.default_rng(0).normal(size=(12, 3))
    data = pc.data.from_arrays(inputs, np.arange(12) % 2, batch_size=3)
    trainer.fit(data, num_steps=num_steps, eval_data=data, eval_every=2, log_every=1)


def outcome(run_dir: Path) -> tuple[int, str, bytes, list]:
    """What has to be equal: step, digest, metrics and rows."""
    stored = pc.load_checkpoint(run_dir)
    metrics = (run_dir / "metrics.jsonl").read_bytes()
    return stored.step, stored.digest(), metrics, stored.rows()


@contextlib.contextmanager
def imaging(run_dir: Path, images: Path) -> Iterator[list[str]]:
    """Copy a folder into `images` before (of fsync, after) each operation, where it has changed."""
    names: list[str] = []
    known: set[str] = set()
    lock = threading.Lock()

    def copy(label: str) -> None:
        with lock, _noted(copying):
            state = _state(run_dir)
            if state not in known:
                known.add(state)
                image = images / str(len(names))
                while True:
                    try:
                        shutil.copytree(run_dir, image)
                        break
                    except shutil.Error:  # TensorStore's threads have moved a file of theirs
                        shutil.rmtree(image)
                names.append(label)

    def watched(name: str, operation):
        def call(*arguments, **options):
            if getattr(copying, "now", False):  # the copy's own operations
                return operation(*arguments, **options)
            if name != "fsync":
                copy(f"before {name} {arguments[0]}")
            found = operation(*arguments, **options)
            if name == "fsync":
                copy("after fsync")
            return found

        return call

    copying = threading.local()
    before = {name: getattr(os, name) for name in OPERATIONS}
    for name, operation in before.items():
        setattr(os, name, watched(name, operation))
    try:
        yield names
    finally:
        for name, operation in before.items():
            setattr(os, name, operation)


@contextlib.contextmanager
def _noted(thread: threading.local) -> Iterator[None]:
    thread.now = True
    try:
        yield
    finally:
        thread.now = False


def take_images(folder: Path) -> tuple[Path, list[str]]:
    """Run once while images are taken; return the run's folder and what each image was taken at."""
    run_dir, images = folder / "run", folder / "images"
    run_dir.mkdir()
    images.mkdir()
    with imaging(run_dir, images) as names:
        trainer = make_trainer(run_dir)
        train(trainer, 4)
        trainer.restore(step=2)  # the best, as the energy falls; step 4 is of a future not taken
        train(trainer, 4)
        trainer.save()  # over the checkpoint of the same step
        train(trainer)
    return run_dir, names


def fault_of(image: Path, expected: tuple) -> str | None:
    """Restore an image and train it to the end; return what is wrong then, or None."""
    trainer = make_trainer(image)
    sealed = [int(path.stem) for path in image.glob("checkpoints/*.sha256") if path.stem.isdigit()]
    whole = [step for step in sealed if (image / "checkpoints" / str(step)).is_dir()]
    try:
        step = trainer.restore()
    except FileNotFoundError:
        step = 0
    if step < max(whole, default=0):
        return f"goes back to step {step}, behind {max(whole)}"
    if step < STEPS:
        train(trainer)
    found = outcome(image)
    parts = ("step", "digest", "metrics.jsonl", "rows")
    wrong = [name for name, a, b in zip(parts, found, expected, strict=True) if a != b]
    return f"{', '.join(wrong)} differ" if wrong else None


def _state(folder: Path) -> str:
    """A digest of names and contents."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        total.update(str(path.relative_to(folder)).encode())
        with contextlib.suppress(OSError):  # a folder, or gone
            total.update(path.read_bytes())
    return total.hexdigest()


def main() -> None:
    """Take images, restore them, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--images", type=read_count, help="so many, evenly spread; all unless given"
    )
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="pcflax-images-"))
    run_dir, names = take_images(folder)
    expected = outcome(run_dir)
    count = min(options.images or len(names), len(names))
    chosen = [round(place) for place in np.linspace(0, len(names) - 1, count)]
    print(f"{len(names)} images; {count} are restored", flush=True)
    faults = 0
    for number in chosen:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pc.CheckpointWarning)  # of what was being written
            fault = fault_of(folder / "images" / str(number), expected)
        if fault is not None:
            faults += 1
            print(f"image {number}, {names[number]}: {fault}", flush=True)
    print(
        f"{count} of {len(names)} images were restored and trained to the end; {faults} of them did not"
    )
    if faults:
        print(f"they are in {folder}")
        raise SystemExit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    run_main(main)
