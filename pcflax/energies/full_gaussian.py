"""The Gaussian energy with a full precision matrix: errors that belong together count together."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from pcflax.dtypes import common_dtype, promoted

from .base import Energy, PerExample, Values, check_same_shape, sum_features


class FullGaussian(Energy):
    """E(z, mu) = 1/2 (z - mu)^T P (z - mu) over the last axis, one number for each example.

    Summed over other axes of features, if there are any. The negative log of a Gaussian with mean mu and
    covariance P^-1, without its constant. With the steady state's precision of a linear system, the inverse
    of the covariance that a Kalman filter predicts with, inference has the Kalman filter's gain.

    Args:
        precision: P, (features, features), symmetric and positive semidefinite. It is fixed: state that
            checkpoints keep and learning leaves alone.

    Raises:
        ValueError: for a matrix that is not so, or features of another shape.

    Source: Rao & Ballard (1999), Nature Neuroscience 2(1), whose noise has any covariance.

    >>> import jax.numpy as jnp
    >>> FullGaussian(jnp.array([[2.0, 1.0], [1.0, 2.0]]))(jnp.ones((1, 2)), jnp.zeros((1, 2)))
    Array([3.], dtype=float32)
    """

    def __init__(self, precision: ArrayLike):
        shape = np.shape(precision)
        if len(shape) != 2 or shape[0] != shape[1]:
            raise ValueError(
                f"FullGaussian expected a precision of shape (features, features), got {shape}; for one "
                f"number for each feature take Gaussian"
            )
        if not isinstance(precision, Tracer):
            matrix = np.asarray(precision, np.float64)
            rounding = 1e-5 * np.abs(matrix).max(initial=0.0)
            if (
                not np.isfinite(matrix).all()
                or np.abs(matrix - matrix.T).max() > rounding
                or np.linalg.eigvalsh(matrix).min() < -rounding
            ):
                raise ValueError(
                    "FullGaussian expected a finite precision that is symmetric and positive semidefinite; "
                    "give the inverse of a covariance"
                )
        array = jnp.asarray(precision)
        self.precision: nnx.Variable[Array] = nnx.Variable(array.astype(common_dtype(float, array)))

    def __call__(self, activity: Values, prediction: Values) -> PerExample:
        """Return 1/2 (activity - prediction)^T P (activity - prediction) of each example."""
        check_same_shape(self, activity, prediction)
        precision: Float[Array, "features features"] = self.precision[...]
        if activity.shape[-1] != len(precision):
            raise ValueError(
                f"FullGaussian has a precision of shape {precision.shape}, but one example of the activity "
                f"has shape {activity.shape[1:]}; give one row and column for each feature of the last axis"
            )
        error, precision = promoted(activity - prediction, precision)
        return 0.5 * sum_features((error @ precision) * error)
