"""The Gaussian energy with precisions that are learned along with the weights.

A layer then finds out how far each of its predictions is to be trusted, and errors weigh accordingly.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from .base import Energy, check_same_shape, sum_features
from .gaussian import check_one_for_each_feature


class LearnedGaussian(Energy):
    """E(z, mu) = 1/2 sum_i (pi_i (z_i - mu_i)^2 - log pi_i), with pi = exp(log_precision) learned.

    The negative log of a Gaussian with mean mu and covariance diag(1/pi), without its constant
    log(2 pi)/2 for each feature: the log term keeps learning from making the energy small by making
    the precision 0. Summed over features, one number for each example; it may be negative. The
    gradient with respect to z is pi times the error, as in `Gaussian`; that with respect to
    log_precision is (pi_i e_i^2 - 1)/2, which vanishes on average where pi_i is one over the mean of
    e_i^2.

    It fails where nothing holds an error up: on a layer that predicts all that it is clamped to, or
    a free output, the error goes to 0, the precision grows without bound, and inference with a fixed
    step size becomes unstable. Such a layer wants a fixed `Gaussian`.

    Args:
        *features: the shape of one example's features, for a precision of each. Without it one
            precision is learned for all of them, and its log counts once for each feature.
        precision: where all precisions start, a positive float.

    Attributes:
        log_precision: the `nnx.Param` that is learned, of shape features, or () without them.

    Raises:
        TypeError: for features that are not ints.
        ValueError: for a precision that is not positive and finite, for shapes that differ, or for
            features of another shape than the precisions.

    Source: Bogacz (2017), Journal of Mathematical Psychology 76, which learns variances; the
    exponential, which keeps precisions positive, is ours.

    >>> import jax.numpy as jnp
    >>> LearnedGaussian(3, precision=2.0).log_precision.shape
    (3,)
    >>> LearnedGaussian()(jnp.ones((2, 3)), jnp.zeros((2, 3)))
    Array([1.5, 1.5], dtype=float32)
    """

    def __init__(self, *features: int, precision: float = 1.0):
        if not all(isinstance(size, int) for size in features):
            raise TypeError(
                f"LearnedGaussian expected the sizes of its features as ints, such as "
                f"LearnedGaussian(10), got {features}"
            )
        if not 0 < precision < math.inf:
            raise ValueError(
                f"LearnedGaussian expected a positive, finite precision to start from, got {precision}"
            )
        self.log_precision = nnx.Param(jnp.full(features, math.log(precision)))

    def __call__(
        self,
        activity: Float[Array, " batch *features"],
        prediction: Float[Array, " batch *features"],
    ) -> Float[Array, " batch"]:
        """1/2 sum_i (pi_i (activity_i - prediction_i)^2 - log pi_i) of each example."""
        check_same_shape(self, activity, prediction)
        features = activity.shape[1:]
        log_precision = self.log_precision[...]
        if log_precision.ndim > 0:
            check_one_for_each_feature(
                self, log_precision.shape, features, f"make it LearnedGaussian{features}"
            )
        error = activity - prediction
        # one precision for all features broadcasts, so that its log is counted for each of them
        return 0.5 * sum_features(jnp.exp(log_precision) * error * error - log_precision)
