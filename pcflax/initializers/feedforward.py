"""The feedforward start: every activity at its own prediction."""

from __future__ import annotations

import dataclasses

from pcflax.settings import Settings
from pcflax.typing import Activities, Initializer


@dataclasses.dataclass(frozen=True)
class Feedforward(Settings, Initializer):
    """z_l = mean of mu_l(z_{l-1}), in order: all errors are zero but that of a clamped output.

    The usual start, and what a network does when it is given no initializer.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> network = pc.PCNetwork([pc.PCDense(3, 2, rngs=nnx.Rngs(0))])
    >>> network.init_activities(jnp.ones((4, 3)), initializer=pc.initializers.Feedforward())
    >>> network.energy(jnp.ones((4, 3)))
    Array([0., 0., 0., 0.], dtype=float32)
    """

    def __call__(self, network, inputs, *, batch_size, clamps, key) -> Activities:
        """Return the start of every activity by layer name."""
        del key  # deterministic
        return network.feedforward(inputs, batch_size=batch_size, clamps=clamps)
