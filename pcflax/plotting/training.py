"""The figure of a training run: does it learn, does inference settle, what do the weights look like.

Figures are made without pyplot, so that nothing opens a window or leaks memory in a long run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

Curve = tuple[Sequence[int], Sequence[float]]


def training_figure(
    *,
    accuracy: Mapping[str, Curve],
    energy: Mapping[str, Curve],
    inference: Mapping[str, np.ndarray],
    weights: np.ndarray | None,
    title: str = "",
) -> Figure:
    """Draw accuracy and energy by iteration, energy by inference step, and first-layer weights.

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
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(2, 2)
    _curves(axes[0, 0], accuracy, "accuracy")
    axes[0, 0].set_ylim(top=1.0)
    _curves(axes[0, 1], energy, "energy an example (nats)")
    if energy:
        axes[0, 1].set_yscale("log")
    for name, values in inference.items():
        axes[1, 0].plot(np.arange(len(values)), values, label=name)
    if len(inference) > 1:
        total = np.sum(list(inference.values()), axis=0)
        axes[1, 0].plot(np.arange(len(total)), total, color="black", linestyle="--", label="total")
    axes[1, 0].set(xlabel="inference step", ylabel="energy an example (nats)")
    if inference:
        axes[1, 0].legend(fontsize="small")
    _weights(axes[1, 1], weights)
    for axis in (axes[0, 0], axes[0, 1], axes[1, 0]):
        axis.grid(alpha=0.3)
    return figure


def _curves(axis, curves: Mapping[str, Curve], label: str) -> None:
    for name, (steps, values) in curves.items():
        axis.plot(steps, values, marker=".", label=name)
    axis.set(xlabel="iteration", ylabel=label)
    if curves:
        axis.legend(fontsize="small")


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
