"""The spectrum of the activity Hessian: what bounds the step size, and what an equilibrium costs.

Oracle: `jax.hessian` of the energy written out here, and NumPy's eigenvalues of it or of the part of it
that is free.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from pcflax.analysis import DeepLinear, Spectrum, activity_spectrum
from pcflax.networks import Sum
from tests.conftest import Chain, in_double, parameters_of

pytestmark = [pytest.mark.usefixtures("double"), pytest.mark.slow]

SMALL = (3, 5, 4, 2)  # 9 free elements: the Hessian is formed
WIDE = (4, 40, 37, 3)  # 77 free elements: Lanczos iteration
DENSE = {"rtol": 1e-9, "atol": 1e-12}
TIGHT = 1e-9  # the relative accuracy asked of Lanczos iteration


def energy(flat, x, y, layers, activations):
    """F of one example at its free activities (z_1, z_2) or, where y is None, (z_1, z_2, z_3)."""
    below, total, rest = x, 0.0, flat
    for number, (kernel, bias, precision) in enumerate(layers):
        affine = below @ kernel + bias
        prediction = jnp.tanh(affine) if activations[number] == "tanh" else affine
        if y is not None and number == len(layers) - 1:
            activity = y
        else:
            activity, rest = rest[: bias.size], rest[bias.size :]
        total += precision / 2 * jnp.sum((activity - prediction) ** 2)
        below = activity
    return total


@functools.partial(jax.jit, static_argnames="activations")
def hessians_at(flat, inputs, targets, layers, *, activations):
    one = functools.partial(jax.hessian(energy), layers=layers, activations=activations)
    return jax.vmap(one, in_axes=(0, 0, None if targets is None else 0))(flat, inputs, targets)


def hessians(case, activities, *, targets=True):
    """(batch, n, n), at these activities (batch, features) of the free layers."""
    layers = [(layer.kernel, layer.bias, layer.precision) for layer in case.reference]
    return np.asarray(
        hessians_at(
            np.concatenate(activities, axis=1),
            case.inputs,
            case.targets if targets else None,
            layers,
            activations=tuple(layer.activation for layer in case.reference),
        )
    )


def ends(matrices):
    values = [np.linalg.eigvalsh(matrix) for matrix in matrices]
    return np.array([row[0] for row in values]), np.array([row[-1] for row in values])


def assert_ends(spectrum, matrices, **tolerance):
    smallest, largest = ends(matrices)
    assert isinstance(spectrum.smallest, np.ndarray)
    assert spectrum.smallest.shape == spectrum.largest.shape == (len(matrices),)
    np.testing.assert_allclose(spectrum.smallest, smallest, **tolerance)
    np.testing.assert_allclose(spectrum.largest, largest, **tolerance)


def feedforward(case):
    """The hidden activities at the start."""
    return [np.asarray(z) for z in list(case.network.feedforward(case.inputs).values())[:-1]]


class TestAgainstTheHessian:
    @pytest.mark.parametrize("activation", ["tanh", "identity"])
    @pytest.mark.parametrize("widths", [SMALL, WIDE], ids=["dense", "lanczos"])
    def test_ends_are_the_hessians_of_each_example(self, widths, activation):
        """From them come the step size and the number of steps that a user is told to take."""
        case = Chain(widths, activation, batch=3)
        spectrum = activity_spectrum(case.network, case.inputs, case.targets, tolerance=TIGHT)
        matrices = hessians(case, feedforward(case))
        assert_ends(spectrum, matrices, rtol=1e-7)
        smallest, largest = ends(matrices)
        np.testing.assert_allclose(spectrum.condition_number, largest / smallest, rtol=1e-7)
        if activation == "tanh":
            assert len(set(spectrum.largest)) == 3  # the examples differ
        else:
            condition = DeepLinear.from_network(case.network).condition_number()
            np.testing.assert_allclose(spectrum.condition_number, condition, rtol=1e-7)

    @pytest.mark.parametrize("width", [64, 65])
    def test_both_ways_agree_where_they_meet(self, width):
        case = Chain((3, width, 2), "identity", batch=1)
        spectrum = activity_spectrum(case.network, case.inputs, case.targets, tolerance=TIGHT)
        kernel = case.reference[1].kernel  # H = p_1 I + p_2 W W^T, and p_1 = p_2 = 1
        assert_ends(spectrum, [np.eye(width) + kernel @ kernel.T], rtol=1e-7)

    def test_the_accuracy_asked_for_is_reached_and_need_not_be_asked_for(self):
        case = Chain(WIDE, batch=2)
        smallest, largest = ends(hessians(case, feedforward(case)))
        spectrum = activity_spectrum(case.network, case.inputs, case.targets)
        np.testing.assert_allclose(spectrum.smallest, smallest, rtol=1e-3)
        np.testing.assert_allclose(spectrum.largest, largest, rtol=1e-3)

    def test_a_free_output_counts(self):
        case = Chain(SMALL, batch=3)
        spectrum = activity_spectrum(case.network, case.inputs, None)
        activities = [np.asarray(z) for z in case.network.feedforward(case.inputs).values()]
        assert_ends(spectrum, hessians(case, activities, targets=False), **DENSE)

    @pytest.mark.parametrize(("factor", "settles"), [(0.98, True), (1.02, False)])
    def test_gradient_descent_settles_below_two_over_the_largest_and_not_above(
        self, factor, settles
    ):
        """The claim that the number is there for: 0.96 or 1.04 a step along the steepest direction."""
        case = Chain(SMALL, "identity", batch=1)
        spectrum = activity_spectrum(case.network, case.inputs, case.targets)
        optimizer = optax.sgd(factor * 2 / spectrum.largest[0])
        descent = pc.inference.GradientDescent(optimizer, num_steps=300)
        result = case.network.infer(case.inputs, case.targets, inference=descent)
        assert (result.residual[0] < 1e-3) == settles
        assert (result.residual[0] > 1e3) != settles


class TestMasks:
    @pytest.mark.parametrize("layer", ["layer_0", "layer_1"])
    def test_held_elements_are_left_out_of_each_examples_hessian(self, layer):
        """The free block of the Hessian, not the whole with zeros: those would be eigenvalues."""
        case = Chain(SMALL, batch=3)
        places = {"layer_0": slice(0, 5), "layer_1": slice(5, 9)}
        width = places[layer].stop - places[layer].start
        mask = np.arange(width) < np.array([[1], [0], [width]])  # some, none, all of them
        value = np.linspace(-1.0, 1.0, 3 * width).reshape(3, width)
        spectrum = activity_spectrum(
            case.network,
            case.inputs,
            case.targets,
            clamps={layer: pc.Clamp(jnp.asarray(value), jnp.asarray(mask))},
        )
        below = case.inputs
        activities = []
        for number, part in enumerate(case.reference[:-1]):  # feedforward through the clamp
            below = np.tanh(below @ part.kernel + part.bias)
            if f"layer_{number}" == layer:
                below = np.where(mask, value, below)
            activities.append(below)
        matrices = hessians(case, activities)
        free = []
        for row, matrix in zip(mask, matrices, strict=True):
            kept = np.ones(9, bool)
            kept[places[layer]] = ~row
            free.append(matrix[np.ix_(kept, kept)])
        assert [len(block) for block in free] == [8, 9, 9 - width]
        assert_ends(spectrum, free, **DENSE)

    def test_lanczos_iteration_leaves_them_out_too(self):
        case = Chain(WIDE, "identity", batch=1)
        mask = np.arange(40) % 4 == 0  # 10 of 77 held, 67 free
        spectrum = activity_spectrum(
            case.network,
            case.inputs,
            case.targets,
            clamps={"layer_0": pc.Clamp(jnp.ones((1, 40)), jnp.asarray(mask))},
            tolerance=TIGHT,
        )
        kept = np.concatenate([~mask, np.ones(37, bool)])
        block = hessians(case, feedforward(case))[0][np.ix_(kept, kept)]
        assert_ends(spectrum, [block], rtol=1e-7)

    def test_a_layer_clamped_whole_is_none_of_it(self):
        case = Chain(SMALL, batch=3)
        held = {"layer_1": jnp.asarray(np.linspace(-1.0, 1.0, 12).reshape(3, 4))}
        spectrum = activity_spectrum(case.network, case.inputs, case.targets, clamps=held)
        activities = [feedforward(case)[0], np.asarray(held["layer_1"])]
        assert_ends(spectrum, hessians(case, activities)[:, :5, :5], **DENSE)


class TestStored:
    def test_it_is_taken_at_the_stored_activities(self):
        """lambda_max at the equilibrium is what the last steps of inference meet."""
        case = Chain(SMALL, batch=3)
        case.network.infer(case.inputs, case.targets, inference=pc.inference.NewtonCG(num_steps=8))
        stored = [np.asarray(z) for z in list(case.network.activities().values())[:-1]]
        spectrum = activity_spectrum(case.network, case.inputs, case.targets, stored=True)
        assert_ends(spectrum, hessians(case, stored), **DENSE)
        start = activity_spectrum(case.network, case.inputs, case.targets)
        assert (np.abs(start.largest - spectrum.largest) > 1e-3).all()

    @pytest.mark.parametrize("widths", [SMALL, WIDE], ids=["dense", "lanczos"])
    def test_where_the_energy_is_not_convex_the_smallest_is_negative(self, widths):
        """And where it is the larger in size, it is still not the largest."""
        case = Chain(widths, batch=3)
        case.network.init_activities(case.inputs, targets=case.targets)
        low, high = feedforward(case)
        stored = [low, -40 * high]  # errors against predictions: each bends tanh's way downwards
        case.network.set_activities(
            {f"layer_{number}": jnp.asarray(z) for number, z in enumerate(stored)}
        )
        spectrum = activity_spectrum(
            case.network, case.inputs, case.targets, stored=True, tolerance=TIGHT
        )
        assert (-spectrum.smallest > spectrum.largest).all()
        assert_ends(spectrum, hessians(case, stored), rtol=1e-7)

    def test_in_a_linear_network_it_makes_no_difference(self):
        case = Chain(SMALL, "identity", batch=3)
        case.network.init_activities(case.inputs, targets=case.targets)
        case.network.set_activities({"layer_0": jnp.full((3, 5), 7.0)})
        stored = activity_spectrum(case.network, case.inputs, case.targets, stored=True)
        start = activity_spectrum(case.network, case.inputs, case.targets)
        np.testing.assert_allclose(stored.smallest, start.smallest, **DENSE)
        np.testing.assert_allclose(stored.largest, start.largest, **DENSE)

    def test_without_stored_activities_it_says_how_to_get_them(self):
        case = Chain(SMALL, batch=3)
        with pytest.raises(ValueError, match="layer 'layer_0' has no activity yet; call network"):
            activity_spectrum(case.network, case.inputs, case.targets, stored=True)


def test_the_network_is_not_changed():
    case = Chain(SMALL, batch=3)
    case.network.init_activities(case.inputs, targets=case.targets)
    parameters = parameters_of(case.network)
    activities = {name: np.array(value) for name, value in case.network.activities().items()}
    activity_spectrum(case.network, case.inputs[:2] + 1, case.targets[:2])
    for before, after in zip(parameters, parameters_of(case.network), strict=True):
        np.testing.assert_array_equal(before, after)
    for name, value in case.network.activities().items():
        np.testing.assert_array_equal(activities[name], value)


def test_a_free_root_has_its_priors_curvature():
    """H = diag(precision) + W W^T / 1, by hand."""
    precision = jnp.array([1.0, 4.0, 2.0])
    layer = pc.PCDense(3, 2, rngs=nnx.Rngs(0))
    kernel = np.array([[1.0, 2.0], [0.0, -1.0], [3.0, 0.5]])
    layer.linear.kernel.set_value(jnp.asarray(kernel))
    root = pc.PCRoot(3, energy=pc.energies.Gaussian(precision))
    network = in_double(pc.PCNetwork([root, layer]))
    spectrum = activity_spectrum(network, None, jnp.zeros((2, 2)))
    assert_ends(spectrum, [np.diag(precision) + kernel @ kernel.T] * 2, **DENSE)


def test_of_a_network_with_two_inputs():
    """H = I + V V^T with V the weights from both hidden layers, side by side, by hand."""
    layers = {"a": 3, "b": 2, "out": pc.PCDense(4, 2, activation=None, rngs=nnx.Rngs(0))}
    layers |= {
        name: pc.PCDense(layers[name], 4, activation=None, rngs=nnx.Rngs(1)) for name in "ab"
    }
    parents = {"a": "x", "b": "w", "out": Sum("a", "b")}
    network = in_double(pc.PCGraph(layers, parents=parents, inputs={"x": 3, "w": 2}, output="out"))
    inputs = {"x": jnp.ones((3, 3)), "w": jnp.zeros((3, 2))}
    spectrum = activity_spectrum(network, inputs, jnp.zeros((3, 2)))
    kernel = np.tile(np.asarray(layers["out"].linear.kernel[...]), (2, 1))
    assert_ends(spectrum, [np.eye(8) + kernel @ kernel.T] * 3, rtol=1e-12)


def test_the_condition_number_is_largest_over_smallest():
    spectrum = Spectrum(np.array([0.5, -2.0]), np.array([2.0, 3.0]))
    np.testing.assert_array_equal(spectrum.condition_number, [4.0, -1.5])


class TestNothingFree:
    def case(self):
        return Chain((3, 4, 2), batch=3)

    def test_targets_on_the_only_layer(self):
        network = in_double(pc.PCNetwork([pc.PCDense(3, 2, rngs=nnx.Rngs(0))]))
        with pytest.raises(ValueError, match="no activity is free: inputs, targets and clamps ho"):
            activity_spectrum(network, jnp.ones((3, 3)), jnp.ones((3, 2)))

    def test_a_clamp_on_the_only_free_layer(self):
        case = self.case()
        held = {"layer_0": jnp.ones((3, 4))}
        with pytest.raises(ValueError, match="no activity is free: inputs, targets and clamps ho"):
            activity_spectrum(case.network, case.inputs, case.targets, clamps=held)

    @pytest.mark.parametrize("examples", [[True, True, True], [False, True, False]])
    def test_a_mask_that_holds_every_element_of_an_example(self, examples):
        case = self.case()
        mask = jnp.asarray(np.array(examples)[:, None] & np.ones(4, bool))
        held = {"layer_0": pc.Clamp(jnp.ones((3, 4)), mask)}
        with pytest.raises(ValueError, match="no activity is free"):
            activity_spectrum(case.network, case.inputs, case.targets, clamps=held)
