"""Multipliers against their table written out by hand, and what they and the rates do with width.

Oracles: the table of arXiv 2505.13124 and the learning rates of arXiv 2602.07697 as numbers; the size
of activities in a linear network with Gaussian weights, in closed form; and the claim of each
parameterization about what one step of learning moves when the network is 16 times as wide.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from pcflax.parameterizations import NTK, AbstractParameterization, CompleteP, MuPC, Standard

pytestmark = pytest.mark.slow

WIDTHS = (64, 256, 1024)


def multipliers(parameterization, *, skips):
    """a_1..a_5 of a network 9 - 16 - 16 - 16 - 16 - 2 with skips on layers 2 to 4, or without."""
    return [
        parameterization.multiplier(
            index=index,
            depth=5,
            in_features=9 if index == 0 else 16,
            skip=skips and index in (1, 2, 3),
        )
        for index in range(5)
    ]


class TestMultipliers:
    @pytest.mark.parametrize(
        ("parameterization", "skips", "expected"),
        [
            (Standard(), False, [1, 1, 1, 1, 1]),
            (Standard(), True, [1, 1, 1, 1, 1]),
            (NTK(), False, [1 / 3, 1 / 4, 1 / 4, 1 / 4, 1 / 4]),
            (NTK(), True, [1 / 3, 80**-0.5, 80**-0.5, 80**-0.5, 1 / 4]),
            (MuPC(), False, [1 / 3, 1 / 4, 1 / 4, 1 / 4, 1 / 16]),
            (MuPC(), True, [1 / 3, 80**-0.5, 80**-0.5, 80**-0.5, 1 / 16]),
        ],
    )
    @pytest.mark.parametrize("gamma", [1.0, 2.5, 0.5])
    def test_are_the_table(self, parameterization, skips, expected, gamma):
        """A wrong one is a network of another width in disguise: it trains, at another rate."""
        scaled = dataclasses.replace(parameterization, gamma=gamma)
        assert multipliers(scaled, skips=skips) == pytest.approx(
            [*expected[:-1], expected[-1] / gamma], rel=1e-15
        )

    @pytest.mark.parametrize("kind", [NTK, MuPC])
    def test_only_the_layers_with_a_skip_share_the_depth(self, kind):
        place = {"index": 2, "depth": 5, "in_features": 16}
        assert kind().multiplier(**place, skip=False) == 1 / 4
        assert kind().multiplier(**place, skip=True) == pytest.approx(80**-0.5)

    @pytest.mark.parametrize("kind", [NTK, MuPC])
    def test_go_by_the_width_below_each_layer(self, kind):
        place = {"index": 1, "depth": 3, "skip": False}
        assert kind().multiplier(**place, in_features=100) == pytest.approx(1 / 10)
        assert kind().multiplier(**place, in_features=25) == pytest.approx(1 / 5)

    @pytest.mark.parametrize("kind", [NTK, MuPC])
    def test_a_skip_of_the_first_or_last_layer_changes_nothing(self, kind):
        for index in (0, 4):
            place = {"index": index, "depth": 5, "in_features": 16}
            assert kind().multiplier(**place, skip=True) == kind().multiplier(**place, skip=False)

    @pytest.mark.parametrize(
        ("parameterization", "expected"),
        [(Standard(2.5), 1 / 2.5), (NTK(2.5), 1 / 10), (MuPC(2.5), 1 / 10)],
    )
    @pytest.mark.parametrize("skip", [False, True])
    def test_the_only_layer_is_a_first_one_divided_by_gamma(self, parameterization, expected, skip):
        """1/N would be wrong: the width of the input does not grow."""
        found = parameterization.multiplier(index=0, depth=1, in_features=16, skip=skip)
        assert found == pytest.approx(expected)

    @pytest.mark.parametrize("kind", [Standard, NTK, MuPC])
    @pytest.mark.parametrize("index", [-1, 5])
    def test_a_place_outside_the_network_is_refused(self, kind, index):
        text = (
            f"{kind.__name__} expected an index from 0 to 4 in a network of 5 layers, got {index}"
        )
        with pytest.raises(ValueError, match=text):
            kind().multiplier(index=index, depth=5, in_features=16, skip=False)

    @pytest.mark.parametrize("kind", [Standard, NTK, MuPC])
    @pytest.mark.parametrize("gamma", [0.0, -1.0, float("nan"), float("inf")])
    def test_a_gamma_that_is_none_is_refused(self, kind, gamma):
        text = f"{kind.__name__} expected a gamma above 0, got {gamma}"
        with pytest.raises(ValueError, match=re.escape(text)):
            kind(gamma=gamma)

    def test_one_of_ones_own_gives_a_multiplier_and_no_more(self):
        class Depthwise(AbstractParameterization):
            def base_multiplier(self, *, index, depth, in_features, skip):
                return 1 / (1 + index)

        own = Depthwise(gamma=2.0)
        assert multipliers(own, skips=True) == [1, 1 / 2, 1 / 3, 1 / 4, 1 / 10]
        assert own.kernel_init is None
        assert own.sgd_learning_rate(0.1, width=64) == own.adam_learning_rate(0.1, width=64) == 0.1


class TestInitialWeights:
    @pytest.mark.parametrize("kind", [NTK, MuPC])
    def test_are_standard_normal(self, kind):
        """100,000 draws: the standard errors of mean and variance are 0.3 and 0.45 %."""
        weights = np.asarray(kind().kernel_init(jax.random.key(0), (200, 500), jnp.float32))
        assert weights.mean() == pytest.approx(0, abs=0.015)
        assert weights.var() == pytest.approx(1, abs=0.025)

    def test_are_the_modules_own_under_the_standard_one(self):
        assert Standard().kernel_init is None


class TestLearningRates:
    def test_of_mupc(self):
        """Gradient descent lr * gamma^2 * N; Adam lr / sqrt(N), with skips lr / sqrt(N L)."""
        assert MuPC().sgd_learning_rate(0.1, width=64) == pytest.approx(6.4)
        assert MuPC(gamma=3.0).sgd_learning_rate(0.1, width=64) == pytest.approx(57.6)
        for gamma in (1.0, 3.0):
            assert MuPC(gamma).adam_learning_rate(0.1, width=64) == pytest.approx(0.0125)
            assert MuPC(gamma).adam_learning_rate(0.1, width=64, depth=4) == pytest.approx(0.00625)

    @pytest.mark.parametrize("parameterization", [Standard(3.0), NTK(3.0)])
    def test_of_the_others_are_as_given(self, parameterization):
        assert parameterization.sgd_learning_rate(0.1, width=64) == 0.1
        assert parameterization.adam_learning_rate(0.1, width=64) == 0.1
        assert parameterization.adam_learning_rate(0.1, width=64, depth=4) == 0.1


def build(parameterization, *, width, depth=4, skips=False, activation=None, **options):
    """A network 10 - width - ... - width - 3, activation before the weights, without biases."""
    rngs = nnx.Rngs(0)
    dims = [10, *[width] * (depth - 1), 3]
    layers = [
        pc.PCDense(
            below,
            above,
            activation=activation if index else None,
            activation_first=True,
            skip=skips and 0 < index < depth - 1,
            parameterization=parameterization,
            use_bias=False,
            rngs=rngs,
            **options,
        )
        for index, (below, above) in enumerate(zip(dims[:-1], dims[1:], strict=True))
    ]
    return pc.PCNetwork(layers)


def examples():
    random = np.random.RandomState(0)
    return [random.normal(size=(16, width)).astype(np.float32) for width in (10, 3)]


def sizes(activities):
    """Root mean square of each layer's activity."""
    return np.array([np.sqrt(np.mean(np.square(values))) for values in activities.values()])


def movement(network, optimizer, *, first_held=False):
    """How far one step of backprop moves each layer's activity, root mean square."""
    x, y = examples()

    @jax.jit
    def moves(before):
        gradients, _ = pc.learning.Backprop().gradients(
            before, pc.Evidence(x, y), key=jax.random.key(0)
        )
        with jax.numpy_dtype_promotion("standard"):  # optax counts in integers
            updates, _ = optimizer.update(gradients, optimizer.init(before.parameters))
        if first_held:
            updates["layer_0"] = jax.tree.map(jnp.zeros_like, updates["layer_0"])
        after = before.replace(parameters=optax.apply_updates(before.parameters, updates))
        start, end = (split.bind().feedforward(x) for split in (before, after))
        return {name: end[name] - start[name] for name in start}

    return sizes(moves(pc.networks.split(network)))


class TestWidthAndDepth:
    @pytest.mark.parametrize("kind", [NTK, MuPC])
    @pytest.mark.parametrize("skips", [False, True])
    @pytest.mark.parametrize("activation", [None, jnp.tanh])
    def test_hidden_activities_keep_their_size_as_width_grows(self, kind, skips, activation):
        """Linear: rms 1, with skips sqrt(1.25^2); tanh is smaller. 0.4 to 1.8 allows for 64 draws."""
        x, _ = examples()
        for width in WIDTHS:
            network = build(kind(), width=width, skips=skips, activation=activation)
            hidden = sizes(network.feedforward(x))[:-1]
            assert hidden.min() > 0.4
            assert hidden.max() < 1.8

    def test_without_multipliers_such_weights_make_them_grow(self):
        """If this did not, the test above could not fail: sqrt(1024)^2 after two hidden layers."""
        x, _ = examples()
        network = build(Standard(), width=1024, kernel_init=nnx.initializers.normal(1.0))
        assert sizes(network.feedforward(x))[2] > 1000

    @pytest.mark.parametrize("depth", [4, 16, 64])
    def test_skips_share_one_layers_worth_of_variance(self, depth):
        """E z^2 grows by 1 + 1/L a layer, so to less than e at any depth; 10 % for 512 draws."""
        x, _ = examples()
        size = sizes(build(MuPC(), width=512, depth=depth, skips=True).feedforward(x))
        expected = size[0] * (1 + 1 / depth) ** ((depth - 2) / 2)
        assert size[-2] == pytest.approx(expected, rel=0.1)

    @pytest.mark.parametrize("skips", [False, True])
    @pytest.mark.parametrize("gamma", [1.0, 2.0])
    def test_mupc_learns_features_at_every_width_at_one_base_rate(self, skips, gamma):
        """Under gradient descent all layers move alike at 64 and 1024 units, the output too.

        The rate that is not scaled with the width would move them 16 times less.
        """
        mupc = MuPC(gamma=gamma)
        moved = [
            movement(
                build(mupc, width=width, skips=skips, activation=jnp.tanh),
                optax.sgd(mupc.sgd_learning_rate(0.1, width=width)),
            )
            for width in WIDTHS
        ]
        assert np.all(np.abs(np.log(moved[-1] / moved[0])) < np.log(1.3))

    def test_gamma_moves_features_more_for_the_same_output(self):
        """Features move in proportion to gamma: the output's step does not depend on it."""
        once, twice = (
            movement(
                build(mupc, width=1024, activation=jnp.tanh),
                optax.sgd(mupc.sgd_learning_rate(0.1, width=1024)),
            )
            for mupc in (MuPC(), MuPC(gamma=2.0))
        )
        # 5 %: the output starts at another, small value, and so does its error
        np.testing.assert_allclose(twice / once, [2, 2, 2, 1], rtol=0.05)

    def test_ntk_features_stand_still_as_width_grows(self):
        """They move as 1/sqrt(N), 4 times less at 16 times the width, at a rate that needs no rule."""
        few, many = (
            movement(build(NTK(), width=width, activation=jnp.tanh), optax.sgd(0.1))
            for width in (64, 1024)
        )
        assert np.all(few[1:3] / many[1:3] > 2)
        assert np.all(few[1:3] / many[1:3] < 6)
        assert 0.5 < few[3] / many[3] < 2

    @pytest.mark.parametrize("skips", [False, True])
    def test_adam_moves_hidden_features_and_output_alike_at_every_width(self, skips):
        """What the layers above the first do; an unscaled rate would move them 4 times more.

        The first layer's fan-in does not grow, so under the one rate for all layers its own share
        falls as 1/sqrt(N): 4 times from 64 to 1024 units.
        """

        def step(width, **options):
            depth = 4 if skips else None
            return movement(
                build(MuPC(), width=width, skips=skips, activation=jnp.tanh),
                # an epsilon far below the gradients, which shrink with the width
                optax.adam(MuPC().adam_learning_rate(0.1, width=width, depth=depth), eps=1e-30),
                **options,
            )

        few, many = (step(width, first_held=True)[1:] for width in (64, 1024))
        assert np.all(np.abs(np.log(many / few)) < np.log(1.3))
        assert step(64)[0] / step(1024)[0] == pytest.approx(4, rel=0.1)


class TestRatesByLayer:
    def test_are_the_table(self):
        """Of D = 9, N = 16, L = 5: first, hidden, the same with a skip, last; biases, with a skip, within."""

        def rates(kind):
            weights = [
                kind().weight_rate(index=i, depth=5, in_features=9 if i == 0 else 16, skip=skip)
                for i, skip in ((0, False), (1, False), (1, True), (4, False))
            ]
            place = {"index": 1, "depth": 5}
            biases = [kind().bias_rate(**place, skip=skip) for skip in (False, True)]
            return [*weights, *biases, kind().bias_rate(**place, skip=True, within=True)]

        assert rates(Standard) == rates(NTK) == [1.0] * 7
        expected = [1 / 3, 1 / 4, 80**-0.5, 1, 1, 1 / 5, 5**-0.5]
        assert rates(MuPC) == pytest.approx(expected)
        assert rates(CompleteP) == pytest.approx([1 / 3, 1 / 4, 1 / 4, 1, 1, 1 / 5, 1])

    def test_of_hidden_layers_are_the_one_rate_of_mupc_and_complete_p(self):
        place = {"index": 2, "depth": 5, "in_features": 16}
        for kind, with_skip in ((MuPC, 80**-0.5), (CompleteP, 1 / 4)):
            assert kind().adam_learning_rate(1.0, width=16) == kind().weight_rate(
                **place, skip=False
            )
            found = kind().adam_learning_rate(1.0, width=16, depth=5)
            assert found == pytest.approx(kind().weight_rate(**place, skip=True))
            assert found == pytest.approx(with_skip)

    def test_of_one_rate_for_all_the_first_layer_falls_behind_with_the_depth(self):
        """As 1/sqrt(L) at one width: 4 times from 4 to 64 layers, and not at all with rates by layer."""

        def first(depth, by_layer):
            network = build(MuPC(), width=16, depth=depth, skips=True, activation=jnp.tanh)
            rate = 0.01 if by_layer else MuPC().adam_learning_rate(0.01, width=16, depth=depth)
            scale = pc.learning.scale_by_layer(network) if by_layer else optax.identity()
            return movement(network, optax.chain(optax.adam(rate, eps=1e-30), scale))[0]

        assert first(4, False) / first(16, False) == pytest.approx(2, rel=0.05)
        assert first(4, True) / first(16, True) == pytest.approx(1, rel=0.05)


class TestCompleteP:
    @pytest.mark.parametrize("gamma", [1.0, 2.5])
    def test_is_mupc_with_the_depth_in_the_place_of_its_root(self, gamma):
        assert multipliers(CompleteP(gamma), skips=False) == multipliers(MuPC(gamma), skips=False)
        expected = [1 / 3, 1 / 20, 1 / 20, 1 / 20, 1 / 16 / gamma]
        assert multipliers(CompleteP(gamma), skips=True) == pytest.approx(expected)


class TestLayers:
    @pytest.mark.parametrize("groups", [1, 2])
    def test_a_convolution_counts_the_area_of_its_kernel(self, groups):
        """3 x 5 taps of 4/groups channels; as a middle layer of depth 4 with a skip."""
        options = {"parameterization": MuPC(), "groups": groups, "skip": True}
        layer = pc.PCConv(4, 4, (3, 5), **options, rngs=nnx.Rngs(0))
        layer.set_place(1, 4)
        fan_in = 3 * 5 * 4 / groups
        assert layer.multiplier == pytest.approx((fan_in * 4) ** -0.5)
        assert layer.rate_of(("conv", "kernel"), 1, 4) == pytest.approx((fan_in * 4) ** -0.5)
        assert layer.rate_of(("conv", "bias"), 1, 4) == 1 / 4
        x = jnp.asarray(np.random.RandomState(0).normal(size=(2, 6, 7, 4)), jnp.float32)
        bias = np.random.RandomState(1).normal(size=4).astype(np.float32)
        layer.conv.bias.set_value(jnp.asarray(bias))
        product = jax.lax.conv_general_dilated(
            x,
            layer.conv.kernel[...],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )
        expected = np.asarray(x + layer.multiplier * product) + bias
        np.testing.assert_allclose(layer.predict(x), expected, rtol=1e-4, atol=1e-5)

    def test_a_transposed_convolution_counts_what_meets_in_a_place(self):
        """4 x 4 taps at strides of 2: 4 of them times 3 channels. Predictions have size 1 (sd 3 %)."""
        layer = pc.PCConvTranspose(
            3, 200, 4, strides=2, parameterization=MuPC(), use_bias=False, rngs=nnx.Rngs(0)
        )
        assert layer.multiplier == pytest.approx(12**-0.5)
        x = jnp.asarray(np.random.RandomState(0).choice([-1.0, 1.0], size=(8, 6, 6, 3)))
        inside = np.asarray(layer.predict(x))[:, 2:-2, 2:-2]
        assert np.sqrt(np.mean(inside**2)) == pytest.approx(1, abs=0.05)

    @pytest.mark.parametrize(
        "make",
        [
            lambda p: pc.PCConv(20, 30, 3, parameterization=p, rngs=nnx.Rngs(0)).conv.kernel,
            lambda p: pc.PCMLP(40, 90, parameterization=p, rngs=nnx.Rngs(0)).up.kernel,
            lambda p: (
                pc.PCAttention(64, 4, parameterization=p, rngs=nnx.Rngs(0)).attention.out.kernel
            ),
        ],
    )
    def test_draw_the_initial_weights_of_the_parameterization(self, make):
        """Variance 1, and 1/fan-in or so without; 3,600 draws have a standard error of 2.4 %."""
        assert float(jnp.var(make(MuPC())[...])) == pytest.approx(1, abs=0.08)
        assert float(jnp.var(make(None)[...])) < 0.1

    def test_attention_is_the_equation_with_multipliers(self):
        """W_o a_o softmax(q k / d) v with a_o = 1/sqrt(N L), and q, k, v of a LayerNorm over sqrt(N)."""
        layer = pc.PCAttention(6, 2, parameterization=MuPC(), rngs=nnx.Rngs(0))
        layer.set_place(1, 4)
        own = layer.attention
        x = np.random.RandomState(0).normal(size=(2, 5, 6)).astype(np.float32)
        normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        q, k, v = (
            np.einsum("btf,fhd->bthd", normed, part.kernel[...]) / 6**0.5
            for part in (own.query, own.key, own.value)
        )
        weights = jax.nn.softmax(np.einsum("bqhd,bkhd->bhqk", q, k) / 3, axis=-1)
        heads = np.einsum("bhqk,bkhd->bqhd", weights, v) / (6 * 4) ** 0.5
        expected = x + np.einsum("bqhd,hdf->bqf", heads, own.out.kernel[...])
        np.testing.assert_allclose(layer.predict(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-5)
        rates = [
            layer.rate_of(path, 1, 4)
            for path in (("attention", "query", "kernel"), ("attention", "out", "kernel"))
        ]
        assert rates == pytest.approx([24**-0.5, 24**-0.5])

    def test_an_mlp_is_the_equation_with_multipliers(self):
        """W_2 a_2 tanh(W_1 a_1 LayerNorm(z) + b_1) + b_2: biases are not multiplied."""
        layer = pc.PCMLP(6, 10, activation=jnp.tanh, parameterization=CompleteP(), rngs=nnx.Rngs(0))
        layer.set_place(2, 5)
        random = np.random.RandomState(0)
        x = random.normal(size=(3, 6)).astype(np.float32)
        first, second = (random.normal(size=n).astype(np.float32) for n in (10, 6))
        layer.up.bias.set_value(jnp.asarray(first))
        layer.down.bias.set_value(jnp.asarray(second))
        normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        hidden = np.tanh(normed @ np.asarray(layer.up.kernel) / 6**0.5 + first)
        expected = x + hidden @ np.asarray(layer.down.kernel) / (10**0.5 * 5) + second
        np.testing.assert_allclose(layer.predict(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-5)

    def test_a_stack_in_a_graph_has_the_multipliers_and_rates_of_its_layers_one_by_one(self):
        """Two branches of 3 and 1 hidden layers: depth 5 for all of them, by the longest path."""

        def make(stacked):
            shared = {"activation_first": True, "parameterization": MuPC()}
            rngs = nnx.Rngs(0)

            def hidden():
                return pc.PCDense(8, 8, activation=jnp.tanh, skip=True, **shared, rngs=rngs)

            first = {"first": pc.PCDense(3, 8, **shared, rngs=rngs)}
            if stacked:
                long = {"long": pc.PCStack(hidden, 3)}
                parents = {"first": "x", "long": "first", "short": "first"}
            else:
                long = {f"long_{i}": hidden() for i in range(3)}
                parents = {"first": "x", "long_0": "first", "long_1": "long_0", "long_2": "long_1"}
                parents["short"] = "first"
            top = "long" if stacked else "long_2"
            rest = {"short": hidden(), "output": pc.PCDense(8, 2, **shared, rngs=rngs)}
            parents["output"] = pc.networks.Sum(top, "short")
            layers = first | long | rest
            return pc.PCGraph(layers, parents=parents, inputs={"x": 3}, output="output")

        graph, unrolled = make(True), make(False)
        multiplier = graph.layer("long").stacked.multiplier
        assert multiplier == graph.layer("short").multiplier == pytest.approx(40**-0.5)
        x = jnp.asarray(np.random.RandomState(0).normal(size=(4, 3)), jnp.float32)
        np.testing.assert_allclose(graph.predict(x), unrolled.predict(x), rtol=1e-5)

        def scaled(network):
            ones = optax.tree.ones_like(pc.networks.split(network).parameters)
            rates = pc.learning.scale_by_layer(network)
            return rates.update(ones, rates.init(ones))[0]

        one, other = scaled(graph), scaled(unrolled)
        for part, rate in (("kernel", 40**-0.5), ("bias", 1 / 5)):
            np.testing.assert_allclose(
                one["long"]["stacked-layers"]["linear"][part], rate, rtol=1e-6
            )
            np.testing.assert_allclose(other["long_1"]["linear"][part], rate, rtol=1e-6)
            np.testing.assert_allclose(one["short"]["linear"][part], rate, rtol=1e-6)
        assert (one["first"]["linear"]["kernel"] == np.float32(3**-0.5)).all()
        assert (one["output"]["linear"]["kernel"] == 1).all()

    @pytest.mark.parametrize("kind", [MuPC, CompleteP])
    def test_rates_within_the_last_block_are_those_within_the_first(self, kind):
        """Neither shares the depth: its skip does not count."""
        layer = pc.PCMLP(16, 64, parameterization=kind(), rngs=nnx.Rngs(0))
        for place in ((0, 1), (0, 4), (3, 4)):
            rates = [layer.rate_of(("up", part), *place) for part in ("kernel", "bias")]
            assert rates == [1 / 4, 1]

    def test_numbers_of_numpy_and_jax_leave_16_bits_as_they_are(self):
        @dataclasses.dataclass(frozen=True)
        class Own(AbstractParameterization):
            def base_multiplier(self, *, index, depth, in_features, skip):
                return 1 / np.sqrt(in_features)

            def weight_rate(self, *, index, depth, in_features, skip):
                return jnp.sqrt(in_features)

        low = jnp.bfloat16
        for own in (Own(), MuPC(np.float64(2.0)), MuPC(jnp.asarray(2.0)), MuPC(2)):
            layer = pc.PCDense(4, 5, parameterization=own, param_dtype=low, rngs=nnx.Rngs(0))
            network = pc.PCNetwork([layer])
            assert network.predict(jnp.ones((1, 4), low)).dtype == low
            parameters = pc.networks.split(network).parameters
            rates = pc.learning.scale_by_layer(network)
            updates, _ = rates.update(parameters, rates.init(parameters))
            assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(low)}
        assert repr(MuPC(np.float32(2.0))) == "MuPC(gamma=2.0)"  # by which checkpoints know it

    def test_layers_of_a_stack_with_rates_of_their_own_are_refused(self):
        """Their weights are one array, of which all would have the lowest layer's."""

        @dataclasses.dataclass(frozen=True)
        class Falling(Standard):
            def weight_rate(self, *, index, depth, in_features, skip):
                return 0.5**index

        options = {"parameterization": Falling(), "rngs": nnx.Rngs(0)}
        stack = pc.PCStack(lambda: pc.PCDense(4, 4, **options), 2)
        network = pc.PCNetwork({"hidden": stack, "output": pc.PCDense(4, 2, **options)})
        text = r"one rate of all layers of the stack 'hidden', got \[1.0, 0.5\] for linear.kernel"
        with pytest.raises(ValueError, match=text):
            pc.learning.scale_by_layer(network)

    def test_rates_of_what_is_no_network_are_refused(self):
        with pytest.raises(TypeError, match="scale_by_layer expected network such as"):
            pc.learning.scale_by_layer({})

    def test_what_is_no_number_is_refused(self):
        class Forgetful(AbstractParameterization):
            def base_multiplier(self, *, index, depth, in_features, skip):
                pass

        with pytest.raises(TypeError, match="Forgetful expected multiplier to be a number, got No"):
            pc.PCDense(4, 5, parameterization=Forgetful(), rngs=nnx.Rngs(0))

    def test_what_a_network_holds_itself_keeps_the_rate(self):
        """A layer that is called as the network's attribute has its own."""

        class Scaled(pc.PCNetwork):
            def __init__(self, layers):
                super().__init__(layers)
                self.scale = nnx.Param(jnp.ones(()))

        network = Scaled({"layers": pc.PCDense(4, 5, parameterization=MuPC(), rngs=nnx.Rngs(0))})
        ones = optax.tree.ones_like(pc.networks.split(network).parameters)
        rates = pc.learning.scale_by_layer(network)
        updates, _ = rates.update(ones, rates.init(ones))
        assert updates["scale"] == 1
        assert (updates["layers"]["linear"]["kernel"] == 0.5).all()

    def test_rates_of_another_network_are_refused(self):
        rates = pc.learning.scale_by_layer(build(MuPC(), width=4))
        strange = {"elsewhere": {"linear": {"kernel": jnp.ones((2, 2))}}}
        with pytest.raises(
            ValueError, match="made for another network: it knows no parameter elsewhere"
        ):
            rates.update(strange, rates.init(strange))

    @pytest.mark.parametrize(
        "make",
        [
            lambda **own: pc.PCConv(2, 3, 3, **own),
            lambda **own: pc.PCAttention(4, 2, **own),
            lambda **own: pc.PCMLP(4, 8, **own),
        ],
    )
    def test_what_is_no_parameterization_is_refused(self, make):
        with pytest.raises(
            TypeError, match="expected parameterization such as pc.parameterizations.MuPC"
        ):
            make(parameterization="mupc", rngs=nnx.Rngs(0))
