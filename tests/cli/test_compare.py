"""`pcflax compare`. Oracles: what `pc.experiments.compare` says of the same histories, and folders of 0.1."""

import json
import os
import pathlib
import subprocess
import sys

import optax
import pytest
from flax import nnx
from PIL import Image

import pcflax as pc
from pcflax.cli.main import main
from pcflax.cli.options import TrainOptions, write_config

pytestmark = pytest.mark.slow

OLD = pathlib.Path(os.environ.get("PCFLAX_RUNS_0_1", "none"))


def make_trainer(seed):
    network = pc.PCNetwork([pc.PCDense(64, 10, rngs=nnx.Rngs(seed))])
    return pc.Trainer(
        network, optax.adam(1e-2), learning=pc.learning.Backprop(), seed=seed, progress=False
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Four runs as the command line makes them, of two settings and two seeds, and a folder of seeds."""
    folder = tmp_path_factory.mktemp("runs")
    train = pc.data.load("digits", batch_size=100)
    test = pc.data.load("digits", split="test", batch_size=360)
    for steps in (4, 8):
        for seed in (0, 1):
            run = folder / f"{steps}-{seed}"
            write_config(run, TrainOptions(num_steps=steps, seed=seed))
            trainer = make_trainer(seed)
            trainer.checkpoints = pc.Checkpoints(run / "checkpoints")
            trainer.fit(train.with_seed(seed), num_steps=steps, eval_data=test, eval_every=4)
    replicas = pc.experiments.replicate(
        make_trainer, range(2), checkpoints=pc.Checkpoints(folder / "seeds"), progress=False
    )
    runs = replicas.fit(train, num_steps=4, eval_data=test)
    assert runs.begun == pc.experiments.load_runs(folder / "seeds").begun != ""
    return folder


def told(capsys, *arguments):
    main(["compare", *map(str, arguments)])
    return capsys.readouterr().out


def test_runs_are_grouped_by_seed_and_named_by_what_differs(folders, capsys):
    places = [folders / name for name in ("4-0", "8-1", "8-0", "4-1")]
    out = told(capsys, *places, "--json")
    (one,) = json.loads(out)["contrasts"]
    assert (one["a"], one["b"]) == ("num-steps 8", "num-steps 4")
    for name, steps in (("num-steps 8", 8), ("num-steps 4", 4)):
        for seed in (0, 1):
            rows = pc.load_checkpoint(folders / f"{steps}-{seed}").rows()
            last = pc.History(rows)["eval/accuracy"][-1]
            assert one["values"][name][str(seed)] == last


def test_folders_of_seeds_are_runs_and_files_are_written(folders, tmp_path, capsys):
    """Of one data order and seed they are the single runs, so that nothing differs."""
    output, figure = tmp_path / "new" / "table.tex", tmp_path / "new" / "curves.png"
    arguments = [folders / "seeds", folders / "4-0", folders / "4-1", "--at", "4"]
    out = told(capsys, *arguments, "--format", "latex", "--output", output, "--figure", figure)
    assert out == ""
    assert r"\toprule" in output.read_text()
    assert Image.open(figure).size[0] > 500
    out = told(capsys, *arguments, "--format", "csv")
    assert float(out.splitlines()[1].split(",")[10]) == pytest.approx(0, abs=1e-6)


def test_errors_are_a_sentence(folders, tmp_path, capsys):
    def refused(*arguments, code=1):
        with pytest.raises(SystemExit) as caught:
            main(["compare", *map(str, arguments)])
        assert caught.value.code == code
        (line,) = capsys.readouterr().err.splitlines()
        return line

    one, other = folders / "4-0", folders / "8-0"
    assert "two runs or more, got 1" in refused(one)
    assert "neither config.json nor replicas.json" in refused(one, tmp_path)
    assert "repeats a run of seed 0" in refused(one, one)
    wrong = {
        ("--at", "best"): "expected --at last, a step, or max:METRIC",
        ("--confidence", 95): "expected --confidence above 0 and below 1, got 95.0",
        (
            "--figure",
            "curves.gif",
        ): "expected --figure to end in .png, .pdf or .svg, got curves.gif",
        ("--json", "--format", "csv"): "give --format or --json, not both",
    }
    for options, text in wrong.items():
        assert text in refused(one, other, *options, code=2)
    assert "expected folders of runs, got none; name two or more" in refused(code=2)
    told = refused(one, folders / "4-1")
    assert "these 2 runs differ in nothing but the seed, so that they are one; name another" in told
    assert "both are of the same data" in refused(one, other, "--at", "max:eval/accuracy")
    assert "no metric 'eval/loss'" in refused(one, other, "--metric", "eval/loss")
    assert "no plan.json" in refused(one, other, "--plan", tmp_path)
    two = tmp_path / "seeds"
    two.symlink_to(folders / "seeds")
    assert "two of the runs are called 'seeds'" in refused(folders / "seeds", two)


def test_a_seed_that_ended_is_left_out_when_asked(folders, tmp_path, capsys):
    copy = tmp_path / "ended"
    copy.mkdir()
    for place in ("seed-0", "seed-1"):
        (copy / place).symlink_to(folders / "seeds" / place)
    record = json.loads((folders / "seeds" / "replicas.json").read_text())
    record["runs"]["seed-1"]["ended"] = "NaN at step 3"
    (copy / "replicas.json").write_text(json.dumps(record))
    with pytest.raises(SystemExit):
        main(["compare", str(folders / "seeds"), str(copy)])
    assert "seed 1 of ended ended early: NaN at step 3; add --finished" in capsys.readouterr().err
    out = told(capsys, folders / "seeds", copy, "--finished")
    assert "ended - seeds: of one seed no interval and no test is known" in out


@pytest.mark.skipif(not OLD.is_dir(), reason="PCFLAX_RUNS_0_1 names the folder of runs of 0.1")
def test_runs_of_0_1(capsys):
    (one,) = json.loads(told(capsys, OLD / "mlp", OLD / "stack", "--json"))["contrasts"]
    assert one["mean_b"] == pytest.approx(0.7805556, abs=1e-6)
    assert one["mean_a"] == pytest.approx(0.0694444, abs=1e-6)


def test_help_loads_neither_jax_nor_scipy():
    code = (
        "import sys\nfrom pcflax.cli.main import main\n"
        "try: main(['compare', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'jax', 'scipy', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
