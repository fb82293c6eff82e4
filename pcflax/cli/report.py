"""`pcflax report RUN`: one HTML file of what a run did, which can be sent, stored and read anywhere.

Next files to read: `panels.py`, the figures, and `page.py`, the page.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

import pcflax as pc
from pcflax import recipes
from pcflax.plotting import graph_figure
from pcflax.training.checkpoints.disk import replacing
from pcflax.training.plain_json import dumps

from .build import inferred_energies, load_data, rebuilt
from .command import command_of
from .inspect import HEALTH_COLUMNS, HEALTH_WORDS, health_rows, measure_health
from .options import (
    OF_THE_CALL,
    TrainOptions,
    absolute_data,
    config_path,
    flag,
    preset,
    read_config,
    words,
)
from .page import element, folded, page, panels, table
from .panels import bars_panel, curves_panel, figure_svg
from .train import curves_of
from .usage import UsageError
from .verbs import ReportOptions


def report(options: ReportOptions) -> None:
    """Restore the run, measure it, and write the page."""
    path = options.output or options.run / "report.html"
    if path.suffix not in (".html", ".htm"):
        raise UsageError(f"expected --output to end in .html, got {path}")
    stored = read_config(options.run)
    run = dataclasses.replace(stored, data_dir=options.data_dir or stored.data_dir)
    data, test = load_data(run, "train"), load_data(run, "test", batch_size=500)
    trainer = rebuilt(dataclasses.replace(run, mesh=None), data, options.run)
    step = trainer.restore(options.step, best=options.best)
    told = f"{data.num_examples:,} training examples, folder {options.run}"
    parts = [
        element("h1", f"{data.name}, {run.model}, step {step:,}"),
        element("p", told, "faint"),
        element("h2", f"Test split ({test.num_examples:,} examples)"),
        table(("metric ", "value"), ((n, f"{v:.4f}") for n, v in trainer.evaluate(test).items())),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # matplotlib builds its font cache on the first run
        parts += _network(trainer.network, next(iter(data)).inputs)
        parts += _training(trainer.history)
        parts += _inference(trainer, run, data)
        parts += _health(trainer, data) if options.health else []
    parts += _configuration(stored, options)
    text = page(f"pcflax: {options.run.absolute().name}", parts)
    with replacing(path, "choose another --output") as file:
        file.write_text(text, encoding="utf-8")
    print(dumps({"step": step, "report": str(path)}) if options.json else f"report  {path}")


def _network(network: pc.networks.AbstractPCNetwork, inputs: Any) -> Iterator[str]:
    """Yield the wiring, in its own size and colors."""
    figure = graph_figure(network, inputs)
    names = ", ".join(network.layer_names)
    svg = figure_svg(figure, f"wiring of the layers {names}", transparent=False)
    told = element("figcaption", "nodes and predictions, what is predicted above what it is from")
    yield element("h2", "Network")
    yield f'<figure style="max-width: {6 * figure.get_figwidth():.0f}rem">{svg}{told}</figure>'


def _training(history: pc.History) -> Iterator[str]:
    """Yield curves by step, a panel a metric; a metric of evaluations is beside that of training."""
    measured = curves_of(history, "")
    names = dict.fromkeys(name.removeprefix("eval/") for name in measured if "eval/" in name)
    figures = []
    for name in names:
        own = [f"eval/{name}", f"train/{name}", *(["train/loss"] if name == "energy" else [])]
        shown = {one: measured[one] for one in own if one in measured}
        svg = curves_panel(
            shown,
            label="energy an example (nats)" if name == "energy" else name.replace("_", " "),
            steps="step",
            log=name != "accuracy",
            top=1.0 if name == "accuracy" else None,
        )
        figures.append((svg, f"{name.replace('_', ' ')} by step of training"))
    if alignment := curves_of(history, "health/alignment"):
        svg = curves_panel(alignment, label="alignment", steps="step", top=1.02)
        figures.append((svg, "cosine with backpropagation's gradient by step of training"))
    yield element("h2", "Training")
    yield panels(figures) if figures else element("p", "Nothing was measured.", "faint")


def _inference(trainer: pc.Trainer, run: TrainOptions, data: pc.data.Dataset) -> Iterator[str]:
    if not hasattr(trainer.learning, "inference"):
        return  # backpropagation
    energies = inferred_energies(run, trainer.network, next(iter(data)))
    curves = {name: (list(range(len(e))), e.tolist()) for name, e in energies.items()}
    label = "energy an example (nats)"
    figures = [
        (
            curves_panel(curves, label=label, steps="inference step", log=True),
            "energy of each layer while activities are inferred, mean over a training batch; the scale "
            "is logarithmic where no energy is negative, and has no place for 0",
        )
    ]
    if len(curves) > 1:
        total = np.sum(list(energies.values()), axis=0).tolist()
        whole = {"total": (list(range(len(total))), total)}
        svg = curves_panel(whole, label="total energy (nats)", steps="inference step")
        figures.append((svg, "the same, summed over the layers"))
    yield element("h2", "Inference")
    yield panels(figures)


def _health(trainer: pc.Trainer, data: pc.data.Dataset) -> Iterator[str]:
    examples, found = measure_health(trainer, data)
    layers = list(found.sentences)
    cosines = {"alignment": found.credit.cosine} | (
        {"displacement": found.displacement} if found.displacement else {}
    )
    series: dict[str, dict[str, Any]] = {
        name: {layer: values.get(layer) for layer in layers} for name, values in cosines.items()
    }
    figures = [
        (bars_panel(series, label="cosine"), "with what backpropagation would do, layer by layer")
    ]
    if (inference := found.inference) is not None:
        shares = {"closed": inference.layer_gap_closed, "energy": inference.energy_share}
        svg = bars_panel(shares, label="share")
        figures.append(
            (svg, "of the energy gap that inference closes, and of the energy at its end")
        )
    yield element("h2", f"Health, on {examples} training examples")
    yield element("p", found.summary, "verdict")
    yield panels(figures)
    yield table(HEALTH_COLUMNS, health_rows(found))
    yield element("p", HEALTH_WORDS, "faint")


def _configuration(stored: TrainOptions, options: ReportOptions) -> Iterator[str]:
    """Yield options, versions and the line that trains so again."""
    defaults = preset(stored.preset, stored.model)
    names = [f.name for f in dataclasses.fields(TrainOptions) if f.name not in OF_THE_CALL]
    values = {name: getattr(stored, name) for name in names}
    rows = [(flag(n), "" if v is None else words(v)) for n, v in values.items()]
    chosen = [
        row for name, row in zip(names, rows, strict=True)
        if name in ("preset", "model", "data") or getattr(stored, name) != getattr(defaults, name)
    ]  # fmt: skip
    yield element("h2", "Command")
    yield element("pre", command_of(absolute_data(stored)))
    yield element("h2", "Configuration")
    yield table(("option ", "value "), chosen)
    yield folded("all options", table(("option ", "value "), rows))
    yield element("h2", "Versions")
    then = json.loads(config_path(options.run).read_text()).get("versions", {})
    now = recipes.versions()
    both = [(name, then.get(name, ""), now.get(name, "")) for name in {**then, **now}]
    yield table(("package ", "of the run ", "of this report "), both)
