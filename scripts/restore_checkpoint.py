"""What can be done with a checkpoint: read it, put it into a network, go on training from it.

    python scripts/restore_checkpoint.py

About 10 seconds on 2 CPU cores. Trains 100 steps on the embedded digits, then (1) reads the arrays
alone, (2) writes them into a fresh network, (3) restores a Trainer and trains on to step 200, which ends
bitwise where an uninterrupted run of 200 steps does. Expected last line: "resumed and uninterrupted
parameters are equal: True".
"""

import tempfile

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


def make_trainer(network: pc.PCNetwork, folder: str) -> pc.Trainer:
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
    folder = tempfile.mkdtemp(prefix="pcflax-")
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

    straight = make_trainer(make_network(), tempfile.mkdtemp(prefix="pcflax-"))
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
