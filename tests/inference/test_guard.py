"""Guards of gradient descent: steps held under the curvature, and steps taken back where energy rose.

Oracles: eigenvalues of a dense Hessian by jax.hessian, and a loop in NumPy.
"""

import dataclasses
import functools
import warnings

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from tests.conftest import Chain, in_double
from tests.references import numpy_pc as reference

pytestmark = [pytest.mark.usefixtures("double"), pytest.mark.slow]

DECADES = (0.05, 0.2, 0.8, 3.0, 10.0)  # the largest stable step of the chains is between


@functools.cache
def linear_chain(seed=0):
    chain = Chain(activation="identity", widths=(3, 6, 5, 4, 2), seed=seed)
    return chain, pc.networks.split(chain.network)


@functools.partial(jax.jit, static_argnames=("errors",))
def infer(inference, network, inputs, targets, clamps=None, errors=False):
    problem = pc.inference.make_problem(network, pc.Evidence(inputs, targets, clamps=clamps))
    algorithm = pc.inference.ErrorCoordinates(inference) if errors else inference
    return algorithm.solve(problem, trace=True)


@functools.cache
def largest(seed=0, errors=False):
    """lambda_max of the Hessian, which is the same for all examples of a linear chain, by jax.hessian."""
    chain, network = linear_chain(seed)

    @jax.jit
    def hessian(x, y):
        problem = pc.inference.make_problem(network, pc.Evidence(x, y))
        if errors:
            problem = pc.inference.error_coordinates.error_problem(problem)
        flat, unravel = jax.flatten_util.ravel_pytree(problem.start)
        return jax.hessian(lambda flat: problem.energy(unravel(flat))[0])(flat)

    return float(np.linalg.eigvalsh(hessian(chain.inputs[:1], chain.targets[:1]))[-1])


class TestClip:
    @pytest.mark.parametrize("errors", [False, True], ids=["activities", "errors"])
    @pytest.mark.parametrize("seed", [0, 1])
    def test_energy_never_ends_above_the_start_over_two_decades(self, seed, errors):
        chain, network = linear_chain(seed)
        limit = 2 / largest(seed, errors)
        assert DECADES[0] < limit < DECADES[-1] / 5
        for rate in DECADES:
            clip = pc.inference.GradientDescent(rate, num_steps=25, guard="clip")
            energy = infer(clip, network, chain.inputs, chain.targets, errors=errors).trace.energy
            assert (energy[-1] < energy[0]).all()
            assert (np.diff(energy, axis=0) <= 1e-12 * energy[:-1]).all()
        plain = pc.inference.GradientDescent(DECADES[-1], num_steps=25)
        energy = infer(plain, network, chain.inputs, chain.targets, errors=errors).trace.energy
        assert (energy[-1] > 1e6 * energy[0]).all()

    @pytest.mark.parametrize("errors", [False, True], ids=["activities", "errors"])
    def test_a_stable_step_is_plain_descents(self, errors):
        chain, network = linear_chain()
        rate = 0.99 / largest(errors=errors)
        for more in ({}, {"momentum": 0.5}):
            plain, clip = (
                infer(
                    pc.inference.GradientDescent(rate, num_steps=9, guard=word, **more),
                    network,
                    chain.inputs,
                    chain.targets,
                    errors=errors,
                )
                for word in (None, "clip")
            )
            for name, activity in plain.activities.items():
                np.testing.assert_allclose(clip.activities[name], activity, rtol=1e-12, atol=1e-14)

    def test_safety_is_the_part_of_the_largest_stable_step(self):
        """One step with a fiftieth of it: the move over the gradient is safety * 2/lambda_max, or more."""
        chain, network = linear_chain()
        clip = pc.inference.GradientDescent(3.0, num_steps=1, guard="clip", safety=0.02)
        problem = pc.inference.make_problem(network, pc.Evidence(chain.inputs, chain.targets))
        gradient = problem.gradient(problem.start)["layer_2"]
        result = infer(clip, network, chain.inputs, chain.targets)
        part = (problem.start["layer_2"] - result.activities["layer_2"]) / gradient
        # lambda_max is found from below, by four iterations to a quarter
        exact = 0.02 * 2 / largest()
        assert ((part > exact * (1 - 1e-9)) & (part < 1.34 * exact)).all()

    def test_rates_by_layer_are_held_together(self):
        """All are scaled alike, under lambda_max(D^1/2 H D^1/2) = 2: of one layer's rate, too."""
        chain, network = linear_chain()
        rates = {"layer_1": 6.0, "*": 0.06}
        clip = pc.inference.GradientDescent(rates, num_steps=1, guard="clip")
        before = pc.inference.make_problem(network, pc.Evidence(chain.inputs, chain.targets))
        gradient = before.gradient(before.start)
        result = infer(clip, network, chain.inputs, chain.targets)
        # only the layer below the output has an error at the start
        move = before.start["layer_2"] - result.activities["layer_2"]
        parts = np.asarray(move / gradient["layer_2"])
        np.testing.assert_allclose(parts, parts[:, :1].repeat(parts.shape[1], axis=1), rtol=1e-9)
        energy = infer(
            dataclasses.replace(clip, num_steps=30), network, chain.inputs, chain.targets
        ).trace.energy
        assert (parts < 0.06).all()
        assert (np.diff(energy, axis=0) <= 1e-12 * energy[:-1]).all()

    def test_what_a_mask_holds_stays_and_does_not_count(self):
        chain, network = linear_chain()
        mask = chain.random.uniform(size=(7, 6)) < 0.5
        clamps = {"layer_0": pc.Clamp(np.full((7, 6), 0.3), mask)}
        clip = pc.inference.GradientDescent(10.0, num_steps=25, guard="clip", backoff=0.5)
        result = infer(clip, network, chain.inputs, chain.targets, clamps)
        np.testing.assert_array_equal(result.activities["layer_0"][mask], 0.3)
        assert (result.trace.energy[-1] < result.trace.energy[0]).all()

    def test_an_example_stops_where_it_converged(self):
        chain, network = linear_chain()
        clip = pc.inference.GradientDescent(10.0, tolerance=1e-8, guard="clip", backoff=0.5)
        result = infer(clip, network, chain.inputs, chain.targets)
        assert (result.status == pc.inference.Status.CONVERGED).all()
        assert len(set(np.asarray(result.num_steps).tolist())) > 1

    @pytest.mark.parametrize("known", [True, False], ids=["no error", "no target"])
    def test_a_derivative_is_finite_where_a_start_has_no_slope(self, known):
        """The first directions go by the gradient, which is 0 there: its length has no derivative."""
        chain, network = linear_chain()
        targets = np.array(chain.targets)
        targets[0] = np.asarray(chain.network.predict(chain.inputs))[0]
        flat, unravel = jax.flatten_util.ravel_pytree(network.parameters)
        descent = pc.inference.GradientDescent(10.0, guard="clip", num_steps=3)

        @jax.jit
        def read(flat):
            result = infer(
                descent,
                network.replace(parameters=unravel(flat)),
                chain.inputs,
                targets if known else None,
            )
            # not of the first: where its slope turns, its step does, too
            return jnp.sum(jnp.sin(result.activities["layer_1"][1:]))

        direction = np.random.default_rng(0).normal(size=flat.shape)
        step = 1e-5 * direction
        expected = (read(flat + step) - read(flat - step)) / 2e-5
        found = jax.jit(jax.grad(read))(flat) @ direction
        np.testing.assert_allclose(found, expected, rtol=1e-5)

    def test_curvature_is_looked_at_again_on_the_way(self):
        """F = z^2/20 + (2 - exp z)^2/2 is flat at z = 0, F'' = 0.1, and 4 at its minimum."""
        network = pc.PCNetwork(
            {
                "root": pc.PCRoot(1, energy=pc.energies.Gaussian(0.1)),
                "out": pc.PCDense(1, 1, activation=jnp.exp, rngs=nnx.Rngs(0)),
            }
        )
        in_double(network).layer("out").linear.kernel.set_value(jnp.ones((1, 1)))
        for word in (None, "clip"):
            descent = pc.inference.GradientDescent(1.0, num_steps=60, guard=word)
            result = network.infer(None, np.array([[2.0]]), inference=descent)
            assert bool((result.residual < 1e-6).all()) == (word == "clip")


class TestBackoff:
    @pytest.mark.parametrize("momentum", [None, 0.8])
    def test_is_that_of_a_loop(self, momentum):
        """An example whose energy would rise stays, forgets its velocity and halves its steps for good."""
        chain = Chain(widths=(3, 5, 4, 2))
        backoff = pc.inference.GradientDescent(3.0, momentum=momentum, num_steps=12, backoff=0.5)
        network = pc.networks.split(chain.network)
        result = infer(backoff, network, chain.inputs, chain.targets)
        shrunk = []
        for example in range(7):
            x, y = chain.inputs[example : example + 1], chain.targets[example : example + 1]
            z = [*reference.feedforward(chain.reference, x)[:-1], y]
            velocity, rate = [np.zeros_like(a) for a in z], 3.0
            for _ in range(12):
                field = reference.activity_gradients(chain.reference, x, z, chain.free())
                ahead = [(momentum or 0.0) * v + g for v, g in zip(velocity, field, strict=True)]
                moved = [a - rate * v for a, v in zip(z, ahead, strict=True)]
                moved[-1] = y
                before, after = (
                    sum(reference.energies(chain.reference, x, place)).item()
                    for place in (z, moved)
                )
                if after <= before:
                    z, velocity = moved, ahead
                else:
                    velocity, rate = [np.zeros_like(a) for a in z], rate / 2
            shrunk.append(rate)
            for got, expected in zip(result.activities.values(), z, strict=True):
                np.testing.assert_allclose(got[example : example + 1], expected, rtol=1e-9)
        assert len(set(shrunk)) > 1  # by example
        assert max(shrunk) < 3.0

    def test_takes_back_what_is_not_a_number(self):
        chain, network = linear_chain()
        backoff = pc.inference.GradientDescent(1e200, num_steps=3, backoff=0.5)
        result = infer(backoff, network, chain.inputs, chain.targets)
        energy = np.asarray(result.trace.energy)
        assert (energy == energy[0]).all()


class TestWarn:
    def test_infer_says_how_many_and_by_how_much(self):
        chain, _ = linear_chain()
        multiple = 1.25
        rate = multiple * 2 / largest()
        for errors in (False, True):
            rate = multiple * 2 / largest(errors=errors)
            warned = pc.inference.GradientDescent(rate, num_steps=2, guard="warn")
            algorithm = pc.inference.ErrorCoordinates(warned) if errors else warned
            with pytest.warns(UserWarning, match="7 of 7 examples, by a factor of 1.2 at most"):
                chain.network.infer(chain.inputs, chain.targets, inference=algorithm)
            below = dataclasses.replace(warned, step_size=0.7 * rate)
            algorithm = pc.inference.ErrorCoordinates(below) if errors else below
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                chain.network.infer(chain.inputs, chain.targets, inference=algorithm)

    @pytest.mark.parametrize("nesterov", [False, True])
    def test_with_momentum_the_limit_is_momentums(self, nesterov):
        """Where the iteration's matrix leaves the circle: 2 (1 + m), over 1 + 2 m where it looks ahead."""
        chain, network = linear_chain()
        limit = 2 * 1.8 / (2.6 if nesterov else 1.0) / largest()
        for multiple, told in ((0.9, False), (1.25, True)):
            rate = multiple * limit
            warned = pc.inference.GradientDescent(
                rate, momentum=0.8, nesterov=nesterov, num_steps=800, guard="warn"
            )
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                problem = pc.inference.make_problem(
                    network, pc.Evidence(chain.inputs, chain.targets)
                )
                pc.inference.result.warn_of_steps(warned.overstep(problem))
            assert bool(seen) == told
            energy = infer(warned, network, chain.inputs, chain.targets).trace.energy
            assert (not (energy[-1] < energy[0]).all()) == told

    def test_of_any_rule_with_inference_on_an_energy(self):
        """The augmented Lagrangian has no initializer to ask for."""
        chain, _ = linear_chain()
        data = pc.data.from_arrays(chain.inputs[:6], chain.targets[:6], batch_size=3)
        rule = pc.learning.AugmentedLagrangian(
            pc.inference.GradientDescent(2.2 / largest(), num_steps=2, guard="warn")
        )
        trainer = pc.Trainer(
            nnx.clone(chain.network), optax.sgd(1e-6), learning=rule, progress=False
        )
        with pytest.warns(UserWarning, match="at step 2 .* 3 of 3 examples, by a factor of 1.6 at"):
            trainer.fit(data, num_steps=2, log_every=2)

    def test_of_the_equilibrium_that_knows_no_target(self):
        """On unit weights (1 + s^2, -s; -s, 1) with s = 1: 2.618, where a target would leave 2."""
        half = {"kernel_init": nnx.initializers.constant(0.5), "rngs": nnx.Rngs(0)}
        network = in_double(pc.PCNetwork([pc.PCDense(2, 2, **half), pc.PCDense(2, 2, **half)]))
        warned = pc.inference.GradientDescent(0.9, tolerance=1e-3, max_steps=2, guard="warn")
        rule = pc.learning.Implicit(warned)
        trainer = pc.Trainer(network, optax.sgd(1e-6), learning=rule, progress=False)
        data = pc.data.from_arrays(np.ones((3, 2)), np.ones((3, 2)), batch_size=3)
        with pytest.warns(UserWarning, match="at step 1 .* 3 of 3 examples, by a factor of 1.2 at"):
            trainer.fit(data, num_steps=1, log_every=1)

    def test_along_time_it_is_asked_of_the_first_step(self):
        network = pc.models.temporal(2, 4, rngs=nnx.Rngs(0))
        rule = pc.learning.Temporal(pc.inference.GradientDescent(3.0, num_steps=1, guard="warn"))
        trainer = pc.Trainer(network, optax.sgd(1e-6), learning=rule, progress=False)
        data = pc.data.from_sequences(None, np.ones((3, 5, 4), "f"), batch_size=3)
        with pytest.warns(UserWarning, match="at step 1 .* 3 of 3 examples"):
            trainer.fit(data, num_steps=1, log_every=1)

    def test_trainer_says_it_once_with_the_step(self):
        chain, _ = linear_chain()
        data = pc.data.from_arrays(chain.inputs[:6], chain.targets[:6], batch_size=3)
        rule = pc.learning.PredictiveCoding(
            pc.inference.GradientDescent(2.2 / largest(), num_steps=2, guard="warn")
        )
        network = nnx.clone(chain.network)
        trainer = pc.Trainer(network, optax.sgd(1e-6), learning=rule, progress=False)
        words = "at step 2 the step size .* above the largest stable.* 3 of 3 examples, by a factor of 1.1 at"
        with pytest.warns(UserWarning, match=words) as told:
            trainer.fit(data, num_steps=8, log_every=2)
        assert len(told) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guard": "hold"}, 'expected a guard "clip" or "warn", or None, got \'hold\''),
        ({"backoff": 1.0}, "expected a backoff below 1, got 1.0"),
        ({"backoff": 0.0}, "backoff above 0, got 0"),
        ({"safety": 1.5}, "expected a safety below 1, got 1.5"),
        (
            {"optimizer": optax.adam(0.1), "guard": "clip"},
            "a guard and an optax transformation, which has no step size to hold",
        ),
        ({"optimizer": optax.adam(0.1), "backoff": 0.5}, "a backoff and an optax transformation"),
    ],
)
def test_wrong_guards_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        pc.inference.GradientDescent(
            **({"step_size": 0.1} if len(settings) < 2 else {}), **settings
        )


@pytest.mark.parametrize("settings", [{"guard": "clip"}, {"guard": "warn"}, {"backoff": 0.5}])
def test_where_no_energy_falls_there_is_nothing_to_guard(settings):
    chain, network = linear_chain()
    descent = pc.inference.GradientDescent(1.0, num_steps=2, **settings)
    rule = pc.learning.FixedPrediction(descent)
    with pytest.raises(TypeError, match="needs an energy that falls, but FixedPredictionProblem"):
        rule.gradients(network, pc.Evidence(chain.inputs, chain.targets), key=jax.random.key(0))
    layers = [
        pc.PCDense(3, 4, rngs=nnx.Rngs(0)),
        pc.PCDense(4, 2, feedback=pc.layers.Feedback(), rngs=nnx.Rngs(1)),
    ]
    feedback = in_double(pc.PCNetwork(layers))
    with pytest.raises(ValueError, match="feedback weights of their own"):
        feedback.infer(chain.inputs, chain.targets, inference=descent)
