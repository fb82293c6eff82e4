"""What every benchmark contender is given and must answer: one job, one protocol.

The job is the one of the notebook that the project starts from: a multilayer perceptron
mu_l = tanh(z_{l-1} K_l + b_l), without tanh in the last layer, trained on one-hot targets with
squared errors and Adam. All contenders start from the same parameters and see the same batches,
so that they differ in their code alone. Next file to read: `notebook_loop.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

Parameters = list[dict[str, np.ndarray]]


@dataclass(frozen=True)
class Job:
    """The training job. The activation is tanh after every layer but the last.

    Attributes:
        widths: features of the input, of each hidden layer and of the output.
        batch_size: examples in a batch, B.
        num_inference_steps: gradient steps on the activities for each batch.
        activity_step_size: step on each example's own energy 1/2 sum_l ||z_l - mu_l||^2. The
            notebook descends the batch mean without the 1/2 at the rate 0.1, which here is
            2 * 0.1 / 64 = 0.003125. Backpropagation ignores it.
        learning_rate: Adam's, with optax's other defaults.
    """

    widths: tuple[int, ...] = (784, 300, 300, 10)
    batch_size: int = 64
    num_inference_steps: int = 20
    activity_step_size: float = 0.003125
    learning_rate: float = 1e-3

    def check_batches(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        """Raise ValueError unless inputs are (K, B, widths[0]) and targets (K, B, widths[-1])."""
        for name, array, width in (
            ("inputs", inputs, self.widths[0]),
            ("targets", targets, self.widths[-1]),
        ):
            expected = (len(inputs), self.batch_size, width)
            if array.shape != expected:
                raise ValueError(
                    f"{name}: expected shape {expected} (batches, batch_size, features), got "
                    f"{array.shape}; cut the data into batches of the job's batch_size."
                )


class Contender(Protocol):
    """One implementation of the job; each module of this package has a class of this name."""

    name: str

    def __init__(self, job: Job, parameters: Sequence[dict[str, np.ndarray]]) -> None:
        """Copy the parameters, one {"kernel": (in, out), "bias": (out,)} a layer, float32."""
        ...

    def run(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        """Train on K batches in order, and return when the device is done.

        Parameters and optimizer state carry over from call to call.

        Args:
            inputs: float32, (K, batch, features).
            targets: float32, one-hot, (K, batch, classes).
        """
        ...

    def parameters(self) -> Parameters:
        """Return a copy of the parameters, in the form in which they were given."""
        ...

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Return the feedforward outputs (batch, classes) of inputs (batch, features)."""
        ...
