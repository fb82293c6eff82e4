"""Data sets by name: the embedded digits, files of one's own, and TFDS.

Oracles: scikit-learn's copy of the digits, NumPy arithmetic, and the published class counts of MNIST.
TFDS is read from a folder of prepared sets where there is one (PCFLAX_TEST_DATA, or
../shared/data/tensorflow_datasets beside the repository), and from a mock otherwise.
"""

import importlib.util
import os
import re
import socket
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

import pcflax as pc
from pcflax.data.sources.digits import read_digits
from pcflax.data.sources.tfds import TfdsSource

PREPARED = Path(
    os.environ.get("PCFLAX_TEST_DATA")
    or Path(__file__).parents[4] / "shared" / "data" / "tensorflow_datasets"
)
needs_mnist = pytest.mark.skipif(
    not (PREPARED / "mnist").is_dir(),
    reason="no prepared MNIST: set PCFLAX_TEST_DATA to a folder of prepared TFDS sets",
)


class TestDigits:
    def test_they_are_scikit_learns_digits_split_in_two(self):
        """Otherwise an accuracy on them could not be compared with anybody's."""
        reference = load_digits()
        parts = [read_digits(split) for split in ("train", "test")]
        assert [len(labels) for _, labels in parts] == [1437, 360]
        images = np.concatenate([images for images, _ in parts]).reshape(1797, 64)
        labels = np.concatenate([labels for _, labels in parts])
        found = sorted((int(y), *map(int, x)) for x, y in zip(images, labels, strict=True))
        expected = zip(reference.data, reference.target, strict=True)
        assert found == sorted((int(y), *map(int, x)) for x, y in expected)

    def test_inputs_are_normalised_by_the_training_images(self):
        """Test images normalised by statistics of their own would be seen differently."""
        train, _ = read_digits("train")
        mean, std = train.mean() / 16, train.astype(np.float64).std() / 16
        for split in ("train", "test"):
            images, labels = read_digits(split)
            data = pc.data.load("digits", split=split, batch_size=100, shuffle=False)
            batch = next(iter(data))
            expected = (images[:100].reshape(100, 64) / 16 - mean) / std
            # the library's constants are rounded to four digits
            np.testing.assert_allclose(batch.inputs, expected, atol=1e-3)
            np.testing.assert_array_equal(batch.targets, np.eye(10)[labels[:100]])
        rows = np.concatenate([batch.inputs for batch in pc.data.load("digits", batch_size=479)])
        assert rows.shape == (1437, 64)
        assert rows.mean() == pytest.approx(0, abs=1e-3)
        assert rows.std() == pytest.approx(1, abs=1e-3)

    def test_training_is_shuffled_and_testing_is_not_unless_told(self):
        assert pc.data.load("digits").shuffle
        assert not pc.data.load("digits", split="test").shuffle
        assert not pc.data.load("digits", shuffle=False).shuffle
        assert pc.data.load("digits", split="test", shuffle=True).shuffle

    def test_without_flattening_images_keep_their_axes(self):
        flat = next(iter(pc.data.load("digits", batch_size=3, seed=1)))
        images = next(iter(pc.data.load("digits", batch_size=3, seed=1, flatten=False)))
        assert images.inputs.shape == (3, 8, 8, 1)
        np.testing.assert_array_equal(images.inputs.reshape(3, 64), flat.inputs)

    def test_names_tell_set_and_split(self):
        assert pc.data.load("digits", split="test").name == "digits/test"


def write_npz(path, **changes):
    """A file of 6 training and 4 test examples of width 5, where `changes` do not say otherwise."""
    random = np.random.default_rng(0)
    arrays = {
        "x_train": random.normal(size=(6, 5)),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": random.normal(size=(4, 5)),
        "y_test": np.array([1, 0, 1, 0]),
        **changes,
    }
    arrays = {name: array for name, array in arrays.items() if array is not None}
    np.savez(path, **arrays)
    return arrays


class TestFiles:
    @pytest.mark.parametrize("kind", [str, Path])
    def test_a_file_gives_its_own_arrays(self, tmp_path, kind):
        path = tmp_path / "mine.npz"
        arrays = write_npz(path)
        data = pc.data.load(kind(path), batch_size=6, shuffle=False)
        assert data.name == "mine/train"
        batch = next(iter(data))
        np.testing.assert_allclose(batch.inputs, arrays["x_train"], rtol=1e-6)  # float32
        np.testing.assert_array_equal(batch.targets, np.eye(3)[arrays["y_train"]])

    def test_both_splits_one_hot_rows_have_one_width(self, tmp_path):
        """Else a test split that lacks the last class could not be scored by the network."""
        path = tmp_path / "mine.npz"
        arrays = write_npz(path)
        batch = next(iter(pc.data.load(path, split="test", batch_size=4)))
        np.testing.assert_array_equal(batch.targets, np.eye(3)[arrays["y_test"]])

    def test_images_are_flattened_unless_told(self, tmp_path):
        path = tmp_path / "mine.npz"
        images = np.random.default_rng(1).normal(size=(6, 2, 3))
        write_npz(path, x_train=images)
        flat = next(iter(pc.data.load(path, batch_size=6, shuffle=False)))
        np.testing.assert_allclose(flat.inputs, images.reshape(6, 6), rtol=1e-6)
        kept = next(iter(pc.data.load(path, batch_size=6, shuffle=False, flatten=False)))
        assert kept.inputs.shape == (6, 2, 3)

    def test_floating_targets_are_no_labels(self, tmp_path):
        path = tmp_path / "mine.npz"
        targets = np.random.default_rng(2).normal(size=(6, 2))
        write_npz(path, y_train=targets)
        data = pc.data.load(path, batch_size=6, shuffle=False)
        assert data.num_classes is None
        np.testing.assert_allclose(next(iter(data)).targets, targets, rtol=1e-6)

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"there is no file .*absent\.npz; expected an"):
            pc.data.load(tmp_path / "absent.npz")

    def test_a_missing_array_is_named(self, tmp_path):
        path = tmp_path / "mine.npz"
        write_npz(path, y_test=None)
        text = r"mine\.npz holds x_train, y_train, x_test but not y_test; expected x_train, y_train"
        with pytest.raises(ValueError, match=text):
            pc.data.load(path, split="test")

    def test_a_negative_label_is_named(self, tmp_path):
        path = tmp_path / "mine.npz"
        write_npz(path, y_train=np.array([0, 1, 2, -1, 1, 2]))
        with pytest.raises(
            ValueError, match="label -1 of example 3 in 'mine/train' is out of range"
        ):
            pc.data.load(path, batch_size=2)

    def test_integer_inputs_are_refused(self, tmp_path):
        path = tmp_path / "mine.npz"
        write_npz(path, x_train=np.ones((6, 5), np.uint8))
        with pytest.raises(TypeError, match="the inputs of 'mine/train' have dtype uint8"):
            pc.data.load(path, batch_size=2)

    @pytest.mark.parametrize("shape", [(0, 5), (0, 2, 3)])
    def test_an_empty_split_is_called_empty(self, tmp_path, shape):
        path = tmp_path / "mine.npz"
        write_npz(path, x_train=np.zeros(shape), y_train=np.zeros(0, np.int64))
        with pytest.raises(ValueError, match="data set 'mine/train' is empty"):
            pc.data.load(path, batch_size=2)


class TestNames:
    def test_an_unknown_name_is_told_with_the_nearest_one(self):
        text = r"unknown data set 'mnits'; did you mean 'mnist'\? expected one of digits, mnist, "
        with pytest.raises(ValueError, match=text):
            pc.data.load("mnits")

    def test_a_name_like_none_is_told_without_a_guess(self):
        with pytest.raises(ValueError, match="unknown data set 'zzz'; expected one of digits, "):
            pc.data.load("zzz")

    def test_an_unknown_split_is_refused(self):
        with pytest.raises(ValueError, match="expected split 'train' or 'test', or a part"):
            pc.data.load("digits", split="validation")

    def test_a_batch_larger_than_the_set_is_refused(self):
        text = "batch_size 361 is larger than data set 'digits/test' with its 360 examples"
        with pytest.raises(ValueError, match=text):
            pc.data.load("digits", split="test", batch_size=361)


@pytest.fixture(scope="module")
def tfds():
    """The TFDS module; importing it warns of what is not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow_datasets

        yield tensorflow_datasets


@pytest.mark.usefixtures("tfds")
class TestNotPrepared:
    @pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
    def test_the_error_comes_at_once_and_names_what_to_do(self, tmp_path, name, monkeypatch):
        """TFDS by itself retries for minutes, or asks for TensorFlow, and names no way out."""
        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda n, *a: None if n == "tensorflow" else find(n, *a)
        )
        begin = time.perf_counter()
        with pytest.raises(FileNotFoundError, match=f"'{name}' is not prepared in ") as caught:
            pc.data.load(name, data_dir=tmp_path)
        assert time.perf_counter() - begin < 5
        for part in (str(tmp_path), "--data digits", "--data-dir", "pip install 'pcflax[tfds]'"):
            assert part in str(caught.value)

    def test_without_a_network_it_is_said_instead_of_retried(self, tmp_path, monkeypatch):
        def refuse(*arguments, **options):
            raise OSError("no route")

        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: object())
        monkeypatch.setattr(socket, "create_connection", refuse)
        begin = time.perf_counter()
        with pytest.raises(FileNotFoundError, match="there is no network to fetch it") as caught:
            pc.data.load("mnist", data_dir=tmp_path)
        assert time.perf_counter() - begin < 5
        for part in (str(tmp_path), "--data digits", "--data-dir"):
            assert part in str(caught.value)

    def test_with_tensorflow_and_a_network_it_is_prepared(self, tfds, tmp_path, monkeypatch):
        class Connection:
            def close(self):
                pass

        class Prepared(Exception):
            pass

        def prepare(builder, *arguments, **options):
            raise Prepared(str(builder.data_path))

        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: object())
        monkeypatch.setattr(socket, "create_connection", lambda *a, **o: Connection())
        monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", prepare)
        with pytest.raises(Prepared, match=re.escape(str(tmp_path))):
            pc.data.load("mnist", data_dir=tmp_path)


class FakeSplit:
    """What `builder.as_data_source` gives: examples one by one, or several at once."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"image": self.images[index], "label": int(self.labels[index])}

    def __getitems__(self, indices):
        return [self[index] for index in indices]


@pytest.fixture
def mocked(tfds, tmp_path, monkeypatch):
    """MNIST as 7 training and 5 test images of one's own; {split: (images, labels)}."""
    random = np.random.default_rng(0)
    splits = {
        split: (random.integers(0, 256, (n, 28, 28, 1)).astype(np.uint8), random.integers(0, 10, n))
        for split, n in (("train", 7), ("test", 5))
    }
    monkeypatch.setattr(tfds.core.DatasetBuilder, "is_prepared", lambda self: True)
    with tfds.testing.mock_data(
        as_data_source_fn=lambda self, split, **options: FakeSplit(*splits[split])
    ):
        yield splits


class TestMockedTfds:
    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("split", ["train", "test"])
    def test_examples_are_normalised_and_one_hot(self, mocked, split, stream):
        images, labels = mocked[split]
        data = pc.data.load("mnist", split=split, batch_size=5, shuffle=False, stream=stream)
        assert isinstance(data, pc.data.StreamDataset) == stream
        assert data.num_examples == len(images)
        batch = next(iter(data))
        # the mean and the standard deviation of MNIST that everybody uses
        expected = (images[:5].reshape(5, 784) / 255 - 0.1307) / 0.3081
        np.testing.assert_allclose(batch.inputs, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(batch.targets, np.eye(10)[labels[:5]])

    def test_streaming_gives_the_batches_of_the_set_in_memory(self, mocked):
        stored = pc.data.load("mnist", batch_size=3, seed=4)
        stream = pc.data.load("mnist", batch_size=3, seed=4, stream=True)
        for epoch in range(2):
            for one, other in zip(stored.epoch(epoch), stream.epoch(epoch), strict=True):
                np.testing.assert_array_equal(one.inputs, other.inputs)
                np.testing.assert_array_equal(one.targets, other.targets)

    def test_reading_all_at_once_equals_reading_one_by_one(self, mocked, monkeypatch):
        """The last, incomplete chunk of a set must not be lost or read twice."""
        monkeypatch.setattr(pc.data.sources.tfds, "_READ_AT_ONCE", 3)
        source = TfdsSource("mnist", "train", None)
        images, labels = source.read_all()
        np.testing.assert_array_equal(images, mocked["train"][0])
        np.testing.assert_array_equal(labels, mocked["train"][1])
        for index in range(7):
            image, label = source[index]
            np.testing.assert_array_equal(image, images[index])
            assert label == labels[index]


@needs_mnist
@pytest.mark.usefixtures("tfds")
class TestPreparedMnist:
    def test_the_test_split_is_mnists(self):
        """The published class counts: a wrong split or a wrong label would change them."""
        images, labels = TfdsSource("mnist", "test", PREPARED).read_all()
        assert (images.shape, images.dtype) == ((10000, 28, 28, 1), np.uint8)
        counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
        np.testing.assert_array_equal(np.bincount(labels), counts)

    def test_training_images_are_streamed_normalised(self):
        data = pc.data.load("mnist", batch_size=64, data_dir=PREPARED, stream=True, seed=1)
        assert data.num_examples == 60000
        batches = [batch for batch, _ in zip(data, range(10), strict=False)]
        inputs = np.concatenate([batch.inputs for batch in batches])
        assert inputs.shape == (640, 784)
        # black and white, and statistics of 640 of 60,000 images
        assert inputs.min() == pytest.approx((0 - 0.1307) / 0.3081, rel=1e-5)
        assert inputs.max() == pytest.approx((1 - 0.1307) / 0.3081, rel=1e-5)
        assert inputs.mean() == pytest.approx(0, abs=0.05)
        assert inputs.std() == pytest.approx(1, abs=0.05)
        targets = np.concatenate([batch.targets for batch in batches])
        np.testing.assert_array_equal(targets.sum(axis=1), 1)

    def test_streaming_gives_the_batches_of_the_set_in_memory(self):
        options = {"split": "test", "batch_size": 50, "data_dir": PREPARED}
        stored = pc.data.load("mnist", shuffle=True, seed=2, **options)
        stream = pc.data.load("mnist", shuffle=True, seed=2, stream=True, **options)
        rows = stored.indices(198, 4)  # over the end of the first epoch
        images, labels = stream.items(198, 4)
        np.testing.assert_array_equal(images, stored.inputs[rows])
        np.testing.assert_array_equal(labels, stored.targets[rows])


@pytest.mark.skipif(
    not (PREPARED / "cifar10").is_dir(),
    reason="no prepared CIFAR-10: set PCFLAX_TEST_DATA to a folder of prepared TFDS sets",
)
def test_prepared_color_images_are_normalised_by_channel():
    data = pc.data.load(
        "cifar10", split="test", batch_size=500, data_dir=PREPARED, stream=True, flatten=False
    )
    batch = next(iter(data))
    assert batch.inputs.shape == (500, 32, 32, 3)
    # statistics of 500 of the test images
    np.testing.assert_allclose(np.mean(batch.inputs, axis=(0, 1, 2)), 0, atol=0.15)
    np.testing.assert_allclose(np.std(batch.inputs, axis=(0, 1, 2)), 1, atol=0.15)


def test_a_part_of_a_split_is_those_rows():
    whole = pc.data.load("digits", batch_size=1)
    count = whole.num_examples
    for split, rows in (
        ("train[:1000]", slice(0, 1000)),
        ("train[-100:]", slice(count - 100, count)),
        ("train[:90%]", slice(0, round(0.9 * count))),
        ("train[90%:]", slice(round(0.9 * count), count)),
        ("test[10:20]", None),
    ):
        part = pc.data.load("digits", split=split, batch_size=1)
        if rows is None:
            expected = pc.data.load("digits", split="test", batch_size=1).inputs[10:20]
        else:
            expected = whole.inputs[rows]
        np.testing.assert_array_equal(part.inputs, expected)
        assert part.name == f"digits/{split}"


def test_a_part_of_a_file_keeps_the_width_of_the_whole(tmp_path):
    labels = np.array([0, 1, 2, 0])
    path = tmp_path / "own.npz"
    np.savez(path, x_train=np.eye(4), y_train=labels, x_test=np.eye(4), y_test=labels)
    part = pc.data.load(str(path), split="train[:2]", batch_size=2)
    assert part.spec().targets.shape == (2, 3)


@pytest.mark.parametrize("split", ["validation", "train[1:2:3]", "train[]", "train[a:]"])
def test_a_split_that_is_none_is_refused(split):
    with pytest.raises(ValueError, match="expected split 'train' or 'test', or a part of one"):
        pc.data.load("digits", split=split)


def test_an_empty_part_is_refused():
    with pytest.raises(ValueError, match="'digits/train\\[5:5\\]' is empty: the split has 1437"):
        pc.data.load("digits", split="train[5:5]")
