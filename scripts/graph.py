"""Classification by graphs with cycles, read at equilibrium; beside the gradient through the equilibrium.

    python scripts/graph.py --data-dir DIR     about 6 minutes on 2 CPU cores

Two graphs classify MNIST from 5,000 images, 5 epochs: a random one, eight nodes of 24 of which each predicts
each other with probability 0.3, all seeing the image and seen by the output; and a cycle, three nodes of 64,
each predicted by the one before and the last one by the first. No order of the nodes makes a pass upward, so
the class is read where inference without a label ends. Two rules: predictive coding, and `Implicit`,
backpropagation through that equilibrium. The seed draws weights and, of the random graph, edges. Figures are
shares of all 10,000 test images with the 95 % interval of the mean over seeds. Settings are round numbers,
not tuned. Answers: `graph_random`, `graph_cycle`, and `_implicit` beside them.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from scipy.stats import t

import pcflax as pc

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.answers import answer_parser, record_answer
from benchmarks.options import read_number, run_main

SETTLE = pc.inference.NewtonCG(tolerance=1e-3, max_steps=20)
RULES = {
    "": pc.learning.PredictiveCoding(pc.inference.GradientDescent(0.1, num_steps=20)),
    "_implicit": pc.learning.Implicit(SETTLE),
}


def random_edges(seed: int) -> np.ndarray:
    """Eight hidden nodes at random, between the image and the output."""
    edges = np.zeros((10, 10), int)
    edges[1:9, 1:9] = np.random.default_rng(seed).random((8, 8)) < 0.3
    np.fill_diagonal(edges, 0)
    edges[0, 1:9] = edges[1:9, 9] = 1
    return edges


def cycle_edges(seed: int) -> np.ndarray:
    """X to a, a to b to c and back to a, c to the output."""
    del seed  # there is one
    return np.array(
        [[0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 1, 0, 0, 1], [0, 0, 0, 0, 0]]
    )


GRAPHS = {"random": (random_edges, 24), "cycle": (cycle_edges, 64)}


def build(edges: np.ndarray, width: int, spec, seed: int) -> pc.PCGraph:
    """Put a dense layer at every node, the output's without an activation."""
    rngs, last = nnx.Rngs(seed), str(len(edges) - 1)

    def make(name, below, own):
        activation = None if name == last else jnp.tanh
        return pc.PCDense(below, own, activation=activation, rngs=rngs)

    widths = [spec.inputs.shape[1], *[width] * (len(edges) - 2), spec.targets.shape[1]]
    return pc.networks.from_adjacency(edges, make, widths=widths, inputs="0", output=last)


def main() -> None:
    """Train each graph by each rule, read all test images at equilibrium, write the figures."""
    parser = answer_parser(__doc__, quick="the embedded digits, one epoch")
    parser.add_argument("--rate", type=read_number, default=2e-3, help="Adam's learning rate")
    parser.add_argument("--validate", action="store_true", help="on the last 5,000 training images")
    options = parser.parse_args()
    if options.quick:
        data, test, epochs = pc.data.load("digits"), pc.data.load("digits", split="test"), 1
    else:
        where = {"data_dir": options.data_dir, "batch_size": 100}
        data, epochs = pc.data.load("mnist", split="train[:5000]", **where), 5
        test = pc.data.load("mnist", split="train[-5000:]" if options.validate else "test", **where)
    for graph, (edges, width) in GRAPHS.items():
        for suffix, rule in RULES.items():
            name, values = f"graph_{graph}{suffix}", []
            for seed in range(options.seeds):
                trainer = pc.Trainer(
                    build(edges(seed), width, data.spec(), seed),
                    optax.adam(options.rate),
                    learning=rule,
                    reads=pc.Equilibrium(SETTLE),
                    seed=seed,
                    progress=False,
                )
                trainer.fit(data, epochs=epochs)
                values.append(100 * trainer.evaluate(test)["accuracy"])
                print(f"{name}, seed {seed}: {values[-1]:.2f} %", flush=True)
            spread = 0.0
            if len(values) > 1:
                spread = statistics.stdev(values) / len(values) ** 0.5
                spread *= float(t.ppf(0.975, len(values) - 1))
            print(f"{name}: {statistics.mean(values):.2f} +- {spread:.2f} %", flush=True)
            if not options.validate:
                record_answer(
                    name, values, unit="%", command="python scripts/graph.py", path=options.output
                )


if __name__ == "__main__":
    run_main(main)
