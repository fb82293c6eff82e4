"""The transformer of transformer_text.py at step sizes over two decades, with their guard and without.

    python scripts/guarded_transformer.py --data text:tiny_shakespeare.txt     (about 15 minutes, 2 CPU cores)
    python scripts/guarded_transformer.py --quick                     (a made-up text, small, a few steps)

Predictive coding on errors, 8 steps a batch, 600 batches, one seed. For each step size the test
perplexity at every 60 batches, and how far the last is above the run's own best. The answers are the
worst of each kind: held at a two hundredth of the largest stable step (`_excess`), held at half of it, as
a guard does unless told (`_default`), and not held (`_unguarded`). What collapses is not inference: 0.005
is a thirtieth of the largest stable step where it begins. Weights that make the output more sensitive to
errors lower the energy where inference ends, the more so the further it goes along the steepest
direction, and so the curvature grows, and the loss of the feedforward pass with it. At a two hundredth, 8
steps go about a tenth of the way. At half of it inference is stable, and the run can still collapse.
"""

import argparse
import math
import os
import pathlib
import sys
import tempfile

import pcflax as pc

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from benchmarks.answers import answer_parser, record_answer
from benchmarks.options import run_main
from scripts import transformer_text as text

RATES = (0.001, 0.01, 0.1)
UNGUARDED = 0.005  # the step size whose run collapses
SAFETY = 0.005


def rule(rate: float, **guards) -> pc.learning.PredictiveCoding:
    """Eight steps of this size on the errors of each example."""
    descent = pc.inference.GradientDescent(rate, num_steps=8, **guards)
    return pc.learning.PredictiveCoding(pc.inference.ErrorCoordinates(descent))


def perplexities(
    learning: pc.learning.AbstractLearning, data: dict, options: argparse.Namespace
) -> list[float]:
    """Of the test text at every evaluation; infinite at the end of a run that cannot go on."""
    trainer = text.build_trainer(data, learning, options)
    every = max(options.num_steps // options.evaluations, 1)
    broken = []
    try:
        trainer.fit(
            data["train"],
            num_steps=options.num_steps,
            eval_data=data["test"],
            eval_every=every,
            log_every=every,
        )
    except pc.errors.NonFiniteEnergyError as error:
        print(error)
        broken = [math.inf]
    return [*trainer.history["eval/perplexity"], *broken]


def excess(values: list[float]) -> float:
    """How far the end is above the run's own best, in %."""
    return 100 * (values[-1] / min(values) - 1)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options, with those of transformer_text.py that its parts read."""
    parser = answer_parser(__doc__, quick="a made-up text, small, a few steps", seeds=1, data=False)
    path = os.environ.get("PCFLAX_TEXT")
    parser.add_argument("--data", default=f"text:{path}" if path else None, help="text:PATH")
    options = parser.parse_args(arguments)
    if options.data is None and not options.quick:
        parser.error("give --data text:PATH, set PCFLAX_TEXT to a path, or ask for --quick")
    same = ["--quick"] if options.quick else ["--data", options.data]
    options = argparse.Namespace(**(vars(text.parse(same)) | vars(options)))
    if options.quick:
        options.num_steps = 10
    return options


def main(arguments: list[str] | None = None) -> None:
    """Train at every step size, print the perplexities, and record the worst excess of each seed."""
    options = parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        if options.quick:
            options.data = text.made_up_text(folder)
        data = text.load(options)
    ways = {
        "excess": (RATES, {"guard": "clip", "safety": SAFETY}),
        "default": ((*RATES, UNGUARDED), {"guard": "clip"}),
        "unguarded": ((UNGUARDED,), {}),
    }
    worst: dict[str, list[float]] = {way: [] for way in ways}
    for seed in range(options.seeds):
        options.seed = seed
        for way, (rates, guards) in ways.items():
            found = []
            for rate in rates:
                values = perplexities(rule(rate, **guards), data, options)
                found.append(excess(values))
                told = " ".join(f"{value:.2f}" for value in values)
                held = ", ".join(f"{name}={value}" for name, value in guards.items()) or "not held"
                print(
                    f"seed {seed}, step size {rate:g}, {held}: {told}  ({found[-1]:+.1f} %)",
                    flush=True,
                )
            worst[way].append(max(found))
    for way, values in worst.items():
        record_answer(
            f"guarded_transformer_{way}",
            values,
            unit="%",
            command="python scripts/guarded_transformer.py",
            kind="depth",
            path=options.output,
        )


if __name__ == "__main__":
    run_main(main)
