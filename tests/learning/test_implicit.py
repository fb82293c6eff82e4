"""The gradient through the equilibrium: backpropagation on a chain, and right where there are cycles.

Oracles: backpropagation; jax.grad through a long unrolled descent; finite differences.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pcflax as pc
from pcflax.layers import Evidence
from tests.conftest import Chain, compiled_gradients

KEY = jax.random.key(0)


def cyclic():
    """H and g predict each other; y from h. In float64."""
    rngs = nnx.Rngs(0)
    network = pc.PCGraph(
        {
            "h": pc.PCDense(5, 4, activation=jnp.tanh, rngs=rngs),
            "g": pc.PCDense(4, 2, activation=jnp.tanh, rngs=rngs),
            "y": pc.PCDense(4, 2, rngs=rngs),
        },
        parents={"h": pc.networks.Concatenate("x", "g"), "g": "h", "y": "h"},
        inputs={"x": 3},
        output="y",
    )
    weights = nnx.state(network, nnx.Param)
    nnx.update(network, jax.tree.map(lambda leaf: leaf.astype(jnp.float64), weights))
    random = np.random.default_rng(0)
    return network, Evidence(*(jnp.asarray(random.normal(size=(6, size))) for size in (3, 2)))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    "inference",
    [
        pc.inference.NewtonCG(tolerance=1e-12, max_steps=50),
        pc.inference.GradientDescent(0.2, tolerance=1e-12, max_steps=20000),
        pc.inference.ErrorCoordinates(pc.inference.NewtonCG(num_steps=3)),
        pc.inference.Sequence(
            pc.inference.GradientDescent(0.1, num_steps=3), pc.inference.NewtonCG(num_steps=3)
        ),
        pc.inference.LinearSolve(),
    ],
    ids=["newton", "descent", "errors", "sequence", "linear"],
)
def test_on_a_chain_it_is_backpropagation(inference):
    """So is what the optimizer gets as its value: the mean loss."""
    chain = Chain(
        activation="identity" if isinstance(inference, pc.inference.LinearSolve) else "tanh"
    )
    network = pc.networks.split(chain.network)
    evidence = Evidence(jnp.asarray(chain.inputs), jnp.asarray(chain.targets))
    expected, info = compiled_gradients(pc.learning.Backprop(), network, evidence, key=KEY)
    found, seen = compiled_gradients(pc.learning.Implicit(inference), network, evidence, key=KEY)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(seen.prediction, info.prediction, rtol=1e-9)
    losses = [np.sum(list(one.energies.values()), axis=0) for one in (seen, info)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-9)
    np.testing.assert_allclose(seen.energies["layer_2"], losses[1], rtol=1e-9)


@pytest.mark.usefixtures("double")
def test_with_cycles_it_is_the_gradient_of_the_loss_at_the_equilibrium():
    network, evidence = cyclic()
    pure = pc.networks.split(network)
    rule = pc.learning.Implicit(pc.inference.NewtonCG(tolerance=1e-12, max_steps=100))
    found, _ = compiled_gradients(rule, pure, evidence, key=KEY)

    def unrolled_loss(parameters):
        problem = pc.inference.make_problem(
            pure.replace(parameters=parameters), Evidence(evidence.inputs)
        )

        def descend(z, _):
            return jax.tree.map(lambda a, g: a - 0.2 * g, z, problem.gradient(z)), None

        z, _ = jax.lax.scan(descend, problem.start, None, length=400)
        return jnp.mean(0.5 * jnp.sum((z["y"] - evidence.targets) ** 2, axis=1))

    expected = jax.jit(jax.grad(unrolled_loss))(pure.parameters)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-9)


def test_refusals():
    with pytest.raises(ValueError, match="stops before it; give it a tolerance"):
        pc.learning.Implicit(pc.inference.GradientDescent(0.1))
    adaptive = pc.inference.GradientDescent(0.1, tolerance=1e-3)
    with pytest.raises(ValueError, match="Sequence with a fixed number of steps stops before it"):
        pc.learning.Implicit(pc.inference.Sequence(adaptive, pc.inference.GradientDescent(0.1)))
    with pytest.raises(TypeError, match="Implicit expected an inference"):
        pc.learning.Implicit(0.1)
    network = pc.networks.split(pc.models.mlp(3, 2, rngs=nnx.Rngs(0)))
    rule = pc.learning.Implicit(pc.inference.NewtonCG(tolerance=1e-4))
    with pytest.raises(ValueError, match="Implicit needs targets"):
        rule.gradients(network, Evidence(jnp.ones((1, 3))), key=KEY)


def test_feedback_weights_are_refused():
    rngs = nnx.Rngs(0)
    network = pc.PCNetwork(
        [pc.PCDense(3, 4, rngs=rngs), pc.PCDense(4, 2, feedback=pc.layers.Feedback(), rngs=rngs)]
    )
    rule = pc.learning.Implicit(pc.inference.NewtonCG(tolerance=1e-4))
    with pytest.raises(ValueError, match="feedback"):
        rule.check(network)
