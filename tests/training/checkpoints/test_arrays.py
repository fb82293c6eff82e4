"""Arrays by path: layers are found by name, in whatever order a network lists them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from pcflax.training.checkpoints.arrays import by_place, copied, renamed, write_network_arrays
from pcflax.variables import STACKED

RULE = pc.learning.PredictiveCoding(pc.inference.GradientDescent(optax.sgd(0.1)))


STORED = {
    "layers.0.kernel": 10,
    "layers.1.layers.0.kernel": 11,  # a list of the layer's own
    "layers.2.kernel": 12,
}


class TestRenamed:
    def test_of_a_network(self):
        assert renamed(STORED, ("in", "block", "out")) == {
            "in.kernel": 10,
            "block.layers.0.kernel": 11,
            "out.kernel": 12,
        }

    def test_of_a_stack(self):
        """Whose arrays are marked in their path by what is no attribute's name."""
        stored = {"layers.1.stacked.linear.kernel": 1, "0.mu.layers.1.stacked.linear.kernel": 2}
        assert renamed(stored, ("a", "deep")) == {
            f"deep.{STACKED}.linear.kernel": 1,
            f"0.mu.deep.{STACKED}.linear.kernel": 2,
        }

    def test_of_an_optimizer(self):
        stored = {"0.count": 1, "0.mu.layers.1.kernel": 2, "inner.a.nu.layers.10.bias": 3}
        assert renamed(stored, [f"layer_{number}" for number in range(11)]) == {
            "0.count": 1,
            "0.mu.layer_1.kernel": 2,
            "inner.a.nu.layer_10.bias": 3,
        }

    def test_a_layer_too_many_keeps_its_path(self):
        """So that it can be named, and is not taken for another."""
        assert renamed({"layers.2.kernel": 1}, ("a", "b")) == {"layers.2.kernel": 1}

    @pytest.mark.parametrize(
        ("paths", "expected"),
        [
            (["layers.0.kernel", "layers.12.bias"], True),
            (["hidden.kernel"], False),
            (["layers.kernel"], False),  # a layer called so
            (["layers.0.kernel", "hidden.kernel"], False),
            ([], False),
        ],
    )
    def test_whether_paths_are_by_place(self, paths, expected):
        assert by_place(paths) is expected


def graph(order, seed):
    """Two layers of one shape side by side, listed in either order."""
    rngs = nnx.Rngs(seed)
    layers = {
        "left": pc.PCDense(3, 4, rngs=rngs),
        "right": pc.PCDense(3, 4, rngs=rngs),
        "output": pc.PCDense(8, 2, rngs=rngs),
    }
    both = pc.networks.Concatenate("left", "right")
    return pc.PCGraph(
        {name: layers[name] for name in order},
        parents={"left": "x", "right": "x", "output": both},
        inputs={"x": 3},
        output="output",
    )


def trainer(order, seed, folder):
    network = graph(order, seed)
    return pc.Trainer(
        network,
        optax.adam(1e-3),
        learning=RULE,
        checkpoints=pc.Checkpoints(folder),
        progress=False,
    )


ORDERS = [("left", "right", "output"), ("right", "left", "output")]


@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
def test_a_graph_listed_in_another_order_restores_by_name(tmp_path, order):
    """Weights of equal shapes once swapped, in silence."""
    saved = trainer(ORDERS[0], 0, tmp_path)
    saved.optimizer_state = _moments_of(saved.network, saved.optimizer_state)
    saved.save()
    restored = trainer(order, 1, tmp_path)
    assert (restored.network.names == saved.network.names) == (order == ORDERS[0])
    assert restored.restore() == 0
    loaded = graph(order, 2)
    pc.load_checkpoint(tmp_path, loaded)
    for network in (restored.network, loaded):
        for name in ORDERS[0]:
            np.testing.assert_array_equal(
                network.layer(name).linear.kernel[...],
                saved.network.layer(name).linear.kernel[...],
            )
    inputs = jnp.ones((2, 3))
    np.testing.assert_allclose(
        restored.network.predict(inputs), saved.network.predict(inputs), rtol=1e-6
    )
    expected = _moments_of(restored.network, restored.optimizer_state)
    for got, wanted in zip(
        jax.tree.leaves(restored.optimizer_state), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_array_equal(got, wanted)


def _moments_of(network, state):
    """Adam's state with each layer's kernel and bias in the place of their moments."""
    parameters = pc.networks.split(network).parameters
    return (state[0]._replace(mu=parameters, nu=jax.tree.map(jnp.square, parameters)), *state[1:])


def stored(sections, **meta):
    """A checkpoint as it is read."""
    sections = {"parameters": {}, "optimizer": {}, "other": {}, "activities": {}, **sections}
    return pc.Checkpoint(0, {}, {}, {}, sections, meta, None)


# What 0.1 wrote of such a graph: every array holds the place of its layer.
SECTIONS = {
    "parameters": {
        f"layers.{place}.linear.{name}": np.full(shape, place, np.float32)
        for place, (below, above) in enumerate([(3, 4), (3, 4), (8, 2)])
        for name, shape in (("kernel", (below, above)), ("bias", (above,)))
    }
}


class TestWithoutNames:
    """0.1 stored layers by their place and no names: they are taken in the network's order."""

    def test_places_become_todays_paths(self):
        network = graph(ORDERS[0], 0)
        arrays, optimizer = stored(SECTIONS).arrays_for(network)
        assert optimizer == {}
        before = jax.tree.structure(nnx.as_pure(nnx.state(network, nnx.Param)))
        write_network_arrays(network, arrays)
        assert jax.tree.structure(nnx.as_pure(nnx.state(network, nnx.Param))) == before
        for place, name in enumerate(network.names):
            assert (np.asarray(network.layer(name).linear.kernel[...]) == place).all()

    def test_names_that_were_stored_count(self):
        network = graph(ORDERS[0], 0)
        write_network_arrays(network, stored(SECTIONS, layers=ORDERS[1]).arrays_for(network)[0])
        for place, name in enumerate(ORDERS[1]):
            assert (np.asarray(network.layer(name).linear.kernel[...]) == place).all()

    def test_another_number_of_layers_is_named(self):
        sections = {"parameters": {**SECTIONS["parameters"], "layers.3.x": np.ones(1)}}
        with pytest.raises(pc.CheckpointError, match=r"has parameter 'layers.3.x' of shape \(1,\)"):
            stored(sections).arrays_for(graph(ORDERS[0], 0))


def test_copies_share_no_memory_with_numpys_arrays():
    """One that did would change when its owner does."""
    room = np.zeros(4096 + 64, np.uint8)
    begin = -room.ctypes.data % 64  # aligned as jax has it
    given = room[begin : begin + 4096].view(np.float32)
    made = copied({"a": given})["a"]
    given[:] = 1
    assert not np.asarray(made).any()


def test_copies_of_random_keys_lie_where_the_keys_lay():
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    key = jax.device_put(jax.random.key(0), place)
    made = copied({"key": key, "other": jax.random.key(1)})
    assert made["key"].sharding == place
    assert not made["other"].committed
    np.testing.assert_array_equal(*map(jax.random.key_data, (made["key"], key)))
    drawn = jax.jit(lambda key: jax.random.bits(copied(key)))(key)  # as of a state made by vmap
    assert drawn == jax.random.bits(key)
