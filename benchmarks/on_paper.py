"""What would a large network take on many GPUs? On paper, from what compiled programs do and a data sheet.

    python benchmarks/on_paper.py                                   the tables of docs/scaling.md
    python benchmarks/on_paper.py --width 4096 --depth 64 --steps 512
    python benchmarks/on_paper.py --network 25e9 --reached 0.35     another assumption

A residual network of `depth` layers of width w, without those outside of its stack, by predictive coding
with T steps on activities. A GPU has b examples and l layers, 1/F of each. A step predicts every layer and
takes its error back, 4 b l w^2/F operations. The rest of a batch is the pass upward, the last prediction and
the gradient, 6 b l w^2/F, as much as backpropagation. Along P devices of `layers` the pass upward is a
pipeline of 2P - 1 ticks where P would do. How often arrays are read and written, what is sent and what is
held was counted in the compiled programs of `benchmarks/scaling.py`, and a test compares. Activities and what
is sent of them are float32; products are bfloat16 (`compute_dtype=jnp.bfloat16`).

A batch takes operations / (reached x peak) + bytes read and written / bandwidth + bytes sent / bandwidth of
the link + a latency for each collective: nothing overlaps. Backpropagation's pipeline has M = microbatches x
P parts, and idles (P - 1)/(M + P - 1) of the time (Huang et al., 2019; Narayanan et al., 2021).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.options import read_count, read_number


class Machine(NamedTuple):
    """H100 SXM, eight in a node; the first three and `nvlink` are NVIDIA's data sheet.

    Attributes:
        peak: operations a second of bfloat16 products without sparsity.
        bandwidth: bytes a second of its memory.
        capacity: bytes of its memory.
        reached: part of the peak that large products reach; assumed.
        node: GPUs that NVLink joins.
        nvlink: bytes a second that a GPU sends to others of its node, half of what both directions carry.
        network: bytes a second that a GPU sends to other nodes, one adapter of 400 Gb/s each (DGX H100).
        latency: seconds of a collective that sends nothing; assumed.
    """

    peak: float = 989e12
    bandwidth: float = 3.35e12
    capacity: float = 80e9
    reached: float = 0.5
    node: int = 8
    nvlink: float = 450e9
    network: float = 50e9
    latency: float = 20e-6


class Job(NamedTuple):
    """What is trained; `steps` of 16 layers are those of docs/choosing_inference.md.

    Attributes:
        width: of all layers.
        depth: of the stack; width^2 x depth parameters.
        batch: examples for each GPU.
        steps: of inference on activities.
        error_steps: of inference on errors.
        microbatches: of backpropagation's pipeline, for each of its stages.
    """

    width: int = 8192
    depth: int = 16
    batch: int = 256
    steps: int = 32
    error_steps: int = 5
    microbatches: int = 4


class Place(NamedTuple):
    """How many devices each axis has; features are neighbors, then layers."""

    data: int = 1
    layers: int = 1
    features: int = 1

    @property
    def devices(self) -> int:
        """How many there are in all."""
        return self.data * self.layers * self.features

    def __str__(self) -> str:
        """What the tables say."""
        named = [f"{name} {size}" for name, size in self._asdict().items() if size > 1]
        return ", ".join(named) or "one"


class Cost(NamedTuple):
    """What one device does in a part of a batch; idle: of operations and bytes, waited for besides."""

    flops: float = 0.0
    bytes: float = 0.0
    sent: float = 0.0
    sending: float = 0.0  # seconds
    idle: float = 0.0  # seconds


class Estimate(NamedTuple):
    """A batch: seconds, of which idle and sending; efficiency beside operations alone; bytes a device."""

    seconds: float
    idle: float
    sending: float
    efficiency: float
    memory: float


FLOAT = 4  # bytes
# Reads and writes of an array in the compiled programs: of activities, (batch, layers, width), in a step,
# where it is shifted between devices, where it is gathered from them, and in the rest; of weights in a step
# and in the rest with Adam.
STEP, SHIFTED, GATHERED, REST = 23, 5.5, 7, 28
STEP_WEIGHTS, REST_WEIGHTS = 2, 24
# Arrays held while inferring, and whole ones where they are gathered; parameters with Adam's two moments; the
# gradient and what its update takes besides.
HELD, HELD_WHOLE, STATE, UPDATE = 4.8, 2, 3, 2


class Shares(NamedTuple):
    """What a device has: examples, layers, bytes of one layer's activity, of all its layers', of weights."""

    examples: float
    layers: float
    slab: float
    activities: float
    weights: float


def shares(job: Job, place: Place, batch: float) -> Shares:
    """The shares of a device in a batch."""
    examples, layers = batch / place.data, job.depth / place.layers
    slab = FLOAT * examples * job.width
    return Shares(
        examples,
        layers,
        slab,
        slab * layers,
        FLOAT * job.width**2 * layers / place.features,
    )


def sending(
    machine: Machine, axis: str, place: Place, permutes: float = 0.0, rings: float = 0.0
) -> float:
    """Seconds of a permute and of a ring that send so many bytes a device, along an axis."""
    sizes = place._asdict()
    stride = {"features": 1, "layers": place.features, "data": place.features * place.layers}[axis]
    if stride * sizes[axis] <= machine.node:
        return (permutes + rings) / machine.nvlink
    # a ring through nodes goes out by the adapters of all its devices there
    inside = max(1, min(sizes[axis], machine.node // stride))
    return permutes / machine.network + rings / min(machine.nvlink, inside * machine.network)


def reduced(size: float, devices: int) -> float:
    """Bytes that a device sends in an all-reduce."""
    return 2 * size * (devices - 1) / devices


def step(job: Job, place: Place, machine: Machine, batch: float) -> Cost:
    """A step on activities: predict every layer, and take its error back."""
    own, split = shares(job, place, batch), place.features > 1
    flops = 4 * own.examples * own.layers * job.width**2 / place.features
    passes = STEP / place.features + SHIFTED * (place.layers > 1) + GATHERED * split
    moved = passes * own.activities + STEP_WEIGHTS * own.weights
    sent, seconds = 0.0, 0.0
    if (
        place.layers > 1
    ):  # up, down, and both ends of the stack with the layers that all devices have
        ring = reduced(2 * own.slab, place.layers)
        sent += 2 * own.slab + ring
        seconds += sending(machine, "layers", place, 2 * own.slab, ring) + 3 * machine.latency
    if split:  # errors are summed, and what is predicted from is gathered
        ring = 1.5 * reduced(own.activities, place.features)
        sent += ring
        seconds += sending(machine, "features", place, 0, ring) + 2 * machine.latency
    return Cost(flops, moved, sent, seconds)


def rest(job: Job, place: Place, machine: Machine, batch: float) -> Cost:
    """The rest of a batch: pass upward, last prediction, gradient and Adam."""
    own = shares(job, place, batch)
    one = 2 * own.examples * own.layers * job.width**2 / place.features
    moved = REST * own.activities / place.features + REST_WEIGHTS * own.weights
    ticks = 2 - 1 / place.layers
    sent, seconds, idle = 0.0, 0.0, 0.0
    if place.layers > 1:
        idle = (ticks - 1) * one / (machine.peak * machine.reached)
        permutes, ring = (1 + ticks) * own.slab, reduced(2 * own.slab, place.layers)
        sent += permutes + ring
        seconds += sending(machine, "layers", place, permutes, ring)
        seconds += (2 * place.layers + 2) * machine.latency
    if place.features > 1:
        ring = 1.5 * reduced(own.activities, place.features)
        sent += ring
        seconds += sending(machine, "features", place, 0, ring) + 2 * job.depth * machine.latency
    if place.data > 1:
        ring = reduced(own.weights, place.data)
        sent += ring
        seconds += sending(machine, "data", place, 0, ring) + machine.latency
    return Cost(3 * one, moved, sent, seconds, idle)


def held(job: Job, place: Place, batch: float, arrays: float = HELD) -> float:
    """Bytes on a device: state before a call and after, and the larger of inference and update."""
    own = shares(job, place, batch)
    whole = HELD_WHOLE * (place.features > 1)
    inferring = arrays * (own.activities + own.slab) / place.features + whole * own.activities
    return 2 * STATE * own.weights + max(inferring, UPDATE * own.weights)


def total(parts: list[tuple[float, Cost]], machine: Machine, memory: float) -> Estimate:
    """The sum of parts, each so often."""
    flops, moved, _, seconds, idle = (
        sum(times * value for times, value in zip([n for n, _ in parts], column, strict=True))
        for column in zip(*(cost for _, cost in parts), strict=True)
    )
    computing = flops / (machine.peak * machine.reached)
    whole = computing + moved / machine.bandwidth + idle + seconds
    return Estimate(whole, idle, seconds, computing / whole, memory)


def predictive_coding(job: Job, place: Place, machine: Machine, batch: float) -> Estimate:
    """Predictive coding on activities."""
    parts = [(job.steps, step(job, place, machine, batch)), (1, rest(job, place, machine, batch))]
    return total(parts, machine, held(job, place, batch))


def error_coordinates(job: Job, place: Place, machine: Machine, batch: float) -> Estimate:
    """Predictive coding on errors: each step is a pass up and down, along layers a pipeline."""
    own, one = shares(job, place, batch), step(job, place._replace(layers=1), machine, batch)
    computing = one.flops / place.layers / (machine.peak * machine.reached)
    ticks = 2 - 1 / place.layers
    inner = Cost(one.flops / place.layers, one.bytes / place.layers, one.sent, one.sending)
    if place.layers > 1:
        ring = reduced(2 * own.slab, place.layers)
        seconds = sending(machine, "layers", place, 2 * ticks * own.slab, ring)
        seconds += one.sending + (4 * place.layers + 1) * machine.latency
        inner = inner._replace(sending=seconds, idle=(ticks - 1) * computing)
    parts = [(job.error_steps, inner), (1, rest(job, place, machine, batch))]
    return total(parts, machine, held(job, place, batch))


def backpropagation(job: Job, place: Place, machine: Machine, batch: float) -> Estimate:
    """Backpropagation, along layers a pipeline of microbatches."""
    own, whole = shares(job, place, batch), rest(job, place._replace(layers=1), machine, batch)
    flops, moved = whole.flops / place.layers, whole.bytes / place.layers
    seconds = idle = 0.0
    if place.data > 1:
        ring = reduced(own.weights, place.data)
        seconds += sending(machine, "data", place, 0, ring) + machine.latency
    arrays = 2.0  # kept for the way back: before and after the activation
    if place.layers > 1:
        parts = job.microbatches * place.layers
        ticks = (parts + place.layers - 1) / parts
        busy = flops / (machine.peak * machine.reached) + moved / machine.bandwidth
        idle = (ticks - 1) * busy
        seconds += sending(machine, "layers", place, 2 * ticks * own.slab)
        seconds += 2 * (parts + place.layers - 1) * machine.latency
        arrays *= place.layers / parts  # no more than so many parts are on the way (1F1B)
    return total(
        [(1, Cost(flops, moved, 0.0, seconds, idle))], machine, held(job, place, batch, arrays)
    )


METHODS = {
    "activities": predictive_coding,
    "errors": error_coordinates,
    "backpropagation": backpropagation,
}


def cases(devices: int, job: Job, machine: Machine) -> list[tuple[str, Place]]:
    """Methods and placements of so many devices."""
    node = min(machine.node, devices)
    half = devices // 2
    places = [
        Place(data=devices),
        Place(data=devices // node, layers=node),
        Place(data=devices // node, features=node),
    ]
    deep = Place(data=devices // (2 * node), layers=2 * node)
    if devices > node and job.depth % (2 * node) == 0:
        places.insert(2, deep)
    elif devices == node and half > 1:
        places.insert(2, Place(data=2, layers=half))
    found = [("activities", place) for place in places if job.depth % place.layers == 0]
    layered = [place for place in places[:2] if job.depth % place.layers == 0]
    return found + [(name, place) for name in ("errors", "backpropagation") for place in layered]


def rows(job: Job, machine: Machine, devices: list[int], batch: int | None = None) -> list[dict]:
    """A row for each case; `batch` examples in all, or job.batch for each GPU."""
    found = []
    for number in devices:
        for name, place in cases(number, job, machine):
            own = job.batch * number if batch is None else batch
            cost = METHODS[name](job, place, machine, own)
            found.append(
                {"GPUs": number, "method": name, "place": str(place), "batch": own}
                | {"examples_a_second": own / cost.seconds, **cost._asdict()}
            )
    return found


def main() -> None:
    """Show the estimates."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for default in (Job(), Machine()):
        for name, value in default._asdict().items():
            read = read_count if isinstance(value, int) else read_number
            parser.add_argument(f"--{name}", type=read, default=value)
    parser.add_argument("--devices", type=read_count, nargs="+", default=[8, 64, 256])
    parser.add_argument(
        "--whole-batch", type=read_count, help="examples in all; else --batch a GPU"
    )
    options = vars(parser.parse_args())
    job, machine = (
        kind(**{name: options[name] for name in kind._fields}) for kind in (Job, Machine)
    )
    console = Console() if Console().is_terminal else Console(width=160)
    console.print(f"{job.width**2 * job.depth:.3g} parameters", job, machine)
    for row in rows(job, machine, options["devices"], options["whole_batch"]):
        console.print(
            f"{row['GPUs']:4} {row['method']:16} {row['place']:20} batch {row['batch']:6}: "
            f"{1e3 * row['seconds']:8.1f} ms (idle {1e3 * row['idle']:6.1f}, sending "
            f"{1e3 * row['sending']:6.1f}), {100 * row['efficiency']:3.0f} %, "
            f"{row['examples_a_second']:9,.0f} examples/s, {row['memory'] / 1e9:5.1f} GB",
            highlight=False,
        )


if __name__ == "__main__":
    main()
