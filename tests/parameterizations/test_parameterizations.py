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
from pcflax.parameterizations import NTK, AbstractParameterization, MuPC, Standard

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
    return [jnp.asarray(random.normal(size=(16, width)), jnp.float32) for width in (10, 3)]


def sizes(activities):
    """Root mean square of each layer's activity."""
    return np.array([np.sqrt(np.mean(np.square(values))) for values in activities.values()])


def movement(network, optimizer, *, first_held=False):
    """How far one step of backprop moves each layer's activity, root mean square."""
    x, y = examples()
    before = network.feedforward(x)
    split = pc.networks.split(network)
    gradients, _ = pc.learning.Backprop().gradients(split, pc.Evidence(x, y), key=jax.random.key(0))
    updates, _ = optimizer.update(gradients, optimizer.init(split.parameters))
    if first_held:
        updates["layer_0"] = jax.tree.map(jnp.zeros_like, updates["layer_0"])
    moved = split.replace(parameters=optax.apply_updates(split.parameters, updates)).bind()
    after = moved.feedforward(x)
    return sizes({name: after[name] - before[name] for name in before})


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
