"""Starts that know nothing of the input: zeros, or normal noise."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from pcflax.checks import expect_number
from pcflax.networks import AbstractPCNetwork
from pcflax.settings import Settings
from pcflax.typing import Activities, Initializer


@dataclasses.dataclass(frozen=True)
class Zeros(Settings, Initializer):
    """z_l = 0 for every layer.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> network = pc.PCNetwork([pc.PCDense(3, 2, rngs=nnx.Rngs(0))])
    >>> network.init_activities(jnp.ones((1, 3)), initializer=pc.initializers.Zeros())
    >>> network.layers[0].activity[...]
    Array([[0., 0.]], dtype=float32)
    """

    def __call__(self, network, inputs, *, batch_size, clamps, key) -> Activities:
        """Return the start of every activity by layer name."""
        del clamps, key  # put on top of the zeros; deterministic
        shapes = _shapes(network, inputs, batch_size)
        return {name: jnp.zeros(spec.shape, spec.dtype) for name, spec in shapes.items()}


@dataclasses.dataclass(frozen=True)
class Normal(Settings, Initializer):
    """z_l ~ N(0, stddev^2), independently for every element.

    Attributes:
        stddev: standard deviation of the noise.

    Raises:
        TypeError, ValueError: for a stddev that is no number of at least 0; on use without a key.

    >>> import jax, jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> network = pc.PCNetwork([pc.PCDense(3, 2, rngs=nnx.Rngs(0))])
    >>> network.init_activities(jnp.ones((1, 3)), initializer=pc.initializers.Normal(0.1),
    ...                         key=jax.random.key(0))
    >>> network.layers[0].activity[...].shape
    (1, 2)
    """

    stddev: float = 1.0

    def __post_init__(self):
        object.__setattr__(self, "stddev", expect_number(self, "stddev", self.stddev, least=0))

    def __call__(self, network, inputs, *, batch_size, clamps, key) -> Activities:
        """Return the start of every activity by layer name."""
        del clamps  # put on top of the noise
        if key is None:
            raise ValueError("the Normal initializer needs a key: pass key=jax.random.key(0)")
        shapes = _shapes(network, inputs, batch_size)
        keys = jax.random.split(key, len(shapes))
        return {
            # a deviation that is mapped over is an array, which would raise 16 bits to 32
            name: jnp.asarray(self.stddev, spec.dtype)
            * jax.random.normal(key, spec.shape, spec.dtype)
            for key, (name, spec) in zip(keys, shapes.items(), strict=True)
        }


def _shapes(network: AbstractPCNetwork, inputs, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shape of every activity, without computing any."""

    def forward(inputs):
        return nnx.clone(network).feedforward(inputs, batch_size=batch_size)

    return jax.eval_shape(forward, inputs)
