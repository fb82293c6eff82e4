"""Any graph from its adjacency matrix, in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pcflax.checks import expect_count
from pcflax.layers import PCLayer

from .network import PCGraph
from .wiring import Concatenate, known


def from_adjacency(
    matrix: Any,
    make: Callable[[str, int, int], PCLayer],
    *,
    widths: int | Sequence[int],
    inputs: str | Sequence[str],
    output: str | Sequence[str],
    names: Sequence[str] | None = None,
    **options: Any,
) -> PCGraph:
    """Build the network in which node i predicts node j wherever matrix[i, j] is 1; cycles are welcome.

    A node sees its parents joined along the last axis, in the order of the rows. A matrix of NetworkX
    (`networkx.to_numpy_array` of a directed graph) has this form. A node may predict itself, 1 on the
    diagonal.

    Args:
        matrix: (n, n) of Booleans, or of 0 and 1.
        make: make(name, width_in, width_out) returns the layer of a node; of one that nothing predicts,
            width_in = 0, a `pc.PCRoot(width_out)`.
        widths: of all nodes, or (n,), of each.
        inputs: the nodes that come from outside; nothing predicts them.
        output: the node that targets clamp, or several.
        names: of the nodes; "0", "1", ... unless given.
        **options: others of `PCGraph`: sweeps, compute_dtype, remat.

    Raises:
        TypeError: where `make` cannot be called, and for inputs or outputs that are no names.
        ValueError: for a matrix that is not square or has other numbers, other counts of widths or names,
            an input that is predicted, and as `PCGraph`.

    Source: Salvatori et al. (2022), arXiv 2201.13180: learning on arbitrary graph topologies.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> rngs = nnx.Rngs(0)
    >>> ring = [[0, 1, 1, 0], [0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]]
    >>> network = pc.networks.from_adjacency(
    ...     ring, lambda name, below, width: pc.PCDense(below, width, activation=jnp.tanh, rngs=rngs),
    ...     widths=[5, 8, 8, 3], inputs="0", output="3")
    >>> network.cyclic, network.predict(jnp.ones((2, 5))).shape
    (('1', '2'), (2, 3))
    """
    if not callable(make):
        raise TypeError(
            f"from_adjacency expected make to be a function of name, width_in and width_out, got "
            f"{type(make).__name__}"
        )
    edges = np.asarray(matrix)
    if edges.ndim != 2 or edges.shape[0] != edges.shape[1] or not edges.size:
        raise ValueError(
            f"from_adjacency expected a square matrix, a row and a column for each node, got {edges.shape}"
        )
    if not np.isin(edges, (0, 1)).all():
        raise ValueError(
            "from_adjacency expected a matrix of Booleans, or of 0 and 1; compare: matrix > 0.5"
        )
    count = len(edges)
    nodes = tuple(str(i) for i in range(count)) if names is None else tuple(names)
    sizes: tuple[Any, ...] = (widths,) * count
    if isinstance(widths, Iterable) and np.ndim(widths):
        sizes = tuple(widths)
    for what, given in (("names", nodes), ("widths", sizes)):
        if len(given) != count:
            raise ValueError(
                f"from_adjacency expected {count} {what}, one for each row of the matrix, got {len(given)}"
            )
    if len(set(nodes)) < count:
        raise ValueError("from_adjacency expected names that differ; give each node its own")
    for what, of_role in (("inputs", inputs), ("output", output)):
        several = (
            of_role
            if isinstance(of_role, Iterable) and not isinstance(of_role, str)
            else (of_role,)
        )
        for one in several:
            if not isinstance(one, str):
                raise TypeError(
                    f"from_adjacency expected {what} by name, such as '{nodes[0]}', got {one!r}"
                )
    width = {
        name: expect_count("from_adjacency", f"the width of node '{name}'", size, least=1)
        for name, size in zip(nodes, sizes, strict=True)
    }
    outside = (inputs,) if isinstance(inputs, str) else tuple(inputs)
    layers: dict[str, PCLayer] = {}
    parents: dict[str, Any] = {}
    for name in outside:
        if name not in width:
            raise ValueError(f"the input '{name}' is no node; {known(name, nodes)}")
    for column, name in enumerate(nodes):
        below = [nodes[row] for row in np.flatnonzero(edges[:, column])]
        if name in outside:
            if below:
                raise ValueError(
                    f"the input '{name}' comes from outside, but the matrix lets '{below[0]}' predict it; "
                    f"clear its column, or take it out of inputs"
                )
            continue
        layers[name] = make(name, sum(width[parent] for parent in below), width[name])
        if below:
            parents[name] = below[0] if len(below) == 1 else Concatenate(*below)
    shapes = {name: width[name] for name in layers}
    given_inputs: Mapping[str, int] = {name: width[name] for name in outside}
    return PCGraph(
        layers, parents=parents, inputs=given_inputs, output=output, shapes=shapes, **options
    )
