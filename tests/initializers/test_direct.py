"""The start by direct feedback: the output's error moves every layer at once, by weights that learn.

Oracles: the whole step in NumPy, and the closed form of Kolen and Pollack's difference.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from pcflax.training import TrainState, make_step
from tests.initializers.test_kept import FEW, KEY, LABELS, X, data_of, forward, network, numpy_step

START = pc.initializers.DirectFeedback(rate=0.3, decay=0.2, scale=0.7, seed=4)


@pytest.mark.usefixtures("double")
def test_training_is_that_of_numpy():
    """Weights and feedback of three steps, in float64."""
    net, data, optimizer = network(jnp.float64), data_of(), optax.sgd(0.05)
    weights = [
        tuple(np.asarray(leaf[...]) for leaf in (layer.linear.kernel, layer.linear.bias))
        for layer in net.layers
    ]
    rule = pc.learning.PredictiveCoding(FEW, START)
    step = jax.jit(make_step(net, optimizer, rule))
    state = TrainState.of(net, optimizer, starts=START.begin(net, data))
    psi = [np.asarray(state.starts[name]) for name in ("first", "second")]
    assert [one.shape for one in psi] == [(3, 5), (3, 4)]
    for number in range(3):
        rows = data.indices(number, 1)[0]
        x, y = X[rows], np.eye(3)[LABELS[rows]]
        state, _ = step(state, pc.Evidence(x, y), KEY)
        z1, z2 = forward(weights, x)
        error = y - z2 @ weights[2][0] - weights[2][1]
        before = weights
        weights, ended = numpy_step(
            weights, x, y, (z1 + 0.7 * error @ psi[0], z2 + 0.7 * error @ psi[1])
        )
        error = y - ended[1] @ before[2][0] - before[2][1]
        psi = [p + 0.3 * (error.T @ z / 4 - 0.2 * p) for p, z in zip(psi, ended, strict=True)]
    for name, expected in zip(("first", "second"), psi, strict=True):
        np.testing.assert_allclose(state.starts[name], expected, rtol=1e-10)
    state.write_to(net)
    for layer, (kernel, _) in zip(net.layers, weights, strict=True):
        np.testing.assert_allclose(layer.linear.kernel[...], kernel, rtol=1e-10)


def test_below_a_linear_output_feedback_and_weights_come_to_each_other(tmp_path):
    """By (1 - rate * decay)^t; and a resumed run is the run, bit by bit."""

    def trainer_of(folder):
        optimizer = optax.chain(optax.add_decayed_weights(0.2), optax.sgd(0.3))
        rule = pc.learning.PredictiveCoding(FEW, START)
        checkpoints = pc.Checkpoints(folder, keep_latest=3)
        return pc.Trainer(
            network(), optimizer, learning=rule, checkpoints=checkpoints, progress=False
        )

    trainer = trainer_of(tmp_path / "whole")
    kernel = np.asarray(trainer.network.layers["output"].linear.kernel[...])
    begun = np.asarray(START.begin(trainer.network, data_of())["second"]) - kernel.T
    trainer.fit(data_of(), num_steps=20)
    stored = pc.load_checkpoint(tmp_path / "whole")
    kernel = np.asarray(trainer.network.layers["output"].linear.kernel[...])
    left = stored.sections["starts"]["second"] - kernel.T
    np.testing.assert_allclose(left, (1 - 0.3 * 0.2) ** 20 * begun, atol=1e-5)
    trainer_of(tmp_path / "parts").fit(data_of(), num_steps=9)
    resumed = trainer_of(tmp_path / "parts")
    resumed.restore()
    resumed.fit(data_of(), num_steps=20)
    other = pc.load_checkpoint(tmp_path / "parts")
    assert other.digest() == stored.digest()
    for path, array in stored.sections["starts"].items():
        np.testing.assert_array_equal(other.sections["starts"][path], array)


def test_without_a_target_it_is_the_pass_upward():
    net = network()
    start = START.at(START.begin(net, data_of()), None)
    known = np.array([[True], [False]])
    targets = jnp.asarray(np.eye(3)[:2], jnp.float32)
    found = net.start(pc.Evidence(X[:2], pc.Clamp(targets, known)), initializer=start)
    plain = net.start(pc.Evidence(X[:2], targets))
    np.testing.assert_allclose(found["first"][1], plain["first"][1], atol=1e-6)
    assert np.abs(found["first"][0] - plain["first"][0]).max() > 0.1


def test_feedback_learns_from_what_is_known_by_weight_and_at_the_statistics_of_inference():
    """A row without a label teaches nothing, nor one of weight 0; the norm is that of the pass upward."""
    rngs = nnx.Rngs(0)
    norm = nnx.BatchNorm(3, use_scale=False, use_bias=False, epsilon=0.1, rngs=rngs)
    output = pc.PCDense(5, 3, norm=norm, energy=pc.energies.Categorical(), rngs=rngs)
    net = pc.PCNetwork({"first": pc.PCDense(3, 5, activation=jnp.tanh, rngs=rngs), "out": output})
    x, y, z = (
        np.asarray(a, np.float32)
        for a in (X[:4], np.eye(3)[LABELS[:4]], np.random.RandomState(1).randn(4, 5))
    )
    known = np.array([[True], [True], [True], [False]])
    weights = np.array([3, 0, 1, 2], np.float32)
    psi = START.begin(net, data_of())["first"]
    evidence = pc.Evidence(x, pc.Clamp(jnp.asarray(y), known), weights=weights)
    # inference leaves the unknown row at 0, where it costs nothing
    ended = {"first": jnp.asarray(z), "out": jnp.asarray(np.where(known, y, 0))}
    pure = pc.networks.split(net)
    found = jax.jit(START.after)({"first": psi}, evidence, ended, network=pure)["first"]
    first, kernel = net.layers["first"].linear, np.asarray(output.linear.kernel)
    below = np.tanh(x @ np.asarray(first.kernel)) @ kernel
    logits = (z @ kernel - below.mean(axis=0)) / np.sqrt(below.var(axis=0) + 0.1)
    error = np.where(known, y - np.asarray(jax.nn.softmax(logits)), 0.0) * weights[:, None]
    expected = psi + 0.3 * (error.T @ z / 4 - 0.2 * psi)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_feedback_of_bfloat16_is_kept_in_32_bits():
    """A move of a thousandth of the rate counts; in 16 bits it would round to nothing."""
    net, start = network(jnp.bfloat16), pc.initializers.DirectFeedback(rate=1e-6, decay=0.0)
    psi = start.begin(net, data_of(X.astype(jnp.bfloat16)))
    x = jnp.asarray(X[:4], jnp.bfloat16)
    evidence = pc.Evidence(x, jnp.eye(3, dtype=jnp.bfloat16)[LABELS[:4]])
    ended = net.start(evidence)
    moved = jax.jit(start.after)(psi, evidence, ended, network=pc.networks.split(net))
    assert all((moved[name] != psi[name]).any() for name in psi)
    begun = net.start(evidence, initializer=start.at(psi, evidence))
    assert {value.dtype for value in begun.values()} == {jnp.dtype(jnp.bfloat16)}


def test_refusals():
    rngs = nnx.Rngs(0)
    both = pc.PCGraph(
        {"a": pc.PCDense(3, 3, rngs=rngs), "b": pc.PCDense(3, 3, rngs=rngs)},
        parents={"a": "x", "b": "x"},
        inputs={"x": 3},
        output=("a", "b"),
    )
    with pytest.raises(ValueError, match="sends the error of one output down"):
        START.begin(both, data_of())
    with pytest.raises(ValueError, match="DirectFeedback expected a rate above 0"):
        pc.initializers.DirectFeedback(rate=0.0)
