"""The Laplace energy: absolute prediction errors, for noise with occasional large outliers."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pcflax.checks import expect_number
from pcflax.typing import PRNGKey

from .base import Energy, PerExample, Values, check_same_shape, sum_features


class Laplace(Energy):
    """E(z, mu) = ||z - mu||_1 / scale, summed over features, one number for each example.

    The negative log of independent Laplace densities with location mu, without their constant. Its
    gradient with respect to z is the sign of the error over the scale, however large the error is, and
    0 at an error of 0. As it does not shrink towards the minimum, descent with a fixed step size ends
    up going to and fro within step_size/scale of it; `Huber` is smooth there.

    Args:
        scale: the mean absolute error of the density, a positive float.

    Raises:
        ValueError: for a scale that is not positive and finite.

    Source: the Laplace likelihood with a fixed scale; its use as a layer's energy is ours.

    >>> import jax.numpy as jnp
    >>> Laplace(scale=2.0)(jnp.array([[3., -1.]]), jnp.zeros((1, 2)))
    Array([2.], dtype=float32)
    """

    def __init__(self, scale: float = 1.0):
        self.scale = expect_number(self, "scale", scale, above=0)

    def __call__(self, activity: Values, prediction: Values) -> PerExample:
        """Return ||activity - prediction||_1 / scale of each example."""
        check_same_shape(self, activity, prediction)
        error = activity - prediction
        # jax differentiates abs to 1 at 0, where every feedforward start lies; this has slope 0 there
        return sum_features(error * jnp.sign(error)) / self.scale

    def sample(self, prediction: Values, key: PRNGKey) -> Values:
        """Draw from the Laplace density at the prediction."""
        return prediction + self.scale * jax.random.laplace(key, prediction.shape, prediction.dtype)

    def log_normalizer(self, features: tuple[int, ...]) -> Float[Array, ""]:
        """Return log(2 scale) for each feature."""
        return math.prod(features) * jnp.log(2 * jnp.asarray(self.scale))
