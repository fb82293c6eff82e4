"""A layer is a node and its prediction.

Layer l holds an activity z_l, predicts it from the activity below, mu_l = f_l(z_{l-1}), and scores
the mismatch with an energy E_l(z_l, mu_l). `PCLayer` wraps any nnx module as f_l, or is subclassed
with a `predict` of its own: nothing else is needed to add an architecture. Layers know nothing of
each other; a network wires them, by the verbs at the end of the class, which a run of nodes
(`stack.py`) and a node without parents (`root.py`) override. Next file to read:
`pcflax/networks/wiring.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pcflax.energies import Energy, Gaussian
from pcflax.typing import PyTree
from pcflax.variables import Activity

from .clamps import Clamp
from .closures import refuse_hidden_modules
from .evaluate import PLAIN, NoRowsError, Numerics, evaluate, evaluate_at_rest, has_rows


class PCLayer(nnx.Module):
    """One node of a predictive coding network: an activity, its prediction and their energy.

    Wrap a module, `PCLayer(nnx.Linear(300, 10, rngs=rngs))`, or subclass and write `predict`. A
    subclass calls `super().__init__(energy=...)` and then makes its own modules and parameters, as in
    any `nnx.Module`.

    Args:
        module: a callable from the activity below, (batch, *features_below), to this layer's
            prediction, (batch, *features). Leave it out in a subclass with its own `predict`.
        energy: how a mismatch is scored; `Gaussian()` unless given.

    Attributes:
        activity: the `Activity` z_l, batch first; of shape (0,) until a network gives it a size.
        energy: the `Energy` object.
        takes_integers: True where the layer predicts from integers (tokens); False unless a subclass
            says so.

    Raises:
        TypeError: where `energy` is not an `Energy`, or `module` cannot be called or is a function that
            hides a module of NNX.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> class Doubling(pc.PCLayer):
    ...     def predict(self, below):
    ...         return 2 * below
    >>> Doubling().predict(jnp.ones((1, 2)))
    Array([[2., 2.]], dtype=float32)
    """

    takes_integers: bool = False

    def __init__(
        self, module: Callable[[Array], Array] | None = None, *, energy: Energy | None = None
    ):
        if energy is not None and not isinstance(energy, Energy):
            raise TypeError(
                f"{type(self).__name__} expected energy to be an Energy object such as "
                f"pc.energies.Gaussian(), got {energy!r}"
            )
        if module is not None and not callable(module):
            raise TypeError(
                f"{type(self).__name__} expected a module that can be called on the activity below, "
                f"got {module!r}"
            )
        refuse_hidden_modules(self, module=module)
        self.activity = Activity(jnp.zeros((0,)))
        self.energy = Gaussian() if energy is None else energy
        if module is not None:
            self.module: Any = module

    def predict(self, *belows: Float[Array, " batch *below"]) -> Float[Array, " batch *features"]:
        """Return the prediction mu_l = f_l(z_{l-1}) of this layer's activity, one row an example.

        Args:
            *belows: the activity of the layer below, or the clamped input of the first layer; in a
                graph, those of all parents. A subclass names them: `def predict(self, below)`.

        Raises:
            NotImplementedError: where the layer wraps no module and a subclass wrote no `predict`.
        """
        if not hasattr(self, "module"):
            raise NotImplementedError(
                f"{type(self).__name__} predicts nothing yet: give PCLayer a module, or write "
                f"`def predict(self, below)` in the subclass"
            )
        return self.module(*belows)

    def set_place(self, index: int, depth: int) -> None:
        """Take note of where in the network this layer stands; does nothing unless a subclass wants it.

        Told by the network at construction, of its layers that predict from one below: a root does
        not count. A layer that stands in several networks keeps what the last one told it.

        Args:
            index: which of those layers this one is; 0 is nearest the input.
            depth: how many of them there are.
        """
        del index, depth  # predictions depend on the place only where a subclass says so

    def rate_of(self, path: Sequence[str], index: int, depth: int) -> float:
        """Return the factor of Adam's rate for one parameter: 1 unless a layer has a parameterization.

        Args:
            path: the parameter's path within the layer, such as ("linear", "kernel").
            index: the layer's place, as in `set_place`.
            depth: of the network, as in `set_place`.
        """
        del path, index, depth
        return 1.0

    # The verbs by which a network works with any layer.

    is_root_node: bool = False  # whether the layer predicts from nothing: a prior

    @property
    def has_feedback(self) -> bool:
        """Whether the layer's error goes down through weights of their own."""
        return False

    @property
    def known_shape(self) -> tuple[int, ...] | None:
        """The shape of one example's activity, where the layer knows it before it predicts."""
        return None

    # Of an activity with the batch first: how many axes count examples and nodes, and which axis stands
    # first where the layer stores it.
    node_axes: int = 1
    node_axis: int = 0

    @property
    def num_nodes(self) -> int:
        """How many nodes the layer stands for."""
        return 1

    def each_node_name(self, name: str) -> tuple[str, ...]:
        """Return the nodes' names, where the layer's is given."""
        return (name,)

    def each_node(self, name: str) -> dict[str, PCLayer]:
        """Return the nodes' names and, for each, a layer that predicts it alone."""
        return {name: self}

    def split_nodes(
        self, name: str, value: Any, pick: Callable[[Any, int], Any] | None = None
    ) -> dict[str, Any]:
        """Split a per-layer value into per-node values; `pick(value, index)` is one node's."""
        del pick  # there is one node
        return {name: value}

    def shape_nodes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the layer's activity where `shape` is one node's, for one example."""
        return shape

    def clamp_nodes(
        self, name: str, whole: Clamp | None, nodes: Mapping[int, Clamp]
    ) -> Clamp | None:
        """Merge the layer's own clamp with those of its nodes by index."""
        del name, nodes  # there are none
        return whole

    def top_node(self, activity: Array) -> Array:
        """Return the part of an activity, the batch first, that the layers above see."""
        return activity

    def top_node_layer(self) -> PCLayer:
        """Return a layer that predicts the top node alone."""
        return self

    def weigh_top_node(self, weight: Any) -> Any:
        """Return the factors of the layer's energies that weigh the top node alone."""
        return weight

    def predict_nodes(
        self, belows: tuple[Array, ...], activity: Array, numerics: Numerics
    ) -> tuple[Array, PyTree]:
        """Predict all nodes from the activities below and between them.

        Returns:
            The predictions, shaped as `activity`, and what the layer wrote.
        """
        del activity  # between the nodes of a stack
        if numerics[:3] == PLAIN[:3]:
            return self.predict(*belows), {}
        return evaluate(self, belows, numerics)

    def advance_nodes(
        self,
        belows: tuple[Array, ...],
        numerics: Numerics,
        *,
        batch_size: int | None,
        clamp: Clamp | None = None,
        error: Array | None = None,
    ) -> tuple[Array, Array, PyTree]:
        """Take the layer's place in a pass upward: its clamp, or its prediction's mean + error.

        Returns:
            The activity, the predictions of all nodes, and what the layer wrote.

        Raises:
            ValueError: for a prediction of nothing, or a clamp of another shape.
        """
        del batch_size  # which a root needs
        prediction, writes = evaluate_at_rest(self, belows, numerics)
        if not has_rows(prediction, belows):
            raise NoRowsError(prediction)
        activity = self.energy.mean(prediction)
        if error is not None:
            activity = activity + error
        if clamp is not None:
            activity = clamp.placed(activity, prediction.shape[-1])
        return activity, prediction, writes

    def update_nodes(self, writes: PyTree) -> None:
        """Keep what the layer wrote on a copy of itself."""
        nnx.update(self, writes)

    def sum_nodes(self, array: Array) -> Array:
        """Sum an array shaped as one of the layer's over everything but the nodes."""
        return jnp.sum(array)

    def map_nodes(
        self, function: Callable[[PCLayer, Array, Any], Any], activity: Array, belows: Any
    ) -> Any:
        """Return function(layer, activity, below) of each node; below is None for several."""
        return function(self, activity, belows[0] if len(belows) == 1 else None)


def node_verbs() -> frozenset[str]:
    """Return the names by which networks call layers, and which no attribute of a layer may have."""
    told = {"set_place", "rate_of"}
    return frozenset(name for name in vars(PCLayer) if "node" in name and name[0] != "_") | told
