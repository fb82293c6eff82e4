"""Sequence memory: 16 MNIST digits in a row, each recalled from the one before.

    python scripts/sequence_memory.py --data-dir DIR     about 20 seconds on 2 CPU cores

One layer predicts the next image from the one before, "x" from `Previous("x")` (sequential memory by temporal
predictive coding, Tang, Barron & Bogacz 2023). Nothing is free while it learns, so its weights descend the
squared error of the prediction: the delta rule. It recalls online, where every true image is the cue of the
next, and offline, where the first image alone is given and what is recalled is the cue of what follows. Each
seed draws 16 other images. Expected: all in order, by the nearest stored image, in both. Answers:
`sequence_memory` and `sequence_memory_offline`, the mean squared error of a pixel in [0, 1].
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import optax
from flax import nnx

import pcflax as pc

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.answers import answer_parser, record_answer
from benchmarks.options import run_main
from benchmarks.records import RESULTS

LENGTH = 16


def memory(sequence: np.ndarray, seed: int, num_steps: int) -> pc.Trainer:
    """Learn every next image from the one before."""
    size = sequence.shape[1]
    zeros = nnx.initializers.zeros_init()
    network = pc.PCGraph(
        {"x": pc.PCDense(size, size, kernel_init=zeros, rngs=nnx.Rngs(seed))},
        parents={"x": pc.networks.Previous("x")},
        output="x",
    )
    rule = pc.learning.PredictiveCoding(pc.inference.GradientDescent(0.1, num_steps=0))
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, num_steps))
    trainer = pc.Trainer(network, optimizer, learning=rule, seed=seed, progress=False)
    data = pc.data.from_arrays({"x@-1": sequence[:-1]}, sequence[1:], batch_size=len(sequence) - 1)
    trainer.fit(data, num_steps=num_steps, log_every=num_steps)
    return trainer


def recall(trainer: pc.Trainer, sequence: np.ndarray) -> dict[str, np.ndarray]:
    """Recall images 2 to the last, from the true ones before or from the first alone."""
    online = trainer.network.predict({"x@-1": sequence[:-1]})
    offline = [sequence[:1]]
    for _ in sequence[1:]:
        offline.append(np.asarray(trainer.network.predict({"x@-1": offline[-1]})))
    return {"": np.asarray(online), "_offline": np.concatenate(offline[1:])}


def main() -> None:
    """Store a sequence a seed, recall it in both ways, write the figures."""
    options = answer_parser(__doc__, quick="the embedded digits, fewer steps").parse_args()
    name = "digits" if options.quick else "mnist"
    given = {} if options.quick else {"data_dir": options.data_dir, "split": "train[:500]"}
    data = pc.data.load(name, normalize=False, shuffle=False, **given)
    pool = np.concatenate([np.asarray(batch.inputs) for batch in data.batches()])
    found: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        sequence = pool[seed * LENGTH : (seed + 1) * LENGTH]
        trainer = memory(sequence, seed, 500 if options.quick else 1500)
        recalled = recall(trainer, sequence)
        for suffix, images in recalled.items():
            distances = ((images[:, None] - sequence[None]) ** 2).sum(-1)
            right = int(np.sum(distances.argmin(1) == np.arange(1, LENGTH)))
            error = float(np.mean((images - sequence[1:]) ** 2))
            found.setdefault(f"sequence_memory{suffix}", []).append(error)
            print(
                f"seed {seed}, sequence_memory{suffix}: {right} of {LENGTH - 1} right, {error:.2e}"
            )
    for answer, values in found.items():
        record_answer(
            answer,
            values,
            unit="mean squared error of a pixel in [0, 1]",
            command="python scripts/sequence_memory.py",
            path=options.output,
        )
    named = {"online": recalled[""], "offline": recalled["_offline"]}
    figure = pc.plotting.recall_figure(sequence[:-1], named, sequence[1:], examples=LENGTH)
    figure.savefig((options.output or RESULTS / "x").parent / "sequence_memory.png", dpi=100)


if __name__ == "__main__":
    run_main(main)
