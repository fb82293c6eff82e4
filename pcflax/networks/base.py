"""What every network offers, whatever its wiring: activities, energies, inference, gradients.

A network is layers and wiring; it knows energies, starts and clamps, and imports no algorithm:
`infer` takes the algorithm as an argument. A subclass gives the wiring in four methods,
`belows`, `feedforward`, `predict` and `ends`. Next file to read: `chain.py`, then
`pcflax/inference/problem.py`.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pcflax.layers import PCLayer, PCStack
from pcflax.layers.stack import batch_first, depth_first
from pcflax.typing import Activities, Energies, PRNGKey

from .batch import check_batch
from .clamps import Clamp, Clamps, as_clamp, clamp_of_stack
from .nodes import as_precision, held_at, predictions_of
from .split import split


class Initializer(Protocol):
    """Chooses where inference starts; see `pcflax.initializers`."""

    def __call__(
        self,
        network: AbstractPCNetwork,
        inputs: Array | None,
        *,
        batch_size: int,
        clamps: Clamps,
        key: PRNGKey | None,
    ) -> Activities:
        """The start of every activity by layer name; clamps are put on top of it."""
        ...


class AbstractPCNetwork(nnx.Module, abc.ABC):
    """Layers by name, with an activity each, and the energy of all of them together.

    Args:
        layers: the layers in order, or a mapping from name to layer. Without names they are called
            layer_0, layer_1, ...
        compute_dtype: dtype in which predictions are computed, such as `jnp.bfloat16`; activities,
            energies, weights and their gradients keep theirs. None computes in theirs.
        remat: whether what a prediction computes on its way is computed again for its derivative
            instead of kept: less memory, more time.

    Attributes:
        names: the layers' names, in order.
        layers: the layers themselves, in the same order.
        cyclic: the names of the layers on cycles; none unless the wiring has any.
        one_output: whether targets and predictions are one array, not a dictionary of several.

    Raises:
        ValueError: for no layers, or a layer that stands in two places.
        TypeError: for something that is not a `PCLayer`, or one that skipped `super().__init__`.
    """

    cyclic: tuple[str, ...] = ()
    one_output: bool = True

    def __init__(
        self,
        layers: Sequence[PCLayer] | Mapping[str, PCLayer],
        *,
        compute_dtype: Any = None,
        remat: bool = False,
    ):
        if isinstance(layers, Mapping):
            names, members = tuple(layers.keys()), tuple(layers.values())
        else:
            members = tuple(layers)
            names = tuple(f"layer_{index}" for index in range(len(members)))
        if not members:
            raise ValueError(f"{type(self).__name__} expected at least one layer, got none")
        seen: dict[int, str] = {}
        for name, layer in zip(names, members, strict=True):
            if not isinstance(layer, PCLayer):
                raise TypeError(
                    f"layer '{name}' is a {type(layer).__name__}, not a PCLayer; wrap it: "
                    f"pc.PCLayer({type(layer).__name__}(...))"
                )
            if not hasattr(layer, "activity"):
                raise TypeError(
                    f"layer '{name}' ({type(layer).__name__}) has no activity; call "
                    f"super().__init__(energy=...) in its __init__"
                )
            if hasattr(layer, "stacked") and not isinstance(layer, PCStack):
                raise ValueError(
                    f"layer '{name}' ({type(layer).__name__}) has an attribute 'stacked', by which a "
                    f"PCStack is known; give it another name"
                )
            if id(layer) in seen:
                raise ValueError(
                    f"layer '{name}' is the same object as layer '{seen[id(layer)]}', but each layer "
                    f"holds an activity of its own; to share weights, wrap one module in two PCLayers"
                )
            seen[id(layer)] = name
        self.names = names
        self.layers = nnx.List(members)
        self.precision = as_precision(compute_dtype, remat)
        depths = [layer.depth if isinstance(layer, PCStack) else 1 for layer in members]
        if len(self.nodes) != sum(depths):
            twice = [name for name in names if "/" in name]
            raise ValueError(
                f"layer '{twice[0]}' has the name of a stack's node; give it another name"
            )

    # The wiring, which a subclass gives.

    @abc.abstractmethod
    def belows(
        self, inputs: Float[Array, " batch *in"] | None = None
    ) -> dict[str, tuple[Array, ...]]:
        """What each layer predicts from at the stored activities; nothing below a root."""

    @abc.abstractmethod
    def feedforward(
        self,
        inputs: Float[Array, " batch *in"] | None = None,
        *,
        batch_size: int | None = None,
        clamps: Clamps | None = None,
        errors: Activities | None = None,
    ) -> Activities:
        """Activities in order: a clamped one at its clamp, another at its prediction's mean + error."""

    @abc.abstractmethod
    def predict(
        self, inputs: Float[Array, " batch *in"] | None = None
    ) -> Float[Array, " batch *out"]:
        """The feedforward prediction of the last layer; stores no activity."""

    @abc.abstractmethod
    def ends(self, inputs: Array | None, targets: Array | None) -> dict[str, Clamp]:
        """The nodes that these inputs and targets clamp."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the layers that targets clamp and `predict` predicts: the last one."""
        return self.names[-1:]

    @property
    def output(self) -> str:
        """The name of the output; the first where there are several."""
        return self.outputs[0]

    @property
    def output_layer(self) -> PCLayer:
        """That layer; of a stack, a copy of the layer on top."""
        layer = self.layer(self.output)
        return layer.layer_at(-1) if isinstance(layer, PCStack) else layer

    def output_energy(
        self, prediction: Float[Array, " batch *out"], targets: Float[Array, " batch *out"]
    ) -> Float[Array, " batch"]:
        """The output's energy of these targets under this prediction: the usual loss."""
        return self.output_layer.energy(targets.astype(prediction.dtype), prediction)

    # What follows is the same for every wiring.

    def predictions(self, inputs: Float[Array, " batch *in"] | None = None) -> Activities:
        """mu_l = f_l(what is below) for every layer, from the stored activities, by layer name."""
        activities, belows = self.activities(), self.belows(inputs)
        return {
            name: predictions_of(name, layer, belows[name], activities[name], self.precision)
            for name, layer in self._named_layers()
        }

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of all nodes, in order: a layer's own, and `name/0`, `name/1`, ... of a stack's."""
        return tuple(self.by_node(self.names))

    def by_node(
        self,
        values: Mapping[str, Any] | Sequence[str],
        pick: Callable[[Any, int], Any] | None = None,
    ) -> dict[str, Any]:
        """What is known by layer, by node: an array of a stack is taken apart along its last axis.

        Args:
            values: {layer name: value}; layers may be missing.
            pick: (value of a stack, index) -> value of one of its layers; `value[..., index]` unless
                given.
        """
        found = {}
        for name, layer in self._named_layers():
            if name not in values:
                continue
            value = values[name] if isinstance(values, Mapping) else None
            if isinstance(layer, PCStack):
                for index in range(layer.depth):
                    part = None
                    if value is not None:
                        part = value[..., index] if pick is None else pick(value, index)
                    found[f"{name}/{index}"] = part
            else:
                found[name] = value
        return found

    def activities(self) -> Activities:
        """The stored activities by layer name, the batch first: of a stack, (batch, depth, *features).

        Raises:
            ValueError: where they have no size yet.
        """
        found = {}
        for name, layer in self._named_layers():
            activity = layer.activity[...]
            if isinstance(layer, PCStack) and activity.ndim > 1:
                activity = batch_first(activity)
            found[name] = activity
        for name, activity in found.items():
            if activity.ndim == 1 and activity.shape[0] == 0:
                raise ValueError(
                    f"layer '{name}' has no activity yet; call network.init_activities(inputs) or "
                    f"network.infer(...) first"
                )
        return found

    def set_activities(self, activities: Activities) -> None:
        """Store activities by layer name; layers that are not named keep theirs.

        Raises:
            ValueError: for a name that the network does not have.
        """
        for name, value in activities.items():
            layer = self.layer(name)
            if isinstance(layer, PCStack):
                value = depth_first(value)
            layer.activity.set_value(value)

    def layer(self, name: str) -> PCLayer:
        """The layer of that name.

        Raises:
            ValueError: where there is none.
        """
        if name not in self.names:
            raise ValueError(f"no layer '{name}'; the layers are {', '.join(self.names)}")
        return self.layers[self.names.index(name)]

    def energies(self, inputs: Float[Array, " batch *in"] | None = None) -> Energies:
        """The energy of each example at each layer, at the stored activities.

        Args:
            inputs: what the first layer is predicted from; None where the network has a root.

        Normalizations over the batch are held at the statistics of its feedforward pass.

        Returns:
            {layer name: (batch,)}, summed over features, never averaged; of a stack (batch, depth).

        Raises:
            ValueError: where shapes do not meet, naming the layer.
        """
        activities = self.activities()
        predictions = self._held(inputs).predictions(inputs)
        energies: Energies = {}
        for name, layer in self._named_layers():
            activity, prediction = activities[name], predictions[name]
            if activity.shape != prediction.shape:
                raise ValueError(
                    f"layer '{name}' predicts shape {prediction.shape} but its activity is "
                    f"{activity.shape}; "
                    + (
                        f"set out_features={activity.shape[-1]} or give an activity (or targets) of "
                        f"that width"
                        if activity.shape[:1] == prediction.shape[:1]
                        else "give inputs and activities of one batch size"
                    )
                )
            energies[name] = layer.energy(activity, prediction)
            nodes = 2 if isinstance(layer, PCStack) else 1
            if energies[name].shape != activity.shape[:nodes]:
                raise ValueError(
                    f"the energy {type(layer.energy).__name__} of layer '{name}' returned shape "
                    f"{energies[name].shape}, expected one number an example, {activity.shape[:1]}; "
                    f"sum over features and do not average over the batch"
                )
        return energies

    def energy(self, inputs: Float[Array, " batch *in"] | None = None) -> Float[Array, " batch"]:
        """F of each example: the sum of all layers' energies at the stored activities."""
        return total_energy(self.energies(inputs))

    def init_activities(
        self,
        inputs: Float[Array, " batch *in"] | None = None,
        *,
        targets: Float[Array, " batch *out"] | None = None,
        clamps: Mapping[str, Clamp | Array] | None = None,
        initializer: Initializer | None = None,
        key: PRNGKey | None = None,
    ) -> None:
        """Give every activity its size and its start, and store it in its layer.

        Args:
            inputs: what the first layer is predicted from; None leaves a root free.
            targets: what the last activity is clamped to; None leaves it at its start.
            clamps: {layer name: value or `pc.Clamp(value, mask)`} for any other layer; one layer of a
                stack goes by its node's name, `hidden/3`.
            initializer: where the free activities start: the feedforward pass unless given.
            key: randomness for an initializer that wants it.

        Raises:
            ValueError, TypeError: for inputs or targets of a wrong shape or dtype.
        """
        start = self.start(inputs, targets, clamps=clamps, initializer=initializer, key=key)
        # copies, so that no activity shares its buffer with an array of the caller's
        self.set_activities({name: jnp.array(value, copy=True) for name, value in start.items()})

    def start(
        self,
        inputs: Array | None,
        targets: Array | None,
        *,
        clamps: Mapping[str, Clamp | Array] | None = None,
        initializer: Initializer | None = None,
        key: PRNGKey | None = None,
    ) -> Activities:
        """The start of every activity, clamps included, by layer name; stores none."""
        batch_size = self.check_batch(inputs, targets, clamps)
        held = self.clamps(inputs, targets, clamps)
        if initializer is None:
            start = self.feedforward(inputs, batch_size=batch_size, clamps=held)
        else:
            start = initializer(self, inputs, batch_size=batch_size, clamps=held, key=key)
        for name, clamp in held.items():
            start[name] = held_at(name, clamp, start[name])
        return start

    def clamps(
        self,
        inputs: Array | None,
        targets: Array | None,
        clamps: Mapping[str, Clamp | Array] | None = None,
    ) -> dict[str, Clamp]:
        """Every clamp by layer name: of the inputs, of the targets, and those named.

        Raises:
            ValueError: for a layer that the network does not have, or one that is clamped twice.
            TypeError: for a value that is not floating, or a mask that is not Boolean.
        """
        ends = self.ends(inputs, targets)
        found: dict[str, dict[int | None, Clamp]] = {}
        for name, value in [*ends.items(), *(clamps or {}).items()]:
            layer, index = self._node(name)
            own, clamp = found.setdefault(layer, {}), as_clamp(name, value)
            all_of = clamp if index is None else own.get(None)
            if index in own or (own and all_of is not None and all_of.mask is None):
                role = "targets" if layer in self.outputs and targets is not None else "inputs"
                twice = f"by the {role} and by clamps" if name in ends else "by clamps"
                raise ValueError(f"layer '{name}' is clamped twice, {twice}; give one of them")
            own[index] = clamp
        held = {}
        for name, own in found.items():
            layer, whole = self.layer(name), own.pop(None, None)
            nodes = {index: clamp for index, clamp in own.items() if index is not None}
            if nodes and isinstance(layer, PCStack):
                held[name] = clamp_of_stack(name, layer.depth, whole, nodes)
            elif whole is not None:
                held[name] = whole
        return held

    def _node(self, name: str) -> tuple[str, int | None]:
        """The layer of this name, or the stack and the place in it of a node's name.

        Raises:
            ValueError: where there is none.
        """
        stack, _, place = name.rpartition("/")
        if name in self.names or stack not in self.names or not place.isdecimal():
            self.layer(name)
            return name, None
        layer = self.layer(stack)
        if not isinstance(layer, PCStack):
            self.layer(name)  # refuses
        elif int(place) >= layer.depth:
            raise ValueError(f"no layer '{name}'; that stack has layers 0 to {layer.depth - 1}")
        return stack, int(place)

    def check_batch(
        self, inputs: Any, targets: Any, clamps: Mapping[str, Any] | None = None
    ) -> int:
        """Refuse what is not a batch that the network can take; return its size.

        Raises:
            TypeError: for a dtype that is not floating (or, for inputs of tokens, integer).
            ValueError: for missing axes, batch sizes that differ, an empty batch, or neither array.
        """
        return check_batch(inputs, targets, clamps, integers=self.takes_integers)

    @property
    def takes_integers(self) -> bool:
        """Whether inputs may be integers; not unless a wiring says so."""
        return False

    def check_acyclic(self, reason: str) -> None:
        """Refuse cycles, for the sake of what wants an order.

        Raises:
            ValueError: naming the layers on cycles.
        """
        if self.cyclic:
            raise ValueError(
                f"layer '{self.cyclic[0]}' is on a cycle ({', '.join(self.cyclic)}), but {reason}; take "
                f"an algorithm on activities, such as pc.inference.GradientDescent"
            )

    def check_one_output(self, reason: str) -> None:
        """Refuse several outputs.

        Raises:
            ValueError: naming who wants one.
        """
        if not self.one_output:
            raise ValueError(f"the network has several outputs, but {reason}; give it one")

    def infer(
        self,
        inputs: Float[Array, " batch *in"] | None = None,
        targets: Float[Array, " batch *out"] | None = None,
        *,
        inference: Any,
        clamps: Mapping[str, Clamp | Array] | None = None,
        initializer: Initializer | None = None,
        key: PRNGKey | None = None,
        trace: bool = False,
    ) -> Any:
        """Minimise the energy over the free activities, store them, and report on it.

        Args:
            inputs: clamped below; None leaves a root free.
            targets: clamped above; None leaves the output free.
            inference: the algorithm, such as `pc.inference.GradientDescent(optax.sgd(0.1),
                num_steps=20)`. Keep one object and reuse it: a new one compiles anew.
            clamps: {layer name: value or `pc.Clamp(value, mask)`} for any other layer.
            initializer: where the free activities start: the feedforward pass unless given.
            key: randomness for algorithms and initializers that want it.
            trace: whether to record energies and residuals at every step.

        Returns:
            An `InferenceResult`: per-example energy, residual and number of steps, activities, and
            the trace when asked for.

        Raises:
            ValueError, TypeError: for inputs or targets of a wrong shape or dtype, or a free layer
                whose energy can only be clamped.
        """
        if not hasattr(inference, "run"):
            raise TypeError(
                f"expected inference to be an algorithm such as "
                f"pc.inference.GradientDescent(optax.sgd(0.1), num_steps=20), got {inference!r}"
            )
        return inference.run(
            self, inputs, targets, clamps=clamps, initializer=initializer, key=key, trace=trace
        )

    def parameter_gradients(self, inputs: Float[Array, " batch *in"] | None = None) -> nnx.State:
        """dF/dtheta of the batch-mean energy at the stored activities, which are held fixed.

        Returns:
            A State of `nnx.Param`, ready for `nnx.Optimizer.update(network, gradients)`. The mean
            over the batch makes a learning rate mean the same at every batch size.
        """
        graphdef, parameters, rest = nnx.split(self._held(inputs), nnx.Param, ...)

        def mean_energy(parameters):
            network = nnx.merge(graphdef, parameters, rest, copy=True)
            return jnp.mean(network.energy(inputs))

        return jax.grad(mean_energy)(parameters)

    def _held(self, inputs: Any) -> AbstractPCNetwork:
        """The network with its normalizations held at the statistics of this batch, if it has any."""
        from .statistics import normalizing, with_batch_statistics  # which imports this file

        if not normalizing(self):
            return self
        activities = self.activities()
        batch_size = next(iter(activities.values())).shape[0]
        held = with_batch_statistics(split(self), inputs, batch_size=batch_size, clamps={})
        return held.bind(activities)

    def _named_layers(self):
        return zip(self.names, self.layers, strict=True)


def total_energy(energies: Energies, *, leading: int = 1) -> Float[Array, " batch"]:
    """F of each example, the sum of its energies over layers, and over the layers of stacks.

    Args:
        energies: by layer name.
        leading: how many axes to keep; 1 is the batch, 2 steps and the batch.

    >>> import jax.numpy as jnp
    >>> total_energy({"a": jnp.array([1.0, 2.0]), "b": jnp.array([3.0, 4.0])})
    Array([4., 6.], dtype=float32)
    """
    by_layer = (
        energy if energy.ndim == leading else jnp.sum(energy, axis=range(leading, energy.ndim))
        for energy in energies.values()
    )
    return sum(by_layer)  # type: ignore[return-value]
