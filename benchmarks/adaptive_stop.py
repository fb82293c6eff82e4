"""What does an adaptive stop cost where nothing converges, and what does it save where most examples do?

    python benchmarks/adaptive_stop.py               about a minute
    python benchmarks/adaptive_stop.py --quick       for a check

The notebook's network, 784-300-300-10, batch 64, 100 steps of gradient descent, in one process,
interleaved. "nothing converges": a tolerance that no example reaches, so that all is computed that a
fixed count computes, and the stop besides. "most converge": 60 of the 64 examples start within a
thousandth of their equilibrium and stop after some twenty steps, four go on to the end. Ratios of
adaptive to fixed seconds are taken within a round; medians and quartiles over rounds go to the screen
and to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.console import Console

import pcflax as pc
from pcflax import recipes

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.options import output_of, read_count, read_output, run_main
from benchmarks.records import results_path, write_results

NUM_STEPS, BATCH, GO_ON = 100, 64, 4


def network() -> pc.PCNetwork:
    """The notebook's."""
    rngs = nnx.Rngs(0)
    return pc.PCNetwork(
        [
            pc.PCDense(784, 300, activation=jnp.tanh, rngs=rngs),
            pc.PCDense(300, 300, activation=jnp.tanh, rngs=rngs),
            pc.PCDense(300, 10, rngs=rngs),
        ]
    )


def batches(net: pc.PCNetwork) -> dict[str, tuple]:
    """(inputs, targets, tolerance) of the two cases."""
    inputs = jax.random.normal(jax.random.key(0), (BATCH, 784))
    targets = jax.nn.one_hot(jnp.arange(BATCH) % 10, 10)
    going = jnp.arange(BATCH)[:, None] < GO_ON
    near = jnp.where(going, targets, net.predict(inputs) + 1e-3 * targets)
    return {
        "nothing converges": (inputs, targets, 1e-30),
        "most converge": (inputs, near, 1e-5),
    }


@functools.partial(jax.jit, static_argnames="inference")
def infer(split, inputs, targets, *, inference):
    """Activities and step counts, in one compiled call."""
    result = inference.solve(pc.inference.make_problem(split, pc.Evidence(inputs, targets)))
    return result.activities, result.num_steps


def measure(split, inputs, targets, tolerance: float, rounds: int) -> dict:
    """Seconds of both stops in every round, and how many steps the examples took."""
    optimizer = optax.sgd(0.05)
    stops = {
        "fixed": pc.inference.GradientDescent(optimizer, num_steps=NUM_STEPS),
        "adaptive": pc.inference.GradientDescent(
            optimizer, tolerance=tolerance, max_steps=NUM_STEPS
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in stops}
    for inference in stops.values():
        _, num_steps = jax.block_until_ready(infer(split, inputs, targets, inference=inference))
    for number in range(rounds):
        order = list(stops.items())
        for name, inference in order if number % 2 else reversed(order):
            begin = time.perf_counter()
            for _ in range(3):
                jax.block_until_ready(infer(split, inputs, targets, inference=inference))
            seconds[name].append((time.perf_counter() - begin) / 3)
    ratios = np.divide(seconds["adaptive"], seconds["fixed"])
    low, median, high = np.percentile(ratios, [25, 50, 75])
    return {
        "fixed_seconds": float(np.median(seconds["fixed"])),
        "adaptive_seconds": float(np.median(seconds["adaptive"])),
        "ratio": float(median),
        "ratio_quartiles": [float(low), float(high)],
        "steps": np.asarray(num_steps).tolist(),
    }


def main() -> None:
    """Measure both cases, print them, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=read_count, default=40)
    parser.add_argument("--quick", action="store_true", help="3 rounds, no file")
    parser.add_argument("--output", type=read_output, help="the JSON file")
    options = parser.parse_args()
    net, console = network(), Console()
    split = pc.networks.split(net)
    cases = {
        name: measure(split, *batch, 3 if options.quick else options.rounds)
        for name, batch in batches(net).items()
    }
    for name, case in cases.items():
        low, high = case["ratio_quartiles"]
        steps = np.sort(case["steps"])
        console.print(
            f"{name}: adaptive takes {case['ratio']:.3f} ({low:.3f} to {high:.3f}) times the fixed "
            f"count's {case['fixed_seconds'] * 1e3:.1f} ms; steps of the examples: least {steps[0]}, "
            f"median {steps[len(steps) // 2]}, most {steps[-1]}",
            highlight=False,
        )
    device = jax.devices()[0].device_kind
    if path := output_of(parser, options, results_path("adaptive_stop", device)):
        result = {
            "device": device,
            "cores": os.cpu_count(),
            "versions": recipes.versions(),
            "cases": cases,
        }
        write_results(result, path)
        console.print(f"written to {path}", soft_wrap=True)


if __name__ == "__main__":
    run_main(main)
