"""A Trainer that is given another library's loader: the numbers are those of arrays, and of one run.

The oracles are `from_arrays` with the same batches, and the run that was never interrupted.
"""

import warnings

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from pcflax.errors import CheckpointWarning

X = np.random.default_rng(0).normal(size=(22, 4)).astype(np.float32)
Y = np.arange(22) % 3
OPTIMIZER = optax.adam(1e-2)
RULE = pc.learning.PredictiveCoding(pc.inference.GradientDescent(0.1, num_steps=2))


def make_trainer(folder=None, **options):
    rngs = nnx.Rngs(0)
    hidden = pc.PCDense(4, 5, activation=jnp.tanh, rngs=rngs)
    network = pc.PCNetwork([hidden, pc.PCDense(5, 3, rngs=rngs)])
    checkpoints = None if folder is None else pc.Checkpoints(folder, every=6, keep_latest=9)
    options = {"checkpoints": checkpoints, "progress": False, **options}
    return pc.Trainer(network, OPTIMIZER, learning=RULE, **options)


def pipeline():
    examples = grain.MapDataset.range(22).shuffle(seed=3).map(lambda i: (X[i], Y[i]))
    return examples.batch(4)


class Torch:
    """The protocol of torch's DataLoader."""

    def __init__(self, *, shuffle=False, seed=0):
        self.dataset, self.batch_size, self.shuffle = X, 4, shuffle
        self.random = np.random.default_rng(seed)

    def __len__(self):
        return 6

    def __iter__(self):
        order = self.random.permutation(22) if self.shuffle else np.arange(22)
        return iter([(X[order[n : n + 4]], Y[order[n : n + 4]]) for n in range(0, 22, 4)])


def end_of(trainer):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(trainer.network, nnx.Param))]


def assert_same_run(one, other):
    """Bitwise."""
    for leaf, expected in zip(end_of(one), end_of(other), strict=True):
        np.testing.assert_array_equal(leaf, expected)
    assert one.history.rows == other.history.rows


def test_training_and_measuring_are_those_of_arrays():
    stored = pc.data.from_arrays(X, Y, batch_size=4, shuffle=False)
    ours, theirs = make_trainer(), make_trainer()
    ours.fit(stored, epochs=2, log_every=5)
    theirs.fit(Torch(), epochs=2, log_every=5)
    assert theirs.step == ours.step == 10
    for row, expected in zip(theirs.history.rows, ours.history.rows, strict=True):
        # two programs, of which one gathers: equal but for rounding in float32
        assert row == pytest.approx(expected, rel=1e-5)
    predicted = theirs.predict(Torch())
    (w, b), (v, c) = (
        map(np.asarray, (layer.linear.kernel, layer.linear.bias)) for layer in theirs.network.layers
    )
    np.testing.assert_allclose(predicted, np.tanh(X @ w + b) @ v + c, rtol=1e-5, atol=1e-6)
    measured = theirs.evaluate(Torch())
    assert measured["accuracy"] == pytest.approx(np.mean(predicted.argmax(axis=1) == Y))
    squares = np.sum((predicted - np.eye(3)[Y]) ** 2, axis=1)
    assert measured["energy"] == pytest.approx(squares.mean() / 2, rel=1e-5)


def test_a_pipeline_of_grain_resumes_bitwise(tmp_path):
    """In the middle of a pass, by a new Trainer with a new pipeline, and again; with evaluations between."""
    whole = make_trainer()
    often = {"eval_every": 6, "log_every": 3}
    whole.fit(pipeline(), num_steps=18, eval_data=pipeline(), **often)
    make_trainer(tmp_path).fit(pipeline(), num_steps=8, eval_data=pipeline(), **often)
    for start in (6, 12):
        second = make_trainer(tmp_path)
        second.restore(start)
        second.save()  # with the place that was restored
        second.fit(pipeline(), num_steps=start + 6, eval_data=pipeline(), **often)
    assert_same_run(second, whole)


def test_fits_in_turn_are_one_fit():
    """With the loader itself, whose pass goes on, and with pipelines that are made anew."""
    loader = Torch(shuffle=True)
    whole, parts = make_trainer(), make_trainer()
    whole.fit(Torch(shuffle=True), num_steps=12, log_every=3)
    for total in (3, 6, 12):
        parts.fit(loader, num_steps=total, log_every=3)
    assert_same_run(parts, whole)
    whole, parts = make_trainer(), make_trainer()
    whole.fit(pipeline(), num_steps=12, log_every=3)
    for total in (6, 12):
        parts.fit(pipeline(), num_steps=total, log_every=3)
    assert_same_run(parts, whole)


def test_a_callback_may_go_back(tmp_path):
    class Back:
        def on_log(self, trainer, step, row):
            if step == 12 and not self.__dict__:
                self.done = True
                trainer.restore(6)

    whole, back = make_trainer(), make_trainer(tmp_path, callbacks=[Back()])
    whole.fit(pipeline(), num_steps=14, log_every=4)
    back.fit(pipeline(), num_steps=14, log_every=4)
    assert_same_run(back, whole)


def test_a_loader_without_a_place_warns_once_when_it_resumes(tmp_path):
    """Bitwise where it does not shuffle; else with as many batches of the pass."""
    for shuffle in (False, True):
        folder = tmp_path / str(shuffle)
        whole, second = make_trainer(), make_trainer(folder)
        whole.fit(Torch(shuffle=shuffle), epochs=2, log_every=3)
        make_trainer(folder).fit(Torch(shuffle=shuffle), num_steps=8, log_every=3)
        second.restore(6)
        with pytest.warns(
            CheckpointWarning, match="keeps no place .* first 1 of a new pass"
        ) as told:
            second.fit(Torch(shuffle=shuffle, seed=1), epochs=2, log_every=3)
        assert len(told) == 1
        assert second.step == whole.step
        if shuffle:
            assert any((a != b).any() for a, b in zip(end_of(second), end_of(whole), strict=True))
        else:
            assert_same_run(second, whole)


def test_a_loader_without_a_length_wants_steps(tmp_path):
    def endless():
        return pipeline().to_iter_dataset()

    trainer = make_trainer()
    with pytest.raises(ValueError, match="no length, so it has no epochs; give num_steps"):
        trainer.fit(endless(), epochs=1)
    with pytest.raises(ValueError, match="give num_steps, and eval_every where there is"):
        trainer.fit(endless(), num_steps=4, eval_data=endless())
    trainer.fit(endless(), num_steps=4, log_every=2)
    assert trainer.step == 4
    with pytest.warns(UserWarning, match=r"for one more of '.*' give num_steps=5"):
        trainer.fit(endless(), num_steps=4)
    assert trainer.evaluate(endless()).keys() == {"accuracy", "energy"}


def test_another_loader_begins_at_its_beginning():
    """One of another name; data_start is then this step."""
    trainer = make_trainer()
    trainer.fit(Torch(), num_steps=2)
    data = pc.data.from_loader(pipeline(), num_classes=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.fit(data, num_steps=5)
    assert data.position(3) is not None
    expected = [batch[0] for batch in pipeline()][:3]
    np.testing.assert_array_equal(data.items(2, 1)[0][0], expected[2])


def test_labels_are_as_many_as_outputs():
    """A batch need not hold every class; what does not fit is told before training."""
    trainer = make_trainer()
    few = grain.MapDataset.range(4).map(lambda i: (X[i], 0)).batch(4)
    trainer.check_data(few)
    assert trainer.evaluate(few)["accuracy"] >= 0
    with pytest.raises(ValueError, match="the loader's inputs do not fit the network: "):
        trainer.fit(grain.MapDataset.range(4).map(lambda i: (X[i, :3], 0)).batch(4), epochs=1)
    with pytest.raises(ValueError, match="label 3 of example 3 .* for num_classes=3"):
        trainer.evaluate(grain.MapDataset.range(4).map(lambda i: (X[i], i)).batch(4))
    with pytest.raises(
        TypeError, match=r"got list; .* other batches: pc.data.from_loader\(batches\)"
    ):
        trainer.evaluate([(X, Y)])
