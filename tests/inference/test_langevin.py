"""Langevin inference samples the posterior: steps, bias and Monte Carlo error from formulas."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from tests.conftest import Chain, fully_optimized, in_double
from tests.references import numpy_pc as reference

KEY = jax.random.key(7)

pytestmark = [pytest.mark.usefixtures("double"), pytest.mark.slow]


def infer(chain, inference, **options):
    options = {"key": KEY, **options}
    return chain.network.infer(chain.inputs, chain.targets, inference=inference, **options)


def start_of(chain):
    return [*reference.feedforward(chain.reference, chain.inputs)[:-1], chain.targets]


def arrays(activities):
    return [np.asarray(activity) for activity in activities.values()]


def test_temperature_0_is_gradient_descent_step_for_step():
    """And needs no key."""
    chain = Chain()
    cold = pc.inference.Langevin(0.07, temperature=0.0, burn_in=5, num_samples=3, thinning=2)
    descent = pc.inference.GradientDescent(optax.sgd(0.07), num_steps=11)
    sampled, descended = infer(chain, cold, key=None, trace=True), infer(chain, descent, trace=True)
    for got, expected in zip(arrays(sampled.activities), arrays(descended.activities), strict=True):
        # z - h g and z + (-h) g differ by no more than the last bit
        np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-15)
    assert (sampled.num_steps == 11).all()
    np.testing.assert_allclose(sampled.trace.energy, descended.trace.energy, rtol=1e-12)
    np.testing.assert_allclose(sampled.trace.residual, descended.trace.residual, rtol=1e-10)


def test_a_step_is_that_of_the_reference_given_its_noise():
    """The noise of a key is seen at one step size and temperature, and then expected at others.

    From the feedforward start, (z - z at temperature 0) / sqrt(2 step_size temperature) is the noise
    whatever those two are; a square root too few would not cancel. That the noise has variance 1, and
    so the factor 2 is right, is the next test's.
    """
    chain, noises = Chain(), None
    for step_size, temperature in ((0.1, 1.0), (0.03, 1.0), (0.1, 0.2)):
        walk = pc.inference.Langevin(step_size, temperature=temperature)
        z = arrays(infer(chain, walk).activities)
        if noises is None:
            cold = dataclasses.replace(walk, temperature=0.0)
            scale = np.sqrt(2 * step_size * temperature)
            still = arrays(infer(chain, cold).activities)
            noises = [(hot - cold) / scale for hot, cold in zip(z, still, strict=True)]
        expected = reference.langevin_step(
            chain.reference,
            chain.inputs,
            start_of(chain),
            chain.free(),
            step_size,
            temperature,
            noises,
        )
        for got, activity in zip(z, expected, strict=True):
            np.testing.assert_allclose(got, activity, rtol=1e-11, atol=1e-13)
    np.testing.assert_array_equal(z[-1], chain.targets)


def test_the_noise_is_white_and_of_variance_1():
    """Across examples, layers, elements and steps: one key used twice would show as a correlation."""
    flat = pc.energies.Gaussian(0.0)
    layers = {
        "root": pc.PCRoot(5, energy=flat),
        "out": pc.PCDense(5, 3, energy=flat, rngs=nnx.Rngs(0)),
    }
    network = in_double(pc.PCNetwork(layers))
    steps = 3000
    # sqrt(2 step_size) is 1, and nothing pulls: the walk's increments are the noise
    walk = pc.inference.Langevin(0.5, num_samples=steps, keep_samples=True)
    four = {"root": pc.Clamp(np.zeros((4, 5)), np.zeros(5, bool))}  # only tells the batch size
    samples = network.infer(clamps=four, inference=walk, key=KEY).samples
    noise = np.concatenate(
        [np.diff(np.asarray(leaf), axis=0).reshape(steps - 1, -1) for leaf in samples.values()],
        axis=1,
    )
    assert noise.shape == (steps - 1, 4 * (5 + 3))
    # standard errors of a mean, a variance and a correlation; the largest of 500 lies within 4.5
    error = 4.5 / np.sqrt(steps)
    np.testing.assert_allclose(noise.mean(axis=0), 0.0, atol=error)
    np.testing.assert_allclose(noise.var(axis=0), 1.0, atol=np.sqrt(2) * error)
    for lag in (0, 1):
        both = np.corrcoef(noise[lag:].T, noise[: steps - 1 - lag].T)[:32, 32:]
        np.testing.assert_allclose(both, np.eye(32) if lag == 0 else 0.0, atol=error)
    # and normal: the fourth moment is 3, with variance 96 / n
    np.testing.assert_allclose((noise**4).mean(), 3.0, atol=4.5 * np.sqrt(96 / noise.size))


@pytest.fixture(scope="module")
def posterior():
    """Two observations of a linear Gaussian chain with a free root, four hundred walkers each.

    Returns samples (samples, 2, walkers, 7), the means (2, 7) and H (7, 7).
    """
    walkers, step_size = 400, 0.1
    with jax.enable_x64(True):
        chain = Chain(widths=(3, 4, 2), activation="identity", root=True, precision=2.0)
    root, hidden, output = chain.reference
    targets = chain.targets[:2]
    # burn-in and distance of several times 1/(step_size * lambda_min), which is 68 steps
    walk = pc.inference.Langevin(
        step_size, burn_in=500, num_samples=20, thinning=210, keep_samples=True
    )
    with jax.enable_x64(True), fully_optimized():
        result = chain.network.infer(
            None, np.repeat(targets, walkers, axis=0), inference=walk, key=KEY
        )
    samples = np.concatenate([result.samples["layer_0"], result.samples["layer_1"]], axis=-1)
    w1, w2 = hidden.kernel, output.kernel
    hessian = np.block(
        [
            [root.precision * np.eye(3) + hidden.precision * w1 @ w1.T, -hidden.precision * w1],
            [
                -hidden.precision * w1.T,
                hidden.precision * np.eye(4) + output.precision * w2 @ w2.T,
            ],
        ]
    )
    linear = np.concatenate(
        [
            np.tile(-hidden.precision * w1 @ hidden.bias, (2, 1)),
            hidden.precision * hidden.bias + output.precision * (targets - output.bias) @ w2.T,
        ],
        axis=1,
    )
    assert 1 / (step_size * np.linalg.eigvalsh(hessian)[0]) < 68
    means = np.linalg.solve(hessian, linear.T).T
    return samples.reshape(-1, 2, walkers, 7), means, hessian, step_size


def test_samples_of_a_linear_gaussian_chain_have_the_mean_of_the_posterior(posterior):
    """H^-1 b, each example's own: the discretisation does not bias it."""
    samples, means, hessian, step_size = posterior
    precisions, axes = np.linalg.eigh(hessian)
    errors = (samples.mean(axis=(0, 2)) - means) @ axes
    # successive samples are correlated by less than exp(-3), so 4.5 standard errors
    variances = 1 / (precisions * (1 - step_size * precisions / 2))
    error = 4.5 * np.sqrt(variances / samples[:, 0, :, 0].size)
    assert (np.abs(errors) < error).all()
    assert (np.abs((means[0] - means[1]) @ axes) > 10 * error).any()


def test_samples_of_a_linear_gaussian_chain_have_the_covariance_of_the_posterior(posterior):
    """H^-1, biased by the step as documented: variance 1/(p (1 - step_size p / 2)) of precision p.

    C = (I - h H) C (I - h H) + 2 h I is solved by that in each eigenvector of H.
    """
    samples, means, hessian, step_size = posterior
    precisions, axes = np.linalg.eigh(hessian)
    errors = (samples - means[:, None]).reshape(-1, 7) @ axes
    covariance = errors.T @ errors / len(errors)
    variances = 1 / (precisions * (1 - step_size * precisions / 2))
    # of an entry: sqrt((C_ii C_jj + C_ij^2) / n), 4.5 of them
    error = 4.5 * np.sqrt((np.outer(variances, variances) + np.diag(variances**2)) / len(errors))
    assert (np.abs(covariance - np.diag(variances)) < error).all()
    # fine enough to see the bias: half again as much variance where the step is a third of 2/p
    seen = np.abs(covariance.diagonal() - 1 / precisions) > error.diagonal()
    np.testing.assert_array_equal(seen[-2:], True)
    assert 1.4 < covariance[-1, -1] * precisions[-1] < 1.6


PATH = pc.inference.Langevin(0.05, num_samples=11, keep_samples=True)
STATISTIC = pc.inference.Langevin(
    0.05,
    burn_in=3,
    num_samples=4,
    thinning=2,
    keep_samples=True,
    statistic=lambda z: {
        "second": z["layer_1"] ** 2,
        "across": z["layer_0"][:, 0] * z["layer_2"][:, 1],
    },
)


def test_kept_samples_are_every_thinning_steps_after_the_burn_in():
    """Out of the path of the same walk with every step kept."""
    chain = Chain()
    path, result = infer(chain, PATH), infer(chain, STATISTIC, trace=True)
    assert (result.num_steps == 3 + 4 * 2).all()
    for name, layer in zip(chain.network.names, chain.reference, strict=True):
        samples = result.samples[name]
        assert samples.shape == (4, 7, len(layer.bias))
        # the activity after step t is path[t - 1]; samples are after steps 5, 7, 9 and 11
        np.testing.assert_allclose(samples, path.samples[name][4::2], rtol=1e-12, atol=1e-13)
        np.testing.assert_array_equal(result.activities[name], samples[-1])
        assert np.ptp(samples, axis=0).max() > 0 or name == "layer_2"
    # energies of the trace are those of the samples, where they were taken
    assert result.trace.energy.shape == (12, 7)
    for number in range(4):
        z = [np.asarray(result.samples[name][number]) for name in chain.network.names]
        energies = sum(reference.energies(chain.reference, chain.inputs, z))
        np.testing.assert_allclose(result.trace.energy[5 + 2 * number], energies, rtol=1e-10)


def test_the_expectation_is_the_mean_of_the_statistic_over_the_samples():
    chain = Chain()
    result = infer(chain, STATISTIC)
    z = {name: np.asarray(leaf) for name, leaf in result.samples.items()}
    np.testing.assert_allclose(
        result.expectation["second"], (z["layer_1"] ** 2).mean(axis=0), rtol=1e-12
    )
    across = (z["layer_0"][..., 0] * z["layer_2"][..., 1]).mean(axis=0)
    np.testing.assert_allclose(result.expectation["across"], across, rtol=1e-12)
    without = infer(chain, dataclasses.replace(STATISTIC, keep_samples=False))
    assert without.samples is None
    np.testing.assert_allclose(
        without.expectation["second"], result.expectation["second"], rtol=1e-12
    )


def test_the_expectation_of_a_condition_is_its_frequency():
    """P(z > 0.1), the plainest question to a posterior, is a statistic of truth values."""
    chain = Chain()
    above = pc.inference.Langevin(
        0.3, num_samples=8, keep_samples=True, statistic=lambda z: z["layer_1"] > 0.1
    )
    result = infer(chain, above)
    frequency = (np.asarray(result.samples["layer_1"]) > 0.1).mean(axis=0)
    assert len(np.unique(frequency)) > 3
    np.testing.assert_allclose(result.expectation, frequency, rtol=1e-12)


def test_no_example_draws_with_the_others():
    """Other inputs and targets beside it leave an example's samples as they are."""
    before, chain = infer(Chain(), PATH), Chain()
    chain.inputs[:3] += 1.0
    chain.targets[4:] -= 2.0
    after = infer(chain, PATH)
    for name in ("layer_0", "layer_1"):
        np.testing.assert_allclose(
            after.samples[name][:, 3], before.samples[name][:, 3], rtol=1e-11, atol=1e-13
        )


def test_held_elements_are_held_in_every_sample():
    chain = Chain()
    mask = np.array([True, False, True, False, False])
    held = pc.Clamp(np.full((7, 5), 0.3), mask)
    samples = np.asarray(infer(chain, PATH, clamps={"layer_0": held}).samples["layer_0"])
    assert (samples[..., mask] == 0.3).all()
    assert (np.ptp(samples[..., ~mask], axis=0) > 0.01).all()


def test_another_key_draws_other_samples():
    chain = Chain()
    first, again = infer(chain, PATH), infer(chain, PATH)
    other = infer(chain, PATH, key=jax.random.key(8))
    np.testing.assert_array_equal(again.samples["layer_0"], first.samples["layer_0"])
    assert not np.isclose(other.samples["layer_0"], first.samples["layer_0"]).any()


def test_a_walk_without_a_key_is_refused():
    with pytest.raises(ValueError, match=r"Langevin inference needs a key: pass key=jax.random"):
        infer(Chain(), PATH, key=None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step_size": "0.1"}, "expected step_size to be a number, got '0.1'"),
        ({"temperature": None}, "expected temperature to be a number, got None"),
        ({"burn_in": 1.5}, "expected an int burn_in, got 1.5"),
        ({"num_samples": True}, "expected an int num_samples, got True"),
    ],
)
def test_what_is_no_number_is_refused(arguments, message):
    with pytest.raises(TypeError, match=f"Langevin {message}"):
        pc.inference.Langevin(**{"step_size": 0.1, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step_size": 0.0}, "expected a step_size above 0, got 0.0"),
        ({"step_size": float("nan")}, "expected a step_size above 0, got nan"),
        ({"step_size": float("inf")}, "expected a step_size above 0, got inf"),
        ({"temperature": -1.0}, "expected a temperature of at least 0, got -1.0"),
        ({"burn_in": -1}, "expected burn_in of at least 0, got -1"),
        ({"num_samples": 0}, "expected num_samples of at least 1, got 0"),
        ({"thinning": 0}, "expected thinning of at least 1, got 0"),
        ({"tolerance": 0.1}, "samples for a fixed number of steps and takes no tolerance"),
        ({"max_steps": 9}, "samples for a fixed number of steps and takes no tolerance"),
        (
            {"burn_in": 2, "num_samples": 3, "thinning": 4, "num_steps": 9},
            r"takes burn_in \+ num_samples \* thinning = 14 steps, got num_steps=9; leave it out",
        ),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=f"Langevin {message}"):
        pc.inference.Langevin(**{"step_size": 0.1, **arguments})


class TestPreconditioner:
    PRECISION = np.array([0.25, 1.0, 100.0])

    def draw(self, sampler, rows=6000):
        network = pc.PCNetwork({"root": pc.PCRoot(3, energy=pc.energies.Gaussian(self.PRECISION))})
        free = {"root": pc.Clamp(np.zeros((rows, 3)), np.zeros(3, bool))}
        result = network.infer(clamps=free, inference=sampler, key=KEY)
        return np.asarray(result.activities["root"])

    def test_all_elements_mix_alike_and_keep_their_distribution(self):
        """With M = 1/p all have the variance 1/(p (1 - h/2)); h = 0.5 without M is unstable at p = 100."""
        own = {"root": 1 / self.PRECISION}
        draw = self.draw(pc.inference.Langevin(0.5, burn_in=20, preconditioner=own))
        expected = 1 / (self.PRECISION * (1 - 0.5 / 2))
        np.testing.assert_allclose(draw.var(axis=0), expected, rtol=5 * (2 / 6000) ** 0.5)
        np.testing.assert_allclose(draw.mean(axis=0), 0, atol=5 * (expected.max() / 6000) ** 0.5)

    def test_one_number_is_another_step_size(self):
        scaled = pc.inference.Langevin(0.004, burn_in=5, preconditioner={"root": 2})
        plain = pc.inference.Langevin(0.008, burn_in=5)
        np.testing.assert_allclose(self.draw(scaled, 3), self.draw(plain, 3), rtol=1e-12)

    def test_a_layer_that_is_not_named_has_1(self):
        chain = Chain()
        sampler = pc.inference.Langevin(0.01, burn_in=3, preconditioner={"layer_1": 3.0})
        ones = dataclasses.replace(sampler, preconditioner={"layer_0": 1.0, "layer_1": 3.0})
        for got, expected in zip(
            arrays(infer(chain, sampler).activities),
            arrays(infer(chain, ones).activities),
            strict=True,
        ):
            np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-14)

    def test_what_is_no_preconditioner_is_refused(self):
        for wrong in (0.0, -1.0, np.array([1.0, np.nan]), "adam"):
            with pytest.raises(ValueError, match="preconditioner of positive numbers for 'root'"):
                pc.inference.Langevin(0.1, preconditioner={"root": wrong})
        with pytest.raises(TypeError, match="expected preconditioner such as"):
            pc.inference.Langevin(0.1, preconditioner=0.5)
        for wrong, message in (
            ({"rot": 1.0}, "none of the layers root; did you mean 'root'"),
            (
                {"root": np.ones(2)},
                r"of shape \(2,\) for layer 'root', of which one example has \(3,\)",
            ),
        ):
            with pytest.raises(ValueError, match=message):
                self.draw(pc.inference.Langevin(0.1, preconditioner=wrong), 2)
