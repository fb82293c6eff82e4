"""Whether an update moves the output to its target, against closed forms of deep linear networks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from tests.conftest import Chain

SETTLED = pc.inference.LinearSolve()
SMALL = optax.sgd(1e-6)  # the output's change is then linear in it, to 1e-6


def chain(batch=1):
    """A linear chain without biases, and its kernels."""
    rngs = nnx.Rngs(1)
    widths = (3, 5, 4, 2)
    layers = [
        pc.PCDense(a, b, use_bias=False, rngs=rngs)
        for a, b in zip(widths, widths[1:], strict=False)
    ]
    random, kernels = np.random.default_rng(0), []
    for layer in layers:
        kernels.append(random.normal(size=layer.linear.kernel.shape) / 2)
        layer.linear.kernel.set_value(jnp.asarray(kernels[-1]))  # in 64 bits, where these are on
    return (
        pc.PCNetwork(layers),
        kernels,
        random.normal(size=(batch, 3)),
        random.normal(size=(batch, 2)),
    )


def cosine(a, b):
    return np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def above(kernels, layer):
    """What follows layer l (rows are activities): the product of the kernels above it."""
    product = np.eye(kernels[layer].shape[1])
    for kernel in kernels[layer + 1 :]:
        product = product @ kernel
    return product


@pytest.mark.usefixtures("double")
class TestClosedForms:
    def test_backpropagation(self):
        """sum_l |h_{l-1}|^2 P_l P_l^T r of one example."""
        network, kernels, x, y = chain()
        h, change = x, 0
        r = y - np.asarray(network.predict(jnp.asarray(x)))
        for layer, kernel in enumerate(kernels):
            p = above(kernels, layer)
            change = change + np.sum(h * h) * r @ p.T @ p
            h = h @ kernel
        rule = pc.learning.Backprop()
        found = pc.analysis.target_alignment(network, x, y, learning=rule, optimizer=SMALL)
        np.testing.assert_allclose(found, cosine(change, r), rtol=1e-5)
        assert found < 0.999

    def test_predictive_coding_at_equilibrium(self):
        """Errors e_l = r S^-1 P_l^T, z_l = z_{l-1} W_l + e_l; the change is sum_l (h.z) e_l P_l."""
        network, kernels, x, y = chain()
        r = y - np.asarray(network.predict(jnp.asarray(x)))
        products = [above(kernels, layer) for layer in range(3)]
        s = sum(p.T @ p for p in products)  # that of the output is the identity
        h, z, change = x, x, 0
        for kernel, p in zip(kernels, products, strict=True):
            error = r @ np.linalg.inv(s) @ p.T
            change = change + np.sum(h * z) * error @ p
            h, z = h @ kernel, z @ kernel + error
        np.testing.assert_allclose(z, y)
        rule = pc.learning.PredictiveCoding(SETTLED)
        found = pc.analysis.target_alignment(network, x, y, learning=rule, optimizer=SMALL)
        np.testing.assert_allclose(found, cosine(change, r), rtol=1e-5)

    def test_large_steps_of_a_batch_are_those_made(self):
        """New kernels by hand, and the output that they give: no step is taken to be small."""
        network, kernels, x, y = chain(batch=4)
        out = np.asarray(network.predict(jnp.asarray(x)))
        hs, new = [x], []
        for kernel in kernels:
            hs.append(hs[-1] @ kernel)
        for layer, kernel in enumerate(kernels):
            new.append(kernel + 0.3 * hs[layer].T @ ((y - out) @ above(kernels, layer).T) / 4)
        after = x
        for kernel in new:
            after = after @ kernel
        rule, step = pc.learning.Backprop(), optax.sgd(0.3)
        found = pc.analysis.target_alignment(network, x, y, learning=rule, optimizer=step)
        np.testing.assert_allclose(found, cosine(after - out, y - out), rtol=1e-9)

    def test_of_a_categorical_output_the_error_is_of_probabilities(self):
        c = Chain(widths=(3, 2), output="categorical", activation="identity")
        x, y = c.inputs[:1], c.targets[:1]
        error = y - np.asarray(jax.nn.softmax(c.network.predict(x)))
        rule, step = pc.learning.Backprop(), optax.sgd(0.1)
        found = pc.analysis.target_alignment(c.network, x, y, learning=rule, optimizer=step)
        # one layer moves its logits along the error, whatever its length
        np.testing.assert_allclose(found, 1, rtol=1e-12)
        assert abs(error.sum()) < 1e-12


def test_what_does_not_move_has_no_direction_and_what_is_no_rule_is_refused():
    network, _, x, y = chain()
    x, y = x.astype(np.float32), y.astype(np.float32)
    rule = pc.learning.Backprop()
    none = optax.sgd(0.0)
    found = pc.analysis.target_alignment(network, x, y, learning=rule, optimizer=none)
    assert np.isnan(found).all()
    with pytest.raises(TypeError, match="expected a learning rule"):
        pc.analysis.target_alignment(network, x, y, learning=SETTLED, optimizer=none)  # pyright: ignore
