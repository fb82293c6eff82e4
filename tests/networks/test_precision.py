"""How predictions are computed: in fewer bits, or once more for their derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc

FEW = pc.inference.GradientDescent(optax.sgd(0.1), num_steps=4)
RULE = pc.learning.PredictiveCoding(FEW)
SGD = optax.sgd(0.3)
pytestmark = pytest.mark.slow


def dense(below, width, rngs, **options):
    return pc.PCDense(below, width, rngs=rngs, **{"activation": jnp.tanh, **options})


def chain(**options):
    rngs = nnx.Rngs(0)
    return pc.PCNetwork(
        {"a": dense(3, 6, rngs), "b": dense(6, 5, rngs), "c": dense(5, 2, rngs, activation=None)},
        **options,
    )


def stack(**options):
    rngs = nnx.Rngs(0)
    return pc.PCNetwork(
        {
            "a": dense(3, 6, rngs),
            "b": pc.PCStack(lambda: dense(6, 6, rngs), 3),
            "c": dense(6, 2, rngs, activation=None),
        },
        **options,
    )


def graph(**options):
    """With a cycle."""
    rngs = nnx.Rngs(0)
    return pc.PCGraph(
        {"a": dense(9, 6, rngs), "b": dense(6, 5, rngs), "c": dense(11, 2, rngs, activation=None)},
        parents={
            "a": pc.networks.Concatenate("x", "a"),
            "b": "a",
            "c": pc.networks.Concatenate("a", "b"),
        },
        inputs={"x": 3},
        output="c",
        **options,
    )


NETWORKS = {"chain": chain, "stack": stack, "graph": graph}


def batch(size=4):
    random = np.random.RandomState(0)
    x = random.normal(size=(size, 3)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(np.sin(x[:, :2]) + 0.3)


@jax.jit
def learn_once(network, x, y):
    state = SGD.init(network.parameters)
    split, _, info = RULE.update(network, SGD, state, pc.Evidence(x, y), key=jax.random.key(0))
    return split.parameters, info


def relative(got, expected):
    """The largest difference by the largest number."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    return np.abs(got - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())
class TestComputeDtype:
    def test_only_predictions_are_computed_in_it(self, make):
        """Predictions carry bfloat16's 8 bits; what is stored and summed keeps its 32."""
        x, y = batch()
        half, full = make(compute_dtype=jnp.bfloat16), make()
        got, expected = (network.infer(x, y, inference=FEW) for network in (half, full))
        for leaf in jax.tree.leaves((got.activities, got.energies, got.residual)):
            assert leaf.dtype == jnp.float32
        splits = [pc.networks.split(network) for network in (half, full)]
        gradients = jax.jit(lambda split, z: split.bind(z).parameter_gradients(x))(
            splits[0], got.activities
        )
        for leaf in jax.tree.leaves(nnx.as_pure((gradients, nnx.state(half, nnx.Param)))):
            assert leaf.dtype == jnp.float32
        look = jax.jit(lambda split, z: (split.bind(z).predictions(x), split.bind().predict(x)))
        (rough, output), (exact, exact_output) = (
            look(split, expected.activities) for split in splits
        )
        for name, prediction in rough.items():
            assert prediction.dtype == jnp.float32
            # half a unit in the last place, 2^-9, of each factor, sum and function
            assert 2**-13 < relative(prediction, exact[name]) < 2**-5, name
        assert output.dtype == jnp.float32
        assert 0 < relative(output, exact_output) < 2**-4
        # one algorithm, one kind of network, the same shapes: two programs all the same
        assert 0 < relative(got.energy, expected.energy) < 2**-3
        # activities have more than 8 bits
        a = np.asarray(got.activities["a"])
        assert (a != a.astype(jnp.bfloat16).astype(np.float32)).any()

    def test_remat_changes_no_number(self, make):
        x, y = batch()
        networks = [pc.networks.split(make(remat=remat)) for remat in (True, False)]
        got, expected = (learn_once(network, x, y) for network in networks)
        for mine, theirs in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
        texts = []
        for network in networks:
            problem = pc.inference.make_problem(network, pc.Evidence(x, y))
            texts.append(str(jax.make_jaxpr(problem.energy_and_gradient)(problem.start)))
        assert "checkpoint" in texts[0] or "remat" in texts[0]
        assert "checkpoint" not in texts[1]
        assert "remat" not in texts[1]


def test_a_product_in_bfloat16_is_the_product_of_rounded_factors():
    """By NumPy: kernel, bias and input each rounded to 8 bits before anything else."""
    layer = pc.PCDense(1, 4, rngs=nnx.Rngs(3))
    layer.linear.bias.set_value(jnp.zeros(4))
    network = pc.PCNetwork([layer], compute_dtype="bfloat16")
    x = np.asarray([[1 / 3], [0.7]], np.float32)

    def rounded(array):
        return np.asarray(array, np.float32).astype(jnp.bfloat16).astype(np.float32)

    # of one term the product is exact in 32 bits, so it is rounded once
    expected = rounded(rounded(x) * rounded(layer.linear.kernel))
    np.testing.assert_array_equal(network.predict(jnp.asarray(x)), expected)
    assert (expected != x * np.asarray(layer.linear.kernel)).all()


@pytest.mark.usefixtures("double")
def test_wider_activities_keep_their_width():
    x, y = (array.astype(jnp.float64) for array in batch())
    result = chain(compute_dtype=jnp.float32).infer(x, y, inference=FEW)
    assert {a.dtype for a in result.activities.values()} == {jnp.dtype("float64")}
    assert result.energy.dtype == jnp.float64


@pytest.mark.parametrize("options", [{"remat": True}, {"remat": False}], ids=["remat", "plain"])
def test_training_in_bfloat16_learns(options):
    """On a toy that float32 learns; weights, statistics and the optimizer's state keep 32 bits."""
    rngs = nnx.Rngs(0)
    network = pc.PCNetwork(
        {
            "a": dense(3, 8, rngs, norm=nnx.BatchNorm(8, momentum=0.5, rngs=rngs), dropout=0.1),
            "b": pc.PCStack(lambda: dense(8, 8, rngs, skip=True), 2),
            "c": dense(8, 2, rngs, activation=None),
        },
        compute_dtype=jnp.bfloat16,
        **options,
    )
    data = pc.data.from_arrays(*map(np.asarray, batch(32)), batch_size=16)
    trainer = pc.Trainer(network, optax.adam(1e-2), learning=RULE, progress=False)
    before = trainer.evaluate(data)["squared_error"]
    trainer.fit(data, num_steps=120)
    assert trainer.evaluate(data)["squared_error"] < 0.3 * before
    kinds = nnx.state(network, nnx.Any(nnx.Param, nnx.BatchStat))
    leaves = jax.tree.leaves((nnx.as_pure(kinds), trainer.optimizer_state))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32"), jnp.dtype("int32")}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())
@pytest.mark.parametrize("dtype", [jnp.int32, "int8", jnp.bool_, jnp.complex64])
def test_dtypes_that_are_not_floating_are_refused(make, dtype):
    with pytest.raises(TypeError, match="expected a floating compute_dtype, got"):
        make(compute_dtype=dtype)
