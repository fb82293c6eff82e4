"""Every algorithm, energy, rule and initializer through its contract.

A new one joins by one line in a table here; the tests then ask of it what users rely on.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import lineax
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from pcflax.energies import total_energy
from tests.conftest import Chain
from tests.references import numpy_pc as reference

DESCENT = pc.inference.GradientDescent(optax.sgd(0.1), num_steps=2000)
ADAPTIVE = pc.inference.GradientDescent(optax.sgd(0.1), tolerance=1e-10, max_steps=4000)
NEWTON = pc.inference.NewtonCG(tolerance=1e-10, max_steps=60)
FEW = pc.inference.GradientDescent(optax.sgd(0.1), num_steps=5)

# Each at settings that bring the residual of these small chains to about 1e-10 or below.
ALGORITHMS = {
    "gradient": pc.inference.GradientDescent(optax.sgd(0.1), num_steps=3000),
    "gradient, momentum": pc.inference.GradientDescent(
        optax.sgd(0.05, momentum=0.8, nesterov=True), num_steps=1500
    ),
    "gradient, adaptive": ADAPTIVE,
    "gradient, auto": pc.inference.GradientDescent(
        step_size="auto", tolerance=1e-10, max_steps=4000
    ),
    # steps far above the stable ones, held and taken back
    "gradient, clip": pc.inference.GradientDescent(
        20.0, tolerance=1e-10, max_steps=4000, guard="clip"
    ),
    "gradient, backoff": pc.inference.GradientDescent(
        3.0, tolerance=1e-10, max_steps=4000, backoff=0.5
    ),
    "gradient, momentum auto": pc.inference.GradientDescent(
        0.1, momentum="auto", tolerance=1e-10, max_steps=2000
    ),
    "gradient, all auto": pc.inference.CurvatureDescent(momentum="auto", num_steps=1500),
    "chebyshev": pc.inference.Chebyshev(tolerance=1e-10, max_steps=2000),
    "sweeps, red-black": pc.inference.Sweeps(tolerance=1e-10, max_steps=3000),
    "sweeps, sequential": pc.inference.Sweeps(0.2, order="sequential", num_steps=2000),
    "newton": NEWTON,
    # linear where errors are large: it wants more steps than Newton's method
    "gauss-newton": pc.inference.GaussNewton(tolerance=1e-8, max_steps=300),
    "output-newton": pc.inference.OutputNewton(tolerance=1e-8, max_steps=300),
    # at rest to 1e-10 only where the controller keeps the path to 1e-11 and 1e-12
    "flow": pc.inference.GradientFlow(tolerance=1e-10, max_steps=4000),
    "errors, gradient": pc.inference.ErrorCoordinates(DESCENT),
    "errors, adaptive": pc.inference.ErrorCoordinates(ADAPTIVE),
    "errors, newton": pc.inference.ErrorCoordinates(NEWTON),
    "langevin at temperature 0": pc.inference.Langevin(0.1, temperature=0.0, burn_in=2999),
    "sequence": pc.inference.Sequence(pc.inference.ErrorCoordinates(FEW), ADAPTIVE),
    # with weights of 1 at the end, whatever they were on the way
    "scheduled": pc.inference.Scheduled(DESCENT, {"*": optax.linear_schedule(0.2, 1.0, 100)}),
}
# Those that only know networks that are linear in their free activities.
LINEAR_ALGORITHMS = {
    "linear, conjugate gradients": pc.inference.LinearSolve(lineax.CG(rtol=1e-10, atol=1e-12)),
    "linear, cholesky": pc.inference.LinearSolve(lineax.Cholesky()),
}
SAMPLERS = {
    "langevin": pc.inference.Langevin(0.1, burn_in=3, num_samples=2, keep_samples=True),
}
ALL = ALGORITHMS | LINEAR_ALGORITHMS | SAMPLERS
RULES = {
    "predictive coding": pc.learning.PredictiveCoding(FEW),
    "predictive coding, weights": pc.learning.PredictiveCoding(
        FEW, weights={"*": lambda step: 1 + 1 / (1 + step)}
    ),
    "predictive coding, errors": pc.learning.PredictiveCoding(pc.inference.ErrorCoordinates(FEW)),
    "predictive coding, samples": pc.learning.PredictiveCoding(
        pc.inference.Langevin(
            0.1, temperature=0.01, burn_in=4, num_samples=3, thinning=2, keep_samples=True
        )
    ),
    "augmented lagrangian": pc.learning.AugmentedLagrangian(FEW),
    "backprop": pc.learning.Backprop(),
    "incremental": pc.learning.IncrementalPC(FEW),
    "fixed prediction": pc.learning.FixedPrediction(
        pc.inference.GradientDescent(optax.sgd(1.0), num_steps=2)
    ),
    "meta-pcn": pc.learning.MetaPCN(pc.inference.GradientDescent(optax.sgd(1.0), num_steps=2)),
    "meta-pcn, whole gradient": pc.learning.MetaPCN(FEW, semi_gradient=False),
    "implicit": pc.learning.Implicit(pc.inference.NewtonCG(tolerance=1e-6, max_steps=20)),
    "zil": pc.learning.ZIL(),
    "nudged, positive": pc.learning.Nudged(FEW, beta=0.5),
    "nudged, negative": pc.learning.Nudged(FEW, beta=-0.5),
    "nudged, centred": pc.learning.Nudged(FEW, beta=0.2, centred=True),
    "nudged, weighted": pc.learning.Nudged(FEW, beta=0.2, weighted=True),
    "nudged, schedule": pc.learning.Nudged(FEW, beta=optax.linear_schedule(1.0, 0.1, 20)),
}
ENERGIES = {
    "gaussian": pc.energies.Gaussian(1.5),
    "learned gaussian": pc.energies.LearnedGaussian(precision=1.5),
    "running gaussian": pc.energies.RunningGaussian(variance=1.5),
    "full gaussian": pc.energies.FullGaussian(np.diag([1.0, 2.0, 3.0, 4.0]) + 0.5),
    "laplace": pc.energies.Laplace(0.7),
    "huber": pc.energies.Huber(0.7),
    "categorical": pc.energies.Categorical(),
    "kl": pc.energies.KL(),
    "bernoulli": pc.energies.Bernoulli(),
    "activity decay": pc.energies.ActivityDecay(pc.energies.Gaussian(1.5), 0.3),
}
INITIALIZERS = {
    "feedforward": pc.initializers.Feedforward(),
    "zeros": pc.initializers.Zeros(),
    "normal": pc.initializers.Normal(0.5),
    "persistent": pc.initializers.Persistent(),
    "class average": pc.initializers.ClassAverage(),
    "direct feedback": pc.initializers.DirectFeedback(),
}
# Networks whose layers are no chain of one predictor a node, and the start that they train by.
FAMILIES = {
    "bidirectional": (lambda: pc.models.bidirectional(3, 5, 2, rngs=nnx.Rngs(0)), None),
    "hybrid": (lambda: pc.models.hybrid(3, 5, 2, rngs=nnx.Rngs(0)), pc.initializers.Amortized()),
    "feedback": (lambda: feedback_network(False), None),
    "learned feedback": (lambda: feedback_network(True), None),
}
# Those that a rule, or an algorithm, has to refuse.
REFUSED = {
    "hybrid": (
        "nudged",
        "backprop",
        "fixed prediction",
        "meta-pcn",
        "zil",
        "implicit",
        "augmented",
    ),
    "bidirectional": ("backprop", "fixed prediction", "meta-pcn", "zil", "augmented"),
    "feedback": (
        "auto",
        "clip",
        "backoff",
        "chebyshev",
        "red-black",
        "newton",
        "linear",
        "implicit",
    ),
}
ONE_PREDICTOR = ("output-newton",)  # algorithms that want it
KEY = jax.random.key(0)


@functools.partial(jax.jit, static_argnames="inference")
def solve(inference, network, inputs, targets, clamps=None):
    """One compiled program for each algorithm, kind of network and shape."""
    problem = pc.inference.make_problem(network, pc.Evidence(inputs, targets, clamps=clamps))
    return inference.solve(problem, key=KEY)


# Every algorithm and an activation of the hidden layers that it can do.
EVERY = [
    pytest.param(algorithm, activation, id=name)
    for table, activation in ((ALGORITHMS, "tanh"), (LINEAR_ALGORITHMS, "identity"))
    for name, algorithm in table.items()
]
EXACT = LINEAR_ALGORITHMS | {"gradient": ALGORITHMS["gradient"]}
DTYPES = [
    pytest.param(inference, dtype, id=f"{dtype.__name__}, {name}")
    for dtype in (jnp.float32, jnp.bfloat16)
    for name, inference in {
        **ALGORITHMS,
        **SAMPLERS,
        # without a factorisation, which jax has not in half precision (see `test_linear.py`)
        "linear": pc.inference.LinearSolve(),
    }.items()
]


@functools.cache
def small_problem(activation):
    """A network, inputs, targets and a clamp of some hidden elements, others in each example."""
    chain = Chain(widths=(3, 5, 2), activation=activation)
    mask = chain.random.uniform(size=(7, 5)) < 0.3
    clamp = pc.Clamp(jnp.asarray(chain.random.normal(size=(7, 5))), jnp.asarray(mask))
    arrays = (jnp.asarray(chain.inputs), jnp.asarray(chain.targets), {"layer_0": clamp})
    return pc.networks.split(chain.network), *arrays


@functools.cache
def deep_equilibrium():
    """A tanh chain of five layers, and its minimum by the reference, float64 NumPy."""
    chain = Chain(widths=(3, 5, 4, 6, 5, 2))
    start = [*reference.feedforward(chain.reference, chain.inputs)[:-1], chain.targets]
    minimum, _ = reference.infer(
        chain.reference, chain.inputs, start, chain.free(), 0.1, 700, momentum=0.9
    )
    field = reference.activity_gradients(chain.reference, chain.inputs, minimum, chain.free())
    assert max(np.abs(gradient).max() for gradient in field) < 1e-10
    return chain, minimum


class TestInference:
    @pytest.mark.usefixtures("double")
    @pytest.mark.parametrize("inference", EXACT.values(), ids=EXACT.keys())
    def test_solves_a_linear_chain(self, inference):
        """The equilibrium of a linear chain is z* = H^-1 b, here from the Hessian by autodiff."""
        chain, exact = linear_equilibrium()
        result = solve(inference, pc.networks.split(chain.network), chain.inputs, chain.targets)
        for name, expected in exact.items():
            np.testing.assert_allclose(result.activities[name], expected, rtol=1e-7, atol=1e-8)

    @pytest.mark.whole
    @pytest.mark.usefixtures("double")
    @pytest.mark.parametrize("inference", ALGORITHMS.values(), ids=ALGORITHMS.keys())
    def test_all_reach_the_same_equilibrium_of_a_tanh_chain(self, inference):
        """Coordinates, step rules and curvature change the way there, and never the minimum."""
        chain, minimum = deep_equilibrium()
        result = solve(inference, pc.networks.split(chain.network), chain.inputs, chain.targets)
        for got, expected in zip(result.activities.values(), minimum, strict=True):
            # a residual of 1e-8 over the least curvature, about 1e-2, is 1e-6 off
            scale = np.abs(expected).max()
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * scale)
        energies = sum(reference.energies(chain.reference, chain.inputs, minimum))
        np.testing.assert_allclose(result.energy, energies, rtol=1e-9)
        assert (result.residual < 1e-7).all()

    @pytest.mark.usefixtures("double")
    @pytest.mark.parametrize(("inference", "activation"), EVERY)
    def test_an_example_does_not_depend_on_its_batch(self, inference, activation):
        """Each example as a batch of one, under vmap, is what it is among the others."""
        network, *data = small_problem(activation)
        together = solve(inference, network, *data)
        alone = solve_each(inference, network, *data)
        for name, activity in together.activities.items():
            # the rounding of sums in another order, over as many steps as were taken
            np.testing.assert_allclose(
                alone.activities[name][:, 0], activity, rtol=1e-9, atol=1e-10
            )
        np.testing.assert_allclose(alone.energy[:, 0], together.energy, rtol=1e-9)
        np.testing.assert_array_equal(alone.num_steps[:, 0], together.num_steps)

    @pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
    def test_a_sampled_example_does_not_depend_on_those_after_it(self, sampler):
        """Samplers draw by position in the batch, so the first three of seven are a batch of three."""
        chain = Chain(widths=(3, 4, 2))
        network = pc.networks.split(chain.network)
        x, y = chain.inputs.astype(np.float32), chain.targets.astype(np.float32)
        seven, three = solve(sampler, network, x, y), solve(sampler, network, x[:3], y[:3])
        for name in ("layer_0", "layer_1"):
            np.testing.assert_allclose(
                three.samples[name], seven.samples[name][:, :3], rtol=1e-5, atol=1e-5
            )
        assert np.ptp(seven.samples["layer_0"], axis=(0, 1)).min() > 0.1  # and they are noisy

    @pytest.mark.parametrize(("inference", "dtype"), DTYPES)
    def test_keeps_dtypes_shapes_and_names(self, inference, dtype):
        """And gets somewhere: a NaN, or a start that never moves, would keep its dtype as well."""
        network, start = half_network(dtype)
        x, y = jnp.ones((4, 3), dtype), jnp.asarray([[1, -2]] * 4, dtype)
        result = solve(inference, pc.networks.split(network), x, y)
        assert [a.shape for a in result.activities.values()] == [(4, 5), (4, 2)]
        assert all(a.dtype == dtype for a in result.activities.values())
        assert tuple(result.activities) == network.names
        assert result.num_steps.shape == result.residual.shape == result.energy.shape == (4,)
        assert result.energy.dtype == dtype
        assert np.isfinite(np.asarray(result.residual, np.float32)).all()
        if inference not in SAMPLERS.values():
            assert (np.asarray(result.energy, np.float32) < 0.9 * start).all()

    @pytest.mark.usefixtures("double")
    @pytest.mark.parametrize(("inference", "activation"), EVERY)
    def test_what_is_clamped_does_not_move_and_the_rest_settles(self, inference, activation):
        network, inputs, targets, clamps = small_problem(activation)
        result = solve(inference, network, inputs, targets, clamps)
        np.testing.assert_array_equal(result.activities["layer_1"], targets)
        clamp = clamps["layer_0"]
        held = np.asarray(result.activities["layer_0"])[clamp.mask]
        np.testing.assert_array_equal(held, clamp.value[clamp.mask])
        assert (result.residual < 1e-7).all()

    @pytest.mark.parametrize("inference", ALL.values(), ids=ALL.keys())
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


@functools.cache
def linear_equilibrium():
    chain = Chain(activation="identity")
    problem = pc.inference.make_problem(
        pc.networks.split(chain.network), pc.Evidence(chain.inputs, chain.targets)
    )
    flat, unravel = jax.flatten_util.ravel_pytree(problem.start)

    @jax.jit
    def minimum(flat):
        energy = lambda z: jnp.sum(total_energy(problem.energies(unravel(z))))  # noqa: E731
        return flat - jnp.linalg.solve(jax.hessian(energy)(flat), jax.grad(energy)(flat))

    return chain, jax.tree.map(np.asarray, unravel(minimum(flat)))


@functools.partial(jax.jit, static_argnames="inference")
def solve_each(inference, network, *data):
    """Every example as a problem of its own, over a stack of problems as over seeds."""
    alone = lambda data: solve(inference, network, *jax.tree.map(lambda leaf: leaf[None], data))  # noqa: E731
    return jax.vmap(alone)(data)


@functools.cache
def half_network(dtype):
    """Two layers in that dtype, and the energy of its inference's start."""
    network = pc.PCNetwork(
        [
            pc.PCLayer(nnx.Linear(below, above, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0)))
            for below, above in ((3, 5), (5, 2))
        ]
    )
    network.init_activities(jnp.ones((4, 3), dtype), targets=jnp.asarray([[1, -2]] * 4, dtype))
    return network, np.asarray(network.energy(jnp.ones((4, 3), dtype)), np.float32)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
class TestLearning:
    def test_update_keeps_structure_shapes_and_dtypes(self, rule):
        """By abstract evaluation, which sees all of these and compiles nothing."""
        chain = Chain()
        chain.network.layers[1].energy = pc.energies.Gaussian()  # as ZIL wants it
        x, y = chain.inputs.astype(np.float32), chain.targets.astype(np.float32)
        network, optimizer = pc.networks.split(chain.network), optax.adam(0.1)
        state = optimizer.init(network.parameters)
        new, new_state, info = jax.eval_shape(
            lambda n, s: rule.update(n, optimizer, s, pc.Evidence(x, y), key=KEY), network, state
        )
        for before, after in ((network, new), (state, new_state)):
            assert jax.tree.structure(before) == jax.tree.structure(after)
            for left, right in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
                assert left.shape == right.shape
                assert left.dtype == right.dtype
        assert tuple(info.energies) == tuple(info.activities) == chain.network.names
        assert info.prediction.shape == y.shape

    @pytest.mark.whole
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


def feedback_network(learns):
    rngs, feedback = nnx.Rngs(0), pc.layers.Feedback(learns=learns)
    return pc.PCNetwork(
        [pc.PCDense(*size, feedback=feedback, rngs=rngs) for size in ((3, 5), (5, 4), (4, 2))]
    )


def refused(family, name):
    """Whether that is to be refused: by the first words of a rule, or any of an algorithm."""
    return any(word in name for word in REFUSED.get(family.removeprefix("learned "), ()))


@pytest.mark.whole
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", RULES)
def test_a_rule_trains_every_family_or_says_that_it_cannot(name, family):
    """By abstract evaluation: structures, shapes and dtypes stay."""
    make, start = FAMILIES[family]
    rule, network = RULES[name], make()
    if start is not None and hasattr(rule, "initializer"):
        rule = dataclasses.replace(rule, initializer=start)
    if refused(family, name):
        with pytest.raises(ValueError, match=r"; (take|give) "):
            rule.check(network)
        return
    rule.check(network)
    pure, optimizer = pc.networks.split(network), optax.adam(0.1)
    state = optimizer.init(pure.parameters)
    evidence = pc.Evidence(jnp.ones((4, 3)), jnp.ones((4, 2)))
    new, new_state, info = jax.eval_shape(
        lambda n, s: rule.update(n, optimizer, s, evidence, key=KEY), pure, state
    )
    for before, after in ((pure, new), (state, new_state)):
        assert jax.tree.structure(before) == jax.tree.structure(after)
        for left, right in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
            assert (left.shape, left.dtype) == (right.shape, right.dtype)
    assert set(info.activities) == set(network.names)
    assert set(info.energies) == set(network.wiring.targets)


@pytest.mark.whole
@pytest.mark.parametrize("family", ["bidirectional", "hybrid", "feedback"])
@pytest.mark.parametrize("name", ALL)
def test_an_algorithm_infers_in_every_family_or_says_that_it_cannot(name, family):
    make, start = FAMILIES[family]
    pure = pc.networks.split(make())
    evidence = pc.Evidence(None if start else jnp.ones((4, 3)), jnp.ones((4, 2)))
    problem = pc.inference.make_problem(pure, evidence, initializer=start)
    if "feedback" in family and refused(family, name):
        with pytest.raises(ValueError, match="feedback weights of their own.*; take "):
            jax.eval_shape(lambda: ALL[name].solve(problem, key=KEY))
        return
    if name in ONE_PREDICTOR and "feedback" not in family:
        with pytest.raises(ValueError, match="predicts another layer's node.*; take "):
            jax.eval_shape(lambda: ALL[name].solve(problem, key=KEY))
        return
    if name in LINEAR_ALGORITHMS:
        return  # these have an activation; linear ones are in `test_predictors.py`
    result = jax.eval_shape(lambda: ALL[name].solve(problem, key=KEY))
    bound = pure.bind()
    assert {n: a.shape for n, a in result.activities.items()} == {
        n: a.shape for n, a in problem.decode(problem.start).items()
    }
    assert set(result.energies) == set(bound.wiring.targets)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", [name for name in RULES if "samples" not in name])
def test_with_zero_output_error_nothing_is_learned(name):
    """Where the prediction is the target, every error is zero: at the equilibrium and before it."""
    chain, optimizer = Chain(), optax.sgd(1.0)
    chain.network.layers[1].energy = pc.energies.Gaussian()  # as ZIL wants it
    evidence = pc.Evidence(inputs=chain.inputs, targets=chain.network.predict(chain.inputs))
    network = pc.networks.split(chain.network)
    update = jax.jit(
        lambda network, state: RULES[name].update(network, optimizer, state, evidence, key=KEY)
    )
    new, _, _ = update(network, optimizer.init(network.parameters))
    before, after = jax.tree.leaves(network.parameters), jax.tree.leaves(new.parameters)
    for left, right in zip(before, after, strict=True):
        np.testing.assert_allclose(right, left, rtol=0, atol=1e-13)


RULES_ALONG_TIME = {
    "temporal, by sequence": pc.learning.Temporal(FEW),
    "temporal, by step": pc.learning.Temporal(FEW, every="step"),
    "temporal, incremental": pc.learning.Temporal(pc.learning.IncrementalPC(FEW), every="step"),
}


@pytest.mark.parametrize("rule", RULES_ALONG_TIME.values(), ids=RULES_ALONG_TIME.keys())
class TestLearningAlongTime:
    """What is asked of every rule, of batches of sequences."""

    INPUTS = np.random.RandomState(0).normal(size=(8, 6, 1)).astype(np.float32)

    def network(self):
        return pc.models.temporal(2, 3, controls=1, activation=jnp.tanh, rngs=nnx.Rngs(0))

    def test_update_keeps_structure_shapes_and_dtypes(self, rule):
        network, optimizer = pc.networks.split(self.network()), optax.adam(0.1)
        state, evidence = (
            optimizer.init(network.parameters),
            pc.Evidence(self.INPUTS, jnp.ones((8, 6, 3))),
        )
        new, new_state, info = jax.eval_shape(
            lambda n, s: rule.update(n, optimizer, s, evidence, key=KEY), network, state
        )
        for before, after in ((network, new), (state, new_state)):
            assert jax.tree.structure(before) == jax.tree.structure(after)
            for left, right in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
                assert (left.shape, left.dtype) == (right.shape, right.dtype)
        assert set(info.energies) == set(info.activities) == set(network.names)
        assert [energy.shape for energy in info.energies.values()] == [(8,), (8,)]
        assert info.prediction.shape == (8, 6, 3)

    @pytest.mark.whole
    def test_learns_through_the_trainer(self, rule):
        data = pc.data.from_sequences(
            self.INPUTS, np.tanh(np.cumsum(self.INPUTS, axis=1) * [1, -1, 0.5]), batch_size=4
        )
        trainer = pc.Trainer(self.network(), optax.adam(0.01), learning=rule, progress=False)
        before = trainer.evaluate(data)["energy"]
        trainer.fit(data, epochs=60)
        assert trainer.evaluate(data)["energy"] < 0.5 * before

    def test_is_hashable(self, rule):
        assert hash(rule) == hash(rule)


def draw(*shape):
    """An activity of every energy, positive with a sum of 1, and a prediction."""
    random = np.random.RandomState(0)
    prediction, raised = random.normal(size=shape), np.exp(random.normal(size=shape))
    return raised / raised.sum(axis=-1, keepdims=True), prediction


@pytest.mark.whole
@pytest.mark.parametrize("energy", ENERGIES.values(), ids=ENERGIES.keys())
class TestEnergy:
    def test_is_one_number_an_example_whatever_the_batch(self, energy):
        (activity, prediction), energy = draw(5, 4), jax.jit(energy.__call__)
        together = np.asarray(energy(activity, prediction))
        assert together.shape == (5,)
        for row in range(5):
            alone = energy(activity[row : row + 1], prediction[row : row + 1])
            np.testing.assert_allclose(np.asarray(alone)[0], together[row], rtol=1e-5)

    def test_sums_over_every_feature_axis(self, energy):
        (activity, prediction), energy = draw(2, 3, 4), jax.jit(energy.__call__)
        rows = energy(activity.reshape(6, 4), prediction.reshape(6, 4))
        sums = np.asarray(rows).reshape(2, 3).sum(axis=1)
        np.testing.assert_allclose(energy(activity, prediction), sums, rtol=1e-5)

    def test_is_least_over_predictions_where_the_mean_is_the_activity(self, energy):
        """Each is a negative log-likelihood: dE/dmu vanishes where the prediction means z."""

        @jax.jit
        def gradient_at_mean(prediction):
            activity = energy.mean(prediction)
            return jax.grad(lambda mu: energy(activity, mu).sum())(prediction)

        prediction = np.random.RandomState(0).normal(size=(3, 4))
        np.testing.assert_allclose(gradient_at_mean(prediction), 0, atol=1e-6)

    def test_refuses_shapes_that_would_broadcast(self, energy):
        with pytest.raises(ValueError, match=r"one shape, got \(3, 4\) and \(3, 1\)"):
            energy(jnp.ones((3, 4)), jnp.ones((3, 1)))


class TestEnergyOfWiderPredictions:
    """What is asked of every energy, where a prediction has more numbers than the activity."""

    ENERGY = pc.energies.Heteroscedastic()

    def draw(self, *shape):
        random = np.random.RandomState(0)
        prediction = random.normal(size=(*shape[:-1], 2 * shape[-1]))
        return random.normal(size=shape), prediction

    def test_is_one_number_an_example_whatever_the_batch(self):
        (activity, prediction), energy = self.draw(5, 4), jax.jit(self.ENERGY.__call__)
        alone = [
            np.asarray(energy(activity[i : i + 1], prediction[i : i + 1]))[0] for i in range(5)
        ]
        np.testing.assert_allclose(energy(activity, prediction), alone, rtol=1e-5)

    def test_sums_over_every_feature_axis(self):
        (activity, prediction), energy = self.draw(2, 3, 4), jax.jit(self.ENERGY.__call__)
        rows = energy(activity.reshape(6, 4), prediction.reshape(6, 8))
        sums = np.asarray(rows).reshape(2, 3).sum(axis=1)
        np.testing.assert_allclose(energy(activity, prediction), sums, rtol=1e-5)

    def test_is_least_over_activities_at_the_mean(self):
        @jax.jit
        def gradient_at_mean(prediction):
            mean = self.ENERGY.mean(prediction)
            return jax.grad(lambda z: self.ENERGY(z, prediction).sum())(mean)

        np.testing.assert_array_equal(gradient_at_mean(self.draw(3, 4)[1]), 0)

    def test_refuses_shapes_that_would_broadcast(self):
        with pytest.raises(ValueError, match=r"twice as wide .* got \(3, 2\) for \(3, 4\)"):
            self.ENERGY(jnp.ones((3, 4)), jnp.ones((3, 2)))


@pytest.mark.whole
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
