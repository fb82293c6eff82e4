"""The command line's choices of learning, inference and network, and health.

Runs are made in this process by `main`. Oracles: what the options are promised to build, NumPy's forward
pass over the stored weights with the multipliers of the parameterizations written out, a run never
interrupted, and the digest of every file of a folder that must not change.
"""

import contextlib
import io
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import pcflax as pc
from pcflax.cli.build import build_inference, build_learning, build_network
from pcflax.cli.main import main
from pcflax.cli.options import TrainOptions, read_config
from pcflax.data.sources.digits import read_digits
from pcflax.layers import Evidence
from tests.cli.test_main import digest, error, files_of, last_eval, output, rows_of
from tests.references import numpy_pc as reference

pytestmark = pytest.mark.slow

# 64 -> 8 -> 10 and three evaluations: enough to run, not to learn much.
TINY = ["--num-steps", "3", "--eval-every", "1", "--widths", "8", "--validation", "0"]


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    """Tables are not cut, whatever terminal the tests run in."""
    monkeypatch.setenv("COLUMNS", "400")


def train(run_dir, *options):
    """A tiny run; of two equal options the last counts."""
    main(["train", "--run-dir", str(run_dir), *TINY, *map(str, options)])
    return run_dir


def batches(in_features, out_features):
    """The shapes of a batch that a network is sized for."""
    shapes = (jax.ShapeDtypeStruct((2, n), jnp.float32) for n in (in_features, out_features))
    return Evidence(*shapes)


def strictly(text):
    """JSON as every reader takes it: RFC 8259 has no NaN and no Infinity."""

    def refuse(word):
        raise ValueError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("learning", ["ipc", "fpa", "nudged"])
def test_the_digits_are_learned_with_no_other_option(tmp_path, learning):
    """The claim for each of these rules: above 0.94 with default options."""
    run_dir = tmp_path / "run"
    main(["train", "--run-dir", str(run_dir), "--learning", learning, "--eval-every", "500"])
    assert last_eval(run_dir)["step"] == 500
    assert last_eval(run_dir)["accuracy"] > 0.94


@pytest.fixture(scope="module")
def default_run(tmp_path_factory):
    """Predictive coding by gradient descent."""
    return train(tmp_path_factory.mktemp("default") / "run")


@pytest.fixture(scope="module")
def zil_run(tmp_path_factory):
    """A rule without inference."""
    return train(tmp_path_factory.mktemp("zil") / "run", "--learning", "zil")


def evaluated(run_dir):
    """The energies of a run's evaluations."""
    return [row["eval/energy"] for row in rows_of(run_dir) if "eval/energy" in row]


class TestBuilt:
    """Which objects the words stand for."""

    @pytest.mark.parametrize(
        ("word", "kind"),
        [
            ("pc", pc.learning.PredictiveCoding),
            ("ipc", pc.learning.IncrementalPC),
            ("fpa", pc.learning.FixedPrediction),
            ("meta-pcn", pc.learning.MetaPCN),
            ("alm", pc.learning.AugmentedLagrangian),
            ("zil", pc.learning.ZIL),
            ("nudged", pc.learning.Nudged),
            ("backprop", pc.learning.Backprop),
        ],
    )
    def test_every_rule(self, word, kind):
        rule = build_learning(TrainOptions(learning=word, inference_steps=7))
        assert type(rule) is kind
        if hasattr(rule, "inference"):
            assert type(rule.inference) is pc.inference.GradientDescent
            assert rule.inference.num_steps == 7

    def test_nudging_is_as_told(self):
        rule = build_learning(TrainOptions(learning="nudged", beta=-0.3, centred=True))
        assert (rule.beta, rule.centred, rule.weighted) == (-0.3, True, False)
        assert build_learning(TrainOptions(learning="nudged")).beta == 0.5

    @pytest.mark.parametrize(
        ("word", "kind"),
        [
            ("gradient", pc.inference.GradientDescent),
            ("auto", pc.inference.CurvatureDescent),
            ("chebyshev", pc.inference.Chebyshev),
            ("error-coordinates", pc.inference.ErrorCoordinates),
            ("flow", pc.inference.GradientFlow),
            ("gauss-newton", pc.inference.GaussNewton),
            ("newton", pc.inference.NewtonCG),
            ("output-newton", pc.inference.OutputNewton),
            ("langevin", pc.inference.Langevin),
            ("linear", pc.inference.LinearSolve),
        ],
    )
    def test_every_inference(self, word, kind):
        inference = build_inference(TrainOptions(inference=word, inference_steps=7))
        assert type(inference) is kind
        if word == "error-coordinates":
            assert type(inference.inference) is pc.inference.GradientDescent
            inference = inference.inference
        if hasattr(inference, "num_steps"):
            assert inference.num_steps == 7
        if word == "flow":
            assert inference.max_steps == 7

    @pytest.mark.parametrize("word", ["gradient", "auto", "error-coordinates", "newton", "flow"])
    def test_a_tolerance_makes_the_steps_the_most_that_are_taken(self, word):
        inference = build_inference(TrainOptions(inference=word, inference_steps=7, tolerance=0.25))
        inference = getattr(inference, "inference", inference)
        assert (inference.tolerance, inference.max_steps) == (0.25, 7)

    def test_langevin_is_as_told(self):
        inference = build_inference(
            TrainOptions(inference="langevin", step_size=0.25, temperature=0.5, inference_steps=7)
        )
        assert (inference.step_size, inference.temperature) == (0.25, 0.5)

    def test_step_size_and_momentum_are_gradient_descents(self):
        """Two steps on a constant slope of 1 move by s and by s + m s."""
        inference = build_inference(TrainOptions(step_size=0.25, momentum=0.5))
        optimizer = inference.transformation(["hidden"], ("hidden",))
        slope = {"hidden": jnp.ones(1)}
        state, moved = optimizer.init(slope), []
        for _ in range(2):
            update, state = optimizer.update(slope, state)
            moved.append(float(update["hidden"][0]))
        assert moved == [-0.25, -0.375]


class TestTrains:
    @pytest.mark.parametrize(
        "options",
        [
            ("--learning", "nudged", "--beta", "-0.5", "--inference", "gauss-newton"),
            ("--learning", "ipc", "--inference", "auto"),
            ("--learning", "nudged", "--inference", "error-coordinates", "--momentum", "0.5"),
            ("--inference", "flow", "--tolerance", "0.1"),
            ("--inference", "newton", "--inference-steps", "3"),
            ("--inference", "langevin", "--temperature", "0.1"),
            ("--inference", "linear", "--activation", "identity"),
        ],
        ids=lambda options: "-".join(word.strip("-") for word in options),
    )
    def test_every_choice_lowers_the_energy_in_its_own_way(self, default_run, tmp_path, options):
        """A word that silently stood for the default would end in the default's weights."""
        run_dir = train(tmp_path / "run", *options)
        assert digest(run_dir) != digest(default_run)
        first, _, last = evaluated(run_dir)
        assert last < first

    def test_so_does_zero_divergence_learning(self, default_run, zil_run):
        assert digest(zil_run) != digest(default_run)
        assert evaluated(zil_run)[-1] < evaluated(zil_run)[0]

    @pytest.mark.parametrize("inference", ["flow", "linear"])
    def test_without_hidden_layers_there_is_nothing_to_infer_and_it_trains(
        self, tmp_path, inference
    ):
        """`--widths` with no number is a linear classifier."""
        run_dir = tmp_path / "run"
        main(
            ["train", "--run-dir", str(run_dir), "--num-steps", "1", "--inference", inference]
            + ["--activation", "identity", "--widths"]
        )
        shapes = [
            array.shape for array in pc.load_checkpoint(run_dir).sections["parameters"].values()
        ]
        assert sorted(shapes) == [(10,), (64, 10)]


class TestRefusals:
    """One sentence, exit code 1, and no folder left behind."""

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            (
                "--learning fpa --inference newton",
                "--learning fpa cannot take --inference newton: FixedPrediction follows a vector field",
            ),
            (
                "--learning ipc --inference error-coordinates",
                "--learning ipc cannot take --inference error-coordinates: IncrementalPC expected an "
                "iterative inference algorithm",
            ),
            (
                "--learning ipc --inference flow",
                "--learning ipc cannot take --inference flow: IncrementalPC expected an iterative",
            ),
            (
                "--learning ipc --tolerance 0.1",
                "--learning ipc cannot take --inference gradient --tolerance 0.1: IncrementalPC "
                "expected a fixed num_steps, since the weights move at every step, got a tolerance",
            ),
            (
                "--learning fpa --inference auto",
                "--learning fpa cannot take --inference auto: FixedPrediction follows a vector field that "
                "is the gradient of no energy, so it expected pc.inference.GradientDescent, got Curv",
            ),
            (
                "--inference linear",
                "--inference linear solves linear networks only; add --activation identity (and "
                "--output gaussian), or take --inference newton",
            ),
            (
                "--inference linear --activation identity --output categorical",
                "--inference linear solves linear networks only",
            ),
            ("--learning nudged --beta 0", "Nudged expected a beta that is not 0"),
            ("--inference-steps -1", "expected --inference-steps of at least 0, got -1"),
            ("--tolerance 0", "GradientDescent expected a tolerance above 0, got 0.0"),
            ("--inference langevin --temperature -1", "expected --temperature from 0, got -1.0"),
            ("--step-size 0", "expected --step-size above 0, got 0.0"),
            ("--learning-rate -1", "expected --learning-rate above 0, got -1.0"),
            ("--momentum 1", "expected --momentum from 0 to below 1, got 1.0"),
            ("--step-size hidden* 0.1 foo* 0.2", "has a step size for 'foo*', which fits none"),
            ("--optimizer adm", "expected a name of optax, got 'adm'; did you mean 'adam'?"),
            ("--initializer zero", "got 'zero'; did you mean 'zeros'?"),
        ],
    )
    def test_what_cannot_go_together_is_told(self, tmp_path, capsys, options, text):
        arguments = ["--run-dir", tmp_path / "new", *TINY, *options.split()]
        told = error(capsys, "train", *arguments, code=2)
        assert text in told
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            (
                "--beta 0.3",
                "--beta does nothing with --learning pc; leave it out, or take --learning",
            ),
            ("--learning zil --centred", "--centred does nothing with --learning zil"),
            ("--learning zil --inference newton", "--inference does nothing with --learning zil"),
            ("--temperature 0.5", "--temperature does nothing with --inference gradient"),
            (
                "--learning zil --burn-in 3",
                "--burn-in does nothing with --learning zil; leave it out",
            ),
            ("--inference auto --step-size 0.1", "--step-size does nothing with --inference auto"),
            (
                "--inference newton --momentum 0.5",
                "--momentum does nothing with --inference newton",
            ),
            (
                "--inference langevin --tolerance 0.1",
                "--tolerance does nothing with --inference langevin",
            ),
        ],
    )
    def test_an_option_that_would_do_nothing_is_told(self, tmp_path, capsys, options, text):
        """Whoever sweeps over it would report that it has no effect."""
        arguments = ["--run-dir", tmp_path / "new", *TINY, *options.split()]
        told = error(capsys, "train", *arguments, code=2)
        assert text in told
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize(
        "options",
        ["--learning hebb", "--inference none", "--parameterization sp", "--beta much"],
    )
    def test_unknown_words_are_wrong_usage(self, tmp_path, capsys, options):
        with pytest.raises(SystemExit) as exit_info:
            main(["train", "--run-dir", str(tmp_path / "new"), *options.split()])
        assert exit_info.value.code == 2
        assert not (tmp_path / "new").exists()


def forward(run_dir, skips):
    """NumPy's predictions of a muPC network with activation first and these skips, and labels.

    a_l is 1/sqrt(width below), with a skip 1/sqrt(width below * depth), and 1/(width below) at the end.
    """
    images, labels = read_digits("test")
    activity = (images.reshape(360, 64) / 16 - 0.3054) / 0.3759
    layers = list(pc.load_checkpoint(run_dir).parameters.values())
    for index in range(len(layers)):
        linear, last = layers[index]["linear"], index == len(layers) - 1
        kernel = linear["kernel"].astype(np.float64)
        below, depth = len(kernel), len(layers) if skips[index] else 1
        factor = 1 / below if last else (below * depth) ** -0.5
        features = activity if index == 0 else np.tanh(activity)
        prediction = factor * features @ kernel + linear["bias"]
        activity = prediction + activity if skips[index] else prediction
    return activity, labels


class TestNetwork:
    def test_skips_order_and_multipliers_are_those_that_were_asked_for(self, tmp_path, capsys):
        """NumPy agrees only with skips between equal widths, and the right a_l at every place."""
        run_dir = train(
            tmp_path / "run", "--widths", 9, 9, 7, "--skip", "--activation-first",
            "--parameterization", "mupc",
        )  # fmt: skip
        prediction, labels = forward(run_dir, (False, True, False, False))
        measured = strictly(output(capsys, "evaluate", run_dir, "--json"))
        assert measured["accuracy"] == np.mean(prediction.argmax(axis=1) == labels)
        energy = 0.5 * ((np.eye(10)[labels] - prediction) ** 2).sum(axis=1).mean()
        assert measured["energy"] == pytest.approx(energy, rel=1e-5)  # float32

    def test_what_is_built_has_them(self):
        options = TrainOptions(
            widths=(9, 9, 7), skip=True, activation_first=True, activation="relu"
        )
        network = build_network(options, batches(9, 7))
        assert network.names == ("hidden_1", "hidden_2", "hidden_3", "output")
        # the ends have no skip, though their widths are equal too
        assert [layer.skip for layer in network.layers] == [False, True, False, False]
        relu = jax.nn.relu
        assert [layer.activation for layer in network.layers] == [None, relu, relu, relu]
        assert all(layer.activation_first for layer in network.layers)

    def test_without_options_it_is_the_notebooks(self):
        network = build_network(TrainOptions(), batches(64, 10))
        assert [layer.skip for layer in network.layers] == [False] * 3
        assert [layer.activation for layer in network.layers] == [jnp.tanh, jnp.tanh, None]
        assert [layer.multiplier for layer in network.layers] == [1.0] * 3
        assert not any(layer.activation_first for layer in network.layers)

    @pytest.mark.parametrize(
        ("word", "kind"),
        [
            ("standard", pc.parameterizations.Standard),
            ("ntk", pc.parameterizations.NTK),
            ("mupc", pc.parameterizations.MuPC),
            ("completep", pc.parameterizations.CompleteP),
        ],
    )
    def test_every_parameterization(self, word, kind):
        network = build_network(TrainOptions(parameterization=word, widths=(8, 7)), batches(64, 10))
        assert [type(layer.parameterization) for layer in network.layers] == [kind] * 3

    def test_identity_is_no_activation(self):
        network = build_network(TrainOptions(activation="identity"), batches(64, 10))
        assert [layer.activation for layer in network.layers] == [None] * 3


# What config.json held before rules, algorithms, parameterizations and health could be chosen.
OLD_KEYS = (
    "data data_dir num_steps batch_size seed widths activation output learning inference_steps "
    "step_size learning_rate eval_every keep_latest"
).split()


def test_a_run_from_before_these_options_resumes_as_it_was(default_run, tmp_path):
    """Results of last year must not need last year's version."""
    run_dir = train(tmp_path / "run", "--num-steps", 2)
    config = json.loads((run_dir / "config.json").read_text())
    assert set(OLD_KEYS) < set(config["options"])
    config["options"] = {name: config["options"][name] for name in OLD_KEYS}
    (run_dir / "config.json").write_text(json.dumps(config))
    main(["train", "--resume", "--run-dir", str(run_dir), "--num-steps", "3"])
    assert read_config(run_dir).validation == 0  # there was none
    assert digest(run_dir) == digest(default_run)
    assert rows_of(run_dir)[-1] == rows_of(default_run)[-1]
    assert read_config(run_dir).inference == "gradient"


def health_rows(run_dir):
    """{step: its row of health}."""
    rows = [
        {name: value for name, value in row.items() if name.startswith("health/")}
        for row in rows_of(run_dir)
    ]
    return {row["step"]: own for row, own in zip(rows_of(run_dir), rows, strict=True) if own}


class TestTrainHealth:
    def test_it_logs_every_layer_and_draws_the_alignment_through_a_resume(self, tmp_path, capsys):
        """A run of two steps, and a third without being told --health or the rule again."""
        options = ("--health", "--learning", "nudged", "--parameterization", "ntk")
        options += ("--step-size", "0.1")  # at the default's it would be told to be backpropagation
        run_dir = train(tmp_path / "run", "--num-steps", 2, *options)
        (first,) = health_rows(run_dir).values()
        for kind in ("alignment", "gradient_norm", "dead", "energy_share"):
            for name in ("hidden_1", "output"):
                assert np.isfinite(first[f"health/{kind}/{name}"])
        before = (run_dir / "alignment.png").read_bytes()
        told = error(capsys, "train", "--resume", "--run-dir", run_dir, "--learning", "pc")
        assert "was started with --learning nudged, got --learning pc; leave the option" in told
        main(["train", "--resume", "--run-dir", str(run_dir), "--num-steps", "3"])
        rows = health_rows(run_dir)
        # a row of training is logged every 50 steps and at the end of a fit
        assert sorted(rows) == [2, 3]
        assert rows[2] == first
        assert rows[3].keys() == first.keys()
        assert rows[3] != first
        assert (run_dir / "alignment.png").read_bytes() != before
        with Image.open(run_dir / "alignment.png") as image:
            image.verify()
            assert image.format == "PNG"
        assert read_config(run_dir).parameterization == "ntk"

    def test_without_it_there_is_nothing_of_it(self, default_run):
        assert health_rows(default_run) == {}
        assert not (default_run / "alignment.png").exists()

    @pytest.mark.filterwarnings("default")
    def test_a_run_that_is_backpropagation_is_told_on_the_way(self, tmp_path, capsys):
        train(tmp_path / "run", "--health", "--num-steps", 1)
        assert "warning: at step 1 inference closes " in (told := capsys.readouterr().err)
        assert "so this is close to backpropagation" in told

    def test_it_cannot_be_turned_on_halfway(self, default_run, capsys):
        told = error(capsys, "train", "--resume", "--run-dir", default_run, "--health")
        assert "was started with --health False, got --health True; leave the option out" in told


def inspected(run_dir, *options):
    """What `inspect --health --json` prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        main(["inspect", str(run_dir), "--health", "--json", *map(str, options)])
    return strictly(out.getvalue())


@pytest.fixture(scope="module")
def record(default_run):
    """The health of a checkpoint before the last, as JSON."""
    return inspected(default_run, "--step", 2)


def numpy_health(run_dir, step):
    """(cosines, gap closed) of the default rule on the first 64 training digits, all in NumPy."""
    stored = pc.load_checkpoint(run_dir, step=step).parameters
    layers = [
        reference.ReferenceLayer(linear["kernel"], linear["bias"], activation=activation)
        for linear, activation in (
            (stored["hidden_1"]["linear"], "tanh"),
            (stored["output"]["linear"], "identity"),
        )
    ]
    batch = next(iter(pc.data.load("digits", batch_size=64, seed=0)))
    inputs, targets = np.asarray(batch.inputs), np.asarray(batch.targets)
    start = [*reference.feedforward(layers, inputs)[:-1], targets]
    free = [True, False]
    ended, totals = reference.infer(layers, inputs, start, free, 0.003125, 20)
    _, settled = reference.infer(layers, inputs, start, free, 0.3, 400)
    own = reference.parameter_gradients(layers, inputs, ended)
    other = reference.backprop_gradients(layers, inputs, targets)
    cosines = []
    for pair in zip(own, other, strict=True):
        left, right = (np.concatenate([np.ravel(part) for part in parts]) for parts in pair)
        cosines.append(left @ right / np.linalg.norm(left) / np.linalg.norm(right))
    first, last, least = totals[0].mean(), totals[-1].mean(), settled[-1].mean()
    return cosines, (first - last) / (first - least)


class TestInspectHealth:
    def test_json_holds_what_numpy_finds_at_the_stored_weights(self, default_run, record):
        assert record["step"] == 2
        cosines, closed = numpy_health(default_run, step=2)
        names = ("hidden_1", "output")
        for name, cosine in zip(names, cosines, strict=True):
            assert record["credit"]["cosine"][name] == pytest.approx(cosine, abs=1e-4)  # float32
            assert record["dead"][name] == 0.0
        assert record["inference"]["gap_closed"] == pytest.approx(closed, rel=1e-3)
        assert sum(record["inference"]["energy_share"].values()) == pytest.approx(1)
        assert 0.01 < closed < 0.5
        assert record["summary"].startswith(f"inference closes {closed:.1%} of the energy gap")

    def test_it_prints_the_same_with_a_sentence_for_each_layer(self, default_run, record, capsys):
        before = files_of(default_run)
        printed = output(capsys, "inspect", default_run, "--health", "--step", 2)
        assert files_of(default_run) == before
        assert "health at step 2, on 64 training examples" in printed
        for name, sentence in record["sentences"].items():
            (line,) = re.findall(rf"^. {name} .*$", printed, re.MULTILINE)
            assert f" {record['credit']['cosine'][name]:.3f} " in line
            assert f" {record['displacement'][name]:.3f} " in line
            assert f" {record['credit']['norm'][name]:.2e} " in line
            assert f" {record['inference']['layer_gap_closed'][name]:.1%} " in line
            assert f" {record['inference']['energy_share'][name]:.1%} " in line
            assert f" {sentence} " in line
        assert record["summary"] in printed
        limit = 2 / record["inference"]["largest_eigenvalue"]
        assert f"(stable below {limit:.3g})" in printed

    def test_a_rule_without_inference_leaves_its_numbers_out(self, zil_run):
        record = inspected(zil_run)
        assert record["inference"] is None
        assert record["credit"]["cosine"]["total"] == pytest.approx(1)
        assert record["summary"].startswith("ZIL does no inference on the energy")

    def test_what_diverges_is_valid_json_too(self, tmp_path, capsys):
        """Who looks for the cause of a run that failed gets energies beyond float32."""
        run_dir = tmp_path / "run"
        options = ["--learning-rate", "0.3", "--step-size", "0.7", "--activation", "relu"]
        told = error(capsys, "train", "--run-dir", run_dir, *TINY, *options, "--widths", "16")
        assert "the last good checkpoint is " in told
        record = inspected(run_dir)
        assert record["summary"].startswith("inference diverges")
        assert record["inference"]["energy"] is None

    def test_a_folder_without_a_run_or_a_step_is_told(self, default_run, tmp_path, capsys):
        assert "there is no run in" in error(capsys, "inspect", tmp_path, "--health")
        told = error(capsys, "inspect", default_run, "--health", "--step", 2000)
        assert "there is no checkpoint of step 2000" in told


class TestInspectSummary:
    def test_it_tells_layers_and_what_a_batch_costs(self, default_run, capsys):
        run = read_config(default_run)
        up = 2 * run.batch_size * (64 * 8 + 8 * 10)
        record = strictly(output(capsys, "inspect", default_run, "--summary", "--json"))
        assert record["parameters"] == 64 * 8 + 8 + 8 * 10 + 10
        assert record["costs"]["pass upward"]["flops"] == up
        step = record["costs"]["GradientDescent, a step"]["flops"]
        assert step == 2 * 2 * run.batch_size * 8 * 10
        assert record["costs"]["PredictiveCoding(GradientDescent)"]["flops"] > 20 * step
        printed = output(capsys, "inspect", default_run, "--summary")
        assert "hidden_1" in printed
        assert "GradientDescent, 20 steps" in printed
