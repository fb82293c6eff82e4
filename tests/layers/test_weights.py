"""Initial weights. Oracle: `nnx.initializers.lecun_normal()`, but for one rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pcflax.layers import weights


def assert_equal_but_for_one_rounding(found, expected):
    assert found.dtype == expected.dtype
    found, expected = (np.asarray(drawn, np.float32) for drawn in (found, expected))
    np.testing.assert_allclose(found, expected, rtol=float(jnp.finfo(found.dtype).eps), atol=0)


# a few numbers, more than the least count that is drawn, a kernel of a convolution, a short format
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((3, 5), jnp.float32), ((70, 60), jnp.float32), ((3, 3, 2, 4), jnp.bfloat16)],
)
def test_the_numbers_are_those_of_nnx(shape, dtype):
    key = jax.random.key(3)
    found = weights.lecun_normal(key, shape, dtype)
    expected = nnx.initializers.lecun_normal()(key, shape, dtype)
    assert_equal_but_for_one_rounding(found, expected)


def test_shapes_share_the_program_that_draws():
    weights.lecun_normal(jax.random.key(0), (4, 5))
    programs = weights._draw._cache_size()
    weights.lecun_normal(jax.random.key(0), (5, 7))
    assert weights._draw._cache_size() == programs


@pytest.mark.parametrize("count", [1, 4096, 4097, 2**20, 2**20 + 1, 10**7])
def test_what_is_drawn_is_enough_and_never_a_multiple_of_what_is_large(count):
    drawn = weights._at_least(count)
    assert count <= drawn <= max(4096, 4 * count)
    assert count <= 2**20 or drawn < count + 2**20


def test_weights_are_drawn_inside_of_compiled_code():
    drawn = jax.jit(lambda key: weights.lecun_normal(key, (3, 5)))(jax.random.key(3))
    assert_equal_but_for_one_rounding(drawn, weights.lecun_normal(jax.random.key(3), (3, 5)))
