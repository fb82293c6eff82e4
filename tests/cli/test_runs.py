"""Runs of the command line in Python. Oracle: what the run itself wrote and measured."""

import json

import numpy as np
import pytest

import pcflax as pc
from pcflax.cli import load_run
from pcflax.cli.main import main


class TestLoadRun:
    def test_the_trainer_of_a_run_comes_back(self, tmp_path, capsys):
        run = tmp_path / "run"
        short = ["--num-steps", "6", "--batch-size", "32", "--widths", "8", "--validation", "0"]
        main(["train", "--run-dir", str(run), *short, "--logger", "csv"])
        capsys.readouterr()
        main(["evaluate", str(run), "--json"])
        told = json.loads(capsys.readouterr().out)
        trainer = load_run(run)
        stored = pc.load_checkpoint(run)
        assert trainer.step == told["step"] == 6
        kernel = pc.networks.split(trainer.network).parameters["output"]["linear"]["kernel"]
        np.testing.assert_array_equal(kernel, stored.sections["parameters"]["output.linear.kernel"])
        test = pc.data.load("digits", split="test", batch_size=97)
        assert trainer.evaluate(test)["accuracy"] == pytest.approx(told["accuracy"])
        assert trainer.history.last()["eval/accuracy"] == pytest.approx(told["accuracy"])
        assert load_run(run, best=True).step in stored_steps(run)
        lines = (run / "metrics.csv").read_text().splitlines()
        assert len(lines) == 1 + len(trainer.history.by_step())

    def test_without_a_run_it_says_so(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"config\.json"):
            load_run(tmp_path)


def stored_steps(run):
    return [int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit()]
