"""`pcflax train`: train a network and leave a run folder with checkpoints, metrics and a figure."""

from __future__ import annotations

import datetime
import warnings
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import pcflax as pc
from pcflax.plotting import alignment_figure, training_figure

from .build import build_inference, build_trainer, load_data
from .options import (
    TrainOptions,
    check_options,
    check_resumable,
    config_path,
    read_config,
    write_config,
)


def train(options: TrainOptions) -> None:
    """Train, print the table of accuracies, and name the checkpoint and the figure."""
    console = Console()
    check_options(options)
    if options.resume:
        if options.run_dir is None:
            raise ValueError("--resume needs to know which run: add --run-dir RUN")
        check_resumable(read_config(options.run_dir), options)
        run_dir = options.run_dir
    else:
        run_dir = options.run_dir or _new_run_dir(options)
        if config_path(run_dir).exists():
            raise FileExistsError(
                f"the folder {run_dir} already holds a run; add --resume to go on with it, or choose "
                f"another --run-dir"
            )
    data, test = load_data(options, "train"), load_data(options, "test", batch_size=500)
    monitor = []
    if options.health:
        batch = next(iter(data))
        monitor = [pc.analysis.HealthMonitor(batch.inputs, batch.targets)]
    trainer = build_trainer(
        options,
        data,
        run_dir,
        callbacks=[
            *monitor,
            pc.ConsoleLogger(console),
            pc.JSONLinesLogger(run_dir / "metrics.jsonl"),
            pc.TensorBoardLogger(run_dir / "tensorboard"),
        ],
    )
    trainer.check_data(test, "test data")
    if options.resume:
        _restore(trainer, console)
    if trainer.step < options.num_steps:
        write_config(run_dir, options)
    device = jax.local_devices()[0].device_kind
    console.print(
        f"[bold]{data.name}[/bold] ({data.num_examples:,} examples) on {device}, run folder {run_dir}",
        highlight=False,
    )
    if trainer.step < options.num_steps:
        trainer.fit(
            data, num_steps=options.num_steps, eval_data=test, eval_every=options.eval_every
        )
    else:
        console.print(f"nothing to do: all {options.num_steps} steps are done")
    figure_path = run_dir / "training.png"
    _figure(trainer, options, data).savefig(figure_path, dpi=110)
    console.print(_table(trainer))
    checkpoint = trainer.checkpoints.latest_good()  # type: ignore[union-attr]
    console.print(f"checkpoint  {checkpoint}", soft_wrap=True, highlight=False)
    console.print(f"figure      {figure_path}", soft_wrap=True, highlight=False)
    if any(name.startswith(_ALIGNMENT) for name in trainer.history.names()):
        health_path = run_dir / "alignment.png"
        _alignment_figure(trainer).savefig(health_path, dpi=110)
        console.print(f"alignment   {health_path}", soft_wrap=True, highlight=False)


_ALIGNMENT = "health/alignment"


def _alignment_figure(trainer: pc.Trainer):
    """How each layer's gradient stands to backpropagation's, over training."""
    history = trainer.history
    curves = {
        name.removeprefix(_ALIGNMENT).removeprefix("/") or "total": (
            history.steps(name),
            history[name],
        )
        for name in history.names()
        if name.startswith(_ALIGNMENT)
    }
    return alignment_figure(curves, title=f"{trainer.step} steps")


def _new_run_dir(options: TrainOptions) -> Path:
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{Path(options.data).stem}-{stamp}"


def _restore(trainer: pc.Trainer, console: Console) -> None:
    try:
        step = trainer.restore()
    except FileNotFoundError:
        # The run was stopped before its first checkpoint: beginning again is exact, too.
        console.print("no checkpoint yet, so the run begins at step 0")
        return
    console.print(f"restored step {step}")


def _table(trainer: pc.Trainer) -> Table:
    """A row an evaluation."""
    history = trainer.history
    names = [name for name in history.names() if name.startswith("eval/")]
    training = [name for name in ("train/accuracy", "train/energy") if name in history.names()]
    table = Table(title="accuracy and energy by step; eval is the test split")
    for column in ("step", *names, *training):
        table.add_column(column, justify="right")
    latest: dict[str, float] = {}
    for row in history.rows:
        latest.update(row)
        if any(name in row for name in names):
            cells = [
                f"{latest[name]:.4f}" if name in latest else "" for name in (*names, *training)
            ]
            table.add_row(str(row["step"]), *cells)
    return table


def _figure(trainer: pc.Trainer, options: TrainOptions, data: pc.data.Dataset):
    history, network = trainer.history, trainer.network
    batch = next(iter(data))
    trace = network.infer(
        batch.inputs,
        batch.targets,
        inference=build_inference(options),
        key=jax.random.key(options.seed),
        trace=True,
    ).trace
    kernel = getattr(getattr(network.layers[0], "linear", None), "kernel", None)

    def curves(*names: str) -> dict:
        return {
            name: (history.steps(name), history[name]) for name in names if name in history.names()
        }

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # matplotlib builds its font cache on the first run
        return training_figure(
            accuracy=curves("eval/accuracy", "train/accuracy"),
            energy=curves("eval/energy", "train/loss", "train/energy"),
            inference=network.by_node(
                {name: np.asarray(energy).mean(axis=1) for name, energy in trace.energies.items()}
            ),
            weights=None if kernel is None or kernel.ndim != 2 else np.asarray(kernel[...]),
            title=f"{data.name}, step {trainer.step}",
        )
