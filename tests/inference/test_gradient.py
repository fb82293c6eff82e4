"""Gradient inference: optax per example, compiled once, right on a closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from tests.conftest import Chain
from tests.references import numpy_pc as reference

OPTIMIZERS = {
    "sgd": optax.sgd(0.05),
    "momentum": optax.sgd(0.05, momentum=0.9),
    "adam": optax.adam(0.01),
    "clipped": optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.05)),
    "schedule": optax.sgd(optax.linear_schedule(0.1, 0.0, 10)),
}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_an_example_does_not_depend_on_its_batch(optimizer):
    """A clipped global norm or a shared moment would let one example change another's inference."""
    chain = Chain(batch=7)
    inference = pc.inference.GradientDescent(optimizer, num_steps=6)
    together = chain.network.infer(chain.inputs, chain.targets, inference=inference)
    alone = chain.network.infer(chain.inputs[3:4], chain.targets[3:4], inference=inference)
    for name in chain.network.names:
        np.testing.assert_allclose(
            alone.activities[name][0], together.activities[name][3], rtol=1e-12, atol=1e-13
        )
    np.testing.assert_allclose(alone.residual[0], together.residual[3], rtol=1e-10)


@pytest.mark.usefixtures("double")
def test_momentum_is_that_of_the_reference():
    chain = Chain()
    start = [*reference.feedforward(chain.reference, chain.inputs)[:-1], chain.targets]
    expected, _ = reference.infer(
        chain.reference, chain.inputs, start, chain.free(), 0.03, 8, momentum=0.8
    )
    result = chain.network.infer(
        chain.inputs,
        chain.targets,
        inference=pc.inference.GradientDescent(optax.sgd(0.03, momentum=0.8), num_steps=8),
    )
    for got, activity in zip(result.activities.values(), expected, strict=True):
        np.testing.assert_allclose(got, activity, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("double")
def test_a_linear_chain_reaches_the_closed_form_energy():
    """F* = 1/2 r^T S^-1 r with r = y - W3 W2 W1 x - b and S = I + W3 W3^T + (W3 W2)(W3 W2)^T."""
    chain = Chain(activation="identity", widths=(3, 5, 4, 2))
    for layer in chain.network.layers:
        layer.energy = pc.energies.Gaussian()
    inference = pc.inference.GradientDescent(optax.sgd(0.1), num_steps=4000)
    result = chain.network.infer(chain.inputs, chain.targets, inference=inference)
    *_, w2, w3 = (layer.kernel for layer in chain.reference)
    r = chain.targets - reference.feedforward(chain.reference, chain.inputs)[-1]
    s = np.eye(2) + w3.T @ w3 + (w2 @ w3).T @ (w2 @ w3)
    expected = 0.5 * np.einsum("bi,ij,bj->b", r, np.linalg.inv(s), r)
    np.testing.assert_allclose(result.energy, expected, rtol=1e-9)
    np.testing.assert_allclose(result.residual, 0, atol=1e-9)


@pytest.mark.usefixtures("double")
def test_residual_is_the_rms_of_the_vector_field():
    chain = Chain()
    result = chain.network.infer(
        chain.inputs,
        chain.targets,
        inference=pc.inference.GradientDescent(optax.sgd(0.05), num_steps=3),
    )
    activities = [np.asarray(activity) for activity in result.activities.values()]
    field = reference.activity_gradients(chain.reference, chain.inputs, activities, chain.free())
    flat = np.concatenate(field[:-1], axis=1)  # the free layers
    np.testing.assert_allclose(result.residual, np.sqrt((flat**2).mean(axis=1)), rtol=1e-10)


@pytest.mark.usefixtures("optimized")  # bitwise, by two programs
def test_no_steps_leave_the_feedforward_start():
    jax.clear_caches()  # of what other tests compiled less
    chain = Chain()
    x, y = chain.inputs.astype(np.float32), chain.targets.astype(np.float32)
    inference = pc.inference.GradientDescent(optax.sgd(0.1), num_steps=0)
    result = chain.network.infer(x, y, inference=inference, trace=True)
    chain.network.init_activities(x, targets=y)
    for name, layer in zip(chain.network.names, chain.network.layers, strict=True):
        np.testing.assert_array_equal(result.activities[name], layer.activity[...])
    assert result.trace.energy.shape == (1, 7)


def test_the_second_call_does_not_trace_again():
    """A retrace at each call would cost a thousand times the step it compiles."""
    traces = []

    def counted(values):
        traces.append(1)
        return jnp.tanh(values)

    network = pc.PCNetwork([pc.PCDense(3, 4, activation=counted, rngs=nnx.Rngs(0))])
    inference = pc.inference.GradientDescent(optax.sgd(0.1), num_steps=3)
    x, y = jnp.ones((2, 3)), jnp.ones((2, 4))
    network.infer(x, y, inference=inference)
    first = len(traces)
    network.infer(2 * x, y, inference=inference)
    network.layers[0].linear.kernel[...] *= 2
    network.infer(x, y, inference=inference)
    assert len(traces) == first


def test_activities_outlive_the_result_and_the_other_way_round():
    """Result and network share no buffer, so donating one does not delete the other."""
    network = pc.PCNetwork([pc.PCDense(3, 4, rngs=nnx.Rngs(0))])
    inference = pc.inference.GradientDescent(optax.sgd(0.1), num_steps=3)
    result = network.infer(jnp.ones((2, 3)), jnp.ones((2, 4)), inference=inference)
    jax.jit(lambda a: a + 1, donate_argnums=0)(result.activities["layer_0"])
    assert np.isfinite(np.asarray(network.layers[0].activity[...])).all()


def test_half_precision_activities_stay_half_precision():
    network = pc.PCNetwork(
        [
            pc.PCLayer(
                nnx.Linear(3, 4, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
            )
        ]
    )
    inference = pc.inference.GradientDescent(optax.sgd(0.1), num_steps=3)
    result = network.infer(jnp.ones((2, 3), jnp.bfloat16), inference=inference)
    assert result.activities["layer_0"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pc.inference.GradientDescent("0.1"), TypeError, "an optax transformation such as"),
        (
            lambda: pc.inference.GradientDescent(optax.sgd(0.1), num_steps=-1),
            ValueError,
            "num_steps of at least 0, got -1",
        ),
        (
            lambda: pc.inference.GradientDescent(optax.sgd(0.1), num_steps=2.0),
            TypeError,
            "an int num_steps",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
