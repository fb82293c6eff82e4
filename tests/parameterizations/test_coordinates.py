"""Coordinate checks: how large activities are, and how far one step of Adam moves them, over width and depth.

What a parameterization promises is a slope of 0 on log-log axes. Under the standard one, beside it in each
test, the slopes are far from it, so that no test here passes for want of an effect. Weights are drawn in
NumPy as each parameterization's initializer says, which spares a compiled program for each shape.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from pcflax.parameterizations import CompleteP, MuPC, Standard

pytestmark = pytest.mark.slow

RATE = 0.01
RANDOM = np.random.RandomState(0)
TOKENS = RANDOM.randint(7, size=(4, 6))
INPUTS = {
    "dense": RANDOM.normal(size=(4, 10)).astype(np.float32),
    "conv": RANDOM.normal(size=(4, 4, 4, 2)).astype(np.float32),
    "attention": TOKENS[:, :-1],
}
VALUES = RANDOM.normal(size=(4, 3)).astype(np.float32)
TARGETS = {
    "dense": VALUES,
    "conv": VALUES,
    "attention": np.eye(7, dtype=np.float32)[TOKENS[:, 1:]],
}


def chain(first, hidden, output, depth):
    layers = {"first": first}
    if depth > 2:
        layers["hidden"] = pc.PCStack(hidden, depth - 2)
    return pc.PCNetwork(layers | {"output": output})


def mean_over_space(features):
    return jnp.tanh(features).mean(axis=(1, 2))


def build(kind, parameterization, width, depth):
    """A residual network whose first and last layer change the width."""
    shared = {"parameterization": parameterization, "rngs": nnx.Rngs(0)}
    first = {"activation_first": True} | shared
    residual = {"activation": jnp.tanh, "skip": True} | first
    if kind == "dense":
        return chain(
            pc.PCDense(10, width, **shared),
            lambda: pc.PCDense(width, width, **residual),
            pc.PCDense(width, 3, activation=jnp.tanh, **first),
            depth,
        )
    if kind == "conv":
        return chain(
            pc.PCConv(2, width, 3, **shared),
            lambda: pc.PCConv(width, width, 3, **residual),
            pc.PCDense(width, 3, activation=mean_over_space, **first),
            depth,
        )
    embedding = {"num_positions": 5, "embedding_init": nnx.initializers.normal(1.0)}
    return chain(
        pc.PCEmbedding(7, width, **embedding, rngs=nnx.Rngs(0)),
        lambda: pc.PCAttention(width, 4, causal=True, **shared),
        pc.PCDense(
            width, 7, activation=jax.nn.standardize, energy=pc.energies.Categorical(), **first
        ),
        depth,
    )


def drawn(network, parameterization):
    """Parameters as the layers draw them: N(0, 1), or variance 1/fan-in where it is Standard."""
    random = np.random.RandomState(1)

    def draw(path, leaf):
        names = [jax.tree_util.keystr((key,), simple=True) for key in path]
        if names[-1] in ("bias", "scale"):
            return np.full(leaf.shape, float(names[-1] == "scale"), np.float32)
        values = random.normal(size=leaf.shape)
        if isinstance(parameterization, Standard) and names[-1] == "kernel":
            shape = leaf.shape["stacked-layers" in names :]
            heads = names[-2] in ("query", "key", "value")
            values /= np.sqrt(shape[0] if heads else np.prod(shape[:-1]))
        return values.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, pc.networks.split(network).parameters)


BACKPROP = pc.learning.Backprop()
INFERENCE = pc.inference.GradientDescent(0.2, num_steps=10)


@functools.cache
def measured(kind, parameterization, width, depth, rule=BACKPROP):
    """Sizes of the topmost hidden activity, and of the moves of it, the first and the output."""
    network = nnx.eval_shape(lambda: build(kind, parameterization, width, depth))
    # the first step has the size of the rate, whatever the gradient: no epsilon may stop that
    optimizer = optax.chain(optax.adam(RATE, eps=1e-30), pc.learning.scale_by_layer(network))
    pure = pc.networks.split(network)
    x, y = INPUTS[kind], TARGETS[kind]

    @jax.jit
    def run(parameters):
        before = pure.replace(parameters=parameters)
        evidence = pc.Evidence(jnp.asarray(x), jnp.asarray(y))
        gradients, _ = rule.gradients(before, evidence, key=jax.random.key(0))
        with jax.numpy_dtype_promotion("standard"):  # optax counts in integers
            updates, _ = optimizer.update(gradients, optimizer.init(gradients), parameters)
        after = before.replace(parameters=optax.apply_updates(parameters, updates))

        def activities(pure):
            bound = pure.bind()
            found = bound.feedforward(x)
            top = found["hidden"][:, -1] if "hidden" in found else found["first"]
            return {"first": found["first"], "hidden": top, "output": bound.predict(x)}

        old, new = activities(before), activities(after)
        moves = {name: size(new[name] - old[name]) for name in old}
        return moves | {"size": size(old["hidden"])}

    return {name: float(value) for name, value in run(drawn(network, parameterization)).items()}


def size(values):
    """Root mean square."""
    return jnp.sqrt(jnp.mean(jnp.square(values)))


def slope(name, kind, parameterization, *places, **rule):
    """Of log size over the log of what two places (width, depth) differ in."""
    few, many = (measured(kind, parameterization, *place, **rule)[name] for place in places)
    factor = max(large / small for small, large in zip(*places, strict=True))
    return np.log(many / few) / np.log(factor)


EVERY = [
    ("dense", MuPC()),
    ("dense", CompleteP()),
    ("conv", CompleteP()),
    ("attention", CompleteP()),
]
NARROW, WIDE, DEEP, SHALLOW = (32, 4), (512, 4), (32, 16), (32, 2)


@pytest.mark.parametrize(("kind", "parameterization"), EVERY)
class TestSlopes:
    @pytest.mark.parametrize("name", ["size", "first", "hidden", "output"])
    def test_over_width_are_0(self, kind, parameterization, name):
        """From 32 to 512. 0.05 is 15 % at 16 times the width: the spread of a few hundred draws."""
        assert abs(slope(name, kind, parameterization, NARROW, WIDE)) < 0.05

    def test_over_depth_are_those_of_a_growing_share_of_hidden_layers(self, kind, parameterization):
        """From 4 to 16 the topmost hidden activity moves by 1 + (L - 2)/L of a layer: a slope of 0.16.

        In a block of attention, where several matrices move, the share of blocks counts more than that.
        Sizes stay, or grow by (1 + 1/L)^((L - 2)/2) under muPC, a slope of 0.15 in a linear network.
        """
        assert abs(slope("hidden", kind, parameterization, NARROW, DEEP) - 0.16) < 0.1
        limit = 0.05 if isinstance(parameterization, CompleteP) else 0.15
        assert abs(slope("size", kind, parameterization, NARROW, DEEP)) < limit
        few = SHALLOW if kind == "dense" else NARROW
        assert abs(slope("first", kind, parameterization, few, DEEP)) < 0.05
        assert abs(slope("output", kind, parameterization, NARROW, DEEP)) < 0.15


@pytest.mark.parametrize("name", ["first", "hidden", "output"])
def test_predictive_coding_moves_as_far_at_every_width(name):
    """Adam's first step asks gradients for their signs alone, whichever rule they are of."""
    rule = pc.learning.PredictiveCoding(INFERENCE)
    assert abs(slope(name, "dense", CompleteP(), NARROW, WIDE, rule=rule)) < 0.05


class TestWithoutIt:
    @pytest.mark.parametrize("kind", ["dense", "conv", "attention"])
    def test_moves_grow_with_the_width(self, kind):
        assert slope("hidden", kind, Standard(), NARROW, WIDE) > 0.6
        assert slope("output", kind, Standard(), NARROW, WIDE) > 0.6

    @pytest.mark.parametrize("kind", ["dense", "attention"])
    def test_activities_and_moves_grow_with_the_depth(self, kind):
        assert slope("size", kind, Standard(), NARROW, DEEP) > 0.3
        assert slope("hidden", kind, Standard(), NARROW, DEEP) > 0.8
