"""Eight seeds by one call: are they trained sooner in one program for all, or one after the other?

    python benchmarks/replicas.py            a few minutes
    python benchmarks/replicas.py --quick    two seeds of a small network, for a check; no file

Jobs of `jobs.py`, and chains and a stack between them in size, on random batches: every job is trained by
`pc.experiments.replicate(how="mapped")` and by `how="in turn"`, both alive side by side, which take turns
round after round. Seconds are those of calls of `fit` for all seeds. Of tiny, notebook and residual the
seconds of compilation (what a first call takes beyond a later one) and the peak of resident memory are
measured as well, each in a process of its own (`--alone`), libraries included. `auto` is what `replicate`
chooses by itself, by the elements of the largest array of parameters, `largest`. Results go to the screen
and to `benchmarks/results/`; the table in docs/howto.md is made of them by `benchmarks/tables.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from rich.console import Console

import pcflax as pc

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.contenders.bare_scan import make_optimizer
from benchmarks.contenders.pcflax import make_network
from benchmarks.growth import NEVER, timed
from benchmarks.jobs import JOBS, Job
from benchmarks.options import output_of, read_count, read_output, run_main
from benchmarks.records import results_path, write_results
from benchmarks.suite import machine
from benchmarks.worker import memory

SEEDS, BATCHES, HOWS, SECONDS = 8, 20, ("mapped", "in turn"), 0.6
WHOLE = ("tiny", "notebook", "residual")
CHAINS = {f"chain of {width}": (64, width, width, 10) for width in (16, 64, 128, 256)}
MEASURED = {
    **{name: JOBS[name] for name in WHOLE},
    **{
        name: dataclasses.replace(JOBS["tiny"], name=name, widths=widths)
        for name, widths in CHAINS.items()
    },
    "stack of 16": dataclasses.replace(
        JOBS["residual"], name="stack of 16", widths=(64, *[16] * 29, 10), batch_size=32
    ),
}
QUICK = {"small": dataclasses.replace(JOBS["tiny"], name="small", widths=(6, 5, 4, 3))}


def replicas(job: Job, how: Any, seeds: int) -> pc.experiments.Replicas:
    """The job by so many seeds, each with weights of its own."""
    rule = pc.learning.PredictiveCoding(
        pc.inference.GradientDescent(
            optax.sgd(job.activity_step_size), num_steps=job.num_inference_steps
        )
    )
    optimizer = make_optimizer(job)

    def make_trainer(seed: int) -> pc.Trainer:
        network = make_network(job, job.make_parameters(seed))
        return pc.Trainer(network, optimizer, learning=rule, seed=seed, progress=False)

    return pc.experiments.replicate(make_trainer, seeds=range(seeds), how=how, progress=False)


def random_data(job: Job) -> pc.data.Dataset:
    """Noise, which each seed sees in an order of its own."""
    inputs, targets = job.make_batches(BATCHES, seed=0)
    flat = (array.reshape(-1, array.shape[-1]) for array in (inputs, targets))
    return pc.data.from_arrays(*flat, batch_size=job.batch_size, shuffle=True)


class Group:
    """The seeds of a job, trained in one way."""

    def __init__(self, job: Job, how: str, seeds: int) -> None:
        """Make them; nothing is compiled yet."""
        self.replicas, self.data = replicas(job, how, seeds), random_data(job)

    def go(self, count: int) -> tuple[float, float]:
        """Seconds of the clock and of the processors for so many iterations more of every seed."""
        goal = self.replicas.trainers[0].step + count
        return timed(lambda: self.replicas.fit(self.data, num_steps=goal, log_every=NEVER))


def alone(job: Job, how: str, seeds: int) -> dict[str, float]:
    """Seconds until a first call is done beyond a later one, and the peak of memory, of this process."""
    group = Group(job, how, seeds)
    first, later = group.go(2)[0], min(group.go(2)[0] for _ in range(2))
    return {"compile_seconds": max(0.0, first - later), "memory_peak": memory()["peak"]}


def alone_in_a_process(job: Job, how: str, seeds: int) -> dict[str, float]:
    """The same of a new process."""
    command = [sys.executable, __file__, "--alone", job.name, how, "--seeds", str(seeds)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def largest(job: Job) -> int:
    """Elements of the largest array of the network's parameters."""
    trainer = replicas(job, "in turn", 1).trainers[0]
    leaves = jax.tree.leaves(pc.networks.split(trainer.network).parameters)
    return max(map(np.size, leaves))


def measure(job: Job, seeds: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Seconds of calls that take so many in turn, or up to twice as many, each way, round after round."""
    groups = {how: Group(job, how, seeds) for how in HOWS}
    auto = Group(job, "auto", seeds)
    auto.go(1)
    count = 1
    while min(groups["in turn"].go(count)[0] for _ in range(2)) < seconds:
        count *= 2
    for _ in range(2):  # the Trainer settles how many batches it gives a call
        groups["mapped"].go(count)
    found: dict[str, list[tuple[float, float]]] = {how: [] for how in HOWS}
    for number in range(rounds):
        for how in HOWS if number % 2 else reversed(HOWS):
            found[how].append(groups[how].go(count))
    record: dict[str, Any] = {
        "largest": largest(job),
        "auto": auto.replicas.how,
        "iterations": count,
    }
    for how, times in found.items():
        clock, processor = map(list, zip(*times, strict=True))
        record[how] = {"seconds": clock, "processor_seconds": processor}
    return record


def slower_in_turn(record: dict, clock: str = "seconds") -> tuple[float, float, float]:
    """Least, median and greatest of in turn / mapped within a round.

    >>> slower_in_turn({"in turn": {"seconds": [2.0, 3.0, 8.0]}, "mapped": {"seconds": [1.0, 2.0, 2.0]}})
    (1.5, 2.0, 4.0)
    """
    pairs = zip(record["in turn"][clock], record["mapped"][clock], strict=True)
    ratios = [turn / mapped for turn, mapped in pairs]
    return min(ratios), statistics.median(ratios), max(ratios)


def main() -> None:
    """Measure, show, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(MEASURED), help="some of the jobs")
    parser.add_argument("--seeds", type=read_count, default=SEEDS)
    parser.add_argument("--rounds", type=read_count, default=7)
    parser.add_argument(
        "--quick", action="store_true", help="small, all in this process, no file unless named"
    )
    parser.add_argument("--output", type=read_output, help="the JSON file")
    parser.add_argument(
        "--alone", nargs=2, metavar=("JOB", "HOW"), help="print what a first call takes here"
    )
    options = parser.parse_args()
    if options.alone:
        name, how = options.alone
        if name not in MEASURED or how not in HOWS:
            parser.error(f"--alone expected one of {list(MEASURED)} and of {list(HOWS)}")
        print(json.dumps(alone(MEASURED[name], how, options.seeds)))
        return
    jobs, seeds, rounds = MEASURED, options.seeds, options.rounds
    first_call: Callable[..., dict] = alone_in_a_process
    if options.quick:
        jobs, seeds, rounds, first_call = QUICK, 2, 2, alone
    console, found = Console() if Console().is_terminal else Console(width=160), {}
    for name in options.only or jobs:
        record = measure(jobs[name], seeds, rounds, 0.01 if options.quick else SECONDS)
        if name in (*WHOLE, *QUICK):
            for how in HOWS:
                record[how] |= first_call(jobs[name], how, seeds)
        found[name] = record
        least, ratio, greatest = slower_in_turn(record)
        processor = slower_in_turn(record, "processor_seconds")[1]
        told = f"{name}: in turn takes {ratio:.2f} times as long as mapped ({least:.2f} to {greatest:.2f}), "
        told += f"{processor:.2f} by processor time; auto is {record['auto']}"
        console.print(told, highlight=False)
    committed = results_path("replicas", jax.devices()[0].device_kind)
    if output := output_of(parser, options, committed):
        about = {**machine(), "jax": jax.__version__, "seeds": seeds, "rounds": rounds}
        write_results({**about, "jobs": found}, output)


if __name__ == "__main__":
    run_main(main)
