"""The figure of a network's wiring: which node is predicted from which, and by what.

Boxes are nodes, arrows predictions, and what stands higher is predicted from what stands lower. Next file to
read: `placing.py`, where boxes and arrows go.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path

from pcflax.networks import AbstractPCNetwork
from pcflax.networks.summary import node_shapes, parameter_counts
from pcflax.networks.wiring import Combine, names_of

from .lines import plain, text_width
from .placing import Point, place

_LINE, _MARGIN, _PORT, _LOOP = 0.17, 0.15, 0.3, 0.35  # inches
_TEXT, _INK = 8, "#1d2430"
# Kind of arrow: color, line, what it is.
_ARROWS: dict[str, tuple[str, Any, str]] = {
    "prediction": (_INK, "-", "prediction"),
    "before": (_INK, ":", "prediction from the step before"),
    "predictor": ("#c2610c", "-", "further predictor of a node"),
    "amortizer": ("#23804f", (0, (5, 2)), "amortizer, in learning alone"),
    "feedback": ("#b03a68", (0, (4, 1.5, 1, 1.5)), "error through feedback weights"),
}
_FILLS = {"known": "#cfdcec", "node": "#eef3f9", "edge": "#ffffff"}


@dataclasses.dataclass
class _Box:
    """What is drawn for a node, or on the way of an arrow that is a layer."""

    title: str
    lines: list[str]
    fill: str = "node"
    stacked: bool = False
    color: str = _INK
    loops: bool = False

    @property
    def size(self) -> Point:
        """Width and height in inches, with room for a loop."""
        width = max(1.15 * text_width([self.title]), text_width([*self.lines, ""])) + 0.24
        return width + 2 * _LOOP * self.loops, _LINE * (1 + len(self.lines)) + 0.14


def graph_figure(network: AbstractPCNetwork, inputs: Any = None, *, title: str = "") -> Figure:
    """Draw the wiring of a network: a box a node, an arrow a prediction, what is predicted on top.

    A box tells the layer's name, class, energy unless it is a plain Gaussian, the shape of one example's
    activity and the number of its parameters. Darker boxes are what inputs and targets clamp. A stack is one
    box with its depth. Layers that predict another layer's node, and amortizers, are white boxes on the way
    of their arrows; feedback weights are arrows back. The size of the figure follows from the network.

    Args:
        network: of any wiring, cycles and steps of time included; only its structure is looked at.
        inputs: arrays or their shapes with the batch first, as `network.summary` takes them, to tell the
            shape of every node; without, a shape is told where activities are stored or the layer has it.
        title: over the graph.

    Raises:
        ValueError, TypeError: for inputs that the network cannot take.

    >>> import pcflax as pc
    >>> from flax import nnx
    >>> network = pc.models.mlp(64, 32, 10, rngs=nnx.Rngs(0))
    >>> figure = graph_figure(network, (1, 64))
    >>> [text.get_text() for text in figure.axes[0].texts][3:]
    ['hidden_1', 'PCDense', '32 · 2,080 parameters', 'output', 'output · PCDense', '10 · 330 parameters']
    """
    boxes, edges, order = _read(network, node_shapes(network, inputs))
    between = [(start, end) for start, end, _ in edges if start != end]
    sizes = {name: box.size for name, box in boxes.items()}
    centers, routes = place(sizes, between, order)
    kinds = [kind for kind in _ARROWS if any(kind == own for _, _, own in edges)]
    told = kinds if kinds != ["prediction"] else []

    left = min(x - sizes[name][0] / 2 for name, (x, _) in centers.items()) - _MARGIN
    right = max(x + sizes[name][0] / 2 for name, (x, _) in centers.items()) + _MARGIN
    for x, _ in (point for route in routes for point in route):
        left, right = min(left, x - _MARGIN), max(right, x + _MARGIN)
    words = text_width([title, *(f"------- {_ARROWS[kind][2]}" for kind in told)]) + 2 * _MARGIN
    room = max(0.0, words - (right - left)) / 2
    left, right = left - room, right + room
    bottom = -_MARGIN - (_LINE * len(told) + 0.15 if told else 0)
    top = max(y + sizes[name][1] / 2 for name, (_, y) in centers.items()) + _MARGIN + 0.06
    top += 0.25 if title else 0.0

    # its ink is dark in every style
    figure = Figure(figsize=(right - left, top - bottom), facecolor="white")
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(left, right), ylim=(bottom, top))
    axis.set_axis_off()
    paths = _paths(boxes, between, [kind for s, e, kind in edges if s != e], centers, routes)
    for (_, end, kind), path in zip((e for e in edges if e[0] != e[1]), paths, strict=True):
        _arrow(axis, path, kind, head=boxes[end].fill != "edge")
    for name, box in boxes.items():
        _draw(axis, box, centers[name])
    for kind in dict.fromkeys((name, kind) for name, end, kind in edges if name == end):
        _arrow(axis, _loop(boxes[kind[0]], centers[kind[0]]), kind[1], head=True)
    if title:
        axis.text((left + right) / 2, top - 0.2, title, ha="center", va="center", fontsize=10)
    for number, kind in enumerate(told):
        color, line, words_of = _ARROWS[kind]
        y = -_MARGIN - 0.1 - _LINE * (number + 0.5)
        axis.add_line(Line2D([left + 0.15, left + 0.55], [y, y], color=color, linestyle=line))
        axis.text(left + 0.65, y, words_of, va="center", fontsize=_TEXT, color=_INK)
    return figure


def _read(network: AbstractPCNetwork, shapes: Any) -> tuple[dict, list, list[str]]:
    """Return boxes by name, edges (start, end, kind), and the order of boxes, lower ones first."""
    wiring, counts = network.wiring, parameter_counts(network)
    before = {name: name.rpartition("@")[0] for name, _ in wiring.previous}
    boxes: dict[str, _Box] = {}
    for name in wiring.inputs:
        if name not in wiring.names:
            shape = _shape(shapes.get(name, ()))
            title = "inputs" if wiring.is_chain else name
            boxes[name] = _Box(title, ["input", *([shape] if shape else [])], "known")

    def box(name: str, role: str = "", fill: str = "node") -> _Box:
        layer = network.layer(name).top_node_layer()
        energy = type(layer.energy).__name__
        stack = network.layer(name).num_nodes
        kind = type(layer).__name__ + (f" x {stack}" if stack > 1 else "")
        words = [role, kind, "" if energy == "Gaussian" else energy]
        number = f"{counts[name]:,} parameters" if counts[name] else ""
        lines = [" · ".join(filter(None, words))]
        sized = [_shape(shapes.get(name, ())) if fill != "edge" else "", number]
        lines += [" · ".join(filter(None, sized))] if any(sized) else []
        return _Box(name, lines, fill, stacked=stack > 1)

    edges: list[tuple[str, str, str]] = []

    def predict(name: str, parents: Any, kind: str) -> None:
        for parent in dict.fromkeys(names_of(parents)):
            edges.append((before.get(parent, parent), name, "before" if parent in before else kind))
        if isinstance(parents, Combine):
            boxes[name].lines.append(f"{type(parents).__name__} of {len(parents.names)} parents")

    for name, parents in wiring.parents:
        clamped = "output" if name in wiring.outputs else "input" if name in wiring.inputs else ""
        boxes[name] = box(name, clamped, "known" if clamped else "node")
        predict(name, parents, "prediction")
        if name in network.fed_back:
            nodes = [parent for parent in names_of(parents) if parent in wiring.names]
            edges.extend((name, parent, "feedback") for parent in nodes)
    number = {name: (float(index), 0) for index, name in enumerate(boxes)}
    others = [(*one, "predictor") for one in wiring.predictors]
    others += [(*one, "amortizer") for one in wiring.amortizers]
    for name, parents, node, kind in others:
        boxes[name] = box(name, fill="edge")
        boxes[name].color = _ARROWS[kind][0]
        predict(name, parents, kind)
        edges.append((name, node, kind))
        ends = [number[end][0] for end in (*(before.get(p, p) for p in names_of(parents)), node)]
        number[name] = ((min(ends) + max(ends)) / 2, 1)
    for start, end, _ in edges:
        boxes[end].loops |= start == end
    return boxes, edges, sorted(boxes, key=number.__getitem__)


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _paths(
    boxes: dict[str, _Box],
    edges: Sequence[tuple[str, str]],
    kinds: Sequence[str],
    centers: dict[str, Point],
    routes: Sequence[list[Point]],
) -> list[Path]:
    """Return the curve of each edge: between ports that are spread along the boxes' sides, by its points."""
    sides: dict[tuple[str, bool], list[tuple[float, int, int]]] = {}
    for number, ((start, end), route) in enumerate(zip(edges, routes, strict=True)):
        low, high = sorted((start, end), key=lambda name: centers[name][1])
        toward = [route[0][0], route[-1][0]] if route else [centers[high][0], centers[low][0]]
        lane = list(_ARROWS).index(kinds[number])
        sides.setdefault((low, True), []).append((round(toward[0], 3), lane, number))
        sides.setdefault((high, False), []).append((round(toward[1], 3), lane, number))
    ports: dict[tuple[str, int], Point] = {}
    for (name, is_top), own in sides.items():
        (x, y), (width, height) = centers[name], boxes[name].size
        width -= 2 * _LOOP * boxes[name].loops
        apart = min(_PORT, 0.8 * width / len(own))
        for place_of, (_, _, number) in enumerate(sorted(own)):
            shift = (place_of - (len(own) - 1) / 2) * apart
            ports[name, number] = (x + shift, y + height / 2 if is_top else y - height / 2)
    paths = []
    for number, ((start, end), route) in enumerate(zip(edges, routes, strict=True)):
        low, high = sorted((start, end), key=lambda name: centers[name][1])
        points = [ports[low, number], *route, ports[high, number]]
        paths.append(_curve(points if start == low else points[::-1]))
    return paths


def _curve(points: Sequence[Point]) -> Path:
    """Return the curve through these points that is vertical in each of them."""
    vertices, codes = [points[0]], [Path.MOVETO]
    for (x, y), (to_x, to_y) in itertools.pairwise(points):
        half = (y + to_y) / 2
        vertices += [(x, half), (to_x, half), (to_x, to_y)]
        codes += [Path.CURVE4] * 3
    return Path(vertices, codes)


def _loop(box: _Box, center: Point) -> Path:
    x, height = center[0] + box.size[0] / 2 - _LOOP, box.size[1]
    high, low = center[1] + height / 4, center[1] - height / 4
    far = x + 1.2 * _LOOP
    return Path([(x, high), (far, high + 0.05), (far, low - 0.05), (x, low)], [1, 4, 4, 4])


def _arrow(axis: Axes, path: Path, kind: str, *, head: bool) -> None:
    color, line, _ = _ARROWS[kind]
    style = "-|>,head_length=4,head_width=2" if head else "-"
    axis.add_patch(
        FancyArrowPatch(
            path=path, arrowstyle=style, color=color, linestyle=line, linewidth=1.2, mutation_scale=1.4
        )
    )  # fmt: skip


def _draw(axis: Axes, box: _Box, center: Point) -> None:
    """Draw a box with its texts; a stack has others behind it."""
    (x, y), (width, height) = center, box.size
    width -= 2 * _LOOP * box.loops
    rounding = 0.12 if box.fill == "edge" else 0.05
    for shift in (0.08, 0.04, 0.0) if box.stacked else (0.0,):
        corner = (x - width / 2 + shift, y - height / 2 + shift)
        axis.add_patch(
            FancyBboxPatch(
                corner,
                width,
                height,
                boxstyle=f"round,pad=0,rounding_size={rounding}",
                facecolor=_FILLS[box.fill],
                edgecolor=box.color,
                linewidth=0.9,
                zorder=3,
            )
        )
    for number, line in enumerate([box.title, *box.lines]):
        at = y + height / 2 - 0.07 - _LINE * (number + 0.5)
        weight = "normal" if number else "bold"
        axis.text(
            x, at, plain(line), ha="center", va="center", fontsize=_TEXT, weight=weight, color=_INK, zorder=4
        )  # fmt: skip
