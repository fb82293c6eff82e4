"""`pcflax compare RUN RUN...`: differences between runs, over seeds.

A folder of several seeds is one way of training; single runs whose options differ in nothing but the seed are
one way of training, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pcflax as pc
from pcflax.experiments import OneRun, Runs
from pcflax.plotting import band_figure
from pcflax.plotting.lines import plain
from pcflax.training.checkpoints.disk import replacing
from pcflax.training.plain_json import dumps

from .options import TrainOptions, config_path, read_config
from .usage import UsageError
from .verbs import CompareOptions


def compare(options: CompareOptions) -> None:
    """Read the runs, and print or write the table."""
    if len(options.runs) < 1:
        raise UsageError("compare expected folders of runs, got none; name two or more")
    if options.json and options.format != "text":
        raise UsageError("give --format or --json, not both")
    figure = options.figure
    if figure is not None and figure.suffix not in (".png", ".pdf", ".svg"):
        raise UsageError(f"expected --figure to end in .png, .pdf or .svg, got {figure}")
    at = _at(options.at)
    runs = grouped(options.runs)
    if len(options.runs) > 1 and len(runs) == 1 and len(next(iter(runs.values())).points) == 1:
        raise ValueError(
            f"these {len(options.runs)} runs differ in nothing but the seed, so that they are one; name "
            f"another to compare them with"
        )
    if options.finished:
        runs = {name: own.finished for name, own in runs.items()}
    for name, own in runs.items():
        for title, why in own.ended.items():
            raise ValueError(
                f"{title} of {name} ended early: {why}; add --finished to leave it out"
            )
    found = pc.experiments.compare(
        *runs.values(),
        names=list(runs),
        metric=options.metric,
        at=at,
        plan=options.plan,
        confidence=options.confidence,
    )
    text = _table(found, "json" if options.json else options.format)
    if figure is not None:
        _draw(found, options.confidence, figure)
    if options.output is None:
        print(text.rstrip("\n"))
    else:
        with replacing(options.output, "choose another --output") as file:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")


def grouped(folders: Sequence[Path]) -> dict[str, Runs]:
    """Return the runs in these folders by name, those that differ only in the seed as one."""
    found: dict[str, Runs] = {}
    single: list[tuple[TrainOptions, list[Path]]] = []
    for folder in folders:
        if (folder / "replicas.json").exists():
            runs = pc.experiments.load_runs(folder)
            _add(found, runs.name or folder.name, runs)
        elif not config_path(folder).is_file():
            raise FileNotFoundError(
                f"there is no run in {folder} (neither config.json nor replicas.json); name folders that "
                f"pcflax train or pc.experiments.replicate has made"
            )
        else:
            own = dataclasses.replace(read_config(folder), seed=0, run_dir=None, mesh=None)
            same = next((members for other, members in single if other == own), None)
            if same is None:
                single.append((own, [folder]))
            else:
                same.append(folder)
    for name, members in _names(single).items():
        runs = []
        for folder in members:
            seed = read_config(folder).seed
            if seed in [run.seed for run in runs]:
                raise ValueError(f"{folder} repeats a run of seed {seed}; name each seed once")
            runs.append(OneRun(seed, pc.History(pc.load_checkpoint(folder).rows())))
        _add(found, name, pc.experiments.Runs(runs, name=name))
    return found


def _add(found: dict[str, Runs], name: str, runs: Runs) -> None:
    if name in found:
        raise ValueError(f"two of the runs are called '{name}'; rename a folder")
    found[name] = runs


def _names(groups: Sequence[tuple[TrainOptions, list[Path]]]) -> Mapping[str, list[Path]]:
    """Name a single run by its folder, several by the options in which they differ from others."""
    options = [vars(own) for own, _ in groups]
    differing = (
        [key for key in options[0] if len({str(own[key]) for own in options}) > 1]
        if options
        else []
    )
    found: dict[str, list[Path]] = {}
    for own, members in groups:
        words = " ".join(f"{key} {_word(getattr(own, key))}".replace("_", "-") for key in differing)
        name = members[0].name if len(members) == 1 or not words else words
        if name in found:
            name = str(members[0])
        found[name] = members
    return found


def _word(value: Any) -> str:
    return "default" if value is None else str(value)


def _at(word: str | None) -> Any:
    if word is None or word == "last":
        return word
    if word.isdecimal():
        return int(word)
    mode, _, metric = word.partition(":")
    if mode not in ("max", "min") or not metric:
        raise UsageError(f"expected --at last, a step, or max:METRIC or min:METRIC, got {word}")
    return metric, mode


def _table(found: Any, form: str) -> str:
    if form == "json":
        return dumps(found.to_dict()) + "\n"
    return f"{found}\n" if form == "text" else getattr(found, f"to_{form}")()


def _draw(found: Any, confidence: float, path: Path) -> None:
    bands = {}
    for name, runs in found.runs.items():
        curves = runs[found.metric]
        alone = len(curves.seeds) < 2
        bands[name] = (
            (curves.steps, curves.mean, curves.mean, curves.mean)
            if alone
            else curves.band(confidence)
        )
    figure = band_figure(bands, label=plain(found.metric))
    with replacing(path, "choose another --figure") as file:
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=110)
