"""How do costs grow: of training with the network, of rows and saves with a run's length, of memory with use?

    python benchmarks/growth.py              some ten minutes
    python benchmarks/growth.py --only width saves
    python benchmarks/growth.py --quick      for a check in seconds; no file

For each of width, depth (a stack), steps of inference and batch: milliseconds of an iteration of
`Trainer.fit` and seconds until a first one. By width an iteration in bare jax stands beside it, since what
leaves a processor's caches grows faster than its operations, whoever computes it. For rows of history:
milliseconds of a row and of a save; for checkpoints kept: of a save, until it is on the disk. A cost grows
as size^exponent, the slope of log cost over log size in the upper half of the sizes, where what every size
costs hides it least. For fits, inferences, restores and saves, each repeated in one process: KB of resident
memory that one adds, after the first quarter of them, in which caches fill; a fit adds rows to its history,
too. Orbax alone saves the same arrays beside that. Times are the least of a few rounds, of the clock and of
processor time of all threads, which other work on the machine changes less. Results go to the screen and,
of all parts, to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from rich.console import Console

import pcflax as pc

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.contenders import bare_scan
from benchmarks.jobs import Job
from benchmarks.options import output_of, read_count, read_output, run_main
from benchmarks.records import results_path, write_results
from benchmarks.suite import machine

WIDTH, BATCH, STEPS, NEVER = 64, 16, 5, 10**9
STATUS = Path("/proc/self/status")
SIZES = {
    "width": [64, 256, 1024, 2048, 4096],
    "depth": [4, 16, 64, 256, 512],
    "steps": [5, 20, 100, 500],
    "batch": [1, 8, 64, 512, 4096],
    "rows": [500, 2000, 8000, 32_000],
    "checkpoints": [2, 8, 32, 128],
}
SIZES_QUICK = {
    "width": [4, 8],
    "depth": [2, 4],
    "steps": [2, 4],
    "batch": [2, 4],
    "rows": [8, 16],
    "checkpoints": [1, 2],
}
REPETITIONS = {"fits": 200, "inferences": 400, "restores": 200, "saves": 400, "saves_by_orbax": 400}


def exponent(sizes: list[int], costs: list[float]) -> float:
    """Return the slope of log cost over log size in the upper half of the sizes, of two at least.

    >>> round(exponent([1, 2, 4, 8], [9.0, 9.0, 16.0, 64.0]), 6)
    2.0
    """
    half = min(len(sizes) // 2, len(sizes) - 2)
    return float(np.polyfit(np.log(sizes[half:]), np.log(costs[half:]), 1)[0])


def added(marks: list[tuple[int, float]]) -> float:
    """Return what a repetition adds, the slope over (repetitions, amount) after the first quarter.

    >>> round(added([(0, 0.0), (10, 90.0), (20, 100.0), (30, 110.0), (40, 120.0)]), 6)
    1.0
    """
    later = [mark for mark in marks if 4 * mark[0] >= marks[-1][0]]
    return float(np.polyfit(*np.transpose(later), 1)[0])


def chain(width: int) -> pc.PCNetwork:
    """A network of two hidden layers."""
    return pc.models.mlp(64, width, width, 10, activation=jnp.tanh, rngs=nnx.Rngs(0))


def stack(depth: int) -> pc.PCNetwork:
    """A residual network with a stack of `depth` layers."""
    return pc.models.residual_mlp(64, 32, 10, depth=depth, rngs=nnx.Rngs(0))


def digits(batch: int) -> pc.data.Dataset:
    """Noise with labels, two batches of it."""
    random, count = np.random.default_rng(0), 2 * batch
    images = random.normal(size=(count, 64)).astype(np.float32)
    labels = random.integers(0, 10, count)
    return pc.data.from_arrays(images, labels, batch_size=batch, num_classes=10)


def trainer(network: pc.PCNetwork, steps: int = STEPS, **options: Any) -> pc.Trainer:
    """A Trainer by predictive coding that prints nothing."""
    rule = pc.learning.PredictiveCoding(pc.inference.GradientDescent(0.01, num_steps=steps))
    return pc.Trainer(network, optax.adam(1e-4), learning=rule, progress=False, **options)


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Return seconds of the clock and of the processors."""
    begin, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - begin, time.process_time() - processor


def training(network: pc.PCNetwork, batch: int, steps: int, seconds: float, rounds: int) -> dict:
    """What an iteration of `Trainer.fit` costs, and the first one beyond that."""
    made, data = trainer(network, steps), digits(batch)

    def go(count: int) -> tuple[float, float]:
        return timed(lambda: made.fit(data, num_steps=made.step + count, log_every=NEVER))

    first, few = go(1)[0], go(2)[0]
    count = max(2, min(400, int(seconds / few)))
    found = [go(count) for _ in range(rounds)]
    clock, processor = (min(column) / count for column in zip(*found, strict=True))
    return {
        "compile_seconds": max(first - clock, 1e-9),
        "iteration_ms": clock * 1e3,
        "iteration_processor_ms": processor * 1e3,
    }


def bare(width: int, seconds: float, rounds: int) -> dict[str, float]:
    """What an iteration of `chain(width)` costs in bare jax."""
    job = Job("growth", widths=(64, width, width, 10), batch_size=BATCH, num_inference_steps=STEPS)
    contender = bare_scan.Contender(job, job.make_parameters(0))

    def go(batches: tuple[np.ndarray, np.ndarray]) -> float:
        return timed(lambda: contender.run(*batches))[0]

    few = job.make_batches(2, 0)
    go(few)
    count = max(2, min(400, int(2 * seconds / go(few))))
    batches = job.make_batches(count, 0)
    go(batches)
    return {"bare_iteration_ms": min(go(batches) for _ in range(rounds)) / count * 1e3}


def save_cost(made: pc.Trainer, data: pc.data.Dataset, rounds: int) -> dict:
    """What saving costs, until it is on the disk, each time a step and a row further."""
    kept, found = made.checkpoints, []
    for _ in range(rounds):
        made.checkpoints = None  # a fit saves its last step
        made.fit(data, num_steps=made.step + 1, log_every=1)
        made.checkpoints = kept
        found.append(timed(made.save))
    clock, processor = (min(column) * 1e3 for column in zip(*found, strict=True))
    return {"save_ms": clock, "save_processor_ms": processor}


def by_rows(sizes: list[int], folder: Path, rounds: int) -> list[dict]:
    """A row and a save of one run that grows longer, a row an iteration."""
    data, made, records = digits(BATCH), trainer(chain(8), 1), []
    kept = pc.Checkpoints(folder / "rows")
    for rows in sizes:
        few, found = max(1, min(200, rows // (4 * rounds))), []
        made.checkpoints = None
        made.fit(data, num_steps=rows - few * rounds, log_every=1)
        for goal in range(rows - few * (rounds - 1), rows + 1, few):
            found.append(timed(lambda goal=goal: made.fit(data, num_steps=goal, log_every=1)))
        clock, processor = (min(column) * 1e3 / few for column in zip(*found, strict=True))
        made.checkpoints = kept
        made.save()  # which writes the rows that came since
        row = {"row_ms": clock, "row_processor_ms": processor}
        records.append({"rows": rows, **row, **save_cost(made, data, rounds)})
    return records


def by_checkpoints(sizes: list[int], folder: Path, rounds: int) -> list[dict]:
    """A save beside so many that are kept."""
    data, records = digits(BATCH), []
    for count in sizes:
        kept = pc.Checkpoints(folder / f"kept-{count}", every=1, keep_latest=count)
        made = trainer(chain(8), 1, checkpoints=kept)
        made.fit(data, num_steps=count)
        records.append({"checkpoints": count, **save_cost(made, data, rounds)})
    return records


def resident() -> float:
    """KB of this process's own memory, which Linux tells."""
    lines = STATUS.read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("RssAnon:")))


def memory(folder: Path, repetitions: dict[str, int]) -> dict[str, dict]:
    """KB that a fit, an inference, a restore and a save each leave behind."""
    data, made = digits(BATCH), trainer(chain(16))
    batch = next(iter(data))
    kept = trainer(chain(16), checkpoints=pc.Checkpoints(folder / "memory"))
    kept.fit(data, num_steps=2)
    descent = pc.inference.GradientDescent(0.01, num_steps=STEPS)
    moments = optax.adam(1e-4).init(nnx.state(kept.network, nnx.Param))
    leaves = jax.tree.leaves((nnx.state(kept.network, nnx.Param), moments))
    arrays = {str(number): leaf for number, leaf in enumerate(leaves)}
    alone = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())

    def save_by_orbax() -> None:
        meta = ocp.args.JsonSave({"step": 2})
        saved = ocp.args.Composite(state=ocp.args.PyTreeSave(arrays), meta=meta)
        alone.save(folder / "orbax", args=saved, force=True)
        alone.wait_until_finished()

    calls = {
        "fits": lambda: made.fit(data, num_steps=made.step + 2, eval_data=data),
        "inferences": lambda: made.network.infer(batch.inputs, batch.targets, inference=descent),
        "restores": kept.restore,
        "saves": kept.save,
        "saves_by_orbax": save_by_orbax,
    }
    found = {}
    for name, call in calls.items():
        count, marks = repetitions[name], []
        every = max(1, count // 20)
        for number in range(count + 1):
            if number % every == 0:
                gc.collect()
                marks.append((number, resident()))
            call()
        found[name] = {"repetitions": count, "kb_a_repetition": added(marks)}
    return found


def exponents(name: str, records: list[dict]) -> dict[str, float]:
    """The exponent of each cost."""
    sizes = [record[name] for record in records]
    costs = [key for key in records[0] if key != name]
    return {cost: exponent(sizes, [record[cost] for record in records]) for cost in costs}


def measure(name: str, options: argparse.Namespace, folder: Path) -> list[dict]:
    """One cost by one size."""
    sizes = (SIZES_QUICK if options.quick else SIZES)[name]
    seconds, rounds = (0.01, 1) if options.quick else (1.5, options.rounds)
    if name == "rows":
        return by_rows(sizes, folder, rounds)
    if name == "checkpoints":
        return by_checkpoints(sizes, folder, rounds)
    width, records = 8 if options.quick else WIDTH, []
    for size in sizes:
        given = {"width": width, "batch": BATCH, "steps": STEPS, name: size}
        network = stack(size) if name == "depth" else chain(given["width"])
        cost = training(network, given["batch"], given["steps"], seconds, rounds)
        cost |= bare(size, seconds, rounds) if name == "width" else {}
        records.append({name: size, **cost})
    return records


def main() -> None:
    """Measure, show, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = [*SIZES, "memory"]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="some of all")
    parser.add_argument("--rounds", type=read_count, default=3)
    parser.add_argument("--quick", action="store_true", help="small sizes, no file")
    parser.add_argument("--output", type=read_output, help="the JSON file")
    options = parser.parse_args()
    if "memory" in options.only and not STATUS.exists():
        parser.error(
            f"memory is read from {STATUS}, which this system lacks; name the others: --only"
        )
    console, growth, found = Console() if Console().is_terminal else Console(width=160), {}, {}
    training(chain(4), 2, 1, 0, 1)  # what only the first compilation of a process costs
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in (part for part in options.only if part != "memory"):
            records = measure(part, options, folder)
            growth[part] = {"exponents": exponents(part, records), "sizes": records}
            for record in records:
                console.print({key: round(value, 3) for key, value in record.items()})
            told = ", ".join(
                f"{key} {value:.2f}" for key, value in growth[part]["exponents"].items()
            )
            console.print(f"exponents by {part}: {told}", highlight=False)
        if "memory" in options.only:
            few = dict.fromkeys(REPETITIONS, 4)
            found = memory(folder, few if options.quick else REPETITIONS)
            for part, kept in found.items():
                told = f"{kept['kb_a_repetition']:.1f} KB each of {kept['repetitions']}"
                console.print(f"memory by {part}: {told}", highlight=False)
    committed = results_path("growth", jax.devices()[0].device_kind)
    if output := output_of(parser, options, committed):
        record = {**machine(), "jax": jax.__version__, "rounds": options.rounds}
        write_results({**record, "growth": growth, "memory": found}, output)


if __name__ == "__main__":
    run_main(main)
