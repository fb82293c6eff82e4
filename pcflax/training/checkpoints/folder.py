"""The names in a folder of checkpoints: which are ours, and in what order.

A user may keep other things there, with numbers for names too. Only what carries our seal, or the record
that we write inside, is counted, moved or deleted.

    <step>/ and <step>.sha256       a checkpoint and its seal
    <step>.writing/                 one that is not sealed yet, or will never be
    <step>.superseded/ and .sha256  one that a newer run of the same steps moved aside
    <step>.replaced/ and .sha256    one whose step is saved again, until the new one is in its place
    history.pcflax.jsonl            the rows that checkpoints point to: `rows.py`
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ..plain_json import numbers
from .disk import move, write_atomically
from .seals import seal_of

_STEP = re.compile(r"0|[1-9][0-9]*")
_SUPERSEDED = re.compile(r"[0-9]+\.superseded(-[0-9]+)?")
_REPLACED = re.compile(r"([0-9]+)\.replaced(-[0-9]+)?")
_TEMPORARY = ".orbax-checkpoint-tmp"  # Orbax's, until a folder is whole
_UNFINISHED = re.compile(rf"[0-9]+\.writing({re.escape(_TEMPORARY)}.*)?")
_RECORD = "meta/metadata"  # Orbax's name for the JSON of ours


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder that may hold checkpoints, and may not exist."""

    directory: Path

    def path(self, step: int) -> Path:
        """Return where the checkpoint of a step is."""
        return self.directory / str(step)

    def found(self, step: int) -> Path:
        """Return where the checkpoint of a step is now: aside, where no other has come in its place yet."""
        path = self.path(step)
        if not path.exists():
            for other, aside in self._replaced():
                if other == step and aside.is_dir():
                    return aside
        return path

    def writing(self, step: int) -> Path:
        """Return where the checkpoint of a step is before it is sealed."""
        return self.directory / f"{step}.writing"

    def all_steps(self) -> list[int]:
        """Return every step with a folder or a seal of ours, good or not, in order."""
        found = {step for step, aside in self._replaced() if aside.is_dir()}
        found |= {
            step
            for step in self._numbers()
            # sealed, and not yet in its place: its writing was interrupted, or goes on
            if is_ours(self.path(step))
            and (self.path(step).exists() or not self.writing(step).exists())
        }
        return sorted(found)

    def steps(self) -> list[int]:
        """Return every sealed step, in order; whether each is good is seen on restoring."""
        return [step for step in self.all_steps() if self.is_sealed(step)]

    def is_sealed(self, step: int) -> bool:
        """Return whether a step has a folder and a seal."""
        path = self.found(step)
        return path.is_dir() and seal_of(path).is_file()

    def superseded(self) -> list[Path]:
        """Return what was moved aside, the newest move first."""
        found = [
            self.directory / name
            for name in self._names()
            if _SUPERSEDED.fullmatch(name) and is_ours(self.directory / name)
        ]
        # the seal is copied when its folder is moved
        return sorted(found, key=lambda path: _time_of(seal_of(path)), reverse=True)

    def unfinished(self) -> list[Path]:
        """Return what a save that was killed left behind."""
        return [
            self.directory / name
            for name in self._names()
            if (matched := _UNFINISHED.fullmatch(name))
            and (matched[1] or is_ours(self.directory / name))
        ]

    def discard_unfinished(self) -> None:
        """Remove what a save that was killed left behind.

        It is first given the name of what is half written. Without its record, nothing would tell a folder
        as ours that a kill leaves half removed.
        """
        for path in sorted(self.unfinished(), reverse=True):  # those that have such a name go first
            temporary = path.with_name(path.name + _TEMPORARY)
            if _TEMPORARY not in path.name:
                with contextlib.suppress(
                    OSError
                ):  # where names cannot be changed, it goes as it is
                    move(path, temporary)
            shutil.rmtree(path if path.exists() else temporary, ignore_errors=True)

    def move_aside(self, step: int, word: str) -> Path:
        """Rename a checkpoint to `<step>.<word>`, or that with a number behind it; return its new folder."""
        path, number = self.path(step), 1
        aside = path.with_name(f"{step}.{word}")
        while aside.exists() or seal_of(aside).exists():
            number += 1
            aside = path.with_name(f"{step}.{word}-{number}")
        _rename(path, aside)
        return aside

    def put_back(self) -> None:
        """Put what was to be replaced in its place again, or where the new one has come there, remove it."""
        for step, aside in self._replaced():
            if aside.is_dir() and not self.path(step).exists():
                _rename(aside, self.path(step))
            elif self.is_sealed(step) or not aside.is_dir():
                remove(aside)

    def taken_steps(self, is_due: Callable[[int], bool]) -> list[int]:
        """Return every number that is due, and the name of something of the user's, or of its seal."""
        return [step for step in self._numbers() if is_due(step) and not is_ours(self.path(step))]

    def best_step(self, steps: Iterable[int], metric: str, mode: str) -> int | None:
        """Return the step with the best value of a metric, the later one where two are equal, or None."""
        sign = 1.0 if mode == "max" else -1.0
        scored = []
        for step in steps:
            try:
                value = read_meta(self.found(step))["evaluated"].get(metric)
            except (OSError, ValueError, KeyError):  # damaged: told on restoring
                continue
            if value is not None and not math.isnan(value):
                scored.append((sign * value, step))
        return max(scored)[1] if scored else None

    def _replaced(self) -> list[tuple[int, Path]]:
        names = {name.removesuffix(".sha256") for name in self._names()}
        return [
            (int(matched[1]), self.directory / name)
            for name in sorted(names)
            if (matched := _REPLACED.fullmatch(name)) and is_ours(self.directory / name)
        ]

    def _numbers(self) -> list[int]:
        names = {name.removesuffix(".sha256") for name in self._names()}
        return sorted(int(name) for name in names if _STEP.fullmatch(name))

    def _names(self) -> list[str]:
        try:
            return [entry.name for entry in self.directory.iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []


def is_ours(path: Path) -> bool:
    """Return whether a folder is a checkpoint that we wrote, by the seal beside it or the record inside."""
    with contextlib.suppress(OSError):
        if f"  {_RECORD}\n".encode() in seal_of(path).read_bytes():
            return True
    try:
        meta = json.loads((path / _RECORD).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(meta, dict) and {"step", "arrays", "metrics"} <= meta.keys()


def remove(path: Path) -> None:
    """Remove a checkpoint.

    The folder goes first: a seal without its folder is told as damage, never restored.
    """
    shutil.rmtree(path, ignore_errors=True)
    seal_of(path).unlink(missing_ok=True)


def _rename(source: Path, target: Path) -> None:
    """Rename a checkpoint with its seal, which stays valid."""
    # The seal is copied first, so that at every instant one of the two names is whole.
    if seal_of(source).exists():
        write_atomically(seal_of(target), seal_of(source).read_text())
    if source.exists():
        move(source, target)
    seal_of(source).unlink(missing_ok=True)


def read_meta(path: Path) -> dict[str, Any]:
    """Return what a checkpoint tells about itself."""
    text = (path / _RECORD).read_text()
    meta = json.loads(text)
    for section in ("history", "metrics", "evaluated", "pending"):
        if section in meta:
            meta[section] = numbers(meta[section])
    return meta


@contextlib.contextmanager
def plain_name(directory: Path) -> Iterator[Path]:
    """Yield the folder by a path without *, ?, [ and backslash, in which Orbax sees a pattern."""
    if not set(str(directory)) & set("*?[]\\"):
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="pcflax-") as place:
        link = Path(place, "checkpoints")
        link.symlink_to(directory, target_is_directory=True)
        yield link


def _time_of(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0
