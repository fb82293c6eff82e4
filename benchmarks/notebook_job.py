"""How long does an iteration of the notebook's job take, and how many times that does its own loop?

    python benchmarks/notebook_job.py                     the notebook's sizes, 784-300-300-10
    python benchmarks/notebook_job.py --job digits        64-300-300-10, where overhead shows
    python benchmarks/notebook_job.py --quick             few iterations, for a check

Contenders run in one process, interleaved, round after round, on the same parameters and batches; each
figure is the median over rounds of one round's seconds divided by its iterations, and each ratio the
median over rounds of the ratio within a round, so that a machine that slows down slows them all. The
table goes to the screen and a JSON file with device and versions to `benchmarks/results/`. Numbers are
random with MNIST's sizes: the time does not depend on them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.contenders import Job

CONTENDERS = ("trainer", "bare_scan", "notebook_equinox", "notebook_loop", "backprop")
JOBS = {"notebook": Job(), "digits": Job(widths=(64, 300, 300, 10))}


def make_parameters(job: Job, seed: int) -> list[dict[str, np.ndarray]]:
    """Kernels of variance 1/in, zero biases."""
    random = np.random.RandomState(seed)
    return [
        {
            "kernel": random.normal(0, below**-0.5, (below, above)).astype(np.float32),
            "bias": np.zeros(above, np.float32),
        }
        for below, above in zip(job.widths[:-1], job.widths[1:], strict=True)
    ]


def make_batches(job: Job, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Normal inputs and one-hot targets, (count, batch, features)."""
    random = np.random.RandomState(seed)
    inputs = random.normal(size=(count, job.batch_size, job.widths[0])).astype(np.float32)
    labels = random.randint(job.widths[-1], size=(count, job.batch_size))
    return inputs, np.eye(job.widths[-1], dtype=np.float32)[labels]


def measure(job: Job, iterations: int, rounds: int, console: Console) -> dict:
    """Seconds an iteration of every contender in every round, after one round that warms up."""
    batches, parameters = make_batches(job, iterations, 0), make_parameters(job, 1)
    contenders, missing, compile_seconds, seconds = {}, {}, {}, {}
    for module in CONTENDERS:
        try:
            contenders[module] = importlib.import_module(
                f"benchmarks.contenders.{module}"
            ).Contender(job, parameters)
        except ImportError as error:
            missing[module] = f"not installed: {error.name}"
            continue
        begin = time.perf_counter()
        contenders[module].run(*batches)
        first = time.perf_counter() - begin
        begin = time.perf_counter()
        contenders[module].run(*batches)
        compile_seconds[module] = first - (time.perf_counter() - begin)
        seconds[module] = []
    for number in range(rounds):
        with console.status(f"round {number + 1} of {rounds}"):
            for module, contender in contenders.items():
                begin = time.perf_counter()
                contender.run(*batches)
                seconds[module].append((time.perf_counter() - begin) / iterations)
    return {
        "names": {module: contender.name for module, contender in contenders.items()},
        "missing": missing,
        "compile_seconds": compile_seconds,
        "seconds_an_iteration": seconds,
    }


def ratio(measured: dict, module: str, to: str) -> tuple[float, float, float]:
    """Smallest, median and largest ratio of two contenders' times within a round."""
    seconds = measured["seconds_an_iteration"]
    ratios = sorted(a / b for a, b in zip(seconds[module], seconds[to], strict=True))
    return ratios[0], statistics.median(ratios), ratios[-1]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--job", choices=sorted(JOBS), default="notebook")
    parser.add_argument("--iterations", type=int, default=100, help="batches in a round")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="20 iterations, 3 rounds, no file")
    parser.add_argument("--output", type=Path, help="the JSON file")
    options = parser.parse_args()
    if options.quick:
        options.iterations, options.rounds = 20, 3
    console = Console()
    if not console.is_terminal:
        console = Console(width=110)
    device = jax.devices()[0].device_kind
    measured = measure(JOBS[options.job], options.iterations, options.rounds, console)

    table = Table(
        title=f"job {options.job} on {device}, {options.rounds} rounds of "
        f"{options.iterations} iterations"
    )
    for column in (
        "contender",
        "ms an iteration",
        "min-max",
        "times pcflax",
        "min-max",
        "compile s",
    ):
        table.add_column(column, justify="left" if column == "contender" else "right")
    for module, times in measured["seconds_an_iteration"].items():
        low, middle, high = ratio(measured, module, "trainer")
        table.add_row(
            measured["names"][module],
            f"{1e3 * statistics.median(times):.3f}",
            f"{1e3 * min(times):.3f}-{1e3 * max(times):.3f}",
            f"{middle:.2f}",
            f"{low:.2f}-{high:.2f}",
            f"{measured['compile_seconds'][module]:.2f}",
        )
    for module, reason in measured["missing"].items():
        table.add_row(module, reason, "", "", "", "")
    console.print(table)

    record = {
        "benchmark": "notebook_job",
        "job": options.job,
        "iterations": options.iterations,
        "rounds": options.rounds,
        "device": device,
        "platform": jax.default_backend(),
        "cpu_count": os.cpu_count(),
        "versions": {
            "python": platform.python_version(),
            **{
                name: importlib.import_module(name).__version__ for name in ("jax", "flax", "optax")
            },
        },
        **measured,
    }
    if not options.quick or options.output:
        default = f"notebook_job-{options.job}-{device.lower().replace(' ', '-')}.json"
        path = options.output or Path(__file__).parent / "results" / default
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")
        console.print(f"written to {path}")


if __name__ == "__main__":
    main()
