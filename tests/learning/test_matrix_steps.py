"""Per-matrix steps against a loop in NumPy, layer by layer, and their state through a checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc

SHAPES = {"first": [(3, 4), (4,)], "hidden": [(2, 4, 4), (2, 4)]}


def draw(random):
    """Weights or gradients: one dense layer, and a stack of two."""
    (kernel, bias), (kernels, biases) = SHAPES["first"], SHAPES["hidden"]
    linear = {"kernel": random.normal(size=kernels), "bias": random.normal(size=biases)}
    return {
        "first": {
            "linear": {"kernel": random.normal(size=kernel), "bias": random.normal(size=bias)}
        },
        "hidden": {"stacked-layers": {"linear": linear}},
    }


def loop(gradients, *, rate, least, decay, epsilon):
    """The updates of one matrix and its bias, as the code of arXiv 2305.13562 makes them."""
    size, moves = rate, []
    for number, (kernel, bias) in enumerate(gradients, start=1):
        step = rate / (size + epsilon) + least
        moves.append((-step * kernel, -step * bias))
        keep = min(number / (number + 1), decay)
        both = np.concatenate([kernel.ravel(), bias.ravel()])
        size = keep * size + (1 - keep) * np.abs(both).mean()
    return moves, size


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("decay", [0.9999, 0.6])
def test_are_the_loop_over_matrices(decay):
    """A decay of .6 takes over from 1/2, 2/3, 3/4, ... at the second step. A stack is two matrices."""
    random = np.random.RandomState(0)
    steps = [draw(random) for _ in range(5)]
    optimizer = pc.learning.matrix_steps(0.02, least_rate=0.003, decay=decay, epsilon=0.01)
    state = optimizer.init(jax.tree.map(jnp.asarray, steps[0]))
    found = []
    for gradients in steps:
        updates, state = optimizer.update(jax.tree.map(jnp.asarray, gradients), state)
        found.append(updates)

    def parts(tree, index):
        if index is None:
            own = tree["first"]["linear"]
            return own["kernel"], own["bias"]
        own = tree["hidden"]["stacked-layers"]["linear"]
        return own["kernel"][index], own["bias"][index]

    for index in (None, 0, 1):
        moves, size = loop(
            [parts(tree, index) for tree in steps],
            rate=0.02,
            least=0.003,
            decay=decay,
            epsilon=0.01,
        )
        for updates, (kernel, bias) in zip(found, moves, strict=True):
            got = parts(updates, index)
            np.testing.assert_allclose(got[0], kernel, rtol=1e-12)
            np.testing.assert_allclose(got[1], bias, rtol=1e-12)
        sizes = state.sizes["first.linear" if index is None else "hidden.linear"]
        np.testing.assert_allclose(sizes if index is None else sizes[index], size, rtol=1e-12)


def test_matrices_of_tiny_gradients_move_as_those_of_large_ones():
    """What it is for: gradients 1e4 times smaller below, steps alike once the sizes have settled."""
    optimizer = pc.learning.matrix_steps(0.01, least_rate=0.0, epsilon=1e-12)
    gradients = {"low": {"w": jnp.full((2, 2), 1e-4)}, "high": {"w": jnp.ones((2, 2))}}
    state = optimizer.init(gradients)
    update = jax.jit(optimizer.update)
    for _ in range(2000):
        updates, state = update(gradients, state)
    # 1/2001 of what the size began with is left
    np.testing.assert_allclose(updates["low"]["w"], -0.01, rtol=0.06)
    np.testing.assert_allclose(updates["high"]["w"], -0.01, rtol=0.01)


def test_a_state_of_nnx_has_one_size_for_a_matrix_and_its_bias():
    """As `nnx.Optimizer` keeps it, whose paths end in the value of a Variable; and rates by layer find it."""
    network = pc.PCNetwork({"one": pc.PCDense(3, 4, rngs=nnx.Rngs(0))})
    parameters = nnx.state(network, nnx.Param)
    optimizer = optax.chain(pc.learning.matrix_steps(0.02), pc.learning.scale_by_layer(network))
    state = optimizer.init(parameters)
    assert list(state[0].sizes) == ["one.linear"]
    updates, _ = optimizer.update(parameters, state)
    plain = pc.networks.split(network).parameters
    expected, _ = optimizer.update(plain, optimizer.init(plain))
    for part in ("kernel", "bias"):
        found = updates["layers"]["one"]["linear"][part][...]
        np.testing.assert_array_equal(found, expected["one"]["linear"][part])


def test_training_resumes_exactly(tmp_path):
    random = np.random.default_rng(0)
    x = random.normal(size=(32, 3)).astype(np.float32)
    data = pc.data.from_arrays(x, x[:, :2], batch_size=8)

    def trainer(folder):
        rngs = nnx.Rngs(0)
        hidden = pc.PCStack(lambda: pc.PCDense(4, 4, activation=jnp.tanh, rngs=rngs), 2)
        layers = {"first": pc.PCDense(3, 4, rngs=rngs), "hidden": hidden}
        return pc.Trainer(
            pc.PCNetwork(layers | {"output": pc.PCDense(4, 2, rngs=rngs)}),
            optax.chain(pc.learning.matrix_steps(0.01), pc.learning.normalize_spectral()),
            learning=pc.learning.Backprop(),
            checkpoints=pc.Checkpoints(tmp_path / folder),
            progress=False,
        )

    whole, first, second = trainer("whole"), trainer("parts"), trainer("parts")
    whole.fit(data, num_steps=6)
    first.fit(data, num_steps=3)
    second.restore()
    second.fit(data, num_steps=6)
    for left, right in zip(
        jax.tree.leaves(nnx.state(whole.network, nnx.Param)),
        jax.tree.leaves(nnx.state(second.network, nnx.Param)),
        strict=True,
    ):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, "expected a learning_rate above 0, got 0"),
        ({"least_rate": -1.0}, "expected a least_rate of at least 0, got -1"),
        ({"decay": 1.5}, "expected a decay of at least 0 and of at most 1, got 1.5"),
        ({"epsilon": float("nan")}, "expected a epsilon of at least 0, got nan"),
    ],
)
def test_numbers_that_are_none_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        pc.learning.matrix_steps(**{"learning_rate": 0.1, **options})
