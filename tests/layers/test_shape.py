"""Changes of shape inside one layer. Oracle: NumPy's reshape."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pcflax as pc

X = np.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)


def test_flatten_keeps_the_batch_and_the_order():
    np.testing.assert_array_equal(pc.layers.Flatten()(jnp.asarray(X)), X.reshape(2, 60))
    assert pc.layers.Flatten()(jnp.zeros((0, 3, 2))).shape == (0, 6)


def test_reshape_is_the_way_back():
    reshaped = pc.layers.Reshape(3, 4, 5)(pc.layers.Flatten()(jnp.asarray(X)))
    np.testing.assert_array_equal(reshaped, X)


def test_they_are_fused_into_one_layer():
    linear = nnx.Linear(60, 2, rngs=nnx.Rngs(0))
    network = pc.PCNetwork([pc.PCLayer(nnx.Sequential(pc.layers.Flatten(), linear))])
    assert network.names == ("layer_0",)
    x = jnp.asarray(X, jnp.float32)
    np.testing.assert_allclose(network.predict(x), linear(x.reshape(2, 60)), rtol=1e-6)


def test_another_number_of_features_is_refused():
    text = r"Reshape\(3, 4\) expected 12 features in each example, got an input of shape \(2, 10\)"
    with pytest.raises(ValueError, match=text):
        pc.layers.Reshape(3, 4)(jnp.zeros((2, 10)))
