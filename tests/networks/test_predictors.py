"""Several predictors of a node: energies, gradients and learning against NumPy, and what is refused.

Oracles: the bidirectional energy written out in NumPy at float64, its gradients by hand.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from pcflax.layers import Evidence
from tests.conftest import compiled_gradients, in_double

pytestmark = pytest.mark.slow

ALPHA_UP, ALPHA_DOWN = 0.7, 0.3


@pytest.fixture
def both(double):
    """X of 3, h of 4, y of 2, linear both ways, in float64; and the activities of a batch of 5."""
    network = pc.models.bidirectional(
        3,
        4,
        2,
        alpha_up=ALPHA_UP,
        alpha_down=ALPHA_DOWN,
        activation=None,
        rngs=nnx.Rngs(0),
    )
    random = np.random.default_rng(0)
    names = {"image": 3, "hidden_1": 4, "label": 2}
    z = {name: random.normal(size=(5, size)) for name, size in names.items()}
    return in_double(network), z


def weights_of(network, name):
    linear = network.layer(name).linear
    return np.asarray(linear.kernel[...]), np.asarray(linear.bias[...])


def errors(network, z):
    """{layer: z_node - (z_parent W + b)}, by hand."""
    arrows = {
        "hidden_1": ("image", "hidden_1"),
        "label": ("hidden_1", "label"),
        "down_hidden_1": ("label", "hidden_1"),
        "down_image": ("hidden_1", "image"),
    }
    found = {}
    for layer, (parent, node) in arrows.items():
        kernel, bias = weights_of(network, layer)
        found[layer] = z[node] - z[parent] @ kernel - bias
    return found


def test_energies_are_the_sum_over_predictors(both):
    network, z = both
    network.set_activities({name: jnp.asarray(value) for name, value in z.items()})
    found = network.energies(jnp.asarray(z["image"]))
    assert list(found) == ["image", "hidden_1", "label", "down_hidden_1", "down_image"]
    e = errors(network, z)
    for name, alpha in (
        ("hidden_1", ALPHA_UP),
        ("label", ALPHA_UP),
        ("down_hidden_1", ALPHA_DOWN),
        ("down_image", ALPHA_DOWN),
    ):
        np.testing.assert_allclose(found[name], alpha / 2 * (e[name] ** 2).sum(1), rtol=1e-12)
    np.testing.assert_array_equal(found["image"], np.zeros(5))  # a flat prior
    assert list(network.activities()) == ["image", "hidden_1", "label"]


def test_gradients_of_activities_and_weights_are_those_by_hand(both):
    network, z = both
    pure = pc.networks.split(network)
    evidence = Evidence(targets=jnp.asarray(z["label"]))
    problem = pc.inference.make_problem(pure, evidence)
    gradient = problem.gradient({name: z[name] for name in ("image", "hidden_1")})
    e = errors(network, z)
    kernel = {name: weights_of(network, name)[0] for name in e}
    on_image = ALPHA_DOWN * e["down_image"] - ALPHA_UP * e["hidden_1"] @ kernel["hidden_1"].T
    on_hidden = (
        ALPHA_UP * e["hidden_1"]
        + ALPHA_DOWN * e["down_hidden_1"]
        - ALPHA_UP * e["label"] @ kernel["label"].T
        - ALPHA_DOWN * e["down_image"] @ kernel["down_image"].T
    )
    np.testing.assert_allclose(gradient["image"], on_image, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(gradient["hidden_1"], on_hidden, rtol=1e-10, atol=1e-12)
    gradients, _ = jax.jit(pure.mean_gradients)(z, None)
    for layer, parent, alpha in (
        ("hidden_1", "image", ALPHA_UP),
        ("label", "hidden_1", ALPHA_UP),
        ("down_hidden_1", "label", ALPHA_DOWN),
        ("down_image", "hidden_1", ALPHA_DOWN),
    ):
        expected = -alpha * z[parent].T @ e[layer] / 5
        found = gradients[layer]["linear"]["kernel"]
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "inference",
    [
        pc.inference.LinearSolve(),
        pc.inference.NewtonCG(num_steps=4),
        pc.inference.GaussNewton(num_steps=4),
        pc.inference.GradientDescent(step_size="auto", tolerance=1e-9, max_steps=5000),
        pc.inference.ErrorCoordinates(pc.inference.GaussNewton(num_steps=4)),
    ],
    ids=lambda one: type(one).__name__,
)
def test_every_algorithm_finds_the_minimum_of_all_errors_together(inference, both):
    """Least squares of all weighted errors, by numpy.linalg.lstsq of one example."""
    network, z = both
    result = network.infer(None, jnp.asarray(z["label"]), inference=inference)
    size = 7  # x and h of one example

    def stacked(free, label):
        own = {"image": free[None, :3], "hidden_1": free[None, 3:], "label": label[None]}
        e = errors(network, own)
        root = {
            "hidden_1": ALPHA_UP,
            "label": ALPHA_UP,
            "down_hidden_1": ALPHA_DOWN,
            "down_image": ALPHA_DOWN,
        }
        return np.concatenate([np.sqrt(root[name]) * e[name][0] for name in root])

    for example in range(5):
        label = z["label"][example]
        offset = stacked(np.zeros(size), label)
        matrix = np.stack([stacked(unit, label) - offset for unit in np.eye(size)], axis=1)
        best = np.linalg.lstsq(matrix, -offset, rcond=None)[0]
        np.testing.assert_allclose(result.activities["image"][example], best[:3], atol=2e-6)
        np.testing.assert_allclose(result.activities["hidden_1"][example], best[3:], atol=2e-6)


def test_amortizers_learn_to_have_guessed_where_inference_ended():
    network = pc.models.hybrid(2, 4, 3, activation=jnp.tanh, rngs=nnx.Rngs(0))
    images = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    start = pc.initializers.Amortized()
    rule = pc.learning.PredictiveCoding(
        pc.inference.GradientDescent(0.1, num_steps=3), initializer=start
    )
    gradients, info = compiled_gradients(
        rule, pc.networks.split(network), Evidence(targets=images), key=jax.random.key(0)
    )
    first, first_bias = weights_of(network, "guess_hidden_1")
    second, second_bias = weights_of(network, "guess_latent")
    guess = np.asarray(images) @ first + first_bias  # linear from the data
    code = np.tanh(guess) @ second + second_bias
    # by hand: d/dW of mean 1/2 |z* - g|^2, with what is below held fixed
    on_first = np.asarray(images).T @ (guess - np.asarray(info.activities["hidden_1"])) / 5
    on_second = np.tanh(guess).T @ (code - np.asarray(info.activities["latent"])) / 5
    np.testing.assert_allclose(
        gradients["guess_hidden_1"]["linear"]["kernel"], on_first, rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(
        gradients["guess_latent"]["linear"]["kernel"], on_second, rtol=1e-4, atol=1e-6
    )
    assert set(info.energies) == {"latent", "hidden_1", "output"}  # inference knows nothing of them
    stays = pc.inference.GradientDescent(0.1, num_steps=0)
    begun = network.infer(None, images, inference=stays, initializer=start)
    np.testing.assert_allclose(begun.activities["hidden_1"], guess, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(begun.activities["latent"], code, rtol=1e-5, atol=1e-6)


def test_a_start_from_above_fills_what_is_not_known_of_a_node(both):
    """Image and hidden layer are known in part: the rest begins where the layers above put it."""
    network, z = both
    mask = {
        "image": np.array([True, False, True]),
        "hidden_1": np.arange(20).reshape(5, 4) % 3 == 0,
    }
    found = network.start(
        Evidence(
            pc.Clamp(jnp.asarray(z["image"]), jnp.asarray(mask["image"])),
            jnp.asarray(z["label"]),
            {"hidden_1": pc.Clamp(jnp.asarray(z["hidden_1"]), jnp.asarray(mask["hidden_1"]))},
        ),
        initializer=pc.initializers.Downward(),
    )
    above = z["label"]
    for layer, node in (("down_hidden_1", "hidden_1"), ("down_image", "image")):
        kernel, bias = weights_of(network, layer)
        above = np.where(mask[node], z[node], above @ kernel + bias)
        np.testing.assert_allclose(found[node], above, rtol=1e-12)


def test_guesses_fill_what_is_not_known_of_a_node():
    network = pc.models.hybrid(2, 4, 3, activation=jnp.tanh, rngs=nnx.Rngs(0))
    random = np.random.default_rng(1)
    images, hidden = (random.normal(size=(5, n)).astype(np.float32) for n in (3, 4))
    first, first_bias = weights_of(network, "guess_hidden_1")
    second, second_bias = weights_of(network, "guess_latent")
    for mask in (np.array([True, False, False, True]), np.ones(4, bool)):
        clamp = pc.Clamp(jnp.asarray(hidden), None if mask.all() else jnp.asarray(mask))
        found = network.start(
            Evidence(targets=jnp.asarray(images), clamps={"hidden_1": clamp}),
            initializer=pc.initializers.Amortized(),
        )
        guess = np.where(mask, hidden, images @ first + first_bias)
        code = np.tanh(guess) @ second + second_bias
        np.testing.assert_allclose(found["hidden_1"], guess, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found["latent"], code, rtol=1e-5, atol=1e-6)


def test_an_amortizers_variance_follows_how_far_its_guesses_are_off():
    """One over its precision: half of 1, half of the mean of (z* - g)^2."""
    network = pc.models.hybrid(2, 4, 3, activation=jnp.tanh, rngs=nnx.Rngs(0))
    for name in ("guess_hidden_1", "guess_latent"):
        network.layer(name).energy = pc.energies.RunningGaussian(momentum=0.5)
    images = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    start = pc.initializers.Amortized()
    rule = pc.learning.PredictiveCoding(pc.inference.GradientDescent(0.1, num_steps=3), start)
    state = pc.training.TrainState.of(network, optax.sgd(0.1))
    step = pc.training.make_step(network, optax.sgd(0.1), rule)
    state, info = step(state, Evidence(targets=images), jax.random.key(0))
    guess = network.start(Evidence(targets=images), initializer=start)
    for name, node in (("guess_hidden_1", "hidden_1"), ("guess_latent", "latent")):
        error = np.asarray(info.activities[node]) - np.asarray(guess[node])
        found = state.network.other[name]["energy"]["variance"]
        np.testing.assert_allclose(found, 0.5 + 0.5 * np.mean(error**2), rtol=1e-5)
    network.set_activities(info.activities)
    network.parameter_gradients()  # of the energy, to which amortizers do not belong
    assert network.layer("guess_latent").energy.variance[...] == 1


@pytest.mark.parametrize("rule", [pc.learning.PredictiveCoding, pc.learning.IncrementalPC])
def test_training_and_its_resumption_know_every_layer(rule, tmp_path):
    images = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    data = pc.data.from_arrays(None, images, batch_size=4)

    def trainer_in(folder):
        network = pc.models.hybrid(2, 4, 3, rngs=nnx.Rngs(0))
        learning = rule(
            pc.inference.GradientDescent(0.1, num_steps=2), initializer=pc.initializers.Amortized()
        )
        return pc.Trainer(
            network, optax.adam(1e-2), learning=learning, checkpoints=folder, progress=False
        )

    whole = trainer_in(None)
    before = jax.tree.map(jnp.copy, pc.networks.split(whole.network).parameters)
    whole.fit(data, num_steps=4)
    trainer_in(pc.Checkpoints(tmp_path)).fit(data, num_steps=2)
    resumed = trainer_in(pc.Checkpoints(tmp_path))
    resumed.restore()
    resumed.fit(data, num_steps=4)
    ends = [pc.networks.split(one.network).parameters for one in (whole, resumed)]
    assert set(ends[0]) == {"hidden_1", "output", "guess_hidden_1", "guess_latent"}
    for name in ends[0]:
        kernels = [np.asarray(one[name]["linear"]["kernel"]) for one in ends]
        np.testing.assert_array_equal(*kernels)
        assert (kernels[0] != np.asarray(before[name]["linear"]["kernel"])).any()


class TestRefusals:
    def graph(self, **options):
        rngs = nnx.Rngs(0)
        layers = {
            "a": pc.PCDense(3, 4, rngs=rngs),
            "b": pc.PCDense(4, 2, rngs=rngs),
            "down": pc.PCDense(2, 4, rngs=rngs),
        }
        parents = {"a": "x", "b": "a", "down": "b"}
        return pc.PCGraph(
            layers,
            parents=parents | options.pop("more", {}),
            inputs={"x": 3},
            output="b",
            **options,
        )

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"predicts": {"dwn": "a"}},
                "'dwn' is to predict 'a', but is no layer.*did you mean 'down'",
            ),
            ({"predicts": {"down": "c"}}, "'c', which is no layer with an activity"),
            ({"predicts": {"down": "b"}}, r"'down' predicts shape \(4,\)"),
            ({"predicts": {"down": "a"}, "amortizers": {"down": "a"}}, "name it once"),
            (
                {"predicts": {"down": "a"}, "more": {"b": "down"}},
                "parent 'down', which has no activity, since it predicts 'a'",
            ),
        ],
    )
    def test_a_wrong_predictor_is_told_when_the_network_is_made(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.graph(**options)

    def test_a_predictor_cannot_be_clamped(self):
        network = self.graph(predicts={"down": "a"})
        with pytest.raises(ValueError, match="'down' has no activity, since it predicts 'a'"):
            network.infer(
                jnp.ones((1, 3)),
                clamps={"down": jnp.ones((1, 4))},
                inference=pc.inference.GradientDescent(0.1),
            )
        with pytest.raises(ValueError, match="'down' has no activity, since it predicts 'a'"):
            network.set_activities({"down": jnp.ones((1, 4))})

    def test_rules_that_know_one_predictor_or_no_amortizer_say_so(self):
        descent = pc.inference.GradientDescent(0.1)
        with pytest.raises(ValueError, match="'down' predicts another layer's node"):
            pc.learning.FixedPrediction(descent).check(self.graph(predicts={"down": "a"}))
        with pytest.raises(ValueError, match="initializer=pc.initializers.Amortized"):
            pc.learning.PredictiveCoding(descent).check(self.graph(amortizers={"down": "a"}))

    def test_rules_that_would_leave_layers_untrained_say_so(self):
        nudged = pc.learning.Nudged(
            pc.inference.GradientDescent(0.1), initializer=pc.initializers.Amortized()
        )
        with pytest.raises(ValueError, match="Nudged would not train; give pc.learning.Predictive"):
            nudged.check(self.graph(amortizers={"down": "a"}))
        with pytest.raises(
            ValueError, match="'down' predicts another.*Backprop trains by the pass"
        ):
            pc.learning.Backprop().check(self.graph(predicts={"down": "a"}))

    def test_a_step_size_of_a_predictor_is_told(self):
        with pytest.raises(ValueError, match="step size for 'down', which fits none of the layers"):
            self.graph(predicts={"down": "a"}).infer(
                jnp.ones((1, 3)), inference=pc.inference.GradientDescent({"down": 0.1, "*": 0.1})
            )

    def test_a_predictor_cannot_normalize_over_the_batch(self):
        rngs = nnx.Rngs(0)
        layers = {
            "a": pc.PCDense(3, 4, rngs=rngs),
            "b": pc.PCDense(4, 2, rngs=rngs),
            "down": pc.PCDense(2, 4, norm=nnx.BatchNorm(4, rngs=rngs), rngs=rngs),
        }
        parents = {"a": "x", "b": "a", "down": "b"}
        network = pc.PCGraph(
            layers, parents=parents, inputs={"x": 3}, output="b", predicts={"down": "a"}
        )
        with pytest.raises(ValueError, match="'down' normalizes over the batch, but predicts"):
            network.infer(jnp.ones((2, 3)), inference=pc.inference.GradientDescent(0.1))

    def test_guesses_begin_at_what_is_known(self):
        network = self.graph(amortizers={"down": "a"})
        with pytest.raises(
            ValueError, match="'down' predicts 'a' from 'b'.*neither known nor amortized"
        ):
            network.infer(
                jnp.ones((1, 3)),
                inference=pc.inference.GradientDescent(0.1),
                initializer=pc.initializers.Amortized(),
            )
        plain = pc.PCNetwork([pc.PCDense(3, 2, rngs=nnx.Rngs(0))])
        with pytest.raises(ValueError, match="needs a network with amortizers"):
            plain.init_activities(jnp.ones((1, 3)), initializer=pc.initializers.Amortized())
