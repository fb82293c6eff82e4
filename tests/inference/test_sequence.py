"""A sequence of algorithms: each begins where the one before ended, and forgets all else."""

import jax
import numpy as np
import optax
import pytest

import pcflax as pc
from tests.conftest import Chain
from tests.references import numpy_pc as reference

CLOSE = {"rtol": 1e-10, "atol": 1e-12}  # float64 rounding
SGD = optax.sgd(0.07)
THREE, FOUR = (pc.inference.GradientDescent(SGD, num_steps=count) for count in (3, 4))
HEAVY = pc.inference.GradientDescent(optax.sgd(0.07, momentum=0.8), num_steps=5)
ADAPTIVE = pc.inference.GradientDescent(SGD, tolerance=0.05, max_steps=30)

pytestmark = pytest.mark.usefixtures("double")


def expected_of(chain, *parts):
    """The reference's descents in a row, momentum anew in each: z, and F (steps + 1, B)."""
    z = [*reference.feedforward(chain.reference, chain.inputs)[:-1], chain.targets]
    energies = []
    for num_steps, momentum in parts:
        z, energy = reference.infer(
            chain.reference, chain.inputs, z, chain.free(), 0.07, num_steps, momentum
        )
        energies.append(energy[:-1])
    return z, np.concatenate([*energies, energy[-1:]])


def test_plain_descents_in_a_row_are_one_descent_and_so_are_their_traces():
    """The point where one ends and the next begins stands in the trace once."""
    chain = Chain()
    result = chain.network.infer(
        chain.inputs, chain.targets, inference=pc.inference.Sequence(THREE, FOUR), trace=True
    )
    activities, energies = expected_of(chain, (7, 0.0))
    for got, activity in zip(result.activities.values(), activities, strict=True):
        np.testing.assert_allclose(got, activity, **CLOSE)
    assert (result.num_steps == 7).all()
    np.testing.assert_allclose(result.trace.energy, energies, **CLOSE)
    assert result.trace.residual.shape == (8, 7)
    np.testing.assert_allclose(result.trace.residual[-1], result.residual, **CLOSE)


def test_momentum_starts_anew_in_each():
    chain = Chain()
    result = chain.network.infer(
        chain.inputs, chain.targets, inference=pc.inference.Sequence(HEAVY, HEAVY)
    )
    anew, _ = expected_of(chain, (5, 0.8), (5, 0.8))
    through, _ = expected_of(chain, (10, 0.8))
    for got, activity in zip(result.activities.values(), anew, strict=True):
        np.testing.assert_allclose(got, activity, **CLOSE)
    assert not np.allclose(result.activities["layer_0"], through[0], atol=1e-3)


def test_coordinates_change_between_them():
    """Errors first, then activities, from the activities that those errors stand for."""
    chain = Chain()
    errors = pc.inference.ErrorCoordinates(THREE)
    together = chain.network.infer(
        chain.inputs, chain.targets, inference=pc.inference.Sequence(errors, FOUR), trace=True
    )
    half_way = chain.network.infer(chain.inputs, chain.targets, inference=errors)
    z, _ = reference.infer(
        chain.reference,
        chain.inputs,
        [np.asarray(activity) for activity in half_way.activities.values()],
        chain.free(),
        0.07,
        4,
    )
    for got, activity in zip(together.activities.values(), z, strict=True):
        np.testing.assert_allclose(got, activity, **CLOSE)
    np.testing.assert_allclose(together.trace.energy[3], half_way.energy, **CLOSE)
    assert together.trace.energy.shape == (8, 7)


def test_the_steps_of_an_adaptive_one_are_each_examples_own():
    chain = Chain()
    alone = chain.network.infer(chain.inputs, chain.targets, inference=ADAPTIVE)
    assert len(set(np.asarray(alone.num_steps))) > 2
    nested = pc.inference.Sequence(pc.inference.Sequence(ADAPTIVE), THREE)
    together = chain.network.infer(chain.inputs, chain.targets, inference=nested)
    np.testing.assert_array_equal(together.num_steps, alone.num_steps + 3)


def test_it_stops_at_a_tolerance_where_the_last_one_does():
    """Of one that ends with a fixed number of steps no share has converged, and none is told."""
    chain, optimizer = Chain(), optax.sgd(0.1)
    batch = pc.Evidence(chain.inputs, chain.targets)
    for algorithms, share in (((ADAPTIVE, THREE), None), ((THREE, ADAPTIVE), 5 / 7)):
        inference = pc.inference.Sequence(*algorithms)
        assert inference.stops_at_tolerance == (share is not None)
        rule = pc.learning.PredictiveCoding(inference)
        step = pc.training.make_step(chain.network, optimizer, rule)
        state = pc.training.TrainState.of(chain.network, optimizer)
        assert step(state, batch, jax.random.key(0))[1].converged == pytest.approx(share)


def test_each_draws_its_own_noise():
    """Were the key the same, the second walk would take the first one's steps again."""
    walk = pc.inference.Langevin(0.05, num_samples=1)
    network = pc.PCNetwork({"root": pc.PCRoot(4, energy=pc.energies.Gaussian(0.0))})
    held = {"root": pc.Clamp(np.zeros((6, 4)), np.array([True, False, False, False]))}
    key = jax.random.key(3)
    # without a force, the activity is the sum of the noises
    both = network.infer(clamps=held, inference=pc.inference.Sequence(walk, walk), key=key)
    one = network.infer(clamps=held, inference=pc.inference.Sequence(walk), key=key)
    first = np.asarray(one.activities["root"])[:, 1:]
    second = np.asarray(both.activities["root"])[:, 1:] - first
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.8
    assert not np.isclose(first, second).any()


@pytest.mark.parametrize(
    ("algorithms", "error", "message"),
    [
        ((), ValueError, "Sequence expected at least one inference algorithm, got none"),
        ((THREE, "newton"), TypeError, "Sequence expected an inference algorithm .* got 'newton'"),
    ],
)
def test_refusals(algorithms, error, message):
    with pytest.raises(error, match=message):
        pc.inference.Sequence(*algorithms)
