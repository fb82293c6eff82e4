"""The gradient of a problem is a function that jax keeps, and a problem is a value, subclasses too."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc


class Counted(pc.PCLayer):
    """Counts the calls of its own Python."""

    calls = 0

    def __init__(self):
        super().__init__(nnx.Linear(3, 3, rngs=nnx.Rngs(0)))

    def predict(self, below):
        Counted.calls += 1
        return jnp.sin(super().predict(below))


@dataclasses.dataclass(frozen=True)
class Scaled(pc.inference.InferenceProblem):
    """The energy at coordinates times a factor for each feature, or the energy itself where it is off."""

    factor: jax.Array = dataclasses.field(kw_only=True)
    on: bool = dataclasses.field(kw_only=True)

    def decode(self, coordinates):
        stretched = {name: self.factor[None] * z for name, z in coordinates.items()}
        return super().decode(stretched if self.on else coordinates)


def small_problem():
    network = pc.PCNetwork([Counted(), pc.PCDense(3, 2, rngs=nnx.Rngs(1))])
    random = np.random.RandomState(0)
    x, y = (random.normal(size=(4, width)).astype(np.float32) for width in (3, 2))
    return pc.inference.make_problem(pc.networks.split(network), pc.Evidence(x, y))


def test_python_runs_once_for_all_algorithms_of_a_network():
    """In its loop and at its end a program has the gradient twice, and another program twice more."""
    problem = small_problem()
    problem.gradient(problem.start)
    before = Counted.calls
    for algorithm in (
        pc.inference.GradientDescent(0.1, num_steps=3),
        pc.inference.GradientDescent(optax.adam(0.1), num_steps=5),
    ):
        jax.make_jaxpr(lambda start, a=algorithm: a.solve(problem.restarted(start)))(problem.start)
    assert Counted.calls == before


@pytest.mark.parametrize("on", [False, True])
def test_a_subclass_has_arrays_that_are_traced_and_flags_that_are_not(on):
    problem, factor = small_problem(), jnp.array([1.0, 2.0, 3.0])
    own = Scaled(**vars(problem), factor=factor, on=on)
    scale = np.asarray(factor) if on else 1.0
    places = {"layer_0": np.asarray(problem.start["layer_0"]) / scale}
    found, expected = own.gradient(places), problem.gradient(problem.start)
    np.testing.assert_allclose(
        found["layer_0"], scale * np.asarray(expected["layer_0"]), rtol=1e-5, atol=1e-6
    )
    twice = own.gradient({"layer_0": 2 * places["layer_0"]})
    again = dataclasses.replace(own, factor=2 * factor).gradient(places)
    if on:  # another factor is no other structure
        np.testing.assert_allclose(
            again["layer_0"], 2 * np.asarray(twice["layer_0"]), rtol=1e-5, atol=1e-6
        )


def test_stored_activities_share_no_buffer_with_an_owner():
    """Else a change of the owner's, or a donated call, would reach them."""
    network = pc.PCNetwork([pc.PCDense(3, 2, rngs=nnx.Rngs(0))])
    given, array = np.ones((4, 2), np.float32), jnp.full((4, 2), 2.0)
    network.set_activities({"layer_0": given})
    given[:] = 7
    np.testing.assert_array_equal(network.activities()["layer_0"], 1)
    for _ in range(20):  # jax reads large arrays of NumPy's behind the call, most of the time
        large = np.ones((400, 200), np.float32)
        network.set_activities({"layer_0": large})
        large[:] = 7
        np.testing.assert_array_equal(network.activities()["layer_0"], 1)
    network.set_activities({"layer_0": array})
    taken = network.activities()["layer_0"]
    for owned in (array, taken):
        owned.delete()
    np.testing.assert_array_equal(network.activities()["layer_0"], 2)
