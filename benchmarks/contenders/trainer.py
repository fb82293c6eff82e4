"""pcflax as its users run it: `pc.Trainer.fit` on a data set of arrays."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import pcflax as pc

from . import Job


class Contender:
    """A `pc.Trainer` with `PredictiveCoding` and `GradientDescent`, its history and metrics on."""

    name = "pcflax Trainer"

    def __init__(self, job: Job, parameters: Sequence[dict[str, np.ndarray]]) -> None:
        """Build the network with these parameters."""
        self.job = job
        self.network = pc.PCNetwork(
            [
                pc.PCDense(
                    below,
                    above,
                    activation=jnp.tanh if index < len(parameters) - 1 else None,
                    rngs=nnx.Rngs(0),
                )
                for index, (below, above) in enumerate(
                    zip(job.widths[:-1], job.widths[1:], strict=True)
                )
            ]
        )
        for layer, given in zip(self.network.layers, parameters, strict=True):
            layer.linear.kernel[...] = jnp.array(given["kernel"])
            layer.linear.bias[...] = jnp.array(given["bias"])
        inference = pc.inference.GradientDescent(
            optax.sgd(job.activity_step_size), num_steps=job.num_inference_steps
        )
        self.trainer = pc.Trainer(
            self.network,
            optax.adam(job.learning_rate),
            learning=pc.learning.PredictiveCoding(inference),
            progress=False,
        )
        self._data: tuple[int, pc.data.Dataset] | None = None

    def run(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        """Train on inputs (K, batch, features) and targets (K, batch, classes) in order."""
        self.job.check_batches(inputs, targets)
        if self._data is None or self._data[0] != id(inputs):
            data = pc.data.from_arrays(
                inputs.reshape(-1, inputs.shape[-1]),
                targets.reshape(-1, targets.shape[-1]),
                batch_size=self.job.batch_size,
                shuffle=False,
            )
            self._data = (id(inputs), data)
        self.trainer.fit(self._data[1], num_steps=self.trainer.step + len(inputs))

    def parameters(self) -> list[dict[str, np.ndarray]]:
        """Return the parameters, copied: {"kernel": (in, out), "bias": (out,)} a layer."""
        return [
            {
                "kernel": np.array(layer.linear.kernel[...]),
                "bias": np.array(layer.linear.bias[...]),
            }
            for layer in self.network.layers
        ]

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Return the feedforward outputs, (batch, features) -> (batch, classes)."""
        return self.trainer.predict(inputs)
