"""Associative memory: 50 MNIST images, recalled from their upper halves and from noisy cues; capacity curves.

    python scripts/memory.py --data-dir DIR     about 4 minutes on 2 CPU cores

Two memories. A generative one: a decoder 64-256-784 whose free code explains each image; a cue is a clamp,
and what is missing follows. A recurrent one: a node that predicts itself by weights without a diagonal
(Tang et al. 2023); a noisy cue is where it begins. Each stores 50 training images, others for each seed.
Expected of the generative memory: with the lower half covered, a mean squared error over all pixels of at
most 5e-5; with noise of sd 0.2, at most 8e-3; and the nearest stored image is the right one for all cues.
Answers: `memory_half`, `memory_noisy`, and the recurrent memory's beside them.

Then capacity, recurrent predictive coding beside Hopfield networks (written here, as baselines alone).
Recall of 2 to 12 binarised images, lower half covered, seven seeds, by the settings of the published task
(learning 200 x Adam 1e-4, recall 200 x .05). And sequences of random patterns of 100 bits, correlated:
predictive coding, which predicts each from the one before, beside asymmetric Hopfield networks of degree 1
and 2; the longest sequence of which less than 1 % of the bits come out wrong.
"""

from __future__ import annotations

import statistics
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

COUNT, NOISE = 50, 0.2
ZEROS = pc.initializers.Zeros()
SETTLE = pc.inference.GradientDescent(0.02, momentum=0.9, num_steps=3000)
NOTHING_FREE = pc.inference.GradientDescent(0.1, num_steps=0)


def generative(images: np.ndarray, seed: int, num_steps: int) -> pc.Trainer:
    """A decoder that has learned the images, a code for each."""
    network = pc.models.decoder(
        64,
        256,
        images.shape[1],
        activation=jnp.tanh,
        prior=pc.energies.Gaussian(1e-3),
        rngs=nnx.Rngs(seed),
    )
    rule = pc.learning.PredictiveCoding(
        pc.inference.GradientDescent(0.05, momentum=0.5, num_steps=30), initializer=ZEROS
    )
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, num_steps))
    return learn(network, optimizer, rule, images, seed, num_steps)


def recurrent(images: np.ndarray, seed: int, num_steps: int, rate: float = 1e-3) -> pc.Trainer:
    """A node that predicts itself, without a diagonal; nothing is free while it learns."""
    size = images.shape[1]
    zeros = nnx.initializers.zeros_init()
    layer = pc.PCDense(size, size, mask="no-diagonal", kernel_init=zeros, rngs=nnx.Rngs(seed))
    network = pc.PCGraph({"x": layer}, parents={"x": "x"}, output="x")
    rule = pc.learning.PredictiveCoding(NOTHING_FREE)
    return learn(network, optax.adam(rate), rule, images, seed, num_steps)


def learn(network, optimizer, rule, images, seed, num_steps) -> pc.Trainer:
    """Train on all images at once."""
    trainer = pc.Trainer(network, optimizer, learning=rule, seed=seed, progress=False)
    data = pc.data.from_arrays(None, images, batch_size=len(images))
    trainer.fit(data, num_steps=num_steps, log_every=num_steps)
    return trainer


def recalled(images: np.ndarray, mask: np.ndarray, seed: int, num_steps: int) -> dict:
    """Store images in both memories, and recall each from its half and from a noisy cue."""
    random = np.random.default_rng(seed)
    noisy = np.clip(images + NOISE * random.normal(size=images.shape), 0, 1).astype(np.float32)
    maker = generative(images, seed, num_steps)
    cleaner = pc.Reconstruction(SETTLE, initializer=ZEROS)
    attractor = recurrent(images, seed, num_steps // 4).network
    gentle, brief = (pc.inference.GradientDescent(0.1, num_steps=n) for n in (2000, 50))
    return {
        "noisy": noisy,
        "memory_half": maker.network.recall(images, mask, inference=SETTLE, initializer=ZEROS),
        "memory_noisy": maker.predict(pc.Evidence(targets=noisy), reads=cleaner),
        "memory_half_recurrent": attractor.recall(images, mask, inference=gentle),
        "memory_noisy_recurrent": attractor.recall(noisy, inference=brief),
    }


def nearest(found: np.ndarray, images: np.ndarray) -> float:
    """The share of recalled images whose nearest stored one is theirs."""
    distances = ((found[:, None] - images[None]) ** 2).sum(-1)
    return float(np.mean(distances.argmin(1) == np.arange(len(images))))


def hopfield(bits: np.ndarray, cue: np.ndarray, mask: np.ndarray, beta: float | None) -> np.ndarray:
    """Recall by a classical Hopfield network, or a modern one at inverse temperature beta."""
    state = np.where(mask, cue, 0.0)
    for _ in range(200):
        if beta is None:
            weights = bits.T @ bits / len(bits[0])
            np.fill_diagonal(weights, 0)
            state = np.sign(state @ weights)
        else:
            # similarity over what is known, so that what is covered says nothing
            scores = beta * (state * mask) @ bits.T
            scores = np.exp(scores - scores.max(1, keepdims=True))
            state = scores / scores.sum(1, keepdims=True) @ bits
        state = np.where(mask, cue, state)
    return state


def capacity(images: np.ndarray, mask: np.ndarray, counts, seeds: int) -> dict[str, np.ndarray]:
    """The share of wrong covered pixels for each number of stored binary images, (counts, seeds)."""
    found: dict[str, np.ndarray] = {
        name: np.zeros((len(counts), seeds))
        for name in ("predictive coding", "Hopfield", "modern Hopfield")
    }
    recall = pc.inference.GradientDescent(0.05, num_steps=200)
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(images))
        for row, count in enumerate(counts):
            bits = np.where(images[order[:count]] > 0.5, 1.0, -1.0).astype(np.float32)
            memory = recurrent(bits, seed, 200, rate=1e-4).network
            states = {
                "predictive coding": memory.recall(bits, mask, inference=recall),
                "Hopfield": hopfield(bits, bits, mask, None),
                "modern Hopfield": hopfield(bits, bits, mask, 1.0),
            }
            for name, state in states.items():
                found[name][row, seed] = np.mean(np.sign(state)[:, ~mask] != bits[:, ~mask])
    return found


def sequence_capacity(size: int, correlations, seed: int, longest: int) -> dict[str, list[int]]:
    """The longest sequence recalled with less than 1 % of its bits wrong, at each correlation."""
    found: dict[str, list[int]] = {
        name: [] for name in ("predictive coding", "degree 1", "degree 2")
    }
    for correlation in correlations:
        random = np.random.default_rng(seed)
        base = np.sign(random.normal(size=size))
        keep = random.random((longest, size)) < correlation
        bits = np.where(keep, base, np.sign(random.normal(size=(longest, size))))
        for name in found:
            best = 0
            for count in range(2, longest + 1, max(1, longest // 32)):
                part = bits[:count].astype(np.float32)
                if np.mean(_next(name, part, seed) != part[1:]) >= 0.01:
                    break
                best = count
            found[name].append(best)
    return found


def _next(name: str, bits: np.ndarray, seed: int) -> np.ndarray:
    """Every next pattern, from the one before it."""
    now, then = bits[:-1], bits[1:]
    if name != "predictive coding":
        degree = int(name[-1])
        return np.sign((now @ now.T / bits.shape[1]) ** degree @ then)
    size = bits.shape[1]
    zeros = nnx.initializers.zeros_init()
    network = pc.PCNetwork({"next": pc.PCDense(size, size, kernel_init=zeros, rngs=nnx.Rngs(seed))})
    rule = pc.learning.PredictiveCoding(NOTHING_FREE)
    trainer = pc.Trainer(network, optax.adam(1e-2), learning=rule, progress=False)
    data = pc.data.from_arrays(now, then, batch_size=len(now))
    trainer.fit(data, num_steps=300, log_every=300)
    return np.sign(trainer.predict(now))


def draw(images, mask, found, counts, wrong, correlations, longest, path: Path) -> None:
    """Draw cues and recalls of some images, and both capacity curves."""
    from matplotlib.figure import Figure

    side, shown = int(images.shape[1] ** 0.5), 8
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.5, 1])
    rows = {
        "stored": images,
        "covered": np.where(mask, images, 0.5),
        "generative": found["memory_half"],
        "recurrent": found["memory_half_recurrent"],
        "noisy": found["noisy"],
        "generative ": found["memory_noisy"],
        "recurrent ": found["memory_noisy_recurrent"],
    }
    axes = above.subplots(len(rows), shown)
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for axis, picture in zip(line, np.asarray(pictures), strict=False):
            axis.imshow(picture.reshape(side, side), cmap="gray", vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(name.strip(), rotation=0, ha="right", va="center", fontsize=8)
    left, right = below.subplots(1, 2)
    for name, values in wrong.items():
        mean, spread = (
            100 * values.mean(1),
            100 * values.std(1, ddof=1) if values.shape[1] > 1 else 0,
        )
        left.errorbar(counts, mean, spread, marker="o", capsize=2, label=name)
    left.set(xlabel="binary images stored", ylabel="covered pixels wrong, %")
    for name, values in longest.items():
        right.plot(correlations, values, marker="o", label=name)
    right.set(xlabel="correlation of patterns", ylabel="longest sequence recalled", yscale="symlog")
    for axis in (left, right):
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Store and recall, measure capacities, write the figures."""
    options = answer_parser(__doc__, quick="20 embedded digits, short curves").parse_args()
    quick = options.quick
    given = {} if quick else {"data_dir": options.data_dir, "split": "train[:5000]"}
    data = pc.data.load("digits" if quick else "mnist", normalize=False, shuffle=False, **given)
    pool = np.concatenate([np.asarray(batch.inputs) for batch in data.batches()])
    count, num_steps = (20, 200) if quick else (COUNT, 1200)
    mask = np.arange(pool.shape[1]) < pool.shape[1] // 2
    values: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        images = pool[seed * count : (seed + 1) * count]
        found = recalled(images, mask, seed, num_steps)
        for name in ("memory_half", "memory_noisy"):
            for answer in (name, f"{name}_recurrent"):
                recall = np.asarray(found[answer])
                values.setdefault(answer, []).append(float(np.mean((recall - images) ** 2)))
                right = 100 * nearest(recall, images)
                print(
                    f"seed {seed}, {answer}: {values[answer][-1]:.2e}, nearest right {right:.0f} %"
                )
    for name, own in values.items():
        print(f"{name}: median {statistics.median(own):.2e}")
        command = "python scripts/memory.py"
        unit = "mean squared error of a pixel in [0, 1]"
        record_answer(name, own, unit=unit, command=command, path=options.output)
    counts, seeds = ((2, 4), 2) if quick else ((2, 4, 6, 8, 10, 12), 7)
    wrong = capacity(pool, mask, counts, seeds)
    correlations = (0.0, 0.5) if quick else (0.0, 0.2, 0.4, 0.6, 0.8)
    longest = sequence_capacity(
        *((20, correlations, 0, 3) if quick else (100, correlations, 0, 128))
    )
    for name, own in wrong.items():
        print(f"{name}: covered pixels wrong {np.round(100 * own.mean(1), 2)} % at {counts} images")
    for name, lengths in longest.items():
        print(f"sequences, {name}: {lengths} at correlations {correlations}")
    picture = (options.output or RESULTS / "x").parent / "memory.png"
    draw(images, mask, found, counts, wrong, correlations, longest, picture)


if __name__ == "__main__":
    run_main(main)
