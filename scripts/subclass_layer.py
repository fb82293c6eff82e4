"""Research code: a layer of one's own, trained, saved and restored with nothing else to write.

    python scripts/subclass_layer.py

About 10 seconds on 2 CPU cores. A residual bottleneck, mu = z + up(gelu(down(z))), stands in the middle
of a chain on the embedded digits. Expected: test accuracy of at least 0.95, and the same accuracy from
the checkpoint restored into a fresh network.
"""

import argparse
import tempfile

import jax.numpy as jnp
import optax
from flax import nnx

import pcflax as pc


class Bottleneck(pc.PCLayer):
    """Predicts the activity below plus a correction that passes through a narrow layer."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs):
        super().__init__(energy=pc.energies.Gaussian())
        self.down = nnx.Linear(width, hidden, rngs=rngs)
        self.up = nnx.Linear(hidden, width, rngs=rngs)

    def predict(self, below):
        """(batch, width) -> (batch, width)."""
        return below + self.up(nnx.gelu(self.down(below)))


def make_network(seed: int) -> pc.PCNetwork:
    """64-128-[128]-10."""
    rngs = nnx.Rngs(seed)
    return pc.PCNetwork(
        {
            "input": pc.PCDense(64, 128, activation=jnp.tanh, rngs=rngs),
            "bottleneck": Bottleneck(128, 32, rngs=rngs),
            "output": pc.PCLayer(nnx.Linear(128, 10, rngs=rngs), energy=pc.energies.Gaussian()),
        }
    )


def main() -> None:
    """Train, restore into a fresh network, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-steps", type=int, default=400)
    parser.add_argument("--run-dir", help="folder of the checkpoints; a temporary one unless given")
    options = parser.parse_args()
    run_dir = options.run_dir or tempfile.mkdtemp(prefix="pcflax-")

    train, test = pc.data.load("digits"), pc.data.load("digits", split="test", batch_size=360)
    inference = pc.inference.GradientDescent(optax.sgd(0.05), num_steps=20)
    trainer = pc.Trainer(
        make_network(seed=0),
        optax.adam(1e-3),
        learning=pc.learning.PredictiveCoding(inference),
        checkpoints=pc.Checkpoints(run_dir),
    )
    trainer.fit(train, num_steps=options.num_steps, eval_data=test, eval_every=100)
    accuracy = trainer.evaluate(test)["accuracy"]

    other = make_network(seed=1)
    checkpoint = pc.load_checkpoint(run_dir, other)
    again = pc.Trainer(other, optax.adam(1e-3), learning=trainer.learning, progress=False)
    restored = again.evaluate(test)["accuracy"]
    print(f"trained: {accuracy:.4f}   restored from step {checkpoint.step}: {restored:.4f}")
    if restored != accuracy:
        raise SystemExit("the restored network differs")


if __name__ == "__main__":
    main()
