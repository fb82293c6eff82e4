"""The convolution of `PCConv`: its derivatives, which on CPUs are sums of matrix products.

Oracle: XLA's own convolution and what jax makes of it, forward, backward and transposed.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pcflax as pc
from pcflax.layers.kernels import convolution

CASES = {
    "plain": ((2, 7, 6, 3), (3, 3, 3, 4), (1, 1), "SAME", (1, 1)),
    "strides": ((2, 8, 7, 3), (3, 2, 3, 4), (2, 3), "SAME", (1, 1)),
    "dilation": ((2, 9, 9, 3), (3, 3, 3, 2), (1, 2), "VALID", (2, 3)),
    "uneven padding": ((1, 5, 6, 2), (2, 3, 2, 3), (1, 1), ((0, 2), (3, 1)), (1, 1)),
    "one dimension": ((3, 9, 2), (4, 2, 5), (2,), "SAME", (1,)),
    "volumes": ((1, 4, 5, 3, 2), (2, 3, 2, 2, 3), (1, 2, 1), "VALID", (1, 1, 1)),
    "one place": ((2, 4, 4, 3), (1, 1, 3, 4), (1, 1), "SAME", (1, 1)),
}


def lax(strides, padding, dilation):
    letters = "HWD"[: len(strides)]
    numbers = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
    return lambda x, k: jax.lax.conv_general_dilated(
        x, k, strides, padding, rhs_dilation=dilation, dimension_numbers=numbers
    )


def ours(strides, padding, dilation):
    return lambda x, k: convolution.convolve(x, k, strides, padding, rhs_dilation=dilation)


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request, double):
    shape, kernel, *options = request.param
    random = np.random.RandomState(0)
    arrays = [jnp.asarray(random.normal(size=size)) for size in (shape, kernel)]
    return arrays, ours(*options), lax(*options)


def test_the_value_and_both_gradients(case):
    arrays, own, other = case

    def both(function):
        value, transposed = jax.vjp(function, *arrays)
        return value, *transposed(jnp.cos(jnp.arange(value.size)).reshape(value.shape))

    (value, *gradients), (others, *expected) = (
        jax.jit(both, static_argnums=0)(f) for f in (own, other)
    )
    np.testing.assert_allclose(value, others, rtol=1e-12, atol=1e-12)
    for got, wanted in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-11)


def test_every_other_way_of_differentiating(case):
    """Forward, forward over backward, linearised and transposed, under vmap: what algorithms use."""
    (x, k), own, other = case
    direction = jnp.sin(x)

    def energy(convolve):
        return lambda x: jnp.sum(jnp.tanh(convolve(x, k)) ** 2)

    @functools.partial(jax.jit, static_argnums=0)
    def by(convolve):
        pushed = jax.linearize(lambda x: jnp.tanh(convolve(x, k)), x)[1]
        return [
            jax.jvp(lambda x: convolve(x, k), (x,), (direction,))[1],
            jax.jvp(jax.grad(energy(convolve)), (x,), (direction,))[1],
            jax.linear_transpose(pushed, x)(pushed(direction))[0],
            jax.vmap(jax.grad(lambda k, x: jnp.sum(convolve(x[None], k) ** 2)), (None, 0))(k, x),
        ]

    for got, expected in zip(by(own), by(other), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


def test_products_stand_in_for_the_gradients_of_the_layer():
    """No convolution is left in the backward pass, and one is the forward pass."""
    layer = pc.PCConv(3, 4, 3, rngs=nnx.Rngs(0))
    text = str(
        jax.make_jaxpr(jax.grad(lambda x: jnp.sum(layer.predict(x) ** 2)))(jnp.ones((1, 6, 6, 3)))
    )
    assert text.count("conv_general_dilated[") == 1
    assert text.count("dot_general[") == 9


def test_what_products_do_not_cover_stays_as_it_was():
    """Groups, and kernels of many places."""
    random = np.random.RandomState(0)
    x = jnp.asarray(random.normal(size=(1, 12, 12, 4)), jnp.float32)
    for options in ({"kernel_size": 3, "groups": 2}, {"kernel_size": 9}):
        layer = pc.PCConv(4, 4, rngs=nnx.Rngs(0), **options)
        plain = nnx.Conv(
            4,
            4,
            (options["kernel_size"],) * 2,
            feature_group_count=options.get("groups", 1),
            rngs=nnx.Rngs(0),
        )
        plain.kernel.set_value(layer.conv.kernel[...])
        got, expected = (
            jax.grad(lambda x, function=function: jnp.sum(function(x) ** 2))(x)
            for function in (layer.predict, plain)
        )
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
