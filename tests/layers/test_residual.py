"""The residual layer: its equation and its refusals. Oracle: NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pcflax as pc


def relu(x):
    return np.maximum(x, 0)


def make(width_above, **options):
    module = nnx.Linear(4, width_above, rngs=nnx.Rngs(0))
    module.bias.set_value(jnp.linspace(-1.0, 1.0, width_above))
    return pc.PCResidual(module, **options)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("activation", [None, jax.nn.relu])
def test_identity_shortcut(batch, activation):
    layer = make(4, activation=activation)
    x = np.random.default_rng(0).normal(size=(batch, 4))
    total = x + x @ np.asarray(layer.module.kernel[...]) + np.asarray(layer.module.bias[...])
    expected = total if activation is None else relu(total)
    np.testing.assert_allclose(
        layer.predict(jnp.asarray(x, jnp.float32)), expected, rtol=1e-5, atol=1e-6
    )


def test_projected_shortcut():
    shortcut = nnx.Linear(4, 5, use_bias=False, rngs=nnx.Rngs(1))
    layer = make(5, shortcut=shortcut, activation=jax.nn.relu)
    x = np.random.default_rng(0).normal(size=(3, 4))
    kernel, bias = np.asarray(layer.module.kernel[...]), np.asarray(layer.module.bias[...])
    expected = relu(x @ np.asarray(shortcut.kernel[...]) + x @ kernel + bias)
    np.testing.assert_allclose(
        layer.predict(jnp.asarray(x, jnp.float32)), expected, rtol=1e-5, atol=1e-6
    )


def test_inner_modules_have_no_activity_of_their_own():
    layer = make(4)
    assert [path for path, _ in nnx.to_flat_state(nnx.state(layer, pc.Activity))] == [("activity",)]


@pytest.mark.parametrize("width", [5, 1])
def test_shapes_that_do_not_meet_are_refused(width):
    """A width of 1 would broadcast without a word."""
    text = (
        rf"PCResidual adds a shortcut of shape \(3, 4\) to a branch of shape \(3, {width}\); give the "
        r"branch equal features and, in space, strides of 1 with padding='SAME', or project the shortcut"
    )
    with pytest.raises(ValueError, match=text):
        make(width).predict(jnp.zeros((3, 4)))


def test_an_activation_that_is_no_function_is_refused():
    with pytest.raises(TypeError, match="PCResidual expected activation to be a function"):
        pc.PCResidual(nnx.Linear(3, 3, rngs=nnx.Rngs(0)), activation="relu")


def test_what_cannot_be_called_is_refused():
    text = "PCResidual expected a shortcut that can be called on the activity below, got 3"
    with pytest.raises(TypeError, match=text):
        make(4, shortcut=3)
    with pytest.raises(TypeError, match="PCResidual expected a module that can be called"):
        pc.PCResidual(3)
    with pytest.raises(TypeError, match="PCResidual expected energy to be an Energy object"):
        make(4, energy="mse")
