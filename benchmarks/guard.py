"""Fails where pcflax has become slow or heavy: its Trainer beside the bare-jax step, as ratios.

    python benchmarks/guard.py            exit code 1 where a ratio is above its margin (make guard)

Ratios, never times, because machines differ:

- notebook, tiny: the Trainer's time over the bare step's, in one process, in turns. The least of three
  measurements counts, since what disturbs only adds.
- first call, memory: processor time of the first call, which traces and compiles, and peak memory of the
  process, each in a process of its own.
- import: the names that a training script uses, over jax, flax.nnx and optax alone.

Each margin leaves room above what was measured on two CPU cores, for a machine that does other things
meanwhile. A Trainer that waited for every batch, or inferred without a compiled loop, would be far above it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.contenders import bare_scan, pcflax
from benchmarks.jobs import JOBS
from benchmarks.options import read_count, run_main

ROOT = Path(__file__).resolve().parent.parent
MARGINS = {"notebook": 1.3, "tiny": 2.0, "first call": 1.75, "memory": 1.45, "import": 1.6}

_FIRST_CALL = """
import gc, importlib, json, resource, sys, time
sys.path.insert(0, {root!r})
from benchmarks.jobs import JOBS
module = importlib.import_module("benchmarks.contenders.{contender}")
job = JOBS["notebook"]
contender, batches = module.Contender(job, job.make_parameters(0)), job.make_batches(8, seed=1)
gc.collect()  # of what imports left; else it falls into one of the two first calls, by chance
begin = time.process_time()
contender.run(*batches)
spent = time.process_time() - begin
print(json.dumps([spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""
_IMPORTS = {
    "ours": "import jax, flax.nnx, optax, pcflax as pc; pc.PCNetwork, pc.PCDense, pc.Trainer, pc.data.load;"
    "pc.learning.PredictiveCoding(pc.inference.GradientDescent(0.1))",
    "theirs": "import jax, flax.nnx, optax",
}


def measure(job, iterations: int, rounds: int) -> float:
    """Return the median over rounds of the Trainer's time over the bare step's."""
    batches = job.make_batches(iterations, seed=1)
    pair = [module.Contender(job, job.make_parameters(0)) for module in (pcflax, bare_scan)]
    for contender in pair:
        contender.run(*batches)
    ratios = []
    for _ in range(rounds):
        seconds = []
        for contender in pair:
            begin = time.perf_counter()
            contender.run(*batches)
            seconds.append(time.perf_counter() - begin)
        ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios)


def measure_first_call() -> tuple[float, float]:
    """Return ratios of processor time and of peak memory, each contender in a process of its own."""
    ours, theirs = (
        json.loads(_python(_FIRST_CALL.format(root=str(ROOT), contender=name)))
        for name in ("pcflax", "bare_scan")
    )
    return ours[0] / theirs[0], ours[1] / theirs[1]


def measure_imports() -> float:
    """Return the ratio of processor times of two processes that only import."""
    ours, theirs = (
        float(_python(f"import time\n{code}\nprint(time.process_time())"))
        for code in (_IMPORTS["ours"], _IMPORTS["theirs"])
    )
    return ours / theirs


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def main() -> int:
    """Measure each ratio up to three times; the first that is within its margin will do."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--iterations", type=read_count, default=200)
    parser.add_argument("--rounds", type=read_count, default=5)
    options = parser.parse_args()

    def look() -> dict[str, float]:
        first_call, memory = measure_first_call()
        runs = {
            name: measure(JOBS[name], options.iterations, options.rounds)
            for name in ("notebook", "tiny")
        }
        return {**runs, "first call": first_call, "memory": memory, "import": measure_imports()}

    least: dict[str, float] = {}
    for _ in range(3):
        found = look()
        least = {name: min(ratio, least.get(name, ratio)) for name, ratio in found.items()}
        if all(least[name] <= margin for name, margin in MARGINS.items()):
            break
    for name, margin in MARGINS.items():
        verdict = "within" if least[name] <= margin else "ABOVE"
        print(f"{name}: {least[name]:.2f} times bare jax, {verdict} the margin of {margin}")
    return 0 if all(least[name] <= margin for name, margin in MARGINS.items()) else 1


if __name__ == "__main__":
    run_main(main)
