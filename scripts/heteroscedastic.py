"""Noise that depends on the input: mean and precision both predicted, learned by predictive coding.

    python scripts/heteroscedastic.py     about 1 minute on 2 CPU cores, no data set needed

A network 1-64-64-(mean, log precision), tanh, on 10,000 points of y = sin(3x) + sd(x) noise with
sd(x) = 0.05 + 0.4 |x|, 2,000 batches of 100. Inference by point estimates lets hidden layers take over a part
of the output's error, and the noise learned is then too small; hidden layers of precision 10,000 leave them
nothing to take over, where the gradient is all but backpropagation's (its cosine is told). Settings were
chosen on seed 0; the answers are of seeds 1, 2 and 3: the correlation of predicted and true sd over x, at
least .98, and the mean of the predicted over that of the true one, within 20 % of 1. The figure has lower
precisions beside it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import pcflax as pc

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.answers import answer_parser, record_answer
from benchmarks.options import run_main
from benchmarks.records import RESULTS

GRID = np.linspace(-1, 1, 201, dtype=np.float32)[:, None]
PRECISIONS = (1.0, 100.0, 1000.0, 10_000.0)


def true_sd(x: np.ndarray) -> np.ndarray:
    """Return the noise's standard deviation at x."""
    return 0.05 + 0.4 * np.abs(x)


def draw(seed: int, num_examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw points of the regression."""
    random = np.random.default_rng(seed)
    x = random.uniform(-1, 1, (num_examples, 1)).astype(np.float32)
    noise = random.standard_normal(x.shape)
    return x, (np.sin(3 * x) + true_sd(x) * noise).astype(np.float32)


def train(
    seed: int, precision: float, num_steps: int, *, backprop: bool = False
) -> tuple[np.ndarray, np.ndarray, float]:
    """Train; return predicted means and standard deviations on the grid, and the cosine with backprop."""
    rngs = nnx.Rngs(seed)
    hidden = {
        f"h{number}": pc.PCDense(
            width, 64, activation=jnp.tanh, energy=pc.energies.Gaussian(precision), rngs=rngs
        )
        for number, width in ((1, 1), (2, 64))
    }
    output = pc.PCDense(64, 2, energy=pc.energies.Heteroscedastic(), rngs=rngs)
    network = pc.PCNetwork({**hidden, "y": output})
    # an error's gradient is its precision times itself: a step that fits every precision
    descent = pc.inference.GradientDescent(0.3 / precision, num_steps=10)
    rule = pc.learning.PredictiveCoding(pc.inference.ErrorCoordinates(descent))
    x, y = draw(seed, 5 * num_steps)
    trainer = pc.Trainer(
        network,
        optax.adam(optax.cosine_decay_schedule(3e-3, num_steps)),
        learning=pc.learning.Backprop() if backprop else rule,
        seed=seed,
        progress=False,
    )
    trainer.fit(pc.data.from_arrays(x, y, batch_size=100), num_steps=num_steps)
    credit = pc.analysis.gradient_alignment(network, x[:1000], y[:1000], learning=rule)
    mean, log_precision = output.energy.split(network.predict(jnp.asarray(GRID)))
    return np.asarray(mean), np.exp(-0.5 * np.asarray(log_precision)), credit.cosine["total"]


def score(sd: np.ndarray) -> tuple[float, float]:
    """Return the correlation of predicted and true sd, and the ratio of their means."""
    true = true_sd(GRID)
    return float(np.corrcoef(sd[:, 0], true[:, 0])[0, 1]), float(sd.mean() / true.mean())


def picture(fits: dict[str, tuple[np.ndarray, np.ndarray]], seed: int, path: Path) -> None:
    """Draw data with the last fit, and the sd of all fits by x."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    x, y = draw(seed, 1000)
    place, (mean, sd) = GRID[:, 0], list(fits.values())[-1]
    left.scatter(x, y, s=3, color="0.6", label="data")
    left.plot(place, mean[:, 0], color="C0", label="predicted mean")
    low, high = (mean - 2 * sd)[:, 0], (mean + 2 * sd)[:, 0]
    left.fill_between(place, low, high, color="C0", alpha=0.2, label="2 sd")
    left.set(xlabel="x", ylabel="y", title=list(fits)[-1])
    left.legend(loc="upper left")
    right.plot(place, true_sd(place), color="black", linestyle="--", label="true")
    for name, (_, sd) in fits.items():
        right.plot(place, sd[:, 0], label=name)
    right.set(xlabel="x", ylabel="predicted sd", ylim=(0, None))
    right.legend()
    figure.savefig(path, dpi=130)


def main() -> None:
    """Train a network a seed and, on the first seed, at lower precisions; write answers and figure."""
    options = answer_parser(__doc__, quick="50 batches", data=False).parse_args()
    num_steps = 50 if options.quick else 2000
    fits, correlations, scales = {}, [], []
    runs = [(1, precision, False) for precision in PRECISIONS[:-1]] + [(1, 1.0, True)]
    runs += [(seed, PRECISIONS[-1], False) for seed in range(1, options.seeds + 1)]
    for seed, precision, backprop in runs:
        name = "backpropagation" if backprop else f"hidden precision {precision:g}"
        mean, sd, cosine = train(seed, precision, num_steps, backprop=backprop)
        correlation, scale = score(sd)
        told = "" if backprop else f", cosine with backpropagation {cosine:.4f}"
        print(f"seed {seed}, {name}: correlation {correlation:.4f}, scale {scale:.3f}{told}")
        if seed == 1:
            fits[name] = mean, sd
        if precision == PRECISIONS[-1]:
            correlations.append(correlation)
            scales.append(scale)
    for answer, values in (
        ("heteroscedastic_correlation", correlations),
        ("heteroscedastic_scale", scales),
    ):
        command = "python scripts/heteroscedastic.py"
        path = record_answer(answer, values, unit="1", command=command, path=options.output)
    picture(fits, 1, (options.output or RESULTS / "x").parent / "heteroscedastic.png")
    print(f"wrote {path}")


if __name__ == "__main__":
    run_main(main)
