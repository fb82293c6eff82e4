"""`--config FILE`: options from a file, as if they stood on the command line before the others.

So they are parsed, checked and refused as those are, and what is typed goes first.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .options import TrainOptions, flag, preset
from .usage import UsageError

_ENDINGS = (".yaml", ".yml", ".json")


def value_of(option: str, arguments: Sequence[str]) -> str | None:
    """Return what the command line gives an option at last, before it is parsed."""
    flags, value = (f"--{option}", f"--{option.replace('-', '_')}"), None
    for position, argument in enumerate(arguments):
        if argument in flags and position + 1 < len(arguments):
            value = arguments[position + 1]
        if argument.startswith(tuple(f"{flag}=" for flag in flags)):
            value = argument.partition("=")[2]
    return value


def with_config(arguments: list[str], kind: type[TrainOptions]) -> list[str]:
    """Return the arguments of `train` or `sweep`, with the words of their --config in its place.

    Raises:
        FileNotFoundError: for no file.
        ValueError: for a file that cannot be read, or holds no options.
        UsageError: for an option that there is not, one that is there twice, and what is no value.
    """
    given = value_of("config", arguments)
    if given is None:
        return arguments
    path = Path(os.path.expanduser(given))
    verb, *typed = arguments
    rest, left_out = [], False
    for argument in typed:
        if not left_out and argument != "--config" and not argument.startswith("--config="):
            rest.append(argument)
        left_out = argument == "--config"
    options = _known(_read(path), path, kind, verb)
    chosen = {
        name: value_of(name, rest) or options.get(name) or getattr(TrainOptions(), name)
        for name in ("preset", "model")
    }
    defaults = kind(**vars(preset(str(chosen["preset"]), str(chosen["model"]))))
    words = []
    for name, value in options.items():
        words += _words(name, value, path, absent=getattr(defaults, name) is None)
    return [verb, *words, *rest]


def _read(path: Path) -> dict[str, Any]:
    """Return what a file holds; of a run's own config.json its options."""
    if path.suffix not in _ENDINGS:
        raise UsageError(f"expected --config to end in {', '.join(_ENDINGS)}, got {path}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; expected options for --config")
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        raise ValueError(f"{path} is no YAML: {error.problem}{line}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if isinstance(found, dict) and isinstance(found.get("options"), dict):
        # without the option before 0.2, when evaluations were of the test split
        found = {"validation": 0} | found["options"]
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no options; write one a line: num-steps: 500")
    return found


def _known(found: dict[str, Any], path: Path, kind: type, verb: str) -> dict[str, Any]:
    """Return the same by the names of fields; unknown ones are refused."""
    names = {field.name for field in dataclasses.fields(kind)} - {"config"}
    options: dict[str, Any] = {}
    for key, value in found.items():
        name = str(key).removeprefix("--").replace("-", "_")
        if name not in names:
            from pcflax.checks import did_you_mean

            guess = did_you_mean(name, names).replace("_", "-")
            raise UsageError(f"{path}: there is no option '{key}' of pcflax {verb}{guess}")
        if name in options:
            raise UsageError(f"{path} gives {flag(name)} twice; leave one of them out")
        options[name] = value
    return options


def _words(name: str, value: Any, path: Path, *, absent: bool) -> list[str]:
    """Return an option as it is typed; null is what stands for an option that is not given."""
    if value is None:
        return [] if absent else [flag(name), "None"]
    if isinstance(value, bool):
        return [flag(name) if value else flag(f"no_{name}")]
    values = list(_scalars(name, value, path))
    if name == "search":  # once for each
        return [word for one in values for word in (flag(name), one)]
    return [flag(name), *values]


def _scalars(name: str, value: Any, path: Path) -> Iterator[str]:
    if isinstance(value, dict):  # of step sizes by layer
        value = [one for pair in value.items() for one in pair]
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, dict | list) or one is None:
            raise UsageError(f"{path}: expected {flag(name)} to be a value or a list, got {value}")
        yield str(one)
