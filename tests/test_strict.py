"""Under jax's strict promotion: pcflax says aloud where dtypes meet, for users who want that of libraries.

What every algorithm, rule, energy and initializer does under it is asked by `test_conformance.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from tests.training.families import DESCENT, FAMILIES, IMAGES, LABELS, train

pytestmark = pytest.mark.usefixtures("explicit_dtypes")


@pytest.mark.parametrize("name", ["hybrid", "memory", "temporal", "missing labels"])
def test_a_family_trains_saves_and_resumes(tmp_path, name):
    train(name, tmp_path, 4, every=2)
    trainer = train(name, tmp_path, 2, resume=True)
    assert trainer.step == 6
    if name != "memory":  # nothing is known below its output
        assert np.isfinite(trainer.evaluate(FAMILIES[name]()[2])["energy"])


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
    assert jax.config.jax_numpy_dtype_promotion == "strict"
