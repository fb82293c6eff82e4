"""Loaders of others as data sets: the batches are the loader's own, wherever reading begins.

The oracle is the loader itself, iterated. torch is not needed: `TorchLike` has its protocol.
"""

import itertools
import warnings

import grain
import jax
import numpy as np
import pytest

import pcflax as pc
from pcflax.data import loader as loader_module
from pcflax.errors import CheckpointWarning

X = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
Y = np.arange(10) % 3


class Tensor:
    """An array that says nothing of itself in NumPy's words."""

    def __init__(self, array):
        self.array, self.dtype = np.asarray(array), "torch.float32"

    def __array__(self, dtype=None, copy=None):
        return self.array


class TorchLike:
    """The protocol of torch's DataLoader; shuffled, each pass has another order, whoever began it."""

    def __init__(self, *, shuffle=False, batch_size=3, drop_last=False, **options):
        self.dataset, self.sampler = list(zip(X, Y, strict=True)), range(10)
        self.batch_size, self.drop_last, self.shuffle = batch_size, drop_last, shuffle
        self.num_workers, self.multiprocessing_context = 0, None
        self.random = np.random.default_rng(1)
        vars(self).update(options)

    def __len__(self):
        return 10 // self.batch_size if self.drop_last else -(-10 // self.batch_size)

    def __iter__(self):
        order = self.random.permutation(10) if self.shuffle else np.arange(10)
        for number in range(len(self)):
            rows = order[number * self.batch_size : (number + 1) * self.batch_size]
            yield [Tensor(X[rows]), Tensor(Y[rows])]


class Stateful(TorchLike):
    """The protocol of torchdata's StatefulDataLoader: the state is that of the newest pass."""

    def __init__(self, seed=1, **options):
        super().__init__(shuffle=True, **options)
        self.random = np.random.default_rng(seed)
        self.drawn, self.seen, self.told = None, 0, None

    def state_dict(self):
        return {"drawn": self.drawn, "seen": self.seen, (0, "kinds"): [b"\x00", np.arange(2), None]}

    def load_state_dict(self, state):
        assert state[0, "kinds"][0] == b"\x00"
        np.testing.assert_array_equal(state[0, "kinds"][1], np.arange(2))
        self.told = state

    def __iter__(self):
        told, self.told = self.told, None
        if told is not None:
            self.random.bit_generator.state = told["drawn"]
        self.drawn, self.seen = self.random.bit_generator.state, 0 if told is None else told["seen"]
        return self._pass(list(super().__iter__()))

    def _pass(self, batches):
        while self.seen < len(batches):
            self.seen += 1
            yield batches[self.seen - 1]


def examples():
    return grain.MapDataset.range(10).shuffle(seed=4).map(lambda i: (X[i], Y[i]))


def grain_loader(pairs=None):
    sampler = grain.samplers.IndexSampler(
        num_records=10,
        shuffle=True,
        seed=2,
        num_epochs=3,
        shard_options=grain.sharding.NoSharding(),
    )
    pairs = [(X[i], Y[i]) for i in range(10)] if pairs is None else pairs
    batch = grain.transforms.Batch(batch_size=3, drop_remainder=True)
    return grain.DataLoader(data_source=pairs, sampler=sampler, operations=[batch])


KEEPING = {
    "MapDataset": lambda: examples().batch(3),
    "IterDataset": lambda: examples().to_iter_dataset().batch(3),
    "DataLoader": grain_loader,
    "state_dict": Stateful,
}


def wrapped(loader, **options):
    return pc.data.from_loader(loader, num_classes=3, name="mine", **options)


def assert_batches(items, expected):
    """Stored items are these batches of (inputs, labels)."""
    for number, (inputs, labels) in enumerate(expected):
        np.testing.assert_array_equal(items[0][number], inputs)
        np.testing.assert_array_equal(items[1][number], labels)
    assert len(items[0]) == len(expected)


def complete(batches, count):
    return list(itertools.islice((b for b in batches if len(b[0]) == 3), count))


def test_training_repeats_a_map_dataset_with_its_shuffling():
    """And leaves out the smaller batch at the end of each pass."""
    data = wrapped(examples().batch(3))
    assert (data.num_examples, data.num_batches, len(data), data.batch_size) == (10, 3, 4, 3)
    expected = complete(examples().batch(3).repeat(), 8)
    assert_batches(data.items(0, 2), expected[:2])
    assert_batches(data.items(2, 6), expected[2:])
    assert not np.array_equal(expected[0][1], expected[3][1])  # the second pass is another


def test_what_ends_begins_again():
    data = wrapped(examples().to_iter_dataset().batch(3))
    assert_batches(
        data.items(0, 7), complete(examples().batch(3), 3) * 2 + complete(examples().batch(3), 1)
    )


def test_batches_are_evaluated_once_and_the_last_is_filled_up():
    data = wrapped(TorchLike())
    data.items(0, 2)
    found = list(data.evaluation_items(3))
    valid = np.concatenate([valid for _, valid in found]).reshape(-1)
    inputs = np.concatenate([items[0] for items, _ in found]).reshape(-1, 3)
    np.testing.assert_array_equal(inputs[valid], X)
    np.testing.assert_array_equal(inputs[10:], X[[9, 9]])
    assert [len(items[0]) for items, _ in found] == [3, 1]
    assert [len(batch.inputs) for batch in data.batches()] == [3, 3, 3, 1]
    assert_batches(data.items(2, 1), [(X[6:9], Y[6:9])])  # training did not move


def test_a_batch_is_read_as_arrays_are():
    """Bytes are scaled, labels become rows, float64 becomes float32."""
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    batches = [{"image": images, "label": np.array([2, 0], np.int64)}]
    data = wrapped(batches, keys=("image", "label"), flatten=True)
    batch = next(iter(data))
    np.testing.assert_allclose(batch.inputs, images.reshape(2, 12) / 255, rtol=1e-6)
    np.testing.assert_array_equal(batch.targets, np.eye(3)[[2, 0]])
    turned = pc.data.from_loader(batches, keys=("label", "image"), num_classes=3)
    inputs, targets = next(iter(turned))
    assert (inputs.shape, targets.shape) == ((2, 3), (2, 3, 4))
    alone = pc.data.from_loader([{"x": X[:2]}], keys=(None, "x"))
    assert next(iter(alone)).inputs is None
    assert next(iter(pc.data.from_loader([X[:2].astype(float)]))).inputs.dtype == np.float32
    tokens = pc.data.from_loader([(np.ones((2, 5), int), X[:2])], integer_inputs=True)
    assert next(iter(tokens)).inputs.dtype == np.int32
    known = pc.data.from_loader([(X[:2], (Y[:2], np.array([True, False])))], num_classes=3)
    np.testing.assert_array_equal(next(iter(known)).targets.mask, [[True], [False]])


@pytest.mark.parametrize("kind", KEEPING)
def test_a_loader_that_keeps_its_place_goes_on_from_every_batch(kind):
    """Also from within what was read in one call, where a step failed."""
    make = KEEPING[kind]
    whole = wrapped(make()).items(0, 9)
    data = wrapped(make())
    data.items(0, 3)
    for number in (1, 3, 5):
        if number == 5:
            data.items(3, 4)
        place = data.position(number)
        other = wrapped(make())
        other.go_to(number, place)
        for one, all_of_them in zip(other.items(number, 2), whole, strict=True):
            np.testing.assert_array_equal(one, all_of_them[number : number + 2])
    assert data.position(2) is None
    assert data.position(8) is None
    for start in (1, 6):  # back, and forth by reading
        for one, all_of_them in zip(data.items(start, 2), whole, strict=True):
            np.testing.assert_array_equal(one, all_of_them[start : start + 2])


def test_an_evaluation_takes_no_place_from_training():
    """Of the one loader that both read: training goes on as one that was resumed there does."""
    data = wrapped(Stateful())
    data.items(0, 2)
    place = data.position(2)
    list(data.evaluation_items(1))
    rest = data.items(2, 5)
    other = wrapped(Stateful(seed=8))
    other.go_to(2, place)
    for one, expected in zip(other.items(2, 5), rest, strict=True):
        np.testing.assert_array_equal(one, expected)


def test_the_generator_of_a_loader_is_kept_too():
    """Since a new pass draws from it what a resumed one does not."""

    class Generator:
        state = 5

        def get_state(self):
            return self.state

        def set_state(self, state):
            self.state = state

    data = wrapped(Stateful(generator=Generator()))
    data.items(0, 1)
    other = wrapped(Stateful(generator=Generator()))
    other.loader.generator.state = 9
    other.go_to(1, data.position(1))
    other.items(1, 1)
    assert other.loader.generator.state == 5


def test_a_place_that_no_checkpoint_can_hold_is_told():
    class Live(Stateful):
        def state_dict(self):
            return {"open": object()}

    with pytest.raises(
        TypeError, match=r"the state_dict\(\) of a loader holds one object, which no"
    ):
        wrapped(Live())


def test_an_order_that_the_state_does_not_hold_warns():
    kind = type("WeightedRandomSampler", (), {"__module__": "torch.utils.data.sampler"})
    sampler = kind()
    sampler.generator = None
    kind.__len__ = lambda self: 10
    data = wrapped(Stateful(sampler=sampler))
    data.items(0, 1)
    data.go_to(1, data.position(1))
    data.items(1, 1)  # a live one goes on without a word
    with pytest.warns(CheckpointWarning, match="order of its WeightedRandomSampler, so training"):
        data.items(0, 1)


def test_a_loader_without_a_place_goes_on_after_what_was_seen():
    """Exact where it does not shuffle; else the rest of a pass has other examples, and as many batches."""
    text = "'mine' keeps no place in its batches, so training goes on after the first 1 of a new pass, as"
    for shuffle in (False, True):
        data = wrapped(TorchLike(shuffle=shuffle))
        whole = data.items(0, 7)
        other = wrapped(TorchLike(shuffle=shuffle, random=np.random.default_rng(5)))
        other.go_to(4, data.position(4))
        with pytest.warns(CheckpointWarning, match=text):
            rest = other.items(4, 2)
        with warnings.catch_warnings():  # once
            warnings.simplefilter("error")
            other.items(6, 3)
        assert np.array_equal(rest[0], whole[0][4:6]) != shuffle
        assert other.position(6) == {"seen": 3, "state": None}
        with pytest.warns(CheckpointWarning, match="after the first 2 of a new pass"):
            other.items(2, 1)  # a jump back


def test_a_live_loader_goes_on_without_a_word():
    data = wrapped(TorchLike(shuffle=True))
    expected = [[part.array for part in batch] for batch in TorchLike(shuffle=True)][:3]
    assert_batches(data.items(0, 3), expected)
    data.go_to(3, data.position(3))
    data.items(3, 3)
    assert data.position(4) == {"seen": 1, "state": None}


def lacking(x, y):
    return {"image": x, "label": y}


REFUSED = [
    ([], {}, ValueError, "'mine' gives no batch; expected at least one"),
    (3, {}, TypeError, "'mine' cannot be iterated; give a loader"),
    (iter([(X, Y)]), {}, TypeError, "'mine' is an iterator, which gives one pass"),
    (
        [lacking(X, Y)],
        {},
        ValueError,
        r"have the keys 'image', 'label'; say which are inputs and targets: "
        r"pc.data.from_loader\(loader, keys=\('image', 'label'\)\)",
    ),
    (
        [lacking(X, Y)],
        {"keys": ("image", "labels")},
        ValueError,
        "have the keys 'image', 'label', and not 'labels'; did you mean 'label'",
    ),
    ([(X, Y)], {"keys": ("x", "y")}, TypeError, "batch 0 of 'mine' is a tuple, which has no keys"),
    ([(X, Y, Y)], {}, ValueError, "batch 0 of 'mine' has 3 parts, expected"),
    ([(X[0], Y[0])], {}, ValueError, r"'mine' gives one example at a time, .* \.batch\(64\)"),
    ([(X, Y)], {"num_classes": None}, ValueError, r"as labels, .* num_classes=10\)"),
]


@pytest.mark.parametrize(("loader", "options", "error", "text"), REFUSED)
def test_what_is_no_loader_of_batches_is_refused(loader, options, error, text):
    with pytest.raises(error, match=text):
        pc.data.from_loader(loader, **{"num_classes": 3, "name": "mine", **options})


def test_a_tensor_elsewhere_is_told():
    class Far:
        def __array__(self, dtype=None, copy=None):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")

    with pytest.raises(
        TypeError, match="batch 0 of 'mine' cannot become NumPy's arrays .*cuda:0.*CPU"
    ):
        wrapped([(Far(), Y)])


LATER = [
    (
        (X[:3, :2], Y[:3]),
        r"batch 1 of 'mine' has float32 \(3, 2\), int32 \(3,\), and the first had",
    ),
    ((X[:4], Y[:4]), r"batch 1 of 'mine' has float32 \(4, 3\)"),
    ((X[:3], Y[:3] + 3), "batch 1 of 'mine': label 3 of example 0"),
    ((X[:3] * np.nan, Y[:3]), "batch 1 of 'mine': the inputs of 'mine' hold NaN"),
]


@pytest.mark.parametrize(("batch", "text"), LATER)
def test_a_later_batch_that_is_not_like_the_first_is_named(batch, text):
    """And is not passed over where training is tried again."""
    data = wrapped([(X[:3], Y[:3]), batch])
    assert_batches(data.items(0, 1), [(X[:3], Y[:3])])
    with pytest.raises(ValueError, match=text):
        data.items(1, 1)
    with pytest.warns(CheckpointWarning), pytest.raises(ValueError, match=text):
        data.items(1, 1)


def test_passes_that_are_not_what_the_loader_says_are_refused():
    one, few = (X[:3], Y[:3]), (X[:2], Y[:2])
    with pytest.raises(ValueError, match="batch 1 of 'mine' has 2 examples, as few as others"):
        wrapped([one, few, few]).items(0, 2)
    short = TorchLike(sampler=range(13))
    with pytest.raises(ValueError, match="a pass over 'mine' gave 3 batches of 3 .* says 4; give"):
        wrapped(short).items(0, 4)
    passes = iter([[one], []])

    class Once:
        def __iter__(self):
            return iter(next(passes))

    text = "a new pass over 'mine' gave no batch of 3 examples, as its first one did"
    with pytest.raises(ValueError, match=text):
        wrapped(Once()).items(0, 2)
    passes = iter([[one], []])
    with pytest.raises(ValueError, match=text):
        list(wrapped(Once()).evaluation_items(1))


def test_a_loader_that_raises_is_named_and_read_again_once_mended():
    broken = [True]

    def read(i):
        if i == 7 and broken[0]:
            raise OSError("disk fell off")
        return X[i], Y[i]

    data = wrapped(grain.MapDataset.range(10).map(read).to_iter_dataset().batch(2))
    data.items(0, 2)
    with pytest.raises(
        RuntimeError, match="the loader of 'mine' failed at batch 3: .*disk fell off"
    ):
        data.items(2, 2)
    broken[0] = False
    assert_batches(data.items(2, 2), [(X[4:6], Y[4:6]), (X[6:8], Y[6:8])])


def test_what_workers_of_grains_want_is_told():
    """Flags that are parsed; the test's own process has them, or not."""
    error = type("UnparsedFlagAccessError", (Exception,), {})

    def read(i):
        raise error("Trying to access flag before flags were parsed.")

    with pytest.raises(RuntimeError, match=r"parsed\. Write absl\.flags\.FLAGS\.mark_as_parsed"):
        wrapped(grain.MapDataset.range(10).map(read).batch(2))


def test_a_source_that_no_resumed_run_would_know_again_warns():
    class Source:
        def __len__(self):
            return 10

        def __getitem__(self, i):
            return X[i], Y[i]

    with pytest.warns(UserWarning, match=r"'Source.*' knows its data by repr\(\), .* a __repr__"):
        pc.data.from_loader(grain_loader(Source()), num_classes=3, name="Source")


def test_a_loader_without_a_length_has_no_epochs():
    for loader in (
        examples().repeat().batch(3),
        examples().to_iter_dataset().batch(3),
        grain_loader(),
    ):
        data = wrapped(loader)
        assert not data.has_length
        assert "num_examples" not in data.description()
        with pytest.raises(
            ValueError, match="'mine' has no length, so it has no epochs; give num_steps"
        ):
            data.num_batches  # noqa: B018
    endless = examples().repeat()
    for loader in (endless.batch(3), endless.to_iter_dataset().batch(3)):
        with pytest.raises(ValueError, match=r"'mine' never ends, .* leave out repeat\(\)"):
            next(wrapped(loader).evaluation_items(1))


def test_an_evaluation_that_may_never_end_says_so_once(monkeypatch):
    """A Python iterable does not tell; what the sentence says to give ends."""
    monkeypatch.setattr(loader_module, "_MANY", 3)

    class Endless:
        def __iter__(self):
            return itertools.repeat((X[:3], Y[:3]))

    items = wrapped(Endless()).evaluation_items(1)
    next(items), next(items)
    with pytest.warns(UserWarning, match=r"read 3 batches of 'mine', which has no length; if it"):
        next(items)
    next(items)
    first = wrapped(list(itertools.islice(Endless(), 5)))
    assert sum(len(valid) for _, valid in first.evaluation_items(1)) == 5


def test_lengths():
    """(examples, complete batches) of a pass, by what torch's loaders and lists say."""

    def lengths(loader):
        data = wrapped(loader)
        return data.num_examples, data.num_batches

    assert lengths(TorchLike(drop_last=True)) == (9, 3)
    assert lengths(TorchLike(sampler=None)) == (10, 3)
    assert lengths([(X[:3], Y[:3]), (X[3:5], Y[3:5])]) == (5, 1)
    assert lengths([(X[:3].tolist(), Y[:3]), (X[3:5].tolist(), Y[3:5])]) == (5, 1)

    class Sized:  # as a loader with a sampler of batches is
        dataset, batch_size = None, None

        def __len__(self):
            return 2

        def __iter__(self):
            return iter([(X[:3], Y[:3])] * 2)

    assert lengths(Sized()) == (6, 2)
    assert (
        wrapped(
            grain.MapDataset.range(3).map(lambda i: (X[:3], Y[:3]) if i < 2 else None)
        ).has_length
        is False
    )


@pytest.mark.parametrize("beside", [7, "a name of the batch", np.ones(9)])
def test_what_a_batch_has_beside_its_examples_counts_none(beside):
    batches = [{"a": beside, "x": X[rows], "y": Y[rows]} for rows in (slice(3), slice(3, 5))]
    data = wrapped(batches, keys=("x", "y"))
    assert (data.num_examples, data.num_batches) == (5, 1)


def test_a_last_batch_that_cannot_be_read_is_named():
    class Broken(list):
        def __getitem__(self, number):
            raise OSError("disk fell off")

    with pytest.raises(RuntimeError, match="'mine' failed at batch 1: OSError: disk fell off"):
        wrapped(Broken([(X[:3], Y[:3])] * 2))


def test_what_only_data_with_numbers_can_do_is_refused():
    data = wrapped(TorchLike())
    for ask in (lambda: data.indices(0, 1), lambda: data.order(0)):
        with pytest.raises(TypeError, match="'mine' gives batches in its loader's order"):
            ask()
    with pytest.raises(TypeError, match=r"none of seed 3; .*from_loader\(make_loader\(seed\)\)"):
        data.with_seed(3)
    with pytest.raises(ValueError, match="the batch_size of 'mine' is its loader's; set it there"):
        data.batch_size = 5


def test_a_place_of_another_loader_is_refused():
    data = wrapped(grain_loader())
    data.go_to(2, {"seen": 2, "state": '{"next_index": 2}'})
    with pytest.raises(
        ValueError, match=r"'mine' cannot go to where training stood before batch 2 \("
    ):
        data.items(2, 1)


def test_persistent_workers_are_not_shared():
    """Torch gives the one iterator there is, begun anew."""

    class Persistent(TorchLike):
        def __iter__(self):
            self.only = getattr(self, "only", None) or super().__iter__()
            return self.only

    data = wrapped(Persistent())
    data.items(0, 1)
    with pytest.raises(ValueError, match="persistent workers, .* a DataLoader of its own"):
        next(data.evaluation_items(1))


def test_forked_workers_are_told():
    for context in ("fork", jax.tree_util.Partial):  # a name, or what torch makes of it
        if context != "fork":
            context = __import__("multiprocessing").get_context("fork")
        with pytest.warns(UserWarning, match="are forked .*multiprocessing_context='forkserver'"):
            wrapped(TorchLike(num_workers=2, multiprocessing_context=context))
    wrapped(TorchLike(num_workers=2, multiprocessing_context="forkserver"))
