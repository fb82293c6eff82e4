"""Predictive coding in bare jax, as fast as straightforward code gets: one call for K batches.

Energy of an example: F_i = 1/2 sum_l ||z_l - mu_l||^2, with the predictions mu_l of `jobs.Job`, z_0 the
input and z_L the target. Inference is gradient descent on sum_i F_i from the feedforward start, so each
example descends its own F_i; learning is Adam on the mean of F_i. The same algorithm as
`notebook_loop.py`, which leaves out the 1/2: its weight gradients are twice these, a factor that Adam
removes but for its eps (doubled there, optax's default here); then the two end at the same parameters.
XLA runs convolutions inside a loop many times slower on CPUs, so in "vgg5" the inference steps are unrolled
and there every batch is a call of its own (`calls`).
Next file to read: `flax_backprop.py`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import Job, Parameters

Layer = dict[str, jax.Array]
Batch = tuple[jax.Array, jax.Array]
ACTIVATIONS = {
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
}


def make_optimizer(job: Job) -> optax.GradientTransformation:
    """Adam or AdamW at the job's rate, falling in stairs where it falls."""
    rate: Any = job.learning_rate
    if job.decay != 1:
        rate = optax.exponential_decay(rate, job.decay_every, job.decay, staircase=True)
    return (
        optax.adamw(rate, weight_decay=job.weight_decay) if job.weight_decay else optax.adam(rate)
    )


def predict_layer(job: Job, index: int, layer: Layer, below: jax.Array) -> jax.Array:
    """Prediction of layer `index` from the activity below, (batch, ...) -> (batch, ...)."""
    activation, is_last = ACTIVATIONS[job.activation], index == job.depth - 1
    if job.model == "residual":
        source = activation(below) if index else below
        change = job.multipliers[index] * (source @ layer["kernel"])
        return change if is_last or not index else below + change
    if job.model == "vgg5" and not is_last:
        output = jax.lax.conv_general_dilated(
            below, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.lax.reduce_window(
            activation(output + layer["bias"]),
            -jnp.inf,
            jax.lax.max,
            (1, 2, 2, 1),
            (1, 2, 2, 1),
            "VALID",
        )
    output = below.reshape(len(below), -1) @ layer["kernel"] + layer["bias"]
    return output if is_last else activation(output)


def feedforward(job: Job, layers: list[Layer], inputs: jax.Array) -> list[jax.Array]:
    """Every layer's prediction from the one below, (batch, ...) -> L arrays (batch, ...)."""
    outputs = [inputs]
    for index, layer in enumerate(layers):
        outputs.append(predict_layer(job, index, layer, outputs[-1]))
    return outputs[1:]


def energy(job: Job, layers: list[Layer], activities: list[jax.Array], first: int) -> jax.Array:
    """1/2 sum ||z_l - mu_l||^2 over the batch and the layers from `first` on; activities from z_0 on."""
    total = jnp.zeros(())
    for index in range(first, job.depth):
        prediction = predict_layer(job, index, layers[index], activities[index])
        total += 0.5 * jnp.sum((activities[index + 1] - prediction) ** 2)
    return total


def infer(job: Job, layers: list[Layer], inputs: jax.Array, targets: jax.Array) -> list[jax.Array]:
    """The hidden activities after T steps from the feedforward start."""
    *start, _ = feedforward(job, layers, inputs)
    first_prediction = start[0]  # the clamped input makes it constant

    def inference_energy(hidden: list[jax.Array]) -> jax.Array:
        own = 0.5 * jnp.sum((hidden[0] - first_prediction) ** 2)
        return own + energy(job, layers, [inputs, *hidden, targets], 1)

    def descend(hidden: list[jax.Array], _: None) -> tuple[list[jax.Array], None]:
        gradients = jax.grad(inference_energy)(hidden)
        pairs = zip(hidden, gradients, strict=True)
        return [z - job.activity_step_size * gradient for z, gradient in pairs], None

    unroll = job.num_inference_steps if job.model == "vgg5" else 1
    return jax.lax.scan(descend, start, length=job.num_inference_steps, unroll=unroll)[0]


def predictive_coding(job: Job, layers: list[Layer], inputs: Any, targets: Any) -> list[Layer]:
    """Gradient of the mean energy at the inferred activities."""
    hidden = infer(job, layers, inputs, targets)

    def learning_energy(layers: list[Layer]) -> jax.Array:
        return energy(job, layers, [inputs, *hidden, targets], 0) / len(targets)

    return jax.grad(learning_energy)(layers)


@partial(jax.jit, static_argnames=("job", "gradient"), donate_argnames=("layers", "state"))
def train(
    layers: list[Layer],
    state: optax.OptState,
    inputs: jax.Array,
    targets: jax.Array,
    *,
    job: Job,
    gradient: Any = predictive_coding,
) -> tuple[list[Layer], optax.OptState]:
    """Scan K training steps: inputs (K, batch, ...), targets (K, batch, classes)."""
    optimizer = make_optimizer(job)

    def step(carry: Any, batch: Batch) -> tuple[Any, None]:
        layers, state = carry
        updates, state = optimizer.update(gradient(job, layers, *batch), state, layers)
        return (optax.apply_updates(layers, updates), state), None

    carry, _ = jax.lax.scan(step, (layers, state), (inputs, targets))
    return carry


@partial(jax.jit, static_argnames="job")
def infer_all(layers: list[Layer], inputs: jax.Array, targets: jax.Array, *, job: Job) -> Any:
    """Scan the inference of K batches: hidden activities, each (K, batch, ...)."""
    return jax.lax.scan(
        lambda _, batch: (None, infer(job, layers, *batch)), None, (inputs, targets)
    )


def calls(job: Job, inputs: np.ndarray, targets: np.ndarray) -> list[Batch]:
    """What to give in one call: all K batches, or on a CPU one of "vgg5"."""
    if job.model != "vgg5" or jax.default_backend() != "cpu":
        return [(inputs, targets)]
    return [(inputs[k : k + 1], targets[k : k + 1]) for k in range(len(inputs))]


class Contender:
    """One jitted, donated call that scans K batches, and in each scans the inference steps."""

    name = "bare jax (one call for K batches)"
    packages = ("jax", "jaxlib", "optax")
    rule = "pc"

    def __init__(self, job: Job, parameters: Parameters) -> None:
        """Copy the parameters (donation would delete them) and start Adam's state."""
        self.job = job
        self.layers = [{name: jnp.array(leaf) for name, leaf in p.items()} for p in parameters]
        self.state = make_optimizer(job).init(self.layers)
        self.compiled_feedforward = jax.jit(feedforward, static_argnums=0)

    def run(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        """Train on, or infer, K batches in order; compiles per K."""
        self.job.check_batches(inputs, targets)
        if not self.job.learns:
            jax.block_until_ready(infer_all(self.layers, inputs, targets, job=self.job))
            return
        for batches in calls(self.job, inputs, targets):
            self.layers, self.state = train(self.layers, self.state, *batches, job=self.job)
        jax.block_until_ready((self.layers, self.state))

    def parameters(self) -> Parameters:
        """Return the parameters, copied, in the form in which they were given."""
        return [{name: np.array(leaf) for name, leaf in layer.items()} for layer in self.layers]

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Return the feedforward outputs, (batch, ...) -> (batch, classes)."""
        return np.array(self.compiled_feedforward(self.job, self.layers, inputs)[-1])
