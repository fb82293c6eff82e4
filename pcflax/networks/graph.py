"""The graph: any layer may be predicted from any layers, cycles included.

mu_i = f_i(z_j for j in parents(i)) and F = sum_i E_i(z_i, mu_i) for each example. Given the activities,
every prediction is one call, whatever the wiring; only a pass upward needs an order, and where a cycle
leaves none, sweeps.
"""

from __future__ import annotations

import difflib
import graphlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pcflax.layers import PCLayer, PCRoot, PCStack
from pcflax.typing import Activities

from .base import AbstractPCNetwork
from .clamps import Clamp, Clamps
from .nodes import forward_of, held_at, observing, top_of
from .split import split


class _Combined:
    """Parents that a layer sees as one; compared by value, as what decides a compiled program must be."""

    def __init__(self, *names: str):
        self.names = names

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.names == other.names  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash((type(self), self.names))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.names))})"


class Sum(_Combined):
    """Parents whose activities are added up before the layer predicts from them.

    >>> import pcflax as pc
    >>> pc.networks.Sum("a", "b")
    Sum('a', 'b')
    """


class Concatenate(_Combined):
    """Parents whose activities are joined along the last axis before the layer predicts from them.

    A linear layer then predicts W_a z_a + W_b z_b, a weight for each connection.

    >>> import pcflax as pc
    >>> pc.networks.Concatenate("a", "b")
    Concatenate('a', 'b')
    """


Parents: TypeAlias = str | Sequence[str] | Sum | Concatenate
"""One name, or several; in a `Sum` or `Concatenate` they are combined first."""


class PCGraph(AbstractPCNetwork):
    """Layers by name, each predicted from its parents: any number of them, cycles and itself included.

    A layer with several parents gets them as arguments, `predict(a, b)`, or as one where they are
    wrapped in `Sum` or `Concatenate`. A `PCRoot` has no parents and a prior of its own. Inputs are what
    is given from outside: arrays that layers have as parents, or roots, which they clamp. Where the
    wiring is a chain, all results are those of `PCNetwork`.

    A pass upward (the feedforward start, `predict`) goes in an order in which parents come first. Layers
    on cycles start from zero and are passed over `sweeps` times; what they arrive at is a start, not
    an equilibrium, so predict such a network by inference: `network.infer(x).activities["output"]`.

    Args:
        layers: {name: layer}, in any order.
        parents: {name: parents}, for every layer but roots: a name, a tuple of names, `Sum(...)` or
            `Concatenate(...)`.
        inputs: {name: shape of one example}, an int for a vector; or the name of a root, or several.
        output: the layer that targets clamp, or a tuple of several; targets and predictions are then
            dictionaries by name.
        shapes: {name: shape of one example's activity}, needed for layers on cycles only, where the
            layer does not tell it.
        sweeps: how often a pass upward goes over the layers on cycles.
        compute_dtype: as for `PCNetwork`.
        remat: as for `PCNetwork`.

    Attributes:
        names: the layers' names, parents before children where there is no cycle.
        parents: ((name, parents), ...) as given, a single name as a tuple.
        cyclic: the names of the layers on cycles.

    Raises:
        ValueError: for an unknown parent, input or output, a layer without parents that is no root, a
            root with parents, or shapes that do not meet; always with the layer's name.

    Source: Salvatori et al. (2022), arXiv 2201.13180.

    >>> import jax.numpy as jnp, optax, pcflax as pc
    >>> from flax import nnx
    >>> rngs = nnx.Rngs(0)
    >>> network = pc.PCGraph(
    ...     {"a": pc.PCDense(3, 8, activation=jnp.tanh, rngs=rngs),
    ...      "b": pc.PCDense(8, 8, activation=jnp.tanh, rngs=rngs),
    ...      "output": pc.PCDense(16, 2, rngs=rngs)},
    ...     parents={"a": "x", "b": "a", "output": pc.networks.Concatenate("a", "b")},
    ...     inputs={"x": 3}, output="output")
    >>> result = network.infer(jnp.ones((4, 3)), jnp.ones((4, 2)),
    ...                        inference=pc.inference.GradientDescent(optax.sgd(0.1)))
    >>> result.energy.shape, network.predict(jnp.ones((4, 3))).shape
    ((4,), (4, 2))
    """

    def __init__(
        self,
        layers: Mapping[str, PCLayer],
        *,
        parents: Mapping[str, Parents],
        inputs: Mapping[str, int | tuple[int, ...]] | str | Sequence[str] = (),
        output: str | Sequence[str],
        shapes: Mapping[str, int | tuple[int, ...]] | None = None,
        sweeps: int = 10,
        compute_dtype: Any = None,
        remat: bool = False,
    ):
        if not isinstance(layers, Mapping):
            raise TypeError(
                f"PCGraph expected layers by name, {{name: layer}}, got {type(layers).__name__}"
            )
        given = {inputs: None} if isinstance(inputs, str) else inputs
        external = {
            name: _shape(size)
            for name, size in (given.items() if isinstance(given, Mapping) else ())
            if size is not None
        }
        wiring = _checked_wiring(layers, parents, tuple(given), external)
        order, cyclic = _order(wiring)
        super().__init__(
            {name: layers[name] for name in order}, compute_dtype=compute_dtype, remat=remat
        )
        if isinstance(sweeps, bool) or not isinstance(sweeps, int) or sweeps < 1:
            raise ValueError(f"PCGraph expected sweeps of at least 1, got {sweeps!r}")
        outputs = (output,) if isinstance(output, str) else tuple(output)
        for name in outputs or ("(none)",):
            if name not in layers:
                raise ValueError(f"the output '{name}' is no layer; {_known(name, layers)}")
            if outputs.count(name) > 1:
                raise ValueError(f"the output '{name}' is given twice")
        self.parents = tuple((name, wiring[name]) for name in order)
        self.cyclic = cyclic
        self.inputs = tuple(given)
        self._outputs = outputs
        self.one_output = isinstance(output, str)
        self.sweeps = sweeps
        for name, (index, depth) in _places(layers, wiring, order, outputs).items():
            layers[name].set_place(index, depth)
        self.shapes = _cycle_shapes(self, shapes or {})
        _check_shapes(self, external)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the layers that targets clamp and `predict` predicts."""
        return self._outputs

    @property
    def takes_integers(self) -> bool:
        """Whether a layer that sees an input predicts from integers (tokens)."""
        return any(self.is_of_integers(name) for name in self.inputs)

    def is_of_integers(self, name: str) -> bool:
        """Whether a layer predicts from this input as from integers."""
        return any(
            self.layer(child).takes_integers and name in names_of(own)
            for child, own in self.parents
        )

    def belows(self, inputs: Any = None) -> dict[str, tuple[Array, ...]]:
        """What each layer's parents hold, combined as it asks, at the stored activities."""
        activities = self.activities()
        seen = self._external(inputs)
        seen |= {name: top_of(layer, activities[name]) for name, layer in self._named_layers()}
        return {name: self._belows(name, seen) for name in self.names}

    def feedforward(
        self,
        inputs: Any = None,
        *,
        batch_size: int | None = None,
        clamps: Clamps | None = None,
        errors: Activities | None = None,
    ) -> Activities:
        """Every activity at the mean of its prediction + error, or at its clamp, parents first.

        Args:
            inputs: (batch, *features), or {name: array} where there are several.
            batch_size: how many examples there are, needed where there are no inputs.
            clamps: layers that stand at their clamp instead; what they predict follows from there.
            errors: e_i by layer name, added to the mean.

        Raises:
            ValueError: for errors of a network with cycles, in which no order makes activities of
                them.
        """
        if errors is not None:
            self.check_acyclic("errors make activities only in an order")
        return self._forward(inputs, batch_size, clamps or {}, errors or {})[0]

    def predict(self, inputs: Any = None) -> Any:
        """What the output predicts after a pass upward; a dictionary where there are several outputs.

        On a network with cycles this is where the sweeps arrive, not the equilibrium.
        """
        batch_size = 1 if inputs is None else self.check_batch(inputs, None)
        predictions = self._forward(inputs, batch_size, {}, {})[1]
        if self.one_output:
            return predictions[self.output]
        return {name: predictions[name] for name in self.outputs}

    def ends(self, inputs: Any, targets: Any) -> dict[str, Clamp]:
        """The roots that inputs clamp, and the outputs that targets do."""
        held: dict[str, Clamp] = {}
        for name, array in ({} if inputs is None else self._by_name(inputs, self.inputs)).items():
            if name in self.names and array is not None:
                held[name] = Clamp(jnp.asarray(array))
        for name, array in (
            {} if targets is None else self._by_name(targets, self.outputs)
        ).items():
            if array is None:
                continue
            layer = self.layer(name)
            node = f"{name}/{layer.depth - 1}" if isinstance(layer, PCStack) else name
            held[node] = Clamp(jnp.asarray(array))
        return held

    def output_energy(self, prediction: Any, targets: Any) -> Float[Array, " batch"]:
        """The outputs' energies of these targets under this prediction, summed over outputs."""
        if self.one_output:
            return super().output_energy(prediction, targets)
        energies = []
        missing = [name for name in self.outputs if name not in targets]
        if missing:
            raise ValueError(f"there are no targets for the output '{missing[0]}'; give them")
        for name in self.outputs:
            layer = self.layer(name)
            layer = layer.layer_at(-1) if isinstance(layer, PCStack) else layer
            energies.append(layer.energy(targets[name], prediction[name]))
        return sum(energies)  # type: ignore[return-value]

    def _by_name(self, value: Any, names: tuple[str, ...]) -> dict[str, Array]:
        """An array, or a dictionary of arrays, as a dictionary by these names."""
        if not isinstance(value, Mapping):
            if len(names) != 1:
                raise ValueError(
                    f"expected a dictionary of arrays for {', '.join(names) or 'no name'}, got one array"
                )
            return {names[0]: value}
        for name in value:
            if name not in names:
                raise ValueError(f"unknown '{name}'; {_known(name, names)}")
        return dict(value)

    def _external(self, inputs: Any) -> dict[str, Array]:
        """The inputs that are no roots, by name."""
        given = {} if inputs is None else self._by_name(inputs, self.inputs)
        missing = [n for n in self.inputs if n not in self.names and given.get(n) is None]
        if missing:
            raise ValueError(f"input '{missing[0]}' is missing; give it, or make it a pc.PCRoot")
        return {name: given[name] for name in self.inputs if name not in self.names}

    def _belows(self, name: str, seen: Mapping[str, Array]) -> tuple[Array, ...]:
        """What a layer predicts from."""
        parents = dict(self.parents)[name]
        arrays = tuple(seen[parent] for parent in names_of(parents))
        if isinstance(parents, Sum):
            shapes = {array.shape for array in arrays}
            if len(shapes) > 1:
                told = " and ".join(f"'{p}' {seen[p].shape}" for p in names_of(parents))
                raise ValueError(f"layer '{name}' adds up its parents, whose shapes differ: {told}")
            return (sum(arrays[1:], arrays[0]),)
        if isinstance(parents, Concatenate):
            try:
                return (jnp.concatenate(arrays, axis=-1),)
            except (TypeError, ValueError):
                told = " and ".join(f"'{p}' {seen[p].shape}" for p in names_of(parents))
                raise ValueError(
                    f"layer '{name}' joins its parents along the last axis, but the others differ: {told}"
                ) from None
        return arrays

    def _forward(
        self, inputs: Any, batch_size: int | None, clamps: Clamps, errors: Activities
    ) -> tuple[Activities, dict[str, Array]]:
        seen = self._external(inputs)
        roots = self.ends(inputs, None)
        for array in (*seen.values(), *(clamp.value for clamp in roots.values())):
            batch_size = array.shape[0]
        activities: Activities = {}
        predictions: dict[str, Array] = {}

        def over(group: Sequence[str], now: Activities) -> tuple[Activities, dict[str, Array]]:
            """The group's activities and predictions after one pass over it."""
            now, predicted, known = dict(now), {}, dict(seen)
            known |= {name: top_of(self.layer(name), now[name]) for name in now}
            for name in group:
                now[name], predicted[name] = forward_of(
                    name,
                    self.layer(name),
                    self._belows(name, known),
                    self.precision,
                    batch_size=batch_size,
                    clamp=clamps.get(name, roots.get(name)),
                    error=errors.get(name),
                )
                known[name] = top_of(self.layer(name), now[name])
            return now, predicted

        for group in _groups(self.names, self.cyclic):
            now: Activities = {}
            if group[0] in self.cyclic:
                dtype = self._dtype(seen)
                for name in group:
                    zeros = jnp.zeros((batch_size, *dict(self.shapes)[name]), dtype)  # type: ignore
                    now[name] = held_at(name, clamps[name], zeros) if name in clamps else zeros

                def sweep(now, _, group=tuple(group)):
                    after = over(group, now)[0]
                    for name in group:
                        if after[name].shape != now[name].shape:
                            raise _wrong_shape(name, after[name], now[name])
                    return {name: after[name].astype(now[name].dtype) for name in now}, None

                with observing():  # what is written before the last sweep is not kept
                    now, _ = jax.lax.scan(sweep, now, None, length=self.sweeps - 1)
            now, predicted = over(group, now)
            activities |= now
            predictions |= predicted
            seen |= {name: top_of(self.layer(name), now[name]) for name in group}
        return {name: activities[name] for name in self.names}, predictions

    def _dtype(self, seen: Mapping[str, Array]) -> Any:
        floats = [a.dtype for a in seen.values() if jnp.issubdtype(a.dtype, jnp.floating)]
        return jnp.result_type(*floats) if floats else jnp.result_type(float)


def names_of(parents: tuple[str, ...] | Sum | Concatenate) -> tuple[str, ...]:
    """The names of a layer's parents."""
    return parents.names if isinstance(parents, _Combined) else parents


def _shape(size: Any) -> tuple[int, ...]:
    return tuple(size) if isinstance(size, Sequence) else (int(size),)


def _known(name: str, names: Any) -> str:
    close = difflib.get_close_matches(str(name), list(names), n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}expected some of {', '.join(names) or 'none'}"


def _checked_wiring(
    layers: Mapping[str, PCLayer],
    parents: Mapping[str, Parents],
    inputs: tuple[str, ...],
    external: Mapping[str, tuple[int, ...]],
) -> dict[str, Any]:
    """Every layer's parents as a tuple, Sum or Concatenate; refuses what cannot be wired."""
    for name in parents:
        if name not in layers:
            raise ValueError(
                f"parents are given of '{name}', which is no layer; {_known(name, layers)}"
            )
    for name in inputs:
        if name in external and name in layers:
            raise ValueError(f"'{name}' is an input and a layer at once; rename one of them")
        if name not in external and name not in layers:
            raise ValueError(
                f"the input '{name}' is no layer; give its shape, inputs={{'{name}': shape}}, or name a "
                f"PCRoot: {_known(name, layers)}"
            )
        if name in layers and not isinstance(layers[name], PCRoot):
            raise ValueError(
                f"the input '{name}' is a {type(layers[name]).__name__}; inputs are arrays from outside "
                f"(give a shape) or a pc.PCRoot, which they clamp"
            )
    wiring = {}
    for name, layer in layers.items():
        own = _as_parents(parents.get(name, ()))
        for parent in names_of(own):
            if parent not in layers and parent not in external:
                raise ValueError(
                    f"layer '{name}' has the unknown parent '{parent}'; "
                    f"{_known(parent, (*layers, *external))}"
                )
        if isinstance(layer, PCRoot) and names_of(own):
            raise ValueError(
                f"layer '{name}' is a PCRoot, which has no parents, got {names_of(own)}"
            )
        if not isinstance(layer, PCRoot) and not names_of(own):
            raise ValueError(
                f"layer '{name}' has no parents and no prior; give it parents, or make it a pc.PCRoot"
            )
        wiring[name] = own
    used = {parent for own in parents.values() for parent in names_of(_as_parents(own))}
    for name in external:
        if name not in used:
            raise ValueError(f"the input '{name}' is no layer's parent; wire it, or leave it out")
    return wiring


def _as_parents(parents: Parents) -> Any:
    """A tuple of names, Sum or Concatenate."""
    if isinstance(parents, _Combined):
        return parents
    return (parents,) if isinstance(parents, str) else tuple(parents)


def _order(parents: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The layers' names, parents first as far as cycles let, and those on cycles."""
    wiring = {name: names_of(own) for name, own in parents.items()}
    reach: dict[str, set[str]] = {}
    for name in wiring:
        seen: set[str] = set()
        waiting = [parent for parent in wiring[name] if parent in wiring]
        while waiting:
            parent = waiting.pop()
            if parent not in seen:
                seen.add(parent)
                waiting += [above for above in wiring[parent] if above in wiring]
        reach[name] = seen
    # layers that reach each other are one group; groups have no cycles
    group = {
        name: min((other for other in reach[name] if name in reach[other]), default=name)
        for name in wiring
    }
    sorter = graphlib.TopologicalSorter(
        {
            # a dictionary, whose order is that of insertion: an order of a set's would differ by process
            mine: dict.fromkeys(
                group[p]
                for n in wiring
                if group[n] == mine
                for p in wiring[n]
                if p in wiring and group[p] != mine
            )
            for mine in dict.fromkeys(group.values())
        }
    )
    order = [name for mine in sorter.static_order() for name in wiring if group[name] == mine]
    return tuple(order), tuple(name for name in order if name in reach[name])


def _places(
    layers: Mapping[str, PCLayer],
    wiring: Mapping[str, Any],
    order: tuple[str, ...],
    outputs: tuple[str, ...],
) -> dict[str, tuple[int, int]]:
    """(index, depth) of every layer that predicts: how many are below it on the longest way from an
    input, and one more than the highest of those has that are no outputs. Outputs are last."""
    tops: dict[str, int] = {}
    for name in order:
        if not isinstance(layers[name], PCRoot):
            below = max((tops.get(parent, 0) for parent in names_of(wiring[name])), default=0)
            tops[name] = below + _size(layers[name])
    depth = max(top if name in outputs else top + 1 for name, top in tops.items()) if tops else 1
    return {
        name: ((depth if name in outputs else top) - _size(layers[name]), depth)
        for name, top in tops.items()
    }


def _size(layer: PCLayer) -> int:
    return layer.depth if isinstance(layer, PCStack) else 1


def _cycle_shapes(
    network: PCGraph, told: Mapping[str, int | tuple[int, ...]]
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """The shape of one example's activity of each layer on a cycle, which starts from zeros."""
    for name in told:
        network.layer(name)
    shapes = []
    for name in network.cyclic:
        layer = network.layer(name)
        size = told.get(name, getattr(getattr(layer, "linear", None), "out_features", None))
        if size is None:
            raise ValueError(
                f"layer '{name}' is on a cycle, so its activity needs a shape to start from; give "
                f"shapes={{'{name}': shape of one example}}"
            )
        shape = _shape(size)
        shapes.append((name, (layer.depth, *shape) if isinstance(layer, PCStack) else shape))
    return tuple(shapes)


def _check_shapes(network: PCGraph, external: Mapping[str, tuple[int, ...]]) -> None:
    """See that shapes meet, by passing them through the network without computing anything."""
    pure = split(network)

    def pass_through(inputs):
        bound = pure.bind()
        start = bound.feedforward(inputs, batch_size=2)
        bound.set_activities(start)
        return start, bound.predictions(inputs)

    inputs = {
        name: jax.ShapeDtypeStruct(
            (2, *shape), jnp.int32 if network.is_of_integers(name) else jnp.float32
        )
        for name, shape in external.items()
    }
    start, predictions = jax.eval_shape(pass_through, inputs)
    for name, activity in start.items():
        if activity.shape != predictions[name].shape:
            raise _wrong_shape(name, predictions[name], activity)


def _wrong_shape(name: str, prediction: Any, activity: Any) -> ValueError:
    shape = prediction.shape[1:]
    return ValueError(
        f"layer '{name}' predicts shape {shape} for one example but its activity has "
        f"{activity.shape[1:]}; give shapes={{'{name}': {shape}}}"
    )


def _groups(order: tuple[str, ...], cyclic: tuple[str, ...]) -> list[list[str]]:
    """The order in runs: a layer alone, or neighbouring layers on cycles together."""
    groups: list[list[str]] = []
    for name in order:
        if name in cyclic and groups and groups[-1][0] in cyclic:
            groups[-1].append(name)
        else:
            groups.append([name])
    return groups
