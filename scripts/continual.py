"""Continual learning: split MNIST, five tasks of two digits in a row, by three rules.

    python scripts/continual.py --data-dir DIR     half a minute on 2 CPU cores

The protocol of FabricPC (cl-benchmark/PROTOCOL.md, version 1.0.0): tasks (0, 1), (2, 3), ... (8, 9), one
network 784-256-10, no replay, accuracy A[i, j] on the test images of task j after task i, five seeds. Read
class-incremental, the largest of all ten outputs, and task-incremental, the larger of the task's two.

A rule that learns less also forgets less. So all are stopped at one learned accuracy: each task is trained
in steps of two batches of 64, until 97 % of the 5,000 last training images that are of this task are
classified among all ten. Predictive coding, incremental predictive coding and backpropagation have one
optimizer, plain SGD, at rates (predictive coding of 0.01, 0.03, 0.1, and 0.3, which was not finite;
backpropagation of 0.01 and 0.03, and 0.1, which was not finite; incremental of 0.001, 0.003, 0.01; on those
images, seed 100) with which all see about as much: 168, 208 and 174 batches. (At the lowest rates the three
keep 81 % each, task-incremental.) Measured: class-incremental 19.5, 19.4, 19.4 %; task-incremental 79.5 +-
5.3, 82.0 +- 3.1, 83.2 +- 1.9 %. Answers, five seeds each, in percent: `continual_RULE_class`,
`continual_RULE_task` (average accuracy) and `continual_RULE_learned`, of RULE pc, incremental, backprop; a
figure of the accuracy matrices.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import pcflax as pc

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.answers import answer_parser, record_answer
from benchmarks.options import run_main
from benchmarks.records import RESULTS

TASKS = [(2 * task, 2 * task + 1) for task in range(5)]
INFERENCE = pc.inference.GradientDescent(0.1, num_steps=20)
RULES = {
    "pc": (pc.learning.PredictiveCoding(INFERENCE), 0.1),
    "incremental": (pc.learning.IncrementalPC(INFERENCE), 0.003),
    "backprop": (pc.learning.Backprop(), 0.03),
}
ENOUGH, MOST_STEPS, PACE = 0.97, 1000, 2


class Enough(pc.Callback):
    """Stop a task where its held-out images are right so often."""

    def on_evaluate(self, trainer, step, metrics):
        """Look."""
        if metrics["eval/accuracy"] >= ENOUGH:
            trainer.stop()


def learn_in_a_row(name: str, seed: int, train, held_out, test, width: int, rate=None):
    """The accuracies in both readings, and how many batches were learned from."""
    rule, usual = RULES[name]
    network = pc.models.mlp(
        train[0].spec().inputs.shape[1], width, 10, activation=jnp.tanh, rngs=nnx.Rngs(seed)
    )
    trainer = pc.Trainer(
        network,
        optax.sgd(rate or usual),
        learning=rule,
        callbacks=[Enough()],
        seed=seed,
        progress=False,
    )
    limits = {"num_steps": MOST_STEPS, "eval_every": PACE}
    found = pc.experiments.learn_tasks(trainer, train, test, eval_data=held_out, **limits)
    return found, trainer.step


def load(options: argparse.Namespace):
    """The tasks' training data, held-out data and test data."""
    given = {"normalize": False, "shuffle": False}
    if options.quick:
        train, held_out = (pc.data.load("digits", **given) for _ in range(2))
        test = pc.data.load("digits", split="test", **given)
    else:
        given["data_dir"] = options.data_dir
        train = pc.data.load("mnist", split=f"train[:{55_000}]", batch_size=64, **given)
        held_out = pc.data.load("mnist", split="train[55000:]", **given)
        test = pc.data.load("mnist", split="test", **given)
    train.shuffle = True
    return [pc.data.scenarios.split(data, TASKS) for data in (train, held_out, test)]


def draw(matrices: dict[str, np.ndarray], path: Path) -> None:
    """Draw the mean accuracy matrix of each rule, in both readings."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(matrices) + 0.8, 6), layout="constrained")
    grid = figure.subplots(2, len(matrices), sharex=True, sharey=True, squeeze=False)
    names = ["{} {}".format(*classes) for classes in TASKS]
    for column, (name, own) in enumerate(matrices.items()):
        mean = own.mean(0)
        for row, reading in enumerate(("class-incremental", "task-incremental")):
            axes = grid[row][column]
            image = axes.imshow(100 * mean[row], vmin=0, vmax=100, cmap="viridis")
            for (i, j), value in np.ndenumerate(100 * mean[row]):
                colour = "black" if value > 60 else "white"
                axes.text(j, i, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8)
            axes.set_xticks(range(len(TASKS)), names)
            axes.set_yticks(range(len(TASKS)), names)
            axes.set_title(f"{name}, {reading}", fontsize=9)
            if row:
                axes.set_xlabel("tested on")
            if not column:
                axes.set_ylabel("after learning")
    figure.colorbar(image, ax=grid, label="accuracy, %", shrink=0.6)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Learn, print scores with intervals, write answers and the figure."""
    options = answer_parser(__doc__, quick="embedded digits, a small network", seeds=5).parse_args()
    train, held_out, test = load(options)
    matrices = {}
    for name in RULES:
        runs = [
            learn_in_a_row(name, seed, train, held_out, test, 32 if options.quick else 256)
            for seed in range(options.seeds)
        ]
        matrices[name] = np.stack([[own.matrix for own in found] for found, _ in runs])
        for place, reading in enumerate(("class", "task")):
            scores = [pc.analysis.continual(*found[place]) for found, _ in runs]
            print(f"{name}, {reading}-incremental, {runs[0][1]} batches with seed 0")
            for field in scores[0]._fields:
                values = np.array([100 * getattr(score, field) for score in scores])
                error = interval(values)
                print(f"    {field.replace('_', ' '):18} {values.mean():6.1f} +- {error:.1f}")
            given = {"average_accuracy": reading}
            if reading == "class":
                given["learned_accuracy"] = "learned"
            for field, part in given.items():
                record_answer(
                    f"continual_{name}_{part}",
                    [100 * getattr(score, field) for score in scores],
                    unit="%",
                    command="python scripts/continual.py",
                    path=options.output,
                )
    draw(matrices, (options.output or RESULTS / "x").parent / "continual.png")


def interval(values: np.ndarray) -> float:
    """Half the 95 % interval of the mean, by Student's t."""
    from scipy import stats

    if len(values) < 2:
        return float("nan")
    return float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)


if __name__ == "__main__":
    run_main(main)
