"""Metrics: each example's number, and what follows from its mean over all of them.

Oracles: NumPy, scipy's log-softmax, and a bigram model counted by hand.
"""

import copy
import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy import special

import pcflax as pc
from pcflax.training.measure import metrics_for
from tests.conftest import digits_trainer

TEXT = "the quick brown fox jumps over the lazy dog; " * 8


def draw(shape, seed=0):
    """Logits and one-hot targets."""
    random = np.random.default_rng(seed)
    logits = 3 * random.normal(size=shape).astype(np.float32)
    return logits, np.eye(shape[-1], dtype=np.float32)[random.integers(0, shape[-1], shape[:-1])]


def text_data(batch_size=4, split=slice(None), **options):
    return pc.data.TextDataset(
        TEXT[split],
        sequence_length=7,
        batch_size=batch_size,
        vocabulary="".join(sorted(set(TEXT))),
        **options,
    )


def bigram_trainer(table, **options):
    """A network that predicts row t of the table after token t."""
    layer = pc.PCEmbedding(*table.shape, energy=pc.energies.Categorical(), rngs=nnx.Rngs(0))
    layer.embedding.embedding.set_value(jnp.asarray(table, jnp.float32))
    rule = pc.learning.PredictiveCoding(pc.inference.GradientDescent(optax.sgd(0.1), num_steps=1))
    optimizer = options.pop("optimizer", optax.adam(0.1))
    return pc.Trainer(pc.PCNetwork([layer]), optimizer, learning=rule, progress=False, **options)


class TestEachExample:
    @pytest.mark.parametrize("shape", [(1, 3), (6, 4), (5, 7, 4), (2, 3, 5, 4)])
    def test_accuracy_is_the_share_of_positions_that_are_right(self, shape):
        logits, targets = draw(shape)
        right = (logits.argmax(-1) == targets.argmax(-1)).reshape(shape[0], -1)
        found = pc.metrics.accuracy(jnp.asarray(logits), jnp.asarray(targets))
        np.testing.assert_allclose(found, right.mean(axis=1), rtol=1e-6)

    @pytest.mark.parametrize("shape", [(1, 3), (6, 4), (5, 7, 4), (2, 3, 5, 4)])
    def test_cross_entropy_is_in_nats_per_position(self, shape):
        logits, targets = draw(shape)
        nats = -(targets * special.log_softmax(logits.astype(float), axis=-1)).sum(-1)
        found = pc.metrics.cross_entropy(jnp.asarray(logits), jnp.asarray(targets))
        assert found.shape == shape[:1]
        np.testing.assert_allclose(found, nats.reshape(shape[0], -1).mean(axis=1), rtol=1e-5)

    def test_cross_entropy_is_the_categorical_energy_by_position(self):
        logits, targets = (jnp.asarray(array) for array in draw((5, 7, 4)))
        energy = pc.energies.Categorical()(targets, logits)
        np.testing.assert_allclose(7 * pc.metrics.cross_entropy(logits, targets), energy, rtol=1e-6)

    def test_accuracy_among_classes_looks_at_their_outputs_alone(self):
        """And an example of another class is wrong, whatever is largest."""
        logits, targets = draw((40, 5))
        classes = np.array([1, 4])
        right = classes[logits[:, classes].argmax(1)] == targets.argmax(1)
        found = pc.metrics.AccuracyAmong((4, 1))(jnp.asarray(logits), jnp.asarray(targets))
        np.testing.assert_array_equal(found, right)
        assert 0 < right.sum() < np.isin(targets.argmax(1), classes).sum()
        with pytest.raises(ValueError, match="classes below 5, the width of the output, got 5"):
            pc.metrics.AccuracyAmong([2, 5])(logits, targets)
        with pytest.raises(ValueError, match="at least one class, got none"):
            pc.metrics.AccuracyAmong(())


def test_evaluation_measures_what_it_is_given_in_the_place_of_the_trainers_metrics():
    data = pc.data.load("digits", split="test", batch_size=100)
    trainer = digits_trainer()
    among = pc.metrics.AccuracyAmong(range(3))
    found = trainer.evaluate(data, metrics={"told": among, "any": pc.metrics.accuracy})
    answers, labels = np.asarray(trainer.predict(data)), np.asarray(data.targets)
    assert list(found) == ["told", "any", "energy"]
    assert found["told"] == pytest.approx(np.mean(answers[:, :3].argmax(1) == labels))
    assert found["any"] == pytest.approx(trainer.evaluate(data)["accuracy"])


class Within:
    """A metric of a plain class: the share of outputs that are this near."""

    def __init__(self, distance):
        self.distance = distance

    def __call__(self, prediction, targets):
        return (jnp.abs(prediction - targets) < self.distance).mean(axis=-1)


@dataclasses.dataclass
class WithinAny(Within):
    """The same, which Python cannot hash."""

    distance: float


def test_a_metric_that_was_changed_measures_what_it_holds_now():
    """Its program was found again by the object, and gave the number of before."""
    data = pc.data.load("digits", split="test", batch_size=100)
    trainer, metric = digits_trainer(), Within(0.1)
    far = np.abs(np.asarray(trainer.predict(data)) - np.eye(10)[np.asarray(data.targets)])
    for metric.distance in (0.1, 0.5):
        found = trainer.evaluate(data, metrics={"near": metric})["near"]
        assert found == pytest.approx((far < metric.distance).mean(), rel=1e-5)


def test_metrics_are_compared_by_what_they_hold():
    """As a rule is; a function that is written anew is the same, and one that Python cannot hash will do."""

    network = digits_trainer()._run.state().network
    data = pc.data.load("digits", split="test", batch_size=100)

    def read(metric):
        return metrics_for({"m": metric}, pc.Feedforward(), network, data)

    def near(distance):
        return lambda prediction, targets: (prediction - targets < distance).mean(axis=-1)

    row = np.ones(10, np.float32)
    mean_of = lambda d: pc.metrics.OfMean(math.sqrt, Within(d))  # noqa: E731
    for make in (Within, WithinAny, near, mean_of, lambda d: Within(Within(d))):
        for one, other in ((0.1, 0.5), (row, 2 * row), ([0.1], [0.5])):
            first = read(make(one))
            assert first == read(make(copy.copy(one)))
            assert hash(first) == hash(read(make(copy.copy(one))))
            assert first != read(make(other))
    held = Within({0.1, 0.5})  # a set is neither compared nor traced: the object itself is
    assert read(held) == read(held) != read(Within({0.1, 0.5}))
    partial, jitted = functools.partial(near(0.1)), jax.jit(near(0.1))  # by themselves, too
    for one, other in ((partial, functools.partial(near(0.5))), (jitted, jax.jit(near(0.5)))):
        assert read(one) == read(one) != read(other)


@pytest.mark.parametrize("name", ["energy", "loss", "converged", "known", "failed", "a/b"])
def test_a_metric_of_a_name_that_is_taken_is_refused(name):
    """The counts of examples that are known or whose inference failed are columns too."""
    with pytest.raises(ValueError, match=f"metric '{name}' needs another name; 'energy', .* taken"):
        pc.training.metrics.by_node({name: pc.metrics.accuracy})


class TestPerplexity:
    @pytest.mark.parametrize("batch_size", [1, 4, 16, 51])
    def test_of_a_uniform_predictor_it_is_the_number_of_characters(self, batch_size):
        data = text_data(batch_size)
        trainer = bigram_trainer(np.zeros((data.num_classes, data.num_classes)))
        expected = pytest.approx(data.num_classes, rel=1e-5)
        assert trainer.evaluate(data)["perplexity"] == expected

    @pytest.mark.parametrize("batch_size", [1, 4, 16])
    def test_of_a_bigram_model_it_is_what_counting_gives(self, batch_size):
        """At every batch size the mean comes first: a mean of exponentials would be larger."""
        train, test = text_data(split=slice(0, 200)), text_data(batch_size, slice(200, 330))
        size = train.num_classes
        counts = np.ones((size, size))  # add one: no bigram of the test is impossible
        np.add.at(counts, (train.tokens[:-1], train.tokens[1:]), 1)
        table = np.log(counts / counts.sum(axis=1, keepdims=True))
        number = (130 - 1) // 7 * 7
        before, after = test.tokens[:number], test.tokens[1 : number + 1]
        nats = -table[before, after]
        right = table.argmax(axis=1)[before] == after
        found = bigram_trainer(table).evaluate(test)
        assert found["perplexity"] == pytest.approx(math.exp(nats.mean()), rel=1e-5)
        assert found["accuracy"] == pytest.approx(right.mean(), rel=1e-5)
        assert found["energy"] == pytest.approx(7 * nats.mean(), rel=1e-5)  # a sum over 7 tokens
        assert np.exp(nats).mean() > 1.05 * math.exp(nats.mean())

    def test_a_training_row_holds_exp_of_the_mean_over_its_steps(self, tmp_path):
        data = text_data()
        table = np.random.default_rng(0).normal(size=(data.num_classes,) * 2)
        metrics = {"perplexity": pc.metrics.perplexity, "nats": pc.metrics.cross_entropy}
        path = tmp_path / "metrics.jsonl"
        trainer = bigram_trainer(table, metrics=metrics, callbacks=[pc.JSONLinesLogger(path)])
        trainer.fit(data, num_steps=12, log_every=4, eval_data=data, eval_every=6)
        for prefix, number in (("train", 3), ("eval", 2)):
            nats = trainer.history[f"{prefix}/nats"]
            assert len(nats) == number
            assert trainer.history[f"{prefix}/perplexity"] == pytest.approx(np.exp(nats))
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert rows == trainer.history.rows

    def test_the_best_checkpoint_may_be_the_one_of_lowest_perplexity(self, tmp_path):
        data = text_data()
        checkpoints = pc.Checkpoints(tmp_path, every=1, keep_best=("eval/perplexity", "min"))
        table = np.random.default_rng(0).normal(size=(data.num_classes,) * 2)
        trainer = bigram_trainer(
            table,
            checkpoints=checkpoints,
            # downhill for three steps, then uphill
            optimizer=optax.sgd(lambda step: jnp.where(step < 3, 2.0, -2.0)),
        )
        history = trainer.fit(data, num_steps=6, eval_data=data, eval_every=1)
        measured = history["eval/perplexity"]
        assert int(np.argmin(measured)) == 2
        assert trainer.restore(best=True) == 3
        assert trainer.evaluate(data)["perplexity"] == pytest.approx(min(measured), rel=1e-6)

    def test_what_overflows_is_infinite(self):
        assert pc.metrics.perplexity.function(1e4) == math.inf
        assert pc.metrics.perplexity.function(2.0) == math.exp(2.0)
        assert math.isnan(pc.metrics.perplexity.function(math.nan))


class TestOfMean:
    def test_any_function_of_any_mean_is_reported(self):
        """A root mean square is the root of the mean over all examples, not the mean of roots."""
        digits = pc.data.load("digits", split="test", batch_size=100)
        metrics = {
            "root": pc.metrics.OfMean(math.sqrt, pc.metrics.squared_error),
            "square": pc.metrics.squared_error,
        }
        trainer = digits_trainer(metrics=metrics)
        found = trainer.evaluate(digits)
        assert list(found) == ["root", "square", "energy"]
        assert found["root"] == pytest.approx(math.sqrt(found["square"]), rel=1e-12)
        trainer.fit(digits, num_steps=3)
        row = trainer.history.last()
        assert row["train/root"] == pytest.approx(math.sqrt(row["train/square"]), rel=1e-6)

    @pytest.mark.parametrize("root", [jnp.sqrt, np.sqrt])
    def test_what_it_reports_is_a_number_that_files_can_hold(self, root, tmp_path):
        """A scalar array of jax's ended the fit where the first checkpoint or logger wrote it."""
        metrics = {"root": pc.metrics.OfMean(root, pc.metrics.squared_error)}
        logger = pc.JSONLinesLogger(tmp_path / "metrics.jsonl")
        trainer = digits_trainer(metrics=metrics, callbacks=[logger])
        digits = pc.data.load("digits", split="test", batch_size=100)
        assert type(trainer.evaluate(digits)["root"]) is float
        trainer.fit(digits, num_steps=3)
        row = json.loads(logger.path.read_text())
        assert row["train/root"] == trainer.history.last()["train/root"] > 0

    def test_what_is_no_number_is_refused(self):
        metrics = {"root": pc.metrics.OfMean(lambda mean: None, pc.metrics.squared_error)}
        digits = pc.data.load("digits", split="test", batch_size=100)
        with pytest.raises(TypeError, match=r"OfMean expected one number as 'root', got .*float"):
            digits_trainer().evaluate(digits, metrics=metrics)


class TestDefaults:
    def test_sequences_of_labels_have_a_perplexity(self):
        found = bigram_trainer(np.zeros((28, 28))).evaluate(text_data())
        assert list(found) == ["accuracy", "perplexity", "energy"]

    def test_rows_of_labels_from_arrays_do_too(self):
        tokens = np.arange(24).reshape(4, 6) % 5
        data = pc.data.from_arrays(
            tokens, (tokens + 1) % 5, batch_size=2, num_classes=5, integer_inputs=True
        )
        found = bigram_trainer(np.zeros((5, 5))).evaluate(data)
        assert found["perplexity"] == pytest.approx(5, rel=1e-6)

    def test_single_labels_have_an_accuracy_alone(self):
        found = digits_trainer().evaluate(pc.data.load("digits", split="test"))
        assert list(found) == ["accuracy", "energy"]


class TestMeansOfLogits:
    """What logits stand for is compared with targets, where a metric says so."""

    @pytest.mark.parametrize(
        ("energy", "mean"),
        [
            (pc.energies.Categorical(), lambda logits: special.softmax(logits, axis=1)),
            (pc.energies.Bernoulli(), special.expit),
            (pc.energies.Gaussian(), lambda prediction: prediction),
        ],
        ids=["Categorical", "Bernoulli", "Gaussian"],
    )
    def test_the_squared_error_is_that_of_the_outputs_mean(self, energy, mean):
        """Between logits and one-hot rows it grows while the network learns: the worst looks best."""
        layer = pc.PCDense(3, 4, energy=energy, rngs=nnx.Rngs(0))
        layer.linear.kernel.set_value(10 * layer.linear.kernel[...])
        inputs = np.random.RandomState(0).randn(6, 3).astype(np.float32)
        one_hot = np.eye(4, dtype=np.float32)[np.arange(6) % 4]
        data = pc.data.from_arrays(inputs, one_hot, batch_size=6, shuffle=False)
        rule = pc.learning.Backprop()
        root = pc.metrics.OfMean(math.sqrt, pc.metrics.squared_error)
        trainer = pc.Trainer(
            pc.PCNetwork([layer]),
            optax.sgd(0.0),
            learning=rule,
            metrics={"squared_error": pc.metrics.squared_error, "root": root},
            progress=False,
        )
        expected = np.mean((mean(np.asarray(trainer.predict(inputs), float)) - one_hot) ** 2)
        assert trainer.evaluate(data)["squared_error"] == pytest.approx(expected, rel=1e-5)
        assert trainer.evaluate(data)["root"] == pytest.approx(expected**0.5, rel=1e-5)
        history = trainer.fit(data, num_steps=1)
        assert history["train/squared_error"] == pytest.approx([expected], rel=1e-5)

    def test_of_several_outputs_every_metric_is_the_mean_of_theirs(self):
        (one, targets), (other, labels) = draw((6, 4)), draw((6, 3), seed=1)
        predictions, both = {"a": one, "b": other}, {"a": targets, "b": labels}
        for metric in (pc.metrics.accuracy, pc.metrics.cross_entropy, pc.metrics.squared_error):
            expected = (metric(one, targets) + metric(other, labels)) / 2
            np.testing.assert_allclose(metric(predictions, both), expected, rtol=1e-6)
