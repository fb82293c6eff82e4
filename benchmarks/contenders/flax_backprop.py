"""Backpropagation in Flax NNX on the same network and loss: the price of not inferring activities.

Loss: L = 1/B sum_i 1/2 ||y_i - mu_L(x_i)||^2, summed over classes, mean over the batch, which is the
learning energy of `bare_scan.py` at the feedforward start. Layers are `nnx.Linear` and `nnx.Conv`; the
module is split once and K batches are scanned in one jitted, donated call, the fastest way to drive it.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from . import Job, Parameters, Unsupported
from .bare_scan import ACTIVATIONS, calls, make_optimizer


class Network(nnx.Module):
    """The network of a job, with these parameters."""

    def __init__(self, job: Job, parameters: Parameters) -> None:
        """Set every kernel and bias."""
        self.job = nnx.static(job)
        layers: list[Any] = []
        for given in parameters:
            *window, below, above = given["kernel"].shape
            shared: dict[str, Any] = {"use_bias": "bias" in given, "rngs": nnx.Rngs(0)}
            layer: Any = (
                nnx.Conv(below, above, tuple(window), **shared)
                if window
                else nnx.Linear(below, above, **shared)
            )
            layer.kernel[...] = jnp.array(given["kernel"])
            if "bias" in given:
                layer.bias[...] = jnp.array(given["bias"])
            layers.append(layer)
        self.layers = nnx.List(layers)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """(batch, ...) -> (batch, classes)."""
        job, value = self.job, inputs
        activation = ACTIVATIONS[job.activation]
        for index, layer in enumerate(self.layers):
            is_last = index == job.depth - 1
            if job.model == "residual":
                change = job.multipliers[index] * layer(activation(value) if index else value)
                value = change if is_last or not index else value + change
            elif is_last:
                value = layer(value.reshape(len(value), -1))
            else:
                value = activation(layer(value))
                if job.model == "vgg5":
                    value = nnx.max_pool(value, (2, 2), strides=(2, 2))
        return value


@partial(jax.jit, static_argnames=("graph", "job"), donate_argnames=("state", "optimizer_state"))
def train(graph, state, optimizer_state, inputs, targets, *, job: Job):
    """Scan K training steps: inputs (K, batch, ...), targets (K, batch, classes)."""
    optimizer = make_optimizer(job)

    def mean_loss(state, batch, labels):
        return 0.5 * jnp.sum((labels - nnx.merge(graph, state)(batch)) ** 2) / len(labels)

    def step(carry, batch):
        state, optimizer_state = carry
        gradients = jax.grad(mean_loss)(state, *batch)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, state)
        return (optax.apply_updates(state, updates), optimizer_state), None

    return jax.lax.scan(step, (state, optimizer_state), (inputs, targets))[0]


class Contender:
    """One jitted, donated call that scans K batches of backpropagation."""

    name = "Flax NNX backprop (one call for K batches)"
    packages = ("jax", "jaxlib", "flax", "optax")
    rule = "backprop"

    def __init__(self, job: Job, parameters: Parameters) -> None:
        """Build the network and start Adam's state."""
        if not job.learns:
            raise Unsupported("backpropagation has no inference")
        self.job = job
        self.graph, self.state = nnx.split(Network(job, parameters))
        self.optimizer_state = make_optimizer(job).init(self.state)
        self.compiled = jax.jit(lambda state, inputs: nnx.merge(self.graph, state)(inputs))

    def run(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        """Train on K batches in order; compiles per K."""
        self.job.check_batches(inputs, targets)
        for batches in calls(self.job, inputs, targets):
            self.state, self.optimizer_state = train(
                self.graph, self.state, self.optimizer_state, *batches, job=self.job
            )
        jax.block_until_ready((self.state, self.optimizer_state))

    def parameters(self) -> Parameters:
        """Return the parameters, copied, in the form in which they were given."""
        layers = nnx.merge(self.graph, self.state).layers
        return [
            {
                name: np.array(getattr(layer, name)[...])
                for name in ("kernel", "bias")
                if getattr(layer, name) is not None
            }
            for layer in layers
        ]

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Return the feedforward outputs, (batch, ...) -> (batch, classes)."""
        return np.array(self.compiled(self.state, inputs))
