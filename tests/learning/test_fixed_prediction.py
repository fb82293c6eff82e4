"""The fixed-prediction assumption: its relaxation by hand, and backpropagation where it ends."""

import jax
import numpy as np
import optax
import pytest

import pcflax as pc
from tests.conftest import Chain, compiled_gradients
from tests.references import numpy_pc as reference

CLOSE = {"rtol": 1e-9, "atol": 1e-12}  # float64 rounding over the steps
KEY = jax.random.key(0)

pytestmark = pytest.mark.usefixtures("double")


def unit(chain):
    """The chain with precision 1 in every hidden layer, as step size 1 wants it."""
    for index in range(len(chain.reference) - 1):
        chain.network.layers[index].energy = pc.energies.Gaussian()
        chain.reference[index] = reference.replace(chain.reference[index], precision=1.0)
    return chain


def gradients_of(chain, inference):
    rule = pc.learning.FixedPrediction(inference)
    network = pc.networks.split(chain.network)
    evidence = pc.Evidence(chain.inputs, chain.targets)
    gradients, info = compiled_gradients(rule, network, evidence, key=KEY)
    return [
        (np.asarray(layer["linear"]["kernel"]), np.asarray(layer["linear"]["bias"]))
        for layer in gradients.values()
    ], info


def check(got, expected, **tolerances):
    for (kernel, bias), (expected_kernel, expected_bias) in zip(got, expected, strict=True):
        np.testing.assert_allclose(kernel, expected_kernel, **tolerances)
        np.testing.assert_allclose(bias, expected_bias, **tolerances)


def backprop_of(chain):
    return reference.backprop_gradients(chain.reference, chain.inputs, chain.targets)


@pytest.mark.parametrize(
    "options",
    [
        {"batch": 7},
        {"batch": 1},
        {"output": "categorical", "activation_first": True},
        {"precision": 2.5},
    ],
    ids=["batch 7", "batch 1", "classes", "precision"],
)
def test_each_step_relaxes_the_errors_around_the_feedforward_pass(options):
    """Predictions and slopes that moved with the activities would be predictive coding's."""
    chain = Chain(**options)
    deltas, expected = reference.fixed_prediction(
        chain.reference, chain.inputs, chain.targets, step_size=0.3, num_steps=5
    )
    got, info = gradients_of(chain, pc.inference.GradientDescent(optax.sgd(0.3), num_steps=5))
    check(got, expected, **CLOSE)
    feedforward = reference.feedforward(chain.reference, chain.inputs)
    for index, name in enumerate(chain.network.names[:-1]):
        error = deltas[index] / chain.reference[index].precision
        np.testing.assert_allclose(info.activities[name], feedforward[index] + error, **CLOSE)
    np.testing.assert_array_equal(info.activities[chain.network.names[-1]], chain.targets)
    mu = reference.predictions(chain.reference, chain.inputs, feedforward)[-1]
    np.testing.assert_allclose(info.prediction, mu, **CLOSE)


@pytest.mark.parametrize("output", ["gaussian", "categorical", "bernoulli"])
def test_as_many_steps_of_size_1_as_hidden_layers_are_backpropagation(output):
    """Exactly; one step fewer leaves the lowest layer without any error."""
    chain = unit(Chain(widths=(3, 5, 4, 6, 2), output=output))
    for num_steps in (3, 2):
        inference = pc.inference.GradientDescent(optax.sgd(1.0), num_steps=num_steps)
        got, _ = gradients_of(chain, inference)
        if num_steps == 3:
            check(got, backprop_of(chain), rtol=1e-12, atol=1e-14)
    assert not np.any(got[0][0])
    check(got[1:], backprop_of(chain)[1:], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("precision", [1.0, 0.4, 3.0])
def test_at_convergence_it_is_backpropagation_whatever_the_precisions(precision):
    """Hidden layers of precision 1 and 1.5, a small step, and a stop of its own."""
    chain = Chain(precision=precision)
    adaptive = pc.inference.GradientDescent(optax.sgd(0.2), tolerance=1e-12, max_steps=400)
    got, _ = gradients_of(chain, adaptive)
    check(got, backprop_of(chain), rtol=1e-9, atol=1e-11)


def test_it_is_not_what_predictive_coding_converges_to():
    """Predictive coding's own equilibrium gives other gradients: the assumption matters."""
    chain = Chain()
    descent = pc.inference.GradientDescent(optax.sgd(0.1), num_steps=600)
    got, _ = gradients_of(chain, descent)
    z, _ = reference.infer(
        chain.reference,
        chain.inputs,
        [*reference.feedforward(chain.reference, chain.inputs)[:-1], chain.targets],
        chain.free(),
        0.1,
        600,
    )
    free = reference.parameter_gradients(chain.reference, chain.inputs, z)
    check(got, backprop_of(chain), rtol=1e-9, atol=1e-11)
    assert np.abs(got[0][0] - free[0][0]).max() > 0.1 * np.abs(got[0][0]).max()


def test_a_learned_precision_learns_at_the_relaxed_errors():
    """Its own gradient is the batch mean of sum_i (pi e_i^2 - 1)/2, e the deltas over pi."""
    chain = unit(Chain())
    chain.network.layers[1].energy = pc.energies.LearnedGaussian(precision=2.0)
    chain.reference[1] = reference.replace(chain.reference[1], precision=2.0)
    deltas, expected = reference.fixed_prediction(
        chain.reference, chain.inputs, chain.targets, step_size=0.2, num_steps=100
    )
    rule = pc.learning.FixedPrediction(pc.inference.GradientDescent(optax.sgd(0.2), num_steps=100))
    network = pc.networks.split(chain.network)
    evidence = pc.Evidence(chain.inputs, chain.targets)
    gradients, _ = compiled_gradients(rule, network, evidence, key=KEY)
    layer = gradients["layer_1"]
    np.testing.assert_allclose(layer["linear"]["kernel"], expected[1][0], **CLOSE)
    on_log_precision = (2.0 * (deltas[1] / 2.0) ** 2 - 1).sum(axis=1).mean() / 2
    np.testing.assert_allclose(layer["energy"]["log_precision"], on_log_precision, **CLOSE)


@pytest.mark.parametrize(
    ("inference", "error", "message"),
    [
        ("sgd", TypeError, "FixedPrediction expected an inference algorithm such as"),
        (
            pc.inference.NewtonCG(),
            TypeError,
            "the gradient of no energy, so it expected pc.inference.GradientDescent, got NewtonCG",
        ),
        (
            pc.inference.GradientDescent(step_size="auto"),
            TypeError,
            "got CurvatureDescent; with precision 1, a step size of 1 settles",
        ),
    ],
)
def test_refusals(inference, error, message):
    with pytest.raises(error, match=message):
        pc.learning.FixedPrediction(inference)
