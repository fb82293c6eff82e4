"""How long must an iteration take on this machine, whoever programs it?

    python benchmarks/floor.py --job notebook       prints one JSON object

Counts the floating-point operations of one iteration's matrix products and convolutions, and the bytes that
its instructions read and write, from the compiled program of the bare-jax step (loops count as often as they
turn; what XLA lifts out of them counts once). Divides the operations by the rates that this machine reaches
at those very shapes, in a loop that does nothing else, and the bytes by its rate of copying arrays as large
as the job's largest. The floor is the larger of the two times, and an estimate: rates are the best of several
measurements in which a product and its way back alternate, (m, k, n) and (m, n, k), and a program that keeps
arrays in a cache moves fewer bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.contenders import bare_scan
from benchmarks.jobs import JOBS, Job
from benchmarks.options import run_main
from pcflax.networks.programs import count


def compiled_step(job: Job) -> str:
    """The optimized program of one batch of the bare-jax contender."""
    layers = job.make_parameters(0)
    batches = job.make_batches(1, 0)
    if not job.learns:
        return bare_scan.infer_all.lower(layers, *batches, job=job).compile().as_text()
    state = bare_scan.make_optimizer(job).init(layers)
    return bare_scan.train.lower(layers, state, *batches, job=job).compile().as_text()


def seconds_of(function, *arguments, repeats: int) -> float:
    """Least seconds of one of `repeats` turns of a compiled loop, over ten calls."""
    compiled = jax.jit(function).lower(*arguments).compile()
    jax.block_until_ready(compiled(*arguments))
    times = []
    for _ in range(10):
        begin = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append((time.perf_counter() - begin) / repeats)
    return min(times)


def product_seconds(batch: int, rows: int, inner: int, columns: int) -> float:
    """Seconds of one (batch, rows, inner) x (batch, inner, columns) product, in a chain of them."""
    flops = 2 * batch * rows * inner * columns
    repeats = max(4, min(2000, int(4e8 / flops)))
    lead = (batch,) if batch > 1 else ()
    start = jnp.ones((*lead, rows, inner))
    there, back = (
        jnp.full((*lead, inner, columns), 1 / inner),
        jnp.full((*lead, columns, inner), 1 / columns),
    )

    def chain(start, there, back):
        return jax.lax.fori_loop(0, repeats, lambda _, x: (x @ there) @ back, start)

    return seconds_of(chain, start, there, back, repeats=2 * repeats)


def convolution_rate(job: Job) -> float:
    """Operations a second of the job's convolutions, forward, one after the other."""
    layers = job.make_parameters(0)[:-1]
    side, total, seconds = 32, 0.0, 0.0
    for layer in layers:
        kernel = jnp.array(layer["kernel"])
        below = kernel.shape[2]
        images = jnp.ones((job.batch_size, side, side, below))

        def turn(_, images, kernel=kernel):
            dimensions = ("NHWC", "HWIO", "NHWC")
            out = jax.lax.conv_general_dilated(
                images, kernel, (1, 1), "SAME", dimension_numbers=dimensions
            )
            return images + 1e-9 * jnp.mean(out)

        seconds += seconds_of(
            lambda images, turn=turn: jax.lax.fori_loop(0, 10, turn, images), images, repeats=10
        )
        total += 2 * job.batch_size * side * side * kernel.size
        side //= 2
    return total / seconds


def copy_rate(count: int) -> float:
    """Bytes a second, read and written, of adding to an array of so many float32."""
    repeats = max(4, min(2000, int(1e8 / count)))
    add = lambda _, x: x + 1.0  # noqa: E731
    array = jnp.zeros(count)
    seconds = seconds_of(lambda x: jax.lax.fori_loop(0, repeats, add, x), array, repeats=repeats)
    return 8 * count / seconds


def measure(job: Job) -> dict:
    """The floor of a job, with what it is made of."""
    cost = count(compiled_step(job))
    flops, product_time, rates = 0, 0.0, {}
    for (kind, *sizes), times in cost.products.items():
        if kind == "dot":
            one = 2 * math.prod(sizes)
            seconds = product_seconds(*sizes)
            rates["x".join(map(str, sizes))] = {"times": times, "flops_a_second": one / seconds}
        else:
            one = sizes[0]
            rates.setdefault("convolutions", {"times": 0, "flops_a_second": convolution_rate(job)})
            rates["convolutions"]["times"] += times
            seconds = one / rates["convolutions"]["flops_a_second"]
        flops, product_time = flops + times * one, product_time + times * seconds
    largest = max(
        math.prod(shape)
        for shape in [layer["kernel"].shape for layer in job.make_parameters(0)]
        + [(job.batch_size, *job.input_shape)]
    )
    copied = copy_rate(largest)
    return {
        "flops": flops,
        "bytes": cost.bytes,
        "products": rates,
        "bytes_a_second": copied,
        "product_seconds": product_time,
        "byte_seconds": cost.bytes / copied,
        "seconds": max(product_time, cost.bytes / copied),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--job", choices=list(JOBS), default="notebook")
    print(json.dumps(measure(JOBS[parser.parse_args().job])))


if __name__ == "__main__":
    run_main(main)
