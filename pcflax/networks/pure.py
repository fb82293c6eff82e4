"""A network as one pure value, for compiled code.

Users hold objects; compiled programs want trees of arrays. `split` takes a network apart once, and
`SplitNetwork.bind` puts a copy together again **inside** the traced function, with the activities
that it is given. Everything that a layer writes while it predicts (batch statistics, random counters)
then happens to the copy and is dropped, so an energy is a pure function of the activities however
often inference evaluates it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array

from pcflax.dtypes import product
from pcflax.energies import total_energy
from pcflax.layers.clamps import weighted_mean
from pcflax.sharding.placement import AXES
from pcflax.typing import Activities, Energies, Network, PyTree
from pcflax.variables import Activity


@runtime_checkable
class Bound(Protocol):
    """What a network that is put together again offers to the functions of this file."""

    numerics: Any

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The names of all layers."""
        ...

    def energies(self, inputs: Any = None, layers: Any = None) -> Energies:
        """Return the energy of each example at each layer, or at these, at the stored activities."""
        ...


Net = TypeVar("Net", bound=Bound)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["parameters", "activities", "other"],
    meta_fields=["graphdef", "names"],
)
@dataclasses.dataclass(frozen=True)
class SplitNetwork(Generic[Net]):
    """A network without its activities: a pytree that passes through jit, grad and scan.

    Attributes:
        graphdef: the static structure.
        parameters: the `nnx.Param` arrays, the leaves that learning changes, by layer name:
            {"hidden_1": {"linear": {"kernel": ..., "bias": ...}}, ...}.
        activities: empty arrays that keep the activities' places.
        other: every other kind of state (batch statistics, random keys), by layer name.
        names: the layers' names, in the network's order.
    """

    graphdef: nnx.GraphDef
    parameters: PyTree
    activities: PyTree
    other: PyTree
    names: tuple[str, ...]

    def bind(self, activities: Activities | None = None) -> Net:
        """Return a fresh copy of the network that holds `activities`; call it inside traced code."""
        states = []
        for tree in (self.parameters, self.activities, self.other):
            layers = {name: own for name, own in tree.items() if name in self.names}
            rest = {name: own for name, own in tree.items() if name not in self.names}
            states.append({**rest, **({"layers": layers} if layers else {})})
        network: Any = nnx.merge(self.graphdef, *states, copy=True)
        if not self.other:
            network.numerics = network.numerics._replace(stateful=False)
        if activities is not None:
            for name, value in activities.items():
                layer = getattr(network.layers, name)
                layer.activity.set_value(
                    jnp.moveaxis(value, layer.node_axis, 0) if layer.node_axis else value
                )
        return network

    def energies(self, activities: Activities, inputs: Any) -> Energies:
        """Return the energy of each example at each layer, at these activities."""
        return self.bind(activities).energies(inputs)

    def mean_gradients(
        self,
        activities: Activities,
        inputs: Any,
        weights: Mapping[str, float | Array] | None = None,
        *,
        clamps: Mapping[str, Any] | None = None,
        untouched: tuple[str, ...] = (),
        of_examples: Array | None = None,
    ) -> tuple[PyTree, Energies]:
        """Return the gradient of mean_i w_i F_i over the parameters, and the energies.

        Args:
            activities: held fixed.
            inputs: what the layers without a node below predict from.
            weights: factors of the layers' energies by name, 1 unless given; (batch,) for factors of
                single examples.
            clamps: of the activities, where it is known. An error that is rounding alone then counts as
                0 in the other layers: no weight learns from it.
            untouched: free nodes whose error is known to be 0.
            of_examples: (batch,), w_i; 1 unless given.
        """
        factors = weights or {}

        def mean_energy(parameters):
            bound = self.replace(parameters=parameters).bind(activities)
            free = () if clamps is None else tuple(n for n in self.names if n not in clamps)
            bound.numerics = bound.numerics._replace(rounds=free, untouched=untouched)
            energies = bound.energies(inputs)
            weighed = {
                name: product(factors.get(name, 1), energy) for name, energy in energies.items()
            }
            return weighted_mean(total_energy(weighed), of_examples), energies

        return jax.grad(mean_energy, has_aux=True)(self.parameters)

    @property
    def mesh(self) -> Mesh | None:
        """The mesh of devices that its arrays lie on; None on one device, and in traced code."""
        for leaf in jax.tree.leaves((self.parameters, self.other)):
            place = None if isinstance(leaf, Tracer) else getattr(leaf, "sharding", None)
            mesh = place.mesh if isinstance(place, NamedSharding) else None
            if isinstance(mesh, Mesh) and set(mesh.axis_names) <= set(AXES):
                return mesh if mesh.are_all_axes_auto else None
            return None
        return None

    def on_mesh(self) -> contextlib.AbstractContextManager:
        """Tell what is compiled within of the mesh, if there is one."""
        mesh = self.mesh
        return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)

    def replace(self, **changes: PyTree) -> SplitNetwork[Net]:
        """Return the same network with other parameters or other state."""
        return dataclasses.replace(self, **changes)


def write(network: Network, *kinds: PyTree) -> None:
    """Write parameters, or other state, of a network taken apart into the network object."""
    placed = [_placed(kind, network.layer_names) for kind in kinds if kind]
    if placed:  # a network of fixed functions has none
        nnx.update(network, *placed)


def split(network: Net) -> SplitNetwork[Net]:
    """Take a network apart; its arrays are shared with the network, not copied.

    >>> import pcflax as pc
    >>> from flax import nnx
    >>> network = pc.PCNetwork([pc.PCDense(3, 5, rngs=nnx.Rngs(0))])
    >>> pure = pc.networks.split(network)
    >>> pure.names, pure.parameters["layer_0"]["linear"]["kernel"].shape
    (('layer_0',), (3, 5))
    """
    graphdef, parameters, activities, other = nnx.split(network, nnx.Param, Activity, ...)
    empty = jax.tree.map(lambda leaf: np.zeros((0,), leaf.dtype), nnx.as_pure(activities))
    names = network.layer_names
    parameters, other = nnx.as_pure(parameters), nnx.as_pure(other)
    return SplitNetwork(
        graphdef, _named(parameters, names), _named(empty, names), _named(other, names), names
    )


def _named(state: Any, names: tuple[str, ...]) -> PyTree:
    """Lift a state's layers to the top: {"layers": {name: ...}} becomes {name: ...}."""
    tree = nnx.to_pure_dict(state) if isinstance(state, nnx.State) else dict(state)
    layers = tree.pop("layers", {})
    for name in tree:
        if name in names:
            raise ValueError(
                f"layer '{name}' has the name of an attribute of the network with arrays"
            )
    return {**layers, **tree}


def _placed(tree: PyTree, names: tuple[str, ...]) -> dict:
    """Undo `_named`."""
    layers = {name: value for name, value in tree.items() if name in names}
    rest = {name: value for name, value in tree.items() if name not in names}
    return {**({"layers": layers} if layers else {}), **rest}


@functools.partial(jax.jit, static_argnames="graphdef")
def energy_gradients(graphdef: nnx.GraphDef, parameters: Any, rest: Any, inputs: Any) -> Any:
    """Return the gradient of the batch-mean energy of a network that `nnx.split` took apart.

    It is one program: by operations the first call would compile a hundred.
    """

    def mean_energy(parameters):
        return jnp.mean(nnx.merge(graphdef, parameters, rest, copy=True).energy(inputs))

    return jax.grad(mean_energy)(parameters)
