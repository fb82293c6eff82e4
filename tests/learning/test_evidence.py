"""Weights of examples and missing targets, rule by rule, against the same examples one by one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from tests.conftest import in_double
from tests.test_conformance import RULES

# Langevin's noise is of a row, not of an example.
DETERMINISTIC = [name for name in RULES if "samples" not in name]
DRAW = np.random.RandomState(0)
X, Y, H = (DRAW.randn(4, width) for width in (3, 2, 5))
SGD, KEY = optax.sgd(0.3), jax.random.key(0)

pytestmark = [pytest.mark.usefixtures("double"), pytest.mark.slow]


@functools.cache
def network(energy=pc.energies.Gaussian):
    """A chain taken apart, with an output of this energy."""
    rngs = nnx.Rngs(1)
    options = {"rngs": rngs, "param_dtype": jnp.float64}
    layers = pc.PCNetwork(
        {
            "below": pc.PCDense(3, 5, activation=jnp.tanh, **options),
            "hidden": pc.PCDense(5, 5, activation=jnp.tanh, **options),
            "output": pc.PCDense(5, 2, energy=energy(), **options),
        }
    )
    return pc.networks.split(layers)


@jax.jit
def updated(rule, pure, evidence):
    return rule.update(pure, SGD, SGD.init(pure.parameters), evidence, key=KEY)[0].parameters


def change(rule, evidence, energy=pc.energies.Gaussian):
    """What one update adds to the parameters."""
    pure = network(energy)
    return jax.tree.map(np.subtract, updated(rule, pure, evidence), pure.parameters)


def assert_same(got, expected):
    for left, right in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_weight_of_two_is_a_row_twice_and_of_zero_none(name):
    rule, rows = RULES[name], np.array([0, 0, 1])
    weighed = pc.Evidence(X[:3], Y[:3], weights=np.array([2.0, 1.0, 0.0]))
    assert rule.weighs_examples
    assert_same(change(rule, weighed), change(rule, pc.Evidence(X[rows], Y[rows])))


def test_samples_are_weighed_too():
    """At temperature 0 the samples are those of a chain of steps."""
    langevin = pc.inference.Langevin(
        0.1, temperature=0.0, burn_in=2, num_samples=2, keep_samples=True
    )
    rule, rows = pc.learning.PredictiveCoding(langevin), np.array([0, 0, 1])
    weighed = pc.Evidence(X[:3], Y[:3], weights=np.array([2.0, 1.0, 0.0]))
    assert_same(change(rule, weighed), change(rule, pc.Evidence(X[rows], Y[rows])))


# Of a rule that moves weights while it infers, no update is a mean over examples.
# "implicit" descends the energy of targets alone, and wants some
GRADIENT_RULES = [n for n in DETERMINISTIC if n not in ("incremental", "implicit")]
KNOWN = np.array([True, False, True, False])


@pytest.mark.parametrize("energy", [pc.energies.Gaussian, pc.energies.Categorical])
@pytest.mark.parametrize("name", GRADIENT_RULES)
def test_rows_without_a_label_learn_from_the_rest(name, energy):
    """Each example alone, with its target or, where that is unknown, without one; then the mean."""
    rule = RULES[name]
    needs_targets = name in ("backprop", "zil") or name.startswith("nudged")
    clamps = {} if needs_targets else {"hidden": H}
    targets = np.abs(Y) / np.abs(Y).sum(axis=1, keepdims=True)
    unknown = np.where(KNOWN[:, None], targets, np.nan)
    together = change(rule, pc.Evidence(X, pc.Clamp(unknown, KNOWN[:, None]), clamps), energy)
    # a chain whose output is free learns nothing in the output from a row that knows none
    alone = []
    for row in range(4):
        own = {node: value[row : row + 1] for node, value in clamps.items()}
        one = slice(row, row + 1)
        if KNOWN[row]:
            alone.append(change(rule, pc.Evidence(X[one], targets[one], own), energy))
        elif not needs_targets:
            alone.append(change(rule, pc.Evidence(X[one], None, own)))
    mean = jax.tree.map(lambda *parts: sum(parts) / 4, *alone)
    assert_same(together, mean)
    moved = np.abs(together["below"]["linear"]["kernel"]).max()
    assert moved > 1e-6


def test_incremental_predictive_coding_learns_nothing_from_a_row_that_says_nothing():
    rule = RULES["incremental"]
    missing = pc.Evidence(X, pc.Clamp(Y, np.zeros((4, 1), bool)))
    for leaf in jax.tree.leaves(change(rule, missing)):
        np.testing.assert_allclose(leaf, 0, atol=1e-15)


def test_backprop_of_some_known_elements_is_their_own_loss():
    mask = np.array([[True, False], [False, False], [True, True], [False, True]])
    got = change(RULES["backprop"], pc.Evidence(X, pc.Clamp(Y, mask)))
    pure = network()

    def loss(parameters):
        errors = pure.replace(parameters=parameters).bind().predict(X) - Y
        return jnp.sum(jnp.where(mask, errors**2, 0)) / 2 / 4

    expected = jax.tree.map(lambda g: -0.3 * g, jax.grad(loss)(pure.parameters))
    assert_same(got, expected)


def test_amortizers_weigh_examples_too():
    net = in_double(pc.models.hybrid(2, 5, 3, rngs=nnx.Rngs(0)))
    pure = pc.networks.split(net)
    descent = pc.inference.GradientDescent(0.1, num_steps=3)
    rule = pc.learning.PredictiveCoding(descent, pc.initializers.Amortized())

    @jax.jit
    def gradients(evidence):
        return rule.gradients(pure, evidence, key=KEY)[0]

    rows = np.array([0, 0, 1])
    weighed = pc.Evidence(targets=X[:3], weights=np.array([2.0, 1.0, 0.0]))
    assert_same(gradients(weighed), gradients(pc.Evidence(targets=X[rows])))


def test_a_class_that_others_hang_on_says_something():
    """A row of zeros would be a value to its children, so it is refused as ever."""
    rngs = nnx.Rngs(0)
    net = pc.PCGraph(
        {
            "label": pc.PCDense(3, 2, energy=pc.energies.Categorical(), rngs=rngs),
            "child": pc.PCDense(2, 2, rngs=rngs),
        },
        parents={"label": "x", "child": "label"},
        inputs={"x": (3,)},
        output=("child", "label"),
    )
    missing = pc.Evidence(X, None, {"label": pc.Clamp(np.ones((4, 2)), KNOWN[:, None])})
    with pytest.raises(
        ValueError, match="'label' is free.*or give the layer another energy or mask"
    ):
        pc.inference.make_problem(pc.networks.split(in_double(net)), missing)
