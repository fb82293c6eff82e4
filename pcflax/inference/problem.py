"""What an inference algorithm is given: a per-example energy over free coordinates, and a start.

The free coordinates here are the activities that nothing clamps. Another choice of coordinates (errors
instead of activities, say) is a subclass with its own `start` and `decode`; algorithms cannot tell.
Next file to read: `base.py`.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pcflax.networks import SplitNetwork
from pcflax.networks.base import Initializer, total_energy
from pcflax.typing import Activities, Energies, PRNGKey, PyTree


@dataclasses.dataclass(frozen=True)
class InferenceProblem:
    """Minimise F_i(z) over the free activities z of each example i on its own.

    Attributes:
        network: the network without its activities.
        inputs: what the first layer is predicted from, or None.
        clamped: the activities held fixed, by layer name.
        start: where the free coordinates begin; every leaf has the batch as its first axis.
    """

    network: SplitNetwork
    inputs: Array | None
    clamped: Activities
    start: PyTree

    def decode(self, coordinates: PyTree) -> Activities:
        """All activities, clamped ones included, that these coordinates stand for."""
        return {**coordinates, **self.clamped}

    def energies(self, coordinates: PyTree) -> Energies:
        """The energy of each example at each layer."""
        return self.network.bind(self.decode(coordinates)).energies(self.inputs)

    def energy_and_gradient(self, coordinates: PyTree) -> tuple[Energies, PyTree]:
        """Energies by layer, and dF_i/dz_i of each example.

        The examples do not touch each other, so the gradient of the sum over the batch is each
        example's own gradient: no division by the batch size anywhere.
        """

        def summed(coordinates):
            energies = self.energies(coordinates)
            return jnp.sum(total_energy(energies)), energies

        (_, energies), gradient = jax.value_and_grad(summed, has_aux=True)(coordinates)
        return energies, gradient


def make_problem(
    network: SplitNetwork,
    inputs: Array | None,
    targets: Array | None,
    *,
    initializer: Initializer | None = None,
    key: PRNGKey | None = None,
) -> InferenceProblem:
    """The problem of inferring the free activities when `inputs` and `targets` are clamped.

    Args:
        network: from `pc.networks.split`.
        inputs: clamped below, or None.
        targets: clamped above, or None.
        initializer: where the free activities start: the feedforward pass unless given.
        key: randomness for the initializer.

    Raises:
        ValueError, TypeError: for inputs or targets of a wrong shape or dtype, or a free layer whose
            energy can only be clamped.
    """
    bound = network.bind()
    start = bound.start(inputs, targets, initializer=initializer, key=key)
    clamped_names = bound.clamps(inputs, targets)
    for name in bound.names:
        energy = bound.layer(name).energy
        if energy.clamped_only and name not in clamped_names:
            raise ValueError(
                f"layer '{name}' is free, but its energy {type(energy).__name__} has no minimum over "
                f"a free activity; clamp it (give targets) or give the layer another energy"
            )
    clamped = {name: start[name] for name in clamped_names}
    free = {name: value for name, value in start.items() if name not in clamped}
    return InferenceProblem(network, inputs, clamped, free)


def residual(gradient: PyTree, batch_size: int) -> Float[Array, " batch"]:
    """Root mean square over all free elements of dF_i/dz_i, for each example; 0 where none is free.

    >>> import jax.numpy as jnp
    >>> residual({"a": jnp.array([[3.0]]), "b": jnp.array([[4.0]])}, 1)
    Array([3.535534], dtype=float32)
    """
    leaves = jax.tree.leaves(gradient)
    count = sum(leaf[0].size for leaf in leaves)
    if count == 0:
        return jnp.zeros((batch_size,))
    squares = sum(jnp.sum(leaf * leaf, axis=range(1, leaf.ndim)) for leaf in leaves)
    return jnp.sqrt(squares / count)
