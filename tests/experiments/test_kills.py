"""Many seeds in one program, killed with -9 and resumed, end bitwise as those that were never stopped."""

import sys

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from tests.conftest import kill_once_saved

pytestmark = pytest.mark.slow

DRAW = np.random.default_rng(0)
DATA = pc.data.from_arrays(DRAW.normal(size=(22, 6)), DRAW.normal(size=(22, 3)), batch_size=4)
SEEDS = (3, 0, 5)


def make(seed):
    network = pc.models.mlp(6, 5, 3, activation=jnp.tanh, rngs=nnx.Rngs(seed))
    rule = pc.learning.PredictiveCoding(pc.inference.GradientDescent(0.1, num_steps=3))
    return pc.Trainer(network, optax.adamw(1e-2), learning=rule, seed=seed, progress=False)


def replicas_in(folder, every=5):
    checkpoints = pc.Checkpoints(folder, every=every)
    return pc.experiments.replicate(
        make, SEEDS, how="mapped", checkpoints=checkpoints, progress=False
    )


def test_killed_runs_end_as_those_never_stopped(tmp_path):
    kill_once_saved(
        ["-m", __name__, str(tmp_path / "killed")],
        [tmp_path / f"killed/seed-{seed}" for seed in SEEDS],
    )
    resumed, whole = replicas_in(tmp_path / "killed", 10**6), replicas_in(tmp_path / "whole", 10**6)
    last = max(resumed.restore()) + 7
    for replicas in (resumed, whole):
        replicas.fit(DATA, num_steps=last, log_every=2)
    for seed in SEEDS:
        found, expected = (
            pc.load_checkpoint(tmp_path / which / f"seed-{seed}") for which in ("killed", "whole")
        )
        assert found.step == expected.step == last
        assert found.digest() == expected.digest()
        assert found.rows() == expected.rows()


if __name__ == "__main__":
    replicas_in(sys.argv[1]).fit(DATA, num_steps=10**9, log_every=2)
