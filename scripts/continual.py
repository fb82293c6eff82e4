"""Continual learning: split MNIST, five tasks of two digits in a row, by three rules.

    python scripts/continual.py --data-dir DIR     about 4 minutes on 2 CPU cores

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
from benchmarks.records import RESULTS

TASKS = [(2 * task, 2 * task + 1) for task in range(5)]
INFERENCE = pc.inference.GradientDescent(0.1, num_steps=20)
RULES = {
    "pc": (pc.learning.PredictiveCoding(INFERENCE), 0.1),
    "incremental": (pc.learning.IncrementalPC(INFERENCE), 0.003),
    "backprop": (pc.learning.Backprop(), 0.03),
}
ENOUGH, MOST_STEPS, PACE = 0.97, 1000, 2


def accuracies(trainer: pc.Trainer, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Class- and task-incremental accuracy on each task, (2, tasks)."""
    answers = np.asarray(trainer.predict(images))
    found = np.zeros((2, len(TASKS)))
    for task, classes in enumerate(TASKS):
        own = np.isin(labels, classes)
        rows, right = answers[own], labels[own]
        found[0, task] = np.mean(rows.argmax(1) == right)
        found[1, task] = np.mean(np.array(classes)[rows[:, list(classes)].argmax(1)] == right)
    return found


def learn_in_a_row(name: str, seed: int, train, held_out, test, width: int, rate=None):
    """A[i, j] in both readings, (2, tasks, tasks), and accuracies before anything is learned."""
    rule, usual = RULES[name]
    size = test[0].shape[1]
    network = pc.models.mlp(size, width, 10, activation=jnp.tanh, rngs=nnx.Rngs(seed))
    trainer = pc.Trainer(
        network, optax.sgd(rate or usual), learning=rule, seed=seed, progress=False
    )
    untrained, rows = accuracies(trainer, *test), []
    for task, classes in enumerate(TASKS):
        data, begin = train.only(classes), trainer.step
        while trainer.step - begin < MOST_STEPS:
            trainer.fit(data, num_steps=trainer.step + PACE)
            if accuracies(trainer, *held_out)[0, task] >= ENOUGH:
                break
        rows.append(accuracies(trainer, *test))
    return np.stack(rows, axis=1), untrained, trainer.step


def load(options: argparse.Namespace):
    """Training data, and arrays of images and labels that are held out and for the test."""
    given = {"normalize": False, "shuffle": False}
    if options.quick:
        data = pc.data.load("digits", **given)
        train, test = data, pc.data.load("digits", split="test", **given)
        held_out = train
    else:
        given["data_dir"] = options.data_dir
        train = pc.data.load("mnist", split=f"train[:{55_000}]", batch_size=64, **given)
        held_out = pc.data.load("mnist", split="train[55000:]", **given)
        test = pc.data.load("mnist", split="test", **given)
    train.shuffle = True
    return train, arrays(held_out), arrays(test)


def arrays(data: pc.data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """All images and labels."""
    batches = list(data.batches())
    images = np.concatenate([np.asarray(batch.inputs) for batch in batches])
    return images, np.concatenate([np.asarray(batch.targets).argmax(1) for batch in batches])


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
        matrices[name] = np.stack([run[0] for run in runs])
        for place, reading in enumerate(("class", "task")):
            scores = [pc.analysis.continual(run[0][place], run[1][place]) for run in runs]
            print(f"{name}, {reading}-incremental, {runs[0][2]} batches with seed 0")
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
    main()
