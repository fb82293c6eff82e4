"""Every kind of model, tiny, as a Trainer and data; as a script, each trains until it is killed."""

import os
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import pcflax as pc

DRAW = np.random.default_rng(0)
CODES = DRAW.normal(size=(12, 3)).astype(np.float32)
IMAGES = DRAW.normal(size=(12, 6)).astype(np.float32)
LABELS = np.eye(3, dtype=np.float32)[DRAW.integers(3, size=12)]
KNOWN = DRAW.random((12, 1)) > 0.4
DESCENT = pc.inference.GradientDescent(0.1, num_steps=3)


def mlp():
    return pc.models.mlp(6, 5, 3, rngs=nnx.Rngs(0))


def decoder():
    return pc.models.decoder(3, 5, 6, activation=jnp.tanh, rngs=nnx.Rngs(0))


def memory():
    layer = pc.PCDense(6, 6, mask="no-diagonal", rngs=nnx.Rngs(0))
    return pc.PCGraph({"x": layer}, parents={"x": "x"}, output="x")


def data_of(inputs, targets, **options):
    return pc.data.from_arrays(inputs, targets, batch_size=4, **options)


# name: network, rule, data
FAMILIES = {
    "generator": lambda: (decoder(), pc.learning.PredictiveCoding(DESCENT), data_of(None, IMAGES)),
    "bidirectional": lambda: (
        pc.models.bidirectional(6, 5, 3, rngs=nnx.Rngs(0)),
        pc.learning.PredictiveCoding(DESCENT),
        data_of(IMAGES, LABELS),
    ),
    "hybrid": lambda: (
        pc.models.hybrid(3, 5, 6, rngs=nnx.Rngs(0)),
        pc.learning.PredictiveCoding(DESCENT, pc.initializers.Amortized()),
        data_of(LABELS, IMAGES),
    ),
    "memory": lambda: (memory(), pc.learning.IncrementalPC(DESCENT), data_of(None, IMAGES)),
    "temporal": lambda: (
        pc.models.temporal(3, 6, rngs=nnx.Rngs(0)),
        pc.learning.Temporal(DESCENT, every="step"),
        data_of(None, np.stack([IMAGES, IMAGES[::-1], IMAGES * 2], axis=1)),
    ),
    "persistent": lambda: (
        mlp(),
        pc.learning.PredictiveCoding(DESCENT, pc.initializers.Persistent()),
        data_of(IMAGES, LABELS),
    ),
    "missing labels": lambda: (
        mlp(),
        pc.learning.PredictiveCoding(DESCENT),
        data_of(IMAGES, (LABELS, KNOWN)),
    ),
    "langevin": lambda: (
        decoder(),
        pc.learning.PredictiveCoding(
            pc.inference.Langevin(0.05, burn_in=1, num_samples=2, keep_samples=True)
        ),
        data_of(None, IMAGES),
    ),
}


def train(name, folder, num_steps, *, resume=False, every=5):
    """Train a family, with checkpoints on the way, and return its Trainer."""
    network, rule, data = FAMILIES[name]()
    trainer = pc.Trainer(
        network,
        optax.adamw(1e-2),
        learning=rule,
        checkpoints=pc.Checkpoints(folder, every=every, keep_latest=3),
        progress=False,
        seed=3,
    )
    if resume:
        trainer.restore()
    trainer.fit(data, num_steps=trainer.step + num_steps if resume else num_steps, log_every=2)
    return trainer


if __name__ == "__main__":  # forks, before jax has begun anything: importing it takes longest
    for name in FAMILIES:
        if os.fork() == 0:
            train(name, Path(sys.argv[1]) / name, 10**9)
    for _ in FAMILIES:
        os.wait()
