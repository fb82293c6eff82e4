"""Sets of TFDS by the general road: tiny ones, prepared by TFDS's own builders and writer, and read back.

Oracles: the images and labels that were written, NumPy's mean and standard deviation, and what TFDS's sources
say of features, configurations, splits and class counts.
"""

import io
import types
import warnings

import numpy as np
import pytest
from PIL import Image

import pcflax as pc
from pcflax.cli.build import load_data
from pcflax.cli.options import TrainOptions
from pcflax.cli.train import new_run_dir
from pcflax.data.sources import catalogue
from pcflax.data.sources.tfds import TfdsSource, moments

pytestmark = pytest.mark.slow

COUNTS = {"train": 7, "test": 5}


@pytest.fixture(scope="module")
def tfds():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow_datasets

        yield tensorflow_datasets


def png(image):
    """A file of PNG, which TFDS stores as it is; encoding arrays would take TensorFlow."""
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "png")
    file.seek(0)
    return file


def prepare(tfds, name, folder, counts, names=None, builder=None):
    """Write a tiny set with the features that the builder declares; {split: (images, labels)} as written."""
    if builder is None:
        builder = tfds.builder(name, data_dir=str(folder), file_format="array_record")
    random, written, features = np.random.default_rng(0), {}, builder.info.features
    for split, count in counts.items():
        (image,) = (f for f in features.values() if isinstance(f, tfds.features.Image))
        shape = (count, *image.shape)
        written[split] = random.integers(0, 256, shape).astype(np.uint8)

    def label_of(split, index):
        return (3 * index + len(split)) % 10

    def examples(split):
        for index, image in enumerate(written[split]):
            row = {}
            for key, feature in features.items():
                if isinstance(feature, tfds.features.Image):
                    row[key] = png(image)
                elif key == "coarse_label":
                    row[key] = 19 - index
                elif isinstance(feature, tfds.features.ClassLabel):
                    row[key] = label_of(split, index)
                else:
                    row[key] = f"{split}{index}"
            yield index, row

    def generators(*arguments):
        if names is not None:  # as the downloaded files would say
            features["label"].names = names
        return {split: examples(split) for split in counts}

    builder._split_generators = generators
    manager = types.SimpleNamespace(downloaded_size=0, manual_dir=None)
    builder._make_download_manager = lambda **options: manager
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        builder.download_and_prepare()
    return {
        split: (images, [label_of(split, index) for index in range(len(images))])
        for split, images in written.items()
    }


def rows(images, labels):
    """Examples in an order of their own: the writer's is by a hash of the key."""
    return sorted((int(y), *map(int, np.ravel(x))) for x, y in zip(images, labels, strict=True))


@pytest.mark.parametrize(
    ("name", "classes", "shape", "counts"),
    [
        ("cifar100", 100, (32, 32, 3), COUNTS),
        ("kmnist", 10, (28, 28, 1), COUNTS),
        ("emnist/balanced", 47, (28, 28, 1), COUNTS),
        ("svhn_cropped", 10, (32, 32, 3), {**COUNTS, "extra": 3}),
        ("imagenet_resized/8x8", 1000, (8, 8, 3), {"train": 7, "validation": 4}),
        ("mnist_corrupted/fog", 10, (28, 28, 1), COUNTS),
    ],
)
def test_a_set_is_read_as_tfds_wrote_it(tfds, tmp_path, name, classes, shape, counts):
    """Another feature, split or class count than TFDS's would train on something else."""
    written = prepare(tfds, name, tmp_path, counts)
    upright = {
        split: (images.swapaxes(1, 2) if name.startswith("emnist") else images)
        for split, (images, _) in written.items()
    }
    train = upright["train"].reshape(-1, shape[-1]) / 255
    for split, count in counts.items():
        stored = pc.data.load(name, split=split, data_dir=tmp_path, batch_size=count, flatten=False)
        assert rows(stored.inputs, stored.targets) == rows(upright[split], written[split][1])
        assert (stored.num_classes, stored.inputs.shape[1:]) == (classes, shape)
        assert stored.shuffle == (split in ("train", "extra"))
        stream = pc.data.load(
            name, split=split, data_dir=tmp_path, batch_size=count, flatten=False, stream=True
        )
        one, other = next(stored.batches()), next(stream.batches())
        np.testing.assert_array_equal(one.inputs, other.inputs)
        np.testing.assert_array_equal(one.targets, other.targets)
        # by the training images, by channel, to four digits
        expected = (stored.inputs / 255 - train.mean(0)) / train.std(0)
        np.testing.assert_allclose(one.inputs, expected, rtol=1e-3, atol=1e-3)
        assert one.targets.shape == (count, classes)


def test_the_first_ten_thousand_training_images_tell_mean_and_deviation(monkeypatch):
    """Of ImageNet all 1.3 million would take minutes."""
    images = np.random.default_rng(0).integers(0, 200, (2500, 2, 3, 3)).astype(np.uint8)
    images[..., 2] = 7  # nothing to divide by
    mean, std = moments(images)
    np.testing.assert_allclose(mean, images.mean((0, 1, 2)) / 255, rtol=1e-3)
    np.testing.assert_allclose(std[:2], images.std((0, 1, 2))[:2] / 255, rtol=1e-3)
    assert std[2] == 1
    assert catalogue._MEASURED == 10_000


@pytest.fixture(scope="module")
def folder(tfds, tmp_path_factory):
    """CIFAR-100, SVHN and ImageNet, tiny."""
    found = tmp_path_factory.mktemp("prepared")
    names = [f"kind {number}" for number in range(100)]
    prepare(tfds, "cifar100", found, COUNTS, names)
    prepare(tfds, "svhn_cropped", found, {**COUNTS, "extra": 3})
    prepare(tfds, "imagenet_resized/8x8", found, {"train": 20, "validation": 4})
    prepare(tfds, "emnist/bymerge", found, COUNTS)
    return found


def test_class_names_are_kept(folder):
    data = pc.data.load("cifar100", data_dir=folder, batch_size=1)
    assert data.class_names == tuple(f"kind {number}" for number in range(100))
    assert data.only([3, 9]).class_names == data.class_names
    assert data.with_seed(3).class_names == data.class_names
    stream = pc.data.load("cifar100", data_dir=folder, batch_size=2, stream=True)
    assert stream.class_names == data.class_names
    assert pc.data.load("svhn_cropped", data_dir=folder, batch_size=2).class_names is None
    wider = pc.data.load("cifar100", data_dir=folder, batch_size=2, num_classes=102)
    assert wider.class_names[99:] == ("kind 99", "100", "101")
    merged = pc.data.load("emnist/bymerge", data_dir=folder, batch_size=2).class_names
    assert "".join(merged) == "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"
    assert pc.data.load("digits").class_names is None


def test_splits_are_tfdss_and_may_be_joined(folder):
    options = {"data_dir": folder, "batch_size": 1}
    assert pc.data.load("svhn_cropped", split="train+extra", **options).num_examples == 10
    assert pc.data.load("svhn_cropped", split="extra[1:]", **options).num_examples == 2
    text = "'svhn_cropped' has no split 'validation'; expected train, test, extra, or a part of one"
    for stream in (False, True):
        with pytest.raises(ValueError, match=text):
            pc.data.load("svhn_cropped", split="validation", stream=stream, **options)
    with pytest.raises(ValueError, match="expected split 'train' or 'test', or a part of one"):
        pc.data.load("svhn_cropped", split="train[:5]+extra", **options)


def test_a_part_is_streamed_as_well(folder):
    """The command line trains on 90 percent; ImageNet is too large to be held in memory."""
    options = {"data_dir": folder, "batch_size": 2, "split": "train[10%:]", "seed": 3}
    stored = pc.data.load("imagenet_resized/8x8", stream=False, **options)
    stream = pc.data.load("imagenet_resized/8x8", stream=True, **options)
    assert len(stored) == len(stream) == 9
    for one, other in zip(stored, stream, strict=True):
        np.testing.assert_array_equal(one.inputs, other.inputs)
        np.testing.assert_array_equal(one.targets, other.targets)


def test_the_command_line_tests_on_validation_where_there_is_no_test(folder, tmp_path, monkeypatch):
    options = TrainOptions(data="imagenet_resized/8x8", data_dir=folder, batch_size=2)
    found = {split: load_data(options, split, batch_size=2) for split in ("validation", "test")}
    assert found["test"].name == "imagenet_resized/8x8/validation"
    assert found["validation"].name == "imagenet_resized/8x8/train[90%:]"
    assert load_data(options, "train").num_examples == 18
    monkeypatch.chdir(tmp_path)
    assert new_run_dir(options).name.startswith("imagenet_resized-8x8-2")
    unknown = TrainOptions(data="cifr100", data_dir=folder)
    with pytest.raises(ValueError, match="unknown data set 'cifr100'; did you mean 'cifar100'"):
        load_data(unknown, "test")


def test_a_set_of_ones_own_is_read_without_its_code(tfds, tmp_path):
    """Whoever writes a builder need not tell us what its image and its label are called."""

    class Shapes(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "picture": tfds.features.Image(shape=(4, 5, 1)),
                "kind": tfds.features.ClassLabel(names=[f"kind {k}" for k in range(10)]),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, manager): ...
        def _generate_examples(self): ...

    builder = Shapes(data_dir=str(tmp_path), file_format="array_record")
    written = prepare(tfds, "shapes", tmp_path, COUNTS, builder=builder)
    tfds.core.registered._DATASET_REGISTRY.pop("shapes")
    data = pc.data.load("shapes", data_dir=tmp_path, batch_size=7)
    assert rows(data.inputs, data.targets) == rows(*written["train"])
    assert data.class_names == tuple(f"kind {k}" for k in range(10))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "emnist",
            "'emnist' stands for several sets; name one of emnist/byclass, emnist/bymerge, em",
        ),
        ("mnist_corrupted", "mnist_corrupted/translate and 6 more"),
        ("emnist/balancd", "TFDS has no 'emnist/balancd': ValueError: Failed to construct dataset"),
        ("mnist:9.9.9", "TFDS has no 'mnist:9.9.9': AssertionError: "),
        ("kmnst", r"unknown data set 'kmnst'; did you mean 'kmnist'\? expected one of digits, "),
        ("caltech11", "unknown data set 'caltech11'; did you mean 'caltech101'"),
        (
            "celeb_a",
            "'celeb_a' has the features image, landmarks, attributes, identity, which are not",
        ),
        (
            "imagenet2012",
            r"'imagenet2012' has images of shape \(None, None, 3\) and dtype uint8, expec",
        ),
    ],
)
def test_what_is_no_such_set_is_refused_in_a_sentence(tfds, tmp_path, monkeypatch, name, text):
    monkeypatch.setattr(tfds.core.DatasetBuilder, "is_prepared", lambda self: True)
    with pytest.raises(ValueError, match=text) as caught:
        pc.data.load(name, data_dir=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_name_with_a_version_is_the_same_set(tfds, tmp_path):
    """It was normalized by the images that lie there, and not by what is known of all."""
    prepare(tfds, "mnist", tmp_path, COUNTS)
    version = tfds.builder("mnist", data_dir=str(tmp_path)).version
    options = {"data_dir": tmp_path, "batch_size": 2, "shuffle": False}
    plain = next(iter(pc.data.load("mnist", **options))).inputs
    for name in (f"mnist:{version}", "MNIST"):
        np.testing.assert_array_equal(next(iter(pc.data.load(name, **options))).inputs, plain)


def test_a_set_that_was_not_written_to_its_end_is_told_in_a_sentence(tfds, tmp_path):
    prepare(tfds, "mnist", tmp_path, COUNTS)
    (info,) = tmp_path.rglob("dataset_info.json")
    info.write_text(info.read_text()[:100])
    with pytest.raises(
        ValueError, match=r"'mnist' is damaged \(ParseError: .*\); prepare it anew"
    ) as e:
        pc.data.load("mnist", data_dir=tmp_path)
    assert "\n" not in str(e.value)


def test_a_name_whose_reader_is_missing_is_told_in_a_sentence(tfds, tmp_path, monkeypatch):
    def missing(*arguments, **options):
        raise ModuleNotFoundError("No module named 'huggingface_hub'")

    monkeypatch.setattr(tfds, "builder", missing)
    with pytest.raises(
        ValueError, match="^TFDS has no 'huggingface:mnist': ModuleNotFoundError: No"
    ):
        pc.data.load("huggingface:mnist", data_dir=tmp_path)


def test_examples_without_a_label_are_refused(tfds, tmp_path, monkeypatch):
    """TFDS labels them -1, which would be a row of zeros, a target that no class has."""
    prepare(tfds, "kmnist", tmp_path, COUNTS)
    read = TfdsSource.read
    monkeypatch.setattr(TfdsSource, "read", lambda *a: (read(*a)[0], read(*a)[1] - 9))
    options = {"data_dir": tmp_path, "batch_size": 2}
    with pytest.raises(ValueError, match="'kmnist/test' has examples without a label; take anoth"):
        pc.data.load("kmnist", split="test", **options)
    assert pc.data.load("kmnist", split="test", targets=None, **options).num_examples == 5


def test_names_of_ones_own_classes_are_kept():
    images, labels = np.ones((4, 3)), np.array([0, 1, 2, 0])
    data = pc.data.from_arrays(images, labels, batch_size=2, class_names=["cat", "dog"])
    assert data.class_names == ("cat", "dog", "2")
    text = "data set 'arrays' has 3 classes, and 4 class_names; give a name a class"
    with pytest.raises(ValueError, match=text):
        pc.data.from_arrays(images, labels, batch_size=2, class_names=list("abcd"))
    with pytest.raises(ValueError, match="data set 'arrays' has no classes, and 2 class_names"):
        pc.data.from_arrays(images, images, batch_size=2, class_names=["cat", "dog"])
