"""Graphs against NumPy, against the chain where they are one, and their refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from pcflax.networks import Concatenate, Sum
from tests.conftest import compiled_gradients
from tests.references import numpy_graph as reference

FEW = pc.inference.GradientDescent(optax.sgd(0.1), num_steps=4)
SGD = optax.sgd(0.3)
KEY = jax.random.key(1)
CLOSE = {"rtol": 1e-8, "atol": 1e-10}  # float64 rounding over thousands of operations

pytestmark = pytest.mark.slow


def dense(below, width, *, seed=0, activation=jnp.tanh, scale=1.0, **options):
    """A dense layer with drawn weights and biases in the default float."""
    random = np.random.RandomState(seed)
    layer = pc.PCDense(below, width, activation=activation, rngs=nnx.Rngs(0), **options)
    kernel = scale * random.normal(size=(below, width)) / np.sqrt(below)
    layer.linear.kernel.set_value(jnp.asarray(kernel))
    layer.linear.bias.set_value(jnp.asarray(scale * random.normal(size=width) / 3))
    return layer


class Each(pc.PCLayer):
    """Predicts from any number of parents, each with weights of its own."""

    def __init__(self, kernels, bias, energy=None):
        super().__init__(energy=energy)
        self.kernels = nnx.List([nnx.Param(jnp.asarray(kernel)) for kernel in kernels])
        self.bias = nnx.Param(jnp.asarray(bias))

    def predict(self, *parents):
        terms = [z @ kernel[...] for z, kernel in zip(parents, self.kernels, strict=True)]
        return jnp.tanh(sum(terms) + self.bias[...][None])


def draw(*shape, seed=0):
    return jnp.asarray(np.random.RandomState(seed).normal(size=shape))


@functools.partial(jax.jit, static_argnames="inference")
def solve(inference, network, inputs, targets, clamps=None):
    problem = pc.inference.make_problem(network, pc.Evidence(inputs, targets, clamps=clamps))
    return inference.solve(problem, key=KEY)


@functools.partial(jax.jit, static_argnames="learning")
def learn_once(learning, network, inputs, targets):
    state = SGD.init(network.parameters)
    return learning.update(network, SGD, state, pc.Evidence(inputs, targets), key=KEY)


def by_layer(network):
    return {
        name: {
            path: np.asarray(leaf)
            for path, leaf in nnx.to_flat_state(nnx.as_pure(nnx.state(layer, nnx.Param)))
        }
        for name, layer in zip(network.names, network.layers, strict=True)
    }


def assert_same(got, expected, **close):
    assert set(got) == set(expected)
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], err_msg=name, **close)


# Where the wiring is a chain.


def chain_layers():
    return {
        "a": dense(3, 5, seed=1, energy=pc.energies.Gaussian(1.5)),
        "b": dense(5, 4, seed=2, activation_first=True),
        "c": dense(4, 2, seed=3, activation=None, energy=pc.energies.Gaussian(0.7)),
    }


def chain_and_graph(root=False):
    layers, again = chain_layers(), chain_layers()
    wiring = {"c": "b", "b": ("a",), "a": "x"}
    if root:
        layers = {"root": pc.PCRoot(3, energy=pc.energies.Gaussian(0.5)), **layers}
        again["root"], wiring["a"] = pc.PCRoot(3, energy=pc.energies.Gaussian(0.5)), "root"
    graph = pc.PCGraph(
        {name: again[name] for name in sorted(again, reverse=True)},  # not in their order
        parents=wiring,
        inputs="root" if root else {"x": 3},
        output="c",
    )
    return pc.PCNetwork(layers), graph


ALGORITHMS = {
    "gradient": FEW,
    "adaptive": pc.inference.GradientDescent(
        optax.sgd(0.1, momentum=0.7), tolerance=1e-4, max_steps=200
    ),
    "errors": pc.inference.ErrorCoordinates(FEW),
    "newton": pc.inference.NewtonCG(num_steps=2),
}
RULES = {
    "predictive coding": pc.learning.PredictiveCoding(FEW),
    "incremental": pc.learning.IncrementalPC(FEW),
    "fixed prediction": pc.learning.FixedPrediction(
        pc.inference.GradientDescent(optax.sgd(1.0), num_steps=2)
    ),
    "nudged": pc.learning.Nudged(FEW, beta=0.4, weighted=True),
    "backprop": pc.learning.Backprop(),
}


@pytest.mark.usefixtures("double")
class TestAChain:
    """If these fail, a graph is another model than the chain that it draws."""

    @pytest.mark.parametrize("inference", ALGORITHMS.values(), ids=ALGORITHMS.keys())
    def test_infers_as_the_chain(self, inference):
        chain, graph = chain_and_graph()
        assert graph.names == chain.names
        data = draw(4, 3), draw(4, 2, seed=1)
        expected = solve(inference, pc.networks.split(chain), *data)
        got = solve(inference, pc.networks.split(graph), *data)
        assert_same(got.activities, expected.activities, rtol=1e-12, atol=1e-14)
        assert_same(got.energies, expected.energies, rtol=1e-12, atol=1e-14)
        np.testing.assert_array_equal(got.num_steps, expected.num_steps)

    @pytest.mark.parametrize("learning", RULES.values(), ids=RULES.keys())
    def test_learns_as_the_chain(self, learning):
        chain, graph = chain_and_graph()
        data = draw(4, 3), draw(4, 2, seed=1)
        expected, _, seen = learn_once(learning, pc.networks.split(chain), *data)
        got, _, info = learn_once(learning, pc.networks.split(graph), *data)
        got, expected = by_layer(got.bind()), by_layer(expected.bind())
        for name, arrays in expected.items():
            assert_same(got[name], arrays, rtol=1e-12, atol=1e-14)
        assert_same(info.energies, seen.energies, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(info.prediction, seen.prediction, rtol=1e-12)

    @pytest.mark.parametrize("free", [False, True], ids=["clamped root", "free root"])
    def test_with_a_root(self, free):
        chain, graph = chain_and_graph(root=True)
        x, y = None if free else draw(4, 3), draw(4, 2, seed=1)
        expected = chain.infer(x, y, inference=FEW)
        got = graph.infer(x, y, inference=FEW)
        assert list(got.activities) == list(expected.activities)
        assert_same(got.activities, expected.activities, rtol=1e-12, atol=1e-14)
        assert_same(got.energies, expected.energies, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(graph.predict(x), chain.predict(x), rtol=1e-12)


# Fifty nodes at random.

BATCH, NUM_NODES, SWEEPS = 3, 50, 4
EXTERNAL = {"x": 3, "w": 2}


@functools.cache
def random_graph():
    """A graph of 50 nodes twice, as pcflax has it and as the reference does: skips, loops and roots."""
    random = np.random.RandomState(11)
    widths = dict(EXTERNAL) | {f"n{k}": int(random.randint(2, 5)) for k in range(NUM_NODES)}
    nodes, layers, parents, shapes = {}, {}, {}, {}
    for k in range(NUM_NODES):
        name, width = f"n{k}", widths[f"n{k}"]
        precision = float(random.uniform(0.5, 2.0))
        energy = pc.energies.Gaussian(precision)
        if k in (0, 7):
            layers[name] = pc.PCRoot(width, energy=energy)
            nodes[name] = reference.Node((), (), np.zeros(width), "each", "identity", precision)
            continue
        before = [*EXTERNAL, *(f"n{j}" for j in range(max(0, k - 12), k))]
        own = [str(p) for p in random.choice(before, size=random.randint(1, 4), replace=False)]
        if random.uniform() < 0.15 and k < 40:  # from a node to come: cycles, or an edge aside
            own.append(f"n{random.randint(k + 1, min(k + 9, NUM_NODES))}")
        if random.uniform() < 0.1:
            own.append(name)
        own = list(dict.fromkeys(own))
        alike = [p for p in own if widths[p] == widths[own[0]]]
        combine = ["each", "sum", "concatenate"][k % 3]
        own = alike if combine == "sum" else own
        sizes = [widths[p] for p in own]
        below = {"each": sizes, "sum": sizes[:1], "concatenate": [sum(sizes)]}[combine]
        kernels = tuple(random.normal(size=(b, width)) / np.sqrt(sum(sizes)) for b in below)
        bias = random.normal(size=width) / 3
        nodes[name] = reference.Node(tuple(own), kernels, bias, combine, "tanh", precision)
        if combine == "each":
            layers[name], parents[name] = Each(kernels, bias, energy), tuple(own)
            shapes[name] = width
        else:
            layers[name] = dense(below[0], width, energy=energy)
            layers[name].linear.kernel.set_value(jnp.asarray(kernels[0]))
            layers[name].linear.bias.set_value(jnp.asarray(bias))
            parents[name] = {"sum": Sum, "concatenate": Concatenate}[combine](*own)
    network = pc.PCGraph(
        layers,
        parents=parents,
        inputs={**EXTERNAL, "n0": None},
        output=("n48", "n49"),
        shapes=shapes,
        sweeps=SWEEPS,
    )
    inputs = {name: random.normal(size=(BATCH, width)) for name, width in EXTERNAL.items()}
    given = {**inputs, "n0": random.normal(size=(BATCH, widths["n0"]))}
    targets = {name: random.normal(size=(BATCH, widths[name])) for name in ("n48", "n49")}
    start = inputs | {name: random.normal(size=(BATCH, widths[name])) for name in nodes}
    return network, nodes, inputs, given, targets, start


@pytest.mark.usefixtures("double")
class TestAgainstNumPy:
    """If these fail, a graph computes another energy, or follows another gradient, than it says."""

    def test_the_graph_is_worth_the_name(self):
        network, nodes, *_ = random_graph()
        on_cycles, names, reach = reference.cyclic(nodes)
        assert len(nodes) == NUM_NODES
        assert len(on_cycles) >= 4
        assert any(name in node.parents for name, node in nodes.items())  # self-loops
        assert (
            any(
                name in nodes[parent].parents and parent != name
                for name, node in nodes.items()
                for parent in node.parents
                if parent in nodes
            )
            or np.sum(np.diag(reach)) >= 5
        )
        for combine in ("each", "sum", "concatenate"):
            assert any(n.combine == combine and len(n.parents) > 1 for n in nodes.values())
        assert set(network.cyclic) == on_cycles
        place = {name: number for number, name in enumerate(network.names)}
        for i, name in enumerate(names):
            for j, parent in enumerate(names):
                if reach[i, j] and not reach[j, i]:
                    assert place[parent] < place[name]  # parents first

    def test_feedforward_with_sweeps(self):
        network, nodes, inputs, given, _, _ = random_graph()
        expected = reference.feedforward(
            nodes, inputs, BATCH, network.names, SWEEPS, {"n0": given["n0"]}
        )
        got = jax.jit(lambda network: network.bind().feedforward(given))(pc.networks.split(network))
        assert_same(got, {name: expected[name] for name in nodes}, **CLOSE)
        predicted = jax.jit(lambda network: network.bind().predict(given))(
            pc.networks.split(network)
        )
        # on no cycle, the output's activity is its prediction
        for name in {"n48", "n49"} - set(network.cyclic):
            np.testing.assert_allclose(predicted[name], expected[name], **CLOSE)

    def test_energies_and_both_gradients(self):
        network, nodes, _, given, _, start = random_graph()
        names = list(nodes)
        bound = nnx.clone(network)
        bound.set_activities({name: jnp.asarray(start[name]) for name in names})

        @jax.jit
        def look(split, activities):
            problem = pc.inference.InferenceProblem(
                split,
                given,
                {"n49": pc.Clamp(activities["n49"])},
                {name: activities[name] for name in names if name != "n49"},
            )
            bound = split.bind(activities)
            return (*problem.energy_and_gradient(problem.start), bound.parameter_gradients(given))

        energies, gradient, weights = look(pc.networks.split(network), bound.activities())
        assert_same(energies, reference.energies(nodes, start), **CLOSE)
        expected = reference.activity_gradients(nodes, start)
        del expected["n49"]
        assert_same(gradient, expected, **CLOSE)
        for name, (kernels, bias) in reference.parameter_gradients(nodes, start).items():
            if not nodes[name].parents:
                continue
            own = weights["layers"][name]
            if nodes[name].combine == "each":
                got, got_bias = [own["kernels"][k] for k in range(len(kernels))], own["bias"]
            else:
                got, got_bias = [own["linear"]["kernel"]], own["linear"]["bias"]
            for mine, theirs in zip(got, kernels, strict=True):
                np.testing.assert_allclose(mine[...], theirs, err_msg=name, **CLOSE)
            np.testing.assert_allclose(got_bias[...], bias, err_msg=name, **CLOSE)

    def test_ten_steps_of_inference(self):
        """From the feedforward start, a root and two outputs clamped, another root free."""
        network, nodes, inputs, given, targets, _ = random_graph()
        held = {"n0": given["n0"], **targets}
        # the outputs are put to their targets after the pass, as in a chain
        start = reference.feedforward(nodes, inputs, BATCH, network.names, SWEEPS, held)
        expected, totals = reference.infer(nodes, start, set(held), 0.07, 10)
        inference = pc.inference.GradientDescent(optax.sgd(0.07), num_steps=10)
        result = network.infer(given, targets, inference=inference, trace=True)
        assert_same(result.activities, {name: expected[name] for name in nodes}, **CLOSE)
        np.testing.assert_allclose(result.trace.energy, totals, **CLOSE)
        assert np.abs(expected["n7"]).max() > 1e-7  # the free root moved


# Cycles.


def cyclic_graph(scale=0.4, **options):
    """Two nodes that predict each other, one that predicts itself, and an output."""
    return pc.PCGraph(
        {
            "a": dense(7, 4, seed=1, scale=scale),
            "b": dense(7, 3, seed=2, scale=scale),
            "c": dense(6, 3, seed=3, scale=scale),
            "out": dense(3, 2, seed=4, activation=None),
        },
        parents={
            "a": Concatenate("x", "b"),
            "b": Concatenate("a", "c"),
            "c": Concatenate("b", "c"),
            "out": "c",
        },
        inputs={"x": 4},
        output="out",
        **options,
    )


@pytest.mark.usefixtures("double")
class TestCycles:
    def test_one_equilibrium_from_two_starts(self):
        """Where the weights are small the energy has one minimum, whatever inference starts from."""
        network = cyclic_graph()
        x, y = draw(3, 4), draw(3, 2, seed=1)
        inference = pc.inference.GradientDescent(
            optax.sgd(0.1, momentum=0.8), tolerance=1e-10, max_steps=3000
        )
        starts = [pc.initializers.Feedforward(), pc.initializers.Normal(1.0)]
        begins = [
            network.start(pc.Evidence(x, y), initializer=initializer, key=KEY)["a"]
            for initializer in starts
        ]
        assert np.abs(begins[0] - begins[1]).max() > 0.5
        results = [
            network.infer(x, y, inference=inference, initializer=initializer, key=KEY)
            for initializer in starts
        ]
        assert_same(results[0].activities, results[1].activities, rtol=1e-7, atol=1e-8)
        nodes = {
            name: reference.Node(
                parents=own,
                kernels=(np.asarray(network.layer(name).linear.kernel),),
                bias=np.asarray(network.layer(name).linear.bias),
                combine="concatenate",
                activation="identity" if name == "out" else "tanh",
            )
            for name, own in {
                "a": ("x", "b"),
                "b": ("a", "c"),
                "c": ("b", "c"),
                "out": ("c",),
            }.items()
        }
        z = {"x": np.asarray(x), **{n: np.asarray(a) for n, a in results[0].activities.items()}}
        field = reference.activity_gradients(nodes, z, {"out"})
        assert max(np.abs(gradient).max() for gradient in field.values()) < 1e-9

    def test_more_sweeps_come_closer_to_where_predictions_settle(self):
        """Predictions of a contractive graph settle where every error is zero."""
        x = draw(3, 4)
        distances = []
        for sweeps in (1, 3, 30):
            network = cyclic_graph(sweeps=sweeps)
            network.init_activities(x)
            energy = network.energy(x)
            distances.append(float(energy.max()))
        assert distances[0] > 100 * distances[1] > 0
        assert distances[2] < 1e-20

    def test_names_and_cycles(self):
        network = cyclic_graph()
        assert set(network.cyclic) == {"a", "b", "c"}
        assert network.names[-1] == network.output == "out"
        assert dict(network.parents)["out"] == ("c",)
        assert dict(network.parents)["b"] == Concatenate("a", "c")

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (
                lambda net: net.infer(
                    jnp.ones((2, 4)), inference=pc.inference.ErrorCoordinates(FEW)
                ),
                r"layer '[abc]' is on a cycle \(.*\), but error coordinates",
            ),
            (
                lambda net: net.infer(
                    jnp.ones((2, 4)),
                    inference=pc.inference.Sequence(FEW, pc.inference.ErrorCoordinates(FEW)),
                ),
                r"layer '[abc]' is on a cycle",
            ),
            (
                lambda net: trainer_of(net, RULES["fixed prediction"]),
                r"layer '[abc]' is on a cycle \(.*\), but FixedPrediction",
            ),
            (
                lambda net: trainer_of(
                    net, pc.learning.PredictiveCoding(pc.inference.ErrorCoordinates(FEW))
                ),
                r"layer '[abc]' is on a cycle",
            ),
            (
                lambda net: net.feedforward(jnp.ones((2, 4)), errors={"a": jnp.ones((2, 4))}),
                r"layer '[abc]' is on a cycle",
            ),
            (
                lambda net: trainer_of(net, pc.learning.ZIL()),
                r"ZIL is timed for a chain of layers, a PCNetwork, got a PCGraph",
            ),
        ],
        ids=[
            "errors",
            "sequence",
            "fixed prediction",
            "errors in a rule",
            "errors in a pass",
            "zil",
        ],
    )
    def test_what_wants_an_order_refuses_them(self, make, words):
        with pytest.raises(ValueError, match=words):
            make(cyclic_graph())


def trainer_of(network, learning, folder=None):
    return pc.Trainer(
        network,
        SGD,
        learning=learning,
        checkpoints=None if folder is None else pc.Checkpoints(folder),
        progress=False,
    )


# Several inputs and outputs, branches, stacks.


def branched(output="out", **options):
    """Two inputs, a free root, a skip, a sum and a layer of three parents."""
    random = np.random.RandomState(4)
    kernels = [random.normal(size=(width, 3)) / 2 for width in (4, 2, 2)]
    return pc.PCGraph(
        {
            "a": dense(3, 4, seed=1),
            "side": dense(2, 4, seed=2),
            "root": pc.PCRoot(2, energy=pc.energies.Gaussian(0.8)),
            "both": dense(4, 2, seed=3),
            "mixed": Each(kernels, random.normal(size=3)),
            "out": dense(5, 2, seed=5, activation=None),
        },
        parents={
            "a": "x",
            "side": "w",
            "both": Sum("a", "side"),
            "mixed": ("a", "both", "root"),
            "out": Concatenate("mixed", "both"),
        },
        inputs={"x": 3, "w": 2},
        output=output,
        **options,
    )


@jax.jit
def by_hand(parameters, x, w, root, activities=None):
    """The output and all predictions of `branched`; from these activities, or in a pass."""
    z, mu = {} if activities is None else activities, {}

    def affine(name, below):
        return below @ parameters[name]["kernel"] + parameters[name]["bias"][None]

    def node(name, value):
        mu[name] = value
        return z.get(name, value)

    a = node("a", jnp.tanh(affine("a", x)))
    side = node("side", jnp.tanh(affine("side", w)))
    both = node("both", jnp.tanh(affine("both", a + side)))
    k = parameters["mixed"]["kernels"]
    sums = a @ k[0] + both @ k[1] + root @ k[2] + parameters["mixed"]["bias"][None]
    mixed = node("mixed", jnp.tanh(sums))
    node("out", affine("out", jnp.concatenate([mixed, both], axis=-1)))
    return mu


def parameters_by_hand(network):
    found = {}
    for name in ("a", "side", "both", "out"):
        linear = network.layer(name).linear
        found[name] = {"kernel": linear.kernel[...], "bias": linear.bias[...]}
    mixed = network.layer("mixed")
    found["mixed"] = {"kernels": [k[...] for k in mixed.kernels], "bias": mixed.bias[...]}
    return found


DATA = {"x": (4, 3), "w": (4, 2)}


def inputs_of_branched():
    return {name: draw(*shape, seed=number) for number, (name, shape) in enumerate(DATA.items())}


@pytest.mark.usefixtures("double")
class TestBranches:
    def test_several_inputs_and_a_free_root(self):
        """Energies after inference by a formula written out, and F falls from the start's."""
        network, inputs, y = branched(), inputs_of_branched(), draw(4, 2, seed=5)
        result = network.infer(inputs, y, inference=FEW, trace=True)
        z = result.activities
        mu = by_hand(parameters_by_hand(network), **inputs, root=z["root"], activities=z)
        for name, prediction in mu.items():
            expected = 0.5 * jnp.sum((z[name] - prediction) ** 2, axis=-1)
            np.testing.assert_allclose(result.energies[name], expected, rtol=1e-10, atol=1e-14)
        expected = 0.4 * jnp.sum(z["root"] ** 2, axis=-1)
        np.testing.assert_allclose(result.energies["root"], expected, rtol=1e-10)
        assert np.abs(z["root"]).max() > 1e-3
        np.testing.assert_array_equal(z["out"], y)
        assert (result.trace.energy[-1] < result.trace.energy[0]).all()
        feedforward = by_hand(parameters_by_hand(network), **inputs, root=jnp.zeros((4, 2)))
        np.testing.assert_allclose(network.predict(inputs), feedforward["out"], rtol=1e-12)

    def test_fixed_predictions_settle_at_backpropagation(self):
        """On branches of unequal length, too; oracle: jax.grad of the pass written out."""
        network, inputs, y = branched(), inputs_of_branched(), draw(4, 2, seed=5)
        network.layer("root").energy = pc.energies.Gaussian()

        def loss(parameters):
            output = by_hand(parameters, **inputs, root=jnp.zeros((4, 2)))["out"]
            return jnp.mean(0.5 * jnp.sum((y - output) ** 2, axis=-1))

        expected = jax.jit(jax.grad(loss))(parameters_by_hand(network))
        settled = pc.learning.FixedPrediction(
            pc.inference.GradientDescent(optax.sgd(1.0), num_steps=4)
        )
        for rule in (settled, pc.learning.Backprop()):
            updated = learn_once(rule, pc.networks.split(network), inputs, y)[0].bind()
            moved = jax.tree.map(
                lambda after, before: (before - after) / 0.3,
                parameters_by_hand(updated),
                parameters_by_hand(network),
            )
            for got, want in zip(*map(jax.tree.leaves, (moved, expected)), strict=True):
                np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)

    def test_several_outputs_are_dictionaries(self):
        network, inputs = branched(output=("out", "side")), inputs_of_branched()
        targets = {"out": draw(4, 2, seed=5), "side": draw(4, 4, seed=6)}
        result = network.infer(inputs, targets, inference=FEW)
        for name, target in targets.items():
            np.testing.assert_array_equal(result.activities[name], target)
        prediction = network.predict(inputs)
        expected = by_hand(parameters_by_hand(network), **inputs, root=jnp.zeros((4, 2)))
        assert_same(prediction, {n: expected[n] for n in targets}, rtol=1e-12)
        np.testing.assert_allclose(
            network.output_energy(prediction, targets),
            sum(0.5 * jnp.sum((targets[n] - expected[n]) ** 2, axis=-1) for n in targets),
            rtol=1e-12,
        )
        one = network.infer(inputs, {"side": targets["side"]}, inference=FEW)
        assert np.abs(one.activities["out"] - targets["out"]).max() > 0.1  # free
        np.testing.assert_array_equal(one.activities["side"], targets["side"])

    def test_backpropagation_of_several_outputs(self):
        """It descends the sum of their energies; oracle: jax.grad of the pass written out."""
        network, inputs = branched(output=("out", "side")), inputs_of_branched()
        targets = {"out": draw(4, 2, seed=5), "side": draw(4, 4, seed=6)}
        split = pc.networks.split(network)
        gradients, _ = compiled_gradients(
            pc.learning.Backprop(), split, pc.Evidence(inputs, targets), key=KEY
        )

        def loss(parameters):
            mu = by_hand(parameters, **inputs, root=jnp.zeros((4, 2)))
            errors = (0.5 * jnp.sum((targets[n] - mu[n]) ** 2, axis=-1) for n in targets)
            return jnp.mean(sum(errors))

        expected = jax.jit(jax.grad(loss))(parameters_by_hand(network))
        got = parameters_by_hand(split.replace(parameters=gradients).bind())
        for mine, theirs in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-12)

    def test_predictions_of_several_outputs_by_the_trainer(self):
        """A dictionary of them, whatever the size of its batches."""
        network = pc.PCGraph(
            {"a": dense(3, 4), "out": dense(4, 2), "side": dense(4, 3)},
            parents={"a": "x", "out": "a", "side": "a"},
            inputs={"x": 3},
            output=("out", "side"),
        )
        x = draw(5, 3)
        trainer = trainer_of(network, pc.learning.PredictiveCoding(FEW))
        got = trainer.predict(x, batch_size=2)
        assert_same(got, network.predict(x), rtol=1e-6)

    def test_nudging_wants_one_output(self):
        network = branched(output=("out", "side"))
        with pytest.raises(ValueError, match="several outputs, but Nudged moves the clamp of one"):
            trainer_of(network, pc.learning.Nudged(FEW))

    def test_clamps_of_any_node(self):
        """Clamped parts stay, and what stands above starts from them."""
        network, inputs = branched(), inputs_of_branched()
        value, mask = draw(4, 2, seed=7), jnp.asarray([True, False])
        clamps = {"both": pc.Clamp(value, mask), "root": draw(4, 2, seed=8)}
        start = network.start(pc.Evidence(inputs, clamps=clamps))
        np.testing.assert_array_equal(start["both"][:, 0], value[:, 0])
        z = dict(start, both=start["both"], root=clamps["root"])
        mu = by_hand(parameters_by_hand(network), **inputs, root=z["root"], activities=z)
        np.testing.assert_allclose(start["mixed"], mu["mixed"], rtol=1e-12)
        result = network.infer(inputs, draw(4, 2, seed=5), inference=FEW, clamps=clamps)
        np.testing.assert_array_equal(result.activities["both"][:, 0], value[:, 0])
        assert np.abs(result.activities["both"][:, 1] - start["both"][:, 1]).max() > 1e-3
        np.testing.assert_array_equal(result.activities["root"], clamps["root"])
        with pytest.raises(ValueError, match="no layer 'boht'"):
            network.infer(inputs, inference=FEW, clamps={"boht": value})

    @pytest.mark.parametrize(
        ("inputs", "targets", "words"),
        [
            ({"x": (4, 3)}, (4, 2), "input 'w' is missing"),
            ((4, 3), (4, 2), "expected a dictionary of arrays for x, w, got one array"),
            ({"x": (4, 3), "ww": (4, 2)}, (4, 2), r"unknown 'ww'; did you mean 'w'\?"),
            ({"x": (4, 3), "w": (3, 2)}, (4, 2), "inputs 'w' 3"),
            ({"x": (4, 3), "w": (4, 2)}, (3, 2), "targets 3"),
            (None, (4, 2), "input 'x' is missing"),
            ({"x": (4, 5), "w": (4, 2)}, (4, 2), "layer 'a' .*in_features=5"),
            ({"x": (4, 3), "w": (4, 2)}, (4, 3), "layer 'out' predicts shape"),
        ],
    )
    def test_data_that_does_not_fit(self, inputs, targets, words):
        if isinstance(inputs, dict):
            inputs = {name: jnp.ones(shape) for name, shape in inputs.items()}
        elif inputs is not None:
            inputs = jnp.ones(inputs)
        with pytest.raises(ValueError, match=words):
            branched().infer(inputs, jnp.ones(targets), inference=FEW)

    def test_one_array_for_several_inputs_is_refused_at_stored_activities(self):
        network, inputs = branched(), inputs_of_branched()
        network.set_activities(network.feedforward(inputs))
        for ask in (network.energies, network.predictions, network.parameter_gradients):
            with pytest.raises(ValueError, match="dictionary of arrays for x, w, got one array"):
                ask(inputs["x"])

    def test_a_stack_inside(self):
        """Between a branch and a join: its nodes are those of the unrolled graph."""
        names = [f"hidden/{k}" for k in range(3)]
        layers = [dense(4, 4, seed=10 + k) for k in range(3)]

        def ends():
            return {"a": dense(3, 4, seed=1), "out": dense(8, 2, seed=2, activation=None)}

        stacked = pc.PCGraph(
            {"hidden": pc.PCStack(layers), **ends()},
            parents={"a": "x", "hidden": "a", "out": Concatenate("hidden", "a")},
            inputs={"x": 3},
            output="out",
        )
        unrolled = pc.PCGraph(
            {**dict(zip(names, layers, strict=True)), **ends()},
            parents={
                "a": "x",
                **dict(zip(names, ["a", *names], strict=False)),
                "out": Concatenate("hidden/2", "a"),
            },
            inputs={"x": 3},
            output="out",
        )
        assert stacked.nodes == unrolled.nodes == ("a", *names, "out")
        data = draw(4, 3), draw(4, 2, seed=5)
        for inference in (FEW, pc.inference.ErrorCoordinates(FEW)):
            clamps = {"hidden/1": draw(4, 4, seed=6)}
            got = stacked.infer(*data, inference=inference, clamps=clamps)
            expected = unrolled.infer(*data, inference=inference, clamps=clamps)
            assert_same(
                stacked.by_node(got.activities, lambda value, k: value[:, k]),
                expected.activities,
                rtol=1e-10,
                atol=1e-12,
            )
            assert_same(stacked.by_node(got.energies), expected.energies, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(stacked.predict(data[0]), unrolled.predict(data[0]), rtol=1e-12)


def mean_of_all(below):
    return jnp.mean(below, axis=-1, keepdims=True)


class TestCompiledPrograms:
    def test_a_sum_and_a_join_never_share_one(self):
        """Here both have the same arrays in the same shapes: only the wiring tells them apart."""
        found = {}
        x = draw(2, 3).astype(jnp.float32)
        for combine in (Sum, Concatenate):
            network = pc.PCGraph(
                {
                    "a": dense(3, 4, seed=1),
                    "b": dense(3, 4, seed=2),
                    "out": pc.PCLayer(mean_of_all),
                },
                parents={"a": "x", "b": "x", "out": combine("a", "b")},
                inputs={"x": 3},
                output="out",
            )
            result = network.infer(x, inference=FEW)
            both = [np.asarray(network.layer(name).predict(x)) for name in "ab"]
            found[combine] = np.asarray(result.activities["out"])
            parts = {Sum: both[0] + both[1], Concatenate: np.concatenate(both, axis=-1)}[combine]
            np.testing.assert_allclose(found[combine], mean_of_all(parts), rtol=1e-5)
        assert np.abs(found[Sum] - found[Concatenate]).max() > 1e-2

    def test_a_combination_of_a_users_own(self):
        """Parents multiplied before the weights: energies by NumPy, the rest as with two parents."""

        class Product(pc.networks.Combine):
            def __call__(self, first, second):
                return first * second

        class TwoParents(pc.PCDense):
            def predict(self, first, second):
                return super().predict(first * second)

        def graph(kind, parents):
            layers = {"a": dense(3, 4, seed=1), "b": dense(3, 4, seed=2)}
            out = kind(4, 2, activation=jnp.tanh, rngs=nnx.Rngs(3))
            return pc.PCGraph(
                {**layers, "out": out},
                parents={"a": "x", "b": "x", "out": parents},
                inputs={"x": 3},
                output="out",
            )

        x, y = (draw(2, n, seed=n).astype(jnp.float32) for n in (3, 2))
        one, other = graph(pc.PCDense, Product("a", "b")), graph(TwoParents, ("a", "b"))
        a, b = (np.asarray(one.layer(name).predict(x)) for name in "ab")
        linear = one.layer("out").linear
        mean = np.tanh((a * b) @ np.asarray(linear.kernel[...]) + np.asarray(linear.bias[...]))
        np.testing.assert_allclose(one.predict(x), mean, rtol=1e-5)
        one.init_activities(x, targets=y)
        np.testing.assert_allclose(one.energy(x), ((y - mean) ** 2).sum(1) / 2, rtol=1e-5)
        found, expected = (network.infer(x, y, inference=FEW) for network in (one, other))
        assert_same(found.activities, expected.activities, rtol=1e-5)
        for got, wanted in zip(
            *(jax.tree.leaves(network.parameter_gradients(x)) for network in (one, other)),
            strict=True,
        ):
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)
        assert Product("a", "b") == Product("a", "b") != Sum("a", "b")

    def test_a_combination_may_hold_arrays_and_no_module(self):
        """Of arrays, a second network of the same kind was refused by jax; modules were not trained."""

        class Weighed(pc.networks.Combine):
            def __init__(self, *names, weights):
                super().__init__(*names)
                self.weights = weights

            def __call__(self, first, second):
                return self.weights[0] * first + self.weights[1] * second

        def both(weights):
            return Weighed("a", "b", weights=weights)

        assert both(np.ones(2)) == both(np.ones(2))
        assert both(np.ones(2)) != both(np.zeros(2))
        assert both(np.ones(2)) != both(np.ones(3)) != both(1.0)
        assert both(np.ones(2)) != both(np.ones(2, np.float32))
        with pytest.raises(
            TypeError, match="'out' are combined by a Weighed around a Linear, which"
        ):
            pc.PCGraph(
                {name: dense(3, 3) for name in ("a", "b", "out")},
                parents={"a": "x", "b": "x", "out": both(nnx.Linear(3, 3, rngs=nnx.Rngs(0)))},
                inputs={"x": 3},
                output="out",
            )

    def test_wirings_are_compared_by_value(self):
        assert Sum("a", "b") == Sum("a", "b")
        assert hash(Sum("a", "b")) == hash(Sum("a", "b"))
        assert Sum("a", "b") != Concatenate("a", "b")
        assert Sum("a", "b") != Sum("b", "a")
        assert cyclic_graph_def() == cyclic_graph_def()
        assert cyclic_graph_def(sweeps=3) != cyclic_graph_def()


def cyclic_graph_def(**options):
    return pc.networks.split(cyclic_graph(**options)).graphdef


def test_a_graph_trains_and_goes_on_from_a_checkpoint(tmp_path):
    random = np.random.RandomState(0)
    data = pc.data.from_arrays(
        random.normal(size=(12, 4)).astype(np.float32),
        random.normal(size=(12, 2)).astype(np.float32),
        batch_size=4,
    )
    rule = RULES["predictive coding"]

    def kernels(trainer):
        return [np.asarray(layer.linear.kernel) for layer in trainer.network.layers]

    whole = trainer_of(cyclic_graph(), rule)
    history = whole.fit(data, num_steps=40, log_every=10, eval_data=data)
    assert history["train/energy"][-1] < 0.9 * history["train/energy"][0]
    first = trainer_of(cyclic_graph(), rule, tmp_path)
    first.fit(data, num_steps=25, log_every=10, eval_data=data)
    second = trainer_of(cyclic_graph(scale=0.1), rule, tmp_path)
    assert second.restore() == 25
    second.fit(data, num_steps=40, log_every=10, eval_data=data)
    for got, expected in zip(kernels(second), kernels(whole), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert len(history["train/energy/c"]) == 4


# Wiring that is refused.


def plain(**changes):
    """The arguments of a small graph, with changes."""
    arguments = {
        "layers": {"alpha": dense(3, 4), "beta": dense(4, 4), "gamma": dense(4, 2)},
        "parents": {"alpha": "x", "beta": "alpha", "gamma": "beta"},
        "inputs": {"x": 3},
        "output": "gamma",
    }
    for name, value in changes.items():
        old = arguments.get(name)
        arguments[name] = {**old, **value} if isinstance(value, dict) and old else value
    return arguments


class OneArgument(pc.PCLayer):
    def predict(self, below):
        return below


REFUSALS = {
    "unknown parent": (
        {"parents": {"gamma": "betta"}},
        r"layer 'gamma' has the unknown parent 'betta'; did you mean 'beta'\?",
    ),
    "unknown parent in a sum": (
        {"parents": {"gamma": Sum("beta", "delta")}},
        r"layer 'gamma' has the unknown parent 'delta'",
    ),
    "parents of an unknown layer": (
        {"parents": {"gama": "beta"}},
        r"parents are given of 'gama', which is no layer; did you mean 'gamma'\?",
    ),
    "unknown output": ({"output": "gama"}, r"output 'gama' is no layer; did you mean 'gamma'\?"),
    "unknown output among several": (
        {"output": ("gamma", "bet")},
        r"output 'bet' is no layer; did you mean 'beta'\?",
    ),
    "no output": ({"output": ()}, r"output '\(none\)' is no layer"),
    "unknown input": ({"inputs": "root"}, r"input 'root' is no layer; give its shape"),
    "input that is a layer": (
        {"inputs": {"alpha": 3}},
        r"'alpha' is an input and a layer at once",
    ),
    "input that is no root": (
        {"inputs": {"alpha": None}},
        r"input 'alpha' is a PCDense; inputs are arrays from outside",
    ),
    "no parents": (
        {"layers": {"delta": dense(3, 2)}},
        r"layer 'delta' has no parents and no prior",
    ),
    "empty parents": ({"parents": {"alpha": ()}}, r"layer 'alpha' has no parents and no prior"),
    "empty sum": ({"parents": {"alpha": Sum()}}, r"layer 'alpha' has no parents and no prior"),
    "root with parents": (
        {"layers": {"root": pc.PCRoot(2)}, "parents": {"root": "alpha"}},
        r"layer 'root' is a PCRoot, which has no parents",
    ),
    "widths do not meet": (
        {"parents": {"gamma": "x"}},
        r"layer 'gamma' \(PCDense\) could not predict .*in_features=3",
    ),
    "input of another width": (
        {"inputs": {"x": 5}},
        r"layer 'alpha' \(PCDense\) could not predict .*in_features=5",
    ),
    "sum of different shapes": (
        {"parents": {"gamma": Sum("beta", "x")}},
        r"layer 'gamma' adds up its parents, whose shapes differ: 'beta' \(2, 4\) and 'x' \(2, 3\)",
    ),
    "join that does not fit": (
        {
            "inputs": {"image": (2, 3)},
            "parents": {"gamma": Concatenate("beta", "image")},
        },
        r"layer 'gamma' joins its parents along the last axis, but the others differ",
    ),
    "joined width": (
        {"parents": {"gamma": Concatenate("beta", "alpha")}},
        r"layer 'gamma' \(PCDense\) could not predict .*in_features=8",
    ),
    "several parents, one argument": (
        {"parents": {"gamma": ("beta", "alpha")}},
        r"layer 'gamma' \(PCDense\) could not predict from activities of shapes .*"
        r"combine its parents by pc.networks.Sum or pc.networks.Concatenate",
    ),
    "cycle of unknown shape": (
        {
            "layers": {"loop": OneArgument()},
            "parents": {"loop": "loop"},
        },
        r"layer 'loop' is on a cycle, so its activity needs a shape .*shapes=\{'loop':",
    ),
    "cycle of a wrong shape": (
        {"parents": {"beta": Sum("alpha", "beta")}, "shapes": {"beta": 3}},
        r"layer 'beta'",
    ),
    "cycle that predicts another shape": (
        {
            "layers": {"loop": pc.PCLayer(nnx.Linear(7, 5, rngs=nnx.Rngs(0)))},
            "parents": {"loop": Concatenate("x", "loop")},
            "shapes": {"loop": 4},
        },
        r"layer 'loop' predicts shape \(5,\).*shapes=\{'loop': \(5,\)\}",
    ),
    "shape of an unknown layer": ({"shapes": {"gama": 3}}, r"no layer 'gama'"),
    "no sweeps": ({"sweeps": 0}, r"sweeps of at least 1, got 0"),
}


@pytest.mark.parametrize(("changes", "words"), REFUSALS.values(), ids=REFUSALS.keys())
def test_wiring_is_refused_at_construction(changes, words):
    pc.PCGraph(**plain())  # the graph itself is fine
    with pytest.raises(ValueError, match=words):
        pc.PCGraph(**plain(**changes))


def test_half_a_sweep_is_refused():
    with pytest.raises(TypeError, match="PCGraph expected an int sweeps, got 1.5"):
        pc.PCGraph(**plain(sweeps=1.5))


def test_layers_without_names_are_refused():
    with pytest.raises(TypeError, match="layers by name, .* got list"):
        pc.PCGraph([dense(3, 2)], parents={}, output="a")


def test_one_layer_in_two_places_is_refused():
    layer = dense(3, 3)
    with pytest.raises(ValueError, match="layer '.' is the same object as layer '.'"):
        pc.PCGraph(
            {"a": layer, "b": layer}, parents={"a": "x", "b": "a"}, inputs={"x": 3}, output="b"
        )


def test_a_stack_with_several_parents_is_refused_with_a_remedy_that_helps():
    """A stack cannot be given a `predict` of two arguments; its parents can be combined."""
    stack = pc.PCStack([dense(4, 4), dense(4, 4, seed=1)])
    with pytest.raises(ValueError, match=r"layer 'beta' .*pc.networks.Sum") as caught:
        pc.PCGraph(**plain(layers={"beta": stack}, parents={"beta": ("alpha", "alpha")}))
    assert "PCStack.forward()" not in str(caught.value)  # nobody called that
