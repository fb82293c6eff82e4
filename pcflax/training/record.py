"""The record of a run: all that its arrays do not tell, as a checkpoint stores it."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pcflax.data import Dataset
from pcflax.errors import CheckpointError, CheckpointWarning

from .checkpoints.reading import Checkpoint, is_same_data, versions, warn_of_changes
from .checkpoints.rows import RowLog
from .history import History
from .metrics import MetricFunctions


@dataclasses.dataclass
class Record:
    """Where a run began, on what, and what it has measured."""

    seed: int
    history: History = dataclasses.field(default_factory=History)
    log: RowLog = dataclasses.field(default_factory=RowLog)  # of the history's rows
    pending: dict[str, list[float]] = dataclasses.field(default_factory=dict)  # since the last row
    data: dict[str, Any] | None = None  # what the data set says of itself
    data_start: int = 0  # the step before its first batch
    began: int = (
        0  # at this step did the newest fit; one that goes on with a restored one keeps its
    )
    restored: Mapping[str, Any] | None = None  # what the checkpoint says, until the next fit begins
    source: Dataset | None = None  # what the newest batches are of
    position: Mapping[str, Any] | None = None  # where it stood, until it is told

    def add(self, values: Mapping[str, np.ndarray], count: int) -> None:
        """Add what the first `count` steps of a call measured."""
        for name, column in values.items():
            self.pending.setdefault(f"train/{name}", []).extend(column[:count].tolist())

    def take_means(self, metrics: MetricFunctions) -> dict[str, float]:
        """Return the means over the steps since the last row, and begin a new one; `of_means` reports them.

        Metrics of data with missing targets are sums over the `known` examples of a step, whose mean this
        takes; NaN where none is known.
        """
        counts = self.pending.pop("train/known", None)
        totals = {name: float(len(column)) for name, column in self.pending.items()}
        if counts is not None:
            totals |= {f"train/{name}": math.fsum(counts) for name, _ in metrics}
        means = {
            name: math.fsum(column) / totals[name] if totals[name] else math.nan
            for name, column in self.pending.items()
            if column
        }
        self.pending = {}
        return means

    def is_on(self, data: Dataset) -> bool:
        """Return whether the newest fit was on this data set, if there was one."""
        return is_same_data(self.data or {}, data.description())

    def begin(self, step: int, data: Dataset) -> bool:
        """Begin a fit on this data set, and return whether the one before was on the same.

        Warns where a restored fit goes on otherwise than it would have.
        """
        now: dict[str, Any] = dict(data.description())
        goes_on = self.is_on(data)
        if not goes_on:
            self.data_start, self.position = step, None
        elif self.source is not None and self.source is not data:
            self.position = self.source.position(step - self.data_start)
        self.data = now
        if self.restored is None:
            self.began = step
        else:
            warn_of_changes(self.restored, now, stacklevel=5)
        self.restored = None
        return goes_on

    def set_source(self, data: Dataset, step: int) -> None:
        """Take the next batches from this data set, where it stood at this step."""
        if self.position is not None and self.is_on(data):
            data.go_to(step - self.data_start, self.position)
        self.source, self.position = data, None

    def to_meta(self, step: int) -> dict[str, Any]:
        """Return what a checkpoint of this step stores beside its arrays and where its rows are."""
        evaluated: dict[str, float] = {}
        for row in reversed(self.history.rows):
            if row["step"] != step:
                break
            evaluated |= {name: value for name, value in row.items() if name.startswith("eval/")}
        position = self.position
        if position is None and self.source is not None:
            position = self.source.position(step - self.data_start)
        return {
            **({} if position is None else {"position": dict(position)}),
            "seed": self.seed,
            "data": self.data,
            "data_start": self.data_start,
            "began": self.began,
            "metrics": self.history.last(),
            "evaluated": evaluated,
            "pending": self.pending,
            "versions": versions(),
        }

    def add_rows(self, directory: Path) -> dict[str, Any]:
        """Write the rows that are new beside the checkpoints in a folder; return where they all are."""
        return self.log.add(directory, self.history.rows)

    @classmethod
    def of_checkpoint(cls, stored: Checkpoint) -> Record:
        """Return the record that a checkpoint stored.

        Warns:
            CheckpointWarning: where its rows are lost.
        """
        meta = stored.meta
        try:
            rows, log = RowLog.read(stored.path.parent, meta["history"])
        except CheckpointError as error:
            warnings.warn(
                f"the history of checkpoint {stored.path} is lost: {error}; the run goes on from its step "
                f"{stored.step} with an empty one",
                CheckpointWarning,
                stacklevel=5,
            )
            rows, log = [], RowLog()
        return cls(
            seed=meta["seed"],
            history=History(rows),
            log=log,
            pending={name: list(column) for name, column in meta["pending"].items()},
            data=meta["data"],
            data_start=meta.get("data_start", 0),
            began=meta.get("began", 0),
            restored=meta,
            position=meta.get("position"),
        )
