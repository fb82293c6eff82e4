"""What a network does with one of its layers: predict from below, and take its place in a pass upward.

A layer predicts on a copy of itself, so an energy is a pure function of the activities: what a layer
writes meanwhile (batch statistics, counters of random draws) is dropped, unless it happens inside
`observing()`. Next file to read: `chain.py`.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from pcflax.layers import PCLayer, PCRoot, PCStack
from pcflax.typing import PyTree
from pcflax.variables import Activity

from .clamps import Clamp

_SEVERAL = (
    "; combine its parents by pc.networks.Sum or pc.networks.Concatenate, or write "
    "`def predict(self, a, b)`"
)
_WRITES: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar(
    "writes", default=None
)


class Precision(NamedTuple):
    """How a layer's prediction is computed.

    Attributes:
        compute_dtype: dtype of the weights and the activity below while predicting; the prediction is
            cast back. None computes in the dtype of each.
        remat: whether what the prediction computes on the way is computed again for a derivative
            instead of stored.
    """

    compute_dtype: Any = None
    remat: bool = False


def as_precision(compute_dtype: Any, remat: Any) -> Precision:
    """What the user asked for, checked.

    Raises:
        TypeError: for a dtype that is not floating, or a remat that is no Boolean.
    """
    if not isinstance(remat, bool):
        raise TypeError(f"expected remat to be True or False, got {remat!r}")
    if compute_dtype is None:
        return Precision(None, remat)
    try:
        dtype = jnp.dtype(compute_dtype)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"expected a floating compute_dtype, got {compute_dtype!r}; jnp.bfloat16, say"
        )
    return Precision(dtype.name, remat)


@contextlib.contextmanager
def observing() -> Iterator[dict[str, Any]]:
    """Collect what layers write while they predict: {layer name: nnx.State}, the last time each does."""
    writes: dict[str, Any] = {}
    token = _WRITES.set(writes)
    try:
        yield writes
    finally:
        _WRITES.reset(token)


def predictions_of(
    name: str, layer: PCLayer, belows: tuple[Array, ...], activity: Array, precision: Precision
) -> Array:
    """A layer's prediction from the activities below; of a stack, that of all its layers."""
    if isinstance(layer, PCRoot):
        return _root_mean(layer, activity.shape[0])
    if isinstance(layer, PCStack):
        with _named(name, layer, belows):
            _check_one(belows)
            prediction, writes = layer.predictions(
                belows[0], activity, predict=_predict_with(precision)
            )
    else:
        prediction, writes = _checked(name, layer, belows, precision)
    _note(name, writes)
    return prediction


def forward_of(
    name: str,
    layer: PCLayer,
    belows: tuple[Array, ...],
    precision: Precision,
    *,
    batch_size: int | None = None,
    clamp: Clamp | None = None,
    error: Array | None = None,
) -> tuple[Array, Array]:
    """A layer's activity in a pass upward, at its clamp or else its prediction's mean + error.

    Returns:
        The activity, and what the layer predicts (of a stack, the layer on top).
    """
    if isinstance(layer, PCStack):
        value, held = (None, None) if clamp is None else clamp
        if value is not None:
            _check_clamp(name, clamp, (belows[0].shape[0], layer.depth, *belows[0].shape[1:]))
            held = None if held is None else clamp.held()  # type: ignore[union-attr]
        with _named(name, layer, belows):
            _check_one(belows)
            activity, prediction, writes = layer.forward(
                belows[0], errors=error, value=value, held=held, predict=_predict_with(precision)
            )
        _note(name, writes)
        return activity, prediction
    if isinstance(layer, PCRoot):
        if batch_size is None:
            raise ValueError("a feedforward pass without inputs needs batch_size")
        prediction = _root_mean(layer, batch_size)
    else:
        prediction, writes = _checked(name, layer, belows, precision)
        _note(name, writes)
    activity = layer.energy.mean(prediction)
    if error is not None:
        activity = activity + error
    return activity if clamp is None else held_at(name, clamp, activity), prediction


def top_of(layer: PCLayer, activity: Array) -> Array:
    """What the layers above see: the activity itself, of a stack that of its layer on top."""
    return activity[:, -1] if isinstance(layer, PCStack) else activity


def held_at(name: str, clamp: Clamp, activity: Array) -> Array:
    """The layer's activity under its clamp.

    Raises:
        ValueError: where their shapes differ.
    """
    _check_clamp(name, clamp, activity.shape)
    return clamp.apply(activity)


def written(layer: nnx.Module) -> PyTree:
    """The state that predicting may write and learning keeps: no weights, activities, random streams."""
    return nnx.state(layer, nnx.Not(nnx.Any(nnx.Param, Activity, nnx.RngState, nnx.Intermediate)))


def _predict_with(precision: Precision):
    """(layer, *belows) -> (prediction, what it wrote), on a copy of the layer."""

    def predict(layer: PCLayer, *belows: Array) -> tuple[Array, Any]:
        graphdef, parameters, other = nnx.split(layer, nnx.Param, ...)

        def pure(parameters, other, belows):
            if precision.compute_dtype is not None:
                parameters, belows = _cast((parameters, belows), precision.compute_dtype)
            copy = nnx.merge(graphdef, parameters, other, copy=True)
            return copy.predict(*belows), written(copy)

        call = jax.checkpoint(pure) if precision.remat else pure
        prediction, writes = call(parameters, other, belows)
        if precision.compute_dtype is not None:
            dtype = jnp.result_type(*jax.tree.leaves(parameters), *belows, jnp.float32)
            prediction = _cast(prediction, dtype)
        return prediction, writes

    return predict


def _cast(tree: PyTree, dtype: Any) -> PyTree:
    return jax.tree.map(
        lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree
    )


def _checked(
    name: str, layer: PCLayer, belows: tuple[Array, ...], precision: Precision
) -> tuple[Array, Any]:
    with _named(name, layer, belows):
        prediction, writes = _predict_with(precision)(layer, *belows)
    below = belows[0]
    if not hasattr(prediction, "shape") or prediction.shape[:1] != below.shape[:1]:
        got = getattr(prediction, "shape", type(prediction).__name__)
        raise ValueError(
            f"layer '{name}' ({type(layer).__name__}) predicted {got} from an activity of shape "
            f"{below.shape}; expected one row an example, ({below.shape[0]}, ...)"
        )
    return prediction, writes


@contextlib.contextmanager
def _named(name: str, layer: PCLayer, belows: tuple[Array, ...]) -> Iterator[None]:
    """What goes wrong in a layer's prediction is told with the layer's name."""
    try:
        yield
    except (TypeError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        shapes = " and ".join(str(below.shape) for below in belows)
        plural = "activities of shapes" if len(belows) > 1 else "an activity of shape"
        raise ValueError(
            f"layer '{name}' ({type(layer).__name__}) could not predict from {plural} {shapes}: "
            f"{first_line}" + (_SEVERAL if len(belows) > 1 and isinstance(error, TypeError) else "")
        ) from error


def _check_one(belows: tuple[Array, ...]) -> None:
    if len(belows) != 1:
        raise TypeError(f"a stack predicts from one activity, got {len(belows)}")


def _root_mean(layer: PCRoot, batch_size: int) -> Array:
    mean = layer.predict()
    return jnp.broadcast_to(mean, (batch_size, *mean.shape))


def _check_clamp(name: str, clamp: Clamp | None, shape: tuple[int, ...]) -> None:
    value = clamp.value  # type: ignore[union-attr]
    if value.shape != shape:
        raise ValueError(
            f"layer '{name}' predicts shape {shape} but is clamped to {value.shape}; "
            f"set out_features={value.shape[-1]} or give targets of width {shape[-1]}"
        )


def _note(name: str, writes: Any) -> None:
    seen = _WRITES.get()
    if seen is not None and jax.tree.leaves(writes):
        seen[name] = writes
