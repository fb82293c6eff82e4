"""Streamed data: the same batches as in memory, wherever reading begins.

The oracle is the in-memory data set with the same arrays, decoder and seed.
"""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from pcflax.data.decoder import Decoder

DECODER = Decoder(scale=1 / 255, mean=(0.2,), std=(0.7,), flatten=True, num_classes=4)
OPTIMIZER = optax.adam(1e-2)
RULE = pc.learning.PredictiveCoding(pc.inference.GradientDescent(optax.sgd(0.1), num_steps=3))


class Source:
    """Byte images of 2 x 3 with labels, as (inputs, target) pairs."""

    def __init__(self, num_examples=11):
        random = np.random.default_rng(0)
        self.images = random.integers(0, 256, (num_examples, 2, 3, 1)).astype(np.uint8)
        self.labels = random.integers(0, 4, num_examples).astype(np.int32)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


def make_pair(batch_size=3, *, shuffle=True, seed=7, num_threads=4):
    """The same examples streamed and in memory."""
    source = Source()
    options = {
        "decoder": DECODER,
        "batch_size": batch_size,
        "shuffle": shuffle,
        "seed": seed,
        "name": "images",
    }
    stream = pc.data.StreamDataset(source, num_threads=num_threads, **options)
    return stream, pc.data.ArrayDataset(source.images, source.labels, **options)


def assert_same_items(stream, stored, start, count):
    rows = stored.indices(start, count)
    images, labels, _ = stream.items(start, count)
    np.testing.assert_array_equal(images, stored.inputs[rows])
    np.testing.assert_array_equal(labels, stored.targets[rows])


def test_another_seed_has_a_reader_of_its_own():
    """Two seeds read at once, each in the order of a set made with its seed."""
    stream, stored = make_pair()
    assert_same_items(stream, stored, 0, 2)
    other = stream.with_seed(8)
    assert_same_items(other, make_pair(seed=8)[1], 2, 2)
    assert_same_items(stream, stored, 2, 2)
    assert_same_items(other, stored.with_seed(8), 4, 1)
    with pytest.raises(ValueError, match="expected seed < 2\\*\\*32"):
        stored.with_seed(2**32)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 11])
def test_batches_are_those_of_the_set_in_memory(batch_size, shuffle):
    """Otherwise a result would depend on whether the data fit into memory."""
    stream, stored = make_pair(batch_size, shuffle=shuffle)
    assert len(stream) == len(stored)
    for epoch in (0, 1):
        for one, other in zip(stream.epoch(epoch), stored.epoch(epoch), strict=True):
            np.testing.assert_array_equal(one.inputs, other.inputs)
            np.testing.assert_array_equal(one.targets, other.targets)


@pytest.mark.parametrize("num_threads", [1, 4])
def test_reading_on_goes_over_epoch_boundaries(num_threads):
    stream, stored = make_pair(num_threads=num_threads)  # 3 batches an epoch
    start = 0
    for count in (2, 2, 1, 6, 3):
        assert_same_items(stream, stored, start, count)
        start += count


def test_a_jump_forth_or_back_starts_reading_there():
    """A resumed run begins in the middle of an epoch, and must see what it would have seen."""
    stream, stored = make_pair()
    for start, count in ((0, 2), (7, 3), (10, 1), (1, 2), (1, 2), (100, 4), (5, 1)):
        assert_same_items(stream, stored, start, count)


def test_a_fresh_stream_in_the_middle_equals_one_read_from_the_start():
    straight, _ = make_pair()
    seen = straight.items(0, 8)
    resumed, _ = make_pair()
    for whole, part in zip(seen, resumed.items(5, 3), strict=True):
        np.testing.assert_array_equal(whole[5:], part)


def test_evaluation_in_the_middle_of_training_moves_nothing():
    stream, stored = make_pair()
    assert_same_items(stream, stored, 0, 2)
    list(stream.evaluation_items(2))
    stream.spec()
    assert_same_items(stream, stored, 2, 2)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_evaluation_covers_each_example_once_in_stored_order(batch_size):
    stream, stored = make_pair(batch_size)
    images = [items[0][valid] for items, valid in stream.evaluation_items(2)]
    np.testing.assert_array_equal(np.concatenate(images), stored.inputs)


def test_nothing_lives_on_the_device():
    stream, stored = make_pair()
    assert jax.tree.leaves(stream.constants()) == []
    assert stream.spec() == stored.spec()
    assert stream.description() == stored.description()


def test_training_and_measuring_end_with_the_same_numbers():
    """The compiled loop must not tell a streamed set from one in memory."""
    results = []
    for data in make_pair(batch_size=4):
        rngs = nnx.Rngs(0)
        network = pc.PCNetwork(
            [
                pc.PCDense(6, 5, activation=jnp.tanh, rngs=rngs),
                pc.PCDense(5, 4, rngs=rngs),
            ]
        )
        trainer = pc.Trainer(network, OPTIMIZER, learning=RULE, progress=False)
        trainer.fit(data, num_steps=7)
        measured = trainer.evaluate(data)
        results.append((jax.tree.leaves(nnx.state(network, nnx.Param)), measured))
    (streamed, streamed_metrics), (stored, stored_metrics) = results
    for one, other in zip(streamed, stored, strict=True):
        # two programs (one gathers, one does not): equal but for rounding in float32
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert streamed_metrics == pytest.approx(stored_metrics, rel=1e-5)


def test_an_empty_source_is_refused():
    with pytest.raises(ValueError, match="data set 'images' is empty; expected at least one"):
        pc.data.StreamDataset([], decoder=DECODER, batch_size=1, name="images")


def test_a_batch_larger_than_the_source_is_refused():
    text = "batch_size 12 is larger than data set 'stream' with its 11 examples; give a batch_size"
    with pytest.raises(ValueError, match=text):
        pc.data.StreamDataset(Source(), decoder=DECODER, batch_size=12)


def test_a_label_out_of_range_is_told_when_it_is_read():
    """Its one-hot row would be all zeros, a target that no class has."""
    source = [(np.zeros(3, np.uint8), np.asarray(label, np.int32)) for label in (0, 1, 7, 1)]
    data = pc.data.StreamDataset(
        source, decoder=Decoder(num_classes=2), batch_size=2, shuffle=False
    )
    with pytest.raises(ValueError, match="label 7 in 'stream' is out of range; expected 0 to 1"):
        list(data)


class Failing(Source):
    """A source that raises at one example, as often as it is asked."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def __getitem__(self, index):
        if index == 7 and self.error is not None:
            raise self.error
        return super().__getitem__(index)


@pytest.mark.parametrize(
    "error", [StopIteration(), OSError("disk fell off"), ValueError("bad jpeg\nat 0x17")]
)
def test_a_source_that_raises_is_named_with_the_example(error):
    """StopIteration, of a forgotten next(), would end the epoch early and train on other batches."""
    source = Failing(error)
    options = {"decoder": DECODER, "batch_size": 3, "shuffle": False, "name": "mine"}
    data = pc.data.StreamDataset(source, **options)
    data.items(0, 1)
    text = f"the source of 'mine' failed at example 7: {type(error).__name__}"
    for read in (lambda: data.items(1, 3), lambda: list(data.evaluation_items(4))):
        with pytest.raises(RuntimeError, match=text) as caught:
            read()
        assert caught.value.__cause__ is not None
        assert "\n" not in str(caught.value)
    source.error = None  # mended: the same call gives what it should have given
    stored = pc.data.ArrayDataset(source.images, source.labels, seed=0, **options)
    assert_same_items(data, stored, 1, 3)


def test_an_example_of_another_shape_is_named():
    source = [(np.zeros(3), np.int32(0)), (np.zeros(3), np.int32(0)), (np.zeros(2), np.int32(0))]
    data = pc.data.StreamDataset(source, decoder=Decoder(), batch_size=1, shuffle=False)
    text = r"example 2 of 'stream' has shapes \(\(2,\), \(\)\), and examples before it \(\(3,\), \(\)\)"
    with pytest.raises(ValueError, match=text):
        data.items(0, 3)


def test_examples_of_another_byte_order_are_read():
    source = [(np.array([i, 2.5], ">f4"), np.array(i, ">i4")) for i in range(3)]
    data = pc.data.StreamDataset(
        source, decoder=Decoder(num_classes=3), batch_size=3, shuffle=False, num_threads=np.int8(1)
    )
    batch = next(iter(data))
    np.testing.assert_array_equal(batch.inputs, [[0, 2.5], [1, 2.5], [2, 2.5]])
    np.testing.assert_array_equal(batch.targets, np.eye(3))


class Counting:
    """Large examples, all of one byte in memory, that count how often they are read."""

    def __init__(self, num_bytes, num_examples=200):
        self.num_bytes, self.num_examples, self.reads = num_bytes, num_examples, 0
        self.lock = threading.Lock()

    def __len__(self):
        return self.num_examples

    def __getitem__(self, index):
        with self.lock:
            self.reads += 1
        return np.broadcast_to(np.uint8(index), (self.num_bytes,)), np.int32(0)


@pytest.mark.parametrize(
    ("num_bytes", "batch_size", "ahead"),
    [
        (1, 3, 16 * 3),  # small: batches count
        (2**22, 4, 15),  # 4 MB and a label's 4 bytes: less than 16 fit 64 MB
        (2**24, 3, 2 * 3),  # 48 MB a batch: two of them
    ],
)
def test_reading_ahead_is_bounded_by_bytes(num_bytes, batch_size, ahead):
    """Batches of 100 MB, read 16 ahead, would fill the memory."""
    source = Counting(num_bytes)
    options = {"decoder": Decoder(), "batch_size": batch_size, "shuffle": False}
    stream = pc.data.StreamDataset(source, **options)
    for start in (0, 1):
        images, _, _ = stream.items(start, 1)
        first = start * batch_size
        np.testing.assert_array_equal(images[0, :, -1], np.arange(first, first + batch_size))
    expected = 1 + 2 * batch_size + ahead  # one tells the size
    deadline = time.monotonic() + 10
    while source.reads < expected and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)  # in which more would be read
    assert source.reads == expected
