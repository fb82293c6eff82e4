"""The figure of a wiring. Oracles: parents and widths as they were given, and geometry."""

import itertools

import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.transforms import Affine2D

import pcflax as pc
from pcflax.plotting import graph_figure
from pcflax.plotting.placing import place

pytestmark = pytest.mark.slow

RNGS = nnx.Rngs(0)
INK, ORANGE, GREEN, RED = "#1d2430", "#c2610c", "#23804f", "#b03a68"


def dense(below, width, **options):
    return pc.PCDense(below, width, rngs=RNGS, **options)


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def boxes(figure):
    """{name: (left, bottom, right, top)}, by the text that is on top in a box."""
    axis, found = figure.axes[0], {}
    for box in (p for p in axis.patches if isinstance(p, FancyBboxPatch)):
        left, bottom = box.get_x(), box.get_y()
        right, top = left + box.get_width(), bottom + box.get_height()
        inside = [
            t for t in axis.texts
            if left < t.get_position()[0] < right and bottom < t.get_position()[1] < top
        ]  # fmt: skip
        title = max(inside, key=lambda text: text.get_position()[1])
        found[title.get_text()] = (left, bottom, right, top)
    return found


def arrows(figure):
    """{(start, end, color)}, by the boxes that the ends of an arrow touch."""
    found, ends = [], boxes(figure)

    def touched(x, y):
        near = {n: max(a - x, x - c, b - y, y - d) for n, (a, b, c, d) in ends.items()}
        return min(near, key=lambda name: abs(near[name]))

    for arrow in (p for p in figure.axes[0].patches if isinstance(p, FancyArrowPatch)):
        path = arrow.get_path()
        line = path.vertices[: 1 + 3 * sum(path.codes == 4) // 3]
        found.append((touched(*line[0]), touched(*line[-1]), to_hex(arrow.get_edgecolor())))
    return sorted(found)


def test_a_chain_tells_shapes_and_parameters():
    widths = (7, 5, 3, 2)
    network = pc.models.mlp(*widths, energy=pc.energies.Categorical(), rngs=RNGS)
    figure = graph_figure(network, (4, 7), title="chain")
    lines = [f"{b} · {a * b + b:,} parameters" for a, b in itertools.pairwise(widths)]
    assert texts(figure) == [
        "inputs", "input", "7",
        "hidden_1", "PCDense", lines[0],
        "hidden_2", "PCDense", lines[1],
        "output", "output · PCDense · Categorical", lines[2],
        "chain",
    ]  # fmt: skip
    names = ["inputs", "hidden_1", "hidden_2", "output"]
    pairs = itertools.pairwise(names)
    assert arrows(figure) == sorted((*pair, INK) for pair in pairs)
    bottoms = [boxes(figure)[name][1] for name in names]
    assert bottoms == sorted(bottoms)


def test_a_stack_is_one_box_with_its_depth():
    hidden = pc.PCStack(lambda: dense(4, 4), 5)
    network = pc.PCNetwork({"first": dense(3, 4), "hidden": hidden, "last": dense(4, 2)})
    figure = graph_figure(network)
    shown = texts(figure)
    assert shown[shown.index("hidden") :][:3] == ["hidden", "PCDense x 5", "4 · 100 parameters"]
    assert len(arrows(figure)) == 3
    assert len([p for p in figure.axes[0].patches if isinstance(p, FancyBboxPatch)]) == 4 + 2


def test_a_graph_has_an_arrow_a_parent_and_none_passes_over_a_box():
    feedback = pc.layers.Feedback()
    layers = {
        "a": dense(3, 4, feedback=feedback),
        "b": dense(4, 4, feedback=feedback),
        "c": dense(8, 4, energy=pc.energies.Laplace()),
        "out": dense(11, 2),
    }
    concatenate = pc.networks.Concatenate
    parents = {"a": "x", "b": "a", "c": concatenate("b", "c"), "out": concatenate("a", "c", "x")}
    network = pc.PCGraph(layers, parents=parents, inputs={"x": 3}, output="out")
    figure = graph_figure(network, {"x": (1, 3)})
    expected = [("x", "a"), ("a", "b"), ("b", "c"), ("c", "c")]
    expected += [("a", "out"), ("c", "out"), ("x", "out")]
    told = [(*pair, INK) for pair in expected] + [("b", "a", RED)]
    assert arrows(figure) == sorted(told)
    assert {"Concatenate of 2 parents", "Concatenate of 3 parents"} <= set(texts(figure))
    assert texts(figure)[-2:] == ["prediction", "error through feedback weights"]
    low, high = figure.axes[0].get_xlim()
    for arrow in (p for p in figure.axes[0].patches if isinstance(p, FancyArrowPatch)):
        path = arrow.get_path().transformed(Affine2D().scale(100))  # a curve of many points
        points = path.to_polygons(closed_only=False)[0] / 100
        assert low < points[:, 0].min()
        assert points[:, 0].max() < high
        for left, bottom, right, top in boxes(figure).values():
            across, up = points.T
            apart = [left - across, across - right, bottom - up, up - top]
            assert (np.max(apart, axis=0) > -1e-6).all()


def test_predictors_amortizers_and_the_step_before_have_arrows_of_their_own():
    both = graph_figure(pc.models.bidirectional(6, 4, 2, rngs=RNGS))
    assert arrows(both) == sorted(
        [
            ("image", "hidden_1", INK),
            ("hidden_1", "label", INK),
            ("hidden_1", "down_image", ORANGE),
            ("down_image", "image", ORANGE),
            ("label", "down_hidden_1", ORANGE),
            ("down_hidden_1", "hidden_1", ORANGE),
        ]
    )
    assert "input · PCRoot" in texts(both)
    hybrid = graph_figure(pc.models.hybrid(2, 4, 6, rngs=RNGS))
    assert ("output", "guess_hidden_1", GREEN) in arrows(hybrid)
    assert texts(hybrid)[-1] == "amortizer, in learning alone"
    before = pc.networks.Previous("z")
    step = pc.PCGraph(
        {"z": dense(3, 2), "x": dense(2, 4)},
        parents={"z": pc.networks.Concatenate(before, "u"), "x": "z"},
        inputs={"u": 1},
        output="x",
    )
    figure = graph_figure(step)
    assert arrows(figure) == sorted([("u", "z", INK), ("z", "z", INK), ("z", "x", INK)])
    assert texts(figure)[-1] == "prediction from the step before"
    assert "z@-1" not in boxes(figure)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    st.integers(2, 7).flatmap(
        lambda n: st.lists(
            st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda e: e[0] != e[1]),
            min_size=1,
            max_size=12,
        )
    )
)
def test_boxes_never_overlap_and_routes_pass_beside_them(pairs):
    edges = [(str(a), str(b)) for a, b in pairs]
    order = sorted({end for edge in edges for end in edge})
    sizes = {name: (0.5 + int(name) / 5, 0.4 + int(name) / 10) for name in order}
    centers, routes = place(sizes, edges, order)
    for a, b in itertools.combinations(order, 2):
        away = np.abs(np.subtract(centers[a], centers[b]))
        assert (away >= (np.add(sizes[a], sizes[b]) / 2) - 1e-9).any()
    for (start, end), route in zip(edges, routes, strict=True):
        low, high = sorted((start, end))
        heights = [centers[low][1], *(y for _, y in route), centers[high][1]]
        assert heights == sorted(heights)
        for point, name in itertools.product(route, order):
            away = np.abs(np.subtract(point, centers[name]))
            assert (away >= np.divide(sizes[name], 2) - 1e-9).any()


def test_inputs_that_do_not_fit_are_refused():
    network = pc.PCNetwork({"output": dense(3, 2)})
    with pytest.raises(ValueError, match="set in_features=4"):
        graph_figure(network, (1, 4))
