"""Credit: weight gradients beside backpropagation's, layer by layer.

Oracles: the gradients of the NumPy reference, and rules made here whose angle with backpropagation's
gradient is known by hand.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from pcflax.analysis import displacement_alignment, gradient_alignment
from pcflax.learning.base import AbstractGradientLearning
from tests.conftest import Chain, parameters_of
from tests.references import numpy_pc as reference

EXACT = {"rtol": 1e-9}  # float64, and two ways round of the same sums
STEP = 0.1
SETTLED = 900  # steps of STEP after which the chain below is at its equilibrium to rounding
NAMES = ["layer_0", "layer_1", "layer_2"]


def descent(num_steps):
    return pc.inference.GradientDescent(optax.sgd(STEP), num_steps=num_steps)


def flat(gradients):
    """One vector a layer of (dkernel, dbias), and the vector of all of them."""
    rows = [np.concatenate([np.ravel(part) for part in layer]) for layer in gradients]
    return {**dict(zip(NAMES, rows, strict=True)), "total": np.concatenate(rows)}


def assert_credit(credit, own, other):
    """What `gradient_alignment` should say of these two gradients."""
    own, other = flat(own), flat(other)
    assert all(set(numbers) == set(own) for numbers in credit)
    cosines = []
    for name in own:
        lengths = np.linalg.norm(own[name]), np.linalg.norm(other[name])
        if name != "total":
            cosines.append(own[name] @ other[name] / np.prod(lengths))
            np.testing.assert_allclose(credit.cosine[name], cosines[-1], **EXACT)
        rms = np.sqrt(np.mean(own[name] ** 2))
        np.testing.assert_allclose(credit.rms[name], rms, **EXACT)
        np.testing.assert_allclose(
            (credit.norm[name], credit.backprop_norm[name]), lengths, **EXACT
        )
    np.testing.assert_allclose(credit.cosine["total"], np.mean(cosines), **EXACT)


@pytest.fixture
def chain(double):
    """3 -> 5 -> 4 -> 2, tanh, 7 examples, hidden precision 1 so that every rule takes it."""
    case = Chain()
    for layer in case.network.layers[:-1]:
        layer.energy = pc.energies.Gaussian()
    case.reference = [dataclasses.replace(layer, precision=1.0) for layer in case.reference]
    return case


def start_of(case):
    """The feedforward start with the targets on top."""
    return [*reference.feedforward(case.reference, case.inputs)[:-1], case.targets]


def measure(case, learning, **options):
    return gradient_alignment(case.network, case.inputs, case.targets, learning=learning, **options)


class TestNumbers:
    @pytest.mark.parametrize("learning", [pc.learning.Backprop(), pc.learning.ZIL()], ids=repr)
    def test_backprop_and_zil_are_parallel_to_backprop_with_its_norms(self, chain, learning):
        """ZIL is proved to be backpropagation; an angle would accuse it, or the measure."""
        backprop = reference.backprop_gradients(chain.reference, chain.inputs, chain.targets)
        assert_credit(measure(chain, learning), backprop, backprop)

    def test_predictive_coding_at_equilibrium_is_what_numpy_finds(self, chain):
        """The published measure of how far predictive coding is from backpropagation."""
        settled, _ = reference.infer(
            chain.reference, chain.inputs, start_of(chain), chain.free(), STEP, SETTLED
        )
        residual = reference.activity_gradients(
            chain.reference, chain.inputs, settled, chain.free()
        )
        assert max(np.abs(part).max() for part in residual) < 1e-9  # it is the equilibrium
        own = reference.parameter_gradients(chain.reference, chain.inputs, settled)
        other = reference.backprop_gradients(chain.reference, chain.inputs, chain.targets)
        credit = measure(chain, pc.learning.PredictiveCoding(descent(SETTLED)))
        assert_credit(credit, own, other)
        assert credit.cosine["total"] < 0.999  # and it is not backpropagation

    def test_of_incremental_pc_it_is_the_sum_over_steps_with_the_weights_held(self, chain):
        num_steps, activities, total = 6, start_of(chain), None
        for _ in range(num_steps):
            found = reference.parameter_gradients(chain.reference, chain.inputs, activities)
            total = found if total is None else jax.tree.map(np.add, total, found)
            activities, _ = reference.infer(
                chain.reference, chain.inputs, activities, chain.free(), STEP, 1
            )
        other = reference.backprop_gradients(chain.reference, chain.inputs, chain.targets)
        credit = measure(chain, pc.learning.IncrementalPC(descent(num_steps)))
        assert_credit(credit, total, other)

    def test_gradients_are_means_over_the_batch(self, chain):
        """Summed instead, a norm would say more of the batch size than of the network."""
        once = measure(chain, pc.learning.Backprop())
        chain.inputs, chain.targets = np.tile(chain.inputs, (3, 1)), np.tile(chain.targets, (3, 1))
        thrice = measure(chain, pc.learning.Backprop())
        for name, norm in once.norm.items():
            np.testing.assert_allclose(thrice.norm[name], norm, **EXACT)

    def test_one_example_is_enough(self, chain):
        chain.inputs, chain.targets = chain.inputs[:1], chain.targets[:1]
        backprop = reference.backprop_gradients(chain.reference, chain.inputs, chain.targets)
        assert_credit(measure(chain, pc.learning.Backprop()), backprop, backprop)


@dataclasses.dataclass(frozen=True)
class Scaled(AbstractGradientLearning):
    """Backpropagation with each layer's gradient times a number of its own."""

    factors: tuple[float, ...]

    def gradients(self, network, evidence, *, key, step=0):
        gradients, info = pc.learning.Backprop().gradients(network, evidence, key=key)

        def scaled(path, gradient):
            name, *_ = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
            return self.factors[network.names.index(name)] * gradient

        return jax.tree_util.tree_map_with_path(scaled, gradients), info


class TestAngles:
    def test_turned_layers_have_cosine_minus_one_and_count_alike_in_total(self, chain):
        """A layer that learns backwards must not hide behind one that learns well, or with more weight."""
        factors = (-2.0, 0.5, 3.0)
        credit = measure(chain, Scaled(factors))
        for name, factor in zip(NAMES, factors, strict=True):
            np.testing.assert_allclose(credit.cosine[name], np.sign(factor), **EXACT)
            norm = abs(factor) * credit.backprop_norm[name]
            np.testing.assert_allclose(credit.norm[name], norm, **EXACT)
        np.testing.assert_allclose(credit.cosine["total"], 1 / 3, **EXACT)

    def test_a_zero_gradient_has_no_angle(self, chain):
        """Before any inference the hidden errors are zero; 0 or 1 instead of NaN would be invented."""
        credit = measure(chain, pc.learning.PredictiveCoding(descent(0)))
        for name in NAMES[:-1]:
            assert np.isnan(credit.cosine[name])
            assert credit.norm[name] == 0.0
            assert credit.backprop_norm[name] > 0.0
        np.testing.assert_allclose(credit.cosine[NAMES[-1]], 1.0, **EXACT)

    def test_a_learned_precision_is_no_weight(self, chain):
        """Where no error is its gradient is -1/2 an element, by backpropagation 0: no layer looks reached."""
        backprop = reference.backprop_gradients(chain.reference, chain.inputs, chain.targets)
        for layer, width in zip(chain.network.layers, (5, 4, 2), strict=True):
            layer.energy = pc.energies.LearnedGaussian(width)  # of precision 1
        credit = measure(chain, pc.learning.PredictiveCoding(descent(0)))
        for name in NAMES[:-1]:
            assert np.isnan(credit.cosine[name])
            assert credit.norm[name] == credit.rms[name] == 0.0
        np.testing.assert_allclose(credit.cosine[NAMES[-1]], 1.0, **EXACT)
        norm = np.linalg.norm(flat(backprop)[NAMES[-1]])
        np.testing.assert_allclose(credit.norm[NAMES[-1]], norm, **EXACT)

    def test_a_perfect_prediction_has_no_angle_anywhere(self, chain):
        top = chain.network.layers[-1].linear
        top.kernel.set_value(jnp.zeros((4, 2)))
        top.bias.set_value(jnp.zeros(2))
        chain.targets = np.zeros((7, 2))
        credit = measure(chain, pc.learning.Backprop())
        assert all(np.isnan(cosine) for cosine in credit.cosine.values())
        assert set(credit.norm.values()) == {0.0}


class TestSmall:
    @pytest.mark.parametrize("size", [1e-30, 1e12])
    def test_a_gradient_whose_square_is_no_number_has_its_angle(self, size):
        """In float32, 1e-60 is 0 and 1e48 is not finite; the angle of the chain 1 -> 1 -> 1 is known."""
        low, top = (pc.PCDense(1, 1, use_bias=False, rngs=nnx.Rngs(0)) for _ in range(2))
        low.linear.kernel.set_value(jnp.ones((1, 1)))
        top.linear.kernel.set_value(jnp.full((1, 1), size))
        x = jnp.ones((2, 1))
        learning = pc.learning.Backprop()
        credit = gradient_alignment(pc.PCNetwork([low, top]), x, x * 2, learning=learning)
        assert credit.cosine["layer_0"] == pytest.approx(1)
        # dF/dW_0 is -(2 - size) * size
        assert credit.norm["layer_0"] == pytest.approx(abs(2 - size) * size, rel=1e-5)

    def test_each_layer_of_a_stack_has_a_scale_of_its_own(self):
        """One scale for all would make zeros of the first: the gradient shrinks by 1e-10 a layer."""
        make = functools.partial(pc.PCDense, 1, 1, use_bias=False, rngs=nnx.Rngs(0))
        stack = pc.PCStack(make, 4)
        stack.stacked.linear.kernel.set_value(jnp.full((4, 1, 1), 1e-10))
        network = pc.PCNetwork({"hidden": stack, "output": make()})
        x = jnp.ones((1, 1))
        credit = gradient_alignment(network, x, x, learning=pc.learning.Backprop())
        for node in network.nodes[:-1]:
            assert credit.cosine[node] == pytest.approx(1)
        ratio = credit.norm["hidden/3"] / credit.norm["hidden/2"]
        assert ratio == pytest.approx(
            1, rel=1e-5
        )  # z below is as much smaller as the error is larger


class TestDisplacement:
    def test_of_sgd_at_a_small_rate_it_is_the_angle_of_the_gradients(self, chain):
        learning = pc.learning.PredictiveCoding(descent(6))
        credit = measure(chain, learning)
        found = displacement_alignment(
            chain.network, chain.inputs, chain.targets, learning=learning, optimizer=optax.sgd(1e-9)
        )
        assert list(found) == list(credit.cosine)
        for name, cosine in credit.cosine.items():
            np.testing.assert_allclose(found[name], cosine, rtol=1e-6)

    def test_adam_takes_away_what_sizes_layers_and_keeps_signs(self, chain):
        """Gradients times numbers of either sign move as far; an eps above them leaves their sizes."""
        found = displacement_alignment(
            chain.network,
            chain.inputs,
            chain.targets,
            learning=Scaled((-2.0, 1e-3, 3.0)),
            optimizer=optax.adam(1e-9),
        )
        for name, sign in zip(NAMES, (-1, 1, 1), strict=True):
            np.testing.assert_allclose(found[name], sign, atol=1e-3)

    def test_what_is_no_optimizer(self, chain):
        with pytest.raises(TypeError, match="optax"):
            displacement_alignment(
                chain.network,
                chain.inputs,
                chain.targets,
                learning=pc.learning.ZIL(),
                optimizer=1e-3,
            )


class TestLayers:
    def test_layers_without_parameters_are_left_out(self):
        class Halving(pc.PCLayer):
            def predict(self, below):
                return below / 2

        rngs = nnx.Rngs(0)
        layers = {
            "root": pc.PCRoot(3),
            "low": pc.PCDense(3, 4, activation=jnp.tanh, rngs=rngs),
            "half": Halving(),
            "top": pc.PCDense(4, 2, rngs=rngs),
        }
        x, y = jnp.ones((2, 3)), jnp.ones((2, 2))
        credit = gradient_alignment(pc.PCNetwork(layers), x, y, learning=pc.learning.Backprop())
        for numbers in credit:
            assert set(numbers) == {"low", "top", "total"}

    def test_layers_come_in_the_networks_order_and_the_total_last(self):
        """The figure of alignment draws them so, the layer nearest the input first."""
        rngs = nnx.Rngs(0)
        widths = [3, *[2 + number % 3 for number in range(11)], 2]
        layers = {
            f"hidden_{number}": pc.PCDense(below, above, rngs=rngs)
            for number, (below, above) in enumerate(zip(widths[:-1], widths[1:], strict=True), 1)
        }
        network = pc.PCNetwork(layers)
        credit = gradient_alignment(
            network, jnp.ones((1, 3)), jnp.ones((1, 2)), learning=pc.learning.Backprop()
        )
        for numbers in credit:
            assert list(numbers) == [*network.names, "total"]

    def test_numbers_belong_to_their_layers_where_names_are_not_in_alphabetical_order(self, chain):
        names = dict(zip(NAMES, ("z", "m", "a"), strict=True))
        renamed = pc.PCNetwork(dict(zip(names.values(), chain.network.layers, strict=True)))
        found = gradient_alignment(
            renamed, chain.inputs, chain.targets, learning=pc.learning.Backprop()
        )
        backprop = reference.backprop_gradients(chain.reference, chain.inputs, chain.targets)
        for name, gradient in flat(backprop).items():
            norm = found.norm[names.get(name, name)]
            np.testing.assert_allclose(norm, np.linalg.norm(gradient), **EXACT)


def test_the_network_is_not_changed(chain):
    """A monitor that moved weights or activities would be part of the experiment."""
    chain.network.init_activities(chain.inputs, targets=chain.targets)
    parameters = parameters_of(chain.network)
    activities = {name: np.array(value) for name, value in chain.network.activities().items()}
    measure(chain, pc.learning.IncrementalPC(descent(6)))
    for before, after in zip(parameters, parameters_of(chain.network), strict=True):
        np.testing.assert_array_equal(before, after)
    for name, value in chain.network.activities().items():
        np.testing.assert_array_equal(activities[name], value)


def test_the_key_reaches_the_rule_and_is_zero_unless_given(chain):
    learning = pc.learning.PredictiveCoding(pc.inference.Langevin(0.05, num_samples=4))
    default = measure(chain, learning)
    assert measure(chain, learning, key=jax.random.key(0)) == default
    assert measure(chain, learning, key=jax.random.key(1)).norm != default.norm


class TestRefusals:
    @pytest.mark.parametrize("learning", ["pc", descent(3), pc.learning.ZIL])
    def test_what_is_no_rule(self, chain, learning):
        with pytest.raises(TypeError, match=r"expected a learning rule such as pc\.learning\.ZIL"):
            measure(chain, learning)

    def test_labels_that_are_not_one_hot(self, chain):
        chain.targets = np.arange(7)
        with pytest.raises(TypeError, match="expected targets of a floating dtype, got int64"):
            measure(chain, pc.learning.Backprop())

    def test_inputs_and_targets_of_two_batch_sizes(self, chain):
        chain.targets = chain.targets[:3]
        with pytest.raises(ValueError, match="inputs have batch size 7 but targets 3"):
            measure(chain, pc.learning.Backprop())
