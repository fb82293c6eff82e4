"""What inference says of itself: its status, what it recorded, and its derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from tests.conftest import Chain, infer_traced
from tests.references import numpy_pc as reference

pytestmark = pytest.mark.slow

Status = pc.inference.Status
STOPPING = pc.inference.GradientDescent(0.1, tolerance=1e-3, max_steps=150)


def single(chain):
    return chain.inputs.astype(np.float32), chain.targets.astype(np.float32)


class TestStatus:
    def test_a_fixed_count_ran_its_steps(self):
        chain = Chain()
        result = chain.network.infer(*single(chain), inference=pc.inference.GradientDescent(0.1))
        assert (result.status == Status.RAN).all()

    def test_each_example_converged_or_was_stopped_by_max_steps(self):
        """One of these examples is above its tolerance after 150 steps."""
        chain = Chain()
        result = chain.network.infer(*single(chain), inference=STOPPING)
        done = np.asarray(result.residual) <= 1e-3
        assert done.any()
        assert not done.all()
        np.testing.assert_array_equal(result.status == Status.CONVERGED, done)
        np.testing.assert_array_equal(result.status == Status.MAX_STEPS, ~done)

    def test_throw_raises_what_the_status_says(self):
        chain = Chain()
        with pytest.raises(pc.ConvergenceError, match=r"1 of 7 examples.*above its tolerance"):
            chain.network.infer(*single(chain), inference=STOPPING, throw=True)
        done = pc.inference.GradientDescent(0.1, tolerance=1.0)
        chain.network.infer(*single(chain), inference=done, throw=True)

    def test_a_number_for_a_key_and_what_is_no_record_are_refused(self):
        chain = Chain()
        for wrong, text in (
            ({"key": 0}, r"infer expected key such as jax.random.key\(0\), got 0"),
            (
                {"record": True},
                "infer expected record such as lambda seen: seen.activities, got True",
            ),
        ):
            with pytest.raises(TypeError, match=text):
                chain.network.infer(*single(chain), inference=STOPPING, **wrong)

    @pytest.mark.parametrize("inference", [STOPPING, pc.inference.GradientDescent(0.1)])
    def test_numbers_that_are_not_finite_raise_and_leave_the_stored_activities(self, inference):
        chain = Chain()
        x, y = single(chain)
        chain.network.infer(x, y, inference=inference)
        before = chain.network.activities()
        data = r"inputs are not finite in 1 of the batch's 7 examples, first in example 3; drop or mend"
        for known, value, why in ((y, 1e38, "inference diverged"), (x, np.nan, data)):
            known[3] = value
            with pytest.raises(pc.NonFiniteEnergyError, match=rf"1 of 7 .*example 3: {why}"):
                chain.network.infer(x, y, inference=inference)
        for name, activity in chain.network.activities().items():
            np.testing.assert_array_equal(activity, before[name])
        chain.inputs[3] = np.nan
        status = infer_traced(chain, inference).status
        assert (np.flatnonzero(status == Status.NOT_FINITE) == [3]).all()

    def test_a_step_size_that_is_too_large_is_told(self):
        chain = Chain()
        wild = pc.inference.GradientDescent(1e3, num_steps=60)
        with pytest.raises(pc.NonFiniteEnergyError, match="lower the step size"):
            chain.network.infer(*single(chain), inference=wild)

    def test_every_status_has_a_sentence(self):
        assert len({status.sentence for status in Status}) == len(Status) == 4

    def test_the_trainer_logs_the_share_that_converged(self):
        rngs = nnx.Rngs(0)
        network = pc.PCNetwork([pc.PCDense(64, 16, rngs=rngs), pc.PCDense(16, 10, rngs=rngs)])
        data = pc.data.load("digits", batch_size=64)

        def logged(inference):
            rule = pc.learning.PredictiveCoding(inference)
            trainer = pc.Trainer(network, optax.sgd(0.0), learning=rule, progress=False)
            return trainer.fit(data, num_steps=2, log_every=1)

        loose = pc.inference.GradientDescent(0.2, tolerance=1.0, max_steps=5)
        assert logged(loose)["train/converged"] == [1.0, 1.0]
        strict = pc.inference.GradientDescent(0.2, tolerance=1e-7, max_steps=5)
        assert logged(strict)["train/converged"] == [0.0, 0.0]
        assert "train/converged" not in logged(pc.inference.GradientDescent(0.2)).names()


ROUNDING = {
    "rtol": 1e-9,
    "atol": 1e-10,
}  # float64; an energy near 0 is a difference of larger numbers
DESCENT = pc.inference.GradientDescent(0.05, num_steps=3)
RECORDING = {
    "descent": DESCENT,
    "stop": pc.inference.GradientDescent(0.1, tolerance=0.3, max_steps=9),
    "langevin": pc.inference.Langevin(0.01, burn_in=1, num_samples=2),
    "flow": pc.inference.GradientFlow(tolerance=0.3, max_steps=9),
    "linear": pc.inference.LinearSolve(),
}
RECORDING["sequence"] = pc.inference.Sequence(*RECORDING.values())


class Forgetful(pc.inference.GradientDescent):
    """An algorithm of a user's own, that keeps a trace alone."""

    def solve(self, problem, *, key=None, trace=False):
        return super().solve(problem, key=key, trace=trace)


class TestParts:
    def test_what_is_recorded_goes_from_the_start_to_the_end(self):
        chain = Chain()
        x, y = single(chain)
        descent = pc.inference.GradientDescent(0.1, num_steps=4)
        result = chain.network.infer(
            x, y, inference=descent, trace=True, record=lambda seen: seen.activities["layer_1"]
        )
        assert result.records.shape == (5, 7, 4)
        start = chain.network.start(pc.Evidence(x, y))["layer_1"]
        np.testing.assert_allclose(result.records[0], start, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(result.records[-1], result.activities["layer_1"])
        assert result.trace.residual.shape == (5, 7)
        plain = chain.network.infer(x, y, inference=descent)
        assert plain.records is None
        np.testing.assert_allclose(plain.energy, result.energy, rtol=1e-5, atol=1e-6)

    def test_error_coordinates_record_activities_too(self):
        chain = Chain()
        x, y = single(chain)
        errors = pc.inference.ErrorCoordinates(pc.inference.GradientDescent(0.05, num_steps=3))
        result = chain.network.infer(x, y, inference=errors, record=lambda seen: seen.activities)
        np.testing.assert_array_equal(result.records["layer_0"][-1], result.activities["layer_0"])

    @pytest.mark.usefixtures("double")
    @pytest.mark.parametrize("traced", [True, False])
    @pytest.mark.parametrize("name", list(RECORDING))
    def test_a_record_is_of_the_places_that_the_trace_is_of(self, name, traced):
        """Energies by the NumPy reference at the activities that were recorded, one example's too."""
        chain = Chain(activation="identity")
        x, y = chain.inputs, chain.targets

        def kept(seen):  # the last is of the whole batch
            return seen.activities, seen.energies, seen.residual, seen.residual.max()

        inference, key = RECORDING[name], jax.random.key(0)
        result = chain.network.infer(x, y, inference=inference, trace=traced, record=kept, key=key)
        plain = chain.network.infer(x, y, inference=inference, trace=True, key=key)
        activities, energies, residual, most = result.records
        for layer, ended in plain.activities.items():
            np.testing.assert_allclose(activities[layer][-1], ended, **ROUNDING)
            np.testing.assert_allclose(energies[layer], plain.trace.energies[layer], **ROUNDING)
        np.testing.assert_allclose(residual, plain.trace.residual, **ROUNDING)
        np.testing.assert_array_equal(most, residual.max(axis=1))
        assert (result.trace is not None) == traced
        start = chain.network.start(pc.Evidence(x, y))
        for layer, begun in start.items():
            np.testing.assert_allclose(activities[layer][0], begun, **ROUNDING)
        for step in range(len(residual)):
            z = [np.asarray(activities[layer][step]) for layer in chain.network.names]
            expected = reference.energies(chain.reference, x, z)
            for layer, energy in zip(chain.network.names, expected, strict=True):
                np.testing.assert_allclose(energies[layer][step], energy, **ROUNDING)

    def test_layers_come_in_the_networks_order_wherever_they_are_recorded(self):
        """Sorted by name they would be the other way round; other dictionaries stay as jax leaves them."""
        rngs, names = nnx.Rngs(0), ["zeta", "alpha", "mid"]
        layers = (pc.PCDense(3, 5, rngs=rngs), pc.PCDense(5, 4, rngs=rngs))
        network = pc.PCNetwork(
            dict(zip(names, (*layers, pc.PCDense(4, 2, rngs=rngs)), strict=True))
        )

        def kept(seen):
            both = {name: dict(seen.energies) for name in seen.activities}
            return seen.activities, {"z": seen.energies, "b": [both]}

        sampler = pc.inference.Langevin(0.01, statistic=lambda z: z, keep_samples=True)
        x, y = np.ones((2, 3), np.float32), np.zeros((2, 2), np.float32)
        key = jax.random.key(0)
        found = network.infer(x, y, inference=sampler, key=key, trace=True, record=kept)
        activities, others = found.records
        assert [z.shape[2] for z in activities.values()] == [5, 4, 2]
        assert list(others) == ["b", "z"]
        (both,) = others["b"]
        for one in (activities, others["z"], both, both["alpha"], found.trace.energies):
            assert list(one) == names
        for one in (found.activities, found.energies, found.samples, found.expectation):
            assert list(one) == names

    def test_where_nothing_is_free_a_record_has_the_one_place(self):
        network, x = pc.PCNetwork({"root": pc.PCRoot(3)}), np.ones((2, 3), np.float32)
        for inference in (RECORDING["flow"], RECORDING["linear"]):
            seen = network.infer(x, inference=inference, record=lambda seen: seen.activities)
            np.testing.assert_array_equal(seen.records["root"], x[None])

    def test_what_keeps_no_record_says_so_within_others_too(self):
        chain, alone = Chain(), Forgetful(0.1, num_steps=2)
        within = pc.inference.Sequence(RECORDING["flow"], pc.inference.ErrorCoordinates(alone))
        for inference in (alone, within):
            with pytest.raises(TypeError, match="Forgetful keeps no record of its way; leave rec"):
                chain.network.infer(
                    *single(chain), inference=inference, record=lambda seen: seen.residual
                )

    def test_a_second_order_method_refuses_a_field_without_an_energy(self):
        from pcflax.learning.fixed_prediction import fixed_prediction_problem

        chain = Chain()
        problem = fixed_prediction_problem(
            pc.networks.split(chain.network), pc.Evidence(*single(chain))
        )
        for inference in (pc.inference.NewtonCG(), pc.inference.LinearSolve()):
            with pytest.raises(TypeError, match="needs an energy, but FixedPredictionProblem is"):
                inference.solve(problem)

    def test_inference_goes_on_from_given_activities(self):
        """Ten steps and ten more are twenty."""
        chain = Chain()
        x, y = single(chain)
        ten, twenty = (pc.inference.GradientDescent(0.05, num_steps=n) for n in (10, 20))
        first = chain.network.infer(x, y, inference=ten)
        on = chain.network.infer(x, y, inference=ten, initializer=first.activities)
        whole = chain.network.infer(x, y, inference=twenty)
        np.testing.assert_allclose(
            on.activities["layer_0"], whole.activities["layer_0"], rtol=1e-5, atol=1e-6
        )
        with pytest.raises(
            ValueError, match=r"layer 'layer_0' has activities of shape \(7, 5\), but"
        ):
            chain.network.infer(x, y, inference=ten, initializer={"layer_0": jnp.zeros((7, 4))})

    def test_an_amortised_start_is_read_at_each_call(self):
        chain = Chain()
        x, y = single(chain)

        class Amortised(nnx.Module):
            def __init__(self):
                self.encoder = nnx.Linear(3, 5, rngs=nnx.Rngs(1))

            def __call__(self, network, inputs, *, batch_size, clamps, key):
                start = network.feedforward(inputs, batch_size=batch_size, clamps=clamps)
                return {**start, "layer_0": self.encoder(inputs)}

        start, none = Amortised(), pc.inference.GradientDescent(0.1, num_steps=0)
        for _ in range(2):
            got = chain.network.infer(x, y, inference=none, initializer=start)
            np.testing.assert_allclose(
                got.activities["layer_0"], start.encoder(x), rtol=1e-5, atol=1e-6
            )
            start.encoder.kernel[...] = 2 * start.encoder.kernel[...]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    "inference",
    [
        pc.inference.NewtonCG(num_steps=8),
        pc.inference.GradientDescent(0.1, tolerance=1e-9, max_steps=3000),
        pc.inference.CurvatureDescent(tolerance=1e-9, max_steps=3000),
        pc.inference.GradientFlow(tolerance=1e-9, max_steps=2000),
    ],
    ids=["newton", "stop", "curvature", "flow"],
)
def test_derivatives_are_those_of_the_equilibrium(inference):
    """Forward and reverse mode against central differences, where a loop has no fixed length."""
    rngs = nnx.Rngs(0)
    network = pc.PCNetwork(
        [pc.PCDense(3, 4, activation=jnp.tanh, rngs=rngs), pc.PCDense(4, 2, rngs=rngs)]
    )
    pure = pc.networks.split(network)
    pure = pure.replace(parameters=jax.tree.map(lambda leaf: leaf.astype(float), pure.parameters))
    draw = np.random.RandomState(0)
    evidence = pc.Evidence(jnp.asarray(draw.randn(2, 3)), jnp.asarray(draw.randn(2, 2)))

    @jax.jit
    def loss(shift):
        parameters = jax.tree.map(lambda leaf: leaf, pure.parameters)
        linear = parameters["layer_1"]["linear"]
        linear["kernel"] = linear["kernel"].at[0, 0].add(shift)
        problem = pc.inference.make_problem(pure.replace(parameters=parameters), evidence)
        return jnp.mean(inference.solve(problem).activities["layer_0"] ** 2)

    step = 1e-5
    right = (loss(step) - loss(-step)) / (2 * step)
    np.testing.assert_allclose(jax.jacrev(loss)(0.0), right, rtol=1e-4)
    np.testing.assert_allclose(jax.jacfwd(loss)(0.0), right, rtol=1e-4)


def test_infer_inside_of_transformations():
    """A function of a user's own may call `network.infer`; it stores nothing in the network outside."""
    chain = Chain()
    x, y = single(chain)
    network, descent = chain.network, pc.inference.GradientDescent(0.05, num_steps=5)
    right = network.infer(x, y, inference=descent).energy
    stored = network.activities()

    def energy(x, y):
        return network.infer(x, y, inference=descent).energy

    found = {
        "jit": jax.jit(energy)(x, y),
        "vmap": jax.vmap(lambda x, y: energy(x[None], y[None])[0])(x, y),
        "scan": jax.lax.scan(
            lambda _, pair: (None, energy(pair[0][None], pair[1][None])[0]), None, (x, y)
        )[1],
    }
    for name, energies in found.items():
        np.testing.assert_allclose(energies, right, rtol=1e-5, err_msg=name)
    slope = jax.grad(lambda x: energy(x, y).sum())(x)
    assert slope.shape == x.shape
    for name, activity in network.activities().items():
        np.testing.assert_array_equal(activity, stored[name])


class TestWholeDataSets:
    """Oracle: the same examples solved in one batch."""

    @pytest.fixture
    def whole(self):
        random = np.random.default_rng(0)
        x, y = (random.normal(size=(10, size)).astype(np.float32) for size in (3, 2))
        network = pc.models.mlp(3, 4, 2, rngs=nnx.Rngs(0))
        return network, x, y, pc.data.from_arrays(x, y, batch_size=4, shuffle=False)

    def test_every_example_is_solved_in_stored_order(self, whole):
        network, x, y, data = whole
        descent = pc.inference.GradientDescent(0.1, num_steps=3)
        found = network.infer(data, inference=descent, trace=True)
        expected = network.infer(x, y, inference=descent, trace=True)
        assert found.trace.energy.shape == (4, 10)
        assert isinstance(found.residual, np.ndarray)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        assert list(found.activities) == list(network.names)

    def test_layers_come_in_the_networks_order(self):
        root, layer = pc.PCRoot(2), pc.PCDense(2, 3, rngs=nnx.Rngs(0))
        network = pc.PCNetwork({"z": root, "a": layer})
        data = pc.data.from_arrays(None, np.ones((3, 3), np.float32), batch_size=2)
        found = network.infer(data, inference=pc.inference.GradientDescent(0.1), trace=True)
        assert list(found.activities) == list(found.trace.energies) == ["z", "a"]

    def test_samples_keep_their_axis_and_differ_between_batches(self, whole):
        network, _, _, data = whole
        sampler = pc.inference.Langevin(0.05, num_samples=3, keep_samples=True)
        found = network.infer(data, inference=sampler, key=jax.random.key(0))
        assert found.samples["hidden_1"].shape == (3, 10, 4)
        assert len(np.unique(found.samples["hidden_1"])) == 3 * 10 * 4

    def test_failures_are_counted_over_the_whole_set(self, whole):
        """Rows 5 and 9 alone are far off; both are in later batches."""
        network, x, y, _ = whole
        y = np.where(np.isin(np.arange(10), (5, 9))[:, None], 1e38, y).astype(np.float32)
        data = pc.data.from_arrays(x, y, batch_size=4, shuffle=False)
        with pytest.raises(pc.NonFiniteEnergyError, match="2 of 10 .* first of them example 5:"):
            network.infer(data, inference=pc.inference.GradientDescent(0.1))
        data = pc.data.from_arrays(x, np.asarray(network.predict(x)), batch_size=4, shuffle=False)
        data.targets[6] += 1  # all others are at their equilibrium
        hasty = pc.inference.GradientDescent(0.1, tolerance=1e-5, max_steps=1)
        with pytest.raises(pc.ConvergenceError, match="1 of 10 .* first of them example 6:"):
            network.infer(data, inference=hasty, throw=True)

    def test_what_a_data_set_says_itself_is_refused_twice(self, whole):
        network, _, y, data = whole
        descent = pc.inference.GradientDescent(0.1)
        with pytest.raises(ValueError, match="a data set says what is known itself"):
            network.infer(data, y, inference=descent)
        with pytest.raises(ValueError, match="record is of one batch"):
            network.infer(data, inference=descent, record=lambda seen: seen.residual)
