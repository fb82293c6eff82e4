"""A causal transformer on the characters of a text, by predictive coding and by backpropagation.

    python scripts/transformer_text.py --data text:tiny_shakespeare.txt      (about 7 minutes, 2 CPU cores)
    python scripts/transformer_text.py --quick                     (a made-up text, small, a few steps)

2 blocks of width 64 with 4 heads (112,577 parameters), 64 characters of context, 600 batches of 16, Adam at
3e-3 with warm-up and a cosine; the same start, order and optimizer for every rule. Inference is 8 steps of
gradient descent on the activities, or on the errors; of two step sizes each, the better one on a part of
the training text is chosen. One seed. Tiny Shakespeare, on its last tenth:

    |                                   | perplexity | lowest cosine of a layer with backpropagation |
    | unigrams, bigrams of the text     | 28.4, 12.2 |                                               |
    | predictive coding, activities     |      10.43 | 0.97 at the start, 0.43 at the end            |
    | predictive coding, errors         |      10.00 | 1.00 throughout                               |
    | backpropagation                   |       9.99 | 1                                             |

So what is chosen in errors is backpropagation under another name: 8 steps of 0.001 from the feedforward
start go along its delta, and no further. In activities it is predictive coding, which is a little behind.
The larger steps (0.1 and 0.005) are as good for 200 batches; later they are too large for the weights that
have grown, and the perplexity goes up to 16 and 24. The cosine is by layer because Adam undoes the length
of a layer's gradient, which in predictive coding is shorter the further the layer is from the output.
Embeddings have variance 1 here: with the default of 1/width the first layers get next to no credit by
the smaller step in activities (cosines near 0 after 60 batches), and the steps in errors diverge.
"""

import argparse
import functools
import os
import pathlib
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

import pcflax as pc
from pcflax import recipes
from pcflax.plotting.lines import draw_layers

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from benchmarks.options import read_count, read_index, read_output, run_main
from benchmarks.records import write_results


def descent(step_size: float, num_steps: int) -> pc.inference.GradientDescent:
    """Gradient descent on the free activities, or errors, of each example."""
    return pc.inference.GradientDescent(step_size, num_steps=num_steps)


CANDIDATES = {
    "activities": {"8 x 0.1": descent(0.1, 8), "8 x 0.03": descent(0.03, 8)},
    "errors": {
        "8 x 0.005": pc.inference.ErrorCoordinates(descent(0.005, 8)),
        "8 x 0.001": pc.inference.ErrorCoordinates(descent(0.001, 8)),
    },
}
LEARNING_RATE, TEMPERATURE = 3e-3, 0.8


def load(options: argparse.Namespace) -> dict[str, pc.data.Dataset]:
    """Windows of the text: nine tenths train, their last twentieth for choosing, one tenth test."""
    splits = {"train": "train[:95%]", "validation": "train[95%:]", "test": "test"}
    return {
        role: pc.data.load(
            options.data,
            split=split,
            batch_size=options.batch_size,
            shuffle=role == "train",
            sequence_length=options.length,
        )
        for role, split in splits.items()
    }


def unigram_perplexity(train: np.ndarray, test: np.ndarray, num_tokens: int) -> float:
    """Mean of -log p(token), as a perplexity: frequencies of the training text, one added to each count."""
    counts = np.bincount(train, minlength=num_tokens) + 1.0
    return float(np.exp(-np.mean(np.log(counts / counts.sum())[test])))


def bigram_perplexity(train: np.ndarray, test: np.ndarray, num_tokens: int) -> float:
    """The same of -log p(token | the token before)."""
    counts = np.ones((num_tokens, num_tokens))
    np.add.at(counts, (train[:-1], train[1:]), 1.0)
    logs = np.log(counts / counts.sum(axis=1, keepdims=True))
    return float(np.exp(-np.mean(logs[test[:-1], test[1:]])))


@functools.partial(jax.jit, static_argnames="num_tokens")
def sample(network, window: jax.Array, key: jax.Array, *, num_tokens: int, temperature: float):
    """Tokens (num_tokens,) drawn one after the other, each from softmax(logits/temperature).

    The network always sees a full window (length,) of what came last.
    """

    def draw(window, key):
        logits = network.bind().predict(window[None])[0, -1]
        token = jax.random.categorical(key, logits / temperature)
        return jnp.append(window[1:], token), token

    return jax.lax.scan(draw, window, jax.random.split(key, num_tokens))[1]


def build_trainer(data: dict, rule, options: argparse.Namespace, callbacks=()) -> pc.Trainer:
    """The same network, optimizer and seed for every rule."""
    network = pc.models.transformer(
        data["train"].num_classes,
        options.length,
        options.features,
        num_heads=4,
        num_blocks=2,
        rngs=nnx.Rngs(options.seed),
    )
    embedding = network.layer("embedding")
    for table in (embedding.embedding, embedding.positions):
        # variance 1: a norm divides by what is below it, so that small activities are steep to infer
        table.embedding.set_value(table.embedding[...] * options.features**0.5)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, LEARNING_RATE, max(options.num_steps // 10, 1), options.num_steps, LEARNING_RATE / 10
    )
    return pc.Trainer(
        network,
        optax.adam(schedule),
        learning=rule,
        callbacks=callbacks,
        seed=options.seed,
        progress=False,
    )


def cosines(
    trainer: pc.Trainer, data: dict, rule: pc.learning.AbstractLearning
) -> dict[str, float]:
    """Of the rule's weight gradient with backpropagation's, on the first validation batch."""
    inputs, targets = next(iter(data["validation"]))
    credit = pc.analysis.gradient_alignment(trainer.network, inputs, targets, learning=rule)
    return {name: round(value, 4) for name, value in credit.cosine.items()}


def lowest(cosine: dict[str, float]) -> str:
    """The layer whose gradient is least like backpropagation's; Adam undoes a layer's length."""
    layer = min((name for name in cosine if name != "total"), key=cosine.__getitem__)
    return f"{cosine[layer]:.2f} ({layer})"


class Alignment(pc.Callback):
    """The cosines at every evaluation."""

    def __init__(self, data: dict, rule: pc.learning.AbstractLearning):
        self.data, self.rule = data, rule
        self.steps: list[int] = []
        self.cosines: list[dict[str, float]] = []

    def on_evaluate(self, trainer, step, metrics):
        """Measure them at the weights of this step."""
        del metrics
        self.steps.append(step)
        self.cosines.append(cosines(trainer, self.data, self.rule))


def run(rule: pc.learning.AbstractLearning, data: dict, options: argparse.Namespace) -> dict:
    """Train once: test perplexity and cosines by step, validation, and text before and after."""
    alignment = Alignment(data, rule)
    trainer = build_trainer(data, rule, options, [alignment])
    prompt = jnp.asarray(data["test"].tokens[: options.length], jnp.int32)

    def continuation() -> str:
        network = pc.networks.split(trainer.network)
        key = jax.random.key(options.seed)
        tokens = sample(network, prompt, key, num_tokens=options.sample, temperature=TEMPERATURE)
        return data["test"].decode(tokens)

    before, first = continuation(), trainer.evaluate(data["test"])["perplexity"]
    alignment.on_evaluate(trainer, 0, {})
    begin = time.perf_counter()
    every = max(options.num_steps // options.evaluations, 1)
    history = trainer.fit(
        data["train"],
        num_steps=options.num_steps,
        eval_data=data["test"],
        eval_every=every,
        log_every=every,
    )
    seconds = time.perf_counter() - begin
    return {
        "steps": alignment.steps,
        "perplexity": [round(value, 3) for value in [first, *history["eval/perplexity"]]],
        "cosine": alignment.cosines,
        "validation": trainer.evaluate(data["validation"])["perplexity"],
        "seconds": round(seconds, 1),
        "before": before,
        "after": continuation(),
    }


def figure(results: dict) -> Figure:
    """Test perplexity by step, what was not chosen in thin lines; cosines by layer of what was."""
    runs, chosen = results["runs"], results["chosen"]
    page = Figure(figsize=(4.8 * (1 + len(chosen)), 3.8), layout="constrained")
    perplexity, *cosine = page.subplots(1, 1 + len(chosen))
    for name, one in runs.items():
        kind = name.split(",")[0]
        color = {"activities": "C0", "errors": "C1"}.get(kind, "black")
        width = 1.5 if name == chosen.get(kind, name) else 0.5
        perplexity.plot(
            one["steps"], one["perplexity"], color=color, linewidth=width, marker=".", label=name
        )
    for name, style in (("unigram", ":"), ("bigram", "--")):
        perplexity.axhline(results["references"][name], color="0.5", linestyle=style, label=name)
    perplexity.set(xlabel="step", yscale="log")
    perplexity.set_title("test perplexity", fontsize="medium")
    perplexity.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    perplexity.yaxis.set_major_formatter("{x:g}")
    perplexity.yaxis.set_minor_formatter(NullFormatter())
    perplexity.grid(alpha=0.3)
    perplexity.legend(frameon=False, fontsize="small")
    for axis, name in zip(cosine, chosen.values(), strict=True):
        steps, rows = np.asarray(runs[name]["steps"]), runs[name]["cosine"]
        layers = [layer for layer in rows[0] if layer != "total"]
        lines = {layer: (steps, np.array([row[layer] for row in rows])) for layer in layers}
        draw_layers(axis, lines)
        lowest_ever = min(values.min() for _, values in lines.values())
        axis.set(xlabel="step", ylim=(min(0.0, lowest_ever), 1.05))
        axis.set_title(f"cosine with backpropagation: {name}", fontsize="medium")
    return page


def made_up_text(folder: str) -> str:
    """A file of random words, as an option for `--data`."""
    random = np.random.RandomState(0)
    words = ["the", "king", "of", "rome", "and", "his", "men", "are", "gone."]
    path = pathlib.Path(folder, "made_up.txt")
    path.write_text(" ".join(random.choice(words, 2000)))
    return f"text:{path}"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options, with what --quick sets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    text = os.environ.get("PCFLAX_TEXT")
    parser.add_argument(
        "--data",
        default=f"text:{text}" if text else None,
        help="text:PATH; of the file that PCFLAX_TEXT names unless given",
    )
    parser.add_argument(
        "--num-steps", type=read_count, default=600, help="of training, for every rule"
    )
    parser.add_argument("--batch-size", type=read_count, default=16)
    parser.add_argument("--seed", type=read_index, default=0, help="of weights, order and samples")
    parser.add_argument("--sample", type=read_count, default=240, help="characters to draw")
    parser.add_argument("--output", type=read_output, help="a JSON file; a PNG is put beside it")
    parser.add_argument("--quick", action="store_true", help="a made-up text, small, a few steps")
    options = parser.parse_args(arguments)
    options.length, options.features, options.evaluations = 64, 64, 10
    if options.quick:
        options.length, options.features, options.evaluations = 16, 16, 2
        options.sample = 40
        options.num_steps = 40
    elif options.data is None:
        parser.error("give --data text:PATH, set PCFLAX_TEXT to a path, or ask for --quick")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Train by every rule, choose by validation, print, and write JSON and PNG."""
    options = parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        if options.quick:
            options.data = made_up_text(folder)
        data = load(options)
    num_tokens = data["train"].num_classes
    tokens = data["train"].tokens.astype(np.int64), data["test"].tokens.astype(np.int64)
    results: dict = {
        "data": data["train"].name,
        "num_tokens": num_tokens,
        "num_steps": options.num_steps,
        "batch_size": options.batch_size,
        "seed": options.seed,
        "device": jax.devices()[0].device_kind,
        "versions": recipes.versions(),
        "references": {
            "unigram": unigram_perplexity(*tokens, num_tokens),
            "bigram": bigram_perplexity(*tokens, num_tokens),
        },
    }
    for name, value in results["references"].items():
        print(f"{name} perplexity of the test text {value:.2f}")
    kinds = list(CANDIDATES)[: 1 if options.quick else None]
    rules: dict = {
        f"{kind}, {name}": pc.learning.PredictiveCoding(inference)
        for kind in kinds
        for name, inference in CANDIDATES[kind].items()
    } | {"backpropagation": pc.learning.Backprop()}
    print(f"{'perplexity, at the end:':23} {'validation':>10} {'test':>6} {'s':>6}  lowest cosine")
    runs = results["runs"] = {}
    for name, rule in rules.items():
        one = runs[name] = run(rule, data, options)
        first, last = lowest(one["cosine"][0]), lowest(one["cosine"][-1])
        print(
            f"{name:23} {one['validation']:10.2f} {one['perplexity'][-1]:6.2f} {one['seconds']:6}  "
            f"{first} to {last}",
            flush=True,
        )
    chosen = results["chosen"] = {
        kind: min(
            (name for name in runs if name.startswith(kind)), key=lambda n: runs[n]["validation"]
        )
        for kind in kinds
    }
    told = [*chosen.values(), "backpropagation"]
    print(f"chosen by validation: {'; '.join(chosen.values())}. Test perplexity by step:")
    for name in told:
        print(f"{name:23} {' '.join(f'{value:.2f}' for value in runs[name]['perplexity'])}")
    prompt = data["test"].decode(data["test"].tokens[: options.length])
    print(f"--- prompt\n{prompt}\n--- untrained\n{runs[told[-1]]['before']}")
    for name in told:
        print(f"--- {name}\n{runs[name]['after']}")
    if options.output:
        write_results(results, options.output)
        figure(results).savefig(options.output.with_suffix(".png"), dpi=150)


if __name__ == "__main__":
    run_main(main)
