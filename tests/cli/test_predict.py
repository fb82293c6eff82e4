"""`pcflax predict`. Oracles: NumPy's forward pass over the stored weights, SciPy, and `pcflax evaluate`."""

import csv
import json
import re

import numpy as np
import pytest
from scipy import special

import pcflax as pc
from pcflax.cli.main import main
from pcflax.data.sources.digits import read_digits
from tests.cli.test_main import error, output
from tests.training import test_runs_of_0_1

pytestmark = pytest.mark.slow

IMAGES, LABELS = read_digits("test")
stored_runs = test_runs_of_0_1.runs
COMMON = ["--num-steps", "6", "--eval-every", "6", "--validation", "0", "--quiet"]


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run whose outputs are probabilities, and files of examples as they are stored and as they enter."""
    place = tmp_path_factory.mktemp("predict")
    main(
        ["train", "--run-dir", str(place / "run"), "--widths", "8", "--output", "categorical"]
        + COMMON
    )
    np.save(place / "stored.npy", IMAGES)
    floating = next(iter(pc.data.load("digits", split="test", batch_size=360))).inputs
    np.savez(place / "several.npz", entering=floating.astype(float), labels=LABELS)
    return place


@pytest.fixture(scope="module")
def expected(folder):
    """The probabilities by NumPy."""
    parameters = pc.load_checkpoint(folder / "run").parameters
    w1, w2 = (parameters[name]["linear"] for name in ("hidden_1", "output"))
    images = (IMAGES.reshape(360, 64) / 16 - 0.3054) / 0.3759
    hidden = np.tanh(images @ w1["kernel"] + w1["bias"])
    return special.softmax(hidden @ w2["kernel"] + w2["bias"], axis=1)


def test_stored_bytes_and_floating_inputs_give_the_same_probabilities(folder, expected, capsys):
    bytes_to, floats_to = folder / "a.npz", folder / "b.npz"
    told = output(capsys, "predict", folder / "run", folder / "stored.npy", "--output", bytes_to)
    assert told == f"predictions  {bytes_to}\n"
    options = ("--array", "entering", "--output", floats_to, "--batch-size", 100, "--quiet")
    assert output(capsys, "predict", folder / "run", folder / "several.npz", *options) == ""
    for path in (bytes_to, floats_to):
        with np.load(path) as found:
            assert set(found.files) == {"probabilities", "classes"}
            np.testing.assert_allclose(found["probabilities"], expected, rtol=1e-4, atol=1e-6)
            np.testing.assert_array_equal(found["classes"], expected.argmax(axis=1))


def test_a_table_of_text_and_json_tell_the_same_numbers(folder, expected, capsys):
    for name in ("rows.csv", "rows.json"):
        output(capsys, "predict", folder / "run", folder / "stored.npy", "--output", folder / name)
    with (folder / "rows.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["example", "class", *(f"probability_{k}" for k in range(10))]
    numbers = np.asarray(rows, float)
    np.testing.assert_array_equal(numbers[:, 0], np.arange(360))
    np.testing.assert_allclose(numbers[:, 2:], expected, rtol=1e-4, atol=1e-6)
    stored = json.loads((folder / "rows.json").read_text())
    np.testing.assert_array_equal(numbers[:, 1], stored["classes"])
    np.testing.assert_allclose(stored["probabilities"], numbers[:, 2:], rtol=1e-6)
    options = ("predict", folder / "run", folder / "stored.npy", "--json")
    printed = json.loads(output(capsys, *options))
    assert printed == {"step": 6, "examples": 360, **stored}
    told = json.loads(output(capsys, *options, "--output", folder / "c.csv"))
    assert told == {"step": 6, "examples": 360, "output": str(folder / "c.csv")}


def test_without_an_output_the_first_rows_are_shown(folder, expected, capsys):
    printed = output(capsys, "predict", folder / "run", folder / "stored.npy")
    rows = [line for line in printed.splitlines() if re.match(r"│ +\d", line)]
    assert len(rows) == 10
    assert f"{expected[3].argmax()} │" in rows[3]
    assert "and 350 more examples: --output" in printed


def test_classes_have_the_names_of_their_set(folder, tmp_path, capsys, monkeypatch):
    names = tuple(f"name {k}" for k in range(10))
    load = pc.data.load

    def named(*arguments, **options):
        data = load(*arguments, **options)
        data.class_names = names
        return data

    monkeypatch.setattr(pc.data, "load", named)
    arguments = ("predict", folder / "run", folder / "stored.npy", "--output")
    output(capsys, *arguments, tmp_path / "rows.csv")
    rows = list(csv.DictReader((tmp_path / "rows.csv").open(newline="")))
    assert all(row["name"] == f"name {row['class']}" for row in rows)
    output(capsys, *arguments, tmp_path / "rows.npz")
    with np.load(tmp_path / "rows.npz") as found:
        assert [f"name {k}" for k in found["classes"]] == found["names"].tolist()


@pytest.mark.parametrize("latent", ["0", "4"], ids=["labels", "codes"])
def test_a_generator_is_asked_what_its_evaluations_are(folder, tmp_path, capsys, latent):
    """The label of an image, or the image that its code stands for."""
    run = tmp_path / "run"
    main(
        ["train", "--run-dir", str(run), "--model", "generator", "--latent", latent]
        + ["--widths", "8", *COMMON]
    )
    measured = json.loads(output(capsys, "evaluate", run, "--json"))
    found = json.loads(output(capsys, "predict", run, folder / "stored.npy", "--json"))
    if latent == "0":
        assert np.mean(np.asarray(found["classes"]) == LABELS) == measured["accuracy"]
    else:
        assert "classes" not in found
        error = np.mean((np.asarray(found["outputs"]) - IMAGES.reshape(360, 64) / 16) ** 2)
        assert measured["squared_error"] == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize(("name", "accuracy"), [("mlp", 0.7805556), ("stack", 0.0694444)])
def test_runs_of_0_1_answer(folder, stored_runs, capsys, name, accuracy):
    found = json.loads(
        output(capsys, "predict", stored_runs / name, folder / "stored.npy", "--json")
    )
    assert np.mean(np.asarray(found["classes"]) == LABELS) == pytest.approx(accuracy, abs=1e-6)
    assert set(found) == {"step", "examples", "classes", "outputs"}  # of squared errors


def test_what_does_not_fit_is_refused_in_a_sentence(folder, tmp_path, capsys):
    def refused(file, *options, code=1):
        return error(capsys, "predict", folder / "run", file, *options, code=code)

    def saved(array):
        np.save(tmp_path / "given.npy", array)
        return tmp_path / "given.npy"

    stored, several = folder / "stored.npy", folder / "several.npz"
    told = refused(stored, "--output", "a.txt", code=2)
    assert "--output to end in .npz, .csv, .json, got a.txt" in told
    lost = tmp_path / "none" / "a.csv"
    assert f"cannot write {lost}: No such file" in refused(stored, "--output", lost)
    assert "ends in .npy or .npz, got" in refused(tmp_path / "a.txt", code=2)
    assert "there is no file" in refused(tmp_path / "a.npy")
    assert "holds entering, labels; say which with --array" in refused(several)
    assert "but not --array x" in refused(several, "--array", "x")
    assert "leave --array out" in refused(stored, "--array", "x")
    (tmp_path / "bad.npy").write_text("no array")
    assert "cannot be read as arrays; write it anew" in refused(tmp_path / "bad.npy")
    assert "expected whole or floating numbers" in refused(saved(np.array(["a"])))
    assert "shape (2, 63), expected (examples, 64)" in refused(saved(np.ones((2, 63))))
    assert "one example wants a first axis too: x[None]" in refused(saved(np.ones(64)))
    assert "from 0 to 255, expected images from 0 to 16" in refused(
        saved(np.arange(256, dtype=np.uint8).reshape(4, 64))
    )
    wrong = np.ones((3, 64))
    wrong[1, 5] = np.nan
    assert "example 1 of" in refused(saved(wrong))
    text = tmp_path / "text"
    text.mkdir()
    (text / "config.json").write_text((folder / "run" / "config.json").read_text())
    config = json.loads((text / "config.json").read_text())
    config["options"]["model"] = "transformer"
    (text / "config.json").write_text(json.dumps(config))
    assert "predicts the characters of a text" in error(capsys, "predict", text, stored)
