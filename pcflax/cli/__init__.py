"""The command line: one file a verb."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pcflax import Trainer


def load_run(
    folder: str | Path,
    *,
    step: int | None = None,
    best: bool = False,
    data_dir: str | Path | None = None,
    mesh: str | None = None,
) -> Trainer:
    """Return the Trainer of a run that `pcflax train` made, restored: `.network`, `.history`, `.evaluate`.

    Its `fit` would go on in the run's folder. The network is sized for the run's data, which must be there.

    Args:
        folder: the run's folder, with `config.json` and `checkpoints/`.
        step: a step; the newest good one unless given.
        best: the best by the metric that the run kept its best by.
        data_dir: where the data are; where the run had them unless given.
        mesh: devices as `pcflax train --mesh` has them, "data=2,layers=4"; one unless given.

    Raises:
        FileNotFoundError: for no run, no checkpoint or no data.
        CheckpointError: where the checkpoint is damaged.
        ValueError: for a mesh that is none, or that the devices or the network do not fit.
    """
    # what is slow to load is no business of the command's start
    from .build import load_data, rebuilt
    from .options import read_run

    folder = Path(folder)
    options = read_run(folder, data_dir=None if data_dir is None else Path(data_dir), mesh=mesh)
    trainer = rebuilt(options, load_data(options, "train"), folder)
    trainer.restore(step, best=best)
    return trainer
