"""`pcflax evaluate RUN`: measure a trained run."""

from __future__ import annotations

import dataclasses

from pcflax.training.plain_json import dumps

from .build import load_data, rebuilt
from .options import read_run
from .tables import show_table
from .verbs import EvaluateOptions


def evaluate(options: EvaluateOptions) -> None:
    """Restore the run's network and print its metrics on the data."""
    own = read_run(options.run, data_dir=options.data_dir, mesh=options.mesh)
    if options.data is not None and own.model == "transformer":
        raise ValueError(
            f"the run in {options.run} knows the characters of its own text only; leave out --data"
        )
    asked = dataclasses.replace(own, data=options.data or own.data)
    try:  # the network is sized for the run's own data, while they are there
        sized = load_data(own, "test", batch_size=options.batch_size)
    except FileNotFoundError as error:
        if options.data is None:
            raise FileNotFoundError(f"{error}; if the run's data have moved, add --data") from error
        sized = data = load_data(asked, options.split, batch_size=options.batch_size)
    else:
        data = sized
        if asked != own or options.split != "test":
            data = load_data(asked, options.split, batch_size=options.batch_size)
            known = sized.num_classes
            if known and data.num_classes and data.num_classes < known:  # the last do not occur
                data = load_data(
                    asked, options.split, batch_size=options.batch_size, num_classes=known
                )
    trainer = rebuilt(own, sized, options.run)
    step = trainer.restore(options.step, best=options.best)
    measured = trainer.evaluate(data)
    if options.json:
        print(dumps({"step": step, "data": data.name, **measured}))
        return
    title = f"{options.run} at step {step} on {data.name} ({data.num_examples:,} examples)"
    show_table(title, ("metric ", "value"), ((n, f"{v:.4f}") for n, v in measured.items()))
