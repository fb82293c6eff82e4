"""The problem of an inference algorithm: a vector field over free coordinates, and a start.

Usually the field is the gradient of an energy, each example's own: `InferenceProblem`. The free
coordinates are the activities that nothing clamps. Another choice of coordinates is a subclass with its
own `start` and `decode` (errors instead of activities: `error_coordinates.py`); algorithms cannot tell.
Next file to read: `base.py`.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pcflax.dtypes import product, total
from pcflax.energies import total_energy
from pcflax.initializers import Feedforward
from pcflax.layers import Clamp, Evidence
from pcflax.layers.clamps import Known
from pcflax.networks import SplitNetwork
from pcflax.networks.batch_state import keeps_batch_state, with_batch_statistics
from pcflax.networks.given import says_nothing
from pcflax.settings import Settings
from pcflax.sharding.inside import split_examples
from pcflax.sharding.placement import LAYERS
from pcflax.typing import Activities, Energies, Initializer, PRNGKey, PyTree

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class VectorField(Settings, abc.ABC):
    """A vector field over free coordinates, for each example on its own; zero where inference ends.

    Attributes:
        network: the network without its activities.
        inputs: what layers without a node below predict from, or None.
        clamps: what is held fixed, by layer name.
        start: where the free coordinates begin; every leaf has the batch as its first axis. A layer
            that is clamped in part keeps coordinates for all its elements: those that are clamped do
            not count and have a field of zero.
    """

    network: SplitNetwork
    inputs: Any
    clamps: Mapping[str, Clamp]
    start: PyTree

    @abc.abstractmethod
    def field(self, coordinates: PyTree) -> tuple[Energies, PyTree]:
        """Return the energies by layer, which are looked at, and the field, which is followed."""

    def decode(self, coordinates: PyTree) -> Activities:
        """Return all activities, clamped ones included, that these coordinates stand for."""
        activities = dict(coordinates)
        for name, clamp in self.clamps.items():
            activities[name] = (
                clamp.apply(coordinates[name]) if name in coordinates else clamp.value
            )
        return activities

    def encode(self, activities: Activities) -> PyTree:
        """Return the coordinates that stand for these activities: what `decode` undoes."""
        return {name: activities[name] for name in self.start}

    def residual(self, gradient: PyTree) -> Float[Array, " batch"]:
        """Return the root mean square of dF_i/dz_i over the free elements; 0 where none is free."""
        squares = [jnp.sum(g * g, axis=range(1, g.ndim)) for g in jax.tree.leaves(gradient)]
        if not squares:
            return jnp.zeros((self.batch_size,))
        found = total(squares)
        count = sum(leaf[0].size for leaf in jax.tree.leaves(self.start))
        if self.partial:
            count = jnp.maximum(count - self._held_counts(), 1).astype(found.dtype)
        return jnp.sqrt(found / count)

    def predicted(self, network: SplitNetwork) -> Any:
        """Return a network's feedforward prediction of these examples, from all that is known but targets."""
        return network.bind().predict(self.inputs, batch_size=self.batch_size, clamps=self.clamps)

    @property
    def partial(self) -> dict[str, Clamp]:
        """The clamps of layers of which some elements are free."""
        return {name: clamp for name, clamp in self.clamps.items() if clamp.mask is not None}

    @property
    def batch_size(self) -> int:
        """How many examples there are."""
        return jax.tree.leaves((self.start, self.inputs, dict(self.clamps)))[0].shape[0]

    def restarted(self, activities: Activities) -> Self:
        """Return the same problem, begun at these activities."""
        return dataclasses.replace(self, start=self.encode(activities))

    def at(self, step: Int[Array, ""] | int) -> Self:
        """Return the problem as it is at this step of inference; the same, where nothing is scheduled."""
        del step
        return self

    @property
    def stable_part(self) -> Any:
        """The part of 2/lambda_max below which descent is stable: less where F moves along with z."""
        return 1.0

    @property
    def separable(self) -> bool:
        """Whether part of the batch may be solved apart from the rest.

        Not where a layer draws at random (dropout: another mask), or keeps state of the batch that is
        not known to be frozen, as that of normalizations is.
        """
        return not keeps_batch_state(self.network.bind())

    def take(self, examples: Int[Array, " some"]) -> Self:
        """Return the problem of some of the examples, by their places in the batch."""
        data = (self.inputs, self._whole_clamps(), self.start)
        inputs, clamps, start = jax.tree.map(lambda leaf: jnp.asarray(leaf)[examples], data)
        return dataclasses.replace(self, inputs=inputs, clamps=clamps, start=start)

    def for_each_example(self, solve: Callable[..., Result], *data: PyTree) -> Result:
        """Return `solve(problem, *data)` of each example alone, a batch of one, with the results stacked.

        For algorithms that choose their own steps: no example then depends on another. `data` are
        more arrays with the batch as first axis.

        Raises:
            ValueError: where examples cannot be solved apart; see `separable`.
        """
        if not self.separable:
            raise ValueError(
                "this algorithm solves each example alone, but the network draws at random or keeps "
                "state for the whole batch (dropout, say); take GradientDescent, or network.eval()"
                " and a network without such layers"
            )

        def alone(mapped):
            (inputs, clamps, start), data = jax.tree.map(lambda leaf: leaf[None], mapped)
            problem = dataclasses.replace(self, inputs=inputs, clamps=clamps, start=start)
            return jax.tree.map(lambda leaf: leaf[0], solve(problem, *data))

        return jax.vmap(alone)(((self.inputs, self._whole_clamps(), self.start), data))

    def held(self) -> PyTree:
        """Return Booleans shaped as the coordinates: True for elements that a mask clamps."""
        partial = self.partial
        return {
            name: partial[name].held() if name in partial else jnp.zeros(leaf.shape, jnp.bool_)
            for name, leaf in self.start.items()
        }

    def _whole_clamps(self) -> dict[str, Clamp]:
        """Return the clamps, each mask at its value's shape."""
        masked = {name: Clamp(clamp.value, clamp.held()) for name, clamp in self.partial.items()}
        return {**self.clamps, **masked}

    def _held_counts(self) -> Array:
        held = [clamp.held() for clamp in self.partial.values()]
        return sum(jnp.sum(mask, axis=range(1, mask.ndim)) for mask in held)  # type: ignore


@dataclasses.dataclass(frozen=True)
class InferenceProblem(VectorField):
    """Minimize F_i(z) over the free activities z of each example i on its own: the field is dF_i/dz_i.

    Attributes:
        weights: {layer name: factor of its energy, or a function of the inference step that returns it};
            1 for a layer that is not named.
        from_feedforward: whether it starts at the feedforward pass, where the errors of free layers are 0.
    """

    weights: Mapping[str, Any] = dataclasses.field(default_factory=dict, kw_only=True)
    from_feedforward: bool = dataclasses.field(default=False, kw_only=True)

    def restarted(self, activities: Activities) -> Self:
        """Return the same problem, begun at these activities."""
        return dataclasses.replace(super().restarted(activities), from_feedforward=False)

    def at(self, step: Int[Array, ""] | int) -> Self:
        """Return the problem with the weights of this step."""
        if not any(callable(weight) for weight in self.weights.values()):
            return self
        now = {name: w(step) if callable(w) else w for name, w in self.weights.items()}
        return dataclasses.replace(self, weights=now)

    def energies(self, coordinates: PyTree, layers: Collection[str] | None = None) -> Energies:
        """Return the energy of each example at each layer, or at these layers alone."""
        energies = self.network.bind(self.decode(coordinates)).energies(self.inputs, layers)
        if not self.weights:
            return energies
        return {
            name: product(self.weights.get(name, 1), energy) for name, energy in energies.items()
        }

    def energy(self, coordinates: PyTree) -> Float[Array, " batch"]:
        """Return F of each example."""
        return total_energy(self.energies(coordinates))

    def energy_and_gradient(self, coordinates: PyTree) -> tuple[Energies, PyTree]:
        """Return energies by layer, and dF_i/dz_i of each example.

        The examples do not touch each other, so the gradient of the sum over the batch is each
        example's own gradient: no division by the batch size anywhere.
        """
        here = dataclasses.replace(self, start=coordinates, from_feedforward=False)
        energies, gradient = _energy_and_gradient(here)
        return {name: energies[name] for name in self.network.names if name in energies}, gradient

    def gradient(self, coordinates: PyTree) -> PyTree:
        """Return dF_i/dz_i of each example."""
        return self.energy_and_gradient(coordinates)[1]

    def field(self, coordinates: PyTree) -> tuple[Energies, PyTree]:
        """Return energies and gradient."""
        return self.energy_and_gradient(coordinates)

    def activities_and_predictions(self, coordinates: PyTree) -> tuple[Activities, Activities]:
        """Return every layer's z and mu at these coordinates: what the energies are functions of."""
        activities = self.decode(coordinates)
        return activities, self.network.bind(activities).predictions(self.inputs)

    def energies_of_pairs(self, pairs: tuple[Activities, Activities]) -> Energies:
        """Return the energy of each example at each layer, as a function of activities and predictions."""
        activities, predictions = pairs
        bound = self.network.bind()
        return {
            name: product(
                self.weights.get(name, 1),
                bound.layer(name).energy(activities[node], predictions[name]),
            )
            for name, node in bound.wiring.targets.items()
        }


@jax.jit
def _energy_and_gradient(problem: InferenceProblem) -> tuple[Energies, PyTree]:
    """Return both at the start; compiled apart, so that jax traces them once and not at each place of use."""

    def summed(coordinates):
        energies = problem.energies(coordinates)
        return jnp.sum(total_energy(energies)), energies

    (_, energies), gradient = jax.value_and_grad(summed, has_aux=True)(problem.start)
    return energies, gradient


def make_problem(
    network: SplitNetwork,
    evidence: Evidence | Known,
    *,
    initializer: Initializer | Mapping[str, Array] | None = None,
    key: PRNGKey | None = None,
) -> InferenceProblem:
    """Return the problem of inferring what the evidence leaves free.

    Args:
        network: from `pc.networks.split`. Normalizations over the batch are frozen at the statistics of
            its feedforward pass; see `pcflax/networks/batch_state.py`.
        evidence: what is known, `pc.Evidence(inputs, targets, clamps=...)`.
        initializer: where the free activities start: the feedforward pass unless given; or activities
            by layer name.
        key: randomness for the initializer.

    Raises:
        ValueError, TypeError: for inputs, targets or clamps of a wrong shape or dtype, or a free layer
            whose energy can only be clamped.
    """
    known = network.bind().known(evidence)
    network = with_batch_statistics(network, known)
    bound = network.bind()
    start = {
        name: split_examples(value, *[LAYERS] * bound.layer(name).node_axis)
        for name, value in bound.start(known, initializer=initializer, key=key).items()
    }
    masks = {
        name: None if says_nothing(bound, name, clamp.mask) else clamp.mask
        for name, clamp in known.clamps.items()
    }
    whole = {name for name, mask in masks.items() if mask is None}
    for name in bound.names:
        energy = bound.layer(name).top_node_layer().energy
        if energy.clamped_only and name not in whole:
            raise ValueError(
                f"layer '{name}' is free, but its energy {type(energy).__name__} has no minimum over "
                f"a free activity; clamp it (give targets) or give the layer another energy"
                + " or mask"
                * (name in masks)
            )
    # as the start has them: checked, and in the dtype of the activities
    held = {name: Clamp(start[name], mask) for name, mask in masks.items()}
    free = {name: value for name, value in start.items() if name not in whole}
    forward = initializer is None or type(initializer) is Feedforward
    return InferenceProblem(network, known.inputs, held, free, from_feedforward=forward)
