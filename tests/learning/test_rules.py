"""Learning rules against the NumPy reference, and where they must agree."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pcflax as pc
from tests.conftest import Chain, compiled_gradients, gradient_arrays
from tests.references import numpy_pc as reference

CLOSE = {"rtol": 1e-9, "atol": 1e-12}
KEY = jax.random.key(0)


def rule_gradients(rule, chain):
    gradients, info = compiled_gradients(
        rule, pc.networks.split(chain.network), pc.Evidence(chain.inputs, chain.targets), key=KEY
    )
    flat = [
        (np.asarray(layer["linear"]["kernel"]), np.asarray(layer["linear"]["bias"]))
        for layer in gradients.values()
    ]
    return flat, info


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("output", ["gaussian", "categorical", "bernoulli"])
@pytest.mark.parametrize("batch", [1, 7])
def test_backprop_is_the_reference_backprop(output, batch):
    """The baseline of every comparison must be backpropagation and nothing else."""
    chain = Chain(output=output, batch=batch)
    expected = reference.backprop_gradients(chain.reference, chain.inputs, chain.targets)
    got, info = rule_gradients(pc.learning.Backprop(), chain)
    for (kernel, bias), (expected_kernel, expected_bias) in zip(got, expected, strict=True):
        np.testing.assert_allclose(kernel, expected_kernel, **CLOSE)
        np.testing.assert_allclose(bias, expected_bias, **CLOSE)
    assert (info.energies["layer_0"] == 0).all()  # hidden errors are zero at the feedforward pass


@pytest.mark.usefixtures("double")
def test_predictive_coding_is_infer_then_local_gradient():
    chain = Chain()
    inference = pc.inference.GradientDescent(optax.sgd(0.07), num_steps=11)
    got, info = rule_gradients(pc.learning.PredictiveCoding(inference), chain)
    result = chain.network.infer(chain.inputs, chain.targets, inference=inference)
    expected = gradient_arrays(chain.network.parameter_gradients(chain.inputs))
    for (kernel, bias), (expected_kernel, expected_bias) in zip(got, expected, strict=True):
        np.testing.assert_allclose(kernel, expected_kernel, **CLOSE)
        np.testing.assert_allclose(bias, expected_bias, **CLOSE)
    for name, energy in result.energies.items():
        np.testing.assert_allclose(info.energies[name], energy, **CLOSE)
    np.testing.assert_allclose(info.prediction, chain.network.predict(chain.inputs), **CLOSE)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("step", [0, 2])
def test_weights_by_the_step_of_learning_are_precisions(step):
    """As if the Gaussians had these precisions then; what is measured is the network's own energy."""
    chain, other = Chain(), Chain(precision=1.0 + step)
    other.network.layers[0].energy = pc.energies.Gaussian(2.0)
    descent = pc.inference.GradientDescent(0.07, num_steps=11)
    weights = {"*_2": lambda step: 1.0 + step, "layer_0": 2.0}
    rule = pc.learning.PredictiveCoding(descent, weights=weights)
    evidence = pc.Evidence(chain.inputs, chain.targets)
    pure, same = (pc.networks.split(one.network) for one in (chain, other))
    gradients, info = compiled_gradients(rule, pure, evidence, key=KEY, step=step)
    expected, seen = compiled_gradients(
        pc.learning.PredictiveCoding(descent), same, evidence, key=KEY
    )
    for found, right in (gradients, expected), (info.activities, seen.activities):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), found, right)
    own = jax.jit(pure.energies)(seen.activities, chain.inputs)
    for name, energy in own.items():
        np.testing.assert_allclose(info.energies[name], energy, **CLOSE)


def test_weights_that_fit_no_layer_or_are_negative_are_refused():
    descent = pc.inference.GradientDescent(0.1)
    rule = pc.learning.PredictiveCoding(descent, weights={"layr_0": 2.0})
    with pytest.raises(
        ValueError, match="PredictiveCoding has a weight for 'layr_0', which fits none"
    ):
        pc.Trainer(Chain().network, optax.sgd(0.1), learning=rule)
    with pytest.raises(ValueError, match="weight of 'output' of at least 0, got -1"):
        pc.learning.PredictiveCoding(descent, weights={"output": -1.0})


@pytest.mark.usefixtures("double")
def test_with_zero_output_error_the_gradient_at_equilibrium_is_zero():
    """Where the feedforward prediction is the target already, there is nothing to learn."""
    chain = Chain()
    chain.targets = np.asarray(chain.network.predict(chain.inputs))
    rule = pc.learning.PredictiveCoding(pc.inference.GradientDescent(optax.sgd(0.1), num_steps=50))
    for kernel, bias in rule_gradients(rule, chain)[0]:
        np.testing.assert_allclose(kernel, 0, atol=1e-14)
        np.testing.assert_allclose(bias, 0, atol=1e-14)


@pytest.mark.usefixtures("double")
def test_the_last_layer_gradient_before_inference_is_that_of_backprop():
    """With no inference step the output error is backprop's and every hidden gradient is zero."""
    chain = Chain()
    rule = pc.learning.PredictiveCoding(pc.inference.GradientDescent(optax.sgd(0.1), num_steps=0))
    local, _ = rule_gradients(rule, chain)
    backprop, _ = rule_gradients(pc.learning.Backprop(), chain)
    np.testing.assert_allclose(local[-1][0], backprop[-1][0], **CLOSE)
    assert not np.any(local[0][0])
    assert np.any(backprop[0][0])


@pytest.mark.usefixtures("double")
def test_the_gradient_is_a_batch_mean():
    """Doubling every example leaves the gradient as it is, so a learning rate keeps its meaning."""
    chain = Chain(batch=3)
    rule = pc.learning.PredictiveCoding(pc.inference.GradientDescent(optax.sgd(0.1), num_steps=5))
    once, _ = rule_gradients(rule, chain)
    chain.inputs, chain.targets = np.repeat(chain.inputs, 2, 0), np.repeat(chain.targets, 2, 0)
    twice, _ = rule_gradients(rule, chain)
    for (kernel, _), (again, _) in zip(once, twice, strict=True):
        np.testing.assert_allclose(again, kernel, **CLOSE)


@pytest.mark.usefixtures("double")
def test_update_is_one_optax_update():
    chain = Chain()
    optimizer = optax.adam(0.01)
    network = pc.networks.split(chain.network)
    state = optimizer.init(network.parameters)
    rule = pc.learning.Backprop()
    evidence = pc.Evidence(chain.inputs, chain.targets)

    @jax.jit
    def updated(network, state):
        return rule.update(network, optimizer, state, evidence, key=KEY)[:2]

    @jax.jit
    def by_optax(gradients, state, parameters):
        with jax.numpy_dtype_promotion("standard"):  # optax counts in integers
            updates, state = optimizer.update(gradients, state, parameters)
        return optax.apply_updates(parameters, updates), state

    new, new_state = updated(network, state)
    gradients, _ = compiled_gradients(rule, network, evidence, key=KEY)
    expected, expected_state = by_optax(gradients, state, network.parameters)
    for got, want in zip(
        jax.tree.leaves((new.parameters, new_state)),
        jax.tree.leaves((expected, expected_state)),
        strict=True,
    ):
        np.testing.assert_array_equal(got, want)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    "rule",
    [
        pc.learning.Backprop(),
        pc.learning.PredictiveCoding(pc.inference.GradientDescent(0.1, num_steps=3)),
        pc.learning.IncrementalPC(pc.inference.GradientDescent(0.1, num_steps=1)),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_the_value_that_an_optimizer_gets_counts_examples_by_their_weights(rule):
    """It is the mean of w_i F_i, of which the gradients are."""
    chain = Chain()
    weights = jnp.asarray([3.0, 0.0, 1.0, 0.5, 2.0, 0.0, 1.0])
    keeps = optax.GradientTransformationExtraArgs(
        lambda parameters: jnp.zeros(()),
        lambda updates, state, parameters=None, *, value, **more: (updates, value),
    )
    network = pc.networks.split(chain.network)
    evidence = pc.Evidence(chain.inputs, chain.targets, weights=weights)
    _, value, info = jax.jit(
        lambda network: rule.update(network, keeps, jnp.zeros(()), evidence, key=KEY)
    )(network)
    energy = np.sum([np.asarray(own) for own in info.energies.values()], axis=0)
    np.testing.assert_allclose(value, np.mean(weights * energy), **CLOSE)
    assert not np.isclose(value, np.mean(energy))


def test_refusals():
    with pytest.raises(TypeError, match="PredictiveCoding expected an inference algorithm such as"):
        pc.learning.PredictiveCoding("sgd")
    chain = Chain()
    with pytest.raises(ValueError, match="Backprop needs targets"):
        pc.learning.Backprop().gradients(
            pc.networks.split(chain.network), pc.Evidence(chain.inputs), key=KEY
        )


@pytest.mark.usefixtures("double")
def test_backprop_descends_the_output_energy_alone():
    """A hidden Bernoulli layer has an energy of its own at its mean, which is not the loss."""
    chain = Chain()
    chain.network.layers[1].energy = pc.energies.Bernoulli()
    split = pc.networks.split(chain.network)

    def loss(parameters):
        bound = split.replace(parameters=parameters).bind()
        return bound.output_energy(bound.predict(chain.inputs), chain.targets).mean()

    evidence = pc.Evidence(chain.inputs, chain.targets)
    gradients, _ = compiled_gradients(pc.learning.Backprop(), split, evidence, key=KEY)
    slopes = jax.jit(jax.grad(loss))(split.parameters)
    for got, expected in zip(*map(jax.tree.leaves, (gradients, slopes)), strict=True):
        np.testing.assert_allclose(got, expected, **CLOSE)


@pytest.mark.usefixtures("double")
def test_over_kept_samples_the_gradient_is_their_mean():
    """Monte Carlo predictive coding: the mean of the local gradients, not the gradient at one sample."""
    chain = Chain()
    walk = pc.inference.Langevin(0.05, burn_in=3, num_samples=4, thinning=2, keep_samples=True)
    rule, network = pc.learning.PredictiveCoding(walk), pc.networks.split(chain.network)
    gradients, info = jax.jit(
        lambda network: rule.gradients(network, pc.Evidence(chain.inputs, chain.targets), key=KEY)
    )(network)

    @jax.jit
    def walked(network):
        problem = pc.inference.make_problem(network, pc.Evidence(chain.inputs, chain.targets))
        return walk.solve(problem, key=jax.random.split(KEY)[1]).samples

    samples = walked(network)
    each = [
        reference.parameter_gradients(
            chain.reference,
            chain.inputs,
            [np.asarray(samples[name][number]) for name in chain.network.names],
        )
        for number in range(4)
    ]
    for index, layer in enumerate(gradients.values()):
        kernel, bias = layer["linear"]["kernel"], layer["linear"]["bias"]
        np.testing.assert_allclose(kernel, sum(one[index][0] for one in each) / 4, **CLOSE)
        np.testing.assert_allclose(bias, sum(one[index][1] for one in each) / 4, **CLOSE)
    np.testing.assert_allclose(info.activities["layer_0"], samples["layer_0"][-1], **CLOSE)
