"""Predictive coding in bare jax, as fast as straightforward code gets: one call for K batches.

Energy of an example: F_i = 1/2 sum_l ||z_l - mu_l||^2, mu_l = tanh(z_{l-1} K_l + b_l) (no tanh in
the last layer), z_0 the input and z_L the target. Inference is gradient descent on sum_i F_i from
the feedforward start, so each example descends its own F_i; learning is Adam on the mean of F_i.
The same algorithm as `notebook_loop.py`, which leaves out the 1/2: its weight gradients are twice
these, a factor that Adam removes but for its eps (doubled there, optax's default here); then the
two end at the same parameters. Next file to read: `backprop.py`.
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


def predict_layers(layers: list[Layer], parents: list[jax.Array]) -> list[jax.Array]:
    """Predictions of the last len(layers) layers, (batch, in) -> (batch, out) each."""
    outputs = [
        z @ layer["kernel"] + layer["bias"] for layer, z in zip(layers, parents, strict=True)
    ]
    return [*map(jnp.tanh, outputs[:-1]), outputs[-1]]


def feedforward(layers: list[Layer], inputs: jax.Array) -> list[jax.Array]:
    """Every layer's prediction from the one below, (batch, features) -> L x (batch, out)."""
    outputs = [inputs]
    for layer in layers[:-1]:
        outputs.append(jnp.tanh(outputs[-1] @ layer["kernel"] + layer["bias"]))
    return [*outputs[1:], outputs[-1] @ layers[-1]["kernel"] + layers[-1]["bias"]]


def squared_errors(activities: list[jax.Array], predictions: list[jax.Array]) -> jax.Array:
    """1/2 sum ||z_l - mu_l||^2, summed over layers, features and the batch."""
    errors = [z - mu for z, mu in zip(activities, predictions, strict=True)]
    return 0.5 * sum((jnp.sum(error**2) for error in errors), start=jnp.zeros((), errors[0].dtype))


@partial(jax.jit, static_argnames="job", donate_argnames=("layers", "state"))
def train(
    layers: list[Layer], state: optax.OptState, inputs: jax.Array, targets: jax.Array, *, job: Job
) -> tuple[list[Layer], optax.OptState]:
    """Scan K training steps: inputs (K, batch, features), targets (K, batch, classes)."""
    optimizer = optax.adam(job.learning_rate)

    def step(carry: Any, batch: Batch) -> tuple[Any, None]:
        layers, state = carry
        clamped_input, target = batch
        *hidden, _ = feedforward(layers, clamped_input)
        # The clamped input makes the first prediction constant, and the start is that prediction.
        first_prediction = hidden[:1]

        def inference_energy(hidden: list[jax.Array]) -> jax.Array:
            above = predict_layers(layers[1:], hidden)
            return squared_errors([*hidden, target], [*first_prediction, *above])

        def descend(hidden: list[jax.Array], _: None) -> tuple[list[jax.Array], None]:
            gradients = jax.grad(inference_energy)(hidden)
            pairs = zip(hidden, gradients, strict=True)
            return [z - job.activity_step_size * gradient for z, gradient in pairs], None

        hidden, _ = jax.lax.scan(descend, hidden, length=job.num_inference_steps)

        def learning_energy(layers: list[Layer]) -> jax.Array:
            predictions = predict_layers(layers, [clamped_input, *hidden])
            return squared_errors([*hidden, target], predictions) / target.shape[0]

        updates, state = optimizer.update(jax.grad(learning_energy)(layers), state, layers)
        return (optax.apply_updates(layers, updates), state), None

    carry, _ = jax.lax.scan(step, (layers, state), (inputs, targets))
    return carry


class Contender:
    """One jitted, donated call that scans K batches, and in each scans the inference steps."""

    name = "bare scan (one call for K batches)"
    train = staticmethod(train)

    def __init__(self, job: Job, parameters: Sequence[dict[str, np.ndarray]]) -> None:
        """Copy the parameters (donation would delete them) and start Adam's state."""
        self.job = job
        self.layers = [{name: jnp.array(leaf) for name, leaf in p.items()} for p in parameters]
        self.state = optax.adam(job.learning_rate).init(self.layers)
        self.compiled_feedforward = jax.jit(feedforward)

    def run(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        """Train on inputs (K, batch, features) and targets (K, batch, classes); compiles per K."""
        self.job.check_batches(inputs, targets)
        self.layers, self.state = self.train(self.layers, self.state, inputs, targets, job=self.job)
        jax.block_until_ready((self.layers, self.state))

    def parameters(self) -> list[dict[str, np.ndarray]]:
        """Return the parameters, copied: {"kernel": (in, out), "bias": (out,)} a layer."""
        return [{name: np.array(leaf) for name, leaf in layer.items()} for layer in self.layers]

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Return the feedforward outputs, (batch, features) -> (batch, classes)."""
        return np.array(self.compiled_feedforward(self.layers, inputs)[-1])
