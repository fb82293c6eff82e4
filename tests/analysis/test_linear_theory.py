"""Closed forms of deep linear networks against autodiff, linear solves and formulas written again.

Oracles: the network's own energy with its Hessian by `jax.hessian` and its minimum by one linear solve;
and the formulas of arXiv 2408.11979 and arXiv 2505.13124 in NumPy, in the form that they have there
(products of weights and multipliers), for every combination of skips, parameterization, gamma and
output precision. All in float64, with biases that are not zero and unequal widths.
"""

import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

import pcflax as pc
from pcflax.analysis import DeepLinear
from pcflax.energies import total_energy
from tests.conftest import in_double

pytestmark = pytest.mark.slow

EXACT = {"rtol": 1e-9, "atol": 1e-11}  # float64, after a linear solve
CASES = list(
    itertools.product(
        (False, True),
        (pc.parameterizations.Standard, pc.parameterizations.NTK, pc.parameterizations.MuPC),
        (1.0, 2.5),
        (1.0, 3.0),
    )
)
NAMES = [f"{'skips' if c[0] else 'plain'}-{c[1].__name__}-{c[2]}-{c[3]}" for c in CASES]


def table(kind, widths, skips, gamma):
    """The multipliers a_1..a_L, written out."""
    depth, below = len(widths) - 1, np.array(widths[:-1], float)
    if kind is pc.parameterizations.Standard:
        found = np.ones(depth)
    else:
        found = 1 / np.sqrt(below)
        if skips:
            found[1:-1] /= np.sqrt(depth)
        if kind is pc.parameterizations.MuPC:
            found[-1] = 1 / below[-1]
    found[-1] /= gamma
    return found


def make(skips, kind, gamma=1.0, precision=1.0, *, depth=4, batch=3, bias=True, hidden=1.0, seed=0):
    """A linear network, an input and a target for it, and its weights (out, in) in NumPy."""
    random = np.random.RandomState(seed)
    widths = [3, *([5] * (depth - 1) if skips else [5, 4, 6, 5][: depth - 1]), 2]
    layers, weights, biases = [], [], []
    for index, (below, above) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        last = index == depth - 1
        layer = pc.PCDense(
            below,
            above,
            skip=skips and 0 < index < depth - 1,
            parameterization=kind(gamma=gamma),
            use_bias=bias,
            energy=pc.energies.Gaussian(precision if last else hidden),
            rngs=nnx.Rngs(0),
        )
        # larger than any initializer's, so that the multipliers leave something of them
        weights.append(random.normal(size=(above, below)))
        layer.linear.kernel.set_value(jnp.asarray(weights[-1].T))
        biases.append(random.normal(size=above) if bias else np.zeros(above))
        if bias:
            layer.linear.bias.set_value(jnp.asarray(biases[-1]))
        layers.append(layer)
    return types.SimpleNamespace(
        network=pc.PCNetwork(layers),
        inputs=jnp.asarray(random.normal(size=(batch, 3))),
        targets=jnp.asarray(random.normal(size=(batch, 2))),
        weights=weights,
        biases=biases,
        multipliers=table(kind, widths, skips, gamma),
    )


def minimum(case):
    """z* by layer, F* (batch,) and one example's Hessian, by autodiff and a dense solve."""
    found = solved(pc.networks.split(case.network), case.inputs, case.targets)
    return jax.tree.map(np.asarray, found)


@jax.jit
def solved(split, inputs, targets):
    """The same in one program for all networks of these shapes and settings."""
    problem = pc.inference.make_problem(split, pc.Evidence(inputs, targets))
    flat, unravel = ravel_pytree(problem.start)
    energy = lambda z: jnp.sum(total_energy(problem.energies(unravel(z))))  # noqa: E731
    hessian = jax.hessian(energy)(flat)
    solution = unravel(flat - jnp.linalg.solve(hessian, jax.grad(energy)(flat)))
    places = unravel(jnp.arange(flat.size, dtype=flat.dtype))
    one = jnp.concatenate([places[name][-1] for name in problem.start]).astype(int)
    return solution, total_energy(problem.energies(solution)), hessian[jnp.ix_(one, one)]


@functools.partial(jax.jit, static_argnames="precisions")
def computed(matrices, biases, precisions, inputs, targets):
    """What a closed form says, in one program for all networks of these shapes and precisions."""
    model = DeepLinear(matrices, biases, precisions)
    energy, activities = model.energy(inputs, targets), model.activities(inputs, targets)
    return energy, activities, model.prediction(inputs), model.hessian(), model.condition_number()


def closed_form(case):
    """Energy, activities, prediction, Hessian and condition number of a case."""
    model = DeepLinear.from_network(case.network)
    return computed(model.matrices, model.biases, model.precisions, case.inputs, case.targets)


def by_the_papers(case, skips, precision):
    """F* of each example: S of the papers, from the residual of a forward pass."""
    a, weights = case.multipliers, case.weights
    depth = len(weights)
    forward = np.asarray(case.inputs)
    for index in range(depth):
        above = a[index] * forward @ weights[index].T + case.biases[index]
        forward = above + forward if skips and 0 < index < depth - 1 else above
    covariance = np.eye(2) / precision
    if skips:
        path = a[-1] * weights[-1]
        covariance += path @ path.T
        for index in range(depth - 2, 0, -1):  # layers L-1 down to 2
            path = path @ (np.eye(5) + a[index] * weights[index])
            covariance += path @ path.T
    else:
        for first in range(1, depth):  # layers 2 to L
            product = np.linalg.multi_dot([np.eye(2), *weights[first:][::-1]])
            covariance += np.prod(a[first:]) ** 2 * product @ product.T
    residual = np.asarray(case.targets) - forward
    return np.array([r @ np.linalg.inv(covariance) @ r / 2 for r in residual])


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("skips", "kind", "gamma", "precision"), CASES, ids=NAMES)
class TestEveryCombination:
    def test_energy_is_the_papers(self, skips, kind, gamma, precision):
        case = make(skips, kind, gamma, precision)
        expected = by_the_papers(case, skips, precision)
        np.testing.assert_allclose(closed_form(case)[0], expected, **EXACT)

    def test_equilibrium_and_hessian_are_those_of_the_networks_energy(
        self, skips, kind, gamma, precision
    ):
        """Wrong multipliers, biases or transposes here would accuse inference of errors it has not."""
        case = make(skips, kind, gamma, precision)
        solution, energy, hessian = minimum(case)
        mine, activities, prediction, second_derivatives, condition_number = closed_form(case)
        np.testing.assert_allclose(second_derivatives, hessian, **EXACT)
        np.testing.assert_allclose(condition_number, np.linalg.cond(hessian), rtol=1e-9)
        np.testing.assert_allclose(mine, energy, **EXACT)
        for activity, expected in zip(activities, solution.values(), strict=True):
            np.testing.assert_allclose(activity, expected, **EXACT)
        np.testing.assert_allclose(prediction, case.network.predict(case.inputs), **EXACT)


MUPC = pc.parameterizations.MuPC
STANDARD = pc.parameterizations.Standard


@pytest.mark.usefixtures("double")
class TestDeepLinear:
    @pytest.mark.parametrize("skips", [False, True])
    def test_hidden_precisions_count(self, skips):
        case = make(skips, STANDARD, precision=3.0)
        for layer, precision in zip(case.network.layers, (0.5, 2.0, 1.5, 3.0), strict=True):
            layer.energy = pc.energies.Gaussian(precision)
        solution, energy, hessian = minimum(case)
        assert DeepLinear.from_network(case.network).precisions == (0.5, 2.0, 1.5, 3.0)
        mine, activities, _, second_derivatives, _ = closed_form(case)
        np.testing.assert_allclose(second_derivatives, hessian, **EXACT)
        np.testing.assert_allclose(mine, energy, **EXACT)
        for activity, expected in zip(activities, solution.values(), strict=True):
            np.testing.assert_allclose(activity, expected, **EXACT)

    @pytest.mark.parametrize("depth", [2, 3])
    def test_shallow_networks(self, depth):
        """One hidden layer has no off-diagonal block, and skips start at two."""
        case = make(depth == 3, MUPC, 2.5, 3.0, depth=depth)
        solution, energy, hessian = minimum(case)
        mine, activities, _, second_derivatives, _ = closed_form(case)
        np.testing.assert_allclose(second_derivatives, hessian, **EXACT)
        np.testing.assert_allclose(mine, energy, **EXACT)
        np.testing.assert_allclose(activities[0], solution["layer_0"], **EXACT)

    def test_one_layer_pays_the_squared_error_itself(self):
        case = make(False, STANDARD, precision=3.0, depth=1)
        model = DeepLinear.from_network(case.network)
        error = case.targets - case.network.predict(case.inputs)
        expected = 1.5 * np.sum(np.square(error), axis=1)
        np.testing.assert_allclose(model.energy(case.inputs, case.targets), expected, **EXACT)
        assert model.activities(case.inputs, case.targets) == []
        assert model.hessian().shape == (0, 0)

    @pytest.mark.parametrize("batch", [1, 3])
    def test_is_of_each_example_and_no_mean(self, batch):
        case = make(True, MUPC, batch=batch)
        energy = jax.jit(DeepLinear.from_network(case.network).energy)
        x, y = np.asarray(case.inputs), np.asarray(case.targets)
        together = np.asarray(energy(x, y))
        assert together.shape == (batch,)
        for row in range(batch):
            alone = np.asarray(energy(x[row : row + 1], y[row : row + 1]))
            np.testing.assert_allclose(alone[0], together[row], rtol=1e-12)

    @pytest.mark.parametrize("skips", [False, True])
    def test_its_gradient_is_that_of_predictive_coding_at_equilibrium(self, skips):
        """The envelope theorem: dF*/dtheta is dF/dtheta at z* held fixed, what learning descends."""
        case = make(skips, MUPC, 2.5, 3.0)
        split = pc.networks.split(case.network)

        def mean_energy(parameters):
            model = DeepLinear.from_network(split.replace(parameters=parameters).bind())
            return jnp.mean(model.energy(case.inputs, case.targets))

        expected = jax.jit(jax.grad(mean_energy))(split.parameters)
        hidden = closed_form(case)[1]
        names = case.network.names
        case.network.set_activities(dict(zip(names, [*hidden, case.targets], strict=True)))
        found = nnx.to_pure_dict(case.network.parameter_gradients(case.inputs))["layers"]
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, **EXACT), dict(found), dict(expected)
        )

    def test_wide_mupc_networks_have_the_energy_of_backprop(self):
        """F* tends to the loss as N grows over L; what is missing falls as 1/N (arXiv 2602.07697)."""

        def missing(width):
            rngs = nnx.Rngs(0)
            options = {"parameterization": MUPC(), "rngs": rngs}
            layers = [
                pc.PCDense(3, width, **options),
                pc.PCDense(width, width, skip=True, **options),
            ]
            network = in_double(pc.PCNetwork([*layers, pc.PCDense(width, 2, **options)]))
            x, y = jnp.ones((1, 3)), jnp.array([[1.0, -2.0]])

            @jax.jit
            def ratio(split):
                net = split.bind()
                loss = net.output_energy(net.predict(x), y)
                return DeepLinear.from_network(net).energy(x, y) / loss

            return 1 - ratio(pc.networks.split(network))[0]

        assert 0 < missing(512) < 0.01
        assert missing(32) / missing(512) == pytest.approx(16, rel=0.5)  # 32 draws are few

    def test_computes_in_the_dtype_it_is_given(self):
        matrices = tuple(jnp.ones(shape, jnp.float32) for shape in ((5, 3), (2, 5)))
        biases = tuple(jnp.ones(width, jnp.float32) for width in (5, 2))
        model = DeepLinear(matrices, biases, (1.0, 2.0))
        x, y = jnp.ones((4, 3), jnp.float32), jnp.ones((4, 2), jnp.float32)
        results = [model.prediction(x), model.energy(x, y), *model.activities(x, y)]
        results += [model.hessian(), model.condition_number()]
        assert {result.dtype for result in results} == {jnp.dtype("float32")}

    def test_weights_that_a_mask_leaves_out_are_none(self):
        """Also where all were set since, as by loading those of another network."""
        layer = pc.PCDense(3, 2, mask=np.array([[1, 0], [0, 1], [1, 1]]), rngs=nnx.Rngs(0))
        layer.linear.kernel.set_value(jnp.ones((3, 2), jnp.float32))
        x = jnp.array([[1.0, 10.0, 100.0]], jnp.float32)
        model = DeepLinear.from_network(pc.PCNetwork([layer]))
        np.testing.assert_array_equal(model.prediction(x), [[101.0, 110.0]])


class TestRefusals:
    @pytest.mark.parametrize(
        ("layer", "reason"),
        [
            (
                lambda rngs: pc.PCLayer(nnx.Linear(5, 5, rngs=rngs)),
                r"it is a PCLayer, whose map is not known; use pc\.PCDense",
            ),
            (
                lambda rngs: pc.PCDense(5, 5, activation=jnp.tanh, rngs=rngs),
                "its activation tanh need not be linear; set activation=None",
            ),
            (
                lambda rngs: pc.PCDense(5, 5, energy=pc.energies.Categorical(), rngs=rngs),
                r"its energy Categorical may not be quadratic; use pc\.energies\.Gaussian\(\)",
            ),
            (
                lambda rngs: pc.PCDense(5, 5, energy=pc.energies.Gaussian(0.0), rngs=rngs),
                r"its precision is 0\.0; give Gaussian one float above 0",
            ),
            (
                lambda rngs: pc.PCDense(
                    5, 5, energy=pc.energies.Gaussian(jnp.arange(1.0, 6.0)), rngs=rngs
                ),
                "its precision is an array; give Gaussian one float above 0",
            ),
        ],
    )
    def test_a_layer_without_a_closed_form_is_named(self, layer, reason):
        rngs = nnx.Rngs(0)
        network = pc.PCNetwork(
            {
                "low": pc.PCDense(3, 5, rngs=rngs),
                "odd": layer(rngs),
                "top": pc.PCDense(5, 2, rngs=rngs),
            }
        )
        with pytest.raises(ValueError, match=f"layer 'odd' has no closed form: {reason}"):
            DeepLinear.from_network(network)

    def test_subclasses_with_a_map_or_an_energy_of_their_own(self):
        class Squared(pc.PCDense):
            def predict(self, below):
                return super().predict(below) ** 2

        class Doubled(pc.energies.Gaussian):
            def __call__(self, activity, prediction):
                return 2 * super().__call__(activity, prediction)

        with pytest.raises(ValueError, match="it is a Squared, whose map is not known"):
            DeepLinear.from_network(pc.PCNetwork([Squared(3, 2, rngs=nnx.Rngs(0))]))

        class Turned(pc.PCDense):
            def affine(self, features):
                return -super().affine(features)

        with pytest.raises(ValueError, match="it is a Turned, whose map is not known"):
            DeepLinear.from_network(pc.PCNetwork([Turned(3, 2, rngs=nnx.Rngs(0))]))
        layer = pc.PCDense(3, 2, energy=Doubled(), rngs=nnx.Rngs(0))
        with pytest.raises(ValueError, match="its energy Doubled may not be quadratic"):
            DeepLinear.from_network(pc.PCNetwork([layer]))

    def test_a_root(self):
        network = pc.PCNetwork([pc.PCRoot(3), pc.PCDense(3, 2, rngs=nnx.Rngs(0))])
        with pytest.raises(ValueError, match="layer 'layer_0' has no closed form: it is a PCRoot"):
            DeepLinear.from_network(network)

    def test_feedback_weights(self):
        """Inference along them ends elsewhere than at the least energy."""
        rngs = nnx.Rngs(0)
        top = pc.PCDense(4, 2, feedback=pc.layers.Feedback(), rngs=rngs)
        network = pc.PCNetwork([pc.PCDense(3, 4, rngs=rngs), top])
        with pytest.raises(ValueError, match="'layer_1' go down through feedback weights"):
            DeepLinear.from_network(network)

    def test_what_is_no_network(self):
        with pytest.raises(TypeError, match="expected a PCNetwork, got list"):
            DeepLinear.from_network([])

    @pytest.mark.parametrize(
        ("matrices", "biases", "precisions", "text"),
        [
            ([], [], [], "each of at least one matrix, got 0 matrices, 0 biases and 0 precisions"),
            ([(5, 3)], [5], [1.0, 1.0], "got 1 matrices, 1 biases and 2 precisions"),
            (
                [(5, 3), (5, 2)],
                [5, 5],
                [1.0, 1.0],
                r"a matrix A_2 of shape \(out, 5\) and a bias of shape \(out,\), got \(5, 2\) and "
                r"\(5,\); a kernel of shape \(in, out\) goes in transposed",
            ),
            ([(5, 3)], [3], [1.0], r"got \(5, 3\) and \(3,\)"),
            ([(5, 3)], [5], [0.0], "a precision p_1 above 0, got 0.0; without it the error"),
        ],
    )
    def test_parts_that_do_not_meet(self, matrices, biases, precisions, text):
        with pytest.raises(ValueError, match=f"DeepLinear expected .*{text}"):
            DeepLinear(
                tuple(jnp.ones(shape) for shape in matrices),
                tuple(jnp.ones(width) for width in biases),
                tuple(precisions),
            )

    def test_inputs_and_targets_of_another_width(self):
        model = DeepLinear((jnp.ones((2, 3)),), (jnp.ones(2),), (1.0,))
        for shape in ((4, 2), (3,)):
            with pytest.raises(ValueError, match=r"expected inputs of shape \(batch, 3\), got \("):
                model.prediction(jnp.ones(shape))
        for shape in ((4, 1), (1, 2)):
            with pytest.raises(ValueError, match=r"expected targets of shape \(4, 2\), got \("):
                model.energy(jnp.ones((4, 3)), jnp.ones(shape))

    def test_a_condition_number_without_hidden_layers(self):
        model = DeepLinear((jnp.ones((2, 3)),), (jnp.ones(2),), (1.0,))
        with pytest.raises(
            ValueError, match="expected at least two layers, got one: without a hid"
        ):
            model.condition_number()
