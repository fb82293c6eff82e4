"""Evidence: what is known of which node, and so held fixed while the others are inferred.

Inputs and targets are clamps of the two ends of a chain; `Clamp` does the same for any node by name,
whole or by a mask, for each example on its own. `Evidence` holds all of them: it is the question that
inference answers. A network parses it once (`pcflax/networks/given.py`). Next file to read: `base.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float
from wadler_lindig import pformat


class Clamp(NamedTuple):
    """Hold the elements of one layer's activity where the mask is True.

    Attributes:
        value: what they are held at, (batch, *features); what stands where the mask is False is
            never looked at, NaN included.
        mask: True where held: Boolean, of the value's shape or one that broadcasts to it (a mask of
            shape (*features,) is the same for every example). None holds all elements.

    >>> import jax.numpy as jnp, optax, pcflax as pc
    >>> from flax import nnx
    >>> network = pc.PCNetwork({"hidden": pc.PCDense(2, 3, rngs=nnx.Rngs(0))})
    >>> half = pc.Clamp(jnp.ones((1, 3)), mask=jnp.array([True, False, False]))
    >>> result = network.infer(jnp.zeros((1, 2)), clamps={"hidden": half},
    ...                        inference=pc.inference.GradientDescent(optax.sgd(0.5)))
    >>> result.activities["hidden"]
    Array([[1., 0., 0.]], dtype=float32)
    """

    value: Float[Array, " batch *features"]
    mask: Bool[Array, " *features"] | None = None

    def held(self) -> Bool[Array, " batch *features"]:
        """Return the mask at the value's full shape."""
        mask = True if self.mask is None else self.mask
        return jnp.broadcast_to(jnp.asarray(mask), self.value.shape)

    def placed(
        self, activity: Float[Array, " batch *features"], width: int | None = None
    ) -> Float[Array, " batch *features"]:
        """Return the activity under the clamp; `width` is that of a prediction which is another.

        Raises:
            ClampShapeError: where the shapes differ.
        """
        check_clamp(self, activity.shape, width)
        return self.apply(activity)

    def apply(self, activity: Float[Array, " batch *features"]) -> Float[Array, " batch *features"]:
        """Return the activity with its held elements at their values."""
        value = self.value.astype(activity.dtype)
        return value if self.mask is None else jnp.where(self.mask, value, activity)


Clamps: TypeAlias = Mapping[str, Clamp]
"""A clamp for each clamped layer, by the layer's name."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Evidence:
    """What is known of a batch of examples: the question that inference answers.

    A pytree, so that it passes through `jit`, `vmap` and `scan`. Nothing is checked here: the network
    that is asked checks it, once.

    Attributes:
        inputs: clamped below, (batch, *features), or {name: array} of a graph with several inputs;
            None leaves a root free. Integers for a layer that takes them (tokens). `pc.Clamp(value, mask)`
            where only some elements of a root are known.
        targets: clamped above, (batch, *features), classes one-hot, or {name: array} for several outputs,
            of which those without an array stay free; None leaves all free. `pc.Clamp(value, mask)` where
            only some elements are known: with a mask of shape (batch, 1), the targets of some examples.
        clamps: {node name: array or `pc.Clamp(value, mask)`} for any other node, or None; one layer of a
            stack goes by its node's name, `hidden/3`.
        weights: (batch,), factors w_i of the examples in learning, whose gradient is mean_i w_i dF_i/dtheta;
            None where all count alike. Inference, each example's own, and evaluation know none.
        examples: (batch,), int32, the examples' places in their data set; None where they have none.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> pc.Evidence(jnp.ones((4, 3)), clamps={"hidden": jnp.zeros((4, 5))}).targets is None
    True
    """

    inputs: Any = None
    targets: Any = None
    clamps: Mapping[str, Any] | None = dataclasses.field(default_factory=dict)
    weights: Any = None
    examples: Any = None

    def mean(self, values: Float[Array, " batch *rest"]) -> Float[Array, " *rest"]:
        """Return the batch mean of what learning descends, w_i values_i.

        >>> import jax.numpy as jnp, pcflax as pc
        >>> pc.Evidence(jnp.ones((2, 3)), weights=jnp.array([3.0, 1.0])).mean(jnp.array([2.0, 4.0]))
        Array(5., dtype=float32)
        """
        return weighted_mean(values, self.weights)

    def __repr__(self) -> str:
        return pformat(self)  # dtypes and shapes, no numbers

    def __iter__(self) -> Iterator[Any]:
        """Give inputs and targets in turn: `for x, y in data`."""
        return iter((self.inputs, self.targets))


class Known(NamedTuple):
    """Evidence that a network has parsed: every clamp by layer, inputs and targets among them."""

    inputs: Any  # what layers without a node below predict from
    clamps: dict[str, Clamp]  # by layer name, of a stack that of all its layers
    weights: Any = None

    @property
    def batch_size(self) -> int:
        """How many examples there are."""
        return jax.tree.leaves((self.inputs, self.clamps))[0].shape[0]


def weighted_mean(values: Array, weights: Array | None) -> Array:
    """Return mean_i w_i values_i over the first axis; the mean where there are no weights."""
    if weights is not None:
        weights = jnp.asarray(weights, values.dtype)
        values = weights.reshape(-1, *[1] * (values.ndim - 1)) * values
    return jnp.mean(values, axis=0)


def check_weights(weights: Any, batch_size: int) -> None:
    """Refuse weights that are not one finite number of at least 0 for each example."""
    if weights is None:
        return
    if getattr(weights, "shape", None) != (batch_size,):
        raise ValueError(
            f"expected weights of shape ({batch_size},), one for each example, got "
            f"{getattr(weights, 'shape', type(weights).__name__)}"
        )
    if isinstance(weights, Tracer):
        return
    numbers = np.asarray(weights)
    if not (np.isfinite(numbers) & (numbers >= 0)).all():
        raise ValueError("expected weights that are finite and at least 0, got others; mend them")


def whole_values(clamps: Clamps) -> dict[str, Array]:
    """Return the values of the clamps that hold all elements, by name."""
    return {name: clamp.value for name, clamp in clamps.items() if clamp.mask is None}


class ClampShapeError(ValueError):
    """A clamp has another shape than its layer predicts; told with the layer's name."""


def held_at(name: str, clamp: Clamp, activity: Array) -> Array:
    """Return the activity of the layer of that name under its clamp."""
    try:
        return clamp.placed(activity)
    except ClampShapeError as error:
        raise ValueError(f"layer '{name}' {error}") from None


def check_clamp(clamp: Clamp, shape: tuple[int, ...], width: int | None = None) -> None:
    """Refuse a clamp of another shape than its layer predicts, as mean and more where it is wider."""
    value = clamp.value
    if value.shape == shape:
        return
    remedy = f"give a clamp or targets of shape {shape}"
    if value.shape[:-1] == shape[:-1]:  # the widths differ alone
        factor = 1 if width is None else width // max(shape[-1], 1)
        remedy = (
            f"set out_features={factor * value.shape[-1]} or give a clamp or targets of width "
            f"{shape[-1]}"
        )
    raise ClampShapeError(f"predicts shape {shape} but is clamped to {value.shape}; {remedy}")


def as_clamp(name: str, value: Any) -> Clamp:
    """Return a user's clamp of the layer of that name, checked: an array stands for all of its elements."""
    clamp = value if isinstance(value, Clamp) else Clamp(value)
    value, mask = clamp
    if not hasattr(value, "dtype") or not jnp.issubdtype(value.dtype, jnp.floating):
        kind = getattr(value, "dtype", type(value).__name__)
        raise TypeError(
            f"expected layer '{name}' to be clamped to an array of a floating dtype, got {kind}; "
            f"cast it, or give pc.Clamp(value, mask)"
        )
    if value.ndim < 2:
        raise ValueError(
            f"expected layer '{name}' to be clamped to an array of shape (batch, features), got "
            f"{value.shape}; a single example needs a batch axis: value[None]"
        )
    if mask is None:
        return Clamp(jnp.asarray(value))
    if not hasattr(mask, "dtype") or mask.dtype != jnp.bool_:
        kind = getattr(mask, "dtype", type(mask).__name__)
        raise TypeError(
            f"expected the mask of layer '{name}' to be Boolean (True where held), got {kind}; "
            f"compare: mask > 0.5"
        )
    try:
        fits = jnp.broadcast_shapes(mask.shape, value.shape) == value.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"layer '{name}' is clamped to a value of shape {value.shape} with a mask of shape "
            f"{mask.shape}; give a mask of that shape, or one that broadcasts to it"
        )
    return Clamp(jnp.asarray(value), jnp.asarray(mask))


def clamp_of_stack(name: str, depth: int, whole: Clamp | None, nodes: Mapping[int, Clamp]) -> Clamp:
    """Return the clamp of a stack, (batch, depth, *features), of one of its own and those of its layers.

    `nodes` are clamps of single layers by index, (batch, *features). Where there are some, `whole`, given
    for the stack, is masked: no element may be held twice.
    """
    if depth == 1 and not whole and nodes[0].mask is None:
        return Clamp(nodes[0].value[:, None])
    parts = [] if whole is None else [(name, whole)]
    for index, clamp in nodes.items():
        batch, *features = clamp.value.shape
        here = (jnp.arange(depth) == index).reshape(1, depth, *[1] * len(features))
        value = jnp.broadcast_to(clamp.value[:, None], (batch, depth, *features))
        parts.append((f"{name}/{index}", Clamp(value, here & clamp.held()[:, None])))
    (_, all_of), *others = parts
    for node, clamp in others:
        if clamp.value.shape != all_of.value.shape:
            raise ValueError(
                f"layer '{node}' is clamped to a value of shape {_of_one(clamp)}, but another layer of its "
                f"stack to {_of_one(all_of)}; give one shape"
            )
        both = clamp.held() & all_of.held()
        if not isinstance(both, Tracer) and both.any():
            raise ValueError(f"layer '{node}' is clamped twice, by its own name and by '{name}'")
        value = jnp.where(clamp.held(), clamp.value, all_of.value)
        all_of = Clamp(value, all_of.held() | clamp.held())
    return all_of


def _of_one(clamp: Clamp) -> tuple[int, ...]:
    batch, _, *features = clamp.value.shape
    return (batch, *features)
