"""The embedding of tokens: rows of a table, positions, refusals. Oracle: NumPy indexing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pcflax as pc

TOKENS = jnp.array([[3, 1, 4, 1], [0, 6, 2, 5]])


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8])
def test_looks_rows_up(dtype):
    layer = pc.PCEmbedding(7, 5, rngs=nnx.Rngs(0))
    table = np.asarray(layer.embedding.embedding[...])
    assert table.shape == (7, 5)
    np.testing.assert_array_equal(layer.predict(TOKENS.astype(dtype)), table[np.asarray(TOKENS)])


@pytest.mark.parametrize("length", [2, 4])
def test_adds_a_position_to_each_place(length):
    layer = pc.PCEmbedding(7, 5, num_positions=4, rngs=nnx.Rngs(0))
    table, places = (np.asarray(one.embedding[...]) for one in (layer.embedding, layer.positions))
    expected = table[np.asarray(TOKENS)[:, :length]] + places[:length]
    np.testing.assert_allclose(layer.predict(TOKENS[:, :length]), expected, rtol=1e-6)


def test_says_that_it_takes_integers():
    assert pc.PCEmbedding(7, 5, rngs=nnx.Rngs(0)).takes_integers


@pytest.mark.parametrize("rows", [7, 1])
def test_a_token_without_a_row_predicts_nan(rows):
    """So that training stops with an energy that is not finite, instead of learning another token."""
    layer = pc.PCEmbedding(rows, 5, rngs=nnx.Rngs(0))
    prediction = layer.predict(jnp.array([[rows - 1, rows]]))
    assert np.isfinite(prediction[0, 0]).all()
    assert np.isnan(prediction[0, 1]).all()


def test_only_the_rows_that_were_seen_get_a_gradient():
    layer = pc.PCEmbedding(7, 5, rngs=nnx.Rngs(0))
    network = pc.PCNetwork([layer])
    activity = layer.predict(TOKENS[:, :2])
    network.set_activities({"layer_0": activity + 1.0})
    kernel = jax.tree.leaves(network.parameter_gradients(TOKENS[:, :2]))[0]
    # d/d row of 1/2 ||1||^2 is -1 for each time that it was seen, averaged over two examples
    expected = np.zeros((7, 5))
    for token in (3, 1, 0, 6):
        expected[token] -= 1 / 2
    np.testing.assert_allclose(kernel, expected, atol=1e-6)


def test_refusals():
    layer = pc.PCEmbedding(7, 5, num_positions=3, rngs=nnx.Rngs(0))
    text = (
        r"PCEmbedding expected tokens of an integer dtype, got float32; cast them: tokens\.astype"
    )
    with pytest.raises(TypeError, match=text):
        layer.predict(jnp.ones((2, 3)))
    text = (
        r"PCEmbedding has positions for sequences of at most 3 tokens, got 4; set num_positions=4 or "
        r"give shorter sequences"
    )
    with pytest.raises(ValueError, match=text):
        layer.predict(TOKENS)
    text = r"PCEmbedding expected tokens of shape \(batch, length\), got \(4,\)"
    with pytest.raises(ValueError, match=text):
        layer.predict(TOKENS[0])


@pytest.mark.parametrize("rows", [7, 300])
def test_a_byte_below_0_predicts_nan(rows):
    """300 is no number of a byte: wrapped, it would name another row."""
    prediction = pc.PCEmbedding(rows, 5, rngs=nnx.Rngs(0)).predict(jnp.array([[6, -1]], jnp.int8))
    assert np.isfinite(prediction[0, 0]).all()
    assert np.isnan(prediction[0, 1]).all()


def test_tokens_may_be_numpys_whole_numbers():
    """64 bits of them, which jax holds in 32."""
    layer = pc.PCEmbedding(7, 5, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(layer.predict(np.array(TOKENS, np.int64)), layer.predict(TOKENS))
