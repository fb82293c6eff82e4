"""Loggers: what a file or a screen says is what the Trainer's history holds.

Oracles: the history itself, and TensorBoard's file format as TensorFlow documents it (length, its
checksum, an Event message, its checksum).
"""

import importlib.util
import io
import json
import struct
import sys
import threading
import time
import types

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rich.progress
from flax import nnx
from rich.console import Console

import pcflax as pc
from pcflax.training.loggers import plain_console

# Made once, so that the fits of this file share one compiled loop.
LEARNING = pc.learning.PredictiveCoding(pc.inference.GradientDescent(optax.sgd(0.1), num_steps=2))
OPTIMIZER = optax.adam(1e-2)


def fit(num_steps, callbacks, *, checkpoints=None, resume=False, seed=0):
    """A short run on 12 examples in batches of 3: rows at 2, 3, 4, 6, ..."""
    inputs = np.random.default_rng(0).normal(size=(12, 3))
    data = pc.data.from_arrays(inputs, np.arange(12) % 2, batch_size=3)
    rngs = nnx.Rngs(seed)
    network = pc.PCNetwork(
        [pc.PCDense(3, 5, activation=jnp.tanh, rngs=rngs), pc.PCDense(5, 2, rngs=rngs)]
    )
    trainer = pc.Trainer(
        network,
        OPTIMIZER,
        learning=LEARNING,
        callbacks=callbacks,
        checkpoints=checkpoints,
        progress=False,
    )
    if resume:
        trainer.restore()
    trainer.fit(data, num_steps=num_steps, eval_data=data, eval_every=2, log_every=3)
    return trainer


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_relative_paths_are_fixed_when_a_logger_is_made(tmp_path, monkeypatch):
    """As those of checkpoints are, so that a run's files stay together where the working folder changes."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "a")
    loggers = [pc.JSONLinesLogger("run/metrics.jsonl"), pc.TensorBoardLogger("run/tensorboard")]
    checkpoints = pc.Checkpoints("run/checkpoints")
    monkeypatch.chdir(tmp_path / "b")
    fit(2, loggers, checkpoints=checkpoints)
    names = {path.name for path in (tmp_path / "a" / "run").iterdir()}
    assert {"metrics.jsonl", "tensorboard", "checkpoints"} <= names
    assert not list((tmp_path / "b").iterdir())


class TestJSONLines:
    def test_each_line_is_a_row_of_the_history(self, tmp_path):
        path = tmp_path / "new" / "metrics.jsonl"
        trainer = fit(6, [pc.JSONLinesLogger(path)])
        assert read_lines(path) == trainer.history.rows
        assert [row["step"] for row in trainer.history.rows] == [2, 3, 4, 6, 6]
        assert path.read_text().endswith("\n")

    def check_resume(self, tmp_path, callbacks):
        """Kill a run at step 8, resume it from its checkpoint of step 4, and compare the files."""
        straight = tmp_path / "straight.jsonl"
        fit(10, [pc.JSONLinesLogger(straight)])

        path = tmp_path / "metrics.jsonl"
        checkpoints = pc.Checkpoints(tmp_path / "checkpoints", every=4)

        class Killed(Exception):
            pass

        class Kill:
            def on_evaluate(self, trainer, step, metrics):
                if step == 8:  # before the checkpoint of this step
                    raise Killed

        with pytest.raises(Killed):
            fit(10, [pc.JSONLinesLogger(path), Kill(), *callbacks], checkpoints=checkpoints)
        assert read_lines(path)[-1]["step"] == 8
        assert checkpoints.steps() == [4]
        fit(10, [pc.JSONLinesLogger(path)], checkpoints=checkpoints, resume=True)
        assert path.read_bytes() == straight.read_bytes()

    def test_a_resumed_run_ends_with_the_file_of_the_straight_run(self, tmp_path):
        """Rows from after the checkpoint would stand twice, and a plot would go back in time."""

        class Wait:
            def on_checkpoint(self, trainer, step, path):
                trainer.checkpoints.wait()

        self.check_resume(tmp_path, [Wait()])

    def test_what_is_measured_while_a_checkpoint_is_written_stays_out_of_it(
        self, tmp_path, monkeypatch
    ):
        """Later rows would be restored as if of the past: measured twice, averaged twice."""
        dumps = json.dumps

        def dumps_late(item, **options):  # a background thread that comes late to the history
            in_background = threading.current_thread() is not threading.main_thread()
            if in_background and isinstance(item, dict) and "history" in item:
                time.sleep(1)
            return dumps(item, **options)

        monkeypatch.setattr(json, "dumps", dumps_late)
        self.check_resume(tmp_path, [])

    @pytest.mark.parametrize("first", [True, False], ids=["told first", "told last"])
    def test_a_callback_that_goes_back_leaves_no_row_twice(self, tmp_path, first):
        """Rows of the future that was given up stayed in the file, and those of the new one came after."""

        class Back:
            done = False

            def on_evaluate(self, trainer, step, metrics):
                if step == 6 and not self.done:
                    self.done = True
                    trainer.restore(2)

        path = tmp_path / "metrics.jsonl"
        callbacks = [Back(), pc.JSONLinesLogger(path)]
        checkpoints = pc.Checkpoints(tmp_path / "checkpoints", every=2)
        trainer = fit(8, callbacks if first else callbacks[::-1], checkpoints=checkpoints)
        assert read_lines(path) == trainer.history.rows
        assert [row["step"] for row in trainer.history.rows] == [2, 3, 4, 6, 6, 8, 8]

    @pytest.mark.parametrize("logger", [pc.JSONLinesLogger, pc.CSVLogger])
    def test_a_callback_that_goes_back_and_stops_leaves_no_row_of_what_it_gave_up(
        self, tmp_path, logger
    ):
        class Back:
            def on_evaluate(self, trainer, step, metrics):
                if step == 6:
                    trainer.restore(2)
                    trainer.stop()

        path = tmp_path / "metrics"
        checkpoints = pc.Checkpoints(tmp_path / "checkpoints", every=2)
        trainer = fit(8, [logger(path), Back()], checkpoints=checkpoints)
        assert {row["step"] for row in trainer.history.rows} == {2}
        anew = logger(tmp_path / "anew")
        anew.on_fit_start(trainer, 8)
        anew.on_fit_end(trainer)
        assert path.read_text() == anew.path.read_text()

    def test_a_row_is_in_the_file_as_soon_as_it_is_measured(self, tmp_path):
        """Somebody who watches the file, or a run that is killed, must not lose the newest rows."""
        path = tmp_path / "metrics.jsonl"
        seen = []

        class Reader:
            def on_evaluate(self, trainer, step, metrics):
                seen.append(read_lines(path) == trainer.history.rows)

        fit(4, [pc.JSONLinesLogger(path), Reader()])
        assert seen == [True, True]


class TestForeignFiles:
    """What another run or program wrote is not overwritten, and what is ours is."""

    def start(self, path, rows):
        trainer = types.SimpleNamespace(history=pc.History(rows), step=0)
        logger = pc.JSONLinesLogger(path)
        logger.on_fit_start(trainer, 10)
        logger.on_fit_end(trainer)

    @pytest.mark.parametrize("rows", [[], [{"step": 2, "a": 0.5}]])
    @pytest.mark.parametrize("content", ['{"epoch": 1}\n', "\0" * 40, '{"step": 1, "a": 7}\n'])
    def test_they_are_moved_aside(self, tmp_path, rows, content):
        path = tmp_path / "metrics.jsonl"
        for name in ("metrics.jsonl.superseded", "metrics.jsonl.superseded-2"):
            path.write_text(content)
            self.start(path, rows)
            assert read_lines(path) == rows
            assert (tmp_path / name).read_text() == content

    @pytest.mark.parametrize("later", ["", '{"step": 3, "a": 0.25}\n', "\n"])
    @pytest.mark.parametrize("cut", [0, 1, 17, 60])
    def test_the_runs_own_is_written_anew(self, tmp_path, later, cut):
        """Also where its last line was cut by a crash, or later rows are dropped."""
        rows = [{"step": 1, "a": 0.5}, {"step": 2, "a": 0.125}]
        path = tmp_path / "metrics.jsonl"
        whole = "".join(json.dumps(row) + "\n" for row in rows) + later
        path.write_text(whole[: len(whole) - cut])
        self.start(path, rows)
        assert read_lines(path) == rows
        assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]

    def test_a_disk_that_is_full_is_told_with_the_file(self, tmp_path):
        logger = pc.JSONLinesLogger(tmp_path / "metrics.jsonl")

        class Full:
            def write(self, text):
                raise OSError(28, "No space left on device")

        logger._file = Full()
        trainer = types.SimpleNamespace(history=pc.History([{"step": 1, "a": 0.5}]))
        with pytest.raises(OSError, match=r"cannot write metrics to .*\.jsonl: No space left"):
            logger.on_log(trainer, 1, {"a": 0.5})


def test_lines_are_json_as_every_reader_takes_it(tmp_path):
    """RFC 8259 has neither NaN nor Infinity."""
    logger = pc.JSONLinesLogger(tmp_path / "metrics.jsonl")
    history = pc.History([{"step": 1, "a": float("nan")}])
    trainer = types.SimpleNamespace(history=history, step=1)
    logger.on_fit_start(trainer, 10)
    row = {"a": float("inf"), "b": -float("inf"), "c": 0.5}
    history.append(2, row)  # as a Trainer does before it tells
    logger.on_log(trainer, 2, row)
    logger.on_fit_end(trainer)

    def refuse(word):
        raise ValueError(f"{word} is no JSON")

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=refuse) for line in lines] == [
        {"step": 1, "a": None},
        {"step": 2, "a": None, "b": None, "c": 0.5},
    ]


def read_events(path):
    """The Event messages of a TensorBoard file."""
    from tensorboardX.proto.event_pb2 import Event

    content, position, events = path.read_bytes(), 0, []
    while position < len(content):
        (length,) = struct.unpack_from("<Q", content, position)
        events.append(Event.FromString(content[position + 12 : position + 12 + length]))
        position += 12 + length + 4
    assert position == len(content)
    return events


class TestTensorBoard:
    def test_scalars_are_those_of_the_history(self, tmp_path):
        trainer = fit(4, [pc.TensorBoardLogger(tmp_path)])
        (path,) = tmp_path.glob("events.out.tfevents.*")
        found = [
            (event.step, value.tag, value.simple_value)
            for event in read_events(path)
            for value in event.summary.value
        ]
        expected = [
            (row["step"], name, float(np.float32(value)))  # the format holds float32
            for row in trainer.history.rows
            for name, value in row.items()
            if name != "step"
        ]
        assert expected
        assert sorted(found) == sorted(expected)

    def test_a_resumed_run_forgets_what_was_written_after_its_checkpoint(self, tmp_path):
        """TensorBoard drops older points from the step of a file's START event on."""
        from tensorboardX.proto.event_pb2 import SessionLog

        logger = pc.TensorBoardLogger(tmp_path)
        logger.on_fit_start(types.SimpleNamespace(step=40), 100)
        logger.on_log(None, 50, {"train/loss": 0.5})
        logger.on_fit_end(None)
        (path,) = tmp_path.glob("events.out.tfevents.*")
        starts = [e.step for e in read_events(path) if e.session_log.status == SessionLog.START]
        assert starts == [41]

    def test_names_stay_as_they_are(self, tmp_path):
        """By way of tensorboardX they would be one name."""
        logger = pc.TensorBoardLogger(tmp_path)
        logger.on_fit_start(types.SimpleNamespace(step=0), 1)
        metrics = {"energy/a b": 1.0, "energy/a_b": 2.0, "energy/a?b": 3.0}
        logger.on_log(None, 5, metrics)
        logger.on_fit_end(None)
        (path,) = tmp_path.glob("events.out.tfevents.*")
        found = [value for event in read_events(path) for value in event.summary.value]
        assert {value.tag: value.simple_value for value in found} == metrics

    def test_a_disk_that_is_full_is_told_with_the_folder(self, tmp_path):
        """A thread of tensorboardX died of it, and after ten rows training waited for it for ever."""
        logger = pc.TensorBoardLogger(tmp_path)
        logger.on_fit_start(types.SimpleNamespace(step=0), 1)

        class Full:
            def write(self, text):
                raise OSError(28, "No space left on device")

        logger._file._py_recordio_writer._writer = Full()
        with pytest.raises(OSError, match=f"cannot write TensorBoard's events to {tmp_path}: No"):
            logger.on_log(None, 1, {"a": 0.5})

    def test_fits_of_one_second_have_files_of_their_own(self, tmp_path):
        logger = pc.TensorBoardLogger(tmp_path)
        for step in range(3):
            logger.on_fit_start(types.SimpleNamespace(step=step), 9)
            logger.on_fit_end(None)
        assert len(list(tmp_path.iterdir())) == 3

    def test_ending_twice_is_harmless(self, tmp_path):
        logger = pc.TensorBoardLogger(tmp_path)
        logger.on_fit_start(types.SimpleNamespace(step=0), 1)
        logger.on_fit_end(None)
        logger.on_fit_end(None)


class Broken(io.TextIOBase):
    """Standard output whose reader has gone, or that was closed."""

    encoding = "utf-8"

    def __init__(self, error):
        self.error = error

    def write(self, text):
        raise self.error

    def isatty(self):
        return False


class TestConsole:
    @pytest.mark.parametrize(
        "error",
        [BrokenPipeError(32, "Broken pipe"), OSError(5, "I/O error"), ValueError("closed file")],
    )
    def test_output_that_nobody_reads_any_more_stops_nothing(self, monkeypatch, error):
        """`pcflax train | head` stopped the run without a word and without a checkpoint."""
        monkeypatch.setattr(sys, "stdout", Broken(error))
        logger = pc.ConsoleLogger()
        logger.on_fit_start(types.SimpleNamespace(step=0, steps_per_second=None), 10)
        logger.on_evaluate(None, 1, {"eval/accuracy": 0.5})
        logger.on_fit_end(None)

    def test_without_an_output_nothing_is_shown(self, monkeypatch):
        monkeypatch.setattr(sys, "stdout", None)
        pc.ConsoleLogger().on_evaluate(None, 1, {"eval/accuracy": 0.5})

    def test_an_ascii_terminal_shows_what_it_can(self, monkeypatch):
        output = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding="ascii"))
        pc.ConsoleLogger().on_evaluate(None, 1, {"eval/µ": 0.5})
        assert output.getvalue() == b"step      1  eval/\\xb5 0.5\n"

    def test_lines_are_not_cut_and_brackets_are_no_markup(self, monkeypatch):
        monkeypatch.delenv("COLUMNS", raising=False)
        output = io.StringIO()
        monkeypatch.setattr(sys, "stdout", output)
        metrics = {f"eval/[red]:smile: {number}[/x]": 0.5 for number in range(9)}
        pc.ConsoleLogger().on_evaluate(None, 1, metrics)
        shown = "  ".join(f"{name} 0.5" for name in metrics)
        assert output.getvalue() == f"step      1  {shown}\n"
        console = Console(file=(given := io.StringIO()), width=80)  # a user's own
        pc.ConsoleLogger(console).on_evaluate(None, 1, metrics)
        assert given.getvalue() == output.getvalue()

    def test_prints_a_line_for_each_evaluation_where_there_is_no_terminal(self):
        """In a batch job's log the lines are all that anybody sees."""
        output = io.StringIO()
        trainer = fit(4, [pc.ConsoleLogger(Console(file=output, width=200))])
        lines = output.getvalue().splitlines()
        rows = [row for row in trainer.history.rows if "eval/accuracy" in row]
        assert len(lines) == len(rows) == 2
        for line, row in zip(lines, rows, strict=True):
            words = line.split()
            assert words[:2] == ["step", str(row["step"])]
            told = dict(zip(words[2::2], map(float, words[3::2]), strict=True))
            # four digits are shown
            assert told == pytest.approx(
                {name: value for name, value in row.items() if name != "step"}, rel=1e-3
            )

    def test_shows_a_bar_with_the_rate_on_a_terminal(self):
        output = io.StringIO()
        console = Console(file=output, width=200, force_terminal=True, color_system=None)
        logger = pc.ConsoleLogger(console)
        trainer = types.SimpleNamespace(step=0, steps_per_second=1234.4)
        logger.on_fit_start(trainer, 10)
        logger.on_progress(trainer, 4)
        logger.on_log(trainer, 4, {"train/energy": 0.5, "train/energy/layer_0": 0.25})
        logger._progress.refresh()
        shown = output.getvalue()
        logger.on_fit_end(trainer)
        for part in ("4/10", "1,234 steps/s", "energy 0.5"):
            assert part in shown
        assert "layer_0" not in shown  # too much for one line
        logger.on_fit_end(trainer)  # twice is harmless

    @pytest.mark.parametrize(
        ("width", "told"),
        [
            (30, "   50/12000 -:--:--"),
            (40, "   50/12000 -:--:--"),
            (60, "   50/12000 1,234 steps/s -:--:--"),
            (80, "   50/12000 1,234 steps/s -:--:-- accuracy 0.9123  energy 12.35"),
        ],
    )
    def test_the_bar_is_one_line_with_what_has_room(self, width, told):
        output = io.StringIO()
        console = Console(file=output, width=width, force_terminal=True, color_system=None)
        logger = pc.ConsoleLogger(console)
        trainer = types.SimpleNamespace(step=0, steps_per_second=1234.4)
        logger.on_fit_start(trainer, 12000)
        logger.on_progress(trainer, 50)
        logger.on_log(trainer, 50, {"train/energy": 12.3456, "train/accuracy": 0.91234})
        bar = logger._progress.get_renderable()
        logger.on_fit_end(trainer)
        with console.capture() as captured:
            console.print(bar)
        (line,) = captured.get().splitlines()
        assert len(line) <= width
        assert line.rstrip().endswith(told)

    def test_a_notebook_has_a_bar_and_lines_of_its_own_width(self, monkeypatch):
        monkeypatch.delenv("COLUMNS", raising=False)
        monkeypatch.setattr(sys, "stdout", io.StringIO())  # a kernel's is no terminal
        assert plain_console().width > 1000
        monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
        assert plain_console().width == 115
        for found, disabled in ((None, True), ("there", False)):
            monkeypatch.setattr(importlib.util, "find_spec", lambda _, found=found: found)
            monkeypatch.setattr(rich.progress.Progress, "start", lambda bar: None)
            logger = pc.ConsoleLogger()
            logger.on_fit_start(types.SimpleNamespace(step=0), 10)
            assert logger._progress.disable == disabled

    def test_slow_rates_keep_their_decimals(self):
        output = io.StringIO()
        logger = pc.ConsoleLogger(Console(file=output, width=200, force_terminal=True))
        trainer = types.SimpleNamespace(step=0, steps_per_second=0.256)
        logger.on_fit_start(trainer, 10)
        logger.on_progress(trainer, 1)
        logger._progress.refresh()
        logger.on_fit_end(trainer)
        assert "0.26 steps/s" in output.getvalue()

    def test_is_what_a_trainer_shows_by_itself(self, capsys):
        rngs = nnx.Rngs(0)
        network = pc.PCNetwork([pc.PCDense(3, 2, rngs=rngs)])
        data = pc.data.from_arrays(np.ones((4, 3)), np.arange(4) % 2, batch_size=2)
        trainer = pc.Trainer(network, OPTIMIZER, learning=LEARNING)
        trainer.fit(data, num_steps=2, eval_data=data)
        assert "eval/accuracy" in capsys.readouterr().out
