"""Graphs from a matrix: every edge, and no other, becomes a parent.

Oracles: the same graph wired by hand, and which derivatives are zero.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pcflax as pc

# x -> a, b; a <-> b; b -> b, y; a -> y
EDGES = np.array([[0, 1, 1, 0], [0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0]])
NAMES, WIDTHS = ("x", "a", "b", "y"), (3, 5, 4, 2)


def maker(seed=0):
    rngs = nnx.Rngs(seed)
    return lambda name, below, width: pc.PCDense(below, width, activation=jnp.tanh, rngs=rngs)


def build(matrix=EDGES, make=None, **options):
    settings = {"widths": WIDTHS, "names": NAMES, "inputs": "x", "output": "y"} | options
    return pc.networks.from_adjacency(matrix, make or maker(), **settings)


def test_it_is_the_graph_that_one_wires_by_hand():
    make, both = maker(), pc.networks.Concatenate
    layers = {"a": make("a", 7, 5), "b": make("b", 12, 4), "y": make("y", 9, 2)}
    by_hand = pc.PCGraph(
        layers,
        parents={"a": both("x", "b"), "b": both("x", "a", "b"), "y": both("a", "b")},
        inputs={"x": 3},
        output="y",
    )
    found = build()
    assert found.wiring == by_hand.wiring
    assert found.cyclic == ("a", "b")
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), jnp.float32)
    np.testing.assert_array_equal(found.predict(x), by_hand.predict(x))


def test_a_node_depends_on_its_parents_alone():
    network = build()
    split = pc.networks.split(network)
    x = jnp.ones((1, 3))

    def predictions(x, activities):
        return split.bind(activities).predictions(x)

    @jax.jit
    def slopes_at_start(x):
        return jax.jacobian(predictions, argnums=(0, 1))(x, split.bind().feedforward(x))

    slopes = jax.tree.map(np.asarray, slopes_at_start(x))
    for column, name in enumerate(NAMES):
        if name == "x":
            continue
        wrt_x, wrt_z = slopes[name]
        for row, parent in enumerate(NAMES):
            slope = wrt_x if parent == "x" else wrt_z[parent]
            assert bool((slope != 0).any()) == bool(EDGES[row, column]), (parent, name)


@pytest.mark.parametrize("width", [4, np.int64(4)])
def test_one_width_and_no_names_and_a_root(width):
    matrix = np.array([[False, True, False], [False, False, True], [False, False, False]])
    make = maker()
    network = build(
        matrix,
        lambda name, below, width: make(name, below, width) if below else pc.PCRoot(width),
        widths=width,
        names=None,
        inputs=(),
        output="2",
    )
    assert network.names == ("0", "1", "2")
    assert network.predict(batch_size=3).shape == (3, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"matrix": EDGES[:3]}, r"expected a square matrix, .*, got \(3, 4\)"),
        ({"matrix": EDGES * 0.5}, "of Booleans, or of 0 and 1; compare: matrix > 0.5"),
        ({"names": ("x", "y")}, "expected 4 names, one for each row of the matrix, got 2"),
        ({"widths": (3, 5)}, "expected 4 widths, one for each row of the matrix, got 2"),
        ({"widths": (3, 5, 0, 2)}, "the width of node 'b'"),
        ({"names": ("x", "a", "a", "y")}, "expected names that differ"),
        ({"inputs": "z"}, "the input 'z' is no node; .*expected some of x, a, b, y"),
        ({"inputs": ("x", "a")}, "the input 'a' comes from outside, but the matrix lets 'x' predict it"),
        ({"output": "z"}, "the output 'z' is no layer"),
    ],
)  # fmt: skip
def test_refusals(change, message):
    with pytest.raises(ValueError, match=message):
        build(**change)


@pytest.mark.parametrize("change", [{"inputs": 0}, {"inputs": [np.int64(0)]}, {"output": 3}])
def test_numbers_in_the_place_of_names_are_refused(change):
    (role,) = change
    with pytest.raises(TypeError, match=f"expected {role} by name, such as 'x', got"):
        build(**change)


def test_what_makes_no_layer_is_refused():
    with pytest.raises(TypeError, match="expected make to be a function of name, width_in and"):
        build(make=3)
