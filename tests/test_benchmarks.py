"""The benchmark: contenders must do one job, counts and ratios must be right, pages must hold the results.

Oracles: one contender against another, closed-form counts of operations, ratios worked out by hand.
"""

import argparse
import dataclasses
import importlib
import json
import math
import pathlib
import re
import statistics
import subprocess
import sys
from typing import ClassVar

import numpy as np
import pytest
import scipy.stats
from rich.console import Console

from benchmarks import (
    depth,
    floor,
    growth,
    guard,
    on_paper,
    page,
    peers,
    records,
    replicas,
    suite,
    tables,
    time_to_accuracy,
)
from benchmarks.answers import record_answer
from benchmarks.jobs import JOBS, Job, Unsupported
from benchmarks.worker import Worker
from scripts import mlp_table

pytestmark = [
    pytest.mark.slow,
    pytest.mark.promotes("the other contenders are written for jax as it comes"),
]
ROOT = pathlib.Path(__file__).resolve().parent.parent
# Unequal widths; float32, and Adam turns rounding of tiny gradients into differences near 1e-4.
SMALL = {"batch_size": 8, "num_inference_steps": 6, "activity_step_size": 0.05}
SMALL_JOBS = {
    "tanh": Job("tanh", widths=(12, 9, 7, 4), **SMALL),
    "sigmoid, decay": Job(
        "sigmoid",
        widths=(12, 9, 7, 4),
        activation="sigmoid",
        weight_decay=1e-2,
        decay=0.5,
        decay_every=2,
        **SMALL,
    ),
    "residual": Job(
        "residual",
        model="residual",
        widths=(12, 9, 9, 9, 9, 4),
        activation="relu",
        batch_size=8,
        num_inference_steps=12,
        activity_step_size=0.3,
        learning_rate=0.01,
    ),
    "vgg5": Job(
        "vgg5",
        model="vgg5",
        widths=(3, 4, 5, 6, 7, 10),
        activation="gelu",
        batch_size=4,
        num_inference_steps=12,
        activity_step_size=0.2,
        weight_decay=1e-3,
    ),
}


def contender(module, job):
    return importlib.import_module(f"benchmarks.contenders.{module}").Contender(
        job, job.make_parameters(1)
    )


def trained(module, job):
    """Parameters after five batches in two calls, which must go on with each other."""
    made = contender(module, job)
    inputs, targets = job.make_batches(5, 0)
    made.run(inputs[:2], targets[:2])
    made.run(inputs[2:], targets[2:])
    return made.parameters()


def differences(left, right):
    return [np.abs(a[name] - b[name]).max() for a, b in zip(left, right, strict=True) for name in a]


class TestContenders:
    @pytest.mark.parametrize("name", SMALL_JOBS)
    def test_ours_ends_where_bare_jax_does(self, name):
        job = SMALL_JOBS[name]
        start, expected = job.make_parameters(1), trained("bare_scan", job)
        assert max(differences(trained("pcflax", job), expected)) < 1e-4
        assert min(differences(expected, start)) > 1e-3  # everything has learned

    @pytest.mark.parametrize("module", ["notebook_loop", "notebook_equinox"])
    def test_the_notebook_loops_end_there_too(self, module):
        job = SMALL_JOBS["tanh"]
        assert max(differences(trained(module, job), trained("bare_scan", job))) < 3e-4

    @pytest.mark.parametrize("module", ["notebook_loop", "notebook_equinox", "flax_backprop"])
    def test_what_cannot_be_expressed_is_refused_with_a_reason(self, module):
        job = dataclasses.replace(SMALL_JOBS["tanh"], learns=False)
        with pytest.raises(Unsupported, match=r"alone|no inference"):
            contender(module, job)

    def test_backprop_is_another_rule(self):
        job = SMALL_JOBS["tanh"]
        assert max(differences(trained("flax_backprop", job), trained("bare_scan", job))) > 1e-3

    @pytest.mark.parametrize("name", SMALL_JOBS)
    def test_they_predict_the_same(self, name):
        job = SMALL_JOBS[name]
        inputs = job.make_batches(1, 2)[0][0]
        outputs = [
            contender(module, job).predict(inputs)
            for module in ("bare_scan", "pcflax", "flax_backprop")
        ]
        np.testing.assert_allclose(outputs[1], outputs[0], atol=1e-5)
        np.testing.assert_allclose(outputs[2], outputs[0], atol=1e-5)

    @pytest.mark.parametrize("module", ["bare_scan", "pcflax"])
    def test_inference_alone_leaves_the_parameters(self, module):
        job = dataclasses.replace(SMALL_JOBS["tanh"], learns=False)
        assert max(differences(trained(module, job), job.make_parameters(1))) == 0

    def test_batches_of_another_size_are_refused(self):
        job = SMALL_JOBS["tanh"]
        inputs, targets = job.make_batches(2, 0)
        with pytest.raises(ValueError, match=r"inputs: expected shape \(2, 8, 12\)"):
            contender("pcflax", job).run(inputs[:, :4], targets)

    def test_every_adapter_of_a_peer_has_its_pinned_requirements(self):
        for peer in peers.PEERS:
            assert (ROOT / f"benchmarks/contenders/{peer}.py").exists()
            first, *lines = (ROOT / f"benchmarks/requirements/{peer}.txt").read_text().splitlines()
            assert re.fullmatch(r"# python 3\.\d+", first)
            packages = [line for line in lines if line and not line.startswith("#")]
            assert packages
            for line in packages:
                assert "==" in line or re.search(r"@[0-9a-f]{7,40}$", line), line


class TestJobs:
    def test_the_rate_falls_in_stairs(self):
        job = SMALL_JOBS["sigmoid, decay"]
        rates = [job.learning_rate_at(iteration) for iteration in range(5)]
        assert rates == [1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4]

    def test_an_epoch_holds_every_example_once_but_for_the_remainder(self):
        job = Job("x", widths=(2, 3, 4), batch_size=4)
        images = np.arange(22, dtype=np.float32).reshape(11, 2)
        labels = np.arange(11) % 4
        inputs, targets = job.epoch(images, labels, seed=0, number=0)
        assert inputs.shape == (2, 4, 2)
        seen = inputs[..., 0].ravel() / 2
        assert len(set(seen)) == 8
        assert np.array_equal(np.argmax(targets, -1).ravel(), seen % 4)
        assert not np.array_equal(inputs, job.epoch(images, labels, 0, 1)[0])


class TestFloor:
    @pytest.mark.parametrize("steps", [2, 7])  # of one step XLA makes no loop, and merges it
    def test_products_are_those_of_the_algorithm(self, steps):
        """Start, T steps up and down above the clamped layer, learning; XLA lifts the first out."""
        job = Job("x", widths=(20, 12, 16, 5), batch_size=8, num_inference_steps=steps)
        cost = floor.count(floor.compiled_step(job))
        flops = sum(times * 2 * np.prod(sizes) for (_, *sizes), times in cost.products.items())
        first, second, third = 20 * 12, 12 * 16, 16 * 5
        start, learning = first + second + third, first + 2 * (second + third)
        # the start's prediction of the output is not needed where z_L is clamped
        expected = start - third + steps * 2 * (second + third) + learning
        assert flops == 2 * 8 * expected

    def test_convolutions_count_their_windows(self):
        job = dataclasses.replace(SMALL_JOBS["vgg5"], learns=False, num_inference_steps=0)
        cost = floor.count(floor.compiled_step(job))
        found = sum(
            times * size for (kind, size, *_), times in cost.products.items() if kind[0] == "c"
        )
        side, expected = 32, 0
        for below, above in ((3, 4), (4, 5), (5, 6), (6, 7)):
            expected += 2 * 4 * side * side * 9 * below * above
            side //= 2
        assert found == expected

    def test_a_program_moves_at_least_what_goes_in_and_out(self):
        job = SMALL_JOBS["tanh"]
        parameters = sum(leaf.nbytes for layer in job.make_parameters(0) for leaf in layer.values())
        assert floor.count(floor.compiled_step(job)).bytes > 6 * parameters  # Adam's two moments


class TestWorker:
    def test_it_answers_as_the_suite_asks(self):
        job = dataclasses.replace(JOBS["tiny"], iterations=5)
        found = suite.time_job(job, ["pcflax", "bare_scan", "notebook_loop"], 3, lambda text: None)
        assert set(found["contenders"]) == {"pcflax", "bare_scan", "notebook_loop"}
        for record in found["contenders"].values():
            assert len(record["seconds"]) == 3
            assert min(record["seconds"]) > 0
            assert record["memory_peak"] >= record["memory_before"] > 1e7
            assert record["versions"]["jax"]
        low, middle, high = suite.ratios(found, "pcflax")
        assert low == middle == high == 1

    def test_what_cannot_run_is_named_with_the_reason(self, monkeypatch, tmp_path):
        monkeypatch.setattr(peers, "FOLDER", tmp_path)
        (tmp_path / "pcx").mkdir()
        (tmp_path / "pcx/failed.txt").write_text("not installed: no network\n")
        job = dataclasses.replace(JOBS["inference"], iterations=2)
        found = suite.time_job(job, ["pcx", "fabricpc", "flax_backprop"], 1, lambda text: None)
        assert found["missing"] == {
            "pcx": "not installed: no network",
            "fabricpc": "not installed: make bench-peers",
            "flax_backprop": "backpropagation has no inference",
        }
        assert found["contenders"] == {}

    def test_alone_it_prints_one_json_object(self, tmp_path):
        suite.write_data(tmp_path / "digits.npz", "digits", None)
        command = "benchmarks/worker.py bare_scan --job tiny --iterations 5 --rounds 2 --epochs 2"
        done = subprocess.run(
            [sys.executable, *command.split(), "--data", str(tmp_path / "digits.npz")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        record = json.loads(done.stdout)
        assert record["name"].startswith("bare jax")
        assert len(record["seconds_an_iteration"]) == 2
        assert [point["iteration"] for point in record["curve"]] == [44, 88]
        assert record["curve"][-1]["accuracy"] > 70

    def test_an_epoch_in_parts_is_the_same_epoch(self, tmp_path):
        suite.write_data(tmp_path / "digits.npz", "digits", None)
        ends = []
        for parts in (1, 4):
            worker = Worker("bare_scan", JOBS["tiny"])
            worker.load(str(tmp_path / "digits.npz"))
            curve = worker.epoch(0, parts)["curve"]
            assert len(curve) == parts
            ends.append(curve[-1]["accuracy"])
        assert ends[0] == ends[1]


class TestAccuracyInTurns:
    OPTIONS = argparse.Namespace(epochs=4, target=98.0, budget=10.0, parts_of_epoch=1)

    class Process:
        """Learns as its name says: accuracy by epoch, or a fault."""

        about: ClassVar = {"name": "one", "rule": "pc"}
        asked: ClassVar[list] = []
        closed: ClassVar[list] = []

        def __init__(self, contender, job, seed):
            if contender == "absent":
                raise suite.ContenderError("not installed")
            self.contender = contender

        def ask(self, command, **arguments):
            if command == "load":
                return {}
            number = arguments["number"]
            self.asked.append((self.contender, number))
            if self.contender == "breaks" and number:
                raise suite.ContenderError("ended")
            seconds = 6.0 if self.contender == "slow" else 1.0
            accuracy = 98.5 if (self.contender, number) == ("quick", 1) else 90.0 + number
            return {"curve": [{"iteration": number + 1, "seconds": seconds, "accuracy": accuracy}]}

        def close(self):
            self.closed.append(self.contender)

    def test_each_has_an_epoch_in_turn_until_it_is_there_or_has_used_its_seconds(self, monkeypatch):
        monkeypatch.setattr(suite, "Process", self.Process)
        names = ["absent", "quick", "slow", "breaks", "steady"]
        record = suite.accuracy(JOBS["tiny"], names, "data", self.OPTIONS, lambda _: None)
        assert self.Process.asked == [
            *[(name, 0) for name in names[1:]],
            *[(name, 1) for name in names[1:]],
            ("steady", 2),
            ("steady", 3),
        ]
        assert record["missing"] == {"absent": "not installed", "breaks": "ended"}
        seconds = {
            name: [point["seconds"] for point in found["curve"]]
            for name, found in record["contenders"].items()
        }
        assert seconds == {"quick": [1, 2], "slow": [6, 12], "steady": [1, 2, 3, 4]}
        assert self.Process.closed == ["quick", "slow", "steady"]


def record_of(**seconds):
    """A results file with one job."""
    contenders = {
        name: {"name": name, "rule": "pc", "seconds": times} for name, times in seconds.items()
    }
    return {"jobs": {"job": {"contenders": contenders}}}


class TestSuite:
    def test_ratios_are_within_rounds(self):
        record = record_of(pcflax=[1.0, 2.0, 4.0], other=[3.0, 4.0, 4.0])["jobs"]["job"]
        assert suite.ratios(record, "other") == (1.0, 2.0, 3.0)

    def test_two_runs_agree_where_each_median_is_in_the_others_range(self, capsys):
        from rich.console import Console

        one = record_of(pcflax=[1.0, 1.0, 1.0], other=[1.9, 2.0, 2.1])
        near = record_of(pcflax=[1.0, 1.0, 1.0], other=[1.95, 2.05, 2.2])
        far = record_of(pcflax=[1.0, 1.0, 1.0], other=[2.5, 2.6, 2.7])
        assert suite.agreement(near, one, Console())
        assert not suite.agreement(far, one, Console())
        assert "DIFFERS" in capsys.readouterr().out

    def test_a_peer_that_cannot_be_installed_leaves_its_reason(self, monkeypatch, tmp_path, capsys):
        monkeypatch.setattr(peers, "FOLDER", tmp_path)
        monkeypatch.setattr(peers.shutil, "which", lambda name: None)
        monkeypatch.setattr(peers, "find_python", lambda version: None)
        monkeypatch.setattr(sys, "argv", ["peers.py", "jpc"])
        peers.main()
        assert "no Python 3." in capsys.readouterr().out
        assert "no Python 3." in peers.why_missing("jpc")

    def test_a_failing_command_is_told_by_its_error(self):
        with pytest.raises(RuntimeError, match=r"^ERROR: no such package$"):
            peers.run(
                sys.executable,
                "-c",
                "import sys; sys.exit('WARNING: x\\nERROR: no such package\\nnote: y')",
            )


class TestGuard:
    @pytest.mark.parametrize(
        ("ratios", "code"), [([1.1], 0), ([1.6, 1.2], 0), ([1.6, 1.5, 1.7], 1)]
    )
    def test_the_least_of_three_counts(self, monkeypatch, ratios, code):
        left = list(ratios)
        notebook = JOBS["notebook"]
        monkeypatch.setattr(
            guard, "measure", lambda job, *a: left.pop(0) if job is notebook else 1.0
        )
        monkeypatch.setattr(guard, "measure_first_call", lambda: (1.0, 1.0))
        monkeypatch.setattr(guard, "measure_imports", lambda: 1.0)
        monkeypatch.setattr(sys, "argv", ["guard.py"])
        assert guard.main() == code
        assert left == []

    @pytest.mark.parametrize("kind", ["first call", "memory", "import"])
    def test_each_ratio_has_a_margin(self, monkeypatch, capsys, kind):
        ratios = dict.fromkeys(("first call", "memory", "import"), 1.0) | {kind: 9.0}
        monkeypatch.setattr(guard, "measure", lambda *a: 1.0)
        monkeypatch.setattr(
            guard, "measure_first_call", lambda: (ratios["first call"], ratios["memory"])
        )
        monkeypatch.setattr(guard, "measure_imports", lambda: ratios["import"])
        monkeypatch.setattr(sys, "argv", ["guard.py"])
        assert guard.main() == 1
        assert f"{kind}: 9.00 times bare jax, ABOVE the margin" in capsys.readouterr().out

    def test_it_measures_both(self):
        job = dataclasses.replace(JOBS["tiny"], widths=(64, 8, 10))
        assert 0.01 < guard.measure(job, 5, 2) < 1000


class TestTimeToAccuracy:
    POINTS = (
        {"iteration": 25, "seconds": 0.5, "accuracy": 94.0},
        {"iteration": 50, "seconds": 1.0, "accuracy": 95.5},
        {"iteration": 75, "seconds": 1.5, "accuracy": 95.0},
    )

    def test_the_first_point_counts(self):
        assert time_to_accuracy.reached(list(self.POINTS), 95.0)["iteration"] == 50
        assert time_to_accuracy.reached(list(self.POINTS), 98.0) is None

    def test_candidates_are_ordered_by_the_higher_accuracy_first(self):
        slow = [{"seconds": 9.0, "accuracy": 98.0}]
        assert time_to_accuracy.order(slow) < time_to_accuracy.order(list(self.POINTS))
        assert time_to_accuracy.order(list(self.POINTS)) < time_to_accuracy.order([])

    def test_the_comparison_counts_compilation_apart(self):
        record = {
            "notebook": [{"seconds": 8.0, "accuracy": 95.0}],
            "notebook_compile": [1.0],
            "fast": [{"seconds": 0.4}],
            "fast_compile": [0.5],
        }
        text = time_to_accuracy.sentence(record)
        assert "20.0 times sooner" in text
        assert "it is 10.0 times" in text
        record["fast"] = [None]
        assert "did not reach" in time_to_accuracy.sentence(record)

    def test_every_rule_trains(self):
        settings = {
            name: dataclasses.replace(setting, batch_size=32)
            for name, setting in (time_to_accuracy.RULES | time_to_accuracy.FIXED).items()
        }
        import pcflax as pc

        whole, test = pc.data.load("digits"), pc.data.load("digits", split="test", batch_size=360)

        def data(batch_size, seed):
            return time_to_accuracy.replaced(whole, batch_size=batch_size, seed=seed)

        for name, setting in settings.items():
            found = time_to_accuracy.train(setting, data, test, 0, 25)
            assert found["points"][0]["iteration"] == 25, name
            assert found["points"][0]["accuracy"] > 50, name


class TestDepth:
    def test_a_mark_counts_where_it_is_held_to_twice_as_many_steps(self):
        """A first crossing would say 2: there it is touched, and lost again."""
        accuracies = {1: 50.0, 2: 80.0, 4: 79.0, 8: 85.0, 16: 86.0, 32: 60.0}
        assert depth.target_steps(accuracies, 80.0) == 8
        assert depth.target_steps(accuracies, 90.0) is None

    def test_the_exponent_is_the_slope_of_logarithms(self):
        assert depth.exponent({4: 2 * 4**1.5, 16: 2 * 16**1.5, 64: 2 * 64**1.5}) == pytest.approx(
            1.5
        )

    def test_every_run_is_kept_and_made_once(self, tmp_path, monkeypatch):
        runs, made = depth.Runs(tmp_path / "runs.json"), []

        def run(name, layers, seed, count, *rest):
            made.append(count)
            accuracy = 90.0 if name == "backprop" else 20.0 * count
            key = {"algorithm": name, "depth": layers, "seed": seed, "steps": count}
            return key | {"accuracy": accuracy}

        monkeypatch.setattr(depth, "run", run)
        arguments = (None, None, 1, Console(quiet=True))
        ladder = [1, 2, 3, 4, 6, 8, 12, 16]
        assert depth.climb("plain", 4, 0, runs, ladder, *arguments) == 6
        assert made == [0, 1, 2, 3, 4, 6, 8, 12]
        again = depth.Runs(tmp_path / "runs.json")
        assert depth.climb("plain", 4, 0, again, ladder, *arguments) == 6
        assert made == [0, 1, 2, 3, 4, 6, 8, 12]
        assert depth.summary(again) == {"plain": {4: [6]}}

    def test_a_seed_that_loses_the_mark_is_told_beside_those_that_hold_it(self, tmp_path):
        runs = depth.Runs(tmp_path / "runs.json")
        one = {"algorithm": "output-newton", "steps": 1}
        for seed, after_two in enumerate([80.0, 80.0, 60.0]):
            found = {"depth": 128, "seed": seed}
            runs.add({"algorithm": "backprop", "steps": 0, "accuracy": 85.0} | found)
            cosines = {"backprop_least": 0.5, "equilibrium_least": 0.7} if seed == 0 else {}
            runs.add(one | {"accuracy": 80.0} | cosines | found)
            runs.add(one | {"steps": 2, "accuracy": after_two} | found)
        assert depth.outcomes(runs)["output-newton"] == {128: {0: 1, 1: 1, 2: None}}
        claims = depth.claims(runs, "output-newton", "best")
        values = {name: found for name, (found, _) in claims.items()}
        assert values == {
            "steps_128_best": [1.0, 1.0],
            "steps_128_best_unreached": [1.0],
            "steps_128_best_cosine_equilibrium": [0.7],
            "steps_128_best_cosine_backprop": [0.5],
        }
        assert tables._depth_cell({0: 1, 1: 1, 2: None}, {}, 2) == "1 (2 of 3)"
        assert tables._depth_cell({0: 1, 1: 1}, {1: 0.123, 2: 5.0}, 2) == "1 (2), 0.123 s"
        assert tables._depth_cell({0: None}, {}, 1024) == "not in 1,024 (1)"
        assert tables._depth_cell({}, {}, 0) == "not run"

    def test_seconds_are_of_what_reached_the_mark(self, tmp_path):
        """More steps take longer; what is below the mark, and depths without runs, are not timed."""
        path = tmp_path / "runs.json"
        runs = depth.Runs(path)
        cells = {"backprop": (0, 90.0), "plain": (64, 85.0), "sequential": (1, 85.0)}
        for name, (steps, accuracy) in (cells | {"chebyshev": (1, 50.0)}).items():
            row = {"algorithm": name, "depth": 4, "seed": 0, "steps": steps}
            runs.add(row | {"accuracy": accuracy})
        names = ["plain", "sequential", "chebyshev"]
        depth.main(["--time", "--quick", "--algorithms", *names, "--output", str(path)])
        again = depth.Runs(path)
        assert again.rows == runs.rows
        assert {row["depth"] for row in again.times} == {4}
        assert {row["algorithm"]: row["steps"] for row in again.times} == {
            name: steps for name, (steps, _) in cells.items()
        }
        seconds = {row["algorithm"]: row["processor_seconds"] for row in again.times}
        assert seconds["plain"] > 2 * seconds["backprop"] > 0

    def test_the_unrolled_network_of_sequential_sweeps_has_the_numbers_of_the_stack(self):
        import pcflax as pc

        inputs = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
        batch = pc.Evidence(inputs, np.eye(10, dtype=np.float32)[:8])
        rule = pc.learning.PredictiveCoding(pc.inference.GradientDescent(0.2, num_steps=8))
        stack, unrolled = (
            depth.alignment(depth.network(name, 5, 6, 0), batch, rule, pc.learning.Backprop())
            for name in ("plain", "sequential")
        )
        assert len(stack) == 4
        np.testing.assert_allclose(unrolled, stack, rtol=1e-4)


class TestPages:
    def test_the_page_of_benchmarks_is_made_of_the_results_byte_for_byte(self):
        text, images = page.page()
        assert page.PAGE.read_text() == text
        again = page.page()
        assert again == (text, images)
        assert images
        for name, data in images.items():
            committed = (page.IMAGES / name).read_bytes()
            version = re.search(rb"Matplotlib v[\d.]+", data)[0]
            if version in committed:  # another version draws other bytes
                assert committed == data, name

    def test_the_page_names_every_contender(self):
        text, _ = page.page()
        for record in json.loads((page.RESULTS / "suite-cpu.json").read_text())["jobs"].values():
            for found in record["contenders"].values():
                assert found["name"] in text
            for name, reason in record["missing"].items():
                assert f"| {name} |" in text
                assert reason in text

    def test_the_page_tells_what_is_recorded_of_the_chosen_output(self):
        answers = {
            "cross_library_accuracy": {"values": [98.25, 98.3]},
            "cross_library_epochs_97.5": {"values": [4, 4]},
            "cross_library_pcx_ratio": {"values": [3.2, 2.9, 3.0]},
        }
        text = page.chosen(answers)
        assert "the last epoch of 2 seeds has 98.25 to 98.30 % of the test images right" in text
        assert "97.5 % is reached in epoch 4;" in text
        assert "takes 3.0 times as long (2.9 to 3.2 in 3 rounds)" in text
        assert "98.0 %" not in text
        first, second, third = (2 * 250 * a * b for a, b in ((784, 512), (512, 512), (512, 10)))
        for steps, told in ((3, "1.6"), (20, "6.1")):
            start, learning = first + second, first + 2 * (second + third)
            flops = start + steps * 2 * (second + third) + learning
            assert f"{flops / 1e9:.1f}" == told
            assert told in text

    def test_the_page_on_choosing_inference_holds_the_results(self):
        """Its tables are those that benchmarks/tables.py makes from the committed JSON."""
        text = tables.PAGE.read_text()
        assert tables.page(text) == text
        assert tables.measured() in text
        assert tables.mlp() in text
        assert tables.costs() in text

    def test_rules_are_told_with_intervals_and_tests_against_backpropagation(self):
        """Three seeds; of pc-ce the last epoch is clearly worse, and validation chose the same value."""
        last = {"pc-ce": (97.0, 97.1, 97.2), "bp-ce": (98.0, 98.2, 98.1)}
        result = {"epochs": 2, "rules": {}}
        for name, values in last.items():
            runs = [
                {
                    "seed": seed,
                    "last": value,
                    "chosen_by_validation": 96.0,
                    "validation": [97.0, 96.0],
                    "test": [96.0, value],
                }
                for seed, value in enumerate(values)
            ]
            result["rules"][name] = {"setting": {"target": 98.5}, "runs": runs}
        alone = tables.mlp(result)
        half = scipy.stats.t.ppf(0.975, 2) * 0.1 / math.sqrt(3)
        interval = f"97.10 [{97.1 - half:.2f}, {97.1 + half:.2f}]"
        assert f"| pc-ce | 98.50 | {interval} | 96.00 [96.00, 96.00] |" in alone
        mlp_table.tell_statistics(result)
        whole = tables.mlp(json.loads(json.dumps(result)))
        assert whole.startswith(alone)
        found = scipy.stats.ttest_rel(last["pc-ce"], last["bp-ce"])
        low, high = found.confidence_interval(0.95)
        deltas = [a - b for a, b in zip(*last.values(), strict=True)]
        mean, effect = statistics.mean(deltas), statistics.mean(deltas) / statistics.stdev(deltas)
        cells = [f"{mean:.2f} [{low:.2f}, {high:.2f}]", f"{effect:.2f}"]
        cells += [f"{found.pvalue:.2g} ({found.pvalue:.2g})", "0.25 (0.25)"]  # of 2^3 signs, two
        row = " | ".join(["pc-ce - bp-ce", *cells, "+0.00 [+0.00, +0.00]", "-", "-", "1 (1)"])
        assert f"| {row} |" in whole
        assert "by the last epoch pc-ce (-1.00) and by the epoch chosen by validation none" in whole
        assert "Ranks of 3 pairs have no p below 0.25" in whole

    def test_the_page_on_reproducing_holds_the_answers(self):
        """Every figure of the answers, with the command that makes it and the script's own claim."""
        text = tables.REPRODUCING.read_text()
        assert tables.page(text, growth=tables.growth(), answers=tables.answers()) == text
        for file in ("answers-cpu.json", "depth-cpu.json"):
            for name, answer in tables.read(file).items():
                median = statistics.median(answer["values"])
                assert f"| `{name}` | {median:.4g} |" in text
                assert f"```bash\n{answer['command']}\n```" in text

    def test_the_page_on_scaling_holds_the_results(self):
        text = tables.SCALING.read_text()
        assert tables.page(text, **tables.scaling_parts()) == text

    def test_the_prose_on_architectures_tells_what_the_results_hold(self):
        text = " ".join((tables.ROOT / "docs/architectures.md").read_text().split())
        ratios = [row["ratio"]["median"] for row in tables.read("stack-cpu.json")["depths"]]
        assert f"takes {min(ratios):.1f} to {max(ratios):.1f} times as long as one by one" in text

        rules = tables.read("mlp_table-mnist-cpu.json")["rules"]
        last = {name: [run["last"] for run in rules[name]["runs"]] for name in ("pn", "nn", "cn")}
        pn, nn, cn = (f"{statistics.mean(values):.2f}" for values in last.values())
        told = f"reaches {pn} %, the negative {nn} and the centred {cn}, means of eight seeds; seed by seed"
        below, half = zip(
            *(self.less(last["pn"], last[other]) for other in ("nn", "cn")), strict=True
        )
        assert f"{told} it is {below[0]} and {below[1]} points below" in text
        assert f"95 % intervals of {half[0]} and {half[1]} to either side" in text

        mupc = tables.read("mupc_depth-mnist-cpu.json")["by_depth"]
        (deep,) = (row for row in mupc if row["depth"] == 128 and row["parameterization"] == "mupc")
        start, end = (math.floor(1e3 * min(deep[f"alignment_{at}"])) for at in ("start", "end"))
        assert (
            f"(cosines of .{start} and more at 128 layers, of .{end} and more after training)"
            in text
        )

        runs = tables.read("transformer_text-cpu.json")["runs"]
        collapsed, kept = runs["errors, 8 x 0.005"], runs["errors, 8 x 0.001"]
        least = min(collapsed["perplexity"])
        at = collapsed["steps"][collapsed["perplexity"].index(least)]
        assert (
            f"a perplexity of {least:.1f} in {at} batches and ends at {collapsed['perplexity'][-1]:.1f} "
            f"after {collapsed['steps'][-1]}, where 0.001 ends at {kept['perplexity'][-1]:.1f}"
            in text
        )

    @staticmethod
    def less(ours, theirs):
        """How far ours are below theirs, by pairs, and half of Student's interval."""
        found = [b - a for a, b in zip(ours, theirs, strict=True)]
        half = (
            scipy.stats.t.ppf(0.975, len(found) - 1)
            * statistics.stdev(found)
            / math.sqrt(len(found))
        )
        return f"{statistics.mean(found):.2f}", f"{half:.2f}"

    def test_no_table_has_a_power_of_ten_in_the_place_of_thousands(self):
        assert [records.digits(value) for value in (0.15432, 999.4, 999.5, 13719.0, 1e6)] == [
            "0.154",
            "999",
            "1,000",
            "13,700",
            "1,000,000",
        ]
        for name in (tables.PAGE, tables.REPRODUCING, tables.SCALING, tables.HOWTO, page.PAGE):
            assert not re.search(r"^\|.*\de\+\d", name.read_text(), flags=re.MULTILINE), name.name

    def test_the_table_of_costs_tells_products_counted_by_hand(self):
        """Of the notebook's network, 64 examples: up by all layers, a step up and down above the first."""
        first, second, third = (2 * 64 * a * b for a, b in ((784, 300), (300, 300), (300, 10)))
        (name, found), _ = tables.read("costs-cpu.json")["networks"].items()
        assert name == "784-300-300-10"
        flops = {label: cost["flops"] for label, cost in found["costs"].items()}
        assert flops["pass upward"] == first + second + third
        assert flops["backpropagation's gradient"] == 2 * first + 3 * (second + third)
        step = 2 * (second + third)
        assert flops["gradient descent, a step"] == step
        learning = first + 2 * (second + third)
        assert flops["predictive coding, 20 steps"] == first + second + 20 * step + learning


class TestRecords:
    @pytest.mark.parametrize(
        "value",
        [
            {},
            [],
            {"a": []},
            [1.5e-300, None, True],
            {"a": [{"b": [[1], [2, "\u00e9\n"]]}] * 30, "c": -0.0},
        ],
        ids=["object", "list", "empty inside", "one row", "nested"],
    )
    def test_what_is_written_is_read_back(self, value, tmp_path):
        path = tmp_path / "new" / "x.json"
        records.write_results(value, path)
        assert json.loads(path.read_text()) == value

    def test_the_rows_of_a_table_are_lines(self):
        rows = [{"step": step, "accuracy": 99.123456789} for step in range(20)]
        lines = records.as_rows({"name": "x", "points": rows}).splitlines()
        assert [json.loads(line.strip(" ,")) for line in lines[3:-2]] == rows

    def test_tuples_are_written_as_the_lists_that_they_are_read_as(self, tmp_path):
        path, row = tmp_path / "rows.json", {"step": 1, "accuracy": 99.123456789}
        records.write_results({"job": {"widths": (784, 10), "rows": (row,) * 5}}, path)
        assert path.read_text() == records.as_rows(json.loads(path.read_text())) + "\n"

    @pytest.mark.parametrize("path", sorted(records.RESULTS.glob("*.json")), ids=lambda p: p.name)
    def test_the_committed_results_are_written_so(self, path):
        text = path.read_text()
        assert text == records.as_rows(json.loads(text)) + "\n"


class TestAnswers:
    def test_an_answer_is_written_beside_those_that_are_there(self, tmp_path):
        path = tmp_path / "answers-cpu.json"
        record_answer("b", [1.0, 2.0], unit="%", command="python scripts/b.py", path=path)
        record_answer("a", [0.5], unit="", command="python scripts/a.py", path=path)
        found = json.loads(path.read_text())
        assert list(found) == ["a", "b"]
        assert found["b"] == {"values": [1.0, 2.0], "unit": "%", "command": "python scripts/b.py"}

    @pytest.mark.parametrize("values", [[], [math.nan]])
    def test_no_number_is_no_answer(self, values, tmp_path):
        with pytest.raises(ValueError, match="answer 'a' expected finite values"):
            record_answer("a", values, unit="", command="", path=tmp_path / "answers.json")
        assert not list(tmp_path.iterdir())


class TestGrowth:
    def test_a_power_law_beside_a_constant_shows_in_the_upper_half(self):
        """What every size costs hides the growth of small ones."""
        sizes = [1, 4, 16, 64, 256, 1024]
        costs = [max(50.0, 0.1 * size**1.5) for size in sizes]
        assert growth.exponent(sizes, costs) == pytest.approx(1.5)
        assert growth.exponent([3, 12], [2.0, 4.0]) == pytest.approx(0.5)

    def test_memory_is_the_slope_after_the_first_quarter(self):
        marks = [(count, 1e4 * min(count, 20) + 3.0 * count) for count in range(0, 101, 5)]
        assert growth.added(marks) == pytest.approx(3)

    def test_the_quick_form_writes_costs_and_their_exponents(self, tmp_path, monkeypatch):
        path = tmp_path / "growth.json"
        parts = ["depth", "rows", "checkpoints", "memory"]
        arguments = ["growth.py", "--quick", "--output", str(path), "--only", *parts]
        monkeypatch.setattr(sys, "argv", arguments)
        monkeypatch.setattr(growth.gc, "collect", lambda: 0)  # each walks what all tests have left
        growth.main()
        record = json.loads(path.read_text())
        assert list(record["growth"]) == parts[:-1]
        for name, part in record["growth"].items():
            small, large = part["sizes"]
            assert [small[name], large[name]] == growth.SIZES_QUICK[name]
            span = math.log(large[name] / small[name])
            assert part["exponents"]
            for cost, found in part["exponents"].items():
                assert small[cost] > 0
                assert found == pytest.approx(math.log(large[cost] / small[cost]) / span)
        assert set(record["memory"]) == set(growth.REPETITIONS)


class TestReplicas:
    def test_both_ways_end_alike_and_are_timed_in_the_same_rounds(self, tmp_path, monkeypatch):
        job, groups = replicas.QUICK["small"], []
        made = replicas.Group

        def spy(*arguments):
            groups.append(made(*arguments))
            return groups[-1]

        monkeypatch.setattr(replicas, "Group", spy)
        path = tmp_path / "replicas.json"
        monkeypatch.setattr(sys, "argv", ["replicas.py", "--quick", "--output", str(path)])
        replicas.main()
        record = json.loads(path.read_text())["jobs"]["small"]
        (mapped, in_turn), auto = groups[:2], groups[2]
        assert record["auto"] == auto.replicas.how == "mapped"
        assert record["largest"] == 6 * 5
        for how, group in zip(replicas.HOWS, (mapped, in_turn), strict=True):
            assert group.replicas.how == how
            assert len(record[how]["seconds"]) == len(record[how]["processor_seconds"]) == 2
            assert min(record[how]["seconds"]) > 0
            assert record[how]["memory_peak"] > 1e7
        ends = []
        goal = max(group.replicas.trainers[1].step for group in (mapped, in_turn)) + 1
        for group in (mapped, in_turn):
            trainer = group.replicas.trainers[1]
            trainer.fit(group.data.with_seed(1), num_steps=goal)
            ends.append(trainer.network.layers[0].linear.kernel[...])
        np.testing.assert_allclose(*ends, atol=1e-4)
        assert np.abs(ends[0] - job.make_parameters(1)[0]["kernel"]).max() > 1e-3

    def test_a_first_call_alone_is_told_as_json(self, monkeypatch, capsys):
        monkeypatch.setitem(replicas.MEASURED, "small", replicas.QUICK["small"])
        monkeypatch.setattr(
            sys, "argv", ["replicas.py", "--alone", "small", "in turn", "--seeds", "2"]
        )
        replicas.main()
        record = json.loads(capsys.readouterr().out)
        assert record["compile_seconds"] >= 0
        assert record["memory_peak"] > 1e7

    def test_the_page_of_seeds_holds_the_results(self):
        text = tables.HOWTO.read_text()
        assert tables.page(text, replicas=tables.replicas()) == text


class TestOnPaper:
    ROWS = tables.read("scaling-cpu.json")["rows"]

    @pytest.mark.parametrize(
        "row", ROWS, ids=lambda r: f"{r['scaling']} {r['placement']} {r['devices']}"
    )
    def test_formulas_are_what_compiled_programs_do(self, row):
        """Two things are known to be more there, and are said on the page: see the last lines."""
        number, batch = row["devices"], row["batch"]
        place = {
            "one device": on_paper.Place(),
            "data": on_paper.Place(data=number),
            "layers": on_paper.Place(layers=number),
            "features": on_paper.Place(features=number),
            "data, layers": on_paper.Place(data=2, layers=number // 2),
        }[row["placement"]]
        job, machine = on_paper.Job(row["width"], row["depth"]), on_paper.Machine()
        step, rest = (part(job, place, machine, batch) for part in (on_paper.step, on_paper.rest))
        assert step.flops == pytest.approx(row["step_flops"], rel=0.01)
        assert step.sent == pytest.approx(row["step_sent"], rel=0.04)
        assert rest.sent == pytest.approx(row["rest_sent"], rel=0.04)
        few = row["depth"] / place.layers < 8  # layers outside of the stack count
        assert step.bytes == pytest.approx(row["step_bytes"], rel=0.2 if few else 0.1)
        assert on_paper.held(job, place, batch) == pytest.approx(row["memory"], rel=0.17)
        # a tick in which a device idles is counted as a busy one
        idle = rest.idle * machine.peak * machine.reached
        again = 4 / 3 if place.features > 1 else 1
        assert again * (rest.flops + idle) == pytest.approx(row["rest_flops"], rel=0.05)
        least = 0.29 if place.features > 1 or place.layers > 1 else 0.95
        assert least < rest.bytes / row["rest_bytes"] < 1.03

    def test_links_are_those_of_a_node_or_of_the_network(self):
        machine, size = on_paper.Machine(nvlink=100.0, network=10.0, node=8), 1000.0

        def seconds(axis, place, **sent):
            return on_paper.sending(machine, axis, place, **sent)

        assert seconds("layers", on_paper.Place(layers=8), permutes=size) == 10
        assert seconds("layers", on_paper.Place(layers=16), permutes=size) == 100
        assert seconds("layers", on_paper.Place(layers=8, features=2), permutes=size) == 100
        assert seconds("data", on_paper.Place(data=8, layers=8), rings=size) == 100
        # four of the ring's devices in each node, and the adapter of each
        assert seconds("data", on_paper.Place(data=8, layers=2), rings=size) == 25
        assert seconds("data", on_paper.Place(data=64), rings=size) == 12.5

    def test_a_batch_by_hand(self):
        """Four layers of width 2 on two devices; 1 flop/s, no time for bytes, latency of 1 s."""
        machine = on_paper.Machine(1.0, math.inf, 1.0, 1.0, 8, math.inf, math.inf, 1.0)
        job = on_paper.Job(width=2, depth=4, steps=3, error_steps=1, microbatches=2)
        place = on_paper.Place(layers=2)
        pc = on_paper.predictive_coding(job, place, machine, 5)
        step, rest = 4 * 5 * 2 * 4, 6 * 5 * 2 * 4
        idle = rest / 3 / 2  # a tick of two more
        assert pc.idle == idle
        assert pc.sending == 3 * 3 + (2 * 2 + 2)
        assert pc.seconds == 3 * step + rest + idle + pc.sending
        assert pc.efficiency == pytest.approx((3 * step + rest) / pc.seconds)
        errors = on_paper.error_coordinates(job, place, machine, 5)
        assert errors.idle == step / 2 + idle
        bp = on_paper.backpropagation(job, place, machine, 5)
        assert bp.idle == rest / 4  # 4 parts, 5 ticks
        assert bp.seconds == rest + bp.idle + bp.sending
        assert bp.sending == 2 * 5
