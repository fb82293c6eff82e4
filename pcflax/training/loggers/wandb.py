"""Weights & Biases: a run that goes on under its id."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pcflax.checks import expect_local_path, wanting

from ..callbacks import Callback, RunningTrainer
from ..checkpoints.disk import telling
from .identity import KeptId
from .telling import free_path


class WandbLogger(Callback):
    """A run of Weights & Biases; wants `pip install 'pcflax[wandb]'`.

    Offline, which needs no account and no network, the run is a folder in `<directory>/wandb` that
    `wandb sync` uploads. A training that is restored goes on with the same run: W&B adds to no file, so
    the history up to the checkpoint is written again, under the same id, and the folder before is put away
    into `<directory>/wandb-earlier`. Online, W&B keeps what it has: rows that it holds are not sent again,
    and rows that a restore took back stay.

    Args:
        directory: the run's folder, where `wandb.json` keeps the id.
        project: W&B's project.
        name: what the run is called; the folder's name unless given.
        config: settings to show beside the run.
        mode: "offline" or "online"; WANDB_MODE unless given, and without it offline.
        **options: further arguments of `wandb.init`.

    Raises:
        ModuleNotFoundError: where wandb is missing.
        TypeError, ValueError: for what is no path, or the address of a bucket.
        OSError: while training, where the folder cannot be written.

    >>> import pcflax as pc
    >>> logger = pc.WandbLogger("runs/mnist", config={"learning_rate": 1e-3})
    >>> logger.mode
    'offline'
    """

    every_process = False

    def __init__(
        self,
        directory: str | Path,
        *,
        project: str = "pcflax",
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        mode: str | None = None,
        **options: Any,
    ):
        self.directory = expect_local_path("WandbLogger", "directory", directory)
        self.project, self.name = project, name or self.directory.name
        self.config = dict(config or {})
        self.mode = mode or os.environ.get("WANDB_MODE") or "offline"
        self.options = options
        self._id = KeptId(self.directory / "wandb.json")
        self._run: Any = None
        self._count = 0  # rows of the history that the run has
        self._before: BaseException | None = None
        _load_wandb()

    def on_fit_start(self, trainer: RunningTrainer, num_steps: int) -> None:
        """Wait for a row: the first one of the history tells which run it is."""
        self._before = sys.exception()

    def on_log(self, trainer: RunningTrainer, step: int, metrics: dict[str, float]) -> None:
        """Write a row, and before the first one of this fit the history so far."""
        rows = trainer.history.rows  # of which this one is the last
        goes_on, self._count = len(rows) == self._count + 1, len(rows)
        if self._run is not None and goes_on:
            self._run.log(metrics, step=step)
            return
        self.on_fit_end(trainer)  # where a callback went back to a checkpoint
        run = self._run = self._open(self._id.of(rows[0]))
        begin = run.step  # online, rows before it are there
        for row in trainer.history.by_step():
            if row["step"] >= begin:
                values = {name: value for name, value in row.items() if name != "step"}
                run.log(values, step=row["step"])

    on_evaluate = on_log

    def on_fit_end(self, trainer: RunningTrainer) -> None:
        """End the run, as failed where an error ended the fit."""
        if self._run is not None:
            run, self._run = self._run, None
            run.finish(exit_code=int(sys.exception() is not self._before))

    def _open(self, known_as: str) -> Any:
        wandb = _load_wandb()
        offline = self.mode == "offline"
        with telling(f"W&B's run to {self.directory}"):
            self.directory.mkdir(parents=True, exist_ok=True)
            if offline:
                self._put_away(known_as)
        options = {
            "settings": wandb.Settings(silent=True, console="off"),  # the screen is ConsoleLogger's
            "resume": None if offline else "allow",
            "reinit": "create_new",  # runs of other seeds may be open in this process
        }
        return wandb.init(
            dir=str(self.directory),
            id=known_as,
            project=self.project,
            name=self.name,
            config=self.config,
            mode=self.mode,  # type: ignore[arg-type]
            **(options | self.options),
        )

    def _put_away(self, known_as: str) -> None:
        """Move what an earlier fit wrote of the same run, which `wandb sync` would upload, too."""
        earlier = self.directory / "wandb-earlier"
        for folder in self.directory.glob(f"wandb/offline-run-*-{known_as}"):
            earlier.mkdir(exist_ok=True)
            folder.rename(free_path(earlier / folder.name))


def _load_wandb() -> Any:
    with wanting("WandbLogger", "wandb", "wandb"):
        import wandb  # pyright: ignore[reportMissingImports]
    return wandb
