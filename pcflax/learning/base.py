"""The contract of a learning rule: a batch in, a new network out.

A rule is a frozen dataclass whose `update` is a pure function, called inside a compiled loop. Most
rules only compute a gradient: they subclass `AbstractGradientLearning` and implement `gradients`. A
rule that moves the weights during inference implements `update` itself.
"""

from __future__ import annotations

import abc
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from pcflax.energies import total_energy
from pcflax.layers import Evidence
from pcflax.layers.clamps import Known, weighted_mean
from pcflax.networks import AbstractPCNetwork, SplitNetwork
from pcflax.settings import Settings
from pcflax.typing import Activities, Energies, PRNGKey, PyTree


class LearningInfo(NamedTuple):
    """The view of a rule on one batch; what nobody looks at is not computed.

    Attributes:
        activities: where inference ended, by layer name.
        energies: {layer name: (batch,)} at those activities, before the weights moved.
        prediction: the network's feedforward prediction, (batch, *out), before inference saw any
            target.
        status: (batch,), the `pc.inference.Status` of each example; None unless inference stops at a
            tolerance.
    """

    activities: Activities
    energies: Energies
    prediction: Float[Array, " batch *out"]
    status: Int[Array, " batch"] | None = None


class AbstractLearning(Settings, abc.ABC):
    """A rule that turns a batch into new parameters and a new optimizer state.

    Attributes:
        weighs_examples: whether the rule counts each example by the evidence's weights; training refuses
            weights where it says no.
        along_time: whether batches are sequences, (batch, time, *features).
        teaches_start: whether the rule adds the gradients of a start that learns.
    """

    weighs_examples: ClassVar[bool] = False
    along_time: ClassVar[bool] = False
    teaches_start: ClassVar[bool] = False

    def check(self, network: AbstractPCNetwork) -> None:
        """Refuse a network that the rule cannot train; any will do unless a subclass, or its inference,
        says otherwise.

        Raises:
            ValueError: naming the layer.
        """
        inference = getattr(self, "inference", None)
        if inference is not None:
            inference.check(network)
        learns = self.teaches_start and hasattr(getattr(self, "initializer", None), "learn")
        if network.wiring.amortizers and not learns:
            name, first = type(self).__name__, network.wiring.amortizers[0][0]
            taker = name if self.teaches_start else "pc.learning.PredictiveCoding"
            raise ValueError(
                f"the network has amortizers ({first}), which {name} would not train; give {taker} "
                f"initializer=pc.initializers.Amortized()"
            )

    @abc.abstractmethod
    def update(
        self,
        network: SplitNetwork,
        optimizer: optax.GradientTransformation,
        optimizer_state: PyTree,
        evidence: Evidence,
        *,
        key: PRNGKey,
        step: Int[Array, ""] | int = 0,
    ) -> tuple[SplitNetwork, PyTree, LearningInfo]:
        """Make one step of learning on one batch; pure, called inside jit.

        Args:
            network: the network before the step.
            optimizer: turns a gradient of the batch-mean energy into updates.
            optimizer_state: its state.
            evidence: what is known of the batch: inputs, targets, clamps.
            key: the step's own randomness.
            step: batches learned from so far, for schedules.
        """


class AbstractGradientLearning(AbstractLearning):
    """A rule that computes a gradient, which the optimizer then turns into one update."""

    @abc.abstractmethod
    def gradients(
        self,
        network: SplitNetwork,
        evidence: Evidence,
        *,
        key: PRNGKey,
        step: Int[Array, ""] | int = 0,
    ) -> tuple[PyTree, LearningInfo]:
        """Return the gradient of the batch-mean energy, shaped as `network.parameters`, and what was seen."""

    def update(
        self, network, optimizer, optimizer_state, evidence, *, key, step=0
    ) -> tuple[SplitNetwork, PyTree, LearningInfo]:
        """Make one optimizer update with this rule's gradient."""
        gradients, info = self.gradients(network, evidence, key=key, step=step)
        network, optimizer_state = apply(
            network, optimizer, optimizer_state, gradients, info.energies, weights=evidence.weights
        )
        return network, optimizer_state, info


def with_start(
    initializer: Any,
    gradients: PyTree,
    network: SplitNetwork,
    known: Known,
    activities: Activities,
) -> PyTree:
    """Return the gradients with those of a start that learns from where inference ended."""
    if not hasattr(initializer, "learn"):
        return gradients
    return jax.tree.map(jnp.add, gradients, initializer.learn(network, known, activities)[0])


def apply(
    network: SplitNetwork,
    optimizer: optax.GradientTransformation,
    optimizer_state: PyTree,
    gradients: PyTree,
    energies: Energies,
    *,
    weights: Float[Array, " batch"] | None = None,
) -> tuple[SplitNetwork, PyTree]:
    """Return the network and the optimizer state after one update with these gradients.

    The batch-mean energy, in which each example counts by its weight, is the `value` that some optax
    transformations ask for.
    """
    value = weighted_mean(total_energy(energies), weights)
    with jax.numpy_dtype_promotion("standard"):  # optax counts in integers
        updates, optimizer_state = optax.with_extra_args_support(optimizer).update(
            gradients, optimizer_state, network.parameters, value=value
        )
        parameters = optax.apply_updates(network.parameters, updates)
    return network.replace(parameters=parameters), optimizer_state
