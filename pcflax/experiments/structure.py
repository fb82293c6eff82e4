"""What keeps runs out of one program: the first thing in which they differ but for numbers, in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pcflax.settings import Settings, joined
from pcflax.training import Trainer
from pcflax.training.checkpoints.fingerprint import describe
from pcflax.training.fitting import Fit
from pcflax.typing import PyTree


def difference(fits: Sequence[Fit]) -> str | None:
    """Return in what any of these fits differs from the first so that they cannot share a program."""
    for fit in fits[1:]:
        found = _difference(fits[0], fit)
        if found is not None:
            return found
    return None


def _difference(first: Fit, other: Fit) -> str | None:
    if first.mesh is not None or other.mesh is not None:
        return "a run on several devices has the program to itself"
    networks = (describe(fit.trainer.network) for fit in (first, other))
    if told := _first("layer ", *networks):
        return told
    states = first.run.state(), other.run.state()
    if told := _first("array ", *map(_shapes, states)):
        return told
    if jax.tree.structure(states[0]) != jax.tree.structure(states[1]):
        return (
            "a function of the networks is another for each (one that make_trainer makes anew at each "
            "call is: define it outside)"
        )
    if told := _first("the rule's ", *(_fields(fit.rule) for fit in (first, other))):
        return told
    try:
        joined([(fit.rule, fit.optimizer.value) for fit in (first, other)])
    except ValueError:
        return "rule or optimizer differ in more than floats and arrays"
    if first.recipe.metrics != other.recipe.metrics:
        return "the metrics are others"
    items = (_shapes((fit.data.spec(), fit.data.constants())) for fit in (first, other))
    if told := _first("of the data, ", *items):
        return told
    if first.recipe.reader != other.recipe.reader:
        return "the data are scaled, labeled or augmented otherwise"
    return None


def _first(prefix: str, one: Any, other: Any) -> str | None:
    """Return the first difference of two nested dictionaries, in words."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in (*one, *other):
            separator = "" if prefix.endswith(" ") else "."
            told = _first(f"{prefix}{separator}{name}", one.get(name), other.get(name))
            if told:
                return told
        return None
    return None if one == other else f"{prefix} is {one} and {other}"


def _shapes(tree: PyTree) -> dict[str, str]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): f"{np.shape(leaf)} {leaf.dtype}"
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _fields(value: Any) -> Any:
    """Return what settings are made of but for numbers, nested by field."""
    if isinstance(value, Settings) and dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **{k: _fields(v) for k, v in fields.items()}}
    return value if isinstance(value, bool | int | str | None) else None


def check_separate(trainers: Sequence[Trainer], titles: Sequence[str]) -> None:
    """Refuse runs that would change one another: of one network, callback, or file that is written.

    Raises:
        ValueError: naming two of them.
    """
    seen: dict[Any, str] = {}
    for trainer, title in zip(trainers, titles, strict=True):
        owned: list[tuple[Any, str]] = [(id(trainer.network), "network")]
        for callback in trainer.callbacks.callbacks:
            kind = type(callback).__name__
            owned.append((id(callback), f"callback {kind}"))
            for name in ("path", "directory"):
                if isinstance(place := getattr(callback, name, None), Path):
                    owned.append((place, f"{name} of {kind}, {place},"))
        for key, what in owned:
            if key in seen:
                raise ValueError(
                    f"{seen[key]} and {title} have one {what} between them; make it in make_trainer, with "
                    f"the seed in its name where it has one"
                )
        seen |= {key: title for key, _ in owned}
