"""Layers that no error has reached: rounding alone, of which Adam would make whole steps, hardly moves any."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc

RATE = 1e-3
X, Y = (np.random.RandomState(0).randn(64, n).astype(np.float32) for n in (64, 10))


@pytest.mark.usefixtures("optimized")  # whose programs round one number in two ways
@pytest.mark.parametrize("rule", [pc.learning.PredictiveCoding, pc.learning.IncrementalPC])
@pytest.mark.parametrize("activation", [jax.nn.gelu, jax.nn.silu, jnp.tanh])
def test_adam_hardly_moves_a_layer_that_no_error_has_reached(rule, activation):
    """After two steps of inference the error stands in the output and the two layers below it."""
    rngs = nnx.Rngs(0)
    hidden = [pc.PCDense(64, 64, activation=activation, rngs=rngs) for _ in range(4)]
    network = pc.PCNetwork([*hidden, pc.PCDense(64, 10, rngs=rngs)])
    learning, optimizer = rule(pc.inference.GradientDescent(0.1, num_steps=2)), optax.adam(RATE)
    pure = pc.networks.split(network)

    @jax.jit
    def update(pure, state):
        return learning.update(pure, optimizer, state, pc.Evidence(X, Y), key=jax.random.key(0))

    new, _, info = update(pure, optimizer.init(pure.parameters))
    moved = {}
    for name, before in pure.parameters.items():
        pairs = zip(*map(jax.tree.leaves, (new.parameters[name], before)), strict=True)
        moved[name] = max(float(jnp.sqrt(jnp.mean((a - b) ** 2))) / RATE for a, b in pairs)
    # Where the weights move meanwhile, rounding would come back as an error: 0.3 of the rate. Predictive
    # coding does not feed it back; what inference has made of it is left, 0.007 of the rate without the rule.
    most = 1e-3 if rule is pc.learning.IncrementalPC else 0.01
    assert max(moved["layer_0"], moved["layer_1"]) < most
    assert min(moved["layer_3"], moved["layer_4"]) > 0.5
    assert float(info.energies["layer_0"].max()) < 1e-10
