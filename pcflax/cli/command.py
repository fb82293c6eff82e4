"""Options as a command line: what one types to train so again."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

from .options import OF_THE_CALL, TrainOptions, flag, preset


def command_of(options: TrainOptions, **others: Any) -> str:
    """Return the `pcflax train` line of these options, without what their preset and model bring.

    Args:
        options: of a run; where it lies and whether it is resumed is left out.
        others: options that are added, whatever their value.
    """
    words = ["pcflax", "train", "--data", options.data]
    defaults = preset(options.preset, options.model)
    for field in dataclasses.fields(TrainOptions):
        value = getattr(options, field.name)
        told = field.name in ("preset", "model") and value != getattr(TrainOptions(), field.name)
        if field.name in ("data", *OF_THE_CALL):
            continue
        if told or value != getattr(defaults, field.name):
            words += _words(field.name, value)
    for name, value in others.items():
        words += _words(name, value)
    return shlex.join(words)


def _words(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [flag(name) if value else flag(f"no_{name}")]
    if isinstance(value, dict):
        return [flag(name), *(str(word) for pair in value.items() for word in pair)]
    values = value if isinstance(value, tuple) else (value,)
    return [flag(name), *map(str, values)]
