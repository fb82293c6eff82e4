"""The transformer of transformer_text.py at step sizes over two decades, with their guard and without.

    python scripts/guarded_transformer.py --data text:tiny_shakespeare.txt     (about 10 minutes, 2 CPU cores)
    python scripts/guarded_transformer.py --quick                     (a made-up text, small, a few steps)

Predictive coding on errors, 8 steps a batch, 600 batches, one seed. For each step size the test
perplexity at every 60 batches, and how far the last is above the run's own best; the answer is the worst
of those that are held. What collapses is not inference: 0.005 is a thirtieth of the largest stable step
where it begins. Weights that make the output more sensitive to errors lower the energy where inference
ends, the more so the further it goes along the steepest direction, and so the curvature grows, and the
loss of the feedforward pass with it. Steps are therefore held at a two hundredth of the largest stable
one (safety=0.005), where 8 of them go about a tenth of the way. At half of it (safety=0.5) inference is
stable, and the step size 0.005 still ends 31 % above its best (12.0, then 15.7); 0.1 ends 1.4 % above,
but at 24.
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
    return argparse.Namespace(**(vars(text.parse(same)) | vars(options)))


def main(arguments: list[str] | None = None) -> None:
    """Train at every step size, print the perplexities, and record the worst excess of each seed."""
    options = parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        if options.quick:
            options.data = text.made_up_text(folder)
        data = text.load(options)
    rules = {f"{rate:g}, held": rule(rate, guard="clip", safety=SAFETY) for rate in RATES}
    rules[f"{UNGUARDED:g}, not held"] = rule(UNGUARDED)
    worst = []
    for seed in range(options.seeds):
        options.seed, found = seed, {}
        for name, learning in rules.items():
            values = perplexities(learning, data, options)
            found[name] = excess(values)
            told = " ".join(f"{value:.2f}" for value in values)
            print(
                f"seed {seed}, step size {name:16} {told}  ({found[name]:+.1f} %)",
                flush=True,
            )
        worst.append(max(value for name, value in found.items() if "not" not in name))
    if not options.quick or options.output:
        record_answer(
            "guarded_transformer_excess",
            worst,
            unit="%",
            command="python scripts/guarded_transformer.py",
            kind="depth",
            path=options.output,
        )


if __name__ == "__main__":
    main()
