"""The augmented Lagrangian: its published loop by hand, backpropagation where it ends, and the way there.

Oracles: NumPy in float64 with unscaled multipliers, as published; closed forms of linear chains; other rules.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

import pcflax as pc
from tests.conftest import Chain, compiled_gradients, in_double
from tests.references import numpy_pc as reference

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
CLOSE = {"rtol": 1e-10, "atol": 1e-12}  # float64 rounding over the steps
Rule = pc.learning.AugmentedLagrangian


def gradients_of(chain, rule, clamps=None):
    evidence = pc.Evidence(chain.inputs, chain.targets, clamps=clamps)
    gradients, info = compiled_gradients(rule, pc.networks.split(chain.network), evidence, key=KEY)
    return [
        (layer["linear"]["kernel"], layer["linear"]["bias"]) for layer in gradients.values()
    ], info


def by_hand(chain, *, step_size, rho, alpha, rounds, inner_steps, credit, mask=None, values=0.0):
    """The published loop: z and lambda of the hidden layers, and the gradients of F_rho, batch means.

    At precision p, rho p and alpha p. Where the mask holds the last hidden layer at values, lambda is 0 and
    rho is 1, as at the output.
    """
    layers, targets = chain.reference, chain.targets
    activities = [*reference.feedforward(layers, chain.inputs)[:-1], targets]
    free = [np.ones_like(z, bool) for z in activities[:-1]]
    if mask is not None:
        activities[-2], free[-1] = np.where(mask, values, activities[-2]), ~mask
    multipliers = [np.zeros_like(z) for z in activities[:-1]]

    def terms():
        """Pullback, residual and dF_rho/dr of every layer; the output has neither rho nor lambda."""
        found, below = [], chain.inputs
        for index, (layer, z) in enumerate(zip(layers, activities, strict=True)):
            mu, pull_back = reference.predict(layer, below, len(z))
            residual, slope = z - mu, layer.precision * (z - mu)
            if index < len(multipliers):
                slope = np.where(free[index], rho, 1) * slope + multipliers[index]
            found.append((pull_back, residual, slope))
            below = z
        return found

    before = multipliers
    for _ in range(rounds):
        for _ in range(inner_steps):
            now = terms()
            for index, mask in enumerate(free):
                field = now[index][2] - now[index + 1][0](now[index + 1][2])[0]
                activities[index] = activities[index] - step_size * np.where(mask, field, 0)
        before, now = list(multipliers), terms()
        for index, mask in enumerate(free):
            step = alpha * layers[index].precision * np.where(mask, now[index][1], 0)
            multipliers[index] = multipliers[index] + step
    if credit == "before":
        multipliers = before
    return activities, [pull_back(-slope / len(targets))[1] for pull_back, _, slope in terms()]


def check(found, expected, **tolerances):
    for one, other in zip(found, expected, strict=True):
        for got, wanted in zip(one, other, strict=True):
            np.testing.assert_allclose(got, wanted, **tolerances)


@pytest.mark.usefixtures("double")
class TestLoop:
    @pytest.mark.parametrize("credit", ["before", "after"])
    @pytest.mark.parametrize(
        ("rho", "alpha", "rounds", "inner_steps"), [(1.0, 1.0, 6, 1), (0.7, 0.3, 3, 2)]
    )
    def test_it_is_the_published_one(self, credit, rho, alpha, rounds, inner_steps):
        """Precisions are not 1, so that a step of the multipliers that forgets them shows."""
        chain = Chain(precision=2.5)
        options = {"rho": rho, "alpha": alpha, "inner_steps": inner_steps, "credit": credit}
        inference = pc.inference.GradientDescent(0.2, num_steps=rounds * inner_steps)
        found, info = gradients_of(chain, Rule(inference, **options))
        activities, expected = by_hand(chain, step_size=0.2, rounds=rounds, **options)
        check(found, expected, **CLOSE)
        for got, wanted in zip(info.activities.values(), activities, strict=True):
            np.testing.assert_allclose(got, wanted, **CLOSE)
        energies = reference.energies(chain.reference, chain.inputs, activities)
        np.testing.assert_allclose(sum(info.energies.values()), sum(energies), **CLOSE)

    def test_elements_that_are_held_have_neither_rho_nor_a_multiplier(self):
        chain = Chain()
        mask = chain.random.uniform(size=(7, 4)) < 0.4
        values = chain.random.normal(size=(7, 4))
        plain = {"rho": 2.0, "alpha": 1.0, "inner_steps": 1, "credit": "before"}
        rule = Rule(pc.inference.GradientDescent(0.2, num_steps=5), **plain)
        clamps = {"layer_1": pc.Clamp(jnp.asarray(values), jnp.asarray(mask))}
        found, _ = gradients_of(chain, rule, clamps)
        _, expected = by_hand(chain, step_size=0.2, rounds=5, mask=mask, values=values, **plain)
        check(found, expected, **CLOSE)

    def test_without_multipliers_it_is_predictive_coding(self):
        chain = Chain()
        inference = pc.inference.CurvatureDescent(num_steps=5)
        found, _ = gradients_of(chain, Rule(inference, alpha=0.0))
        expected, _ = gradients_of(chain, pc.learning.PredictiveCoding(inference))
        check(found, expected, **CLOSE)

    def test_an_example_does_not_depend_on_its_batch(self):
        """Each has 1/lambda_max of its own; the batch's gradient is the mean of its examples'."""
        chain = Chain()
        rule = Rule(pc.inference.CurvatureDescent(num_steps=5))
        found, _ = gradients_of(chain, rule)
        network = pc.networks.split(chain.network)
        alone = jax.jit(
            jax.vmap(
                lambda x, y: rule.gradients(network, pc.Evidence(x[None], y[None]), key=KEY)[0]
            )
        )(chain.inputs, chain.targets)
        means = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), alone)
        expected = [(own["linear"]["kernel"], own["linear"]["bias"]) for own in means.values()]
        check(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("double")
class TestFixedPoint:
    @pytest.mark.parametrize("inner_steps", [1, 20])
    @pytest.mark.parametrize("credit", ["before", "after"])
    def test_of_a_linear_chain_it_is_backpropagation(self, inner_steps, credit):
        """The deltas are J^T (y - mu) with the product J of the weights above."""
        chain = Chain(activation="identity")
        rule = Rule(
            pc.inference.CurvatureDescent(num_steps=4000),
            inner_steps=inner_steps,
            credit=credit,
        )
        found, info = gradients_of(chain, rule)
        kernels = [layer.kernel for layer in chain.reference]
        below = [chain.inputs, *reference.feedforward(chain.reference, chain.inputs)]
        deltas = [chain.targets - below[-1]]
        for kernel in kernels[:0:-1]:
            deltas.insert(0, deltas[0] @ kernel.T)
        expected = [(-z.T @ d / 7, -d.sum(axis=0) / 7) for z, d in zip(below, deltas, strict=False)]
        check(found, expected, rtol=1e-7, atol=1e-9)
        # and the activities are those of the feedforward pass, where predictive coding's are not
        for got, wanted in zip(list(info.activities.values())[:-1], below[1:], strict=False):
            np.testing.assert_allclose(got, wanted, rtol=1e-7, atol=1e-8)

    @pytest.mark.parametrize(
        ("alpha", "inner_steps"), [(0.5, 1), (1.0, 1), (2.0, 1), (4.0, 1), (1.0, 3), (4.0, 3)]
    )
    def test_of_a_linear_chain_it_is_stable_below_its_limit(self, alpha, inner_steps):
        """Steps of a little less and a little more, with lambda_max from jax.hessian; 4/(2 + alpha) over it
        where each step moves the multipliers, too."""
        chain = Chain(activation="identity", batch=1)
        pure = pc.networks.split(chain.network)
        evidence = pc.Evidence(chain.inputs, chain.targets)

        def rule(step_size, **options):
            descent = pc.inference.GradientDescent(step_size, num_steps=3000, **options)
            return Rule(descent, alpha=alpha, inner_steps=inner_steps)

        problem = rule(0.1).problem(pure, evidence, key=KEY)
        start, unravel = ravel_pytree(problem.start)
        hessian = jax.jit(jax.hessian(lambda z: problem.energy(unravel(z)).sum()))(start)
        limit = (1 + np.cbrt((2 - alpha) / (2 + alpha))) if inner_steps == 3 else 4 / (2 + alpha)
        limit /= np.linalg.eigvalsh(hessian)[-1]
        expected, _ = compiled_gradients(pc.learning.Backprop(), pure, evidence, key=KEY)
        expected = ravel_pytree(expected)[0]

        def wrong(rule):
            found = ravel_pytree(compiled_gradients(rule, pure, evidence, key=KEY)[0])[0]
            return np.abs(found - expected).max() / np.abs(expected).max()

        assert wrong(rule(0.96 * limit)) < 1e-6
        assert not wrong(rule(1.04 * limit)) < 1e6
        assert wrong(rule(3 * limit, guard="clip", safety=0.9)) < 1e-6
        curved = Rule(
            pc.inference.CurvatureDescent(num_steps=3000), alpha=alpha, inner_steps=inner_steps
        )
        assert wrong(curved) < 1e-6
        told = rule(1.04 * limit, guard="warn").inference.overstep(problem)
        np.testing.assert_allclose(told, 1.04, rtol=0.01)

    def test_of_a_graph_it_is_backpropagation(self):
        """A node that two others see collects multipliers from both; at rho 1 F_rho is not convex here."""
        rngs = nnx.Rngs(0)
        network = pc.PCGraph(
            {
                "a": pc.PCDense(3, 4, activation=jnp.tanh, rngs=rngs),
                "b": pc.PCDense(4, 4, activation=jnp.tanh, rngs=rngs),
                "y": pc.PCDense(8, 2, rngs=rngs),
            },
            parents={"a": "x", "b": "a", "y": pc.networks.Concatenate("a", "b")},
            inputs={"x": 3},
            output="y",
        )
        weights = nnx.state(network, nnx.Param)
        nnx.update(network, jax.tree.map(lambda leaf: leaf.astype(jnp.float64), weights))
        random = np.random.RandomState(0)
        evidence = pc.Evidence(*(jnp.asarray(random.normal(size=(5, size))) for size in (3, 2)))
        pure = pc.networks.split(network)
        rule = Rule(pc.inference.GradientDescent(0.1, num_steps=4000), rho=3.0, alpha=3.0)
        found, _ = compiled_gradients(rule, pure, evidence, key=KEY)
        expected, _ = compiled_gradients(pc.learning.Backprop(), pure, evidence, key=KEY)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-9)


@pytest.mark.usefixtures("double")
def test_a_stack_learns_as_its_layers_do():
    def gradients(stacked):
        rngs = nnx.Rngs(0)
        network = in_double(pc.models.residual_mlp(3, 4, 2, depth=5, stacked=stacked, rngs=rngs))
        random = np.random.RandomState(1)
        evidence = pc.Evidence(*(jnp.asarray(random.normal(size=(5, size))) for size in (3, 2)))
        rule = Rule(pc.inference.GradientDescent(0.2, num_steps=8))
        return compiled_gradients(rule, pc.networks.split(network), evidence, key=KEY)[0]

    one, other = gradients(True), gradients(False)
    hidden = jnp.stack([other[f"hidden_{k}"]["linear"]["kernel"] for k in (1, 2, 3)])
    found = jax.tree.leaves(one["hidden"])
    np.testing.assert_allclose(found[0], hidden, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        one["first"]["linear"]["kernel"], other["first"]["linear"]["kernel"], rtol=1e-9, atol=1e-12
    )


def test_layers_that_no_error_reaches_do_not_learn():
    """Two steps reach two layers below the output; what gelu rounds in the first is no error."""
    network = pc.models.mlp(3, 5, 5, 5, 2, activation=jax.nn.gelu, rngs=nnx.Rngs(0))
    evidence = pc.Evidence(jnp.ones((4, 3)), jnp.ones((4, 2)))
    rule = Rule(pc.inference.GradientDescent(0.1, num_steps=2))
    found, _ = compiled_gradients(rule, pc.networks.split(network), evidence, key=KEY)
    assert not np.any(found["hidden_1"]["linear"]["kernel"])
    assert np.any(found["hidden_2"]["linear"]["kernel"])


class TestRefusals:
    DESCENT = pc.inference.GradientDescent(0.1, num_steps=6)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"rho": 0.0}, "expected a rho above 0"),
            ({"alpha": -1.0}, "expected a alpha of at least 0"),
            ({"inner_steps": 0}, "inner_steps of at least 1"),
            ({"inner_steps": 4}, "num_steps, 6, to be a multiple of inner_steps, 4"),
            ({"credit": "during"}, 'expected credit "before" or "after", got \'during\''),
        ],
    )
    def test_of_settings(self, options, message):
        with pytest.raises(ValueError, match=message):
            Rule(self.DESCENT, **options)

    def test_of_algorithms(self):
        with pytest.raises(TypeError, match="AugmentedLagrangian expected an iterative inference"):
            Rule(0.1)
        with pytest.raises(ValueError, match="a tolerance says nothing; give the algorithm num_st"):
            Rule(pc.inference.GradientDescent(0.1, tolerance=1e-3))

    @pytest.mark.parametrize(
        "algorithm",
        [
            pc.inference.Chebyshev(num_steps=6),
            pc.inference.GradientDescent(0.1, momentum="auto", num_steps=6),
            pc.inference.CurvatureDescent(momentum="auto", num_steps=6),
            pc.inference.NewtonCG(num_steps=6),
            pc.inference.OutputNewton(num_steps=6),
        ],
        ids=lambda algorithm: type(algorithm).__name__,
    )
    def test_of_algorithms_that_want_one_energy(self, algorithm):
        """Their gradients would be wrong without a word: the multipliers change F between their steps."""
        with pytest.raises(ValueError, match=f"between the steps of {type(algorithm).__name__}"):
            Rule(algorithm)

    def test_of_momentum(self):
        """A root of x^3 + (s (1 + a) - 2 - m) x^2 + (1 - s + 2 m) x - m is outside where m (1 + a) > 1."""
        for step in (1e-3, 0.1, 0.5):
            assert np.abs(np.roots([1, 2 * step - 2.9, 2.8 - step, -0.9])).max() > 1
        heavy = pc.inference.GradientDescent(0.1, momentum=0.9, num_steps=6)
        for algorithm in (heavy, pc.inference.Scheduled(heavy, {"layer_0": 2.0})):
            with pytest.raises(ValueError, match=r"below rho/\(rho \+ alpha\) = 0.5, .*, got 0.9"):
                Rule(algorithm)
            Rule(algorithm, alpha=0.1)

    def test_of_energies_and_roots(self):
        rngs = nnx.Rngs(0)
        laplace = pc.PCDense(3, 4, energy=pc.energies.Laplace(), rngs=rngs)
        network = pc.PCNetwork([laplace, pc.PCDense(4, 2, rngs=rngs)])
        evidence = pc.Evidence(jnp.ones((2, 3)), jnp.ones((2, 2)))
        with pytest.raises(ValueError, match="'layer_0' is free and has the energy Laplace"):
            Rule(self.DESCENT).gradients(pc.networks.split(network), evidence, key=KEY)
        network = pc.PCNetwork([pc.PCRoot(3), pc.PCDense(3, 2, rngs=rngs)])
        evidence = pc.Evidence(None, jnp.ones((2, 2)))
        with pytest.raises(ValueError, match="'layer_0' is a free root"):
            Rule(self.DESCENT).gradients(pc.networks.split(network), evidence, key=KEY)

    def test_of_cycles(self):
        rngs = nnx.Rngs(0)
        network = pc.PCGraph(
            {"h": pc.PCDense(5, 2, rngs=rngs), "g": pc.PCDense(2, 2, rngs=rngs)},
            parents={"h": pc.networks.Concatenate("x", "g"), "g": "h"},
            inputs={"x": 3},
            output="g",
        )
        with pytest.raises(ValueError, match="on a cycle .*ends where a feedforward pass does"):
            Rule(self.DESCENT).check(network)
