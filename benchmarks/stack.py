"""What does a stack of equal layers save over the same layers one by one, and what does it cost?

    python benchmarks/stack.py               some ten minutes
    python benchmarks/stack.py --quick       for a check; no file

Residual muPC networks, 784-width-...-width-10 with relu, batch 64, one training iteration of predictive
coding (20 steps of gradient descent on the activities, one of Adam on the weights). For each depth: seconds
from Python to a compiled program, seconds an iteration (both programs in one process, interleaved, ratios
within a round, medians and quartiles over rounds; of processor time, too, which other work on the machine
changes less), and the largest relative difference of a layer's weight
gradient. Then, for one depth: rematerialisation and bfloat16 computation, beside the plain stack, in time, in
memory that the compiled program asks for, and in the angle of the gradient. Results go to the screen and to
`benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.console import Console
from rich.table import Table

import pcflax as pc
from pcflax import recipes

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.answers import record_answer
from benchmarks.options import output_of, read_count, read_output, run_main
from benchmarks.records import results_path, write_results

BATCH, STEPS = 64, 20


def network(depth: int, width: int, *, stacked: bool, **options: Any) -> pc.PCNetwork:
    """A residual network of muPC with `depth` hidden layers."""
    rngs, mupc = nnx.Rngs(0), pc.parameterizations.MuPC()

    def hidden() -> pc.PCDense:
        return pc.PCDense(
            width,
            width,
            activation=jax.nn.relu,
            activation_first=True,
            skip=True,
            parameterization=mupc,
            use_bias=False,
            rngs=rngs,
        )

    ends = {"parameterization": mupc, "use_bias": False, "rngs": rngs}
    first = pc.PCDense(784, width, **ends)
    middle = [pc.PCStack(hidden, depth)] if stacked else [hidden() for _ in range(depth)]
    last = pc.PCDense(width, 10, activation=jax.nn.relu, activation_first=True, **ends)
    return pc.PCNetwork([first, *middle, last], **options)


class Iteration:
    """One compiled training iteration, and how long Python and XLA took to make it."""

    def __init__(self, net: pc.PCNetwork):
        inference = pc.inference.GradientDescent(0.1, num_steps=STEPS)
        rule, optimizer = pc.learning.PredictiveCoding(inference), optax.adam(1e-3)
        split = pc.networks.split(net)
        images = np.random.default_rng(0).normal(size=(BATCH, 784)).astype(np.float32)
        labels = np.eye(10, dtype=np.float32)[np.arange(BATCH) % 10]
        self.arguments = (split, optimizer.init(split.parameters), images, labels)

        def step(split, state, inputs, targets):
            split, state, info = rule.update(
                split, optimizer, state, pc.Evidence(inputs, targets), key=jax.random.key(0)
            )
            return split.parameters, state, pc.energies.total_energy(info.energies)

        def gradients(split, state, inputs, targets):
            return rule.gradients(split, pc.Evidence(inputs, targets), key=jax.random.key(0))[0]

        begin = time.perf_counter()
        self.compiled = jax.jit(step).lower(*self.arguments).compile()
        self.compile_seconds = time.perf_counter() - begin
        self.gradients = jax.jit(gradients)

    def run(self) -> Any:
        """New parameters, optimizer state and energies."""
        return jax.block_until_ready(self.compiled(*self.arguments))

    def gradient(self) -> np.ndarray:
        """The weight gradient as one vector."""
        leaves = jax.tree.leaves(self.gradients(*self.arguments))
        return np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in leaves])


def interleaved(
    programs: dict[str, Iteration], rounds: int, repeats: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds an iteration of each program in every round, of the clock and of processors."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    spent: dict[str, list[float]] = {name: [] for name in programs}
    for program in programs.values():
        program.run()
    for number in range(rounds):
        order = list(programs.items())
        for name, program in order if number % 2 else reversed(order):
            begin, processor = time.perf_counter(), time.process_time()
            for _ in range(repeats):
                program.run()
            seconds[name].append((time.perf_counter() - begin) / repeats)
            spent[name].append((time.process_time() - processor) / repeats)
    return seconds, spent


def ratio(above: list[float], below: list[float]) -> dict[str, Any]:
    """Median and quartiles of ratios within a round."""
    low, median, high = np.percentile(np.divide(above, below), [25, 50, 75])
    return {"median": float(median), "quartiles": [float(low), float(high)]}


def difference(stack: Iteration, unrolled: Iteration) -> float:
    """The largest distance of a layer's weight gradients, relative to the longest of all layers'."""

    def layers(program: Iteration) -> list[np.ndarray]:
        found = []
        gradients = program.gradients(*program.arguments)
        for name in sorted(
            gradients, key=lambda name: (len(name), name)
        ):  # layer_2 before layer_10
            (leaf,) = jax.tree.leaves(gradients[name])
            leaf = np.asarray(leaf, np.float64)
            found += list(leaf) if leaf.ndim == 3 else [leaf]
        return found

    own, other = layers(stack), layers(unrolled)
    longest = max(np.linalg.norm(layer) for layer in other)
    return max(float(np.linalg.norm(a - b) / longest) for a, b in zip(own, other, strict=True))


def by_depth(depths: list[int], width: int, rounds: int, repeats: int) -> list[dict]:
    """The stack beside the unrolled network at every depth."""
    records = []
    for depth in depths:
        programs = {
            name: Iteration(network(depth, width, stacked=stacked))
            for name, stacked in (("stack", True), ("unrolled", False))
        }
        seconds, spent = interleaved(programs, rounds, repeats)
        records.append(
            {
                "depth": depth,
                "stack_compile_seconds": programs["stack"].compile_seconds,
                "unrolled_compile_seconds": programs["unrolled"].compile_seconds,
                "stack_seconds": float(np.median(seconds["stack"])),
                "unrolled_seconds": float(np.median(seconds["unrolled"])),
                "ratio": ratio(seconds["stack"], seconds["unrolled"]),
                "processor_ratio": ratio(spent["stack"], spent["unrolled"]),
                "difference": difference(programs["stack"], programs["unrolled"]),
            }
        )
    return records


def precisions(depth: int, width: int, rounds: int, repeats: int) -> list[dict]:
    """Rematerialisation and bfloat16 beside the plain stack."""
    options: dict[str, dict[str, Any]] = {
        "plain": {},
        "remat": {"remat": True},
        "bfloat16": {"compute_dtype": jnp.bfloat16},
    }
    programs = {
        name: Iteration(network(depth, width, stacked=True, **own)) for name, own in options.items()
    }
    seconds, _ = interleaved(programs, rounds, repeats)
    plain = programs["plain"].gradient()
    records = []
    for name, program in programs.items():
        own = program.gradient()
        memory = program.compiled.memory_analysis()
        records.append(
            {
                "name": name,
                "seconds": float(np.median(seconds[name])),
                "ratio": ratio(seconds[name], seconds["plain"]),
                "temporary_bytes": int(memory.temp_size_in_bytes),
                "cosine": float(own @ plain / np.linalg.norm(own) / np.linalg.norm(plain)),
            }
        )
    return records


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depths", type=read_count, nargs="+", default=[8, 32, 128])
    parser.add_argument("--width", type=read_count, default=128)
    parser.add_argument("--rounds", type=read_count, default=15)
    parser.add_argument("--quick", action="store_true", help="depths 2 and 4, no file")
    parser.add_argument("--output", type=read_output, help="the JSON file")
    options = parser.parse_args()
    device = jax.devices()[0].device_kind
    committed = results_path("stack", device)
    path = output_of(parser, options, committed)
    if options.quick:
        options.depths, options.width, options.rounds = [2, 4], 16, 2
    console = Console()
    repeats = 1 if options.quick else 5
    Iteration(network(2, 8, stacked=True))  # what only the first compilation of a process costs
    records = by_depth(options.depths, options.width, options.rounds, repeats)
    table = Table(title=f"width {options.width}, batch {BATCH}, {STEPS} inference steps")
    columns = [
        "depth",
        "compile s: stack",
        "one by one",
        "ms: stack",
        "one by one",
        "ratio",
        "of processor time",
        "differ",
    ]
    for column in columns:
        table.add_column(column, justify="right")
    for record in records:
        low, high = record["ratio"]["quartiles"]
        table.add_row(
            str(record["depth"]),
            f"{record['stack_compile_seconds']:.2f}",
            f"{record['unrolled_compile_seconds']:.2f}",
            f"{record['stack_seconds'] * 1e3:.1f}",
            f"{record['unrolled_seconds'] * 1e3:.1f}",
            f"{record['ratio']['median']:.3f} ({low:.3f}-{high:.3f})",
            f"{record['processor_ratio']['median']:.3f}",
            f"{record['difference']:.1e}",
        )
    console.print(table)
    others = precisions(options.depths[-1], options.width, options.rounds, repeats)
    for record in others:
        low, high = record["ratio"]["quartiles"]
        console.print(
            f"{record['name']}: {record['seconds'] * 1e3:.1f} ms, {record['ratio']['median']:.3f} "
            f"({low:.3f}-{high:.3f}) times the plain stack's, {record['temporary_bytes'] / 2**20:.1f} MiB "
            f"of temporary memory, cosine of the gradient {record['cosine']:.6f}",
            highlight=False,
        )
    if path is None:
        return
    result = {
        "device": device,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "versions": recipes.versions(),
        "width": options.width,
        "batch": BATCH,
        "steps": STEPS,
        "depths": records,
        "precisions": others,
    }
    write_results(result, path)
    for record in records if path == committed else []:
        record_answer(
            f"stack_ratio_{record['depth']}",
            [record["ratio"]["median"]],
            unit="times the unrolled network's seconds",
            command=f"python benchmarks/stack.py --rounds {options.rounds}",
            kind="depth",
            device=device,
        )
    console.print(f"written to {path}", soft_wrap=True)


if __name__ == "__main__":
    run_main(main)
