"""NNX's graph mode and its announced successor, tree mode, give the same numbers."""

import os
import subprocess
import sys

from tests.conftest import ROOT

PROGRAM = """
import hashlib, jax, jax.numpy as jnp, numpy as np, optax, pcflax as pc
from flax import nnx

class Residual(pc.PCLayer):
    def __init__(self, width, rngs):
        super().__init__(energy=pc.energies.Gaussian(2.0))
        self.linear = nnx.Linear(width, width, rngs=rngs)
    def predict(self, below):
        return below + nnx.gelu(self.linear(below))

rngs = nnx.Rngs(0)
network = pc.PCNetwork({"in": pc.PCDense(64, 30, activation=jnp.tanh, rngs=rngs),
                        "mid": Residual(30, rngs),
                        "out": pc.PCDense(30, 10, energy=pc.energies.Categorical(), rngs=rngs)})
inference = pc.inference.GradientDescent(optax.adam(0.05), num_steps=7)
trainer = pc.Trainer(network, optax.adam(1e-3), learning=pc.learning.PredictiveCoding(inference),
                     progress=False)
trainer.fit(pc.data.load("digits"), num_steps=30)
batch = next(iter(pc.data.load("digits")))
result = network.infer(batch.inputs, batch.targets, inference=inference)
gradients = network.parameter_gradients(batch.inputs)
total = hashlib.sha256()
for leaf in jax.tree.leaves((nnx.as_pure(nnx.state(network)), result, nnx.as_pure(gradients))):
    total.update(np.asarray(leaf).tobytes())
print(total.hexdigest())
"""


def run(**environment):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_graph_mode_and_tree_mode_agree_bit_by_bit():
    """Training, inference and gradients, with a subclassed layer and unequal energies."""
    graph = run(NNX_GRAPH_MODE="true", NNX_GRAPH_UPDATES="true")
    tree = run(NNX_GRAPH_MODE="false", NNX_GRAPH_UPDATES="false")
    assert len(graph) == 64
    assert graph == tree
