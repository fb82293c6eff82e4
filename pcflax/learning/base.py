"""The contract of a learning rule: a batch in, a new network out.

A rule is a frozen dataclass whose `update` is a pure function, called inside a compiled loop. Most
rules only compute a gradient: they subclass `AbstractGradientLearning` and implement `gradients`. A
rule that moves the weights during inference implements `update` itself.
"""

from __future__ import annotations

import abc
from typing import NamedTuple

import jax
import optax
from jaxtyping import Array, Float

from pcflax.inference import AbstractInference
from pcflax.networks import AbstractPCNetwork, SplitNetwork
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
    ) -> tuple[SplitNetwork, PyTree, LearningInfo]:
        """One step of learning on one batch; pure, called inside jit."""


class AbstractGradientLearning(AbstractLearning):
    """A rule that computes a gradient, which the optimizer then turns into one update."""

    @abc.abstractmethod
    def gradients(
        self, network: SplitNetwork, inputs: Array | None, targets: Array | None, *, key: PRNGKey
    ) -> tuple[PyTree, LearningInfo]:
        """The gradient of the batch-mean energy, shaped as `network.parameters`, and what was seen."""

    def update(
        self, network, optimizer, optimizer_state, inputs, targets, *, key
    ) -> tuple[SplitNetwork, PyTree, LearningInfo]:
        """One optimizer update with this rule's gradient."""
        gradients, info = self.gradients(network, inputs, targets, key=key)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, network.parameters)
        parameters = optax.apply_updates(network.parameters, updates)
        return network.replace(parameters=parameters), optimizer_state, info


def check_inference(rule: object, inference: object) -> None:
    """Refuse what is not an inference algorithm.

    Raises:
        TypeError: naming the rule and what it got.
    """
    if not isinstance(inference, AbstractInference):
        raise TypeError(
            f"{type(rule).__name__} expected an inference algorithm such as "
            f"pc.inference.GradientDescent(optax.sgd(0.1), num_steps=20), got {inference!r}"
        )


def prediction_of(network: AbstractPCNetwork, inputs: Array | None, batch_size: int) -> jax.Array:
    """The feedforward prediction of each example; without inputs, the prior's, repeated."""
    prediction = network.predict(inputs)
    return jax.numpy.broadcast_to(prediction, (batch_size, *prediction.shape[1:]))
