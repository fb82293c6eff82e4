"""Strict promotion, which all tests run under: no rank and no dtype is promoted unless it is said.

pcflax says it where its own arrays meet. What a user mixes stays refused.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from tests.training.families import DESCENT, IMAGES, LABELS


def test_all_tests_run_under_it():
    assert jax.config.jax_numpy_rank_promotion == "raise"
    assert jax.config.jax_numpy_dtype_promotion == "strict"


@pytest.mark.promotes("the marker itself is what is tested")
def test_a_marked_test_runs_under_the_default():
    assert (jnp.ones((2, 3)) + jnp.ones(3, jnp.bfloat16)).dtype == jnp.float32


def test_images_train_in_bfloat16():
    rngs = nnx.Rngs(0)
    network = pc.PCNetwork(
        [
            pc.PCConv(
                1,
                3,
                3,
                norm=nnx.BatchNorm(3, rngs=rngs),
                activation=jnp.tanh,
                pool="average",
                rngs=rngs,
            ),
            pc.PCLayer(nnx.Sequential(pc.layers.Flatten(), nnx.Linear(12, 3, rngs=rngs))),
        ],
        compute_dtype=jnp.bfloat16,
    )
    images = np.random.default_rng(0).integers(256, size=(12, 4, 4, 1)).astype(np.uint8)
    data = pc.data.from_arrays(images / np.float32(255), LABELS, batch_size=4)
    trainer = pc.Trainer(
        network,
        optax.adam(optax.cosine_decay_schedule(1e-2, 10)),
        learning=pc.learning.PredictiveCoding(DESCENT),
        progress=False,
    )
    trainer.fit(data, num_steps=3)
    assert np.isfinite(trainer.evaluate(data)["energy"])


def test_dtypes_that_the_user_mixes_are_still_refused():
    """Strict promotion stays the user's: no context of ours loosens it around a layer of theirs."""
    network = pc.PCNetwork([pc.PCDense(6, 3, rngs=nnx.Rngs(0))])
    with pytest.raises(ValueError, match="no available implicit dtype promotion path"):
        network.predict(jnp.asarray(IMAGES, jnp.bfloat16))


def test_ranks_that_the_user_mixes_are_still_refused():
    class Shifted(pc.PCDense):
        def predict(self, below):
            return super().predict(below) + jnp.ones(3)

    with pytest.raises(ValueError, match=r"'layer_0' \(Shifted\).*jax_numpy_rank_promotion"):
        pc.PCNetwork([Shifted(6, 3, rngs=nnx.Rngs(0))]).predict(IMAGES)
