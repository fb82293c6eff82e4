"""One line a layer, colored by depth, for every figure that shows layers side by side.

The darkest line is the layer nearest the input. A few layers are named in a legend; of many, a color
bar tells the depth. Both stand beside the data, never over it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.ticker import MaxNLocator

Line = tuple[np.ndarray, np.ndarray]

# More names than this in a legend, and no eye finds its color.
MOST_NAMES = 10
# What lies further below the largest value would press the rest of a log scale together.
_MOST_DECADES = 12
# Below this many points the eye wants to see which were measured; a single one has no line at all.
_FEW_POINTS = 12
_LEGEND_STYLE = {"fontsize": "small", "frameon": False}
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C7A00")
_DASHES = ("-", "--", ":", "-.")


def draw_layers(axis: Axes, layers: Mapping[str, Line], *, total: Line | None = None) -> None:
    """Draw each layer's curve and the total (black, dashed), with a legend or a color bar.

    Each is a pair (steps, values) of arrays (points,), the layer nearest the input first.

    >>> import numpy as np
    >>> from matplotlib.figure import Figure
    >>> axis, steps = Figure().subplots(), np.arange(2)
    >>> draw_layers(axis, {"hidden": (steps, np.zeros(2)), "output": (steps, np.ones(2))})
    >>> [line.get_label() for line in axis.lines]
    ['hidden', 'output']
    """
    colors = depth_colors(max(len(layers), 1))
    many = len(layers) > MOST_NAMES
    for number, (name, (steps, values)) in enumerate(layers.items()):
        axis.plot(
            steps,
            values,
            color=colors(number),
            linewidth=1.0 if many else 1.5,
            marker=marker(len(steps)),
            label=plain(name),
        )
    if total is not None:
        axis.plot(*total, color=ink(), linestyle="--", marker=marker(len(total[0])), label="total")
    axis.grid(alpha=0.3)
    if not many:
        legend_beside(axis)
        return
    if total is not None:
        axis.legend(
            handles=axis.lines[-1:], loc="lower right", bbox_to_anchor=(1.0, 1.0), **_LEGEND_STYLE
        )
    _depth_bar(axis, list(layers), colors)


def _depth_bar(axis: Axes, names: list[str], colors: ListedColormap) -> None:
    figure = axis.get_figure()
    assert figure is not None  # every axis that is drawn on has one
    # half a layer at both ends, so that each layer is one band of the bar
    bands = ScalarMappable(Normalize(-0.5, len(names) - 0.5), colors)
    ticks = evenly(len(names), 5)
    bar = figure.colorbar(bands, ax=axis, ticks=ticks, aspect=40, pad=0.02)
    bar.ax.set_yticklabels([plain(names[tick]) for tick in ticks], fontsize="small")
    bar.ax.tick_params(length=2)
    bar.outline.set_visible(False)  # type: ignore[operator]


def legend_beside(axis: Axes) -> None:
    """Name the lines of an axis to the right of it."""
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2, **_LEGEND_STYLE)


def plain(name: str) -> str:
    """Return a name so that matplotlib shows it as it is: a dollar begins no formula.

    A line whose label begins with an underscore has no place in a legend: a space goes before it.

    >>> plain("a$b$"), plain("_run"), plain("hidden_1")
    ('a\\\\$b\\\\$', ' _run', 'hidden_1')
    """
    shown = name.replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def ink() -> str:
    """Return the color of text in matplotlib's style, which is seen on its background."""
    return matplotlib.rcParams["text.color"]


def line_style(number: int) -> dict[str, Any]:
    """Return color and dashes of the line of that number, of things that have no order.

    No two of 28 are alike, and color-blind eyes tell the colors apart (Okabe and Ito, 2008).

    >>> line_style(0), line_style(7)
    ({'color': '#0072B2', 'linestyle': '-'}, {'color': '#0072B2', 'linestyle': '--'})
    """
    turn, place = divmod(number, len(_COLORS))
    return {"color": _COLORS[place], "linestyle": _DASHES[turn % len(_DASHES)]}


def depth_colors(count: int) -> ListedColormap:
    """Return a color for each of `count` layers, from dark violet at the input to light green.

    >>> depth_colors(3).N
    3
    """
    # the last tenth of viridis is a yellow that white paper swallows
    return ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0.0, 0.9, count)))


def log_scale(axis: Axes, values: np.ndarray) -> None:
    """Make the y axis logarithmic where no value is negative and some are positive.

    A zero then leaves a gap in its line. At most twelve decades below the largest value are shown.
    Values that are not finite do not count.

    >>> import numpy as np
    >>> from matplotlib.figure import Figure
    >>> axis = Figure().subplots()
    >>> log_scale(axis, np.array([-1.0, 2.0])); axis.get_yscale()
    'linear'
    >>> log_scale(axis, np.array([0.0, 2.0])); axis.get_yscale()
    'log'
    """
    finite = values[np.isfinite(values)]
    if not (finite > 0).any() or (finite < 0).any():
        return
    # masked, not clipped: a clipped zero draws a cliff at the step after it
    axis.set_yscale("log", nonpositive="mask")
    lowest = finite.max() * 10.0**-_MOST_DECADES
    if finite[finite > 0].min() < lowest:
        axis.set_ylim(bottom=lowest)


def step_axis(axis: Axes, first: int, last: int) -> None:
    """Show the steps from first to last, drawn or not, with ticks at whole numbers only.

    A line that ends early, because its energy is not finite any more, is then seen to end early.

    >>> from matplotlib.figure import Figure
    >>> axis = Figure().subplots()
    >>> step_axis(axis, 0, 50); [float(limit) for limit in axis.get_xlim()]
    [-1.0, 51.0]
    """
    margin = 0.02 * (last - first) or 0.5
    axis.set_xlim(first - margin, last + margin)
    axis.xaxis.set_major_locator(
        # one tick is enough: the default of two invents half steps where there is a single one
        MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
    )


def text_width(texts: Iterable[str]) -> float:
    """Estimate how many inches the longest of these texts takes, so that a figure can make room for it.

    >>> text_width(["hidden", "output_layer"])
    0.84
    """
    # 0.07 inch is the mean width of a character in matplotlib's small font, 8.3 points
    return round(0.07 * max(len(text) for text in texts), 2)


def marker(num_points: int) -> str:
    """Return the marker of a line of that many points: a dot where they are few.

    >>> marker(2), marker(100)
    ('.', '')
    """
    return "." if num_points < _FEW_POINTS else ""


def evenly(count: int, at_most: int) -> np.ndarray:
    """Return at most `at_most` of the indices 0 .. count - 1, first and last and evenly between.

    >>> evenly(3, 6).tolist(), evenly(40, 6).tolist()
    ([0, 1, 2], [0, 8, 16, 23, 31, 39])
    """
    return np.linspace(0, count - 1, min(count, at_most)).round().astype(int)
