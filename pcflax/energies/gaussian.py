"""The Gaussian energy: squared prediction errors, the energy of classical predictive coding.

The precisions here are fixed; `learned_gaussian.py` learns them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from pcflax.checks import expect_number
from pcflax.dtypes import aligned, common_dtype
from pcflax.typing import PRNGKey

from .base import Energy, PerExample, Values, check_same_shape, sum_features


class Gaussian(Energy):
    """E(z, mu) = 1/2 sum_i precision_i (z_i - mu_i)^2 over features, one number for each example.

    The negative log of a Gaussian with mean mu and covariance diag(1/precision), without its constant.
    Its gradient with respect to z is precision times the error z - mu (the 1/2 sees to that), and
    minus that with respect to mu.

    Args:
        precision: inverse variance, at least 0: a float, the same for all features, or an array of
            the shape of one example's features, one for each. It is fixed: an array is state that
            checkpoints keep and learning leaves alone. 0 makes a flat prior of a root, or of the
            features that have it.

    Raises:
        TypeError: for a precision that is no real number, or an array of others.
        ValueError: for a precision that is negative or not finite, or features of another shape.

    Source: Whittington & Bogacz (2017), Neural Computation 29(5), with fixed variances.

    >>> import jax.numpy as jnp
    >>> Gaussian()(jnp.ones((2, 3)), jnp.zeros((2, 3)))
    Array([1.5, 1.5], dtype=float32)
    >>> Gaussian(jnp.array([1., 0., 4.]))(jnp.ones((2, 3)), jnp.zeros((2, 3)))
    Array([2.5, 2.5], dtype=float32)
    """

    def __init__(self, precision: ArrayLike = 1.0):
        self.precision: float | nnx.Variable
        if np.ndim(precision) == 0:
            self.precision = expect_number(self, "precision", precision, least=0)
            return
        # inside a trace (jax.eval_shape of what builds a network) an array has no values to check
        if not isinstance(precision, Tracer):
            values = np.asarray(precision)
            if not (jnp.isdtype(values.dtype, ("real floating", "integral"))):
                raise TypeError(
                    f"Gaussian expected precisions of a real dtype, got {values.dtype}; give floats"
                )
            if not (np.isfinite(values) & (values >= 0)).all():
                raise ValueError(
                    f"Gaussian expected a finite precision of at least 0, got {precision}"
                )
        array = jnp.asarray(precision)
        # integers become floats, and floats stay as they are
        self.precision = nnx.Variable(array.astype(common_dtype(float, array)))

    def __call__(self, activity: Values, prediction: Values) -> PerExample:
        """Return 1/2 sum_i precision_i (activity_i - prediction_i)^2 of each example."""
        check_same_shape(self, activity, prediction)
        error = activity - prediction
        if not isinstance(self.precision, nnx.Variable):
            return 0.5 * self.precision * sum_features(error * error)
        features = activity.shape[1:]
        check_one_for_each_feature(
            self, self.precision.shape, features, f"give precisions of shape {features}, or a float"
        )
        error, precision = aligned(error, self.precision[...])
        return 0.5 * sum_features(precision * error * error)

    def sample(self, prediction: Values, key: PRNGKey) -> Values:
        """Draw from N(prediction, 1/precision).

        Raises:
            ValueError: for a precision of 0, which is no distribution.
        """
        noise = jax.random.normal(key, prediction.shape, prediction.dtype)
        prediction, noise, deviation = aligned(prediction, noise, self._proper() ** -0.5)
        return prediction + noise * deviation

    def log_normalizer(self, features: tuple[int, ...]) -> Float[Array, ""]:
        """Return 1/2 sum_i log(2 pi / precision_i)."""
        each = 0.5 * jnp.log(2 * jnp.pi / jnp.asarray(self._proper()))
        return jnp.sum(jnp.broadcast_to(each, features))

    def _proper(self) -> Any:
        """Return the precision, refused where it is 0."""
        stored = self.precision
        precision = stored[...] if isinstance(stored, nnx.Variable) else stored
        if not isinstance(precision, Tracer) and np.any(np.asarray(precision) == 0):
            raise ValueError(
                "Gaussian with a precision of 0 is flat: it has no distribution to draw from and no "
                "likelihood; give it a precision above 0, or clamp the layer"
            )
        return precision


def check_one_for_each_feature(
    energy: Energy, shape: tuple[int, ...], features: tuple[int, ...], remedy: str
) -> None:
    """Refuse precisions that would broadcast over features, or do not fit them at all."""
    if shape != features:
        raise ValueError(
            f"{type(energy).__name__} has precisions of shape {shape}, but one example of the "
            f"activity has shape {features}; {remedy}"
        )
