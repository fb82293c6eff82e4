"""Names for the shapes and callables that several folders share; no logic.

Shapes are written with jaxtyping: `Float[Array, " batch features"]`. `"batch *features"` is any array
whose first axis counts the examples.

Dictionaries by layer are in the network's order where a network's methods return them, in the result of
`network.infer` (its trace, records, samples and expectation too) and in the `info` of a step that
`pc.training.make_step` made. jax sorts the keys of every dictionary that leaves `jax.jit`, `vmap`, `scan` or
`jax.tree.map`: those of a `TrainState`, and what a function that a user transforms returns, are in
alphabetical order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

from jaxtyping import Array, Float, Key

Activities: TypeAlias = dict[str, Float[Array, " batch *features"]]
"""An activity for each layer, by the layer's name; for the order see the head of this file."""

Energies: TypeAlias = dict[str, Float[Array, " batch"]]
"""The energy of each example at each layer, by the layer's name; never averaged."""

PRNGKey: TypeAlias = Key[Array, ""]
"""A typed key, as `jax.random.key(0)` makes it."""

PyTree: TypeAlias = Any
"""Any nesting of dicts, tuples and arrays."""

Metrics: TypeAlias = Mapping[str, float]
"""Measured numbers by name, on the host."""


Network: TypeAlias = Any
"""A `PCNetwork` or `PCGraph`, where a file below them works with one."""

Result = TypeVar("Result", covariant=True)


@runtime_checkable
class Initializer(Protocol):
    """Chooses where inference starts; see `pcflax.initializers`."""

    def __call__(
        self,
        network: Any,
        inputs: Any,
        *,
        batch_size: int,
        clamps: Mapping[str, Any],
        key: PRNGKey | None,
    ) -> Activities:
        """Return the start of every activity by layer name; clamps are put on top of it.

        Args:
            network: the network, without activities.
            inputs: as they were given, or None.
            batch_size: how many examples there are.
            clamps: {layer name: Clamp}, inputs and targets among them.
            key: randomness, or None.
        """
        ...


@runtime_checkable
class Inference(Protocol[Result]):
    """An algorithm that a network can be asked to infer by; see `pcflax.inference`."""

    def run(
        self,
        network: Any,
        evidence: Any,
        *,
        initializer: Any = None,
        key: PRNGKey | None = None,
        trace: bool = False,
        record: Any = None,
        throw: bool = False,
    ) -> Result:
        """Solve for a network object in one compiled call and store the activities in its layers."""
        ...


@runtime_checkable
class MetricFunction(Protocol):
    """A measure of one example's prediction, such as `pc.metrics.accuracy`."""

    def __call__(
        self,
        prediction: Float[Array, " batch *features"],
        targets: Float[Array, " batch *features"],
    ) -> Float[Array, " batch"]:
        """Return one number for each example; the Trainer takes the mean over examples."""
        ...
