"""The Gaussian energy: squared prediction errors, the energy of classical predictive coding."""

from __future__ import annotations

from jaxtyping import Array, Float

from .base import Energy, check_same_shape, sum_features


class Gaussian(Energy):
    """E(z, mu) = precision/2 * ||z - mu||^2, summed over features, one number for each example.

    The negative log of a Gaussian with mean mu and covariance I/precision, without its constant. Its
    gradient with respect to z is precision times the error z - mu (the 1/2 sees to that), and minus
    that with respect to mu.

    Args:
        precision: inverse variance, a positive float, the same for all features. 0 makes a flat
            prior of a root.

    Raises:
        ValueError: for a negative precision, or shapes that differ.

    Source: Whittington & Bogacz (2017), Neural Computation 29(5), with fixed variances.

    >>> import jax.numpy as jnp
    >>> Gaussian()(jnp.ones((2, 3)), jnp.zeros((2, 3)))
    Array([1.5, 1.5], dtype=float32)
    """

    def __init__(self, precision: float = 1.0):
        if not precision >= 0:
            raise ValueError(f"Gaussian expected a precision of at least 0, got {precision}")
        self.precision = float(precision)

    def __call__(
        self,
        activity: Float[Array, " batch *features"],
        prediction: Float[Array, " batch *features"],
    ) -> Float[Array, " batch"]:
        """precision/2 * ||activity - prediction||^2 of each example."""
        check_same_shape(self, activity, prediction)
        error = activity - prediction
        return 0.5 * self.precision * sum_features(error * error)
