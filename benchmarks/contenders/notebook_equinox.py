"""The notebook's loop in the notebook's own stack: Equinox modules, `eqx.filter_jit`, optax.

The same algorithm, start and order of work as `notebook_loop.py` (read its docstring for units and for
the two departures from the notebook, which hold here too); what it adds is what a user of the notebook
pays for at each call: Equinox takes the model apart and puts it together around every jitted function.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import Job, Parameters
from .notebook_loop import ADAM_EPSILON, check_job


def make_model(parameters: Parameters) -> list[eqx.nn.Sequential]:
    """One Sequential a layer, with these kernels (in, out) and biases (out,)."""
    model = []
    for index, layer in enumerate(parameters):
        features_in, features_out = layer["kernel"].shape
        linear = eqx.nn.Linear(features_in, features_out, key=jax.random.key(0))
        linear = eqx.tree_at(
            lambda node: (node.weight, node.bias),
            linear,
            (jnp.array(layer["kernel"].T), jnp.array(layer["bias"])),
        )
        is_last = index == len(parameters) - 1
        model.append(eqx.nn.Sequential([linear] if is_last else [linear, eqx.nn.Lambda(jnp.tanh)]))
    return model


def start_activities(model: list, inputs: np.ndarray) -> list[jax.Array]:
    """Feedforward start, op by op as in the notebook: (batch, features) -> L x (batch, out)."""
    activities = [jax.vmap(model[0])(inputs)]
    for layer in model[1:]:
        activities.append(jax.vmap(layer)(activities[-1]))
    return activities


def mean_energy(model: list, activities: list, inputs: jax.Array, targets: jax.Array) -> jax.Array:
    """1/B sum_i sum_l ||z_l - mu_l||^2, the last activity clamped to the target; no 1/2."""
    parents = [inputs, *activities[:-1]]
    total = jnp.zeros(())
    for layer, parent, activity in zip(model, parents, [*activities[:-1], targets], strict=True):
        total += jnp.sum((activity - jax.vmap(layer)(parent)) ** 2)
    return total / targets.shape[0]


@eqx.filter_jit
def update_activities(model, activities, optimizer, state, inputs, targets):
    """One step of the activity optimizer."""
    gradients = jax.grad(mean_energy, argnums=1)(model, activities, inputs, targets)
    updates, state = optimizer.update(gradients, state, activities)
    return eqx.apply_updates(activities, updates), state


@eqx.filter_jit
def update_parameters(model, activities, optimizer, state, inputs, targets):
    """One step of the parameter optimizer."""
    gradients = eqx.filter_grad(mean_energy)(model, activities, inputs, targets)
    updates, state = optimizer.update(gradients, state, model)
    return eqx.apply_updates(model, updates), state


class Contender:
    """The notebook's loop over batches and inference steps, in Python, over Equinox modules."""

    name = "notebook loop (Equinox)"
    packages = ("jax", "jaxlib", "equinox", "optax")
    rule = "pc"

    def __init__(self, job: Job, parameters: Parameters) -> None:
        """Build the model with these parameters and start Adam's state."""
        check_job(job)
        self.job = job
        self.model = make_model(parameters)
        self.activity_optimizer = optax.sgd(job.activity_step_size * job.batch_size / 2)
        self.optimizer = optax.adam(job.learning_rate, eps=ADAM_EPSILON)
        self.optimizer_state = self.optimizer.init(eqx.filter(self.model, eqx.is_array))
        self.train_loss = jnp.nan

    def run(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        """Train on inputs (K, batch, features) and targets (K, batch, classes) in order."""
        self.job.check_batches(inputs, targets)
        for batch, labels in zip(np.asarray(inputs), np.asarray(targets), strict=True):
            activities = start_activities(self.model, batch)
            state = self.activity_optimizer.init(activities)
            self.train_loss = jnp.mean((labels - activities[-1]) ** 2)
            for _ in range(self.job.num_inference_steps):
                activities, state = update_activities(
                    self.model, activities, self.activity_optimizer, state, batch, labels
                )
            self.model, self.optimizer_state = update_parameters(
                self.model, activities, self.optimizer, self.optimizer_state, batch, labels
            )
        jax.block_until_ready(
            (eqx.filter(self.model, eqx.is_array), self.optimizer_state, self.train_loss)
        )

    def parameters(self) -> Parameters:
        """Return the parameters, copied: {"kernel": (in, out), "bias": (out,)} a layer."""
        return [
            {"kernel": np.array(layer[0].weight).T.copy(), "bias": np.array(layer[0].bias)}
            for layer in self.model
        ]

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Return the feedforward outputs, (batch, features) -> (batch, classes)."""
        return np.array(start_activities(self.model, inputs)[-1])
