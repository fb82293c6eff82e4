"""The figure of a training run: does it learn, does inference settle, what do the weights look like.

Figures are made without pyplot, so that nothing opens a window or leaks memory in a long run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from .lines import (
    draw_layers,
    legend_beside,
    line_style,
    log_scale,
    marker,
    plain,
    step_axis,
    text_width,
)

Curve = tuple[Sequence[int], Sequence[float]]


def training_figure(
    *,
    accuracy: Mapping[str, Curve],
    energy: Mapping[str, Curve],
    inference: Mapping[str, np.ndarray],
    weights: np.ndarray | None,
    title: str = "",
) -> Figure:
    """Draw accuracy and energy by training step, energy by inference step, and first-layer weights.

    The scale of energies by training step is logarithmic unless one is negative or all are zero.

    Args:
        accuracy: {label: (steps, values)}, values from 0 to 1.
        energy: {label: (steps, values)}.
        inference: {layer name: (num_steps + 1,)}, energies averaged over a batch.
        weights: first-layer kernel (in, out); shown as images where `in` is a square, or three
            squares (red, green, blue).
        title: over all panels.

    >>> import numpy as np
    >>> figure = training_figure(accuracy={"test": ([50, 100], [0.8, 0.9])}, energy={},
    ...                          inference={"layer_0": np.ones(21)}, weights=np.ones((64, 30)))
    >>> len(figure.axes)
    4
    """
    beside = max(text_width(map(plain, ["", *names])) for names in (accuracy, energy, inference))
    figure = Figure(figsize=(10 + 2 * beside, 7.5), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(2, 2)
    _curves(axes[0, 0], accuracy, "accuracy")
    axes[0, 0].set_ylim(top=1.0)
    _curves(axes[0, 1], energy, "energy an example (nats)")
    if energy:
        measured = [np.asarray(values, float) for _, values in energy.values()]
        log_scale(axes[0, 1], np.concatenate(measured))
    axes[1, 0].set(xlabel="inference step", ylabel="energy an example (nats)")
    if inference:
        steps = np.arange(max(len(values) for values in inference.values()))
        total = np.sum(list(inference.values()), axis=0) if len(inference) > 1 else None
        draw_layers(
            axes[1, 0],
            {name: (steps[: len(values)], values) for name, values in inference.items()},
            total=None if total is None else (steps, total),
        )
        step_axis(axes[1, 0], 0, len(steps) - 1)
    _weights(axes[1, 1], weights)
    return figure


def _curves(axis, curves: Mapping[str, Curve], label: str) -> None:
    for number, (name, (steps, values)) in enumerate(curves.items()):
        axis.plot(steps, values, marker=marker(len(steps)), label=plain(name), **line_style(number))
    axis.set(xlabel="training step", ylabel=label)
    axis.grid(alpha=0.3)
    if curves:
        legend_beside(axis)


def _weights(axis, weights: np.ndarray | None) -> None:
    axis.set_axis_off()
    if weights is None:
        return
    images = as_images(np.asarray(weights))
    if images is None:
        axis.set_title("first-layer weights", fontsize="medium")
        limit = float(np.abs(weights).max()) or 1.0
        axis.imshow(weights, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
        return
    columns = min(8, len(images))
    rows = min(6, math.ceil(len(images) / columns))
    images = images[: rows * columns]
    side = images.shape[1]
    canvas = np.full((rows * (side + 1) - 1, columns * (side + 1) - 1, images.shape[3]), np.nan)
    for number, image in enumerate(images):
        top, left = (number // columns) * (side + 1), (number % columns) * (side + 1)
        canvas[top : top + side, left : left + side] = image / (np.abs(image).max() or 1.0)
    axis.set_title(f"first-layer weights of {len(images)} units", fontsize="medium")
    if canvas.shape[2] == 3:
        axis.imshow(np.nan_to_num((canvas + 1) / 2, nan=1.0))
    else:
        axis.imshow(canvas[:, :, 0], cmap="RdBu_r", vmin=-1, vmax=1)


def as_images(kernel: np.ndarray) -> np.ndarray | None:
    """Return a kernel (in, out) as images (out, side, side, channels); None where `in` is no square.

    >>> import numpy as np
    >>> as_images(np.zeros((64, 5))).shape, as_images(np.zeros((3072, 5))).shape
    ((5, 8, 8, 1), (5, 32, 32, 3))
    """
    if kernel.ndim != 2:
        return None
    for channels in (1, 3):
        side = math.isqrt(kernel.shape[0] // channels)
        if side * side * channels == kernel.shape[0]:
            return kernel.T.reshape(kernel.shape[1], side, side, channels)
    return None
