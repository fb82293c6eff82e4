"""The transposed convolution of `PCConvTranspose` as a sum of matrix products.

Oracle: `jax.lax.conv_transpose` and what jax makes of it, forward, backward and transposed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pcflax as pc
from pcflax.layers.kernels.spreading import spread

CASES = {
    "plain": ((2, 5, 4, 3), (3, 3), {}),
    "strides": ((2, 4, 3, 3), (3, 2), {"strides": (2, 3)}),
    "strides beyond the kernel": ((2, 4, 3, 3), (2, 2), {"strides": (3, 4)}),
    "valid": ((2, 4, 3, 3), (3, 4), {"strides": (2, 1), "padding": "VALID"}),
    "dilation": ((2, 5, 4, 3), (3, 2), {"strides": (1, 2), "kernel_dilation": (2, 3)}),
    "pairs": ((1, 5, 6, 2), (2, 3), {"strides": (2, 2), "padding": ((0, 2), (3, 1))}),
    "one number": ((1, 5, 6, 2), (2, 3), {"padding": 1}),
    "cut off": ((1, 9, 2), (2,), {"strides": (2,), "padding": [(-1, -2)]}),
    "one dimension": ((3, 9, 2), (4,), {"strides": (2,), "use_bias": False}),
    "volumes": ((1, 3, 2, 3, 2), (2, 3, 2), {"strides": (1, 2, 1), "padding": "VALID"}),
    "one place": ((2, 4, 4, 3), (1, 1), {"strides": (2, 2)}),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request, double):
    shape, kernel, options = request.param
    options = {"strides": (1,) * len(kernel), "kernel_dilation": (1,) * len(kernel)} | options
    make = nnx.ConvTranspose
    conv = make(shape[-1], 5, kernel, param_dtype=jnp.float64, rngs=nnx.Rngs(0), **options)
    if conv.bias is not None:
        conv.bias.set_value(jnp.linspace(-1.0, 2.0, 5))
    return conv, jnp.asarray(np.random.RandomState(0).normal(size=shape))


def test_values_and_derivatives(case):
    """Value, both gradients, forward over backward: of the weights and of what is below."""
    conv, x = case
    graph, state = nnx.split(conv)

    def of(apply):
        def applied(state, x):
            return apply(nnx.merge(graph, state), x)

        def energy(state, x):
            return jnp.sum(jnp.tanh(applied(state, x)) ** 2)

        @jax.jit  # one program, not one for each operation
        def all_of_it(state, x):
            pushed = jax.jvp(jax.grad(energy, argnums=1), (state, x), (state, jnp.sin(x)))[1]
            return applied(state, x), jax.grad(energy, argnums=(0, 1))(state, x), pushed

        return all_of_it(state, x)

    for got, expected in zip(
        jax.tree.leaves(of(spread)), jax.tree.leaves(of(lambda c, x: c(x))), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-11)


def test_products_stand_in_for_the_convolution_of_the_layer():
    layer = pc.PCConvTranspose(3, 4, 3, strides=2, rngs=nnx.Rngs(0))
    text = str(
        jax.make_jaxpr(jax.grad(lambda x: jnp.sum(layer.predict(x) ** 2)))(jnp.ones((2, 5, 6, 3)))
    )
    assert "conv_general_dilated" not in text


@pytest.mark.parametrize(
    "options", [{"padding": "CIRCULAR"}, {"transpose_kernel": True}, {"precision": "highest"}]
)
def test_rare_options_are_left_to_flax(options):
    conv = nnx.ConvTranspose(3, 3, (3, 3), (2, 2), rngs=nnx.Rngs(0), **options)
    x = jnp.ones((2, 4, 5, 3))
    text = str(jax.make_jaxpr(lambda x: spread(conv, x))(x))
    assert "conv_general_dilated" in text
    np.testing.assert_array_equal(spread(conv, x), conv(x))
