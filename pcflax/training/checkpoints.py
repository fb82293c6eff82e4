"""Checkpoints: written by Orbax, sealed by us, restored exactly or not at all.

A checkpoint is a folder `<step>/` that Orbax writes and renames when it is complete, and a file
`<step>.sha256` beside it with the SHA-256 of each file inside, in the format of the sha256sum tool
(`cd <step> && sha256sum -c ../<step>.sha256` checks it too). A folder without that file was interrupted
while it was written and does not count; one that does not match it is damaged, is named in a warning and
skipped for the newest good one. Orbax alone restores an array with a flipped byte as if nothing had
happened.

Old checkpoints are deleted only after a newer one is sealed, and the latest is never deleted for the
best. Saving runs in the background; the arrays are copied before `save` returns.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from .arrays import FlatArrays, check_arrays, network_arrays, write_network_arrays
from .errors import CheckpointError, CheckpointWarning
from .seals import damage, seal, seal_of

_SECTIONS = ("parameters", "optimizer", "other", "activities")


class Checkpoint(NamedTuple):
    """What a checkpoint holds, on the host.

    Attributes:
        step: batches learned from.
        parameters: nested dict of NumPy arrays, as the network's attributes are nested.
        activities: {layer name: array}, empty unless the run saved them.
        metrics: the newest value of each metric.
        sections: every array by section ("parameters", "optimizer", "other", "activities") and path.
        meta: seed, data, history and versions, as saved.
        path: the folder it was read from.
    """

    step: int
    parameters: dict
    activities: dict
    metrics: dict[str, float]
    sections: dict[str, dict[str, np.ndarray]]
    meta: dict[str, Any]
    path: Path

    def digest(self) -> str:
        """One SHA-256 over parameters and optimizer state: equal for equal runs.

        It covers each array's section, path, dtype, shape and bytes, in the order of their names.
        """
        total = hashlib.sha256()
        for section in ("parameters", "optimizer"):
            for path, array in sorted(self.sections[section].items()):
                total.update(f"{section}/{path}:{array.dtype}{array.shape};".encode())
                total.update(np.ascontiguousarray(array).tobytes())
        return total.hexdigest()


class Checkpoints:
    """A folder of checkpoints, and which of them to keep.

    Args:
        directory: the folder; made on the first save.
        keep_latest: how many of the newest to keep, at least 1.
        keep_best: (metric, "max" or "min"): also keep the one with the best value of that metric,
            such as ("eval/accuracy", "max"). Only checkpoints of a step that was evaluated compete; a
            NaN never wins.
        every: save every so many steps; at each evaluation, or else each epoch, unless given. The
            last step of a fit is always saved.
        activities: whether a checkpoint also holds the last batch's inferred activities.

    Raises:
        ValueError: for a keep_latest or every below 1, or another mode.

    >>> import pcflax as pc
    >>> pc.Checkpoints("runs/mnist", keep_latest=3, keep_best=("eval/accuracy", "max")).keep_latest
    3
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        keep_latest: int = 3,
        keep_best: tuple[str, str] | None = None,
        every: int | None = None,
        activities: bool = False,
    ):
        if keep_latest < 1:
            raise ValueError(f"expected keep_latest of at least 1, got {keep_latest}")
        if every is not None and every < 1:
            raise ValueError(f"expected every to be at least 1 step, got {every}")
        if keep_best is not None and (len(keep_best) != 2 or keep_best[1] not in ("max", "min")):
            raise ValueError(
                f"expected keep_best as (metric, 'max' or 'min'), such as ('eval/accuracy', 'max'), "
                f"got {keep_best!r}"
            )
        self.directory = Path(directory).absolute()
        self.keep_latest = keep_latest
        self.keep_best = keep_best
        self.every = every
        self.activities = activities
        self._checkpointer: ocp.AsyncCheckpointer | None = None
        self._sealing: threading.Thread | None = None
        self._failure: BaseException | None = None

    # Writing.

    def prepare(self) -> None:
        """Make the folder and see that it can be written, before any work is done.

        Raises:
            OSError: where it cannot, naming the folder.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            probe = self.directory / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise OSError(
                f"cannot write checkpoints to {self.directory}: {error.strerror}; choose another "
                f"folder"
            ) from error

    def save(self, step: int, sections: Mapping[str, FlatArrays], meta: dict[str, Any]) -> Path:
        """Write a checkpoint in the background; returns the folder it will be in.

        A checkpoint of the same step is replaced when the new one is complete. Later ones are of a
        future that is not taken; they are then moved aside to `<step>.superseded`.

        Args:
            step: its name and place in time.
            sections: arrays by section and path, from `flatten`.
            meta: what json can hold.
        """
        stored = {
            section: {name: array for name, array in flat.items() if np.size(array) > 0}
            for section, flat in sections.items()
        }
        meta = {
            # a copy: Orbax writes in the background, while the run's history grows
            **json.loads(json.dumps(meta)),
            "step": step,
            "keep_best": self.keep_best,
            "arrays": {
                section: {
                    name: [list(array.shape), str(array.dtype)] for name, array in flat.items()
                }
                for section, flat in stored.items()
            },
        }
        self.wait()
        if self._checkpointer is None:
            self.prepare()
            for unfinished in ("*.orbax-checkpoint-tmp*", "*.writing"):
                for leftover in self.directory.glob(unfinished):  # of a save that was killed
                    shutil.rmtree(leftover, ignore_errors=True)
            self._checkpointer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        writing = self.directory / f"{step}.writing"
        self._checkpointer.save(
            writing,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave({name: flat for name, flat in stored.items() if flat}),
                meta=ocp.args.JsonSave(meta),
            ),
        )
        self._sealing = threading.Thread(target=self._finish, args=(writing, step), daemon=False)
        self._sealing.start()
        return self.path(step)

    def wait(self) -> None:
        """Return when the last save is complete and sealed.

        Raises:
            Exception: what went wrong while it was written.
        """
        if self._sealing is not None:
            self._sealing.join()
            self._sealing = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Wait, and let Orbax's threads go."""
        self.wait()
        if self._checkpointer is not None:
            self._checkpointer.close()
            self._checkpointer = None

    def _finish(self, writing: Path, step: int) -> None:
        """What follows when Orbax is done: put the folder in its place, seal it, delete the old."""
        try:
            self._checkpointer.wait_until_finished()  # type: ignore[union-attr]
            path, replaced = self.path(step), None
            if path.exists():
                replaced = self._move_aside(step)
            seal_of(path).unlink(missing_ok=True)
            writing.rename(path)
            seal(path)
            # Only now is anything older given up: a kill before this line loses nothing, since a
            # checkpoint that was moved aside still counts where there is no other.
            if replaced is not None:
                shutil.rmtree(replaced, ignore_errors=True)
                seal_of(replaced).unlink(missing_ok=True)
            for later in self.all_steps():
                if later > step:
                    self._move_aside(later)
            self._prune()
        except BaseException as error:  # raised again by wait() in the caller's thread
            self._failure = error

    def _prune(self) -> None:
        sealed = self.steps()
        keep = set(sealed[-self.keep_latest :])
        if (best := self.best_step()) is not None:
            keep.add(best)
        for step in self.all_steps():
            if step not in keep:  # too old, or never sealed because its writing was interrupted
                # The folder first: a seal without its folder is told as damage, never restored.
                shutil.rmtree(self.path(step), ignore_errors=True)
                seal_of(self.path(step)).unlink(missing_ok=True)

    def _move_aside(self, step: int) -> Path:
        """Rename a checkpoint with its seal, which stays valid; returns its new folder."""
        path, number = self.path(step), 1
        aside = path.with_name(f"{step}.superseded")
        while aside.exists():
            number += 1
            aside = path.with_name(f"{step}.superseded-{number}")
        # The seal is copied first, so that at every instant one of the two names is whole.
        if seal_of(path).exists():
            shutil.copyfile(seal_of(path), seal_of(aside))
        if path.exists():
            path.rename(aside)
        seal_of(path).unlink(missing_ok=True)
        return aside

    # Reading.

    def all_steps(self) -> list[int]:
        """Every step with a folder or a seal, good or not, in order."""
        if not self.directory.is_dir():
            return []
        names = {entry.name.removesuffix(".sha256") for entry in self.directory.iterdir()}
        return sorted(int(name) for name in names if name.isdigit())

    def steps(self) -> list[int]:
        """Every sealed step, in order; whether each is good is seen on restoring."""
        return [step for step in self.all_steps() if seal_of(self.directory / str(step)).exists()]

    def best_step(self) -> int | None:
        """The sealed step with the best value of `keep_best`'s metric, or None."""
        if self.keep_best is None:
            return None
        return _best_step(self.directory, self.steps(), *self.keep_best)

    def path(self, step: int) -> Path:
        """The folder of a step."""
        return self.directory / str(step)

    def latest_good(self) -> Path | None:
        """The newest checkpoint that matches its seal, or None."""
        self.wait()
        for step in reversed(self.all_steps()):
            if damage(self.path(step)) is None:
                return self.path(step)
        return None

    def read(self, step: int | None = None, *, best: bool = False) -> Checkpoint:
        """The newest good checkpoint, or the best, or that of one step.

        Args:
            step: read this one and no other.
            best: read the best by `keep_best`; a damaged one is named in a warning and does not compete.

        Raises:
            FileNotFoundError: where there is none.
            CheckpointError: where all are damaged, or the one asked for is.
            ValueError: for both step and best, or best without `keep_best`.
        """
        self.wait()
        return _read(self.directory, step=step, best=best, keep_best=self.keep_best)


def load_checkpoint(
    path: str | Path,
    network: nnx.Module | None = None,
    *,
    step: int | None = None,
    best: bool = False,
) -> Checkpoint:
    """Read a checkpoint without a Trainer, and write its parameters into a network if one is given.

    Args:
        path: a run folder, its `checkpoints` folder, or one checkpoint's own folder.
        network: gets the parameters and other state (batch statistics) where given; its optimizer is
            no concern of this function.
        step: a step; the newest good one unless given.
        best: the best by the metric that the run kept its best by.

    Raises:
        FileNotFoundError: where there is no checkpoint.
        CheckpointError: where all are damaged, or the network's arrays have other shapes; then the
            first difference is named and nothing is changed.
    """
    folder = Path(path).absolute()
    if folder.name.isdigit() and (seal_of(folder).exists() or (folder / "state").exists()):
        step, folder = int(folder.name), folder.parent
    elif (folder / "checkpoints").is_dir():
        folder = folder / "checkpoints"
    checkpoint = _read(folder, step=step, best=best, keep_best=None)
    if network is not None:
        parameters, other = network_arrays(network)
        check_arrays("parameter", checkpoint.sections["parameters"], parameters)
        check_arrays("state", checkpoint.sections["other"], other)
        write_network_arrays(
            network, {**checkpoint.sections["parameters"], **checkpoint.sections["other"]}
        )
    return checkpoint


# Files.


def _read(
    directory: Path, *, step: int | None, best: bool, keep_best: tuple[str, str] | None
) -> Checkpoint:
    if step is not None and best:
        raise ValueError("give step or best, not both")
    folder = Checkpoints(directory)
    for _ in range(10):
        try:
            if step is not None:
                return _read_step(folder, step)
            return _read_best(folder, keep_best) if best else _read_newest(folder)
        except _Gone:
            # A run that is going on has deleted it between our look and our reading: look again.
            continue
    raise CheckpointError(
        f"the checkpoints in {directory} are deleted faster than they are read; keep more of them"
    )


class _Gone(Exception):
    """A checkpoint was there and whole, and is so no longer."""


def _read_step(folder: Checkpoints, step: int) -> Checkpoint:
    found = folder.all_steps()
    if step not in found:
        raise FileNotFoundError(
            f"there is no checkpoint of step {step} in {folder.directory}; there are "
            f"{', '.join(map(str, found)) or 'none'}"
        )
    if (reason := damage(folder.path(step))) is not None:
        good = folder.latest_good()
        remedy = f"the newest good one is {good}" if good else "no other is good"
        raise CheckpointError(f"checkpoint {folder.path(step)} is damaged: {reason}; {remedy}")
    return _read_one(folder.path(step))


def _read_newest(folder: Checkpoints) -> Checkpoint:
    steps = list(reversed(folder.all_steps()))
    # What was moved aside counts where there is no other: its replacement may have been interrupted.
    aside = sorted(folder.directory.glob("*.superseded*/"), reverse=True)
    paths = [*map(folder.path, steps), *(path for path in aside if damage(path) is None)]
    if not paths:
        raise FileNotFoundError(f"there is no checkpoint in {folder.directory}; train first")
    for path in paths:
        reason = damage(path)
        if reason is None:
            return _read_one(path)
        _warn_skipped(path, reason)
    raise CheckpointError(
        f"none of the {len(paths)} checkpoints in {folder.directory} is good; the newest, "
        f"{paths[0].name}: {damage(paths[0])}"
    )


def _read_best(folder: Checkpoints, keep_best: tuple[str, str] | None) -> Checkpoint:
    reasons = {step: damage(folder.path(step)) for step in folder.all_steps()}
    for step, reason in reasons.items():
        if reason is not None:
            _warn_skipped(folder.path(step), reason)
    good = [step for step, reason in reasons.items() if reason is None]
    keep_best = keep_best or _stored_keep_best(folder.directory, good)
    if keep_best is None:
        raise ValueError(
            "best needs a metric: make the checkpoints with keep_best=('eval/accuracy', 'max')"
        )
    winner = _best_step(folder.directory, good, *keep_best)
    if winner is None:
        raise FileNotFoundError(
            f"no good checkpoint in {folder.directory} has the metric '{keep_best[0]}'; evaluate at "
            f"the steps that are saved"
        )
    return _read_one(folder.path(winner))


def _warn_skipped(path: Path, reason: str) -> None:
    warnings.warn(f"checkpoint {path} is skipped: {reason}", CheckpointWarning, stacklevel=6)


def _read_one(path: Path) -> Checkpoint:
    try:
        meta = _read_meta(path)
        target = {
            section: {
                name: jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
                for name, (shape, dtype) in flat.items()
            }
            for section, flat in meta["arrays"].items()
            if flat
        }
        # As NumPy: on its way over the device a float64 would be rounded where 64-bit mode is off.
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            state = checkpointer.restore(
                path,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeRestore(item=target, restore_args=as_numpy)
                ),
            )["state"]
    except Exception as error:
        if damage(path) is not None:
            raise _Gone from error
        raise
    sections = {section: dict(state.get(section) or {}) for section in _SECTIONS}
    for section, flat in sections.items():
        check_arrays(
            f"{section} array", flat, target.get(section, {}), owner="checkpoint's own list"
        )
    return Checkpoint(
        step=meta["step"],
        parameters=_nested(sections["parameters"]),
        activities=sections["activities"],
        metrics=meta["metrics"],
        sections=sections,
        meta=meta,
        path=path,
    )


def _read_meta(path: Path) -> dict[str, Any]:
    return json.loads((path / "meta" / "metadata").read_text())


def _nested(flat: Mapping[str, Any]) -> dict:
    nested: dict = {}
    for name, array in flat.items():
        *parents, last = [int(part) if part.isdigit() else part for part in name.split(".")]
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = array
    return nested


def _best_step(directory: Path, steps: list[int], metric: str, mode: str) -> int | None:
    """The step with the best value; the later one where two are equal."""
    sign = 1.0 if mode == "max" else -1.0
    scored = []
    for step in steps:
        try:
            value = _read_meta(directory / str(step))["evaluated"].get(metric)
        except (OSError, ValueError, KeyError):  # damaged: told on restoring
            continue
        if value is not None and not math.isnan(value):
            scored.append((sign * value, step))
    return max(scored)[1] if scored else None


def _stored_keep_best(directory: Path, good: list[int]) -> tuple[str, str] | None:
    stored = _read_meta(directory / str(good[-1])).get("keep_best") if good else None
    return tuple(stored) if stored else None  # type: ignore[return-value]
