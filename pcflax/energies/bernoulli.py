"""The Bernoulli energy: binary cross-entropy, for outputs that are probabilities or bits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float

from pcflax.typing import PRNGKey

from .base import Energy, PerExample, Values, check_range, check_same_shape, sum_features


class Bernoulli(Energy):
    """E(z, mu) = sum_i log(1 + exp(mu_i)) - z_i mu_i, one number for each example.

    mu are logits and z lies in [0, 1]: the negative log-likelihood of independent bits with
    probability sigmoid(mu). The gradient with respect to mu is sigmoid(mu) - z. In z the energy is
    linear and has no minimum, so the layer must be clamped; a free layer is refused by the network.

    Source: the Bernoulli likelihood in its natural parameter; see Bishop (2006), section 4.3.2.

    >>> import jax.numpy as jnp
    >>> Bernoulli()(jnp.array([[1., 0.]]), jnp.array([[1000., -1000.]]))
    Array([0.], dtype=float32)
    """

    clamped_only = True

    def __call__(self, activity: Values, prediction: Values) -> PerExample:
        """Return binary cross-entropy of each example between `activity` and sigmoid(`prediction`)."""
        check_same_shape(self, activity, prediction)
        return sum_features(optax.losses.sigmoid_binary_cross_entropy(prediction, activity))

    def mean(self, prediction: Values) -> Values:
        """Return probabilities sigmoid(prediction)."""
        return jax.nn.sigmoid(prediction)

    def sample(self, prediction: Values, key: PRNGKey) -> Values:
        """Draw bits, 1 with probability sigmoid(prediction)."""
        bits = jax.random.bernoulli(key, jax.nn.sigmoid(prediction))
        return bits.astype(prediction.dtype)

    def log_normalizer(self, features: tuple[int, ...]) -> Float[Array, ""]:
        """Return 0: the energy of bits is their negative log-likelihood as it is."""
        del features
        return jnp.zeros(())

    def check_targets(self, targets: ArrayLike) -> None:
        """Refuse targets outside of [0, 1], which are no probabilities: standardized images, say."""
        remedy = "scale them to [0, 1] or use pc.energies.Gaussian()"
        check_range(self, targets, 0, 1, remedy)
