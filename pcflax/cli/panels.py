"""Small figures as SVG that lives in a page: its texts and axes have the page's color, on any scheme."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from pcflax.plotting.lines import log_scale, marker, step_axis

Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]

# Seen on white and on black.
_COLORS = ("#3d85c6", "#d9822b", "#2f9e64", "#c2559a", "#8b6fd0", "#a58a2a", "#3a9c9c", "#d0554f")
# Stands for the page's color of text until the SVG is written; no figure has it otherwise.
_TEXT = "#123456"
_SIZE = (4.6, 3.0)
_MOST_NAMES = 8
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _TEXT
    ),
}


def curves_panel(
    curves: Curves, *, label: str, steps: str, log: bool = False, top: float | None = None
) -> str:
    """Return an SVG of curves {name: (steps, values)}, one color a curve."""

    def draw(axis: Any) -> None:
        colors = _colors(len(curves))
        for (name, (at, values)), color in zip(curves.items(), colors, strict=True):
            axis.plot(at, values, color=color, marker=marker(len(at)), label=name)
        if log:
            log_scale(axis, np.concatenate([np.asarray(v, float) for _, v in curves.values()]))
        axis.set(xlabel=steps, ylabel=label)
        every = [step for at, _ in curves.values() for step in at]
        step_axis(axis, int(min(every)), int(max(every)))
        if top is not None:
            axis.set_ylim(top=top)
        if len(curves) <= _MOST_NAMES:
            axis.legend()
        else:  # from the first to the last
            names = list(curves)
            axis.legend([axis.lines[0], axis.lines[-1]], [names[0], names[-1]])

    return _svg(draw, f"{label} by {steps}: {', '.join(curves)}")


def bars_panel(bars: Mapping[str, Mapping[str, float | None]], *, label: str) -> str:
    """Return an SVG of bars {series: {layer: value}}, the first layer on top."""
    layers = list(next(iter(bars.values())))
    height = max(_SIZE[1], 0.8 + 0.28 * len(layers) * len(bars))

    def draw(axis: Any) -> None:
        thick = 0.8 / len(bars)
        places = np.arange(len(layers), dtype=float)
        colors = _colors(len(bars))
        for number, ((name, values), color) in enumerate(zip(bars.items(), colors, strict=True)):
            numbers = np.array([values.get(one) for one in layers], float)  # None becomes NaN
            told = np.isfinite(numbers)
            at = places + (number - (len(bars) - 1) / 2) * thick
            axis.barh(at[told], numbers[told], thick, color=color, label=name)
        axis.set_yticks(places, layers)
        axis.invert_yaxis()
        axis.set_xlabel(label)
        axis.axvline(0, color=_TEXT, linewidth=0.8)
        if len(bars) > 1:
            axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(bars))

    return _svg(draw, f"{label} of each layer", height)


def _colors(count: int) -> list[Any]:
    if count <= len(_COLORS):
        return list(_COLORS[:count])
    return list(matplotlib.colormaps["viridis"](np.linspace(0.3, 0.85, count)))


def _svg(draw: Callable[[Any], None], told: str, height: float = _SIZE[1]) -> str:
    """Return one panel as an SVG element."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_SIZE[0], height), layout="constrained")
        axis = figure.subplots()
        axis.grid(alpha=0.25, color=_TEXT, linewidth=0.5)
        axis.set_axisbelow(True)
        draw(axis)
    return figure_svg(figure, told).replace(_TEXT, "currentColor")


def figure_svg(figure: Figure, told: str, *, transparent: bool = True) -> str:
    """Return a figure as an SVG element whose names are its own in the page."""
    file = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": told}):
        figure.savefig(file, format="svg", transparent=transparent, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    prefix = re.sub(r"\W+", "-", told)
    text = re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{prefix}-", text)
    for side in ("width", "height"):  # the page gives it its size
        text = re.sub(rf'(<svg\b[^>]*?)\s{side}="[^"]*"', r"\1", text, count=1)
    return text.replace("<svg", f"<svg role='img' aria-label={quoteattr(told)}", 1)
