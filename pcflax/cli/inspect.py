"""`pcflax inspect RUN`: what a checkpoint holds, without building the network."""

from __future__ import annotations

import json

import numpy as np
from rich.console import Console
from rich.table import Table

import pcflax as pc

from .options import InspectOptions


def inspect(options: InspectOptions) -> None:
    """Print step, metrics, shapes, and the digest of parameters and optimizer state."""
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
        print(json.dumps(record))
        return
    console = Console()
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
    console.print(f"{count:,} parameters", highlight=False)
    console.print(f"digest      {stored.digest()}", soft_wrap=True, highlight=False)
    console.print(f"checkpoint  {stored.path}", soft_wrap=True, highlight=False)
