"""A node of the step before, as a parent: the wiring of a sequence.

A network with such parents is the network of one step of time. The activities of the step before come
from outside, as inputs called "z@-1", so that energies, problems and passes know nothing of time. What
goes along a sequence hands them on: `along.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pcflax.checks import expect_count
from pcflax.layers import PCLayer

from .wiring import as_parents, known, names_of

SUFFIX = "@-1"


class Previous(str):
    """The activity of a node one step before, as a parent of a layer of a `PCGraph`.

    It makes no cycle: at its step it is known. The network takes it as one more input, by the name
    "z@-1" of node z.

    Attributes:
        node: the name of a layer of one node, `Previous(node)`.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> rngs = nnx.Rngs(0)
    >>> step = pc.PCGraph({"z": pc.PCDense(3, 2, rngs=rngs), "x": pc.PCDense(2, 4, rngs=rngs)},
    ...                   parents={"z": pc.networks.Concatenate(pc.networks.Previous("z"), "u"), "x": "z"},
    ...                   inputs={"u": 1}, output="x")
    >>> step.predict({"u": jnp.ones((5, 1)), "z@-1": jnp.zeros((5, 2))}).shape
    (5, 4)
    """

    __slots__ = ("node",)
    node: str

    def __new__(cls, node: str) -> Previous:
        """Name what comes from outside."""
        made = super().__new__(cls, f"{node}{SUFFIX}")
        made.node = str(node)
        return made

    def __repr__(self) -> str:
        return f"Previous({self.node!r})"

    def __getnewargs__(self) -> tuple[str]:
        return (self.node,)


def take_previous(
    layers: Mapping[str, PCLayer],
    parents: Mapping[str, Any],
    shapes: Mapping[str, Any],
    without_activity: Collection[str],
) -> dict[str, tuple[int, ...]]:
    """Return what the layers want of the step before: {"z@-1": shape of one example's activity}.

    Raises:
        ValueError: for a node that is no layer, a stack, or one whose shape is not known.
    """
    found = {}
    for name, below in parents.items():
        for parent in names_of(as_parents(below)):
            if not isinstance(parent, Previous):
                continue
            node = parent.node
            if node not in layers or node in without_activity:
                nodes = [other for other in layers if other not in without_activity]
                raise ValueError(
                    f"layer '{name}' is predicted from the step before of '{node}', which is no layer with "
                    f"an activity; {known(node, nodes)}"
                )
            if layers[node].num_nodes > 1:
                raise ValueError(
                    f"layer '{name}' is predicted from the step before of '{node}', but a "
                    f"{type(layers[node]).__name__} has several nodes; name a layer of one"
                )
            size: Any = shapes.get(node, layers[node].known_shape)
            if size is None:
                raise ValueError(
                    f"the step before of '{node}' needs a shape to start from; give shapes={{'{node}': "
                    f"shape of one example}}"
                )
            sizes = size if isinstance(size, list | tuple) else (size,)
            found[str(parent)] = tuple(
                expect_count("PCGraph", f"shape of '{node}'", one, least=1) for one in sizes
            )
    return found
