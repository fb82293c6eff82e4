"""Layers that no error has reached: rounding alone, of which Adam would make whole steps, moves none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from tests.conftest import in_double

pytestmark = pytest.mark.slow

RATE = 1e-3
X, Y = (np.random.RandomState(0).randn(64, n).astype(np.float32) for n in (64, 10))


@pytest.mark.usefixtures("optimized")  # whose programs round one number in two ways
@pytest.mark.parametrize("rule", [pc.learning.PredictiveCoding, pc.learning.IncrementalPC])
@pytest.mark.parametrize("activation", [jax.nn.gelu, jax.nn.silu, jnp.tanh])
def test_adam_moves_no_layer_that_no_error_has_reached(rule, activation):
    """After two steps of inference the error stands in the output and the two layers below it."""
    rngs = nnx.Rngs(0)
    hidden = [pc.PCDense(64, 64, activation=activation, rngs=rngs) for _ in range(4)]
    network = pc.PCNetwork([*hidden, pc.PCDense(64, 10, rngs=rngs)])
    learning, optimizer = rule(pc.inference.GradientDescent(0.1, num_steps=2)), optax.adam(RATE)
    pure = pc.networks.split(network)

    @jax.jit
    def update(pure, state):
        return learning.update(pure, optimizer, state, pc.Evidence(X, Y), key=jax.random.key(0))

    new, _, info = update(pure, optimizer.init(pure.parameters))
    moved = {}
    for name, before in pure.parameters.items():
        pairs = zip(*map(jax.tree.leaves, (new.parameters[name], before)), strict=True)
        moved[name] = max(np.sqrt(np.mean(np.subtract(a, b) ** 2)) / RATE for a, b in pairs)
    assert max(moved["layer_0"], moved["layer_1"]) < 1e-3
    assert min(moved["layer_3"], moved["layer_4"]) > 0.5
    assert float(info.energies["layer_0"].max()) < 1e-10


RULES = {
    "from a start that is named": pc.learning.PredictiveCoding(
        pc.inference.GradientDescent(0.1, num_steps=2), pc.initializers.Feedforward()
    ),
    "to a tolerance": pc.learning.PredictiveCoding(
        pc.inference.GradientDescent(0.1, tolerance=1e-9, max_steps=2)
    ),
    "by curvature": pc.learning.PredictiveCoding(pc.inference.CurvatureDescent(num_steps=2)),
    "nudged": pc.learning.Nudged(pc.inference.GradientDescent(0.1, num_steps=2)),
    "augmented": pc.learning.AugmentedLagrangian(pc.inference.GradientDescent(0.1, num_steps=2)),
}


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("name", RULES)
def test_adam_moves_no_layer_of_a_stack_that_no_error_has_reached(name):
    """Of six gelu layers below the output two are reached, whichever rule learns."""
    rngs = nnx.Rngs(0)
    hidden = pc.PCStack(lambda: pc.PCDense(64, 64, activation=jax.nn.gelu, rngs=rngs), 6)
    pure = pc.networks.split(pc.PCNetwork({"h": hidden, "o": pc.PCDense(64, 10, rngs=rngs)}))
    learning, optimizer = RULES[name], optax.adam(RATE)

    @jax.jit
    def update(pure, state):
        return learning.update(pure, optimizer, state, pc.Evidence(X, Y), key=jax.random.key(0))

    new, _, _ = update(pure, optimizer.init(pure.parameters))
    moved = jax.tree.map(
        lambda a, b: np.sqrt(np.mean(np.subtract(a, b) ** 2, axis=(-2, -1))) / RATE,
        *(jax.tree.leaves(p.parameters["h"], is_leaf=lambda x: False)[-1] for p in (new, pure)),
    )
    assert moved.shape == (6,)
    np.testing.assert_array_equal(moved[:4], 0)
    assert (moved[4:] > 0.5).all()


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("activation", [jax.nn.gelu, jax.nn.silu])
def test_weights_that_move_between_steps_move_no_layer_of_a_stack_that_no_error_has_reached(
    activation,
):
    """Before step k errors stand in the output and k layers; of a moved weight's layer at once.

    So of three steps two layers are reached in the first batch. In the second Adam's momentum moves these
    with the first step, the activity below them moves with the second, and its layer learns with the third.
    """
    rngs = nnx.Rngs(0)
    hidden = pc.PCStack(lambda: pc.PCDense(64, 64, activation=activation, rngs=rngs), 6)
    pure = pc.networks.split(pc.PCNetwork({"h": hidden, "o": pc.PCDense(64, 10, rngs=rngs)}))
    rule = pc.learning.IncrementalPC(pc.inference.GradientDescent(0.1, num_steps=3))

    @functools.partial(jax.jit, static_argnums=2)
    def update(pure, state, optimizer):
        return rule.update(pure, optimizer, state, pc.Evidence(X, Y), key=jax.random.key(0))[:2]

    def moves(new, old):
        kernels = (jax.tree.leaves(tree.parameters["h"])[-1] for tree in (new, old))
        return np.sqrt(np.mean(np.subtract(*kernels) ** 2, axis=(-2, -1))) / RATE

    adam = optax.adam(RATE)
    first, state = update(pure, adam.init(pure.parameters), adam)
    second, _ = update(first, state, adam)
    for new, old, rest in ((first, pure, 4), (second, first, 3)):
        np.testing.assert_array_equal(moves(new, old)[:rest], 0)
        assert (moves(new, old)[rest:] > 0.1).all()
    # decay moves weights that no error has reached, and so makes errors that are to be learned from
    decayed = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(1.0))
    new, _ = update(pure, decayed.init(pure.parameters), decayed)
    kernel = jax.tree.leaves(pure.parameters["h"])[-1]
    alone = np.sqrt(np.mean(((0.9**3 - 1) * kernel[:4]) ** 2, axis=(-2, -1))) / RATE
    assert (np.abs(moves(new, pure)[:4] / alone - 1) > 1e-3).all()


@functools.cache
def deep_problem(energy=pc.energies.Gaussian):
    rngs = nnx.Rngs(0)
    layers = [pc.PCDense(3, 3, energy=energy(), rngs=rngs) for _ in range(4)]
    pure = pc.networks.split(pc.PCNetwork([*layers, pc.PCDense(3, 2, rngs=rngs)]))
    return pc.inference.make_problem(pure, pc.Evidence(jnp.ones((1, 3)), jnp.ones((1, 2))))


class TestUntouched:
    """Which layers the error has not reached, by hand."""

    def untouched(self, inference, **options):
        return inference.untouched(deep_problem(**options))

    @pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 20])
    def test_an_error_travels_one_layer_a_step(self, steps):
        names = ("layer_0", "layer_1", "layer_2", "layer_3")
        for inference in (
            pc.inference.GradientDescent(0.1, num_steps=steps),
            pc.inference.GradientDescent(optax.sgd(0.1, momentum=0.9), num_steps=steps),
        ):
            assert self.untouched(inference) == names[: max(0, 4 - steps)]

    @pytest.mark.usefixtures("double")
    @pytest.mark.parametrize("steps", [1, 2, 3])
    def test_their_gradient_is_zero_and_the_others_are_as_before(self, steps):
        rngs = nnx.Rngs(0)
        layers = [pc.PCDense(3, 3, activation=jnp.tanh, rngs=rngs) for _ in range(4)]
        network = in_double(pc.PCNetwork([*layers, pc.PCDense(3, 2, rngs=rngs)]))
        pure = pc.networks.split(network)
        evidence = pc.Evidence(np.float64(X[:5, :3]), np.float64(Y[:5, :2]))
        inference = pc.inference.GradientDescent(0.1, num_steps=steps)
        rule, untouched = pc.learning.PredictiveCoding(inference), []

        @jax.jit
        def gradients(pure):
            problem = pc.inference.make_problem(pure, evidence)
            untouched.extend(inference.untouched(problem))
            activities = inference.solve(problem).activities
            plain, _ = pure.mean_gradients(activities, problem.inputs)
            return plain, rule.gradients(pure, evidence, key=jax.random.key(0))[0]

        plain, got = gradients(pure)
        assert untouched
        for name in pure.names:
            for found, expected in zip(
                *map(jax.tree.leaves, (got[name], plain[name])), strict=True
            ):
                np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15)
                assert (name in untouched) == (not np.any(found))

    def test_other_descents_and_stops_take_the_errors_as_far(self):
        for inference in (
            pc.inference.GradientDescent(0.1, tolerance=1.0, max_steps=3),
            pc.inference.CurvatureDescent(num_steps=3),
            pc.inference.CurvatureDescent(momentum="auto", num_steps=3),
            pc.inference.Chebyshev(num_steps=3),
        ):
            assert self.untouched(inference) == ("layer_0",)

    def test_weights_of_energies_and_a_row_of_algorithms_take_them_as_far(self):
        one, two = (pc.inference.GradientDescent(0.1, num_steps=n) for n in (1, 2))
        for inference in (
            pc.inference.Scheduled(two, {"layer_*": 2.0}),
            pc.inference.Sequence(one, one),
        ):
            assert self.untouched(inference) == ("layer_0", "layer_1")
        assert self.untouched(pc.inference.Sequence(one, pc.inference.GaussNewton())) == ()

    @pytest.mark.parametrize("order", ["red-black", "sequential"])
    @pytest.mark.parametrize("sweeps", [1, 2])
    def test_sweeps_take_them_at_most_as_far(self, order, sweeps):
        """As far as a step for each group of a sweep: what moves, by the sweeps themselves, is no other."""
        inference = pc.inference.Sweeps(0.1, order=order, num_steps=sweeps)
        problem = deep_problem()
        activities = inference.solve(problem).activities
        rest = problem.decode(problem.start)
        moved = {name for name in rest if np.abs(activities[name] - rest[name]).max() > 1e-6}
        untouched = inference.untouched(problem)
        assert untouched == (("layer_0", "layer_1") if (order, sweeps) == ("red-black", 1) else ())
        assert not moved & set(untouched)

    def test_nothing_is_known_of_an_algorithm_of_ones_own_that_moves_otherwise(self):
        class Noisy(pc.inference.GradientDescent):
            def step(self, problem, coordinates, state, *, step, key):
                moved, *rest = super().step(problem, coordinates, state, step=step, key=key)
                return jax.tree.map(lambda leaf: leaf + 1.0, moved), *rest

        noisy = Noisy(0.1, num_steps=1)
        assert self.untouched(noisy) == ()
        assert self.untouched(pc.inference.Scheduled(noisy, {"layer_0": 2.0})) == ()
        assert self.untouched(pc.inference.Sequence(noisy)) == ()

    def test_a_layer_clamped_in_part_has_an_error_and_a_part_that_moves(self):
        """The error of a root's held part reaches both of its children in two steps, not in one."""
        rngs = nnx.Rngs(0)
        network = pc.PCGraph(
            {
                "root": pc.PCRoot(4),
                **{name: pc.PCDense(4, 4, rngs=rngs) for name in ("a", "b")},
                **{name: pc.PCDense(4, 2, rngs=rngs) for name in ("out_a", "out_b")},
            },
            parents={"a": "root", "b": "root", "out_a": "a", "out_b": "b"},
            inputs="root",
            output=("out_a", "out_b"),
        )
        pure = pc.networks.split(network)
        seen = pc.Clamp(jnp.ones((2, 4)), jnp.arange(4) < 2)
        evidence = pc.Evidence(seen, {"out_a": jnp.ones((2, 2))})
        two = pc.inference.GradientDescent(0.1, num_steps=2)
        problem = pc.inference.make_problem(pure, evidence)
        assert "b" not in two.untouched(problem)
        rules = [
            pc.learning.PredictiveCoding(two, start)
            for start in (None, pc.initializers.Feedforward())
        ]
        found, expected = (
            jax.jit(lambda pure, rule=rule: rule.gradients(pure, evidence, key=jax.random.key(0)))(
                pure
            )
            for rule in rules
        )
        jax.tree.map(np.testing.assert_array_equal, found[0], expected[0])
        assert np.any(expected[0]["b"]["linear"]["kernel"])

    def test_a_layer_that_sees_its_own_activity_has_an_error_at_the_start(self):
        class Decaying(pc.PCLayer):
            def __init__(self, rngs):
                super().__init__()
                self.linear = nnx.Linear(3, 3, rngs=rngs)

            def predict(self, below):
                return jnp.tanh(self.linear(below)) + 0.5 * self.activity[...]

        rngs = nnx.Rngs(0)
        network = pc.PCNetwork([*(Decaying(rngs) for _ in range(3)), pc.PCDense(3, 2, rngs=rngs)])
        evidence = pc.Evidence(jnp.ones((2, 3)), jnp.ones((2, 2)))
        problem = pc.inference.make_problem(pc.networks.split(network), evidence)
        assert self.untouched_of(problem, 1) == ()

    def untouched_of(self, problem, steps):
        return pc.inference.GradientDescent(0.1, num_steps=steps).untouched(problem)

    def test_nothing_is_known_of_other_energies_and_optimizers(self):
        one = pc.inference.GradientDescent(0.1, num_steps=1)
        assert self.untouched(one, energy=pc.energies.Laplace) == ()
        noisy = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1))
        assert self.untouched(pc.inference.GradientDescent(noisy, num_steps=1)) == ()
        assert not pc.inference.GradientDescent(noisy, num_steps=1).rests()
        assert self.untouched(pc.inference.NewtonCG(num_steps=1)) == ()

    def test_an_optimizer_is_asked_only_where_an_error_is_late(self):
        """It is run outside the program that is traced: five compilations before a run's first step."""
        asked = []

        def update(updates, state, params=None):
            asked.append(params)
            return jax.tree.map(lambda one: -0.1 * one, updates), state

        own = optax.GradientTransformation(optax.init_empty_state, update)
        assert self.untouched(pc.inference.GradientDescent(own, num_steps=4)) == ()
        assert not asked
        assert self.untouched(pc.inference.GradientDescent(own, num_steps=3)) == ("layer_0",)
        assert len(asked) == 1
