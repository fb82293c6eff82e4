"""Layers of a user's own that hold a constant or read their own activity: inference at the closed form."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc

DRAW = np.random.RandomState(0)
X, Y = DRAW.randn(5, 3).astype(np.float32), DRAW.randn(5, 2).astype(np.float32)
DESCENT = pc.inference.GradientDescent(0.3, tolerance=1e-6)


class Masked(pc.PCLayer):
    """Weights under a fixed mask of connections, kept beside them."""

    def __init__(self, rows, columns, seed):
        super().__init__()
        draw = np.random.RandomState(seed)
        self.kernel = nnx.Param(jnp.asarray(0.5 * draw.randn(rows, columns), jnp.float32))
        self.mask = nnx.Variable(jnp.asarray(draw.rand(rows, columns) > 0.5, jnp.float32))

    def predict(self, below):
        return below @ (self.kernel[...] * self.mask[...])


def masked():
    return pc.PCNetwork([Masked(3, 4, 0), Masked(4, 2, 1)])


@pytest.mark.parametrize(
    "inference",
    [
        DESCENT,
        pc.inference.ErrorCoordinates(DESCENT),
        pc.inference.NewtonCG(num_steps=5),
        pc.inference.GaussNewton(num_steps=5),
        pc.inference.LinearSolve(),
        pc.inference.GradientFlow(tolerance=1e-5),
    ],
    ids=lambda inference: type(inference).__name__,
)
def test_a_constant_mask_is_no_state_of_the_batch(inference):
    """The minimum is z = (I + W2 W2^T)^-1 (W1^T x + W2 y), also where each example is solved alone."""
    network = masked()
    w1, w2 = (
        np.asarray(layer.kernel[...] * layer.mask[...], np.float64) for layer in network.layers
    )
    right = np.linalg.solve(np.eye(4) + w2 @ w2.T, (X @ w1 + Y @ w2.T).T).T
    found = network.infer(X, Y, inference=inference).activities["layer_0"]
    np.testing.assert_allclose(found, right, atol=1e-4)


def test_a_constant_mask_stays_and_what_it_cuts_does_not_learn():
    network, before = masked(), masked()
    data = pc.data.from_arrays(X, Y, batch_size=5)
    rule = pc.learning.PredictiveCoding(pc.inference.NewtonCG(num_steps=2))
    trainer = pc.Trainer(network, optax.sgd(0.1), learning=rule, progress=False)
    trainer.fit(data, num_steps=2)
    for layer, old in zip(trainer.network.layers, before.layers, strict=True):
        np.testing.assert_array_equal(layer.mask[...], old.mask[...])
        moved, connected = layer.kernel[...] != old.kernel[...], old.mask[...] == 1
        assert moved[connected].any()
        assert not moved[~connected].any()


class Lateral(pc.PCLayer):
    """Predicts x W - z L: a layer with lateral inhibition."""

    def __init__(self):
        super().__init__()
        draw = np.random.RandomState(2)
        self.w = nnx.Param(jnp.asarray(draw.randn(3, 4), jnp.float32))
        self.inhibition = nnx.Param(jnp.asarray(0.2 * draw.randn(4, 4), jnp.float32))

    def predict(self, below):
        return below @ self.w[...] - self.activity[...] @ self.inhibition[...]


class Parent(Lateral):
    """The same, with the activity as a parent in a graph."""

    def predict(self, below, own):
        return below @ self.w[...] - own @ self.inhibition[...]


def top():
    return pc.PCDense(4, 2, use_bias=False, rngs=nnx.Rngs(1))


class TestOwnActivity:
    """Its energy is 1/2 ||z (I + L) - x W||^2 + 1/2 ||y - z V||^2, a linear least squares problem."""

    def network(self):
        return pc.PCNetwork({"z": Lateral(), "y": top()})

    def right(self):
        w, inhibition, v = (
            np.asarray(a[...], np.float64)
            for a in (Lateral().w, Lateral().inhibition, top().linear.kernel)
        )
        m = np.eye(4) + inhibition
        z = np.linalg.solve(m @ m.T + v @ v.T, (X @ w @ m.T + Y @ v.T).T).T
        return z, z @ m - X @ w, z @ v - Y

    @pytest.mark.parametrize(
        ("inference", "initializer"),
        [
            (pc.inference.GradientDescent(0.1, num_steps=600), None),
            (pc.inference.GradientDescent(0.1, num_steps=600), pc.initializers.Zeros()),
            (pc.inference.NewtonCG(num_steps=4), None),
            (pc.inference.LinearSolve(), None),
            (pc.inference.ErrorCoordinates(pc.inference.GradientDescent(0.1, num_steps=600)), None),
        ],
        ids=["descent", "from zeros", "newton", "linear", "errors"],
    )
    def test_ends_at_the_least_squares_solution(self, inference, initializer):
        network = self.network()
        result = network.infer(X, Y, inference=inference, initializer=initializer)
        z, hidden_error, output_error = self.right()
        np.testing.assert_allclose(result.activities["z"], z, atol=1e-3)
        energy = (hidden_error**2).sum(1) / 2 + (output_error**2).sum(1) / 2
        np.testing.assert_allclose(result.energy, energy, rtol=1e-3)

    def test_is_its_own_parent_in_a_graph(self):
        graph = pc.PCGraph(
            {"z": Parent(), "y": top()},
            parents={"z": ("x", "z"), "y": "z"},
            inputs={"x": 3},
            output="y",
            shapes={"z": 4},
        )
        inference = pc.inference.GradientDescent(0.1, num_steps=600)
        found = graph.infer(X, Y, inference=inference).activities["z"]
        np.testing.assert_allclose(found, self.right()[0], atol=1e-3)

    def test_its_weights_get_their_own_gradient(self):
        """They are dE/dW = -x^T e and dE/dL = z^T e, with e = z (I + L) - x W, in means over the batch."""
        network = self.network()
        network.infer(X, Y, inference=pc.inference.LinearSolve())
        z, error, _ = self.right()
        found = nnx.as_pure(network.parameter_gradients(X))["layers"]["z"]
        np.testing.assert_allclose(found["w"], -X.T @ error / 5, atol=1e-4)
        np.testing.assert_allclose(found["inhibition"], z.T @ error / 5, atol=1e-4)

    def test_inference_descends_along_both_of_its_slopes(self):
        """The slope is dE/dz = e (I + L)^T - (y - z V) V^T: the activity counts in its prediction, too."""
        network = self.network()
        start = DRAW.randn(5, 4).astype(np.float32)
        descent = pc.inference.GradientDescent(0.1, num_steps=1)
        got = network.infer(X, Y, inference=descent, initializer={"z": start}).activities["z"]
        w, inhibition = (np.asarray(a[...]) for a in (Lateral().w, Lateral().inhibition))
        v, m = np.asarray(top().linear.kernel[...]), np.eye(4) + inhibition
        slope = (start @ m - X @ w) @ m.T - (Y - start @ v) @ v.T
        np.testing.assert_allclose(got, start - 0.1 * slope, rtol=1e-4, atol=1e-5)
