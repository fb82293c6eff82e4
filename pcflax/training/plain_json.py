"""JSON that every reader takes: RFC 8259 knows neither NaN nor infinity, which Python writes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

_WORDS = {"nan", "inf", "-inf"}  # as Python spells such numbers, and reads them again


def dumps(value: Any, *, spell: bool = False) -> str:
    """Return a value as JSON in one line.

    A number that is not finite becomes null, or with `spell` a word, which `numbers` reads.

    >>> dumps({"step": 3, "loss": float("nan")})
    '{"step": 3, "loss": null}'
    """
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:  # there is such a number somewhere

        def finite(leaf):
            if not isinstance(leaf, float) or math.isfinite(leaf):
                return leaf
            return repr(float(leaf)) if spell else None

        return json.dumps(_mapped(value, finite), allow_nan=False)


def numbers(value: Any) -> Any:
    """Return the value with the numbers that `dumps(spell=True)` spelled.

    >>> numbers({"step": 3, "loss": "-inf"})
    {'step': 3, 'loss': -inf}
    """
    return _mapped(
        value, lambda leaf: float(leaf) if isinstance(leaf, str) and leaf in _WORDS else leaf
    )


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(item, change) for item in value]
    return change(value)
