"""The Kullback-Leibler energy: for layers whose activity is a distribution over classes, as logits."""

from __future__ import annotations

import jax
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import ArrayLike

from .base import Energy, PerExample, Values, check_same_shape, sum_features


class KL(Energy):
    """E(z, mu) = sum_k p_k (log p_k - log q_k), p = softmax(z), q = softmax(mu), over the last axis.

    **Both z and mu are logits.** The divergence KL(p || q) of each example, summed over the axes
    before the last; at least 0 (but for rounding), and 0 at z = mu. The gradient with respect to mu is
    q - p, that with respect to z is p_k (log p_k - log q_k - KL). Log-softmax is taken with the
    largest logit subtracted, so that finite logits of any size give finite energies and gradients; a
    logit of minus infinity does not.

    The layer may be free, as its start at z = mu is the minimum: a hidden layer of attention weights,
    say. Only differences of logits count, so nothing here holds their common level, and where a
    softmax of z is saturated its gradient all but vanishes and inference moves slowly.

    **One-hot targets want `Categorical`**, whose activity is probabilities. Clamped here, a one-hot
    vector would be read as logits, and stand for a softmax that is nearly flat.

    Source: Pinchetti et al. (2022), arXiv 2211.03481 (predictive coding beyond Gaussians).

    >>> import jax.numpy as jnp
    >>> activity, prediction = jnp.array([[1000., 0.]]), jnp.array([[0., 1000.]])
    >>> KL()(activity, prediction), KL()(activity, activity)
    (Array([1000.], dtype=float32), Array([0.], dtype=float32))
    """

    def __call__(self, activity: Values, prediction: Values) -> PerExample:
        """Return KL(softmax(activity) || softmax(prediction)) of each example."""
        check_same_shape(self, activity, prediction)
        divergence = optax.losses.kl_divergence_with_log_targets(
            jax.nn.log_softmax(prediction), jax.nn.log_softmax(activity)
        )
        return sum_features(divergence)

    def check_targets(self, targets: ArrayLike) -> None:
        """Refuse targets that are one-hot or infinite instead of logits."""
        if isinstance(targets, Tracer):
            return
        values = np.asarray(targets)
        if np.isinf(values).any():
            raise ValueError(
                "KL expected finite logits as targets, got infinite ones; of probabilities that may be "
                "0, give jnp.log(probabilities + 1e-6)"
            )
        one_hot = np.isin(values, (0, 1)).all() and (values.sum(axis=-1) == 1).all()
        if values.size and one_hot:
            raise ValueError(
                "KL expected logits as targets, got one-hot ones, which as logits stand for classes "
                "that are almost alike; use pc.energies.Categorical()"
            )
