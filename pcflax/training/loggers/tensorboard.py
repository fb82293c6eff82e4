"""TensorBoard's event files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pcflax.checks import expect_local_path

from ..callbacks import RunningTrainer
from .telling import FileLogger


class TensorBoardLogger(FileLogger):
    """TensorBoard event files, in the format of tensorboardX.

    Its `SummaryWriter` is not used: the thread in which that writes dies of a full disk, and whoever gives it
    more then waits for ever.

    Args:
        directory: the folder that `tensorboard --logdir` is given.

    Raises:
        TypeError, ValueError: for what is no path, or the address of a bucket.
        OSError: while training, where the file cannot be written.
    """

    def __init__(self, directory: str | Path):
        self.directory = expect_local_path("TensorBoardLogger", "directory", directory)
        self._what = f"TensorBoard's events to {self.directory}"
        self._flush_at = 0.0

    def on_fit_start(self, trainer: RunningTrainer, num_steps: int) -> None:
        """Open a new event file; TensorBoard forgets what older ones hold after the current step."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog  # type: ignore

        with self._telling():
            self.directory.mkdir(parents=True, exist_ok=True)
            # its own suffix is of seconds: a fit that begins in the same one would write over this
            suffix = f".{time.time_ns()}"
            self._file = EventsWriter(str(self.directory / "events"), suffix)
        self._write(trainer.step + 1, session_log=SessionLog(status=SessionLog.START))

    def on_log(self, trainer: RunningTrainer, step: int, metrics: dict[str, float]) -> None:
        """Write one scalar a metric."""
        from tensorboardX.proto.summary_pb2 import Summary  # type: ignore

        # the names as they are: SummaryWriter would make one of "a b" and "a_b"
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._write(step, summary=Summary(value=values))

    on_evaluate = on_log

    def _write(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event  # type: ignore

        with self._telling():
            self._file.write_event(Event(wall_time=time.time(), step=step, **content))
            if time.monotonic() > self._flush_at:
                self._file.flush()  # which waits for the disk
                self._flush_at = time.monotonic() + _FLUSH_EVERY


_FLUSH_EVERY = 10.0  # seconds
