"""Recall: what is known stays, the rest goes where the energy is least.

Oracles: the conditional mean of a linear Gaussian memory, and least squares, in NumPy.
"""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc

SETTLE = pc.inference.NewtonCG(num_steps=6)


def recurrent(size=6):
    layer = pc.PCDense(size, size, mask="no-diagonal", rngs=nnx.Rngs(0))
    return pc.PCGraph({"x": layer}, parents={"x": "x"}, output="x")


def test_a_recurrent_memory_fills_in_the_least_squares_solution():
    network = recurrent()
    kernel = np.asarray(network.layers["x"].linear.kernel[...], np.float64)
    cue = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    mask = np.array([True, True, False, True, False, False])
    found = network.recall(cue, mask, inference=SETTLE)
    np.testing.assert_array_equal(found[:, mask], cue[:, mask])
    error = np.eye(6) - kernel  # z (I - W)
    free, held = error[~mask], error[mask]
    for row, known in zip(np.asarray(found), cue, strict=True):
        best = np.linalg.lstsq(free.T, -known[mask] @ held, rcond=None)[0]
        np.testing.assert_allclose(row[~mask], best, atol=1e-4)


def test_what_is_not_known_of_the_cue_is_never_looked_at():
    network, mask = recurrent(), np.arange(6) < 3
    cue = np.ones((2, 6), np.float32)
    other = np.where(mask, cue, np.nan)
    found, same = (network.recall(c, mask, inference=SETTLE) for c in (cue, other))
    np.testing.assert_array_equal(found, same)


def test_without_a_mask_the_node_begins_at_the_cue():
    network = recurrent()
    kernel = np.asarray(network.layers["x"].linear.kernel[...], np.float64)
    cue = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    stays = pc.inference.GradientDescent(0.1, num_steps=0)
    np.testing.assert_array_equal(network.recall(cue, inference=stays), cue)
    one = network.recall(cue, inference=pc.inference.GradientDescent(0.1, num_steps=1))
    error = np.eye(6) - kernel
    np.testing.assert_allclose(one, cue - 0.1 * cue @ error @ error.T, atol=1e-5)


def test_one_node_of_several_outputs_recalls_the_other():
    rngs = nnx.Rngs(0)
    network = pc.PCGraph(
        {
            "code": pc.PCRoot(2),
            "left": pc.PCDense(2, 3, rngs=rngs),
            "right": pc.PCDense(2, 3, rngs=rngs),
        },
        parents={"left": "code", "right": "code"},
        output=("left", "right"),
    )
    left = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    network.recall(left, np.ones(3, bool), node="left", inference=SETTLE)
    weights = {n: np.asarray(network.layers[n].linear.kernel[...]) for n in ("left", "right")}
    precision = np.eye(2) + weights["left"] @ weights["left"].T
    code = np.linalg.solve(precision, weights["left"] @ left.T).T
    right = network.layers["right"].activity[...]
    np.testing.assert_allclose(right, code @ weights["right"], atol=1e-4)


def test_pairs_that_are_learned_are_recalled_from_either_side_as_least_squares():
    random = np.random.default_rng(0)
    cues, answers = random.normal(size=(12, 4)), random.normal(size=(12, 6))
    network = pc.PCNetwork(
        {
            "cue": pc.PCRoot(4, energy=pc.energies.Gaussian(0.1)),
            "answer": pc.PCDense(4, 6, use_bias=False, rngs=nnx.Rngs(0)),
        }
    )
    rule = pc.learning.PredictiveCoding(pc.inference.GradientDescent(0.1, num_steps=0))
    trainer = pc.Trainer(network, optax.sgd(0.5), learning=rule, progress=False)
    pairs = pc.data.from_arrays(np.float32(cues), np.float32(answers), batch_size=12)
    trainer.fit(pairs, num_steps=500, log_every=500)
    learned = np.linalg.lstsq(cues, answers, rcond=None)[0]
    asked = pc.Evidence(np.float32(cues), np.float32(answers))
    found = trainer.predict(asked, reads=pc.Equilibrium(SETTLE, read="answer"))
    np.testing.assert_allclose(found, cues @ learned, atol=1e-4)
    back = trainer.predict(asked, reads=pc.Equilibrium(SETTLE, read="cue"))
    # least squares once more, with the prior of the cue as 4 rows
    rows = np.vstack([learned.T, np.sqrt(0.1) * np.eye(4)])
    goal = np.hstack([answers, np.zeros((12, 4))]).T
    np.testing.assert_allclose(back, np.linalg.lstsq(rows, goal, rcond=None)[0].T, atol=1e-4)


def test_refusals():
    network, cue = recurrent(), jnp.ones((2, 6))
    with pytest.raises(ValueError, match="no layer 'y'"):
        network.recall(cue, inference=SETTLE, node="y")
    with pytest.raises(ValueError, match=r"with a mask of shape \(5,\)"):
        network.recall(cue, np.ones(5, bool), inference=SETTLE)
    with pytest.raises(ValueError, match="it takes no initializer"):
        network.recall(cue, inference=SETTLE, initializer=pc.initializers.Zeros())
