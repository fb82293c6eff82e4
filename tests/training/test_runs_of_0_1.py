"""Checkpoints that version 0.1 wrote: restored, measured, and trained on.

Oracle: what 0.1 itself measured when it wrote them (two CPU cores, jax 0.10.2).
"""

import importlib.util
import json
import os
import pathlib
import shutil
import warnings

import pytest

import pcflax as pc
from pcflax.cli.main import main

ROOT = pathlib.Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.whole


@pytest.fixture
def runs(tmp_path):
    """A copy of the folder of runs, or a skip with the reason."""
    folder = pathlib.Path(os.environ.get("PCFLAX_RUNS_0_1", ROOT.parent / "shared/data/runs_0.1"))
    if not (folder / "mlp").is_dir():
        pytest.skip("no runs of 0.1; set PCFLAX_RUNS_0_1 to a folder with mlp, stack and graph")
    return shutil.copytree(folder, tmp_path / "runs")


@pytest.mark.parametrize(
    ("name", "step", "accuracy", "energy"),
    [("mlp", 120, 0.7805556, 0.2775489), ("stack", 60, 0.0694444, 0.6191110)],
)
def test_a_run_of_the_command_line_is_measured_as_it_was(
    runs, capsys, name, step, accuracy, energy
):
    main(["evaluate", str(runs / name), "--json"])
    measured = json.loads(capsys.readouterr().out)
    assert measured["step"] == step
    assert measured["accuracy"] == pytest.approx(accuracy, abs=1e-5)
    assert measured["energy"] == pytest.approx(energy, abs=1e-5)


def test_a_graph_is_measured_and_trained_on_as_it_was(runs):
    """Batch statistics, a learned precision, dropout's key and Adam's moments must all come back."""
    spec = importlib.util.spec_from_file_location("build_graph", runs / "build_graph.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    trainer = build.trainer(runs / "graph", seed=5)  # other weights, which the checkpoint replaces
    assert trainer.restore() == 90
    test = pc.data.load("digits", split="test", batch_size=360)
    measured = trainer.evaluate(test)
    assert measured["accuracy"] == pytest.approx(0.8972222, abs=1e-5)
    assert measured["energy"] == pytest.approx(-2.8222159, abs=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", pc.CheckpointWarning
        )  # another jax than that which wrote it
        trainer.fit(pc.data.load("digits", batch_size=64, seed=3), num_steps=120)
    measured = trainer.evaluate(test)
    assert measured["accuracy"] == pytest.approx(0.9166667, abs=1e-5)
    assert measured["energy"] == pytest.approx(-3.9280874, rel=1e-5)
