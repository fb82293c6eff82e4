"""Ancestral samples against the moments of linear Gaussian models, worked out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy import stats

import pcflax as pc

KEY = jax.random.key(0)
G = pc.energies.Gaussian


def dense(size, width, seed, **options):
    return pc.PCDense(size, width, rngs=nnx.Rngs(seed), **options)


def chain(mean=(1.0, -2.0), root=4.0):
    return pc.PCNetwork(
        {
            "latent": pc.PCRoot(2, mean=np.array(mean, np.float32), energy=G(root)),
            "hidden": dense(2, 4, 1, energy=G(np.array([1.0, 2.0, 4.0, 8.0]))),
            "image": dense(4, 3, 2, energy=G(25.0)),
        }
    )


def weights(network, name):
    linear = network.layer(name).linear
    return np.asarray(linear.kernel[...]), np.asarray(linear.bias[...])


def test_samples_have_the_moments_of_the_linear_gaussian_model():
    """X = b2 + W2^T (b1 + W1^T z + e1) + e2: a Gaussian whose mean and covariance are known."""
    network, count = chain(), 20000
    (w1, b1), (w2, b2) = weights(network, "hidden"), weights(network, "image")
    draw = network.sample(count, key=KEY, nodes=("latent", "image"))
    image = np.asarray(draw["image"])
    mean = (np.array([1.0, -2.0]) @ w1 + b1) @ w2 + b2
    inner = w1.T @ w1 / 4 + np.diag([1, 1 / 2, 1 / 4, 1 / 8])
    covariance = w2.T @ inner @ w2 + np.eye(3) / 25
    whitened = np.linalg.solve(np.linalg.cholesky(covariance), (image - mean).T)
    for feature in whitened:
        assert stats.kstest(feature, "norm").pvalue > 0.01
    np.testing.assert_allclose(np.cov(whitened), np.eye(3), atol=5 * (2 / count) ** 0.5)
    # and jointly with the latent: Cov(z, x) = W1 W2 / 4
    latent = np.asarray(draw["latent"])
    joint = (latent - latent.mean(0)).T @ (image - image.mean(0)) / count
    np.testing.assert_allclose(joint, w1 @ w2 / 4, atol=0.03)


def test_means_stand_at_the_predictions_mean_and_clamps_stay():
    network = chain()
    code = jnp.array([[0.5, 1.0], [2.0, -1.0]])
    everything = network.sample(
        key=KEY, clamps={"latent": code}, means=("hidden", "image"), nodes=network.names
    )
    np.testing.assert_array_equal(everything["latent"], code)
    np.testing.assert_array_equal(everything["image"], network.predict(code))
    np.testing.assert_array_equal(
        network.sample(inputs=code, key=KEY, means=("hidden", "image")), network.predict(code)
    )
    held = pc.Clamp(jnp.full((2, 4), 7.0), jnp.array([True, False, True, False]))
    part = network.sample(key=KEY, clamps={"hidden": held}, nodes="hidden")
    np.testing.assert_array_equal(part[:, ::2], 7.0)
    assert (part[:, 1::2] != 7.0).all()


def test_the_key_alone_decides_and_nothing_is_stored():
    network = chain()
    once, again = (network.sample(3, key=KEY) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    assert not np.allclose(once, network.sample(3, key=jax.random.key(1)))
    with pytest.raises(ValueError, match="no activity yet"):
        network.activities()


def test_sampling_compiles():
    network = pc.networks.split(chain())
    compiled = jax.jit(lambda pure, key: pure.bind().sample(3, key=key))
    np.testing.assert_allclose(compiled(network, KEY), chain().sample(3, key=KEY), rtol=1e-5)


def test_layers_of_a_stack_are_drawn_one_after_the_other():
    """Its nodes add noise each: with weights of 0 a node has its own noise and its parent's not."""
    stack = pc.PCStack(
        [dense(3, 3, n, kernel_init=nnx.initializers.zeros, energy=G(4.0)) for n in range(3)]
    )
    network = pc.PCNetwork({"root": pc.PCRoot(3), "stack": stack})
    draws = network.sample(5000, key=KEY, nodes=["stack/0", "stack/2"])
    assert list(draws) == ["stack/0", "stack/2"]
    for draw in draws.values():
        np.testing.assert_allclose(np.var(draw), 1 / 4, rtol=0.05)
    assert abs(np.corrcoef(draws["stack/0"].ravel(), draws["stack/2"].ravel())[0, 1]) < 0.04
    same = pc.PCStack(
        [dense(3, 3, n, kernel_init=nnx.initializers.constant(0.5)) for n in range(3)]
    )
    network = pc.PCNetwork({"root": pc.PCRoot(3), "stack": same})
    held = jnp.full((2, 3), 2.0)
    draws = network.sample(
        key=KEY, clamps={"stack/1": held}, nodes=["stack/1", "stack/2"], means="stack/2"
    )
    np.testing.assert_array_equal(draws["stack/1"], held)
    np.testing.assert_allclose(draws["stack/2"], 3.0, rtol=1e-6)  # 3 * 0.5 * 2


def test_a_graph_with_two_roots_and_two_outputs_is_sampled_by_name():
    network = pc.PCGraph(
        {
            "label": pc.PCRoot(2, energy=G(0.0)),
            "style": pc.PCRoot(3),
            "image": dense(5, 4, 0),
            "bits": dense(3, 6, 1, energy=pc.energies.Bernoulli()),
        },
        parents={"image": pc.networks.Concatenate("label", "style"), "bits": "style"},
        inputs="label",
        output=("image", "bits"),
    )
    draws = network.sample(inputs=jnp.eye(2), key=KEY)
    assert {name: draw.shape for name, draw in draws.items()} == {"image": (2, 4), "bits": (2, 6)}
    assert set(np.unique(draws["bits"])) <= {0.0, 1.0}
    with pytest.raises(ValueError, match="layer 'label' cannot be sampled: Gaussian with a precis"):
        network.sample(2, key=KEY)


def test_a_network_without_a_root_is_sampled_from_its_inputs():
    network = pc.PCNetwork(
        {"hidden": dense(3, 4, 0), "label": dense(4, 2, 1, energy=pc.energies.Categorical())}
    )
    assert network.sample(inputs=jnp.ones((5, 3)), key=KEY).sum() == 5
    with pytest.raises(ValueError, match="has no root"):
        network.sample(5, key=KEY)


def cyclic():
    return pc.PCGraph({"a": dense(2, 2, 0)}, parents={"a": "a"}, shapes={"a": 2}, output="a")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: chain().sample(2, key=KEY, nodes="latnet"), "no node 'latnet'.*did you mean 'latent'"),
        (lambda: chain().sample(2, key=KEY, means="pixels"), "no node 'pixels' to sample"),
        (lambda: chain().sample(key=KEY), r"how many to draw: network.sample\(16, key=key\)"),
        (lambda: chain().sample(3, key=KEY, inputs=jnp.ones((2, 2))), "values of 2 examples"),
        (lambda: chain().sample(0, key=KEY), "at least 1"),
        (lambda: cyclic().sample(2, key=KEY), "'a' is on a cycle.*Langevin"),
        (
            lambda: pc.models.bidirectional(4, 3, 2, rngs=nnx.Rngs(0)).sample(2, key=KEY),
            "is predicted by 'down_.*Langevin",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_sampled_is_told_in_a_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class TestRoot:
    def test_a_mean_is_kept_or_learned(self):
        """One step of gradient descent on the mean: m + rate * precision * (z - m), averaged."""
        for learn in (False, True):
            root = pc.PCRoot(2, mean=0.5, learn_mean=learn, energy=G(2.0))
            network = pc.PCNetwork({"z": root, "x": dense(2, 3, 0)})
            z, x = jnp.array([[1.0, 2.0], [0.0, 4.0]]), jnp.zeros((2, 3))
            rule = pc.learning.PredictiveCoding(pc.inference.GradientDescent(0.1, num_steps=1))
            trainer = pc.Trainer(network, optax.sgd(0.1), learning=rule, progress=False)
            trainer.fit(pc.data.from_arrays(z, x, batch_size=2), epochs=1)
            moved = 0.5 + 0.1 * 2.0 * (np.mean(z, axis=0) - 0.5) if learn else [0.5, 0.5]
            np.testing.assert_allclose(trainer.network.layer("z").predict(), moved, rtol=1e-6)

    def test_a_learned_prior_becomes_that_of_clamped_codes(self):
        """The maximum of the likelihood: mean and 1/variance of the codes."""
        codes = np.random.default_rng(0).normal([1.0, -2.0], [0.5, 2.0], (64, 2)).astype(np.float32)
        root = pc.PCRoot(2, learn_mean=True, energy=pc.energies.LearnedGaussian(2))
        network = pc.PCNetwork({"z": root})
        state = optax.adam(0.1)
        rule = pc.learning.PredictiveCoding(pc.inference.GradientDescent(0.1, num_steps=1))
        trainer = pc.Trainer(network, state, learning=rule, progress=False)
        trainer.fit(pc.data.from_arrays(codes, codes, batch_size=64), epochs=300)
        prior = trainer.network.layer("z")
        np.testing.assert_allclose(prior.predict(), codes.mean(0), atol=1e-2)
        np.testing.assert_allclose(
            np.exp(-prior.energy.log_precision[...]), codes.var(0), rtol=0.02
        )

    def test_wrong_means_are_refused(self):
        with pytest.raises(ValueError, match=r"PCRoot\(2,\) expected a mean of that shape"):
            pc.PCRoot(2, mean=np.zeros(3))
        with pytest.raises(ValueError, match="flat prior.*no mean can be learned"):
            pc.PCRoot(2, learn_mean=True, energy=G(0.0))
