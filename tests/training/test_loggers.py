"""Loggers: what a file or a screen says is what the Trainer's history holds.

Oracles: the history itself, and TensorBoard's file format as TensorFlow documents it (length, its
checksum, an Event message, its checksum).
"""

import io
import json
import struct
import threading
import time
import types

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from rich.console import Console

import pcflax as pc

# Made once, so that the fits of this file share one compiled loop.
LEARNING = pc.learning.PredictiveCoding(pc.inference.GradientDescent(optax.sgd(0.1), num_steps=2))
OPTIMIZER = optax.adam(1e-2)


def fit(num_steps, callbacks, *, checkpoints=None, resume=False):
    """A short run on 12 examples in batches of 3: rows at 2, 3, 4, 6, ..."""
    inputs = np.random.default_rng(0).normal(size=(12, 3))
    data = pc.data.from_arrays(inputs, np.arange(12) % 2, batch_size=3)
    rngs = nnx.Rngs(0)
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

    def test_a_row_is_in_the_file_as_soon_as_it_is_measured(self, tmp_path):
        """Somebody who watches the file, or a run that is killed, must not lose the newest rows."""
        path = tmp_path / "metrics.jsonl"
        seen = []

        class Reader:
            def on_evaluate(self, trainer, step, metrics):
                seen.append(read_lines(path) == trainer.history.rows)

        fit(4, [pc.JSONLinesLogger(path), Reader()])
        assert seen == [True, True]


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

    def test_ending_twice_is_harmless(self, tmp_path):
        logger = pc.TensorBoardLogger(tmp_path)
        logger.on_fit_start(types.SimpleNamespace(step=0), 1)
        logger.on_fit_end(None)
        logger.on_fit_end(None)


class TestConsole:
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
