"""Every algorithm, energy, rule and initializer through its contract.

A new one joins by one line in a table here; the tests then ask of it what users rely on.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from pcflax.networks.base import total_energy
from tests.conftest import Chain

ALGORITHMS = {
    "gradient": pc.inference.GradientDescent(optax.sgd(0.1), num_steps=3000),
    "gradient, momentum": pc.inference.GradientDescent(
        optax.sgd(0.05, momentum=0.8, nesterov=True), num_steps=1500
    ),
}
RULES = {
    "predictive coding": pc.learning.PredictiveCoding(
        pc.inference.GradientDescent(optax.sgd(0.1), num_steps=5)
    ),
    "backprop": pc.learning.Backprop(),
}
ENERGIES = {
    "gaussian": pc.energies.Gaussian(1.5),
    "categorical": pc.energies.Categorical(),
    "bernoulli": pc.energies.Bernoulli(),
}
INITIALIZERS = {
    "feedforward": pc.initializers.Feedforward(),
    "zeros": pc.initializers.Zeros(),
    "normal": pc.initializers.Normal(0.5),
}
KEY = jax.random.key(0)


def solve(inference, network, inputs, targets):
    problem = pc.inference.make_problem(pc.networks.split(network), inputs, targets)
    return inference.solve(problem, key=KEY)


@pytest.mark.parametrize("inference", ALGORITHMS.values(), ids=ALGORITHMS.keys())
class TestInference:
    @pytest.mark.usefixtures("double")
    def test_solves_a_linear_chain(self, inference):
        """The equilibrium of a linear chain is z* = H^-1 b, here from the Hessian by autodiff."""
        chain = Chain(activation="identity")
        problem = pc.inference.make_problem(
            pc.networks.split(chain.network), chain.inputs, chain.targets
        )
        flat, unravel = jax.flatten_util.ravel_pytree(problem.start)
        energy = lambda z: jnp.sum(total_energy(problem.energies(unravel(z))))  # noqa: E731
        exact = flat - jnp.linalg.solve(jax.hessian(energy)(flat), jax.grad(energy)(flat))
        result = inference.solve(problem, key=KEY)
        for name, expected in unravel(exact).items():
            np.testing.assert_allclose(result.activities[name], expected, rtol=1e-7, atol=1e-8)

    @pytest.mark.usefixtures("double")
    def test_an_example_does_not_depend_on_its_batch(self, inference):
        chain = Chain()
        together = solve(inference, chain.network, chain.inputs, chain.targets)
        alone = solve(inference, chain.network, chain.inputs[2:3], chain.targets[2:3])
        for name, activity in together.activities.items():
            np.testing.assert_allclose(
                alone.activities[name][0], activity[2], rtol=1e-9, atol=1e-10
            )

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    def test_keeps_dtypes_shapes_and_names(self, inference, dtype):
        network = pc.PCNetwork(
            [
                pc.PCLayer(
                    nnx.Linear(below, above, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))
                )
                for below, above in ((3, 5), (5, 2))
            ]
        )
        result = solve(inference, network, jnp.ones((4, 3), dtype), jnp.ones((4, 2), dtype))
        assert [a.shape for a in result.activities.values()] == [(4, 5), (4, 2)]
        assert all(a.dtype == dtype for a in result.activities.values())
        assert tuple(result.activities) == network.names
        assert result.num_steps.shape == result.residual.shape == result.energy.shape == (4,)

    def test_clamped_activities_do_not_move(self, inference):
        chain = Chain()
        x, y = chain.inputs.astype(np.float32), chain.targets.astype(np.float32)
        result = solve(inference, chain.network, x, y)
        np.testing.assert_array_equal(result.activities["layer_2"], y)

    @pytest.mark.usefixtures("double")
    def test_runs_under_vmap(self, inference):
        """Over a stack of problems, as over seeds or hyperparameters."""
        chain = Chain()
        inputs = jnp.stack([chain.inputs, chain.inputs + 1.0])
        targets = jnp.stack([chain.targets, chain.targets])
        run = lambda x, y: solve(inference, chain.network, x, y).energy  # noqa: E731
        together = jax.vmap(run)(inputs, targets)
        for number in range(2):
            np.testing.assert_allclose(
                together[number], run(inputs[number], targets[number]), rtol=1e-9
            )

    def test_is_hashable_and_finds_its_compiled_program(self, inference):
        assert hash(inference) == hash(inference)
        traces = []

        def counted(values):
            traces.append(1)
            return values

        network = pc.PCNetwork([pc.PCDense(3, 2, activation=counted, rngs=nnx.Rngs(0))])
        network.infer(jnp.ones((2, 3)), jnp.ones((2, 2)), inference=inference, key=KEY)
        first = len(traces)
        network.infer(jnp.zeros((2, 3)), jnp.ones((2, 2)), inference=inference, key=KEY)
        assert len(traces) == first


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
class TestLearning:
    def test_update_keeps_structure_shapes_and_dtypes(self, rule):
        chain = Chain()
        x, y = chain.inputs.astype(np.float32), chain.targets.astype(np.float32)
        network, optimizer = pc.networks.split(chain.network), optax.adam(0.1)
        state = optimizer.init(network.parameters)
        new, new_state, info = jax.jit(lambda n, s: rule.update(n, optimizer, s, x, y, key=KEY))(
            network, state
        )
        for before, after in ((network, new), (state, new_state)):
            assert jax.tree.structure(before) == jax.tree.structure(after)
            for left, right in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
                assert left.shape == right.shape
                assert left.dtype == right.dtype
        assert tuple(info.energies) == tuple(info.activities) == chain.network.names
        assert info.prediction.shape == y.shape

    def test_learns_through_the_trainer(self, rule):
        chain = Chain(widths=(3, 8, 2), batch=32)
        data = pc.data.from_arrays(
            chain.inputs.astype(np.float32), np.tanh(chain.inputs[:, :2]), batch_size=8
        )
        trainer = pc.Trainer(chain.network, optax.adam(0.01), learning=rule, progress=False)
        before = trainer.evaluate(data)["energy"]
        trainer.fit(data, epochs=30)
        assert trainer.evaluate(data)["energy"] < 0.5 * before

    def test_is_hashable(self, rule):
        assert hash(rule) == hash(rule)


@pytest.mark.parametrize("energy", ENERGIES.values(), ids=ENERGIES.keys())
class TestEnergy:
    def test_is_one_number_an_example_whatever_the_batch(self, energy):
        random = np.random.RandomState(0)
        prediction = jnp.asarray(random.normal(size=(5, 4)))
        activity = jax.nn.softmax(jnp.asarray(random.normal(size=(5, 4))))
        together = energy(activity, prediction)
        assert together.shape == (5,)
        for row in range(5):
            alone = energy(activity[row : row + 1], prediction[row : row + 1])
            np.testing.assert_allclose(alone[0], together[row], rtol=1e-5)

    def test_sums_over_every_feature_axis(self, energy):
        random = np.random.RandomState(0)
        prediction = jnp.asarray(random.normal(size=(2, 3, 4)))
        activity = jax.nn.softmax(jnp.asarray(random.normal(size=(2, 3, 4))))
        rows = energy(activity.reshape(6, 4), prediction.reshape(6, 4)).reshape(2, 3)
        np.testing.assert_allclose(energy(activity, prediction), rows.sum(axis=1), rtol=1e-5)

    def test_is_least_over_predictions_where_the_mean_is_the_activity(self, energy):
        """Each is a negative log-likelihood: dE/dmu vanishes where the prediction means z."""
        prediction = jnp.asarray(np.random.RandomState(0).normal(size=(3, 4)))
        activity = energy.mean(prediction)
        gradient = jax.grad(lambda mu: energy(activity, mu).sum())(prediction)
        np.testing.assert_allclose(gradient, 0, atol=1e-6)

    def test_refuses_shapes_that_would_broadcast(self, energy):
        with pytest.raises(ValueError, match=r"one shape, got \(3, 4\) and \(3, 1\)"):
            energy(jnp.ones((3, 4)), jnp.ones((3, 1)))


@pytest.mark.parametrize("initializer", INITIALIZERS.values(), ids=INITIALIZERS.keys())
def test_initializers_size_every_activity_and_leave_clamps(initializer):
    chain = Chain(root=True)
    x, y = chain.inputs.astype(np.float32), chain.targets.astype(np.float32)
    for inputs in (x, None):
        chain.network.init_activities(inputs, targets=y, initializer=initializer, key=KEY)
        activities = chain.network.activities()
        assert [a.shape for a in activities.values()] == [(7, 3), (7, 5), (7, 4), (7, 2)]
        np.testing.assert_array_equal(activities["layer_3"], y)
        if inputs is not None:
            np.testing.assert_array_equal(activities["layer_0"], x)
