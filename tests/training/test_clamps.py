"""Clamps that come with the data: training infers under them, and evaluation starts from them."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from tests.conftest import parameters_of

DRAW = np.random.RandomState(0)
X, Y, HELD = (DRAW.randn(8, n).astype(np.float32) for n in (3, 2, 4))
MASK = DRAW.rand(8, 4) > 0.5
SOME = {"hidden": (np.where(MASK, HELD, np.nan), MASK)}
FEW = pc.inference.GradientDescent(0.1, num_steps=3)


def network():
    rngs = nnx.Rngs(0)
    return pc.PCNetwork(
        {
            "hidden": pc.PCDense(3, 4, activation=jnp.tanh, rngs=rngs),
            "middle": pc.PCDense(4, 4, activation=jnp.tanh, rngs=rngs),
            "output": pc.PCDense(4, 2, rngs=rngs),
        }
    )


def data_of(clamps, **options):
    return pc.data.from_arrays(X, Y, clamps=clamps, shuffle=False, **{"batch_size": 8, **options})


def trainer_of(net, rule=None, folder=None):
    return pc.Trainer(
        net,
        optax.sgd(0.1),
        learning=rule or pc.learning.PredictiveCoding(FEW),
        checkpoints=None if folder is None else pc.Checkpoints(folder, activities=True),
        progress=False,
    )


def numpy_energies(net, start):
    """Each layer's error at the start of a pass upward through the clamps, squared and halved."""
    below, energies = X, []
    for name in net.names:
        linear = net.layer(name).linear
        mean = below @ np.asarray(linear.kernel[...]) + np.asarray(linear.bias[...])
        mean = mean if name == "output" else np.tanh(mean)
        below = start(name, mean)
        energies.append(((below - mean) ** 2).sum(axis=1) / 2)
    return sum(energies)


@pytest.mark.parametrize("clamps", [{"hidden": HELD}, SOME], ids=["whole", "some"])
class TestPredictiveCoding:
    def test_one_step_is_that_of_a_loop_by_hand(self, clamps):
        by_hand, trained = network(), network()
        given = {"hidden": HELD} if clamps is not SOME else {"hidden": pc.Clamp(*SOME["hidden"])}
        by_hand.infer(X, Y, inference=FEW, clamps=given)
        optimizer = nnx.Optimizer(by_hand, optax.sgd(0.1), wrt=nnx.Param)
        optimizer.update(by_hand, by_hand.parameter_gradients(X))
        trainer_of(trained).fit(data_of(clamps), num_steps=1)
        for got, expected in zip(parameters_of(trained), parameters_of(by_hand), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)

    def test_they_reach_inference_and_do_not_move(self, clamps, tmp_path):
        net = network()
        trainer_of(net, folder=tmp_path).fit(data_of(clamps), num_steps=1)
        found = np.asarray(net.activities()["hidden"])
        held = np.ones_like(MASK) if clamps is not SOME else MASK
        np.testing.assert_array_equal(found[held], HELD[held])
        assert np.isfinite(found).all()

    @pytest.mark.parametrize("batch_size", [8, 3])
    def test_evaluation_starts_from_them(self, clamps, batch_size):
        net = network()
        measured = trainer_of(net).evaluate(data_of(clamps, batch_size=batch_size))
        held = np.ones_like(MASK) if clamps is not SOME else MASK
        ends = {"hidden": lambda mean: np.where(held, HELD, mean), "output": lambda mean: Y}
        energy = numpy_energies(net, lambda name, mean: ends.get(name, lambda m: m)(mean))
        assert measured["energy"] == pytest.approx(energy.mean(), rel=1e-5)


def test_incremental_pc_holds_them_too(tmp_path):
    net = network()
    trainer_of(net, pc.learning.IncrementalPC(FEW), tmp_path).fit(data_of(SOME), num_steps=1)
    found = np.asarray(net.activities()["hidden"])
    np.testing.assert_array_equal(found[MASK], HELD[MASK])
    assert np.isfinite(np.concatenate([leaf.ravel() for leaf in parameters_of(net)])).all()


def test_clamps_alone_are_learned_from():
    """Neither inputs nor targets: some elements of each image are known, and a root explains them."""
    rngs = nnx.Rngs(0)
    net = pc.PCNetwork({"z": pc.PCRoot(2), "x": pc.PCDense(2, 4, rngs=rngs)})
    data = pc.data.from_arrays(None, None, clamps={"x": SOME["hidden"]}, batch_size=4)
    energies = trainer_of(net).fit(data, num_steps=30, log_every=10)["train/energy"]
    assert energies[-1] < 0.9 * energies[0]


def test_a_clamp_of_another_shape_is_told_before_training():
    with pytest.raises(ValueError, match="training data 'arrays' does not fit.*layer 'hidden'"):
        trainer_of(network()).fit(data_of({"hidden": HELD[:, :3]}), num_steps=1)
    with pytest.raises(ValueError, match="no layer 'hiden'"):
        trainer_of(network()).fit(data_of({"hiden": HELD}), num_steps=1)
