"""The two networks: a chain, and a graph. Both make a wiring; the body is `base.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pcflax.checks import expect_count, shown
from pcflax.energies import Energy
from pcflax.layers import Clamp, PCLayer
from pcflax.layers.base import node_verbs
from pcflax.layers.closures import hidden_module, refuse_hidden_modules
from pcflax.variables import STACKED, Activity

from .amortize import amortize
from .base import AbstractPCNetwork
from .predictors import take_predictors
from .previous import take_previous
from .pure import split
from .upward import wrong_shape
from .wiring import Combine, Parents, Wiring, chain, checked_parents, known, order, places


class PCNetwork(AbstractPCNetwork):
    """A chain of layers, the first nearest the input.

    mu_1 = f_1(x) from the clamped input (or mu_0 from the prior of a `PCRoot`), mu_l = f_l(z_{l-1}), and
    F = sum_l E_l(z_l, mu_l) for each example.

    `inputs` are what the first layer is predicted from. Where the first layer is a `PCRoot`, they
    clamp its activity instead, and None leaves it free. `targets` clamp the last activity. A `PCStack`
    stands for as many layers as it has.

    Args:
        layers: a list of layers, called layer_0, layer_1, ..., or a mapping from name to layer.
        compute_dtype: dtype in which predictions are computed, such as `jnp.bfloat16`; activities,
            energies, weights and their gradients keep theirs. None computes in theirs.
        remat: whether what a prediction computes on its way is computed again for its derivative
            instead of kept: less memory, more time.

    Raises:
        ValueError: for no layers, one layer in two places, or a root that is not first.
        TypeError: for something that is not a `PCLayer`.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> rngs = nnx.Rngs(0)
    >>> network = pc.PCNetwork([pc.PCDense(3, 5, activation=jnp.tanh, rngs=rngs),
    ...                         pc.PCDense(5, 2, rngs=rngs)])
    >>> x, y = jnp.ones((4, 3)), jnp.ones((4, 2))
    >>> result = network.infer(x, y, inference=pc.inference.GradientDescent(0.1))
    >>> result.energy.shape, network.layers[0].activity[...].shape
    ((4,), (4, 5))
    """

    def __init__(
        self,
        layers: Sequence[PCLayer] | Mapping[str, PCLayer],
        *,
        compute_dtype: Any = None,
        remat: bool = False,
    ):
        if isinstance(layers, PCLayer):
            raise TypeError(
                f"{type(self).__name__} expected a list of layers, got a {type(layers).__name__}; put it "
                f"into brackets: pc.{type(self).__name__}([layer])"
            )
        if not isinstance(layers, Mapping):
            layers = {f"layer_{index}": layer for index, layer in enumerate(layers)}
        check_layers(type(self).__name__, layers)
        wiring = chain(layers)
        super().__init__(layers, wiring, compute_dtype=compute_dtype, remat=remat)
        _tell_places(layers, wiring)


class PCGraph(AbstractPCNetwork):
    """Layers by name, each predicted from its parents: any number of them, cycles and itself included.

    A layer with several parents gets them as arguments, `predict(a, b)`, or as one where they are
    wrapped in `Sum`, `Concatenate` or a `Combine` of one's own. A `PCRoot` has no parents and a prior of
    its own. Inputs are what is given from outside: arrays that layers have as parents, or roots, which
    they clamp. Where the wiring is a chain, all results are those of `PCNetwork`.

    mu_i = f_i(z_j for j in parents(i)) and F = sum_i E_i(z_i, mu_i) for each example.

    A pass upward (the feedforward start, `predict`) goes in an order in which parents come first. Layers
    on cycles start from zero and are passed over `sweeps` times; what they arrive at is a start, not
    an equilibrium, so predict such a network by inference: `network.infer(x).activities["output"]`.

    Args:
        layers: {name: layer}, in any order.
        parents: {name: parents}, for every layer but roots: a name, a tuple of names, `Sum(...)` or
            `Concatenate(...)`. `Previous(name)` is a node one step of time before.
        inputs: {name: shape of one example}, an int for a vector; or the name of a root, or several.
        output: the layer that targets clamp, or a tuple of several; targets and predictions are then
            dictionaries by name.
        predicts: {layer: node}: layers that have no activity of their own and predict another layer's,
            beside that one's own prediction. The node's energy is the sum over its predictors; a factor
            of one of them is the precision of its energy. The pass upward leaves them out.
        amortizers: {layer: node}: the same, but that they count in learning alone, and each predicts from
            what is known or amortized before it. They give `pc.initializers.Amortized()` its start.
        shapes: {name: shape of one example's activity}, needed for layers on cycles and for those that
            are a parent one step later, where the layer does not tell it.
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
        TypeError: for layers without names, something that is not a `PCLayer`, shapes that are not ints, or
            a `Combine` that holds a module.

    With predictors F = sum_i [E_i(z_i, mu_i) + sum_{k predicts i} E_k(z_i, mu_k)]: bidirectional predictive
    coding predicts each node from below and from above.

    Source: Salvatori et al. (2022), arXiv 2201.13180; Oliviers et al. (2025), arXiv 2505.23415, for several
    predictors of a node.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> rngs = nnx.Rngs(0)
    >>> network = pc.PCGraph(
    ...     {"a": pc.PCDense(3, 8, activation=jnp.tanh, rngs=rngs),
    ...      "b": pc.PCDense(8, 8, activation=jnp.tanh, rngs=rngs),
    ...      "output": pc.PCDense(16, 2, rngs=rngs)},
    ...     parents={"a": "x", "b": "a", "output": pc.networks.Concatenate("a", "b")},
    ...     inputs={"x": 3}, output="output")
    >>> result = network.infer(jnp.ones((4, 3)), jnp.ones((4, 2)),
    ...                        inference=pc.inference.GradientDescent(0.1))
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
        predicts: Mapping[str, str] | None = None,
        amortizers: Mapping[str, str] | None = None,
        shapes: Mapping[str, int | tuple[int, ...]] | None = None,
        sweeps: int = 10,
        compute_dtype: Any = None,
        remat: bool = False,
    ):
        if not isinstance(layers, Mapping):
            raise TypeError(
                f"PCGraph expected layers by name, {{name: layer}}, got {type(layers).__name__}"
            )
        check_layers("PCGraph", layers)
        given = {inputs: None} if isinstance(inputs, str) else inputs
        external = {
            name: _shape(name, size)
            for name, size in (given.items() if isinstance(given, Mapping) else ())
            if size is not None
        }
        before = take_previous(
            layers, parents, shapes or {}, {*(predicts or {}), *(amortizers or {})}
        )
        checked = checked_parents(layers, parents, tuple(given), external | before)
        _check_combinations(checked)
        nodes, predictors, others = take_predictors(
            layers, checked, predicts or {}, amortizers or {}
        )
        ordered, cyclic = order(nodes)
        outputs = (output,) if isinstance(output, str) else tuple(output)
        for name in outputs or ("(none)",):
            if name not in nodes:
                raise ValueError(f"the output '{name}' is no layer; {known(name, nodes)}")
            if outputs.count(name) > 1:
                raise ValueError(f"the output '{name}' is given twice")
        wiring = Wiring(
            parents=tuple((name, checked[name]) for name in ordered),
            inputs=tuple(given),
            outputs=outputs,
            cyclic=cyclic,
            shapes=_cycle_shapes(layers, cyclic, shapes or {}),
            sweeps=expect_count("PCGraph", "sweeps", sweeps, least=1),
            one_output=isinstance(output, str),
            predictors=predictors,
            amortizers=others,
            previous=tuple(before.items()),
        )
        super().__init__(layers, wiring, compute_dtype=compute_dtype, remat=remat)
        _tell_places(layers, wiring)
        _check_shapes(self, external | before)

    @property
    def parents(self) -> tuple[tuple[str, Any], ...]:
        """((name, parents), ...) as given, a single name as a tuple."""
        return self.wiring.parents

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names that inputs are given for."""
        return self.wiring.inputs


def check_layers(owner: str, layers: Mapping[str, Any]) -> None:
    """Refuse what is no layer, what stands in two places, and what hides a verb of layers."""
    if not layers:
        raise ValueError(f"{owner} expected at least one layer, got none")
    seen: dict[int, str] = {}
    for name, layer in layers.items():
        if not isinstance(name, str) or not name or name[0] in "_<" or name == STACKED:
            raise ValueError(
                f"{owner} expected names such as 'hidden' for its layers, got {name!r}, which it keeps for "
                f"itself; give the layer another"
            )
        if not isinstance(layer, PCLayer):
            kind = type(layer).__name__
            remedy = f"wrap it: pc.PCLayer({kind}(...))"
            if not callable(layer):
                remedy = "give one such as pc.PCDense(64, 10, rngs=rngs)"
            raise TypeError(f"layer '{name}' is a {kind}, not a PCLayer; {remedy}")
        if not hasattr(layer, "activity"):
            raise TypeError(
                f"layer '{name}' ({type(layer).__name__}) has no activity; call "
                f"super().__init__(energy=...) in its __init__"
            )
        for attribute, kind in (("activity", Activity), ("energy", Energy)):
            if not isinstance(found := getattr(layer, attribute), kind):
                raise TypeError(
                    f"layer '{name}' ({type(layer).__name__}) has an attribute '{attribute}' of its own, "
                    f"{shown(found)}, in the place of its {kind.__name__}; give it another name"
                )
        if id(layer) in seen:
            raise ValueError(
                f"layer '{name}' is the same object as layer '{seen[id(layer)]}', but each layer "
                f"holds an activity of its own; to share weights, wrap one module in two PCLayers"
            )
        for attribute in sorted(node_verbs() & vars(layer).keys()):
            raise ValueError(
                f"layer '{name}' ({type(layer).__name__}) has an attribute '{attribute}', which hides a "
                f"method of pc.PCLayer; give it another name"
            )
        refuse_hidden_modules(layer, attributes=layer)
        seen[id(layer)] = name
    nodes = [node for name, layer in layers.items() for node in layer.each_node_name(name)]
    for name in layers:
        if nodes.count(name) > 1:
            raise ValueError(f"layer '{name}' has the name of a stack's node; give it another name")


def _check_combinations(parents: Mapping[str, Any]) -> None:
    """Refuse a module within a wiring, which holds names and constants."""
    for name, own in parents.items():
        hidden = hidden_module(own) if isinstance(own, Combine) else None
        if hidden is not None:
            raise TypeError(
                f"the parents of layer '{name}' are combined by a {type(own).__name__} around a "
                f"{type(hidden).__name__}, which would never be trained or saved; make it an attribute of a "
                f"subclass of PCLayer with `def predict(self, a, b)`"
            )


def _tell_places(layers: Mapping[str, PCLayer], wiring: Wiring) -> None:
    for name, (index, depth) in places(layers, wiring).items():
        layers[name].set_place(index, depth)


def _shape(name: str, size: Any) -> tuple[int, ...]:
    """Return the shape of one example, of counts; one number is a vector's."""
    sizes = size if isinstance(size, list | tuple) else (size,)
    return tuple(expect_count("PCGraph", f"shape of '{name}'", one, least=1) for one in sizes)


def _cycle_shapes(
    layers: Mapping[str, PCLayer],
    cyclic: tuple[str, ...],
    told: Mapping[str, int | tuple[int, ...]],
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return the shape of one example's activity of each layer on a cycle, which starts from zeros."""
    for name in told:
        if name not in layers:
            raise ValueError(f"no layer '{name}'; the layers are {', '.join(layers)}")
    shapes = []
    for name in cyclic:
        layer = layers[name]
        size = told.get(name, layer.known_shape)
        if size is None:
            raise ValueError(
                f"layer '{name}' is on a cycle, so its activity needs a shape to start from; give "
                f"shapes={{'{name}': shape of one example}}"
            )
        shapes.append((name, layer.shape_nodes(_shape(name, size))))
    return tuple(shapes)


def _check_shapes(network: PCGraph, external: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse shapes that do not meet, by passing them through the network without computing anything."""
    pure = split(network)

    def pass_through(inputs):
        start = pure.bind().feedforward(inputs, batch_size=2)
        bound = pure.bind(start)
        known = {name: Clamp(activity) for name, activity in start.items()}
        predictions, amortized = bound.predictions(inputs), amortize(bound, inputs, known)
        return start, predictions | {name: one.prediction for name, one in amortized.items()}

    inputs = {
        name: jax.ShapeDtypeStruct(
            (2, *shape), jnp.int32 if network.is_of_integers(name) else jnp.float32
        )
        for name, shape in external.items()
    }
    with jax.numpy_dtype_promotion("standard"):  # shapes alone are asked
        start, predictions = jax.eval_shape(pass_through, inputs)
    nodes = dict(network.wiring.targets)
    nodes |= {name: node for name, _, node in network.wiring.amortizers}
    for name, prediction in predictions.items():
        if start[nodes[name]].shape != prediction.shape:
            raise wrong_shape(name, prediction, start[nodes[name]])
