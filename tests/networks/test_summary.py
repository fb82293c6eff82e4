"""The summary of a network: rows and costs.

Oracles: matrix products counted by hand from the widths, in NumPy; the arrays' own sizes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pcflax as pc

DESCENT = pc.inference.GradientDescent(0.1, num_steps=7)
BATCH = 5


def products(widths):
    """Operations of one product by each weight matrix, for the batch."""
    widths = np.asarray(widths)
    return 2 * BATCH * widths[:-1] * widths[1:]


def flops(summary):
    return {name: cost.flops for name, cost in summary.costs.items()}


@pytest.mark.usefixtures("double")
def test_a_chain_costs_what_its_products_cost():
    widths = (13, 7, 11, 6)
    network = pc.models.mlp(*widths, activation=jnp.tanh, rngs=nnx.Rngs(0))
    learning = {
        "backprop": pc.learning.Backprop(),
        "pc": pc.learning.PredictiveCoding(DESCENT),
        "incremental": pc.learning.IncrementalPC(DESCENT),
    }
    found = network.summary((BATCH, widths[0]), inference=DESCENT, learning=learning)
    each = products(widths)
    # a step goes up and down; the first layer's prediction does not change meanwhile, nor is the input moved
    step = 2 * each[1:].sum()
    backprop = 3 * each.sum() - each[0]
    expected = {
        "pass upward": each.sum(),
        "weight gradient": 2 * each.sum(),
        "backpropagation's gradient": backprop,
        "GradientDescent, a step": step,
        "GradientDescent, 7 steps": 7 * step,
        "backprop": backprop,
        # the start needs no prediction of the clamped output; the first prediction is known by then
        "pc": each[:-1].sum() + 7 * step + 2 * each.sum() - each[0],
    }
    told = flops(found)
    incremental = told.pop("incremental")
    assert told == expected
    # weights move with the activities: every step has both gradients, and predicts the first layer anew
    most = each.sum() + 7 * (2 * each.sum() + step + each.sum())
    assert 7 * (step + 2 * each.sum() - each[1:].sum()) <= incremental <= most
    assert found.batch_size == BATCH
    assert found.parameters == sum(a * b + b for a, b in zip(widths, widths[1:], strict=False))
    assert all(cost.bounded for cost in found.costs.values())
    kernels = 8 * sum(a * b for a, b in zip(widths, widths[1:], strict=False))
    assert found.costs["pass upward"].bytes > kernels  # of 8 bytes each
    assert found.costs["weight gradient"].bytes > 2 * kernels


def test_rows_are_the_layers_and_nothing_is_stored():
    network = pc.PCNetwork(
        {
            "first": pc.PCDense(3, 4, activation=jnp.tanh, rngs=nnx.Rngs(0)),
            "last": pc.PCDense(
                4, 2, parameterization=pc.parameterizations.MuPC(), rngs=nnx.Rngs(1)
            ),
        }
    )
    before = jax.tree.leaves(nnx.state(network))
    found = network.summary(jnp.ones((5, 3)))
    first, last = found.layers
    assert tuple(first) == ("first", "PCDense", 1, ("inputs",), (4,), 16, 1.0)
    assert tuple(last) == ("last", "PCDense", 1, ("first",), (2,), 10, 0.25)
    for old, new in zip(before, jax.tree.leaves(nnx.state(network)), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_stack_costs_what_its_layers_cost():
    """Its layers are a loop in the pass upward, one call of all of them in a step."""
    depth, width = 6, 8
    network = pc.models.residual_mlp(13, width, 4, depth=depth, rngs=nnx.Rngs(0))
    errors = pc.inference.ErrorCoordinates(DESCENT)
    found = network.summary((BATCH, 13), inference={"plain": DESCENT, "errors": errors})
    each = products((13, *[width] * (depth - 1), 4))
    told = flops(found)
    assert told["pass upward"] == each.sum()
    assert told["weight gradient"] == 2 * each.sum()
    assert told["backpropagation's gradient"] == 3 * each.sum() - each[0]
    assert told["plain, a step"] == 2 * each[1:].sum()
    # up for the activities and down with the errors, both layer after layer, at the least
    assert 2 * each[1:].sum() <= told["errors, a step"] <= 5 * each[1:].sum()
    row = found.layers[1]
    assert (row.kind, row.nodes, row.shape) == ("PCDense", depth - 2, (width,))
    assert row.parameters == (depth - 2) * width * width
    assert row.multiplier == pytest.approx(1 / np.sqrt(width * depth))


def test_a_graph_names_parents_and_outputs():
    rngs = nnx.Rngs(0)
    network = pc.PCGraph(
        {
            "left": pc.PCDense(3, 4, activation=jnp.tanh, rngs=rngs),
            "right": pc.PCDense(5, 6, activation=jnp.tanh, rngs=rngs),
            "out": pc.PCDense(10, 2, rngs=rngs),
            "other": pc.PCDense(4, 7, rngs=rngs),
        },
        parents={
            "left": "x",
            "right": "y",
            "out": pc.networks.Concatenate("left", "right"),
            "other": "left",
        },
        inputs={"x": 3, "y": 5},
        output=("out", "other"),
    )
    found = network.summary({"x": (BATCH, 3), "y": (BATCH, 5)}, inference=DESCENT)
    inputs, tops = 2 * BATCH * (3 * 4 + 5 * 6), 2 * BATCH * (10 * 2 + 4 * 7)
    assert found.costs["pass upward"].flops == inputs + tops
    assert found.costs["GradientDescent, a step"].flops == 2 * tops
    assert {row.name: row.parents for row in found.layers}["out"] == ("left", "right")


def test_a_predictor_has_a_row_and_no_pass_upward():
    network = pc.models.bidirectional(4, 6, 3, rngs=nnx.Rngs(0))
    found = network.summary(None, batch_size=BATCH)
    assert "backpropagation's gradient" not in found.costs
    assert {row.name for row in found.layers} == set(network.layer_names)
    assert found.parameters == sum(row.parameters for row in found.layers)


def test_convolutions_and_tokens():
    images = pc.PCNetwork(
        [
            pc.PCConv(2, 3, (3, 3), activation=jnp.tanh, pool="max", rngs=nnx.Rngs(0)),
            pc.PCLayer(nnx.Sequential(pc.layers.Flatten(), nnx.Linear(48, 4, rngs=nnx.Rngs(0)))),
        ]
    )
    found = images.summary((BATCH, 8, 8, 2))
    assert found.layers[0].shape == (4, 4, 3)
    assert found.costs["pass upward"].flops == 2 * BATCH * (8 * 8 * 9 * 2 * 3 + 48 * 4)
    length, width, vocabulary = 6, 8, 11
    words = pc.models.transformer(
        vocabulary, length, width, num_heads=2, num_blocks=1, rngs=nnx.Rngs(0)
    )
    found = words.summary((BATCH, length))
    row = 4 * width**2 + 2 * length * width + 8 * width**2 + width * vocabulary
    assert found.costs["pass upward"].flops == 2 * BATCH * length * row
    assert found.parameters == sum(
        leaf.size for leaf in jax.tree.leaves(nnx.state(words, nnx.Param))
    )


def test_what_converges_is_counted_once_and_marked():
    network = pc.models.mlp(3, 4, 2, rngs=nnx.Rngs(0))
    newton = pc.inference.NewtonCG(num_steps=3)
    adaptive = pc.inference.GradientDescent(0.1, tolerance=1e-3, max_steps=50)
    found = network.summary((BATCH, 3), inference={"newton": newton, "descent": adaptive})
    assert not found.costs["newton, a step"].bounded
    assert found.costs["descent, 50 steps at most"].flops == 50 * 2 * 2 * BATCH * 4 * 2
    text = str(found)
    assert ">=" in text
    assert "descent, 50 steps at most" in text
    assert "26 parameters" in text
    assert found._repr_html_().startswith("<pre>")
    assert "&gt;=" in found._repr_html_()


def test_refusals():
    network = pc.models.decoder(2, 4, 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"expected a batch_size: summary\(None, batch_size=64\)"):
        network.summary(None)
    chain = pc.models.mlp(3, 4, 2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="hidden_1"):
        chain.summary((BATCH, 7))
    with pytest.raises(ValueError, match="a cost of 'pass upward' already"):
        chain.summary((BATCH, 3), learning={"pass upward": pc.learning.Backprop()})
