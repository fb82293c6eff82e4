"""Backpropagation on the same network and the same loss: the price of not inferring activities.

Loss: L = 1/B sum_i 1/2 ||y_i - mu_L(x_i)||^2, summed over classes, mean over the batch, which is
the learning energy of `bare_scan.py` at the feedforward start. Adam, one jitted and donated call
for K batches. The job's inference fields are ignored.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from . import Job, bare_scan

Layer = dict[str, jax.Array]
Batch = tuple[jax.Array, jax.Array]


def mean_loss(layers: list[Layer], inputs: jax.Array, targets: jax.Array) -> jax.Array:
    """1/B sum_i 1/2 ||y_i - mu_i||^2: summed over classes, mean over the batch."""
    return (
        0.5 * jnp.sum((targets - bare_scan.feedforward(layers, inputs)[-1]) ** 2) / targets.shape[0]
    )


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


class Contender(bare_scan.Contender):
    """One jitted, donated call that scans K batches of backpropagation."""

    name = "backprop (one call for K batches)"
    train = staticmethod(train)
