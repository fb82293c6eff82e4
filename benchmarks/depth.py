"""How many steps of inference does a network want as it grows deeper, for each algorithm?

    python benchmarks/depth.py --data-dir FOLDER_OF_PREPARED_TFDS_SETS         what is missing of the table
    python benchmarks/depth.py --algorithms plain --depths 4 8 --seeds 1        a part of it
    python benchmarks/depth.py --time --depths 4 8 16                           seconds of what reached it
    python benchmarks/depth.py --page                                           figure and claims, no runs

The protocol of a public study (tarun-ks/predictive-coding-depth-scaling, 925 runs of the code that goes with
arXiv 2605.31022): MNIST, residual networks of width 32 with relu and muPC's multipliers, one epoch of 937
batches of 64, Adam at 1e-3 sqrt(32/depth). A run's number of steps T is kept for all its batches. T counts
where test accuracy reaches 90 % of backpropagation's at the same depth and seed, and stays there for every
measured number of steps up to 2 T (a solver may touch the mark and then diverge). The ladder of T is the
study's, climbed to 2 T, or to 1.5 T from a power of two. Its figures for gradient descent on the activities
at 1/lambda_max are 3, 8, 32, 128, 512 and 2048 steps at 4, 8, 16, 32, 64 and 128 layers; 256 at 128 layers
for augmented Lagrangians. The exponent is the slope of log T over log depth.

Steps are not equally dear: a step costs one or several gradients of the energy, and some methods measure
curvature before the first. So `--time` trains with the steps that reached the mark: all algorithms of a depth
compiled in one process, in five turns of ten batches each. Kept are the least of the turns for the 937
batches of an epoch, by the clock and by the processor, with the date and the load of the machine.
Beside other work seconds of the processor on one core (`taskset -c 1`), and their ratios within a depth, say
more than the clock.

The alignment is of each hidden layer's own weight gradient, at the end of seed 0's training on one batch,
with that of backpropagation and that of the equilibrium (20 steps of `OutputNewton`): the median and the
least of all layers. A method whose gradients are backpropagation's reaches backpropagation's accuracy at
once, which says nothing of predictive coding.

Every run is kept in `benchmarks/results/depth_runs-cpu.json` as soon as it ends, and not run again.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from rich.console import Console

import pcflax as pc
from pcflax.analysis.alignment import rule_gradient
from pcflax.inference.curvature import largest_eigenvalue, random_direction

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.answers import record_answer
from benchmarks.options import read_count, read_output, read_seeds, run_main
from benchmarks.records import results_path, write_results
from benchmarks.stack import interleaved
from benchmarks.suite import today

FIGURE = Path(__file__).resolve().parent.parent / "docs/images/depth.png"

WIDTH, BATCH, BATCHES, MARK, HOLD = 32, 64, 937, 0.9, 2
_TURN, _TURNS = 10, 5  # batches, of --time
DEPTHS = (4, 8, 16, 32, 64, 128)
LADDER = [
    1,
    2,
    3,
    4,
    6,
    8,
    12,
    16,
    24,
    32,
    48,
    64,
    96,
    128,
    192,
    256,
    384,
    512,
    768,
    1024,
    1536,
    2048,
    3072,
]
PUBLISHED = {"plain": dict(zip(DEPTHS, (3, 8, 32, 128, 512, 2048), strict=True))}

inference = pc.inference


def _rule(make: Callable) -> Callable:
    return lambda step, count: pc.learning.PredictiveCoding(make(step, count))


# {name: (the rule of a step size 1/lambda_max and a number of steps, gradients a step, and before the first)}
ALGORITHMS: dict[str, tuple[Callable, int, int]] = {
    "backprop": (lambda step, count: pc.learning.Backprop(), 1, 0),
    "plain": (_rule(lambda step, count: inference.GradientDescent(step, num_steps=count)), 1, 0),
    "errors": (
        _rule(
            lambda step, count: inference.ErrorCoordinates(
                inference.CurvatureDescent(num_steps=count)
            )
        ),
        2,
        20,
    ),
    "output-newton": (_rule(lambda step, count: inference.OutputNewton(num_steps=count)), 8, 0),
    "nesterov": (
        _rule(
            lambda step, count: inference.GradientDescent(step, momentum="auto", num_steps=count)
        ),
        1,
        0,
    ),
    "multipliers": (
        lambda step, count: pc.learning.AugmentedLagrangian(
            inference.GradientDescent(step, num_steps=count)
        ),
        1,
        0,
    ),
    "chebyshev": (_rule(lambda step, count: inference.Chebyshev(num_steps=count)), 1, 40),
    "curvature-auto": (
        _rule(lambda step, count: inference.CurvatureDescent(momentum="auto", num_steps=count)),
        2,
        20,
    ),
    "red-black": (_rule(lambda step, count: inference.Sweeps(num_steps=count)), 4, 40),
    "sequential": (
        _rule(lambda step, count: inference.Sweeps(order="sequential", num_steps=count)),
        4,
        40,
    ),
}
WORDS = {
    "plain": "gradient descent",
    "nesterov": 'gradient descent, `momentum="auto"`',
    "curvature-auto": '`CurvatureDescent(momentum="auto")`',
    "chebyshev": "`Chebyshev`",
    "red-black": "`Sweeps`, red-black",
    "sequential": "`Sweeps`, sequential",
    "multipliers": "`AugmentedLagrangian`",
    "errors": "error coordinates, `CurvatureDescent`",
    "output-newton": "`OutputNewton`",
}


def network(name: str, features: int, depth: int, seed: int) -> pc.PCNetwork:
    """The study's network; unrolled for sweeps that move one layer at a time, with the same numbers."""
    return pc.models.residual_mlp(
        features, WIDTH, 10, depth=depth, stacked=name != "sequential", rngs=nnx.Rngs(seed)
    )


def _rate(depth: int) -> float:
    return 1e-3 * math.sqrt(WIDTH / depth)


@jax.jit
def _largest(split, inputs, targets):
    problem = inference.make_problem(split, pc.Evidence(inputs, targets))
    return largest_eigenvalue(problem, problem.start, random_direction(problem), 100).eigenvalue


def stable_step(net: pc.PCNetwork, batch) -> float:
    """1/lambda_max at the start, the median over a batch."""
    return float(1 / jnp.median(_largest(pc.networks.split(net), batch.inputs, batch.targets)))


def run(name: str, depth: int, seed: int, count: int, train, test, batches: int) -> dict:
    """Train once; return what is kept of it."""
    batch = next(iter(train))
    net = network(name, batch.inputs.shape[1], depth, seed)
    rule = ALGORITHMS[name][0](stable_step(net, batch), count)
    optimizer = optax.adam(_rate(depth))
    trainer = pc.Trainer(net, optimizer, learning=rule, seed=seed, progress=False)
    found = {"algorithm": name, "depth": depth, "seed": seed, "steps": count}
    began = time.perf_counter()
    try:
        trainer.fit(train, num_steps=batches)
    except pc.NonFiniteEnergyError as error:
        return found | {"accuracy": 0.0, "failed": str(error).split(":")[0]}
    found["seconds"] = round(time.perf_counter() - began, 1)
    found["accuracy"] = round(100 * trainer.evaluate(test)["accuracy"], 2)
    net = trainer.network
    if seed:
        return found
    for key, other in {
        "backprop": pc.learning.Backprop(),
        "equilibrium": pc.learning.PredictiveCoding(inference.OutputNewton(num_steps=20)),
    }.items():
        cosines = alignment(net, batch, rule, other)
        found |= {
            f"{key}_median": round(statistics.median(cosines), 4),
            f"{key}_least": round(min(cosines), 4),
        }
    return found


@functools.cache  # compiled once for each rule
def _gradient(learning) -> Callable:
    key = jax.random.key(0)

    def of(split, inputs, targets):
        return rule_gradient(split, pc.Evidence(inputs, targets), learning=learning, key=key)

    return jax.jit(of)


def alignment(net, batch, rule, other) -> list[float]:
    """The cosine of two rules' weight gradients at each layer, in 64-bit sums of scaled gradients."""
    split = pc.networks.split(net)

    def gradients(learning):
        found = _gradient(learning)(split, batch.inputs, batch.targets)
        if "hidden" in net.layer_names:
            leaves = jax.tree.leaves(found["hidden"])
        else:  # of an unrolled network, one matrix a layer
            hidden = [found[layer] for layer in net.layer_names if layer.startswith("hidden_")]
            leaves = [np.stack(jax.tree.leaves(hidden))]
        return np.concatenate(
            [np.asarray(leaf, np.float64).reshape(leaf.shape[0], -1) for leaf in leaves], axis=1
        )

    own, others = gradients(rule), gradients(other)
    norms = np.linalg.norm(own, axis=1) * np.linalg.norm(others, axis=1)
    return list(np.sum(own * others, axis=1) / np.where(norms > 0, norms, 1))


def target_steps(accuracies: dict[int, float], mark: float) -> int | None:
    """The least number of steps from which on, to twice as many, every measured accuracy reaches the mark."""
    for count in sorted(accuracies):
        window = [value for other, value in accuracies.items() if count <= other <= HOLD * count]
        if min(window) >= mark:
            return count
    return None


def exponent(by_depth: dict[int, float]) -> float:
    """The slope of log steps over log depth."""
    depths = sorted(by_depth)
    return float(np.polyfit(np.log(depths), [math.log(by_depth[depth]) for depth in depths], 1)[0])


class Runs:
    """The runs so far, and seconds of some, in a file that is written after each."""

    def __init__(self, path: Path):
        self.path = path
        record = json.loads(path.read_text()) if path.exists() else {}
        self.rows = record.get("runs", [])
        self.times = record.get("times", [])

    def accuracies(self, name: str, depth: int, seed: int) -> dict[int, float]:
        """{steps: accuracy} of what was run."""
        return {
            row["steps"]: row["accuracy"]
            for row in self.rows
            if (row["algorithm"], row["depth"], row["seed"]) == (name, depth, seed)
        }

    def add(self, row: dict) -> None:
        """Keep a run."""
        self.rows.append(row)
        self.rows.sort(key=lambda r: (r["algorithm"], r["depth"], r["seed"], r["steps"]))
        self._write()

    def add_times(self, depth: int, rows: list[dict]) -> None:
        """Keep the seconds of a depth in place of older ones, of which ratios would not hold."""
        self.times = [row for row in self.times if row["depth"] != depth] + rows
        self.times.sort(key=lambda r: (r["depth"], r["algorithm"]))
        self._write()

    def _write(self) -> None:
        times = {"times": self.times} if self.times else {}
        write_results({"device": "cpu", "runs": self.rows} | times, self.path)


def climb(name, depth, seed, runs, ladder, train, test, batches, console) -> int | None:
    """Run what the answer wants of one ladder, and return the number of steps that counts."""

    def measured(name, count):
        known = runs.accuracies(name, depth, seed)
        if count not in known:
            row = run(name, depth, seed, count, train, test, batches)
            runs.add(row)
            console.print(row)
            known = runs.accuracies(name, depth, seed)
        return known

    mark = MARK * measured("backprop", 0)[0]
    if name == "backprop":
        return 0
    for count in ladder:
        found = target_steps(measured(name, count), mark)
        if found is not None and count * 1.5 > HOLD * found:
            return found
    return target_steps(runs.accuracies(name, depth, seed), mark)


def outcomes(runs: Runs) -> dict[str, dict[int, dict[int, int | None]]]:
    """{algorithm: {depth: {seed: steps}}}, None where a seed did not reach the mark or did not hold it."""
    found: dict[str, dict[int, dict[int, int | None]]] = {}
    for name in ALGORITHMS:
        keys = {(r["depth"], r["seed"]) for r in runs.rows if r["algorithm"] == name}
        for depth, seed in sorted(keys):
            base = runs.accuracies("backprop", depth, seed)
            if name == "backprop" or not base:
                continue
            steps = target_steps(runs.accuracies(name, depth, seed), MARK * base[0])
            found.setdefault(name, {}).setdefault(depth, {})[seed] = steps
    return found


def summary(runs: Runs) -> dict[str, dict[int, list[int]]]:
    """{algorithm: {depth: [steps by seed]}}, of seeds that reached the mark."""
    found: dict[str, dict[int, list[int]]] = {}
    for name, by_depth in outcomes(runs).items():
        for depth, by_seed in by_depth.items():
            steps = [count for count in by_seed.values() if count is not None]
            if steps:
                found.setdefault(name, {})[depth] = steps
    return found


def aligned(runs: Runs, name: str, depth: int, steps: float) -> dict | None:
    """The run with these steps whose alignment was measured."""
    for row in runs.rows:
        same = (row["algorithm"], row["depth"], row["steps"]) == (name, depth, steps)
        if same and "backprop_least" in row:
            return row
    return None


class Training:
    """An algorithm's training on the same few batches again and again, compiled."""

    def __init__(self, name: str, depth: int, count: int, step: float, batches: list):
        inputs = np.stack([batch.inputs for batch in batches])
        targets = np.stack([batch.targets for batch in batches])
        split = pc.networks.split(network(name, inputs.shape[-1], depth, 0))
        optimizer = optax.adam(_rate(depth))
        rule, key = ALGORITHMS[name][0](step, count), jax.random.key(0)

        def train(carry, inputs, targets):
            def learn(carry, batch):
                evidence = pc.Evidence(*batch)
                split, state, _ = rule.update(carry[0], optimizer, carry[1], evidence, key=key)
                return (split, state), None

            return jax.lax.scan(learn, carry, (inputs, targets))[0]

        self._carry, self._data = (split, optimizer.init(split.parameters)), (inputs, targets)
        self._train = jax.jit(train).lower(self._carry, *self._data).compile()

    def run(self) -> None:
        """Train on all the batches once more."""
        self._carry = jax.block_until_ready(self._train(self._carry, *self._data))


def timed(depth: int, names: list[str], runs: Runs, train, batches: int = BATCHES) -> list[dict]:
    """Seconds of an epoch of each algorithm that reached the mark at this depth, in turns of ten batches."""
    found = summary(runs)
    reached = [name for name in names if depth in found.get(name, {})]
    if not reached:
        return []
    counts = {name: statistics.median_low(found[name][depth]) for name in reached}
    counts = {"backprop": 0} | counts
    several = list(itertools.islice(train, _TURN))
    step = stable_step(network("plain", several[0].inputs.shape[1], depth, 0), several[0])
    programs = {name: Training(name, depth, count, step, several) for name, count in counts.items()}
    clock, processor = interleaved(programs, _TURNS, 1)
    load = round(os.getloadavg()[0], 1)  # of the last minute, this process included
    return [
        {
            "algorithm": name,
            "depth": depth,
            "steps": count,
            "seconds": float(f"{min(clock[name]) * batches / _TURN:.3g}"),
            "processor_seconds": float(f"{min(processor[name]) * batches / _TURN:.3g}"),
            "cores": len(os.sched_getaffinity(0)),
            "load": load,
            "date": today(),
        }
        for name, count in counts.items()
    ]


def figure(runs: Runs) -> Figure:
    """Steps over depth, log-log, each seed a point."""
    drawn = Figure(figsize=(8.6, 4.0), layout="constrained")
    axis = drawn.subplots()
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    found = summary(runs)
    for (name, label), mark in zip(WORDS.items(), "o^vDsPX*p", strict=True):
        by_depth = found.get(name, {})
        if not by_depth:
            continue
        medians = [statistics.median(steps) for steps in by_depth.values()]
        # hollow, since some lie on others
        look = {"marker": mark, "markersize": 9, "markerfacecolor": "none"}
        line = axis.plot(list(by_depth), medians, label=label.replace("`", ""), **look)[0]
        for depth, steps in by_depth.items():
            axis.scatter([depth] * len(steps), steps, s=12, color=line.get_color())
    published = PUBLISHED["plain"]
    axis.plot(list(published), list(published.values()), "k:", label="gradient descent, published")
    axis.set_xticks(DEPTHS, [str(depth) for depth in DEPTHS])
    axis.set_yticks([1, 8, 32, 128, 512, 2048], ["1", "8", "32", "128", "512", "2,048"])
    axis.set_xlabel("layers")
    axis.set_ylabel("steps to 90 % of backpropagation's accuracy")
    axis.grid(alpha=0.3)
    drawn.legend(loc="outside right upper", fontsize=8)
    return drawn


def claims(runs: Runs, name: str, key: str) -> dict[str, tuple[list[float], str]]:
    """{claim: (values, unit)} of an algorithm: steps at 128 layers, how sure they are, and the exponent."""
    by_depth = summary(runs).get(name, {})
    found: dict[str, tuple[list[float], str]] = {}
    if len(by_depth) > 1:
        medians = {depth: statistics.median(steps) for depth, steps in by_depth.items()}
        found[f"exponent_{key}"] = [exponent(medians)], ""
    if 128 in by_depth:
        steps = by_depth[128]
        unreached = sum(count is None for count in outcomes(runs)[name][128].values())
        found[f"steps_128_{key}"] = [float(count) for count in steps], "steps"
        found[f"steps_128_{key}_unreached"] = [float(unreached)], "seeds"
        row = aligned(runs, name, 128, statistics.median(steps))
        for other in ("equilibrium", "backprop") if row else ():
            found[f"steps_128_{key}_cosine_{other}"] = [row[f"{other}_least"]], "cosine"
    return found


def write_page(runs: Runs) -> None:
    """Write the figure, and the claims that follow from the runs."""
    figure(runs).savefig(FIGURE, dpi=120)
    command = "python benchmarks/depth.py --page"
    for name, key in (("plain", "plain"), ("output-newton", "best")):
        for claim, (values, unit) in claims(runs, name, key).items():
            record_answer(claim, values, unit=unit, command=command, kind="depth")


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", default=os.environ.get("TFDS_DATA_DIR"))
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=ALGORITHMS)
    parser.add_argument("--depths", type=read_count, nargs="+", default=list(DEPTHS))
    parser.add_argument(
        "--seeds", type=read_seeds, default="5", help="how many seeds, or seeds by commas"
    )
    parser.add_argument("--steps", type=read_count, nargs="+", help="these numbers of steps alone")
    parser.add_argument("--quick", action="store_true", help="digits, 20 batches, 4 and 8 layers")
    parser.add_argument("--time", action="store_true", help="seconds of what reached the mark")
    parser.add_argument("--page", action="store_true", help="the figure and the claims, no runs")
    parser.add_argument("--output", type=read_output, help="the file of runs")
    options = parser.parse_args(arguments)
    console = Console()
    committed = results_path("depth_runs", "cpu")  # holds no digits
    runs = Runs(
        options.output or (Path("runs/quick/depth_runs.json") if options.quick else committed)
    )
    if options.page:
        write_page(runs)
        return
    batches = 20 if options.quick else BATCHES
    data = "digits" if options.quick else "mnist"
    depths = [4, 8] if options.quick else options.depths

    def train_set(seed):
        return pc.data.load(
            data, split="train", batch_size=BATCH, seed=seed, data_dir=options.data_dir
        )

    if options.time:
        for depth in depths:
            runs.add_times(depth, timed(depth, options.algorithms, runs, train_set(0)))
            console.print([row for row in runs.times if row["depth"] == depth])
        return
    test = pc.data.load(data, split="test", batch_size=120, data_dir=options.data_dir)
    for name in options.algorithms:
        for depth in depths:
            for seed in options.seeds:
                train = train_set(seed)
                ladder = options.steps or (LADDER[:1] if options.quick else LADDER)
                steps = climb(name, depth, seed, runs, ladder, train, test, batches, console)
                console.print(f"{name}, {depth} layers, seed {seed}: {steps} steps")
    for name, by_depth in summary(runs).items():
        medians = {depth: statistics.median(steps) for depth, steps in by_depth.items()}
        slope = exponent(medians) if len(medians) > 2 else float("nan")
        console.print(f"{name}: {medians}, exponent {slope:.2f}")


if __name__ == "__main__":
    run_main(main)
