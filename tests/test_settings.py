"""Settings are values: their structure decides a compiled program, their numbers are its arguments."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from pcflax.inference.base import _run
from pcflax.settings import Argument, Settings, joined
from tests.conftest import Chain


def structure(value):
    return jax.tree.structure(value)


@pytest.fixture(scope="module")
def asked():
    """A small network, and how many programs its questions have compiled."""
    chain = Chain()

    def ask(inference, **options):
        before = _run._cache_size()
        x, y = chain.inputs.astype(np.float32), chain.targets.astype(np.float32)
        result = chain.network.infer(x, y, inference=inference, **options)
        return result, _run._cache_size() - before

    return ask


class TestPrograms:
    def test_a_plain_class_that_was_changed_is_another_program(self):
        """A rule changed between two fits would go on as the old one, and nobody would see it."""

        class Plain(Settings):
            def __init__(self):
                self.scale, self.names, self.table = 1.0, ["a"], np.ones(2)

        plain = Plain()
        before = structure(plain)
        assert structure(plain) == before == structure(Plain())
        jax.tree.map(lambda leaf: leaf + 1, plain)  # and is made again of its parts
        plain.scale = 2.0
        assert structure(plain) != before
        plain.scale, plain.names = 1.0, ["b"]
        assert structure(plain) != before

    def test_a_start_of_a_plain_class_is_what_it_holds_now(self):
        """No `Settings`, but an initializer of a user's own: a change of it was not seen."""

        class Start:
            def __init__(self, scale, linear):
                self.scale, self.linear = scale, linear

            def __call__(self, x):
                return self.scale * self.linear(x)

        call = jax.jit(lambda held, x: held.value(x))
        start, x = Start(1.0, nnx.Linear(2, 3, rngs=nnx.Rngs(0))), jnp.ones((1, 2))
        for scale in (1.0, 2.0):
            start.scale = scale
            start.linear.bias[...] = start.linear.bias[...] + 1
            np.testing.assert_allclose(call(Argument(start), x), start(x), rtol=1e-6)
        again = Argument(Start(2.0, nnx.Linear(2, 3, rngs=nnx.Rngs(1))))
        np.testing.assert_allclose(call(again, x), again.value(x), rtol=1e-6)
        assert call._cache_size() == 2

    @pytest.mark.parametrize("value", [{1, 2}, "method", "function", "itself"])
    def test_a_plain_class_that_cannot_be_taken_apart_is_compared_as_it_is(self, value):
        class Plain(Settings):
            def __init__(self):
                own = {"method": self.go, "function": lambda: self.go(), "itself": self}
                self.held = own[value] if isinstance(value, str) else value

            def go(self):
                return 1

        plain = Plain()
        assert structure(plain) == structure(plain) != structure(Plain())
        assert jax.tree.map(lambda leaf: leaf, (plain,))[0] is plain
        assert structure(Argument([plain])) == structure(Argument([plain]))

    def test_what_a_plain_class_has_in_slots_stays(self):
        class Plain(Settings):
            __slots__ = ("number",)

            def __init__(self):
                self.number = 3

        assert jax.tree.map(lambda leaf: leaf, Plain()).number == 3

    def test_a_function_that_calls_itself_is_compared_as_it_is(self):
        def make():
            def down(n):
                return n if n < 1 else down(n - 1)

            return down

        one = make()
        assert structure(Argument(one)) == structure(Argument(one)) != structure(Argument(make()))

    def test_a_plain_class_that_compares_itself_is_asked(self):
        class Own(Settings):
            def __init__(self, number, note):
                self.number, self.note = number, note

            def __eq__(self, other):
                return self.number == other.number

            def __hash__(self):
                return self.number

        assert structure(Own(1, "a")) == structure(Own(1, "b")) != structure(Own(2, "a"))

    def test_twenty_new_and_equal_algorithms_compile_once(self, asked):
        made = [asked(pc.inference.GradientDescent(optax.sgd(0.0317)))[1] for _ in range(20)]
        assert made == [1] + 19 * [0]

    def test_twenty_step_sizes_compile_once_and_each_counts(self, asked):
        sizes = np.linspace(0.01, 0.1, 20)
        results = [asked(pc.inference.GradientDescent(float(size), num_steps=17)) for size in sizes]
        assert [made for _, made in results] == [1] + 19 * [0]
        energies = [float(result.energy.sum()) for result, _ in results]
        assert (np.diff(energies) < 0).all()  # a larger step gets further

    def test_starts_and_schedules_made_anew_compile_once(self, asked):
        """`exponential_decay` closes over a variable that it never sets."""
        algorithm = pc.inference.GradientDescent(0.0317, num_steps=3)
        starts = [
            asked(algorithm, initializer=pc.initializers.Normal(stddev), key=jax.random.key(0))
            for stddev in (0.1, 0.2, 0.3)
        ]
        assert [made for _, made in starts] == [1, 0, 0]
        energies = [float(result.energy.sum()) for result, _ in starts]
        assert len(set(energies)) == 3
        made = [
            asked(pc.inference.GradientDescent(optax.sgd(optax.exponential_decay(0.0317, 3, 0.9))))[
                1
            ]
            for _ in range(3)
        ]
        assert made == [1, 0, 0]

    def test_another_count_is_another_program(self, asked):
        assert asked(pc.inference.GradientDescent(0.02, num_steps=13))[1] == 1
        assert asked(pc.inference.GradientDescent(0.02, num_steps=14))[1] == 1

    def test_a_tolerance_is_a_number_too(self, asked):
        first, _ = asked(pc.inference.GradientDescent(0.1, tolerance=1e-2))
        second, made = asked(pc.inference.GradientDescent(0.1, tolerance=1e-3))
        assert made == 0
        assert (second.num_steps >= first.num_steps).all()
        assert (second.residual <= 1e-3).all()

    def test_a_recorded_function_made_anew_is_the_same(self, asked):
        made = [
            asked(pc.inference.GradientDescent(0.1), record=lambda seen: seen.residual.max())[1]
            for _ in range(3)
        ]
        assert made == [1, 0, 0]

    def test_two_trainers_with_equal_optimizers_share_a_program(self):
        from pcflax.training.loop import learn_batches
        from tests.conftest import digits_trainer

        data = pc.data.load("digits", batch_size=32)
        digits_trainer(optimizer=optax.adam(3e-3)).fit(data, num_steps=1)
        before = learn_batches._cache_size()
        digits_trainer(optimizer=optax.adam(3e-3)).fit(data, num_steps=1)
        assert learn_batches._cache_size() == before
        digits_trainer(optimizer=optax.adam(4.37e-3)).fit(data, num_steps=1)
        assert learn_batches._cache_size() == before + 1


class TestPytrees:
    def test_step_sizes_map_over_one_axis(self):
        chain = Chain()
        problem = pc.inference.make_problem(
            pc.networks.split(chain.network),
            pc.Evidence(chain.inputs.astype(np.float32), chain.targets.astype(np.float32)),
        )
        sizes = [0.02, 0.05, 0.08]
        solve = jax.jit(lambda algorithm: algorithm.solve(problem).energy)
        mapped = jax.jit(
            jax.vmap(lambda s: pc.inference.GradientDescent(s, num_steps=5).solve(problem).energy)
        )
        alone = [solve(pc.inference.GradientDescent(size, num_steps=5)) for size in sizes]
        np.testing.assert_allclose(mapped(np.float32(sizes)), alone, rtol=1e-5)

    @pytest.mark.parametrize(
        "make",
        [
            lambda s: pc.inference.GradientDescent({"*": s}, momentum=s, num_steps=3),
            lambda s: pc.inference.GradientDescent(
                s, guard="clip", safety=s, backoff=s, num_steps=3
            ),
            lambda s: pc.inference.GradientDescent(s, tolerance=s, max_steps=3),
            lambda s: pc.inference.Langevin(s, temperature=s, num_samples=3),
            lambda s: pc.inference.Sweeps(s, num_steps=3),
        ],
        ids=["momentum", "guarded", "tolerance", "langevin", "sweeps"],
    )
    def test_numbers_of_32_bits_map_over_activities_of_16(self, make):
        network = pc.PCNetwork([pc.PCDense(3, 4, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))])
        evidence = pc.Evidence(jnp.ones((1, 3), jnp.bfloat16))
        start = {"layer_0": jnp.ones((1, 4), jnp.bfloat16)}
        problem = pc.inference.make_problem(pc.networks.split(network), evidence, initializer=start)

        def solve(size):
            return make(size).solve(problem, key=jax.random.key(0)).activities["layer_0"]

        found = jax.jit(jax.vmap(solve))(np.float32([0.125, 0.25]))
        assert found.dtype == jnp.bfloat16
        # rounded elsewhere: the rate has 32 bits in one and 16 in the other, some steps of 2^-8
        np.testing.assert_allclose(
            np.float32(found[1]), np.float32(jax.jit(lambda: solve(0.25))()), atol=0.03
        )

    def test_leaves_are_the_numbers_and_all_else_is_structure(self):
        rule = pc.learning.Nudged(pc.inference.Langevin(0.1, num_samples=3), beta=0.5)
        assert sorted(jax.tree.leaves(rule)) == [0.1, 0.5, 1.0]
        doubled = jax.tree.map(lambda leaf: 2 * leaf, rule)
        assert (doubled.beta, doubled.inference.step_size) == (1.0, 0.2)
        assert doubled.inference.num_samples == 3

    def test_optax_transformations_are_compared_by_what_they_close_over(self):
        one, same, other = (Argument(optax.adam(rate)) for rate in (1e-3, 1e-3, 1e-2))
        assert structure(one) == structure(same) != structure(other)

    def test_functions_of_one_text_in_other_globals_are_not_the_same(self):
        first, second = ({"scale": 1.0}, {"scale": 2.0})
        for names in (first, second):
            exec("def f(x):\n    return scale * x", names)
        assert structure(Argument(first["f"])) != structure(Argument(second["f"]))

    def test_a_function_is_what_it_reads_now(self):
        """Cells and global names may change, as where a cell of a notebook is run again."""
        names = {"scale": 1.0}
        exec("def f(x):\n    return scale * x", names)
        before = structure(Argument(names["f"]))
        assert structure(Argument(names["f"])) == before
        names["scale"] = 2.0
        assert structure(Argument(names["f"])) != before

        factor = 1

        def g(x):
            return factor * x

        before = structure(Argument(g))
        factor = 3
        assert structure(Argument(g)) != before

    @pytest.mark.parametrize("kind", ["keyword default", "bound method", "default"])
    def test_a_module_that_a_function_reads_is_a_leaf(self, kind):
        linear = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
        if kind == "keyword default":

            def start(x, *, by=None):
                return linear(x) if by is None else by

        elif kind == "default":

            def start(x, by=linear):
                return by(x)

        else:
            start = linear.__call__
        argument, x = Argument(start), jnp.ones((1, 2))
        for _ in range(2):
            found = jax.jit(lambda held, x: held.value(x))(argument, x)
            np.testing.assert_allclose(found, linear(x), rtol=1e-5, atol=1e-6)
            linear.bias[...] = linear.bias[...] + 1

    def test_attributes_that_are_no_fields_are_carried(self):
        @dataclasses.dataclass(frozen=True)
        class Halving(Settings):
            rate: float

            def __post_init__(self):
                object.__setattr__(self, "_half", self.rate / 2)

        assert jax.tree.map(lambda leaf: 2 * leaf, Halving(1.0))._half == 1.0

    def test_whole_numbers_booleans_and_floats_are_told_apart(self):
        kinds = [structure(Argument(value)) for value in (1, 1.0, True)]
        assert len(set(kinds)) == 3

    def test_arrays_and_modules_anywhere_are_leaves_at_their_present_value(self):
        linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))

        @dataclasses.dataclass(frozen=True)
        class Start:
            module: nnx.Module
            shift: np.ndarray

        start = Argument(Start(linear, np.ones(3)))
        before = jax.tree.leaves(start)
        linear.bias[...] = linear.bias[...] + 1
        after, again = jax.tree.leaves(start), jax.tree.map(lambda leaf: leaf, start).value
        assert len(before) == len(after) == 3
        np.testing.assert_array_equal(again.module.bias[...], np.ones(3))
        assert not np.array_equal(before[0], after[0]) or not np.array_equal(before[1], after[1])

    def test_a_static_field_stays_part_of_the_structure(self):
        @dataclasses.dataclass(frozen=True)
        class Rule(Settings):
            rate: float = dataclasses.field(default=0.5, metadata={"static": True})

        assert jax.tree.leaves(Rule()) == []

    def test_what_can_neither_be_compared_nor_traced_is_refused(self):
        class Odd:
            __hash__ = None

        with pytest.raises(TypeError, match="neither be compared nor traced; make it a number"):
            jax.tree.leaves(Argument(Odd()))


class TestGradientDescent:
    def test_all_ways_to_write_a_step_size_are_one_algorithm(self):
        chain = Chain()
        x, y = chain.inputs.astype(np.float32), chain.targets.astype(np.float32)
        ways = [
            pc.inference.GradientDescent(0.05),
            pc.inference.GradientDescent(np.float32(0.05)),
            pc.inference.GradientDescent(step_size=0.05),
            pc.inference.GradientDescent({"*": 0.05}),
            pc.inference.GradientDescent(optax.sgd(0.05)),
        ]
        energies = [chain.network.infer(x, y, inference=way).energy for way in ways]
        for energy in energies[1:]:
            np.testing.assert_allclose(energy, energies[0], rtol=1e-5, atol=1e-6)

    def test_momentum_is_that_of_optax(self):
        chain = Chain()
        x, y = chain.inputs.astype(np.float32), chain.targets.astype(np.float32)
        ours = pc.inference.GradientDescent(step_size=0.05, momentum=0.9, nesterov=True)
        theirs = pc.inference.GradientDescent(optax.sgd(0.05, 0.9, nesterov=True))
        np.testing.assert_allclose(
            chain.network.infer(x, y, inference=ours).energy,
            chain.network.infer(x, y, inference=theirs).energy,
            rtol=1e-6,
        )

    @pytest.mark.usefixtures("double")
    def test_rates_by_layer_move_each_layer_at_its_own(self):
        """One step from a start of zeros: z_l - step_l dF/dz_l, in NumPy of the problem's gradient."""
        chain = Chain()
        rates = {"layer_0": 0.3, "layer_*": 0.1}
        descent = pc.inference.GradientDescent(rates, num_steps=1)
        start = pc.initializers.Zeros()
        problem = pc.inference.make_problem(
            pc.networks.split(chain.network),
            pc.Evidence(chain.inputs, chain.targets),
            initializer=start,
        )
        gradient = problem.gradient(problem.start)
        got = chain.network.infer(
            chain.inputs, chain.targets, inference=descent, initializer=start
        ).activities
        for name, rate in {"layer_0": 0.3, "layer_1": 0.1}.items():
            np.testing.assert_allclose(got[name], -rate * np.asarray(gradient[name]), rtol=1e-12)

    @pytest.mark.parametrize(
        ("rates", "words"),
        [
            ({"layer_0": 0.1}, "no step size for layer 'layer_1'; name it, or give one for '\\*'"),
            (
                {"layr_0": 0.1, "*": 0.1},
                "for 'layr_0', which fits none of the layers layer_0, .*; did you mean 'layer_0'",
            ),
        ],
    )
    def test_patterns_that_fit_nothing_and_layers_without_a_rate_are_refused(self, rates, words):
        chain = Chain()
        with pytest.raises(ValueError, match=words):
            chain.network.infer(
                chain.inputs, chain.targets, inference=pc.inference.GradientDescent(rates)
            )

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"step_size": -0.1}, "a step_size above 0, got -0.1"),
            ({"step_size": 0.1, "momentum": 1.0}, "a momentum below 1, got 1.0"),
            (
                {"optimizer": optax.sgd(0.1), "momentum": 0.9},
                "got an optimizer and momentum; give one",
            ),
            ({"step_size": {"a": 0.0}}, "a step_size of 'a' above 0"),
        ],
    )
    def test_refusals(self, options, words):
        with pytest.raises(ValueError, match=words):
            pc.inference.GradientDescent(**options)


@pytest.mark.parametrize(
    "make",
    [
        lambda five, tenth: pc.inference.GradientDescent(tenth, num_steps=five),
        lambda five, tenth: pc.inference.GradientDescent(0.1, tolerance=tenth, max_steps=five),
        lambda five, tenth: pc.inference.CurvatureDescent(num_steps=five),
        lambda five, tenth: pc.inference.NewtonCG(num_steps=five),
        lambda five, tenth: pc.inference.GaussNewton(tolerance=tenth, max_steps=five),
        lambda five, tenth: pc.inference.GradientFlow(tolerance=tenth, max_steps=five),
        lambda five, tenth: pc.inference.Langevin(tenth, burn_in=five, num_samples=five),
        lambda five, tenth: pc.learning.Nudged(pc.inference.NewtonCG(), beta=tenth),
    ],
    ids=["descent", "stop", "curvature", "newton", "gauss-newton", "flow", "langevin", "nudged"],
)
def test_numbers_of_a_sweep_are_numbers(make):
    """Those of np.arange and np.linspace make the settings that Python's make, for the same program."""
    found, expected = make(np.arange(5, 6)[0], np.float64(0.1)), make(5, 0.1)
    assert jax.tree.leaves(found) == jax.tree.leaves(expected)
    assert structure(found) == structure(expected)
    assert hash(structure(make(np.int32(5), np.float32(0.1)))) == hash(structure(expected))


class TestJoined:
    """One value in the place of several. Oracle: what each of them does alone."""

    @pytest.mark.promotes("optax's Adam, called alone, mixes dtypes")
    def test_floats_that_functions_read_are_joined(self):
        rates = (0.1, 0.3)
        optimizer, numbers = joined(
            [optax.chain(optax.clip_by_global_norm(2.0), optax.adam(rate)) for rate in rates]
        )
        (number,) = numbers  # and nothing that is equal
        np.testing.assert_allclose(np.abs(number), rates)
        leaves, structure = jax.tree.flatten(Argument(optimizer))
        gradient = jnp.array([1.0, -2.0, 5.0])
        for place, rate in enumerate(rates):
            one = jax.tree.unflatten(structure, [leaf[place] for leaf in leaves]).value
            alone = optax.chain(optax.clip_by_global_norm(2.0), optax.adam(rate))
            found, expected = (own.update(gradient, own.init(gradient))[0] for own in (one, alone))
            np.testing.assert_allclose(found, expected, rtol=1e-6)

    def test_numbers_stay_weakly_typed_and_arrays_keep_their_type(self):
        half = jnp.ones(2, jnp.float16)
        rules, numbers = joined(
            [
                (pc.inference.GradientDescent(size), np.float32([size, 2]), half)
                for size in (0.1, 0.2)
            ]
        )
        assert [number.weak_type for number in numbers] == [True, False]
        assert (half * numbers[0][0]).dtype == jnp.float16
        assert rules[0].step_size is numbers[0]
        assert rules[2] is half
        np.testing.assert_array_equal(numbers[1], np.float32([[0.1, 2], [0.2, 2]]))

    def test_what_is_equal_is_as_it_was(self):
        rule = pc.learning.Nudged(pc.inference.Langevin(0.1, num_samples=3), beta=0.5)
        found, numbers = joined([rule, dataclasses.replace(rule)])
        assert numbers == []
        assert found == rule
        assert structure(found) == structure(rule)

    @pytest.mark.parametrize(
        "values",
        [
            [pc.inference.GradientDescent(0.1, num_steps=steps) for steps in (3, 4)],
            [optax.sgd(0.1), optax.adam(0.1)],
            [np.zeros(2), np.zeros(3)],
        ],
        ids=["count", "function", "shape"],
    )
    def test_other_differences_are_refused(self, values):
        with pytest.raises(ValueError, match="differ in more than numbers"):
            joined(values)
