"""What a compiled program costs.

Oracles: sizes by hand; XLA's own analysis where nothing loops, which counts a loop's body once.
"""

import jax
import jax.numpy as jnp
import pytest

from pcflax.networks.programs import count


def compiled(function, *shapes):
    structs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).lower(*structs).compile()


def chain(x, a, b):
    return jnp.tanh(jnp.tanh(x @ a) @ b)


def test_without_a_loop_it_is_what_xla_says():
    program = compiled(chain, (4, 6), (6, 10), (10, 3))
    found, told = count(program.as_text()), program.cost_analysis()
    assert found.flops == 2 * 4 * (6 * 10 + 10 * 3)
    # XLA counts what is elementwise, too: nothing here but tanh, which it calls a transcendental
    assert told["flops"] == found.flops
    assert found.bytes == pytest.approx(told["bytes accessed"], rel=0.02)
    assert found.bounded


def test_loops_count_as_often_as_they_turn():
    def nested(x, a):
        def inner(x, _):
            return jnp.tanh(x @ a), None

        def outer(x, _):
            return jax.lax.scan(inner, x, length=5)[0] + 1, None

        return jax.lax.scan(outer, x, length=3)[0]

    program = compiled(nested, (4, 6), (6, 6))
    assert count(program.as_text()).flops == 15 * 2 * 4 * 6 * 6
    assert program.cost_analysis()["flops"] < 2 * 2 * 4 * 6 * 6


def test_a_loop_that_ends_by_what_it_finds_is_counted_once_and_said_so():
    def grow(x, a):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 1, lambda x: x @ a, x)

    found = count(compiled(grow, (4, 6), (6, 6)).as_text())
    assert (found.flops, found.bounded) == (2 * 4 * 6 * 6, False)


def test_a_loop_over_stacked_weights_reads_each_of_them_once_or_so():
    """The whole stack is an operand at every turn, of which one layer is sliced."""

    def stack(x, kernels):
        return jax.lax.scan(lambda x, a: (jnp.tanh(x @ a), x), x, kernels)

    depth, width, batch = 16, 32, 4
    found = count(compiled(stack, (batch, width), (depth, width, width)).as_text())
    assert found.flops == depth * 2 * batch * width * width
    kernels, activities = 4 * depth * width * width, 4 * depth * batch * width
    # sliced (read and written) and multiplied; the activities in a few instructions
    assert kernels < found.bytes < 3 * kernels + 20 * activities


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_count_their_windows(groups):
    def convolve(x, kernel):
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=dimensions, feature_group_count=groups
        )

    below, above = 4, 6
    found = count(compiled(convolve, (2, 8, 8, below), (3, 3, below // groups, above)).as_text())
    assert found.flops == 2 * 2 * 8 * 8 * 9 * (below // groups) * above


def test_of_branches_the_dearest_counts():
    """A device that takes the cheap one waits for another that does not."""

    def either(flag, x, a, b):
        return jax.lax.cond(flag, lambda: x @ a @ b, lambda: x @ a)

    structs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in [(4, 6), (6, 6), (6, 6)]]
    text = jax.jit(either).lower(jax.ShapeDtypeStruct((), bool), *structs).compile().as_text()
    assert count(text).flops == 2 * 2 * 4 * 6 * 6


COLLECTIVES = """
HloModule jit_f, num_partitions=8

ENTRY %main (x: f32[16,4], y: f32[]) -> f32[16,4] {
  %x = f32[16,4]{1,0} parameter(0)
  %y = f32[] parameter(1)
  %a = (f32[16,4]{1,0}, /*index=5*/f32[]) all-reduce(%x, %y), replica_groups={{0,1},{2,3},{4,5},{6,7}}
  %b = (f32[16,4]{1,0}, f32[64,4]{1,0}) all-gather-start(%x), replica_groups=[2,4]<=[4,2]T(1,0)
  %c = f32[64,4]{1,0} all-gather-done(%b)
  %d = f32[2,4]{1,0} reduce-scatter(%x), replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1'}
  %e = f32[16,4]{1,0} all-to-all(%x), replica_groups=mesh['axis_0'=8], device_ids=([8]) {'axis_0':(2)4}
  %f = f32[16,4]{1,0} collective-permute(%x), source_target_pairs={{0,1},{1,2}}
  ROOT %g = f32[16,4]{1,0} all-reduce(%x), replica_groups={}
}
"""


def test_what_a_device_sends_is_what_a_ring_moves():
    """Sizes and groups in each way that XLA writes them: an array is 16 x 4 floats, 256 bytes."""
    found = count(COLLECTIVES)
    assert found.collectives == {
        ("all-reduce", 260, 2): 1,
        ("all-gather", 256, 4): 1,
        ("reduce-scatter", 256, 8): 1,
        ("all-to-all", 256, 4): 1,
        ("collective-permute", 256, 8): 1,
        ("all-reduce", 256, 8): 1,
    }
    parts = [260, 3 * 256, 256 * 7 / 8, 256 * 3 / 4, 256, 2 * 256 * 7 / 8]
    assert found.sent == sum(parts)
