"""The Gaussian energy whose mean and precision are both predicted: noise that depends on the input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pcflax.typing import PRNGKey

from .base import Energy, PerExample, Values, sum_features


class Heteroscedastic(Energy):
    """E(z, (mu, l)) = 1/2 sum_i (exp(l_i) (z_i - mu_i)^2 - l_i), with mu and log precision l predicted.

    The layer predicts twice as many numbers as its activity has, along the last axis: the means, then the log
    precisions. It is the negative log of a Gaussian with mean mu and covariance diag(exp(-l)), without its
    constant log(2 pi)/2 for each feature; summed over features, one number for each example, which may be
    negative. The gradient with respect to z is the error times its precision, that with respect to l_i is
    (exp(l_i) (z_i - mu_i)^2 - 1)/2, which vanishes on average where exp(-l_i) is the variance of the error.

    It is for a clamped layer, an output as a rule. There are two limits of point estimates. A free layer's
    error can go to 0, where the energy has no lower bound. And free layers below a clamped one take over a
    part of its error, of which the precision then knows nothing: with hidden layers of precision 1, the noise
    that is learned may be several times too small. Give hidden layers a high precision, 100 say: inference
    then leaves them little to take over, and comes close to backpropagation.

    Raises:
        ValueError: where the prediction is not twice as wide as the activity.

    Source: Nix & Weigend (1994), ICNN, for networks that predict their noise; the log of the precision in the
    place of the variance is ours.

    >>> import jax.numpy as jnp
    >>> prediction = jnp.array([[0.0, 1.0, 0.0, jnp.log(4.0)]])  # means 0 and 1, precisions 1 and 4
    >>> round(float(Heteroscedastic()(jnp.array([[2.0, 2.0]]), prediction)[0]), 4)  # 1/2 (4 + 4 - log 4)
    3.3069
    >>> Heteroscedastic().mean(prediction)
    Array([[0., 1.]], dtype=float32)
    """

    def __call__(self, activity: Values, prediction: Values) -> PerExample:
        """Return 1/2 sum_i (exp(l_i) (activity_i - mu_i)^2 - l_i) of each example."""
        mean, log_precision = self.split(prediction)
        if activity.shape != mean.shape:
            raise ValueError(
                f"Heteroscedastic expected a prediction of means and log precisions, twice as wide as the "
                f"activity, got {prediction.shape} for {activity.shape}; give the layer twice the features"
            )
        error = activity - mean
        return 0.5 * sum_features(jnp.exp(log_precision) * error * error - log_precision)

    def split(self, prediction: Values) -> tuple[Values, Values]:
        """Return the means and the log precisions of a prediction.

        Raises:
            ValueError: for an odd number of features.
        """
        width = jnp.shape(prediction)[-1]
        if width % 2:
            raise ValueError(
                f"Heteroscedastic expected a prediction of means and log precisions, twice as wide as the "
                f"activity, got the odd width {width}; give the layer twice the features"
            )
        mean, log_precision = jnp.split(jnp.asarray(prediction), 2, axis=-1)
        return mean, log_precision

    def mean(self, prediction: Values) -> Values:
        """Return the first half of the features."""
        return self.split(prediction)[0]

    def sample(self, prediction: Values, key: PRNGKey) -> Values:
        """Draw from N(mu, exp(-l))."""
        mean, log_precision = self.split(prediction)
        noise = jax.random.normal(key, mean.shape, mean.dtype)
        return mean + noise * jnp.exp(-0.5 * log_precision)

    def log_normalizer(self, features: tuple[int, ...]) -> Float[Array, ""]:
        """Return log(2 pi)/2 for each feature: the energy has the rest."""
        return jnp.sum(jnp.broadcast_to(0.5 * jnp.log(2 * jnp.pi), features))
