"""Energies of every class in one call, against clamping one class after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pcflax as pc

DESCENT = pc.inference.GradientDescent(0.1, num_steps=7)


def draw(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape).astype(np.float32))


@pytest.mark.parametrize("output", [pc.energies.Gaussian, pc.energies.Categorical])
def test_are_those_of_one_class_after_the_other(output):
    network, x = pc.models.mlp(3, 8, 4, energy=output(), rngs=nnx.Rngs(0)), draw(5, 3)
    found = network.label_energies(x, inference=DESCENT)
    for label in range(4):
        one_hot = jnp.tile(jax.nn.one_hot(label, 4), (5, 1))
        alone = network.infer(x, one_hot, inference=DESCENT).energy
        np.testing.assert_allclose(found[:, label], alone, rtol=1e-5, atol=1e-6)


def test_labels_at_the_bottom():
    network, y = pc.models.decoder(4, 8, 6, rngs=nnx.Rngs(0)), draw(5, 6)
    found = network.label_energies(targets=y, inference=DESCENT)
    for label in range(4):
        one_hot = jnp.tile(jax.nn.one_hot(label, 4), (5, 1))
        alone = network.infer(one_hot, y, inference=DESCENT).energy
        np.testing.assert_allclose(found[:, label], alone, rtol=1e-5, atol=1e-6)


def test_a_linear_gaussian_model_has_its_closed_form():
    """With y = h W, h = x V: F* of a class is r^T (I + W^T W)^-1 r / 2, with r = y - x V W."""
    rngs = nnx.Rngs(0)
    network = pc.PCNetwork({"h": pc.PCDense(3, 5, rngs=rngs), "y": pc.PCDense(5, 4, rngs=rngs)})
    x = draw(6, 3)
    found = network.label_energies(x, inference=pc.inference.LinearSolve())
    w = np.asarray(network.layer("y").linear.kernel[...], np.float64)
    r = np.eye(4) - np.asarray(network.predict(x), np.float64)[:, None]
    exact = np.einsum("bci,ij,bcj->bc", r, np.linalg.inv(np.eye(4) + w.T @ w), r) / 2
    np.testing.assert_allclose(found, exact, rtol=1e-4)


def test_stored_activities_stay():
    network, x = pc.models.mlp(3, 8, 4, rngs=nnx.Rngs(0)), draw(5, 3)
    network.infer(x, inference=DESCENT)
    before = {name: np.asarray(value) for name, value in network.activities().items()}
    network.label_energies(x, inference=DESCENT, num_classes=4)
    for name, value in network.activities().items():
        np.testing.assert_array_equal(value, before[name])


def test_refusals():
    network, x = pc.models.mlp(3, 8, 4, rngs=nnx.Rngs(0)), draw(5, 3)
    for given in ((), (x, x)):
        with pytest.raises(ValueError, match="just one of them"):
            network.label_energies(*given, inference=DESCENT)
    with pytest.raises(ValueError, match="num_classes of at least 1, got 0"):
        network.label_energies(x, inference=DESCENT, num_classes=0)
    with pytest.raises(ValueError, match="give num_classes"):
        network.label_energies(targets=draw(5, 4), inference=DESCENT)
    with pytest.raises(ValueError, match=r"\(25, 5\).*targets of width 4"):
        network.label_energies(x, inference=DESCENT, num_classes=5)


def test_inference_starts_at_a_node_of_a_stack():
    rngs = nnx.Rngs(0)
    network = pc.PCNetwork(
        {
            "s": pc.PCStack(lambda: pc.PCDense(3, 3, activation=jnp.tanh, rngs=rngs), 3),
            "y": pc.PCDense(3, 2, rngs=rngs),
        }
    )
    x, start, stay = draw(4, 3), draw(4, 3) + 1, pc.inference.GradientDescent(0.1, num_steps=0)
    found = network.infer(x, inference=stay, initializer={"s/1": start}).activities["s"]
    passed = network.feedforward(x)["s"]
    np.testing.assert_array_equal(found[:, 1], start)
    np.testing.assert_array_equal(found[:, ::2], passed[:, ::2])
    with pytest.raises(ValueError, match=r"'s/1' has activities of shape \(4, 3\).*\(4, 2\)"):
        network.infer(x, inference=stay, initializer={"s/1": draw(4, 2)})
    with pytest.raises(ValueError, match="has layers 0 to 2"):
        network.infer(x, inference=stay, initializer={"s/3": start})
