"""The jobs of the benchmark: what every contender trains, in numbers, with the data and its order.

Nothing here imports jax or any contender, because each contender runs in an environment of its own. Units
are those of pcflax: the energy of an example is 1/2 sum_l ||z_l - mu_l||^2, an activity step descends each
example's own energy, and the weights descend the mean over the batch. Next file to read: `worker.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Parameters = list[dict[str, np.ndarray]]


class Unsupported(Exception):
    """Raised by a contender for a job that its library cannot express; the message says why."""


@dataclass(frozen=True)
class Job:
    """One job.

    Models, with phi the activation, z_0 the input and z_L the target:

    - "mlp": mu_l = phi(z_{l-1} K_l + b_l), without phi in the last layer.
    - "residual": mu_1 = a_1 z_0 K_1, mu_l = z_{l-1} + a_l phi(z_{l-1}) K_l, mu_L = a_L phi(z_{L-1}) K_L,
      no biases; a is `multipliers` (muPC, arXiv 2505.13124).
    - "vgg5": mu_l = maxpool_2x2(phi(conv_3x3(z_{l-1}) + b_l)), padding "SAME", then a linear layer on the
      flattened (height, width, channels) without phi. Images are (height, width, channels).

    Attributes:
        name: how results are filed.
        model: one of the three above.
        widths: features of input, hidden layers and output; of "vgg5" the channels instead.
        activation: "tanh", "sigmoid", "relu" or "gelu" (its tanh form).
        batch_size: examples in a batch, B.
        num_inference_steps: gradient steps on the activities for each batch, T, from the feedforward
            start. Backpropagation ignores it.
        activity_step_size: of these steps.
        learning_rate: Adam's, with optax's other defaults (AdamW where `weight_decay` is not 0).
        weight_decay: of AdamW, decoupled, on kernels and biases.
        decay: factor on the learning rate every `decay_every` iterations, in stairs.
        decay_every: see `decay`; an epoch.
        learns: False for inference alone: activities are inferred and parameters stay.
        data: "mnist", "digits" or "cifar10", and with it the size of an example.
        iterations: of a round of timing.
    """

    name: str
    model: str = "mlp"
    widths: tuple[int, ...] = (784, 300, 300, 10)
    activation: str = "tanh"
    batch_size: int = 64
    num_inference_steps: int = 20
    activity_step_size: float = 0.003125
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    decay: float = 1.0
    decay_every: int = 1
    learns: bool = True
    data: str = "mnist"
    iterations: int = 100

    @property
    def depth(self) -> int:
        """L, the number of layers that predict."""
        return len(self.widths) - 1

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example: (features,), or (32, 32, 3) of "vgg5"."""
        return (32, 32, 3) if self.model == "vgg5" else (self.widths[0],)

    @property
    def multipliers(self) -> tuple[float, ...]:
        """a_l: those of muPC in a "residual" network, else ones."""
        if self.model != "residual":
            return (1.0,) * self.depth
        width = self.widths[1]
        hidden = 1 / math.sqrt(width * self.depth)
        return (1 / math.sqrt(self.widths[0]), *[hidden] * (self.depth - 2), 1 / width)

    def learning_rate_at(self, iteration: int) -> float:
        """The learning rate of an iteration, counted from 0."""
        return self.learning_rate * self.decay ** (iteration // self.decay_every)

    def make_parameters(self, seed: int) -> Parameters:
        """Initial weights, the same for every contender: kernels (in, out), or (3, 3, in, out), float32.

        Normal of variance 1/fan_in and zero biases; before sigmoids four times as large, which is how
        much flatter they are than tanh (Glorot & Bengio 2010); of a "residual" network normal of variance
        1 and no biases.
        """
        random = np.random.default_rng(seed)
        parameters = []
        for index, (below, above) in enumerate(zip(self.widths[:-1], self.widths[1:], strict=True)):
            shape: tuple[int, ...] = (below, above)
            if self.model == "vgg5" and index < self.depth - 1:
                shape = (3, 3, below, above)
            elif self.model == "vgg5":  # four pools leave 2 x 2 of 32 x 32
                shape = (4 * below, above)
            scale = 1.0 if self.model == "residual" else math.prod(shape[:-1]) ** -0.5
            if self.activation == "sigmoid" and index < self.depth - 1:
                scale *= 4
            layer = {"kernel": (scale * random.standard_normal(shape)).astype(np.float32)}
            if self.model != "residual":
                layer["bias"] = np.zeros(above, np.float32)
            parameters.append(layer)
        return parameters

    def make_batches(self, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Random inputs and one-hot targets for timing, (count, B, ...); times do not depend on them."""
        random = np.random.default_rng(seed)
        inputs = random.standard_normal((count, self.batch_size, *self.input_shape), np.float32)
        labels = random.integers(self.widths[-1], size=(count, self.batch_size))
        return inputs, np.eye(self.widths[-1], dtype=np.float32)[labels]

    def epoch(self, images: np.ndarray, labels: np.ndarray, seed: int, number: int) -> tuple:
        """The batches of one epoch in the order that every contender sees, (K, B, ...), remainder dropped."""
        order = np.random.default_rng([seed, number]).permutation(len(labels))
        count = len(labels) // self.batch_size
        order = order[: count * self.batch_size].reshape(count, self.batch_size)
        return images[order], np.eye(self.widths[-1], dtype=np.float32)[labels[order]]

    def check_batches(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        """Raise ValueError unless inputs are (K, B, *input_shape) and targets (K, B, widths[-1])."""
        for name, array, shape in (
            ("inputs", inputs, self.input_shape),
            ("targets", targets, (self.widths[-1],)),
        ):
            expected = (len(inputs), self.batch_size, *shape)
            if array.shape != expected:
                raise ValueError(
                    f"{name}: expected shape {expected} (batches, batch_size, features), got "
                    f"{array.shape}; cut the data into batches of the job's batch_size."
                )


JOBS = {
    job.name: job
    for job in (
        Job("notebook", iterations=500),
        Job(
            "cross-library",
            widths=(784, 512, 512, 10),
            activation="sigmoid",
            batch_size=250,
            activity_step_size=0.01,
            learning_rate=0.00373,
            weight_decay=1e-4,
            decay=0.94,
            decay_every=240,
            iterations=40,
        ),
        Job(
            "residual",
            model="residual",
            widths=(784, *[128] * 29, 10),
            activation="relu",
            num_inference_steps=30,
            activity_step_size=0.5 / 64,
            learning_rate=0.1,
            iterations=30,
        ),
        Job(
            "vgg5",
            model="vgg5",
            widths=(3, 32, 64, 128, 128, 10),
            activation="gelu",
            batch_size=16,
            num_inference_steps=7,
            activity_step_size=0.0235,
            learning_rate=2.66e-4,
            weight_decay=6.7e-3,
            data="cifar10",
            iterations=20,
        ),
        Job("tiny", widths=(64, 32, 32, 10), batch_size=32, data="digits", iterations=500),
        Job("inference", num_inference_steps=100, learns=False, iterations=50),
    )
}
