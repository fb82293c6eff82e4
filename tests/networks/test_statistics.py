"""What layers keep beside their weights: batch statistics, random masks, Variables of their own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc

pytestmark = pytest.mark.slow

MOMENTUM, EPSILON = 0.6, 1e-5
FEW = pc.inference.GradientDescent(optax.sgd(0.1), num_steps=4)
SGD = optax.sgd(0.2)
PC = pc.learning.PredictiveCoding(FEW)
RULES = {
    "predictive coding": PC,
    "incremental": pc.learning.IncrementalPC(FEW),
    "fixed prediction": pc.learning.FixedPrediction(
        pc.inference.GradientDescent(optax.sgd(1.0), num_steps=2)
    ),
    "zil": pc.learning.ZIL(),
    "nudged, centred": pc.learning.Nudged(FEW, beta=0.3, centred=True),
    "backprop": pc.learning.Backprop(),
}


def float_of(precise):
    return jnp.float64 if precise else jnp.float32


def normalized(precise=True, dropout=0.0):
    """Dense, dense with a normalization, dense; weights, statistics and scales of no symmetry."""
    random, rngs = np.random.RandomState(0), nnx.Rngs(0)
    norm = nnx.BatchNorm(5, momentum=MOMENTUM, epsilon=EPSILON, rngs=rngs)
    network = pc.PCNetwork(
        {
            "a": pc.PCDense(3, 4, activation=jnp.tanh, rngs=rngs),
            "b": pc.PCDense(4, 5, activation=jnp.tanh, norm=norm, dropout=dropout, rngs=rngs),
            "c": pc.PCDense(5, 2, rngs=rngs),
        }
    )

    def moved(leaf):
        values = np.asarray(leaf) + 0.2 * random.normal(size=leaf.shape)
        return jnp.asarray(np.abs(values) + 0.1, float_of(precise))

    state = nnx.state(network, nnx.Any(nnx.Param, nnx.BatchStat))
    nnx.update(network, jax.tree.map(moved, state))
    for layer in network.layers:  # of both signs
        sign = np.sign(random.normal(size=layer.linear.kernel.shape))
        layer.linear.kernel.set_value(layer.linear.kernel[...] * sign)
    return network


def arrays_of(network):
    """(kernel, bias) of each layer, the scale and shift of the norm, its running mean and variance."""
    pairs = [(np.asarray(at.linear.kernel), np.asarray(at.linear.bias)) for at in network.layers]
    norm = network.layers[1].norm
    return pairs, (np.asarray(norm.scale), np.asarray(norm.bias)), running(network)


def running(network):
    norm = network.layers[1].norm
    return np.asarray(norm.mean), np.asarray(norm.var)


def batch_statistics(network, x):
    """Mean and variance over the batch of what the norm sees in a feedforward pass."""
    ((kernel_a, bias_a), (kernel_b, bias_b), _), _, _ = arrays_of(network)
    before = np.tanh(x @ kernel_a + bias_a) @ kernel_b + bias_b
    return before.mean(axis=0), before.var(axis=0)


def predictions(network, x, z_a, z_b, statistics):
    """All predictions at these activities under these statistics, and the slope of the norm."""
    ((kernel_a, bias_a), (kernel_b, bias_b), (kernel_c, bias_c)), (scale, shift), _ = arrays_of(
        network
    )
    mean, variance = statistics
    slope = scale / np.sqrt(variance + EPSILON)
    mu_a = np.tanh(x @ kernel_a + bias_a)
    mu_b = np.tanh((z_a @ kernel_b + bias_b - mean) * slope + shift)
    return mu_a, mu_b, z_b @ kernel_c + bias_c, slope


def batch(size=4, seed=1):
    random = np.random.RandomState(seed)
    return random.normal(size=(size, 3)), random.normal(size=(size, 2))


@functools.partial(jax.jit, static_argnames="inference")
def solve(inference, network, x, y):
    return inference.solve(pc.inference.make_problem(network, pc.Evidence(x, y)))


@pytest.mark.promotes("flax's BatchNorm does not run in 64 bits under strict promotion of dtypes")
@pytest.mark.usefixtures("double")
class TestInference:
    """If these fail, an example's energy depends on its neighbours, or on the number of steps."""

    def test_statistics_are_those_of_the_feedforward_pass(self):
        network, (x, y) = normalized(), batch()
        statistics = batch_statistics(network, x)
        pairs = arrays_of(network)[0]
        z_a = np.tanh(x @ pairs[0][0] + pairs[0][1])
        z_b = predictions(network, x, z_a, np.zeros((4, 5)), statistics)[1]
        steps = 9
        totals = []
        for step in range(steps + 1):
            mu_a, mu_b, mu_c, slope = predictions(network, x, z_a, z_b, statistics)
            e_a, e_b, e_c = z_a - mu_a, z_b - mu_b, y - mu_c
            totals.append(0.5 * sum((e**2).sum(axis=-1) for e in (e_a, e_b, e_c)))
            if step == steps:
                break
            back = (e_b * (1 - mu_b**2) * slope) @ pairs[1][0].T
            z_a, z_b = z_a - 0.1 * (e_a - back), z_b - 0.1 * (e_b - e_c @ pairs[2][0].T)
        result = network.infer(
            x, y, inference=pc.inference.GradientDescent(optax.sgd(0.1), num_steps=9), trace=True
        )
        np.testing.assert_allclose(result.activities["a"], z_a, rtol=1e-9)
        np.testing.assert_allclose(result.activities["b"], z_b, rtol=1e-9)
        np.testing.assert_allclose(result.trace.energy, totals, rtol=1e-9)
        # they moved, so that statistics of the activities at hand would have shown
        assert (
            np.abs(z_a.mean(axis=0) - np.tanh(x @ pairs[0][0] + pairs[0][1]).mean(0)).max() > 0.01
        )

    def test_in_evaluation_they_are_the_running_ones(self):
        network, (x, _) = normalized(), batch()
        network.eval()
        pairs = arrays_of(network)[0]
        z_a = np.tanh(x @ pairs[0][0] + pairs[0][1])
        z_b = predictions(network, x, z_a, np.zeros((4, 5)), running(network))[1]
        expected = predictions(network, x, z_a, z_b, running(network))[2]
        np.testing.assert_allclose(network.predict(x), expected, rtol=1e-10)
        result = network.infer(x, inference=FEW)
        np.testing.assert_allclose(result.activities["c"], expected, rtol=1e-10)

    def test_reading_leaves_the_running_statistics_alone(self):
        network, (x, y) = normalized(), batch()
        before = running(network)
        network.init_activities(x, targets=y)
        network.energies(x)
        network.predict(x)
        for _ in range(2):
            network.infer(x, y, inference=FEW)
        network.infer(x, y, inference=pc.inference.ErrorCoordinates(FEW))
        pc.analysis.gradient_alignment(network, x, y, learning=PC)
        for got, expected in zip(running(network), before, strict=True):
            np.testing.assert_array_equal(got, expected)
        assert network.layers[1].norm.use_running_average is False
        assert network.layers[1].norm.momentum == MOMENTUM

    @pytest.mark.parametrize(
        "inference",
        [FEW, pc.inference.NewtonCG(num_steps=2), pc.inference.ErrorCoordinates(FEW)],
        ids=["gradient", "newton", "errors"],
    )
    def test_examples_do_not_touch_each_other(self, inference):
        """Another target of the first example changes nothing for the others."""
        network, (x, y) = pc.networks.split(normalized()), batch()
        other = y.copy()
        other[0] += 3.0
        one, two = solve(inference, network, x, y), solve(inference, network, x, other)
        for name in ("a", "b"):
            np.testing.assert_array_equal(one.activities[name][1:], two.activities[name][1:])
            assert np.abs(one.activities[name][0] - two.activities[name][0]).max() > 1e-3
        np.testing.assert_array_equal(one.energy[1:], two.energy[1:])

    def test_no_gradient_through_the_statistics(self):
        """They are constants of the batch: the rule's gradient by jax, with NumPy's statistics."""
        network, (x, y) = normalized(), batch()
        split = pc.networks.split(network)
        rule = pc.learning.PredictiveCoding(FEW)
        gradients, info = jax.jit(
            lambda split: rule.gradients(split, pc.Evidence(x, y), key=jax.random.key(0))
        )(split)
        mean, variance = batch_statistics(network, x)
        z_a, z_b = (np.asarray(info.activities[name]) for name in "ab")

        def energy(kernel, scale):
            norm = network.layers[1].norm
            before = z_a @ kernel + network.layers[1].linear.bias[...]
            mu = jnp.tanh((before - mean) / np.sqrt(variance + EPSILON) * scale + norm.bias[...])
            return 0.5 * jnp.mean(jnp.sum((z_b - mu) ** 2, axis=-1))

        norm = network.layers[1].norm
        expected = jax.grad(energy, argnums=(0, 1))(
            network.layers[1].linear.kernel[...], norm.scale[...]
        )
        own = split.replace(parameters=gradients).bind().layers[1]
        np.testing.assert_allclose(own.linear.kernel, expected[0], rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(own.norm.scale, expected[1], rtol=1e-8, atol=1e-12)


def data_of(size=16, seed=1, batch_size=4, dtype=np.float32, **options):
    x, y = batch(size, seed)
    return pc.data.from_arrays(
        x.astype(dtype), y.astype(dtype), batch_size=batch_size, shuffle=False, **options
    )


def trainer_of(network, learning=PC, folder=None, **keep):
    return pc.Trainer(
        network,
        SGD,
        learning=learning,
        checkpoints=None if folder is None else pc.Checkpoints(folder, **keep),
        progress=False,
    )


class TestTraining:
    @pytest.mark.parametrize("learning", RULES.values(), ids=RULES.keys())
    def test_running_statistics_move_once_a_batch(self, learning):
        """To momentum * old + (1 - momentum) * the batch's own, whatever inference does meanwhile."""
        network, data = normalized(precise=False), data_of()
        trainer = trainer_of(network, learning)
        x = batch(16)[0].astype(np.float32)
        for step in range(2):
            mean, variance = batch_statistics(network, x[4 * step : 4 * step + 4])
            before = running(network)
            trainer.fit(data, num_steps=step + 1)
            after = running(network)
            for new, old, own in zip(after, before, (mean, variance), strict=True):
                expected = MOMENTUM * old + (1 - MOMENTUM) * own
                np.testing.assert_allclose(new, expected, rtol=1e-5, atol=1e-6)
                assert np.abs(new - old).max() > 1e-2
        pairs = arrays_of(network)[0]  # and evaluation takes them
        z_a = np.tanh(x @ pairs[0][0] + pairs[0][1])
        z_b = predictions(network, x, z_a, np.zeros((16, 5)), running(network))[1]
        expected = predictions(network, x, z_a, z_b, running(network))[2]
        np.testing.assert_allclose(trainer.predict(x), expected, rtol=1e-4, atol=1e-5)
        if learning is PC:
            loss = np.mean((expected - batch(16)[1]) ** 2)
            assert trainer.evaluate(data)["squared_error"] == pytest.approx(loss, rel=1e-5)
            for new, old in zip(running(network), after, strict=True):
                np.testing.assert_array_equal(new, old)

    def test_resumes_exactly_with_dropout_and_statistics(self, tmp_path):
        def states(trainer):
            kinds = nnx.Any(nnx.Param, nnx.BatchStat)
            return jax.tree.leaves(nnx.as_pure(nnx.state(trainer.network, kinds)))

        data = data_of()
        whole = trainer_of(normalized(precise=False, dropout=0.3))
        whole.fit(data, num_steps=9)
        first = trainer_of(normalized(precise=False, dropout=0.3), PC, tmp_path)
        first.fit(data, num_steps=5)
        second = trainer_of(normalized(precise=False, dropout=0.3), PC, tmp_path)
        assert second.restore() == 5
        assert any(
            not np.array_equal(*pair) for pair in zip(states(second), states(whole), strict=True)
        )
        second.fit(data, num_steps=9)
        for got, expected in zip(states(second), states(whole), strict=True):
            np.testing.assert_array_equal(got, expected)


# Dropout. The dropped layer predicts 1 before the mask, so that the mask can be read off: 0, or 2.

STILL = pc.learning.PredictiveCoding(pc.inference.GradientDescent(optax.sgd(0.1), num_steps=0))


def dropped(seed=0):
    rngs = nnx.Rngs(seed)
    hidden = pc.PCDense(3, 8, dropout=0.5, rngs=rngs)
    hidden.linear.kernel.set_value(jnp.zeros((3, 8)))
    hidden.linear.bias.set_value(jnp.ones(8))
    return pc.PCNetwork({"hidden": hidden, "out": pc.PCDense(8, 2, rngs=rngs)})


class TestDropout:
    def test_one_mask_a_batch_and_another_for_the_next(self, tmp_path):
        """All evaluations of a step agree: inference's start, its energies and the weights' gradient."""
        data, masks = data_of(), []
        still = trainer_of(dropped(), STILL, tmp_path, activities=True, every=100)
        for step in range(3):
            network = still.network
            network.layers[0].linear.kernel.set_value(jnp.zeros((3, 8)))
            network.layers[0].linear.bias.set_value(jnp.ones(8))
            history = still.fit(data, num_steps=step + 1, log_every=1)
            start = np.asarray(network.activities()["hidden"])
            assert set(np.unique(start)) == {0.0, 2.0}
            masks.append(start)
            # z is from one evaluation and mu from another
            assert history["train/energy/hidden"][-1] == 0.0
        for number in range(3):
            assert not np.array_equal(masks[number], masks[number - 1])
            assert 0.2 < (masks[number] == 0).mean() < 0.8
        assert not np.array_equal(masks[0][0], masks[0][1])  # nor one for all examples
        moving = trainer_of(dropped(), PC, tmp_path / "moving", activities=True)
        moving.fit(data, num_steps=1)
        z = np.asarray(moving.network.activities()["hidden"])
        change = np.asarray(moving.network.layers[0].linear.bias) - 1
        # the same seed and step, so the same mask: 2 is the prediction's slope where it is kept
        expected = 0.2 * np.mean((z - masks[0]) * masks[0], axis=0)
        np.testing.assert_allclose(change, expected, rtol=1e-4, atol=1e-7)
        assert np.abs(change).max() > 1e-3

    def test_none_in_evaluation(self):
        network = dropped()
        trainer = trainer_of(network)
        x = batch()[0].astype(np.float32)
        out = network.layers[1].linear
        expected = np.ones((4, 8)) @ np.asarray(out.kernel) + np.asarray(out.bias)
        np.testing.assert_allclose(trainer.predict(x), expected, rtol=1e-5)
        found = trainer.evaluate(data_of(4))["squared_error"]
        assert found == pytest.approx(np.mean((expected - batch(4)[1]) ** 2), rel=1e-5)
        network.eval()
        np.testing.assert_allclose(network.predict(x), expected, rtol=1e-5)

    @pytest.mark.parametrize(
        "inference",
        [
            pc.inference.NewtonCG(num_steps=2),
            pc.inference.GaussNewton(num_steps=2),
            pc.inference.GradientFlow(),
            pc.inference.LinearSolve(),
            pc.inference.ErrorCoordinates(pc.inference.NewtonCG(num_steps=2)),
        ],
        ids=["newton", "gauss-newton", "flow", "linear", "errors, newton"],
    )
    def test_solvers_of_each_example_refuse_it(self, inference):
        x, y = (array.astype(np.float32) for array in batch())
        with pytest.raises(
            ValueError, match=r"solves each example alone, .*dropout.*GradientDescent"
        ):
            dropped().infer(x, y, inference=inference)

    def test_an_adaptive_stop_keeps_the_masks_of_the_batch(self):
        """The examples still going are not taken out of the batch, which would draw other masks."""
        x, y = batch(32)
        network = dropped()
        inference = pc.inference.GradientDescent(optax.sgd(0.2), tolerance=1e-5, max_steps=500)
        result = network.infer(x.astype(np.float32), y.astype(np.float32), inference=inference)
        assert len(np.unique(result.num_steps)) > 1
        assert (result.residual <= 1.1e-5).all()  # under the masks of the whole batch


class TestByHand:
    """A loop of `infer`, `parameter_gradients` and `nnx.Optimizer` ends each batch as the Trainer does."""

    def test_running_statistics_follow_the_batches_and_reading_changes_nothing(self):
        network, other = normalized(precise=False), normalized(precise=False)
        optimizer = nnx.Optimizer(network, SGD, wrt=nnx.Param)
        x, y = (array.astype(np.float32) for array in batch(8))
        for part in (slice(0, 4), slice(4, 8)):
            own, before = batch_statistics(network, x[part]), running(network)
            network.infer(x[part], y[part], inference=FEW)
            once, twice = network.energies(x[part]), network.energies(x[part])
            for name, energy in once.items():
                np.testing.assert_array_equal(energy, twice[name])
            for got, expected in zip(running(network), before, strict=True):
                np.testing.assert_array_equal(got, expected)
            optimizer.update(network, network.parameter_gradients(x[part]))
            for new, old, mine in zip(running(network), before, own, strict=True):
                expected = MOMENTUM * old + (1 - MOMENTUM) * mine
                np.testing.assert_allclose(new, expected, rtol=1e-5, atol=1e-6)
        data = pc.data.from_arrays(x, y, batch_size=4, shuffle=False)
        trainer_of(other).fit(data, num_steps=2)
        kinds = nnx.Any(nnx.Param, nnx.BatchStat)
        states = [jax.tree.leaves(nnx.as_pure(nnx.state(n, kinds))) for n in (network, other)]
        for got, expected in zip(*states, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)

    def test_clamps_of_hidden_layers_reach_the_statistics(self):
        """At those of a pass without them energies, gradients and running statistics are others."""
        x, y = (array.astype(np.float32) for array in batch(4))
        clamps = {"a": 2 * np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32)}
        network = normalized(precise=False)
        result = network.infer(x, y, clamps=clamps, inference=FEW)
        np.testing.assert_allclose(network.energy(x, clamps=clamps), result.energy, rtol=1e-5)
        assert np.abs(network.energy(x) - result.energy).min() > 0.01
        evidence = pc.Evidence(x, y, clamps)
        expected, _ = PC.gradients(pc.networks.split(network), evidence, key=jax.random.key(0))
        before = running(network)
        found = network.parameter_gradients(x, clamps=clamps)
        for name, layer in nnx.to_pure_dict(found)["layers"].items():
            close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
            jax.tree.map(close, layer, expected[name])
        linear = network.layer("b").linear
        seen = clamps["a"] @ np.asarray(linear.kernel) + np.asarray(linear.bias)
        mean = MOMENTUM * before[0] + (1 - MOMENTUM) * seen.mean(axis=0)
        np.testing.assert_allclose(running(network)[0], mean, rtol=1e-5)

    @pytest.mark.parametrize("ask", ["energies", "energy", "parameter_gradients"])
    def test_clamps_are_checked_where_nothing_normalizes(self, ask):
        network = pc.models.mlp(3, 4, 2, rngs=nnx.Rngs(0))
        network.init_activities(jnp.ones((2, 3)))
        with pytest.raises(ValueError, match="no layer 'hiden_1'.*; did you mean 'hidden_1'"):
            getattr(network, ask)(jnp.ones((2, 3)), clamps={"hiden_1": jnp.ones((2, 4))})

    def test_one_mask_a_batch_and_another_for_the_next(self):
        """dF/db = mean of (mask - z) * mask, where a layer that predicts 1 shows its mask: 0, or 2."""
        network = dropped()
        x, y = (array.astype(np.float32) for array in batch())
        masks = []
        for _ in range(3):
            network.infer(x, y, inference=FEW)
            mask = np.asarray(network.predictions(x)["hidden"])
            np.testing.assert_array_equal(network.predictions(x)["hidden"], mask)
            assert set(np.unique(mask)) == {0.0, 2.0}
            z = np.asarray(network.activities()["hidden"])
            gradient = network.parameter_gradients(x)["layers"]["hidden"]["linear"]["bias"][...]
            np.testing.assert_allclose(gradient, np.mean((mask - z) * mask, axis=0), atol=1e-6)
            masks.append(mask)
        for number in range(3):
            assert not np.array_equal(masks[number], masks[number - 1])


def test_statistics_above_a_held_layer_are_those_of_its_clamp():
    """Those that evaluation uses, too."""
    rngs = nnx.Rngs(0)
    norm = nnx.BatchNorm(3, momentum=MOMENTUM, rngs=rngs)
    layers = {"hidden": pc.PCDense(3, 3, rngs=rngs), "out": pc.PCDense(3, 3, norm=norm, rngs=rngs)}
    layers["out"].linear.kernel.set_value(jnp.eye(3))
    network, (held, _) = pc.PCNetwork(layers), batch()
    data = pc.data.from_arrays(0 * held, held, clamps={"hidden": held}, batch_size=4)
    trainer = trainer_of(network)
    trainer.fit(data, num_steps=1)
    mean = (1 - MOMENTUM) * held.mean(axis=0)
    found = trainer.network.layer("out").norm.mean[...]
    np.testing.assert_allclose(found, mean, rtol=1e-5, atol=1e-6)


# Variables of a layer's own.


class Calls(nnx.Variable):
    """How often a layer has predicted."""


class Counting(pc.PCLayer):
    def __init__(self, below, width, rngs):
        super().__init__()
        self.linear = nnx.Linear(below, width, rngs=rngs)
        self.calls = Calls(jnp.zeros(()))

    def predict(self, below):
        self.calls[...] += 1
        return jnp.tanh(self.linear(below))


def counting(kind):
    rngs = nnx.Rngs(0)
    last = pc.PCDense(3, 2, rngs=rngs)
    if kind == "chain":
        return pc.PCNetwork({"counted": Counting(3, 3, rngs), "last": last})
    if kind == "stack":
        first = pc.PCDense(3, 3, rngs=rngs)
        counted = pc.PCStack(lambda: Counting(3, 3, rngs), 2)
        return pc.PCNetwork({"first": first, "counted": counted, "last": last})
    return pc.PCGraph(
        {"counted": Counting(6, 3, rngs), "last": last},
        parents={"counted": pc.networks.Concatenate("x", "counted"), "last": "counted"},
        inputs={"x": 3},
        output="last",
        shapes={"counted": 3},
    )


def calls(network):
    layer = network.layer("counted")
    return np.asarray(getattr(layer, "stacked", layer).calls)


@pytest.mark.parametrize("kind", ["chain", "stack", "cycle"])
def test_a_variable_that_a_layer_writes_is_kept_once_a_batch(kind):
    """Not once an evaluation, of which inference makes any number, and never by reading."""
    network, data = counting(kind), data_of()
    x, y = (array.astype(np.float32) for array in batch())
    network.infer(x, y, inference=FEW)
    network.energies(x)
    network.predict(x)
    assert (calls(network) == 0).all()
    network.parameter_gradients(x)  # which ends a batch
    assert (calls(network) == 1).all()
    trainer = trainer_of(network)
    trainer.fit(data, num_steps=5)
    assert (calls(network) == 6).all()
    trainer.evaluate(data)
    trainer.predict(x)
    assert (calls(network) == 6).all()
    assert calls(network).shape == ((2,) if kind == "stack" else ())
