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
from pcflax.data.sources.tfds import TfdsSource, moments

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

    def test_inputs_are_normalized_by_the_training_images(self):
        """Test images normalized by statistics of their own would be seen differently."""
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

    def test_without_normalizing_images_are_scaled_to_one(self):
        """Binary cross-entropy is a likelihood of numbers in [0, 1] only."""
        images, labels = read_digits("test")
        data = pc.data.load("digits", split="test", batch_size=360, normalize=False)
        batch = next(iter(data))
        np.testing.assert_array_equal(batch.inputs, images.reshape(360, 64) / np.float32(16))
        np.testing.assert_array_equal(batch.targets, np.eye(10)[labels])

    @pytest.mark.parametrize("inputs", ["image", "label", None])
    @pytest.mark.parametrize("targets", ["image", "label", None])
    def test_image_and_label_take_either_role(self, inputs, targets):
        """A network that draws has labels, or nothing, as inputs; an autoencoder its targets."""
        if inputs is None and targets is None:
            return
        options = {"split": "test", "batch_size": 50, "normalize": False}
        plain = next(iter(pc.data.load("digits", **options)))
        parts = {"image": plain.inputs, "label": plain.targets, None: None}
        data = pc.data.load("digits", inputs=inputs, targets=targets, **options)
        batch = next(iter(data))
        for found, role in ((batch.inputs, inputs), (batch.targets, targets)):
            if role is None:
                assert found is None
            else:
                np.testing.assert_array_equal(found, parts[role])
        assert data.num_classes == (10 if targets == "label" else None)

    def test_images_that_are_targets_are_augmented_too(self):
        options = {"batch_size": 32, "augment": lambda images, key: images[:, ::-1]}
        plain = next(iter(pc.data.load("digits", **options)))
        drawn = next(iter(pc.data.load("digits", inputs="label", targets="image", **options)))
        np.testing.assert_array_equal(drawn.targets, plain.inputs)

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"inputs": "images"}, "expected inputs of 'image', 'label' or None, got 'images'"),
            ({"targets": 3}, "expected targets of 'image', 'label' or None, got 3"),
            ({"inputs": None, "targets": None}, "inputs and targets are both None; give at least"),
            ({"num_classes": 9}, "digits/train expected num_classes of at least 10, got 9"),
        ],
    )
    def test_roles_and_widths_that_are_none_are_refused(self, options, text):
        with pytest.raises(ValueError, match=text):
            pc.data.load("digits", **options)

    def test_num_classes_may_be_more(self):
        assert pc.data.load("digits", num_classes=12).spec().targets.shape == (64, 12)

    def test_names_tell_set_and_split(self):
        assert pc.data.load("digits", split="test").name == "digits/test"


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
    def test_examples_are_normalized_and_one_hot(self, mocked, split, stream):
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
        images, labels = source.read()
        np.testing.assert_array_equal(images, mocked["train"][0])
        np.testing.assert_array_equal(labels, mocked["train"][1])
        for index in range(7):
            image, label = source[index]
            np.testing.assert_array_equal(image, images[index])
            assert label == labels[index]

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_damaged_set_is_named_in_one_sentence(self, mocked, monkeypatch, stream):
        def fail(*arguments):
            raise RuntimeError("DATA_LOSS: bad crc\nat chunk 3")

        monkeypatch.setattr(FakeSplit, "__getitem__", fail)
        with pytest.raises((ValueError, RuntimeError), match="'mnist.*DATA_LOSS: bad crc") as told:
            list(pc.data.load("mnist", batch_size=5, stream=stream))
        assert "\n" not in str(told.value)


@needs_mnist
@pytest.mark.usefixtures("tfds")
class TestPreparedMnist:
    def test_the_test_split_is_mnists(self):
        """The published class counts: a wrong split or a wrong label would change them."""
        images, labels = TfdsSource("mnist", "test", PREPARED).read()
        assert (images.shape, images.dtype) == ((10000, 28, 28, 1), np.uint8)
        counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
        np.testing.assert_array_equal(np.bincount(labels), counts)

    def test_measured_moments_are_the_published_ones(self):
        """Sets whose moments are not known here are normalized by those of 10,000 images."""
        mean, std = moments(TfdsSource("mnist", "train", PREPARED).read(range(2000))[0])
        # of 2,000 of 60,000 images
        assert (mean[0], std[0]) == pytest.approx((0.1307, 0.3081), abs=5e-3)

    def test_training_images_are_streamed_normalized(self):
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
        images, labels, _ = stream.items(198, 4)
        np.testing.assert_array_equal(images, stored.inputs[rows])
        np.testing.assert_array_equal(labels, stored.targets[rows])


@pytest.mark.skipif(
    not (PREPARED / "cifar10").is_dir(),
    reason="no prepared CIFAR-10: set PCFLAX_TEST_DATA to a folder of prepared TFDS sets",
)
def test_prepared_color_images_are_normalized_by_channel():
    data = pc.data.load(
        "cifar10", split="test", batch_size=500, data_dir=PREPARED, stream=True, flatten=False
    )
    batch = next(iter(data))
    assert batch.inputs.shape == (500, 32, 32, 3)
    # statistics of 500 of the test images
    np.testing.assert_allclose(np.mean(batch.inputs, axis=(0, 1, 2)), 0, atol=0.15)
    np.testing.assert_allclose(np.std(batch.inputs, axis=(0, 1, 2)), 1, atol=0.15)
