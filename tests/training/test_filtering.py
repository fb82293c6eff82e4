"""Readings along time. Oracles: the Kalman filter and its steady state, and one dense solve of a sequence."""

import jax.numpy as jnp
import lineax
import numpy as np
import optax
import pytest
from flax import nnx
from scipy.linalg import solve_discrete_are

import pcflax as pc

pytestmark = pytest.mark.slow

EXACT = pc.inference.LinearSolve(lineax.Cholesky())
RANDOM = np.random.default_rng(0)
A, B = np.array([[0.9, 0.2], [-0.3, 0.8]]), np.array([[1.0], [0.5]])
C = np.array([[1.0, 0.3], [0.2, -0.8], [0.5, 0.5]])
U, X = RANDOM.normal(size=(4, 7, 1)), RANDOM.normal(size=(4, 7, 3))


def system(state_energy=None):
    network = pc.models.temporal(2, 3, controls=1, state_energy=state_energy, rngs=nnx.Rngs(0))
    network.layer("z").recurrent.kernel.set_value(jnp.asarray(A.T))
    network.layer("z").control.kernel.set_value(jnp.asarray(B.T))
    network.layer("x").linear.kernel.set_value(jnp.asarray(C.T))
    return network


def steady():
    """The covariance that a Kalman filter predicts with in the end, and its gain."""
    covariance = solve_discrete_are(A.T, C.T, np.eye(2), np.eye(3))
    return covariance, covariance @ C.T @ np.linalg.inv(C @ covariance @ C.T + np.eye(3))


def filtered(gain, known=None):
    """A filter of this gain: its states and what it predicts of each observation."""
    z, states, ahead = np.zeros((4, 2)), [], []
    for t in range(7):
        z = z @ A.T + U[:, t] @ B.T
        ahead.append(z @ C.T)
        seen = np.ones((4, 1)) if known is None else known[:, t, None]
        z = z + seen * ((X[:, t] - ahead[-1]) @ gain.T)
        states.append(z)
    return np.stack(states, 1), np.stack(ahead, 1)


def read(reading, evidence=None, network=None):
    network = system() if network is None else network
    return pc.training.answer(network, evidence or pc.Evidence(U, X), reading)


def test_with_the_precision_of_the_steady_state_it_is_the_kalman_filter(double):
    covariance, gain = steady()
    network = system(pc.energies.FullGaussian(np.linalg.inv(covariance)))
    states, ahead = filtered(gain)
    np.testing.assert_allclose(
        read(pc.Filter(EXACT, "z"), None, network).values, states, atol=1e-10
    )
    answer = read(pc.Forecast(EXACT), None, network)
    np.testing.assert_allclose(answer.values, ahead, atol=1e-10)
    np.testing.assert_array_equal(answer.truth, X)


def test_a_window_goes_on_from_the_one_before(double):
    """Two windows, the second given the first's last state, are the whole series."""
    whole = read(pc.Filter(EXACT, "z")).values
    first = read(pc.Filter(EXACT, "z"), pc.Evidence(U[:, :3], X[:, :3])).values
    went_on = pc.Evidence({"u": U[:, 3:], "z@-1": first[:, -1]}, X[:, 3:])
    second = read(pc.Filter(EXACT, "z"), went_on).values
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), whole, atol=1e-12)


def test_with_a_unit_precision_it_is_the_filter_of_that_gain(double):
    gain = C.T @ np.linalg.inv(C @ C.T + np.eye(3))
    states, _ = filtered(gain)
    answer = read(pc.Filter(EXACT, "z"), pc.Evidence(U, X, clamps={"z": X[..., :2]}))
    np.testing.assert_allclose(answer.values, states, atol=1e-10)
    np.testing.assert_array_equal(answer.truth, X[..., :2])  # hidden, and compared with


def test_where_nothing_is_seen_it_goes_on_by_itself(double):
    known = np.ones((4, 7), bool)
    known[:, 2:4] = False
    gain = C.T @ np.linalg.inv(C @ C.T + np.eye(3))
    states, _ = filtered(gain, known)
    seen = pc.Clamp(np.where(known[..., None], X, np.nan), known[..., None])
    answer = read(pc.Filter(EXACT, "z"), pc.Evidence(U, seen))
    np.testing.assert_allclose(answer.values, states, atol=1e-10)


def test_a_smoother_minimises_over_all_steps_at_once(double):
    """F of one sequence is quadratic in all z: H z = b, by NumPy; the Kalman smoother's mean."""
    steps = 7
    size = 2 * steps
    move = np.eye(size) - np.kron(np.eye(steps, k=-1), A)  # z_t - A z_{t-1}
    see = np.kron(np.eye(steps), C)
    hessian = move.T @ move + see.T @ see
    answer = read(pc.Smoother(EXACT, "z"))
    for row in range(4):
        control = (U[row] @ B.T).reshape(-1)
        best = np.linalg.solve(hessian, move.T @ control + see.T @ X[row].reshape(-1))
        np.testing.assert_allclose(answer.values[row].reshape(-1), best, atol=1e-9)
        errors = move @ best - control, see @ best - X[row].reshape(-1)
        energy = sum((error**2).sum() for error in errors) / 2
        np.testing.assert_allclose(answer.energy[row], energy, rtol=1e-9)


def test_a_smoother_of_a_sequence_that_ends_early_is_that_of_the_short_one(double):
    known = np.arange(7) < np.array([7, 3, 1, 5])[:, None]
    filled = [np.where(known[..., None], array, np.nan) for array in (U, X)]
    answer = read(
        pc.Smoother(EXACT, "z"), pc.Evidence(filled[0], pc.Clamp(filled[1], known[..., None]))
    )
    short = read(pc.Smoother(EXACT, "z"), pc.Evidence(U[1:2, :3], X[1:2, :3]))
    np.testing.assert_allclose(answer.values[1, :3], short.values[0], atol=1e-9)
    np.testing.assert_allclose(answer.energy[1], short.energy[0], rtol=1e-9)


def test_every_algorithm_smooths(double):
    """Newton's method and descent reach the minimum that the exact solver finds."""
    exact = read(pc.Smoother(EXACT, "z")).values
    for inference in (
        pc.inference.GaussNewton(tolerance=1e-9, max_steps=50),
        pc.inference.GradientDescent(0.2, num_steps=800),
    ):
        np.testing.assert_allclose(read(pc.Smoother(inference, "z")).values, exact, atol=1e-6)


def test_the_trainer_evaluates_states_that_the_data_know():
    states = filtered(steady()[1])[0] + 0.1
    known = np.arange(7) < np.array([7, 3, 1, 5])[:, None]
    data = pc.data.from_sequences(
        U.astype("f"),
        X.astype("f"),
        clamps={"z": states.astype("f")},
        lengths=known.sum(1),
        batch_size=3,
    )
    network = system()
    for parameter in (network.layer("z").recurrent, network.layer("z").control):
        parameter.kernel.set_value(parameter.kernel[...].astype("f"))
    trainer = pc.Trainer(
        network, optax.sgd(0.0), learning=pc.learning.Temporal(EXACT), progress=False
    )
    found = trainer.evaluate(data, reads=pc.Filter(EXACT, "z"))["squared_error"]
    gain = C.T @ np.linalg.inv(C @ C.T + np.eye(3))
    errors = ((filtered(gain)[0] - states) ** 2).mean(-1)
    expected = np.mean((errors * known).sum(1) / known.sum(1))
    assert found == pytest.approx(expected, rel=1e-4)
    rows = trainer.predict(data, reads=pc.Filter(EXACT, "z"))
    assert rows.shape == (4, 7, 2)
    trainer.reads = pc.Filter(EXACT, "z")  # which a fit took for a question without time
    assert trainer.fit(data, num_steps=1, eval_data=data)["eval/squared_error"] == [found]


def test_wrong_questions_are_told():
    with pytest.raises(TypeError, match="Filter expected an inference algorithm"):
        pc.Filter(0.1, "z")
    with pytest.raises(TypeError, match="Smoother expected an inference algorithm"):
        pc.Smoother(0.1, "z")
    with pytest.raises(TypeError, match="Forecast expected an inference algorithm"):
        pc.Forecast(0.1)
    for reading in (pc.Filter, pc.Smoother):
        with pytest.raises(ValueError, match="no layer 'y'; the layers are z, x"):
            read(reading(EXACT, "y"))
        with pytest.raises(ValueError, match="a sequence without time"):
            read(reading(EXACT, "z"), pc.Evidence(U[:, 0], X[:, 0]))
    with pytest.raises(ValueError, match="a sequence without time"):
        read(pc.Forecast(EXACT), pc.Evidence(U[:, 0], X[:, 0]))
