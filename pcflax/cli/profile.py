"""`pcflax train --profile A:B`: a trace of some updates, and where the time of one goes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax

import pcflax as pc
from pcflax.training.checkpoints.disk import replacing
from pcflax.training.plain_json import dumps

from .tables import show_table
from .usage import UsageError


class TraceUpdates(pc.Callback):
    """A trace of jax.profiler over the updates from A to B, in a folder.

    What comes between these updates (rows, evaluations, checkpoints) is in it, and so is compiling where the
    first of them is the first of the fit.
    """

    def __init__(self, text: str, folder: Path, num_steps: int):
        found = re.fullmatch(r"(\d+):(\d+)", text)
        self.first, self.last = map(int, found.groups()) if found else (0, 0)
        if not 1 <= self.first <= self.last <= num_steps:
            raise UsageError(
                f"expected --profile A:B, the updates from A to B with 1 <= A <= B <= {num_steps} "
                f"(--num-steps), got {text}"
            )
        self.folder, self.stops, self._on = folder, (self.first - 1, self.last), False

    def on_fit_start(self, trainer: Any, num_steps: int) -> None:
        """Begin where the fit begins at A."""
        del num_steps
        self.on_progress(trainer, trainer.step)

    def on_progress(self, trainer: Any, step: int) -> None:
        """Begin before A, and end after B."""
        del trainer
        if step == self.first - 1 and not self._on:
            jax.profiler.start_trace(self.folder)
            self._on = True
        elif step >= self.last:
            self._stop()

    def on_fit_end(self, trainer: Any) -> None:
        """End a trace of updates that did not come."""
        del trainer
        self._stop()

    def _stop(self) -> None:
        if self._on:
            jax.profiler.stop_trace()
            self._on = False


def show_profile(trainer: pc.Trainer, data: pc.data.Dataset, folder: Path) -> None:
    """Measure the parts of an update on the first batch; print them, and write them beside the trace."""
    found = pc.analysis.profile_step(
        trainer.network,
        next(iter(data)),
        learning=trainer.learning,
        optimizer=trainer.optimizer,
    )
    title = f"an update of {found.batch_size} examples, parts compiled alone, medians"
    show_table(title, ("part ", "ms", "percent"), found.rows())
    measured = {**found.parts, "remainder": found.remainder, "update": found.update}
    folder.mkdir(exist_ok=True)
    with replacing(folder / "parts.json") as file:
        file.write_text(dumps({f"{name}, ms": ms for name, ms in measured.items()}))
