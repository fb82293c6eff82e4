"""The affine layer: any affine module, the options of nnx modules, NumPy's numbers.

Oracle: the modules of flax called one after the other.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pcflax as pc
from pcflax.layers import PCAffine

X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)


class TestAnyModule:
    @pytest.mark.parametrize("activation_first", [False, True])
    def test_activation_and_skip(self, activation_first):
        module = nnx.LoRALinear(3, 3, lora_rank=2, rngs=nnx.Rngs(0))
        layer = PCAffine(module, activation=jnp.tanh, activation_first=activation_first, skip=True)
        branch = module(jnp.tanh(X)) if activation_first else jnp.tanh(module(X))
        np.testing.assert_array_equal(layer.predict(X), X + branch)
        assert layer.module is module

    def test_norm_activation_and_pool_in_this_order(self):
        rngs = nnx.Rngs(0)
        conv, norm = nnx.Conv(2, 3, (3,), rngs=rngs), nnx.LayerNorm(3, rngs=rngs)
        x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 2)), jnp.float32)
        layer = PCAffine(
            conv, norm=norm, activation=jnp.square, pool="average", pool_size=np.int64(4)
        )
        expected = jnp.square(norm(conv(x))).reshape(2, 2, 4, 3).mean(axis=2)
        np.testing.assert_allclose(layer.predict(x), expected, rtol=1e-6)

    def test_its_parameters_learn(self):
        layer = PCAffine(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), activation=jnp.tanh)
        network = pc.PCNetwork([layer])
        network.init_activities(X, targets=jnp.ones((4, 2)))
        gradient = network.parameter_gradients(X)["layers"]["layer_0"]["module"]["kernel"][...]
        prediction = np.asarray(layer.predict(X))
        slope = -(1 - prediction) * (1 - prediction**2)
        np.testing.assert_allclose(gradient, np.asarray(X).T @ slope / 4, rtol=1e-4, atol=1e-6)

    def test_refusals(self):
        linear = nnx.Linear(3, 5, rngs=nnx.Rngs(0))
        for text, options in {
            "PCAffine expected as many in_features as out_features .* got 3 and 5": {"skip": True},
            r"ready module such as nnx\.LayerNorm\(5, rngs=rngs\), got 'layer'": {"norm": "layer"},
            "PCAffine expected pool to be 'max', 'average' or None, got 'mean'": {"pool": "mean"},
            r"PCAffine expected rngs with dropout=0\.5, got None": {"dropout": 0.5},
            "PCAffine expected dropout to be a number, got '0.5'": {"dropout": "0.5"},
        }.items():
            with pytest.raises((TypeError, ValueError), match=text):
                PCAffine(linear, **options)


MAKERS = {
    "dense": (lambda **o: pc.PCDense(4, 4, rngs=nnx.Rngs(0), **o), ["linear"]),
    "conv": (lambda **o: pc.PCConv(4, 4, 3, rngs=nnx.Rngs(0), **o), ["conv"]),
    "transposed": (lambda **o: pc.PCConvTranspose(4, 4, 3, rngs=nnx.Rngs(0), **o), ["conv"]),
    "mlp": (lambda **o: pc.PCMLP(4, 4, rngs=nnx.Rngs(0), **o), ["up", "down"]),
    "attention": (lambda **o: pc.PCAttention(4, 2, rngs=nnx.Rngs(0), **o), ["attention"]),
}


class TestOptionsOfTheModule:
    @pytest.mark.parametrize("kind", MAKERS)
    def test_dtype_of_parameters_and_initial_bias(self, kind):
        make, names = MAKERS[kind]
        layer = make(param_dtype=jnp.bfloat16, bias_init=nnx.initializers.constant(0.5))
        for name in names:
            module = getattr(layer, name)
            module = module.query if kind == "attention" else module
            assert module.kernel.dtype == jnp.bfloat16
            np.testing.assert_array_equal(module.bias[...], np.full(module.bias.shape, 0.5))
        parameters = jax.tree.leaves(nnx.state(layer, nnx.Param))
        assert {leaf.dtype for leaf in parameters} == {jnp.dtype(jnp.bfloat16)}  # a norm's, too

    @pytest.mark.parametrize("kind", ["dense", "conv", "transposed"])
    def test_axes_for_sharding_and_precision_of_products(self, kind):
        make, (name,) = MAKERS[kind]
        metadata = {"note": "wide"}
        module = getattr(make(kernel_metadata=metadata, precision="highest"), name)
        assert module.kernel.get_metadata()["note"] == "wide"
        assert module.precision == "highest"

    def test_a_convolution_of_higher_precision_is_the_same_sum(self):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 5, 4)), jnp.float32)
        plain, exact = (MAKERS["conv"][0](**options) for options in ({}, {"precision": "highest"}))
        np.testing.assert_allclose(plain.predict(x), exact.predict(x), rtol=1e-5, atol=1e-6)

    def test_initial_embeddings(self):
        ones = nnx.initializers.ones
        layer = pc.PCEmbedding(5, 2, num_positions=3, embedding_init=ones, rngs=nnx.Rngs(0))
        np.testing.assert_array_equal(layer.predict(jnp.array([[1, 4]])), np.full((1, 2, 2), 2.0))
        wide = pc.PCEmbedding(
            400, 100, embedding_init=nnx.initializers.normal(1.0), rngs=nnx.Rngs(0)
        )
        # 40,000 draws: the standard error of the variance is about 0.7 %
        assert np.var(wide.embedding.embedding[...]) == pytest.approx(1, rel=0.04)

    @pytest.mark.parametrize("kind", MAKERS)
    def test_an_option_that_nobody_has_is_refused(self, kind):
        with pytest.raises(
            TypeError, match=r"and its nnx\.\w+ have no option 'param_dtyp'; did you"
        ):
            MAKERS[kind][0](param_dtyp=jnp.bfloat16)
        with pytest.raises(TypeError, match="PCDense .*'activaton'; did you mean 'activation'"):
            MAKERS["dense"][0](activaton=jnp.tanh)
        with pytest.raises(TypeError, match="PCConvTranspose .*'feature_group_count'"):
            MAKERS["transposed"][0](groups=2)

    @pytest.mark.parametrize("kind", [pc.PCDense, pc.PCConv, pc.PCConvTranspose])
    def test_signatures_name_the_shared_options(self, kind):
        """An editor completes what a signature names."""
        shared = set(inspect.signature(PCAffine.__init__).parameters) - {
            "module",
            "pool",
            "pool_size",
        }
        assert shared <= set(inspect.signature(kind.__init__).parameters)


class TestNumPysNumbers:
    def test_integers_and_floats_of_a_sweep(self):
        two, three, half = np.arange(2, 3)[0], np.int32(3), np.float32(0.5)
        rngs = nnx.Rngs(0)
        conv = pc.PCConv(
            two, three, three, strides=two, dilation=np.array([1, 2]), pool="max", pool_size=two,
            padding=[(two, 0), [1, three]], dropout=half, rngs=rngs,
        )  # fmt: skip
        assert conv.conv.kernel.shape == (3, 3, 2, 3)
        assert conv.predict(jnp.ones((1, 12, 12, 2))).shape == (1, 3, 3, 3)
        assert pc.PCConv(two, two, np.array([3]), groups=two, rngs=rngs).conv.kernel.shape == (
            3,
            1,
            2,
        )
        assert pc.PCConvTranspose(two, three, three, strides=two, rngs=rngs).conv.strides == (2, 2)
        assert pc.PCDense(two, three, dropout=half, rngs=rngs).linear.kernel.shape == (2, 3)
        assert pc.PCAttention(np.int64(4), two, rngs=rngs).attention.num_heads == 2
        assert pc.PCMLP(two, three, rngs=rngs).up.kernel.shape == (2, 3)
        embedding = pc.PCEmbedding(three, two, num_positions=three, rngs=rngs)
        assert embedding.positions.embedding.shape == (3, 2)
        assert pc.layers.Reshape(two, three).shape == (2, 3)

    @pytest.mark.parametrize("wrong", [2.0, True, "3"])
    def test_what_is_no_integer_is_refused(self, wrong):
        with pytest.raises(TypeError, match="PCDense expected an int out_features, got"):
            pc.PCDense(3, wrong, rngs=nnx.Rngs(0))
        with pytest.raises(ValueError, match="PCDense expected in_features of at least 1, got 0"):
            pc.PCDense(0, 3, rngs=nnx.Rngs(0))
        if not isinstance(wrong, bool):
            with pytest.raises(ValueError, match="expected strides to be an int of at least 1"):
                pc.PCConv(3, 3, 3, strides=wrong, rngs=nnx.Rngs(0))


class TestSubclasses:
    def test_may_predict_on_their_own(self):
        class Twice(pc.PCDense):
            def predict(self, below):
                return 2 * super().predict(below)

        layer, plain = (kind(3, 2, rngs=nnx.Rngs(0)) for kind in (Twice, pc.PCDense))
        assert isinstance(layer, pc.PCDense)
        np.testing.assert_array_equal(pc.PCNetwork([layer]).predict(X), 2 * plain.predict(X))

    def test_kinds_stay_apart(self):
        conv, transposed = (
            kind(2, 2, 3, rngs=nnx.Rngs(0)) for kind in (pc.PCConv, pc.PCConvTranspose)
        )
        assert not isinstance(transposed, pc.PCConv)
        assert not isinstance(conv, pc.PCConvTranspose | pc.PCDense)
        assert isinstance(conv, PCAffine)
        assert isinstance(transposed, PCAffine)


class TestPool:
    @pytest.mark.parametrize("size", [0, 2.5, "2", (2, 0), ()])
    def test_a_window_is_of_counts(self, size):
        conv = nnx.Conv(2, 3, (3,), rngs=nnx.Rngs(0))
        with pytest.raises(
            ValueError, match="PCAffine expected pool_size to be an int of at least 1"
        ):
            PCAffine(conv, pool="max", pool_size=size)

    def test_a_list_is_a_window(self):
        layer = PCAffine(nnx.Conv(2, 3, (3,), rngs=nnx.Rngs(0)), pool="max", pool_size=[4])
        assert layer.predict(jnp.ones((1, 9, 2))).shape == (1, 2, 3)

    @pytest.mark.parametrize(
        ("module", "shape"),
        [
            (nnx.Linear(2, 3, rngs=nnx.Rngs(0)), (5, 2)),
            (nnx.Conv(2, 3, (3,), rngs=nnx.Rngs(0)), (5, 8, 2)),
        ],
    )
    def test_a_window_of_other_dimensions_than_space_is_refused(self, module, shape):
        layer = PCAffine(module, pool="average", pool_size=(2, 2))
        with pytest.raises(ValueError, match="with a size for each dimension of space, got"):
            layer.predict(jnp.ones(shape))
        if len(shape) == 2:  # one number for no dimension would be no pool at all
            with pytest.raises(ValueError, match="with a size for each dimension of space, got"):
                PCAffine(module, pool="max").predict(jnp.ones(shape))
