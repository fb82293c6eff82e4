"""Comparing ways of training: contrasts of a metric over seeds, tested and corrected, in a table.

    comparison = compare(pc, backprop)
    print(comparison), comparison.to_latex()

Next file to read: `contrasts.py`.
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Sequence
from pathlib import Path

from pcflax.checks import expect_kind, expect_number

from .contrasts import Contrast, contrast, holm
from .folders import load_runs
from .plan import Plan, expect_contrasts
from .reading import At, expect_at, read
from .runs import Runs
from .table import Comparison


def compare(
    *runs: Runs | str | Path,
    metric: str | None = None,
    at: At | None = None,
    contrasts: Sequence[tuple[str, str]] | None = None,
    plan: Plan | str | Path | None = None,
    names: Sequence[str] | None = None,
    confidence: float = 0.95,
) -> Comparison:
    """Compare runs by one metric over seeds: differences, intervals, effect sizes and tests.

    Seeds that two runs share are pairs: Student's interval and paired t test of the differences, Cohen's d_z,
    Wilcoxon's test of signed ranks beside it. Without shared seeds they are Welch's, Hedges' g, and Mann and
    Whitney's. All p values are two-sided, and corrected by Holm over the contrasts.

    Args:
        runs: what `Replicas.fit` returned, or folders as of `load_runs`; runs of several settings are
            compared setting by setting.
        metric: the plan's unless given, and without one "eval/accuracy".
        at: "last" is each seed's last evaluation; a step; or (metric, "max") or (metric, "min"), each seed's
            step at which that metric of validation data was best. The plan's unless given, and without one
            "last". The best of what is read itself is refused.
        contrasts: pairs of names (a, b), of a - b; unless given the plan's, and without one each of the
            others less the first.
        plan: what was declared before the first step, or the folder in which it is. Planned contrasts are
            corrected over all of the plan, whether compared yet or not; others are marked as exploratory
            and corrected over all.
        names: of the runs, in order; unless given what `replicate` called them, or their folders' names.
        confidence: of the intervals.

    Raises:
        KeyError: where nothing of that name was measured.
        ValueError: for fewer than two runs, names that are not there or not different, contrasts that are
            no pairs or given twice, a seed without a value or whose numbers were not finite, a step chosen
            by the data that are read, and a plan that was changed.
        TypeError: for what are no runs, folders or numbers.
        FileNotFoundError, CheckpointError: for folders, as `load_runs`.

    >>> import pcflax as pc
    >>> def runs(name, values):
    ...     histories = [pc.History([{"step": 9, "eval/accuracy": value}]) for value in values]
    ...     own = [pc.experiments.OneRun(seed, history) for seed, history in enumerate(histories)]
    ...     return pc.experiments.Runs(own, name=name)
    >>> comparison = pc.experiments.compare(
    ...     runs("pc", [0.91, 0.94, 0.95]), runs("backprop", [0.90, 0.92, 0.94]),
    ...     contrasts=[("pc", "backprop")])
    >>> (one,) = comparison.contrasts
    >>> print(f"{one.difference:.4f}, p {one.p:.3f}, {one.effect_name} {one.effect:.2f}")
    0.0133, p 0.057, d_z 2.31
    """
    declared = plan if isinstance(plan, Plan | None) else Plan.read(plan)
    metric = metric or (declared.metric if declared else "eval/accuracy")
    at = at if at is not None else (declared.at if declared else "last")
    at = expect_at("compare", metric, at)
    expect_number("compare", "confidence", confidence, above=0, most=1 - 1e-9)
    named = _named(runs, names)
    if contrasts is None:
        known = declared.contrasts if declared else []
        first, *others = named
        contrasts = [pair for pair in known if set(pair) <= set(named)]
        contrasts = contrasts or [(other, first) for other in others]
    contrasts = expect_contrasts("compare", contrasts)
    notes: list[str] = []
    samples = {}
    for name in dict.fromkeys(name for pair in contrasts for name in pair):
        if name not in named:
            raise ValueError(f"compare knows no runs '{name}'; there are {', '.join(named)}")
        samples[name], own = read(named[name], name, metric, at)
        notes += own
    found = []
    for a, b in contrasts:
        one = contrast((a, b), samples[a], samples[b], confidence)
        if declared is not None:
            one = _marked(one, declared, metric, at, [named[a], named[b]])
        notes += one.notes
        found.append(one)
    corrected = _corrected(found, declared)
    return Comparison(
        corrected, metric, at, confidence, declared, tuple(dict.fromkeys(notes)), named
    )


def _named(runs: Sequence[Runs | str | Path], names: Sequence[str] | None) -> dict[str, Runs]:
    if names is not None and len(names) != len(runs):
        raise ValueError(f"compare expected a name for each of {len(runs)} runs, got {list(names)}")
    found: list[tuple[str, Runs]] = []
    for place, one in enumerate(runs):
        given = names[place] if names is not None else ""
        if isinstance(one, str | Path):
            given, one = given or Path(one).name, load_runs(one)
            given = given if names is not None or not one.name else one.name
        expect_kind("compare", "runs", one, Runs, "pc.experiments.load_runs('seeds')")
        given = given or one.name or string.ascii_lowercase[place % 26]
        for point in one.points:
            settings = ", ".join(f"{name} {value}" for name, value in point.items())
            title = ", ".join(filter(None, [given, settings]))
            found.append((title, one.at(**point) if point else one))
    if len(found) < 2:
        raise ValueError(f"compare expected two runs or more, got {len(found)}")
    named = dict(found)
    if len(named) < len(found):
        raise ValueError(
            f"compare expected runs of different names, got {', '.join(name for name, _ in found)}; give "
            f"names=, or replicate a name"
        )
    return named


def _marked(one: Contrast, plan: Plan, metric: str, at: At, runs: Sequence[Runs]) -> Contrast:
    """Return the contrast with whether it was planned, and why not or as far as is known."""
    planned = (metric, at) == (plan.metric, plan.at) and one.names in plan.contrasts
    notes = []
    for name, own in zip(one.names, runs, strict=True):
        if planned and not own.begun:
            notes.append(f"when {name} began is not known")
        elif planned and not (plan.date and plan.date <= own.begun):
            planned = False
            notes = [f"{name} began at {own.begun}, before the plan was written"]
    return dataclasses.replace(one, planned=planned, notes=(*one.notes, *notes))


def _corrected(found: Sequence[Contrast], plan: Plan | None) -> tuple[Contrast, ...]:
    """Return the contrasts with Holm's p values: those planned over the plan, the others over all."""
    planned = [one for one in found if one.planned]
    missing = len(plan.contrasts) - len(planned) if plan is not None else 0
    whole = _holm(found, len(found) + missing)
    own = iter(_holm(planned, len(planned) + missing))
    return tuple(next(own) if one.planned else one for one in whole)


def _holm(found: Sequence[Contrast], tests: int) -> list[Contrast]:
    ps = holm([one.p for one in found], tests)
    ranks = holm([one.p_ranks for one in found], tests)
    return [
        dataclasses.replace(one, p_holm=p, p_ranks_holm=rank)
        for one, p, rank in zip(found, ps, ranks, strict=True)
    ]
