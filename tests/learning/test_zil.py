"""Z-IL is backpropagation to the last digit, or refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pcflax as pc
from tests.conftest import Chain
from tests.references import numpy_pc as reference

KEY = jax.random.key(0)

pytestmark = pytest.mark.usefixtures("double")


@jax.jit
def gradients_of(network, inputs, targets):
    return pc.learning.ZIL().gradients(network, pc.Evidence(inputs, targets), key=KEY)


def unit_chain(**options):
    """A chain with precision 1 in every hidden layer."""
    chain = Chain(**options)
    for index in range(bool(options.get("root")), len(chain.reference) - 1):
        chain.network.layers[index].energy = pc.energies.Gaussian()
        chain.reference[index] = reference.replace(chain.reference[index], precision=1.0)
    return chain


@pytest.mark.parametrize(
    "options",
    [
        {"batch": 7},
        {"batch": 1},
        {"output": "categorical", "widths": (3, 6, 5, 7, 4)},
        {"output": "bernoulli", "activation_first": True},
        {"precision": 2.5, "activation": "sigmoid"},
        {"widths": (3, 2)},
        {"root": True},
    ],
    ids=[
        "batch 7",
        "batch 1",
        "classes, four layers",
        "bits",
        "output precision",
        "one layer",
        "a held root",
    ],
)
def test_every_gradient_is_that_of_backpropagation(options):
    """To 1e-12, in one sweep of as many steps as layers; a layer one step late would be far off."""
    chain = unit_chain(**options)
    gradients, info = gradients_of(pc.networks.split(chain.network), chain.inputs, chain.targets)
    expected = reference.backprop_gradients(chain.reference, chain.inputs, chain.targets)
    if "root" in options:  # held by the inputs, so its own precision, 0.7, does not matter
        expected = expected[1:]
    for layer, (kernel, bias) in zip(gradients.values(), expected, strict=True):
        np.testing.assert_allclose(layer["linear"]["kernel"], kernel, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(layer["linear"]["bias"], bias, rtol=1e-12, atol=1e-14)
    feedforward = reference.feedforward(chain.reference, chain.inputs)
    prediction = reference.predictions(chain.reference, chain.inputs, feedforward)[-1]
    np.testing.assert_allclose(info.prediction, prediction, rtol=1e-12)


def test_it_reports_where_as_many_steps_as_layers_ended():
    chain = unit_chain()
    start = [*reference.feedforward(chain.reference, chain.inputs)[:-1], chain.targets]
    z, energies = reference.infer(
        chain.reference, chain.inputs, start, chain.free(), step_size=1.0, num_steps=3
    )
    _, info = gradients_of(pc.networks.split(chain.network), chain.inputs, chain.targets)
    for got, activity in zip(info.activities.values(), z, strict=True):
        np.testing.assert_allclose(got, activity, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(sum(info.energies.values()), energies[-1], rtol=1e-10)


@pytest.mark.parametrize(
    ("energy", "name"),
    [
        (pc.energies.Gaussian(2.0), "Gaussian"),
        (lambda: pc.energies.Gaussian(jnp.full(4, 2.0)), "Gaussian"),
        (pc.energies.Huber(), "Huber"),
        (pc.energies.LearnedGaussian(), "LearnedGaussian"),
        (pc.energies.ActivityDecay(pc.energies.Gaussian(), 0.1), "ActivityDecay"),
    ],
    ids=["precision", "precisions", "huber", "learned", "decay"],
)
def test_hidden_energies_that_would_not_be_backpropagation_are_refused(energy, name):
    chain = unit_chain()
    chain.network.layers[1].energy = energy() if not isinstance(energy, pc.Energy) else energy
    message = (
        rf"ZIL expected hidden layers with pc.energies.Gaussian\(\) of precision 1, got {name} in "
        rf"layer 'layer_1'; take FixedPrediction instead"
    )
    with pytest.raises(ValueError, match=message):
        pc.learning.ZIL().gradients(
            pc.networks.split(chain.network), pc.Evidence(chain.inputs, chain.targets), key=KEY
        )


def test_without_targets_it_is_refused():
    chain = unit_chain()
    with pytest.raises(ValueError, match="ZIL needs targets: the output's error is all"):
        pc.learning.ZIL().gradients(
            pc.networks.split(chain.network), pc.Evidence(chain.inputs), key=KEY
        )
