"""A decoder explains images by 64 numbers each: pixel errors, samples and interpolations.

    python scripts/decoder.py --data-dir DIR     about 12 minutes on 2 CPU cores

64-128-128-784, hard tanh, activities from zero, 20 steps of inference a batch, AdamW, all 60,000 images in
[0, 1], 12 and 8 of the 30 epochs published. The error is that of the code alone: inference with a test
image clamped, then the pass upward from the code that was found, `pc.Reconstruction(..., code="latent")`.
Expected over three seeds, on the 10,000 test images: at most 9.2e-3 by predictive coding (9.25e-3
published, arXiv 2407.01163) and 9.1e-3 by incremental predictive coding (9.09e-3). The reading takes 100
steps; after as few as in training the first has 9.3e-3, which is printed, too. Principal components, 64 of
them, have 9.05e-3: a decoder of this size learns little more than these.

The precision of the pixels is below 1, the hidden layers'. At 1, weights grow until the errors of hidden
layers explain the image, which the code alone then does not; weight decay holds against that. Settings were
chosen on the last 5,000 training images. Writes `decoder_pc` and `decoder_ipc` into
benchmarks/results/answers-cpu.json, and a picture beside it.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import pcflax as pc

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.answers import answer_parser, record_answer
from benchmarks.options import run_main
from benchmarks.records import RESULTS

ZEROS = pc.initializers.Zeros()
SETTLE = pc.inference.GradientDescent(0.1, momentum=0.9, num_steps=100)
SETTINGS = {  # rule, inference, precision of the pixels, batch size, epochs, learning rate, weight decay
    "pc": (
        pc.learning.PredictiveCoding,
        pc.inference.GradientDescent(optax.adam(0.05, b1=0.5), num_steps=20),
        *(0.02, 128, 12, 2e-3, 0.3),
    ),
    "ipc": (
        pc.learning.IncrementalPC,
        pc.inference.GradientDescent(0.2, momentum=0.5, num_steps=20),
        *(0.1, 256, 8, 5e-4, 1e-4),
    ),
}


def train(name: str, seed: int, images: np.ndarray, hidden: int, latent: int, epochs: int):
    """Train a decoder by one of the rules; its readings are reconstructions from the code."""
    rule, inference, precision, batch_size, most, rate, decay = SETTINGS[name]
    widths = (latent, hidden, hidden, images.shape[1])
    energy = pc.energies.Gaussian(precision)
    network = pc.models.decoder(*widths, energy=energy, rngs=nnx.Rngs(seed))
    data = pc.data.from_arrays(None, images, batch_size=batch_size, seed=seed)
    num_steps = (epochs or most) * (len(images) // batch_size)
    updates = num_steps * (20 if name == "ipc" else 1)
    falling = optax.cosine_decay_schedule(rate, updates)
    trainer = pc.Trainer(
        network,
        optax.adamw(falling, weight_decay=decay),
        learning=rule(inference, initializer=ZEROS),
        reads=pc.Reconstruction(SETTLE, initializer=ZEROS, code="latent"),
        seed=seed,
        progress=False,
    )
    trainer.fit(data, num_steps=num_steps)
    return trainer


def components(images: np.ndarray, test: np.ndarray, count: int) -> float:
    """The mean squared pixel error of so many principal components."""
    mean = images.mean(axis=0)
    axes = np.linalg.eigh(np.cov(images.T))[1][:, -count:]
    rest = test - mean
    return float(np.mean((rest - rest @ axes @ axes.T) ** 2))


def draw(trainer: pc.Trainer, images: np.ndarray, test: np.ndarray, path: Path) -> None:
    """Draw test images, their reconstructions, ways between codes, and samples."""
    from matplotlib.figure import Figure

    network, columns, side = trainer.network, 12, int(images.shape[1] ** 0.5)

    def codes(given: np.ndarray) -> np.ndarray:
        result = network.infer(None, jnp.asarray(given), inference=SETTLE, initializer=ZEROS)
        return np.asarray(result.activities["latent"])

    # the prior is flat; what is drawn from is a Gaussian of the codes of training images
    known, own = codes(images[:5000]), codes(test[:columns])
    root = np.linalg.cholesky(np.cov(known.T))
    noise = np.asarray(jax.random.normal(jax.random.key(0), (2 * columns, known.shape[1])))
    steps = np.linspace(0, 1, columns)[:, None]
    rows = [own]
    rows += [(1 - steps) * own[first] + steps * own[first + 1] for first in (0, 2)]
    rows += np.split(known.mean(axis=0) + noise @ root.T, 2)
    shown = [
        test[:columns],
        *(np.asarray(network.predict(jnp.asarray(row, jnp.float32))) for row in rows),
    ]
    titles = ("test images", "from their codes", "between two", "codes", "samples", "")
    figure = Figure(figsize=(columns * 0.6 + 1.2, len(shown) * 0.62))
    for number, (title, row) in enumerate(zip(titles, shown, strict=True)):
        for column, image in enumerate(row):
            axis = figure.add_subplot(len(shown), columns, number * columns + column + 1)
            axis.imshow(image.reshape(side, side), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            if column == 0:
                axis.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=8)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def main() -> None:
    """Train by both rules, a network a seed, and compare with principal components."""
    parser = answer_parser(__doc__, quick="the embedded digits, few epochs")
    parser.add_argument("--rules", default=",".join(SETTINGS), help="pc, ipc or both")
    options = parser.parse_args()
    rules = options.rules.split(",")
    if unknown := set(rules) - set(SETTINGS):
        parser.error(f"unknown rules {', '.join(sorted(unknown))}; known are {', '.join(SETTINGS)}")
    name, hidden, latent, epochs = ("digits", 32, 8, 40) if options.quick else ("mnist", 128, 64, 0)
    given = {} if options.quick else {"data_dir": options.data_dir}
    images, test = (
        np.concatenate(
            [
                np.asarray(batch.inputs)
                for batch in pc.data.load(
                    name, split=split, normalize=False, batch_size=size, shuffle=False, **given
                )
            ]
        )
        for split, size in (
            ("train", 479 if options.quick else 1000),
            ("test", 360 if options.quick else 1000),
        )
    )
    unseen = pc.data.from_arrays(None, test, batch_size=len(test) // 10, shuffle=False)
    print(f"{latent} principal components: {components(images, test, latent):.3e}", flush=True)
    path = options.output
    for rule in rules:
        trainers, values = [], []
        for seed in range(options.seeds):
            trainers.append(train(rule, seed, images, hidden, latent, epochs))
            values.append(trainers[-1].evaluate(unseen)["squared_error"])
            short = pc.Reconstruction(SETTINGS[rule][1], initializer=ZEROS, code="latent")
            soon = trainers[-1].evaluate(unseen, reads=short)["squared_error"]
            print(f"{rule}, seed {seed}: {values[-1]:.3e}, in 20 steps {soon:.3e}", flush=True)
        print(f"{rule}, median: {statistics.median(values):.3e}")
        path = record_answer(
            f"decoder_{rule}",
            values,
            unit="mean squared error of a pixel",
            command="python scripts/decoder.py",
            path=options.output,
        )
        draw(trainers[0], images, test, (options.output or RESULTS / "x").parent / "decoder.png")
    print(f"wrote {path}")


if __name__ == "__main__":
    run_main(main)
