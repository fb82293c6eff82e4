"""The start from above: every node where a predictor from another layer puts it."""

from __future__ import annotations

import dataclasses

from pcflax.layers import Clamp
from pcflax.networks.amortize import descend
from pcflax.settings import Settings
from pcflax.typing import Activities, Initializer


@dataclasses.dataclass(frozen=True)
class Downward(Settings, Initializer):
    """z_i = g_k(z_j), the prediction of a layer that `predicts` node i, from what is clamped.

    In a bidirectional network the pass downward: with the label clamped, each node begins at its
    prediction from above, the image last. What is known of a node in part stays, and the predictors below it
    see that. Nodes that no predictor reaches follow by the pass upward.

    Raises:
        ValueError: on use, for a clamp of another shape than its node's.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> network = pc.models.bidirectional(4, 3, 2, rngs=nnx.Rngs(0))
    >>> stays = pc.inference.GradientDescent(0.1, num_steps=0)
    >>> start = network.infer(None, jnp.eye(2), inference=stays, initializer=pc.initializers.Downward())
    >>> start.energies["down_image"], start.energies["down_hidden_1"]
    (Array([0., 0.], dtype=float32), Array([0., 0.], dtype=float32))
    """

    def __call__(self, network, inputs, *, batch_size, clamps, key) -> Activities:
        """Return the start of every activity by layer name."""
        del key  # deterministic
        means = descend(network, inputs, clamps)
        held = {name: Clamp(value) for name, value in means.items()}
        return network.feedforward(inputs, batch_size=batch_size, clamps={**clamps, **held})
