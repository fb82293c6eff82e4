"""`pcflax inspect RUN`: what a checkpoint holds, without building the network."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

import pcflax as pc
from pcflax.training.loggers import plain_console
from pcflax.training.plain_json import dumps

from .build import load_data, rebuilt
from .options import read_run
from .tables import show_table
from .verbs import InspectOptions


def inspect(options: InspectOptions) -> None:
    """Print step, metrics, shapes, and the digest of parameters and optimizer state."""
    if options.health:
        show_health(options)
        return
    if options.summary:
        show_summary(options)
        return
    stored = pc.load_checkpoint(options.run, step=options.step, best=options.best)
    parameters = stored.sections["parameters"]
    if options.json:
        record = {
            "step": stored.step,
            "metrics": stored.metrics,
            "parameters": {name: list(array.shape) for name, array in parameters.items()},
            "digest": stored.digest(),
            "checkpoint": str(stored.path),
            "versions": stored.meta["versions"],
        }
        print(dumps(record))
        return
    show_table(
        f"parameters at step {stored.step}",
        ("path ", "shape", "dtype", "mean", "std"),
        (
            (name, str(x.shape), str(x.dtype), f"{x.mean():.4g}", f"{x.std():.4g}")
            for name, x in parameters.items()
        ),
    )
    metrics = ((name, f"{value:.4g}") for name, value in stored.metrics.items())
    show_table("metrics", ("name ", "value"), metrics)
    console = plain_console()
    count = sum(int(np.size(array)) for array in parameters.values())
    console.print(f"{count:,} parameters")
    console.print(f"digest      {stored.digest()}", soft_wrap=True)
    console.print(f"checkpoint  {stored.path}", soft_wrap=True)


def show_summary(options: InspectOptions) -> None:
    """Print the layers and what they cost, for a batch as the run trains on."""
    run = read_run(options.run, data_dir=options.data_dir)
    data = load_data(run, "train")
    trainer = rebuilt(run, data, options.run)
    learning, inputs = trainer.learning, next(iter(data)).inputs
    found = trainer.network.summary(
        inputs,
        batch_size=data.batch_size if inputs is None else None,  # of a generator from a code
        inference=getattr(learning, "inference", None),
        learning=learning,
    )
    if options.json:
        print(dumps(_plain(found)))
    else:
        plain_console().print(found)


# Enough examples for a verdict, few enough for seconds.
_EXAMPLES = 64


def measure_health(trainer: pc.Trainer, data: pc.data.Dataset) -> tuple[int, pc.analysis.Health]:
    """Return how many training examples were looked at, and what was found."""
    count = min(_EXAMPLES, data.num_examples)
    data.batch_size = count
    batch = next(iter(data))
    assert batch.targets is not None  # `load` always gives targets
    return count, pc.analysis.health(
        trainer.network,
        batch.inputs,
        batch.targets,
        learning=trainer.learning,
        optimizer=trainer.optimizer,
    )


HEALTH_COLUMNS = (
    *("layer ", "alignment", "displacement", "gradient", "closed", "energy", "dead", "saturated"),
    " ",
)
HEALTH_WORDS = (
    "alignment: cosine of the weight gradient with backpropagation's; displacement: of what the "
    "optimizer adds to the weights in 20 updates; gradient: its norm; closed: how far inference takes "
    "the layer's energy from the start to the equilibrium; energy: its share where inference ended"
)


def health_rows(found: pc.analysis.Health) -> list[tuple[str, ...]]:
    """Return a row a layer, of what `HEALTH_COLUMNS` names."""
    inference = found.inference
    rows = []
    for name in found.sentences:
        share, closed = None, None
        if inference is not None:
            share, closed = inference.energy_share[name], inference.layer_gap_closed[name]
        numbers = (
            (found.credit.cosine.get(name), ".3f"),
            ((found.displacement or {}).get(name), ".3f"),
            (found.credit.norm.get(name), ".2e"),
            (closed, ".1%"),
            (share, ".1%"),
            (found.dead[name], ".0%"),
            (found.saturated.get(name), ".0%"),
        )
        rows.append((name, *(_cell(*number) for number in numbers), found.sentences[name]))
    return rows


def show_health(options: InspectOptions) -> None:
    """Print what each layer does, and a sentence about it."""
    run = read_run(options.run, data_dir=options.data_dir)
    data = load_data(run, "train")
    trainer = rebuilt(run, data, options.run)
    step = trainer.restore(options.step, best=options.best)
    examples, found = measure_health(trainer, data)
    inference = found.inference
    if options.json:
        print(dumps({"step": step, **_plain(found)}))
        return
    show_table(
        f"health at step {step}, on {examples} training examples",
        HEALTH_COLUMNS,
        health_rows(found),
    )
    console = plain_console()
    console.print(
        HEALTH_WORDS,
        style="dim",
    )
    if inference is not None:
        console.print(
            f"energy {inference.start_energy:.4g} at the start, {inference.energy:.4g} where inference "
            f"ended, {inference.equilibrium_energy:.4g} at the equilibrium; residual "
            f"{inference.residual:.2e}" + _edge(inference.stability)
        )
    console.print(found.summary, style="bold", soft_wrap=True)


def _plain(value: Any) -> Any:
    """Return nested dicts in the place of named tuples and other records."""
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if dataclasses.is_dataclass(value):
        return _plain(vars(value))
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _cell(value: float | None, form: str) -> str:
    return "" if value is None or value != value else format(value, form)


def _edge(stability: float) -> str:
    return (
        "" if stability != stability else f"; step size {stability:.0%} of the largest stable one"
    )
