"""A training with every tracker that kills itself with -9: python -m tests.training.tracked FOLDER.

The newest checkpoint is that of step 4, and rows of steps 6 and 7 are written when it dies at 8.
"""

import os
import signal
import sys
import time

import pcflax as pc
from pcflax.training.loggers import mlflow
from tests.training.test_loggers import fit


def trackers(folder):
    """All of them, with their files in one folder."""
    return [
        pc.CSVLogger(folder / "metrics.csv"),
        pc.WandbLogger(folder, config={"rate": 1e-2}),
        pc.MLflowLogger(folder, config={"rate": 1e-2}),
    ]


class Kill:
    """Ends the process as the machine's memory guard does."""

    def on_checkpoint(self, trainer, step, path):
        trainer.checkpoints.wait()

    def on_evaluate(self, trainer, step, metrics):
        if step == 8:
            time.sleep(0.2)  # W&B writes in another process, which may see the row
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    from pathlib import Path

    mlflow._FLUSH_EVERY = (
        -1.0
    )  # each row at once, so that rows are there which the checkpoint lacks
    folder = Path(sys.argv[1])
    checkpoints = pc.Checkpoints(folder / "checkpoints", every=4)
    fit(12, [*trackers(folder), Kill()], checkpoints=checkpoints)
