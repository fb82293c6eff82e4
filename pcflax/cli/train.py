"""`pcflax train`: train a network and leave a run folder with checkpoints, metrics and a figure."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import re
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.text import Text

import pcflax as pc
from pcflax.data.sources.catalogue import is_tfds
from pcflax.plotting import alignment_figure, training_figure
from pcflax.plotting.lines import plain
from pcflax.training.checkpoints.disk import replacing, telling
from pcflax.training.loggers import plain_console

from .beginning import begin, checkpoint_in
from .build import build_trainer, inferred_energies, load_data, metrics_callbacks
from .checking import check_resumable
from .options import (
    TrainOptions,
    config_path,
    read_config,
    write_config,
)
from .profile import TraceUpdates, show_profile
from .tables import show_table
from .usage import UsageError


def train(options: TrainOptions) -> dict[str, Any]:
    """Train, print the table of accuracies, and name the checkpoint and the figure; return the same."""
    console = plain_console()
    if options.resume:
        if options.run_dir is None:
            raise UsageError("--resume needs to know which run: add --run-dir RUN")
        stored = read_config(options.run_dir)
        check_resumable(stored, options)
        options = dataclasses.replace(options, begin_from=stored.begin_from)
    elif options.run_dir is not None:
        _refuse_run(options.run_dir)
    if options.begin_from is not None and not options.resume:
        options = dataclasses.replace(options, begin_from=checkpoint_in(options.begin_from))
    data, test = load_data(options, "train"), load_data(options, "test", batch_size=500)
    watched = load_data(options, "validation", batch_size=500) if options.validation else test
    run_dir = options.run_dir or new_run_dir(options)
    try:
        trainer = _trainer(options, data, run_dir, console, begins=not options.resume)
        if options.resume and not _restore(trainer, console):
            trainer = _trainer(options, data, run_dir, console, begins=True)
        trainer.check_data(test, "test data")
        trainer.check_data(watched, "validation data")
        if trainer.step < options.num_steps:
            _claim(trainer, run_dir, options)
    except BaseException:
        if options.run_dir is None:
            with contextlib.suppress(OSError):  # it holds something already
                run_dir.rmdir()
        raise
    told = f" ({data.num_examples:,} examples) on {jax.local_devices()[0].device_kind}, run folder {run_dir}"
    console.print(Text.assemble((data.name, "bold"), told), soft_wrap=True)
    if trainer.step < options.num_steps:
        trainer.fit(
            data, num_steps=options.num_steps, eval_data=watched, eval_every=options.eval_every
        )
    else:
        console.print(f"nothing to do: all {options.num_steps} steps are done")
    figure_path = run_dir / "training.png"
    figure = _figure(trainer, options, data)
    with replacing(figure_path) as file:
        figure.savefig(file, dpi=110)
    _show_evaluations(trainer.history, watched.name)
    history = trainer.history
    found: dict[str, Any] = {"step": trainer.step, "run": str(run_dir)}
    found["metrics"] = {name: history[name][-1] for name in history.names()}
    if watched is not test:
        found["test"] = trainer.evaluate(test)
        told = ", ".join(f"{name} {value:.4f}" for name, value in found["test"].items())
        console.print(f"test split  {told} ({test.num_examples:,} examples)", soft_wrap=True)
    checkpoint = trainer.checkpoints.latest_good()  # type: ignore[union-attr]
    found |= {"checkpoint": str(checkpoint), "figure": str(figure_path)}
    console.print(f"checkpoint  {checkpoint}", soft_wrap=True)
    console.print(f"figure      {figure_path}", soft_wrap=True)
    if options.profile is not None:
        show_profile(trainer, data, run_dir / "profile")
        console.print(f"profile     {run_dir / 'profile'}", soft_wrap=True)
    if alignment := curves_of(trainer.history, "health/alignment"):
        health_path = run_dir / "alignment.png"
        title = f"{trainer.step} steps"
        with replacing(health_path) as file:
            alignment_figure(alignment, title=title).savefig(file, dpi=110)
        console.print(f"alignment   {health_path}", soft_wrap=True)
    return found


def _trainer(
    options: TrainOptions, data: pc.data.Dataset, run_dir: Path, console: Console, *, begins: bool
) -> pc.Trainer:
    """Return the run's Trainer with its loggers."""
    loggers = [
        *metrics_callbacks(options, data, run_dir),
        pc.ConsoleLogger(console),
        pc.TensorBoardLogger(run_dir / "tensorboard"),
    ]
    if options.profile is not None:
        loggers.append(TraceUpdates(options.profile, run_dir / "profile", options.num_steps))
    path = options.begin_from if begins else None
    told = (
        None
        if path is None
        else lambda network: console.print(begin(network, path), soft_wrap=True)
    )
    return build_trainer(options, data, run_dir, loggers, begin=told)


def _refuse_run(run_dir: Path) -> None:
    if config_path(run_dir).exists():
        raise FileExistsError(
            f"the folder {run_dir} already holds a run; add --resume to go on with it, or choose "
            f"another --run-dir"
        )


def _claim(trainer: pc.Trainer, run_dir: Path, options: TrainOptions) -> None:
    """Write the options into the run folder, which from now on no other process trains in."""
    with telling(f"the run folder {run_dir}", "choose another --run-dir"):
        run_dir.mkdir(parents=True, exist_ok=True)
    checkpoints = trainer.checkpoints
    assert checkpoints is not None  # a run has them
    checkpoints.prepare()
    try:
        if not options.resume:
            _refuse_run(run_dir)  # of another process, which was faster
        write_config(run_dir, options)
    except BaseException:
        checkpoints.close()
        raise


def curves_of(history: pc.History, prefix: str) -> dict[str, tuple[list[int], list[float]]]:
    """Return {what follows the prefix: (steps, values)}; "total" is the one that is only the prefix."""
    return {
        name.removeprefix(prefix).removeprefix("/") or "total": (history.steps(name), history[name])
        for name in history.names()
        if name.startswith(prefix)
    }


def new_run_dir(options: TrainOptions, kind: str = "runs") -> Path:
    """Make a folder that no other run has, named after data and time."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    data = str(options.data)
    data = re.sub(r"\W+", "-", data) if is_tfds(data) else Path(data).stem
    name, number = f"{data}-{stamp}", 1
    while True:
        folder = Path(kind, name if number == 1 else f"{name}-{number}")
        told = telling(f"the run folder {folder}", "choose another --run-dir")
        with told, contextlib.suppress(FileExistsError):  # several may be started in this second
            folder.mkdir(parents=True)
            return folder
        number += 1


def _restore(trainer: pc.Trainer, console: Console) -> bool:
    """Go on from the newest checkpoint; return whether there is one."""
    try:
        step = trainer.restore()
    except FileNotFoundError:
        # The run was stopped before its first checkpoint: beginning again is exact, too.
        console.print("no checkpoint yet, so the run begins at step 0")
        return False
    console.print(f"restored step {step}")
    return True


def _show_evaluations(history: pc.History, measured: str) -> None:
    """Print a row an evaluation."""
    names = [name for name in history.names() if name.startswith("eval/")]
    names += [name for name in ("train/accuracy", "train/energy") if name in history.names()]
    latest: dict[str, float] = {}
    rows = []
    for row in history.rows:
        latest |= row
        if any(name.startswith("eval/") for name in row):
            cells = [f"{latest[name]:.4f}" if name in latest else "" for name in names]
            rows.append((str(row["step"]), *cells))
    title = f"accuracy and energy by step; eval is {measured}"
    show_table(title, ("step", *names), rows)


def _figure(trainer: pc.Trainer, options: TrainOptions, data: pc.data.Dataset):
    history, network = trainer.history, trainer.network
    energies = inferred_energies(options, network, next(iter(data)))
    kernel = getattr(getattr(network.layers[0], "linear", None), "kernel", None)

    def curves(*names: str) -> dict:
        measured = curves_of(history, "")
        return {name: measured[name] for name in names if name in measured}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # matplotlib builds its font cache on the first run
        return training_figure(
            accuracy=curves("eval/accuracy", "train/accuracy"),
            energy=curves("eval/energy", "train/loss", "train/energy"),
            inference=energies,
            weights=None if kernel is None or kernel.ndim != 2 else np.asarray(kernel[...]),
            title=plain(f"{data.name}, step {trainer.step}"),
        )
