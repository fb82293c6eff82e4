"""The chain against an independent NumPy implementation, and its refusals."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from tests.conftest import Chain, gradient_arrays
from tests.references import numpy_pc as reference

# Float64 rounding over a few dozen operations; the promise is 1e-6.
CLOSE = {"rtol": 1e-10, "atol": 1e-12}

VARIANTS = {
    "tanh": {},
    "activation_first": {"activation_first": True},
    "sigmoid": {"activation": "sigmoid", "widths": (4, 3, 6)},
    "categorical": {"output": "categorical", "widths": (3, 6, 5, 4)},
    "bernoulli": {"output": "bernoulli"},
    "precision": {"precision": 2.5},
    "one layer": {"widths": (3, 2)},
}


@pytest.fixture(params=[1, 7], ids=["batch1", "batch7"])
def batch(request):
    return request.param


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.usefixtures("double")
class TestAgainstNumPy:
    """If these fail, pcflax computes some other model than predictive coding."""

    def test_feedforward_start_and_prediction(self, variant, batch):
        chain = Chain(batch=batch, **variant)
        expected = reference.feedforward(chain.reference, chain.inputs)
        chain.network.init_activities(chain.inputs)
        for layer, activity in zip(chain.network.layers, expected, strict=True):
            np.testing.assert_allclose(layer.activity[...], activity, **CLOSE)
        prediction = reference.predictions(chain.reference, chain.inputs, expected)[-1]
        np.testing.assert_allclose(chain.network.predict(chain.inputs), prediction, **CLOSE)

    def test_energies_are_per_example_and_per_layer(self, variant, batch):
        chain = Chain(batch=batch, **variant)
        activities = [
            chain.random.normal(size=activity.shape)
            for activity in reference.feedforward(chain.reference, chain.inputs)
        ]
        activities[-1] = chain.targets
        chain.network.set_activities(
            dict(zip(chain.network.names, map(jnp.asarray, activities), strict=True))
        )
        expected = reference.energies(chain.reference, chain.inputs, activities)
        got = chain.network.energies(chain.inputs)
        assert list(got) == list(chain.network.names)
        for name, energy in zip(chain.network.names, expected, strict=True):
            assert got[name].shape == (batch,)
            np.testing.assert_allclose(got[name], energy, **CLOSE)
        np.testing.assert_allclose(chain.network.energy(chain.inputs), sum(expected), **CLOSE)

    def test_inference_takes_the_reference_steps(self, variant, batch):
        chain = Chain(batch=batch, **variant)
        start = [*reference.feedforward(chain.reference, chain.inputs)[:-1], chain.targets]
        activities, energies = reference.infer(
            chain.reference, chain.inputs, start, chain.free(), step_size=0.07, num_steps=9
        )
        result = chain.network.infer(
            chain.inputs,
            chain.targets,
            inference=pc.inference.GradientDescent(optax.sgd(0.07), num_steps=9),
            trace=True,
        )
        for name, layer, activity in zip(
            chain.network.names, chain.network.layers, activities, strict=True
        ):
            np.testing.assert_allclose(layer.activity[...], activity, **CLOSE)
            np.testing.assert_allclose(result.activities[name], activity, **CLOSE)
        np.testing.assert_allclose(result.trace.energy, energies, **CLOSE)
        np.testing.assert_allclose(result.energy, energies[-1], **CLOSE)
        assert (result.num_steps == 9).all()

    def test_parameter_gradients_are_the_local_ones(self, variant, batch):
        chain = Chain(batch=batch, **variant)
        result = chain.network.infer(
            chain.inputs,
            chain.targets,
            inference=pc.inference.GradientDescent(optax.sgd(0.07), num_steps=9),
            trace=True,  # the program of the test above
        )
        activities = [np.asarray(activity) for activity in result.activities.values()]
        expected = reference.parameter_gradients(chain.reference, chain.inputs, activities)
        got = gradient_arrays(chain.network.parameter_gradients(chain.inputs))
        for (kernel, bias), (expected_kernel, expected_bias) in zip(got, expected, strict=True):
            np.testing.assert_allclose(kernel, expected_kernel, **CLOSE)
            np.testing.assert_allclose(bias, expected_bias, **CLOSE)


@pytest.mark.usefixtures("double")
def test_gradients_equal_jax_grad_of_the_reference_energy():
    """The reference's own derivatives are by hand; this checks both against autodiff of its formula."""
    chain = Chain()
    x, y = chain.inputs, chain.targets
    kernels = [layer.kernel for layer in chain.reference]
    biases = [layer.bias for layer in chain.reference]
    hidden = [chain.random.normal(size=(7, width)) for width in (5, 4)]
    precisions = [layer.precision for layer in chain.reference]

    def mean_energy(kernels, biases, hidden):
        activities, total = [x, *hidden, y], 0.0
        for number, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
            mu = activities[number] @ kernel + bias[None]
            mu = jnp.tanh(mu) if number < 2 else mu
            total += precisions[number] / 2 * jnp.sum((activities[number + 1] - mu) ** 2)
        return total / 7

    expected = jax.jit(jax.grad(mean_energy, argnums=(0, 1, 2)))(kernels, biases, hidden)
    chain.network.set_activities({"layer_0": hidden[0], "layer_1": hidden[1], "layer_2": y})
    got = gradient_arrays(chain.network.parameter_gradients(x))
    for number, (kernel, bias) in enumerate(got):
        np.testing.assert_allclose(kernel, expected[0][number], **CLOSE)
        np.testing.assert_allclose(bias, expected[1][number], **CLOSE)
    # and one step of inference is minus the step size times the per-example gradient
    start = {"layer_0": hidden[0], "layer_1": hidden[1], "layer_2": y}
    problem = pc.inference.InferenceProblem(
        pc.networks.split(chain.network),
        x,
        {"layer_2": pc.Clamp(y)},
        {k: start[k] for k in list(start)[:2]},
    )
    _, gradient = problem.energy_and_gradient(problem.start)
    for name, mean_gradient in zip(("layer_0", "layer_1"), expected[2], strict=True):
        np.testing.assert_allclose(gradient[name], 7 * mean_gradient, **CLOSE)


@pytest.mark.usefixtures("double")
def test_a_tiny_step_is_the_euler_step_of_the_gradient_flow():
    """dz/dt = -dF/dz: after one step of size h, (z(h) - z(0))/h is the reference's vector field."""
    chain, h = Chain(), 1e-6
    start = [*reference.feedforward(chain.reference, chain.inputs)[:-1], chain.targets]
    field = reference.activity_gradients(chain.reference, chain.inputs, start, chain.free())
    chain.network.infer(
        chain.inputs,
        chain.targets,
        inference=pc.inference.GradientDescent(optax.sgd(h), num_steps=1),
    )
    for layer, before, gradient in zip(chain.network.layers, start, field, strict=True):
        speed = (np.asarray(layer.activity[...]) - before) / h
        np.testing.assert_allclose(speed, -gradient, atol=1e-8)  # h^-1 times float64 rounding


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("given", ["root free", "root clamped", "output free"])
def test_free_and_clamped_ends(batch, given):
    """A free root relaxes to explain what is above it; a free output stays where it is predicted."""
    chain = Chain(root=True, batch=batch)
    inputs = None if given == "root free" else chain.inputs
    targets = None if given == "output free" else chain.targets
    start = reference.feedforward(chain.reference, inputs, batch_size=batch)
    if inputs is not None:
        start[0] = inputs
    if targets is not None:
        start[-1] = targets
    free = chain.free(root_free=inputs is None, output_free=targets is None)
    expected, _ = reference.infer(chain.reference, inputs, start, free, step_size=0.1, num_steps=12)
    result = chain.network.infer(
        inputs if inputs is not None else (None if targets is not None else chain.inputs),
        targets,
        inference=pc.inference.GradientDescent(optax.sgd(0.1), num_steps=12),
    )
    for got, activity in zip(result.activities.values(), expected, strict=True):
        np.testing.assert_allclose(got, activity, **CLOSE)
    if given == "output free":
        np.testing.assert_allclose(result.residual, 0, atol=1e-14)


def test_a_network_trains_with_the_plain_nnx_optimizer():
    """parameter_gradients gives what nnx.Optimizer takes, so a loop of one's own needs no Trainer."""
    chain = Chain()
    x, y = chain.inputs.astype(np.float32), chain.targets.astype(np.float32)
    optimizer = nnx.Optimizer(chain.network, optax.sgd(0.05), wrt=nnx.Param)
    inference = pc.inference.GradientDescent(optax.sgd(0.1), num_steps=10)
    energies = []
    for _ in range(20):
        energies.append(float(chain.network.infer(x, y, inference=inference).energy.mean()))
        optimizer.update(chain.network, chain.network.parameter_gradients(x))
    # the step is small enough for descent: every energy is below the one before
    assert all(later < earlier for earlier, later in itertools.pairwise(energies))


def test_names_come_from_a_mapping_or_from_positions():
    rngs = nnx.Rngs(0)
    named = pc.PCNetwork(
        {"hidden": pc.PCDense(3, 4, rngs=rngs), "out": pc.PCDense(4, 2, rngs=rngs)}
    )
    assert named.names == ("hidden", "out")
    assert named.layer("out") is named.layers[1]
    assert pc.PCNetwork([pc.PCDense(3, 4, rngs=rngs)]).names == ("layer_0",)


def make(*widths):
    rngs = nnx.Rngs(0)
    return pc.PCNetwork(
        [pc.PCDense(a, b, rngs=rngs) for a, b in zip(widths[:-1], widths[1:], strict=True)]
    )


GD = pc.inference.GradientDescent(optax.sgd(0.1), num_steps=2)
ONES = jnp.ones


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pc.PCNetwork([]), ValueError, "at least one layer"),
        (
            lambda: pc.PCNetwork([nnx.Linear(2, 3, rngs=nnx.Rngs(0))]),
            TypeError,
            r"layer 'layer_0' is a Linear, not a PCLayer; wrap it: pc.PCLayer",
        ),
        (
            lambda: make(3, 4).infer(ONES((2, 5)), inference=GD),
            ValueError,
            r"layer 'layer_0' \(PCDense\) could not predict .* expected an input of shape \(batch, 3\)",
        ),
        (
            lambda: make(3, 4, 2).infer(ONES((2, 3)), ONES((2, 7)), inference=GD),
            ValueError,
            r"layer 'layer_1' predicts shape \(2, 2\) but is clamped to \(2, 7\); set out_features=7",
        ),
        (
            lambda: make(3, 4).infer(ONES((2, 3)), ONES((5, 4)), inference=GD),
            ValueError,
            "inputs have batch size 2 but targets 5",
        ),
        (
            lambda: make(3, 4).infer(ONES((2, 3), jnp.int32), inference=GD),
            TypeError,
            "expected inputs of a floating dtype, got int32",
        ),
        (
            lambda: make(3, 4).infer(ONES((2, 3)), ONES((2, 4), jnp.int32), inference=GD),
            TypeError,
            "expected targets of a floating dtype, got int32; make them one-hot",
        ),
        (lambda: make(3, 4).infer(ONES(3), inference=GD), ValueError, "needs a batch axis"),
        (lambda: make(3, 4).infer(ONES((0, 3)), inference=GD), ValueError, "empty batch"),
        (lambda: make(3, 4).infer(None, ONES((2, 4)), inference=GD), ValueError, "has no root"),
        (lambda: make(3, 4).infer(inference=GD), ValueError, "both None"),
        (lambda: make(3, 4).infer(ONES((2, 3)), inference=3), TypeError, "to be an algorithm"),
        (lambda: make(3, 4).energies(ONES((2, 3))), ValueError, "layer_0' has no activity yet"),
        (lambda: make(3, 4).layer("x"), ValueError, "no layer 'x'; the layers are layer_0"),
        (
            lambda: pc.PCNetwork([pc.PCDense(3, 4, rngs=nnx.Rngs(0)), pc.PCRoot(4)]),
            ValueError,
            "'layer_1' is a PCRoot but not the first layer",
        ),
        (
            lambda: pc.PCNetwork(
                [pc.PCDense(3, 4, energy=pc.energies.Categorical(), rngs=nnx.Rngs(0))]
            ).infer(ONES((2, 3)), inference=GD),
            ValueError,
            "layer 'layer_0' is free, but its energy Categorical has no minimum",
        ),
        (
            lambda: pc.PCNetwork([pc.PCRoot(4)]).infer(ONES((2, 3)), inference=GD),
            ValueError,
            r"root of shape \(2, 4\) but the inputs are \(2, 3\)",
        ),
    ],
)
def test_refusals_say_what_where_and_what_to_do(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_one_layer_in_two_places_is_refused():
    layer = pc.PCDense(3, 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="'layer_1' is the same object as layer 'layer_0'"):
        pc.PCNetwork([layer, layer])


def test_a_layer_that_skips_super_init_is_refused():
    class Broken(pc.PCLayer):
        def __init__(self):
            pass

    with pytest.raises(TypeError, match=r"layer 'layer_0' \(Broken\) has no activity; call super"):
        pc.PCNetwork([Broken()])


def test_stored_activities_of_another_width_or_batch_are_refused():
    network = make(3, 4)
    network.set_activities({"layer_0": ONES((2, 5))})
    with pytest.raises(ValueError, match=r"predicts shape \(2, 4\) but its activity is \(2, 5\)"):
        network.energies(ONES((2, 3)))
    network.set_activities({"layer_0": ONES((6, 4))})
    with pytest.raises(ValueError, match="one batch size"):
        network.energies(ONES((2, 3)))


def test_an_energy_that_averages_over_the_batch_is_refused():
    """A batch mean would make the step size depend on the batch size without a word."""

    class Averaging(pc.Energy):
        def __call__(self, activity, prediction):
            return jnp.mean((activity - prediction) ** 2)

    network = pc.PCNetwork([pc.PCDense(3, 4, energy=Averaging(), rngs=nnx.Rngs(0))])
    with pytest.raises(ValueError, match=r"returned shape \(\), expected one number an example"):
        network.infer(ONES((2, 3)), ONES((2, 4)), inference=GD)


@pytest.mark.parametrize(
    ("wrong", "got"),
    [
        (lambda below: below.sum(0), r"\(3,\)"),
        (lambda below: below.sum(), r"\(\)"),
        (lambda below: (below, below), "a tuple"),
    ],
)
@pytest.mark.parametrize("targets", [None, ONES((2, 3))])
def test_a_prediction_that_has_no_rows_is_refused(wrong, got, targets):
    network = pc.PCNetwork([pc.PCLayer(wrong)])
    text = rf"'layer_0' \(PCLayer\) predicted {got} from .*; expected one row an example, \(2, \.\.\.\)"
    with pytest.raises(ValueError, match=text):
        network.infer(ONES((2, 3)), targets, inference=GD)


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        (pc.PCLayer(jnp.tanh), r"expected a list of layers, got a PCLayer; put it into brackets"),
        ([64, 10], r"'layer_0' is a int, not a PCLayer; give one such as pc.PCDense"),
        ([nnx.Linear(3, 2, rngs=nnx.Rngs(0))], r"wrap it: pc.PCLayer\(Linear\(\.\.\.\)\)"),
    ],
)
def test_what_is_no_list_of_layers_is_refused_with_what_to_write(layers, text):
    with pytest.raises(TypeError, match=text):
        pc.PCNetwork(layers)


def test_lists_are_refused_with_what_makes_arrays_of_them():
    """A list has no astype."""
    network = pc.PCNetwork([pc.PCLayer(jnp.tanh)])
    text = r"inputs of a floating dtype, got list; make them an array: jnp.asarray\(inputs, jnp.float32\)"
    with pytest.raises(TypeError, match=text):
        network.predict([[1.0]])


def test_shared_energies_and_shared_modules_are_allowed():
    """One energy object for all layers, and one module wrapped twice (tied weights)."""
    energy, linear = pc.energies.Gaussian(), nnx.Linear(3, 3, rngs=nnx.Rngs(0))
    network = pc.PCNetwork([pc.PCLayer(linear, energy=energy), pc.PCLayer(linear, energy=energy)])
    result = network.infer(ONES((2, 3)), ONES((2, 3)), inference=GD)
    assert result.energy.shape == (2,)
    assert len(jax.tree.leaves(network.parameter_gradients(ONES((2, 3))))) == 2


class TestClampsOfAPass:
    """`predict` takes clamps as `infer` does; the names of stacks' nodes, too."""

    def network(self):
        rngs = nnx.Rngs(0)
        return pc.PCNetwork(
            {
                "first": pc.PCDense(3, 4, activation=jnp.tanh, rngs=rngs),
                "hidden": pc.PCStack(lambda: pc.PCDense(4, 4, activation=jnp.tanh, rngs=rngs), 3),
                "last": pc.PCDense(4, 2, rngs=rngs),
            }
        )

    def test_a_node_of_a_stack_is_held(self):
        network, held = self.network(), jnp.linspace(-1, 1, 8).reshape(2, 4)
        above = network.layer("hidden").layer_at(2).predict(held)
        expected = network.layer("last").predict(above)
        for clamp in (held, pc.Clamp(held)):
            found = network.predict(jnp.ones((2, 3)), clamps={"hidden/1": clamp})
            np.testing.assert_allclose(found, expected, rtol=1e-6)

    def test_an_array_holds_a_layer(self):
        network, held = self.network(), jnp.linspace(-1, 1, 8).reshape(2, 4)
        expected = network.predict(jnp.ones((2, 3)), clamps={"first": pc.Clamp(held)})
        found = network.predict(jnp.ones((2, 3)), clamps={"first": held})
        np.testing.assert_array_equal(found, expected)
        assert not np.allclose(found, network.predict(jnp.ones((2, 3))))

    def test_unknown_names_are_refused(self):
        network, x, value = self.network(), jnp.ones((2, 3)), jnp.ones((2, 4))
        with pytest.raises(ValueError, match="no layer 'frist'.*; did you mean 'first'"):
            network.predict(x, clamps={"frist": value})
        with pytest.raises(ValueError, match="no layer 'hidden/3'; that stack has layers 0 to 2"):
            network.predict(x, clamps={"hidden/3": value})
        for options in ({"clamps": {"frist": pc.Clamp(value)}}, {"errors": {"frist": value}}):
            with pytest.raises(ValueError, match="no layer 'frist' to hold or to move; .*'first'"):
                network.feedforward(x, **options)

    def test_an_error_that_would_broadcast_is_refused(self):
        text = r"activities of shape \(2, 4\), got an error of shape \(1, 4\); give one of that"
        with pytest.raises(ValueError, match=text):
            self.network().feedforward(jnp.ones((2, 3)), errors={"first": jnp.ones((1, 4))})


def test_layers_are_found_by_name_and_unknown_ones_refused():
    network = pc.models.mlp(3, 4, 2, rngs=nnx.Rngs(0))
    assert "hidden_1" in network.layers
    assert network.layers["output"] in network.layers
    assert "hidden_2" not in network.layers
    with pytest.raises(ValueError, match="no layer 'hidden_2'; the layers are hidden_1, output"):
        network.layers["hidden_2"]


def test_a_prediction_of_integers_is_refused():
    class Spiking(pc.PCLayer):
        def predict(self, below):
            return (below > 0).astype(jnp.int32)

    network = pc.PCNetwork([Spiking(), pc.PCDense(3, 2, rngs=nnx.Rngs(0))])
    with pytest.raises(
        TypeError, match=r"layer 'layer_0' \(Spiking\) predicted .* int32; .* cast it"
    ):
        network.predict(jnp.ones((2, 3)))
