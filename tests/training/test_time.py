"""Along time: filter, smoother, forecast and the rule that learns along sequences.

Oracles: the Kalman filter in its steady state (SciPy's Riccati solver), least squares over all steps,
gradients by hand in NumPy.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
import scipy.stats
from flax import nnx

import pcflax as pc

A = np.array([[0.9, 0.2], [-0.1, 0.8]])
C = np.array([[1.0, 0.3], [-0.5, 1.2], [0.2, 0.7]])
SOLVE = pc.inference.LinearSolve()
LENGTH = 40


def linear_system(state_energy=None, dtype=jnp.float32):
    """z_t = A z_{t-1}, x_t = C z_t, with these matrices."""
    network = pc.models.temporal(2, 3, state_energy=state_energy, rngs=nnx.Rngs(0))
    nnx.update(network, jax.tree.map(lambda a: a.astype(dtype), nnx.state(network, nnx.Param)))
    network.layer("z").recurrent.kernel[...] = jnp.asarray(A.T, dtype)
    network.layer("x").linear.kernel[...] = jnp.asarray(C.T, dtype)
    return network


def simulated(length=LENGTH, count=3):
    random = np.random.default_rng(0)
    z, states, seen = np.zeros((count, 2)), [], []
    for _ in range(length):
        z = z @ A.T + random.normal(size=z.shape)
        states.append(z)
        seen.append(z @ C.T + random.normal(size=(count, 3)))
    return np.stack(states, 1), np.stack(seen, 1)


@pytest.mark.usefixtures("double")
def test_with_the_steady_states_precision_it_is_the_kalman_filter():
    before = scipy.linalg.solve_discrete_are(
        A.T, C.T, np.eye(2), np.eye(3)
    )  # covariance before x_t
    gain = before @ C.T @ np.linalg.inv(C @ before @ C.T + np.eye(3))
    _, seen = simulated()
    network = linear_system(pc.energies.FullGaussian(np.linalg.inv(before)), jnp.float64)
    reading = pc.Filter(SOLVE, "z")
    found = pc.training.answer(network, pc.Evidence(targets=jnp.asarray(seen)), reading).values
    mean = np.zeros((3, 2))
    for step in range(LENGTH):
        predicted = mean @ A.T
        mean = predicted + (seen[:, step] - predicted @ C.T) @ gain.T
        np.testing.assert_allclose(found[:, step], mean, atol=1e-6)


@pytest.mark.usefixtures("double")
def test_the_smoother_is_least_squares_over_all_steps():
    length = 8
    _, seen = simulated(length)
    network = linear_system(dtype=jnp.float64)
    question = pc.Evidence(targets=jnp.asarray(seen))
    found = pc.training.answer(network, question, pc.Smoother(SOLVE, "z")).values
    rows = []
    for step in range(length):
        own = np.zeros((2, 2 * length))
        own[:, 2 * step : 2 * step + 2] = np.eye(2)
        if step:
            own[:, 2 * step - 2 : 2 * step] = -A
        below = np.zeros((3, 2 * length))
        below[:, 2 * step : 2 * step + 2] = C
        rows += [own, below]
    matrix = np.concatenate(rows)
    for example in range(3):
        told = np.concatenate([np.concatenate([np.zeros(2), x]) for x in seen[example]])
        best = np.linalg.lstsq(matrix, told, rcond=None)[0].reshape(length, 2)
        np.testing.assert_allclose(found[example], best, atol=1e-6)


@pytest.mark.usefixtures("double")
def test_a_forecast_is_what_the_past_predicts():
    _, seen = simulated(6)
    network, question = linear_system(dtype=jnp.float64), pc.Evidence(targets=jnp.asarray(seen))
    states = pc.training.answer(network, question, pc.Filter(SOLVE, "z")).values
    found = pc.training.answer(network, question, pc.Forecast(SOLVE)).values
    np.testing.assert_allclose(found[:, 0], 0, atol=1e-12)
    np.testing.assert_allclose(found[:, 1:], np.asarray(states)[:, :-1] @ A.T @ C.T, atol=1e-9)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("every", ["sequence", "step"])
def test_learning_along_a_sequence_is_that_by_hand(every):
    length, rate = 4, 0.01
    _, seen = simulated(length)
    network = linear_system(dtype=jnp.float64)
    rule = pc.learning.Temporal(SOLVE, every=every)
    pure, optimizer = pc.networks.split(network), optax.sgd(rate)
    after, _, info = rule.update(
        pure,
        optimizer,
        optimizer.init(pure.parameters),
        pc.Evidence(targets=jnp.asarray(seen)),
        key=jax.random.key(0),
    )
    a, c, before = A.copy(), C.copy(), np.zeros((3, 2))
    on_a, on_c, energy = np.zeros_like(A), np.zeros_like(C), np.zeros(3)
    for step in range(length):
        x, predicted = seen[:, step], before @ a.T
        z = np.linalg.solve(np.eye(2) + c.T @ c, (predicted + x @ c).T).T
        on_z, on_x = z - predicted, x - z @ c.T
        energy += 0.5 * (on_z**2).sum(1) + 0.5 * (on_x**2).sum(1)
        step_a, step_c = -on_z.T @ before / 3, -on_x.T @ z / 3
        if every == "step":
            a, c = a - rate * step_a, c - rate * step_c
        on_a, on_c, before = on_a + step_a, on_c + step_c, z
    if every == "sequence":
        a, c = A - rate * on_a, C - rate * on_c
    np.testing.assert_allclose(after.parameters["z"]["recurrent"]["kernel"], a.T, atol=1e-7)
    np.testing.assert_allclose(after.parameters["x"]["linear"]["kernel"], c.T, atol=1e-7)
    np.testing.assert_allclose(sum(info.energies.values()), energy, rtol=1e-6)


class TestLengths:
    def data(self, padding):
        random = np.random.default_rng(0)
        series = random.normal(size=(4, 6, 3)).astype(np.float32)
        lengths = np.array([6, 3, 1, 5])
        there = np.arange(6) < lengths[:, None]
        series = np.where(there[..., None], series, np.float32(padding))
        return pc.data.from_sequences(None, series, lengths=lengths, batch_size=4, shuffle=False)

    def trained(self, padding):
        rule = pc.learning.Temporal(pc.inference.GradientDescent(0.1, num_steps=5))
        trainer = pc.Trainer(linear_system(), optax.adam(1e-2), learning=rule, progress=False)
        trainer.fit(self.data(padding), num_steps=3)
        return trainer

    def test_what_stands_after_the_end_has_no_say(self):
        zeros, wild = self.trained(0.0), self.trained(np.nan)
        for name in ("z", "x"):
            one, other = (
                jax.tree.leaves(pc.networks.split(t.network).parameters[name])
                for t in (zeros, wild)
            )
            np.testing.assert_array_equal(one, other)
        assert zeros.evaluate(self.data(0.0)) == wild.evaluate(self.data(np.nan))

    def test_a_shorter_sequence_learns_as_it_does_alone(self):
        series = np.random.default_rng(0).normal(size=(1, 6, 3)).astype(np.float32)
        rule = pc.learning.Temporal(pc.inference.GradientDescent(0.1, num_steps=5))
        ends = []
        for data in (
            pc.data.from_sequences(None, series, lengths=[4], batch_size=1),
            pc.data.from_sequences(None, series[:, :4], batch_size=1),
        ):
            trainer = pc.Trainer(linear_system(), optax.sgd(0.1), learning=rule, progress=False)
            trainer.fit(data, num_steps=2)
            ends.append(np.asarray(trainer.network.layer("x").linear.kernel[...]))
        np.testing.assert_allclose(*ends, atol=1e-6)


def test_training_along_time_is_resumed_exactly(tmp_path):
    _, seen = simulated(12, 8)
    data = pc.data.from_sequences(None, seen.astype(np.float32), window=6, batch_size=4)

    def trainer_in(folder):
        rule = pc.learning.Temporal(pc.inference.GradientDescent(0.1, num_steps=3), every="step")
        checkpoints = None if folder is None else pc.Checkpoints(folder)
        return pc.Trainer(
            linear_system(),
            optax.adam(1e-2),
            learning=rule,
            checkpoints=checkpoints,
            progress=False,
        )

    whole = trainer_in(None)
    whole.fit(data, num_steps=4)
    trainer_in(tmp_path).fit(data, num_steps=2)
    resumed = trainer_in(tmp_path)
    resumed.restore()
    resumed.fit(data, num_steps=4)
    ends = [jax.tree.leaves(pc.networks.split(t.network).parameters) for t in (whole, resumed)]
    for one, other in zip(*ends, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.usefixtures("double")
def test_a_full_precision_is_the_log_density_of_a_gaussian():
    random = np.random.default_rng(0)
    root = random.normal(size=(3, 3))
    precision = root @ root.T + np.eye(3)
    z, mu = random.normal(size=(2, 5, 3))
    found = pc.energies.FullGaussian(precision)(jnp.asarray(z), jnp.asarray(mu))
    density = [
        scipy.stats.multivariate_normal(m, np.linalg.inv(precision)).logpdf(x)
        for x, m in zip(z, mu, strict=True)
    ]
    constant = 0.5 * np.linalg.slogdet(precision)[1] - 1.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(found, constant - np.array(density), rtol=1e-8)


class TestRefusals:
    @pytest.mark.parametrize(
        ("precision", "message"),
        [
            (np.ones(3), r"expected a precision of shape \(features, features\), got \(3,\)"),
            (np.array([[1.0, 2.0], [0.0, 1.0]]), "symmetric and positive semidefinite"),
            (-np.eye(2), "symmetric and positive semidefinite"),
        ],
    )
    def test_what_is_no_precision(self, precision, message):
        with pytest.raises(ValueError, match=message):
            pc.energies.FullGaussian(precision)

    def test_a_rule_that_moves_weights_itself_has_no_sum(self):
        rule = pc.learning.IncrementalPC(pc.inference.GradientDescent(0.1))
        with pytest.raises(ValueError, match="give every='step'"):
            pc.learning.Temporal(rule)
        with pytest.raises(ValueError, match="expected every='sequence' or every='step'"):
            pc.learning.Temporal(SOLVE, every="batch")

    def test_windows_and_lengths_that_do_not_fit(self):
        series = np.ones((2, 5, 3))
        with pytest.raises(ValueError, match="window 6 is longer than the 5 steps"):
            pc.data.from_sequences(None, series, window=6, batch_size=1)
        with pytest.raises(ValueError, match="horizon 5 leaves no step"):
            pc.data.from_sequences(series, None, horizon=5, batch_size=1)

    def test_an_unknown_node(self):
        question = pc.Evidence(targets=jnp.ones((2, 5, 3)))
        with pytest.raises(ValueError, match="no layer 'y'"):
            pc.training.answer(linear_system(), question, pc.Filter(SOLVE, "y"))
