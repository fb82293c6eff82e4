"""A node of the step before as a parent: wiring, energies and refusals.

Oracle: the energies written out in NumPy.
"""

import copy
import pickle

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pcflax as pc
from tests.conftest import in_double

Previous = pc.networks.Previous
DESCENT = pc.inference.GradientDescent(0.1)


class Transition(pc.PCLayer):
    """mu = A z_{t-1} + B u."""

    def __init__(self, rngs):
        super().__init__()
        self.a = nnx.Linear(2, 2, use_bias=False, rngs=rngs)
        self.b = nnx.Linear(1, 2, use_bias=False, rngs=rngs)

    def predict(self, z, u):
        return self.a(z) + self.b(u)


def step_network(**changes):
    rngs = nnx.Rngs(0)
    options = {
        "parents": {"z": (Previous("z"), "u"), "x": "z"},
        "inputs": {"u": 1},
        "output": "x",
        "shapes": {"z": 2},
    }
    layers = {"z": Transition(rngs), "x": pc.PCDense(2, 4, rngs=rngs)}
    return pc.PCGraph(layers, **(options | changes))


def test_energies_and_gradients_are_those_of_numpy_with_the_step_before_as_an_input(double):
    network, random = in_double(step_network()), np.random.default_rng(0)
    u, before, z, x = (random.normal(size=(3, n)) for n in (1, 2, 2, 4))
    network.set_activities({"z": z, "x": x})
    inputs = {"u": u, "z@-1": before}
    a, b = (np.asarray(getattr(network.layer("z"), n).kernel[...], float) for n in "ab")
    c = np.asarray(network.layer("x").linear.kernel[...], float)
    e_z, e_x = z - before @ a - u @ b, x - z @ c
    found = network.energies(inputs)
    np.testing.assert_allclose(found["z"], (e_z**2).sum(1) / 2, rtol=1e-6)
    np.testing.assert_allclose(found["x"], (e_x**2).sum(1) / 2, rtol=1e-6)
    gradients = nnx.to_pure_dict(network.parameter_gradients(inputs))["layers"]
    np.testing.assert_allclose(gradients["z"]["a"]["kernel"], -before.T @ e_z / 3, rtol=1e-6)
    np.testing.assert_allclose(gradients["z"]["b"]["kernel"], -u.T @ e_z / 3, rtol=1e-6)


def test_the_step_before_makes_no_cycle_and_stands_in_sums_and_concatenations():
    rngs = nnx.Rngs(0)
    network = pc.PCGraph(
        {name: pc.PCDense(size, 3, rngs=rngs) for name, size in {"y": 3, "z": 6, "w": 3}.items()},
        parents={
            "y": pc.networks.Sum("z", Previous("w")),
            "z": pc.networks.Concatenate(Previous("y"), Previous("z")),
            "w": ("y",),
        },
        output="w",
    )
    assert network.cyclic == ()
    assert network.names == ("z", "y", "w")
    assert dict(network.wiring.previous) == {"w@-1": (3,), "y@-1": (3,), "z@-1": (3,)}
    before = {f"{name}@-1": jnp.full((2, 3), i) for i, name in enumerate("wyz", start=1)}
    before = {name: array.astype(jnp.float32) for name, array in before.items()}
    start = network.feedforward(before)
    kernel = network.layer("z").linear.kernel[...]
    joined = jnp.concatenate([before["y@-1"], before["z@-1"]], axis=1)
    np.testing.assert_allclose(start["z"], joined @ kernel, rtol=1e-6)
    summed = (start["z"] + before["w@-1"]) @ network.layer("y").linear.kernel[...]
    np.testing.assert_allclose(start["y"], summed, rtol=1e-6)


def test_a_network_that_is_asked_without_time_says_so():
    for inputs in (jnp.ones((3, 1)), {"u": jnp.ones((3, 1))}):
        with pytest.raises(ValueError, match=r"sequence without time: 'z@-1' is missing"):
            step_network().infer(inputs, jnp.ones((3, 4)), inference=DESCENT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parents": {"z": (Previous("y"), "u"), "x": "z"}}, r"'y', which is no layer with an act"),
        ({"shapes": {}}, r"step before of 'z' needs a shape to start from; give shapes="),
        ({"shapes": {"z": 3}}, r"layer 'z' \(Transition\) could not predict"),
    ],
)
def test_what_cannot_be_wired_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        step_network(**changes)


@pytest.mark.parametrize(
    ("size", "shape"), [(np.int64(2), (2,)), ([2], (2,)), (2.5, "an int shape of 'z', got 2.5")]
)
def test_a_shape_of_the_step_before_is_of_counts(size, shape):
    if isinstance(shape, str):
        with pytest.raises(TypeError, match=shape):
            step_network(shapes={"z": size})
    else:
        assert step_network(shapes={"z": size}).wiring.previous == (("z@-1", shape),)


def test_a_stack_has_no_step_before():
    rngs = nnx.Rngs(0)
    stack = pc.PCStack(lambda: pc.PCDense(2, 2, rngs=rngs), 2)
    with pytest.raises(ValueError, match="a PCStack has several nodes; name a layer of one"):
        pc.PCGraph({"z": stack}, parents={"z": Previous("z")}, output="z")


def test_a_parent_of_the_step_before_is_a_value():
    assert Previous("z") == Previous("z") != Previous("y")
    for same in (copy.deepcopy(Previous("z")), pickle.loads(pickle.dumps(Previous("z")))):
        assert (repr(same), same.node) == ("Previous('z')", "z")
