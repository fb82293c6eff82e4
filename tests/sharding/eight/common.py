"""Small networks that divide among eight devices, in 64 bits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import pcflax as pc
from pcflax.sharding import data, features, layers

PLACEMENTS = {
    "data": data(),
    "layers": layers(),
    "features": features(),
    "data, layers": data(2) | layers(4),
    "data, features": data(4) | features(2),
    "layers, features": layers(4) | features(2),
    "all": data(2) | layers(2) | features(2),
}
DEPTH, WIDTH, BATCH = 8, 16, 32
# Gradients of layers that errors have only just reached are rounding; a smaller eps makes steps of them.
ADAM = optax.adam(1e-3, eps=1e-4)


def network(dropout=0.0):
    rngs = nnx.Rngs(0)
    options = {"dropout": dropout, "param_dtype": jnp.float64, "rngs": rngs}

    def layer():
        return pc.PCDense(
            WIDTH,
            WIDTH,
            activation=jnp.tanh,
            activation_first=True,
            skip=True,
            parameterization=pc.parameterizations.MuPC(),
            **options,
        )

    return pc.PCNetwork(
        {
            "first": pc.PCDense(64, WIDTH, **options),
            "hidden": pc.PCStack(layer, DEPTH),
            "output": pc.PCDense(WIDTH, 10, param_dtype=jnp.float64, rngs=rngs),
        }
    )


def digits(split="train"):
    return pc.data.load("digits", split=split, batch_size=BATCH)


def trainer(rule, mesh=None, *, dropout=0.0, **options):
    options.setdefault("progress", False)
    return pc.Trainer(network(dropout), ADAM, learning=rule, mesh=mesh, **options)


def arrays_of(trained):
    """Parameters and optimizer state by path, on the host."""
    tree = nnx.as_pure(nnx.state(trained.network, nnx.Param)), trained.optimizer_state
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def difference(one, other):
    """The largest of all arrays, of which each has its double."""
    assert one.keys() == other.keys()
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)
