"""Gradient flow: the solver's steps by hand, the exact path of a linear chain, and the stop."""

import diffrax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from flax import nnx

import pcflax as pc
from tests.conftest import Chain, in_double, infer_traced
from tests.references import numpy_pc as reference

CONSTANT = diffrax.ConstantStepSize()
CLOSE = {"rtol": 1e-10, "atol": 1e-12}  # float64 rounding

pytestmark = pytest.mark.usefixtures("double")


def infer(chain, inference, trace=False):
    return chain.network.infer(chain.inputs, chain.targets, inference=inference, trace=trace)


def start_of(chain):
    return [*reference.feedforward(chain.reference, chain.inputs)[:-1], chain.targets]


def field(chain, z):
    """dz/dt = -dF/dz of every layer."""
    gradients = reference.activity_gradients(chain.reference, chain.inputs, z, chain.free())
    return [-gradient for gradient in gradients]


def euler(chain, z, step):
    return [a + step * da for a, da in zip(z, field(chain, z), strict=True)]


def heun(chain, z, step):
    first, second = field(chain, z), field(chain, euler(chain, z, step))
    return [a + step / 2 * (d + e) for a, d, e in zip(z, first, second, strict=True)]


@pytest.mark.parametrize(
    ("solver", "by_hand"), [(diffrax.Euler(), euler), (diffrax.Heun(), heun)], ids=["euler", "heun"]
)
def test_constant_steps_are_those_taken_by_hand(solver, by_hand):
    """Until max_time."""
    chain = Chain()
    flow = pc.inference.GradientFlow(
        solver, CONSTANT, first_step=0.1, tolerance=1e-12, max_time=0.4
    )
    z = start_of(chain)
    for _ in range(4):
        z = by_hand(chain, z, 0.1)
    result = infer(chain, flow)
    assert (result.num_steps == 4).all()
    for got, activity in zip(result.activities.values(), z, strict=True):
        np.testing.assert_allclose(got, activity, **CLOSE)


def test_the_path_of_a_linear_chain_is_the_matrix_exponential():
    """z(t) = z* + exp(-H t) (z(0) - z*), for each example."""
    chain = Chain(widths=(3, 4, 2), activation="identity", precision=1.7)
    flow = pc.inference.GradientFlow(
        diffrax.Tsit5(),
        diffrax.PIDController(rtol=1e-10, atol=1e-12),
        tolerance=1e-13,
        max_time=0.7,
    )
    (hidden, output), start = chain.reference, start_of(chain)[0]
    hessian = hidden.precision * np.eye(4) + 1.7 * output.kernel @ output.kernel.T
    mean = chain.inputs @ hidden.kernel + hidden.bias
    pull = hidden.precision * mean + 1.7 * (chain.targets - output.bias) @ output.kernel.T
    rest = np.linalg.solve(hessian, pull.T).T
    expected = rest + (start - rest) @ scipy.linalg.expm(-0.7 * hessian).T
    np.testing.assert_allclose(
        infer(chain, flow).activities["layer_0"], expected, rtol=1e-8, atol=1e-9
    )


STOPPING = pc.inference.GradientFlow(diffrax.Euler(), CONSTANT, first_step=0.1, tolerance=1e-3)


def test_each_example_stops_where_its_own_vector_field_is_at_rest():
    """Euler's steps are gradient descent's, so the reference's adaptive descent tells every count."""
    chain = Chain()
    expected, steps = reference.infer_adaptively(
        chain.reference, chain.inputs, start_of(chain), chain.free(), 0.1, 1e-3, 1000
    )
    assert len(set(steps)) > 3
    result = infer(chain, STOPPING)
    np.testing.assert_array_equal(result.num_steps, steps)
    assert (result.residual <= 1e-3).all()
    for got, activity in zip(result.activities.values(), expected, strict=True):
        np.testing.assert_allclose(got, activity, **CLOSE)


def test_an_example_at_rest_takes_no_step_and_one_that_is_no_number_does_not_stop_the_others():
    before, chain = infer(Chain(), STOPPING), Chain()
    chain.targets[4] = reference.feedforward(chain.reference, chain.inputs)[-1][4]
    chain.inputs[2] = np.nan
    result = infer_traced(chain, STOPPING)
    assert result.num_steps[4] == 0
    assert np.isnan(result.residual[2])
    others = [0, 1, 3, 5, 6]
    np.testing.assert_array_equal(
        np.asarray(result.num_steps)[others], np.asarray(before.num_steps)[others]
    )
    np.testing.assert_allclose(
        np.asarray(result.residual)[others], np.asarray(before.residual)[others], rtol=1e-9
    )


DEFAULT = pc.inference.GradientFlow(max_steps=200)


def test_the_trace_of_an_adaptive_controller_goes_from_start_to_end():
    """Steps that the controller refused leave no gap in it, and a stopped example repeats its end."""
    chain = Chain()
    plain, result = infer(chain, DEFAULT), infer(chain, DEFAULT, trace=True)
    np.testing.assert_array_equal(result.num_steps, plain.num_steps)
    energy, residual = np.asarray(result.trace.energy), np.asarray(result.trace.residual)
    assert np.isfinite(energy).all()
    assert np.isfinite(residual).all()
    assert energy.shape == residual.shape == (DEFAULT.max_steps + 1, 7)
    start = reference.energies(chain.reference, chain.inputs, start_of(chain))
    np.testing.assert_allclose(energy[0], sum(start), rtol=1e-10)
    np.testing.assert_allclose(energy[-1], plain.energy, rtol=1e-10)
    np.testing.assert_allclose(residual[-1], plain.residual, rtol=1e-6)
    # along the flow the energy falls
    assert (np.diff(energy, axis=0) <= 1e-12).all()
    for row, steps in enumerate(np.asarray(result.num_steps)):
        np.testing.assert_array_equal(energy[steps:, row], energy[steps, row])


def test_the_trace_and_the_record_of_a_stack_have_its_depth():
    """(steps, batch, depth), where each of the three has its own size."""
    rngs = nnx.Rngs(0)
    stack = pc.PCStack(lambda: pc.PCDense(5, 5, activation=jnp.tanh, rngs=rngs), 3)
    network = in_double(pc.PCNetwork({"stack": stack, "output": pc.PCDense(5, 2, rngs=rngs)}))
    flow = pc.inference.GradientFlow(max_steps=5)
    x, y = np.random.RandomState(0).normal(size=(2, 7, 5))
    result = network.infer(
        x, y[:, :2], inference=flow, trace=True, record=lambda seen: seen.energies["stack"]
    )
    assert result.records.shape == (6, 7, 3)
    np.testing.assert_allclose(result.trace.energies["stack"], result.records, rtol=1e-6)
    np.testing.assert_allclose(result.records[-1], result.energies["stack"], rtol=1e-6)


def test_the_default_controller_comes_to_rest_at_the_tolerance():
    """1e-4 unless given, with a controller ten and a hundred times tighter."""
    assert DEFAULT.tolerance == 1e-4
    assert (DEFAULT.controller.rtol, DEFAULT.controller.atol) == (1e-5, 1e-6)
    result = infer(Chain(), DEFAULT)
    assert (result.residual <= 1e-4).all()
    assert (result.num_steps < 200).all()
    assert len(set(np.asarray(result.num_steps))) > 3


def test_a_flow_cut_short_says_so_by_its_residual():
    chain = Chain()
    short = pc.inference.GradientFlow(
        diffrax.Euler(), CONSTANT, first_step=0.1, tolerance=1e-3, max_steps=2
    )
    result = infer(chain, short)
    z = euler(chain, euler(chain, start_of(chain), 0.1), 0.1)
    assert (result.num_steps == 2).all()
    assert (result.residual > 1e-3).all()
    for got, activity in zip(result.activities.values(), z, strict=True):
        np.testing.assert_allclose(got, activity, **CLOSE)


def test_nothing_free_is_no_trouble():
    network = pc.PCNetwork({"root": pc.PCRoot(3)})
    result = network.infer(np.ones((2, 3)), inference=STOPPING)
    np.testing.assert_array_equal(result.num_steps, [0, 0])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pc.inference.GradientFlow("euler"), TypeError, "a solver such as diffrax.Tsit5"),
        (
            lambda: pc.inference.GradientFlow(controller=0.1),
            TypeError,
            r"a controller such as diffrax.PIDController\(rtol=1e-3, atol=1e-4\), got 0.1",
        ),
        (
            lambda: pc.inference.GradientFlow(tolerance=0.0),
            ValueError,
            "a tolerance above 0, got 0.0",
        ),
        (
            lambda: pc.inference.GradientFlow(tolerance="1e-3"),
            TypeError,
            "tolerance to be a number, got '1e-3'",
        ),
        (
            lambda: pc.inference.GradientFlow(max_time=-1.0),
            ValueError,
            "a max_time above 0, got -1.0",
        ),
        (
            lambda: pc.inference.GradientFlow(max_time=float("inf")),
            ValueError,
            "a max_time above 0, got inf",
        ),
        (
            lambda: pc.inference.GradientFlow(first_step=0.0),
            ValueError,
            "a first_step above 0, got 0.0",
        ),
        (
            lambda: pc.inference.GradientFlow(max_steps=0),
            ValueError,
            "max_steps of at least 1, got 0",
        ),
        (lambda: pc.inference.GradientFlow(max_steps=9.0), TypeError, "an int max_steps, got 9.0"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=f"GradientFlow expected {message}"):
        call()
