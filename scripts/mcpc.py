"""Monte Carlo predictive coding learns a Gaussian N(1, 5), and its samples are those of the data.

    python scripts/mcpc.py     about a minute on 2 CPU cores

z ~ N(m, 1) and x ~ N(w z, 1): learning by samples of the posterior (Langevin inference) finds w^2 = 4 and
w m = 1, so that x has mean 1 and variance 5; by the posterior's maximum, w would grow beyond that. Reported
over three seeds: mean and variance of 10,240 ancestral samples, their Wasserstein distance from the 10,240
training examples, and R-hat of four Langevin chains of the joint. Expected: means within .06 of 1, variances
from 4.6 to 5.0, distances of at most .10 (published .93-1.11, 4.76-4.81, .11-.13: Oliviers, Bogacz &
Meulemans 2024), R-hat below 1.01. Writes `mcpc_variance` and `mcpc_wasserstein` into
benchmarks/results/answers-cpu.json.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from scipy import stats

import pcflax as pc

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.answers import answer_parser, record_answer
from benchmarks.options import run_main

COUNT, CHAINS = 10240, 4


def train(seed: int, examples: np.ndarray, epochs: int) -> pc.PCNetwork:
    """Learn prior and weight by one sample of each example's posterior a batch."""
    root = pc.PCRoot(1, learn_mean=True)
    image = pc.PCDense(1, 1, use_bias=False, rngs=nnx.Rngs(seed))
    network = pc.PCNetwork({"z": root, "x": image})
    data = pc.data.from_arrays(None, examples, batch_size=256, seed=seed)
    steps = epochs * len(examples) // 256
    trainer = pc.Trainer(
        network,
        optax.adam(optax.cosine_decay_schedule(2e-2, steps)),
        learning=pc.learning.PredictiveCoding(pc.inference.Langevin(0.02, burn_in=150)),
        seed=seed,
        progress=False,
    )
    trainer.fit(data, epochs=epochs)
    return trainer.network


def mixing(network: pc.PCNetwork, seed: int, num_samples: int) -> tuple[float, float]:
    """The largest R-hat, and the smallest effective size, of Langevin chains of the joint."""
    free = {"z": pc.Clamp(jnp.zeros((CHAINS, 1)), jnp.zeros(1, bool))}
    sampler = pc.inference.Langevin(
        0.1, burn_in=1000, num_samples=num_samples, thinning=5, keep_samples=True
    )
    start = pc.initializers.Normal(3.0)  # further apart than what is sampled
    key = jax.random.key(seed)
    result = network.infer(clamps=free, inference=sampler, initializer=start, key=key)
    found = pc.analysis.chain_diagnostics(result.samples, chains=CHAINS)
    return (
        max(jax.tree.leaves(jax.tree.map(np.max, found["r_hat"]))),
        min(jax.tree.leaves(jax.tree.map(np.min, found["ess"]))),
    )


def main() -> None:
    """Train a network a seed, draw from it, and compare."""
    options = answer_parser(__doc__, quick="few epochs and samples", data=False).parse_args()
    epochs, num_samples = (6, 500) if options.quick else (40, 20000)
    variances, distances = [], []
    for seed in range(options.seeds):
        random = np.random.default_rng(seed)
        examples = random.normal(1, 5**0.5, (COUNT, 1)).astype(np.float32)
        network = train(seed, examples, epochs)
        draws = np.asarray(network.sample(COUNT, key=jax.random.key(seed)))
        variances.append(draws.var())
        distances.append(stats.wasserstein_distance(draws.ravel(), examples.ravel()))
        told = f"seed {seed}: mean {draws.mean():.3f}, variance {draws.var():.3f}, "
        print(f"{told}Wasserstein distance {distances[-1]:.3f}", end="", flush=True)
        r_hat, size = mixing(network, seed, num_samples)
        print(f", R-hat {r_hat:.4f}, effective samples {size:.0f}", flush=True)
    claims = ("mcpc_variance", variances, "1"), ("mcpc_wasserstein", distances, "1")
    for name, values, unit in claims:
        path = record_answer(
            name, values, unit=unit, command="python scripts/mcpc.py", path=options.output
        )
    print(f"wrote {path}")


if __name__ == "__main__":
    run_main(main)
