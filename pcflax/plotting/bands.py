"""Curves with bands: what several seeds measured, and how far their mean is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

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
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for name, (steps, mean, low, high) in curves.items():
        (line,) = axis.plot(steps, mean, marker=".", label=name)
        axis.fill_between(steps, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
    axis.set(xlabel="iteration", ylabel=label, title=title)
    axis.grid(alpha=0.3)
    if curves:
        axis.legend(fontsize="small")
    return figure
