"""The categorical energy: softmax cross-entropy, for an output that is one of several classes."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float

from pcflax.typing import PRNGKey

from .base import Energy, PerExample, Values, check_range, check_same_shape, sum_features


class Categorical(Energy):
    """E(z, mu) = -sum_k z_k log softmax(mu)_k over the last axis, one number for each example.

    mu are logits and z class probabilities (one-hot targets, as a rule). The log-softmax is taken
    with the largest logit subtracted, so that logits of any size are safe. The gradient with respect
    to mu is softmax(mu) - z where z sums to 1. In z the energy is linear and has no minimum, so the
    layer must be clamped; a free layer is refused by the network.

    Source: Pinchetti et al. (2022), arXiv 2211.03481 (predictive coding beyond Gaussians).

    >>> import jax.numpy as jnp
    >>> target, logits = jnp.array([[0., 1.]]), jnp.array([[1000., 0.]])
    >>> Categorical()(target, logits)
    Array([1000.], dtype=float32)
    """

    clamped_only = True
    silent_at_zero = True

    def __call__(self, activity: Values, prediction: Values) -> PerExample:
        """Return cross-entropy of each example between `activity` and softmax(`prediction`)."""
        check_same_shape(self, activity, prediction)
        # optax leaves out terms of probability 0, which keeps a logit of -inf there finite.
        entropy = optax.losses.safe_softmax_cross_entropy(prediction, activity)
        return sum_features(entropy) if entropy.ndim > 1 else entropy

    def mean(self, prediction: Values) -> Values:
        """Return class probabilities softmax(prediction), over the last axis."""
        return jax.nn.softmax(jnp.asarray(prediction), axis=-1)

    def sample(self, prediction: Values, key: PRNGKey) -> Values:
        """Draw a class along the last axis, one-hot, with probabilities softmax(prediction)."""
        classes = jax.random.categorical(key, prediction)
        return jax.nn.one_hot(classes, prediction.shape[-1], dtype=prediction.dtype)

    def log_normalizer(self, features: tuple[int, ...]) -> Float[Array, ""]:
        """Return 0: the energy of a class is its negative log-likelihood as it is."""
        del features
        return jnp.zeros(())

    def check_targets(self, targets: ArrayLike) -> None:
        """Refuse targets below 0, which are neither probabilities nor counts of classes."""
        remedy = "make them one-hot (jax.nn.one_hot) or use pc.energies.Gaussian()"
        check_range(self, targets, 0, math.inf, remedy)
