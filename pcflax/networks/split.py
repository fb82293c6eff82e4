"""A network as one pure value, for compiled code.

Users hold objects; compiled programs want trees of arrays. `split` takes a network apart once, and
`SplitNetwork.bind` puts a copy together again **inside** the traced function, with the activities
that it is given. Everything that a layer writes while it predicts (batch statistics, random counters)
then happens to the copy and is dropped, so an energy is a pure function of the activities however
often inference evaluates it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import jax
import numpy as np
from flax import nnx

from pcflax.typing import Activities, PyTree
from pcflax.variables import Activity

if TYPE_CHECKING:
    from .base import AbstractPCNetwork


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["parameters", "activities", "other"],
    meta_fields=["graphdef"],
)
@dataclasses.dataclass(frozen=True)
class SplitNetwork:
    """A network without its activities: a pytree that passes through jit, grad and scan.

    Attributes:
        graphdef: the static structure.
        parameters: the `nnx.Param` arrays, the leaves that learning changes.
        activities: empty arrays that keep the activities' places.
        other: every other kind of state (batch statistics, random keys).
    """

    graphdef: nnx.GraphDef
    parameters: PyTree
    activities: PyTree
    other: PyTree

    def bind(self, activities: Activities | None = None) -> AbstractPCNetwork:
        """A fresh copy of the network that holds `activities`; call it inside traced code."""
        network = nnx.merge(self.graphdef, self.parameters, self.activities, self.other, copy=True)
        if activities is not None:
            network.set_activities(activities)
        return network

    def replace(self, **changes: PyTree) -> SplitNetwork:
        """The same network with other parameters or other state."""
        return dataclasses.replace(self, **changes)


def split(network: AbstractPCNetwork) -> SplitNetwork:
    """Take a network apart; its arrays are shared with the network, not copied.

    >>> import pcflax as pc
    >>> from flax import nnx
    >>> network = pc.PCNetwork([pc.PCDense(3, 5, rngs=nnx.Rngs(0))])
    >>> pc.networks.split(network).bind().names
    ('layer_0',)
    """
    graphdef, parameters, activities, other = nnx.split(network, nnx.Param, Activity, ...)
    empty = jax.tree.map(lambda leaf: np.zeros((0,), leaf.dtype), nnx.as_pure(activities))
    return SplitNetwork(graphdef, nnx.as_pure(parameters), empty, nnx.as_pure(other))
