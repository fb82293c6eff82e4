"""Clamps by name and mask: what is held, what is free, and where the rest settles."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from flax import nnx

import pcflax as pc
from tests.conftest import Chain
from tests.references import numpy_pc as reference

DESCENT = pc.inference.GradientDescent(optax.sgd(0.07), num_steps=9)
SETTLED = pc.inference.GradientDescent(optax.sgd(0.05, momentum=0.9), num_steps=2500)
STILL = pc.inference.GradientDescent(optax.sgd(0.07), num_steps=0)
CLOSE = {"rtol": 1e-10, "atol": 1e-12}  # float64 rounding over a few steps

double = pytest.mark.usefixtures("double")


def masks_of(chain, features=5):
    """One for every element of a hidden layer, others in each example; nowhere all or none."""
    mask = chain.random.uniform(size=(len(chain.targets), features)) < 0.4
    mask[:, 0], mask[:, -1] = True, False
    return mask


def held_start(chain, inputs, targets, clamps, batch=7):
    """The reference's feedforward pass through the clamps: {index: (value, mask)}."""
    z, below = [], inputs
    for index, layer in enumerate(chain.reference):
        if inputs is not None and isinstance(layer, reference.ReferenceRoot):
            z_BD = inputs
        else:
            z_BD = reference.MEANS[layer.energy][0](reference.predict(layer, below, batch)[0])
        if index in clamps:
            value, mask = clamps[index]
            z_BD = np.where(mask, value, z_BD)
        if index == len(chain.reference) - 1 and targets is not None:
            z_BD = targets
        z.append(z_BD)
        below = z_BD
    return z


@double
@pytest.mark.parametrize("as_array", [True, False], ids=["array", "Clamp"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_any_layer_is_held_whole_by_its_name(layer, as_array):
    """The output too, where there are no targets; what is below it relaxes as under targets."""
    chain = Chain()
    name = chain.network.names[layer]
    value = chain.random.normal(size=(7, (5, 4, 2)[layer]))
    targets = None if layer == 2 else chain.targets
    result = chain.network.infer(
        chain.inputs,
        targets,
        clamps={name: value if as_array else pc.Clamp(value)},
        inference=DESCENT,
    )
    np.testing.assert_array_equal(result.activities[name], value)
    start = held_start(chain, chain.inputs, targets, {layer: (value, True)})
    free = [True, True, layer != 2 and targets is None]
    free[layer] = False
    expected, energies = reference.infer(
        chain.reference, chain.inputs, start, free, step_size=0.07, num_steps=9
    )
    for got, activity in zip(result.activities.values(), expected, strict=True):
        np.testing.assert_allclose(got, activity, **CLOSE)
    np.testing.assert_allclose(result.energy, energies[-1], **CLOSE)


FULL, ROW, COLUMN = "full shape", "one for all examples", "one for all features"


@double
@pytest.mark.parametrize("shape", [FULL, ROW, COLUMN])
@pytest.mark.parametrize("batch", [1, 7])
def test_some_elements_are_held_and_the_others_relax(shape, batch):
    """What stands under a False is never looked at: NaN there, and nothing becomes one."""
    chain = Chain(batch=batch)
    mask = masks_of(chain)
    if shape == ROW:
        mask = mask[0]
    elif shape == COLUMN:
        mask = np.arange(batch)[:, None] % 2 == 0
    value = chain.random.normal(size=(batch, 5))
    clamp = pc.Clamp(np.where(mask, value, np.nan), mask)
    result = chain.network.infer(
        chain.inputs, chain.targets, clamps={"layer_0": clamp}, inference=DESCENT
    )
    full = np.broadcast_to(mask, value.shape)
    np.testing.assert_array_equal(np.asarray(result.activities["layer_0"])[full], value[full])
    start = held_start(chain, chain.inputs, chain.targets, {0: (value, full)}, batch)
    expected, energies = reference.infer(
        chain.reference, chain.inputs, start, [~full, True, False], step_size=0.07, num_steps=9
    )
    for got, activity in zip(result.activities.values(), expected, strict=True):
        np.testing.assert_allclose(got, activity, **CLOSE)
    np.testing.assert_allclose(result.energy, energies[-1], **CLOSE)


@double
def test_the_feedforward_start_passes_through_a_held_layer():
    """Layers above start at what they predict from the clamp, not from what it replaced."""
    chain = Chain()
    mask, value = masks_of(chain), chain.random.normal(size=(7, 5))
    clamps = {"layer_0": pc.Clamp(value, mask)}
    expected = held_start(chain, chain.inputs, chain.targets, {0: (value, mask)})
    chain.network.init_activities(chain.inputs, targets=chain.targets, clamps=clamps)
    for layer, activity in zip(chain.network.layers, expected, strict=True):
        np.testing.assert_allclose(layer.activity[...], activity, **CLOSE)
    result = chain.network.infer(chain.inputs, chain.targets, clamps=clamps, inference=STILL)
    np.testing.assert_allclose(result.activities["layer_1"], expected[1], **CLOSE)
    # and it is held on top of any other start
    chain.network.init_activities(chain.inputs, clamps=clamps, initializer=pc.initializers.Zeros())
    np.testing.assert_array_equal(chain.network.layers[0].activity[...], np.where(mask, value, 0.0))


@double
def test_the_residual_counts_free_elements_alone():
    """RMS of dF/dz over those that may move, each example's own number of them."""
    chain = Chain()
    mask, value = masks_of(chain), chain.random.normal(size=(7, 5))
    result = chain.network.infer(
        chain.inputs,
        chain.targets,
        clamps={"layer_0": pc.Clamp(value, mask)},
        inference=DESCENT,
    )
    z = [np.asarray(activity) for activity in result.activities.values()]
    gradients = reference.activity_gradients(chain.reference, chain.inputs, z, [~mask, True, False])
    counts = (~mask).sum(axis=1) + 4
    assert len(set(counts)) > 1
    np.testing.assert_allclose(result.residual, reference.residuals(gradients, counts), rtol=1e-10)


@double
def test_a_mask_that_holds_everything_is_a_whole_clamp():
    chain = Chain(widths=(3, 5, 2))
    value = chain.random.normal(size=(7, 5))
    whole, masked = (
        chain.network.infer(
            chain.inputs, chain.targets, clamps={"layer_0": clamp}, inference=DESCENT
        )
        for clamp in (value, pc.Clamp(value, np.ones(5, bool)))
    )
    np.testing.assert_array_equal(masked.activities["layer_0"], value)
    np.testing.assert_allclose(masked.energy, whole.energy, **CLOSE)
    np.testing.assert_array_equal(masked.residual, 0.0)
    np.testing.assert_array_equal(whole.residual, 0.0)


def minimise(chain, inputs, z, free, row):
    """The minimum by scipy of one example's F over the elements that are free."""
    own = None if inputs is None else inputs[row : row + 1]
    z = [np.array(z_BD[row : row + 1]) for z_BD in z]
    free = [np.broadcast_to(mask, z_BD.shape) for mask, z_BD in zip(free, z, strict=True)]
    flat, chosen = np.concatenate(z, axis=1)[0], np.concatenate(free, axis=1)[0]
    cuts = np.cumsum([z_BD.shape[1] for z_BD in z])[:-1]

    def at(values):
        whole = flat.copy()
        whole[chosen] = values
        return np.split(whole[None], cuts, axis=1)

    def energy(values):
        return sum(reference.energies(chain.reference, own, at(values)))[0]

    def slope(values):
        gradients = reference.activity_gradients(chain.reference, own, at(values), free)
        return np.concatenate(gradients, axis=1)[0][chosen]

    found = scipy.optimize.minimize(
        energy, flat[chosen], jac=slope, method="BFGS", options={"gtol": 1e-10, "maxiter": 2000}
    )
    assert np.abs(slope(found.x)).max() < 1e-7  # BFGS ends where rounding hides its line search
    return np.concatenate(at(found.x), axis=1)[0], found.fun


@double
def test_the_rest_settles_where_scipy_finds_the_minimum_over_free_elements():
    """A free root, a part of a hidden layer and a part of the output, all by name: associative recall.

    No inputs and no targets at all.
    """
    chain = Chain(root=True, precision=1.7)
    masks = {0: masks_of(chain, 3), 1: masks_of(chain), 3: masks_of(chain, 2)}
    masks[0][:, 0] = False
    values = {i: chain.random.normal(size=mask.shape) for i, mask in masks.items()}
    clamps = {f"layer_{i}": pc.Clamp(values[i], masks[i]) for i in masks}
    result = chain.network.infer(clamps=clamps, inference=SETTLED)
    assert (result.residual < 1e-9).all()
    start = held_start(chain, None, None, {i: (values[i], masks[i]) for i in masks})
    masks[2] = np.zeros((7, 4), bool)
    got = np.concatenate([np.asarray(a) for a in result.activities.values()], axis=1)
    for row in (0, 3, 6):
        free = [~masks[i][row : row + 1] for i in range(4)]
        expected, energy = minimise(chain, None, start, free, row)
        # the gradient's 1e-7 over the least curvature, about 0.1
        np.testing.assert_allclose(got[row], expected, rtol=1e-5, atol=2e-6)
        np.testing.assert_allclose(result.energy[row], energy, rtol=1e-10)


@double
def test_a_held_label_below_and_a_held_image_above_are_inputs_and_targets():
    """The ends by name are the same clamps as by `inputs` and `targets`."""
    chain = Chain(root=True)
    by_name = {"layer_0": chain.inputs, "layer_3": chain.targets}
    named = chain.network.infer(clamps=by_name, inference=DESCENT)
    given = chain.network.infer(chain.inputs, chain.targets, inference=DESCENT)
    for name, activity in given.activities.items():
        np.testing.assert_allclose(named.activities[name], activity, **CLOSE)
    np.testing.assert_allclose(named.energy, given.energy, **CLOSE)


def test_the_problem_that_algorithms_get_holds_the_clamps():
    """`make_problem` checks them too, and gives no coordinates for a layer that is held whole."""
    chain = Chain()
    x, y = chain.inputs.astype(np.float32), chain.targets.astype(np.float32)
    half = pc.Clamp(np.ones((7, 4), np.float32), np.array([True, False, False, True]))
    clamps = {"layer_0": np.zeros((7, 5), np.float32), "layer_1": half}
    problem = pc.inference.make_problem(pc.networks.split(chain.network), pc.Evidence(x, y, clamps))
    assert list(problem.start) == ["layer_1"]
    assert set(problem.clamps) == {"layer_0", "layer_1", "layer_2"}
    gradient = jax.jit(problem.gradient)(problem.start)["layer_1"]
    np.testing.assert_array_equal(np.asarray(gradient)[:, [0, 3]], 0.0)
    assert (np.asarray(gradient)[:, 1:3] != 0).any()


@pytest.mark.parametrize("dtype", [np.float64, np.float16, jnp.bfloat16])
def test_a_value_of_another_floating_dtype_takes_that_of_the_layer(dtype):
    """NumPy's own is double precision."""
    network = pc.PCNetwork([pc.PCDense(3, 4, rngs=nnx.Rngs(0)), pc.PCDense(4, 2, rngs=nnx.Rngs(1))])
    value = np.full((2, 4), 0.25).astype(dtype)
    for clamp in (value, pc.Clamp(value, np.array([True, False, True, False]))):
        result = network.infer(
            jnp.ones((2, 3)), jnp.ones((2, 2)), clamps={"layer_0": clamp}, inference=DESCENT
        )
        assert result.activities["layer_0"].dtype == jnp.float32
        assert result.activities["layer_0"][0, 0] == 0.25


X, Y = np.ones((2, 3), np.float32), np.ones((2, 2), np.float32)
FOUR = np.ones((2, 4), np.float32)


def network_of(root=False):
    rngs = nnx.Rngs(0)
    ends = [pc.PCDense(3, 4, rngs=rngs), pc.PCDense(4, 2, rngs=rngs)]
    return pc.PCNetwork([pc.PCRoot(3), *ends] if root else ends)


@pytest.mark.parametrize(
    ("clamps", "options", "error", "message"),
    [
        ({"hidden": FOUR}, {}, ValueError, "no layer 'hidden'; the layers are layer_0, layer_1"),
        (
            {"layer_1": Y},
            {},
            ValueError,
            "layer 'layer_1' is clamped twice, by the targets and by clamps; give one of them",
        ),
        (
            {"layer_0": X},
            {"root": True},
            ValueError,
            "layer 'layer_0' is clamped twice, by the inputs and by clamps; give one of them",
        ),
        (
            {"layer_0": np.ones((2, 5), np.float32)},
            {},
            ValueError,
            r"layer 'layer_0' predicts shape \(2, 4\) but is clamped to \(2, 5\)",
        ),
        (
            {"layer_0": pc.Clamp(np.ones((2, 5), np.float32), np.ones(5, bool))},
            {},
            ValueError,
            r"layer 'layer_0' predicts shape \(2, 4\) but is clamped to \(2, 5\)",
        ),
        (
            {"layer_0": np.ones((3, 4), np.float32)},
            {},
            ValueError,
            "inputs have batch size 2 but the clamp of 'layer_0' 3; give one row for each input",
        ),
        (
            {"layer_0": np.ones((2, 4), int)},
            {},
            TypeError,
            "expected layer 'layer_0' to be clamped to an array of a floating dtype, got int64; cast",
        ),
        (
            {"layer_0": 1.0},
            {},
            TypeError,
            "expected layer 'layer_0' to be clamped to an array of a floating dtype, got float; cast",
        ),
        (
            {"layer_0": np.ones(4, np.float32)},
            {},
            ValueError,
            r"expected layer 'layer_0' to be clamped to an array of shape \(batch, features\), got "
            r"\(4,\); .*value\[None\]",
        ),
        (
            {"layer_0": pc.Clamp(FOUR, np.array([1, 0, 1, 0]))},
            {},
            TypeError,
            "the mask of layer 'layer_0' to be Boolean .*, got int64; compare: mask > 0.5",
        ),
        (
            {"layer_0": pc.Clamp(FOUR, [True, False, True, False])},
            {},
            TypeError,
            "the mask of layer 'layer_0' to be Boolean .*, got list; compare: mask > 0.5",
        ),
        (
            {"layer_0": pc.Clamp(FOUR, np.ones(3, bool))},
            {},
            ValueError,
            r"layer 'layer_0' is clamped to a value of shape \(2, 4\) with a mask of shape \(3,\)",
        ),
        (
            {"layer_0": pc.Clamp(FOUR, np.ones((5, 2, 4), bool))},
            {},
            ValueError,
            r"a value of shape \(2, 4\) with a mask of shape \(5, 2, 4\); give a mask of that shape",
        ),
    ],
)
@pytest.mark.parametrize("where", ["infer", "init_activities"])
def test_refusals_name_the_layer_and_the_remedy(where, clamps, options, error, message):
    network = network_of(**options)
    call = {
        "infer": lambda: network.infer(X, Y, clamps=clamps, inference=DESCENT),
        "init_activities": lambda: network.init_activities(X, targets=Y, clamps=clamps),
    }
    with pytest.raises(error, match=message):
        call[where]()


def test_clamps_that_are_no_mapping_are_refused():
    with pytest.raises(TypeError, match="expected clamps as {layer name: value or .* got ndarray"):
        network_of().infer(X, Y, clamps=FOUR, inference=DESCENT)


def test_a_layer_with_an_energy_for_clamps_alone_must_be_held_whole():
    """A cross-entropy is linear in its activity: an element that is free would run away."""
    rngs = nnx.Rngs(0)
    network = pc.PCNetwork(
        [pc.PCDense(3, 4, rngs=rngs), pc.PCDense(4, 2, energy=pc.energies.Categorical(), rngs=rngs)]
    )
    network.infer(X, clamps={"layer_1": Y}, inference=DESCENT)
    half = {"layer_1": pc.Clamp(Y, np.array([True, False]))}
    with pytest.raises(ValueError, match="layer 'layer_1' is free, but its energy Categorical has"):
        network.infer(X, clamps=half, inference=DESCENT)


def test_clamps_are_arguments_of_the_compiled_program_and_not_part_of_it():
    """Other values and masks of the same shapes find it again."""
    traces, counts = [], []

    def counted(values):
        traces.append(1)
        return values

    network = pc.PCNetwork([pc.PCDense(3, 4, activation=counted, rngs=nnx.Rngs(0))])
    for seed in range(3):
        random = np.random.RandomState(seed)
        clamp = pc.Clamp(random.normal(size=(2, 4)), random.uniform(size=(2, 4)) < 0.5)
        network.infer(X, clamps={"layer_0": clamp}, inference=DESCENT)
        counts.append(len(traces))
    assert counts[0] == counts[2] > 0


def test_a_network_without_anything_given_does_not_know_its_batch():
    with pytest.raises(ValueError, match="inputs and targets are both None, so the batch size"):
        network_of(root=True).infer(inference=DESCENT)


def test_keys_reach_an_initializer_beside_clamps():
    chain = Chain()
    x, y = chain.inputs.astype(np.float32), chain.targets.astype(np.float32)
    held = {"layer_0": pc.Clamp(np.zeros((7, 5), np.float32), np.arange(5) < 2)}
    chain.network.init_activities(
        x, targets=y, clamps=held, initializer=pc.initializers.Normal(1.0), key=jax.random.key(0)
    )
    activity = np.asarray(chain.network.layers[0].activity[...])
    np.testing.assert_array_equal(activity[:, :2], 0.0)
    assert (activity[:, 2:] != 0).all()
