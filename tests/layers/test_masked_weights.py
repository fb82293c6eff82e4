"""Masked weights: what is not connected is 0, and stays so under every rule and optimizer.

Oracles: a product with the mask written out, and zeros, bit by bit.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc

MASK = np.random.default_rng(0).random((4, 3)) > 0.5


def test_the_prediction_is_that_of_the_masked_weights():
    layer = pc.PCDense(4, 3, mask=MASK, activation=jnp.tanh, rngs=nnx.Rngs(0))
    kernel = np.asarray(layer.linear.kernel[...])
    assert (kernel[~MASK] == 0).all()
    assert (kernel[MASK] != 0).all()
    below = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_allclose(layer.predict(below), np.tanh(below @ (kernel * MASK)), atol=1e-6)
    # weights written into masked places have no say
    layer.linear.kernel[...] = jnp.ones((4, 3))
    np.testing.assert_allclose(layer.predict(below), np.tanh(below @ MASK), atol=1e-6)


def test_products_of_masked_weights_are_of_the_type_that_is_preferred():
    """The sums of 16-bit factors, in 32 bits where that is asked for."""
    options = {"param_dtype": jnp.bfloat16, "preferred_element_type": jnp.float32}
    layer = pc.PCDense(4, 3, mask=MASK, use_bias=False, **options, rngs=nnx.Rngs(0))
    below = np.random.default_rng(1).normal(size=(5, 4)).astype(jnp.bfloat16)
    found, kernel = layer.predict(jnp.asarray(below)), np.asarray(layer.linear.kernel[...])
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, below.astype(float) @ kernel.astype(float), rtol=1e-5)


@pytest.mark.parametrize(
    "rule",
    [
        pc.learning.PredictiveCoding(pc.inference.GradientDescent(0.1, num_steps=2)),
        pc.learning.IncrementalPC(pc.inference.GradientDescent(0.1, num_steps=2)),
        pc.learning.Backprop(),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_what_is_not_connected_stays_so_and_the_mask_is_restored(rule, tmp_path):
    random = np.random.default_rng(0)
    data = pc.data.from_arrays(
        random.normal(size=(8, 4)).astype(np.float32),
        random.normal(size=(8, 2)).astype(np.float32),
        batch_size=4,
    )

    def trainer(mask):
        rngs = nnx.Rngs(0)
        network = pc.PCNetwork(
            [pc.PCDense(4, 3, mask=mask, rngs=rngs), pc.PCDense(3, 2, rngs=rngs)]
        )
        optimizer = optax.adamw(1e-2, weight_decay=0.1)
        checkpoints = pc.Checkpoints(tmp_path)
        return pc.Trainer(
            network, optimizer, learning=rule, checkpoints=checkpoints, progress=False
        )

    first = trainer(MASK)
    before = np.asarray(first.network.layers[0].linear.kernel[...])
    first.fit(data, num_steps=4)
    kernel = np.asarray(first.network.layers[0].linear.kernel[...])
    assert (kernel[~MASK] == 0).all()
    assert (kernel[MASK] != before[MASK]).all()
    other = trainer(~MASK)
    other.restore()
    np.testing.assert_array_equal(other.network.layers[0].mask[...], MASK)


def test_a_node_that_predicts_itself_without_a_diagonal():
    layer = pc.PCDense(5, 5, mask="no-diagonal", use_bias=False, rngs=nnx.Rngs(0))
    jacobian = jax.jacobian(lambda z: layer.predict(z[None])[0])(jnp.ones(5))
    np.testing.assert_array_equal(np.diag(jacobian), np.zeros(5))
    assert np.count_nonzero(jacobian) == 20


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((3, 4)), r"expected a mask of shape \(4, 3\), that of its weights, got \(3, 4\)"),
        (np.full((4, 3), 0.5), "expected a mask of Booleans, or of 0 and 1"),
        ("no-diagonal", "'no-diagonal' of a square one"),
    ],
)
def test_another_mask_is_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        pc.PCDense(4, 3, mask=mask, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("make", [pc.PCConv, pc.PCConvTranspose])
def test_masked_kernels_of_convolutions(make):
    """A mask of taps: the convolution with the product, and no gradient where there is no weight."""
    mask = np.random.default_rng(0).random((3, 3, 2, 4)) > 0.5
    layer, plain = (make(2, 4, 3, mask=own, rngs=nnx.Rngs(0)) for own in (mask, None))
    kernel = np.asarray(plain.conv.kernel[...])
    np.testing.assert_array_equal(layer.conv.kernel[...], kernel * mask)
    plain.conv.kernel.set_value(jnp.asarray(kernel * mask))
    layer.conv.kernel.set_value(jnp.asarray(kernel))  # weights in masked places have no say
    below = np.random.default_rng(1).normal(size=(2, 5, 6, 2)).astype(np.float32)
    np.testing.assert_allclose(layer.predict(below), plain.predict(below), atol=1e-6)
    network = pc.PCNetwork([layer])
    network.infer(below, 0 * plain.predict(below), inference=pc.inference.GradientDescent(0.1))
    gradient = network.parameter_gradients(below)["layers"]["layer_0"]["conv"]["kernel"][...]
    assert ((np.asarray(gradient) != 0) == mask).all()
    with pytest.raises(ValueError, match=r"expected a mask of shape \(3, 3, 2, 4\)"):
        make(2, 4, 3, mask=mask[..., :3], rngs=nnx.Rngs(0))


@pytest.mark.parametrize("learns", [False, True])
def test_feedback_goes_through_the_same_connections(learns, double):
    """Down through B where there are weights, and B learns there alone: by hand in NumPy."""
    feedback = pc.layers.Feedback(learns=learns)
    options = {"rngs": nnx.Rngs(0), "use_bias": False, "param_dtype": jnp.float64}
    below = pc.PCDense(2, 4, **options)
    above = pc.PCDense(4, 3, mask=MASK, feedback=feedback, **options)
    pure = pc.networks.split(pc.PCNetwork([below, above]))
    weights, b = np.asarray(above.linear.kernel[...]), np.asarray(above.feedback[...])
    assert (b[~MASK] == 0).all()
    assert (b[MASK] != weights[MASK]).all()
    random = np.random.default_rng(1)
    x, z, y = (random.normal(size=(5, size)) for size in (2, 4, 3))
    problem = pc.inference.make_problem(pure, pc.Evidence(x, y))
    field = problem.gradient({"layer_0": z})["layer_0"]
    error = y - z @ weights
    np.testing.assert_allclose(
        field, z - x @ np.asarray(below.linear.kernel[...]) - error @ b.T, rtol=1e-12
    )
    ends = {"layer_0": z, "layer_1": y}
    gradients = jax.jit(pure.mean_gradients)(ends, x)[0]["layer_1"]
    expected = -z.T @ error / 5 * MASK
    np.testing.assert_allclose(gradients["linear"]["kernel"], expected, rtol=1e-12)
    if learns:
        np.testing.assert_allclose(gradients["feedback"], expected, rtol=1e-12)
