"""Feedback weights: errors go down through B, and B = W is predictive coding.

Oracles: the vector field and the gradients in NumPy at float64; predictive coding itself where B = W; the
closed form of Kolen and Pollack's difference, (1 - rate * decay)^t (B_0 - W_0).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from tests.conftest import compiled_gradients

pytestmark = pytest.mark.slow

FIXED, LEARNED = pc.layers.Feedback(), pc.layers.Feedback(learns=True)
WIDTHS = (3, 5, 4, 2)
RULE = pc.learning.PredictiveCoding(pc.inference.GradientDescent(0.1, num_steps=7))


def chain(feedback, **options):
    """Three layers, tanh before the weights of all but the first."""
    rngs = nnx.Rngs(0)
    return pc.PCNetwork(
        [
            pc.PCDense(
                below,
                above,
                activation=None if number == 0 else jnp.tanh,
                activation_first=True,
                feedback=feedback,
                rngs=rngs,
                **options,
            )
            for number, (below, above) in enumerate(zip(WIDTHS, WIDTHS[1:], strict=False))
        ]
    )


def batch():
    random = np.random.default_rng(1)
    return random.normal(size=(6, WIDTHS[0])), random.normal(size=(6, WIDTHS[-1]))


def kernels(network):
    return [np.asarray(layer.linear.kernel[...]) for layer in network.layers]


def feedbacks(network):
    return [np.asarray(layer.feedback[...]) for layer in network.layers]


@pytest.mark.usefixtures("double")
class TestOneBatch:
    @pytest.mark.parametrize("feedback", [FIXED, LEARNED])
    def test_the_field_and_the_gradients_are_those_by_hand(self, feedback):
        network = chain(feedback, param_dtype=jnp.float64)
        inputs, targets = batch()
        random = np.random.default_rng(2)
        z1, z2 = random.normal(size=(6, 5)), random.normal(size=(6, 4))
        pure = pc.networks.split(network)
        problem = pc.inference.make_problem(pure, pc.Evidence(inputs, targets))
        field = problem.gradient({"layer_0": z1, "layer_1": z2})
        (w0, w1, w2), (_, b1, b2) = kernels(network), feedbacks(network)
        e0, e1 = z1 - inputs @ w0, z2 - np.tanh(z1) @ w1
        e2 = targets - np.tanh(z2) @ w2
        exact = {"rtol": 1e-12, "atol": 1e-13}
        on_first = e0 - (1 - np.tanh(z1) ** 2) * (e1 @ b1.T)
        on_second = e1 - (1 - np.tanh(z2) ** 2) * (e2 @ b2.T)
        np.testing.assert_allclose(field["layer_0"], on_first, **exact)
        np.testing.assert_allclose(field["layer_1"], on_second, **exact)
        ends = {"layer_0": z1, "layer_1": z2, "layer_2": targets}
        gradients, _ = jax.jit(pure.mean_gradients)(ends, inputs)
        moved = -np.tanh(z1).T @ e1 / 6
        np.testing.assert_allclose(gradients["layer_1"]["linear"]["kernel"], moved, **exact)
        assert ("feedback" in gradients["layer_1"]) == feedback.learns
        if feedback.learns:
            np.testing.assert_allclose(gradients["layer_1"]["feedback"], moved, **exact)

    @pytest.mark.parametrize("feedback", [FIXED, LEARNED])
    def test_with_the_forward_weights_it_is_predictive_coding(self, feedback):
        network, plain = (chain(one, param_dtype=jnp.float64) for one in (feedback, None))
        for layer, same in zip(network.layers, plain.layers, strict=True):
            same.linear.kernel.set_value(layer.linear.kernel[...])
            layer.feedback.set_value(layer.linear.kernel[...])
        evidence, key = pc.Evidence(*batch()), jax.random.key(0)
        found, info = compiled_gradients(RULE, pc.networks.split(network), evidence, key=key)
        expected, same = compiled_gradients(RULE, pc.networks.split(plain), evidence, key=key)
        for name in plain.names:
            for part in ("kernel", "bias"):
                np.testing.assert_allclose(
                    found[name]["linear"][part],
                    expected[name]["linear"][part],
                    rtol=1e-12,
                    atol=1e-14,
                )
            np.testing.assert_allclose(info.activities[name], same.activities[name], rtol=1e-12)


class TestTraining:
    def trainer(self, feedback, optimizer, folder=None):
        checkpoints = None if folder is None else pc.Checkpoints(folder)
        return pc.Trainer(
            chain(feedback), optimizer, learning=RULE, checkpoints=checkpoints, progress=False
        )

    def data(self):
        inputs, targets = (array.astype(np.float32) for array in batch())
        return pc.data.from_arrays(inputs, targets, batch_size=3)

    def test_learned_weights_come_to_the_forward_ones_as_kolen_and_pollack_found(self):
        rate, decay, steps = 0.1, 0.5, 40
        optimizer = optax.chain(optax.add_decayed_weights(decay), optax.sgd(rate))
        trainer = self.trainer(LEARNED, optimizer)
        first = [
            b - w for b, w in zip(feedbacks(trainer.network), kernels(trainer.network), strict=True)
        ]
        trainer.fit(self.data(), num_steps=steps)
        for begun, b, w in zip(
            first, feedbacks(trainer.network), kernels(trainer.network), strict=True
        ):
            np.testing.assert_allclose(b - w, (1 - rate * decay) ** steps * begun, atol=1e-5)
            assert np.abs(begun).max() > 0.1

    @pytest.mark.parametrize("feedback", [FIXED, LEARNED])
    def test_a_resumed_run_is_the_uninterrupted_one(self, feedback, tmp_path):
        def make(folder=None):
            return self.trainer(feedback, optax.adamw(0.01, weight_decay=0.1), folder)

        whole = make()
        begun = feedbacks(whole.network)
        whole.fit(self.data(), num_steps=4)
        make(tmp_path).fit(self.data(), num_steps=2)
        resumed = make(tmp_path)
        for layer in resumed.network.layers:
            layer.feedback.set_value(jnp.zeros_like(layer.feedback[...]))
        resumed.restore()
        resumed.fit(self.data(), num_steps=4)
        for one, other, old in zip(
            feedbacks(whole.network), feedbacks(resumed.network), begun, strict=True
        ):
            np.testing.assert_array_equal(one, other)
            assert (one != old).any() == feedback.learns  # no decay touches what is fixed
        for one, other in zip(kernels(whole.network), kernels(resumed.network), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "inference",
    [
        pc.inference.NewtonCG(num_steps=2),
        pc.inference.GaussNewton(num_steps=2),
        pc.inference.LinearSolve(),
        pc.inference.GradientDescent(step_size="auto"),
    ],
    ids=lambda one: type(one).__name__,
)
def test_what_wants_a_curvature_says_so(inference):
    inputs, targets = (array.astype(np.float32) for array in batch())
    with pytest.raises(ValueError, match="errors of layer 'layer_0' go down.*needs the curvature"):
        chain(FIXED).infer(inputs, targets, inference=inference)


def test_the_gradient_through_the_equilibrium_wants_an_energy():
    rule = pc.learning.Implicit(pc.inference.GradientDescent(0.1, tolerance=1e-6))
    with pytest.raises(
        ValueError, match="no energy, but Implicit goes by the minimum of one; take"
    ):
        rule.check(chain(FIXED))


def test_the_analysis_knows_that_there_is_no_energy_and_what_backpropagation_is():
    inputs, targets = (array.astype(np.float32) for array in batch())
    network, plain = chain(FIXED), chain(None)
    for layer, same in zip(network.layers, plain.layers, strict=True):
        same.linear.kernel.set_value(layer.linear.kernel[...])
    found = pc.analysis.health(network, inputs, targets, learning=RULE)
    assert found.inference is None
    credit = pc.analysis.gradient_alignment(plain, inputs, targets, learning=RULE)
    for name, norm in credit.backprop_norm.items():
        assert found.credit.backprop_norm[name] == pytest.approx(norm, rel=1e-5)
    with pytest.raises(ValueError, match="a spectrum needs the curvature"):
        pc.analysis.activity_spectrum(network, inputs, targets)


def test_a_submodule_called_feedback_is_a_users_own():
    """Only layers of ours that were given feedback weights have them."""

    class Recurrent(pc.PCLayer):
        def __init__(self, rngs):
            super().__init__()
            self.feedback = nnx.Linear(3, 4, rngs=rngs)

        def predict(self, below):
            return jnp.tanh(self.feedback(below))

    rngs = nnx.Rngs(0)
    network = pc.PCNetwork({"own": Recurrent(rngs), "out": pc.PCDense(4, 2, rngs=rngs)})
    assert network.fed_back == ()
    x, y = jnp.ones((2, 3)), jnp.ones((2, 2))
    guarded = pc.inference.GradientDescent(0.1, guard="clip", num_steps=3)
    assert np.isfinite(network.infer(x, y, inference=guarded).energy).all()
    found = pc.analysis.health(network, x, y, learning=pc.learning.PredictiveCoding(guarded))
    assert found.inference is not None


def test_what_is_no_feedback_is_refused():
    with pytest.raises(TypeError, match=r"PCDense expected feedback .*pc.layers.Feedback\(\)"):
        pc.PCDense(2, 2, feedback="random", rngs=nnx.Rngs(0))
