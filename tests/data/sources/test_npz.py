"""Files of one's own: what of them becomes a batch, and what is refused.

Oracle: the arrays that were written.
"""

from pathlib import Path

import numpy as np
import pytest

import pcflax as pc


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

    def test_a_part_of_a_file_keeps_the_width_of_the_whole(self, tmp_path):
        labels = np.array([0, 1, 2, 0])
        path = tmp_path / "own.npz"
        np.savez(path, x_train=np.eye(4), y_train=labels, x_test=np.eye(4), y_test=labels)
        part = pc.data.load(str(path), split="train[:2]", batch_size=2)
        assert part.spec().targets.shape == (2, 3)

    @pytest.mark.parametrize("shape", [(6, 28, 28), (6, 4, 5, 3)])
    def test_bytes_of_images_are_scaled(self, tmp_path, shape):
        """The well-known mnist.npz: uint8, of 28 x 28 without an axis of channels."""
        path = tmp_path / "mnist.npz"
        images = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
        labels = np.arange(6).astype(np.uint8)
        write_npz(path, x_train=images, y_train=labels, x_test=images[:2], y_test=labels[:2])
        data = pc.data.load(path, batch_size=6, shuffle=False)
        assert data.constants().inputs.dtype == np.uint8  # a quarter of the memory
        batch = next(iter(data))
        np.testing.assert_allclose(batch.inputs, images.reshape(6, -1) / 255, rtol=1e-6)
        np.testing.assert_array_equal(batch.targets, np.eye(6))
        whole = pc.data.load(path, batch_size=6, shuffle=False, flatten=False)
        assert whole.spec().inputs.shape == (shape if len(shape) == 4 else (*shape, 1))
        moved = pc.data.load(path, batch_size=2, augment=(pc.data.Flip(), pc.data.Crop(1)))
        assert float(next(iter(moved)).inputs.max()) <= 1

    def test_num_classes_widens_rows_beyond_the_labels(self, tmp_path):
        """A file in which the highest classes do not occur is measured by a network that knows them."""
        path = tmp_path / "mine.npz"
        arrays = write_npz(path)
        batch = next(iter(pc.data.load(path, split="test", batch_size=4, num_classes=np.int64(9))))
        np.testing.assert_array_equal(batch.targets, np.eye(9)[arrays["y_test"]])
        with pytest.raises(ValueError, match="expected 0 to 1 for num_classes=2"):
            pc.data.load(path, num_classes=2, batch_size=2)

    def test_a_file_may_lack_the_other_split(self, tmp_path):
        path = tmp_path / "mine.npz"
        arrays = write_npz(path, x_train=None, y_train=None)
        batch = next(iter(pc.data.load(path, split="test", batch_size=4)))
        np.testing.assert_array_equal(batch.targets, np.eye(2)[arrays["y_test"]])

    def test_a_changed_file_of_the_same_name_has_another_description(self, tmp_path):
        """Else a resume on other data would pass without a word."""
        path = tmp_path / "mine.npz"
        arrays = write_npz(path)

        def described(**changes):
            write_npz(path, **changes)
            return pc.data.load(path, batch_size=2).description()

        before = described()
        assert before == described()  # and not the file's time
        changed = arrays["x_train"].copy()
        changed[3, 2] += 1e-3
        assert before != described(x_train=changed)
        assert before != described(y_train=np.array([0, 1, 2, 0, 2, 1]))

    @pytest.mark.parametrize("how", ["nothing", "words", "array", "cut", "flipped", "objects"])
    def test_a_damaged_file_is_refused_in_one_sentence(self, tmp_path, how):
        path = tmp_path / "mine.npz"
        write_npz(path)
        whole = bytearray(path.read_bytes())
        if how == "nothing":
            path.write_bytes(b"")
        elif how == "words":
            path.write_text("no numbers at all")
        elif how == "array":
            with path.open("wb") as file:
                np.save(file, np.ones(3))
        elif how == "cut":
            path.write_bytes(whole[: len(whole) // 2])
        elif how == "flipped":
            whole[whole.index(b"NUMPY") + 140] ^= 1  # in the numbers of the first array
            path.write_bytes(whole)
        else:
            write_npz(path, x_train=np.array([{}] * 6, object))
        with pytest.raises(
            ValueError, match=r"mine\.npz (is no \.npz file|cannot be read)"
        ) as caught:
            pc.data.load(path, batch_size=2)
        assert "\n" not in str(caught.value)
        assert "np.savez" in str(caught.value)
