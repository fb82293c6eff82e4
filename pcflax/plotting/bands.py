"""Curves with bands: what several seeds measured, and how far their mean is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from .lines import legend_beside, line_style, marker, plain, text_width

Band = tuple[Any, Any, Any, Any]


def band_figure(curves: Mapping[str, Band], *, label: str = "", title: str = "") -> Figure:
    """Draw the mean of each as a line, and its interval as a band.

    Args:
        curves: {name: (steps, mean, low, high)}, each (evaluations,), as `Curves.band()` gives them; NaN
            is not drawn.
        label: of the values.
        title: over the panel.

    >>> figure = band_figure({"pc": ([5, 10], [0.8, 0.9], [0.7, 0.85], [0.9, 0.95])}, label="accuracy")
    >>> len(figure.axes[0].lines), len(figure.axes[0].collections)
    (1, 1)
    """
    beside = text_width(map(plain, curves)) if curves else 0.0
    figure = Figure(figsize=(6 + beside, 4), layout="constrained")
    axis = figure.subplots()
    for name, (steps, mean, low, high) in curves.items():
        style = line_style(len(axis.lines))
        axis.plot(steps, mean, marker=marker(len(steps)), label=plain(name), **style)
        axis.fill_between(steps, low, high, alpha=0.2, color=style["color"], linewidth=0)
    axis.set(xlabel="training step", ylabel=label, title=title)
    axis.grid(alpha=0.3)
    if curves:
        legend_beside(axis)
    return figure
