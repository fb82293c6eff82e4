"""Training and evaluation where targets are missing or examples have weights."""

import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from tests.conftest import parameters_of

DRAW = np.random.RandomState(0)
X, LABELS = DRAW.randn(12, 4).astype(np.float32), np.arange(12) % 3
KNOWN = np.arange(12) % 4 < 2
RULE = pc.learning.PredictiveCoding(pc.inference.GradientDescent(0.1, num_steps=3))


def network(energy=None):
    rngs = nnx.Rngs(0)
    output = pc.PCDense(5, 3, energy=energy or pc.energies.Gaussian(), rngs=rngs)
    return pc.PCNetwork([pc.PCDense(4, 5, activation=jnp.tanh, rngs=rngs), output])


def trainer_of(net, rule=RULE, **options):
    return pc.Trainer(net, optax.sgd(0.1), learning=rule, progress=False, **options)


def data_of(known=KNOWN, **options):
    return pc.data.from_arrays(
        X, (np.where(known, LABELS, -1), known), num_classes=3, **{"batch_size": 4, **options}
    )


@pytest.mark.parametrize("energy", [pc.energies.Gaussian, pc.energies.Categorical])
@pytest.mark.parametrize("batch_size", [4, 5])
def test_only_known_targets_count_in_evaluation(energy, batch_size):
    net = network(energy())
    found = trainer_of(net).evaluate(data_of(batch_size=batch_size))
    logits = np.asarray(net.predict(X))[KNOWN]
    right = (logits.argmax(1) == LABELS[KNOWN]).mean()
    assert found["accuracy"] == pytest.approx(right)
    targets = np.eye(3)[LABELS[KNOWN]]
    if energy is pc.energies.Gaussian:
        energies = ((logits - targets) ** 2).sum(1) / 2
    else:
        energies = np.log(np.exp(logits).sum(1)) - (logits * targets).sum(1)
    # what nothing is known of costs nothing
    assert found["energy"] == pytest.approx(energies.sum() / 12, rel=1e-5)


def test_rows_of_training_are_means_over_known_targets():
    """Two batches, of which the second knows no label."""
    known = np.array([True, True, False, True, *[False] * 4])
    data = pc.data.from_arrays(
        X[:8], (LABELS[:8], known), batch_size=4, shuffle=False, num_classes=3
    )
    still = pc.Trainer(network(), optax.sgd(0.0), learning=RULE, progress=False)
    history = still.fit(data, num_steps=4, log_every=2)
    right = np.asarray(network().predict(X[:4])).argmax(1) == LABELS[:4]
    np.testing.assert_allclose(history["train/accuracy"], right[known[:4]].mean(), rtol=1e-6)
    assert "train/known" not in history.rows[0]
    nothing = pc.data.from_arrays(X[4:8], (LABELS[4:8], known[4:]), batch_size=4, num_classes=3)
    history = trainer_of(network()).fit(nothing, num_steps=1, log_every=1)
    assert math.isnan(history["train/accuracy"][0])
    assert history["train/loss"][0] == 0


def test_unlabelled_rows_of_a_plain_chain_change_nothing():
    """All its errors are 0, so labelled rows alone, at the step of their share, give the same."""
    with_rest, alone = network(), network()
    trainer_of(with_rest).fit(data_of(batch_size=12), num_steps=3)
    few = pc.data.from_arrays(X[KNOWN], LABELS[KNOWN], batch_size=6, num_classes=3)
    share = pc.Trainer(alone, optax.sgd(0.1 * 6 / 12), learning=RULE, progress=False)
    share.fit(few, num_steps=3)
    for got, expected in zip(parameters_of(with_rest), parameters_of(alone), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_weights_reach_learning_and_not_evaluation():
    weights = np.array([2.0, 1.0, 0.0] * 4)
    options = {"batch_size": 12, "num_classes": 3, "shuffle": False}
    weighed, twice = network(), network()
    data = pc.data.from_arrays(X, LABELS, weights=weights, **options)
    plain = pc.data.from_arrays(X, LABELS, **options)
    assert trainer_of(weighed).evaluate(data) == trainer_of(weighed).evaluate(plain)
    trainer_of(weighed).fit(data, num_steps=1)
    rows = np.repeat(np.arange(12), weights.astype(int))
    trainer_of(twice).fit(pc.data.from_arrays(X[rows], LABELS[rows], **options), num_steps=1)
    for got, expected in zip(parameters_of(weighed), parameters_of(twice), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_a_rule_that_knows_no_weights_refuses_them():
    class Plain(pc.learning.PredictiveCoding):
        weighs_examples = False

    data = pc.data.from_arrays(X, LABELS, batch_size=4, weights=np.ones(12))
    with pytest.raises(ValueError, match="the examples have weights, but Plain counts all alike"):
        trainer_of(network(), Plain(RULE.inference)).fit(data, num_steps=1)


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        (np.ones(3), r"expected weights of shape \(12,\), one for each example, got \(3,\)"),
        ([1.0] * 12, "got list"),
        (np.full(12, -1.0), "expected weights that are finite and at least 0, got others"),
    ],
)
def test_weights_of_evidence_are_checked(weights, text):
    with pytest.raises(ValueError, match=text):
        network().known(pc.Evidence(X, weights=weights))


def test_what_cannot_be_known_in_part_is_told():
    masked = (X, DRAW.rand(12, 4) > 0.5)
    data = pc.data.from_arrays(masked, LABELS, batch_size=4)
    with pytest.raises(ValueError, match="the inputs are known in part, but come from outside"):
        trainer_of(network()).fit(data, num_steps=1)
    bits = pc.data.from_arrays(X, (np.ones((12, 3)), KNOWN[:, None]), batch_size=4)
    with pytest.raises(ValueError, match="'layer_1' is free, but its energy Bernoulli has no min"):
        trainer_of(network(pc.energies.Bernoulli())).fit(bits, num_steps=1)


def test_a_root_is_known_in_part():
    """Its gaps are inferred: at the equilibrium of a linear chain they solve a linear system."""
    rngs = nnx.Rngs(0)
    net = pc.PCNetwork({"x": pc.PCRoot(4), "y": pc.PCDense(4, 3, rngs=rngs)})
    mask, y = DRAW.rand(12, 4) > 0.5, DRAW.randn(12, 3).astype(np.float32)
    evidence = pc.Evidence(pc.Clamp(np.where(mask, X, np.nan), mask), y)
    reading = pc.Equilibrium(pc.inference.GradientDescent(0.2, num_steps=300), read="x", hide=())
    found = pc.training.answer(net, evidence, reading).values
    kernel = np.asarray(net.layer("y").linear.kernel[...])
    bias = np.asarray(net.layer("y").linear.bias[...])
    for row in range(12):
        known, free = mask[row], ~mask[row]
        # min |x_f|^2 / 2 + |y - x W - b|^2 / 2
        left = y[row] - X[row][known] @ kernel[known] - bias
        solved = np.linalg.solve(
            np.eye(free.sum()) + kernel[free] @ kernel[free].T, kernel[free] @ left
        )
        np.testing.assert_allclose(found[row][free], solved, rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(found[row][known], X[row][known])


def test_a_row_over_a_resume_counts_what_was_known_before(tmp_path):
    def trainer():
        return trainer_of(network(), checkpoints=pc.Checkpoints(tmp_path, every=4, keep_latest=9))

    whole = trainer().fit(data_of(), num_steps=6, log_every=6).rows
    digest = pc.load_checkpoint(tmp_path).digest()
    resumed = trainer()
    resumed.restore(step=4)
    assert resumed.fit(data_of(), num_steps=6, log_every=6).rows == whole
    assert pc.load_checkpoint(tmp_path).digest() == digest


def test_inference_is_compared_with_known_targets_alone():
    net, known = network(), KNOWN & (LABELS > 0)
    reading = pc.Equilibrium(pc.inference.GradientDescent(0.1, num_steps=50))
    found = trainer_of(net, reads=reading).evaluate(data_of(known, batch_size=5))
    # a free output of a chain is its prediction
    right = np.asarray(net.predict(X)).argmax(1) == LABELS
    assert found["accuracy"] == pytest.approx(right[known].mean())
