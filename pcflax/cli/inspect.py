"""`pcflax inspect RUN`: what a checkpoint holds, without building the network."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from rich.table import Table

import pcflax as pc
from pcflax.training.loggers import plain_console
from pcflax.training.plain_json import dumps

from .build import build_trainer, load_data
from .options import InspectOptions, read_config


def inspect(options: InspectOptions) -> None:
    """Print step, metrics, shapes, and the digest of parameters and optimizer state."""
    if options.health:
        show_health(options)
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
    console = plain_console()
    table = Table(title=f"parameters at step {stored.step}")
    for column in ("path", "shape", "dtype", "mean", "std"):
        table.add_column(column, justify="left" if column == "path" else "right")
    for name, array in parameters.items():
        table.add_row(
            name, str(array.shape), str(array.dtype), f"{array.mean():.4g}", f"{array.std():.4g}"
        )
    console.print(table)
    table = Table(title="metrics")
    table.add_column("name")
    table.add_column("value", justify="right")
    for name, value in stored.metrics.items():
        table.add_row(name, f"{value:.4g}")
    console.print(table)
    count = sum(int(np.size(array)) for array in parameters.values())
    console.print(f"{count:,} parameters")
    console.print(f"digest      {stored.digest()}", soft_wrap=True)
    console.print(f"checkpoint  {stored.path}", soft_wrap=True)


# Enough examples for a verdict, few enough for seconds.
_EXAMPLES = 64


def show_health(options: InspectOptions) -> None:
    """Print what each layer does, and a sentence about it."""
    run = read_config(options.run)
    run = dataclasses.replace(run, data_dir=options.data_dir or run.data_dir)
    data = load_data(run, "train")
    trainer = build_trainer(run, data, options.run)
    step = trainer.restore(options.step, best=options.best)
    data.batch_size = min(_EXAMPLES, data.num_examples)
    batch = next(iter(data))
    network, learning = trainer.network, trainer.learning
    assert batch.targets is not None  # `load` always gives targets
    found = pc.analysis.health(network, batch.inputs, batch.targets, learning=learning)
    inference = found.inference
    if options.json:
        print(dumps({"step": step, **_plain(found)}))
        return
    columns = ["layer", "alignment", "gradient", "energy", "dead", "saturated", ""]
    table = Table(title=f"health at step {step}, on {data.batch_size} training examples")
    for column in columns:
        table.add_column(column, justify="left" if column in ("layer", "") else "right")
    for name in network.nodes:
        share = None if inference is None else inference.energy_share[name]
        table.add_row(
            name,
            _cell(found.credit.cosine.get(name), ".3f"),
            _cell(found.credit.norm.get(name), ".2e"),
            _cell(share, ".1%"),
            _cell(found.dead[name], ".0%"),
            _cell(found.saturated.get(name), ".0%"),
            found.sentences[name],
        )
    console = plain_console()
    console.print(table)
    console.print(
        "alignment: cosine of the weight gradient with backpropagation's; gradient: its norm; energy: "
        "share of the energy where inference ended",
        style="dim",
    )
    if inference is not None:
        console.print(
            f"energy {inference.start_energy:.4g} at the start, {inference.energy:.4g} where inference "
            f"ended, {inference.equilibrium_energy:.4g} at the equilibrium; residual "
            f"{inference.residual:.2e}"
        )
    console.print(found.summary, style="bold")


def _plain(value: Any) -> Any:
    """Nested dicts in the place of named tuples."""
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _cell(value: float | None, form: str) -> str:
    return "" if value is None or value != value else format(value, form)
