"""The figure of a memory: cues, what was recalled of them, and what was stored."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from .lines import evenly, plain, text_width


def recall_figure(
    cues: np.ndarray,
    recalled: np.ndarray | Mapping[str, np.ndarray],
    stored: np.ndarray,
    *,
    examples: int = 10,
    title: str = "",
) -> Figure:
    """Draw a column for each pattern: its cue, what memories recalled of it, and what was stored.

    Up to `examples` patterns are shown, the first, the last and evenly between; all on the scale of gray
    of what was stored. The mean squared error of each memory, over all patterns, stands beside its row.

    Args:
        cues: (count, *shape); NaN, drawn in blue, where the cue says nothing.
        recalled: the same of one memory, or {name: array} of several.
        stored: the same. Shape is (height, width), or one axis, drawn as a square where it is one and as
            a row where it is not.
        examples: at most this many columns.
        title: over all.

    Raises:
        ValueError: for arrays of several shapes, patterns that are no pictures, none at all, or `examples`
            below 1.

    >>> import numpy as np
    >>> stored = np.random.default_rng(0).random((20, 64))
    >>> cues = np.where(np.arange(64) < 32, stored, np.nan)
    >>> figure = recall_figure(cues, np.zeros((20, 64)), stored, examples=4)
    >>> len(figure.axes), figure.axes[0].images[0].get_array().shape
    (12, (8, 8))
    """
    if examples < 1:
        raise ValueError(f"expected examples >= 1, got {examples}; it is the number of columns")
    stored = np.asarray(stored, dtype=float)
    memories = recalled if isinstance(recalled, Mapping) else {"recalled": recalled}
    rows = {"cue": np.asarray(cues, dtype=float)}
    for name, values in memories.items():
        values = np.asarray(values, dtype=float)
        rows[name] = values
        if values.shape == stored.shape and values.size:
            label = f"{name}\nMSE {np.mean((values - stored) ** 2):.1e}"
            rows[label] = rows.pop(name)
    rows["stored"] = stored
    for name, values in rows.items():
        if values.shape != stored.shape or values.ndim not in (2, 3) or not values.size:
            raise ValueError(
                f"expected cues, recalled and stored of one shape, (count, features) or (count, height, "
                f"width), got {values.shape} for '{name}' and {stored.shape} stored"
            )
    columns = evenly(len(stored), examples)
    shape = _picture(stored.shape[1:])
    left = text_width(part for name in rows for part in name.split("\n"))
    figure = Figure(
        figsize=(left + 0.9 * len(columns), 0.3 + 0.9 * len(rows)), layout="constrained"
    )
    figure.suptitle(title)
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, (name, values) in zip(grid, rows.items(), strict=True):
        line[0].set_ylabel(plain(name), rotation=0, ha="right", va="center", fontsize="small")
        for axis, column in zip(line, columns, strict=True):
            image = axis.imshow(
                values[column].reshape(shape), cmap="gray", vmin=stored.min(), vmax=stored.max()
            )
            image.set_cmap(image.get_cmap().with_extremes(bad="lightsteelblue"))
            axis.set_xticks([])
            axis.set_yticks([])
    return figure


def _picture(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) == 2:
        return shape
    side = math.isqrt(shape[0])
    return (side, side) if side * side == shape[0] else (1, shape[0])
