"""The figure of a sweep: what each option did to the value, one panel an option."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .lines import evenly, ink, plain, text_width

_COLUMNS = 3
# Words that stand under each other in full; of more, some.
_MOST_WORDS = 12


def sweep_figure(
    settings: Mapping[str, Sequence[Any]],
    values: Sequence[float],
    *,
    best: int | None = None,
    log: Iterable[str] = (),
    label: str = "value",
    title: str = "",
) -> Figure:
    """Draw the value of each trial over each option, a dot a trial, later trials darker.

    A slope is an option that matters, a cloud one that does not.

    Args:
        settings: {option: what each trial had}, numbers or words.
        values: of each trial; one that is not finite leaves no dot.
        best: the place of the best trial, which is circled.
        log: the options whose axis is logarithmic.
        label: what the value is.
        title: over all panels.

    Raises:
        ValueError: for no option, columns of another length than the values, or a best that is none of them.

    >>> figure = sweep_figure({"rate": [0.1, 0.01], "activation": ["tanh", "relu"]}, [0.8, 0.9],
    ...                       best=1, log=["rate"])
    >>> [axis.get_xlabel() for axis in figure.axes], figure.axes[0].get_xscale()
    (['rate', 'activation'], 'log')
    """
    if not settings:
        raise ValueError("sweep_figure expected at least one option, got none")
    for name, column in settings.items():
        if len(column) != len(values):
            raise ValueError(
                f"sweep_figure expected {len(values)} settings of '{name}', one a value, got {len(column)}"
            )
    if best is not None and not 0 <= best < len(values):
        raise ValueError(
            f"sweep_figure expected best of 0 to {len(values) - 1}, a place, got {best}"
        )
    count, log = len(settings), set(log)
    rows, columns = math.ceil(count / _COLUMNS), min(count, _COLUMNS)
    figure = Figure(figsize=(1 + 3.2 * columns, 0.6 + 2.8 * rows), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    order = np.arange(len(values))
    for panel, (name, column) in zip(panels, settings.items(), strict=False):
        places = _places(panel, column)
        panel.scatter(places, values, c=order, cmap="viridis_r", s=18, vmin=0, vmax=len(values))
        if best is not None:
            panel.scatter(
                places[best], values[best], s=90, facecolors="none", edgecolors=ink(), zorder=3
            )
        panel.set_xlabel(plain(name))
        if name in log:
            panel.set_xscale("log")
        panel.grid(alpha=0.3)
    for panel in panels[::columns]:
        panel.set_ylabel(label)
    for panel in panels[count:]:
        panel.set_visible(False)
    return figure


def _places(panel: Any, column: Sequence[Any]) -> np.ndarray:
    """Return where each trial is on the axis; words stand side by side."""
    # NumPy's numbers are Real, too, and its bools are not
    if all(isinstance(one, numbers.Real) and not isinstance(one, bool) for one in column):
        return np.asarray(column, float)
    words = sorted({str(one) for one in column})
    shown = evenly(len(words), _MOST_WORDS)
    long = text_width(words) * len(shown) > 2.4  # inches of a panel
    panel.set_xticks(shown, [plain(words[place]) for place in shown], rotation=30 if long else 0)
    panel.set_xlim(-0.5, len(words) - 0.5)
    return np.array([words.index(str(one)) for one in column], float)
