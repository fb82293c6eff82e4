"""The language model: what it may not see, its size, and that inference runs on it.

Oracles: the causal rule itself, and the count of parameters by hand.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from tests.conftest import energies_at_start

pytestmark = pytest.mark.slow

TOKENS = jnp.array([[3, 1, 4, 1, 5, 6], [2, 0, 6, 5, 3, 5], [1, 1, 2, 3, 5, 0]])


def make(**options):
    options = {"num_heads": 2, "num_blocks": 2, "rngs": nnx.Rngs(0)} | options
    return pc.models.transformer(7, 5, 8, **options)


@jax.jit
def predicted(network, tokens):
    return network.predict(tokens)


def test_names_and_sizes():
    network = make()
    assert network.names == ("embedding", "attention_1", "mlp_1", "attention_2", "mlp_2", "output")
    parameters = jax.tree.leaves(nnx.state(network, nnx.Param))
    embedding = 7 * 8 + 5 * 8
    attention, mlp, norm = 4 * (8 * 8 + 8), (8 * 32 + 32) + (32 * 8 + 8), 2 * 8
    expected = embedding + 2 * (attention + mlp + 2 * norm) + norm + 8 * 7 + 7
    assert sum(math.prod(leaf.shape) for leaf in parameters) == expected


@pytest.mark.parametrize("place", [1, 4])
def test_a_token_never_changes_the_logits_before_it(place):
    """Otherwise the model reads the answer."""
    network, tokens = make(), TOKENS[:, :5]
    before = predicted(network, tokens)
    after = predicted(network, tokens.at[:, place].add(1))
    np.testing.assert_array_equal(before[:, :place], after[:, :place])
    assert (np.abs(before[:, place:] - after[:, place:]).max(axis=-1) > 1e-5).all()


def test_the_energy_at_the_start_is_the_cross_entropy_summed_over_places():
    network, tokens, targets = make(), TOKENS[:, :-1], jax.nn.one_hot(TOKENS[:, 1:], 7)
    network.init_activities(tokens, targets=targets)
    logits = network.predict(tokens)
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, TOKENS[:, 1:]).sum(axis=1)
    np.testing.assert_allclose(network.energy(tokens), expected, rtol=1e-5)


def test_inference_descends_for_each_example_as_if_it_were_alone():
    network, tokens, targets = make(), TOKENS[:, :-1], jax.nn.one_hot(TOKENS[:, 1:], 7)
    before = sum(energies_at_start(network, tokens, targets).values())
    descent = pc.inference.GradientDescent(optax.sgd(0.05), num_steps=5)
    result = network.infer(tokens, targets, inference=descent)
    assert (result.energy < before).all()
    assert network.layer("mlp_1").activity[...].shape == (3, 5, 8)
    alone = network.infer(tokens[1:2], targets[1:2], inference=descent)
    np.testing.assert_allclose(alone.energy[0], result.energy[1], rtol=1e-4)


@pytest.mark.promotes("nnx.Optimizer calls optax, whose Adam mixes dtypes")
def test_a_few_updates_learn_a_sequence():
    network = make(num_blocks=1)
    tokens, targets = TOKENS[:1, :-1], jax.nn.one_hot(TOKENS[:1, 1:], 7)
    optimizer = nnx.Optimizer(network, optax.adam(1e-2), wrt=nnx.Param)
    descent = pc.inference.GradientDescent(optax.sgd(0.1), num_steps=5)
    learn = nnx.jit(
        lambda network, optimizer: optimizer.update(network, network.parameter_gradients(tokens))
    )
    first = network.output_energy(network.predict(tokens), targets)
    for _ in range(8):
        network.infer(tokens, targets, inference=descent)
        learn(network, optimizer)
    assert network.output_energy(network.predict(tokens), targets)[0] < 0.5 * first[0]


def test_sequences_that_are_too_long_are_refused_by_name():
    text = r"layer 'embedding' \(PCEmbedding\) could not predict .*at most 5 tokens, got 6; set num_pos"
    with pytest.raises(ValueError, match=text):
        make().predict(TOKENS)


def test_options_reach_the_layers():
    network = make(
        dropout=0.5, hidden_features=3, activation=jnp.tanh, energy=pc.energies.Gaussian()
    )
    assert network.layer("attention_2").dropout.rate == network.layer("mlp_2").dropout.rate == 0.5
    assert network.layer("mlp_1").up.kernel.shape == (8, 3)
    assert network.layer("mlp_1").activation is jnp.tanh
    assert isinstance(network.layer("output").energy, pc.energies.Gaussian)


def test_a_parameterization_reaches_all_layers_and_logits_start_at_1_over_the_root_of_the_width():
    """a_L = 1/N of N(0, 1) weights on activities of size 1; the embedding's numbers have variance 2."""
    network = pc.models.transformer(
        7, 5, 64, num_blocks=1, parameterization=pc.parameterizations.MuPC(), rngs=nnx.Rngs(0)
    )
    assert network.layer("output").multiplier == 1 / 64
    assert network.layer("mlp_1").outer == pytest.approx((256 * 4) ** -0.5)
    tokens = TOKENS[:, :-1]
    logits = np.asarray(network.predict(tokens))
    assert np.sqrt(np.mean(logits**2)) == pytest.approx(64**-0.5, rel=0.2)  # 105 numbers
    embedded = np.asarray(network.feedforward(tokens)["embedding"])
    assert np.var(embedded) == pytest.approx(2, rel=0.2)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"num_blocks": -1}, ValueError, "transformer expected num_blocks of at least 0, got -1"),
        ({"num_blocks": 1.5}, TypeError, "transformer expected an int num_blocks, got 1.5"),
        ({"hidden_features": 0}, ValueError, "expected hidden_features of at least 1, got 0"),
    ],
)
def test_sizes_that_are_no_counts_are_refused(options, error, text):
    with pytest.raises(error, match=text):
        pc.models.transformer(7, 5, 8, rngs=nnx.Rngs(0), **options)
