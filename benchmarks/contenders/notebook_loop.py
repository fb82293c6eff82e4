"""The notebook's own loop, in plain jax and optax: one jitted call for every inference step.

Energy (batch mean, no 1/2): F = 1/B sum_i sum_l ||z_l - mu_l||^2, z_L clamped to the target.
A batch: feedforward start, `num_inference_steps` calls of SGD on F in the activities, one call of
Adam on F in the parameters. As in the notebook, the start and the training loss run op by op.

Units. F is 2/B times the summed per-example energy with the 1/2, so the notebook's activity rate
is step * B / 2 (0.003125 -> 0.1 at B = 64). Its weight gradient is twice that of the mean energy
with the 1/2. Adam divides by the gradient's own size, so the factor acts through eps alone: 1e-8
here is 5e-9 in the other unit. With early gradients near 1e-6, as in this job, even that sets the
updates of 5 batches up to 1 % apart; ADAM_EPSILON = 2e-8 removes the difference.

Departures. (1) That epsilon: the notebook has optax's 1e-8. (2) The notebook's `update_params`
returns the optimizer state it was given, so its Adam takes a first step every time, close to
learning_rate * sign(gradient); that, not chance, is why its printed accuracies start low. Here
the state is kept, so that all contenders do the same job. (3) Layers are dicts, not Equinox
modules, so what `eqx.filter_jit` costs at each call is not timed. Next: `bare_scan.py`.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import Job, Parameters, Unsupported

Array = jax.Array | np.ndarray
Layer = dict[str, jax.Array]

ADAM_EPSILON = 2e-8  # doubled, because the gradients are: without the 1/2 of the other contenders


def apply_layer(layer: Layer, vector: Array, is_last: bool) -> jax.Array:
    """Prediction tanh(vector K + b), (in,) -> (out,), of one example; no tanh in the last layer."""
    output = jnp.dot(vector, layer["kernel"]) + layer["bias"]
    return output if is_last else jnp.tanh(output)


def predict_layer(model: list[Layer], index: int, activity: Array) -> jax.Array:
    """Prediction of layer `index`, (batch, in) -> (batch, out)."""
    is_last = index == len(model) - 1
    return jax.vmap(partial(apply_layer, model[index], is_last=is_last))(activity)


def start_activities(model: list[Layer], inputs: Array) -> list[jax.Array]:
    """Feedforward start: every layer's activity (batch, out) is its own prediction."""
    activities = [predict_layer(model, 0, inputs)]
    for index in range(1, len(model)):
        activities.append(predict_layer(model, index, activities[-1]))
    return activities


def mean_energy(
    model: list[Layer], activities: list[jax.Array], inputs: jax.Array, targets: jax.Array
) -> jax.Array:
    """F = 1/B sum_i sum_l ||z_l - mu_l||^2: summed over features, mean over the batch, no 1/2."""
    # The last activity is in the list, as in the notebook, but unused: its gradient is zero.
    total = jnp.asarray(0.0, targets.dtype)
    parents = [inputs, *activities[:-1]]
    for index, activity in enumerate([*activities[:-1], targets]):
        total += jnp.sum((activity - predict_layer(model, index, parents[index])) ** 2)
    return total / targets.shape[0]


def check_job(job: Job) -> None:
    """Raise Unsupported for a job that is not the notebook's."""
    if job.model != "mlp" or job.activation != "tanh" or job.weight_decay or not job.learns:
        raise Unsupported("it is the notebook's job alone: tanh, Adam")


class Contender:
    """The notebook's loop over batches and inference steps, in Python."""

    name = "notebook loop (plain jax)"
    packages = ("jax", "jaxlib", "optax")
    rule = "pc"

    def __init__(self, job: Job, parameters: Parameters) -> None:
        """Copy the parameters and make the two jitted steps (compiled at their first call)."""
        check_job(job)
        self.job = job
        self.model = [{name: jnp.array(leaf) for name, leaf in p.items()} for p in parameters]
        self.activity_optimizer = optax.sgd(job.activity_step_size * job.batch_size / 2)
        optimizer = optax.adam(job.learning_rate, eps=ADAM_EPSILON)
        self.optimizer_state = optimizer.init(self.model)
        self.train_loss = jnp.nan

        @jax.jit
        def update_activities(model, activities, state, inputs, targets):
            gradients = jax.grad(mean_energy, argnums=1)(model, activities, inputs, targets)
            updates, state = self.activity_optimizer.update(gradients, state, activities)
            return optax.apply_updates(activities, updates), state

        @jax.jit
        def update_parameters(model, activities, state, inputs, targets):
            gradients = jax.grad(mean_energy)(model, activities, inputs, targets)
            updates, state = optimizer.update(gradients, state, model)
            return optax.apply_updates(model, updates), state

        self.update_activities, self.update_parameters = update_activities, update_parameters

    def run(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        """Train on inputs (K, batch, features) and targets (K, batch, classes) in order."""
        self.job.check_batches(inputs, targets)
        for batch, labels in zip(np.asarray(inputs), np.asarray(targets), strict=True):
            activities = start_activities(self.model, batch)
            activity_state = self.activity_optimizer.init(activities)
            self.train_loss = jnp.mean((labels - activities[-1]) ** 2)
            for _ in range(self.job.num_inference_steps):
                activities, activity_state = self.update_activities(
                    self.model, activities, activity_state, batch, labels
                )
            self.model, self.optimizer_state = self.update_parameters(
                self.model, activities, self.optimizer_state, batch, labels
            )
        jax.block_until_ready((self.model, self.optimizer_state, self.train_loss))

    def parameters(self) -> Parameters:
        """Return the parameters, copied: {"kernel": (in, out), "bias": (out,)} a layer."""
        return [{name: np.array(leaf) for name, leaf in layer.items()} for layer in self.model]

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Return the feedforward outputs, (batch, features) -> (batch, classes)."""
        return np.array(start_activities(self.model, inputs)[-1])
