"""The Gaussian energy whose precision follows the errors: one over their running mean square."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pcflax.checks import expect_count, expect_number
from pcflax.dtypes import aligned
from pcflax.typing import PRNGKey

from .base import Energy, PerExample, Values, check_same_shape, sum_features
from .gaussian import check_one_for_each_feature


class RunningGaussian(Energy):
    """E(z, mu) = 1/2 sum_i (pi_i (z_i - mu_i)^2 - log pi_i), pi = 1/(variance + least_variance).

    The variance is a running mean of squared errors, taken once a batch, at the activities where inference
    ended and the weights that it ran with:

        variance <- momentum * variance + (1 - momentum) * (mean over the batch of (z - mu)^2)

    No gradient moves it, so it needs no rate; within a batch it is a constant. It is state that checkpoints
    keep, as running statistics of a normalization are. The energy is summed over features, one number for
    each example; it may be negative. At rest pi is where `LearnedGaussian` has its minimum, the two differ in
    the way there.

    An activity that is free gives way to its prediction, the more the higher the precision is: errors shrink,
    precisions grow, and with them the curvature that inference has to be stable under. The least variance
    bounds that. An output that is clamped has errors that nothing shrinks but learning.

    Args:
        *features: the shape of one example's features, for a precision of each; one for all without it.
        momentum: of the running mean, at least 0 and below 1.
        variance: where it starts, above 0.
        least_variance: what is added to it, at least 0; no precision stays above one over it.

    Attributes:
        variance: the `nnx.Variable` that is measured, of shape features, or () without them.

    Raises:
        TypeError: for features that are not ints.
        ValueError: for numbers out of range, or features of another shape.

    Source: precision as one over the measured variance of errors: Friston (2005), Phil. Trans. R. Soc. B
    360; a running mean of it is common, for one in FabricPC.

    >>> import jax.numpy as jnp
    >>> energy = RunningGaussian(momentum=0.5)
    >>> energy.observe(jnp.full((4, 3), 2.0), jnp.zeros((4, 3)))  # errors of 2
    >>> energy.variance[...]  # half of 1, half of 4
    Array(2.5, dtype=float32)
    """

    def __init__(
        self,
        *features: int,
        momentum: float = 0.99,
        variance: float = 1.0,
        least_variance: float = 1e-3,
    ):
        shape = [expect_count(self, "number of features", size, least=1) for size in features]
        self.momentum = expect_number(self, "momentum", momentum, least=0)
        if self.momentum >= 1:
            raise ValueError(f"RunningGaussian expected a momentum below 1, got {momentum}")
        variance = expect_number(self, "variance", variance, above=0)
        self.least_variance = expect_number(self, "least_variance", least_variance, least=0)
        self.variance = nnx.Variable(jnp.full(shape, variance, jnp.result_type(float)))

    @property
    def precision(self) -> Array:
        """One over the variance and the least one together."""
        return 1 / (self.variance[...] + self.least_variance)

    def __call__(self, activity: Values, prediction: Values) -> PerExample:
        """Return 1/2 sum_i (pi_i (activity_i - prediction_i)^2 - log pi_i) of each example."""
        error, precision = aligned(self._error(activity, prediction), self.precision)
        return 0.5 * sum_features(precision * error * error - jnp.log(precision))

    def observe(self, activity: Values, prediction: Values) -> None:
        """Move the variance towards this batch's mean of squared errors."""
        error = self._error(activity, prediction)
        variance = self.variance[...]
        axes = 0 if variance.ndim else None
        new = jnp.mean((error * error).astype(variance.dtype), axis=axes)
        self.variance.set_value(self.momentum * variance + (1 - self.momentum) * new)

    def sample(self, prediction: Values, key: PRNGKey) -> Values:
        """Draw from N(prediction, 1/pi)."""
        noise = jax.random.normal(key, prediction.shape, prediction.dtype)
        prediction, noise, deviation = aligned(prediction, noise, self.precision**-0.5)
        return prediction + noise * deviation

    def log_normalizer(self, features: tuple[int, ...]) -> Float[Array, ""]:
        """Return log(2 pi)/2 for each feature: the energy has the rest."""
        return jnp.sum(jnp.broadcast_to(0.5 * jnp.log(2 * jnp.pi), features))

    def _error(self, activity: Values, prediction: Values) -> Values:
        check_same_shape(self, activity, prediction)
        features, shape = activity.shape[1:], self.variance.shape
        if shape:
            remedy = f"make it RunningGaussian{features}"
            check_one_for_each_feature(self, shape, features, remedy)
        return activity - prediction
