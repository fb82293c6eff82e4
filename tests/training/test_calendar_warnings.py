"""A fit that is told when to evaluate and not on what says so."""

import optax
import pytest
from flax import nnx

import pcflax as pc


def test_eval_every_without_eval_data_is_told():
    network = pc.models.mlp(64, 4, 10, rngs=nnx.Rngs(0))
    trainer = pc.Trainer(network, optax.sgd(0.1), learning=pc.learning.Backprop(), progress=False)
    with pytest.warns(UserWarning, match="eval_every=1 and no eval_data") as told:
        trainer.fit(pc.data.load("digits"), num_steps=1, eval_every=1)
    assert told[0].filename == __file__
