"""Nudged learning: its clamp by hand, and what it goes to as beta goes to 0."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pcflax as pc
from tests.conftest import Chain
from tests.references import numpy_pc as reference

KEY = jax.random.key(0)
FEW = pc.inference.GradientDescent(optax.sgd(0.07), num_steps=11)
# To a residual of about 1e-16: the errors that are left over are divided by a small beta.
EQUILIBRIUM = pc.inference.GradientDescent(optax.sgd(0.1, momentum=0.8), num_steps=1500)
# The schedules look beta up by the step, so that all values of it share one compiled program.
BETAS = (1.0, 0.5, -0.5, 0.2, 0.1, 0.05, 1e-5, -1e-5)

pytestmark = pytest.mark.usefixtures("double")


def by_step(step):
    return jnp.asarray(BETAS)[step]


@functools.partial(jax.jit, static_argnames="rule")
def compiled(rule, network, inputs, targets, step):
    return rule.gradients(network, pc.Evidence(inputs, targets), key=KEY, step=step)


@functools.cache
def rule_of(inference, centred=False, weighted=False):
    return pc.learning.Nudged(inference, beta=by_step, centred=centred, weighted=weighted)


def gradients_of(chain, beta, inference=EQUILIBRIUM, **options):
    """(kernel, bias) of each layer, and what the rule saw."""
    gradients, info = compiled(
        rule_of(inference, **options),
        pc.networks.split(chain.network),
        chain.inputs,
        chain.targets,
        BETAS.index(beta),
    )
    return layers_of(gradients), info


def layers_of(gradients):
    return [
        (np.asarray(layer["linear"]["kernel"]), np.asarray(layer["linear"]["bias"]))
        for layer in gradients.values()
    ]


def flat(layers):
    return np.concatenate([np.ravel(array) for layer in layers for array in layer])


def cosine(left, right):
    """Between one layer's gradients, kernel and bias together."""
    left, right = flat([left]), flat([right])
    return left @ right / np.linalg.norm(left) / np.linalg.norm(right)


def backprop_of(chain):
    return reference.backprop_gradients(chain.reference, chain.inputs, chain.targets)


@pytest.mark.parametrize("output", ["gaussian", "categorical"])
@pytest.mark.parametrize("beta", [0.2, -0.5])
def test_the_output_is_clamped_to_the_nudge_and_the_gradient_divided_by_beta(output, beta):
    """It is p - beta (p - y), p the feedforward output's mean: probabilities, where it is classes."""
    chain = Chain(output=output)
    clamp = reference.nudged_targets(chain.reference, chain.inputs, chain.targets, beta)
    start = [*reference.feedforward(chain.reference, chain.inputs)[:-1], clamp]
    z, _ = reference.infer(
        chain.reference, chain.inputs, start, chain.free(), step_size=0.07, num_steps=11
    )
    expected = reference.parameter_gradients(chain.reference, chain.inputs, z)
    got, info = gradients_of(chain, beta, FEW)
    for layer, expected_layer in zip(got, expected, strict=True):
        for array, expected_array in zip(layer, expected_layer, strict=True):
            np.testing.assert_allclose(array, expected_array / beta, rtol=1e-9, atol=1e-12)
    for activity, expected_activity in zip(info.activities.values(), z, strict=True):
        np.testing.assert_allclose(activity, expected_activity, rtol=1e-10, atol=1e-12)


def test_at_beta_1_it_is_predictive_coding():
    chain = Chain()
    expected, seen = compiled(
        pc.learning.PredictiveCoding(FEW),
        pc.networks.split(chain.network),
        chain.inputs,
        chain.targets,
        0,
    )
    # p - (p - y) is y but for the last digit
    for options in ({}, {"weighted": True}):
        got, info = gradients_of(chain, 1.0, FEW, **options)
        np.testing.assert_allclose(flat(got), flat(layers_of(expected)), rtol=1e-10, atol=1e-13)
        for name, energy in seen.energies.items():
            np.testing.assert_allclose(info.energies[name], energy, rtol=1e-10)


def test_centred_is_the_mean_of_both_signs():
    chain = Chain()
    positive, info = gradients_of(chain, 0.5, FEW)
    negative, _ = gradients_of(chain, -0.5, FEW)
    centred, seen = gradients_of(chain, 0.5, FEW, centred=True)
    np.testing.assert_allclose(
        flat(centred), (flat(positive) + flat(negative)) / 2, rtol=1e-9, atol=1e-12
    )
    np.testing.assert_allclose(seen.activities["layer_1"], info.activities["layer_1"], rtol=1e-12)


@pytest.mark.parametrize("output", ["gaussian", "categorical"])
@pytest.mark.parametrize(
    ("beta", "centred"),
    [(1e-5, False), (-1e-5, False), (1e-5, True)],
    ids=["positive", "negative", "centred"],
)
def test_weighted_goes_to_backpropagation_as_beta_goes_to_0(beta, centred, output):
    """In every layer, for tanh layers, unequal precisions and classes; no factor is left over."""
    chain = Chain(output=output)
    got, _ = gradients_of(chain, beta, weighted=True, centred=centred)
    for layer, expected in zip(got, backprop_of(chain), strict=True):
        assert cosine(layer, expected) > 1 - 1e-6
        for array, expected_array in zip(layer, expected, strict=True):
            # the first order in beta
            bound = 1e-3 * np.abs(expected_array).max()
            np.testing.assert_allclose(array, expected_array, rtol=0, atol=bound)


def test_the_clamp_of_a_linear_chain_goes_to_the_closed_form_and_not_to_backpropagation():
    """delta_l = J_l^T S^-1 r, with S = sum_l J_l J_l^T / precision_l and J_l from z_l to the output.

    Backpropagation has precision_L J_l^T r: not parallel, since S is no multiple of the identity.
    """
    chain = Chain(widths=(3, 5, 4, 2), activation="identity", precision=2.0)
    feedforward = reference.feedforward(chain.reference, chain.inputs)
    r_BD = chain.targets - feedforward[-1]
    jacobians = [np.eye(2)]  # (features of z_l, outputs), from the output down
    for layer in chain.reference[:0:-1]:
        jacobians.insert(0, layer.kernel @ jacobians[0])
    s_DD = sum(
        j_ID.T @ j_ID / layer.precision
        for j_ID, layer in zip(jacobians, chain.reference, strict=True)
    )
    solved_BD = np.linalg.solve(s_DD, r_BD.T).T
    below = [chain.inputs, *feedforward[:-1]]
    expected = []
    for j_ID, z_BI in zip(jacobians, below, strict=True):
        delta_BD = solved_BD @ j_ID.T
        expected.append((-z_BI.T @ delta_BD / 7, -delta_BD.mean(axis=0)))
    got, _ = gradients_of(chain, 1e-5)
    for layer, expected_layer in zip(got, expected, strict=True):
        assert cosine(layer, expected_layer) > 1 - 1e-8
        for array, expected_array in zip(layer, expected_layer, strict=True):
            bound = 1e-4 * np.abs(expected_array).max()
            np.testing.assert_allclose(array, expected_array, rtol=0, atol=bound)
    cosines = [cosine(*pair) for pair in zip(got, backprop_of(chain), strict=True)]
    assert min(cosines) < 0.99
    # and the centred estimate of a linear chain has no error at all, whatever beta
    centred, _ = gradients_of(chain, 0.5, centred=True)
    np.testing.assert_allclose(flat(centred), flat(expected), rtol=1e-8, atol=1e-10)


def test_the_weight_goes_along_into_other_coordinates():
    chain = Chain()
    in_errors = pc.inference.ErrorCoordinates(EQUILIBRIUM)
    expected, _ = gradients_of(chain, 0.2, weighted=True)
    got, _ = gradients_of(chain, 0.2, in_errors, weighted=True)
    np.testing.assert_allclose(flat(got), flat(expected), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("weighted", [False, True], ids=["clamped", "weighted"])
def test_the_centred_estimate_is_of_second_order_in_beta(weighted):
    """Half the beta, a quarter of the error; of one sign, half of it.

    The limit is backpropagation where the output is weighted, and else is extrapolated from the two
    smallest betas, g(0) = (4 g(b/2) - g(b)) / 3.
    """
    chain = Chain()
    both = {
        beta: flat(gradients_of(chain, beta, centred=True, weighted=weighted)[0])
        for beta in (0.2, 0.1, 0.05)
    }
    one = {beta: flat(gradients_of(chain, beta, weighted=weighted)[0]) for beta in (0.2, 0.1, 0.05)}
    limit = flat(backprop_of(chain)) if weighted else (4 * both[0.05] - both[0.1]) / 3
    errors = [np.linalg.norm(both[beta] - limit) for beta in (0.2, 0.1)]
    assert 3.5 < errors[0] / errors[1] < 4.5
    errors = [np.linalg.norm(one[beta] - limit) for beta in (0.1, 0.05)]
    assert 1.6 < errors[0] / errors[1] < 2.4


def test_a_schedule_is_asked_with_the_number_of_batches():
    """A beta of 1/(2 + step), against rules of those fixed values."""
    chain = Chain()
    network = pc.networks.split(chain.network)
    schedule = pc.learning.Nudged(FEW, beta=lambda step: 1.0 / (2.0 + step))
    for step, beta in ((0, 0.5), (3, 0.2)):
        fixed = pc.learning.Nudged(FEW, beta=beta)
        got, expected = (
            layers_of(compiled(rule, network, chain.inputs, chain.targets, step)[0])
            for rule in (schedule, fixed)
        )
        np.testing.assert_allclose(flat(got), flat(expected), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float64])
def test_a_schedule_in_32_bits_goes_with_any_weights(dtype):
    """It is an array, where a number has no dtype: 1/4 of 1/2, all of them exact in 16 bits."""
    chain = Chain()
    network = jax.tree.map(lambda leaf: leaf.astype(dtype), pc.networks.split(chain.network))
    x, y = (jnp.asarray(array, dtype) for array in (chain.inputs, chain.targets))
    schedule = pc.learning.Nudged(FEW, beta=lambda step: jnp.float32(0.25) * 2)
    got, expected = (
        jax.tree.leaves(compiled(rule, network, x, y, 0)[0])
        for rule in (schedule, pc.learning.Nudged(FEW, beta=0.5))
    )
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == dtype
        np.testing.assert_allclose(np.float64(one), np.float64(other), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pc.learning.Nudged("sgd"), TypeError, "expected an inference algorithm such as"),
        (
            lambda: pc.learning.Nudged(FEW, beta=0.0),
            ValueError,
            r"expected a beta that is not 0 \(above 0 towards the target, below 0 away from it\), "
            r"got 0.0",
        ),
        (
            lambda: pc.learning.Nudged(FEW, beta=float("inf")),
            ValueError,
            "expected a finite beta, got inf",
        ),
        (
            lambda: pc.learning.Nudged(FEW, beta="0.5"),
            TypeError,
            "expected beta to be a number, got '0.5'",
        ),
        (
            lambda: pc.learning.Nudged(FEW).gradients(None, pc.Evidence(np.ones((2, 3))), key=KEY),
            ValueError,
            "needs targets: the output is nudged towards them",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=f"Nudged {message}"):
        call()
