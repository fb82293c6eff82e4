"""What can be done with a checkpoint: read it, put it into a network, go on training from it.

    python scripts/restore_checkpoint.py
    python scripts/restore_checkpoint.py --folder checkpoints     # keeps them, to look at

About 10 seconds on 2 CPU cores. Trains 100 steps on the embedded digits, then (1) reads the arrays
alone, (2) writes them into a fresh network, (3) restores a Trainer and trains on to step 200, which ends
bitwise where an uninterrupted run of 200 steps does. Expected last line: "resumed and uninterrupted
parameters are equal: True".
"""

import argparse
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import pcflax as pc


def make_network(seed: int = 0) -> pc.PCNetwork:
    """64-100-10."""
    rngs = nnx.Rngs(seed)
    return pc.PCNetwork(
        [pc.PCDense(64, 100, activation=jnp.tanh, rngs=rngs), pc.PCDense(100, 10, rngs=rngs)]
    )


def make_trainer(network: pc.PCNetwork, folder: Path) -> pc.Trainer:
    """Adam on predictive coding, with checkpoints."""
    inference = pc.inference.GradientDescent(optax.sgd(0.05), num_steps=10)
    return pc.Trainer(
        network,
        optax.adam(1e-3),
        learning=pc.learning.PredictiveCoding(inference),
        checkpoints=pc.Checkpoints(folder, keep_best=("eval/accuracy", "max")),
        progress=False,
    )


def main() -> None:
    """Save, read, restore, resume."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="a new one; a temporary one unless given")
    options = parser.parse_args()
    if options.folder is not None and options.folder.exists():
        parser.error(f"--folder {options.folder} is there already; choose a new one")
    with tempfile.TemporaryDirectory(prefix="pcflax-") as temporary:
        show(options.folder or Path(temporary, "kept"), Path(temporary, "straight"))


def show(folder: Path, other: Path) -> None:
    """Train and save in one folder, use what was saved, and compare with a run in the other."""
    train = pc.data.load("digits", split="train[:90%]")
    validation = pc.data.load(
        "digits", split="train[90%:]", batch_size=144
    )  # which chooses the best
    first = make_trainer(make_network(), folder)
    first.fit(train, num_steps=100, eval_data=validation, eval_every=50)

    checkpoint = pc.load_checkpoint(folder)
    kernel = checkpoint.parameters["layer_0"]["linear"]["kernel"]
    print(f"step {checkpoint.step}, first kernel {kernel.shape}, metrics {checkpoint.metrics}")

    network = make_network(seed=7)
    pc.load_checkpoint(folder, network, best=True)
    inputs = next(iter(validation)).inputs
    print(f"prediction of the best: {network.predict(inputs).argmax(axis=-1)[:10]}")

    resumed = make_trainer(make_network(seed=7), folder)
    print(f"restored step {resumed.restore()}")
    resumed.fit(train, num_steps=200, eval_data=validation, eval_every=50)

    straight = make_trainer(make_network(), other)
    straight.fit(train, num_steps=200, eval_data=validation, eval_every=50)
    pairs = zip(
        jax.tree.leaves(nnx.state(resumed.network, nnx.Param)),
        jax.tree.leaves(nnx.state(straight.network, nnx.Param)),
        strict=True,
    )
    equal = all(np.array_equal(one, other) for one, other in pairs)
    print(f"resumed and uninterrupted parameters are equal: {equal}")
    if not equal:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
