"""`pcflax train --model generator` and `pcflax sample`: measured by inference, and drawn.

Oracles: the variance of the data, NumPy, and a run never interrupted.
"""

import json

import numpy as np
import pytest
from PIL import Image

import pcflax as pc
from pcflax.cli import sample as sample_verb
from pcflax.cli.main import main
from tests.cli.test_main import digest, error, last_eval, output

pytestmark = pytest.mark.slow

SMALL = ["--model", "generator", "--widths", "24", "--num-steps", "40", "--eval-every", "20"] + [
    "--learning-rate",
    "0.01",
    "--validation",
    "0",
]


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    """Tables are not cut, whatever terminal the tests run in."""
    monkeypatch.setenv("COLUMNS", "200")


def train(run_dir, *options):
    main(["train", "--run-dir", str(run_dir), *SMALL, *map(str, options)])
    return run_dir


@pytest.fixture(scope="module", params=[0, 6], ids=["labels", "codes"])
def run(request, tmp_path_factory):
    """A finished run, of a generator of labels or of codes."""
    latent = ["--latent", "6"] if request.param else []
    return train(tmp_path_factory.mktemp("generator") / "run", *latent), request.param


def test_evaluations_infer_what_a_generator_is_asked(run, capsys):
    folder, latent = run
    measured = json.loads(output(capsys, "evaluate", folder, "--json"))
    last = last_eval(folder)
    if latent:  # better than the mean image, by a code of 6 numbers
        test = next(iter(pc.data.load("digits", split="test", batch_size=360, normalize=False)))
        assert measured["squared_error"] < 0.7 * np.var(test.inputs, axis=0).mean()
        assert measured["squared_error"] == pytest.approx(last["squared_error"], rel=1e-4)
        assert "accuracy" not in measured
    else:
        assert measured["accuracy"] == pytest.approx(last["accuracy"])
        assert measured["accuracy"] > 0.6


def test_a_run_stopped_on_its_way_goes_on_bitwise(run, tmp_path):
    folder, latent = run
    own = ["--latent", latent] if latent else []
    part = train(tmp_path / "part", *own, "--num-steps", 20)
    train(part, *own, "--num-steps", 40, "--resume")
    assert digest(part) == digest(folder)


def test_a_summary_is_of_a_generators_own_batch(run, capsys):
    """Of codes there are no inputs, whose shape it was to go by."""
    folder, latent = run
    told = json.loads(output(capsys, "inspect", folder, "--summary", "--json"))
    assert told["batch_size"] == 64
    assert told["layers"][0]["shape"] == [latent or 10]


def test_samples_are_the_networks_own_images(run, capsys, tmp_path, monkeypatch):
    """What the figure is made of is predicted from the codes; each class has its image."""
    folder, latent = run
    drawn = []
    figure = sample_verb.image_figure
    monkeypatch.setattr(
        sample_verb,
        "image_figure",
        lambda images, **own: drawn.append((images, own)) or figure(images, **own),
    )
    path = tmp_path / "new.png"
    told = json.loads(output(capsys, "sample", folder, "--output", path, "--count", 7, "--json"))
    ((images, own),) = drawn
    assert told == {"step": 40, "images": 7 if latent else 10, "picture": str(path)}
    assert Image.open(path).size[0] > 100
    if latent:
        assert images.shape == (7, 64)
        # no image of the mean code twice, and of the brightness of digits
        assert np.ptp(images, axis=0).max() > 0.1
        other = output(capsys, "sample", folder, "--count", 7, "--seed", 1)
        assert other == f"picture  {folder / 'samples.png'}\n"
        assert not np.allclose(drawn[1][0], images)
    else:
        parameters = pc.load_checkpoint(folder).parameters
        w1, w2 = (parameters[name]["linear"] for name in ("hidden_1", "output"))
        hidden = np.tanh(np.eye(10) @ w1["kernel"] + w1["bias"])
        np.testing.assert_allclose(images, hidden @ w2["kernel"] + w2["bias"], rtol=1e-4, atol=1e-5)
        assert own["titles"] == [str(label) for label in range(10)]


def test_other_runs_and_options_are_refused_in_a_sentence(run, capsys, tmp_path):
    folder, latent = run
    told = error(capsys, "sample", folder, "--count", 0, code=2)
    assert "--count of at least 1, got 0" in told
    told = error(capsys, "sample", folder, "--output", tmp_path / "picture.txt", code=2)
    assert "end in .png, .pdf or .svg" in told
    told = error(capsys, "sample", folder, "--output", tmp_path / "none" / "picture.png")
    assert "cannot write" in told
    if latent:
        return
    assert "there is no run in" in error(capsys, "sample", tmp_path / "nothing")
    new = tmp_path / "other"
    told = error(capsys, "train", "--run-dir", new, "--latent", 4, code=2)
    assert "--latent does nothing with --model mlp" in told
    told = error(capsys, "train", "--run-dir", new, "--model", "generator", "--latent", -1, code=2)
    assert "--latent of at least 0, got -1" in told
    told = error(capsys, "train", "--run-dir", new, *SMALL, "--output", "categorical", code=2)
    assert "--output does nothing with --model generator" in told
    main(["train", "--run-dir", str(new), "--num-steps", "2", "--widths", "4"])
    assert "trained a mlp, which draws nothing" in error(capsys, "sample", new)
