"""The rows of a run's history, in one file beside its checkpoints that is only ever added to.

A checkpoint tells which bytes of the file are its rows, in spans, and their SHA-256, so that a save costs no
more in a long run than in a short one. A run that goes on from an earlier checkpoint adds its rows behind
what is there, in another span: what other checkpoints point to stays. A line is a row as JSON, with "nan",
"inf" and "-inf" spelled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pcflax.errors import CheckpointError

from ..plain_json import dumps, numbers

NAME = "history.pcflax.jsonl"  # beside checkpoints may lie what is the user's

Row = dict[str, Any]


class RowLog:
    """Which rows of one run are in the file, and where."""

    def __init__(self):
        self._begin_anew()

    def add(self, directory: Path, rows: Sequence[Row]) -> dict[str, Any]:
        """Add those rows that are not in the file yet; return what a checkpoint stores of all of them.

        Raises:
            TypeError: for a row that JSON cannot hold; nothing is written then.
            OSError: where the file cannot be written.
        """
        path = directory / NAME
        if self._is_cut(path) or len(rows) < self._count:  # somebody deleted or dropped some
            self._begin_anew()
        lines = _lines(rows[self._count :])
        if lines:
            with path.open("ab") as file:
                begin = file.tell()
                file.write(lines)
            self._extend(begin, lines, len(rows))
        spans = [list(span) for span in self._spans]
        return {"rows": self._count, "spans": spans, "sha256": self._digest.hexdigest()}

    @classmethod
    def read(cls, directory: Path, stored: Any) -> tuple[list[Row], RowLog]:
        """Return the rows that a checkpoint points to, and the log that goes on after them.

        Args:
            directory: where the file is.
            stored: what `add` returned; or the rows themselves, as versions before stored them.

        Raises:
            CheckpointError: where the file is missing or does not match.
        """
        log = cls()
        if isinstance(stored, list):
            return stored, log
        path, rows = directory / NAME, []
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            for begin, end in stored["spans"]:
                file.seek(begin)
                lines = file.read(end - begin)
                log._extend(begin, lines, 0)
                rows += lines.splitlines()
        log._count = len(rows)
        if log._digest.hexdigest() != stored["sha256"]:
            reason = "does not match its checksum" if path.exists() else "is missing"
            raise CheckpointError(f"{path} {reason}")
        return [numbers(json.loads(row)) for row in rows], log

    def _begin_anew(self) -> None:
        self._count = 0
        self._spans: list[list[int]] = []
        self._digest = hashlib.sha256()

    def _extend(self, begin: int, lines: bytes, count: int) -> None:
        self._digest.update(lines)
        self._count = count
        if self._spans and self._spans[-1][1] == begin:
            self._spans[-1][1] += len(lines)
        else:
            self._spans.append([begin, begin + len(lines)])

    def _is_cut(self, path: Path) -> bool:
        """Return whether the file has ended before the rows that are in it."""
        if not self._spans:
            return False
        return not path.exists() or path.stat().st_size < self._spans[-1][1]


def sync_rows(directory: Path) -> None:
    """Wait until the rows are on the disk, where there are any."""
    with contextlib.suppress(FileNotFoundError), (directory / NAME).open("rb") as file:
        os.fsync(file.fileno())


def _lines(rows: Sequence[Row]) -> bytes:
    return "".join(dumps(row, spell=True) + "\n" for row in rows).encode()
