"""Meta-PCN: its loss by finite differences, and that it ends where fixed prediction and backpropagation do.

Oracles: the field of fixed prediction by the NumPy reference's deltas, half its square differentiated by
central differences, and the reference's backpropagation.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pcflax as pc
from tests.conftest import Chain, compiled_gradients
from tests.references import numpy_pc as reference

KEY = jax.random.key(0)

pytestmark = pytest.mark.usefixtures("double")


def unit(**options):
    """A chain of hidden precision 1."""
    chain = Chain(widths=(3, 5, 4, 2), **options)
    for layer in chain.network.layers[:-1]:
        layer.energy = pc.energies.Gaussian()
    for index in range(len(chain.reference) - 1):
        chain.reference[index] = reference.replace(chain.reference[index], precision=1.0)
    return chain


def gradients_of(chain, rule):
    evidence = pc.Evidence(chain.inputs, chain.targets)
    found, _ = compiled_gradients(rule, pc.networks.split(chain.network), evidence, key=KEY)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(found)]


def backprop_of(chain):
    layers = reference.backprop_gradients(chain.reference, chain.inputs, chain.targets)
    return [array for kernel, bias in layers for array in (bias, kernel)]  # a bias comes first


def descent(step_size, num_steps):
    return pc.inference.GradientDescent(optax.sgd(step_size), num_steps=num_steps)


@pytest.mark.parametrize("output", ["gaussian", "categorical"])
def test_the_whole_gradient_is_that_of_the_loss(output):
    """The loss from errors and slopes in NumPy: tanh' of the feedforward pass, weights, output's error."""
    chain = unit(output=output)
    evidence = pc.Evidence(jnp.asarray(chain.inputs), jnp.asarray(chain.targets))
    rule = pc.learning.MetaPCN(descent(0.1, 1), semi_gradient=False)
    problem = rule.field_problem(pc.networks.split(chain.network), evidence)

    feedforward = reference.feedforward(chain.reference, chain.inputs)
    last = reference.predictions(chain.reference, chain.inputs, feedforward)[-1]
    if output == "categorical":
        odds = np.exp(last - last.max(axis=1, keepdims=True))
        last = odds / odds.sum(axis=1, keepdims=True)
    top = chain.targets - last
    kernels = [np.asarray(layer.linear.kernel[...]) for layer in chain.network.layers]
    slopes = [1 - feedforward[0] ** 2, 1 - feedforward[1] ** 2]  # of tanh, the output has none

    def loss(first, second):
        upper = second - top @ kernels[2].T
        lower = first - (second * slopes[1]) @ kernels[1].T
        return (upper**2).sum() / 2 + (lower**2).sum() / 2

    random = np.random.RandomState(1)
    errors = [random.normal(size=values.shape) for values in feedforward[:2]]
    found = problem.field(
        {f"layer_{i}": jnp.asarray(feedforward[i] + errors[i]) for i in range(2)}
    )[1]
    for index in range(2):
        expected = np.zeros_like(errors[index])
        for place in np.ndindex(expected.shape):
            moved = [error.copy() for error in errors]
            moved[index][place] += 1e-5
            expected[place] = loss(*moved)
            moved[index][place] -= 2e-5
            expected[place] = (expected[place] - loss(*moved)) / 2e-5
        np.testing.assert_allclose(found[f"layer_{index}"], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("output", ["gaussian", "categorical"])
def test_both_gradients_end_at_backpropagation_as_fixed_prediction_does(output):
    """As many steps of size 1 as hidden layers with the error above held; many small ones with the whole."""
    chain = unit(output=output)
    expected = backprop_of(chain)
    for rule in (
        pc.learning.FixedPrediction(descent(1.0, 2)),
        pc.learning.MetaPCN(descent(1.0, 2)),
        pc.learning.MetaPCN(descent(0.3, 600), semi_gradient=False),
    ):
        for got, wanted in zip(gradients_of(chain, rule), expected, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-8, atol=1e-11)


def test_with_the_error_above_held_it_is_fixed_prediction_on_the_way_too():
    chain = unit()
    held, plain = (
        gradients_of(chain, rule(descent(0.3, 3)))
        for rule in (pc.learning.MetaPCN, pc.learning.FixedPrediction)
    )
    for got, expected in zip(held, plain, strict=True):
        np.testing.assert_array_equal(got, expected)
    whole = gradients_of(chain, pc.learning.MetaPCN(descent(0.3, 3), semi_gradient=False))
    assert np.abs(whole[1] - held[1]).max() > 1e-3 * np.abs(held[1]).max()


def test_what_is_known_of_a_hidden_layer_stays():
    chain = unit()
    mask = np.arange(5) < 2
    clamp = pc.Clamp(jnp.full((7, 5), 0.3), jnp.asarray(np.broadcast_to(mask, (7, 5))))
    evidence = pc.Evidence(
        jnp.asarray(chain.inputs), jnp.asarray(chain.targets), clamps={"layer_0": clamp}
    )
    rule = pc.learning.MetaPCN(descent(0.1, 5), semi_gradient=False)
    _, info = compiled_gradients(rule, pc.networks.split(chain.network), evidence, key=KEY)
    activity = np.asarray(info.activities["layer_0"])
    np.testing.assert_array_equal(activity[:, mask], 0.3)
    feedforward = reference.feedforward(chain.reference, chain.inputs)[0]
    assert np.abs(activity - feedforward)[:, ~mask].max() > 1e-4


def test_another_algorithm_is_refused():
    with pytest.raises(TypeError, match=r"MetaPCN follows a vector field .* got NewtonCG"):
        pc.learning.MetaPCN(pc.inference.NewtonCG())
