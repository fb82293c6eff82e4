"""What a Trainer does with its checkpoints, where it has any."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax.numpy as jnp

from pcflax.checks import expect_kind
from pcflax.errors import CheckpointError, NonFiniteEnergyError
from pcflax.sharding.processes import largest, together

from .calendar import Calendar
from .checkpoints import Checkpoints
from .checks import check_measured
from .run import Run


class Saving:
    """Saves a run into a folder of checkpoints that is its own; without one, refuses to."""

    def __init__(self, checkpoints: Checkpoints | None, known: set[Path] | None = None):
        self.checkpoints = expect_kind(
            "Trainer",
            "checkpoints",
            checkpoints,
            Checkpoints | None,
            "pc.Checkpoints('runs/mnist')",
        )
        # the folders whose checkpoints are ours: restored or written
        self.known = set() if known is None else known

    def needed(self) -> Checkpoints:
        """Return the checkpoints."""
        if self.checkpoints is None:
            raise ValueError(
                "this Trainer has no checkpoints; make it with checkpoints=pc.Checkpoints('runs/...')"
            )
        return self.checkpoints

    def check_best(self, measured: Iterable[str], evaluates: bool) -> None:
        """Refuse to keep the best by a metric that is not measured; warn where this fit measures none."""
        if (best := self.needed().keep_best) is None:
            return
        check_measured("keep_best", best[0], measured)
        if not evaluates:
            warnings.warn(
                f"keep_best judges '{best[0]}' after evaluations, and this fit has none, so that no "
                f"checkpoint of it will be the best; give fit eval_data",
                UserWarning,
                stacklevel=4,  # where fit was called
            )

    def check_folder(self, run: Run) -> None:
        """Refuse to train over another run's checkpoints."""
        checkpoints = self.needed()
        if checkpoints.directory in self.known:
            return
        # earlier ones, too: as the oldest they would be deleted
        if steps := checkpoints.steps():
            raise FileExistsError(
                f"{checkpoints.directory} holds checkpoints up to step {steps[-1]}, but this Trainer is "
                f"at step {run.step} and has neither restored nor written one of them; call "
                f"trainer.restore() to go on with that run, or choose another folder"
            )

    def save(self, run: Run) -> Path:
        """Save the run as it is, in the background; return the folder."""
        sections = run.sections()
        for name, array in sections["parameters"].items():
            if not bool(jnp.isfinite(array).all()):
                raise NonFiniteEnergyError(
                    f"parameter '{name}' is not finite after step {run.step}, so nothing was saved; "
                    f"{self.last_good()}"
                )
        checkpoints = self.needed()
        path = checkpoints.save(run.step, sections, run.meta(), run.record.add_rows)
        self.known.add(checkpoints.directory)
        run.owed.discard("save")
        return path

    def restore(self, run: Run, step: int | None, *, best: bool) -> None:
        """Take the run back to a checkpoint."""
        with together():
            stored = self.needed().read(step, best=best)
        newest, oldest = largest(stored.step, -stored.step)
        if newest != -oldest:
            raise CheckpointError(
                f"the processes found checkpoints of steps {-oldest:.0f} and {newest:.0f} in "
                f"{self.needed().directory}; give all of them one folder"
            )
        run.restore(stored)
        self.known.add(self.needed().directory)

    def last_good(self) -> str:
        """Return where the last good checkpoint is, in words."""
        path = self.checkpoints.latest_good() if self.checkpoints is not None else None
        return f"the last good checkpoint is {path}" if path else "there is no checkpoint"

    @contextlib.contextmanager
    def opened(self, run: Run, calendar: Calendar) -> Iterator[None]:
        """Hold the folder while a fit trains; on leaving, what is being written is complete."""
        if self.checkpoints is None:
            yield
            return
        start = run.step
        with together():
            self.checkpoints.refuse_taken(
                lambda step: step > start and calendar.is_due("save", step)
            )
        try:
            self.checkpoints.prepare()
            yield
        finally:
            self.checkpoints.close()
