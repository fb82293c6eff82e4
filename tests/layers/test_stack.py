"""A stack is its layers: whatever it computes is compared with the chain of the same layers, unrolled."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc

WIDTH, DEPTH, BATCH = 4, 3, 4

FEW = pc.inference.GradientDescent(optax.sgd(0.1), num_steps=4)
ADAPTIVE = pc.inference.GradientDescent(optax.sgd(0.2), tolerance=1e-5, max_steps=400)
# (algorithm, relative tolerance): where both do the same operations only the order of sums differs
ALGORITHMS = {
    "gradient": (FEW, 1e-10),
    "momentum": (
        pc.inference.GradientDescent(optax.sgd(0.05, momentum=0.8, nesterov=True), num_steps=6),
        1e-10,
    ),
    "adaptive": (ADAPTIVE, 1e-9),
    "errors": (pc.inference.ErrorCoordinates(FEW), 1e-10),
    # conjugate gradients magnify rounding
    "newton": (pc.inference.NewtonCG(num_steps=3), 1e-7),
    "gauss-newton": (pc.inference.GaussNewton(num_steps=3), 1e-7),
    "flow": (pc.inference.GradientFlow(tolerance=1e-3, max_steps=200), 1e-7),
    "langevin at temperature 0": (
        pc.inference.Langevin(0.1, temperature=0.0, burn_in=2, num_samples=2),
        1e-10,
    ),
    "sequence": (pc.inference.Sequence(pc.inference.ErrorCoordinates(FEW), FEW), 1e-10),
}
LINEAR_ALGORITHMS = {
    "linear": (pc.inference.LinearSolve(), 1e-7),
}
RULES = {
    "predictive coding": pc.learning.PredictiveCoding(FEW),
    # enough steps for the error to come down to the first layer
    "incremental": pc.learning.IncrementalPC(
        pc.inference.GradientDescent(optax.sgd(0.1), num_steps=6)
    ),
    "fixed prediction": pc.learning.FixedPrediction(
        pc.inference.GradientDescent(optax.sgd(1.0), num_steps=DEPTH + 1)
    ),
    "zil": pc.learning.ZIL(),
    "nudged": pc.learning.Nudged(FEW, beta=0.5),
    "nudged, weighted and centred": pc.learning.Nudged(FEW, beta=0.2, weighted=True, centred=True),
    "backprop": pc.learning.Backprop(),
}
SGD = optax.sgd(0.3)
KEY = jax.random.key(3)

pytestmark = pytest.mark.slow


class Bent(pc.PCLayer):
    """A subclass that knows nothing of stacks."""

    def __init__(self, width, rngs):
        super().__init__(energy=pc.energies.Gaussian(1.7))
        self.linear = nnx.Linear(width, width, rngs=rngs)
        self.slope = nnx.Param(jnp.linspace(0.5, 1.5, width))

    def predict(self, below):
        return below + self.slope[...][None] * jnp.sin(self.linear(below))


class Normalized(pc.PCLayer):
    """A layer with a normalization over the batch and dropout of its own."""

    def __init__(self, width, rngs, *, rate=0.0):
        super().__init__()
        self.linear = nnx.Linear(width, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, momentum=0.6, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)

    def predict(self, below):
        return self.dropout(jnp.tanh(self.norm(self.linear(below))))


def dense(**options):
    """(width below, width, rngs) -> a dense layer."""

    def make(below, width, rngs):
        return pc.PCDense(below, width, rngs=rngs, **{"activation": jnp.tanh, **options})

    return make


def hidden_energy(make_energy):
    return lambda rngs: pc.PCDense(
        WIDTH, WIDTH, activation=jnp.tanh, energy=make_energy(), rngs=rngs
    )


MUPC, NTK = pc.parameterizations.MuPC(), pc.parameterizations.NTK()
RESIDUAL = {"activation_first": True, "skip": True}
VARIANTS = {
    "mupc": (lambda rngs: dense(parameterization=MUPC, **RESIDUAL)(WIDTH, WIDTH, rngs), MUPC),
    "ntk": (lambda rngs: dense(parameterization=NTK, **RESIDUAL)(WIDTH, WIDTH, rngs), NTK),
    "subclass": (lambda rngs: Bent(WIDTH, rngs), None),
    "learned precisions": (
        hidden_energy(lambda: pc.energies.LearnedGaussian(WIDTH, precision=1.5)),
        None,
    ),
    "decay and huber": (
        hidden_energy(lambda: pc.energies.ActivityDecay(pc.energies.Huber(0.1), 0.3)),
        None,
    ),
    "batch norm and dropout": (lambda rngs: Normalized(WIDTH, rngs, rate=0.4), None),
}
PROMOTES = pytest.mark.promotes(
    "flax's BatchNorm does not run in 64 bits under strict promotion of dtypes"
)


def doubled(network):
    """Every parameter in the default float, moved off its symmetric start."""
    random = np.random.RandomState(5)

    def moved(leaf):
        values = np.asarray(leaf, np.float64)
        return jnp.asarray(values + 0.1 * random.normal(size=values.shape))

    nnx.update(network, jax.tree.map(moved, nnx.state(network, nnx.Param)))
    statistics = nnx.state(network, nnx.BatchStat)
    nnx.update(network, jax.tree.map(lambda leaf: leaf.astype(float), statistics))
    return network


def twins(*arguments, **options):
    """One chain twice: with its hidden layers in a stack, and unrolled."""
    return [nnx.clone(network) for network in made_twins(*arguments, **options)]


@functools.cache
def made_twins(
    make_hidden=None, parameterization=None, depth=DEPTH, activation=jnp.tanh, precise=True
):
    make_hidden = make_hidden or (lambda rngs: dense(activation=activation)(WIDTH, WIDTH, rngs))
    options = {"parameterization": parameterization}

    def layers():
        rngs = nnx.Rngs(0)
        first = dense(activation=activation, **options)(3, WIDTH, rngs)
        hidden = [make_hidden(rngs) for _ in range(depth)]
        last = dense(activation=None, **options)(WIDTH, 2, rngs)
        if precise:
            hidden = [doubled(layer) for layer in hidden]
            first, last = doubled(first), doubled(last)
        for number, layer in enumerate(hidden):  # no two alike
            state = nnx.state(layer, nnx.Param)
            nnx.update(layer, jax.tree.map(lambda leaf, n=number: leaf * (1 + n / 7), state))
        return first, hidden, last

    first, hidden, last = layers()
    unrolled = pc.PCNetwork(
        {"first": first, **{f"hidden/{k}": layer for k, layer in enumerate(hidden)}, "last": last}
    )
    first, hidden, last = layers()
    stacked = pc.PCNetwork({"first": first, "hidden": pc.PCStack(hidden), "last": last})
    return stacked, unrolled


@functools.cache
def batch(width_in=3, width_out=2, seed=0):
    random = np.random.RandomState(seed)
    return (
        jnp.asarray(random.normal(size=(BATCH, width_in))),
        jnp.asarray(random.normal(size=(BATCH, width_out))),
    )


def by_layer(network, kind=nnx.Param):
    """{node: {path: array}}, a stack's arrays taken apart along their first axis."""
    found = {}
    for name, layer in zip(network.names, network.layers, strict=True):
        if isinstance(layer, pc.PCStack):
            state = nnx.to_flat_state(nnx.as_pure(nnx.state(layer.stacked, kind)))
            for k in range(layer.depth):
                found[f"{name}/{k}"] = {path: np.asarray(leaf[k]) for path, leaf in state}
        else:
            state = nnx.to_flat_state(nnx.as_pure(nnx.state(layer, kind)))
            found[name] = {path: np.asarray(leaf) for path, leaf in state}
    return found


def assert_same_arrays(stacked, unrolled, **close):
    assert list(stacked) == list(unrolled)
    for node, arrays in unrolled.items():
        assert set(stacked[node]) == set(arrays), node
        for path, expected in arrays.items():
            np.testing.assert_allclose(
                stacked[node][path], expected, err_msg=f"{node} {path}", **close
            )


def assert_same_by_node(stacked, got, expected, *, activities=False, **close):
    """`got` by layer of the stacked network, `expected` by layer of the unrolled one."""
    pick = (lambda value, k: value[:, k]) if activities else None
    got = stacked.by_node(got, pick)
    assert set(got) == set(expected)
    for node, value in expected.items():
        np.testing.assert_allclose(got[node], value, err_msg=node, **close)


def assert_same_results(stacked, got, expected, rtol=1e-10, steps=True):
    close = {"rtol": rtol, "atol": rtol}
    assert_same_by_node(stacked, got.activities, expected.activities, activities=True, **close)
    assert_same_by_node(stacked, got.energies, expected.energies, **close)
    np.testing.assert_allclose(got.energy, expected.energy, **close)
    np.testing.assert_allclose(got.residual, expected.residual, rtol=1e3 * rtol, atol=rtol)
    if steps:
        np.testing.assert_array_equal(got.num_steps, expected.num_steps)


@functools.partial(jax.jit, static_argnames="inference")
def solve(inference, network, inputs, targets):
    problem = pc.inference.make_problem(network, pc.Evidence(inputs, targets))
    return inference.solve(problem, key=KEY)


@functools.partial(jax.jit, static_argnames="learning")
def learn_once(learning, network, inputs, targets):
    state = SGD.init(network.parameters)
    return learning.update(network, SGD, state, pc.Evidence(inputs, targets), key=KEY)


def updated(learning, network, inputs, targets):
    """A copy of the network after one step of learning, and what the rule saw."""
    split, _, info = learn_once(learning, pc.networks.split(network), inputs, targets)
    return split.bind(), info


@pytest.mark.usefixtures("double")
class TestSameNumbers:
    """If these fail, a deep network computes something else in a stack than layer by layer."""

    @pytest.mark.parametrize(
        ("algorithm", "activation"),
        [
            pytest.param(algorithm, activation, id=name)
            for table, activation in ((ALGORITHMS, jnp.tanh), (LINEAR_ALGORITHMS, None))
            for name, algorithm in table.items()
        ],
    )
    def test_of_every_algorithm(self, algorithm, activation):
        inference, rtol = algorithm
        (stacked, unrolled), data = twins(activation=activation), batch()
        got, expected = (
            solve(inference, pc.networks.split(network), *data) for network in (stacked, unrolled)
        )
        # the number of iterations of conjugate gradients may differ by rounding
        linear = isinstance(inference, pc.inference.LinearSolve)
        assert_same_results(stacked, got, expected, rtol, steps=not linear)
        before = stacked.start(pc.Evidence(*data))
        assert not np.allclose(got.activities["hidden"], before["hidden"], atol=1e-4)

    def test_of_automatic_step_sizes_at_the_minimum(self):
        """Both estimate the largest curvature from a random direction of their own."""
        inference = pc.inference.GradientDescent(step_size="auto", tolerance=1e-9, max_steps=2000)
        (stacked, unrolled), data = twins(), batch()
        got, expected = (
            solve(inference, pc.networks.split(network), *data) for network in (stacked, unrolled)
        )
        assert (got.residual <= 1e-9).all()
        # residual over the least curvature, about 1e-1
        assert_same_by_node(
            stacked, got.activities, expected.activities, activities=True, rtol=1e-7, atol=1e-7
        )

    @pytest.mark.parametrize("learning", RULES.values(), ids=RULES.keys())
    def test_of_every_rule(self, learning):
        (stacked, unrolled), data = twins(), batch()
        got, info = updated(learning, stacked, *data)
        expected, seen = updated(learning, unrolled, *data)
        close = {"rtol": 1e-10, "atol": 1e-12}
        assert_same_arrays(by_layer(got), by_layer(expected), **close)
        assert_same_by_node(stacked, info.energies, seen.energies, **close)
        assert_same_by_node(stacked, info.activities, seen.activities, activities=True, **close)
        np.testing.assert_allclose(info.prediction, seen.prediction, **close)
        before, after = by_layer(stacked), by_layer(got)
        for node, arrays in before.items():  # and all of them moved
            for path, array in arrays.items():
                assert np.abs(after[node][path] - array).max() > 1e-9, (node, path)

    @pytest.mark.parametrize(
        "variant",
        [
            pytest.param(variant, id=name, marks=PROMOTES if name.startswith("batch norm") else ())
            for name, variant in VARIANTS.items()
        ],
    )
    def test_of_every_kind_of_layer(self, variant):
        make_hidden, parameterization = variant
        (stacked, unrolled), data = twins(make_hidden, parameterization), batch()
        rule = RULES["predictive coding"]
        got, info = updated(rule, stacked, *data)
        expected, seen = updated(rule, unrolled, *data)
        close = {"rtol": 1e-10, "atol": 1e-12}
        assert_same_arrays(by_layer(got), by_layer(expected), **close)
        assert_same_by_node(stacked, info.energies, seen.energies, **close)
        assert_same_by_node(stacked, info.activities, seen.activities, activities=True, **close)
        np.testing.assert_allclose(info.prediction, seen.prediction, **close)

    def test_of_the_stack_on_its_own(self):
        """`predict` is the top layer's prediction after a pass through all of them."""
        stacked, unrolled = twins()
        below = jnp.asarray(np.random.RandomState(1).normal(size=(BATCH, WIDTH)))
        expected = below
        for layer in unrolled.layers[1:-1]:
            expected = layer.predict(expected)
        np.testing.assert_allclose(stacked.layers[1].predict(below), expected, rtol=1e-12)
        at_last = stacked.layers[1].layer_at(-1)
        np.testing.assert_array_equal(at_last.linear.kernel, unrolled.layers[-2].linear.kernel)
        np.testing.assert_array_equal(
            stacked.layers[1].layer_at(0).linear.kernel, unrolled.layers[1].linear.kernel
        )
        with pytest.raises(ValueError, match="a stack of 3 layers has no layer 3"):
            stacked.layers[1].layer_at(3)

    def test_of_parameter_gradients(self):
        """At stored activities that are no feedforward pass, by the closed form of dense layers."""
        stacked, _ = twins()
        split, (x, y) = pc.networks.split(stacked), batch()
        activities = solve(FEW, split, x, y).activities
        gradients = jax.jit(lambda split, z: split.bind(z).parameter_gradients(x))(
            split, activities
        )
        got = np.asarray(gradients["layers"]["hidden"]["stacked-layers"]["linear"]["kernel"][...])
        below = np.asarray(activities["first"])
        kernels = np.asarray(stacked.layers[1].stacked.linear.kernel)
        biases = np.asarray(stacked.layers[1].stacked.linear.bias)
        for k in range(DEPTH):
            activity = np.asarray(activities["hidden"][:, k])
            prediction = np.tanh(below @ kernels[k] + biases[k])
            delta = -(activity - prediction) * (1 - prediction**2) / BATCH
            np.testing.assert_allclose(got[k], below.T @ delta, rtol=1e-10, atol=1e-14)
            below = activity


def normal(*shape, seed=7):
    return jnp.asarray(np.random.RandomState(seed).normal(size=shape))


def some(*shape, seed=8):
    return jnp.asarray(np.random.RandomState(seed).uniform(size=shape) < 0.5)


# (clamps of the stacked network, those of the unrolled one)
CLAMPS = {
    "several, with masks": lambda: (
        2
        * (
            {
                "hidden/2": pc.Clamp(normal(BATCH, WIDTH, seed=1), some(WIDTH)),
                "hidden/0": normal(BATCH, WIDTH, seed=2),
                "hidden/1": pc.Clamp(normal(BATCH, WIDTH, seed=3), some(BATCH, WIDTH, seed=4)),
            },
        )
    ),
    "the whole stack": lambda: (
        {"hidden": normal(BATCH, DEPTH, WIDTH)},
        {f"hidden/{k}": normal(BATCH, DEPTH, WIDTH)[:, k] for k in range(DEPTH)},
    ),
    "the whole stack, with a mask": lambda: (
        {"hidden": pc.Clamp(normal(BATCH, DEPTH, WIDTH), some(DEPTH, WIDTH))},
        {
            f"hidden/{k}": pc.Clamp(normal(BATCH, DEPTH, WIDTH)[:, k], some(DEPTH, WIDTH)[k])
            for k in range(DEPTH)
        },
    ),
}


def ends_network(stacked, *, root=False, first=False, last=False):
    """A chain of one width with its stack at an end: stacked, or unrolled from the same layers."""
    rngs = nnx.Rngs(1)
    hidden = [doubled(dense()(WIDTH, WIDTH, rngs)) for _ in range(DEPTH)]
    for number, layer in enumerate(hidden):
        layer.linear.kernel.set_value(layer.linear.kernel[...] * (1 + number / 5))
    other = doubled(dense()(WIDTH, WIDTH, rngs))
    layers = {"root": pc.PCRoot(WIDTH, energy=pc.energies.Gaussian(0.5))} if root else {}
    if not first and not root:
        layers["below"] = other
    if stacked:
        layers["hidden"] = pc.PCStack(hidden)
    else:
        layers |= {f"hidden/{k}": layer for k, layer in enumerate(hidden)}
    if not last:
        layers["above"] = doubled(dense()(WIDTH, WIDTH, rngs))
    return pc.PCNetwork(layers)


@pytest.mark.usefixtures("double")
class TestClamps:
    @pytest.mark.parametrize("make", CLAMPS.values(), ids=CLAMPS.keys())
    def test_of_nodes_and_stacks(self, make):
        """By a node's name, several at once and all of them, as on the unrolled chain."""
        (stacked, unrolled), data = twins(), batch()
        own, others = make()
        got = stacked.infer(*data, inference=FEW, clamps=own)
        expected = unrolled.infer(*data, inference=FEW, clamps=others)
        assert_same_results(stacked, got, expected)

    @pytest.mark.parametrize(
        ("where", "inference"),
        [
            ({"last": True}, FEW),
            ({"first": True}, FEW),
            ({"root": True}, FEW),
            ({"first": True, "last": True}, pc.inference.ErrorCoordinates(FEW)),
        ],
        ids=["last", "first", "above a root", "alone, in errors"],
    )
    def test_a_stack_at_an_end_of_the_chain(self, where, inference):
        (stacked, unrolled) = (ends_network(kind, **where) for kind in (True, False))
        data = batch(WIDTH, WIDTH)
        got = stacked.infer(*data, inference=inference)
        expected = unrolled.infer(*data, inference=inference)
        assert_same_results(stacked, got, expected)
        np.testing.assert_allclose(stacked.predict(data[0]), unrolled.predict(data[0]), rtol=1e-12)
        if "last" in where:
            np.testing.assert_array_equal(got.activities["hidden"][:, -1], data[1])

    def test_above_a_free_root(self):
        (stacked, unrolled) = (ends_network(kind, root=True) for kind in (True, False))
        y = batch(WIDTH, WIDTH)[1]
        got, expected = (net.infer(None, y, inference=FEW) for net in (stacked, unrolled))
        assert_same_results(stacked, got, expected)
        assert np.abs(got.activities["root"]).max() > 1e-5

    @pytest.mark.parametrize(
        "learning",
        [
            RULES["zil"],
            RULES["fixed prediction"],
            pc.learning.Nudged(FEW, beta=0.3, weighted=True),
        ],
        ids=["zil", "fixed prediction", "nudged, weighted"],
    )
    def test_rules_with_the_stack_on_top(self, learning):
        (stacked, unrolled) = (ends_network(kind, last=True) for kind in (True, False))
        data = batch(WIDTH, WIDTH)
        got, info = updated(learning, stacked, *data)
        expected, seen = updated(learning, unrolled, *data)
        close = {"rtol": 1e-10, "atol": 1e-12}
        assert_same_arrays(by_layer(got), by_layer(expected), **close)
        assert_same_by_node(stacked, info.energies, seen.energies, **close)

    def test_a_stack_of_one_output_that_can_only_be_clamped(self):
        """Targets clamp all there is of it, so nothing is free."""
        networks = []
        for stacked in (True, False):
            rngs = nnx.Rngs(1)
            output = doubled(pc.PCDense(WIDTH, WIDTH, energy=pc.energies.Categorical(), rngs=rngs))
            layers = {"first": doubled(dense()(3, WIDTH, rngs))}
            layers |= {"hidden": pc.PCStack([output])} if stacked else {"hidden/0": output}
            networks.append(pc.PCNetwork(layers))
        x, y = batch()[0], jnp.eye(WIDTH)[:BATCH]
        expected = networks[1].infer(x, y, inference=FEW)
        assert_same_results(networks[0], networks[0].infer(x, y, inference=FEW), expected)

    def test_a_free_layer_that_can_only_be_clamped_is_refused_by_its_energy(self):
        rngs = nnx.Rngs(1)
        hidden = pc.PCStack(
            lambda: pc.PCDense(3, 3, energy=pc.energies.Categorical(), rngs=rngs), 2
        )
        network = doubled(pc.PCNetwork({"hidden": hidden}))
        with pytest.raises(
            ValueError, match=r"layer 'hidden.*' is free, but its energy Categorical"
        ):
            network.infer(batch()[0], jnp.eye(BATCH, 3), inference=FEW)

    def test_targets_and_another_node_of_the_same_stack(self):
        """Targets clamp the layer on top; the others of the stack can be clamped beside it."""
        (stacked, unrolled) = (ends_network(kind, last=True) for kind in (True, False))
        data, clamps = batch(WIDTH, WIDTH), {"hidden/1": normal(BATCH, WIDTH)}
        expected = unrolled.infer(*data, inference=FEW, clamps=clamps)
        got = stacked.infer(*data, inference=FEW, clamps=clamps)
        assert_same_results(stacked, got, expected)

    def test_inside_a_compiled_program(self):
        """Two nodes of one stack, clamped by name where arrays are traced."""
        (stacked, unrolled), data = twins(), batch()
        clamps = {"hidden/0": normal(BATCH, WIDTH), "hidden/2": normal(BATCH, WIDTH, seed=9)}

        @jax.jit
        def start(network, clamps):
            return pc.inference.make_problem(network, pc.Evidence(*data, clamps=clamps)).energies(
                pc.inference.make_problem(network, pc.Evidence(*data, clamps=clamps)).start
            )

        expected = start(pc.networks.split(unrolled), clamps)
        got = start(pc.networks.split(stacked), clamps)
        assert_same_by_node(stacked, got, expected, rtol=1e-12)

    def test_the_order_of_clamps_does_not_matter(self):
        """A mask of the whole stack and a node that it leaves free, in both orders."""
        stacked, _ = twins()
        data, value = batch(), normal(BATCH, DEPTH, WIDTH)
        only_1 = jnp.arange(DEPTH)[:, None] == jnp.ones((1, WIDTH), int)
        clamps = {"hidden": pc.Clamp(value, only_1), "hidden/0": normal(BATCH, WIDTH)}
        one, other = (
            stacked.known(pc.Evidence(*data, own)).clamps["hidden"]
            for own in (clamps, dict(reversed(clamps.items())))
        )
        np.testing.assert_array_equal(one.held(), other.held())
        np.testing.assert_array_equal(one.value[one.held()], other.value[other.held()])

    @pytest.mark.parametrize(
        ("clamps", "words"),
        [
            (
                {"hidden/3": (BATCH, WIDTH)},
                r"no layer 'hidden/3'; that stack has layers 0 to 2",
            ),
            ({"hidden/-1": (BATCH, WIDTH)}, r"no layer 'hidden/-1'"),
            ({"hidden/x": (BATCH, WIDTH)}, r"no layer 'hidden/x'"),
            ({"first/0": (BATCH, WIDTH)}, r"no layer 'first/0'"),
            (
                {"hidden": (BATCH, DEPTH, WIDTH), "hidden/1": (BATCH, WIDTH)},
                r"layer 'hidden/1' is clamped twice",
            ),
            ({"hidden/1": (BATCH, WIDTH + 1)}, r"layer 'hidden.*is clamped to"),
            ({"hidden": (BATCH, WIDTH)}, r"layer 'hidden' predicts shape .* is clamped to"),
            (
                {"hidden/0": (BATCH, WIDTH), "hidden/1": (BATCH, WIDTH + 1)},
                r"layer 'hidden/1' is clamped to a value of shape .* another layer of its stack",
            ),
        ],
    )
    def test_refusals(self, clamps, words):
        stacked, _ = twins()
        clamps = {name: jnp.ones(shape) for name, shape in clamps.items()}
        with pytest.raises(ValueError, match=words):
            stacked.infer(*batch(), inference=FEW, clamps=clamps)

    def test_a_node_and_then_its_whole_stack_is_told_as_clamped_twice_by_clamps(self):
        stacked, _ = twins()
        clamps = {"hidden/1": jnp.ones((BATCH, WIDTH)), "hidden": jnp.ones((BATCH, DEPTH, WIDTH))}
        with pytest.raises(ValueError, match=r"layer 'hidden.*' is clamped twice") as caught:
            stacked.infer(*batch(), inference=FEW, clamps=clamps)
        assert "inputs" not in str(caught.value)  # which clamp no stack

    def test_targets_and_the_top_node_are_refused(self):
        network = ends_network(True, last=True)
        with pytest.raises(ValueError, match=r"layer 'hidden.*' is clamped twice"):
            network.infer(
                *batch(WIDTH, WIDTH), inference=FEW, clamps={"hidden/2": jnp.ones((BATCH, WIDTH))}
            )


class TestLayout:
    def test_depth_first_inside_and_batch_first_outside(self):
        stacked, unrolled = twins(precise=False)
        data = [array.astype(jnp.float32) for array in batch()]
        hidden = stacked.layers[1]
        assert isinstance(hidden.activity, pc.Activity)
        with pytest.raises(ValueError, match="layer 'first' has no activity yet"):
            stacked.activities()
        result = stacked.infer(*data, inference=FEW, trace=True)
        expected = unrolled.infer(*data, inference=FEW, trace=True)
        assert hidden.activity[...].shape == (DEPTH, BATCH, WIDTH)
        assert hidden.stacked.linear.kernel[...].shape == (DEPTH, WIDTH, WIDTH)
        assert hidden.stacked.linear.bias[...].shape == (DEPTH, WIDTH)
        assert result.activities["hidden"].shape == (BATCH, DEPTH, WIDTH)
        np.testing.assert_array_equal(
            hidden.activity[...], np.moveaxis(result.activities["hidden"], 1, 0)
        )
        assert result.energies["hidden"].shape == (BATCH, DEPTH)
        assert result.trace.energies["hidden"].shape == (5, BATCH, DEPTH)
        assert result.trace.residual.shape == result.trace.energy.shape == (5, BATCH)
        np.testing.assert_allclose(result.trace.energy, expected.trace.energy, rtol=1e-5)
        assert_same_by_node(
            stacked, result.trace.energies, expected.trace.energies, rtol=1e-4, atol=1e-6
        )
        assert list(result.energies) == ["first", "hidden", "last"]
        energies = jax.eval_shape(lambda: nnx.clone(stacked).energies(data[0]))
        assert energies["hidden"].shape == (BATCH, DEPTH)
        assert jax.eval_shape(lambda: nnx.clone(stacked).energy(data[0])).shape == (BATCH,)

    def test_nodes(self):
        stacked, unrolled = twins(precise=False)
        assert stacked.nodes == unrolled.nodes == unrolled.names
        assert stacked.names == ("first", "hidden", "last")
        values = {"hidden": np.arange(6).reshape(2, 3), "last": np.ones(2)}
        by_node = stacked.by_node(values)
        assert list(by_node) == ["hidden/0", "hidden/1", "hidden/2", "last"]
        np.testing.assert_array_equal(by_node["hidden/1"], [1, 4])
        own = stacked.by_node({"hidden": "abc"}, lambda value, index: value[index])
        assert own == {"hidden/0": "a", "hidden/1": "b", "hidden/2": "c"}

    def test_names_of_nodes_are_not_given_twice(self):
        """A layer called as a node of a stack would take its place in metrics and analysis."""
        stacked, _ = twins(precise=False)
        layers = {
            "hidden": stacked.layers[1],
            "hidden/0": pc.PCDense(WIDTH, 2, rngs=nnx.Rngs(0)),
        }
        with pytest.raises(ValueError, match="hidden/0"):
            pc.PCNetwork(layers)


def toy_data(num_examples=24):
    random = np.random.RandomState(2)
    return pc.data.from_arrays(
        random.normal(size=(num_examples, 3)).astype(np.float32),
        random.normal(size=(num_examples, 2)).astype(np.float32),
        batch_size=BATCH,
    )


MOMENTUM = optax.sgd(0.05, momentum=0.9)


def trainer_of(network, folder=None, **keep):
    return pc.Trainer(
        network,
        MOMENTUM,
        learning=RULES["predictive coding"],
        checkpoints=None if folder is None else pc.Checkpoints(folder, **keep),
        progress=False,
    )


def make_normalized(rngs):
    return Normalized(WIDTH, rngs)


class TestTraining:
    @PROMOTES
    @pytest.mark.usefixtures("double")
    def test_measures_and_learns_what_the_unrolled_chain_does(self):
        stacked, unrolled = twins(make_normalized)
        rows, networks = [], []
        for network in (stacked, unrolled):
            trainer = trainer_of(network)
            history = trainer.fit(toy_data(), num_steps=5, log_every=1, eval_data=toy_data())
            rows.append(history.rows)
            networks.append(network)
        assert len(rows[0]) == len(rows[1]) == 6
        for got, expected in zip(*rows, strict=True):
            assert set(got) == set(expected)
            for name, value in expected.items():
                np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-9, err_msg=name)
        assert {f"train/energy/hidden/{k}" for k in range(DEPTH)} < set(rows[0][0])
        assert "train/energy/hidden" not in rows[0][0]
        close = {"rtol": 1e-6, "atol": 1e-9}
        assert_same_arrays(*map(by_layer, networks), **close)
        statistics = [by_layer(network, nnx.BatchStat) for network in networks]
        assert_same_arrays(*statistics, **close)
        assert np.abs(statistics[1]["hidden/2"][("norm", "mean")]).max() > 1e-3
        x = np.asarray(next(iter(toy_data())).inputs)
        np.testing.assert_allclose(
            *(trainer_of(network).predict(x) for network in networks), rtol=1e-6
        )

    @pytest.mark.parametrize("last", [False, True], ids=["first", "alone"])
    def test_trains_with_the_stack_nearest_the_input(self, last):
        random, network = np.random.RandomState(2), ends_network(True, first=True, last=last)
        arrays = random.normal(size=(2, 2 * BATCH, WIDTH)).astype(np.float32)
        trainer = trainer_of(network)
        before = by_layer(network)
        trainer.fit(pc.data.from_arrays(*arrays, batch_size=BATCH), num_steps=2, log_every=1)
        for node, arrays in by_layer(network).items():
            for path, after in arrays.items():
                assert np.abs(after - before[node][path]).max() > 0, (node, path)
        assert "train/energy/hidden/0" in trainer.history.rows[0]

    @pytest.mark.usefixtures(
        "optimized"
    )  # less optimised, what a state carries besides shifts its rounding
    def test_goes_on_from_a_checkpoint_as_if_never_interrupted(self, tmp_path):
        def network():
            return twins(make_normalized, precise=False)[0]

        whole = trainer_of(network())
        whole.fit(toy_data(), num_steps=8)
        first = trainer_of(network(), tmp_path, activities=True)
        first.fit(toy_data(), num_steps=5)
        kept = first.network.activities()
        assert kept["hidden"].shape == (BATCH, DEPTH, WIDTH)
        second = trainer_of(network(), tmp_path, activities=True)
        assert second.restore() == 5
        for name, activity in second.network.activities().items():
            np.testing.assert_array_equal(activity, kept[name])
        second.fit(toy_data(), num_steps=8)
        for kind in (nnx.Param, nnx.BatchStat):
            got, expected = (by_layer(t.network, kind) for t in (second, whole))
            assert_same_arrays(got, expected, rtol=0, atol=0)
        loaded = network()
        pc.load_checkpoint(tmp_path, loaded)
        np.testing.assert_array_equal(
            loaded.layers[1].stacked.linear.kernel, second.network.layers[1].stacked.linear.kernel
        )
        other = trainer_of(twins(make_normalized, depth=2, precise=False)[0], tmp_path)
        with pytest.raises(pc.CheckpointError, match=r"stacked.*has shape \(3, "):
            other.restore()


def bent(below):
    return jnp.sin(2 * below)


class TestMaking:
    def test_one_layer_is_a_stack_too(self):
        stacked, unrolled = twins(depth=1, precise=False)
        data = [array.astype(jnp.float32) for array in batch()]
        got = stacked.infer(*data, inference=FEW)
        expected = unrolled.infer(*data, inference=FEW)
        assert got.activities["hidden"].shape == (BATCH, 1, WIDTH)
        assert_same_results(stacked, got, expected, rtol=1e-5)

    def test_the_function_is_called_once_a_layer(self):
        rngs, made = nnx.Rngs(0), []

        def make():
            made.append(pc.PCDense(WIDTH, WIDTH, rngs=rngs))
            return made[-1]

        stack = pc.PCStack(make, 5)
        assert (stack.depth, len(made)) == (5, 5)
        kernels = np.asarray(stack.stacked.linear.kernel)
        for number, layer in enumerate(made):
            np.testing.assert_array_equal(kernels[number], layer.linear.kernel)
        assert len({kernel.tobytes() for kernel in kernels}) == 5  # draws of their own

    def test_a_list_of_layers_is_copied(self):
        layers = [pc.PCDense(WIDTH, WIDTH, rngs=nnx.Rngs(seed)) for seed in range(2)]
        stack = pc.PCStack(layers)
        before = np.asarray(stack.stacked.linear.kernel)
        layers[1].linear.kernel.set_value(jnp.zeros((WIDTH, WIDTH)))
        np.testing.assert_array_equal(stack.stacked.linear.kernel, before)
        assert pc.PCStack(layers, 2).depth == stack.depth == 2
        assert layers[0].activity[...].shape == (0,)  # the layers stay usable

    @pytest.mark.parametrize(
        ("make", "depth", "error", "words"),
        [
            (
                lambda: pc.PCDense(4, 4, rngs=nnx.Rngs(0)),
                3,
                TypeError,
                r"got a PCDense; write pc.PCStack\(lambda: pc.PCDense\(...\), depth\)",
            ),
            (
                lambda: lambda: pc.PCDense(4, 4, rngs=nnx.Rngs(0)),
                0,
                ValueError,
                "at least 1, got 0",
            ),
            (lambda: lambda: pc.PCDense(4, 4, rngs=nnx.Rngs(0)), 2.0, TypeError, "an int depth"),
            (lambda: lambda: pc.PCDense(4, 4, rngs=nnx.Rngs(0)), True, TypeError, "an int depth"),
            (lambda: lambda: pc.PCDense(4, 4, rngs=nnx.Rngs(0)), None, TypeError, "an int depth"),
            (lambda: lambda: nnx.Linear(4, 4, rngs=nnx.Rngs(0)), 2, TypeError, "got a Linear"),
            (lambda: [], None, ValueError, "at least one layer"),
            (
                lambda: [pc.PCDense(4, 4, rngs=nnx.Rngs(0))] * 2,
                3,
                ValueError,
                "got 2 layers and depth 3",
            ),
            (
                lambda: [pc.PCStack([pc.PCDense(4, 4, rngs=nnx.Rngs(0))])],
                None,
                TypeError,
                "no stack itself, got a PCStack",
            ),
            (lambda: lambda: pc.PCRoot(4), 2, TypeError, "each no root, .*, got a PCRoot"),
            (
                lambda: [pc.PCDense(4, width, rngs=nnx.Rngs(0)) for width in (4, 5)],
                None,
                ValueError,
                r"layer 1 of a PCStack \(PCDense\) differs from layer 0",
            ),
            (
                lambda: [
                    pc.PCDense(4, 4, activation=activation, rngs=nnx.Rngs(0))
                    for activation in (jnp.tanh, jnp.tanh, None)
                ],
                None,
                ValueError,
                r"layer 2 of a PCStack \(PCDense\) differs from layer 0",
            ),
            (
                lambda: [Bent(4, nnx.Rngs(0)), pc.PCDense(4, 4, rngs=nnx.Rngs(0))],
                None,
                ValueError,
                r"layer 1 of a PCStack \(PCDense\) differs from layer 0",
            ),
            (
                lambda: [
                    pc.PCDense(4, 4, energy=pc.energies.Gaussian(p), rngs=nnx.Rngs(0))
                    for p in (1.0, 2.0)
                ],
                None,
                ValueError,
                r"layer 1 of a PCStack \(PCDense\) differs from layer 0",
            ),
        ],
    )
    def test_refusals(self, make, depth, error, words):
        with pytest.raises(error, match=words):
            pc.PCStack(make(), depth)

    def test_layers_that_change_the_shape_are_refused(self):
        rngs = nnx.Rngs(0)
        pooled = pc.PCStack(lambda: pc.PCLayer(nnx.Linear(4, 2, rngs=rngs)), 2)
        network = pc.PCNetwork({"first": pc.PCDense(3, 4, rngs=rngs), "hidden": pooled})
        with pytest.raises(ValueError, match=r"layer 'hidden' \(PCStack\).*\(1, 2\) from \(1, 4\)"):
            network.init_activities(jnp.ones((1, 3)))

    def test_layers_without_parameters_stack_too(self):
        rngs = nnx.Rngs(0)
        first = pc.PCDense(3, WIDTH, rngs=rngs)
        network = pc.PCNetwork({"first": first, "hidden": pc.PCStack(lambda: pc.PCLayer(bent), 2)})
        x = jnp.asarray(np.random.RandomState(0).normal(size=(BATCH, 3)), jnp.float32)
        expected = jnp.sin(2 * jnp.sin(2 * first.predict(x)))
        np.testing.assert_allclose(network.predict(x), expected, rtol=1e-5)

    @pytest.mark.parametrize("end", ["first", "last"])
    def test_mupc_wants_the_ends_outside(self, end):
        """The first and the last layer have multipliers of their own, so they are no equals."""
        rngs = nnx.Rngs(0)
        hidden = pc.PCStack(
            lambda: pc.PCDense(5, 5, skip=True, parameterization=MUPC, rngs=rngs), 3
        )
        other = pc.PCDense(5, 5, parameterization=MUPC, rngs=rngs)
        layers = [hidden, other] if end == "first" else [other, hidden]
        number = 1 if end == "first" else 2
        with pytest.raises(ValueError, match=rf"layer {number} of a PCStack would differ .* of 4"):
            pc.PCNetwork(layers)


@pytest.mark.usefixtures("double")
class TestAnalysis:
    RULE = pc.learning.PredictiveCoding(pc.inference.GradientDescent(optax.sgd(0.2), num_steps=12))

    def test_health_by_node(self):
        """Credit, units, energy shares and sentences carry the unrolled chain's names and numbers."""
        (stacked, unrolled), data = twins(), batch()
        got, expected = (
            pc.analysis.health(net, *data, learning=self.RULE, reference=FEW)
            for net in (stacked, unrolled)
        )
        for field in ("cosine", "norm", "backprop_norm"):
            mine, theirs = getattr(got.credit, field), getattr(expected.credit, field)
            assert list(mine) == list(theirs)
            np.testing.assert_allclose(list(mine.values()), list(theirs.values()), rtol=1e-9)
        assert got.dead == expected.dead
        assert got.saturated == expected.saturated
        assert list(got.sentences) == list(stacked.nodes)
        assert got.sentences == expected.sentences
        assert got.inference.energy_share == pytest.approx(
            expected.inference.energy_share, rel=1e-9
        )
        for field in ("energy", "start_energy", "equilibrium_energy", "residual"):
            assert getattr(got.inference, field) == pytest.approx(
                getattr(expected.inference, field), rel=1e-9
            )
        # power iterations from directions of their own
        assert got.inference.largest_eigenvalue == pytest.approx(
            expected.inference.largest_eigenvalue, rel=0.02
        )

    def test_dead_and_saturated_units_are_found_in_their_layer(self):
        stacked, _ = twins()
        kernel, bias = (getattr(stacked.layers[1].stacked.linear, n) for n in ("kernel", "bias"))
        kernel.set_value(kernel[...].at[1, :, :1].set(0.0))  # says nothing of what is below
        bias.set_value(bias[...].at[2, :2].set(30.0))  # far on the flat side
        kernel.set_value(kernel[...].at[2, :, :2].set(1.0))
        dead, saturated = pc.analysis.health(stacked, *batch(), learning=pc.learning.Backprop())[
            1:3
        ]
        assert dead["hidden/0"] == 0
        assert dead["hidden/1"] == 0.25
        assert saturated["hidden/0"] == saturated["hidden/1"] == 0
        assert saturated["hidden/2"] + dead["hidden/2"] >= 0.5

    def test_monitor_by_node(self):
        (stacked, unrolled), data = twins(), batch()
        rows = [
            pc.analysis.HealthMonitor(*data).on_measure(
                types.SimpleNamespace(network=net, learning=self.RULE, step=0), 0
            )
            for net in (stacked, unrolled)
        ]
        assert set(rows[0]) == set(rows[1])
        assert "health/gradient_norm/hidden/2" in rows[0]
        for name, value in rows[1].items():
            assert rows[0][name] == pytest.approx(
                value, rel=0.02 if "eigenvalue" in name else 1e-9
            ), name

    def test_spectrum_and_closed_form(self):
        (stacked, unrolled), (x, y) = twins(activation=None), batch()
        got = pc.analysis.activity_spectrum(stacked, x[:1], y[:1])
        ours, theirs = map(pc.analysis.DeepLinear.from_network, (stacked, unrolled))
        np.testing.assert_allclose(ours.hessian(), theirs.hessian(), rtol=1e-12, atol=1e-14)
        eigenvalues = np.linalg.eigvalsh(np.asarray(theirs.hessian()))
        np.testing.assert_allclose(got.largest, eigenvalues[-1], rtol=1e-10)
        np.testing.assert_allclose(got.smallest, eigenvalues[0], rtol=1e-10)
        np.testing.assert_allclose(ours.energy(x, y), theirs.energy(x, y), rtol=1e-12)
        with pytest.raises(ValueError, match="layer 'hidden/0' has no closed form"):
            pc.analysis.DeepLinear.from_network(
                pc.PCNetwork(
                    {
                        "first": pc.PCDense(3, WIDTH, rngs=nnx.Rngs(0)),
                        "hidden": made_twins()[0].layers[1],
                    }
                )
            )

    def test_spectrum_with_the_stack_on_top(self):
        """What targets hold of it is left out."""
        data = [array[:1] for array in batch(WIDTH, WIDTH)]
        got, expected = (
            pc.analysis.activity_spectrum(ends_network(kind, last=True), *data)
            for kind in (True, False)
        )
        np.testing.assert_allclose(got.smallest, expected.smallest, rtol=1e-10)
        np.testing.assert_allclose(got.largest, expected.largest, rtol=1e-10)


@pytest.mark.usefixtures("double")
class TestRegularizers:
    @pytest.mark.parametrize(
        "make", [pc.learning.weight_decay, pc.learning.spectral_penalty], ids=lambda f: f.__name__
    )
    def test_act_on_each_layer_on_its_own(self, make):
        """And by default on no bias and no learned precision, which have two axes in a stack."""
        results = []
        for network in twins(VARIANTS["learned precisions"][0]):
            split, penalty = pc.networks.split(network), make(0.1)
            zeros = jax.tree.map(jnp.zeros_like, split.parameters)
            updates, _ = penalty.update(zeros, penalty.init(split.parameters), split.parameters)
            results.append(by_layer(split.replace(parameters=updates).bind()))
        got, expected = results
        assert_same_arrays(got, expected, rtol=1e-12, atol=1e-14)
        for node, arrays in got.items():
            for path, update in arrays.items():
                assert np.any(update != 0) == (path[-1] == "kernel"), (node, path)

    def test_spectral_gradient_is_that_of_the_penalty(self):
        """rate/2 * sum over the layers of ||I - W^T W||^2, differentiated by jax."""
        stacked, _ = twins()
        split, penalty = pc.networks.split(stacked), pc.learning.spectral_penalty(0.1)
        zeros = jax.tree.map(jnp.zeros_like, split.parameters)
        updates, _ = penalty.update(zeros, penalty.init(split.parameters), split.parameters)
        got = split.replace(parameters=updates).bind().layers[1].stacked.linear.kernel

        def value(kernels):
            gram = jnp.einsum("kio,kip->kop", kernels, kernels)
            return 0.05 * jnp.sum((jnp.eye(WIDTH)[None] - gram) ** 2)

        expected = jax.grad(value)(stacked.layers[1].stacked.linear.kernel[...])
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)


def num_equations(jaxpr):
    """Equations of a jaxpr, those of the jaxprs inside included."""
    count = 0
    for equation in jaxpr.eqns:
        count += 1
        for value in equation.params.values():
            for inner in value if isinstance(value, list | tuple) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                count += num_equations(inner) if hasattr(inner, "eqns") else 0
    return count


class TestProgramSize:
    """If this fails, compiling a deep network takes minutes."""

    @staticmethod
    def sizes(network):
        x, y = (array.astype(jnp.float32) for array in batch())
        problem = pc.inference.make_problem(pc.networks.split(network), pc.Evidence(x, y))
        errors = pc.inference.error_coordinates.error_problem(problem)
        rule = pc.learning.PredictiveCoding(FEW)
        split = pc.networks.split(network)
        return [
            num_equations(jax.make_jaxpr(problem.energy_and_gradient)(problem.start).jaxpr),
            num_equations(jax.make_jaxpr(errors.energy_and_gradient)(errors.start).jaxpr),
            num_equations(
                jax.make_jaxpr(lambda s: rule.gradients(s, pc.Evidence(x, y), key=KEY)[0])(
                    split
                ).jaxpr
            ),
        ]

    def test_does_not_grow_with_depth(self):
        def stack(depth):
            rngs = nnx.Rngs(0)
            return pc.PCNetwork(
                {
                    "first": dense()(3, WIDTH, rngs),
                    "hidden": pc.PCStack(lambda: dense()(WIDTH, WIDTH, rngs), depth),
                    "last": dense()(WIDTH, 2, rngs),
                }
            )

        # both deep enough for as many parts as there may be on a CPU
        assert self.sizes(stack(64)) == self.sizes(stack(96))
        unrolled = [self.sizes(twins(depth=depth, precise=False)[1]) for depth in (4, 8)]
        assert all(more > 1.5 * fewer for fewer, more in zip(*unrolled, strict=True))
