"""Weights of layers that follow the inference step, against a loop in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from tests.conftest import Chain, compiled_gradients, in_double
from tests.references import numpy_pc as reference

RAMP = optax.linear_schedule(6.0, 1.0, 5)
DESCENT = pc.inference.GradientDescent(0.05, num_steps=8)
SCHEDULED = pc.inference.Scheduled(DESCENT, {"layer_1": RAMP, "layer_*": 0.5})


def weighed(chain, step):
    """The reference's layers at a step: the second by the ramp, the others by a half."""
    ramp = 6.0 - min(step, 5)
    return [
        dataclasses.replace(layer, precision=weight * layer.precision)
        for layer, weight in zip(chain.reference, (0.5, ramp, 0.5), strict=True)
    ]


def by_hand(chain, num_steps=8):
    z = [*reference.feedforward(chain.reference, chain.inputs)[:-1], chain.targets]
    ways, energies = [z], []
    for step in range(num_steps):
        layers = weighed(chain, step)
        energies.append(reference.energies(layers, chain.inputs, z))
        field = reference.activity_gradients(layers, chain.inputs, z, chain.free())
        z = [value - 0.05 * slope for value, slope in zip(z, field, strict=True)]
        ways.append(z)
    return ways, energies


@pytest.mark.usefixtures("double")
class TestAgainstALoopByHand:
    def test_gradient_descent(self):
        chain = Chain()
        ways, energies = by_hand(chain)
        result = chain.network.infer(
            chain.inputs,
            chain.targets,
            inference=SCHEDULED,
            trace=True,
            record=lambda seen: seen.activities,
        )
        for step, activities in enumerate(ways):
            for name, expected in zip(chain.network.names, activities, strict=True):
                np.testing.assert_allclose(
                    result.records[name][step], expected, rtol=1e-6, atol=1e-8
                )
        for step, expected in enumerate(energies):  # a trace has them as they are weighed
            found = [result.trace.energies[name][step] for name in chain.network.names]
            np.testing.assert_allclose(found, expected, rtol=1e-6)
        own = reference.energies(chain.reference, chain.inputs, ways[-1])
        np.testing.assert_allclose(list(result.energies.values()), own, rtol=1e-6)

    def test_langevin_at_temperature_0(self):
        chain = Chain()
        sampler = pc.inference.Langevin(0.05, temperature=0.0, burn_in=5, num_samples=3)
        schedule = pc.inference.Scheduled(sampler, dict(SCHEDULED.weights))
        result = chain.network.infer(chain.inputs, chain.targets, inference=schedule)
        for found, expected in zip(result.activities.values(), by_hand(chain)[0][-1], strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)

    def test_the_incremental_rule(self):
        """With weights that stay, its activities go the same way."""
        chain = Chain()
        rule = pc.learning.IncrementalPC(SCHEDULED)
        network, optimizer = pc.networks.split(chain.network), optax.sgd(0.0)
        evidence = pc.Evidence(chain.inputs, chain.targets)
        state = optimizer.init(network.parameters)
        _, _, info = rule.update(network, optimizer, state, evidence, key=jax.random.key(0))
        for found, expected in zip(info.activities.values(), by_hand(chain)[0][-1], strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)

    def test_in_error_coordinates_the_first_step_is_weighed(self):
        """dF/de at e = 0 is minus the pulled back error of the output: scaled as the output's weight."""
        chain = Chain()
        once = pc.inference.GradientDescent(0.05, num_steps=1)
        with pytest.warns(UserWarning, match="one step in error coordinates"):
            plain = pc.inference.ErrorCoordinates(once)
        triple = pc.inference.ErrorCoordinates(pc.inference.Scheduled(once, {"layer_2": 3.0}))
        found = []
        for inference in (plain, triple):
            chain.network.infer(chain.inputs, chain.targets, inference=inference)
            activities, means = chain.network.activities(), chain.network.predictions(chain.inputs)
            found.append(np.asarray(activities["layer_0"] - means["layer_0"]))
        np.testing.assert_allclose(found[1], 3 * found[0], rtol=1e-9)

    def test_one_layer_of_a_stack(self):
        """The same weights as of a chain of the same layers."""
        rngs = nnx.Rngs(0)
        layers = [in_double(pc.PCDense(4, 4, activation=jnp.tanh, rngs=rngs)) for _ in range(3)]
        stack = pc.PCNetwork({"s": pc.PCStack(layers)})
        chain = pc.PCNetwork({f"c{number}": layer for number, layer in enumerate(layers)})
        x, y = np.random.default_rng(0).normal(size=(2, 5, 4))
        for weights in ({"1": RAMP}, {"1": RAMP, "2": 2.0}):
            inferred = [
                net.infer(
                    x,
                    y,
                    inference=pc.inference.Scheduled(
                        DESCENT, {prefix + name: weight for name, weight in weights.items()}
                    ),
                )
                for net, prefix in ((stack, "s/"), (chain, "c"))
            ]
            found = np.moveaxis(inferred[0].activities["s"], 1, 0)
            np.testing.assert_allclose(found, list(inferred[1].activities.values()), rtol=1e-9)

    def test_weights_multiply_those_that_a_rule_has_set(self):
        """A nudged output of weight 2 at beta 1/4 is one at beta 1/2."""
        chain = Chain()
        evidence, key = pc.Evidence(chain.inputs, chain.targets), jax.random.key(0)
        doubled = pc.inference.Scheduled(DESCENT, {"layer_2": 2.0})
        found = [
            compiled_gradients(
                pc.learning.Nudged(inference, beta=beta, weighted=True),
                pc.networks.split(chain.network),
                evidence,
                key=key,
            )[1].activities["layer_0"]
            for inference, beta in ((doubled, 0.25), (DESCENT, 0.5))
        ]
        np.testing.assert_allclose(found[0], found[1], rtol=1e-9)

    def test_weights_within_weights_multiply(self):
        """Twice the ramp by two wrappers, and what one of them alone weighs."""
        chain = Chain()
        once = pc.inference.Scheduled(
            DESCENT, {"layer_1": lambda step: 2 * RAMP(step), "layer_0": 0.5, "layer_2": 3.0}
        )
        inner = pc.inference.Scheduled(DESCENT, {"layer_1": RAMP, "layer_0": 0.5})
        twice = pc.inference.Scheduled(inner, {"layer_1": 2.0, "layer_2": 3.0})
        found, expected = (
            chain.network.infer(chain.inputs, chain.targets, inference=inference, trace=True)
            for inference in (twice, once)
        )
        np.testing.assert_allclose(found.trace.energy, expected.trace.energy, rtol=1e-12)
        np.testing.assert_allclose(found.energy, expected.energy, rtol=1e-12)


class TestRefusals:
    @pytest.mark.parametrize(
        "inference",
        [pc.inference.NewtonCG(), pc.inference.GradientDescent(0.1, tolerance=1e-3)],
        ids=["newton", "tolerance"],
    )
    def test_what_goes_to_an_equilibrium(self, inference):
        with pytest.raises(
            ValueError, match="goes on to an equilibrium; give an algorithm that takes"
        ):
            pc.inference.Scheduled(inference, {"h": 1.0})

    def test_what_compares_energies(self):
        for inference in (
            pc.inference.Chebyshev(),
            pc.inference.GradientDescent(0.1, momentum="auto"),
        ):
            with pytest.raises(ValueError, match="compares it with that of a step before"):
                pc.inference.Scheduled(inference, {"h": 1.0})

    def test_what_does_not_step(self):
        with pytest.raises(TypeError, match="expected an iterative inference algorithm"):
            pc.inference.Scheduled(pc.inference.ErrorCoordinates(DESCENT), {"h": 1.0})

    def test_weights(self):
        with pytest.raises(ValueError, match="weight of 'h' of at least 0, got -1"):
            pc.inference.Scheduled(DESCENT, {"h": -1})
        with pytest.raises(TypeError, match="expected weights such as"):
            pc.inference.Scheduled(DESCENT, RAMP)

    @pytest.mark.parametrize(
        "rule", [None, pc.learning.PredictiveCoding, pc.learning.IncrementalPC]
    )
    def test_a_pattern_that_fits_no_layer(self, rule):
        chain, schedule = Chain(), pc.inference.Scheduled(DESCENT, {"layr_1": 2.0})

        def use():
            if rule is None:
                chain.network.infer(chain.inputs, chain.targets, inference=schedule)
            else:
                pc.training.make_step(chain.network, optax.sgd(0.1), rule(schedule))

        with pytest.raises(ValueError, match="fits none of the layers.*did you mean 'layer_1'"):
            use()

    def test_a_field_that_is_no_gradient(self):
        with pytest.raises(TypeError, match="expected pc.inference.GradientDescent, got Scheduled"):
            pc.learning.FixedPrediction(SCHEDULED)
