"""Where the boxes of a drawn graph stand, and which way its arrows go.

Boxes stand in rows, what is predicted above what it is predicted from. An arrow over several rows has a
place in each of them, so that it passes beside boxes and never over one. In a row, places are as near as they
can be to the mean of what they are joined to (isotonic regression). Next file to read: `graph.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

Point = tuple[float, float]

# Inches: between boxes of a row, between rows, and what an arrow takes that passes through a row.
_GAP, _ROW_GAP, _LANE = 0.3, 0.42, 0.1
_SWEEPS = 12


def place(
    sizes: Mapping[str, tuple[float, float]], edges: Sequence[tuple[str, str]], order: Sequence[str]
) -> tuple[dict[str, Point], list[list[Point]]]:
    """Return the center of each box, and the points between its ends that each edge goes through.

    Args:
        sizes: {box: (width, height)} in inches.
        edges: (start, end), two boxes each.
        order: of all boxes: an edge makes the later of its ends stand above the other.

    >>> centers, routes = place({name: (1, 1) for name in "abc"}, [("a", "b"), ("b", "c"), ("a", "c")], "abc")
    >>> sorted(centers, key=lambda name: centers[name][1]), [len(route) for route in routes]
    (['a', 'b', 'c'], [0, 0, 2])
    """
    number = {name: index for index, name in enumerate(order)}
    upward = [tuple(sorted(edge, key=number.__getitem__)) for edge in edges]
    rows = _rows(order, upward)
    items: list[list[Hashable]] = [[] for _ in range(max(rows.values()) + 1)]
    for name in order:
        items[rows[name]].append(name)
    joined: dict[Hashable, list[Hashable]] = {name: [] for name in order}
    passes: list[list[Hashable]] = []
    for index, (low, high) in enumerate(upward):
        lanes: list[Hashable] = [(index, row) for row in range(rows[low] + 1, rows[high])]
        for lane in lanes:
            items[lane[1]].append(lane)  # type: ignore[index]
            joined[lane] = []
        for one, other in itertools.pairwise([low, *lanes, high]):
            joined[one].append(other)
            joined[other].append(one)
        passes.append(lanes)
    widths = {item: sizes[item][0] if item in sizes else _LANE for row in items for item in row}  # type: ignore
    row_of = {item: index for index, row in enumerate(items) for item in row}
    _untangle(items, joined, row_of)
    across = _across(items, joined, widths)
    heights = [max((sizes[i][1] for i in row if i in sizes), default=0.0) for row in items]  # type: ignore
    up = np.cumsum([0.0, *(height + _ROW_GAP for height in heights)])
    centers = {name: (across[name], up[rows[name]] + heights[rows[name]] / 2) for name in order}
    routes = []
    for lanes in passes:
        route = []
        for lane in lanes:
            row = row_of[lane]
            route += [(across[lane], up[row]), (across[lane], up[row] + heights[row])]
        routes.append(route)
    return centers, routes


def _rows(order: Sequence[str], upward: Sequence[Any]) -> dict[str, int]:
    """Return each row: one above the highest below it; of what nothing is below, one below what is above."""
    rows: dict[str, int] = {}
    for name in order:
        rows[name] = max((rows[low] + 1 for low, high in upward if high == name), default=0)
    for name in order:
        above = [rows[high] for low, high in upward if low == name]
        if above and all(high != name for _, high in upward):
            rows[name] = min(above) - 1
    return rows


def _untangle(
    items: list[list[Hashable]], joined: Mapping[Hashable, list], row_of: Mapping[Hashable, int]
) -> None:
    """Order each row, in place, by the mean place of what its items are joined to in the row before."""
    for sweep in range(_SWEEPS):
        step = 1 if sweep % 2 == 0 else -1
        for row in items[::step]:
            place_of = {item: k / len(other) for other in items for k, item in enumerate(other)}

            def mean(item: Hashable, place_of: dict = place_of, step: int = step) -> float:
                near = [place_of[o] for o in joined[item] if row_of[o] == row_of[item] - step]
                return float(np.mean(near)) if near else place_of[item]

            row.sort(key=mean)


def _across(
    items: Sequence[Sequence[Hashable]],
    joined: Mapping[Hashable, Sequence[Hashable]],
    widths: Mapping[Hashable, float],
) -> dict[Hashable, float]:
    """Return the horizontal center of each item; boxes stand straight, and arrows give way."""
    from scipy.optimize import isotonic_regression  # slow to load, and no other figure needs it

    across: dict[Hashable, float] = {}
    offsets = []
    for row in items:
        half = [widths[item] / 2 for item in row]
        steps = [a + b + _GAP for a, b in itertools.pairwise(half)]
        offset = np.cumsum([0.0, *steps])
        offsets.append(offset)
        across |= dict(zip(row, (offset - offset.mean()).tolist(), strict=True))
    weights = {item: 1e-3 if isinstance(item, tuple) else 1.0 for item in across}
    for sweep in range(2 * _SWEEPS):
        for number in range(len(items))[:: 1 if sweep % 2 == 0 else -1]:
            row = items[number]
            wanted = []
            for item in row:
                near = joined[item] or [item]
                boxes = [other for other in near if not isinstance(other, tuple)]
                chosen = near if isinstance(item, tuple) or not boxes else boxes
                wanted.append(np.mean([across[other] for other in chosen]))
            # distances kept: x_k - offset_k does not fall
            fitted = isotonic_regression(
                np.asarray(wanted) - offsets[number], weights=[weights[item] for item in row]
            )
            across |= dict(zip(row, (fitted.x + offsets[number]).tolist(), strict=True))
    return across
