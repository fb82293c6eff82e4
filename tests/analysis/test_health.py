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
from pcflax.analysis.diagnosis import largest_step_size, step_limit
from pcflax.learning.base import AbstractGradientLearning
from tests.conftest import Chain, in_double, parameters_of
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

    def test_layers_without_a_gradient_do_not_hide_that_it_is_backpropagation(self):
        """Above `low` stand weights of 0, so that it has no direction; the others have backpropagation's."""
        layers = {"low": dense([[2.0]]), "mid": dense([[0.0]], [1.0]), "top": dense([[3.0]])}
        data = jnp.ones((1, 1)), jnp.full((1, 1), 16.0)
        found = health(pc.PCNetwork(layers), *data, learning=TINY_STEP)
        assert math.isnan(found.credit.cosine["low"])
        assert "so this is close to backpropagation" in found.summary

    def test_the_largest_step_of_momentum_that_grows_is_told(self):
        """Nesterov's comes to 1, where 2/lambda_max becomes 4/3 of 1/lambda_max."""
        rule = pc.learning.PredictiveCoding(
            pc.inference.GradientDescent(0.1, momentum="auto", num_steps=3)
        )
        found = health(*by_hand(), learning=rule)
        plain = health(*by_hand(), learning=predictive_coding(0.1, 3))
        assert found.inference.stability == pytest.approx(1.5 * plain.inference.stability)

    def test_backpropagation_through_the_equilibrium_is_not_predictive_coding(self):
        """Its inference sees no targets, so that a gap that they open is not one that it closes."""
        rule = pc.learning.Implicit(NEWTON)
        found = health(*by_hand(), learning=rule)
        assert found.inference is None
        assert "backpropagates through an equilibrium that knows no target" in found.summary
        assert "this is predictive coding" not in found.summary

    def test_the_augmented_lagrangian_is_told_by_its_own_words(self):
        rule = pc.learning.AugmentedLagrangian(pc.inference.GradientDescent(0.1, num_steps=4))
        found = health(*by_hand(), learning=rule)
        assert "moves activities and multipliers at once" in found.summary

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


class TestStepSizes:
    @pytest.mark.parametrize(
        ("inference", "largest"),
        [
            (pc.inference.GradientDescent(0.1), 0.1),
            (pc.inference.GradientDescent({"low": 0.02, "*": 0.3}), 0.3),
            (pc.inference.GradientDescent(optax.sgd(0.1)), 0.1),
            (pc.inference.ErrorCoordinates(pc.inference.GradientDescent(0.2)), 0.2),
            (pc.inference.Langevin(0.05), 0.05),
            (pc.inference.GradientDescent(optax.sgd(0.1, momentum=0.9)), math.nan),
            (pc.inference.GradientDescent(optax.adam(0.1)), math.nan),
            (pc.inference.GradientDescent(0.1, guard="clip"), math.nan),
            (pc.inference.GradientDescent(0.1, backoff=0.5), math.nan),
            (pc.inference.GradientDescent(0.1, guard="warn"), 0.1),
            (pc.inference.CurvatureDescent(), math.nan),
            (pc.inference.NewtonCG(), math.nan),
        ],
    )
    def test_the_largest_is_what_the_algorithm_was_told(self, inference, largest):
        found = largest_step_size(pc.learning.PredictiveCoding(inference))
        assert found == pytest.approx(largest, nan_ok=True)

    @pytest.mark.parametrize("nesterov", [False, True])
    @pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
    def test_the_limit_is_where_the_iterations_matrix_leaves_the_unit_circle(
        self, momentum, nesterov
    ):
        """Of (z, v) on a slope of lambda z: v <- m v + lambda z, z <- z - s (v, or ahead)."""
        eigenvalue = 3.0
        descent = pc.inference.GradientDescent(0.1, momentum=momentum, nesterov=nesterov)
        limit = step_limit(eigenvalue, pc.learning.PredictiveCoding(descent))

        def radius(step):
            velocity = np.array([eigenvalue, momentum])  # of z and v
            moved = momentum * velocity + [eigenvalue, 0] if nesterov else velocity
            return np.abs(np.linalg.eigvals([[1, 0] - step * moved, velocity])).max()

        assert radius(0.999 * limit) < 1 < radius(1.001 * limit)


class TestLayerGap:
    def test_by_hand(self):
        """Z goes from 2 to 2.3 of 5: 'low' from 0 to .045 of 4.5, 'top' from 50 to 41.405 of .5."""
        found = inference_health(*by_hand(), learning=ONE_STEP, reference=NEWTON)
        assert found.layer_gap_closed["low"] == pytest.approx(0.045 / 4.5, rel=1e-3)
        assert found.layer_gap_closed["top"] == pytest.approx((50 - 41.405) / 49.5, rel=1e-3)

    def test_of_a_linear_chain_it_follows_from_the_powers_of_its_hessian(self, double):
        """z_t = z* + (I - s H)^t (z_0 - z*), with H and z* in closed form, on 3 -> 5 -> 4 -> 2."""
        random, widths, rate, steps = np.random.RandomState(1), (3, 5, 4, 2), 0.07, 9
        kernels = [random.normal(size=pair) / 2 for pair in zip(widths, widths[1:], strict=False)]
        network = in_double(pc.PCNetwork([dense(kernel) for kernel in kernels]))
        x, y = random.normal(size=(6, 3)), random.normal(size=(6, 2))
        theory = pc.analysis.DeepLinear.from_network(network)
        settled = np.concatenate(theory.activities(x, y), axis=1)
        start = np.concatenate([x @ kernels[0], x @ kernels[0] @ kernels[1]], axis=1)
        matrix = np.linalg.matrix_power(np.eye(9) - rate * np.asarray(theory.hessian()), steps)

        def energies(z):
            activities = [x, z[:, :5], z[:, 5:], y]
            pairs = zip(activities, activities[1:], kernels, strict=False)
            return np.stack([0.5 * ((a - b @ w) ** 2).sum(axis=1) for b, a, w in pairs])

        began, least = energies(start), energies(settled)
        ended = energies(settled + (start - settled) @ matrix.T)
        expected = 1 - np.abs(ended - least).sum(axis=1) / np.abs(began - least).sum(axis=1)
        found = inference_health(
            network,
            jnp.asarray(x),
            jnp.asarray(y),
            learning=predictive_coding(rate, steps),
            reference=NEWTON,
        )
        np.testing.assert_allclose(list(found.layer_gap_closed.values()), expected, rtol=1e-6)

    def test_layers_stand_in_the_networks_order_and_not_in_the_alphabets(self):
        network = pc.models.residual_mlp(3, 4, 2, depth=13, rngs=nnx.Rngs(0))
        found = inference_health(network, jnp.ones((2, 3)), jnp.ones((2, 2)), learning=ONE_STEP)
        assert list(found.energy_share) == list(found.layer_gap_closed) == list(network.nodes)
        assert network.nodes.index("hidden/10") > network.nodes.index("hidden/2")

    def test_without_a_reference_none_is_measured(self):
        found = inference_health(*by_hand(), learning=ONE_STEP)
        assert all(math.isnan(part) for part in found.layer_gap_closed.values())


@pytest.fixture(scope="module")
def digits():
    """The network and a batch of the command line's default run."""
    network = pc.models.mlp(64, 300, 300, 10, activation=jnp.tanh, rngs=nnx.Rngs(0))
    batch = next(iter(pc.data.load("digits", batch_size=64)))
    return network, batch.inputs, batch.targets


@pytest.mark.usefixtures("optimized")
class TestRunsThatAreKnown:
    def rule(self, step_size):
        """One program for all step sizes."""
        return pc.learning.PredictiveCoding(pc.inference.GradientDescent(step_size, num_steps=20))

    def test_the_default_run_is_backpropagation(self, digits):
        """A rate of 0.003125: three runs of 500 batches ended .999, .999 and .994 parallel to it."""
        rule = self.rule(2 * 0.1 / 64)
        found = health(*digits, learning=rule, optimizer=optax.adam(1e-3))
        layers = ("hidden_1", "hidden_2", "output")
        assert min(found.credit.cosine[name] for name in layers) > 0.999
        assert min(found.displacement[name] for name in layers) > 0.99
        assert 0.1 < found.inference.gap_closed < 0.25
        assert "so this is close to backpropagation" in found.summary
        for name in layers:
            assert "it learns as by backpropagation" in found.sentences[name]

    def test_larger_steps_are_predictive_coding(self, digits):
        """0.2 closes 99.5 %, and moves the weights elsewhere, the output's most."""
        found = health(*digits, learning=self.rule(0.2), optimizer=optax.adam(1e-3))
        assert found.inference.gap_closed == pytest.approx(0.995, abs=0.003)
        assert min(found.inference.layer_gap_closed.values()) > 0.75
        assert found.displacement["output"] < 0.9
        assert ": this is predictive coding; " in found.summary
        assert set(found.sentences.values()) == {"nothing wrong"}

    def test_the_total_is_higher_for_what_is_nearer_to_backpropagation(self, digits):
        """The whole gradient's angle is not: the last layer's is 600 times the first's."""
        near, far = (
            pc.analysis.gradient_alignment(*digits, learning=self.rule(rate))
            for rate in (2 * 0.1 / 64, 0.2)
        )
        assert near.cosine["total"] > far.cosine["total"]


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
        network = in_double(pc.PCNetwork({"low": dense([[2.0]]), "top": dense([[1e-8]])}))
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
        told = (
            "inference takes its energy 0% of the way to the equilibrium, and it learns as by backp"
        )
        assert found.sentences["top"].startswith(told)

    def test_a_gradient_below_adams_eps_is_told_with_its_size(self):
        """-(16 - 1e-9 * 2) * 1e-9 for the weight and the bias."""
        network = pc.PCNetwork({"low": dense([[2.0]]), "top": dense([[1e-10]])})
        x, y = jnp.ones((1, 1)), jnp.full((1, 1), 16.0)
        found = health(network, x, y, learning=pc.learning.Backprop())
        assert found.credit.rms["low"] == pytest.approx(1.6e-9)
        assert "swallows the gradient of 'low' (1 of 2 layers)" in found.summary

    def test_a_learned_precision_that_has_no_bound_is_told(self):
        """With point estimates it grows without end in a hidden layer, and not in the output's."""
        for least, told in ((0.0, True), (0.1, False)):
            energy = pc.energies.LearnedGaussian(1, least_variance=least)
            top = dense([[3.0]], energy=pc.energies.LearnedGaussian(1))
            network = pc.PCNetwork({"low": dense([[2.0]], energy=energy), "top": top})
            found = health(network, jnp.ones((1, 1)), jnp.full((1, 1), 16.0), learning=ONE_STEP)
            assert ("its learned precision grows without end" in found.sentences["low"]) == told
            assert "precision" not in found.sentences["top"]

    def test_so_is_that_of_a_free_root_but_not_of_one_that_is_given(self):
        root = pc.PCRoot(1, energy=pc.energies.LearnedGaussian(1))
        network = pc.PCNetwork({"root": root, "top": dense([[3.0]])})
        for inputs, told in ((None, True), (jnp.ones((1, 1)), False)):
            found = health(network, inputs, jnp.full((1, 1), 16.0), learning=ONE_STEP)
            assert ("its learned precision grows without end" in found.sentences["root"]) == told

    def test_where_all_are_as_small_each_says_so(self):
        """1e-3 * 1e-6 for the bias, a thousandth of that for the weight."""
        network = pc.PCNetwork({"low": dense([[1e-6]]), "top": dense([[1e-6]])})
        x, y = jnp.full((1, 1), 1e-3), jnp.full((1, 1), 1e-3)
        found = health(network, x, y, learning=pc.learning.Backprop())
        told = (
            "it does not learn by Adam, whose eps of 1e-08 swallows its gradient, 7e-10 an element"
        )
        assert found.sentences["low"].startswith(told)

    def test_a_gradient_that_points_away_is_told_with_its_cosine(self):
        found = health(*three_layers(), learning=Backwards())
        for told in found.sentences.values():
            assert told.startswith("its gradient points away from backpropagation's (cosine -1.00)")

    def test_layers_without_parameters_and_of_one_example(self):
        network = pc.PCNetwork({"root": pc.PCRoot(1), "top": dense([[3.0]])})
        found = health(network, jnp.ones((1, 1)), jnp.ones((1, 1)), learning=pc.learning.Backprop())
        assert found.sentences == {
            "root": "it has no weights to learn",
            "top": "nothing wrong",
        }

    def test_a_gradient_that_is_not_finite(self):
        found = health(*by_hand(), learning=OVERFLOWING)
        for told in found.sentences.values():
            assert told.startswith(
                "its gradient is not finite: lower the step size of inference or"
            )

    def test_a_diverging_network_is_never_told_to_take_larger_steps(self):
        """Also between the root of float32's largest number and that number."""
        found = health(*by_hand(), learning=predictive_coding(0.3, 50))  # z grows to 2^50 * 3
        assert 2**64 < found.credit.norm["top"] < math.inf
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
        assert found.inference.stability == pytest.approx(0.99, rel=1e-4)
        assert "its step size of 0.198 is 99% of the largest stable one" in found.summary

    def test_one_well_below_it_is_not_near_the_edge(self):
        found = health(*by_hand(), learning=MANY_STEPS)
        assert found.inference.step_size == pytest.approx(0.05)
        assert found.inference.stability == pytest.approx(0.25, rel=1e-4)
        assert "stable one" not in found.summary

    def test_tiny_steps_are_called_close_to_backpropagation(self):
        """Trap 4: one step sold as predictive coding. Here the top layer has most of the gradient."""
        network = pc.PCNetwork({"low": dense([[2.0]]), "top": dense([[0.1]])})
        found = health(network, jnp.ones((1, 1)), jnp.full((1, 1), 16.0), learning=TINY_STEP)
        assert found.credit.cosine["total"] > 0.99
        told = "inference closes 0.0% of the energy gap, so this is close to backpropagation"
        assert found.summary.startswith(told)
        assert f"(stable below {2 / 1.01:.3g})" in found.summary

    def test_a_hidden_gradient_that_is_small_and_parallel_is_called_close_too(self):
        """A hundred thousand times too small, which Adam does not see: the run is backpropagation's."""
        found = health(*by_hand(), learning=TINY_STEP, optimizer=optax.adam(1e-6))
        for name in ("low", "top"):
            assert found.credit.cosine[name] == pytest.approx(1)
            assert found.displacement[name] == pytest.approx(1, abs=1e-4)
        assert found.credit.norm["low"] < 1e-4 * found.credit.backprop_norm["low"]
        assert "so this is close to backpropagation" in found.summary
        assert (
            "what the optimizer makes of it 1.000, so that the weights move as by" in found.summary
        )

    def test_many_steps_are_called_predictive_coding_with_the_angle(self):
        """dF/dW is -(e_1 x, e_2 z): (3, 1 * 5) at the equilibrium, and (30, 20) of backpropagation."""
        found = health(*by_hand(), learning=MANY_STEPS)
        own, other = np.array([3, 3, 5, 1]), np.array([30, 30, 20, 10])  # with the biases
        low, top = (
            one @ two / np.linalg.norm(one) / np.linalg.norm(two)
            for one, two in zip(np.split(own, 2), np.split(other, 2), strict=True)
        )
        assert found.summary == (
            f"inference closes 100.0% of the energy gap, and at least 100.0% in every layer: this is "
            f"predictive coding; layer by layer, its weight gradient has cosine {top:.3f} to {low:.3f} "
            f"with backpropagation's"
        )

    def test_a_layer_that_is_left_behind_is_named(self):
        """A steep top pulls the layer below it beyond where the lowest one, hardly moved, lets it settle."""
        network = pc.PCNetwork(
            {"low": dense([[1.0]]), "mid": dense([[1.0]]), "top": dense([[10.0]])}
        )
        found = health(
            network,
            jnp.ones((1, 1)),
            jnp.full((1, 1), 30.0),
            learning=predictive_coding(0.009, 3),
        )
        parts = found.inference.layer_gap_closed
        assert found.inference.gap_closed > 0.9
        assert parts["mid"] < parts["low"] < 0.01
        assert f"but {parts['mid']:.1%} in layer 'mid'; layer by layer" in found.summary
        assert found.sentences["low"].startswith("inference takes its energy 0% of the way to the")

    @pytest.mark.parametrize("learning", WITHOUT_INFERENCE, ids=lambda rule: type(rule).__name__)
    def test_a_rule_without_inference_says_so(self, learning):
        found = health(*by_hand(), learning=learning)
        assert found.inference is None
        assert found.summary == (
            f"{type(learning).__name__} does no inference on the energy; layer by layer, its weight "
            f"gradient has cosine 1.000 with backpropagation's"
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
        told = "there is nothing to infer; layer by layer, its weight gradient has cosine 1.000"
        assert told in found.summary

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
