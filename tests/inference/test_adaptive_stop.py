"""The adaptive stop: every example stops on its own, where its vector field is at rest."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from tests.conftest import Chain, in_double, infer_traced
from tests.references import numpy_pc as reference

TOLERANCE, MOST = 1e-3, 150  # one of these examples is not done by then
PLAIN = pc.inference.GradientDescent(optax.sgd(0.1), tolerance=TOLERANCE, max_steps=MOST)
MOMENTUM = pc.inference.GradientDescent(
    optax.sgd(0.05, momentum=0.8), tolerance=TOLERANCE, max_steps=MOST
)
# Float64 rounding over the steps.
CLOSE = {"rtol": 1e-9, "atol": 1e-11}

pytestmark = pytest.mark.usefixtures("double")


def infer(chain, inference=PLAIN, trace=False):
    return chain.network.infer(chain.inputs, chain.targets, inference=inference, trace=trace)


def start_of(chain):
    return [*reference.feedforward(chain.reference, chain.inputs)[:-1], chain.targets]


@functools.cache
def hand_rolled(momentum):
    """The loop of each example alone, in NumPy: where it ends, and after how many steps."""
    chain = Chain()
    step_size = 0.05 if momentum else 0.1
    return reference.infer_adaptively(
        chain.reference,
        chain.inputs,
        start_of(chain),
        chain.free(),
        step_size,
        TOLERANCE,
        MOST,
        momentum=momentum,
    )


@pytest.mark.parametrize(("inference", "momentum"), [(PLAIN, 0.0), (MOMENTUM, 0.8)])
def test_each_example_takes_the_steps_of_its_own_hand_rolled_loop(inference, momentum):
    """Were the stop the batch's, all counts would be the slowest example's."""
    result = infer(Chain(), inference)
    expected, steps = hand_rolled(momentum)
    assert len(set(steps)) > 3
    np.testing.assert_array_equal(result.num_steps, steps)
    for got, activity in zip(result.activities.values(), expected, strict=True):
        np.testing.assert_allclose(got, activity, **CLOSE)


def test_the_residual_is_at_most_the_tolerance_exactly_where_an_example_stopped():
    result = infer(Chain())
    stopped = np.asarray(result.num_steps) < MOST
    assert stopped.any()
    assert not stopped.all()
    np.testing.assert_array_equal(np.asarray(result.residual) <= TOLERANCE, stopped)


def test_an_example_that_never_stops_reports_max_steps():
    result = infer(Chain())
    (slow,) = np.flatnonzero(np.asarray(result.residual) > TOLERANCE)
    assert result.num_steps[slow] == MOST


@pytest.mark.parametrize("inference", [PLAIN, MOMENTUM], ids=["plain", "momentum"])
def test_an_example_stops_at_its_own_point_whatever_the_others_do(inference):
    """The others never stop (they are not numbers) or were there from the start, and stop at once."""
    chain = Chain()
    result = infer(chain, inference)
    kept = int(np.argmin(result.num_steps))
    assert 0 < result.num_steps[kept] < MOST
    others = np.arange(7) != kept
    at_rest, endless = Chain(), Chain()
    at_rest.targets[others] = reference.feedforward(chain.reference, chain.inputs)[-1][others]
    endless.inputs[others] = np.nan
    for changed in (at_rest, endless):
        again = infer_traced(changed, inference)
        # vector instructions over other numbers round the last bit otherwise, so not bitwise
        for name, activity in result.activities.items():
            np.testing.assert_allclose(again.activities[name][kept], activity[kept], rtol=1e-12)
        assert again.num_steps[kept] == result.num_steps[kept]
        np.testing.assert_allclose(again.residual[kept], result.residual[kept], rtol=1e-10)


def test_an_example_at_rest_takes_no_step():
    chain = Chain()
    rest = reference.feedforward(chain.reference, chain.inputs)
    chain.targets[4] = rest[-1][4]
    result = infer(chain)
    assert result.num_steps[4] == 0
    assert (np.delete(np.asarray(result.num_steps), 4) > 0).all()
    np.testing.assert_allclose(result.activities["layer_0"][4], rest[0][4], **CLOSE)


def test_an_example_that_is_not_a_number_does_not_count_as_converged():
    """NaN <= tolerance is false, and a stop that asked for NaN > tolerance would call it done."""
    before, chain = infer(Chain()), Chain()
    chain.inputs[2] = np.nan
    result = infer_traced(chain, PLAIN)
    assert result.num_steps[2] == MOST
    assert result.status[2] == pc.inference.Status.NOT_FINITE
    assert np.isnan(result.residual[2])
    others = np.arange(7) != 2
    np.testing.assert_array_equal(result.num_steps[others], before.num_steps[others])
    np.testing.assert_allclose(result.residual[others], before.residual[others], rtol=1e-10)


def test_a_trace_changes_nothing_and_repeats_the_last_values_of_a_stopped_example():
    chain = Chain()
    plain, traced = infer(chain), infer(chain, trace=True)
    np.testing.assert_array_equal(traced.num_steps, plain.num_steps)
    for name, activity in plain.activities.items():
        np.testing.assert_allclose(traced.activities[name], activity, **CLOSE)
    residual, energy = traced.trace.residual, traced.trace.energy
    assert residual.shape == energy.shape == (MOST + 1, 7)
    # the energies of the reference's descent, up to each example's stop
    _, expected = reference.infer(
        chain.reference, chain.inputs, start_of(chain), chain.free(), 0.1, MOST
    )
    for row, steps in enumerate(np.asarray(plain.num_steps)):
        np.testing.assert_allclose(energy[: steps + 1, row], expected[: steps + 1, row], rtol=1e-9)
        assert (np.asarray(residual[:steps, row]) > TOLERANCE).all()
        np.testing.assert_array_equal(residual[steps:, row], residual[steps, row])
        np.testing.assert_array_equal(energy[steps:, row], energy[steps, row])
    np.testing.assert_allclose(traced.trace.residual[-1], traced.residual, **CLOSE)
    np.testing.assert_allclose(traced.trace.energy[-1], traced.energy, **CLOSE)


@dataclasses.dataclass(frozen=True)
class Recording(pc.inference.GradientDescent):
    """Descent whose state counts its steps; shows activities and count in place of the energies."""

    def init(self, problem):
        return jnp.zeros(problem.batch_size)

    def step(self, problem, coordinates, state, *, step, key):
        del step, key
        _, gradient = problem.energy_and_gradient(coordinates)
        seen = {
            "layer_0": coordinates["layer_0"][:, 3],
            "layer_1": coordinates["layer_1"][:, 1],
            "layer_2": state,
        }
        moved = jax.tree.map(lambda z, g: z - 0.1 * g, coordinates, gradient)
        return moved, state + 1, pc.inference.StepInfo(seen, problem.residual(gradient))


def test_a_stopped_examples_activities_and_the_algorithms_state_are_bitwise_unchanged():
    """While the slow ones go on. A momentum that went on as well would be another's by its end."""
    result = infer(Chain(), Recording(optax.sgd(0.1), tolerance=TOLERANCE, max_steps=MOST), True)
    steps = np.asarray(result.num_steps)
    np.testing.assert_array_equal(steps, hand_rolled(0.0)[1])
    # before each step; the last row is what the loop observes at the end
    seen = {name: np.asarray(leaf)[:-1] for name, leaf in result.trace.energies.items()}
    np.testing.assert_array_equal(seen["layer_2"], np.minimum(np.arange(MOST)[:, None], steps))
    for row in np.flatnonzero(steps < MOST):
        for name, element in (("layer_0", 3), ("layer_1", 1)):
            moving, stopped = np.split(seen[name][:, row], [steps[row]])
            assert (np.diff(moving[1:]) != 0).all()  # the first step only moves the layer above
            assert set(stopped) == {float(result.activities[name][row, element])}


@pytest.mark.parametrize(("inference", "momentum"), [(PLAIN, 0.0), (MOMENTUM, 0.8)])
def test_computing_only_who_goes_on_changes_no_example(inference, momentum):
    """Of forty, the loop goes on with the last ten and then the last two; each keeps its own place,
    its own clamped elements and its own momentum.
    """
    chain = Chain(batch=40)
    mask = chain.random.uniform(size=(40, 5)) < 0.3
    value = chain.random.normal(size=(40, 5))
    start, free = start_of(chain), chain.free()
    free[0], start[0] = ~mask, np.where(mask, value, start[0])
    start[1] = reference.predictions(chain.reference, chain.inputs, start)[1]
    expected, steps = reference.infer_adaptively(
        chain.reference,
        chain.inputs,
        start,
        free,
        0.05 if momentum else 0.1,
        TOLERANCE,
        MOST,
        momentum,
    )
    result = chain.network.infer(
        chain.inputs,
        chain.targets,
        clamps={"layer_0": pc.Clamp(value, mask)},
        inference=inference,
    )
    assert len(set(steps)) > 10
    np.testing.assert_array_equal(result.num_steps, steps)
    for got, activity in zip(result.activities.values(), expected, strict=True):
        np.testing.assert_allclose(got, activity, **CLOSE)


def test_a_layer_that_looks_at_the_whole_batch_still_sees_all_of_it():
    """Statistics over the few that go on would be others; a trace steps the whole batch always."""
    rngs = nnx.Rngs(0)

    class Centred(pc.PCDense):
        def __init__(self):
            super().__init__(4, 5, activation=jnp.tanh, rngs=rngs)
            self.mean = nnx.BatchStat(jnp.zeros(4))

        def predict(self, below):
            self.mean.set_value(below.mean(axis=0))
            return super().predict(below - self.mean[...][None])

    layers = [pc.PCDense(3, 4, rngs=rngs), Centred(), pc.PCDense(5, 2, rngs=rngs)]
    network = in_double(pc.PCNetwork(layers))
    random = np.random.RandomState(0)
    x, y = random.normal(size=(20, 3)), random.normal(size=(20, 2))
    inference = pc.inference.GradientDescent(optax.sgd(0.05), tolerance=0.02, max_steps=300)
    plain, traced = (
        network.infer(x, y, inference=inference, trace=trace) for trace in (False, True)
    )
    assert len(set(np.asarray(plain.num_steps))) > 3
    np.testing.assert_array_equal(plain.num_steps, traced.num_steps)
    for name, activity in traced.activities.items():
        np.testing.assert_allclose(plain.activities[name], activity, **CLOSE)


def test_a_fixed_count_takes_no_notice_of_the_residual():
    chain = Chain()
    fixed = pc.inference.GradientDescent(optax.sgd(0.1), num_steps=MOST)
    start = start_of(chain)
    expected, _ = reference.infer(chain.reference, chain.inputs, start, chain.free(), 0.1, MOST)
    result = infer(chain, fixed)
    assert (result.num_steps == MOST).all()
    for got, activity in zip(result.activities.values(), expected, strict=True):
        np.testing.assert_allclose(got, activity, **CLOSE)


def test_defaults_are_twenty_steps_or_at_most_a_thousand():
    plain = pc.inference.GradientDescent(optax.sgd(0.1))
    adaptive = pc.inference.GradientDescent(optax.sgd(0.1), tolerance=1e-3)
    assert (plain.num_steps, plain.tolerance, plain.max_steps) == (20, None, None)
    assert (adaptive.num_steps, adaptive.max_steps) == (None, 1000)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_steps": 5}, ValueError, "got max_steps=5 without a tolerance; give num_steps"),
        ({"num_steps": 5, "tolerance": 0.1}, ValueError, "got num_steps=5 and a tolerance; give"),
        ({"tolerance": 0.0}, ValueError, "a tolerance above 0, got 0.0"),
        ({"tolerance": -1.0}, ValueError, "a tolerance above 0, got -1.0"),
        ({"tolerance": float("nan")}, ValueError, "a tolerance above 0, got nan"),
        ({"tolerance": 0.1, "max_steps": -2}, ValueError, "max_steps of at least 0, got -2"),
        ({"tolerance": 0.1, "max_steps": 2.0}, TypeError, "an int max_steps, got 2.0"),
        ({"num_steps": True}, TypeError, "an int num_steps, got True"),
    ],
)
def test_refusals(options, error, message):
    with pytest.raises(error, match=f"GradientDescent .*{message}"):
        pc.inference.GradientDescent(optax.sgd(0.1), **options)


@pytest.mark.parametrize(
    "inference",
    [
        pc.inference.GradientDescent(0.1, tolerance=1e-9, max_steps=5000),
        pc.inference.NewtonCG(num_steps=8),
    ],
    ids=["descent", "Newton"],
)
def test_derivatives_are_those_of_the_equilibrium_forward_and_reverse(inference):
    """Beside central differences of where inference ends, whose error is of the order of 1e-4 squared."""
    chain = Chain(batch=2)
    pure = pc.networks.split(chain.network)
    direction = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size)), pure.parameters)
    direction = jax.tree.map(lambda d, leaf: d.reshape(leaf.shape), direction, pure.parameters)

    @jax.jit
    def hidden(parameters):
        problem = pc.inference.make_problem(
            pure.replace(parameters=parameters), pc.Evidence(chain.inputs, chain.targets)
        )
        return jnp.sum(inference.solve(problem).activities["layer_0"] ** 2)

    def along(step):
        return hidden(jax.tree.map(lambda p, d: p + step * d, pure.parameters, direction))

    expected = (along(1e-4) - along(-1e-4)) / 2e-4
    assert abs(expected) > 0.1
    _, forward = jax.jvp(hidden, (pure.parameters,), (direction,))
    np.testing.assert_allclose(forward, expected, rtol=1e-5)
    reverse = optax.tree.vdot(jax.grad(hidden)(pure.parameters), direction)
    np.testing.assert_allclose(reverse, forward, rtol=1e-9)
