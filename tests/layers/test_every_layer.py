"""What holds for every kind of layer in a network: inference descends, examples do not mix, dtypes stay.

Oracle: the same network on one example alone, since no layer here may look across the batch.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from tests.conftest import energies_at_start

pytestmark = pytest.mark.slow

IMAGES, SEQUENCES, VECTORS, TOKENS = (6, 5, 4), (3, 4), (4,), (3,)


def _flat(in_features, rngs):
    return pc.PCLayer(nnx.Sequential(pc.layers.Flatten(), nnx.Linear(in_features, 2, rngs=rngs)))


# name: (shape of an example, the layer, features of an example above it)
LAYERS = {
    "conv": (IMAGES, lambda r: pc.PCConv(4, 6, 3, activation=jnp.tanh, pool="max", rngs=r), 36),
    "conv with norm": (
        IMAGES,
        lambda r: pc.PCConv(
            4,
            4,
            3,
            norm=nnx.GroupNorm(4, num_groups=2, rngs=r),
            activation=jax.nn.relu,
            pool="average",
            dropout=0.5,
            rngs=r,
        ),
        24,
    ),
    "conv with skip": (
        IMAGES,
        lambda r: pc.PCConv(4, 4, 3, activation=jnp.tanh, activation_first=True, skip=True, rngs=r),
        120,
    ),
    "conv with muPC": (
        IMAGES,
        lambda r: pc.PCConv(4, 6, 3, parameterization=pc.parameterizations.MuPC(), rngs=r),
        180,
    ),
    "attention with muPC": (
        SEQUENCES,
        lambda r: pc.PCAttention(4, 2, parameterization=pc.parameterizations.MuPC(), rngs=r),
        12,
    ),
    "conv with feedback": (
        IMAGES,
        lambda r: pc.PCConv(
            4, 6, 3, activation=jnp.tanh, pool="max", feedback=pc.layers.Feedback(), rngs=r
        ),
        36,
    ),
    "conv transpose with learned feedback": (
        IMAGES,
        lambda r: pc.PCConvTranspose(
            4, 2, 3, strides=2, feedback=pc.layers.Feedback(learns=True), rngs=r
        ),
        240,
    ),
    "conv transpose": (
        IMAGES,
        lambda r: pc.PCConvTranspose(4, 2, 3, strides=2, activation=jnp.tanh, rngs=r),
        240,
    ),
    "attention": (SEQUENCES, lambda r: pc.PCAttention(4, 2, causal=True, rngs=r), 12),
    "mlp": (SEQUENCES, lambda r: pc.PCMLP(4, 5, dropout=0.3, rngs=r), 12),
    "mlp of vectors": (VECTORS, lambda r: pc.PCMLP(4, 5, rngs=r), 4),
    "residual": (
        VECTORS,
        lambda r: pc.PCResidual(
            nnx.Linear(4, 5, rngs=r), shortcut=nnx.Linear(4, 5, rngs=r), activation=jax.nn.gelu
        ),
        5,
    ),
    "dense with norm": (
        VECTORS,
        lambda r: pc.PCDense(
            4, 5, norm=nnx.LayerNorm(5, rngs=r), activation=jnp.tanh, dropout=0.5, rngs=r
        ),
        5,
    ),
    "reshape": (
        VECTORS,
        lambda r: pc.PCLayer(nnx.Sequential(nnx.Linear(4, 6, rngs=r), pc.layers.Reshape(3, 2))),
        6,
    ),
    "embedding": (TOKENS, lambda r: pc.PCEmbedding(7, 4, num_positions=3, rngs=r), 12),
}


def build(name, *, batch=3):
    shape, make, above = LAYERS[name]
    rngs = nnx.Rngs(0)
    network = pc.PCNetwork({"first": make(rngs), "last": _flat(above, rngs)})
    network.eval()
    random = np.random.default_rng(1)
    if name == "embedding":
        inputs = jnp.asarray(random.integers(7, size=(batch, *shape)))
    else:
        inputs = jnp.asarray(random.normal(size=(batch, *shape)), jnp.float32)
    return network, inputs, jnp.asarray(random.normal(size=(batch, 2)), jnp.float32)


DESCENT = pc.inference.GradientDescent(optax.sgd(0.05), num_steps=10)


@pytest.mark.parametrize("name", LAYERS)
def test_inference_descends_for_each_example_as_if_it_were_alone(name):
    network, inputs, targets = build(name)
    before = energies_at_start(network, inputs, targets)
    np.testing.assert_allclose(before["first"], 0.0, atol=1e-9)  # the start is the prediction
    result = network.infer(inputs, targets, inference=DESCENT)
    assert (result.energy < network_total(before)).all()
    together = network.layer("first").activity[...]
    assert together.dtype == jnp.float32
    network.infer(inputs[1:2], targets[1:2], inference=DESCENT)
    alone = network.layer("first").activity[...]
    # float32, sums in another order for another batch size
    np.testing.assert_allclose(alone[0], together[1], rtol=1e-4, atol=1e-5)


def network_total(energies):
    return sum(np.asarray(value) for value in energies.values())


@pytest.mark.parametrize("name", LAYERS)
def test_every_parameter_gets_a_gradient(name):
    """A weight that no prediction uses would never learn."""
    network, inputs, targets = build(name)
    network.infer(inputs, targets, inference=DESCENT)
    for path, gradient in nnx.to_flat_state(network.parameter_gradients(inputs)):
        if path[-2:] == ("key", "bias"):
            continue  # a constant added to all keys changes no softmax
        assert np.abs(np.asarray(gradient[...])).max() > 0, path


@pytest.mark.parametrize("name", LAYERS)
def test_predictions_are_of_the_dtype_of_the_weights(name):
    network, inputs, _ = build(name)
    assert network.layer("first").predict(inputs).dtype == jnp.float32


@pytest.mark.parametrize("name", ["conv with norm", "mlp", "dense with norm"])
def test_dropout_is_random_in_training_and_off_in_evaluation(name):
    network, inputs, _ = build(name)
    layer = network.layer("first")
    evaluated = layer.predict(inputs)
    np.testing.assert_array_equal(layer.predict(inputs), evaluated)
    network.train()
    assert not np.array_equal(layer.predict(inputs), evaluated)
    assert not np.array_equal(layer.predict(inputs), layer.predict(inputs))
    network.eval()
    np.testing.assert_array_equal(layer.predict(inputs), evaluated)


@pytest.mark.parametrize(
    "make",
    [
        lambda rate: pc.PCDense(3, 5, dropout=rate, rngs=nnx.Rngs(0)),
        lambda rate: pc.PCConv(3, 5, 3, dropout=rate, rngs=nnx.Rngs(0)),
        lambda rate: pc.PCAttention(4, 2, dropout=rate, rngs=nnx.Rngs(0)),
        lambda rate: pc.PCMLP(4, 2, dropout=rate, rngs=nnx.Rngs(0)),
    ],
)
@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_rate_of_dropout_is_a_share(make, rate):
    text = (
        r"expected dropout to be at least 0 and below 1, the share of features that are set to "
        rf"zero, got {rate}"
    )
    with pytest.raises(ValueError, match=text):
        make(rate)


def test_without_dropout_no_random_state_is_kept():
    """Random state has to be saved, restored and split over devices: none where nothing is random."""
    rngs = nnx.Rngs(0)
    for layer in (pc.PCConv(3, 5, 3, rngs=rngs), pc.PCAttention(4, 2, rngs=rngs)):
        assert not nnx.to_flat_state(nnx.state(layer, nnx.RngState))
