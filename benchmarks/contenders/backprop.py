"""Backpropagation on the same network and the same loss: the price of not inferring activities.

Loss: L = 1/B sum_i 1/2 ||y_i - mu_L(x_i)||^2, summed over classes, mean over the batch, which is
the learning energy of `bare_scan.py` at the feedforward start. Adam, one jitted and donated call
for K batches. The job's inference fields are ignored.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import Job

Layer = dict[str, jax.Array]
Batch = tuple[jax.Array, jax.Array]


def feedforward(layers: list[Layer], inputs: jax.Array) -> jax.Array:
    """Outputs of the network, (batch, features) -> (batch, classes)."""
    activity = inputs
    for layer in layers[:-1]:
        activity = jnp.tanh(activity @ layer["kernel"] + layer["bias"])
    return activity @ layers[-1]["kernel"] + layers[-1]["bias"]


def mean_loss(layers: list[Layer], inputs: jax.Array, targets: jax.Array) -> jax.Array:
    """1/B sum_i 1/2 ||y_i - mu_i||^2: summed over classes, mean over the batch."""
    return 0.5 * jnp.sum((targets - feedforward(layers, inputs)) ** 2) / targets.shape[0]


@partial(jax.jit, static_argnames="job", donate_argnames=("layers", "state"))
def train(
    layers: list[Layer], state: optax.OptState, inputs: jax.Array, targets: jax.Array, *, job: Job
) -> tuple[list[Layer], optax.OptState]:
    """Scan K training steps: inputs (K, batch, features), targets (K, batch, classes)."""
    optimizer = optax.adam(job.learning_rate)

    def step(carry: Any, batch: Batch) -> tuple[Any, None]:
        layers, state = carry
        updates, state = optimizer.update(jax.grad(mean_loss)(layers, *batch), state, layers)
        return (optax.apply_updates(layers, updates), state), None

    carry, _ = jax.lax.scan(step, (layers, state), (inputs, targets))
    return carry


class Contender:
    """One jitted, donated call that scans K batches of backpropagation."""

    name = "backprop (one call for K batches)"

    def __init__(self, job: Job, parameters: Sequence[dict[str, np.ndarray]]) -> None:
        """Copy the parameters (donation would delete them) and start Adam's state."""
        self.job = job
        self.layers = [{name: jnp.array(leaf) for name, leaf in p.items()} for p in parameters]
        self.state = optax.adam(job.learning_rate).init(self.layers)
        self.compiled_feedforward = jax.jit(feedforward)

    def run(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        """Train on inputs (K, batch, features) and targets (K, batch, classes); compiles per K."""
        self.job.check_batches(inputs, targets)
        self.layers, self.state = train(self.layers, self.state, inputs, targets, job=self.job)
        jax.block_until_ready((self.layers, self.state))

    def parameters(self) -> list[dict[str, np.ndarray]]:
        """Return the parameters, copied: {"kernel": (in, out), "bias": (out,)} a layer."""
        return [{name: np.array(leaf) for name, leaf in layer.items()} for layer in self.layers]

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Return the feedforward outputs, (batch, features) -> (batch, classes)."""
        return np.array(self.compiled_feedforward(self.layers, inputs))
