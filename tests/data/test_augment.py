"""Augmentation: what it does to an image, what decides it, and what never sees it.

Oracles: NumPy's padding, slicing and mirroring with the same random choices, and scipy's test of
uniformity.
"""

import dataclasses
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy import stats

import pcflax as pc
from pcflax.data.augment import Seeded, as_augmentations, augmented, describe, seeded
from pcflax.data.decoder import Decoder
from pcflax.data.sources.digits import read_digits
from tests.conftest import parameters_of

BOTH = (pc.data.Flip(), pc.data.Crop(4))


def make_images(num_examples=11, height=5, width=6, channels=2, seed=0):
    """Images of unequal sides, of which no two pixels are equal."""
    random = np.random.default_rng(seed)
    size = num_examples * height * width * channels
    pixels = random.permutation(size).astype(np.float32) + 1
    return pixels.reshape(num_examples, height, width, channels)


def make_data(augment=BOTH, *, batch_size=3, seed=5, **options):
    images = make_images()
    return pc.data.from_arrays(
        images, np.arange(11) % 4, batch_size=batch_size, seed=seed, augment=augment, **options
    )


def inputs_of(data, epoch=0):
    return np.stack([batch.inputs for batch in data.epoch(epoch)])


def cropped(image, place, padding, mode="constant"):
    """NumPy's crop of one image."""
    height, width, _ = image.shape
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode=mode)
    return padded[place[0] : place[0] + height, place[1] : place[1] + width]


class TestFlipAndCrop:
    @pytest.mark.parametrize("num_examples", [1, 11])
    def test_a_flip_mirrors_left_and_right(self, num_examples):
        """Mirrored along another axis, ships would sail upside down or change their colors."""
        images, key = make_images(num_examples), jax.random.key(3)
        turned = np.asarray(jax.random.bernoulli(key, 0.5, (num_examples, 1, 1, 1))).ravel()
        expected = [np.fliplr(i) if t else i for i, t in zip(images, turned, strict=True)]
        np.testing.assert_array_equal(pc.data.Flip()(jnp.asarray(images), key), np.stack(expected))

    @pytest.mark.parametrize("padding", [1, 4])
    @pytest.mark.parametrize(("reflect", "mode"), [(False, "constant"), (True, "reflect")])
    def test_a_crop_is_numpys_slice_of_numpys_padding(self, padding, reflect, mode):
        images, key = make_images(), jax.random.key(4)
        places = np.asarray(jax.random.randint(key, (11, 2), 0, 2 * padding + 1))
        expected = [cropped(i, p, padding, mode) for i, p in zip(images, places, strict=True)]
        found = pc.data.Crop(padding, reflect=reflect)(jnp.asarray(images), key)
        np.testing.assert_array_equal(found, np.stack(expected))

    def test_bytes_stay_bytes(self):
        """A source that nothing scales is augmented as stored."""
        images = jnp.asarray(make_images().astype(np.uint8))
        for augmentation in BOTH:
            assert augmentation(images, jax.random.key(0)).dtype == jnp.uint8

    def test_every_image_is_one_of_162_and_all_are_equally_likely(self):
        """Flip and crop share no randomness, and none of the 81 places is favoured."""
        image = make_images(1, 9, 10, 1)[0]
        possible = {
            cropped(side, (row, column), 4).tobytes(): 81 * flip + 9 * row + column
            for flip, side in enumerate((image, np.fliplr(image)))
            for row in range(9)
            for column in range(9)
        }
        assert len(possible) == 162
        batch = 162 * 100
        data = pc.data.from_arrays(
            np.broadcast_to(image, (batch, *image.shape)), None, batch_size=batch, augment=BOTH
        )
        counts = np.zeros(162, int)
        for found in np.asarray(next(iter(data)).inputs):
            counts[possible[found.tobytes()]] += 1
        # a fixed seed: this holds or it does not, and a biased draw gives p-values far below
        assert stats.chisquare(counts).pvalue > 0.01

    def test_several_are_applied_in_turn_with_keys_of_their_own(self):
        double = lambda images, key: images * 2 + jax.random.uniform(key)  # noqa: E731
        images, seed = jnp.asarray(make_images()), jnp.array([1, 2], jnp.uint32)
        once, twice = (augmented((double,) * n, images, seed) for n in (1, 2))
        first, second = np.asarray(once - 2 * images), np.asarray(twice - 2 * once)
        np.testing.assert_allclose(first, first[0, 0, 0, 0], atol=1e-3)  # float32, pixels to 660
        assert abs(first.mean() - second.mean()) > 0.01


class TestRandomness:
    def test_it_is_a_function_of_seed_and_batch(self):
        first, again = make_data(), make_data()
        second_epoch = inputs_of(first, 1)  # another order of calls
        np.testing.assert_array_equal(inputs_of(first, 0), inputs_of(again, 0))
        np.testing.assert_array_equal(second_epoch, inputs_of(again, 1))

    def test_seeds_epochs_batches_and_examples_differ(self):
        image = make_images(1)
        whole = np.broadcast_to(image, (64, *image.shape[1:]))
        seen = set()
        for seed in (0, 1):
            data = pc.data.from_arrays(whole, None, batch_size=16, seed=seed, augment=BOTH)
            for epoch in (0, 1):
                batches = inputs_of(data, epoch)
                assert len({each.tobytes() for each in batches[0]}) > 8  # of 16, among 162
                seen |= {each.tobytes() for each in batches}
        assert len(seen) == 16

    @pytest.mark.parametrize("kind", ["memory", "stream"])
    def test_chunks_and_jumps_change_nothing(self, kind):
        """A resumed run begins anywhere, and the speed of the machine sets the length of a call."""
        data = make_data() if kind == "memory" else make_stream(augment=BOTH)
        expected = np.concatenate([inputs_of(data, epoch) for epoch in range(4)])
        read, constants = jax.jit(data.reader), data.constants()
        for start, count in ((0, 5), (7, 3), (2, 1), (11, 1)):
            items = data.items(start, count)
            for number in range(count):
                item = jax.tree.map(lambda leaf, n=number: leaf[n], items)
                np.testing.assert_array_equal(
                    read(constants, item).inputs, expected[start + number]
                )

    def test_a_large_seed_and_a_late_batch_have_keys_too(self):
        items = seeded(np.zeros((2, 3), np.int32), 2**32 - 1, 2**32 - 1, 2)
        np.testing.assert_array_equal(items.seed, [[2**32 - 1, 2**32 - 1], [2**32 - 1, 0]])
        assert items.seed.dtype == np.uint32

    def test_its_keys_are_those_of_seed_and_batch(self):
        """Other keys would change the images of a run that an older version began."""
        noise = lambda images, key: images * jax.random.uniform(key)  # noqa: E731
        data = make_data((noise, noise), seed=9)
        rows = data.indices(5, 1)[0]
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(9), 2**32 - 1), 5)
        expected = jnp.asarray(make_images()[rows])
        for number in (0, 1):
            expected = expected * jax.random.uniform(jax.random.fold_in(key, number))
        found = inputs_of(data, epoch=1)[2]  # batch 5 of 3 an epoch
        np.testing.assert_allclose(found, expected, rtol=1e-6)

    def test_its_keys_are_not_the_trainers(self):
        """Of one seed, the noise of a step and the places of its crops would else be one draw."""
        seen = []
        note = lambda images, key: (seen.append(key), images)[1]  # noqa: E731
        augmented((note,), jnp.zeros((1, 1, 1, 1)), jnp.array([0, 0], jnp.uint32))
        trainers = jax.random.fold_in(jax.random.key(0), 0)
        keys = [trainers, *jax.random.split(trainers), jax.random.fold_in(trainers, 0)]
        data = {tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in keys}
        assert tuple(np.asarray(jax.random.key_data(seen[0])).tolist()) not in data

    def test_data_sets_of_several_seeds_share_one_compiled_program(self):
        one, other = make_data(seed=1), make_data(seed=2)
        assert one.reader == other.reader
        assert hash(one.reader) == hash(other.reader)
        assert one.reader != make_data(pc.data.Flip()).reader


def make_stream(augment=None, decoder=None, seed=5):
    images = make_images()
    source = [(image, np.asarray(i % 4, np.int32)) for i, image in enumerate(images)]
    decoder = decoder or Decoder(num_classes=4)
    return pc.data.StreamDataset(
        source, decoder=decoder, batch_size=3, seed=seed, augment=augment, name="arrays"
    )


class TestDataSets:
    def test_inputs_and_labels_stay_together(self):
        """Augmentation must change neither the order nor the labels."""
        plain, changed = make_data(None), make_data(lambda images, key: images + 0.5)
        for one, other in zip(plain, changed, strict=True):
            np.testing.assert_array_equal(one.inputs + 0.5, other.inputs)
            np.testing.assert_array_equal(one.targets, other.targets)

    def test_a_streamed_set_gives_the_batches_of_one_in_memory(self):
        for epoch in (0, 2):
            stream = make_stream(augment=BOTH)
            np.testing.assert_array_equal(inputs_of(make_data(), epoch), inputs_of(stream, epoch))

    @pytest.mark.parametrize("flatten", [False, True])
    def test_images_are_augmented_scaled_and_neither_normalized_nor_flattened(self, flatten):
        """Padding is black, whatever the mean: (0 - mean) / std after normalization."""
        augment = pc.data.Crop(2)
        data = pc.data.load("digits", batch_size=32, seed=3, augment=augment, flatten=flatten)
        images, rows = read_digits("train")[0], data.indices(0, 1)[0]
        seed = jnp.asarray(data.items(0, 1).seed[0])
        # the choices of a batch: those that the same key makes on images which show their place
        shown = np.arange(1, 65, dtype=np.float32).reshape(1, 8, 8, 1)
        shown = augmented((augment,), jnp.asarray(np.repeat(shown, 32, axis=0)), seed)
        expected = []
        for image, place in zip(images[rows], np.asarray(shown).astype(int)[..., 0], strict=True):
            pixels = np.concatenate([[0.0], image.ravel() / 16])[place]  # 0 where place is 0: black
            expected.append((pixels - 0.3054) / 0.3759)
        expected = np.reshape(expected, (32, 64) if flatten else (32, 8, 8, 1))
        np.testing.assert_allclose(next(iter(data)).inputs, expected, rtol=1e-5, atol=1e-6)

    def test_files_of_images_are_augmented_before_they_are_flattened(self, tmp_path):
        images = make_images()
        labels = np.arange(11) % 4
        np.savez(tmp_path / "own.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
        options = {"batch_size": 3, "seed": 5, "augment": BOTH}
        found = inputs_of(pc.data.load(tmp_path / "own.npz", **options))
        np.testing.assert_array_equal(found, inputs_of(make_data()).reshape(3, 3, 60))

    def test_arrays_may_be_flattened_after_augmentation(self):
        data = make_data(flatten=True)
        assert data.spec().inputs.shape == (3, 60)
        np.testing.assert_array_equal(inputs_of(data), inputs_of(make_data()).reshape(3, 3, 60))

    @pytest.mark.parametrize("kind", ["memory", "stream"])
    def test_evaluation_sees_images_as_stored(self, kind):
        """An accuracy on augmented test images would be another experiment's."""
        data = make_data() if kind == "memory" else make_stream(augment=BOTH)
        read, rows = jax.jit(data.reader), []
        for items, valid in data.evaluation_items(10):
            for number, counts in enumerate(valid):
                item = jax.tree.map(lambda leaf, n=number: leaf[n], items)
                rows.append(np.asarray(read(data.constants(), item).inputs)[counts])
        np.testing.assert_array_equal(np.concatenate(rows), make_images())

    def test_without_augmentation_items_are_as_they_were(self):
        assert isinstance(make_data().items(0, 2), Seeded)
        assert isinstance(make_data(None).items(0, 2), np.ndarray)
        assert make_data(()).reader == make_data(None).reader

    def test_descriptions_name_it(self):
        """Else a resume with other augmentation would pass without a warning."""
        assert "augment" not in make_data(None).description()
        assert make_data().description()["augment"] == ("Flip(), Crop(padding=4, reflect=False)")
        assert make_data().description() != make_data(pc.data.Crop(4)).description()

    def test_a_functions_address_is_no_part_of_its_description(self):
        def brighter(images, key):
            del key
            return images * 2

        assert describe([brighter]).endswith("brighter>")
        assert "0x" not in describe([brighter])


class TestTraining:
    """A Trainer on augmented images of 5 x 6."""

    # One of each for all trainers, which then share their compiled programs.
    RULE = pc.learning.PredictiveCoding(pc.inference.GradientDescent(optax.sgd(0.1), num_steps=3))
    OPTIMIZER = optax.adam(1e-3)

    def make_trainer(self, folder=None):
        rngs = nnx.Rngs(0)
        network = pc.PCNetwork(
            [pc.PCDense(60, 7, activation=jnp.tanh, rngs=rngs), pc.PCDense(7, 4, rngs=rngs)]
        )
        checkpoints = None if folder is None else pc.Checkpoints(folder, every=5)
        return pc.Trainer(
            network,
            self.OPTIMIZER,
            learning=self.RULE,
            checkpoints=checkpoints,
            progress=False,
        )

    def data(self, augment=BOTH, images=None):
        images = make_images() / 660 if images is None else images
        return pc.data.from_arrays(
            images, np.arange(11) % 4, batch_size=3, seed=5, augment=augment, flatten=True
        )

    def test_one_fit_equals_several_and_a_restored_one_bitwise(self, tmp_path):
        whole, parts, stopped = (
            self.make_trainer(),
            self.make_trainer(),
            self.make_trainer(tmp_path),
        )
        whole.fit(self.data(), num_steps=11, log_every=4)
        for total in (1, 4, 9, 11):
            parts.fit(self.data(), num_steps=total, log_every=4)
        stopped.fit(self.data(), num_steps=7, log_every=4)
        resumed = self.make_trainer(tmp_path)
        assert resumed.restore(5) == 5
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            resumed.fit(self.data(), num_steps=11, log_every=4)
        for other in (parts, resumed):
            for one, two in zip(
                parameters_of(whole.network), parameters_of(other.network), strict=True
            ):
                np.testing.assert_array_equal(one, two)
        assert resumed.history.rows == whole.history.rows

    def test_it_changes_what_is_learned_and_not_what_is_measured(self):
        plain, changed = self.make_trainer(), self.make_trainer()
        assert plain.evaluate(self.data(None)) == changed.evaluate(self.data())
        np.testing.assert_array_equal(
            plain.predict(self.data(None)), changed.predict(self.data(BOTH))
        )
        plain.fit(self.data(None), num_steps=3)
        changed.fit(self.data(), num_steps=3)
        assert not np.array_equal(*(parameters_of(t.network)[0] for t in (plain, changed)))

    def test_a_resume_with_other_augmentation_is_told(self, tmp_path):
        self.make_trainer(tmp_path).fit(self.data(), num_steps=5)
        resumed = self.make_trainer(tmp_path)
        resumed.restore()
        with pytest.warns(pc.CheckpointWarning, match=re.escape("'Flip(), Crop(padding=4")):
            resumed.fit(self.data(pc.data.Flip()), num_steps=6)

    def test_a_resume_with_other_images_of_the_same_name_is_told(self, tmp_path):
        """A file that was written anew since would else go unnoticed."""
        self.make_trainer(tmp_path).fit(self.data(), num_steps=5)
        resumed = self.make_trainer(tmp_path)
        resumed.restore()
        with pytest.warns(pc.CheckpointWarning, match="of other examples: it will not end"):
            resumed.fit(self.data(images=make_images(seed=1) / 660), num_steps=6)


class TestErrors:
    @pytest.mark.parametrize("augment", [pc.data.Flip, "flip", (pc.data.Flip(), 4)])
    def test_what_is_no_function_is_refused(self, augment):
        with pytest.raises(TypeError, match="expected augment as a function of \\(images, key\\)"):
            make_data(augment)

    def test_what_cannot_be_hashed_is_refused_with_the_remedy(self):
        @dataclasses.dataclass
        class Loose:
            def __call__(self, images, key):
                return images

        text = "the augmentation Loose cannot be hashed, .* make it a @dataclasses.dataclass"
        with pytest.raises(TypeError, match=text):
            as_augmentations(Loose())

    @pytest.mark.parametrize("padding", [1.5, True, "4"])
    def test_a_padding_that_is_none_is_refused(self, padding):
        with pytest.raises(TypeError, match="Crop expected an int padding, got "):
            pc.data.Crop(padding)

    @pytest.mark.parametrize("padding", [0, -1])
    def test_a_padding_of_nothing_is_refused(self, padding):
        with pytest.raises(ValueError, match=f"Crop expected padding of at least 1, got {padding}"):
            pc.data.Crop(padding)

    @pytest.mark.parametrize("augmentation", BOTH)
    def test_images_without_their_axes_are_refused(self, augmentation):
        text = (
            f"{type(augmentation).__name__} expected images (batch, height, width, channels), got "
            f"shape (3, 60); give inputs their image axes"
        )
        with pytest.raises(ValueError, match=re.escape(text)):
            pc.data.from_arrays(np.ones((3, 60)), np.arange(3), batch_size=3, augment=augmentation)

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            (
                lambda images, key: images[:, 1:],
                "float32 (3, 4, 6, 2), but as evaluation sees them",
            ),
            (lambda images, key: images > 0, "bool (3, 5, 6, 2), but as evaluation sees them"),
        ],
    )
    def test_another_shape_or_dtype_is_refused(self, change, text):
        with pytest.raises(ValueError, match=re.escape(text)):
            make_data(change)

    def test_a_set_without_inputs_is_refused(self):
        with pytest.raises(ValueError, match="'arrays' has no inputs to augment; leave out aug"):
            pc.data.from_arrays(None, np.arange(3), batch_size=3, augment=BOTH)
