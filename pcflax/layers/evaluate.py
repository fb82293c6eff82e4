"""How a layer's prediction is computed: in which numeric format, and on a copy where it keeps state.

An energy is a pure function of the activities, so what a layer writes while it predicts (batch
statistics, counters of random draws) happens to a copy. It comes back beside the prediction, for those
who keep it once a batch (`pcflax/networks/batch_state.py`). Next file to read: `base.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from pcflax.dtypes import common_dtype
from pcflax.typing import PyTree
from pcflax.variables import Activity, Connectivity

from .clamps import ClampShapeError

# what is neither weight, activity nor a fixed mask: batch statistics, random streams
OTHER = nnx.Not(nnx.Any(nnx.Param, Activity, Connectivity))
_WRITTEN = nnx.All(OTHER, nnx.Not(nnx.Any(nnx.RngState, nnx.Intermediate)))
_SEVERAL = (
    "; combine its parents by pc.networks.Sum or pc.networks.Concatenate, or write "
    "`def predict(self, a, b)`"
)


class Numerics(NamedTuple):
    """How predictions are computed.

    Attributes:
        compute_dtype: dtype of the weights and the activity below while predicting; the prediction is
            cast back. None computes in the dtype of each.
        remat: whether what a prediction computes on its way is computed again for a derivative instead
            of stored.
        stateful: whether a layer may hold state besides weights and activity; False where it is known
            that none does.
        untouched: nodes whose prediction is their activity, exactly.
        rounds: the layers whose errors count as 0 where they are rounding alone: the free ones, while
            weights learn.
    """

    compute_dtype: Any = None
    remat: bool = False
    stateful: bool = True
    rounds: tuple[str, ...] = ()
    untouched: tuple[str, ...] = ()


# Nothing to cast, to compute again or to keep: the prediction is a call of `predict`.
PLAIN = Numerics(stateful=False)


def as_numerics(compute_dtype: Any, remat: Any) -> Numerics:
    """Check what the user asked for.

    Raises:
        TypeError: for a dtype that is not floating, or a remat that is no Boolean.
    """
    if not isinstance(remat, bool):
        raise TypeError(f"expected remat to be True or False, got {remat!r}")
    if compute_dtype is None:
        return Numerics(None, remat)
    try:
        dtype = jnp.dtype(compute_dtype)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"expected a floating compute_dtype, got {compute_dtype!r}; jnp.bfloat16, say"
        )
    return Numerics(dtype.name, remat)


def evaluate(layer: Any, belows: tuple[Array, ...], numerics: Numerics) -> tuple[Array, PyTree]:
    """Compute a layer's prediction, and what it wrote meanwhile; the layer itself does not change."""
    plain = numerics.compute_dtype is None and not numerics.remat
    if plain and not (numerics.stateful and nnx.to_flat_state(nnx.state(layer, OTHER))):
        return layer.predict(*belows), {}
    graphdef, parameters, other = nnx.split(layer, nnx.Param, ...)

    def predicted(parameters, other, belows):
        copy = nnx.merge(graphdef, parameters, other, copy=True)
        return copy.predict(*belows), written(copy)

    def pure(parameters, other, belows):
        if numerics.compute_dtype is None:
            return predicted(parameters, other, belows)
        parameters, belows = _cast((parameters, belows), numerics.compute_dtype)
        with jax.numpy_dtype_promotion("standard"):  # statistics keep 32 bits
            return predicted(parameters, other, belows)

    call = jax.checkpoint(pure) if numerics.remat else pure
    prediction, writes = call(parameters, other, belows)
    if numerics.compute_dtype is not None:
        dtype = common_dtype(*jax.tree.leaves(parameters), *belows, jnp.float32)
        prediction = _cast(prediction, dtype)
    return prediction, writes


def evaluate_at_rest(
    layer: Any, belows: tuple[Array, ...], numerics: Numerics
) -> tuple[Array, PyTree]:
    """Compute a layer's prediction where its activity has no size yet, as in a pass upward.

    A layer that reads its own activity reads zeros, of the one size that its prediction has, too.
    """
    try:
        prediction, writes = evaluate(layer, belows, numerics)
        if getattr(prediction, "size", 1) > 0 or layer.activity.size > 0:
            return prediction, writes
        raise ValueError("it predicts nothing")
    except (TypeError, ValueError):
        if layer.activity.size > 0:
            raise
        parameters = jax.tree.leaves(nnx.as_pure(nnx.state(layer, nnx.Param)))
        graphdef, state = nnx.split(layer)
        for size in sorted({parameter.shape[-1] for parameter in parameters if parameter.ndim}):
            copy = nnx.merge(graphdef, state, copy=True)
            dtype = jax.dtypes.canonicalize_dtype(belows[0].dtype)
            copy.activity.set_value(jnp.zeros((belows[0].shape[0], size), dtype))
            try:
                prediction, writes = evaluate(copy, belows, numerics)
            except (TypeError, ValueError):
                continue
            if prediction.shape == copy.activity.shape:
                return prediction, writes
        raise


def has_rows(prediction: Any, belows: tuple[Array, ...]) -> bool:
    """Return whether a prediction is an array with a row for each example of the activities below."""
    if not belows:
        return True
    return getattr(prediction, "shape", ())[:1] == belows[0].shape[:1]


def no_rows(name: str, layer: Any, prediction: Any, belows: tuple[Array, ...]) -> ValueError:
    """Return the error for a prediction that has not one row for each example."""
    got = getattr(prediction, "shape", f"a {type(prediction).__name__}")
    return ValueError(
        f"layer '{name}' ({type(layer).__name__}) predicted {got} from an activity of shape "
        f"{belows[0].shape}; expected one row an example, ({belows[0].shape[0]}, ...)"
    )


class NoRowsError(ValueError):
    """A layer predicted what has no rows; told with the layer's name."""

    def __init__(self, prediction: Any):
        super().__init__("predicted no rows")
        self.prediction = prediction


def reads_itself(layer: Any, belows: tuple[Array, ...], numerics: Numerics) -> bool:
    """Return whether a layer's prediction looks at its own activity; no number is computed."""
    if (
        layer.node_axis or not belows
    ):  # a stack's layers have no activity, and a root predicts alone
        return False
    graphdef, state = nnx.split(layer)

    def predicted(activity):
        copy = nnx.merge(graphdef, state, copy=True)
        copy.activity.set_value(activity)
        return evaluate(copy, belows, numerics)[0]

    program = jax.make_jaxpr(predicted)(layer.activity[...]).jaxpr
    read = [*program.outvars, *(variable for line in program.eqns for variable in line.invars)]
    return any(variable is program.invars[0] for variable in read)


def without_errors(activity: Array, prediction: Array, nodes: Sequence[bool]) -> Array:
    """Return the prediction, and the activity itself of the nodes whose error is known to be 0."""
    own = activity.astype(prediction.dtype)
    if all(nodes):
        return own
    which = jnp.expand_dims(
        jnp.asarray(nodes), (0, *range(2, activity.ndim))
    )  # (batch, depth, ...)
    return jnp.where(which, own, prediction)


def without_rounding(activity: Array, prediction: Array) -> Array:
    """Return the prediction, and the activity itself where the two differ by rounding alone.

    One number that two parts of a program compute may be rounded twice: of gelu and silu, which end in a
    product, the error of a feedforward start is then half a unit in its last place where it is 0, and Adam
    makes a whole step of it. An error below two such units is no error, so no weight learns from it. That
    holds for free activities alone: the error of a clamped one is given.
    """
    if activity.shape != prediction.shape or prediction.dtype.itemsize < 4:
        return prediction
    # in lax, since each function of jnp is a program of its own to trace
    activity = activity.astype(prediction.dtype)
    units = np.asarray(2 * jnp.finfo(prediction.dtype).eps, prediction.dtype)
    error = jax.lax.abs(jax.lax.sub(activity, prediction))
    same = jax.lax.le(
        error, jax.lax.mul(jax.lax.abs(prediction), jnp.broadcast_to(units, error.shape))
    )
    return jax.lax.select(same, activity, prediction)


def written(module: nnx.Module) -> PyTree:
    """Return the state that predicting may write and learning keeps: no weights, no random streams."""
    return nnx.state(module, _WRITTEN)


def failed(name: str, layer: Any, belows: tuple[Array, ...], error: Exception) -> ValueError:
    """Return what went wrong in a layer's prediction, with the layer's name and what it was given."""
    if isinstance(error, ClampShapeError):
        return ValueError(f"layer '{name}' {error}")
    if isinstance(error, NoRowsError):
        return no_rows(name, layer, error.prediction, belows)
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
    shapes = " and ".join(str(below.shape) for below in belows)
    plural = "activities of shapes" if len(belows) > 1 else "an activity of shape"
    return ValueError(
        f"layer '{name}' ({type(layer).__name__}) could not predict from {plural} {shapes}: "
        f"{first_line}" + (_SEVERAL if len(belows) > 1 and isinstance(error, TypeError) else "")
    )


def _cast(tree: PyTree, dtype: Any) -> PyTree:
    return jax.tree.map(
        lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree
    )
