"""Layers under their wiring: names, places and stored activities of a network.

Next file to read: `base.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

from pcflax.layers import PCLayer
from pcflax.layers.evaluate import as_numerics
from pcflax.typing import Activities

from .given import node_of
from .wiring import Wiring, names_of


class Layers(nnx.Module):
    """A network's layers: by place, `layers[0]`, or by name, `layers["hidden"]`."""

    def __init__(self, layers: Mapping[str, PCLayer]):
        self._names = tuple(layers)
        for name, layer in layers.items():
            setattr(self, name, layer)

    def __getitem__(self, key: int | str | slice) -> Any:
        if isinstance(key, slice):
            return [getattr(self, name) for name in self._names[key]]
        if isinstance(key, str) and key not in self._names:
            raise ValueError(f"no layer '{key}'; the layers are {', '.join(self._names)}")
        return getattr(self, key if isinstance(key, str) else self._names[key])

    def __contains__(self, layer: Any) -> bool:
        """Return whether this is a layer, or the name of one."""
        return layer in self._names if isinstance(layer, str) else any(layer is one for one in self)

    def __iter__(self) -> Iterator[PCLayer]:
        return (getattr(self, name) for name in self._names)

    def __len__(self) -> int:
        return len(self._names)


class WiredLayers(nnx.Module):
    """Layers by name, in the order of their wiring, with an activity each; see `AbstractPCNetwork`."""

    def __init__(
        self,
        layers: Mapping[str, PCLayer],
        wiring: Wiring,
        *,
        compute_dtype: Any = None,
        remat: bool = False,
    ):
        self.names = wiring.names
        self.wiring = wiring
        self.layers = Layers({name: layers[name] for name in wiring.layer_names})
        self.numerics = as_numerics(compute_dtype, remat)

    # The wiring.

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The names of all layers, those that predict another layer's node last."""
        return self.wiring.layer_names

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the layers that targets clamp and `predict` predicts."""
        return self.wiring.outputs

    @property
    def output(self) -> str:
        """The name of the output; the first where there are several."""
        return self.wiring.outputs[0]

    @property
    def output_layer(self) -> PCLayer:
        """The output layer (for a stack, its top layer)."""
        return self.layer(self.output).top_node_layer()

    @property
    def one_output(self) -> bool:
        """Whether targets and predictions are one array, not a dictionary of several."""
        return self.wiring.one_output

    @property
    def cyclic(self) -> tuple[str, ...]:
        """The names of the layers on cycles."""
        return self.wiring.cyclic

    @property
    def takes_integers(self) -> bool:
        """Whether a layer that sees an input predicts from integers (tokens)."""
        return any(self.is_of_integers(name) for name in self.wiring.inputs)

    def is_of_integers(self, name: str) -> bool:
        """Return whether a layer predicts from this input as from integers."""
        return any(
            self.layer(child).takes_integers and name in names_of(parents)
            for child, parents in self.wiring.parents
        )

    @property
    def fed_back(self) -> tuple[str, ...]:
        """The names of the layers whose errors go down through feedback weights of their own."""
        return tuple(
            name for name in self.layer_names if self.layer(name).top_node_layer().has_feedback
        )

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of all nodes, in order: a layer's own, and `name/0`, `name/1`, ... of a stack's."""
        return tuple(
            node for name, layer in self._named_layers() for node in layer.each_node_name(name)
        )

    def by_node(
        self,
        values: Mapping[str, Any] | Sequence[str],
        pick: Callable[[Any, int], Any] | None = None,
    ) -> dict[str, Any]:
        """Split per-layer values into per-node values.

        Args:
            values: {layer name: value}; layers may be missing.
            pick: (value of a stack, index) -> value of one of its layers; `value[..., index]` unless
                given.
        """
        found = {}
        for name in self.layer_names:
            if name in values:
                value = values[name] if isinstance(values, Mapping) else None
                found |= self.layer(name).split_nodes(name, value, pick)
        return found

    def layer(self, name: str) -> PCLayer:
        """Return the layer of that name.

        Raises:
            ValueError: where there is none.
        """
        if name not in self.layer_names:
            raise ValueError(f"no layer '{name}'; the layers are {', '.join(self.layer_names)}")
        return getattr(self.layers, name)

    # Stored activities.

    def activities(self) -> Activities:
        """Return the stored activities by layer name: (batch, *features), for a stack (batch, depth, ...).

        Raises:
            ValueError: where they have no size yet.
        """
        found = {}
        for name, layer in self._named_layers():
            activity = layer.activity[...]
            if activity.ndim == 1 and activity.shape[0] == 0:
                raise no_activity(name)
            axis = layer.node_axis
            found[name] = jnp.moveaxis(activity, 0, axis) if axis else _copied(activity)
        return found

    def set_activities(self, activities: Activities) -> None:
        """Store copies of activities by layer name; layers that are not named keep theirs.

        Raises:
            ValueError: for a name that the network does not have, or of a layer without an activity.
        """
        for name, value in activities.items():
            if name not in self.names:
                node_of(self, name)  # which tells of a predictor that it is no node
            kept, layer = _copied(value), self.layer(name)
            axis = layer.node_axis
            layer.activity.set_value(jnp.moveaxis(kept, axis, 0) if axis else kept)

    # Refusals that several algorithms share.

    def check_acyclic(self, reason: str) -> None:
        """Refuse cycles, for the sake of what wants an order.

        Raises:
            ValueError: naming a layer on a cycle.
        """
        if self.cyclic:
            raise ValueError(
                f"layer '{self.cyclic[0]}' is on a cycle ({', '.join(self.cyclic)}), but {reason}; take "
                f"an algorithm on activities, such as pc.inference.GradientDescent"
            )

    def check_one_predictor(self, reason: str) -> None:
        """Refuse layers that predict another layer's node.

        Raises:
            ValueError: naming the layer that predicts.
        """
        if self.layer_names != self.names:
            name = self.layer_names[len(self.names)]
            raise ValueError(
                f"layer '{name}' predicts another layer's node, but {reason}; take "
                f"pc.learning.PredictiveCoding or IncrementalPC"
            )

    def check_no_feedback(self, reason: str) -> None:
        """Refuse feedback weights, for the sake of what wants an energy."""
        if self.fed_back:
            raise ValueError(
                f"errors of layer '{self.fed_back[0]}' go down through feedback weights of their own, along "
                f"the gradient of no energy, but {reason}; take pc.learning.PredictiveCoding and "
                f"pc.inference.GradientDescent(0.1)"
            )

    def check_one_output(self, reason: str) -> None:
        """Refuse several outputs.

        Raises:
            ValueError: with the remedy, one output.
        """
        if not self.one_output:
            raise ValueError(f"the network has several outputs, but {reason}; give it one")

    def _named_layers(self) -> list[tuple[str, PCLayer]]:
        return [(name, getattr(self.layers, name)) for name in self.names]


def no_activity(name: str) -> ValueError:
    """Return the error for a layer whose activity has no size yet."""
    return ValueError(
        f"layer '{name}' has no activity yet; call network.init_activities(inputs) or "
        f"network.infer(...) first"
    )


def _copied(value: Any) -> Any:
    """Return an array of its own, which no owner changes and no donated call takes, without a program."""
    if isinstance(value, Tracer):
        return value
    if not isinstance(value, jax.Array):
        return jax.device_put(np.array(value))  # copied here: jax may read the owner's memory later
    if not value.is_fully_addressable:
        return jnp.copy(value)  # of several processes
    return jax.device_put(value, may_alias=False)
