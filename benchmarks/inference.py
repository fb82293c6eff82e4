"""How many steps, and how long, does each inference algorithm take to an equilibrium, by depth?

    python benchmarks/inference.py                   depths 4 to 64, every algorithm (about 15 minutes)
    python benchmarks/inference.py --quick           depths 4 and 8, for a check
    python benchmarks/inference.py --only "sweeps*"  some of them, to the screen

A tanh chain of width 128 at its LeCun initialization, random inputs, one-hot targets clamped. For each
algorithm: the steps until the mean energy is within 1e-3 of the equilibrium's, as a fraction of the
gap that the feedforward start leaves, and the seconds that a compiled call with so many steps takes
(medians over rounds, interleaved; fewer rounds where
one takes seconds). The equilibrium is the lowest energy that any algorithm found; a
Newton method finds it to rounding. Step sizes are 1.8/lambda_max of each algorithm's own coordinates,
measured by power iteration at the start, near the best that a sweep finds for each. `LinearSolve` runs
on the same chain without its tanh. `Langevin` is left out: at temperature 0 it is gradient descent.

The table goes to the screen, a JSON file with device and versions and a figure to
`benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import itertools
import os
import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import pcflax as pc
from pcflax import recipes
from pcflax.inference.curvature import largest_eigenvalue, random_direction
from pcflax.inference.error_coordinates import ErrorCoordinates, error_problem

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.options import output_of, read_count, read_output, run_main
from benchmarks.records import results_path, write_results

WIDTH, CLASSES, BATCH, GAP = 128, 10, 8, 1e-3
DEPTHS = [4, 8, 16, 20, 32, 64]
MOST_STEPS = 20000  # of the algorithms that only descend
LONG = 10.0  # seconds: an algorithm that has taken so many is timed no more


def chain(depth: int, linear: bool) -> tuple[pc.PCNetwork, jax.Array, jax.Array]:
    """A network of `depth` weight layers and a batch."""
    rngs = nnx.Rngs(0)
    widths = [WIDTH] * depth + [CLASSES]
    network = pc.PCNetwork(
        [
            pc.PCDense(
                below,
                above,
                activation=None if linear or number == depth - 1 else jnp.tanh,
                rngs=rngs,
            )
            for number, (below, above) in enumerate(itertools.pairwise(widths))
        ]
    )
    inputs = jax.random.normal(jax.random.key(1), (BATCH, WIDTH))
    targets = jax.nn.one_hot(jnp.arange(BATCH) % CLASSES, CLASSES)
    return network, inputs, targets


@jax.jit
def stable_steps(network, inputs, targets) -> tuple[jax.Array, jax.Array]:
    """1.8/lambda_max in activities and in errors, at the feedforward start."""
    problem = pc.inference.make_problem(network, pc.Evidence(inputs, targets))

    def step(problem):
        found = largest_eigenvalue(problem, problem.start, random_direction(problem), 50)
        return 1.8 / jnp.max(found.eigenvalue)

    return step(problem), step(error_problem(problem))


def algorithms(step: float, error_step: float) -> dict:
    """{name: (a function of the number of steps, the most steps, whether for linear chains)}."""
    inference = pc.inference
    sgd, heavy_ball = optax.sgd(step), optax.sgd(step, momentum=0.9)
    return {
        "gradient descent": (
            lambda n: inference.GradientDescent(sgd, num_steps=n),
            MOST_STEPS,
            False,
        ),
        "momentum 0.9": (
            lambda n: inference.GradientDescent(heavy_ball, num_steps=n),
            MOST_STEPS // 4,
            False,
        ),
        "step_size auto": (
            lambda n: inference.GradientDescent(step_size="auto", num_steps=n),
            MOST_STEPS // 4,
            False,
        ),
        "momentum auto": (
            lambda n: inference.GradientDescent(step / 1.8, momentum="auto", num_steps=n),
            MOST_STEPS // 10,
            False,
        ),
        "step_size auto, momentum auto": (
            lambda n: inference.CurvatureDescent(momentum="auto", num_steps=n),
            MOST_STEPS // 10,
            False,
        ),
        "Chebyshev": (
            lambda n: inference.Chebyshev(num_steps=n),
            MOST_STEPS // 10,
            False,
        ),
        "sweeps, red-black": (
            lambda n: inference.Sweeps(num_steps=n),
            MOST_STEPS // 4,
            False,
        ),
        "sweeps, sequential": (
            lambda n: inference.Sweeps(order="sequential", num_steps=n),
            MOST_STEPS // 20,
            False,
        ),
        "gradient flow (Heun)": (
            lambda n: inference.GradientFlow(*_heun(), tolerance=1e-7, max_steps=n, max_time=1e6),
            MOST_STEPS // 4,
            False,
        ),
        "error coordinates": (
            lambda n: ErrorCoordinates(
                inference.GradientDescent(optax.sgd(error_step), num_steps=n)
            ),
            300,
            False,
        ),
        "error coordinates, auto": (
            lambda n: ErrorCoordinates(inference.GradientDescent(step_size="auto", num_steps=n)),
            300,
            False,
        ),
        "Newton-CG": (lambda n: inference.NewtonCG(num_steps=n), 20, False),
        "Gauss-Newton": (lambda n: inference.GaussNewton(num_steps=n), 20, False),
        "linear solve (linear chain)": (lambda n: inference.LinearSolve(), 1, True),
    }


@functools.lru_cache
def _heun():
    import diffrax

    return diffrax.Heun(), diffrax.PIDController(rtol=1e-3, atol=1e-5)


@functools.partial(jax.jit, static_argnames="inference")
def trace_of(network, inputs, targets, *, inference) -> jax.Array:
    """F of each example at each step."""
    problem = pc.inference.make_problem(network, pc.Evidence(inputs, targets))
    return inference.solve(problem, trace=True).trace.energy


@functools.partial(jax.jit, static_argnames="inference")
def end_of(network, inputs, targets, *, inference):
    """Where a solve ends, for timing."""
    problem = pc.inference.make_problem(network, pc.Evidence(inputs, targets))
    return inference.solve(problem).activities


def measure(depth: int, rounds: int, console: Console, only: str = "*") -> list[dict]:
    """A record for each algorithm at one depth, of those whose names fit the patterns."""
    records = []
    made = {linear: chain(depth, linear) for linear in (False, True)}
    split = {linear: pc.networks.split(made[linear][0]) for linear in made}
    steps = [float(step) for step in stable_steps(split[False], *made[False][1:])]
    energies, equilibrium, timed = {}, {False: np.inf, True: np.inf}, {}
    table = {
        name: one
        for name, one in algorithms(*steps).items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in only.split("|"))
    }
    if not table:
        known = ", ".join(algorithms(*steps))
        raise SystemExit(f"error: no algorithm fits --only {only!r}; known are {known}")
    reference = pc.inference.Sequence(
        ErrorCoordinates(pc.inference.NewtonCG(num_steps=10)), pc.inference.NewtonCG(num_steps=10)
    )
    for linear in {linear for *_, linear in table.values()}:
        inference = pc.inference.LinearSolve() if linear else reference
        trace = trace_of(split[linear], *made[linear][1:], inference=inference)
        equilibrium[linear] = np.asarray(trace).mean(1).min()
    for name, (build, most, linear) in table.items():
        with console.status(f"depth {depth}: {name}"):
            trace = trace_of(split[linear], *made[linear][1:], inference=build(most))
            energies[name] = np.asarray(trace, np.float64).mean(1)
            equilibrium[linear] = min(equilibrium[linear], energies[name].min())
    for name, (build, most, linear) in table.items():
        start = energies[name][0]
        gap = (energies[name] - equilibrium[linear]) / (start - equilibrium[linear])
        reached = np.flatnonzero(gap <= GAP)
        taken = int(reached[0]) if reached.size else None
        records.append(
            {"algorithm": name, "depth": depth, "steps": taken, "most": most, "gap": float(gap[-1])}
        )
        if taken is None:
            continue
        with console.status(f"depth {depth}: {name}, compiling"):
            inference = build(max(taken, 1))
            begin = time.perf_counter()
            jax.block_until_ready(end_of(split[linear], *made[linear][1:], inference=inference))
            records[-1]["first_call_seconds"] = time.perf_counter() - begin
            timed[name] = (inference, linear)
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(rounds):
        for name, (inference, linear) in timed.items():
            if sum(seconds[name]) > LONG:
                continue
            begin = time.perf_counter()
            jax.block_until_ready(end_of(split[linear], *made[linear][1:], inference=inference))
            seconds[name].append(time.perf_counter() - begin)
    for record in records:
        if record["steps"] is not None:
            record["seconds"] = statistics.median(seconds[record["algorithm"]])
    jax.clear_caches()
    return records


def figure(records: list[dict]) -> Figure:
    """Steps and seconds by depth, a line an algorithm."""
    drawn = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = drawn.subplots(1, 2)
    names = list(dict.fromkeys(record["algorithm"] for record in records))
    for axis, field in ((left, "steps"), (right, "seconds")):
        for number, name in enumerate(names):
            rows = [r for r in records if r["algorithm"] == name and r["steps"] is not None]
            style = {"marker": "osD^vP*Xh<>dpH8"[number % 15], "markersize": 5}
            axis.plot([r["depth"] for r in rows], [r[field] for r in rows], label=name, **style)
        depths = sorted({record["depth"] for record in records})
        axis.set_xscale("log", base=2)
        axis.set_xticks(depths, [str(depth) for depth in depths])
        axis.minorticks_off()
        axis.set(yscale="log", xlabel="layers")
        axis.grid(alpha=0.3)
    left.set_ylabel("steps to 0.1 % of the energy gap")
    right.set_ylabel("seconds to 0.1 % of the energy gap")
    drawn.legend(*left.get_legend_handles_labels(), loc="outside right center", fontsize="small")
    return drawn


def main() -> None:
    """Measure, print the table, write JSON and figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depths", type=read_count, nargs="+", default=DEPTHS)
    parser.add_argument("--rounds", type=read_count, default=5)
    parser.add_argument("--only", default="*", help="patterns of names, with | between them")
    parser.add_argument("--quick", action="store_true", help="depths 4 and 8, one round")
    parser.add_argument("--output", type=read_output, help="a JSON file; a PNG is put beside it")
    options = parser.parse_args()
    depths = [4, 8] if options.quick else options.depths
    console, begin = Console(), time.perf_counter()
    records: list[dict] = []
    device = jax.devices()[0].device_kind
    path = output_of(parser, options, results_path("inference", device))
    for depth in depths:
        records += measure(depth, 1 if options.quick else options.rounds, console, options.only)
        console.print(f"depth {depth} done after {time.perf_counter() - begin:.0f} s")
        if path is not None:  # after each depth, so that a run cut short keeps what it has
            write(records, path, device)
            console.print(f"written to {path}, a PNG beside it", soft_wrap=True)
    table = Table(title="steps (seconds) to 0.1 % of the energy gap")
    table.add_column("algorithm")
    for depth in depths:
        table.add_column(f"{depth} layers", justify="right")
    for name in dict.fromkeys(record["algorithm"] for record in records):
        cells = [
            f"{r['steps']} ({r['seconds']:.2g} s)"
            if r["steps"] is not None
            else f"gap {r['gap']:.2g} after {r['most']}"
            for r in records
            if r["algorithm"] == name
        ]
        table.add_row(name, *cells)
    console.print(table)


def write(records: list[dict], path: Path, device: str) -> None:
    """The JSON file and the figure."""
    result = {
        "device": device,
        "cores": os.cpu_count(),
        "versions": recipes.versions(),
        "width": WIDTH,
        "batch": BATCH,
        "gap": GAP,
        "records": records,
    }
    write_results(result, path)
    figure(records).savefig(path.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    run_main(main)
