"""`pcflax sweep`: many runs with other options, and the command line of the best."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.text import Text

import pcflax as pc
from pcflax.checks import did_you_mean
from pcflax.experiments import Outcome, Sweep, Trial
from pcflax.experiments.journal import load_optuna
from pcflax.plotting import sweep_figure
from pcflax.plotting.lines import plain
from pcflax.training.checkpoints.disk import replacing
from pcflax.training.loggers import plain_console

from .beginning import begin, checkpoint_in
from .build import best_metric, build_trainer, load_data, metrics_callbacks
from .checking import check_options
from .command import command_of
from .options import (
    OF_THE_CALL,
    TrainOptions,
    absolute_data,
    config_path,
    flag,
    read_config,
    words,
    write_config,
)
from .search import SearchedOption, drawn, parse_search
from .tables import show_table
from .train import new_run_dir
from .usage import UsageError
from .verbs import SweepOptions

# Rows of the table.
_BEST = 10
# What a sweep that is resumed may be told anew.
_MAY_CHANGE = ("trials", "data_dir", "mesh", *OF_THE_CALL)


def sweep(options: SweepOptions) -> dict[str, Any]:
    """Run the trials that are missing; print the best and the line that trains as it did, and return them."""
    load_optuna()
    console = plain_console()
    if options.profile is not None:
        raise UsageError("--profile traces one run; take pcflax train, or leave it out of a sweep")
    if not options.validation:
        raise UsageError(
            "a sweep chooses by the validation part, and --validation 0 leaves none but the test split, "
            "which would then measure nothing any more; give --validation 10"
        )
    if options.resume:
        options = _resumed(options)
    elif options.run_dir is not None and config_path(options.run_dir, SweepOptions).exists():
        raise FileExistsError(
            f"the folder {options.run_dir} already holds a sweep; add --resume to go on with it, or choose "
            f"another --run-dir"
        )
    own = {field.name: getattr(options, field.name) for field in dataclasses.fields(TrainOptions)}
    base = TrainOptions(**own | {"run_dir": None, "resume": False})
    searched = parse_search(options.search, base)
    if base.begin_from is not None and not options.resume:
        begun = {"begin_from": checkpoint_in(base.begin_from)}
        base, options = dataclasses.replace(base, **begun), dataclasses.replace(options, **begun)
    load = _loader()
    metric, mode = _check(options, base, searched, load)
    folder = options.run_dir or new_run_dir(base, "sweeps")
    try:
        write_config(folder, options)
    except BaseException:
        if options.run_dir is None:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    console.print(
        Text.assemble(
            (base.data, "bold"), f", {options.trials} trials by {metric}, sweep folder {folder}"
        ),
        soft_wrap=True,
    )
    found = pc.experiments.sweep(
        lambda trial: _train(trial, base, searched, load),
        {one.name: one.distribution() for one in searched},
        folder=folder,
        num_trials=options.trials,
        metric=metric,
        mode=mode,
        pruner=_pruner(options.pruner),
        cost=options.cost,
        cost_weight=options.cost_weight,
        seed=base.seed,
        on_trial=lambda outcome: console.print(_line(outcome, metric), soft_wrap=True),
    )
    best = drawn(base, searched, found.best.settings)
    _show(found, metric, searched)
    figure = _figure(found, options, metric, searched)
    with replacing(folder / "sweep.png") as file:
        figure.savefig(file, dpi=110)
    console.print(f"best        {found.best.folder}", soft_wrap=True)
    console.print(f"figure      {folder / 'sweep.png'}", soft_wrap=True)
    again = command_of(absolute_data(best))
    console.print(f"again       {again}", soft_wrap=True)
    trials = [{**vars(one), "folder": str(one.folder)} for one in found.outcomes]
    told = {"sweep": str(folder), "best": trials[found.best.number], "trials": trials}
    return {**told, "figure": str(folder / "sweep.png"), "again": again}


def _resumed(options: SweepOptions) -> SweepOptions:
    """Return the options of a resumed sweep, which is told nothing new but what may change."""
    if options.run_dir is None:
        raise UsageError("--resume needs to know which sweep: add --run-dir SWEEP")
    stored = read_config(options.run_dir, SweepOptions)
    begun, given = stored.begin_from, options.begin_from
    if begun and given and begun.is_relative_to(given.absolute()):
        options = dataclasses.replace(options, begin_from=begun)  # the run whose checkpoint it was
    options = dataclasses.replace(options, data=absolute_data(options).data)
    for field in dataclasses.fields(SweepOptions):
        old, new = getattr(stored, field.name), getattr(options, field.name)
        if field.name not in _MAY_CHANGE and old != new:
            raise ValueError(
                f"the sweep in {options.run_dir} was started with {flag(field.name)} {words(old)}, got "
                f"{words(new)}; leave the option out to resume, or start a new sweep in another --run-dir"
            )
    return options


Loader = Callable[[TrainOptions], tuple[pc.data.Dataset, pc.data.Dataset]]


def _loader() -> Loader:
    """Return what loads training and validation data, and keeps the newest, which most trials share."""
    kept: dict[TrainOptions, tuple[pc.data.Dataset, pc.data.Dataset]] = {}
    # what `load_data` reads
    names = (
        *("data", "data_dir", "validation", "batch_size", "seed", "augment"),
        *("model", "latent", "sequence_length", "mesh"),
    )

    def load(options: TrainOptions) -> tuple[pc.data.Dataset, pc.data.Dataset]:
        key = TrainOptions(**{name: getattr(options, name) for name in names})
        if key not in kept:
            kept.clear()
            kept[key] = load_data(key, "train"), load_data(key, "validation", batch_size=500)
        return kept[key]

    return load


def _check(
    options: SweepOptions, base: TrainOptions, searched: tuple[SearchedOption, ...], load: Loader
) -> tuple[str, Any]:
    """Refuse what no trial could train with, before there is a folder; return what to choose by."""
    first = drawn(base, searched, {one.name: (one.ends or one.choices)[0] for one in searched})
    check_options(first)
    data, watched = load(first)
    trainer = build_trainer(first, data, Path("unused"))
    trainer.check_data(watched, "validation data")
    metric, mode = best_metric(first, data)
    if options.objective is not None:
        measured = trainer.evaluate(watched)
        name = options.objective.removeprefix("eval/")
        if name not in measured:
            raise ValueError(
                f"expected --objective {' or '.join(measured)}, which the validation part is measured by, "
                f"got {options.objective}{did_you_mean(name, measured)}"
            )
        metric, mode = f"eval/{name}", None
    return metric, mode


def _train(
    trial: Trial, base: TrainOptions, searched: tuple[SearchedOption, ...], load: Loader
) -> None:
    """Train one trial, whose folder is that of a run."""
    options = drawn(base, searched, trial.settings)
    try:
        check_options(options)
        data, watched = load(options)
        callbacks = metrics_callbacks(options, data, trial.folder)
        path = options.begin_from
        begun = None if path is None else lambda network: begin(network, path)
        trainer = build_trainer(options, data, trial.folder, callbacks, begin=begun)
    except (TypeError, ValueError) as error:  # of these settings, and perhaps not of others
        raise load_optuna().TrialPruned(str(error)) from error
    write_config(trial.folder, options)
    trial.fit(
        trainer,
        data,
        num_steps=options.num_steps,
        eval_data=watched,
        eval_every=options.eval_every,
    )


def _pruner(word: str) -> Any:
    pruners = load_optuna().pruners
    return {
        "median": pruners.MedianPruner(),
        "halving": pruners.SuccessiveHalvingPruner(),
        "none": None,
    }[word]


def _line(outcome: Outcome, metric: str) -> str:
    """Return the line of one trial."""
    found = [f"trial {outcome.number:>4}  {outcome.state:<8}"]
    if outcome.metric is not None:
        found.append(f"{metric.removeprefix('eval/')} {outcome.metric:.4f}")
    if outcome.cost is not None:
        found.append(f"cost {outcome.cost:.4g}")
    found += [f"{_name(name)} {_cell(value)}" for name, value in outcome.settings.items()]
    return "  ".join(found) + (f"  ({outcome.why})" if outcome.why else "")


def _show(found: Sweep, metric: str, searched: tuple[SearchedOption, ...]) -> None:
    """Print the best trials, a row each."""
    costs = any(one.cost is not None for one in found.outcomes)
    states = [one.state for one in found.outcomes]
    counts = ", ".join(f"{states.count(s)} {s}" for s in ("complete", "pruned", "failed"))
    columns = ["trial", metric.removeprefix("eval/"), "step"]
    columns += ["cost", "objective"] if costs else []
    rows = []
    for one in found.ranked[:_BEST]:
        row = [str(one.number), f"{one.metric:.4f}", str(one.step)]
        row += [f"{one.cost:.4g}", f"{one.value:.4f}"] if costs else []
        rows.append((*row, *(_cell(one.settings[each.name]) for each in searched)))
    names = [_name(one.name) + (" " if one.choices else "") for one in searched]
    show_table(f"best of {len(states)} trials ({counts})", (*columns, *names), rows)


def _figure(
    found: Sweep, options: SweepOptions, metric: str, searched: tuple[SearchedOption, ...]
) -> Any:
    drawn_ones = [one for one in found.outcomes if one.value is not None]
    name = metric.removeprefix("eval/")
    return sweep_figure(
        {_name(s.name): [one.settings[s.name] for one in drawn_ones] for s in searched},
        [one.value for one in drawn_ones],  # type: ignore[misc]
        best=drawn_ones.index(found.best),
        log=[_name(s.name) for s in searched if s.log],
        label=name if options.cost is None else f"{name} and {options.cost}",
        title=plain(f"{options.data}, {len(found.outcomes)} trials"),
    )


def _name(name: str) -> str:
    return flag(name).removeprefix("--")


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
