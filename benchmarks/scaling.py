"""What does each of several devices compute, hold and send, when the work is spread over them?

    python benchmarks/scaling.py            1, 2, 4, 8 devices; simulated on a CPU (minutes of compiling)
    python benchmarks/scaling.py --real     with seconds, too, as it is by itself on GPUs
    python benchmarks/scaling.py --quick    small, for a check; no file

One batch of predictive coding with Adam on a residual network of a stack of layers, as the Trainer compiles
it. Strong scaling spreads one job over more devices. Weak scaling lets it grow with them: the batch along
`data`, the depth along `layers`, the width by the root along `features`, so that a device keeps as many
parameters. Numbers are read from the compiled program of one device (`pcflax/networks/programs.py`):
operations of products, bytes that instructions read and write, bytes sent in collectives, as a ring sends
them, and memory as XLA plans it. Programs of two numbers of inference steps tell what a step costs from the
rest of a batch. Simulated devices share the cores of this machine, so that their seconds would mean nothing.
Results go to the screen and to `benchmarks/results/`; the table in docs/scaling.md is made of them by
`benchmarks/tables.py`. What a larger network would take: `benchmarks/on_paper.py`.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
import optax
from flax import nnx
from rich.console import Console

import pcflax as pc
from pcflax.networks.programs import ProgramCost, count
from pcflax.training import fitting

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.options import output_of, read_count, read_output, run_main
from benchmarks.records import results_path, write_results
from benchmarks.suite import machine

DEVICES = (1, 2, 4, 8)
STEPS = (4, 8)
FEATURES, CLASSES = 64, 10  # of an example


class Job(NamedTuple):
    """A network of `depth` hidden layers and a batch."""

    width: int = 256
    depth: int = 32
    batch: int = 256


def placements(devices: int) -> dict[str, pc.sharding.Placement]:
    """Ways to spread the work over so many devices, by name; a pair where four or more can be halved."""
    if devices == 1:
        return {"one device": pc.sharding.data(1)}
    found = {
        "data": pc.sharding.data(devices),
        "layers": pc.sharding.layers(devices),
        "features": pc.sharding.features(devices),
    }
    if devices > 2:
        found["data, layers"] = pc.sharding.data(2) | pc.sharding.layers(devices // 2)
    return found


def grown(job: Job, placement: pc.sharding.Placement) -> Job:
    """The job of which a device holds as much as one device does of the first."""
    sizes = dict(placement.sizes)
    count = sizes.get("features") or 1
    width = count * round(job.width * math.sqrt(count) / count)
    return Job(width, job.depth * (sizes.get("layers") or 1), job.batch * (sizes.get("data") or 1))


def trainer(
    job: Job, placement: pc.sharding.Placement, steps: int
) -> tuple[pc.Trainer, pc.data.Dataset]:
    """A Trainer on these devices, and a data set of one batch."""
    network = pc.models.residual_mlp(
        FEATURES, job.width, CLASSES, depth=job.depth + 2, rngs=nnx.Rngs(0)
    )
    rule = pc.learning.PredictiveCoding(pc.inference.GradientDescent(0.1, num_steps=steps))
    made = pc.Trainer(network, optax.adam(1e-3), learning=rule, mesh=placement, progress=False)
    images = np.zeros((job.batch, FEATURES), np.float32)
    labels = np.zeros(job.batch, int)
    data = pc.data.from_arrays(images, labels, batch_size=job.batch, num_classes=CLASSES)
    return made, data


class _Compiled(Exception):
    """The program is known, and need not run."""


def compiled(job: Job, placement: pc.sharding.Placement, steps: int) -> Any:
    """The Trainer's program of a batch, as it is compiled for each device."""
    made, data = trainer(job, placement, steps)
    call, found = fitting.learn_batches, []

    def spy(*arguments, **options):
        found.append(call.lower(*arguments, **options).compile())
        raise _Compiled

    with mock.patch.object(fitting, "learn_batches", spy):
        try:
            made.fit(data, num_steps=1)
        except _Compiled:
            return found[0]
    raise RuntimeError("the Trainer called no compiled loop")


def seconds(job: Job, placement: pc.sharding.Placement, steps: int, rounds: int) -> float:
    """Least seconds of a batch, over a few rounds of some seconds."""
    made, data = trainer(job, placement, steps)

    def go(batches: int) -> float:
        begin = time.perf_counter()
        made.fit(data, num_steps=made.step + batches, log_every=10**9)
        return (time.perf_counter() - begin) / batches

    go(1)
    batches = max(2, int(2 / go(2)))
    return min(go(batches) for _ in range(rounds))


def row(job: Job, placement: pc.sharding.Placement, real_rounds: int = 0) -> dict[str, Any]:
    """What one device does in a batch: `step_` in a step of inference, `rest_` besides.

    `collectives` tells all that sends a hundredth or more: "2 + 1 collective-permute of 16384 among 8" are
    two in each step and one besides, of so many bytes that a device puts in.
    """
    few, many = (compiled(job, placement, steps) for steps in STEPS)
    costs = [count(program.as_text()) for program in (few, many)]
    span, found = STEPS[1] - STEPS[0], {}
    for name in ("flops", "bytes", "sent"):
        of_few, of_many = (getattr(cost, name) for cost in costs)
        found[f"step_{name}"] = (of_many - of_few) / span
        found[f"rest_{name}"] = of_few - STEPS[0] * found[f"step_{name}"]
    plan = many.memory_analysis()
    held = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    found |= {"memory": held + plan.temp_size_in_bytes, "collectives": told(*costs)}
    if real_rounds:
        found["seconds"] = seconds(job, placement, STEPS[1], real_rounds)
    return found


def told(few: ProgramCost, many: ProgramCost) -> str:
    """What is sent, the most first, how often in a step and besides."""
    parts = []
    for key, times in many.collectives.items():
        in_step, left = divmod(times - few.collectives[key], STEPS[1] - STEPS[0])
        if left:
            raise RuntimeError(f"{key} is sent {left} times beyond a whole number in each step")
        cost = ProgramCost(collectives=type(many.collectives)({key: times}))
        kind, size, devices = key
        rest = times - STEPS[1] * in_step
        parts.append((cost.sent, f"{in_step} + {rest} {kind} of {size} among {devices}"))
    least = sum(sent for sent, _ in parts) / 100
    return "; ".join(text for sent, text in sorted(parts, reverse=True) if sent >= least)


def measure(job: Job, devices: list[int], real_rounds: int) -> Iterator[dict[str, Any]]:
    """Rows of strong and weak scaling, which begin with the same job on one device."""
    for scaling in ("strong", "weak"):
        for number in devices if scaling == "strong" else devices[1:]:
            for name, placement in placements(number).items():
                own = grown(job, placement) if scaling == "weak" else job
                yield {
                    "scaling": scaling,
                    "placement": name,
                    "devices": number,
                    **own._asdict(),
                    **row(own, placement, real_rounds),
                }


def main() -> None:
    """Compile, read, show, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--real", action="store_true", help="seconds, on the devices there are")
    parser.add_argument("--rounds", type=read_count, default=3, help="of timing real devices")
    parser.add_argument("--quick", action="store_true", help="small, two devices, no file")
    parser.add_argument("--output", type=read_output, help="the JSON file")
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", max(DEVICES))  # of no account where there are others
    real = options.real or jax.default_backend() != "cpu"
    there = [number for number in DEVICES if number <= jax.device_count()]
    if options.quick:
        there = there[:2]
    job = Job(16, 8, 16) if options.quick else Job()
    console, rows = Console() if Console().is_terminal else Console(width=200), []
    for found in measure(job, there, options.rounds if real else 0):
        console.print(found, highlight=False)
        rows.append(found)
    committed = results_path("scaling", jax.devices()[0].device_kind)
    if output := output_of(parser, options, committed):
        record = {**machine(), "jax": jax.__version__, "job": job._asdict(), "steps": STEPS}
        write_results({**record, "rows": rows}, output)


if __name__ == "__main__":
    run_main(main)
