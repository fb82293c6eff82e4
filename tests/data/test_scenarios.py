"""Tasks made of one data set: which examples each has, and what became of their images. Oracle: NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

import pcflax as pc

scenarios = pc.data.scenarios
LABELS = np.array([3, 0, 2, 1, 1, 0, 3, 2, 2, 5, 4, 4])
ROWS = np.arange(12.0, dtype=np.float32)[:, None] + [0, 100, 200]
BYTES = np.random.RandomState(0).randint(0, 256, (12, 4, 5, 2), np.uint8)


def make(inputs=ROWS, labels=LABELS, **options):
    return pc.data.from_arrays(inputs, labels, batch_size=1, **options)


def rows_of(task):
    """Which examples a task has, in stored order."""
    return [int(batch.inputs[0, 0]) for batch in task.batches()]


class TestSplit:
    def test_each_task_has_the_examples_of_its_classes_in_stored_order(self):
        tasks = scenarios.split(make(), [(3, 0), (1, 2), (5, 4)])
        assert [rows_of(task) for task in tasks] == [[0, 1, 5, 6], [2, 3, 4, 7, 8], [9, 10, 11]]
        assert [task.classes for task in tasks] == [(0, 3), (1, 2), (4, 5)]
        targets = np.concatenate([batch.targets for batch in tasks[0].batches()])
        np.testing.assert_array_equal(targets, np.eye(6)[[3, 0, 0, 3]])

    def test_a_number_of_tasks_divides_the_classes_in_order(self):
        tasks = scenarios.split(make(), 3)
        assert [task.classes for task in tasks] == [(0, 1), (2, 3), (4, 5)]

    def test_a_seed_draws_the_same_classes_for_training_and_test_data(self):
        order = np.random.RandomState(1).permutation(6)
        expected = [tuple(sorted(order[begin : begin + 2].tolist())) for begin in (0, 2, 4)]
        for data in (make(), make(ROWS[::-1], LABELS[::-1], seed=7)):
            assert [task.classes for task in scenarios.split(data, 3, seed=1)] == expected

    def test_tasks_are_of_one_shape_on_the_device_and_their_batches_as_of_only(self):
        """Rows are added for that; one that came into a batch would be trained on."""
        data = make(weights=np.arange(12.0))
        tasks = scenarios.split(data, [(0, 3), (1, 2), (4, 5)])
        assert {len(task.constants().targets) for task in tasks} == {5}
        for task, classes in zip(tasks, [(0, 3), (1, 2), (4, 5)], strict=True):
            own = data.only(classes)
            assert task.description() == own.description()
            for epoch in (0, 1):
                for one, other in zip(task.epoch(epoch), own.epoch(epoch), strict=True):
                    np.testing.assert_array_equal(one.inputs, other.inputs)
                    np.testing.assert_array_equal(one.weights, other.weights)
            assert task.with_seed(3).classes == classes

    def test_blurred_tasks_share_out_what_leaves_and_lose_nothing(self):
        labels = np.repeat([0, 1, 2, 3], 20)
        data = make(np.arange(80.0)[:, None], labels, seed=4)
        tasks = scenarios.split(data, [(0,), (2, 1), (3,)], blur=0.25)
        assert sorted(row for task in tasks for row in rows_of(task)) == list(range(80))
        counts = [np.bincount(labels[rows_of(task)], minlength=4) for task in tasks]
        assert [counts[0][0], counts[1][1] + counts[1][2], counts[2][3]] == [15, 30, 15]
        # 5 of class 0 go to two tasks, 3 and 2; 10 of classes 1 and 2, 5 and 5
        assert [counts[1][0], counts[2][0], counts[1][3], counts[0][3]] == [3, 2, 2, 3]
        assert [counts[0][1:3].sum(), counts[2][1:3].sum()] == [5, 5]
        assert [task.classes for task in tasks] == [(0,), (1, 2), (3,)]
        again = scenarios.split(data, [(0,), (1, 2), (3,)], blur=0.25)
        assert list(map(rows_of, again)) == list(map(rows_of, tasks))
        assert tasks[1].name == "arrays of 1, 2, blurred by 0.25"
        again = scenarios.split(data, [iter((0, 0)), (1, 2), (3,)], blur=0.25)
        assert (again[0].name, again[0].classes) == ("arrays of 0, blurred by 0.25", (0,))

    @pytest.mark.parametrize(
        ("data", "tasks", "options", "error", "message"),
        [
            (
                make(),
                4,
                {},
                ValueError,
                "the 6 classes of 'arrays' do not divide among 4 tasks; give the",
            ),
            (
                make(ROWS, ROWS),
                3,
                {},
                ValueError,
                "the 0 classes of 'arrays' do not divide among 3",
            ),
            (make(ROWS, ROWS), [(0,)], {}, ValueError, "'arrays' has no labels"),
            (
                make(num_classes=8),
                [(0, 1), (6, 7)],
                {},
                ValueError,
                "'arrays' has no example of 6, 7",
            ),
            (make(), [(0, 1)], {"blur": 0.1}, ValueError, "two tasks or more to blur, got 1"),
            (
                make(),
                2,
                {"blur": 2},
                ValueError,
                "expected a blur of at least 0 and of at most 1, got 2",
            ),
            (make(), [0, 1], {}, TypeError, r"classes of each task such as \(0, 1\), got 0"),
            (make(), [], {}, ValueError, "the classes of at least one task, got none"),
            (make(), [(0.5, 1)], {}, TypeError, "split expected an int class, got 0.5"),
            (make(), 2, {"seed": 2**32}, ValueError, r"split expected seed < 2\*\*32, got"),
            (make(), 1.5, {}, TypeError, "split expected an int tasks, got 1.5"),
            ([(ROWS, LABELS)], 2, {}, TypeError, "split expected data such as pc.data.load"),
        ],
    )
    def test_what_cannot_be_split_is_refused(self, data, tasks, options, error, message):
        with pytest.raises(error, match=message):
            scenarios.split(data, tasks, **options)


class TestPermuted:
    @pytest.mark.parametrize("channels", [False, True])
    def test_each_task_has_its_own_order_of_pixels_which_keep_their_channels(self, channels):
        images = BYTES if channels else ROWS
        tasks = scenarios.permuted(make(images), 3, seed=5)
        np.testing.assert_array_equal(tasks[0].inputs, images)
        for number, task in enumerate(tasks[1:], 1):
            flat = images.reshape(12, -1, 2) if channels else images
            order = np.random.RandomState([5, number]).permutation(flat.shape[1])
            np.testing.assert_array_equal(task.inputs, flat[:, order].reshape(images.shape))
        assert len({str(task.description()) for task in tasks}) == 3

    def test_names_tell_the_tasks_of_a_set_apart_that_its_name_stands_for(self):
        data = pc.data.load("digits")
        names = [
            task.name for seed in (0, 1) for task in scenarios.permuted(data, 2, seed=seed)[1:]
        ]
        assert names == ["digits/train, permuted by 0, 1", "digits/train, permuted by 1, 1"]

    def test_a_seed_that_numpy_cannot_take_is_refused(self):
        with pytest.raises(ValueError, match=r"permuted expected seed < 2\*\*32, got 4294967296"):
            scenarios.permuted(make(), 2, seed=2**32)

    def test_several_inputs_are_refused(self):
        with pytest.raises(TypeError, match="permuted expected one array of images such as"):
            scenarios.permuted(make({"a": ROWS, "b": ROWS}), 2)


class TestRotated:
    def test_quarters_of_a_turn_are_those_of_numpy(self):
        images = BYTES[:, :, :4]
        tasks = scenarios.rotated(make(images), [0, 90, 180.0, -90])
        for quarters, task in zip((0, 1, 2, 3), tasks, strict=True):
            np.testing.assert_array_equal(task.inputs, np.rot90(images, quarters, axes=(1, 2)))
            assert task.inputs.dtype == np.uint8
        assert tasks[3].name == "arrays, rotated by -90"

    def test_between_pixels_it_is_linear(self):
        """A plane that rises by 1 to the right rises, turned by a, by cos a there and by sin a upwards."""
        plane = np.broadcast_to(np.arange(9.0, dtype=np.float32)[None, None, :, None], (1, 9, 9, 1))
        data = pc.data.from_arrays(plane, np.array([0]), batch_size=1)
        (task,) = scenarios.rotated(data, [30])
        middle = task.inputs[0, 3:6, 3:6, 0]
        np.testing.assert_allclose(np.diff(middle, axis=1), np.cos(np.pi / 6), rtol=1e-5)
        np.testing.assert_allclose(np.diff(middle[::-1], axis=0), np.sin(np.pi / 6), rtol=1e-5)

    @pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
    def test_images_of_16_bits_stay_so(self, dtype):
        images = (BYTES[:, :, :4] / 8).astype(dtype)  # exact
        (task,) = scenarios.rotated(make(images), [90])
        np.testing.assert_array_equal(task.inputs, np.rot90(images, axes=(1, 2)))
        assert task.inputs.dtype == dtype

    def test_flat_rows_are_refused(self):
        with pytest.raises(
            ValueError, match=r"rotated expected images .* got shape \(12, 3\); give"
        ):
            scenarios.rotated(make(), [10])


def test_classes_are_all_labels_unless_some_were_chosen():
    assert make(num_classes=8).classes == tuple(range(8))
    assert make(ROWS, ROWS).classes == ()
    assert make().only([4, 1]).classes == (1, 4)
    assert scenarios.permuted(make().only([4, 1]), 2)[1].classes == (1, 4)


@pytest.mark.parametrize(
    ("classes", "message"),
    [([1.9], "only expected an int class, got 1.9"), (3, r"classes such as \[0, 1\], got 3")],
)
def test_classes_that_are_no_labels_are_refused(classes, message):
    with pytest.raises(TypeError, match=message):
        make().only(classes)
