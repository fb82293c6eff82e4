"""Stable step sizes and the steps they need, told from the spectrum.

Oracles: the eigenvalues of a chain of scalar layers in closed form, NumPy's powers of the matrix of a step,
and inference itself, run.
"""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pcflax as pc
from pcflax.analysis import Spectrum, StepSizeRange, step_size_range
from tests.conftest import Chain, in_double

pytestmark = pytest.mark.usefixtures("double")


def range_of(smallest, largest):
    """Made by hand."""
    return StepSizeRange(smallest, largest, Spectrum(np.array([smallest]), np.array([largest])))


def chain_of_ones(num_layers):
    """z_l = z_{l-1}, one unit a layer: H is tridiagonal, 2 on the diagonal and -1 beside it."""
    layers = []
    for _ in range(num_layers):
        layer = pc.PCDense(1, 1, rngs=nnx.Rngs(0))
        layer.linear.kernel.set_value(jnp.ones((1, 1)))
        layers.append(layer)
    return in_double(pc.PCNetwork(layers))


X, Y = jnp.array([[0.3], [-1.0]]), jnp.array([[2.0], [1.5]])


@pytest.fixture(scope="module")
def found():
    """Of 7 layers, 6 free activities: eigenvalues 2 - 2 cos(k pi / 7); in 32-bit floats."""
    return step_size_range(chain_of_ones(7), X, Y)


def closed_form():
    return 2 - 2 * math.cos(math.pi / 7), 2 - 2 * math.cos(6 * math.pi / 7)


class TestClosedForm:
    def test_limits_and_the_best_of_a_linear_chain(self, found):
        low, high = closed_form()
        assert found.smallest == pytest.approx(low, rel=1e-6)
        assert found.largest == pytest.approx(high, rel=1e-6)
        assert found.limit() == pytest.approx(2 / high, rel=1e-6)
        assert found.limit(0.8) == pytest.approx(2 * 1.8 / high, rel=1e-6)
        assert found.limit(0.8, nesterov=True) == pytest.approx(2 * 1.8 / 2.6 / high, rel=1e-6)
        assert found.best == pytest.approx(0.5, rel=1e-6)  # 2/(low + high), which add up to 4
        assert found.spectrum.largest.shape == (2,)

    def test_rates_of_the_best_are_those_of_the_condition_number(self, found):
        low, high = closed_form()
        k = high / low
        assert found.rate(found.best) == pytest.approx((k - 1) / (k + 1), rel=1e-6)
        root = math.sqrt(k)
        # a double root, whose rounding is the square root of that of its coefficients
        assert found.rate(*found.best_with_momentum) == pytest.approx(
            (root - 1) / (root + 1), rel=1e-5
        )

    def test_steps_are_those_of_one_eigenvalue(self):
        """1 - a l = 0.9: ln 10 / -ln 0.9 steps a digit; at 1/l one step, at 2/l never."""
        one = range_of(2.0, 2.0)
        assert one.steps(0.05) == pytest.approx(math.log(10) / -math.log(0.9))
        assert one.steps(0.05, reduction=100) == pytest.approx(2 * one.steps(0.05))
        assert one.steps(0.5) == 1
        assert one.steps(1.0) == one.steps(1.5) == math.inf

    @pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
    @pytest.mark.parametrize("nesterov", [False, True], ids=["heavy ball", "nesterov"])
    def test_the_rate_is_1_at_the_limit_and_no_direction_between_is_slower(
        self, momentum, nesterov
    ):
        some = range_of(0.2, 3.0)
        at_limit = some.rate(some.limit(momentum, nesterov=nesterov), momentum, nesterov=nesterov)
        assert at_limit == pytest.approx(1, rel=1e-9)
        for step in (0.01, 0.1, 0.4):
            whole = some.rate(step, momentum, nesterov=nesterov)
            for value in np.linspace(0.2, 3.0, 29):
                assert (
                    range_of(value, value).rate(step, momentum, nesterov=nesterov) <= whole + 1e-9
                )


@pytest.mark.parametrize(
    ("momentum", "nesterov"), [(0.0, False), (0.6, False), (0.6, True)], ids=str
)
def test_inference_does_what_is_told(found, momentum, nesterov):
    """It settles below the limit and not above, and shrinks at the rate that is told."""
    limit = found.limit(momentum, nesterov=nesterov)

    def residual(step_size):
        descent = pc.inference.GradientDescent(
            step_size, momentum=momentum, nesterov=nesterov, num_steps=300
        )
        x, y = X.astype(float), Y.astype(float)
        result = chain_of_ones(7).infer(x, y, inference=descent, trace=True)
        return np.asarray(result.trace.residual)

    assert (residual(0.97 * limit)[300] < 1e-3).all()
    assert (residual(1.03 * limit)[300] > 1e2).all()
    way = residual(0.9 * limit)
    told = found.rate(0.9 * limit, momentum, nesterov=nesterov)
    # heavy-ball momentum turns while it shrinks: a mean over many steps
    np.testing.assert_allclose((way[80] / way[40]) ** 0.025, told, rtol=0.02)


def test_the_stored_activities_of_a_tanh_chain_tell_the_last_steps():
    case = Chain((3, 5, 4, 2), batch=2)
    descent = pc.inference.GradientDescent(0.2, num_steps=400)
    trace = case.network.infer(case.inputs, case.targets, inference=descent, trace=True).trace
    told = step_size_range(case.network, case.inputs, case.targets, stored=True)
    slowest = np.asarray(trace.residual[400] / trace.residual[350]).max() ** 0.02
    assert slowest == pytest.approx(told.rate(0.2), rel=1e-3)


class TestEdges:
    def test_what_is_not_convex_does_not_settle(self):
        bent = range_of(-0.5, 2.0)
        assert bent.steps(0.1) == math.inf
        assert bent.best == 1.0
        flat = range_of(-1.0, -0.5)
        assert flat.limit() == flat.best == flat.best_with_momentum[0] == math.inf

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda r: r.rate(0.0), "rate expected a step_size above 0, got 0.0"),
            (
                lambda r: r.limit(1.0),
                "StepSizeRange expected a momentum from 0 to below 1, got 1.0",
            ),
            (lambda r: r.limit(-0.1), "StepSizeRange expected a momentum of at least 0, got -0.1"),
            (lambda r: r.steps(0.1, reduction=1), "steps expected a reduction above 1, got 1"),
        ],
        ids=["step", "momentum", "negative", "reduction"],
    )
    def test_refusals(self, call, message):
        with pytest.raises(ValueError, match=message):
            call(range_of(1.0, 2.0))
