"""`pcflax evaluate RUN`: measure a trained run."""

from __future__ import annotations

import dataclasses
import json

from rich.console import Console
from rich.table import Table

from .build import build_trainer, load_data
from .options import EvaluateOptions, read_config


def evaluate(options: EvaluateOptions) -> None:
    """Restore the run's network and print its metrics on the data."""
    stored = read_config(options.run)
    data_dir = options.data_dir or stored.data_dir
    asked = dataclasses.replace(stored, data_dir=data_dir)
    own = load_data(asked, "test", batch_size=options.batch_size)
    trainer = build_trainer(stored, own, options.run)
    step = trainer.restore(options.step, best=options.best)
    if options.data is not None and stored.model == "transformer":
        raise ValueError(
            f"the run in {options.run} knows the characters of its own text only; leave out --data"
        )
    data = own
    if options.data is not None or options.split != "test":
        asked = dataclasses.replace(asked, data=options.data or stored.data)
        data = load_data(asked, options.split, batch_size=options.batch_size)
        known = own.num_classes
        if known and data.num_classes and data.num_classes < known:  # the file lacks the last ones
            data = load_data(asked, options.split, batch_size=options.batch_size, num_classes=known)
    measured = trainer.evaluate(data)
    if options.json:
        print(json.dumps({"step": step, "data": data.name, **measured}))
        return
    table = Table(
        title=f"{options.run} at step {step} on {data.name} ({data.num_examples:,} examples)"
    )
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in measured.items():
        table.add_row(name, f"{value:.4f}")
    Console().print(table)
