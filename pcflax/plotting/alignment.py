"""The figure of gradient alignment: how close each layer's learning is to backpropagation's.

The cosine between the gradient that a learning rule gives a layer's weights and the one that
backpropagation gives them: 1 where the two agree up to length, 0 where they have nothing in common.
"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .lines import Line, draw_layers, plain, step_axis, text_width
from .training import Curve


def alignment_figure(alignment: Mapping[str, Curve], *, title: str = "") -> Figure:
    """Draw the cosine of each layer's weight gradient with backpropagation's, by training step.

    One line a layer; the curve named 'total' (the mean over the layers) is black and
    dashed. From two layers on, a heat map of layers by measurements stands beside the lines, the layer
    nearest the input at the bottom; it is gray where there is no number: a layer that was not measured
    at that step, or a cosine with a gradient of zero length (NaN).

    Args:
        alignment: {layer name: (steps, values)}, the layer nearest the input first, values from -1
            to 1.
        title: over both panels.

    Raises:
        ValueError: for no layers, a curve without points or with more steps than values (or
            fewer), or values outside [-1, 1].

    >>> figure = alignment_figure({"hidden": ([0, 100], [0.2, 0.7]), "output": ([0, 100], [1.0, 1.0])})
    >>> lines, heat_map, color_bar = figure.axes
    >>> heat_map.images[0].get_array().tolist()
    [[0.2, 0.7], [1.0, 1.0]]
    """
    if not alignment:
        raise ValueError("expected the alignment of at least one layer, got none")
    curves = {name: _checked(name, curve) for name, curve in alignment.items()}
    layers = {name: curve for name, curve in curves.items() if name != "total"}
    lowest = np.nanmin(np.concatenate([[0.0], *(values for _, values in curves.values())]))

    two = len(layers) > 1
    names = text_width(curves)
    figure = Figure(figsize=(9.4 + 2 * names if two else 5 + names, 4), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(1, 2 if two else 1, squeeze=False)[0]
    draw_layers(axes[0], layers, total=curves.get("total"))
    axes[0].set(
        xlabel="training step", ylabel="cosine with backpropagation's gradient", ylim=(lowest, 1.02)
    )
    measured = np.concatenate([steps for steps, _ in curves.values()])
    step_axis(axes[0], measured.min(), measured.max())
    if two:
        _heat_map(axes[1], layers)
    return figure


def _checked(name: str, curve: Curve) -> Line:
    steps, values = np.asarray(curve[0]), np.asarray(curve[1], dtype=float)
    if steps.shape != values.shape or values.ndim != 1 or not len(values):
        raise ValueError(
            f"expected the curve of layer '{name}' to be (steps, values) of one length, at least 1, "
            f"got shapes {steps.shape} and {values.shape}"
        )
    # 1.02 and not 1: a cosine in bfloat16 is off by a percent
    if (np.abs(values) > 1.02).any():
        raise ValueError(
            f"expected cosines from -1 to 1, got {values[np.abs(values) > 1.02][0]:g} for layer "
            f"'{name}'; divide the inner product by both norms"
        )
    return steps, values


def _heat_map(axis: Axes, layers: Mapping[str, Line]) -> None:
    names = list(layers)
    steps = sorted({int(step) for at, _ in layers.values() for step in at})
    column = {step: number for number, step in enumerate(steps)}
    cosines = np.full((len(names), len(steps)), np.nan)
    for row, (at, values) in enumerate(layers.values()):
        cosines[row, [column[int(step)] for step in at]] = values
    image = axis.imshow(
        cosines,
        cmap=matplotlib.colormaps["RdBu_r"].with_extremes(bad="0.8"),
        vmin=-1,
        vmax=1,
        aspect="auto",
        origin="lower",
        interpolation="nearest",
    )
    # by column, so that measurements far apart in training are as wide as others
    columns, rows = _every(len(steps), at_most=6), _every(len(names), at_most=10)
    axis.set_xticks(columns, [str(steps[index]) for index in columns])
    axis.set_yticks(rows, [plain(names[index]) for index in rows], fontsize="small")
    axis.tick_params(length=2)
    axis.set_xlabel("training step")
    figure = axis.get_figure()
    assert figure is not None  # every axis that is drawn on has one
    bar = figure.colorbar(image, ax=axis, label="cosine", ticks=[-1, 0, 1], aspect=40, pad=0.02)
    bar.outline.set_visible(False)  # type: ignore[operator]


def _every(count: int, *, at_most: int) -> range:
    return range(0, count, -(-count // at_most))
