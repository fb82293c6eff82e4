"""The command line's choice of model: each trains, resumes bitwise, is evaluated and examined.

Oracles: the models of `pc.models` themselves, a run never interrupted, and the options it was told.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pcflax as pc
from pcflax.cli.build import build_network, load_data
from pcflax.cli.main import main
from pcflax.cli.options import TrainOptions
from pcflax.layers import Evidence
from tests.cli.test_main import digest, error, files_of, last_eval, output, rows_of

pytestmark = pytest.mark.slow

SHORT = ["--num-steps", "4", "--eval-every", "2", "--batch-size", "8", "--inference-steps", "2"]
SHORT += ["--validation", "0"]
RESIDUAL = ["--model", "residual-mlp", "--depth", "5", "--width", "8", "--activation", "relu"]
TEXT = "the quick brown fox jumps over the lazy dog. " * 12


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    """Tables are not cut, whatever terminal the tests run in."""
    monkeypatch.setenv("COLUMNS", "400")


@pytest.fixture
def text(tmp_path):
    """A file of 540 characters."""
    path = tmp_path / "book.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def images(tmp_path):
    """16 x 16 images of three classes, told apart by their brightness."""
    random = np.random.RandomState(0)
    arrays = {}
    for split, count in (("train", 24), ("test", 9)):
        labels = np.arange(count) % 3
        noise = 0.1 * random.normal(size=(count, 16, 16, 3))
        arrays[f"x_{split}"] = (labels[:, None, None, None] - 1 + noise).astype(np.float32)
        arrays[f"y_{split}"] = labels
    np.savez(tmp_path / "images.npz", **arrays)
    return tmp_path / "images.npz"


def train(run_dir, *options):
    main(["train", "--run-dir", str(run_dir), *SHORT, *map(str, options)])
    return run_dir


def test_a_residual_mlp_is_a_stack_whose_layers_are_told_one_by_one(tmp_path, capsys):
    run_dir = train(tmp_path / "run", *RESIDUAL, "--parameterization", "mupc")
    names = ["first", "hidden/0", "hidden/1", "hidden/2", "output"]
    row = next(row for row in rows_of(run_dir) if "train/energy" in row)
    assert [name for name in row if name.startswith("train/energy/")] == [
        f"train/energy/{name}" for name in names
    ]
    parts = [row[f"train/energy/{name}"] for name in names]
    assert row["train/energy"] == pytest.approx(sum(parts), rel=1e-5)
    capsys.readouterr()
    found = json.loads(output(capsys, "inspect", str(run_dir), "--health", "--json"))
    assert list(found["sentences"]) == names
    assert (run_dir / "training.png").stat().st_size > 10_000
    shapes = json.loads(output(capsys, "inspect", str(run_dir), "--json"))["parameters"]
    assert shapes["hidden.stacked-layers.linear.kernel"] == [3, 8, 8]


@pytest.mark.usefixtures("optimized")
def test_a_residual_mlp_learns_by_its_defaults(tmp_path):
    """At the rates of an mlp it is at 88 % after 500 steps, here above 95 % after 150."""
    run_dir = tmp_path / "run"
    options = ["--model", "residual-mlp", "--num-steps", "150", "--eval-every", "150"]
    main(["train", "--run-dir", str(run_dir), *options])
    assert last_eval(run_dir)["accuracy"] > 0.95


@pytest.mark.parametrize(
    "options",
    [RESIDUAL, *(["--model", name, "--widths", "8"] for name in ("bidirectional", "hybrid"))],
    ids=lambda options: options[1],
)
def test_a_resumed_run_ends_as_the_one_never_interrupted(tmp_path, capsys, options):
    whole = train(tmp_path / "whole", *options)
    train(tmp_path / "parts", *options, "--num-steps", 2)
    main(["train", "--run-dir", str(tmp_path / "parts"), "--resume", *SHORT, *options])
    assert digest(tmp_path / "parts") == digest(whole)
    capsys.readouterr()
    again = json.loads(output(capsys, "evaluate", str(whole), "--json"))
    assert again["accuracy"] == pytest.approx(last_eval(whole)["accuracy"], abs=1e-6)


def test_text_trains_a_transformer_and_tells_perplexity(tmp_path, text, capsys):
    options = ["--data", f"text:{text}", "--model", "transformer", "--depth", "1", "--width", "8"]
    run_dir = train(tmp_path / "run", *options, "--sequence-length", "6")
    measured = last_eval(run_dir)
    vocabulary = len(set(TEXT))
    assert 1 < measured["perplexity"] < 2 * vocabulary
    assert 0 <= measured["accuracy"] <= 1
    capsys.readouterr()
    again = json.loads(output(capsys, "evaluate", str(run_dir), "--json"))
    assert again["perplexity"] == pytest.approx(measured["perplexity"], rel=1e-5)


@pytest.mark.parametrize("augment", [[], ["--augment"]], ids=["plain", "augmented"])
def test_images_keep_their_shape_for_a_convolutional_model(tmp_path, images, augment):
    options = TrainOptions(data=str(images), model="vgg5", batch_size=4, augment=bool(augment))
    data = load_data(options, "train")
    assert data.spec().inputs.shape == (4, 16, 16, 3)
    assert bool(data.reader.augment) is bool(augment)
    assert not load_data(options, "test", batch_size=9).reader.augment
    flat = load_data(TrainOptions(data=str(images), batch_size=4), "train")
    assert flat.spec().inputs.shape == (4, 768)


@pytest.mark.parametrize(
    ("model", "classes"),
    [
        ("vgg5", pc.PCConv),
        ("vgg7", pc.PCConv),
        ("resnet18", pc.PCLayer),
    ],
)
def test_a_model_is_built_for_the_data(model, classes):
    """Sized by shapes alone, nothing computed but the initial weights."""
    spec = Evidence(
        jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32),
        jax.ShapeDtypeStruct((2, 7), jnp.float32),
    )
    network = build_network(TrainOptions(model=model, output="categorical"), spec)
    assert isinstance(network.layers[0], classes)
    assert isinstance(network.layers[-1].energy, pc.energies.Categorical)
    split = pc.networks.split(network)
    shape = jax.eval_shape(lambda x: split.bind().predict(x), spec.inputs).shape
    assert shape == (2, 7)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--model", "vgg5", "--widths", "3"], 2, "--widths does nothing with --model vgg5"),
        (["--depth", "9"], 2, "--depth does nothing with --model mlp"),
        (["--augment"], 2, "--augment does nothing with --model mlp"),
        (["--sequence-length", "9"], 2, "--sequence-length does nothing with --model mlp"),
        (["--model", "transformer"], 2, "a transformer --data text:PATH"),
        (["--data", "text:book.txt"], 2, "text wants --model transformer"),
        (["--model", "vgg5"], 1, "give larger images"),
        (["--model", "residual-mlp", "--depth", "1"], 2, "a larger --depth, got 1"),
        (["--model", "residual-mlp", "--width", "0"], 2, "a larger --width, got 0"),
        (["--data", "text:no.txt", "--model", "transformer"], 1, "no file no.txt"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(
    tmp_path, monkeypatch, capsys, options, code, words
):
    monkeypatch.chdir(tmp_path)
    before = files_of(tmp_path)
    assert words in error(capsys, "train", *options, code=code)
    assert files_of(tmp_path) == before
