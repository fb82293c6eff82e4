"""Images in rows: what a generative network draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import ArrayLike
from matplotlib.figure import Figure

from pcflax.checks import expect_count


def image_figure(
    images: ArrayLike,
    *,
    columns: int = 10,
    titles: Sequence[Any] | None = None,
    shape: tuple[int, ...] | None = None,
    title: str | None = None,
) -> Figure:
    """Return a figure of images in a grid, row by row, from black at 0 to white at 1.

    Args:
        images: (count, height, width), with a last axis of 1 or 3 channels or without; or
            (count, pixels), of square images.
        columns: how many stand in a row.
        titles: one for each image, above it.
        shape: (height, width) or (height, width, channels) of flat images that are not square and gray.
        title: of the figure.

    Raises:
        ValueError: for arrays that are no images, and titles that are more or fewer.

    >>> import numpy as np, pcflax as pc
    >>> figure = pc.plotting.image_figure(np.zeros((7, 16)), columns=4)
    >>> len(figure.axes), figure.axes[0].images[0].get_array().shape
    (7, (4, 4))
    """
    columns = expect_count("image_figure", "columns", columns, least=1)
    pixels = np.asarray(images, np.float32)
    if shape is None and pixels.ndim == 2:
        side = round(pixels.shape[1] ** 0.5)
        shape = (side, side)
    if shape is not None and pixels.ndim >= 2 and np.prod(shape) == np.prod(pixels.shape[1:]):
        pixels = pixels.reshape(len(pixels), *shape)
    color = pixels.ndim == 4 and pixels.shape[-1] in (1, 3)
    if not len(pixels) or not (color or pixels.ndim == 3):
        raise ValueError(
            f"image_figure expected images of (count, height, width), with channels last or none, got "
            f"{np.shape(images)}; give shape=(height, width) of flat ones"
        )
    if titles is not None and len(titles) != len(pixels):
        raise ValueError(
            f"image_figure expected {len(pixels)} titles, one an image, got {len(titles)}"
        )
    rows = -(-len(pixels) // columns)
    width = min(columns, len(pixels))
    figure = Figure(figsize=(0.7 * width + 0.2, (0.9 if titles is not None else 0.72) * rows + 0.4))
    grid = figure.add_gridspec(
        rows, width, wspace=0.08, hspace=0.45 if titles is not None else 0.08
    )
    for number, image in enumerate(np.clip(pixels, 0, 1)):
        axis = figure.add_subplot(grid[number // columns, number % columns])
        axis.imshow(image, cmap="gray", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[])
        if titles is not None:
            axis.set_title(str(titles[number]), fontsize=8, pad=2)
    if title is not None:
        figure.suptitle(title, fontsize=9)
    return figure
