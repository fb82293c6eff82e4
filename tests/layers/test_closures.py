"""Functions that hide a module from NNX are refused, wherever a layer takes a function."""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import pcflax as pc

LINEAR = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
SCALE = nnx.Param(jnp.ones(3))


class Callable:
    def __init__(self, linear):
        self.linear = linear

    def __call__(self, below):
        return self.linear(below)


class Holder(nnx.Module):
    def __init__(self, function):
        self.function = function

    def __call__(self, below):
        return self.function(below)


def hiding():
    linear, several, rngs = LINEAR, {"a": [LINEAR]}, nnx.Rngs(0)

    def through(below):
        return linear(below)

    return {
        "a closure": lambda below: linear(below.reshape(len(below), -1)),
        "a closure of a closure": lambda below: through(below),
        "a closure over a container": lambda below: several["a"][0](below),
        "a global name": lambda below: LINEAR(below),
        "a global name in a function inside": lambda below: (lambda z: LINEAR(z))(below),
        "a variable": lambda below: below * SCALE[...],
        "random streams": lambda below: below + jax.random.normal(rngs(), below.shape),
        "a default": lambda below, module=LINEAR: module(below),
        "a partial": functools.partial(lambda module, below: module(below), LINEAR),
        "a method": LINEAR.__call__,
        "an object": Callable(LINEAR),
        "jit": jax.jit(lambda below: linear(below)),
        "remat": jax.checkpoint(lambda below: linear(below)),
        "vmap": jax.vmap(lambda below: linear(below)),
        "inside a Sequential": nnx.Sequential(pc.layers.Flatten(), lambda below: linear(below)),
        "inside a module": Holder(lambda below: linear(below)),
    }


@pytest.mark.parametrize("name", hiding())
def test_a_hidden_module_would_never_be_trained(name):
    kind = {"a variable": "Param", "random streams": "Rngs"}.get(name, "Linear")
    text = (
        rf"PCLayer expected module to be a module, or a function without one, got a function around "
        rf"a {kind}, which would never be trained or saved; give modules themselves, as in "
        rf"nnx\.Sequential\("
    )
    with pytest.raises(TypeError, match=text):
        pc.PCLayer(hiding()[name])


def test_every_argument_that_is_a_function_is_looked_at():
    hidden, rngs = hiding()["a closure"], nnx.Rngs(0)
    for argument, make in {
        "activation": lambda: pc.PCDense(3, 3, activation=hidden, rngs=rngs),
        "norm": lambda: pc.PCConv(3, 3, 3, norm=hidden, rngs=rngs),
        "shortcut": lambda: pc.PCResidual(LINEAR, shortcut=hidden),
    }.items():
        with pytest.raises(TypeError, match=f"expected {argument} to be a module, or a function"):
            make()
    with pytest.raises(TypeError, match="PCMLP expected activation to be"):
        pc.PCMLP(3, 4, activation=hidden, rngs=rngs)


def test_functions_that_hide_nothing_are_taken():
    """Constants, modules without arrays, jax's own functions and modules in sight."""
    flatten, constant = pc.layers.Flatten(), jnp.ones(3)
    for function in (
        jnp.tanh,
        jax.nn.gelu,
        functools.partial(jax.nn.leaky_relu, negative_slope=0.1),
        lambda below: jnp.tanh(flatten(below) * constant),
        LINEAR,
        nnx.Sequential(flatten, LINEAR, jax.nn.relu, lambda below: 2 * below),
        nnx.BatchNorm(3, rngs=nnx.Rngs(0)),
    ):
        assert pc.PCLayer(function).module is function


def test_a_variable_not_assigned_yet_is_no_reason_to_fail():
    layer = pc.PCLayer(lambda below: below * later)
    later = 3.0
    assert layer.predict(jnp.ones((1, 2))).sum() == 6.0
