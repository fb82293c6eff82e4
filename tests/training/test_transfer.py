"""Transfer: what is frozen stays, what is loaded is told, and another architecture is refused.

Oracles: the arrays themselves, bit by bit.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from pcflax.training.checkpoints.fingerprint import describe
from tests.layers.test_every_layer import LAYERS, build

pytestmark = pytest.mark.slow

DESCENT = pc.inference.GradientDescent(0.1, num_steps=4)
NAMES = ("hidden_1", "hidden_2", "output")
RULES = [
    pc.learning.PredictiveCoding(DESCENT),
    pc.learning.IncrementalPC(DESCENT),
    pc.learning.Backprop(),
]


def mlp(seed=0, **options):
    return pc.models.mlp(3, 5, 4, 2, rngs=nnx.Rngs(seed), **options)


@pytest.fixture(scope="module")
def data():
    random = np.random.default_rng(0)
    x, y = (random.normal(size=(8, size)).astype(np.float32) for size in (3, 2))
    return pc.data.from_arrays(x, y, batch_size=4)


class Within(pc.PCLayer):
    """A layer of the user's, with settings of several kinds."""

    def __init__(self, widths, functions, part, rngs):
        super().__init__(nnx.Linear(3, 2, rngs=rngs))
        self.widths, self.functions, self.part = widths, functions, part
        self.own: object = None


def within(
    seed=0,
    *,
    function=jnp.tanh,
    epsilon=1e-6,
    widths=(1, 2),
    functions=(jnp.tanh, jnp.cos),
    part=None,
    **options,
):
    rngs = nnx.Rngs(seed)
    part = functools.partial(jnp.add, 1) if part is None else part
    conv = {"strides": 2, "pool": "max", "pool_size": 2} | options
    inner = nnx.Sequential(
        lambda z: z.mean((1, 2)),
        nnx.LayerNorm(4, epsilon=epsilon, rngs=rngs),
        function,
        nnx.Linear(4, 3, rngs=rngs),
    )
    return pc.PCNetwork(
        [
            pc.PCConv(1, 4, 3, activation=jnp.tanh, rngs=rngs, **conv),
            pc.PCLayer(inner),
            Within(widths, functions, part, rngs),
        ]
    )


def arrays(network):
    flat = jax.tree_util.tree_leaves_with_path(pc.networks.split(network).parameters)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.array(leaf)
        for path, leaf in flat
    }


def trainer_of(network, rule=RULES[0], folder=None, **options):
    checkpoints = None if folder is None else pc.Checkpoints(folder)
    optimizer = optax.adamw(1e-2, weight_decay=0.1)
    return pc.Trainer(
        network, optimizer, learning=rule, checkpoints=checkpoints, progress=False, **options
    )


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    trainer_of(mlp(), folder=folder).fit(data, num_steps=1)
    return folder


class TestFreezing:
    @pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
    @pytest.mark.parametrize(
        ("wrt", "learns"),
        [
            ("output", {"output.linear.kernel", "output.linear.bias"}),
            (("hidden_*", "output.linear.bias"), None),
            (
                lambda path, _: "bias" in path,
                {f"{n}.linear.bias" for n in ("hidden_1", "hidden_2", "output")},
            ),
        ],
        ids=["name", "patterns", "filter"],
    )
    def test_what_is_left_out_stays_bit_by_bit(self, rule, wrt, learns, data):
        network = mlp()
        before = arrays(network)
        if learns is None:
            learns = {path for path in before if "hidden" in path} | {"output.linear.bias"}
        trainer = trainer_of(network, rule, wrt=wrt)
        trainer.fit(data, num_steps=3)
        after = arrays(trainer.network)
        moved = {path for path in before if (before[path] != after[path]).any()}
        assert moved == learns
        held = sum(leaf.size for leaf in jax.tree.leaves(trainer.optimizer_state))
        assert (
            held == 2 * sum(before[path].size for path in learns) + 1
        )  # both moments, and a count

    def test_a_frozen_run_is_resumed_exactly(self, data, tmp_path):
        whole = trainer_of(mlp(), wrt="output")
        whole.fit(data, num_steps=4)
        trainer_of(mlp(), folder=tmp_path, wrt="output").fit(data, num_steps=2)
        resumed = trainer_of(mlp(), folder=tmp_path, wrt="output")
        resumed.restore()
        resumed.fit(data, num_steps=4)
        for path, array in arrays(whole.network).items():
            np.testing.assert_array_equal(array, arrays(resumed.network)[path])

    @pytest.mark.parametrize(
        ("wrt", "error", "message"),
        [
            ("ouput", ValueError, "'ouput', which fits no layer.*did you mean 'output'"),
            ((), ValueError, "wrt is empty"),
            (nnx.LoRAParam, ValueError, "fits no parameter"),
            (3, TypeError, "expected names or patterns of layers, or a filter of nnx"),
        ],
    )
    def test_what_fits_nothing_is_told(self, wrt, error, message):
        with pytest.raises(error, match=message):
            trainer_of(mlp(), wrt=wrt)


class TestFingerprint:
    @pytest.mark.parametrize(
        ("network", "message"),
        [
            (
                lambda: mlp(activation=jax.nn.relu),
                "'hidden_1' was saved with activation tanh.*has relu",
            ),
            (
                lambda: mlp(activation_first=True),
                "activation_first False, and the network has True",
            ),
            (
                lambda: mlp(energy=pc.energies.Huber(1.0)),
                "'output' was saved with energy Gaussian.*Huber",
            ),
            (lambda: mlp(energy=pc.energies.Gaussian(2.0)), "energy precision 1.0.*has 2.0"),
            (
                lambda: mlp(parameterization=pc.parameterizations.MuPC()),
                r"parameterization Standard\(gamma=1.0\), and the network has MuPC",
            ),
        ],
        ids=["activation", "order", "energy", "precision", "parameterization"],
    )
    def test_a_network_that_computes_something_else_is_refused(self, network, message, folder):
        network = network()
        before = arrays(network)
        with pytest.raises(pc.CheckpointError, match=message):
            pc.load_checkpoint(folder, network)
        with pytest.raises(pc.CheckpointError, match=message):
            trainer_of(network, folder=folder).restore()
        for path, array in arrays(network).items():
            np.testing.assert_array_equal(array, before[path])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"strides": 1}, r"'layer_0' was saved with conv strides \[2, 2\], .* has \[1, 1\]"),
            ({"pool_size": 4}, r"pool_size \[2, 2\], and the network has \[4, 4\]"),
            ({"pool": None}, "pool max, and the network has None"),
            ({"function": jax.nn.relu}, "'layer_1' was saved with module layers 2 tanh.*has relu"),
            ({"epsilon": 0.1}, "module layers 1 epsilon 1e-06, and the network has 0.1"),
            ({"widths": (1, 3)}, r"'layer_2' was saved with widths \[1, 2\]"),
            ({"functions": (jnp.tanh, jnp.sin)}, r"functions \['tanh', 'cos'\]"),
            ({"part": functools.partial(jnp.add, 2)}, r"part partial add \(1,\) \{\}"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_what_is_within_tuples_and_modules_counts(self, options, message, tmp_path):
        """Such weights loaded without a word, and predicted something else."""
        trainer_of(within(), folder=tmp_path).save()
        network = within(1, **options)
        with pytest.raises(pc.CheckpointError, match=message):
            pc.load_checkpoint(tmp_path, network)

    def test_what_is_within_is_equal_for_equal_networks(self, tmp_path):
        network = within()
        network.predict(jnp.ones((3, 16, 16, 1)))
        trainer_of(network, folder=tmp_path).save()
        again = within(1, strides=(2, 2), pool_size=(2, 2))
        again.eval()
        again.predict(jnp.ones((5, 16, 16, 1)))
        pc.load_checkpoint(tmp_path, again)

    @pytest.mark.parametrize("name", LAYERS)
    def test_no_mode_batch_or_address_is_in_it(self, name):
        network, inputs, targets = build(name)
        before = json.dumps(describe(network))
        assert "0x" not in before
        assert json.loads(before) == describe(build(name, batch=5)[0])
        network.train()
        network.infer(inputs, targets, inference=DESCENT)
        assert json.loads(before) == describe(network)

    def test_functions_given_to_a_partial_go_by_their_names(self):
        """By what Python shows, with its address, no other process could restore the run."""
        layer = Within((), (), functools.partial(map, jnp.tanh), nnx.Rngs(0))
        found = describe(pc.PCNetwork([layer]))["layer_0"]
        assert found["part"] == "partial map ('tanh',) {}"

    def test_a_module_that_holds_itself_ends(self):
        layer = Within((1, 2), (jnp.tanh,), None, nnx.Rngs(0))
        layer.own = nnx.data([layer])
        assert describe(pc.PCNetwork([layer]))["layer_0"]["own"]["length"] == 1

    def test_what_changes_no_function_is_no_difference(self, folder):
        network = mlp(1, compute_dtype=jnp.bfloat16, remat=True)
        network.eval()
        pc.load_checkpoint(folder, network)

    def test_a_checkpoint_without_one_restores(self, folder):
        checkpoint = pc.load_checkpoint(folder)
        old = checkpoint._replace(
            meta={k: v for k, v in checkpoint.meta.items() if k != "architecture"}
        )
        assert old.arrays_for(mlp(activation=jax.nn.relu))[0]


class TestPartialLoading:
    def test_every_array_is_reported_on(self, folder):
        stored = pc.load_checkpoint(folder).sections["parameters"]
        rngs = nnx.Rngs(1)
        network = pc.PCNetwork(
            {
                "first": pc.PCDense(3, 5, rngs=rngs),
                "hidden_2": pc.PCDense(5, 4, rngs=rngs),
                "output": pc.PCDense(4, 7, rngs=rngs),
                "more": pc.PCDense(7, 1, use_bias=False, rngs=rngs),
            }
        )
        before = arrays(network)
        report = pc.load_partial(folder, network, rename={"hidden_1": "first"})
        after = arrays(network)
        for path, old in (
            ("first.linear.kernel", "hidden_1.linear.kernel"),
            ("first.linear.bias", "hidden_1.linear.bias"),
            ("hidden_2.linear.kernel", "hidden_2.linear.kernel"),
            ("hidden_2.linear.bias", "hidden_2.linear.bias"),
        ):
            np.testing.assert_array_equal(after[path], stored[old])
            assert path in report.loaded
        for path in ("output.linear.kernel", "output.linear.bias", "more.linear.kernel"):
            np.testing.assert_array_equal(after[path], before[path])
        assert report.renamed["first.linear.kernel"] == "hidden_1.linear.kernel"
        assert report.missing == ("more.linear.kernel",)
        assert report.skipped["output.linear.kernel"] == "float32[4, 2], not float32[4, 7]"
        assert report.unused == ()
        assert "more.linear.kernel" in str(report)

    def test_what_the_network_lacks_is_unused(self, folder):
        network = pc.PCNetwork({"hidden_1": pc.PCDense(3, 5, rngs=nnx.Rngs(1))})
        report = pc.load_partial(folder, network)
        assert set(report.unused) == {
            f"{name}.linear.{kind}"
            for name in ("hidden_2", "output")
            for kind in ("kernel", "bias")
        }

    def test_refusals(self, folder):
        other = pc.PCNetwork({"a": pc.PCDense(2, 2, rngs=nnx.Rngs(0))})
        with pytest.raises(ValueError, match="no array of .* fits the network"):
            pc.load_partial(folder, other)
        with pytest.raises(ValueError, match="'hiden_1', which the checkpoint does not have"):
            pc.load_partial(folder, mlp(), rename={"hiden_1": "hidden_1"})
        with pytest.raises(ValueError, match="'first', which the network does not have"):
            pc.load_partial(folder, mlp(), rename={"hidden_1": "first"})
