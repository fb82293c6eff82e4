"""Attributes of a user's own whose names pcflax uses elsewhere: such a layer trains, decays and restores."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc

DRAW = np.random.RandomState(0)
X, Y = (DRAW.randn(4, 3).astype(np.float32) for _ in range(2))
RULE = pc.learning.PredictiveCoding(pc.inference.GradientDescent(0.1, num_steps=2))
RATE, DECAY = 0.1, 0.5


class Block(nnx.Module):
    """A module with a part called `energy`."""

    def __init__(self, rngs):
        self.energy = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, below):
        return jnp.tanh(self.energy(below))


class Own(pc.PCLayer):
    """A layer with an attribute called `stacked`."""

    def __init__(self, rngs):
        super().__init__(energy=pc.energies.LearnedGaussian(3))
        self.stacked = nnx.Linear(3, 3, rngs=rngs)
        self.block = Block(rngs)

    def predict(self, below):
        return self.block(self.stacked(below))


def network(kind, seed=0):
    rngs = nnx.Rngs(seed)
    hidden = Own(rngs) if kind == "layer" else pc.PCStack(lambda: Own(rngs), 2)
    return pc.PCNetwork({"hidden": hidden, "output": pc.PCDense(3, 3, rngs=rngs)})


def trained(kind, optimizer, folder=None):
    checkpoints = None if folder is None else pc.Checkpoints(folder)
    trainer = pc.Trainer(
        network(kind), optimizer, learning=RULE, checkpoints=checkpoints, progress=False
    )
    trainer.fit(pc.data.from_arrays(X, Y, batch_size=4), num_steps=1)
    return arrays_of(trainer.network)


def arrays_of(network):
    leaves = jax.tree_util.tree_leaves_with_path(pc.networks.split(network).parameters)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


@pytest.mark.parametrize("kind", ["layer", "stack"])
def test_they_train_decay_and_restore(kind, tmp_path):
    """One step of decay takes RATE * DECAY of each matrix besides, and nothing of biases and precisions."""
    before = arrays_of(network(kind))
    plain = trained(kind, optax.sgd(RATE))
    decay = pc.learning.regularizers.weight_decay(DECAY)
    decayed = trained(kind, optax.chain(decay, optax.sgd(RATE)), tmp_path)
    matrices = [path for path in before if path.endswith("kernel")]
    assert len(matrices) == 3
    assert len(before) == 7
    for path, start in before.items():
        assert np.abs(plain[path] - start).max() > 1e-5, path
        expected = RATE * DECAY * start if path in matrices else jnp.zeros_like(start)
        np.testing.assert_allclose(plain[path] - decayed[path], expected, atol=1e-6, err_msg=path)
    restored = network(kind, seed=1)
    pc.load_checkpoint(tmp_path, restored)
    for path, leaf in arrays_of(restored).items():
        np.testing.assert_array_equal(leaf, decayed[path], err_msg=path)


class Called(pc.PCLayer):
    """A layer with one attribute of a given name."""

    def __init__(self, name, value):
        super().__init__()
        setattr(self, name, value)

    def predict(self, below):
        return below


@pytest.mark.parametrize("value", [0.5, "none", jnp.ones(3)])
@pytest.mark.parametrize("name", ["activity", "energy"])
def test_what_stands_in_the_place_of_the_activity_or_the_energy_is_refused(name, value):
    kind = {"activity": "Activity", "energy": "Energy"}[name]
    with pytest.raises(
        TypeError, match=f"layer 'layer_0' .* '{name}' of its own, .* its {kind}; give"
    ):
        pc.PCNetwork([Called(name, value)])


@pytest.mark.parametrize("name", ["set_place", "rate_of", "top_node"])
def test_what_hides_a_method_that_networks_call_is_refused(name):
    with pytest.raises(ValueError, match=f"attribute '{name}', which hides a method of pc.PCLayer"):
        pc.PCNetwork([Called(name, 5)])


@pytest.mark.parametrize("value", ["twice", nnx.Param(jnp.ones(3)), jnp.ones(3)])
def test_a_summary_shows_no_multiplier_of_another_kind(value):
    found = pc.PCNetwork([Called("multiplier", value)]).summary((4, 3))
    assert found.layers[0].multiplier is None
    assert "layer_0" in str(found)
