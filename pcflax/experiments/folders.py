"""The folder of several seeds: a folder of checkpoints for each, and a file that says which they are.

    replicas.json           name, how they are trained, the seed and settings of each
    seed-0/, seed-1/, ...   checkpoints, as one Trainer's

Each seed's folder is one that `make_trainer(seed)` with `pc.Checkpoints(folder)` restores.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pcflax.checks import expect_local_path
from pcflax.training import Checkpoints, History, load_checkpoint
from pcflax.training.checkpoints.disk import telling, write_atomically

from .runs import OneRun, Runs

_FILE = "replicas.json"


def folder_name(seed: int, point: Mapping[str, Any], over: Mapping[str, Sequence[Any]]) -> str:
    """Return the name of a run's folder; a value that is no number or word goes by its place.

    The place is marked where it is another value's word.

    >>> folder_name(3, {"step_size": 0.1}, {"step_size": [0.05, 0.1]})
    'step_size-0.1,seed-3'
    >>> folder_name(3, {"activation": abs}, {"activation": [max, abs]})
    'activation-1,seed-3'
    >>> folder_name(3, {"widths": (8,)}, {"widths": [(8,), 0]})
    'widths-@0,seed-3'
    """
    parts = []
    for name, value in point.items():
        word = str(value)
        if not re.fullmatch(r"[\w.+-]+", word):
            word = str(list(over[name]).index(value))
            if word in map(str, over[name]):
                word = f"@{word}"  # which no word has
        parts.append(f"{name}-{word}")
    return ",".join([*parts, f"seed-{seed}"])


def within(checkpoints: Checkpoints, name: str) -> Checkpoints:
    """Return checkpoints of the same kind in a subfolder."""
    return Checkpoints(
        checkpoints.directory / name,
        keep_latest=checkpoints.keep_latest,
        keep_best=checkpoints.keep_best,
        every=checkpoints.every,
        activities=checkpoints.activities,
    )


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write what the folder holds, in one step that a kill cannot split."""
    with telling(str(folder / _FILE)):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / _FILE, json.dumps(record, indent=2, default=str) + "\n")


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return what a folder says that it holds; None where it is no folder of several seeds."""
    try:
        return json.loads((folder / _FILE).read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder / _FILE} cannot be read ({error}); it is no longer whole"
        ) from error


def check_settings(folder: Path, name: str, point: Mapping[str, Any]) -> None:
    """See that what a folder holds by a name was made with these settings.

    Raises:
        ValueError: where it was made with others: values that are no words go by their place.
    """
    known = ((read_record(folder) or {}).get("runs", {}).get(name) or {}).get("settings")
    own = json.loads(json.dumps(dict(point), default=str))
    if known is not None and _told(known) != _told(own):
        raise ValueError(
            f"{folder / name} is of the settings {_told(known)}, got {_told(own)}; give replicate another "
            f"folder, or all values in their order"
        )


def _told(settings: Mapping[str, Any]) -> str:
    """Return settings in words, without where in memory a function lay."""
    return re.sub(r" at 0x[0-9a-f]+", "", json.dumps(settings))


def load_runs(folder: str | Path) -> Runs:
    """Return what the runs in a folder have measured, as far as their newest checkpoints know.

    Args:
        folder: of the checkpoints that `replicate` was given.

    Raises:
        FileNotFoundError: where there is no such folder, or no checkpoint of any seed.
        CheckpointError: where all checkpoints of a seed are damaged.
        TypeError, ValueError: for what is no path, or a record that cannot be read.
    """
    folder = expect_local_path("load_runs", "folder", folder)
    record = read_record(folder)
    if record is None:
        raise FileNotFoundError(
            f"{folder} holds no {_FILE}, so it is no folder of several seeds; a single run's history is in "
            f"pc.load_checkpoint(folder).rows()"
        )
    runs = []
    for name, one in record["runs"].items():
        try:
            rows = load_checkpoint(folder / name).rows()
        except FileNotFoundError:  # killed before the first
            rows = []
        runs.append(OneRun(one["seed"], History(rows), one["settings"], one.get("ended")))
    if not any(run.history.rows for run in runs):
        raise FileNotFoundError(f"there is no checkpoint in {folder}; train first")
    return Runs(runs, name=record["name"], how=record["how"], begun=record.get("begun", ""))
