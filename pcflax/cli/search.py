"""What `--search` may say: options of `pcflax train` with a range or with choices.

    learning-rate=1e-4:1e-2:log    inference-steps=4:32    activation=tanh,relu,gelu    widths=300x300,128

A range is of numbers, whole ones where the option is, uniform or, with `:log`, in the logarithm. Of widths
and other several numbers a choice has an `x` between. An option that the other settings of a trial have no
use for is left out of that trial.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from pcflax.checks import did_you_mean

from .checking import check_ranges, idle
from .options import OF_THE_CALL, TrainOptions, flag, preset
from .usage import UsageError

# What makes another sweep, or says nothing of how well a setting does.
_NO_SETTINGS = (
    *("preset", "model", "data", "data_dir", "validation", "seed"),
    *("health", "keep_latest", "logger", "mesh", "begin_from", *OF_THE_CALL),
)


@dataclasses.dataclass(frozen=True)
class SearchedOption:
    """One option that is searched over.

    Attributes:
        name: the field of `TrainOptions`.
        kind: its type.
        ends: of a range, else None.
        log: whether the range is in the logarithm.
        choices: as they are typed; of a range none.
    """

    name: str
    kind: Any
    ends: tuple[float, float] | None = None
    log: bool = False
    choices: tuple[str, ...] = ()

    def distribution(self) -> Any:
        """Return optuna's distribution."""
        from optuna import distributions

        if self.ends is None:
            return distributions.CategoricalDistribution(self.choices)
        whole = self.kind is int
        make = distributions.IntDistribution if whole else distributions.FloatDistribution
        return make(*self.ends, log=self.log)  # type: ignore[arg-type]

    def value(self, drawn: Any) -> Any:
        """Return the option's value."""
        return _value(self.name, self.kind, drawn) if self.ends is None else drawn

    def all(self) -> list[Any]:
        """Return every choice, or the ends of the range."""
        return [self.value(one) for one in self.ends or self.choices]


def parse_search(texts: Iterable[str], options: TrainOptions) -> tuple[SearchedOption, ...]:
    """Return what is searched over.

    Raises:
        ValueError: for what is no option, no setting, no range or choice of it, or does nothing with the
            other options.
    """
    found: dict[str, SearchedOption] = {}
    for text in texts:
        one = _parse(text)
        if one.name in found:
            raise UsageError(f"--search names {flag(one.name)} twice; give all choices at once")
        given = getattr(options, one.name)
        if given != getattr(preset(options.preset, options.model), one.name):
            raise UsageError(
                f"{flag(one.name)} {given} is given and searched over; leave one of them out"
            )
        for value in one.all():
            check_ranges(dataclasses.replace(options, **{one.name: value}))
        found[one.name] = one
    if not found:
        raise UsageError(
            "a sweep searches over something; add --search learning-rate=1e-4:1e-2:log, say"
        )
    _check_counting(found, options)
    return tuple(found.values())


def drawn(
    options: TrainOptions, searched: Iterable[SearchedOption], settings: Mapping[str, Any]
) -> TrainOptions:
    """Return the options of a trial."""
    values = {one.name: one.value(settings[one.name]) for one in searched}
    found = dataclasses.replace(options, **values)
    unused = [name for name, _ in idle(found) if name in values]
    return dataclasses.replace(found, **{name: getattr(options, name) for name in unused})


def _check_counting(found: Mapping[str, SearchedOption], options: TrainOptions) -> None:
    """Refuse an option that does nothing whatever rule and algorithm a trial has."""

    def words(option: str) -> list[str]:
        return found[option].all() if option in found else [getattr(options, option)]

    told: dict[str, list[str]] = {name: [] for name in found}
    pairs = [(rule, algorithm) for rule in words("learning") for algorithm in words("inference")]
    for rule, algorithm in pairs:
        chosen = dataclasses.replace(options, learning=rule, inference=algorithm)
        for one in found.values():
            # what is the default is told nothing about
            others = [value for value in one.all() if value != getattr(options, one.name)]
            trial = dataclasses.replace(chosen, **{one.name: others[0]}) if others else chosen
            told[one.name] += [why for name, why in idle(trial) if name == one.name]
    for name, reasons in told.items():
        if name not in ("learning", "inference") and len(reasons) == len(pairs):
            raise UsageError(f"--search {reasons[0]}")


def _parse(text: str) -> SearchedOption:
    name, equals, rest = text.partition("=")
    name = name.strip().removeprefix("--").replace("-", "_")
    kinds = _kinds()
    if name not in kinds:
        guess = did_you_mean(name, kinds).replace("_", "-")
        raise UsageError(f"--search {text}: there is no option {flag(name)} of pcflax train{guess}")
    if name in _NO_SETTINGS:
        raise UsageError(f"--search {text}: {flag(name)} is no setting to choose by")
    kind, form = kinds[name], flag(name).removeprefix("--")
    numeric = kind in (int, float)
    if not equals or not rest.strip():
        example = "low:high, low:high:log or 1,2,3" if numeric else "one,another"
        raise UsageError(f"--search {text}: expected {form}={example}")
    if ":" in rest and numeric:
        return _range(text, name, kind, rest)
    # commas within brackets are an optimizer's own
    choices = tuple(part.strip() for part in re.split(r",(?![^(]*\))", rest))
    for choice in choices:
        _value(name, kind, choice)
    if len(set(choices)) < 2:
        raise UsageError(f"--search {text}: expected at least two choices; or give {flag(name)}")
    return SearchedOption(name, kind, choices=choices)


def _range(text: str, name: str, kind: Any, rest: str) -> SearchedOption:
    low, high, *more = (part.strip() for part in rest.split(":"))
    if more not in ([], ["log"]):
        raise UsageError(f"--search {text}: expected low:high or low:high:log")
    ends = (_value(name, kind, low), _value(name, kind, high))
    if not ends[0] < ends[1] or not all(map(math.isfinite, ends)):
        raise UsageError(f"--search {text}: expected a low end below the high one")
    if more and not ends[0] > 0:
        raise UsageError(f"--search {text}: a range in the logarithm begins above 0")
    return SearchedOption(name, kind, ends, bool(more))


def _value(name: str, kind: Any, text: str) -> Any:
    """Return a value as the option has it."""
    if typing.get_origin(kind) is typing.Literal:
        words = typing.get_args(kind)
        if text not in words:
            raise UsageError(
                f"--search {flag(name).removeprefix('--')}: expected {', '.join(words)}, got "
                f"'{text}'{did_you_mean(text, words)}"
            )
        return text
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if typing.get_origin(kind) is tuple:
            return tuple(int(part) for part in text.split("x"))
        return kind(text)
    except (ValueError, KeyError):
        expected = {bool: "true or false", int: "a whole number", float: "a number"}.get(
            kind, "whole numbers such as 300x300"
        )
        raise UsageError(
            f"--search {flag(name).removeprefix('--')}: expected {expected}, got '{text}'"
        ) from None


def _kinds() -> dict[str, Any]:
    """Return {name: type} of the options of `pcflax train`, without None and without step sizes by layer."""
    found = {}
    for name, hint in typing.get_type_hints(TrainOptions).items():
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
            hint = next(
                one
                for one in typing.get_args(hint)
                if one is not types.NoneType and typing.get_origin(one) is not dict
            )
        found[name] = hint
    return found
