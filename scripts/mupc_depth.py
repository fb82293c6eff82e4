"""MNIST at 8 to 128 layers by predictive coding: muPC keeps learning where standard networks stop.

    python scripts/mupc_depth.py --data-dir FOLDER_OF_PREPARED_TFDS_SETS      (about 8 minutes on 2 cores)
    python scripts/mupc_depth.py --quick                                     (digits, 3 and 6 layers)

First the published job: 30 layers of width 128, relu, Adam at 0.1, batches of 64, 30 steps of gradient
descent on the activities at 0.5/64 an example (0.5 on the batch mean). The example that accompanies muPC
(Innocenti, Achour & Buckley 2025, arXiv 2505.13124) prints 85.8 % of the test images after 100 batches and
93.3 % after 900.

Then one epoch at each depth, stacked, with muPC and with standard networks of the same shape (LeCun normal
weights, no multipliers): 5 steps on error coordinates at 0.5/64, which cost the same at every depth where
the published T = depth does not; Adam at muPC's own rule, 3 / sqrt(width * depth), or for standard networks
the better of two rates by the training loss, falling as a cosine. At this step size the gradient stays close
to backpropagation's, as that of the published recipe does: the figure shows its alignment by layer, at the
start and at the end of training. Accuracy is of the last iterate on all test images; nothing is chosen by it.
"""

import argparse
import itertools
import pathlib
import sys
import time

import jax
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from rich.console import Console

import pcflax as pc
from pcflax import recipes

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from benchmarks.options import output_of, read_count, read_index, read_output, run_main
from benchmarks.records import results_path, write_results

STEP_SIZE, BASE_RATE, STANDARD_RATES = 0.5 / 64, 3.0, (1e-2, 1e-3)


def network(data: pc.data.Dataset, width: int, depth: int, parameterization, seed: int):
    """A residual network with `depth` layers, the hidden ones in one stack."""
    spec = data.spec()
    return pc.models.residual_mlp(
        spec.inputs.shape[1],
        width,
        spec.targets.shape[1],
        depth=depth,
        parameterization=parameterization,
        rngs=nnx.Rngs(seed),
    )


def train(net, learning, rate, data, test, steps: list[int], seed: int) -> dict:
    """Accuracies in % after these numbers of batches, the last training loss, alignment by layer."""
    begin = time.perf_counter()
    trainer = pc.Trainer(net, optax.adam(rate), learning=learning, seed=seed, progress=False)
    batch = next(iter(data))

    def alignment() -> list[float]:
        credit = pc.analysis.gradient_alignment(net, batch.inputs, batch.targets, learning=learning)
        return [round(credit.cosine[name], 4) for name in net.nodes]

    record = {"steps": steps, "accuracy": [], "alignment_start": alignment()}
    try:
        for step in steps:
            history = trainer.fit(data, num_steps=step)
            record["accuracy"].append(round(100 * trainer.evaluate(test)["accuracy"], 2))
        record["loss"] = history["train/loss"][-1]
        record["alignment_end"] = alignment()
    except pc.NonFiniteEnergyError as error:
        record["failed"] = str(error).split(":")[0]
    record["seconds"] = round(time.perf_counter() - begin, 1)
    return record


def published(data, test, width: int, depth: int, steps: list[int], seed: int) -> dict:
    """The 30-layer job as it was published."""
    inference = pc.inference.GradientDescent(optax.sgd(STEP_SIZE), num_steps=depth)
    learning = pc.learning.PredictiveCoding(inference)
    net = network(data, width, depth, pc.parameterizations.MuPC(), seed)
    return {"depth": depth, **train(net, learning, 0.1, data, test, steps, seed)}


def by_depth(data, test, width: int, depths: list[int], steps: list[int], seed: int, say) -> list:
    """One epoch of muPC and of standard networks at each depth."""
    inference = pc.inference.GradientDescent(optax.sgd(STEP_SIZE), num_steps=5)
    learning = pc.learning.PredictiveCoding(pc.inference.ErrorCoordinates(inference))
    kinds = {"mupc": pc.parameterizations.MuPC(), "standard": pc.parameterizations.Standard()}
    records = []
    for depth, (name, kind) in itertools.product(depths, kinds.items()):
        rates = STANDARD_RATES
        if name == "mupc":
            rates = (kind.adam_learning_rate(BASE_RATE, width=width, depth=depth),)
        tried = []
        for rate in rates:
            schedule = optax.cosine_decay_schedule(rate, steps[-1])
            net = network(data, width, depth, kind, seed)
            found = train(net, learning, schedule, data, test, steps, seed)
            tried.append({"depth": depth, "parameterization": name, "rate": rate, **found})
        sound = [record for record in tried if "loss" in record]
        best = min(sound, key=lambda record: record["loss"]) if sound else tried[-1]
        records.append(best)
        last = f"{best['accuracy'][-1]:.2f} %" if best["accuracy"] else "no number"
        say(
            f"{depth:4d} layers, {name:8s} rate {best['rate']:.4f}: {last} after {steps[-1]} batches, "
            f"{best['seconds']} s" + (f" ({best['failed']})" if "failed" in best else "")
        )
    return records


def figure(records: list[dict]) -> Figure:
    """Accuracy by batch, and the gradient's alignment with backpropagation's by layer."""
    depths = sorted({record["depth"] for record in records})
    colours = {depth: f"C{number}" for number, depth in enumerate(depths)}
    page = Figure(figsize=(11, 4), layout="constrained")
    left, right = page.subplots(1, 2)
    for record in records:
        mupc = record["parameterization"] == "mupc"
        style = {"color": colours[record["depth"]], "linestyle": "-" if mupc else ":"}
        label = f"{record['depth']} layers, {record['parameterization']}"
        count = len(record["accuracy"])
        left.plot(record["steps"][:count], record["accuracy"], marker="o", label=label, **style)
        if mupc and "alignment_end" in record:
            place = np.linspace(0, 1, len(record["alignment_end"]))
            right.plot(place, record["alignment_end"], label=f"{label}, at the end", **style)
            style["linestyle"] = "--"
            right.plot(place, record["alignment_start"], label=f"{label}, at the start", **style)
    left.set(xlabel="batches", ylabel="test accuracy (%)")
    right.set(xlabel="layer, first to last", ylabel="cosine with backpropagation's", ylim=(0, 1.05))
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    return page


def main() -> None:
    """Train, print, write JSON and a figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", help="folder of prepared TFDS sets")
    parser.add_argument("--depths", type=read_count, nargs="+", default=[8, 32, 128])
    parser.add_argument("--width", type=read_count, default=128)
    parser.add_argument("--seed", type=read_index, default=0)
    parser.add_argument("--quick", action="store_true", help="digits and few layers, no file")
    parser.add_argument("--output", type=read_output, help="a JSON file; a PNG is put beside it")
    options = parser.parse_args()
    device = jax.devices()[0].device_kind
    path = output_of(parser, options, results_path("mupc_depth-mnist", device))
    console = Console()

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    name, steps, deep = "mnist", [100, 300, 600, 900], 30
    if options.quick:
        name, steps, deep, options.depths, options.width = "digits", [20, 60], 4, [3, 6], 16
    where = {"data_dir": options.data_dir}
    data = pc.data.load(name, batch_size=64, seed=options.seed, **where)
    test = pc.data.load(name, split="test", batch_size=360 if options.quick else 500, **where)
    thirty = published(data, test, options.width, deep, steps, options.seed)
    say(
        f"{deep} layers as published: {thirty['accuracy']} % after {steps} batches, "
        f"{thirty['seconds']} s"
    )
    epoch = steps if options.quick else [*steps, data.num_batches]
    records = by_depth(data, test, options.width, options.depths, epoch, options.seed, say)
    page = figure(records)
    if path is None:
        return
    result = {
        "device": device,
        "versions": recipes.versions(),
        "width": options.width,
        "seed": options.seed,
        "published": thirty,
        "by_depth": records,
    }
    write_results(result, path)
    page.savefig(path.with_suffix(".png"), dpi=110)
    say(f"written to {path} and {path.with_suffix('.png').name}")


if __name__ == "__main__":
    run_main(main)
