"""What compiled programs move between eight devices, counted in their text."""

import collections
import dataclasses
import math
import re

import jax
import pytest

import pcflax as pc
from benchmarks import on_paper, scaling
from pcflax.training import fitting
from tests.sharding.eight.common import BATCH, DEPTH, PLACEMENTS, WIDTH, digits, trainer

KINDS = "all-gather|all-reduce|collective-permute|reduce-scatter|all-to-all|collective-broadcast"
SLAB = BATCH * WIDTH * 8  # bytes of one layer's activity
DESCENT = pc.inference.GradientDescent(0.1, num_steps=3)


class Compiled(Exception):
    """The program is known, and need not run."""


def program(monkeypatch, rule, placement, dropout=0.0):
    """The compiled text of a Trainer's call of many batches."""
    found = {}

    def spy(*arguments, **options):
        found["text"] = fitting_call.lower(*arguments, **options).compile().as_text()
        raise Compiled

    fitting_call = fitting.learn_batches
    monkeypatch.setattr(fitting, "learn_batches", spy)
    with pytest.raises(Compiled):
        trainer(rule, PLACEMENTS[placement], dropout=dropout).fit(digits(), num_steps=3)
    return found["text"]


def moved(text):
    """[(whether in a loop of inference, kind, bytes of the largest array, bytes of all)]."""
    found = []
    for line in re.sub(r"/\*index=\d+\*/", "", text).splitlines():
        match = re.search(rf"= (\(?[^=]*?\)?) ({KINDS})(-start)?\(", line)
        if match is None:
            continue
        sizes = [
            math.prod(int(size) for size in shape.split(",") if size) * int(bits) // 8
            for bits, shape in re.findall(r"[a-z]+(\d+)\[([\d,]*)\]", match[1])
        ]
        # the first loop is that of batches
        name = re.search(r'op_name="([^"]*)"', line)
        inner = name is not None and name[1].count("while/body") >= 2
        found.append((inner, match[2], max(sizes), sum(sizes)))
    return found


def test_the_reader_of_programs_sees_what_moves():
    """If it saw nothing, the tests below could not fail."""
    mesh = PLACEMENTS["data"].mesh()
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    array = jax.device_put(jax.numpy.ones((16, 3)), place)
    text = jax.jit(lambda a: a.sum(0)).lower(array).compile().as_text()
    assert moved(text) == [(False, "all-reduce", 24, 24)]


def test_split_examples_move_nothing_in_inference_and_one_gradient_a_batch(monkeypatch):
    """Examples do not touch each other; a batch's gradient is a sum over them."""
    # enough steps that an error reaches each layer: else its gradient is 0, and does not travel
    rule = pc.learning.PredictiveCoding(dataclasses.replace(DESCENT, num_steps=DEPTH + 1))
    found = moved(program(monkeypatch, rule, "data", dropout=0.2))
    (reduction,) = found  # the metrics' sums travel with it
    inner, kind, _, total = reduction
    weights = 64 * WIDTH + WIDTH + DEPTH * (WIDTH + 1) * WIDTH + (WIDTH + 1) * 10
    assert (inner, kind) == (False, "all-reduce")
    assert weights * 8 <= total < weights * 8 + 400


@pytest.mark.parametrize(
    ("placement", "shares"), [("layers", 1), ("data, layers", 2)], ids=["layers", "data, layers"]
)
def test_spread_layers_hand_one_activity_to_their_neighbors(monkeypatch, placement, shares):
    """Neighbors exchange a slab each way; the ends of the stack meet the layers that all devices have."""
    found = moved(program(monkeypatch, pc.learning.PredictiveCoding(DESCENT), placement))
    slab = SLAB // shares
    inner = [(kind, largest) for is_inner, kind, largest, _ in found if is_inner]
    parts = PLACEMENTS[placement].mesh().shape["layers"]
    assert collections.Counter(inner) == {
        ("collective-permute", slab): 2,  # up, of what is predicted from, and down, of its error
        ("all-reduce", slab): 1,  # the top for the layers above, and the error for those below
        ("collective-permute", slab // parts): 1,  # a part of the batch in the pass upward
    }
    # elsewhere nothing as large as a device's own weights, but for the sum of their gradient over data
    rest = [(kind, largest) for is_inner, kind, largest, _ in found if not is_inner]
    assert all(size <= slab for kind, size in rest if kind != "all-reduce")
    assert not any(kind == "all-gather" and size > 8 * DEPTH for kind, size in rest)
    assert not any(kind == "all-to-all" for kind, _ in rest)


@pytest.mark.parametrize("placement", ["layers", "data, layers"])
def test_error_coordinates_travel_as_a_pipeline(monkeypatch, placement):
    """Weights and activities stay where they are, on the way up and back."""
    inference = pc.inference.ErrorCoordinates(DESCENT)
    found = moved(program(monkeypatch, pc.learning.PredictiveCoding(inference), placement))
    shares = PLACEMENTS[placement].mesh().shape["data"]
    assert not any(kind == "all-to-all" for _, kind, _, _ in found)
    assert all(size <= 8 * DEPTH for _, kind, size, _ in found if kind == "all-gather")
    permuted = {size for _, kind, size, _ in found if kind == "collective-permute"}
    assert max(permuted) == SLAB // shares


def test_dropout_moves_no_more(monkeypatch):
    """A mask is drawn where its layer lies; the pass upward then goes in one part."""
    found = moved(
        program(monkeypatch, pc.learning.PredictiveCoding(DESCENT), "layers", dropout=0.2)
    )
    inner = collections.Counter((kind, size) for is_inner, kind, size, _ in found if is_inner)
    assert inner == {("collective-permute", SLAB): 3, ("all-reduce", SLAB): 1}


def test_the_benchmark_tells_what_a_device_does_in_a_step():
    """Of 4 of 8 layers of width 16 and 16 examples in float32, and the output's layer of 10 classes."""
    job = scaling.Job(16, 8, 16)
    row = scaling.row(job, pc.sharding.layers(2))
    slab = 16 * 16 * 4
    assert row["step_flops"] == 4 * 16 * (4 * 16**2 + 16 * 10)
    assert row["step_sent"] == 2 * slab + 2 * slab  # up and down; a ring of two slabs among two
    assert row["collectives"].startswith(
        f"2 + 1 collective-permute of {slab} among 2; 1 + 0 all-re"
    )
    paper = on_paper.step(
        on_paper.Job(16, 8), on_paper.Place(layers=2), on_paper.Machine(), job.batch
    )
    assert paper.sent == row["step_sent"]
    grown = scaling.grown(job, pc.sharding.layers(2) | pc.sharding.features(4))
    assert grown == scaling.Job(32, 16, 16)
