"""The summary of a network: its layers, and what its passes, steps and gradients cost when compiled.

Nothing is computed: shapes are passed through, and programs compiled and read (`programs.py`).
"""

from __future__ import annotations

import dataclasses
import html
import io
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pcflax.layers import Evidence, PCLayer
from pcflax.layers.clamps import weighted_mean
from pcflax.typing import Network, PyTree

from .programs import count
from .pure import split
from .wiring import INPUTS, by_name, names_of

_WIDTH = 110


class Cost(NamedTuple):
    """What one compiled call costs for the whole batch.

    Attributes:
        flops: floating-point operations of matrix products and convolutions, a multiplication and its
            addition being two, paddings of convolutions included.
        bytes: read and written by its instructions; what a cache keeps moves fewer.
        bounded: False where a loop ends by what it finds, and is counted once.
    """

    flops: int
    bytes: int
    bounded: bool = True

    def times(self, count: int) -> Cost:
        """Return the cost of so many such calls."""
        return self._replace(flops=count * self.flops, bytes=count * self.bytes)


class LayerSummary(NamedTuple):
    """One layer.

    Attributes:
        name: its name.
        kind: its class; of a stack, that of its layers.
        nodes: how many nodes it stands for.
        parents: what it predicts from.
        shape: of one node's activity for one example.
        parameters: how many numbers it learns.
        multiplier: a of its weights; None where it has none.
    """

    name: str
    kind: str
    nodes: int
    parents: tuple[str, ...]
    shape: tuple[int, ...]
    parameters: int
    multiplier: float | None


@dataclasses.dataclass(frozen=True)
class Summary:
    """Layers and costs of a network; `print` shows them as tables.

    Attributes:
        layers: a `LayerSummary` each, in the network's order.
        parameters: how many numbers are learned, layers and network together.
        batch_size: how many examples the costs are of.
        costs: {what: `Cost`}.
    """

    layers: tuple[LayerSummary, ...]
    parameters: int
    batch_size: int
    costs: Mapping[str, Cost]

    def __rich__(self) -> Any:
        """Return the two tables."""
        from rich.console import Group

        layers = _table(f"{self.parameters:,} parameters", _LAYER_COLUMNS)
        for one in self.layers:
            multiplier = "" if one.multiplier is None else f"{one.multiplier:.4g}"
            kind = one.kind if one.nodes == 1 else f"{one.kind} x {one.nodes}"
            parents, shape = ", ".join(one.parents), " x ".join(map(str, one.shape))
            layers.add_row(one.name, kind, parents, shape, f"{one.parameters:,}", multiplier)
        costs = _table(f"cost for a batch of {self.batch_size}", _COST_COLUMNS)
        base = self.costs.get(BACKPROP)
        for name, cost in self.costs.items():
            sign = "" if cost.bounded else ">= "
            ratio = f"{sign}{cost.flops / base.flops:.2f}" if base and base.flops else ""
            costs.add_row(
                name, f"{sign}{cost.flops / 1e6:,.4g}", f"{sign}{cost.bytes / 1e6:,.4g}", ratio
            )
        return Group(layers, costs)

    def __str__(self) -> str:
        from rich.console import Console

        # in a notebook rich would show it at once, and write nothing
        console = Console(file=io.StringIO(), width=_WIDTH, color_system=None, force_jupyter=False)
        console.print(self)
        return console.file.getvalue()  # type: ignore[attr-defined]

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


UPWARD, WEIGHTS, BACKPROP = "pass upward", "weight gradient", "backpropagation's gradient"
_LAYER_COLUMNS = ("layer ", "kind ", "predicted from ", "activity", "parameters", "multiplier")
_COST_COLUMNS = ("", "Mflop in products", "MB moved", "times backpropagation")


def summary(
    network: Network, inputs: Any, *, batch_size: int | None, inference: Any, learning: Any
) -> Summary:
    """Return layers and costs; see `AbstractPCNetwork.summary`."""
    given = _structs(network, inputs, batch_size)
    if given is None and batch_size is None:
        raise ValueError(
            "summary without inputs expected a batch_size: summary(None, batch_size=64)"
        )
    pure = split(network)
    activities = _starts(pure, given, batch_size)
    size = next(iter(activities.values())).shape[0]
    tops = {
        name: jax.eval_shape(network.layer(name).top_node, activities[name])
        for name in network.outputs
    }
    targets = tops[network.output] if network.one_output else tops

    def upward(pure, given, targets):
        del targets  # not seen
        return pure.bind().predict(given, batch_size=size)

    def weights(pure, given, activities):
        return pure.mean_gradients(activities, given)[0]

    def backprop(pure, given, targets):
        def loss(parameters):
            bound = pure.replace(parameters=parameters).bind()
            return weighted_mean(
                bound.output_energy(bound.predict(given, batch_size=size), targets), None
            )

        return jax.grad(loss)(pure.parameters)

    costs = {UPWARD: _cost(upward, pure, given, targets)}
    costs[WEIGHTS] = _cost(weights, pure, given, activities)
    if network.layer_names == network.names:  # the pass upward leaves no layer out
        costs[BACKPROP] = _cost(backprop, pure, given, targets)
    for label, algorithm in _labelled(inference).items():
        costs |= _inference_costs(label, algorithm, pure, given, targets)
    for label, rule in _labelled(learning).items():
        if label in costs:
            raise ValueError(
                f"summary has a cost of '{label}' already; give the rule another label"
            )
        rule.check(network)
        costs[label] = _cost(_learn(rule), pure, given, targets)
    parameters = parameter_counts(network)
    return Summary(
        tuple(_layer(network, name, activities, parameters[name]) for name in network.layer_names),
        _number(pure.parameters),
        size,
        costs,
    )


def parameter_counts(network: Network) -> dict[str, int]:
    """Return how many numbers each layer learns, by name."""
    parameters = split(network).parameters
    return {name: _number(parameters.get(name, {})) for name in network.layer_names}


def node_shapes(network: Network, inputs: Any = None) -> dict[str, tuple[int, ...]]:
    """Return the shape of one example's activity, by name of layer or input, as far as it is known.

    Of a stack that of one node. Without inputs, a network that has some tells what is stored, and what its
    layers say.
    """
    if inputs is None and network.wiring.outside:
        return {name: shape for name in network.names if (shape := _known(network.layer(name)))}
    given = _structs(network, inputs, None)
    starts = _starts(split(network), given, 1 if inputs is None else None)
    found = (
        {}
        if given is None
        else by_name(given, tuple(given) if isinstance(given, Mapping) else network.wiring.inputs)
    )
    shapes = {name: one.shape[1:] for name, one in found.items()}
    return shapes | {n: z.shape[network.layer(n).node_axes :] for n, z in starts.items()}


def _known(layer: PCLayer) -> tuple[int, ...] | None:
    """Return the shape of one node of a layer, where it is stored or the layer says it."""
    stored = layer.activity[...]
    if stored.ndim > 1:
        return stored.shape[layer.node_axes :]
    return layer.top_node_layer().known_shape


def _starts(pure: Any, given: Any, batch_size: int | None) -> dict[str, Any]:
    """Return shapes and dtypes of the feedforward pass."""

    def start(pure, given):
        bound = pure.bind()
        size = batch_size if given is None else bound.check_batch(given, None)
        return bound.feedforward(given, batch_size=size)

    return jax.eval_shape(start, pure, given)


def _cost(function: Callable, *arguments: PyTree) -> Cost:
    """Compile and read."""
    program = count(jax.jit(function).lower(*arguments).compile().as_text() or "")
    return Cost(program.flops, int(program.bytes), program.bounded)


def _inference_costs(label, algorithm, pure, given, targets) -> dict[str, Cost]:
    """Return one step and all of them; of what is not made of equal steps, the whole solve."""
    steps = _num_steps(algorithm)

    def solve(algorithm):
        def activities(pure, given, targets):
            evidence = Evidence(given, targets)
            return algorithm.run(pure.bind(), evidence, key=jax.random.key(0)).activities

        return _cost(activities, pure, given, targets)

    if steps is None:
        return {label: solve(algorithm)}
    # of one step XLA makes no loop; what a third adds to two is a turn of it
    two, three = (solve(_with_steps(algorithm, steps)) for steps in (2, 3))
    step = Cost(three.flops - two.flops, three.bytes - two.bytes, three.bounded)
    most = "" if getattr(algorithm, "tolerance", None) is None else " at most"
    return {f"{label}, a step": step, f"{label}, {steps} steps{most}": step.times(steps)}


def _num_steps(algorithm: Any) -> int | None:
    """Return how many equal steps an algorithm takes, at most; None where it is not made of them."""
    if hasattr(algorithm, "step") and hasattr(algorithm, "stop"):
        return algorithm.num_steps if algorithm.tolerance is None else algorithm.max_steps
    inner = getattr(algorithm, "inference", None)
    return None if inner is None else _num_steps(inner)


def _with_steps(algorithm: Any, steps: int) -> Any:
    """Return the algorithm with a fixed number of steps."""
    if hasattr(algorithm, "step") and hasattr(algorithm, "stop"):
        return dataclasses.replace(algorithm, num_steps=steps, tolerance=None, max_steps=None)
    return dataclasses.replace(algorithm, inference=_with_steps(algorithm.inference, steps))


def _learn(rule: Any) -> Callable:
    """Return what a rule does with a batch, without an optimizer."""
    optimizer, key = optax.identity(), jax.random.key(0)

    def learn(pure, given, targets):
        evidence = Evidence(given, targets)
        if hasattr(rule, "gradients"):
            return rule.gradients(pure, evidence, key=key)[0]
        state = optimizer.init(pure.parameters)
        return rule.update(pure, optimizer, state, evidence, key=key)[0].parameters

    return learn


def _structs(network: Network, inputs: Any, batch_size: int | None) -> Any:
    """Return shapes and dtypes of the inputs, where shapes or arrays are given."""
    if inputs is None:
        return None
    if isinstance(inputs, Mapping):
        found = {
            name: _struct(value, network.is_of_integers(name)) for name, value in inputs.items()
        }
        size = next(iter(found.values())).shape[0] if found else batch_size
        before = {
            name: jax.ShapeDtypeStruct((size, *shape), float)
            for name, shape in network.wiring.previous
        }
        return before | found
    return _struct(inputs, network.takes_integers)


def _struct(value: Any, integers: bool) -> jax.ShapeDtypeStruct:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return jax.ShapeDtypeStruct(value.shape, value.dtype)
    dtype = jnp.result_type(int if integers else float)
    return jax.ShapeDtypeStruct(tuple(value), dtype)


def _labelled(given: Any) -> dict[str, Any]:
    """Return algorithms or rules by label."""
    if given is None:
        return {}
    return dict(given) if isinstance(given, Mapping) else {_name(given): given}


def _name(setting: Any) -> str:
    inner = [getattr(setting, "inference", None), *getattr(setting, "algorithms", ())]
    named = ", ".join(_name(one) for one in inner if one is not None)
    return f"{type(setting).__name__}({named})" if named else type(setting).__name__


def _number(parameters: PyTree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(parameters))


def _layer(network: Network, name: str, activities: Mapping, parameters: int) -> LayerSummary:
    layer, wiring = network.layer(name), network.wiring
    others = [(own, parents) for own, parents, _ in (*wiring.predictors, *wiring.amortizers)]
    parents = dict((*wiring.parents, *others))[name]
    one, node = layer.top_node_layer(), dict(wiring.targets).get(name, name)
    multiplier = getattr(one, "multiplier", None)  # a layer of one's own may call anything so
    node = {own: node for own, _, node in wiring.amortizers}.get(name, node)
    return LayerSummary(
        name,
        type(one).__name__,
        layer.num_nodes,
        tuple("inputs" if parent == INPUTS else parent for parent in names_of(parents)),
        activities[node].shape[network.layer(node).node_axes :],
        parameters,
        multiplier if isinstance(multiplier, int | float) else None,
    )


def _table(title: str, columns: tuple[str, ...]) -> Any:
    from rich.table import Table

    table = Table(title=title)
    for column in columns:
        left = not column or column.endswith(" ")
        table.add_column(column.strip(), justify="left" if left else "right")
    return table
