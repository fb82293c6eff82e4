"""Trackers: a training that is killed and goes on is one run, with no row twice and none missing.

Oracle: the history of a training that was never stopped. MLflow's runs are read by its own client; W&B, whose
package reads no offline file in Python, by its own messages (protobuf) in the log format of LevelDB, which it
documents: blocks of 32 KiB; records of checksum, length, kind and content.
"""

import csv
import json
import math
import os
import signal
import struct
import subprocess
import sys
import types

import numpy as np
import pandas
import pytest

import pcflax as pc
from pcflax.cli.build import metrics_callbacks
from pcflax.cli.options import TrainOptions
from pcflax.training.loggers import mlflow as module
from pcflax.training.loggers.identity import KeptId, agree
from tests.conftest import ROOT
from tests.training.test_loggers import fit
from tests.training.tracked import trackers

pytestmark = pytest.mark.slow

QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}
os.environ.update(QUIET)


def points(history):
    """{metric: [(step, value)]}"""
    return {
        name: list(zip(history.steps(name), history[name], strict=True)) for name in history.names()
    }


def mlflow_runs(uri, experiment="pcflax"):
    """Every run of a store, as MLflow's client reads it."""
    client = module.client_of(uri)
    found = client.get_experiment_by_name(experiment)
    return client, client.search_runs([found.experiment_id], order_by=["attributes.start_time"])


def mlflow_points(client, run):
    return {
        name: [
            (point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)
        ]
        for name in run.data.metrics
    }


def wandb_records(path):
    """The messages of a run's offline file."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, message = path.read_bytes(), 7, b""
    assert content.startswith(b":W&B")
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # a header does not fit into the block
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        message += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(message)
            message = b""


def wandb_points(path):
    found = {}
    for record in wandb_records(path):
        row = {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for name, value in row.items():
            if not name.startswith("_"):
                found.setdefault(name, []).append((row["_step"], value))
    return found


@pytest.fixture(scope="module")
def straight():
    """The history of a training of 12 steps that nothing stopped."""
    return fit(12, []).history


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """The folder of a training that was killed at step 8 and went on from its checkpoint of step 4."""
    folder = tmp_path_factory.mktemp("resumed")
    killed = subprocess.run(
        [sys.executable, "-m", "tests.training.tracked", str(folder)], cwd=ROOT, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    client, (run,) = mlflow_runs(f"sqlite:///{folder / 'mlflow.db'}")
    steps = {step for row in mlflow_points(client, run).values() for step, _ in row}
    assert steps >= {4, 6}  # rows that the restore takes back
    checkpoints = pc.Checkpoints(folder / "checkpoints", every=4)
    assert checkpoints.steps() == [4]
    fit(12, trackers(folder), checkpoints=checkpoints, resume=True)
    return folder


class TestKilled:
    def test_mlflow_has_one_run_with_every_row_once(self, resumed, straight):
        client, runs = mlflow_runs(f"sqlite:///{resumed / 'mlflow.db'}")
        assert len(runs) == 1
        assert mlflow_points(client, runs[0]) == points(straight)
        assert runs[0].info.status == "FINISHED"
        assert runs[0].info.run_name == resumed.name
        assert runs[0].data.params == {"rate": "0.01"}

    def test_wandb_has_one_run_with_every_row_once(self, resumed, straight):
        (file,) = resumed.glob("wandb/offline-run-*/run-*.wandb")
        assert wandb_points(file) == points(straight)
        run = next(record.run for record in wandb_records(file) if record.HasField("run"))
        (earlier,) = resumed.glob("wandb-earlier/offline-run-*/run-*.wandb")
        assert file.name == earlier.name == f"run-{run.run_id}.wandb"  # one id
        assert run.project == "pcflax"
        assert run.display_name == resumed.name

    def test_the_table_is_that_of_the_history(self, resumed, straight):
        lines = (resumed / "metrics.csv").read_text().splitlines()
        rows = [
            {name: float(text) for name, text in row.items() if text}
            for row in csv.DictReader(lines)
        ]
        assert rows == straight.by_step()

    def test_a_run_that_begins_again_goes_on_with_its_run(self, resumed, straight):
        """As one that was killed before its first checkpoint."""
        fit(12, trackers(resumed))
        client, runs = mlflow_runs(f"sqlite:///{resumed / 'mlflow.db'}")
        assert len(runs) == 1
        assert mlflow_points(client, runs[0]) == points(straight)
        (file,) = resumed.glob("wandb/offline-run-*/run-*.wandb")
        assert wandb_points(file) == points(straight)

    def test_another_training_in_the_folder_is_another_run(self, resumed, straight):
        """It must not be mixed with what is there, and nothing is lost."""
        history = fit(12, trackers(resumed), seed=1).history
        client, runs = mlflow_runs(f"sqlite:///{resumed / 'mlflow.db'}")
        assert [mlflow_points(client, run) for run in runs] == [points(straight), points(history)]
        files = sorted(resumed.glob("wandb/offline-run-*/run-*.wandb"), key=os.path.getmtime)
        assert [wandb_points(file) for file in files] == [points(straight), points(history)]
        assert files[0].name != files[1].name
        aside = resumed / "metrics.csv.superseded"
        assert aside.read_text() != (resumed / "metrics.csv").read_text()


def test_a_callback_that_goes_back_to_a_checkpoint_leaves_no_row_twice(resumed, tmp_path, straight):
    """The run stays open meanwhile."""

    class Back:
        gone = False

        def on_checkpoint(self, trainer, step, path):
            trainer.checkpoints.wait()

        def on_evaluate(self, trainer, step, metrics):
            if step == 6 and not self.gone:
                self.gone = True
                trainer.restore()

    uri = f"sqlite:///{resumed / 'mlflow.db'}"
    table, run, _ = trackers(tmp_path)
    other = pc.MLflowLogger(tmp_path, tracking_uri=uri, experiment="back")
    checkpoints = pc.Checkpoints(tmp_path / "checkpoints", every=4)
    fit(12, [table, run, other, Back()], checkpoints=checkpoints)
    client, runs = mlflow_runs(uri, "back")
    assert [mlflow_points(client, run) for run in runs] == [points(straight)]
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert wandb_points(file) == points(straight)
    assert len(table.path.read_text().splitlines()) == 1 + len(straight.by_step())


class Going:
    """What a logger asks of a Trainer, with rows that a test makes."""

    def __init__(self, logger, rows=()):
        self.logger, self.history = logger, pc.History(list(rows))
        logger.on_fit_start(self, 100)

    def log(self, step, **metrics):
        self.history.append(step, metrics)
        self.logger.on_log(self, step, metrics)
        return self


@pytest.fixture(scope="module")
def uri(resumed):
    """A store that is there: to make one takes a second."""
    return f"sqlite:///{resumed / 'mlflow.db'}"


class TestMLflow:
    def test_a_training_that_goes_another_way_has_a_run_of_its_own(self, uri, tmp_path):
        """The first run's later rows cannot be taken back."""
        logger = pc.MLflowLogger(tmp_path, tracking_uri=uri, experiment="ways")
        Going(logger).log(1, a=0.5).log(2, a=0.25).log(3, a=0.125)
        logger.on_fit_end(None)
        restored = Going(logger, [{"step": 1, "a": 0.5}]).log(2, a=0.3)
        logger.on_fit_end(None)
        client, (old, new) = mlflow_runs(uri, "ways")
        assert mlflow_points(client, old) == {"a": [(1, 0.5), (2, 0.25), (3, 0.125)]}
        assert mlflow_points(client, new) == points(restored.history) == {"a": [(1, 0.5), (2, 0.3)]}
        assert old.data.tags["pcflax.superseded_by"] == new.info.run_id
        assert [old.info.status, new.info.status] == ["KILLED", "FINISHED"]

    def test_so_has_one_that_passes_over_rows_that_are_there(self, uri, tmp_path):
        """It measures at other steps."""
        logger = pc.MLflowLogger(tmp_path, tracking_uri=uri, experiment="passed")
        Going(logger).log(1, a=0.5).log(2, a=0.25)
        logger.on_fit_end(None)
        Going(logger, [{"step": 1, "a": 0.5}]).log(3, a=0.125)
        logger.on_fit_end(None)
        client, runs = mlflow_runs(uri, "passed")
        found = [mlflow_points(client, run)["a"] for run in runs]
        assert found == [[(1, 0.5), (2, 0.25)], [(1, 0.5), (3, 0.125)]]

    def test_numbers_that_are_not_finite_and_names_of_any_kind(self, uri, tmp_path):
        """MLflow's database has no infinity, and its names few characters."""
        logger = pc.MLflowLogger(tmp_path, tracking_uri=uri, experiment="odd", name="mine")
        metrics = {"energy/a?b": math.nan, "energy/a b": math.inf}
        Going(logger).log(1, **metrics)
        logger.on_fit_end(None)
        Going(logger, [{"step": 1, **metrics}]).log(2, **{"energy/a b": -math.inf})
        logger.on_fit_end(None)
        client, (run,) = mlflow_runs(uri, "odd")
        found = mlflow_points(client, run)
        assert run.info.run_name == "mine"
        assert found["energy/a b"] == [(1, sys.float_info.max), (2, -sys.float_info.max)]
        ((step, value),) = found["energy/a_x3F_b"]
        assert step == 1
        assert math.isnan(value)

    def test_an_error_ends_the_run_as_failed(self, uri, tmp_path):
        logger = pc.MLflowLogger(tmp_path, tracking_uri=uri, experiment="failed")

        class Failing:
            def on_evaluate(self, trainer, step, metrics):
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fit(4, [logger, Failing()])
        _, (run,) = mlflow_runs(uri, "failed")
        assert run.info.status == "FAILED"

    def test_a_store_that_cannot_be_written_is_told(self, tmp_path):
        (tmp_path / "mlflow.db").write_text("no database")
        with pytest.raises(OSError, match=r"cannot write metrics to MLflow's store .*mlflow\.db: "):
            Going(pc.MLflowLogger(tmp_path)).log(1, a=0.5)


def test_wandb_online_is_not_sent_what_it_holds(monkeypatch, tmp_path):
    """A resumed run is at the step after its last row, and refuses earlier ones with a warning."""
    asked, sent = {}, []
    run = types.SimpleNamespace(
        step=51, log=lambda row, step: sent.append((step, row)), finish=lambda exit_code: None
    )
    import wandb

    monkeypatch.setattr(wandb, "init", lambda **options: asked.update(options) or run)
    logger = pc.WandbLogger(tmp_path, mode="online", group="seeds")
    Going(logger, [{"step": 50, "a": 0.5}, {"step": 60, "a": 0.25}]).log(70, a=0.125)
    logger.on_fit_end(None)
    assert sent == [(60, {"a": 0.25}), (70, {"a": 0.125})]
    assert asked["resume"] == "allow"
    assert asked["mode"] == "online"
    assert asked["group"] == "seeds"


@pytest.mark.parametrize("name", ["wandb", "mlflow", "pandas"])
def test_a_package_that_is_missing_is_told_with_its_extra(name, monkeypatch):
    makes = {
        "wandb": lambda: pc.WandbLogger("runs/x"),
        "mlflow": lambda: pc.MLflowLogger("runs/x"),
        "pandas": lambda: pc.History().to_pandas(),
    }
    for module_name in [one for one in sys.modules if one.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module_name)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=rf"wants {name}; pip install 'pcflax\[{name}\]'"):
        makes[name]()


class TestKeptId:
    def test_is_that_of_the_history_s_first_row(self, tmp_path):
        kept = KeptId(tmp_path / "new" / "run.json")
        first = {"step": 3, "a": 0.5, "b": math.nan}
        one = kept.of(first)
        assert KeptId(kept.path).of({"step": 3, "a": 0.5 + 1e-6, "b": math.nan}) == one
        assert KeptId(kept.path).of({"step": 3, "a": 0.6, "b": math.nan}) != one

    @pytest.mark.parametrize(
        "other",
        [{"step": 2, "a": 0.5}, {"step": 1, "a": 0.51}, {"step": 1}, {"step": 1, "a": math.nan}],
    )
    def test_rows_that_differ_do_not_agree(self, other):
        assert not agree({"step": 1, "a": 0.5}, other)

    def test_a_file_of_anything_else_is_not_overwritten(self, tmp_path):
        path = tmp_path / "run.json"
        path.write_text("[1]")
        with pytest.raises(
            ValueError, match=r"is to hold a tracker's run and holds something else"
        ):
            KeptId(path).of({"step": 1})
        assert path.read_text() == "[1]"


class TestTable:
    """`pc.CSVLogger`."""

    def test_a_line_a_step_and_a_column_more_for_a_new_metric(self, tmp_path):
        logger = pc.CSVLogger(tmp_path / "new" / "metrics.csv")
        going = Going(logger).log(1, a=0.5)
        assert logger.path.read_text() == "step,a\n1,0.5\n"
        going.log(1, b=math.nan).log(2, a=0.25)
        assert logger.path.read_text() == "step,a,b\n1,0.5,nan\n2,0.25,\n"
        going.log(2, b=1.0).log(3, **{"c,d": 2.0})
        expected = 'step,a,b,"c,d"\n1,0.5,nan,\n2,0.25,1.0,\n3,,,2.0\n'
        assert logger.path.read_text() == expected
        logger.on_fit_end(going)
        frame = pandas.read_csv(logger.path, index_col="step")
        pandas.testing.assert_frame_equal(frame, going.history.to_pandas())

    def test_a_restored_run_drops_later_lines(self, tmp_path):
        logger = pc.CSVLogger(tmp_path / "metrics.csv")
        Going(logger).log(1, a=0.5).log(2, a=0.25).log(3, a=0.125)
        Going(logger, [{"step": 1, "a": 0.5}]).log(2, a=0.3)
        assert logger.path.read_text() == "step,a\n1,0.5\n2,0.3\n"
        assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]

    @pytest.mark.parametrize(
        "content", ["step,a\n1,0.75\n", "x,y\n1,2\n", "name\n", "1,2,3\n4,5,6,7\n"]
    )
    def test_a_file_of_anything_else_is_moved_aside(self, tmp_path, content):
        (tmp_path / "metrics.csv").write_text(content)
        logger = pc.CSVLogger(tmp_path / "metrics.csv")
        Going(logger, [{"step": 1, "a": 0.5}])
        assert (tmp_path / "metrics.csv.superseded").read_text() == content
        assert logger.path.read_text() == "step,a\n1,0.5\n"

    def test_a_disk_that_is_full_is_told_with_the_file(self, tmp_path):
        logger = pc.CSVLogger(tmp_path / "metrics.csv")
        going = Going(logger).log(1, a=0.5)

        class Full:
            def tell(self):
                raise OSError(28, "No space left on device")

        logger._file = Full()
        with pytest.raises(OSError, match=r"cannot write metrics to .*\.csv: No space left"):
            going.log(2, a=0.5)


def test_a_history_is_a_frame_with_a_line_a_step():
    history = pc.History([{"step": 5, "b": 1.0}, {"step": 5, "a": 2.0}, {"step": 7, "b": 3.0}])
    frame = history.to_pandas()
    assert frame.index.name == "step"
    assert list(frame.index) == [5, 7]
    assert list(frame.columns) == ["b", "a"]
    np.testing.assert_array_equal(frame.to_numpy(), [[1.0, 2.0], [3.0, math.nan]])
    assert pc.History().to_pandas().empty


def test_the_command_line_gives_them_the_run_s_folder_and_options(tmp_path):
    options = TrainOptions(
        logger=("mlflow", "wandb", "mlflow"), learning_rate=0.5, data_dir=tmp_path
    )
    _, tracked, other = metrics_callbacks(options, None, tmp_path / "run")
    assert [type(tracked), type(other)] == [pc.MLflowLogger, pc.WandbLogger]
    assert tracked.directory == other.directory == tmp_path / "run"
    assert tracked.config == other.config
    assert tracked.config["learning_rate"] == 0.5
    assert tracked.config["data_dir"] == str(tmp_path)
    assert "run_dir" not in tracked.config
