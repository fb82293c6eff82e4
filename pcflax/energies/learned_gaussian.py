"""The Gaussian energy with precisions that are learned along with the weights.

A layer then finds out how far each of its predictions is to be trusted, and errors weigh accordingly.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pcflax.checks import expect_count, expect_number
from pcflax.dtypes import aligned
from pcflax.typing import PRNGKey

from .base import Energy, PerExample, Values, check_same_shape, sum_features
from .gaussian import check_one_for_each_feature


class LearnedGaussian(Energy):
    """E(z, mu) = 1/2 sum_i (pi_i (z_i - mu_i)^2 - log pi_i), with pi = exp(log_precision) learned.

    The negative log of a Gaussian with mean mu and covariance diag(1/pi), without its constant
    log(2 pi)/2 for each feature: the log term keeps learning from making the energy small by making
    the precision 0. Summed over features, one number for each example; it may be negative. The
    gradient with respect to z is pi times the error, as in `Gaussian`; that with respect to
    log_precision is (pi_i e_i^2 - 1)/2, which vanishes on average where pi_i is one over the mean of
    e_i^2.

    A point estimate of an activity leaves out how uncertain the activity is. So the error of a layer that
    is free (a hidden layer as a rule), or that predicts all that it is clamped to, can go to 0, where the
    energy has no lower bound: the precision grows without end, and inference with a fixed step size
    becomes unstable. `least_variance` v adds that uncertainty, pi_i v/2 for each feature: precisions then
    settle at 1/(v + the mean of e_i^2). Give free layers one, samples (`pc.inference.Langevin`), or a
    fixed `Gaussian`.

    Args:
        *features: the shape of one example's features, for a precision of each. Without it one
            precision is learned for all of them, and its log counts once for each feature.
        precision: where all precisions start, a positive float.
        least_variance: v, a float of at least 0; no precision stays above 1/v.

    Attributes:
        log_precision: the `nnx.Param` that is learned, of shape features, or () without them.

    Raises:
        TypeError: for features that are not ints.
        ValueError: for a precision that is not positive and finite, a negative variance, or features
            of another shape.

    Source: Bogacz (2017), Journal of Mathematical Psychology 76, which learns variances; the
    exponential, which keeps precisions positive, and the least variance are ours; that a maximum of the
    likelihood wants the activity's own variance is the E-step of Dempster, Laird & Rubin (1977).

    >>> import jax.numpy as jnp
    >>> LearnedGaussian(3, precision=2.0).log_precision.shape
    (3,)
    >>> LearnedGaussian()(jnp.ones((2, 3)), jnp.zeros((2, 3)))
    Array([1.5, 1.5], dtype=float32)
    """

    def __init__(self, *features: int, precision: float = 1.0, least_variance: float = 0.0):
        shape = [expect_count(self, "number of features", size, least=1) for size in features]
        precision = expect_number(self, "precision", precision, above=0)
        self.least_variance = expect_number(self, "least_variance", least_variance, least=0)
        self.log_precision = nnx.Param(jnp.full(shape, math.log(precision), jnp.result_type(float)))

    def __call__(self, activity: Values, prediction: Values) -> PerExample:
        """Return 1/2 sum_i (pi_i (activity_i - prediction_i)^2 - log pi_i) of each example."""
        check_same_shape(self, activity, prediction)
        features = activity.shape[1:]
        log_precision = self.log_precision[...]
        if log_precision.ndim > 0:
            check_one_for_each_feature(
                self, log_precision.shape, features, f"make it LearnedGaussian{features}"
            )
        error, precision, log_precision = aligned(
            activity - prediction, jnp.exp(log_precision), log_precision
        )
        score = precision * error * error - log_precision
        if self.least_variance:
            score += self.least_variance * precision
        # one precision for all features broadcasts, so that its log is counted for each of them
        return 0.5 * sum_features(score)

    def sample(self, prediction: Values, key: PRNGKey) -> Values:
        """Draw from N(prediction, 1/pi), with the precisions as they are learned so far."""
        noise = jax.random.normal(key, prediction.shape, prediction.dtype)
        prediction, noise, deviation = aligned(
            prediction, noise, jnp.exp(-0.5 * self.log_precision[...])
        )
        return prediction + noise * deviation

    def log_normalizer(self, features: tuple[int, ...]) -> Float[Array, ""]:
        """Return log(2 pi)/2 for each feature: the energy has the rest, less what `least_variance` adds."""
        extra = 0.5 * self.least_variance * jnp.exp(self.log_precision[...])
        return jnp.sum(jnp.broadcast_to(0.5 * jnp.log(2 * jnp.pi) - extra, features))
