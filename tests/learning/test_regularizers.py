"""Regularizers add the gradient of the penalty that they name, to the weights, and do it in training.

The penalties are written out in NumPy and differentiated by finite differences in float64. What a
regularizer must not do is nothing: every test here fails where it does.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from pcflax.learning.regularizers import spectral_penalty, weight_decay

RATE = 0.3
REGULARIZERS = {"weight_decay": weight_decay, "spectral_penalty": spectral_penalty}
every_regularizer = pytest.mark.parametrize("name", REGULARIZERS)


def decay_penalty(weight):
    """1/2 ||W||^2."""
    return np.square(weight).sum() / 2


def orthogonality_penalty(weight):
    """1/2 ||I - W^T W||_F^2 as it stands, whichever Gram matrix is the smaller."""
    matrix = weight.reshape(-1, weight.shape[-1])
    return np.square(np.eye(matrix.shape[1]) - matrix.T @ matrix).sum() / 2


PENALTIES = {"weight_decay": decay_penalty, "spectral_penalty": orthogonality_penalty}


def finite_differences(penalty, weight):
    """The gradient of a penalty by central differences of a step of 1e-6."""
    gradient = np.zeros(weight.shape)
    for index in np.ndindex(weight.shape):
        step = np.zeros(weight.shape)
        step[index] = 1e-6
        gradient[index] = (penalty(weight + step) - penalty(weight - step)) / 2e-6
    return gradient


def added(regularizer, parameters):
    """What a regularizer adds to gradients of 0."""
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), parameters)
    return jax.jit(regularizer.update)(zeros, regularizer.init(parameters), parameters)[0]


def make_network(energy=None):
    rngs = nnx.Rngs(0)
    return pc.PCNetwork(
        [
            pc.PCDense(3, 5, activation=jnp.tanh, rngs=rngs),
            pc.PCDense(5, 2, energy=energy, rngs=rngs),
        ]
    )


def parameters_of(network):
    """The parameters as every learning rule gives them to the optimizer; biases are not 0."""
    parameters = pc.networks.split(network).parameters
    return jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(0.1), parameters)


def kernels(network):
    return [np.asarray(layer.linear.kernel[...]) for layer in network.layers]


def singular_values(network):
    return np.concatenate([np.linalg.svd(kernel, compute_uv=False) for kernel in kernels(network)])


@pytest.mark.usefixtures("double")
class TestGradients:
    @every_regularizer
    @pytest.mark.parametrize("shape", [(2, 2), (5, 3), (3, 5), (1, 4), (2, 3, 4), (3, 2, 2, 5)])
    def test_are_those_of_the_penalty_by_finite_differences(self, name, shape):
        """A factor wrong and every published rate means something else here."""
        weight = np.random.default_rng(0).normal(size=shape)
        found = added(REGULARIZERS[name](RATE), {"kernel": weight})["kernel"]
        expected = RATE * finite_differences(PENALTIES[name], weight)
        assert np.abs(expected).max() > 0.1
        # central differences of a step 1e-6 have about 1e-8 of penalties of order 100
        np.testing.assert_allclose(found, expected, atol=1e-6)

    @pytest.mark.parametrize("shape", [(5, 3), (3, 5)])
    def test_of_the_spectral_penalty_is_its_closed_form_and_that_of_either_gram_matrix(self, shape):
        weight = np.random.default_rng(0).normal(size=shape)
        found = added(spectral_penalty(RATE), {"kernel": weight})["kernel"]
        rows, columns = shape
        right = weight @ (weight.T @ weight - np.eye(columns))
        left = (weight @ weight.T - np.eye(rows)) @ weight
        np.testing.assert_allclose(found, 2 * RATE * right, rtol=1e-10)
        np.testing.assert_allclose(found, 2 * RATE * left, rtol=1e-10)

    def test_of_the_spectral_penalty_moves_singular_values_and_keeps_singular_vectors(self):
        """2 rate (s^3 - s) for each: down above 1, up below, nothing at 1."""
        random = np.random.default_rng(0)
        left, _ = np.linalg.qr(random.normal(size=(5, 3)))
        right, _ = np.linalg.qr(random.normal(size=(3, 3)))
        values = np.array([2.0, 1.0, 0.5])
        found = added(spectral_penalty(RATE), {"kernel": left * values @ right})
        expected = left * (2 * RATE * (values**3 - values)) @ right
        np.testing.assert_allclose(found["kernel"], expected, atol=1e-12)

    def test_of_the_spectral_penalty_vanishes_on_orthogonal_columns_alone(self):
        orthogonal, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 3)))
        found = added(spectral_penalty(RATE), {"kernel": orthogonal})["kernel"]
        np.testing.assert_allclose(found, 0, atol=1e-14)

    @every_regularizer
    def test_come_on_top_of_the_gradients_that_are_there(self, name):
        random = np.random.default_rng(0)
        parameters = {"kernel": random.normal(size=(4, 3))}
        gradients = {"kernel": random.normal(size=(4, 3))}
        regularizer = REGULARIZERS[name](RATE)
        update = jax.jit(regularizer.update)
        found, _ = update(gradients, regularizer.init(parameters), parameters)
        expected = gradients["kernel"] + added(regularizer, parameters)["kernel"]
        np.testing.assert_allclose(found["kernel"], expected, rtol=1e-12)

    @every_regularizer
    def test_grow_with_the_rate_and_vanish_at_0(self, name):
        parameters = {"kernel": np.random.default_rng(0).normal(size=(4, 3))}
        once, twice, none = (
            added(REGULARIZERS[name](rate), parameters)["kernel"] for rate in (RATE, 2 * RATE, 0.0)
        )
        np.testing.assert_allclose(twice, 2 * np.asarray(once), rtol=1e-12)
        np.testing.assert_array_equal(none, np.zeros((4, 3)))


@every_regularizer
class TestOnNetworks:
    def test_every_kernel_of_a_network_is_reached_and_no_bias(self, name):
        """The trap of the field: a rate that reads well, and parameters that it never finds."""
        parameters = parameters_of(make_network())
        found = added(REGULARIZERS[name](RATE), parameters)
        for number in (0, 1):
            weight = np.asarray(parameters[f"layer_{number}"]["linear"]["kernel"], np.float64)
            expected = RATE * finite_differences(PENALTIES[name], weight)
            assert np.abs(expected).max() > 0.05
            linear = found[f"layer_{number}"]["linear"]
            np.testing.assert_allclose(linear["kernel"], expected, rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(linear["bias"], np.zeros(weight.shape[1]))

    def test_parameters_of_energies_are_left_alone(self, name):
        """A learned precision with two axes is no matrix of weights."""
        layer = pc.PCLayer(
            nnx.Linear(3, 4, rngs=nnx.Rngs(0)),
            energy=pc.energies.LearnedGaussian(3, 4, precision=5.0),
        )
        found = added(REGULARIZERS[name](RATE), parameters_of(pc.PCNetwork([layer])))
        assert np.any(found["layer_0"]["module"]["kernel"])
        log_precision = found["layer_0"]["energy"]["log_precision"]
        np.testing.assert_array_equal(log_precision, np.zeros((3, 4)))

    def test_biases_of_attention_are_left_alone(self, name):
        """They have an axis of heads."""
        network = pc.PCNetwork([pc.PCAttention(4, 2, rngs=nnx.Rngs(0))])
        found = added(REGULARIZERS[name](RATE), parameters_of(network))
        for part in ("query", "key", "value", "out"):
            own = found["layer_0"]["attention"][part]
            assert np.any(own["kernel"])
            assert not np.any(own["bias"])

    def test_a_priors_mean_is_left_alone_and_an_array_alone_is_a_weight(self, name):
        root = pc.PCRoot(2, 3, mean=5.0, learn_mean=True)
        network = pc.PCNetwork([root, pc.PCLayer(nnx.Linear(3, 4, rngs=nnx.Rngs(0)))])
        found = added(REGULARIZERS[name](RATE), parameters_of(network))
        assert not np.any(found["layer_0"]["mean"])
        assert np.any(found["layer_1"]["module"]["kernel"])
        assert np.any(added(REGULARIZERS[name](RATE), np.ones((2, 2), np.float32)))

    def test_a_rate_may_be_injected(self, name):
        """As one that a schedule moves, which a compiled program does not know."""
        parameters = {"kernel": jnp.asarray(np.arange(6, dtype=np.float32).reshape(3, 2))}
        own = optax.inject_hyperparams(REGULARIZERS[name])(rate=RATE)
        expected = added(REGULARIZERS[name](RATE), parameters)["kernel"]
        np.testing.assert_allclose(added(own, parameters)["kernel"], expected, rtol=1e-6)

    def test_a_rate_of_numpy_leaves_16_bits_as_they_are(self, name):
        parameters = {"kernel": jnp.ones((3, 2), jnp.bfloat16)}
        assert added(REGULARIZERS[name](np.float64(0.3)), parameters)["kernel"].dtype == "bfloat16"

    def test_a_mask_decides_instead(self, name):
        parameters = parameters_of(make_network())
        mask = jax.tree.map(lambda leaf: leaf.shape == (5, 2), parameters)
        for given in (mask, lambda _: mask):
            found = added(REGULARIZERS[name](RATE, mask=given), parameters)
            moved = jax.tree.map(lambda leaf: bool(np.any(leaf)), found)
            assert moved == mask

    def test_serves_an_nnx_optimizer(self, name):
        """Whose parameters are a State of Variables, not a dictionary of arrays."""
        network = make_network()
        before = kernels(network)
        optimizer = nnx.Optimizer(
            network, optax.chain(REGULARIZERS[name](RATE), optax.sgd(0.1)), wrt=nnx.Param
        )
        x = jnp.ones((4, 3))
        network.init_activities(x, targets=network.predict(x))  # no error: gradients are 0
        optimizer.update(network, network.parameter_gradients(x))
        for now, then in zip(kernels(network), before, strict=True):
            gradient = RATE * finite_differences(PENALTIES[name], then.astype(np.float64))
            np.testing.assert_allclose(now, then - 0.1 * gradient, rtol=1e-4, atol=1e-6)

    def test_every_weight_update_of_a_rule_has_it(self, name):
        """A rule that left out the parameters in its optimizer update would stop here."""
        network = make_network()
        split = pc.networks.split(network)
        x, y = jnp.ones((4, 3)), jnp.ones((4, 2))
        rule = pc.learning.PredictiveCoding(
            pc.inference.GradientDescent(optax.sgd(0.1), num_steps=3)
        )
        ends = []
        for optimizer in (optax.sgd(0.1), optax.chain(REGULARIZERS[name](RATE), optax.sgd(0.1))):
            state = optimizer.init(split.parameters)
            new, _, _ = jax.jit(
                lambda n, s, o=optimizer: rule.update(
                    n, o, s, pc.Evidence(x, y), key=jax.random.key(0)
                )
            )(split, state)
            ends.append(new.parameters)
        expected = added(REGULARIZERS[name](RATE), split.parameters)
        for plain, penalised, gradient in zip(
            *map(jax.tree.leaves, jax.tree.map(np.asarray, (*ends, expected))), strict=True
        ):
            np.testing.assert_allclose(penalised, plain - 0.1 * gradient, rtol=1e-4, atol=1e-6)


class TestInTraining:
    def fit(self, regularizer=None):
        network = make_network()
        random = np.random.default_rng(0)
        x = random.normal(size=(64, 3)).astype(np.float32)
        data = pc.data.from_arrays(x, np.tanh(x[:, :2]), batch_size=16)
        optimizer = optax.adam(0.02)
        trainer = pc.Trainer(
            network,
            optimizer if regularizer is None else optax.chain(regularizer, optimizer),
            learning=pc.learning.PredictiveCoding(
                pc.inference.GradientDescent(optax.sgd(0.1), num_steps=5)
            ),
            progress=False,
        )
        trainer.fit(data, num_steps=300)
        return network

    def test_a_strong_weight_decay_shrinks_every_kernel(self):
        """To nothing almost: a decay of 10 outweighs any error of this problem."""
        start, plain, decayed = make_network(), self.fit(), self.fit(weight_decay(10.0))
        for before, without, now in zip(*map(kernels, (start, plain, decayed)), strict=True):
            assert np.linalg.norm(now) < 0.1 * np.linalg.norm(before)
            assert np.linalg.norm(now) < 0.1 * np.linalg.norm(without)

    def test_a_strong_spectral_penalty_takes_every_singular_value_to_1(self):
        plain, penalised = self.fit(), self.fit(spectral_penalty(10.0))
        assert np.abs(singular_values(plain) - 1).max() > 0.3
        np.testing.assert_allclose(singular_values(penalised), 1, atol=0.05)


@every_regularizer
class TestRefusals:
    @pytest.mark.parametrize("rate", [-0.1, float("nan"), float("inf")])
    def test_of_a_rate_that_is_none(self, name, rate):
        with pytest.raises(ValueError, match=f"{name} expected a rate of at least 0, got {rate}"):
            REGULARIZERS[name](rate)

    def test_of_what_is_no_rate_and_of_a_mask_of_elements(self, name):
        with pytest.raises(TypeError, match=f"{name} expected rate to be a number, got '0.1'"):
            REGULARIZERS[name]("0.1")
        elements = REGULARIZERS[name](RATE, mask={"kernel": np.eye(2) > 0})
        with pytest.raises(ValueError, match=r"one Boolean for each parameter, got an .* \(2, 2\)"):
            elements.init({"kernel": jnp.ones((2, 2))})

    @pytest.mark.parametrize("mask", [None, {"bias": False}, lambda _: {"bias": False}])
    def test_of_parameters_that_leave_it_nothing_to_do(self, name, mask):
        text = (
            f"{name} found no parameter to act on, so it would do nothing; give a mask that is True"
        )
        with pytest.raises(ValueError, match=text):
            optax.chain(REGULARIZERS[name](RATE, mask=mask), optax.sgd(0.1)).init(
                {"bias": jnp.ones(3)}
            )

    def test_of_an_update_without_parameters(self, name):
        parameters = {"kernel": jnp.ones((2, 2))}
        regularizer = REGULARIZERS[name](RATE)
        text = {
            "weight_decay": "requires a value for params|not passing `params`",
            "spectral_penalty": r"needs the parameters: optimizer\.update\(gradients, state, param",
        }[name]
        with pytest.raises(ValueError, match=text):
            regularizer.update(parameters, regularizer.init(parameters))


def test_the_spectral_penalty_refuses_what_is_no_matrix():
    regularizer = spectral_penalty(RATE, mask=lambda _: {"bias": True})
    text = (
        r"expected weights with two axes or more, got a parameter of shape \(3,\); leave it out of"
    )
    with pytest.raises(ValueError, match=text):
        added(regularizer, {"bias": jnp.ones(3)})


def test_the_spectral_penalty_leaves_out_what_a_layers_mask_leaves_out():
    """Of the weights that there are, its gradient; the others stay 0, and count for nothing."""
    mask = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 0], [1, 1, 1]], bool)
    network = pc.PCNetwork([pc.PCDense(4, 3, mask=mask, rngs=nnx.Rngs(0))])
    parameters = pc.networks.split(network).parameters
    weight = np.asarray(parameters["layer_0"]["linear"]["kernel"], np.float64)
    optimizer = optax.chain(spectral_penalty(RATE), optax.sgd(0.1))
    state, step = optimizer.init(parameters), jax.jit(optimizer.update)
    gradients = optax.tree.zeros_like(parameters)
    for _ in range(3):
        updates, state = step(gradients, state, parameters)
        parameters = optax.apply_updates(parameters, updates)
        weight -= 0.1 * RATE * mask * finite_differences(orthogonality_penalty, weight)
    found = parameters["layer_0"]["linear"]["kernel"]
    np.testing.assert_allclose(found, weight, rtol=1e-4, atol=1e-6)


class TestNormalizeSpectral:
    """Set W to W / ((sqrt m + sqrt n) std W) behind the optimizer's step."""

    @staticmethod
    def after(parameters, gradients=None, **options):
        optimizer = optax.chain(optax.sgd(0.5), pc.learning.normalize_spectral(**options))
        if gradients is None:
            gradients = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), parameters)

        @jax.jit
        def step(gradients, parameters):
            updates, _ = optimizer.update(gradients, optimizer.init(parameters), parameters)
            return optax.apply_updates(parameters, updates)

        return step(gradients, parameters)

    @pytest.mark.usefixtures("double")
    @pytest.mark.parametrize("shape", [(5, 3), (3, 5), (2, 3, 4, 6)])
    def test_is_the_equation_at_the_weights_after_the_step(self, shape):
        """A convolution's kernel is the matrix of (height * width * channels, channels)."""
        random = np.random.default_rng(0)
        weight, gradient = random.normal(size=shape), random.normal(size=shape)
        found = self.after({"kernel": weight}, {"kernel": gradient})
        moved = weight - 0.5 * gradient
        m, n = moved.size // shape[-1], shape[-1]
        expected = moved / ((np.sqrt(m) + np.sqrt(n)) * moved.std())
        np.testing.assert_allclose(found["kernel"], expected, rtol=1e-12)

    @pytest.mark.parametrize("shape", [(300, 200), (50, 400)])
    @pytest.mark.parametrize("scale", [1e-3, 30.0])
    def test_brings_the_largest_singular_value_of_random_weights_to_1(self, shape, scale):
        """The edge of Marchenko and Pastur's law; 5 % for what fluctuates at these sizes."""
        weight = scale * np.random.default_rng(0).normal(size=shape)
        found = self.after({"kernel": np.float32(weight)})["kernel"]
        largest = np.linalg.svd(np.asarray(found, np.float64), compute_uv=False)[0]
        assert largest == pytest.approx(1, abs=0.05)

    def test_leaves_biases_and_constant_weights_and_takes_each_layer_of_a_stack_by_itself(self):
        random = np.random.default_rng(0)
        stacked = np.stack([random.normal(size=(3, 4)), 100 * random.normal(size=(3, 4))])
        parameters = {
            "hidden": {"stacked-layers": {"linear": {"kernel": stacked, "bias": np.ones((2, 4))}}},
            "flat": {"linear": {"kernel": np.full((2, 3), 0.7)}},
        }
        parameters = jax.tree.map(np.float32, parameters)
        found = self.after(parameters)
        linear = found["hidden"]["stacked-layers"]["linear"]
        np.testing.assert_array_equal(linear["bias"], 1)
        np.testing.assert_array_equal(found["flat"]["linear"]["kernel"], np.float32(0.7))
        for weight, got in zip(stacked, linear["kernel"], strict=True):
            expected = weight / ((np.sqrt(3) + 2) * weight.std())
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)

    def test_needs_parameters_and_something_to_do(self):
        parameters = {"kernel": jnp.ones((2, 2))}
        own = pc.learning.normalize_spectral()
        with pytest.raises(ValueError, match="normalize_spectral needs the parameters"):
            own.update(parameters, own.init(parameters))
        with pytest.raises(ValueError, match="normalize_spectral found no parameter to act on"):
            own.init({"bias": jnp.ones(3)})
