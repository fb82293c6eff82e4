"""Figures of inference: where the energy goes, whether it settles, and what each unit does.

The energy of a chain that starts feedforward stands at the output alone; inference moves it down into
the hidden layers, and has settled where the residual, the root mean square of dF/dz, is small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .lines import draw_layers, evenly, ink, log_scale, marker, plain, step_axis, text_width

_MOST_PANELS, _MOST_COLUMNS = 6, 3


def inference_figure(
    *, energies: Mapping[str, np.ndarray], residual: np.ndarray, title: str = ""
) -> Figure:
    """Draw two panels by inference step: the energy of each layer, and the residual.

    The scales are logarithmic unless a value is negative or all are zero; a zero, as every hidden
    energy is at a feedforward start, leaves a gap in its line, and what lies more than twelve decades
    below the largest value is not shown. The total, dashed, is the sum over layers. Up to ten layers
    are named in a legend, more are told apart by a color bar.

    Args:
        energies: {layer name: (num_steps + 1,)} in nats, averaged over the batch, the layer nearest
            the input first: the means over the batch of a trace's `energies`.
        residual: (num_steps + 1,), root mean square of dF/dz, averaged over the batch.
        title: over both panels.

    Raises:
        ValueError: for no layers, or arrays of other shapes than these.

    >>> import jax.numpy as jnp, optax, pcflax as pc
    >>> from flax import nnx
    >>> network = pc.PCNetwork({"hidden": pc.PCDense(3, 5, rngs=nnx.Rngs(0)),
    ...                         "output": pc.PCDense(5, 2, rngs=nnx.Rngs(1))})
    >>> descent = pc.inference.GradientDescent(optax.sgd(0.1), num_steps=20)
    >>> trace = network.infer(jnp.ones((4, 3)), jnp.ones((4, 2)), inference=descent, trace=True).trace
    >>> figure = inference_figure(
    ...     energies={name: energy.mean(axis=1) for name, energy in trace.energies.items()},
    ...     residual=trace.residual.mean(axis=1))
    >>> [line.get_label() for line in figure.axes[0].lines], len(figure.axes[1].lines)
    (['hidden', 'output', 'total'], 1)
    """
    if not energies:
        raise ValueError("expected the energies of at least one layer, got none")
    residual = _by_step("the residual", residual, ndim=1)
    layers = {
        name: _by_step(f"the energy of layer '{name}'", energy, ndim=1, like=residual)
        for name, energy in energies.items()
    }
    steps = np.arange(len(residual))
    total = np.sum(list(layers.values()), axis=0)

    figure = Figure(figsize=(9.4 + text_width(layers), 4), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    draw_layers(
        left,
        {name: (steps, energy) for name, energy in layers.items()},
        total=(steps, total) if len(layers) > 1 else None,
    )
    log_scale(left, np.stack([*layers.values(), total]))
    left.set(ylabel="energy an example (nats)")
    right.plot(steps, residual, color=ink(), marker=marker(len(steps)), label="residual")
    log_scale(right, residual)
    right.set(ylabel="residual, root mean square of dF/dz")
    right.grid(alpha=0.3)
    for axis in (left, right):
        _inference_steps(axis, last=len(residual) - 1)
    return figure


def trajectory_figure(
    trajectories: Mapping[str, np.ndarray], *, units: int = 20, title: str = ""
) -> Figure:
    """Draw a panel for each layer: the activity of each unit by inference step, for one example.

    Up to six layers are shown, the first, the last and evenly between, and of each layer up to `units`
    units, chosen in the same way. Colors follow the order of the activities at the start, from dark
    (lowest) to light, so that units which change places show. `pc.analysis.trajectories` makes them.

    Args:
        trajectories: {layer name: (num_steps + 1, features)}, the layer nearest the input first.
        units: at most this many lines a panel.
        title: over all panels.

    Raises:
        ValueError: for no layers, arrays of other shapes than these, or `units` below 1.

    >>> import numpy as np
    >>> figure = trajectory_figure({"hidden": np.zeros((21, 300)), "output": np.ones((21, 10))})
    >>> print(*[len(axis.lines) for axis in figure.axes])
    20 10
    """
    if not trajectories:
        raise ValueError("expected the trajectories of at least one layer, got none")
    if units < 1:
        raise ValueError(f"expected units >= 1, got {units}; it is the number of lines a panel")
    layers: dict[str, np.ndarray] = {}
    for name, values in trajectories.items():
        like = next(iter(layers.values()), None)
        layers[name] = _by_step(f"the trajectory of layer '{name}'", values, ndim=2, like=like)
    names = [list(layers)[index] for index in evenly(len(layers), _MOST_PANELS)]

    # four panels look better two by two than three and one
    columns = 2 if len(names) == 4 else min(len(names), _MOST_COLUMNS)
    rows = math.ceil(len(names) / columns)
    # a medium title is a fifth wider than a small one
    width = max(3.0, 1.2 * text_width(_title(name, layers[name], units) for name in names))
    figure = Figure(figsize=(1 + width * columns, 0.6 + 2.6 * rows), layout="constrained")
    figure.suptitle(title)
    for number, name in enumerate(names):
        axis = figure.add_subplot(rows, columns, number + 1)
        _units(axis, name, layers[name], units)
        if number % columns == 0:
            axis.set_ylabel("activity")
    return figure


def _units(axis: Axes, name: str, values: np.ndarray, units: int) -> None:
    num_points, features = values.shape
    shown = values[:, evenly(features, units)]
    colors = matplotlib.colormaps["plasma"](np.linspace(0.0, 0.9, shown.shape[1]))
    # stable, so that units that start alike keep their order
    for color, unit in zip(colors, np.argsort(shown[0], kind="stable"), strict=True):
        axis.plot(np.arange(num_points), shown[:, unit], color=color, marker=marker(num_points))
    axis.set_title(_title(name, values, units), fontsize="medium")
    axis.grid(alpha=0.3)
    _inference_steps(axis, last=num_points - 1)


def _title(name: str, values: np.ndarray, units: int) -> str:
    features = values.shape[1]
    some = f"{units} of " if units < features else ""
    return f"{plain(name)}: {some}{features} unit{'' if features == 1 else 's'}"


def _inference_steps(axis: Axes, last: int) -> None:
    axis.set_xlabel("inference step")
    step_axis(axis, 0, last)


def _by_step(
    what: str, values: np.ndarray, *, ndim: int, like: np.ndarray | None = None
) -> np.ndarray:
    """Return the values as floats, (num_steps + 1,) or (num_steps + 1, features), as many as `like` has."""
    values = np.asarray(values, dtype=float)
    if values.ndim != ndim or values.size == 0:
        expected, remedy = {
            1: ("(num_steps + 1,)", "average over the batch: values.mean(axis=1)"),
            2: ("(num_steps + 1, features)", "give one example, its features in one axis"),
        }[ndim]
        raise ValueError(f"expected {what} to be {expected}, got shape {values.shape}; {remedy}")
    if like is not None and len(values) != len(like):
        raise ValueError(
            f"expected {what} at the same {len(like)} steps as the others, start and end included, "
            f"got {len(values)}; give all of one inference"
        )
    return values
