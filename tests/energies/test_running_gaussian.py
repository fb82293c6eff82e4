"""Precision from running residuals, against NumPy's own running mean."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy import stats

import pcflax as pc
from pcflax.energies import RunningGaussian
from tests.conftest import in_double, parameters_of
from tests.references import numpy_pc as reference

DESCENT = pc.inference.GradientDescent(0.1, num_steps=6)


def network():
    rngs = nnx.Rngs(0)
    return pc.PCNetwork(
        {
            "a": pc.PCDense(
                3, 4, activation=jnp.tanh, energy=RunningGaussian(4, momentum=0.7), rngs=rngs
            ),
            "b": pc.PCStack(
                lambda: pc.PCDense(
                    4, 4, activation=jnp.tanh, energy=RunningGaussian(momentum=0.8), rngs=rngs
                ),
                2,
            ),
            "c": pc.PCDense(4, 2, energy=RunningGaussian(momentum=0.5, variance=2.0), rngs=rngs),
        }
    )


def data():
    random = np.random.default_rng(0)
    x = random.normal(size=(24, 3)).astype(np.float32)
    return x, (x[:, :2] ** 2).astype(np.float32)


def variances(net):
    stacked = net.layer("b").stacked.energy
    return [
        np.asarray(e.variance[...]) for e in (net.layer("a").energy, stacked, net.layer("c").energy)
    ]


def train(net, folder=None, **fit):
    rule = pc.learning.PredictiveCoding(DESCENT)
    checkpoints = None if folder is None else pc.Checkpoints(folder)
    trainer = pc.Trainer(
        net, optax.adam(0.01), learning=rule, progress=False, checkpoints=checkpoints
    )
    if fit:
        trainer.fit(pc.data.from_arrays(*data(), batch_size=8), **fit)
    return trainer


@pytest.mark.usefixtures("double")
def test_is_minus_the_normal_log_density_up_to_its_constant():
    random = np.random.default_rng(0)
    activity, prediction = random.normal(size=(2, 5, 4))
    energy = RunningGaussian(4, variance=0.3, least_variance=0.2)
    found = energy(jnp.asarray(activity), jnp.asarray(prediction)) + energy.log_normalizer((4,))
    exact = -stats.norm(prediction, 0.5**0.5).logpdf(activity).sum(axis=1)
    np.testing.assert_allclose(found, exact, rtol=1e-12)


@pytest.mark.usefixtures("double")
def test_precisions_follow_inference_as_in_a_loop_by_hand():
    """Three batches of a chain in NumPy: infer under the precisions so far, then take the errors' mean."""
    rngs, (x, y) = nnx.Rngs(0), (array.astype(np.float64) for array in data())
    net = pc.PCNetwork(
        [
            pc.PCDense(
                below,
                above,
                activation=jnp.tanh if above == 4 else None,
                energy=RunningGaussian(*shape, momentum=0.7, least_variance=0.1),
                rngs=rngs,
            )
            for below, above, shape in ((3, 4, ()), (4, 2, (2,)))
        ]
    )
    in_double(net)
    biases_and_kernels = parameters_of(net)
    weights = [biases_and_kernels[1::-1], biases_and_kernels[3:1:-1]]
    by_hand = [np.array(1.0), np.ones(2)]
    for first in (0, 8, 16):
        rows = slice(first, first + 8)
        # a float for all features, or one for each
        layers = [
            reference.ReferenceLayer(*weight, act, precision=1 / (variance + 0.1))
            for weight, act, variance in zip(weights, ("tanh", "identity"), by_hand, strict=True)
        ]
        start = [reference.feedforward(layers, x[rows])[0], y[rows]]
        ended, _ = reference.infer(layers, x[rows], start, [True, False], 0.1, 6)
        mu = reference.predictions(layers, x[rows], ended)
        squares = [(z - m) ** 2 for z, m in zip(ended, mu, strict=True)]
        new = [squares[0].mean(), squares[1].mean(axis=0)]
        by_hand = [0.7 * old + 0.3 * now for old, now in zip(by_hand, new, strict=True)]
    trainer = pc.Trainer(
        net,
        optax.sgd(0.0),  # so that the weights stay
        learning=pc.learning.PredictiveCoding(DESCENT),
        progress=False,
    )
    trainer.fit(pc.data.from_arrays(x, y, batch_size=8, shuffle=False), epochs=1)
    for layer, expected in zip(net.layers, by_hand, strict=True):
        np.testing.assert_allclose(layer.energy.variance[...], expected, rtol=1e-6)


def test_a_loop_of_ones_own_measures_too_and_inference_alone_does_not():
    net, (x, y) = network(), data()
    before = variances(net)
    net.infer(x, y, inference=DESCENT)
    for left, right in zip(before, variances(net), strict=True):
        np.testing.assert_array_equal(left, right)
    activities, predictions = net.activities(), net.predictions(x)
    net.parameter_gradients(x)
    errors = {name: np.asarray(activities[name] - predictions[name]) ** 2 for name in activities}
    expected = [
        0.7 + 0.3 * errors["a"].mean(axis=0),
        0.8 + 0.2 * errors["b"].mean(axis=(0, 2)),  # of each layer of the stack
        1.0 + 0.5 * errors["c"].mean(),
    ]
    for found, wanted in zip(variances(net), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_resumed_run_is_the_run(tmp_path):
    whole, first, second = network(), network(), network()
    train(whole, num_steps=4)
    train(first, tmp_path, num_steps=2)
    trainer = train(second, tmp_path)
    trainer.restore()
    for left, right in zip(variances(first), variances(second), strict=True):
        np.testing.assert_array_equal(left, right)
    trainer.fit(pc.data.from_arrays(*data(), batch_size=8), num_steps=4)
    for left, right in zip(variances(whole), variances(second), strict=True):
        np.testing.assert_array_equal(left, right)
    assert all(np.ptp(own) > 0 for own in variances(second)[:2])  # and they moved


def test_refusals():
    with pytest.raises(ValueError, match="momentum below 1, got 1"):
        RunningGaussian(momentum=1)
    with pytest.raises(ValueError, match="variance above 0, got 0"):
        RunningGaussian(variance=0)
    with pytest.raises(ValueError, match=r"make it RunningGaussian\(3,\)"):
        RunningGaussian(4)(jnp.ones((2, 3)), jnp.ones((2, 3)))


def test_samples_have_its_variance():
    draws = RunningGaussian(variance=0.5, least_variance=0).sample(
        jnp.zeros((20_000, 1)), jax.random.key(0)
    )
    np.testing.assert_allclose(np.var(draws), 0.5, rtol=0.05)
