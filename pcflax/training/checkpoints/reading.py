"""Reading checkpoints: the newest good one, the best, or that of a step, and never a damaged one.

A folder without its seal was interrupted while it was written; one that does not match it is damaged, is
named in a warning and skipped for the newest good one.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from pcflax.checks import expect_count, expect_local_path
from pcflax.errors import CheckpointError, CheckpointWarning
from pcflax.networks import AbstractPCNetwork

from .arrays import (
    FlatArrays,
    by_place,
    check_arrays,
    flatten,
    network_arrays,
    renamed,
    write_network_arrays,
)
from .fingerprint import check_fingerprint
from .folder import Folder, is_ours, plain_name, read_meta
from .rows import Row, RowLog
from .seals import find_damage, seal_of

_SECTIONS = ("parameters", "optimizer", "other", "activities", "starts")


class Checkpoint(NamedTuple):
    """What a checkpoint holds, on the host.

    Attributes:
        step: batches learned from.
        parameters: nested dict of NumPy arrays, as the network's attributes are nested.
        activities: {layer name: array}, empty unless the run saved them.
        metrics: the newest value of each metric.
        sections: every array by section ("parameters", "optimizer", "other", "activities", "starts") and
            path.
        meta: seed, data, layers and versions, as saved.
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
        """Return one SHA-256 over parameters and optimizer state: equal for equal runs.

        It covers each array's section, path, dtype, shape and bytes, in the order of their names.
        """
        total = hashlib.sha256()
        for section in ("parameters", "optimizer"):
            for path, array in sorted(self.sections[section].items()):
                total.update(f"{section}/{path}:{array.dtype}{array.shape};".encode())
                total.update(np.ascontiguousarray(array).tobytes())
        return total.hexdigest()

    def rows(self) -> list[Row]:
        """Return the rows of the history up to this step, which are in a file beside the checkpoint.

        Raises:
            CheckpointError: where that file is missing or damaged.
        """
        return RowLog.read(self.path.parent, self.meta["history"])[0]

    def arrays_for(
        self, network: AbstractPCNetwork, optimizer_state: Any = None
    ) -> tuple[FlatArrays, FlatArrays]:
        """Return the arrays of a network, and of its optimizer's state, by their paths there.

        Layers are found by their names, in whatever order the network lists them. A checkpoint of
        0.1 holds no names; its layers are taken in the order of the network's.

        Args:
            network: what the arrays will be written into.
            optimizer_state: a tree of arrays; the optimizer's arrays are left out unless given.

        Raises:
            CheckpointError: naming the first array that does not fit, or what the network computes
                otherwise than the one that was saved.
            ValueError: for two arrays of one path.
        """
        parameters, other = network_arrays(network)
        then = tuple(self.meta.get("layers") or network.layer_names)
        stored = {name: self.sections[name] for name in ("parameters", "other", "optimizer")}
        if by_place([*stored["parameters"], *stored["other"]]):
            stored = {name: renamed(flat, then) for name, flat in stored.items()}
        check_arrays("parameter", stored["parameters"], parameters)
        check_arrays("state", stored["other"], other)
        check_fingerprint(self.meta.get("architecture"), network)
        if optimizer_state is None:
            return {**stored["parameters"], **stored["other"]}, {}
        expected = flatten(optimizer_state)
        check_arrays("optimizer state", stored["optimizer"], expected, owner="optimizer")
        return {**stored["parameters"], **stored["other"]}, stored["optimizer"]


def load_checkpoint(
    path: str | Path,
    network: AbstractPCNetwork | None = None,
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
        TypeError, ValueError: for what is no path or step, for step and best at once, and for best of a run
            that kept none.
    """
    folder = expect_local_path("load_checkpoint", "path", path)
    if folder.name.isdecimal() and is_ours(folder):
        step, folder = int(folder.name), folder.parent
    elif (folder / "checkpoints").is_dir():
        folder = folder / "checkpoints"
    checkpoint = read(Folder(folder), step=step, best=best, keep_best=None)
    if network is not None:
        write_network_arrays(network, checkpoint.arrays_for(network)[0])
    return checkpoint


def read(
    folder: Folder, *, step: int | None, best: bool, keep_best: tuple[str, str] | None
) -> Checkpoint:
    """Return the newest good checkpoint, or the best, or that of one step; see `Checkpoints.read`."""
    if step is not None and best:
        raise ValueError("give step or best, not both")
    step = None if step is None else expect_count("a checkpoint", "step", step)
    for _ in range(10):
        try:
            if step is not None:
                return _read_step(folder, step)
            return _read_best(folder, keep_best) if best else _read_newest(folder)
        except _Gone:
            # A run that is going on has deleted it between our look and our reading: look again.
            continue
    raise CheckpointError(
        f"the checkpoints in {folder.directory} are deleted faster than they are read; keep more of "
        f"them"
    )


def warn_of_changes(meta: Mapping[str, Any], data: Mapping[str, Any], stacklevel: int = 3) -> None:
    """Warn where training goes on otherwise than it would have without an interruption."""
    stored, given = dict(meta.get("data") or {}), dict(data)
    if not is_same_data(stored, given):
        stored.pop("checksum", None)
        given.pop("checksum", None)
        what = " of other examples" if stored == given else ""
        warnings.warn(
            f"the checkpoint was made on {stored}, and training goes on with {given}{what}: it will not "
            f"end as the uninterrupted run would have",
            CheckpointWarning,
            stacklevel=stacklevel,
        )
    then, now = meta.get("versions") or {}, versions()
    changed = [
        f"{name} {then[name]}, now {now[name]}"
        for name in now
        if then.get(name, now[name]) != now[name]
    ]
    if changed:
        warnings.warn(
            f"the checkpoint was made with {' and '.join(changed)}: the run will not end bitwise as the "
            f"uninterrupted one would have",
            CheckpointWarning,
            stacklevel=stacklevel,
        )


def is_same_data(stored: Mapping[str, Any], data: Mapping[str, Any]) -> bool:
    """Return whether two descriptions are of the same batches; of nothing, anything is."""
    stored, data = dict(stored), dict(data)
    if None in (sums := (stored.pop("checksum", None), data.pop("checksum", None))):
        sums = (None, None)  # 0.1 kept none, and a streamed set has none
    elif stored and sums[0] == sums[1]:
        data["name"] = stored["name"]  # the same examples in a file of another name
    return not stored or (stored, sums[0]) == (data, sums[1])


def versions() -> dict[str, str]:
    """Return what the last bits of a result depend on."""
    return {"jax": jax.__version__, "device": jax.local_devices()[0].device_kind}


class _Gone(Exception):
    """A checkpoint was there and whole, and is so no longer."""


def _read_step(folder: Folder, step: int) -> Checkpoint:
    found = folder.all_steps()
    if step not in found:
        raise FileNotFoundError(
            f"there is no checkpoint of step {step} in {folder.directory}; there are "
            f"{', '.join(map(str, found)) or 'none'}"
        )
    if (reason := find_damage(folder.found(step))) is not None:
        good = [path for path in map(folder.found, reversed(found)) if find_damage(path) is None]
        remedy = f"the newest good one is {good[0]}" if good else "no other is good"
        raise CheckpointError(f"checkpoint {folder.found(step)} is damaged: {reason}; {remedy}")
    return _read_one(folder.found(step))


def _read_newest(folder: Folder) -> Checkpoint:
    # What was moved aside counts where there is no other: its replacement may have been interrupted.
    aside = [path for path in folder.superseded() if find_damage(path) is None]
    paths = [*map(folder.found, reversed(folder.all_steps())), *aside]
    for path in paths:
        reason = find_damage(path)
        if reason is None:
            return _read_one(path)
        _warn_skipped(path, reason)
    if not paths or (len(paths) == 1 and not seal_of(paths[0]).exists()):
        # the second: 0.1 was killed before it sealed its first
        raise FileNotFoundError(f"there is no checkpoint in {folder.directory}; train first")
    raise CheckpointError(
        f"none of the {len(paths)} checkpoints in {folder.directory} is good; the newest, "
        f"{paths[0].name}: {find_damage(paths[0])}"
    )


def _read_best(folder: Folder, keep_best: tuple[str, str] | None) -> Checkpoint:
    reasons = {step: find_damage(folder.found(step)) for step in folder.all_steps()}
    for step, reason in reasons.items():
        if reason is not None:
            _warn_skipped(folder.found(step), reason)
    good = [step for step, reason in reasons.items() if reason is None]
    if keep_best is None and good:  # of the run's own
        keep_best = read_meta(folder.found(good[-1])).get("keep_best")
    if keep_best is None:
        raise ValueError(
            "best needs a metric: make the checkpoints with keep_best=('eval/accuracy', 'max')"
        )
    winner = folder.best_step(good, *keep_best)
    if winner is None:
        raise FileNotFoundError(
            f"no good checkpoint in {folder.directory} has the metric '{keep_best[0]}'; evaluate at "
            f"the steps that are saved"
        )
    return _read_one(folder.found(winner))


def _warn_skipped(path: Path, reason: str) -> None:
    warnings.warn(f"checkpoint {path} is skipped: {reason}", CheckpointWarning, stacklevel=6)


def _read_one(path: Path) -> Checkpoint:
    try:
        meta = read_meta(path)
        target = {
            section: {
                name: jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
                for name, (shape, dtype) in flat.items()
            }
            for section, flat in meta["arrays"].items()
            if flat
        }
        # As NumPy: on its way over the device a float64 would be rounded where 64-bit mode is off.
        import orbax.checkpoint as ocp

        # and alone: no process waits for another, which may read nothing
        alone = ocp.options.MultiprocessingOptions(
            primary_host=None,
            active_processes={jax.process_index()},
            barrier_sync_key_prefix=f"process-{jax.process_index()}",
        )
        handler = ocp.CompositeCheckpointHandler(
            composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
        )
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
        with (
            plain_name(path.parent) as place,
            ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer,
        ):
            state = checkpointer.restore(
                place / path.name,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeRestore(item=target, restore_args=as_numpy)
                ),
            )["state"]
    except Exception as error:
        if find_damage(path) is not None:
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


def _nested(flat: Mapping[str, Any]) -> dict:
    def parts(name):
        return tuple(int(part) if part.isdigit() else part for part in name.split("."))

    return unflatten_dict({parts(name): array for name, array in flat.items()})
