"""Error coordinates: other variables for the same energy, and what one step in them is."""

import dataclasses

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from pcflax.inference.error_coordinates import error_problem
from tests.conftest import Chain, compiled_gradients
from tests.references import numpy_pc as reference

KEY = jax.random.key(0)
DESCENT = pc.inference.GradientDescent(optax.sgd(0.05, momentum=0.9), num_steps=2500)
IN_ERRORS = pc.inference.ErrorCoordinates(DESCENT)
FEW = pc.inference.ErrorCoordinates(pc.inference.GradientDescent(optax.sgd(0.05), num_steps=3))
# Float64 rounding.
CLOSE = {"rtol": 1e-10, "atol": 1e-12}

pytestmark = pytest.mark.usefixtures("double")


def clamped_hidden(chain, layer):
    """A clamp of some elements of a hidden layer, other ones in each example."""
    random = np.random.RandomState(5)
    value = random.normal(size=(len(chain.targets), layer[1]))
    mask = random.uniform(size=value.shape) < 0.4
    assert mask.any()
    assert not mask.all()
    return {layer[0]: pc.Clamp(np.where(mask, value, np.nan), mask)}


def ends(case):
    """A chain, and what is given of it: (inputs, targets, clamps)."""
    chain = Chain(
        root=case != "input below", output="categorical" if "class" in case else "gaussian"
    )
    given = {
        "input below": (chain.inputs, chain.targets, None),
        "root free": (None, chain.targets, None),
        "output free": (chain.inputs, None, clamped_hidden(chain, ("layer_2", 4))),
        "hidden in part": (chain.inputs, chain.targets, clamped_hidden(chain, ("layer_1", 5))),
        "all of these, classes": (None, chain.targets, clamped_hidden(chain, ("layer_1", 5))),
    }
    return chain, given[case]


CASES = ["input below", "root free", "output free", "hidden in part", "all of these, classes"]


def problem_of(chain, given):
    inputs, targets, clamps = given
    return pc.inference.make_problem(
        pc.networks.split(chain.network), pc.Evidence(inputs, targets, clamps=clamps)
    )


@pytest.mark.parametrize("case", CASES)
def test_decode_undoes_encode_and_the_energy_is_the_same(case):
    """z_l = mu_l(z_{l-1}) + e_l in order, and F(e) is F(z): no error of the output beside it."""
    chain, given = ends(case)
    problem = problem_of(chain, given)
    errors = error_problem(problem)
    assert errors.predicts_once
    anywhere = {
        name: chain.random.normal(size=start.shape) for name, start in problem.start.items()
    }
    activities = problem.decode(anywhere)
    coordinates = errors.encode(activities)
    for name, activity in errors.decode(coordinates).items():
        np.testing.assert_allclose(activity, activities[name], **CLOSE)
    expected = problem.energies(anywhere)
    for name, energy in errors.energies(coordinates).items():
        np.testing.assert_allclose(energy, expected[name], **CLOSE)
    # the error of every free element is its activity less its prediction, by the reference
    inputs = given[0]
    z = [np.asarray(activities[name]) for name in chain.network.names]
    for index, mu in enumerate(reference.predictions(chain.reference, inputs, z)):
        name = chain.network.names[index]
        if name in coordinates:
            held = np.asarray(problem.held()[name])
            np.testing.assert_allclose(
                np.where(held, 0, coordinates[name]), np.where(held, 0, z[index] - mu), **CLOSE
            )


@pytest.mark.parametrize("kind", ["chain", "stack", "graph", "several predictors"])
def test_one_prediction_of_each_layer_serves_energies_and_activities(kind):
    """Energies and gradient are those of a pass upward followed by an evaluation of the energy."""
    rngs, random = nnx.Rngs(0), np.random.RandomState(0)

    def dense(below, features):
        return pc.PCDense(below, features, activation=jnp.tanh, param_dtype=jnp.float64, rngs=rngs)

    x, y = random.normal(size=(3, 4)), random.normal(size=(3, 2))
    if kind == "graph":
        network = pc.PCGraph(
            {"a": dense(4, 3), "b": dense(4, 5), "top": dense(8, 2)},
            parents={"a": "x", "b": "x", "top": pc.networks.Concatenate("a", "b")},
            inputs={"x": 4},
            output="top",
        )
    elif kind == "several predictors":
        network = pc.PCGraph(
            {"a": dense(4, 3), "top": dense(3, 2), "back": dense(2, 3)},
            parents={"a": "x", "top": "a", "back": "top"},
            predicts={"back": "a"},
            inputs={"x": 4},
            output="top",
        )
    else:
        hidden = pc.PCStack(lambda: dense(3, 3), 4) if kind == "stack" else dense(3, 3)
        network = pc.PCNetwork([dense(4, 3), hidden, dense(3, 2)])
    problem = pc.inference.make_problem(pc.networks.split(network), pc.Evidence(x, y))
    once = error_problem(problem)
    assert once.predicts_once == (kind != "several predictors")
    twice = dataclasses.replace(once, predicts_once=False)
    at = {name: random.normal(size=error.shape) for name, error in once.start.items()}
    for got, expected in zip(
        jax.tree.leaves(once.energy_and_gradient(at)),
        jax.tree.leaves(twice.energy_and_gradient(at)),
        strict=True,
    ):
        np.testing.assert_allclose(got, expected, **CLOSE)


def test_a_step_costs_what_a_step_on_activities_does():
    """One product forward and one back for each hidden layer but the first, whose input is clamped."""
    network = pc.models.mlp(7, 16, 16, 5, rngs=nnx.Rngs(0))
    algorithms = {"activities": DESCENT, "errors": IN_ERRORS}
    costs = network.summary((3, 7), inference=algorithms).costs
    assert costs["errors, a step"].flops == costs["activities, a step"].flops
    assert costs["errors, a step"].flops == 2 * 3 * 2 * (16 * 16 + 16 * 5)


@pytest.mark.parametrize("case", CASES)
def test_the_equilibrium_is_that_of_the_activities(case):
    """With a root that is free, layers clamped in part, and classes above."""
    chain, given = ends(case)
    inputs, targets, clamps = given
    results = [
        chain.network.infer(inputs, targets, clamps=clamps, inference=inference)
        for inference in (DESCENT, IN_ERRORS)
    ]
    for name, activity in results[0].activities.items():
        np.testing.assert_allclose(results[1].activities[name], activity, rtol=1e-6, atol=1e-7)
    for name, energy in results[0].energies.items():
        np.testing.assert_allclose(results[1].energies[name], energy, rtol=1e-6, atol=1e-9)
    assert (results[1].residual < 1e-7).all()


def test_the_residual_is_of_activities_and_that_of_the_trace_of_errors():
    """Comparable with other algorithms at the end; what was descended on the way."""
    chain, given = ends("input below")
    result = chain.network.infer(*given[:2], inference=FEW, trace=True)
    z = [np.asarray(activity) for activity in result.activities.values()]
    field = reference.activity_gradients(chain.reference, chain.inputs, z, chain.free())
    np.testing.assert_allclose(result.residual, reference.residuals(field, 5 + 4), rtol=1e-9)
    # dF/de of z_1 is dF/dz_1 + J_2^T dF/dz_2, with tanh'(a) = 1 - mu^2
    mu = reference.predictions(chain.reference, chain.inputs, z)[1]
    through = (field[1] * (1 - mu**2)) @ chain.reference[1].kernel.T
    expected = reference.residuals([field[0] + through, field[1]], 5 + 4)
    np.testing.assert_allclose(result.trace.residual[-1], expected, rtol=1e-9)
    assert result.trace.residual.shape == result.trace.energy.shape == (4, 7)
    np.testing.assert_allclose(result.trace.energy[-1], result.energy, **CLOSE)


def cosine(left, right):
    """The cosine between two gradients of one layer, kernel and bias together."""
    left, right = (np.concatenate([np.ravel(a) for a in arrays]) for arrays in (left, right))
    return left @ right / np.linalg.norm(left) / np.linalg.norm(right)


def gradients_of(chain, inference):
    rule = pc.learning.PredictiveCoding(inference)
    evidence = pc.Evidence(chain.inputs, chain.targets)
    return compiled_gradients(rule, pc.networks.split(chain.network), evidence, key=KEY)[0]


def layers_of(gradients):
    return [
        (np.asarray(layer["linear"]["kernel"]), np.asarray(layer["linear"]["bias"]))
        for layer in gradients.values()
    ]


@pytest.mark.parametrize("output", ["gaussian", "categorical"])
@pytest.mark.parametrize("batch", [1, 7])
def test_one_small_step_is_backpropagation_under_another_name(output, batch):
    """Every layer's weight gradient is parallel to backpropagation's: e_l = step_size * delta_l.

    The local gradient of layer l is precision_l e_l at the feedforward activity below, to the first
    order in the step, so it is step_size * precision_l times backpropagation's; the output's is that
    of backpropagation itself.
    """
    chain = Chain(output=output, batch=batch)
    step_size = 1e-7
    with pytest.warns(UserWarning, match="is backpropagation, not predictive coding; take more"):
        one_step = pc.inference.ErrorCoordinates(
            pc.inference.GradientDescent(optax.sgd(step_size), num_steps=1)
        )
    gradients = gradients_of(chain, one_step)
    backprop = reference.backprop_gradients(chain.reference, chain.inputs, chain.targets)
    factors = [step_size * 1.0, step_size * 1.5, 1.0]
    for got, expected, factor in zip(layers_of(gradients), backprop, factors, strict=True):
        assert cosine(got, expected) > 1 - 1e-6
        for got_array, expected_array in zip(got, expected, strict=True):
            # the second order in the step, relative to the largest element
            bound = 1e-5 * factor * np.abs(expected_array).max()
            np.testing.assert_allclose(got_array, factor * expected_array, rtol=0, atol=bound)


def test_one_step_of_activities_is_not_backpropagation():
    """A layer below the last hidden one has had no error yet: this is what error coordinates buy."""
    chain = Chain()
    gradients = gradients_of(chain, pc.inference.GradientDescent(optax.sgd(1e-7), num_steps=1))
    assert not np.any(layers_of(gradients)[0][0])


def test_a_deep_chain_is_better_conditioned_in_errors():
    """Twelve linear layers: the Hessian over errors is I plus a matrix of the output's rank."""
    chain = Chain(widths=(3, *[4, 5] * 5, 4, 2), activation="identity", batch=1)
    for layer in chain.network.layers:
        layer.energy = pc.energies.Gaussian()
    problem = problem_of(chain, (chain.inputs, chain.targets, None))
    conditions = []
    for coordinates in (problem, error_problem(problem)):
        flat, unravel = jax.flatten_util.ravel_pytree(problem.start)
        hessian = jax.jit(jax.hessian(lambda flat: coordinates.energy(unravel(flat))[0]))  # noqa: B023
        eigenvalues = np.linalg.eigvalsh(hessian(jnp.zeros_like(flat)))
        assert eigenvalues[0] > 0
        conditions.append(eigenvalues[-1] / eigenvalues[0])
        if coordinates is not problem:
            # two outputs, so all eigenvalues but two are 1
            np.testing.assert_allclose(eigenvalues[:-2], 1.0, rtol=1e-10)
    assert conditions[0] > 10 * conditions[1]


def test_the_tolerance_stops_each_example_on_its_errors_gradient():
    adaptive = pc.inference.ErrorCoordinates(
        pc.inference.GradientDescent(optax.sgd(0.05), tolerance=1e-3, max_steps=150)
    )
    chain, given = ends("input below")
    result = chain.network.infer(*given[:2], inference=adaptive, trace=True)
    steps, residual = np.asarray(result.num_steps), np.asarray(result.trace.residual)
    assert len(set(steps)) > 3
    for row in range(7):
        assert (residual[: steps[row], row] > 1e-3).all()
        assert (residual[steps[row] :, row] <= 1e-3).all()


@pytest.mark.parametrize("count", [{"num_steps": 1}, {"tolerance": 0.1, "max_steps": 1}])
def test_one_step_of_descent_is_warned_of_where_it_was_written(count):
    with pytest.warns(UserWarning, match="one step in error coordinates") as caught:
        pc.inference.ErrorCoordinates(pc.inference.GradientDescent(optax.sgd(0.1), **count))
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "inference",
    [
        pc.inference.GradientDescent(optax.sgd(0.1), num_steps=2),
        pc.inference.GradientDescent(optax.sgd(0.1), tolerance=0.1),
        pc.inference.Langevin(0.1),
        pc.inference.NewtonCG(num_steps=1),
    ],
    ids=["two steps", "adaptive", "langevin", "newton"],
)
def test_what_is_more_than_one_step_of_descent_gives_no_warning(inference):
    """Warnings are errors in these tests."""
    pc.inference.ErrorCoordinates(inference)


def test_refuses_what_is_not_an_algorithm():
    with pytest.raises(TypeError, match="ErrorCoordinates expected an inference algorithm such as"):
        pc.inference.ErrorCoordinates(optax.sgd(0.1))
