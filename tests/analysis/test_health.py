"""Health: whether the numbers and the sentences say what is wrong with a network made to have it.

Oracles: networks whose state is known by hand, above all the chain x=1, z_1 = 2x, z_2 = 3z_1 with target
16: F = 1/2 (z - 2)^2 + 1/2 (16 - 3z)^2 has H = 10, starts at 50 and is least at z = 5, where it is 5.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from pcflax.analysis import health, inference_health, unit_health
from pcflax.learning.base import AbstractGradientLearning
from tests.conftest import Chain, parameters_of
from tests.references import numpy_pc as reference

pytestmark = pytest.mark.slow


def dense(kernel, bias=None, **options):
    """A layer with these weights (in, out)."""
    kernel = jnp.asarray(kernel, float)
    layer = pc.PCDense(*kernel.shape, rngs=nnx.Rngs(0), **options)
    layer.linear.kernel.set_value(kernel)
    if bias is not None:
        layer.linear.bias.set_value(jnp.asarray(bias, float))
    return layer


def by_hand():
    """The chain of the docstring, its input and its target."""
    network = pc.PCNetwork({"low": dense([[2.0]]), "top": dense([[3.0]])})
    return network, jnp.ones((1, 1)), jnp.full((1, 1), 16.0)


def predictive_coding(step_size, num_steps, **options):
    descent = pc.inference.GradientDescent(optax.sgd(step_size), num_steps=num_steps)
    return pc.learning.PredictiveCoding(descent, **options)


# Of the chain by hand, where steps from 0.2 on diverge. One object each: another compiles anew.
ONE_STEP = predictive_coding(0.01, 1)
MANY_STEPS = predictive_coding(0.05, 60)
TINY_STEP = predictive_coding(1e-5, 1)
TOO_LARGE = predictive_coding(0.205, 60)
OVERFLOWING = predictive_coding(0.3, 300)
NEWTON = pc.inference.NewtonCG(num_steps=5)

WITHOUT_INFERENCE = [
    pc.learning.Backprop(),
    pc.learning.ZIL(),
    pc.learning.FixedPrediction(pc.inference.GradientDescent(optax.sgd(1.0), num_steps=2)),
]


@dataclasses.dataclass(frozen=True)
class Backwards(AbstractGradientLearning):
    """Backpropagation with the sign turned round."""

    def gradients(self, network, evidence, *, key, step=0):
        gradients, info = pc.learning.Backprop().gradients(network, evidence, key=key)
        return jax.tree.map(jnp.negative, gradients), info


class TestInferenceByHand:
    def test_one_step(self):
        """With 0.01, z goes from 2 to 2.3 and F from 50 to 41.45; the equilibrium has 5."""
        found = inference_health(*by_hand(), learning=ONE_STEP, reference=NEWTON)
        low, top = 0.3**2 / 2, (16 - 3 * 2.3) ** 2 / 2
        assert found.start_energy == pytest.approx(50)
        assert found.energy == pytest.approx(low + top, rel=1e-5)  # float32, here and below
        assert found.equilibrium_energy == pytest.approx(5, rel=1e-5)
        assert found.gap_closed == pytest.approx((50 - low - top) / 45, rel=1e-4)
        assert found.residual == pytest.approx(abs(0.3 - 3 * 9.1), rel=1e-5)
        assert found.largest_eigenvalue == pytest.approx(10, rel=1e-5)
        assert list(found.energy_share) == ["low", "top"]
        assert found.energy_share["low"] == pytest.approx(low / (low + top), rel=1e-4)
        assert sum(found.energy_share.values()) == pytest.approx(1)

    def test_at_the_equilibrium_the_gap_is_closed(self):
        found = inference_health(*by_hand(), learning=MANY_STEPS, reference=NEWTON)
        assert found.gap_closed == pytest.approx(1, abs=1e-5)
        assert found.residual < 1e-4  # rounding of numbers of order 10
        assert found.energy_share["low"] == pytest.approx(4.5 / 5, rel=1e-4)  # e = 3 and 1

    def test_a_reference_that_falls_short_counts_for_no_more_than_inference(self):
        """gap_closed beyond 1 would call the worse of two equilibria the true one."""
        network, x, y = by_hand()
        none = pc.inference.NewtonCG(num_steps=0)
        found = inference_health(network, x, y, learning=MANY_STEPS, reference=none)
        assert found.gap_closed == pytest.approx(1)
        assert found.equilibrium_energy == pytest.approx(5, rel=1e-4)

    def test_without_a_reference_no_gap_is_measured(self):
        found = inference_health(*by_hand(), learning=ONE_STEP)
        assert math.isnan(found.gap_closed)
        assert math.isnan(found.equilibrium_energy)
        assert found.start_energy == pytest.approx(50)

    @pytest.mark.parametrize("learning", WITHOUT_INFERENCE, ids=lambda rule: type(rule).__name__)
    def test_a_rule_without_inference_on_the_energy_has_none(self, learning):
        assert inference_health(*by_hand(), learning=learning) is None

    def test_of_incremental_pc_it_is_the_inference_with_the_weights_held(self):
        found = inference_health(
            *by_hand(), learning=pc.learning.IncrementalPC(ONE_STEP.inference), reference=NEWTON
        )
        assert found.start_energy == pytest.approx(50)
        assert found.energy == pytest.approx(41.45, rel=1e-4)

    @pytest.mark.parametrize(("beta", "start"), [(0.5, 5**2 / 2), (-0.2, 2**2 / 2)])
    def test_of_nudged_learning_the_output_is_held_where_the_rule_holds_it(self, beta, start):
        """At 6 - beta (6 - 16), beta times the error of 10 away from the prediction."""
        rule = pc.learning.Nudged(ONE_STEP.inference, beta=beta)
        found = inference_health(*by_hand(), learning=rule, reference=NEWTON)
        assert found.start_energy == pytest.approx(start, rel=1e-5)
        assert found.equilibrium_energy == pytest.approx(start / 10, rel=1e-5)

    def test_it_begins_where_the_rules_initializer_does(self):
        """F where inference began: from z = 0 that is 1/2 2^2 + 1/2 16^2."""
        rule = predictive_coding(0.01, 1, initializer=pc.initializers.Zeros())
        found = inference_health(*by_hand(), learning=rule)
        assert found.start_energy == pytest.approx(2 + 128)
        z = 0.01 * (2 + 3 * 16)
        expected = (z - 2) ** 2 / 2 + (16 - 3 * z) ** 2 / 2
        assert found.energy == pytest.approx(expected, rel=1e-5)


def test_of_a_batch_everything_is_the_mean_but_the_largest_eigenvalue(double):
    """Against NumPy's inference on 7 examples of a tanh chain."""
    case = Chain(seed=3)
    step_size, num_steps = 0.1, 12
    start = [*reference.feedforward(case.reference, case.inputs)[:-1], case.targets]
    options = {"step_size": step_size, "num_steps": num_steps}
    ended, totals = reference.infer(case.reference, case.inputs, start, case.free(), **options)
    _, least = reference.infer(case.reference, case.inputs, start, case.free(), 0.2, 600)
    rule = predictive_coding(step_size, num_steps)
    found = inference_health(
        case.network, case.inputs, case.targets, learning=rule, reference=pc.inference.NewtonCG()
    )
    layers = [energy.mean() for energy in reference.energies(case.reference, case.inputs, ended)]
    np.testing.assert_allclose(found.energy, np.sum(layers), rtol=1e-9)
    np.testing.assert_allclose(found.start_energy, totals[0].mean(), rtol=1e-9)
    np.testing.assert_allclose(found.equilibrium_energy, least[-1].mean(), rtol=1e-6)
    gap = (totals[0].mean() - np.sum(layers)) / (totals[0].mean() - least[-1].mean())
    np.testing.assert_allclose(found.gap_closed, gap, rtol=1e-5)
    gradients = reference.activity_gradients(case.reference, case.inputs, ended, case.free())
    np.testing.assert_allclose(found.residual, reference.residuals(gradients, 9).mean(), rtol=1e-9)
    shares = list(found.energy_share.values())
    np.testing.assert_allclose(shares, np.divide(layers, np.sum(layers)), rtol=1e-9)
    np.testing.assert_allclose(sum(shares), 1.0)
    # from below: 30 power iterations (the spectrum itself is tested in test_spectrum.py)
    spectrum = pc.analysis.activity_spectrum(case.network, case.inputs, case.targets)
    assert spectrum.largest.max() >= found.largest_eigenvalue * (1 - 1e-9)
    np.testing.assert_allclose(found.largest_eigenvalue, spectrum.largest.max(), rtol=0.01)
    assert found.largest_eigenvalue > np.sort(spectrum.largest)[-2]


class TestUnits:
    def test_a_unit_that_is_the_same_for_all_examples_is_dead(self):
        """ReLU units far below zero; the third has a gradient, and is alive."""
        low = dense(np.eye(3), [-100.0, -100.0, 1.0], activation=jax.nn.relu)
        network = pc.PCNetwork({"low": low, "top": dense(np.ones((3, 2)))})
        x = jnp.asarray(np.random.RandomState(0).uniform(size=(6, 3)), jnp.float32)
        dead, saturated = unit_health(network, x)
        assert dead == {"low": pytest.approx(2 / 3), "top": 0.0}
        assert saturated == {"low": 0.0}  # dead units are not counted twice

    def test_what_is_known_from_one_example_is_nothing(self):
        low = dense(np.eye(3), [-100.0] * 3, activation=jax.nn.relu)
        network = pc.PCNetwork({"low": low, "top": dense(np.ones((3, 2)))})
        dead, _ = unit_health(network, jnp.ones((1, 3)))
        assert dead == {"low": 0.0, "top": 0.0}

    @pytest.mark.parametrize("activation_first", [False, True])
    def test_saturated_is_a_mean_slope_below_a_tenth_of_the_steepest(self, activation_first):
        """The slope is 0.027 at +-2.5 and 0.18 at +-1.5; one example of two at zero is enough to learn."""
        before = jnp.array([[2.5, 1.5, 5.0], [-2.5, -1.5, 0.0]])
        options = {"activation": jnp.tanh, "activation_first": activation_first}
        network = pc.PCNetwork({"low": dense(np.eye(3), **options), "top": dense(np.ones((3, 2)))})
        dead, saturated = unit_health(network, before)
        assert saturated == {"low": pytest.approx(1 / 3)}
        assert dead == {"low": 0.0, "top": 0.0}

    def test_the_steepest_is_the_activations_own(self):
        """A sigmoid's slope is 1/4 at most: 0.105 at 2, above a tenth of that; 0.018 at 4."""
        low = dense(np.eye(2), activation=jax.nn.sigmoid)
        network = pc.PCNetwork({"low": low})
        _, saturated = unit_health(network, jnp.array([[2.0, 4.0], [-2.0, -4.0]]))
        assert saturated == {"low": 0.5}

    @pytest.mark.parametrize("activation_first", [False, True])
    def test_a_parameterizations_multiplier_counts(self, activation_first):
        """NTK weights are N(0, 1): without 1/sqrt(100) nearly all units would seem saturated."""
        rngs = nnx.Rngs(0)
        options = {"activation": jnp.tanh, "activation_first": activation_first}
        ntk = pc.parameterizations.NTK()
        low = pc.PCDense(100, 40, parameterization=ntk, rngs=rngs, **options)
        network = pc.PCNetwork({"low": low, "top": pc.PCDense(40, 2, rngs=rngs)})
        x = np.random.RandomState(0).normal(size=(30, 100)).astype(np.float32)
        kernel = np.asarray(low.linear.kernel[...])
        before = x if activation_first else x @ kernel / 10
        expected = np.mean((1 - np.tanh(before) ** 2).mean(axis=0) < 0.1)
        assert expected < 0.1
        _, saturated = unit_health(network, jnp.asarray(x))
        assert saturated == {"low": pytest.approx(expected)}

    def test_layers_whose_activation_is_not_known_are_left_out(self):
        class Steps(pc.PCLayer):
            def predict(self, below):
                return jnp.tanh(100 * below)

        network = pc.PCNetwork({"root": pc.PCRoot(3), "mine": Steps(), "top": dense([[1.0]] * 3)})
        dead, saturated = unit_health(network, jnp.array([[1.0, 2.0, 3.0], [-1.0, 2.0, 3.0]]))
        assert saturated == {}
        # what stands at a root is data, and no unit of the network
        assert dead == {"root": 0.0, "mine": pytest.approx(2 / 3), "top": 0.0}

    def test_a_free_root_without_inputs_is_one_example(self):
        layers = {"root": pc.PCRoot(3), "top": dense([[1.0]] * 3, activation=jnp.tanh)}
        dead, saturated = unit_health(pc.PCNetwork(layers), None)
        assert dead == {"root": 0.0, "top": 0.0}
        assert saturated == {"top": 0.0}


def three_layers(*, kernel=None, bias=None, activation=jnp.tanh):
    """3 -> 4 -> 5 -> 2 and a batch of 6; the middle layer may be given its weights."""
    random = np.random.RandomState(0)
    middle = random.normal(size=(4, 5)) / 2 if kernel is None else kernel
    network = pc.PCNetwork(
        {
            "low": dense(random.normal(size=(3, 4)) / 2, activation=jnp.tanh),
            "middle": dense(middle, bias, activation=activation),
            "top": dense(random.normal(size=(5, 2)) / 2),
        }
    )
    x, y = random.normal(size=(6, 3)), random.normal(size=(6, 2))
    return network, jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)


class TestSentences:
    def test_a_healthy_network_has_nothing_wrong(self):
        found = health(*three_layers(), learning=pc.learning.Backprop())
        assert set(found.sentences.values()) == {"nothing wrong"}
        assert list(found.sentences) == ["low", "middle", "top"]
        assert found.inference is None

    def test_a_relu_layer_with_very_negative_biases_is_dead(self):
        case = three_layers(bias=[-50.0] * 5, activation=jax.nn.relu)
        found = health(*case, learning=pc.learning.Backprop())
        assert found.dead["middle"] == 1.0
        told = found.sentences["middle"]
        assert told.startswith("100% of its units are dead (the same for every example): lower the")
        assert told.endswith("or try another activation or initializer")

    def test_a_tanh_layer_with_huge_weights_is_saturated(self):
        kernel = 100 * np.random.RandomState(1).normal(size=(4, 5))
        found = health(*three_layers(kernel=kernel), learning=pc.learning.Backprop())
        assert found.saturated["middle"] == 1.0
        assert found.saturated["low"] == 0.0
        assert found.sentences["middle"].startswith("100% of its activations are saturated: sm")
        assert found.sentences["low"] == "nothing wrong"

    @pytest.mark.parametrize("learning", [pc.learning.Backprop(), MANY_STEPS], ids=["bp", "pc"])
    def test_a_gradient_a_hundred_millionth_of_the_largest_hardly_learns(self, learning, double):
        """Trap 8: Adam's eps swallows it, and the accuracy of the last layers hides it."""
        network = pc.PCNetwork({"low": dense([[2.0]]), "top": dense([[1e-8]])})
        found = health(network, jnp.ones((1, 1)), jnp.full((1, 1), 16.0), learning=learning)
        ratio = found.credit.norm["low"] / found.credit.norm["top"]
        assert 1e-9 < ratio < 1e-7
        assert found.sentences["low"].startswith("it hardly learns (a gradient ")
        assert (
            "times the largest layer's, where Adam's eps may swallow it)"
            in (found.sentences["low"])
        )
        told = found.sentences["low"].endswith("more steps, a larger step size or ErrorCoordinates")
        assert told == (learning is MANY_STEPS)  # what a rule without inference cannot do
        assert found.sentences["top"] == "nothing wrong"

    def test_a_layer_that_inference_leaves_without_error_is_close_to_backpropagation(self):
        found = health(*by_hand(), learning=TINY_STEP)
        assert found.inference.energy_share["low"] < 1e-6
        assert found.sentences["low"].startswith("inference leaves it no part of the error to spe")
        assert found.sentences["top"] == "nothing wrong"

    def test_a_gradient_that_points_away_is_told_with_its_cosine(self):
        found = health(*three_layers(), learning=Backwards())
        for told in found.sentences.values():
            assert told.startswith("its gradient points away from backpropagation's (cosine -1.00)")

    def test_layers_without_parameters_and_of_one_example(self):
        network = pc.PCNetwork({"root": pc.PCRoot(1), "top": dense([[3.0]])})
        found = health(network, jnp.ones((1, 1)), jnp.ones((1, 1)), learning=pc.learning.Backprop())
        assert found.sentences == {
            "root": "it has no parameters to learn",
            "top": "nothing wrong",
        }

    def test_a_gradient_that_is_not_finite(self):
        found = health(*by_hand(), learning=OVERFLOWING)
        for told in found.sentences.values():
            assert told.startswith(
                "its gradient is not finite: lower the step size of inference or"
            )

    def test_a_diverging_network_is_never_told_to_take_larger_steps(self):
        """Between float32's largest number and its root, one layer's norm is infinite first."""
        found = health(*by_hand(), learning=predictive_coding(0.3, 50))  # z grows to 2^50 * 3
        assert math.isfinite(found.credit.norm["low"])
        assert math.isinf(found.credit.norm["top"])
        for told in found.sentences.values():
            assert "a larger step size" not in told


class TestSummary:
    @pytest.mark.parametrize("learning", [TOO_LARGE, OVERFLOWING], ids=["rising", "overflowing"])
    def test_a_step_above_two_over_lambda_is_called_diverging_with_the_limit(self, learning):
        found = health(*by_hand(), learning=learning)
        assert not found.inference.gap_closed > 0
        assert found.summary.startswith("inference diverges: ")
        assert "stable below 0.2)" in found.summary

    def test_a_step_below_it_is_not(self):
        """0.99 of the limit: 1 - 0.198 * 10 is -0.98 a step, slow but sure."""
        found = health(*by_hand(), learning=predictive_coding(0.198, 300))
        assert found.summary.startswith("inference closes 100.0% of the energy gap")

    def test_tiny_steps_are_called_close_to_backpropagation(self):
        """Trap 4: one step sold as predictive coding. Here the top layer has most of the gradient."""
        network = pc.PCNetwork({"low": dense([[2.0]]), "top": dense([[0.1]])})
        found = health(network, jnp.ones((1, 1)), jnp.full((1, 1), 16.0), learning=TINY_STEP)
        assert found.credit.cosine["total"] > 0.99
        told = "inference closes 0.0% of the energy gap, so this is close to backpropagation"
        assert found.summary.startswith(told)
        assert f"(stable below {2 / 1.01:.3g})" in found.summary

    def test_layers_that_are_parallel_one_by_one_but_not_together_are_not_called_close(self):
        """A hidden gradient a hundred thousand times too small is no backpropagation."""
        found = health(*by_hand(), learning=TINY_STEP)
        for name in ("low", "top"):
            assert found.credit.cosine[name] == pytest.approx(1)
        other = np.array([30, 30, 20, 10])  # the top layer's gradient is the same, the lower's gone
        cosine = np.linalg.norm(other[2:]) / np.linalg.norm(other)
        assert found.credit.cosine["total"] == pytest.approx(cosine, rel=1e-4)
        assert found.summary.startswith("inference closes 0.0% of the energy gap; its weight gradi")
        assert "close to backpropagation" not in found.summary

    def test_many_steps_are_called_predictive_coding_with_the_angle(self):
        """dF/dW is -(e_1 x, e_2 z): (3, 1 * 5) at the equilibrium, and (30, 20) of backpropagation."""
        found = health(*by_hand(), learning=MANY_STEPS)
        own, other = np.array([3, 3, 5, 1]), np.array([30, 30, 20, 10])  # with the biases
        cosine = own @ other / np.linalg.norm(own) / np.linalg.norm(other)
        assert found.summary == (
            f"inference closes 100.0% of the energy gap: this is predictive coding; its weight "
            f"gradient has cosine {cosine:.3f} with backpropagation's"
        )

    @pytest.mark.parametrize("learning", WITHOUT_INFERENCE, ids=lambda rule: type(rule).__name__)
    def test_a_rule_without_inference_says_so(self, learning):
        found = health(*by_hand(), learning=learning)
        assert found.inference is None
        assert found.summary == (
            f"{type(learning).__name__} does no inference on the energy; its weight gradient has "
            f"cosine 1.000 with backpropagation's"
        )

    def test_a_perfect_prediction_leaves_nothing_to_infer(self):
        network, x, _ = by_hand()
        found = health(network, x, jnp.full((1, 1), 6.0), learning=ONE_STEP)
        told = "the energy is at its minimum at the start: there is nothing to infer"
        assert found.summary.startswith(told)
        assert math.isnan(found.credit.cosine["total"])
        assert "nan" not in found.summary.replace("backpropagation", "")

    def test_a_single_layer_has_nothing_to_infer_but_something_to_learn(self):
        """A linear classifier is no finished one."""
        network = pc.PCNetwork({"only": dense([[2.0]])})
        found = health(network, jnp.ones((1, 1)), jnp.full((1, 1), 16.0), learning=ONE_STEP)
        assert found.credit.norm["only"] == pytest.approx(14 * 2**0.5)
        assert "there is nothing to infer; its weight gradient has cosine 1.000" in found.summary

    def test_sampling_at_a_stable_step_is_not_called_diverging(self):
        """Samples lie above the minimum by temperature/2 a dimension, and by design stay there."""
        sampler = pc.inference.Langevin(0.02, num_samples=200)
        network, x, _ = by_hand()
        rule = pc.learning.PredictiveCoding(sampler)
        for seed in range(3):
            found = health(
                network, x, jnp.full((1, 1), 6.1), learning=rule, key=jax.random.key(seed)
            )
            assert "diverges" not in found.summary


def test_a_reference_of_ones_own_is_what_the_gap_is_measured_to():
    """A reference of one step ends at 41.45 and not at 5."""
    found = health(*by_hand(), learning=TINY_STEP, reference=ONE_STEP.inference)
    assert found.inference.equilibrium_energy == pytest.approx(41.45, rel=1e-4)


def test_the_network_is_not_changed():
    network, x, y = by_hand()
    network.init_activities(x, targets=y)
    parameters = parameters_of(network)
    activities = {name: np.array(value) for name, value in network.activities().items()}
    health(network, x + 1, y, learning=ONE_STEP)
    for before, after in zip(parameters, parameters_of(network), strict=True):
        np.testing.assert_array_equal(before, after)
    for name, value in network.activities().items():
        np.testing.assert_array_equal(activities[name], value)


class TestRefusals:
    def test_what_is_no_rule(self):
        with pytest.raises(TypeError, match=r"expected a learning rule such as pc\.learning\.ZIL"):
            health(*by_hand(), learning=ONE_STEP.inference)

    def test_labels_that_are_not_one_hot(self):
        network, x, _ = by_hand()
        with pytest.raises(TypeError, match="expected targets of a floating dtype, got int32"):
            health(network, x, jnp.ones((1, 1), jnp.int32), learning=pc.learning.Backprop())

    def test_inputs_and_targets_of_two_batch_sizes(self):
        network, x, _ = by_hand()
        with pytest.raises(ValueError, match="inputs have batch size 1 but targets 2"):
            health(network, x, jnp.ones((2, 1)), learning=pc.learning.Backprop())
