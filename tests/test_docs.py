"""Every Python block of the documentation runs, and what the page on extending adds keeps the contracts.

The examples of that page go through the very checks that `test_conformance.py` makes of pcflax's own, by
the lines that the page says to add there.
"""

import contextlib
import functools
import inspect
import io
import os
import re
import sys
import tempfile
import types
from unittest import mock

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy import optimize, stats

import pcflax as pc
from pcflax.energies import total_energy
from scripts.tutorials import BLOCK
from tests import test_conformance as conformance
from tests.conftest import ROOT, Chain, digits_trainer

pytestmark = pytest.mark.slow

ROW = re.compile(r"add to\s+`([A-Z_]+)`[^`]*```text\n(.*?)```", flags=re.DOTALL)
PAGES = {
    path.relative_to(ROOT / "docs").as_posix(): path.read_text()
    for path in sorted((ROOT / "docs").rglob("*.md"))
}
WITH_CODE = [name for name, text in PAGES.items() if BLOCK.search(text)]
SKELETONS = {
    " ".join(re.findall(r"^class (\w+)", block[1], flags=re.MULTILINE)): block
    for block in BLOCK.finditer(PAGES["extending.md"])
    if re.search(r"^class ", block[1], flags=re.MULTILINE)
}
KEY = jax.random.key(0)


def execute(page, blocks, name):
    """Blocks of a page in order, as one module; an error names the page and its line."""
    module = types.ModuleType(name)
    sys.modules[name] = module  # where dataclasses look for it
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for block in blocks:
            before = "\n" * PAGES[page].count("\n", 0, block.start(1))
            exec(compile(before + block[1], f"docs/{page}", "exec"), vars(module))
    return module


@functools.cache
def run(page):
    """The module that all blocks of a page make, in its short form, and what they print."""
    short = mock.patch.dict(os.environ, PCFLAX_SHORT="1")
    with short, contextlib.redirect_stdout(io.StringIO()) as printed:
        module = execute(page, BLOCK.finditer(PAGES[page]), f"docs_{page.removesuffix('.md')}")
    return module, printed.getvalue()


@pytest.fixture
def page():
    """What the page on extending defines, asked for before `double`: in 32 bits, as a reader has it."""
    return run("extending.md")[0]


@pytest.mark.promotes("a reader runs the blocks in jax as it comes")
@pytest.mark.parametrize("name", WITH_CODE)
def test_the_blocks_of_a_page_run_one_after_the_other(name):
    run(name)


@pytest.mark.parametrize("name", SKELETONS)
def test_a_skeleton_has_fewer_than_40_lines_and_stands_alone(name):
    assert len(SKELETONS[name][1].splitlines()) < 40
    execute("extending.md", [SKELETONS[name]], "skeleton")


# Through the conformance suite, by the rows that the page says to add to it.


def rows():
    """{table: its new rows}, made of the page's text."""
    names = {**vars(conformance), **vars(run("extending.md")[0])}
    return {table: eval(f"{{{row}}}", names) for table, row in ROW.findall(PAGES["extending.md"])}


def cases(table, suite, argument):
    """Each test of a suite, and what it takes beside the new object."""
    others = {"dtype": [jnp.float32, jnp.bfloat16], "activation": ["tanh"]}
    for name, test in vars(suite).items():
        if not name.startswith("test_"):
            continue
        wanted = list(inspect.signature(test).parameters)[1:]
        if argument not in wanted:
            continue  # of samplers
        (other,) = [other for other in wanted if other != argument] or [None]
        for value in others[other] if other else [None]:
            label = name if other is None else f"{name}, {getattr(value, '__name__', value)}"
            extra = {} if other is None else {other: value}
            yield pytest.param(table, test, suite, argument, extra, id=f"{table}, {label}")


@pytest.mark.parametrize(
    ("table", "test", "suite", "argument", "extra"),
    [
        *cases("ENERGIES", conformance.TestEnergy, "energy"),
        *cases("ALGORITHMS", conformance.TestInference, "inference"),
        *cases("RULES", conformance.TestLearning, "rule"),
    ],
)
def test_examples_pass_the_conformance_suite(table, test, suite, argument, extra, request):
    for mark in getattr(test, "pytestmark", []):
        if mark.name == "usefixtures":
            for fixture in mark.args:
                request.getfixturevalue(fixture)
    for example in rows()[table].values():
        test(suite(), **{argument: example}, **extra)


def test_the_example_initializer_passes_the_conformance_suite():
    for initializer in rows()["INITIALIZERS"].values():
        conformance.test_initializers_size_every_activity_and_leave_clamps(initializer)


def test_the_page_gives_a_row_for_each_table_that_it_speaks_of():
    """Had the page's words changed, the tests above would otherwise ask nothing."""
    assert set(rows()) == {"ENERGIES", "ALGORITHMS", "RULES", "INITIALIZERS"}
    assert all(rows().values())
    for table in re.findall(r"`([A-Z_]{4,})`", PAGES["extending.md"]):
        assert hasattr(conformance, table)
    for suite in re.findall(r"`(Test\w+)`", PAGES["extending.md"]):
        assert hasattr(conformance, suite)


def test_the_files_that_the_page_names_exist():
    named = re.findall(r"`([\w/]+/\w+\.(?:py|bib))`", PAGES["extending.md"])
    assert named
    for file in named:
        assert any((folder / file).is_file() for folder in (ROOT, ROOT / "pcflax")), file


# Each example on its own, against a closed form.


@pytest.mark.parametrize("degrees", [0.5, 3.0])
def test_student_t_is_minus_the_log_density_up_to_its_constant(page, double, degrees):
    random = np.random.default_rng(0)
    activity, prediction = random.normal(size=(4, 3)), 2 * random.normal(size=(4, 3))
    energy = page.StudentT(degrees)
    density = stats.t(df=degrees, loc=prediction)
    expected = (density.logpdf(prediction) - density.logpdf(activity)).sum(axis=1)
    np.testing.assert_allclose(energy(activity, prediction), expected, rtol=1e-12)

    error = activity - prediction
    slope = (degrees + 1) * error / (degrees + error**2)
    found = jax.grad(lambda *pair: energy(*pair).sum(), argnums=(0, 1))(
        jnp.asarray(activity), jnp.asarray(prediction)
    )
    for got, sign in zip(found, (1, -1), strict=True):
        np.testing.assert_allclose(got, sign * slope, rtol=1e-12)


def test_student_t_pulls_hardest_where_its_docstring_says(page):
    errors = jnp.linspace(0.1, 6, 1000)
    pull = jax.grad(lambda e: page.StudentT(4.0)(e[None], jnp.zeros_like(e)[None]).sum())(errors)
    assert abs(errors[jnp.argmax(pull)] - 2.0) < 0.01


def test_barzilai_and_borweins_step_takes_the_steps_that_the_page_says():
    """A fifteenth of those of plain descent, to the same energy."""
    lines = [line.split() for line in run("extending.md")[1].splitlines()]
    plain, fast = (
        next(np.array(line[1:], float) for line in lines if line[:1] == [name])
        for name in ("GradientDescent", "BarzilaiBorwein")
    )
    assert plain[0] < 5000  # it got there
    assert 12 < plain[0] / fast[0] < 20
    np.testing.assert_allclose(fast[1], plain[1], rtol=2e-3)


def test_barzilai_and_borweins_step_goes_the_way_of_numpys(page, double):
    """Residual after residual, each example on its own: s.s/s.y is s.s/s.Hs on a quadratic energy."""
    chain = Chain(activation="identity", batch=3)
    network = pc.networks.split(chain.network)
    problem = pc.inference.make_problem(network, pc.Evidence(chain.inputs, chain.targets))
    algorithm = page.BarzilaiBorwein(0.1, num_steps=15)
    trace = jax.jit(lambda: algorithm.solve(problem, trace=True))().trace
    for row in range(len(chain.inputs)):
        one = problem.take(jnp.array([row]))
        start, unravel = jax.flatten_util.ravel_pytree(one.start)

        def energy(flat, one=one, unravel=unravel):
            return one.energy(unravel(flat))[0]

        hessian, slope = (np.asarray(f(energy)(start)) for f in (jax.hessian, jax.grad))
        z, length = np.asarray(start), 0.1
        for step in range(15):
            gradient = hessian @ (z - start) + slope
            residual = np.sqrt(np.mean(gradient**2))
            np.testing.assert_allclose(trace.residual[step, row], residual, rtol=1e-6)
            move = -length * gradient
            z, length = z + move, (move @ move) / (move @ hessian @ move)


def test_barzilai_and_borweins_step_stops_each_example_on_its_own(page, double):
    """Alone and among others: the state's rows go with their examples, also when few are left."""
    chain = Chain(batch=16)
    network = pc.networks.split(chain.network)
    algorithm = page.BarzilaiBorwein(0.1, tolerance=1e-8, max_steps=2000)
    together = conformance.solve(algorithm, network, chain.inputs, chain.targets)
    assert (together.residual <= 1e-8).all()
    assert len(set(together.num_steps.tolist())) > 3
    for row in (0, 7, 15):
        alone = conformance.solve(
            algorithm, network, chain.inputs[row : row + 1], chain.targets[row : row + 1]
        )
        assert alone.num_steps[0] == together.num_steps[row]


def test_non_negative_solves_the_least_squares_problem(page, double):
    """On a linear chain, min over z >= 0 of |L^T z - c|^2 with H = L L^T, by scipy."""
    chain = Chain(activation="identity")
    problem = pc.inference.make_problem(
        pc.networks.split(chain.network), pc.Evidence(chain.inputs, chain.targets)
    )
    descent = pc.inference.GradientDescent(optax.sgd(0.05), tolerance=1e-8, max_steps=20_000)
    result = conformance.solve(
        page.NonNegative(descent), problem.network, chain.inputs, chain.targets
    )
    at_zero = 0
    for row in range(len(chain.inputs)):
        one = problem.take(jnp.array([row]))
        zeros, unravel = jax.flatten_util.ravel_pytree(jax.tree.map(jnp.zeros_like, one.start))

        def energy(flat, one=one, unravel=unravel):
            return total_energy(one.energies(unravel(flat)))[0]

        lower = np.linalg.cholesky(jax.hessian(energy)(zeros))
        target = -np.linalg.solve(lower, jax.grad(energy)(zeros))
        expected = unravel(jnp.asarray(optimize.nnls(lower.T, target)[0]))
        at_zero += int(sum((leaf == 0).sum() for leaf in jax.tree.leaves(expected)))
        for name in problem.start:
            # a residual of 1e-8 of dF/dc leaves c^2 of about 1e-7 where z is 0
            np.testing.assert_allclose(result.activities[name][row], expected[name][0], atol=1e-6)
    assert at_zero > 7
    squares = page.SquareProblem(**vars(problem)).restarted(result.activities)
    for name, activity in squares.decode(squares.start).items():
        least = 1e-4 if name in problem.start else -np.inf
        np.testing.assert_allclose(activity, np.maximum(result.activities[name], least))
    np.testing.assert_array_equal(result.activities["layer_2"], chain.targets)


def test_selective_is_predictive_coding_of_the_chosen_examples(page, double):
    chain = Chain()
    network = pc.networks.split(chain.network)
    loss = chain.network.output_energy(chain.network.predict(chain.inputs), chain.targets)
    threshold = float(jnp.median(loss))
    chosen = np.asarray(loss > threshold)
    assert chosen.sum() == 3
    inference = conformance.FEW
    selective = page.Selective(inference, threshold=threshold)
    everything = pc.learning.PredictiveCoding(inference)
    gradients = jax.jit(
        lambda rule, x, y: rule.gradients(network, pc.Evidence(x, y), key=KEY), static_argnums=0
    )
    found, info = gradients(selective, chain.inputs, chain.targets)
    expected, _ = gradients(everything, chain.inputs[chosen], chain.targets[chosen])
    for got, one in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, one * 3 / 7, rtol=1e-9, atol=1e-12)  # a mean over all 7
    result = conformance.solve(inference, network, chain.inputs, chain.targets)
    np.testing.assert_allclose(total_energy(info.energies), result.energy, rtol=1e-9)


def test_noisy_feedforward_adds_noise_of_the_asked_for_spread(page):
    """10,000 draws: the standard deviation of the estimate is 0.3 / sqrt(20,000) = 0.002."""
    chain = Chain(widths=(3, 100, 2), batch=100)
    x = chain.inputs.astype(np.float32)
    chain.network.init_activities(x, initializer=page.NoisyFeedforward(0.3), key=KEY)
    noise = chain.network.activities()["layer_0"] - chain.network.feedforward(x)["layer_0"]
    assert abs(noise.std() - 0.3) < 0.01
    assert abs(noise.mean()) < 0.015


def test_the_gated_layer_has_a_gradient_for_every_parameter(page):
    layer = page.PCGated(3, 4, rngs=nnx.Rngs(0))
    x = np.random.RandomState(0).normal(size=(5, 3)).astype(np.float32)
    value, gate = (
        x @ np.asarray(part.kernel[...]) + np.asarray(part.bias[...])
        for part in (layer.value, layer.gate)
    )
    np.testing.assert_allclose(layer.predict(x), value / (1 + np.exp(-gate)), rtol=1e-5, atol=1e-6)
    network = pc.PCNetwork([layer, pc.PCDense(4, 2, rngs=nnx.Rngs(1))])
    network.infer(x, jnp.ones((5, 2)), inference=conformance.FEW)
    gradients = jax.tree.leaves(nnx.as_pure(network.parameter_gradients(x)))
    assert len(gradients) == 6
    assert all((gradient != 0).any() for gradient in gradients)


def test_parameter_norms_are_those_of_the_step_also_when_resumed(page, tmp_path):
    data = pc.data.load("digits")
    whole = digits_trainer(tmp_path / "whole", callbacks=[page.ParameterNorms()])
    whole.fit(data, num_steps=4, log_every=2)
    assert len(whole.history["norm/layer_0"]) == 2
    parameters = jax.tree.leaves(nnx.as_pure(nnx.state(whole.network.layers[1], nnx.Param)))
    expected = np.sqrt(sum((np.asarray(leaf) ** 2).sum() for leaf in parameters))
    np.testing.assert_allclose(whole.history["norm/layer_1"][-1], expected, rtol=1e-5)

    digits_trainer(tmp_path / "part", callbacks=[page.ParameterNorms()]).fit(
        data, num_steps=2, log_every=2
    )
    resumed = digits_trainer(tmp_path / "part", callbacks=[page.ParameterNorms()])
    resumed.restore()
    resumed.fit(data, num_steps=4, log_every=2)
    assert resumed.history["norm/layer_0"] == whole.history["norm/layer_0"]


def test_all_of_them_at_once_learn_digits(page):
    assert page.history["eval/accuracy"][-1] > 0.9
    assert page.history["norm/gated"][-1] > 0
    assert page.result.activities["hidden"].min() >= 0


def test_the_examples_refuse_what_they_cannot_do(page):
    with pytest.raises(ValueError, match=r"StudentT expected positive, finite degrees, got 0"):
        page.StudentT(0)
    x = jnp.ones((2, 3))
    network = pc.PCNetwork([pc.PCDense(3, 2, rngs=nnx.Rngs(0))])
    with pytest.raises(ValueError, match=r"NoisyFeedforward needs a key"):
        network.init_activities(x, initializer=page.NoisyFeedforward())
    with pytest.raises(ValueError, match=r"Selective needs targets"):
        page.Selective(conformance.FEW).gradients(
            pc.networks.split(network), pc.Evidence(x), key=KEY
        )


# The page of recipes.


@pytest.fixture
def howto():
    return run("howto.md")[0]


def test_the_frozen_layer_stands_still_and_the_others_move(howto):
    np.testing.assert_array_equal(howto.before, howto.after)
    start = pc.networks.split(howto.make(0)).parameters
    moved = pc.networks.split(howto.trainer.network).parameters
    for name in ("second", "output"):
        assert (start[name]["linear"]["kernel"] != moved[name]["linear"]["kernel"]).any()


def test_going_on_takes_the_steps_that_one_run_of_both_takes(howto):
    both = pc.inference.GradientDescent(0.1, num_steps=40)
    network = howto.network
    rest = network.infer(howto.x, howto.y, inference=howto.descent)
    rest = network.infer(
        howto.x, howto.y, inference=howto.descent, initializer=rest.activities
    ).energy
    expected = network.infer(howto.x, howto.y, inference=both).energy
    np.testing.assert_allclose(rest, expected, rtol=1e-5)


def test_the_gradient_of_the_least_energy_is_that_at_fixed_activities(howto):
    """The envelope theorem: at the equilibrium dF/dz = 0, so that the way z moves does not count."""
    network = howto.pure.bind()
    settled = network.infer(howto.x, howto.y, inference=howto.settle).activities
    expected, _ = howto.pure.mean_gradients(settled, howto.x)
    for got, one in zip(
        jax.tree.leaves(howto.by_parameter), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(got, one, rtol=1e-3, atol=1e-5)


def test_the_loops_of_one_s_own_learn(howto):
    assert howto.info.energy[-1] < 0.5 * howto.info.energy[0]
    assert howto.infos.energy.shape == (3, 22)
    assert len({float(energy) for energy in howto.infos.energy[:, -1]}) == 3
