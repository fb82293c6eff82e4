"""Bidirectional predictive coding: one network classifies images and draws them.

    python scripts/bidirectional.py --data-dir DIR     about 4 minutes on 2 CPU cores

784-256-256-10, relu, every node predicted from below (alpha 1) and from above (alpha 1e-4), 20 inference
steps of 0.01, batches of 500, 10 epochs of 10,000 images. Expected, medians of three seeds: at least 96.4 %
of the 10,000 test images by the pass upward, and no less by inference (96.1 % of 1,000 published). The same
network draws an image from each label: clamp the label, begin at the pass downward and infer the image.
Then the smaller network of JPC, 784-256-10 after 300 batches of 64 with alpha 1e-3 downward: at least 94.0
%. Rates and initial weights were chosen on the last 5,000 training images; the published Adam at 1e-2 ends
at 94.5 % here.

With the image clamped and these alphas, what the network learns upward is close to backpropagation: the
small factor leaves the nodes at their predictions from below. Answers: `bidirectional_pass`,
`bidirectional_inference`, `bidirectional_jpc`, and a picture of what is drawn.
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

# U(+-1/sqrt(fan_in)), as PyTorch's and Equinox's linear layers have it
KERNEL = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
SETTLE = pc.inference.GradientDescent(0.05, momentum=0.9, num_steps=100)
CLASSIFY = pc.Equilibrium(SETTLE, read="label")
LEARN = pc.inference.GradientDescent(0.01, num_steps=20)
DRAW = pc.Equilibrium(LEARN, read="image", hide=(), initializer=pc.initializers.Downward())


def train(
    seed: int, data: pc.data.Dataset, hidden: tuple[int, ...], alpha_down: float, num_steps: int
) -> pc.Trainer:
    """Train both directions at once on images and labels."""
    spec = data.spec()
    network = pc.models.bidirectional(
        spec.inputs.shape[1],
        *hidden,
        spec.targets.shape[1],
        alpha_down=alpha_down,
        kernel_init=KERNEL,
        rngs=nnx.Rngs(seed),
    )
    rule = pc.learning.PredictiveCoding(LEARN)
    rate = optax.warmup_cosine_decay_schedule(0.0, 5e-3, num_steps // 10, num_steps)
    optimizer = optax.adamw(rate, b2=0.99, weight_decay=2.0)
    trainer = pc.Trainer(network, optimizer, learning=rule, seed=seed, progress=False)
    trainer.fit(data, num_steps=num_steps)
    return trainer


def draw(trainers: list[pc.Trainer], path: Path) -> None:
    """Draw every class by every seed's network."""
    classes = trainers[0].network.layer("label").out_features
    labels = pc.Evidence(targets=jnp.eye(classes))
    figure = pc.plotting.image_figure(
        np.concatenate([trainer.predict(labels, reads=DRAW) for trainer in trainers]),
        columns=classes,
        title="images inferred from clamped labels 0 to 9, one row a seed",
    )
    figure.savefig(path, dpi=110)


def main() -> None:
    """Train a network a seed, answer both ways, write the figures."""
    options = answer_parser(__doc__, quick="the embedded digits, small networks").parse_args()
    quick = options.quick
    given: dict = {"normalize": False} | ({} if quick else {"data_dir": options.data_dir})
    name, part, hidden, size = (
        ("digits", "train", (32,), 64) if quick else ("mnist", "train[:10000]", (256, 256), 500)
    )
    data = pc.data.load(name, split=part, batch_size=size, **given)
    small = pc.data.load(name, batch_size=64, **given)
    test = pc.data.load(name, split="test", batch_size=360 if quick else 1000, **given)
    trainers = []
    found: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        trainers.append(train(seed, data, hidden, 1e-4, 10 * data.num_batches))
        jpc = train(seed, small, hidden[:1], 1e-3, 300)
        for answer, value in (
            ("bidirectional_pass", trainers[-1].evaluate(test)["accuracy"]),
            ("bidirectional_inference", trainers[-1].evaluate(test, reads=CLASSIFY)["accuracy"]),
            ("bidirectional_jpc", jpc.evaluate(test)["accuracy"]),
        ):
            found.setdefault(answer, []).append(100 * value)
            print(f"seed {seed}, {answer}: {100 * value:.2f} %", flush=True)
    for answer, values in found.items():
        print(f"{answer}: median {statistics.median(values):.2f} %")
        command = "python scripts/bidirectional.py"
        record_answer(answer, values, unit="%", command=command, path=options.output)
    draw(trainers, (options.output or RESULTS / "x").parent / "bidirectional.png")


if __name__ == "__main__":
    run_main(main)
