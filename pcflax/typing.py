"""Names for the shapes and callables that several folders share; no logic.

Shapes are written with jaxtyping: `Float[Array, " batch features"]`. `"batch *features"` is any array
whose first axis counts the examples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TypeAlias

import jax
from jaxtyping import Array, Float, Key

Activities: TypeAlias = dict[str, Float[Array, " batch *features"]]
"""An activity for each layer, by the layer's name, in the network's order."""

Energies: TypeAlias = dict[str, Float[Array, " batch"]]
"""The energy of each example at each layer, by the layer's name; never averaged."""

PRNGKey: TypeAlias = Key[Array, ""]
"""A typed key, as `jax.random.key(0)` makes it."""

PyTree: TypeAlias = Any
"""Any nesting of dicts, tuples and arrays."""

Metrics: TypeAlias = Mapping[str, float]
"""Measured numbers by name, on the host."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Examples that are trained on or measured together: what is known of them.

    Attributes:
        inputs: what is clamped below, (batch, *features), floating, or integers for a layer that takes
            them (tokens); {name: array} for several inputs; None leaves the root free.
        targets: what is clamped above, (batch, *features), floating (classes one-hot); {name: array}
            for several outputs, of which those without a name stay free; None leaves all free.
        clamps: what is clamped besides, {name of a layer: `pc.Clamp`}; nothing as a rule.
    """

    inputs: PyTree
    targets: PyTree
    clamps: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __iter__(self) -> Iterator[PyTree]:
        """Give inputs and targets in turn: `for x, y in data`."""
        return iter((self.inputs, self.targets))


class MetricFunction(Protocol):
    """A measure of one example's prediction, such as `pc.metrics.accuracy`."""

    def __call__(
        self,
        prediction: Float[Array, " batch *features"],
        targets: Float[Array, " batch *features"],
    ) -> Float[Array, " batch"]:
        """One number for each example; the Trainer takes the mean over examples."""
        ...
