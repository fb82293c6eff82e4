"""A small classifier whose features the Frechet distance of drawn digits is measured in.

    python scripts/fid_features.py --data-dir DIR     about 20 seconds on 2 CPU cores

784-256-64-10, gelu, backpropagation of the cross-entropy, seed 0, 3 epochs of MNIST: about 97 % of the test
images. It is kept in the folder --cache and found there the next time. `features(network, images)` are the
64 activities below its output, of images in [0, 1] as `pc.data.load("mnist", normalize=False)` has them;
`pc.analysis.frechet_distance` compares two sets of them. As a scale it prints the distances of one half of
the test images from the other half, and from that half with noise of deviation .1 and .3, which should rise.
Distances by this classifier compare with no others, nor those of few images with those of many.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import pcflax as pc


def classifier(name: str, cache: Path, *, data_dir: str | None = None, epochs: int = 3):
    """Return the trained network: from the cache, or trained now and kept there."""
    given = {"normalize": False} | ({} if data_dir is None else {"data_dir": data_dir})
    data = pc.data.load(name, batch_size=128, **given)
    pixels = data.spec().inputs.shape[1]
    network = pc.models.mlp(
        *(pixels, 256, 64, 10),
        activation=jax.nn.gelu,
        energy=pc.energies.Categorical(),
        rngs=nnx.Rngs(0),
    )
    trainer = pc.Trainer(
        network,
        optax.adam(1e-3),
        learning=pc.learning.Backprop(),
        checkpoints=pc.Checkpoints(cache / name, keep_latest=1),
        progress=False,
    )
    try:
        trainer.restore()
    except FileNotFoundError:
        trainer.fit(data, epochs=epochs)
    return trainer.network


def features(network: pc.PCNetwork, images: np.ndarray) -> np.ndarray:
    """Return the activities below the output, (images, 64)."""
    return np.asarray(network.feedforward(jnp.asarray(images, jnp.float32))["hidden_2"])


def main() -> None:
    """Train or find the classifier, and print a scale of distances."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", default=os.environ.get("TFDS_DATA_DIR"))
    parser.add_argument("--quick", action="store_true", help="the embedded digits")
    parser.add_argument("--cache", type=Path, default=Path("runs/fid_features"))
    options = parser.parse_args()
    name, size = ("digits", 360) if options.quick else ("mnist", 10000)
    own = {} if options.quick else {"data_dir": options.data_dir}
    network = classifier(name, options.cache, epochs=20 if options.quick else 3, **own)
    (batch,) = pc.data.load(name, split="test", normalize=False, batch_size=size, **own)
    images, labels = np.asarray(batch.inputs), np.asarray(batch.targets)
    right = np.mean(np.argmax(network.predict(batch.inputs), axis=1) == labels.argmax(axis=1))
    print(f"accuracy {100 * right:.2f} %")
    first, second = np.split(images, 2)
    random = np.random.default_rng(0)
    for noise in (0.0, 0.1, 0.3):
        noisy = np.clip(second + noise * random.standard_normal(second.shape), 0, 1)
        distance = pc.analysis.frechet_distance(features(network, first), features(network, noisy))
        print(f"noise {noise}: distance {distance:.3f}")


if __name__ == "__main__":
    main()
