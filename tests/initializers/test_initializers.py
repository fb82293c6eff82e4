"""Where inference starts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from tests.conftest import Chain


def test_feedforward_is_the_default_and_has_no_hidden_error():
    chain = Chain()
    x, y = chain.inputs.astype(np.float32), chain.targets.astype(np.float32)
    chain.network.init_activities(x, targets=y)
    default = chain.network.activities()
    chain.network.init_activities(x, targets=y, initializer=pc.initializers.Feedforward())
    for name, activity in chain.network.activities().items():
        np.testing.assert_array_equal(activity, default[name])
    energies = chain.network.energies(x)
    assert (energies["layer_0"] == 0).all()
    assert (energies["layer_1"] == 0).all()
    assert (energies["layer_2"] > 0).all()


def test_zeros_start_at_zero_and_keep_clamps():
    chain = Chain()
    x, y = chain.inputs.astype(np.float32), chain.targets.astype(np.float32)
    chain.network.init_activities(x, targets=y, initializer=pc.initializers.Zeros())
    activities = chain.network.activities()
    assert not activities["layer_0"].any()
    assert activities["layer_1"].shape == (7, 4)
    np.testing.assert_array_equal(activities["layer_2"], y)


def test_normal_has_the_asked_for_spread_and_depends_on_its_key():
    """10,000 samples: the standard deviation of the estimate is 0.3 / sqrt(20,000) = 0.002."""
    chain = Chain(widths=(3, 100, 2), batch=100)
    x = chain.inputs.astype(np.float32)

    def sample(seed):
        chain.network.init_activities(
            x, initializer=pc.initializers.Normal(0.3), key=jax.random.key(seed)
        )
        return np.asarray(chain.network.layers[0].activity[...])

    assert abs(sample(0).std() - 0.3) < 0.01
    np.testing.assert_array_equal(sample(0), sample(0))
    assert (sample(0) != sample(1)).all()


def test_normal_of_a_deviation_that_is_mapped_over_is_of_the_networks_dtype():
    """An array of 32 bits, that is; and it draws what a number draws."""
    low = jnp.bfloat16
    network = pc.PCNetwork([pc.PCDense(3, 2, param_dtype=low, rngs=nnx.Rngs(0))])

    def start(stddev):
        evidence, noise = pc.Evidence(jnp.ones((4, 3), low)), pc.initializers.Normal(stddev)
        return network.start(evidence, initializer=noise, key=jax.random.key(0))["layer_0"]

    found = jax.vmap(start)(jnp.array([0.5, 2.0]))
    assert found.dtype == low
    for one, stddev in zip(found, (0.5, 2.0), strict=True):
        np.testing.assert_array_equal(one, start(stddev))


@pytest.mark.parametrize("wrong", [pc.initializers.Zeros, "zeros"])
def test_what_is_no_initializer_is_refused(wrong):
    chain = Chain()
    with pytest.raises(TypeError, match="expected initializer to be an object such as .* got "):
        chain.network.init_activities(chain.inputs.astype(np.float32), initializer=wrong)


def test_normal_without_a_key_is_refused():
    chain = Chain()
    with pytest.raises(ValueError, match=r"needs a key: pass key=jax.random.key\(0\)"):
        chain.network.init_activities(
            chain.inputs.astype(np.float32), initializer=pc.initializers.Normal()
        )


@pytest.mark.usefixtures("double")
def test_on_a_linear_chain_every_start_ends_at_one_equilibrium():
    chain = Chain(activation="identity")
    inference = pc.inference.GradientDescent(optax.sgd(0.1), num_steps=4000)
    ends = [
        chain.network.infer(
            chain.inputs,
            chain.targets,
            inference=inference,
            initializer=initializer,
            key=jax.random.key(0),
        ).activities["layer_1"]
        for initializer in (None, pc.initializers.Zeros(), pc.initializers.Normal(2.0))
    ]
    np.testing.assert_allclose(ends[1], ends[0], rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(ends[2], ends[0], rtol=1e-8, atol=1e-9)
    assert not jnp.allclose(ends[0], 0)


@pytest.mark.parametrize(
    ("stddev", "error"), [("0.1", TypeError), (-1.0, ValueError), (float("nan"), ValueError)]
)
def test_a_deviation_that_is_none_is_refused(stddev, error):
    with pytest.raises(error, match="Normal expected (a )?stddev"):
        pc.initializers.Normal(stddev)
