"""What a review found in stacks and graphs, each held here by a test.

Oracles: other processes, the multipliers that muPC's formulas give by hand, the unrolled chain, and the
problem that inference itself is given.
"""

import contextlib
import io
import json
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from tests.conftest import compiled_gradients, in_double

MUPC = pc.parameterizations.MuPC()


def dense(below, above, seed=0, **options):
    return pc.PCDense(below, above, rngs=nnx.Rngs(seed), **options)


ORDER = """
import json, pcflax as pc
from flax import nnx
rngs = nnx.Rngs(0)
names = ["c", "a", "b", "e", "d"]
layers = {"output": pc.PCDense(10, 2, rngs=rngs)}
layers |= {name: pc.PCDense(3, 2, rngs=rngs) for name in names}
graph = pc.PCGraph(layers, parents={**{name: "x" for name in names},
    "output": pc.networks.Concatenate(*names)}, inputs={"x": 3}, output="output")
print(json.dumps(graph.names))
"""


@pytest.mark.slow
def test_the_order_of_layers_is_the_same_in_every_process():
    """Checkpoints store layers by their place."""
    here = io.StringIO()
    with contextlib.redirect_stdout(here):
        exec(ORDER, {})  # strings hash otherwise here than with 0 or 1 for a seed
    orders = {here.getvalue()} | {
        subprocess.run(
            [sys.executable, "-c", ORDER],
            env={"PYTHONHASHSEED": str(seed), "JAX_PLATFORMS": "cpu", "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in (0, 1)
    }
    assert [json.loads(order)[-1] for order in orders] == ["output"]


class TestPlaces:
    """a_1 = 1/sqrt(D), hidden 1/sqrt(N) or with skips 1/sqrt(N L), last 1/N."""

    def test_every_output_is_last_and_every_input_layer_first(self):
        options = {"parameterization": MUPC}
        graph = pc.PCGraph(
            {
                "one": dense(4, 9, **options),
                "two": dense(5, 9, **options),
                "hidden": dense(9, 9, skip=True, **options),
                "left": dense(9, 2, **options),
                "right": dense(9, 3, **options),
            },
            parents={
                "one": "x",
                "two": "y",
                "hidden": pc.networks.Sum("one", "two"),
                "left": "hidden",
                "right": "hidden",
            },
            inputs={"x": 4, "y": 5},
            output=("left", "right"),
        )
        found = {name: graph.layer(name).multiplier for name in graph.names}
        expected = {"one": 4**-0.5, "two": 5**-0.5, "hidden": 1 / math.sqrt(9 * 3)}
        assert found == pytest.approx({**expected, "left": 1 / 9, "right": 1 / 9})

    def test_a_side_branch_is_not_last(self):
        options = {"parameterization": MUPC}
        graph = pc.PCGraph(
            {
                "first": dense(4, 9, **options),
                "output": dense(9, 2, **options),
                "side": dense(9, 9, **options),
            },
            parents={"first": "x", "output": "first", "side": "first"},
            inputs={"x": 4},
            output="output",
        )
        assert graph.layer("side").multiplier == pytest.approx(1 / 3)
        assert graph.layer("output").multiplier == pytest.approx(1 / 9)

    def test_depth_is_a_stacks_and_no_attribute_of_a_users(self):
        class Deep(pc.PCDense):
            depth = 7

        graph = pc.PCGraph(
            {
                "first": Deep(4, 9, parameterization=MUPC, rngs=nnx.Rngs(0)),
                "hidden": dense(9, 9, skip=True, parameterization=MUPC),
                "output": dense(9, 2, parameterization=MUPC),
            },
            parents={"first": "x", "hidden": "first", "output": "hidden"},
            inputs={"x": 4},
            output="output",
        )
        assert graph.layer("hidden").multiplier == pytest.approx(1 / math.sqrt(9 * 3))


class TestStacks:
    def test_shared_arrays_are_refused(self):
        module = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
        with pytest.raises(
            ValueError, match=r"layers 0 and 1 of a PCStack share an array \(module"
        ):
            pc.PCStack(lambda: pc.PCLayer(module), 2)

    @pytest.mark.parametrize("implementation", ["threefry2x32", "rbg"])
    def test_one_mask_in_a_pass_upward_and_in_the_energy(self, implementation):
        """Zero errors at the feedforward start, whatever draws the masks."""
        with jax.default_prng_impl(implementation):
            rngs = nnx.Rngs(0)
            stack = pc.PCStack(lambda: pc.PCDense(5, 5, dropout=0.5, rngs=rngs), 3)
            network = pc.PCNetwork({"stack": stack, "output": dense(5, 2)})
            problem = pc.inference.make_problem(
                pc.networks.split(network), pc.Evidence(jnp.ones((4, 5)))
            )
        np.testing.assert_allclose(problem.energy(problem.start), 0, atol=1e-10)

    @pytest.mark.promotes("inputs of 16 bits meet weights of 32")
    def test_a_first_stack_keeps_the_dtype_of_the_unrolled_chain(self):
        layers = [dense(4, 4, seed) for seed in range(3)]
        x = jnp.ones((2, 4), jnp.bfloat16)
        stacked = pc.PCNetwork({"s": pc.PCStack([nnx.clone(layer) for layer in layers])})
        unrolled = pc.PCNetwork(layers)
        (activity,) = stacked.feedforward(x).values()
        for index, expected in enumerate(unrolled.feedforward(x).values()):
            assert activity.dtype == expected.dtype == jnp.float32
            np.testing.assert_allclose(activity[:, index], expected, rtol=1e-6)

    def test_an_attribute_that_hides_a_verb_of_layers_is_refused(self):
        layer = dense(3, 3)
        layer.top_node = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
        with pytest.raises(ValueError, match=r"layer 'a' \(PCDense\) has an attribute 'top_node'"):
            pc.PCNetwork({"a": layer})


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    "inference",
    [
        pc.inference.GradientDescent(optax.sgd(0.1), num_steps=3),
        pc.inference.ErrorCoordinates(pc.inference.GradientDescent(optax.sgd(0.1), num_steps=3)),
        pc.inference.NewtonCG(num_steps=2),
        pc.inference.GaussNewton(num_steps=2),
        pc.inference.LinearSolve(),
    ],
    ids=["gradient", "errors", "newton", "gauss-newton", "linear"],
)
def test_a_stack_in_parts_is_the_chain_it_stands_for(inference, monkeypatch):
    """On a CPU a deep stack is computed in parts; here five layers in two, of unequal sizes."""
    from pcflax.layers.kernels import parts

    monkeypatch.setattr(parts, "_LEAST_LAYERS", 2)
    monkeypatch.setattr(parts.os, "cpu_count", lambda: 2)
    linear = isinstance(inference, pc.inference.LinearSolve)
    options = {"skip": True, "activation": None if linear else jnp.tanh}
    layers = [in_double(dense(3, 3, seed, **options)) for seed in range(5)]
    ends = [in_double(dense(2, 3, 7)), in_double(dense(3, 2, 8))]
    stacked = pc.PCNetwork([ends[0], pc.PCStack([nnx.clone(layer) for layer in layers]), ends[1]])
    unrolled = pc.PCNetwork([nnx.clone(ends[0]), *layers, nnx.clone(ends[1])])
    random = np.random.RandomState(0)
    x, y = (jnp.asarray(random.normal(size=(4, 2))) for _ in range(2))
    got = stacked.infer(x, y, inference=inference)
    expected = unrolled.infer(x, y, inference=inference)
    np.testing.assert_allclose(got.energy, expected.energy, rtol=1e-9)
    found = stacked.parameter_gradients(x)["layers"]["layer_1"]["stacked-layers"]["linear"][
        "kernel"
    ][...]
    expected = unrolled.parameter_gradients(x)["layers"]
    for index in range(5):
        own = expected[f"layer_{1 + index}"]["linear"]["kernel"][...]
        np.testing.assert_allclose(found[index], own, rtol=1e-6, atol=1e-9)


class TestStatistics:
    def network(self):
        rngs = nnx.Rngs(0)
        hidden = dense(3, 6, norm=nnx.BatchNorm(6, rngs=rngs), activation=jnp.tanh)
        return pc.PCNetwork({"hidden": hidden, "output": dense(6, 2)})

    def test_energies_and_gradients_read_outside_are_those_of_inference(self):
        network = self.network()
        random = np.random.RandomState(0)
        x, y = (jnp.asarray(random.normal(size=(5, n)), jnp.float32) for n in (3, 2))
        inference = pc.inference.GradientDescent(optax.sgd(0.1), num_steps=30)
        rule = pc.learning.PredictiveCoding(inference)
        expected, _ = compiled_gradients(
            rule, pc.networks.split(network), pc.Evidence(x, y), key=jax.random.key(0)
        )
        result = network.infer(x, y, inference=inference)
        np.testing.assert_allclose(network.energy(x), result.energy, rtol=1e-5)
        found = nnx.as_pure(network.parameter_gradients(x))
        for own, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-6)

    def test_a_free_root_has_no_statistics_to_take(self):
        rngs = nnx.Rngs(0)
        hidden = dense(3, 6, norm=nnx.BatchNorm(6, rngs=rngs))
        network = pc.PCNetwork({"root": pc.PCRoot(3), "hidden": hidden, "output": dense(6, 2)})
        inference = pc.inference.GradientDescent(optax.sgd(0.1), num_steps=2)
        with pytest.raises(ValueError, match="root 'root' is free.*nnx.GroupNorm"):
            network.infer(None, jnp.ones((4, 2)), inference=inference)
        network.infer(jnp.ones((4, 3)), jnp.ones((4, 2)), inference=inference)  # clamped
        network.eval()
        assert np.isfinite(network.infer(None, jnp.ones((4, 2)), inference=inference).energy).all()

    def test_a_precision_and_an_idle_dropout_keep_nothing_of_the_batch(self):
        """So examples may be solved one by one."""
        energy = pc.energies.Gaussian(jnp.array([1.0, 2.0, 4.0]))
        network = pc.PCNetwork([dense(3, 3, energy=energy, dropout=0.5), dense(3, 2)])
        newton = pc.inference.NewtonCG(num_steps=3)
        x, y = jnp.ones((4, 3)), jnp.ones((4, 2))
        with pytest.raises(ValueError, match="draws at random"):
            network.infer(x, y, inference=newton)
        network.eval()
        assert network.infer(x, y, inference=newton).residual.max() < 1e-4


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"output": ("b", "b")}, "output 'b' is given twice"),
            ({"output": "b", "inputs": {"x": 3, "typo": 5}}, "input 'typo' is no layer's parent"),
        ],
    )
    def test_of_wiring(self, options, words):
        layers = {"a": dense(3, 4), "b": dense(4, 2)}
        options = {"inputs": {"x": 3}, **options}
        with pytest.raises(ValueError, match=words):
            pc.PCGraph(layers, parents={"a": "x", "b": "a"}, **options)

    def test_of_a_missing_target(self):
        graph = pc.PCGraph(
            {"a": dense(3, 4), "b": dense(4, 2), "c": dense(4, 2)},
            parents={"a": "x", "b": "a", "c": "a"},
            inputs={"x": 3},
            output=("b", "c"),
        )
        x = jnp.ones((2, 3))
        prediction = graph.predict(x)
        alone = graph.output_energy(prediction, {"b": jnp.ones((2, 2)), "c": None})
        np.testing.assert_allclose(alone, ((1 - prediction["b"]) ** 2).sum(1) / 2, rtol=1e-6)
        with pytest.raises(ValueError, match="no targets for the output 'b'"):
            graph.output_energy(prediction, {})

    @pytest.mark.parametrize("name", ["_names", "<inputs>", "", "stacked-layers", 3])
    def test_of_a_name_that_networks_keep_for_themselves(self, name):
        with pytest.raises(
            ValueError, match=f"PCNetwork expected names such as 'hidden' .*{name!r}"
        ):
            pc.PCNetwork({name: dense(3, 2)})

    def test_of_a_cycle_of_a_layer_whose_submodule_is_called_linear(self):
        """Its width is not the layer's: only layers of ours tell the shape of their activity."""

        class Bottleneck(pc.PCLayer):
            def __init__(self, rngs):
                super().__init__()
                self.linear, self.out = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)

            def predict(self, below):
                return self.out(self.linear(below))

        with pytest.raises(ValueError, match=r"layer 'a' is on a cycle.*give shapes=\{'a':"):
            pc.PCGraph({"a": Bottleneck(nnx.Rngs(0))}, parents={"a": "a"}, inputs={}, output="a")

    def test_of_a_rule_that_cannot_train_the_network(self):
        graph = pc.PCGraph(
            {"a": dense(3, 4), "b": dense(4, 2)},
            parents={"a": "x", "b": "a"},
            inputs={"x": 3},
            output="b",
        )
        x, y = jnp.ones((2, 3)), jnp.ones((2, 2))
        with pytest.raises(ValueError, match="ZIL is timed for a chain"):
            pc.analysis.gradient_alignment(graph, x, y, learning=pc.learning.ZIL())


def test_a_negative_token_has_no_row():
    layer = pc.PCEmbedding(5, 2, rngs=nnx.Rngs(0))
    found = layer.predict(jnp.array([[-1, 4, 5]]))
    assert np.isnan(found).all(axis=-1).tolist() == [[True, False, True]]


@pytest.mark.parametrize(
    ("size", "error", "text"),
    [
        (3.5, TypeError, "expected an int shape of 'x', got 3.5"),
        ("3", TypeError, "expected an int shape of 'x', got '3'"),
        ((3, 0), ValueError, "expected shape of 'x' of at least 1, got 0"),
        (-3, ValueError, "expected shape of 'x' of at least 1, got -3"),
    ],
)
def test_shapes_of_inputs_are_counts(size, error, text):
    layer = pc.PCDense(3, 2, rngs=nnx.Rngs(0))
    with pytest.raises(error, match=text):
        pc.PCGraph({"a": layer}, parents={"a": "x"}, inputs={"x": size}, output="a")
