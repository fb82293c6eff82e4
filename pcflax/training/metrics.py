"""Metrics: one number for each example from its prediction and its targets.

The Trainer takes the mean over examples. Any function with the signature of `MetricFunction` will do.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from pcflax.typing import MetricFunction


def accuracy(
    prediction: Float[Array, " batch classes"], targets: Float[Array, " batch classes"]
) -> Float[Array, " batch"]:
    """1 where the largest prediction stands at the largest target, else 0.

    Ties go to the lower class.

    >>> import jax.numpy as jnp
    >>> accuracy(jnp.array([[0.1, 0.9], [0.8, 0.2]]), jnp.array([[0., 1.], [0., 1.]]))
    Array([1., 0.], dtype=float32)
    """
    correct = jnp.argmax(prediction, axis=-1) == jnp.argmax(targets, axis=-1)
    return correct.astype(prediction.dtype)


def squared_error(
    prediction: Float[Array, " batch *features"], targets: Float[Array, " batch *features"]
) -> Float[Array, " batch"]:
    """The mean over features of (prediction - targets)^2, for each example.

    >>> import jax.numpy as jnp
    >>> squared_error(jnp.array([[1.0, 3.0]]), jnp.zeros((1, 2)))
    Array([5.], dtype=float32)
    """
    return jnp.mean((prediction - targets) ** 2, axis=range(1, prediction.ndim))


def default_metrics(num_classes: int | None) -> dict[str, MetricFunction]:
    """Accuracy for labels, the squared error for other targets.

    >>> list(default_metrics(10)), list(default_metrics(None))
    (['accuracy'], ['squared_error'])
    """
    return {"squared_error": squared_error} if num_classes is None else {"accuracy": accuracy}
