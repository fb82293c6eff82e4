"""Many equal layers as one object: one batched call predicts all of them.

Given the activities, the predictions of a chain's layers do not depend on each other. Where the layers
are equal but for their weights, one `vmap` over a leading axis of the weights computes them together, so
neither the size of a compiled program nor the number of its kernels grows with depth. Only a pass from
the bottom up (the feedforward start, error coordinates) has an order; `jax.lax.scan` runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pcflax.checks import expect_count
from pcflax.dtypes import promoted
from pcflax.energies import Energy
from pcflax.typing import PyTree
from pcflax.variables import STACKED, Activity

from .base import PCLayer
from .clamps import Clamp, check_clamp, clamp_of_stack
from .evaluate import OTHER, Numerics, evaluate
from .kernels.parts import in_parts
from .kernels.stages import in_stages, is_spread, on_own_layers, shifted, topmost


class PCStack(PCLayer):
    """`depth` equal layers, one on top of the other, with a leading layer axis on every array.

    mu_k = f(z_{k-1}; theta_k) for k = 1..depth, where z_0 is the activity below the stack and z_depth
    what the layer above sees. In a network it behaves as `depth` layers, called `name/0`, `name/1`, ...:
    each has an energy, can be clamped by that name, and stands for itself in metrics and analysis. The
    arrays of all of them are one, in which the axis depth comes first. Dictionaries by layer have the
    batch first, as for every layer: activities of (batch, depth, *features), energies of (batch, depth).

    Any `PCLayer` stacks, without extra code, whose prediction has the shape of what it predicts from.

    Args:
        layer: a function without arguments that makes one layer, called `depth` times, so that each
            draws weights of its own; or a list of layers that exist already.
        depth: how many layers; left out for a list.

    Attributes:
        depth: how many layers there are.
        activity: the activities of all of them, (depth, batch, *features).

    Raises:
        TypeError: for a layer in the place of a function that makes one, no `PCLayer`, or two parents.
        ValueError: for a depth below 1, layers that differ in more than numbers or change the shape.

    >>> import jax, jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> rngs = nnx.Rngs(0)
    >>> hidden = pc.PCStack(lambda: pc.PCDense(8, 8, activation=jnp.tanh, skip=True, rngs=rngs), 30)
    >>> network = pc.PCNetwork({"first": pc.PCDense(3, 8, rngs=rngs), "hidden": hidden,
    ...                         "last": pc.PCDense(8, 2, rngs=rngs)})
    >>> network.init_activities(jnp.ones((4, 3)))
    >>> hidden.activity[...].shape, network.energies(jnp.ones((4, 3)))["hidden"].shape
    ((30, 4, 8), (4, 30))
    >>> len(network.nodes), network.nodes[:3]
    (32, ('first', 'hidden/0', 'hidden/1'))
    """

    def __init__(self, layer: Callable[[], PCLayer] | Sequence[PCLayer], depth: int | None = None):
        layers = _made(layer, depth)
        self.activity = Activity(jnp.zeros((0,)))
        self.depth = len(layers)
        setattr(self, STACKED, _stacked(layers))

    @property
    def stacked(self) -> PCLayer:
        """One layer that holds the arrays of all, each with the leading axis depth."""
        return getattr(self, STACKED)

    @property
    def energy(self) -> Energy:  # type: ignore[override]
        """The energies of all layers as one, of (batch, depth, *features) to (batch, depth)."""
        return _StackedEnergy(self.stacked.energy)

    def layer_at(self, index: int) -> PCLayer:
        """Return a copy of one of the layers, 0 being the lowest; -1 is the one on top.

        Raises:
            ValueError: where there is no such layer.
        """
        if not -self.depth <= index < self.depth:
            raise ValueError(f"a stack of {self.depth} layers has no layer {index}")
        graphdef, state = nnx.split(self.stacked)
        layer = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[index], state), copy=True)
        layer.activity = Activity(jnp.zeros((0,)))
        return layer

    def set_place(self, index: int, depth: int) -> None:
        """Tell each layer its own place, `index`, `index` + 1, ...

        Raises:
            ValueError: where that makes the layers unequal: a parameterization that sets the first or
                the last layer of a network apart, for one.
        """
        places = []
        for number in range(self.depth):
            self.stacked.set_place(index + number, depth)
            places.append(nnx.graphdef(self.stacked))
            if places[number] != places[0]:
                raise ValueError(
                    f"layer {number} of a PCStack would differ from layer 0 at its place in the network, "
                    f"{index + number} of {depth} (a multiplier of the first or last layer, say); put the "
                    f"first and the last layer of the network outside of the stack"
                )

    def rate_of(self, path: Sequence[str], index: int, depth: int) -> float:
        """Return the factor of the lowest layer, which is that of all."""
        return self.stacked.rate_of(path, index, depth)

    def predict(self, below: Float[Array, " batch *features"]) -> Float[Array, " batch *features"]:  # type: ignore[override]
        """Return the top layer's prediction after a feedforward pass from below."""
        return self.top_node(self.advance_nodes((below,), Numerics(), batch_size=None)[1])

    # The verbs of a run of nodes.

    node_axes = 2
    node_axis = 1

    @property
    def num_nodes(self) -> int:
        """How many layers there are."""
        return self.depth

    def each_node_name(self, name: str) -> tuple[str, ...]:
        """Return `name/0`, `name/1`, ..."""
        return tuple(f"{name}/{index}" for index in range(self.depth))

    def each_node(self, name: str) -> dict[str, PCLayer]:
        """Return a copy of each layer, by its node's name."""
        return {f"{name}/{index}": self.layer_at(index) for index in range(self.depth)}

    def split_nodes(
        self, name: str, value: Any, pick: Callable[[Any, int], Any] | None = None
    ) -> dict[str, Any]:
        """Split a value along its last axis, or by `pick`; None stays None."""
        pick = pick or (lambda value, index: value[..., index])
        return {
            f"{name}/{index}": None if value is None else pick(value, index)
            for index in range(self.depth)
        }

    def shape_nodes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return (depth, *shape)."""
        return (self.depth, *shape)

    def clamp_nodes(
        self, name: str, whole: Clamp | None, nodes: Mapping[int, Clamp]
    ) -> Clamp | None:
        """Merge the stack's own clamp with those of its layers."""
        return clamp_of_stack(name, self.depth, whole, nodes) if nodes else whole

    def top_node(self, activity: Array) -> Array:
        """Return the activity of the layer on top."""
        return topmost(activity)

    def top_node_layer(self) -> PCLayer:
        """Return a copy of the layer on top."""
        return self.layer_at(-1)

    def weigh_top_node(self, weight: Any) -> Any:
        """Return the factor for the layer on top, and 1 for the others."""
        return jnp.where(jnp.arange(self.depth) == self.depth - 1, weight, 1)

    def predict_nodes(
        self,
        belows: tuple[Array, ...],
        activity: Float[Array, " batch depth *features"],
        numerics: Numerics,
    ) -> tuple[Float[Array, " batch depth *features"], PyTree]:
        """Compute mu_k = f(z_{k-1}; theta_k) for all layers at once; writes have depth first."""
        below = _one(belows)
        graphdef, state = nnx.split(self.stacked)

        def one(layer):
            state, below = layer
            return evaluate(nnx.merge(graphdef, state, copy=True), (below,), numerics)

        lowers = self._lowers(below, activity)
        if _draws_by_position(state):
            # under vmap such keys draw otherwise than one by one, as a pass upward does
            predictions, writes = on_own_layers(lambda own: jax.lax.map(one, own), (state, lowers))
        else:
            predictions, writes = in_parts(jax.vmap(one), self.depth, (state, lowers))
        _check_shape(predictions[0], below)
        return batch_first(predictions), writes

    def advance_nodes(
        self,
        belows: tuple[Array, ...],
        numerics: Numerics,
        *,
        batch_size: int | None,
        clamp: Clamp | None = None,
        error: Float[Array, " batch depth *features"] | None = None,
    ) -> tuple[Float[Array, " batch depth *features"], Array, PyTree]:
        """Pass upward through all layers, by `jax.lax.scan`."""
        del batch_size  # the activity below has one
        below = _one(belows)
        value, held = (None, None) if clamp is None else clamp
        if clamp is not None:
            check_clamp(clamp, (below.shape[0], self.depth, *below.shape[1:]))
            held = None if held is None else clamp.held()
        graphdef, state = nnx.split(self.stacked)
        # what comes out of a layer goes into the next: one dtype, that of weights and input together
        below = promoted(below, *jax.tree.leaves(nnx.state(self.stacked, nnx.Param)))[0]

        def one(below, given):
            state, error, value, held = given
            layer = nnx.merge(graphdef, state, copy=True)
            prediction, writes = evaluate(layer, (below,), numerics)
            _check_shape(prediction, below)
            activity = layer.energy.mean(prediction).astype(below.dtype)
            if error is not None:
                activity = activity + error
            if value is not None:
                value = value.astype(activity.dtype)
                activity = value if held is None else jnp.where(held, value, activity)
            return activity, (activity, prediction, writes)

        by_layer = jax.tree.map(depth_first, (error, value, held))
        if is_spread(self.depth):
            # what a layer keeps, or draws, is of the whole batch
            is_whole = bool(nnx.to_flat_state(nnx.state(self.stacked, OTHER)))
            found = in_stages(one, below, state, by_layer, is_whole=is_whole)
        else:
            _, found = jax.lax.scan(one, below, (state, *by_layer), length=self.depth)
        activities, predictions, writes = found
        return batch_first(activities), batch_first(predictions), writes

    def update_nodes(self, writes: PyTree) -> None:
        """Keep what the layers wrote, depth first."""
        nnx.update(self.stacked, writes)

    def sum_nodes(self, array: Array) -> Array:
        """Sum over all axes but depth, the first."""
        return jnp.sum(array, axis=range(1, array.ndim))

    def map_nodes(
        self, function: Callable[[PCLayer, Array, Any], Any], activity: Array, belows: Any
    ) -> Any:
        """Return function(layer, activity, below) of all layers, depth first."""
        graphdef, state = nnx.split(self.stacked)

        def one(state, activity, below):
            return function(nnx.merge(graphdef, state), activity, below)

        lowers = self._lowers(_one(belows), activity)
        return jax.vmap(one, in_axes=(0, 1, 0))(state, activity, lowers)

    def _lowers(self, below: Array, activity: Array) -> Float[Array, " depth batch *features"]:
        """Return what each layer predicts from, z_0..z_{depth-1}."""
        return shifted(below.astype(activity.dtype)[None], depth_first(activity))


class _StackedEnergy(Energy):
    """The energies of a stack's layers as one, over the axis depth behind the batch."""

    def __init__(self, energy: Energy):
        self.one = energy
        self.clamped_only = energy.clamped_only

    def __call__(self, activity, prediction):
        graphdef, state = nnx.split(self.one)

        def energy(state, activity, prediction):
            return nnx.merge(graphdef, state)(activity, prediction)

        # depth first, as predictions are computed: what XLA makes of it transposes nothing in between
        pairs = depth_first(activity), depth_first(prediction)
        return jax.vmap(energy, out_axes=1)(state, *pairs)

    @property
    def predicts_activity(self):
        return self.one.predicts_activity

    @property
    def observes(self):
        return self.one.observes

    def observe(self, activity, prediction):
        graphdef, state = nnx.split(self.one)

        def observed(state, activity, prediction):
            one = nnx.merge(graphdef, state, copy=True)
            one.observe(activity, prediction)
            return nnx.state(one)

        pairs = depth_first(activity), depth_first(prediction)
        nnx.update(self.one, jax.vmap(observed)(state, *pairs))

    def check_targets(self, targets):
        self.one.check_targets(targets)

    def mean(self, prediction):
        graphdef, state = nnx.split(self.one)

        def mean(state, prediction):
            return nnx.merge(graphdef, state).mean(prediction)

        return jax.vmap(mean, in_axes=(0, 1), out_axes=1)(state, prediction)


def _draws_by_position(state: Any) -> bool:
    """Return whether random keys are of a kind (rbg, say) whose draws vmap changes."""
    return any(
        jax.random.key_impl(leaf) != "threefry2x32"
        for leaf in jax.tree.leaves(state)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )


def depth_first(value: Float[Array, " batch depth *features"]) -> Array:
    """Return the same with the axis depth in front of the batch: (depth, batch, *features)."""
    return jnp.moveaxis(value, 1, 0)


def batch_first(value: Float[Array, " depth batch *features"]) -> Array:
    """Return the same with the batch in front of the axis depth: (batch, depth, *features)."""
    return jnp.moveaxis(value, 0, 1)


def _one(belows: tuple[Array, ...]) -> Array:
    if len(belows) != 1:
        raise TypeError(f"a stack predicts from one activity, got {len(belows)}")
    return belows[0]


def _check_shape(prediction: Array, below: Array) -> None:
    if prediction.shape != below.shape:
        raise ValueError(
            f"the layers of a PCStack predict shape {prediction.shape} from {below.shape}; expected "
            f"layers whose prediction has the shape of what is below them"
        )


def _made(layer: Any, depth: int | None) -> list[PCLayer]:
    """Return the layers that `PCStack` was told to stack."""
    if isinstance(layer, PCLayer):
        kind = type(layer).__name__
        raise TypeError(
            f"PCStack expected a function that makes one layer, so that each draws its own weights, got "
            f"a {kind}; write pc.PCStack(lambda: pc.{kind}(...), depth)"
        )
    if callable(layer):
        depth = expect_count("PCStack", "depth", depth, least=1)
        layers = [layer() for _ in range(depth)]
    else:
        layers = list(layer)  # type: ignore[arg-type]
        if not layers or depth not in (None, len(layers)):
            raise ValueError(
                f"PCStack expected at least one layer (and no other depth than their number), got "
                f"{len(layers)} layers and depth {depth}"
            )
    for made in layers:
        if not isinstance(made, PCLayer) or isinstance(made, PCStack) or made.is_root_node:
            kind = type(made).__name__
            raise TypeError(f"PCStack expected layers, each no root, no stack itself, got a {kind}")
    return layers  # type: ignore[return-value]


def _stacked(layers: list[PCLayer]) -> PCLayer:
    """Return one layer that holds the arrays of all, with a leading layer axis."""
    graphdefs, states = [], []
    owners: dict[int, int] = {}
    for number, layer in enumerate(layers):
        for path, variable in nnx.to_flat_state(nnx.state(layer)):
            if owners.setdefault(id(variable), number) != number:
                raise ValueError(
                    f"layers {owners[id(variable)]} and {number} of a PCStack share an array "
                    f"({'.'.join(map(str, path))}), but each has its own in a stack; make modules, "
                    f"energies and parameters inside of the function"
                )
    for number, layer in enumerate(layers):
        if hasattr(layer, "activity"):
            layer = nnx.clone(layer)
            del layer.activity  # the stack's own holds them all
        graphdef, state = nnx.split(layer)
        graphdefs.append(graphdef)
        states.append(state)
        shapes, first = (
            jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), nnx.as_pure(own))
            for own in (state, states[0])
        )
        if graphdef != graphdefs[0] or shapes != first:
            raise ValueError(
                f"layer {number} of a PCStack ({type(layers[number]).__name__}) differs from layer 0 in "
                f"more than the values of its arrays; expected equal layers: one class, one set of "
                f"options (the same function objects, too), equal shapes"
            )
    return nnx.merge(graphdefs[0], jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))
