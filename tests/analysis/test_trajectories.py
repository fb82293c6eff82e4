"""Trajectories: every activity at every step, to be drawn.

Oracles: the NumPy reference after each number of steps, and `network.infer` with as many.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pcflax as pc
from pcflax.analysis import trajectories
from tests.conftest import Chain
from tests.references import numpy_pc as reference

pytestmark = [pytest.mark.usefixtures("double"), pytest.mark.slow]

STEPS = 3
EXACT = {"rtol": 1e-9, "atol": 1e-12}
WIDTHS = {"layer_0": 5, "layer_1": 4, "layer_2": 2}


def ways(case, inference, **options):
    return trajectories(case.network, case.inputs, case.targets, inference=inference, **options)


def descent(num_steps=STEPS, momentum=0.4):
    return pc.inference.GradientDescent(optax.sgd(0.1, momentum=momentum), num_steps=num_steps)


class TestAgainstInference:
    def test_gradient_descent_passes_where_numpy_is_after_each_count(self):
        """With momentum: a state dropped between steps would show from the second on."""
        case = Chain()
        found = ways(case, descent())
        start = [*reference.feedforward(case.reference, case.inputs)[:-1], case.targets]
        for count in range(STEPS + 1):
            activities, _ = reference.infer(
                case.reference, case.inputs, start, case.free(), 0.1, count, momentum=0.4
            )
            for name, expected in zip(WIDTHS, activities, strict=True):
                np.testing.assert_allclose(found[name][count], expected, **EXACT)

    @pytest.mark.parametrize("kind", ["descent", "langevin"])
    def test_they_are_network_infer_for_each_count(self, kind):
        """A drawn way that is not the way inference goes would explain something else."""
        case, key = Chain(batch=2), jax.random.key(5)

        def algorithm(count):
            if kind == "langevin":
                return pc.inference.Langevin(0.05, num_samples=count)
            return descent(count)

        options = {"key": key, "initializer": pc.initializers.Normal(0.5)}
        found = ways(case, algorithm(STEPS), **options)
        for count in range(1 if kind == "langevin" else 0, STEPS + 1):  # no count of 0 samples
            result = case.network.infer(
                case.inputs, case.targets, inference=algorithm(count), **options
            )
            for name, expected in result.activities.items():
                np.testing.assert_allclose(found[name][count], expected, **EXACT)

    def test_of_no_steps_there_is_the_start(self):
        case = Chain()
        found = ways(case, descent(0))
        expected = reference.feedforward(case.reference, case.inputs)[:-1]
        for name, start in zip(WIDTHS, expected, strict=False):
            np.testing.assert_allclose(found[name], start[None], **EXACT)


class TestShape:
    def test_layers_come_in_order_with_steps_before_the_batch(self):
        case = Chain()
        found = ways(case, descent())
        assert list(found) == list(WIDTHS)
        for name, width in WIDTHS.items():
            assert found[name].shape == (STEPS + 1, 7, width)

    def test_what_is_clamped_stands_still_and_what_is_free_moves(self):
        case = Chain()
        found = ways(case, descent())
        np.testing.assert_array_equal(found["layer_2"], np.tile(case.targets, (STEPS + 1, 1, 1)))
        moved = np.abs(np.diff(found["layer_1"], axis=0)).max(axis=(1, 2))
        assert (moved > 1e-3).all()

    def test_a_free_root_and_free_outputs_have_ways_too(self):
        case = Chain(root=True)
        found = trajectories(case.network, None, case.targets, inference=descent())
        np.testing.assert_array_equal(found["layer_0"][0], 0.0)  # the prior's mean
        assert np.abs(found["layer_0"][-1]).max() > 1e-4
        still = trajectories(case.network, case.inputs, None, inference=descent())
        for way in still.values():  # the feedforward pass is the minimum
            np.testing.assert_allclose(way[-1], way[0], **EXACT)

    def test_the_network_keeps_its_activities(self):
        case = Chain()
        case.network.init_activities(case.inputs)
        before = {name: np.array(value) for name, value in case.network.activities().items()}
        ways(case, descent())
        for name, value in case.network.activities().items():
            np.testing.assert_array_equal(before[name], value)


class TestRefusals:
    @pytest.mark.parametrize(
        ("inference", "got"),
        [
            (pc.inference.ErrorCoordinates(descent()), "ErrorCoordinates"),
            (pc.inference.Sequence(descent(), descent()), "Sequence"),
            (pc.inference.LinearSolve(), "LinearSolve"),
            ("gradient", "gradient"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_what_is_no_iterative_algorithm(self, inference, got):
        text = rf"trajectories expected an iterative inference algorithm such as .*, got '{got}'"
        with pytest.raises(TypeError, match=text):
            ways(Chain(), inference)

    def test_a_tolerance(self):
        adaptive = pc.inference.GradientDescent(optax.sgd(0.1), tolerance=1e-3)
        text = "trajectories need a fixed num_steps, got an algorithm with a tolerance"
        with pytest.raises(ValueError, match=text):
            ways(Chain(), adaptive)

    def test_sampling_without_a_key(self):
        with pytest.raises(ValueError, match="Langevin inference needs a key"):
            ways(Chain(), pc.inference.Langevin(0.1))

    def test_inputs_and_targets_of_two_batch_sizes(self):
        case = Chain()
        case.targets = jnp.asarray(case.targets[:3])
        with pytest.raises(ValueError, match="inputs have batch size 7 but targets 3"):
            ways(case, descent())
