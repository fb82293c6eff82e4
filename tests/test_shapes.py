"""Shapes and dtypes are those that the annotations say: jaxtyping's, checked by beartype at every call.

In a process of its own, since the checks are put in while the package is imported. What the tests of
refusals give on purpose would be refused by beartype first, in its own words.
"""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow

PROGRAM = """
import typing
typing.Self = typing.Any  # which beartype does not check on a single method

import warnings
warnings.simplefilter("ignore")  # beartype's, of names that Python 3.9 moved

import beartype, jaxtyping
tower = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))  # 1 is a float
jaxtyping.install_import_hook("pcflax", "__main__.tower")

import jax, jax.numpy as jnp, numpy as np, optax
from flax import nnx
import pcflax as pc

x, y, key = jnp.ones((4, 3)), jnp.full((4, 2), 0.5), jax.random.key(0)
gd = pc.inference.GradientDescent(optax.sgd(0.1), num_steps=2)
data = pc.data.from_arrays(np.ones((8, 3), np.float32), np.full((8, 2), 0.5, np.float32), batch_size=4)

def network(energy=None, last=None):
    return pc.PCNetwork([
        pc.PCDense(3, 5, activation=jnp.tanh, energy=energy, rngs=nnx.Rngs(0)),
        pc.PCDense(5, 2, energy=last, rngs=nnx.Rngs(1)),
    ])

for energy in (
    pc.energies.Gaussian(2), pc.energies.Gaussian(jnp.ones(5)), pc.energies.LearnedGaussian(5),
    pc.energies.Laplace(), pc.energies.Huber(), pc.energies.ActivityDecay(pc.energies.Gaussian(), 0.1),
):
    network(energy).infer(x, y, inference=gd)
for energy in (pc.energies.Categorical(), pc.energies.Bernoulli(), pc.energies.KL()):
    network(last=energy).infer(x, y, inference=gd)

for inference in (
    pc.inference.GradientDescent(step_size="auto", num_steps=2),
    pc.inference.GradientDescent(optax.sgd(0.1), tolerance=0.1, max_steps=4),
    pc.inference.NewtonCG(num_steps=2), pc.inference.GaussNewton(num_steps=2),
    pc.inference.GradientFlow(max_steps=8), pc.inference.ErrorCoordinates(gd),
    pc.inference.Sequence(gd, gd),
):
    network().infer(x, y, inference=inference)
network().infer(x, y, inference=pc.inference.Langevin(0.1, temperature=0.1, burn_in=2), key=key)
clamped = network()
clamp = pc.Clamp(jnp.ones((4, 5)), jnp.ones((4, 5), bool))
clamped.infer(x, y, inference=gd, clamps={"layer_0": clamp})
clamped.parameter_gradients(x), clamped.energies(x), clamped.predict(x)

for rule in (
    pc.learning.PredictiveCoding(gd), pc.learning.IncrementalPC(gd), pc.learning.FixedPrediction(gd),
    pc.learning.ZIL(), pc.learning.Nudged(gd, beta=0.5), pc.learning.Backprop(),
):
    trainer = pc.Trainer(network(), optax.adam(1e-3), learning=rule, progress=False)
    trainer.fit(data, num_steps=2, eval_data=data)

pc.models.residual_mlp(3, 8, 2, depth=5, rngs=nnx.Rngs(0)).infer(x, y, inference=gd)
images = pc.models.vgg5((16, 16, 3), 10, widths=(2, 2, 2, 2), rngs=nnx.Rngs(0))
images.infer(jnp.ones((2, 16, 16, 3)), jnp.ones((2, 10)), inference=gd)
pc.analysis.gradient_alignment(network(), x, y, learning=pc.learning.PredictiveCoding(gd))

try:
    pc.energies.Gaussian()(jnp.ones((4, 2)), jnp.ones((5, 2)))
except jaxtyping.TypeCheckError:
    print("checked")
"""


def test_every_kind_of_run_keeps_to_its_annotations():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "checked\n", done.stderr
