"""What does each method cost beside backpropagation, in operations and bytes?

    python benchmarks/costs.py               two networks, every method (a minute or two of compiling)
    python benchmarks/costs.py --quick       small ones, one method, for a check; nothing is written

`network.summary` of the notebook's network (784-300-300-10, tanh) and of a residual muPC network of 32 layers
of width 128 in a stack, batch 64: nothing is timed, programs are compiled and read. A rule is all that it
does with a batch but for the optimizer. Results go to the screen and to `benchmarks/results/`; the table in
docs/choosing_inference.md is made of them by `benchmarks/tables.py`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from rich.console import Console

import pcflax as pc

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.options import output_of, read_output, run_main
from benchmarks.records import results_path, write_results
from benchmarks.suite import machine

BATCH, STEPS, FEW = 64, 20, 5


def networks(quick: bool) -> dict[str, pc.PCNetwork]:
    """The networks by what the table calls them."""
    width, depth, narrow = (8, 4, 6) if quick else (300, 32, 128)
    return {
        f"784-{width}-{width}-10": pc.models.mlp(
            784, width, width, 10, activation=jnp.tanh, rngs=nnx.Rngs(0)
        ),
        f"{depth} layers of {narrow}": pc.models.residual_mlp(
            784, narrow, 10, depth=depth, rngs=nnx.Rngs(0)
        ),
    }


def methods() -> tuple[dict, dict]:
    """Algorithms, of which a step is told, and rules."""
    inference, learning = pc.inference, pc.learning
    descent = inference.GradientDescent(0.1, num_steps=STEPS)
    errors = inference.ErrorCoordinates(inference.GradientDescent(0.03, num_steps=FEW))
    newton = inference.OutputNewton(num_steps=2)
    algorithms = {
        "gradient descent": descent,
        "curvature descent": inference.CurvatureDescent(num_steps=STEPS),
        "error coordinates": errors,
        "Gauss-Newton at the output": newton,
    }
    rules = {
        f"predictive coding, {STEPS} steps": learning.PredictiveCoding(descent),
        f"predictive coding, {FEW} steps of errors": learning.PredictiveCoding(errors),
        "predictive coding, 2 steps at the output": learning.PredictiveCoding(newton),
        f"augmented Lagrangian, {STEPS} steps": learning.AugmentedLagrangian(descent),
        f"incremental, {STEPS} steps": learning.IncrementalPC(descent),
        f"centred nudging, {STEPS} steps": learning.Nudged(descent, beta=0.5, centred=True),
        f"fixed prediction, {STEPS} steps": learning.FixedPrediction(descent),
        f"Meta-PCN, {STEPS} steps": learning.MetaPCN(descent),
        "zero divergence": learning.ZIL(),
    }
    return algorithms, rules


def main() -> None:
    """Compile, read, show, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small networks, no file")
    parser.add_argument("--output", type=read_output, help="the JSON file")
    options = parser.parse_args()
    console, found = Console() if Console().is_terminal else Console(width=120), {}
    algorithms, rules = methods()
    if options.quick:
        algorithms, rules = (dict([next(iter(some.items()))]) for some in (algorithms, rules))
    for name, network in networks(options.quick).items():
        summary = network.summary((BATCH, 784), inference=algorithms, learning=rules)
        console.print(name, summary)
        costs = {label: cost._asdict() for label, cost in summary.costs.items()}
        found[name] = {"batch": BATCH, "parameters": summary.parameters, "costs": costs}
    committed = results_path("costs", jax.devices()[0].device_kind)
    if output := output_of(parser, options, committed):
        write_results({**machine(), "jax": jax.__version__, "networks": found}, output)


if __name__ == "__main__":
    run_main(main)
