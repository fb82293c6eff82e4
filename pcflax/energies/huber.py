"""The Huber energy: squared for small prediction errors, absolute for large ones."""

from __future__ import annotations

import optax

from pcflax.checks import expect_number

from .base import Energy, PerExample, Values, check_same_shape, sum_features


class Huber(Energy):
    """E(z, mu) = sum_i h(z_i - mu_i) over features, one number for each example.

    h(e) = e^2/2 where |e| <= delta, and delta (|e| - delta/2) beyond: a `Gaussian` of precision 1 for
    small errors, a `Laplace` of scale 1/delta (less a constant) for large ones. Its gradient with
    respect to z is the error clipped to [-delta, delta], so that an outlier pulls no harder than delta.

    Args:
        delta: the error at which squares turn into absolute values, a positive float.

    Raises:
        ValueError: for a delta that is not positive and finite.

    Source: Huber (1964), Annals of Mathematical Statistics 35(1), as in optax.

    >>> import jax.numpy as jnp
    >>> Huber(delta=1.0)(jnp.array([[0.5, 3.]]), jnp.zeros((1, 2)))
    Array([2.625], dtype=float32)
    """

    def __init__(self, delta: float = 1.0):
        self.delta = expect_number(self, "delta", delta, above=0)

    def __call__(self, activity: Values, prediction: Values) -> PerExample:
        """Return Huber's function of each feature's error, summed for each example."""
        check_same_shape(self, activity, prediction)
        return sum_features(optax.losses.huber_loss(activity, prediction, delta=self.delta))
