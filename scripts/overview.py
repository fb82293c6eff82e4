"""The picture on the first page: inference, rules, health and drawing, on the embedded digits.

    python scripts/overview.py     about half a minute on 2 CPU cores, no data set needed

One network, 64-100-100-10 with tanh, trained 300 batches by four rules from the same start; test accuracy of
each (the pass upward), and of the one trained by predictive coding how the energies of its layers go while it
infers, and how far inference takes each layer to its equilibrium. Beside it a bidirectional network of the
same data, whose images are inferred from clamped labels. Expected: above 96 % by every rule. Writes
docs/images/overview.png.
"""

import argparse
import sys
from pathlib import Path

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import pcflax as pc

INFERENCE = pc.inference.GradientDescent(0.1, momentum=0.7, num_steps=20)
SPEEDS = {
    "20 steps of 0.003, close to backpropagation": pc.inference.GradientDescent(0.2 / 64),
    "20 steps of 0.1, momentum 0.7": INFERENCE,
}
RULES = {
    "predictive coding": pc.learning.PredictiveCoding(INFERENCE),
    "incremental": pc.learning.IncrementalPC(pc.inference.GradientDescent(0.1, num_steps=5)),
    "centred nudging": pc.learning.Nudged(INFERENCE, beta=0.5, centred=True),
    "backpropagation": pc.learning.Backprop(),
}


def train(rule, num_steps):
    """A network trained by a rule, and its accuracy by batch."""
    rngs = nnx.Rngs(0)
    network = pc.PCNetwork(
        {
            "hidden_1": pc.PCDense(64, 100, activation=jnp.tanh, rngs=rngs),
            "hidden_2": pc.PCDense(100, 100, activation=jnp.tanh, rngs=rngs),
            "output": pc.PCDense(100, 10, rngs=rngs),
        }
    )
    rate = 2e-4 if isinstance(rule, pc.learning.IncrementalPC) else 1e-3
    trainer = pc.Trainer(network, optax.adam(rate), learning=rule, progress=False)
    test = pc.data.load("digits", split="test", batch_size=360)
    history = trainer.fit(
        pc.data.load("digits"), num_steps=num_steps, eval_data=test, eval_every=20
    )
    return trainer, history


def drawn(num_steps):
    """One image for each label, inferred by a network that also classifies."""
    network = pc.models.bidirectional(64, 64, 10, alpha_up=1.0, alpha_down=1e-3, rngs=nnx.Rngs(0))
    descent = pc.inference.GradientDescent(0.01, num_steps=20)
    rule = pc.learning.PredictiveCoding(descent)
    trainer = pc.Trainer(network, optax.adamw(4e-3), learning=rule, progress=False)
    trainer.fit(pc.data.load("digits", normalize=False), num_steps=num_steps)
    start = pc.initializers.Downward()
    reading = pc.Equilibrium(descent, read="image", hide=(), initializer=start)
    return np.asarray(trainer.predict(pc.Evidence(targets=jnp.eye(10)), reads=reading))


def draw(path, num_steps):
    """Make the four panels; return the last accuracies in percent."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.4), layout="constrained")
    last = {}
    for name, rule in RULES.items():
        trainer, history = train(rule, num_steps)
        if name == "predictive coding":
            learned = trainer.network
        steps, values = history.steps("eval/accuracy"), history["eval/accuracy"]
        last[name] = 100 * values[-1]
        axes[0, 1].plot(steps, 100 * np.asarray(values), label=f"{name}, {last[name]:.1f} %")
    axes[0, 1].set(xlabel="batch", ylabel="test accuracy (%)", title="One network, any rule")
    axes[0, 1].legend(loc="lower right")

    batch = next(iter(pc.data.load("digits", batch_size=256)))
    result = learned.infer(batch.inputs, batch.targets, inference=INFERENCE, trace=True)
    for name, energy in result.trace.energies.items():
        axes[0, 0].plot(np.asarray(energy).mean(axis=1), label=name)
    axes[0, 0].plot(np.asarray(result.trace.energy).mean(axis=1), "k--", label="total")
    title = "Inference: the output's error moves into the layers"
    axes[0, 0].set(xlabel="step of inference", ylabel="energy of an example (nats)", title=title)
    axes[0, 0].legend()

    title = "Is it predictive coding? Way to the equilibrium"
    for place, (label, inference) in enumerate(SPEEDS.items()):
        rule = pc.learning.PredictiveCoding(inference)
        found = pc.analysis.health(learned, batch.inputs, batch.targets, learning=rule).inference
        closed = [100 * float(found.layer_gap_closed[name]) for name in learned.names]
        where = np.arange(len(closed)) + 0.4 * place
        axes[1, 0].barh(where, closed, height=0.36, label=label)
    axes[1, 0].set_yticks(np.arange(len(learned.names)) + 0.2, learned.names)
    axes[1, 0].set(xlim=(0, 100), xlabel="part of the energy gap closed (%)", title=title)
    axes[1, 0].legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=1)

    images = np.pad(drawn(num_steps).reshape(2, 5, 8, 8), ((0, 0), (0, 0), (1, 1), (1, 1)))
    axes[1, 1].imshow(images.transpose(0, 2, 1, 3).reshape(20, 50), cmap="gray")
    axes[1, 1].set(title="And back: images from the labels 0 to 9", xticks=[], yticks=[])
    figure.get_layout_engine().set(h_pad=0.15, hspace=0.03)
    figure.savefig(path, dpi=120)
    return last


def main():
    """Draw the picture and print the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).resolve().parent.parent / "docs/images/overview.png"
    parser.add_argument("--output", type=Path, default=default)
    parser.add_argument("--num-steps", type=int, default=300)
    options = parser.parse_args()
    for name, accuracy in draw(options.output, options.num_steps).items():
        print(f"{name}: {accuracy:.2f} % of the test digits")
    return 0


if __name__ == "__main__":
    sys.exit(main())
