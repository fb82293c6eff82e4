"""Incremental predictive coding against a plain loop of its two updates."""

import jax
import numpy as np
import optax
import pytest

import pcflax as pc
from tests.conftest import Chain
from tests.references import numpy_pc as reference

CLOSE = {"rtol": 1e-9, "atol": 1e-12}  # float64 rounding over a few steps
KEY = jax.random.key(0)
DESCENT = pc.inference.GradientDescent(optax.sgd(0.07), num_steps=6)

pytestmark = pytest.mark.usefixtures("double")


def update(chain, optimizer, inputs, targets, state=None, network=None):
    """One batch; returns kernels and biases by layer, the optimizer's state, info and network."""
    network = pc.networks.split(chain.network) if network is None else network
    state = optimizer.init(network.parameters) if state is None else state
    rule = pc.learning.IncrementalPC(DESCENT)
    new, state, info = jax.jit(
        lambda n, s: rule.update(n, optimizer, s, pc.Evidence(inputs, targets), key=KEY)
    )(network, state)
    return weights_of(new), state, info, new


def weights_of(network):
    return [
        (np.asarray(layer["linear"]["kernel"]), np.asarray(layer["linear"]["bias"]))
        for layer in network.parameters.values()
    ]


def start_of(chain, inputs, targets):
    return [*reference.feedforward(chain.reference, inputs, len(targets))[:-1], targets]


@pytest.mark.parametrize(
    ("options", "root_free"),
    [
        ({"batch": 7}, False),
        ({"batch": 1}, False),
        ({"output": "categorical", "activation_first": True}, False),
        ({"root": True}, True),
    ],
    ids=["batch 7", "batch 1", "classes", "free root"],
)
def test_weights_and_activities_move_together_at_every_step(options, root_free):
    """Each z by its own F_i, theta by the mean of F: a mean in z would show at batch 7."""
    chain = Chain(**options)
    inputs = None if root_free else chain.inputs
    layers, activities, energies = reference.incremental(
        chain.reference,
        inputs,
        start_of(chain, inputs, chain.targets),
        chain.free(root_free=root_free),
        step_size=0.07,
        learning_rate=0.02,
        num_steps=6,
    )
    weights, _, info, _ = update(chain, optax.sgd(0.02), inputs, chain.targets)
    dense = [layer for layer in layers if isinstance(layer, reference.ReferenceLayer)]
    for (kernel, bias), layer in zip(weights, dense, strict=True):
        np.testing.assert_allclose(kernel, layer.kernel, **CLOSE)
        np.testing.assert_allclose(bias, layer.bias, **CLOSE)
    for got, activity in zip(info.activities.values(), activities, strict=True):
        np.testing.assert_allclose(got, activity, **CLOSE)
    # what was seen last, before the weights moved a last time
    np.testing.assert_allclose(sum(info.energies.values()), energies, **CLOSE)
    before = reference.feedforward(chain.reference, inputs, len(chain.targets))
    expected = reference.predictions(chain.reference, inputs, before)[-1]
    np.testing.assert_allclose(info.prediction, expected, **CLOSE)


def test_the_optimizers_state_goes_along_through_steps_and_batches():
    """Twelve steps of one Adam in two batches, on gradients by the reference."""
    chain, optimizer = Chain(), optax.adam(0.01)
    layers = chain.reference
    expected = [(layer.kernel, layer.bias) for layer in layers]
    expected_state = optimizer.init(expected)
    state = network = None
    for batch in (slice(0, 4), slice(3, 7)):
        x, y = chain.inputs[batch], chain.targets[batch]
        weights, state, _, network = update(chain, optimizer, x, y, state, network)
        z = [*reference.feedforward(layers, x)[:-1], y]
        for _ in range(6):
            on_weights = reference.parameter_gradients(layers, x, z)
            on_z = reference.activity_gradients(layers, x, z, chain.free())
            with jax.numpy_dtype_promotion("standard"):  # optax counts in integers
                updates, expected_state = optimizer.update(on_weights, expected_state, expected)
            expected = optax.apply_updates(expected, updates)
            z = [a - 0.07 * g for a, g in zip(z, on_z, strict=True)]
            layers = [
                reference.replace(layer, kernel=np.asarray(kernel), bias=np.asarray(bias))
                for layer, (kernel, bias) in zip(layers, expected, strict=True)
            ]
        for got, want in zip(weights, expected, strict=True):
            # Adam divides by roots of small second moments
            np.testing.assert_allclose(got[0], want[0], rtol=1e-7, atol=1e-10)
            np.testing.assert_allclose(got[1], want[1], rtol=1e-7, atol=1e-10)
    assert state[0].count == 12


def test_without_a_weight_step_it_is_inference():
    chain = Chain()
    weights, _, info, _ = update(chain, optax.sgd(0.0), chain.inputs, chain.targets)
    result = chain.network.infer(chain.inputs, chain.targets, inference=DESCENT)
    for name, activity in result.activities.items():
        np.testing.assert_allclose(info.activities[name], activity, **CLOSE)
    for (kernel, _), layer in zip(weights, chain.reference, strict=True):
        np.testing.assert_array_equal(kernel, layer.kernel)


def test_the_initializer_chooses_the_start():
    chain = Chain()
    rule = pc.learning.IncrementalPC(
        pc.inference.GradientDescent(optax.sgd(0.07), num_steps=1), pc.initializers.Zeros()
    )
    network = pc.networks.split(chain.network)
    optimizer, evidence = optax.sgd(0.1), pc.Evidence(chain.inputs, chain.targets)
    _, _, info = rule.update(
        network, optimizer, optimizer.init(network.parameters), evidence, key=KEY
    )
    zeros = [np.zeros((7, 5)), np.zeros((7, 4)), chain.targets]
    expected, _ = reference.infer(
        chain.reference, chain.inputs, zeros, chain.free(), step_size=0.07, num_steps=1
    )
    for got, activity in zip(info.activities.values(), expected, strict=True):
        np.testing.assert_allclose(got, activity, **CLOSE)


@pytest.mark.parametrize(
    ("inference", "error", "message"),
    [
        (
            pc.inference.ErrorCoordinates(DESCENT),
            TypeError,
            "expected an iterative inference algorithm such as .* got 'ErrorCoordinates'",
        ),
        (
            pc.inference.GradientDescent(optax.sgd(0.1), tolerance=0.1),
            ValueError,
            "expected a fixed num_steps, since the weights move at every step, got a tolerance",
        ),
        (
            pc.inference.GradientDescent(optax.sgd(0.1), num_steps=0),
            ValueError,
            "once a step of inference, got num_steps=0; take at least 1",
        ),
    ],
)
def test_refusals(inference, error, message):
    with pytest.raises(error, match=f"IncrementalPC .*{message}"):
        pc.learning.IncrementalPC(inference)
