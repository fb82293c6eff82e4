"""The contract of a learning rule: a batch in, a new network out.

A rule is a frozen dataclass whose `update` is a pure function, called inside a compiled loop. Most
rules only compute a gradient: they subclass `AbstractGradientLearning` and implement `gradients`. A
rule that moves the weights during inference implements `update` itself.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from pcflax.networks import AbstractPCNetwork, SplitNetwork
from pcflax.networks.base import total_energy
from pcflax.typing import Activities, Energies, PRNGKey, PyTree


class LearningInfo(NamedTuple):
    """What a rule saw on one batch; what nobody looks at is not computed.

    Attributes:
        activities: where inference ended, by layer name.
        energies: {layer name: (batch,)} at those activities, before the weights moved.
        prediction: the network's feedforward prediction, (batch, *out), before inference saw any
            target.
    """

    activities: Activities
    energies: Energies
    prediction: Float[Array, " batch *out"]


class AbstractLearning(abc.ABC):
    """A rule that turns a batch into new parameters and a new optimizer state."""

    def check(self, network: AbstractPCNetwork) -> None:
        """Refuse a network that the rule cannot train; any will do unless a subclass, or its inference,
        says otherwise.

        Raises:
            ValueError: naming the layer.
        """
        inference = getattr(self, "inference", None)
        if inference is not None:
            inference.check(network)

    @abc.abstractmethod
    def update(
        self,
        network: SplitNetwork,
        optimizer: optax.GradientTransformation,
        optimizer_state: PyTree,
        inputs: Array | None,
        targets: Array | None,
        *,
        key: PRNGKey,
        step: Int[Array, ""] | int = 0,
    ) -> tuple[SplitNetwork, PyTree, LearningInfo]:
        """One step of learning on one batch; pure, called inside jit.

        Args:
            network: the network before the step.
            optimizer: turns a gradient of the batch-mean energy into updates.
            optimizer_state: its state.
            inputs: clamped below, or None.
            targets: clamped above, or None.
            key: the step's own randomness.
            step: batches learned from so far, for schedules.
        """


class AbstractGradientLearning(AbstractLearning):
    """A rule that computes a gradient, which the optimizer then turns into one update."""

    @abc.abstractmethod
    def gradients(
        self,
        network: SplitNetwork,
        inputs: Array | None,
        targets: Array | None,
        *,
        key: PRNGKey,
        step: Int[Array, ""] | int = 0,
    ) -> tuple[PyTree, LearningInfo]:
        """The gradient of the batch-mean energy, shaped as `network.parameters`, and what was seen."""

    def update(
        self, network, optimizer, optimizer_state, inputs, targets, *, key, step=0
    ) -> tuple[SplitNetwork, PyTree, LearningInfo]:
        """One optimizer update with this rule's gradient."""
        gradients, info = self.gradients(network, inputs, targets, key=key, step=step)
        value = jnp.mean(total_energy(info.energies))
        network, optimizer_state = apply(
            network, optimizer, optimizer_state, gradients, value=value
        )
        return network, optimizer_state, info


def apply(
    network: SplitNetwork,
    optimizer: optax.GradientTransformation,
    optimizer_state: PyTree,
    gradients: PyTree,
    *,
    value: Array,
) -> tuple[SplitNetwork, PyTree]:
    """The network and the optimizer state after one update with these gradients.

    `value` is the batch-mean energy, for transformations that want it.
    """
    updates, optimizer_state = optax.with_extra_args_support(optimizer).update(
        gradients, optimizer_state, network.parameters, value=value
    )
    parameters = optax.apply_updates(network.parameters, updates)
    return network.replace(parameters=parameters), optimizer_state


def mean_gradients(
    network: SplitNetwork,
    activities: Activities,
    inputs: Array | None,
    weights: Mapping[str, float | Array] | None = None,
) -> tuple[PyTree, Energies]:
    """The gradient of mean_i F_i over the parameters at fixed activities, and the energies there.

    `weights` are factors of the layers' energies by name, 1 unless given.
    """
    factors = weights or {}

    def mean_energy(parameters):
        energies = network.replace(parameters=parameters).bind(activities).energies(inputs)
        weighed = {name: factors.get(name, 1) * energy for name, energy in energies.items()}
        return jnp.mean(total_energy(weighed)), energies

    return jax.grad(mean_energy, has_aux=True)(network.parameters)


def prediction_of(network: AbstractPCNetwork, inputs: Array | None, batch_size: int) -> jax.Array:
    """The feedforward prediction of each example; without inputs, the prior's, repeated."""
    prediction = network.predict(inputs)
    return jax.tree.map(lambda p: jnp.broadcast_to(p, (batch_size, *p.shape[1:])), prediction)
