"""A user's arrays of every kind: what they become, and what is refused.

Oracles: NumPy indexing, NumPy's casts and rows of `np.eye`.
"""

import re

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc

DRAW = np.random.RandomState(0)
U, V = DRAW.randn(6, 3), DRAW.randn(6, 2)
TOKENS, LABELS = DRAW.randint(7, size=(6, 4)), np.array([2, 0, 1, 1, 2, 0])


def only_batch(inputs, targets, **options):
    """All six examples as one batch, in stored order."""
    options = {"batch_size": 6, "shuffle": False, "name": "mine", **options}
    return next(iter(pc.data.from_arrays(inputs, targets, **options)))


class TestSeveralInputsAndTargets:
    @pytest.mark.parametrize("num_classes", [None, 3, np.int64(5)])
    def test_labels_become_one_hot_beside_several_inputs(self, num_classes):
        options = {} if num_classes is None else {"num_classes": num_classes}
        batch = only_batch({"u": U, "v": V}, LABELS, **options)
        np.testing.assert_array_equal(batch.targets, np.eye(num_classes or 3)[LABELS])
        np.testing.assert_array_equal(batch.inputs["u"], U.astype(np.float32))
        np.testing.assert_array_equal(batch.inputs["v"], V.astype(np.float32))
        data = pc.data.from_arrays({"u": U, "v": V}, LABELS, batch_size=2, **options)
        assert data.num_classes == (num_classes or 3)

    def test_tokens_beside_floats_stay_whole_numbers(self):
        batch = only_batch({"tokens": TOKENS, "v": V}, np.eye(3)[LABELS])
        assert batch.inputs["tokens"].dtype == np.int32
        assert batch.inputs["v"].dtype == np.float32
        np.testing.assert_array_equal(batch.inputs["tokens"], TOKENS)

    def test_bytes_beside_floats_are_asked_about(self):
        """They may be characters or brightness, which is 255 times too large."""
        inputs = {"tokens": TOKENS.astype(np.uint8), "v": V}
        text = (
            "the inputs 'tokens' of 'mine' have dtype uint8, expected a floating dtype; scale and"
        )
        with pytest.raises(TypeError, match=text):
            only_batch(inputs, LABELS)
        batch = only_batch(inputs, LABELS, integer_inputs=True)
        np.testing.assert_array_equal(batch.inputs["tokens"], TOKENS)
        assert batch.inputs["v"].dtype == np.float32

    def test_several_inputs_are_flattened_each(self):
        batch = only_batch({"u": U.reshape(6, 3, 1), "v": V}, LABELS, flatten=True)
        np.testing.assert_array_equal(batch.inputs["u"], U.astype(np.float32))

    @pytest.mark.parametrize("num_classes", [None, 4, {"class": 4}])
    def test_labels_among_several_targets(self, num_classes):
        batch = only_batch(U, {"v": V, "class": LABELS}, num_classes=num_classes)
        width = 3 if num_classes is None else 4
        np.testing.assert_array_equal(batch.targets["class"], np.eye(width)[LABELS])
        np.testing.assert_array_equal(batch.targets["v"], V.astype(np.float32))

    def test_an_output_without_targets_is_left_out(self):
        """None among targets means what None for all of them means: the output is free."""
        batch = only_batch(U, {"a": V, "b": None})
        assert set(batch.targets) == {"a"}
        assert only_batch(U, {"a": None}).targets is None
        assert only_batch({"u": None}, V).inputs is None

    @pytest.mark.parametrize(
        ("inputs", "targets", "options", "text"),
        [
            (
                {"u": U, "v": V[:5]},
                LABELS,
                {},
                "'mine' has 6 inputs u but 5 inputs v but 6 targets",
            ),
            (
                {"u": U},
                {"a": LABELS},
                {"num_classes": {"b": 3}},
                "num_classes names 'b', but 'mine'",
            ),
            ({"u": U}, LABELS, {"num_classes": {"a": 3}}, "'mine' has no targets of that name"),
            (
                U,
                {"class": LABELS},
                {"num_classes": 2},
                "label 2 of example 0 in 'mine' is out of ra",
            ),
            ({"u": U}, LABELS, {"augment": pc.data.Flip()}, "'mine' has several inputs to augment"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, inputs, targets, options, text):
        with pytest.raises(ValueError, match=re.escape(text)):
            only_batch(inputs, targets, **options)

    def test_they_are_trained_and_measured(self):
        rngs = nnx.Rngs(0)
        graph = pc.PCGraph(
            {
                "read": pc.PCEmbedding(7, 5, rngs=rngs),
                "pool": pc.PCLayer(lambda z: z.mean(axis=1)),
                "y": pc.PCDense(8, 3, rngs=rngs),
            },
            parents={"read": "tokens", "pool": "read", "y": pc.networks.Concatenate("pool", "u")},
            inputs={"tokens": 4, "u": 3},
            output="y",
        )
        trainer = pc.Trainer(
            graph, optax.adam(1e-2), learning=pc.learning.Backprop(), progress=False
        )
        data = pc.data.from_arrays({"tokens": TOKENS, "u": U}, LABELS, num_classes=3, batch_size=2)
        before = trainer.evaluate(data)
        trainer.fit(data, num_steps=30)
        after = trainer.evaluate(data)
        assert set(after) == {"accuracy", "energy"}
        assert after["energy"] < before["energy"]


class TestLabels:
    def test_a_column_of_labels_is_one_an_example(self):
        batch = only_batch(U, LABELS[:, None], num_classes=3)
        np.testing.assert_array_equal(batch.targets, np.eye(3)[LABELS])

    @pytest.mark.parametrize("inputs", [TOKENS[:, :1], U[:, None]])
    def test_with_one_position_an_example_labels_are_at_every_position(self, inputs):
        whole = np.issubdtype(inputs.dtype, np.integer)
        batch = only_batch(inputs, LABELS[:, None], num_classes=3, integer_inputs=whole)
        np.testing.assert_array_equal(batch.targets, np.eye(3)[LABELS[:, None]])

    def test_labels_as_inputs_are_told_to_be_one_hot(self):
        """Divided by 255, classes would be brightness."""
        text = (
            "expected a floating dtype; make labels one-hot: np.eye(num_classes, dtype='float32')"
        )
        with pytest.raises(TypeError, match=re.escape(text)):
            only_batch(LABELS, U)
        with pytest.raises(TypeError, match=re.escape(text)):
            only_batch(U, None, clamps={"class": LABELS})


class TestNumberFormats:
    @pytest.mark.parametrize("dtype", [">f4", "<f4", ">f8", np.longdouble, np.float64])
    def test_floats_of_any_order_and_precision_become_float32(self, dtype):
        for inputs, targets in ((U.astype(dtype), V), (V, U.astype(dtype))):
            batch = only_batch(inputs, targets)
            np.testing.assert_array_equal(batch.inputs, inputs.astype(np.float32))
            np.testing.assert_array_equal(batch.targets, targets.astype(np.float32))
            assert batch.inputs.dtype == batch.targets.dtype == np.float32

    @pytest.mark.parametrize("dtype", [np.float16, ">f2", jnp.bfloat16])
    def test_half_floats_stay_half(self, dtype):
        batch = only_batch(U.astype(dtype), LABELS)
        assert batch.inputs.dtype == np.dtype(dtype).newbyteorder("=")
        np.testing.assert_array_equal(batch.inputs, U.astype(dtype).astype(batch.inputs.dtype))

    @pytest.mark.parametrize("dtype", [">i2", ">i4", ">i8", np.uint64, np.int8])
    def test_integers_of_any_order_and_width_are_labels_and_tokens(self, dtype):
        batch = only_batch(TOKENS.astype(dtype), LABELS.astype(dtype), integer_inputs=True)
        np.testing.assert_array_equal(batch.inputs, TOKENS)
        np.testing.assert_array_equal(batch.targets, np.eye(3)[LABELS])

    def test_a_label_that_int32_cannot_hold_does_not_wrap_around(self):
        labels = LABELS.astype(np.int64) + 2**32
        with pytest.raises(ValueError, match=f"label {2**32 + 2} of example 0 in 'mine' is out of"):
            only_batch(U, labels, num_classes=3)

    def test_numpys_numbers_are_numbers(self):
        options = {"batch_size": np.int64(4), "seed": np.uint8(3), "num_classes": np.int16(3)}
        data = pc.data.from_arrays(U, LABELS, shuffle=np.bool_(True), **options)
        plain = pc.data.from_arrays(U, LABELS, batch_size=4, seed=3, num_classes=3)
        assert data.description() == plain.description()
        assert all(type(value) in (str, int, bool) for value in data.description().values())
        assert data.reader == plain.reader
        assert pc.data.Crop(np.int64(2)) == pc.data.Crop(2)
        text = pc.data.TextDataset("abcabc", sequence_length=np.int32(2), batch_size=np.int8(2))
        assert (text.sequence_length, text.batch_size) == (2, 2)

    def test_bytes_of_images_are_scaled_to_one(self):
        images = DRAW.randint(256, size=(6, 4, 5, 1)).astype(np.uint8)
        batch = only_batch(images, LABELS)
        np.testing.assert_allclose(batch.inputs, images / 255, rtol=1e-6)
        assert batch.inputs.dtype == np.float32

    @pytest.mark.parametrize(
        ("inputs", "kind", "text"),
        [
            ([[1.0, 2.0], [3.0]], ValueError, "the inputs of 'mine' are no array: "),
            (np.array([[1.0], ["a"]], object), TypeError, "have dtype object, expected numbers of"),
            (U.astype(object), TypeError, "np.asarray(values, 'float32')"),
            (U.astype(complex), TypeError, "complex128, expected a floating dtype; cast them: inp"),
            (
                U > 0,
                TypeError,
                "bool, expected a floating dtype; cast them: inputs.astype('float32",
            ),
            (
                np.full((6, 2), "a"),
                TypeError,
                "have dtype <U1, expected a floating dtype; cast them",
            ),
            (np.ma.masked_less(U, 0), ValueError, "are a masked array, whose mask would be lost"),
            (3.0, ValueError, "the inputs of 'mine' have shape (), expected (examples, features)"),
        ],
    )
    def test_what_is_no_array_of_numbers_is_refused_in_a_sentence(self, inputs, kind, text):
        with pytest.raises(kind, match=re.escape(text)):
            only_batch(inputs, LABELS)


class TestClamps:
    VALUES = DRAW.randn(6, 5).astype(np.float32)

    def rows(self, clamps, **options):
        """The clamps of all batches of an epoch in one, and which examples these are."""
        options = {"batch_size": 2, "seed": 3, **options}
        data = pc.data.from_arrays(U, LABELS, clamps=clamps, **options)
        rows = np.concatenate([batch.inputs for batch in data])
        return [batch.clamps for batch in data], data.indices(0, 3).ravel(), rows

    def test_a_batch_holds_the_rows_of_its_examples(self):
        """Shuffled apart, an example would be held at another one's values."""
        mask = DRAW.rand(6, 5) > 0.5
        for given in ((self.VALUES, mask), pc.Clamp(self.VALUES, mask)):
            clamps, rows, inputs = self.rows({"hidden": given})
            np.testing.assert_array_equal(inputs, U.astype(np.float32)[rows])
            assert all(isinstance(each["hidden"], pc.Clamp) for each in clamps)
            values = np.concatenate([each["hidden"].value for each in clamps])
            masks = np.concatenate([each["hidden"].mask for each in clamps])
            np.testing.assert_array_equal(values, self.VALUES[rows])
            np.testing.assert_array_equal(masks, mask[rows])

    def test_values_alone_hold_every_element(self):
        clamps, rows, _ = self.rows({"hidden": self.VALUES, "z": U})
        assert [set(each) for each in clamps] == [{"hidden", "z"}] * 3
        assert all(each["hidden"].mask is None for each in clamps)
        values = np.concatenate([each["hidden"].value for each in clamps])
        np.testing.assert_array_equal(values, self.VALUES[rows])

    @pytest.mark.parametrize("shape", [(5,), (6, 1), (1, 5)])
    def test_a_mask_broadcasts(self, shape):
        mask = DRAW.rand(*shape) > 0.4
        clamps, rows, _ = self.rows({"hidden": (self.VALUES, mask)})
        masks = np.concatenate([each["hidden"].mask for each in clamps])
        np.testing.assert_array_equal(masks, np.broadcast_to(mask, (6, 5))[rows])

    def test_what_is_not_known_may_be_nan(self):
        """As missing values are given."""
        values = np.where(self.VALUES > 0, self.VALUES, np.nan)
        (first, *_), rows, _ = self.rows({"hidden": (values, ~np.isnan(values))})
        np.testing.assert_array_equal(first["hidden"].value, values[rows[:2]])

    def test_batches_have_none_unless_given(self):
        assert next(iter(pc.data.load("digits"))).clamps == {}
        inputs, targets = next(iter(pc.data.from_arrays(U, LABELS, batch_size=2)))
        assert (inputs.shape, targets.shape) == ((2, 3), (2, 3))

    def test_clamps_alone_are_examples(self):
        data = pc.data.from_arrays(None, None, clamps={"z": self.VALUES}, batch_size=6, name="mine")
        assert data.num_examples == 6
        batch = next(iter(data))
        assert batch.inputs is batch.targets is None
        assert batch.clamps["z"].value.shape == data.spec().clamps["z"].value.shape == (6, 5)

    @pytest.mark.parametrize(
        ("clamps", "kind", "text"),
        [
            (
                VALUES,
                TypeError,
                "data set 'mine' expected clamps such as {'hidden': (values, mask)}",
            ),
            (
                {"h": (VALUES, VALUES)},
                TypeError,
                "the clamps 'h' of 'mine' have a mask of dtype floa",
            ),
            (
                {"h": (VALUES, np.ones(6, bool))},
                ValueError,
                "mask[:, None] for one number an examp",
            ),
            (
                {"h": VALUES[:5]},
                ValueError,
                "'mine' has 6 inputs but 6 targets but 5 clamps h value",
            ),
            ({"h": VALUES[:, 0]}, ValueError, "the clamps 'h' of 'mine' have shape (6,), expected"),
            (
                {"h": VALUES * np.nan},
                ValueError,
                "the clamps 'h' of 'mine' hold NaN or infinity in 6",
            ),
        ],
    )
    def test_clamps_that_are_none_are_refused(self, clamps, kind, text):
        with pytest.raises(kind, match=re.escape(text)):
            only_batch(U, LABELS, clamps=clamps)


class TestDescription:
    def described(self, inputs=U, targets=LABELS, **options):
        return pc.data.from_arrays(inputs, targets, **{"batch_size": 2, **options}).description()

    def test_other_arrays_have_another_description(self):
        """Else a resume on other data of the same name would pass without a word."""
        changed = U.copy()
        changed[4, 1] += 1e-3
        clamps = {"hidden": U}
        found = [
            self.described(),
            self.described(changed),
            self.described(U[::-1]),
            self.described(U.reshape(6, 1, 3)),
            self.described({"u": U}),
            self.described({"v": U}),
            self.described(targets=LABELS[::-1]),
            self.described(clamps=clamps),
            self.described(clamps={"hidden": changed}),
            self.described(clamps={"hidden": (U, U > 0)}),
        ]
        assert len({each["checksum"] for each in found}) == len(found)
        assert self.described(U.copy()) == self.described(U.astype(np.float32)) == found[0]

    def test_a_text_of_the_same_length_has_another_description(self):
        one, other = (
            pc.data.TextDataset(text, sequence_length=2, batch_size=1)
            for text in ("abcabcab", "abcabcbb")
        )
        assert one.description() != other.description()

    def test_a_description_holds_what_it_held_in_0_1(self):
        """Else a run of 0.1 that goes on would be told that its data are others."""
        old = {"name": "arrays", "num_examples": 6, "batch_size": 2, "shuffle": True, "seed": 0}
        assert {key: self.described()[key] for key in old} == old
        assert set(self.described()) == {*old, "checksum"}
        digits = {"name": "digits/train", "num_examples": 1437, "batch_size": 64, "seed": 0}
        assert pc.data.load("digits").description() == {**digits, "shuffle": True}


class TestMissing:
    """(values, mask) in the place of inputs and targets, and (labels, known)."""

    KNOWN = np.array([True, False, True, True, False, True])

    def test_labels_that_are_unknown_are_masked_rows(self):
        labels = np.where(self.KNOWN, np.arange(6) % 3, -1)
        data = pc.data.from_arrays(
            np.ones((6, 2)), (labels, self.KNOWN), batch_size=3, shuffle=False
        )
        batch = list(data)[1]
        np.testing.assert_array_equal(batch.targets.value[::2], np.eye(3)[[0, 2]])
        np.testing.assert_array_equal(batch.targets.mask, [[True], [False], [True]])
        assert data.num_classes == 3

    def test_inputs_may_be_known_in_part(self):
        images = np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2)
        mask = images % 3 > 0
        data = pc.data.from_arrays((images, mask), None, batch_size=6, shuffle=False, flatten=True)
        (batch,) = data
        expected = np.where(mask, images, 0).reshape(6, 4) / 255
        np.testing.assert_allclose(batch.inputs.value, expected, rtol=1e-6)
        np.testing.assert_array_equal(batch.inputs.mask, mask.reshape(6, 4))
        with pytest.raises(ValueError, match="masked inputs to augment"):
            pc.data.from_arrays((images, mask), None, batch_size=6, augment=pc.data.Flip())

    def test_rows_of_targets_keep_a_mask_of_one_number(self):
        rows = np.where(self.KNOWN[:, None], np.ones((6, 2)), np.nan)
        data = pc.data.from_arrays(None, (rows, self.KNOWN[:, None]), batch_size=6)
        assert next(iter(data)).targets.mask.shape == (6, 1)

    def test_weights_and_places_come_along(self):
        weights = np.arange(6)
        data = pc.data.from_arrays(np.eye(6), None, batch_size=4, weights=weights, seed=3)
        batch = next(iter(data))
        np.testing.assert_array_equal(batch.examples, data.order(0)[:4])
        np.testing.assert_array_equal(batch.weights, weights[data.order(0)[:4]])

    def test_labels_as_inputs_are_one_hot_where_classes_are_told(self):
        images = np.ones((6, 4))
        data = pc.data.from_arrays(np.arange(6) % 3, images, batch_size=6, num_classes=5)
        batch = next(iter(data))
        assert (data.classes_of("inputs"), data.classes_of("targets")) == (5, None)
        assert batch.inputs.shape == (6, 5)
        assert batch.targets.shape == (6, 4)

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"weights": np.ones(5)}, "'mine' has 6 inputs but 6 targets but 5 weights; give one"),
            ({"weights": np.ones((6, 1))}, "the weights of 'mine' have shape (6, 1)"),
            ({"weights": -np.arange(6.0)}, "are to be finite, at least 0 and not all 0, got"),
            ({"weights": np.full(6, np.nan)}, "are to be finite, at least 0 and not all 0, got"),
            ({"weights": np.zeros(6)}, "are to be finite, at least 0 and not all 0, got"),
            ({"weights": np.array(list("abcdef"))}, "and dtype <U1; expected one number"),
            ({"targets": (np.arange(6), np.ones(5, bool))}, "a mask of shape (5,); give a mask"),
        ],
    )
    def test_what_does_not_fit_is_told(self, options, text):
        with pytest.raises(ValueError, match=re.escape(text)):
            pc.data.from_arrays(
                **{"inputs": np.ones((6, 2)), "targets": np.arange(6), "name": "mine"} | options,
                batch_size=2,
            )

    def test_only_some_classes(self):
        labels = np.arange(12) % 4
        weights = np.arange(1.0, 13)
        data = pc.data.from_arrays(
            np.eye(12), labels, batch_size=2, weights=weights, clamps={"z": np.eye(12)}
        )
        batch = next(data.only([3, 1]).batches())
        np.testing.assert_array_equal(batch.inputs, np.eye(12)[[1, 3]])
        np.testing.assert_array_equal(batch.targets, np.eye(4)[[1, 3]])
        np.testing.assert_array_equal(batch.weights, [2, 4])
        np.testing.assert_array_equal(batch.clamps["z"].value, np.eye(12)[[1, 3]])
        assert data.only([0]).description() != data.only([1]).description()
        with pytest.raises(ValueError, match="data set 'arrays' has no example of 7"):
            data.only([7])
        with pytest.raises(ValueError, match="has no labels, one an example, to choose by"):
            pc.data.from_arrays(np.eye(3), None, batch_size=1).only([0])
