"""MLflow: a run in a store, of which nothing can be taken back."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pcflax.checks import expect_local_path, wanting

from ..callbacks import Callback, RunningTrainer
from ..history import History
from .identity import KeptId, close, stored


class MLflowLogger(Callback):
    """A run of MLflow, in a local SQLite store or another; wants `pip install 'pcflax[mlflow]'`.

    A training that is restored goes on with the same run. MLflow forgets no number, so one that is there
    already is not written again; where the training goes another way than the run did, which had gone further
    than the checkpoint, a new run is begun with the whole history, and the old one is tagged with
    `pcflax.superseded_by`. `mlflow ui --backend-store-uri sqlite:///runs/mnist/mlflow.db` shows it (of the
    whole `mlflow`). Characters that MLflow takes in no name are spelled: "a?b" is "a_x3F_b".

    Args:
        directory: the run's folder, where `mlflow.json` keeps the id.
        tracking_uri: the store; MLFLOW_TRACKING_URI unless given, and without it `mlflow.db` in the folder.
        experiment: MLflow's experiment.
        name: what the run is called; the folder's name unless given.
        config: settings to show beside the run.

    Raises:
        ModuleNotFoundError: where mlflow is missing.
        OSError: while training, where the store cannot be reached or written.
        TypeError, ValueError: for what is no path, or the address of a bucket.

    >>> import pcflax as pc
    >>> logger = pc.MLflowLogger("runs/mnist", config={"learning_rate": 1e-3})
    >>> logger.experiment
    'pcflax'
    """

    every_process = False

    def __init__(
        self,
        directory: str | Path,
        *,
        tracking_uri: str | None = None,
        experiment: str = "pcflax",
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        self.directory = expect_local_path("MLflowLogger", "directory", directory)
        self.tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        self.experiment, self.name = experiment, name or self.directory.name
        self.config = dict(config or {})
        self._id = KeptId(self.directory / "mlflow.json")
        self._client: Any = None
        self._run_id: str | None = None
        self._count = 0  # rows of the history that the run has
        self._buffer: list[Any] = []  # not written yet
        self._flush_at = 0.0
        # What the run holds after the newest row of ours: {step: {name: value}}.
        self._ahead: dict[int, dict[str, float]] = {}
        self._before: BaseException | None = None
        _load_mlflow()

    def on_fit_start(self, trainer: RunningTrainer, num_steps: int) -> None:
        """Wait for a row: the first one of the history tells which run it is."""
        self._before = sys.exception()

    def on_log(self, trainer: RunningTrainer, step: int, metrics: dict[str, float]) -> None:
        """Write a row, and before the first one of this fit what the run lacks of the history so far."""
        with self._telling():
            rows = trainer.history.rows  # of which this one is the last
            goes_on, self._count = len(rows) == self._count + 1, len(rows)
            if self._run_id is not None and goes_on:
                agrees = self._add({"step": step, **metrics})
            else:  # the fit's first, or a callback went back to a checkpoint
                self._open(self._id.of(rows[0]))
                agrees = all([self._add(row) for row in trainer.history.by_step()])
            if not agrees:
                self._supersede(trainer.history)
            if time.monotonic() > self._flush_at:
                self._flush()

    on_evaluate = on_log

    def on_checkpoint(self, trainer: RunningTrainer, step: int, path: Path) -> None:
        """Write what waits."""
        with self._telling():
            self._flush()

    def on_fit_end(self, trainer: RunningTrainer) -> None:
        """Write what waits, and end the run, as failed where an error ended the fit."""
        if self._run_id is None:
            return
        failed = sys.exception() is not self._before
        with self._telling():
            self._flush()
            run_id, self._run_id = self._run_id, None
            self._client.set_terminated(run_id, "FAILED" if failed else "FINISHED")

    def _open(self, known_as: str) -> None:
        """Go on with the run of this id of ours, or make it."""
        self._buffer = []
        self._client, experiment = self._connect()
        found = self._client.search_runs(
            [experiment], f"tags.`{_TAG}` = '{known_as}'", max_results=1
        )
        self._ahead = {}
        if not found:
            self._make(experiment, known_as)
            return
        self._run_id = run_id = found[0].info.run_id
        self._client.update_run(run_id, status="RUNNING")
        for name in found[0].data.metrics:
            for point in self._client.get_metric_history(run_id, name):
                self._ahead.setdefault(point.step, {})[name] = point.value

    def _make(self, experiment: str, known_as: str) -> None:
        from mlflow.entities import Param  # pyright: ignore[reportMissingImports]

        run = self._client.create_run(experiment, tags={_TAG: known_as}, run_name=self.name)
        self._run_id = run.info.run_id
        params = [Param(_spelled(str(name)), str(value)) for name, value in self.config.items()]
        for begin in range(0, len(params), _PARAMS):
            self._client.log_batch(self._run_id, params=params[begin : begin + _PARAMS])

    def _connect(self) -> tuple[Any, str]:
        """Return a client of the store, and the experiment's id."""
        uri, artifacts = self.tracking_uri, None
        if uri is None:
            self.directory.mkdir(parents=True, exist_ok=True)
            uri = f"sqlite:///{self.directory / 'mlflow.db'}"
            artifacts = (self.directory / "mlflow").as_uri()
        client = client_of(uri)
        experiment = client.get_experiment_by_name(self.experiment)
        if experiment is None:
            return client, client.create_experiment(self.experiment, artifact_location=artifacts)
        return client, experiment.experiment_id

    def _add(self, row: Mapping[str, Any]) -> bool:
        """Have a row written, but for what the run holds; return whether that is the same."""
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        step, agrees = row["step"], True
        held = self._ahead.get(step, {})
        now = int(time.time() * 1000)
        for name, value in row.items():
            if name == "step":
                continue
            name, value = _spelled(name), stored(float(value))
            if name not in held:
                self._buffer.append(Metric(name, value, now, step))
            elif not close(held.pop(name), value):
                agrees = False
        if not held:
            self._ahead.pop(step, None)
        passed = any(one < step for one in self._ahead)  # over what this training did not measure
        return agrees and not passed

    def _supersede(self, history: History) -> None:
        """Begin a new run with the whole history, and mark the one that went another way."""
        old = self._run_id
        known_as = self._id.renew(history.rows[0])
        self._open(known_as)
        self._client.set_tag(old, "pcflax.superseded_by", self._run_id)
        self._client.set_terminated(old, "KILLED")
        for row in history.by_step():
            self._add(row)

    def _flush(self) -> None:
        while self._buffer:
            self._client.log_batch(self._run_id, metrics=self._buffer[:_METRICS])
            del self._buffer[:_METRICS]
        self._flush_at = time.monotonic() + _FLUSH_EVERY

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        from mlflow.exceptions import MlflowException  # pyright: ignore[reportMissingImports]
        from sqlalchemy.exc import SQLAlchemyError  # pyright: ignore[reportMissingImports]

        try:
            yield
        except (MlflowException, SQLAlchemyError) as error:
            where = self.tracking_uri or self.directory / "mlflow.db"
            reason = str(error).splitlines()[0]
            raise OSError(f"cannot write metrics to MLflow's store {where}: {reason}") from error


_TAG = "pcflax.run"
_FLUSH_EVERY = 1.0  # seconds: a transaction takes milliseconds
_METRICS, _PARAMS = 1000, 100  # MLflow's limits of one batch


def _spelled(name: str) -> str:
    """Return a name of characters that MLflow takes."""
    return re.sub(r"[^\w\-. /]", lambda found: f"_x{ord(found[0]):X}_", name)


def _load_mlflow() -> Any:
    """Return the class of MLflow's clients."""
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # tells of each new store
    with _quiet(), wanting("MLflowLogger", "mlflow", "mlflow"):
        import sqlalchemy  # noqa: F401  # pyright: ignore[reportMissingImports]
        from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]
    return MlflowClient


def client_of(uri: str) -> Any:
    """Return a client of a store."""
    make = _load_mlflow()
    with _quiet():  # the store's packages are imported when one is opened
        return make(tracking_uri=uri)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep packages of others from warning of each other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
