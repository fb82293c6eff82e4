"""Scripts and benchmarks that publish figures: whether they measure what they say.

They run in this process. Oracles: schedules written out by hand, the counts that docstrings promise.
"""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from flax import nnx
from rich.console import Console

import pcflax as pc
from benchmarks import adaptive_stop, costs
from benchmarks import inference as benchmark
from scripts import (
    augmented_lagrangian,
    continual,
    cross_library,
    decoder,
    fid_features,
    graph,
    guarded_transformer,
    heteroscedastic,
    hybrid,
    label_to_image,
    mcpc,
    memory,
    mlp_table,
    mutation,
    overview,
    same_lines,
    sequence_memory,
    starts,
    tracking,
    transformer_text,
    tutorials,
    vgg5_cifar10,
)

pytestmark = pytest.mark.slow


class TestMLPTable:
    def test_two_rules_in_the_quick_form_print_a_row_each_above_90_percent(
        self, tmp_path, monkeypatch, capsys
    ):
        path = tmp_path / "new" / "table.json"
        arguments = ["--quick", "--rules", "pc-se,ipc", "--output", str(path)]
        monkeypatch.setattr(sys, "argv", ["mlp_table.py", *arguments])
        mlp_table.main()
        _, *rows = capsys.readouterr().out.splitlines()
        assert [row.split()[0] for row in rows] == ["pc-se", "ipc"]
        results = json.loads(path.read_text())
        assert list(results["rules"]) == ["pc-se", "ipc"]
        for row in rows:
            name, last, spread, chosen, _ = row.split()
            (run,) = results["rules"][name]["runs"]
            assert 90 < run["last"] <= 100
            assert 90 < run["chosen_by_validation"] <= 100
            assert last == f"{run['last']:.2f}"
            assert spread == f"{run['last']:.2f}-{run['last']:.2f}"
            assert chosen == f"{run['chosen_by_validation']:.2f}"
            assert len(run["test"]) == len(run["validation"]) == 10
            # chosen by the held-out examples, and never by the test split
            assert run["chosen_epoch"] - 1 == run["validation"].index(max(run["validation"]))
            assert run["test"][run["chosen_epoch"] - 1] == pytest.approx(
                run["chosen_by_validation"], abs=0.005
            )
            assert run["test"][-1] == pytest.approx(run["last"], abs=0.005)

    def test_differences_are_from_backpropagation_of_the_same_energy(self, capsys):
        """Two epochs; validation prefers the first, so that the two comparisons read other values."""

        def result(*last):
            own = [
                {"seed": seed, "validation": [97.0, 96.0], "test": [95.0 - seed, value]}
                for seed, value in enumerate(last)
            ]
            return {"runs": own}

        names = {
            "pc-ce": (98.0, 98.4, 98.3),
            "pc-se": (98.5, 98.2, 98.7),
            "bp-ce": (98.1, 98.2, 98.2),
        }
        results = {"rules": {name: result(*last) for name, last in names.items()}}
        mlp_table.tell_statistics(results)
        last, chosen = results["comparisons"]
        (one,) = last["contrasts"]  # bp-se was not trained
        assert (one["a"], one["b"]) == ("pc-ce", "bp-ce")
        expected = scipy.stats.ttest_rel(names["pc-ce"], names["bp-ce"])
        assert one["p"] == pytest.approx(expected.pvalue)
        assert chosen["contrasts"][0]["difference"] == 0
        assert chosen["contrasts"][0]["mean_a"] == pytest.approx(94)
        assert "pc-se  test/accuracy 98.47 [" in capsys.readouterr().out

    def test_seeds_are_counted_or_listed(self):
        assert mlp_table.read_seeds("8") == list(range(8))
        assert mlp_table.read_seeds("5,7") == [5, 7]
        assert mlp_table.read_seeds("5,") == [5]

    def test_a_rule_that_is_not_in_the_table_is_wrong_usage(self, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["mlp_table.py", "--rules", "pc-se,hebb"])
        with pytest.raises(SystemExit) as exit_info:
            mlp_table.main()
        assert exit_info.value.code == 2
        assert "unknown rules hebb; known are pc-ce, pc-se, pn" in capsys.readouterr().err

    def test_negative_nudging_grows_by_0_02_an_epoch_and_stops_at_minus_1(self):
        """-0.2, -0.22, ... reaches -1 in epoch 40, counted from 0."""
        rule = mlp_table.build_rule(mlp_table.SETTINGS["nn"], 7)
        assert isinstance(rule, pc.learning.Nudged)
        assert not rule.centred
        for step, beta in {
            0: -0.2, 6: -0.2, 7: -0.22, 13: -0.22, 14: -0.24, 7 * 24: -0.68, 7 * 39: -0.98,
            7 * 40 - 1: -0.98, 7 * 40: -1.0, 7 * 41: -1.0, 7 * 500: -1.0,
        }.items():  # fmt: skip
            assert float(rule.beta(np.int32(step))) == pytest.approx(beta, rel=1e-6), step

    @pytest.mark.parametrize("name", ["pn", "cn"])
    def test_positive_and_centred_nudging_stay_as_they_are(self, name):
        rule = mlp_table.build_rule(mlp_table.SETTINGS[name], 7)
        assert rule.beta == 0.55
        assert rule.centred == (name == "cn")

    @pytest.mark.parametrize(
        ("name", "kind", "num_steps"),
        [
            ("pc-ce", pc.learning.PredictiveCoding, 5),
            ("pc-se", pc.learning.PredictiveCoding, 8),
            ("nn", pc.learning.Nudged, 4),
            ("ipc", pc.learning.IncrementalPC, 8),
            ("bp-ce", pc.learning.Backprop, None),
        ],
    )
    def test_every_row_is_the_rule_it_is_named_after(self, name, kind, num_steps):
        setting = mlp_table.SETTINGS[name]
        rule = mlp_table.build_rule(setting, 7)
        assert type(rule) is kind
        if num_steps is not None:
            assert rule.inference.num_steps == num_steps
        network = mlp_table.build_network(setting, 6, 5, 0)
        energy = {"ce": pc.energies.Categorical}.get(name[-2:], pc.energies.Gaussian)
        assert type(network.layers[-1].energy) is energy
        shapes = [layer.linear.kernel.shape for layer in network.layers]
        assert shapes == [(6, 5), (5, 5), (5, 5), (5, 10)]
        activations = [layer.activation for layer in network.layers]
        assert activations == [mlp_table.ACTIVATIONS[setting.activation]] * 3 + [None]

    def test_the_rate_of_incremental_pc_is_counted_in_weight_steps(self, monkeypatch):
        """Counted in batches, iPC with its 8 weight steps a batch would end after 1/8 of the run."""
        schedules, trainers = [], []
        adamw, trainer = optax.adamw, pc.Trainer
        monkeypatch.setattr(
            mlp_table.optax,
            "adamw",
            lambda s, **options: schedules.append(s) or adamw(s, **options),
        )
        monkeypatch.setattr(
            mlp_table.pc,
            "Trainer",
            lambda *a, **o: trainers.append(trainer(*a, **o)) or trainers[0],
        )
        setting = mlp_table.Setting("ipc", 8, "gelu", 0.01, 0.1, 0.1, 0.35)

        def dataset(count, **options):
            random = np.random.default_rng(0)
            inputs = random.normal(size=(count, 6)).astype(np.float32)
            return pc.data.from_arrays(inputs, np.arange(count) % 10, **options)

        data = {
            "train": lambda seed: dataset(30, batch_size=6, seed=seed),
            "validation": dataset(10, batch_size=10),
            "test": dataset(10, batch_size=10),
        }
        mlp_table.run(setting, 0, 4, 5, data)
        updates = 4 * 5 * 8  # epochs, batches, steps of inference
        (schedule,), (trained,) = schedules, trainers
        counts = {
            int(leaf)
            for leaf in jax.tree.leaves(trained.optimizer_state)
            if np.ndim(leaf) == 0 and np.issubdtype(leaf.dtype, np.integer)
        }
        assert counts == {updates}  # as many as the schedule is made for
        warm = updates // 10
        rate = {
            0: 0.01,  # from the rate itself,
            warm: 0.011,  # in a tenth of the steps to 1.1 times it,
            warm + (updates - warm) // 2: (0.011 + 0.001) / 2,  # half of a cosine's way down
            updates: 0.001,  # to a tenth of it at the last step
        }
        for count, expected in rate.items():
            assert float(schedule(count)) == pytest.approx(expected, rel=1e-5), count


class TestVGG5:
    def test_two_rules_in_the_quick_form_learn_and_are_timed(self, tmp_path, capsys):
        path = tmp_path / "new" / "vgg5.json"
        vgg5_cifar10.main(
            ["--quick", "--rules", "pc-se,bp-se", "--num-steps", "40", "--timing-rounds", "1"]
            + ["--seeds", "0,1", "--output", str(path)]
        )
        rows = capsys.readouterr().out.splitlines()
        assert [row.split()[0] for row in rows] == ["pc-se", "bp-se", "rule"] + 2 * [
            "pc-se"
        ] + 2 * ["bp-se"]
        results = json.loads(path.read_text())
        assert path.with_suffix(".png").stat().st_size > 0
        assert results["timing"]["pc-se"]["num_steps"] == 7
        assert results["timing"]["bp-se"]["times_backprop"] == [1, 1, 1]
        for name in ("pc-se", "bp-se"):
            assert results["timing"][name]["seconds_an_iteration"] > 0
            for seed, run in enumerate(results["rules"][name]["runs"]):
                assert run["seed"] == seed
                assert run["iterations"] == list(range(4, 41, 4))
                assert len(run["losses"]) == len(run["accuracies"]) == 10
                # 0.5 is the loss of predicting nothing, 10 % the accuracy of guessing
                assert run["loss"] == pytest.approx(run["losses"][-1], abs=1e-5)
                assert run["loss"] < run["losses"][0]
                assert run["loss"] < 0.45
                assert run["accuracy"] == pytest.approx(run["accuracies"][-1], abs=0.005)
                assert run["accuracy"] > 20

    @pytest.mark.parametrize(
        ("name", "kind", "num_steps", "step_size", "momentum"),
        [
            ("pc-se", pc.learning.PredictiveCoding, 7, 0.0235, 0.3),
            ("cn", pc.learning.Nudged, 7, 0.0289, 0.1),
            ("bp-se", pc.learning.Backprop, 0, 0, 0),
        ],
    )
    def test_every_row_is_the_rule_it_is_named_after(
        self, name, kind, num_steps, step_size, momentum
    ):
        rule = vgg5_cifar10.build_rule(vgg5_cifar10.SETTINGS[name])
        assert type(rule) is kind
        if name == "cn":
            assert rule.centred
            assert rule.beta == 0.9
        if not num_steps:
            return
        assert rule.inference.num_steps == num_steps
        # two steps of heavy ball by hand, on a gradient of 1
        optimizer = rule.inference.optimizer
        first, state = optimizer.update(1.0, optimizer.init(0.0), 0.0)
        second, _ = optimizer.update(1.0, state, 0.0)
        assert float(first) == pytest.approx(-step_size, rel=1e-6)
        assert float(second) == pytest.approx(-step_size * (1 + momentum), rel=1e-6)

    def test_what_is_chosen_by_is_left_out_of_training(self):
        """The last 200 training images of the quick form; without --validation all are trained on."""
        name, parts = vgg5_cifar10.load(vgg5_cifar10.parse(["--quick", "--validation"]))
        _, whole = vgg5_cifar10.load(vgg5_cifar10.parse(["--quick"]))
        assert name == "digits"
        for part in (0, 1):  # images, labels
            both = np.concatenate([parts["train"][part], parts["test"][part]])
            np.testing.assert_array_equal(both, whole["train"][part])
        assert len(parts["test"][1]) == 200
        assert whole["train"][0].shape[1:] == (16, 16, 1)

    def test_only_training_images_are_augmented(self):
        _, stored = vgg5_cifar10.load(vgg5_cifar10.parse(["--quick"]))
        train = vgg5_cifar10.training_data(stored["train"], 32, 0)
        assert train.reader.augment == (pc.data.Flip(), pc.data.Crop(2))
        test = vgg5_cifar10.test_data(stored["test"], 150)
        assert test.reader.augment == ()
        assert test.num_examples == 150

    def test_a_rule_that_is_not_in_the_table_is_wrong_usage(self, capsys):
        with pytest.raises(SystemExit) as exit_info:
            vgg5_cifar10.main(["--rules", "pc-se,hebb"])
        assert exit_info.value.code == 2
        assert "unknown rules hebb; known are pc-se, cn, bp-se" in capsys.readouterr().err


class TestTransformerText:
    def test_in_the_quick_form_both_rules_learn_and_the_best_inference_is_chosen(
        self, tmp_path, capsys
    ):
        path = tmp_path / "new" / "text.json"
        transformer_text.main(["--quick", "--output", str(path)])
        printed = capsys.readouterr().out
        results = json.loads(path.read_text())
        assert path.with_suffix(".png").stat().st_size > 0
        runs = results["runs"]
        assert list(runs) == ["activities, 8 x 0.1", "activities, 8 x 0.03", "backpropagation"]
        best = min(list(runs)[:2], key=lambda name: runs[name]["validation"])
        assert results["chosen"] == {"activities": best}
        inferred, backprop = runs[best], runs["backpropagation"]
        assert f"--- {best}\n{inferred['after']}" in printed
        for run in runs.values():
            assert run["steps"] == [0, 20, 40]
            assert len(run["steps"]) == len(run["perplexity"]) == len(run["cosine"]) == 3
            # better than the frequencies of the characters: what came before is of use
            assert run["perplexity"][-1] < results["references"]["unigram"] < run["perplexity"][0]
            assert len(run["before"]) == len(run["after"]) == 40
            assert run["before"] != run["after"]
        assert inferred["before"] == backprop["before"]  # one start
        assert inferred["perplexity"][0] == backprop["perplexity"][0]
        for one in backprop["cosine"]:
            assert one["total"] == pytest.approx(1, abs=1e-4)
        assert inferred["cosine"][-1]["total"] < 0.99
        lowest, layer = transformer_text.lowest({"total": 0.1, "first": 0.5, "last": -0.25}).split()
        assert (lowest, layer) == ("-0.25", "(last)")

    def test_references_are_what_counting_by_hand_gives(self):
        """Of 0 0 1 with one more of each: p(0) = 3/5; p(0|0) = p(1|0) = 2/4, p(.|1) = 1/2."""
        train, test = np.array([0, 0, 1]), np.array([0, 1, 1])
        unigram = (3 / 5 * 2 / 5 * 2 / 5) ** (-1 / 3)
        assert transformer_text.unigram_perplexity(train, test, 2) == pytest.approx(unigram)
        assert transformer_text.bigram_perplexity(train, test, 2) == pytest.approx(2)
        train = np.array([0, 1, 0, 1, 0])  # p(1|0) = 3/4, p(0|1) = 3/4
        test = np.array([1, 0, 0])
        bigram = (3 / 4 * 1 / 4) ** (-1 / 2)
        assert transformer_text.bigram_perplexity(train, test, 2) == pytest.approx(bigram)

    def test_sampling_draws_from_the_last_place_of_a_moving_window(self):
        """The same draws by a plain loop over the network's own predictions."""
        network = pc.models.transformer(7, 5, 8, num_heads=2, num_blocks=1, rngs=nnx.Rngs(3))
        window = jnp.array([3, 1, 4, 1, 5])
        key, temperature = jax.random.key(2), 0.5
        found = transformer_text.sample(
            pc.networks.split(network), window, key, num_tokens=6, temperature=temperature
        )
        text = window.tolist()
        for one in jax.random.split(key, 6):
            logits = network.predict(jnp.array([text[-5:]]))[0, -1]
            text.append(int(jax.random.categorical(one, logits / temperature)))
        assert found.tolist() == text[5:]

    def test_without_a_text_it_says_how_to_name_one(self, capsys, monkeypatch):
        monkeypatch.delenv("PCFLAX_TEXT", raising=False)
        with pytest.raises(SystemExit) as exit_info:
            transformer_text.main([])
        assert exit_info.value.code == 2
        assert "give --data text:PATH, set PCFLAX_TEXT" in capsys.readouterr().err
        monkeypatch.setenv("PCFLAX_TEXT", "own.txt")
        assert transformer_text.parse([]).data == "text:own.txt"


@pytest.fixture(scope="module")
def records():
    """What the benchmark of inference measures at depth 4, by algorithm."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "MOST_STEPS", 1000)  # at depth 4 none takes a hundred
        patch.setattr(jax, "clear_caches", lambda: None)  # other tests' programs
        found = benchmark.measure(4, 1, Console(quiet=True))
    return {record["algorithm"]: record for record in found}


class TestInferenceBenchmark:
    def test_every_algorithm_reaches_the_gap(self, records):
        """One that did not would be compared by the seconds it took to fail."""
        assert len(records) == 14
        for record in records.values():
            assert record["depth"] == 4
            assert record["gap"] <= benchmark.GAP
            assert record["steps"] >= 1
            assert 0 < record["seconds"] < record["first_call_seconds"]

    def test_error_coordinates_take_fewer_steps_than_gradient_descent(self, records):
        """The table's claim, here at a depth where it is weakest."""
        steps = {name: record["steps"] for name, record in records.items()}
        assert steps["error coordinates"] < steps["gradient descent"]
        assert steps["error coordinates, auto"] < steps["step_size auto"]
        assert steps["momentum auto"] < steps["gradient descent"]
        assert steps["step_size auto, momentum auto"] < steps["step_size auto"] / 2
        assert steps["sweeps, red-black"] < steps["step_size auto"]
        assert steps["linear solve (linear chain)"] == 1
        assert max(steps["Newton-CG"], steps["Gauss-Newton"]) <= 5


class TestAdaptiveStopBenchmark:
    def test_60_of_64_stop_early_and_4_go_on(self):
        """The cases must be what the docstring says, or their ratios are of something else."""
        network = adaptive_stop.network()
        split = pc.networks.split(network)
        cases = {
            name: adaptive_stop.measure(split, *batch, 1)
            for name, batch in adaptive_stop.batches(network).items()
        }
        assert cases.keys() == {"nothing converges", "most converge"}
        assert cases["nothing converges"]["steps"] == [100] * 64
        steps = np.array(cases["most converge"]["steps"])
        assert (steps[:4] == 100).all()
        assert len(steps) == 64
        assert set(range(10, 31)).issuperset(steps[4:].tolist())  # "some twenty steps"
        for case in cases.values():
            low, high = case["ratio_quartiles"]
            assert low == high == case["ratio"]  # one round
            expected = case["adaptive_seconds"] / case["fixed_seconds"]
            assert case["ratio"] == pytest.approx(expected)


class TestSameLines:
    def test_the_one_with_most_lines_a_second_stays(self):
        lines = {"a": {1, 2}, "b": {1}, "c": {2, 3}, "d": {2}}
        seconds = {"a": 5.0, "b": 1.0, "c": 1.0, "d": 1.0}
        assert same_lines.superfluous(lines, seconds, set()) == ["a", "d"]
        assert same_lines.superfluous(lines, seconds, {"a"}) == ["b", "d"]
        assert same_lines.superfluous({"a": {1}, "b": {1, 2}}, {"a": 0.0, "b": 9.0}, set()) == []

    def test_what_a_run_wrote_is_read_back(self, tmp_path):
        (tmp_path / "small.py").write_text(
            "def small(x):\n    return x\n\n\ndef large(x):\n    return x\n"
        )
        (tmp_path / "test_it.py").write_text(
            "import small, pytest\n\n"
            "class TestIt:\n    @pytest.mark.parametrize('x', [1, 2])\n"
            "    def test_small(self, x):\n        assert small.small(x)\n\n"
            "def test_large():\n    assert small.large(1)\n"
        )
        options = [
            "--cov=small",
            "--cov-context=test",
            "--cov-report=",
            "-o",
            "junit_family=xunit1",
        ]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
            + ["--junitxml=seconds.xml", "test_it.py"],
            cwd=tmp_path,
            env={**os.environ, "COVERAGE_FILE": "lines", "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        names = {"test_it.py::TestIt::test_small", "test_it.py::test_large"}
        found = same_lines.lines_by_test(tmp_path / "lines")
        assert {name: {line for _, line in lines} for name, lines in found.items()} == {
            "test_it.py::TestIt::test_small": {2},
            "test_it.py::test_large": {6},
        }
        assert set(same_lines.seconds_by_test(tmp_path / "seconds.xml")) == names

    def test_each_that_is_left_out_is_there(self):
        """One that was renamed would run again; `scripts/same_lines.py` writes the list anew."""
        for test in same_lines.FILE.read_text().split():
            file, *_, name = test.split("::")
            assert f"def {name}(" in (same_lines.ROOT / file).read_text(), test


class TestMutation:
    CHECKS = mutation.Mutant(
        "x", "checks.py", "def expect_count(", "def expect_number_of(", "test_none_of_this_name.py"
    )

    def judge(self, monkeypatch, capsys, folder, passing, mutant=CHECKS):
        """The exit code and what is printed where the tests' outcomes are these, one after the other."""
        (folder / "pcflax").mkdir(exist_ok=True)
        outcomes = iter(passing)
        monkeypatch.setattr(mutation, "passes", lambda tests, folder: next(outcomes))
        return mutation.judge([mutant], folder), capsys.readouterr().out

    def test_a_fault_that_no_test_sees_is_exit_code_1(self, monkeypatch, capsys, tmp_path):
        assert self.judge(monkeypatch, capsys, tmp_path, [True, True]) == (1, "SURVIVED x\n")
        assert self.judge(monkeypatch, capsys, tmp_path, [True, False]) == (0, "killed   x\n")
        # the copy is as it was
        text = (mutation.ROOT / "pcflax/checks.py").read_text()
        assert (tmp_path / "pcflax/checks.py").read_text() == text

    def test_what_proves_nothing_is_exit_code_2(self, monkeypatch, capsys, tmp_path):
        code, printed = self.judge(monkeypatch, capsys, tmp_path, [False])
        assert (code, "fails without it" in printed) == (2, True)
        gone = dataclasses.replace(self.CHECKS, old="def this_is_no_function(")
        code, printed = self.judge(monkeypatch, capsys, tmp_path, [True], gone)
        assert (code, "is 0 times in checks.py, not once" in printed) == (2, True)

    @pytest.mark.parametrize("mutant", mutation.MUTANTS, ids=lambda mutant: mutant.name)
    def test_every_place_is_there_once_and_so_are_the_tests(self, mutant):
        text = (mutation.ROOT / "pcflax" / mutant.file).read_text()
        assert text.count(mutant.old) == 1
        assert (mutation.ROOT / "tests" / mutant.tests).is_file()

    def test_one_is_killed_by_the_tests_themselves(self, monkeypatch, capsys):
        """A factor of 2 in one energy, whose module of tests takes seconds."""
        assert mutation.main(["--only", "activity decay"]) == 0
        assert capsys.readouterr().out == "killed   activity decay, half dropped\n"

    def test_names_are_listed_and_unknown_ones_refused(self, capsys):
        assert mutation.main(["--list", "--only", "nudged"]) == 0
        assert capsys.readouterr().out.splitlines() == [
            "nudged, away from the target",
            "nudged, not divided by beta",
        ]
        with pytest.raises(SystemExit) as exit_info:
            mutation.main(["--only", "entropy of the universe"])
        assert exit_info.value.code == 2


def run_quickly(script, tmp_path, monkeypatch, *options):
    """A script's quick form; its answers by name."""
    path = tmp_path / "answers.json"
    arguments = [f"{script.__name__}.py", "--quick", "--output", str(path), *options]
    monkeypatch.setattr(sys, "argv", arguments)
    script.main()
    return json.loads(path.read_text())


class TestAnswers:
    def test_labels_of_images_are_inferred(self, tmp_path, monkeypatch):
        found = run_quickly(label_to_image, tmp_path, monkeypatch, "--seeds", "1")
        assert found["label_to_image"]["values"][0] > 75
        assert (tmp_path / "label_to_image.png").stat().st_size > 5000

    def test_guesses_and_inference_agree_on_labels(self, tmp_path, monkeypatch):
        found = run_quickly(hybrid, tmp_path, monkeypatch, "--seeds", "1")
        assert {name for name, answer in found.items() if answer["values"][0] > 70} == set(found)
        assert set(found) == {"amortizer", "hybrid", "hybrid_generator"}
        assert (tmp_path / "hybrid.png").stat().st_size > 5000

    def test_a_memory_recalls_better_than_its_cue(self, tmp_path, monkeypatch, capsys):
        found = run_quickly(memory, tmp_path, monkeypatch, "--seeds", "1")
        data = pc.data.load("digits", batch_size=20, shuffle=False, normalize=False)
        images = np.asarray(next(iter(data)).inputs)
        grey = np.where(np.arange(64) < 32, images, 0.5)
        assert found["memory_half"]["values"][0] < np.mean((grey - images) ** 2) / 1.5
        printed = capsys.readouterr().out
        assert "Hopfield: covered pixels wrong" in printed
        assert (tmp_path / "memory.png").stat().st_size > 5000

    def test_tasks_in_a_row_at_one_learned_accuracy(self, tmp_path, monkeypatch):
        found = run_quickly(continual, tmp_path, monkeypatch, "--seeds", "1")
        for rule in continual.RULES:
            values = {
                part: found[f"continual_{rule}_{part}"]["values"][0]
                for part in ("learned", "class", "task")
            }
            assert values["learned"] > 94
            assert values["class"] < 30 < 85 < values["task"]
        assert (tmp_path / "continual.png").stat().st_size > 5000

    def test_multipliers_beside_backpropagation_and_predictive_coding(self, tmp_path, monkeypatch):
        found = run_quickly(augmented_lagrangian, tmp_path, monkeypatch, "--seeds", "1")
        values = {name: entry["values"][0] for name, entry in found.items()}
        assert set(values) == {
            "alm_backprop",
            *(f"alm{kind}{of}" for kind in ("", "_plain") for of in ("", "_cosine")),
        }
        assert values["alm_plain_cosine"] < values["alm_cosine"] < 1

    def test_starts_and_missing_labels(self, tmp_path, monkeypatch):
        found = run_quickly(starts, tmp_path, monkeypatch, "--seeds", "1")
        values = {name: answer["values"][0] for name, answer in found.items()}
        assert values["starts_classifier_feedforward"] > 80
        assert values["starts_decoder_persistent"] < 0.03  # 0.07 is the variance of the images
        assert "semi_supervised" in values
        assert (tmp_path / "starts.png").stat().st_size > 5000

    def test_a_decoder_explains_images_by_few_numbers(self, tmp_path, monkeypatch):
        found = run_quickly(decoder, tmp_path, monkeypatch, "--seeds", "1")
        data = pc.data.load("digits", split="test", batch_size=360, normalize=False)
        variance = np.var(np.asarray(next(iter(data)).inputs), axis=0).mean()
        assert set(found) == {"decoder_pc", "decoder_ipc"}
        for answer in found.values():
            assert answer["values"][0] < 0.6 * variance
        assert (tmp_path / "decoder.png").stat().st_size > 5000

    def test_samples_are_those_of_a_gaussian(self, tmp_path, monkeypatch, capsys):
        pytest.importorskip("arviz_stats")
        found = run_quickly(mcpc, tmp_path, monkeypatch, "--seeds", "1")
        assert 3.5 < found["mcpc_variance"]["values"][0] < 6
        assert found["mcpc_wasserstein"]["values"][0] < 0.3
        assert "R-hat 1.0" in capsys.readouterr().out

    def test_graphs_with_cycles_learn_by_both_rules(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(graph, "GRAPHS", {"cycle": (graph.cycle_edges, 16)})
        found = run_quickly(graph, tmp_path, monkeypatch, "--seeds", "1")
        assert set(found) == {"graph_cycle", "graph_cycle_implicit"}
        assert all(answer["values"][0] > 25 for answer in found.values())  # chance is 10
        assert "graph_cycle_implicit: " in capsys.readouterr().out

    def test_a_sequence_is_recalled_in_order(self, tmp_path, monkeypatch, capsys):
        found = run_quickly(sequence_memory, tmp_path, monkeypatch, "--seeds", "1")
        assert found["sequence_memory"]["values"][0] < 1e-3  # 0.07 is the variance of the images
        assert capsys.readouterr().out.count("15 of 15 right") == 2
        assert (tmp_path / "sequence_memory.png").stat().st_size > 5000

    def test_linear_systems_and_pendulums_are_followed(self, tmp_path, monkeypatch, capsys):
        found = run_quickly(tracking, tmp_path, monkeypatch, "--seeds", "1")
        names = {"tracking_ratio", "tracking_gain_error", "tracking_learned", "tracking_pendulum"}
        assert set(found) == names
        assert 1 < found["tracking_ratio"]["values"][0] < 1.2  # of 16 sequences of 60 steps
        assert found["tracking_gain_error"]["values"][0] < 1e-6
        assert "us a step" in capsys.readouterr().out
        assert (tmp_path / "tracking.png").stat().st_size > 5000

    def test_predicted_noise_is_scored(self, tmp_path, monkeypatch, capsys):
        found = run_quickly(heteroscedastic, tmp_path, monkeypatch, "--seeds", "1")
        assert set(found) == {"heteroscedastic_correlation", "heteroscedastic_scale"}
        assert 0 < found["heteroscedastic_scale"]["values"][0] < 10
        assert "hidden precision 10000" in capsys.readouterr().out
        assert (tmp_path / "heteroscedastic.png").stat().st_size > 5000
        assert heteroscedastic.score(
            heteroscedastic.true_sd(heteroscedastic.GRID)
        ) == pytest.approx((1, 1))

    def test_a_guarded_run_is_judged_by_its_own_best(self, tmp_path, monkeypatch, capsys):
        assert guarded_transformer.excess([30.0, 12.0, 24.0]) == 100
        monkeypatch.setattr(guarded_transformer, "RATES", (0.1,))
        found = run_quickly(guarded_transformer, tmp_path, monkeypatch)
        assert set(found) == {
            f"guarded_transformer_{way}" for way in ("excess", "default", "unguarded")
        }
        assert min(answer["values"][0] for answer in found.values()) >= 0
        assert "step size 0.005, not held" in capsys.readouterr().out

    def test_distances_of_features_rise_with_noise_and_the_classifier_is_found_again(
        self, tmp_path, monkeypatch, capsys
    ):
        arguments = ["fid_features.py", "--quick", "--cache", str(tmp_path)]
        printed = []
        for _ in range(2):
            monkeypatch.setattr(sys, "argv", arguments)
            fid_features.main()
            printed.append(capsys.readouterr().out.splitlines())
        assert printed[0] == printed[1]
        distances = [float(line.split()[-1]) for line in printed[0][1:]]
        assert distances == sorted(distances)
        assert distances[-1] > 2 * distances[0]


class TestCrossLibrary:
    def run(self, monkeypatch, *arguments):
        monkeypatch.setattr(sys, "argv", ["cross_library.py", "--quick", *arguments])
        cross_library.main()

    def test_the_last_epoch_is_recorded(self, tmp_path, monkeypatch, capsys):
        path = tmp_path / "depth.json"
        self.run(monkeypatch, "--output", str(path))
        (value,) = json.loads(path.read_text())["cross_library_accuracy"]["values"]
        assert 50 < value < 100
        assert capsys.readouterr().out.startswith(f"seed 0: {value:.2f} % after 3 epochs")

    def test_the_choice_sees_no_test_image(self, monkeypatch, capsys):
        images, labels, _, _ = cross_library.load(None, quick=True)
        monkeypatch.setattr(cross_library, "load", lambda *_: (images, labels, None, None))
        monkeypatch.setattr(cross_library, "CANDIDATES", (cross_library.Chosen,))
        self.run(monkeypatch, "--choose", "--epochs", "1")
        assert capsys.readouterr().out.startswith("Chosen: ")

    def test_all_but_output_and_inference_is_the_jobs(self):
        job = cross_library.JOB
        chosen = cross_library.Chosen(job, job.make_parameters(0))
        for own, given in zip(chosen.parameters(), job.make_parameters(0), strict=True):
            np.testing.assert_array_equal(own["kernel"], given["kernel"])
        kept = dataclasses.replace(
            chosen.job,
            num_inference_steps=job.num_inference_steps,
            activity_step_size=job.activity_step_size,
        )
        assert kept == job


class TestCosts:
    def test_the_quick_form_counts_the_products_of_its_networks(self, tmp_path, monkeypatch):
        path = tmp_path / "costs.json"
        monkeypatch.setattr(sys, "argv", ["costs.py", "--quick", "--output", str(path)])
        costs.main()
        chain, deep = json.loads(path.read_text())["networks"].values()
        step = chain["costs"]["gradient descent, a step"]["flops"]
        assert step == 2 * 2 * 64 * (8 * 8 + 8 * 10)
        upward = deep["costs"]["pass upward"]["flops"]
        assert upward == 2 * 64 * (784 * 6 + 2 * 6 * 6 + 6 * 10)


class TestOverview:
    def test_the_picture_is_drawn_and_every_rule_learns(self, tmp_path, monkeypatch, capsys):
        path = tmp_path / "overview.png"
        arguments = ["--num-steps", "40", "--output", str(path)]
        monkeypatch.setattr(sys, "argv", ["overview.py", *arguments])
        assert overview.main() == 0
        lines = [line.split(": ") for line in capsys.readouterr().out.splitlines()]
        assert [name for name, _ in lines] == list(overview.RULES)
        assert all(float(told.split()[0]) > 50 for _, told in lines)  # chance is 10
        assert path.stat().st_size > 5000


class TestTutorials:
    """The pages themselves run in `test_docs.py`."""

    def test_code_stands_where_the_page_has_it(self):
        text = "# A\n\n```python\na = 1\n```\n\n```python\nb = a / 0\n```\n"
        assert tutorials.program(text).splitlines() == [
            "",
            "",
            "",
            "a = 1",
            "",
            "",
            "",
            "b = a / 0",
            "",
        ]

    def test_a_figure_is_what_a_page_draws_and_shows_and_is_published_small(self):
        drawn = set()
        for path in (tutorials.ROOT / "docs/tutorials").glob("*.md"):
            names = tutorials.figures(path.read_text())
            assert set(names).isdisjoint(drawn), path
            drawn |= set(names)
            for name in names:
                size = (tutorials.ROOT / "docs/images" / name).stat().st_size
                assert size <= tutorials.MOST_BYTES, name
        published = {path.name for path in (tutorials.ROOT / "docs/images").glob("tutorial_*")}
        assert drawn == published

    @pytest.mark.parametrize(
        ("code", "sentence"),
        [
            ("raise SystemExit(3)", "page.md ended with exit code 3"),
            ('figure.savefig("a.png") if 0 else None', "page.md shows a.png and did not draw it"),
            (
                'open("a.png", "wb").write(bytes(80_001))  # .savefig("a.png")',
                "80001 bytes, above 80000",
            ),
        ],
    )
    def test_a_page_that_breaks_its_word_is_told(self, tmp_path, code, sentence):
        page = tmp_path / "page.md"
        page.write_text(f"![a picture](../images/a.png)\n\n```python\n{code}\n```\n")
        with pytest.raises(SystemExit, match=sentence):
            tutorials.execute(page, None, short=True)

    def test_a_page_is_told_that_it_runs_in_the_short_form_and_its_figure_is_kept(self, tmp_path):
        page = tmp_path / "page.md"
        code = (
            'import os\nopen("a.png", "w").write(os.environ["PCFLAX_SHORT"])  # .savefig("a.png")'
        )
        page.write_text(f"![a picture](../images/a.png)\n\n```python\n{code}\n```\n")
        assert tutorials.execute(page, tmp_path, short=True) > 0
        assert (tmp_path / "a.png").read_text() == "1"

    def test_a_page_that_is_not_there_is_wrong_usage(self, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["tutorials.py", "deep"])
        with pytest.raises(SystemExit) as exit_info:
            tutorials.main()
        assert exit_info.value.code == 2
        assert "unknown pages deep; known are both_ways" in capsys.readouterr().err
