"""The parts of an update. Oracles: the rule itself, whose parts they are; a clock that is told the time."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from pcflax.analysis import profile

pytestmark = pytest.mark.slow

NETWORK = pc.models.mlp(3, 5, 2, activation=jnp.tanh, rngs=nnx.Rngs(0))
DESCENT = pc.inference.GradientDescent(0.1, num_steps=4)
RANDOM = np.random.default_rng(0)
BATCH = pc.Evidence(
    RANDOM.standard_normal((6, 3), np.float32), RANDOM.standard_normal((6, 2), np.float32)
)


def measure(rule, **options):
    return pc.analysis.profile_step(
        NETWORK, BATCH, learning=rule, optimizer=optax.adam(1e-2), **{"repeats": 1, **options}
    )


def test_the_parts_one_after_the_other_are_the_rule():
    rule, key = pc.learning.PredictiveCoding(DESCENT), jax.random.key(3)
    pure = pc.networks.split(NETWORK)
    start, inference, gradient = map(jax.jit, profile._parts(rule, key))
    activities = inference(pure, BATCH, start(pure, BATCH))
    gradients, energies = gradient(pure, BATCH, activities)
    expected, info = jax.jit(rule.gradients)(pure, BATCH, key=key)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradients, expected)
    for name, energy in info.energies.items():
        np.testing.assert_allclose(energies[name], energy, rtol=1e-5)


def test_medians_and_what_is_left(monkeypatch):
    """Each program takes the next of these times, in turn: of each the median counts."""
    durations = [1, 10, 2, 1, 20, 3, 10, 2, 1, 30, 9, 9, 9, 9, 99]
    clock = np.cumsum(np.stack([np.zeros(15), durations], axis=1).ravel()) / 1e3
    times = iter(clock)
    monkeypatch.setattr(profile.time, "perf_counter", lambda: next(times))
    found = measure(pc.learning.PredictiveCoding(DESCENT), repeats=3)
    assert found.batch_size == 6
    medians = np.median(np.reshape(durations, (3, 5)), axis=0)
    names = ["start", "inference", "weight gradient", "optimizer"]
    assert list(found.parts) == names
    np.testing.assert_allclose([*found.parts.values(), found.update], medians)
    assert found.remainder == pytest.approx(medians[4] - medians[:4].sum())
    lines = str(found).splitlines()
    assert lines[1].split() == ["start", "3.000", "10"]
    assert lines[-1].split() == ["update", "30.000", "100"]


def test_rules_have_the_parts_that_they_are_made_of():
    assert list(measure(pc.learning.Backprop()).parts) == ["gradient", "optimizer"]
    whole = measure(pc.learning.IncrementalPC(DESCENT))
    assert not whole.parts
    assert whole.remainder == whole.update > 0


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match=r"profile_step expected repeats of at least 1, got 0"):
        measure(pc.learning.Backprop(), repeats=0)
    with pytest.raises(TypeError, match="profile_step expected learning"):
        measure(DESCENT)


def test_calls_end_at_stops():
    from pcflax.training.calendar import Calendar

    calendar = Calendar(total=20, log=8, evaluate=None, save=None, epoch=None, stops=(2, 13, 25))
    ends = list(itertools.accumulate(range(5), lambda step, _: calendar.next(step), initial=0))
    assert ends[:6] == [0, 2, 8, 13, 16, 20]
