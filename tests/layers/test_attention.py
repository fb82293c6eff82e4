"""Attention and its MLP: their equations, what a causal mask hides, their refusals.

Oracles: LayerNorm and softmax attention written out in NumPy (float64), `jax.nn.dot_product_attention`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pcflax as pc

CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32 against float64


def below(batch=2, length=5, features=6, seed=0):
    x = np.random.default_rng(seed).normal(size=(batch, length, features))
    return x.astype(np.float32)


def predicted(layer, x):
    """By one program; `layer.predict` takes one for each operation."""
    return np.asarray(jax.jit(layer.predict)(x))


def randomized(layer, seed=3):
    """The layer with no parameter at zero or one, so that a forgotten one shows."""
    random = np.random.default_rng(seed)
    state = nnx.state(layer, nnx.Param)
    nnx.update(
        layer,
        jax.tree.map(lambda p: np.float32(p + random.normal(size=p.shape) / 3), state),
    )
    return layer


def double(variable):
    return np.asarray(variable[...], np.float64)


def normed(layer, x, epsilon=1e-6):
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon)
    return scaled * double(layer.norm.scale) + double(layer.norm.bias)


def attended(layer, x, *, causal):
    """Z + MultiHeadAttention(LayerNorm(z)), in NumPy."""
    x = np.asarray(x, np.float64)
    parts = []
    for part in (layer.attention.query, layer.attention.key, layer.attention.value):
        values = np.einsum("btf,fhd->bthd", normed(layer, x), double(part.kernel))
        parts.append(values + double(part.bias))
    query, key, value = parts
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
    if causal:
        scores = np.where(np.tri(x.shape[1], dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    heads = np.einsum("bhqk,bkhd->bqhd", weights, value)
    out = layer.attention.out
    return x + np.einsum("bqhd,hdf->bqf", heads, double(out.kernel)) + double(out.bias)


class TestPCAttention:
    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize("heads", [1, 3])
    @pytest.mark.parametrize("batch", [1, 2])
    def test_is_the_equation(self, causal, heads, batch):
        layer = randomized(pc.PCAttention(6, heads, causal=causal, rngs=nnx.Rngs(0)))
        x = below(batch)
        np.testing.assert_allclose(predicted(layer, x), attended(layer, x, causal=causal), **CLOSE)

    @pytest.mark.parametrize("causal", [False, True])
    def test_agrees_with_jax(self, causal):
        layer = randomized(pc.PCAttention(6, 3, causal=causal, rngs=nnx.Rngs(0)))
        x, own = below(), layer.attention

        @jax.jit
        def by_jax(x):
            z = layer.norm(x)
            parts = own.query(z), own.key(z), own.value(z)
            return x + own.out(jax.nn.dot_product_attention(*parts, is_causal=causal))

        np.testing.assert_allclose(predicted(layer, x), by_jax(x), **CLOSE)

    @pytest.mark.parametrize("place", [1, 4])
    def test_a_causal_place_never_changes_what_comes_before_it(self, place):
        """Otherwise a language model reads the token that it is to predict."""
        x = below()
        changed = x.copy()
        changed[:, place, 0] += 10.0  # the norm would not see one number added to all
        causal = pc.PCAttention(6, 3, causal=True, rngs=nnx.Rngs(0))
        before, after = predicted(causal, x), predicted(causal, changed)
        np.testing.assert_array_equal(before[:, :place], after[:, :place])
        assert (np.abs(before[:, place:] - after[:, place:]).max(axis=-1) > 1e-3).all()
        open_to_all = pc.PCAttention(6, 3, rngs=nnx.Rngs(0))
        difference = np.abs(predicted(open_to_all, x) - predicted(open_to_all, changed)).max(
            axis=-1
        )
        assert (difference > 1e-4).all()

    def test_takes_sequences_of_any_length(self):
        layer = pc.PCAttention(6, 3, causal=True, rngs=nnx.Rngs(0))
        long, short = (predicted(layer, below(length=5)[:, :length]) for length in (5, 3))
        np.testing.assert_allclose(short, long[:, :3], **CLOSE)

    def test_the_last_place_that_it_is_told_counts_alone(self):
        """Multipliers of exactly 1 undo those before them."""
        options = {"parameterization": pc.parameterizations.NTK(gamma=0.25), "rngs": nnx.Rngs(0)}
        layer = pc.PCAttention(16, 2, **options)
        x = jax.random.normal(jax.random.key(0), (2, 5, 16))
        alone = predicted(layer, x)
        layer.set_place(1, 4)
        assert not np.allclose(predicted(layer, x), alone)
        layer.set_place(0, 1)  # 1/sqrt(16)/gamma is 1
        np.testing.assert_array_equal(predicted(layer, x), alone)

    def test_dropout_drops_of_the_branch_and_never_of_the_skip(self):
        layer = pc.PCAttention(6, 3, dropout=0.5, rngs=nnx.Rngs(0))
        x = below()
        dropped = np.asarray(layer.predict(x) - x)
        layer.eval()
        branch = predicted(layer, x) - x
        zero = np.abs(dropped) < 1e-6
        assert 0.2 < zero.mean() < 0.8
        np.testing.assert_allclose(dropped[~zero], 2 * branch[~zero], **CLOSE)

    def test_refusals(self):
        text = "PCAttention expected num_heads that divides features=6, got 4"
        with pytest.raises(ValueError, match=text):
            pc.PCAttention(6, 4, rngs=nnx.Rngs(0))
        for option in ("out_features", "in_kv_features"):
            # a result of width 1 would broadcast
            with pytest.raises(ValueError, match=r"are features=6, got .*; leave them out"):
                pc.PCAttention(6, 3, **{option: 1}, rngs=nnx.Rngs(0))
        layer = pc.PCAttention(6, 3, rngs=nnx.Rngs(0))
        for shape in [(2, 5, 7), (2, 6)]:
            text = r"expected an input of shape \(batch, length, 6\), got .*; set features="
            with pytest.raises(ValueError, match=text):
                layer.predict(jnp.zeros(shape))


class TestPCMLP:
    @pytest.mark.parametrize("shape", [(1, 6), (2, 5, 6)])
    def test_is_the_equation(self, shape):
        layer = randomized(pc.PCMLP(6, 7, activation=jnp.tanh, rngs=nnx.Rngs(0)))
        x = np.random.default_rng(0).normal(size=shape)
        hidden = np.tanh(normed(layer, x) @ double(layer.up.kernel) + double(layer.up.bias))
        expected = x + hidden @ double(layer.down.kernel) + double(layer.down.bias)
        np.testing.assert_allclose(predicted(layer, x.astype(np.float32)), expected, **CLOSE)

    def test_bends_by_gelu_unless_told(self):
        layer, x = pc.PCMLP(6, 7, rngs=nnx.Rngs(0)), below()
        by_hand = jax.jit(lambda x: x + layer.down(jax.nn.gelu(layer.up(layer.norm(x)))))
        np.testing.assert_allclose(predicted(layer, x), by_hand(x), **CLOSE)

    def test_places_do_not_mix(self):
        layer, x = pc.PCMLP(6, 7, rngs=nnx.Rngs(0)), below()
        np.testing.assert_allclose(predicted(layer, x)[:, 2], predicted(layer, x[:, 2]), **CLOSE)

    def test_another_width_is_refused(self):
        text = r"expected an input of shape \(batch, \.\.\., 6\), got \(2, 5\); set features=5"
        with pytest.raises(ValueError, match=text):
            pc.PCMLP(6, 7, rngs=nnx.Rngs(0)).predict(jnp.zeros((2, 5)))

    def test_the_activation_may_be_none(self):
        layer, x = pc.PCMLP(6, 7, activation=None, rngs=nnx.Rngs(0)), below()
        by_hand = x + layer.down(layer.up(layer.norm(x)))
        np.testing.assert_allclose(predicted(layer, x), by_hand, **CLOSE)

    def test_refusals(self):
        text = "PCMLP expected activation to be a function such as jnp.tanh, got 'gelu'"
        with pytest.raises(TypeError, match=text):
            pc.PCMLP(6, 7, activation="gelu", rngs=nnx.Rngs(0))
        # one number an example: norm and weights would go over the batch
        with pytest.raises(ValueError, match=r"\(batch, \.\.\., 6\), got \(6,\); change what"):
            pc.PCMLP(6, 7, rngs=nnx.Rngs(0)).predict(jnp.zeros(6))
