"""The Trainer: the loop against a plain one, evaluation, resume, errors."""

import dataclasses
import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from pcflax.training import fitting, staging
from pcflax.training.step import TrainState
from tests.conftest import Chain, digits_trainer, in_double, parameters_of

STILL = optax.sgd(0.0)  # parameters that never move


def digits(batch_size=64, **options):
    return pc.data.load("digits", batch_size=batch_size, **options)


def held_out():
    return pc.data.load("digits", split="test", batch_size=100)


def assert_same(one, other):
    for left, right in zip(one, other, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.usefixtures("double")
def test_fit_is_the_plain_loop_over_batches():
    """Scanned, donated and chunked, training must still be: infer, gradient, optax, next batch."""
    chain = Chain(batch=40)
    data = pc.data.from_arrays(chain.inputs, chain.targets, batch_size=6, seed=3)
    inference = pc.inference.GradientDescent(optax.sgd(0.1), num_steps=5)
    optimizer = optax.adam(0.01)
    plain = Chain(batch=40).network
    state = optimizer.init(nnx.as_pure(nnx.state(plain, nnx.Param)))
    for number in range(2 * data.num_batches):
        rows = data.indices(number, 1)[0]
        plain.infer(chain.inputs[rows], chain.targets[rows], inference=inference)
        gradients = nnx.as_pure(plain.parameter_gradients(chain.inputs[rows]))
        parameters = nnx.as_pure(nnx.state(plain, nnx.Param))
        with jax.numpy_dtype_promotion("standard"):  # optax counts in integers
            updates, state = optimizer.update(gradients, state, parameters)
        nnx.update(plain, optax.apply_updates(parameters, updates))
    trainer = pc.Trainer(
        chain.network,
        optimizer,
        learning=pc.learning.PredictiveCoding(inference),
        progress=False,
    )
    trainer.fit(data, epochs=2)
    assert trainer.step == 2 * data.num_batches == 12
    for got, expected in zip(parameters_of(chain.network), parameters_of(plain), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)


def test_digits_are_learned():
    trainer = digits_trainer(widths=(64, 100, 10))
    history = trainer.fit(digits(), num_steps=200, eval_data=held_out(), eval_every=100)
    assert history["eval/accuracy"][-1] > 0.95
    assert history.steps("eval/accuracy") == [100, 200]
    assert history.steps("train/energy") == [50, 100, 150, 200]
    assert {"train/loss", "train/accuracy", "train/energy/layer_0", "eval/energy"} <= set(
        history.names()
    )


@pytest.mark.parametrize("batch_size", [1, 7, 100, 360])
def test_evaluate_measures_every_example_once_at_any_batch_size(batch_size):
    """A dropped or doubled last batch would shift published accuracies."""
    trainer = digits_trainer()
    test = pc.data.load("digits", split="test", batch_size=360)
    batch = next(iter(test))
    prediction = np.asarray(trainer.network.predict(batch.inputs), np.float64)
    targets = np.asarray(batch.targets, np.float64)
    expected = {
        "accuracy": (prediction.argmax(1) == targets.argmax(1)).mean(),
        "energy": 0.5 * ((prediction - targets) ** 2).sum(axis=1).mean(),
    }
    got = trainer.evaluate(pc.data.load("digits", split="test", batch_size=batch_size))
    assert got == pytest.approx(expected, rel=1e-5)  # float32 sums
    assert got["accuracy"] == pytest.approx(expected["accuracy"], abs=1e-12)


def test_predict_takes_arrays_and_data_sets():
    trainer = digits_trainer()
    inputs = np.asarray(next(iter(pc.data.load("digits", split="test", batch_size=360))).inputs)
    expected = np.asarray(trainer.network.predict(inputs))
    np.testing.assert_allclose(
        trainer.predict(inputs, batch_size=77), expected, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(trainer.predict(held_out()), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seconds", [0.0, 1e9], ids=["one step a call", "all in one call"])
def test_the_length_of_a_call_changes_no_number(seconds, monkeypatch):
    """Chunks follow the machine's speed, so results must not follow the chunks."""
    reference = digits_trainer()
    reference.fit(digits(), num_steps=30)
    monkeypatch.setattr(staging, "SECONDS_A_CALL", seconds)
    other = digits_trainer()
    other.fit(digits(), num_steps=30)
    assert_same(parameters_of(reference.network), parameters_of(other.network))
    assert reference.history.rows == other.history.rows


def test_randomness_is_a_function_of_seed_and_step(tmp_path):
    """One key for all steps would repeat the noise; one from a counter would not survive a resume."""

    def make(seed, folder=None):
        rule = pc.learning.PredictiveCoding(
            pc.inference.GradientDescent(optax.sgd(0.01), num_steps=2),
            initializer=pc.initializers.Normal(1.0),
        )
        # weights that do not learn on one and the same batch: only the noise can differ
        return digits_trainer(folder, learning=rule, optimizer=optax.sgd(0.0), seed=seed)

    data = pc.data.load("digits", batch_size=1437, shuffle=False)
    trainer = make(0)
    energies = trainer.fit(data, num_steps=6, log_every=1)["train/energy"]
    assert len(set(energies)) == 6
    assert make(0).fit(data, num_steps=6, log_every=1)["train/energy"] == energies
    make(0, tmp_path).fit(data, num_steps=3, log_every=1)
    resumed = make(9, tmp_path)
    resumed.restore()
    assert resumed.fit(data, num_steps=6, log_every=1)["train/energy"] == energies


class TestResume:
    """A resumed run must be the run: bitwise in parameters, optimizer state and metrics."""

    @pytest.mark.parametrize("stop", [10, 25, 37])
    def test_ends_bitwise_as_the_uninterrupted_run(self, tmp_path, stop):
        options = {"eval_data": held_out(), "eval_every": 20, "log_every": 15}
        straight = digits_trainer()
        straight.fit(digits(), num_steps=60, **options)

        class StopThere(pc.Callback):
            def on_progress(self, trainer, step):
                if step >= stop:
                    trainer.stop()

        first = digits_trainer(tmp_path, callbacks=[StopThere()])
        first.fit(digits(), num_steps=60, **options)
        assert first.step < 60
        second = digits_trainer(tmp_path)
        assert second.restore() == first.step
        second.fit(digits(), num_steps=60, **options)
        assert_same(parameters_of(second.network), parameters_of(straight.network))
        assert_same(
            jax.tree.leaves(second.optimizer_state), jax.tree.leaves(straight.optimizer_state)
        )
        assert second.history.rows == straight.history.rows

    def test_streamed_data_resume_too(self, tmp_path):
        images, labels = pc.data.sources.digits.read_digits("train")
        source = [(image, label) for image, label in zip(images, labels, strict=True)]
        decoder = pc.data.load("digits").reader.decoder

        def stream():
            return pc.data.StreamDataset(
                source, decoder=decoder, batch_size=64, name="digits/train"
            )

        straight = digits_trainer()
        straight.fit(digits(), num_steps=30)  # in memory: the same batches
        digits_trainer(tmp_path).fit(stream(), num_steps=17)
        resumed = digits_trainer(tmp_path)
        resumed.restore()
        resumed.fit(stream(), num_steps=30)
        for got, expected in zip(
            parameters_of(resumed.network), parameters_of(straight.network), strict=True
        ):
            # another compiled program (no gather), so rounding may differ; the batches may not
            np.testing.assert_allclose(got, expected, atol=1e-5)

    def test_other_state_and_random_keys_come_back(self, tmp_path):
        """A layer with a variable and random streams of its own."""

        class Odd(pc.PCLayer):
            def __init__(self, rngs):
                super().__init__()
                self.linear = nnx.Linear(64, 10, rngs=rngs)
                self.count = nnx.Variable(jnp.arange(3.0))
                self.rngs = rngs.fork()

            def predict(self, below):
                return self.linear(below)

        def make(seed, keep):
            return pc.Trainer(
                pc.PCNetwork([Odd(nnx.Rngs(seed))]),
                optax.sgd(0.1),
                learning=pc.learning.Backprop(),
                checkpoints=keep,
                progress=False,
            )

        trainer = make(0, pc.Checkpoints(tmp_path))
        trainer.fit(digits(), num_steps=3)
        other = make(5, pc.Checkpoints(tmp_path))
        other.network.layers[0].count[...] = jnp.zeros(3)
        other.restore()
        np.testing.assert_array_equal(other.network.layers[0].count[...], np.arange(3.0))
        left, right = (
            jax.random.key_data(t.network.layers[0].rngs.params.key[...])
            if "params" in dir(t.network.layers[0].rngs)
            else jax.random.key_data(t.network.layers[0].rngs.default.key[...])
            for t in (trainer, other)
        )
        np.testing.assert_array_equal(left, right)

    def test_the_seed_comes_from_the_checkpoint(self, tmp_path):
        digits_trainer(tmp_path, seed=3).fit(digits(), num_steps=2)
        other = digits_trainer(tmp_path, seed=4)
        other.restore()
        assert other.seed == 3

    def test_other_data_are_told(self, tmp_path):
        digits_trainer(tmp_path).fit(digits(), num_steps=2)
        other = digits_trainer(tmp_path)
        other.restore()
        with pytest.warns(pc.CheckpointWarning, match=r"batch_size.*will not end as"):
            other.fit(digits(batch_size=32), num_steps=4)

    def test_nothing_left_to_do_is_told(self, tmp_path):
        trainer = digits_trainer(tmp_path)
        trainer.fit(digits(), num_steps=2)
        told = r"2 steps are done and 2 were asked for .* one more pass .* give num_steps=24"
        with pytest.warns(UserWarning, match=told):
            trainer.fit(digits(), num_steps=2)


def test_saved_activities_come_back(tmp_path):
    trainer = digits_trainer(tmp_path, keep={"activities": True})
    trainer.fit(digits(), num_steps=3)
    expected = trainer.network.activities()
    assert expected["layer_0"].shape == (64, 20)
    other = digits_trainer(tmp_path, keep={"activities": True}, seed=1)
    other.restore()
    for name, activity in other.network.activities().items():
        np.testing.assert_array_equal(activity, expected[name])
    # they are those of inference on the third batch, before its update of the weights
    assert set(pc.load_checkpoint(tmp_path).activities) == {"layer_0", "layer_1"}


def test_training_leaves_the_users_arrays_alone():
    """Donation inside must not delete what the caller holds outside."""
    trainer = digits_trainer()
    before = nnx.as_pure(nnx.state(trainer.network, nnx.Param))
    optimizer_state = trainer.optimizer_state
    trainer.fit(digits(), num_steps=3)
    for leaf in jax.tree.leaves((before, optimizer_state)):
        np.asarray(leaf)  # raises where the buffer was deleted
    during = nnx.as_pure(nnx.state(trainer.network, nnx.Param))
    trainer.fit(digits(), num_steps=6)
    for leaf in jax.tree.leaves(during):
        np.asarray(leaf)


def test_parameters_written_between_fits_are_trained_on():
    trainer = digits_trainer(optimizer=optax.sgd(0.0))
    trainer.fit(digits(), num_steps=2)
    trainer.network.layers[0].linear.bias[...] = jnp.full(20, 0.5)
    trainer.fit(digits(), num_steps=4)
    np.testing.assert_array_equal(trainer.network.layers[0].linear.bias[...], np.full(20, 0.5))


def test_unlabelled_and_input_free_data_train():
    """A generative network: labels below, images above; and one with a free root."""
    images, labels = pc.data.sources.digits.read_digits("train")
    images = images.reshape(len(images), -1).astype(np.float32) / 16
    one_hot = np.eye(10, dtype=np.float32)[labels]
    inference = pc.inference.GradientDescent(optax.sgd(0.1), num_steps=5)
    for inputs, reads in ((one_hot, None), (None, pc.Reconstruction(inference))):
        rngs = nnx.Rngs(0)
        network = pc.PCNetwork(
            [pc.PCRoot(10), pc.PCDense(10, 20, activation=jnp.tanh, rngs=rngs)]
            + [pc.PCDense(20, 64, rngs=rngs)]
        )
        trainer = pc.Trainer(
            network,
            optax.adam(1e-2),
            learning=pc.learning.PredictiveCoding(inference),
            reads=reads,
            progress=False,
        )
        data = pc.data.from_arrays(inputs, images, batch_size=64)
        history = trainer.fit(data, num_steps=100, eval_data=data, eval_every=50)
        assert history["train/energy"][-1] < history["train/energy"][0]
        assert "eval/squared_error" in history.names()


def test_own_metrics_replace_the_default():
    trainer = digits_trainer(metrics={"error": pc.metrics.squared_error})
    measured = trainer.evaluate(held_out())
    assert list(measured) == ["error", "energy"]
    # squared_error is a mean over 10 features, the energy half a sum
    assert measured["energy"] == pytest.approx(5 * measured["error"], rel=1e-5)


class TestFailure:
    """Nothing is lost and the sentence says where."""

    def test_a_non_finite_energy_stops_with_step_layer_and_checkpoint(self, tmp_path):
        inputs = np.asarray(np.random.RandomState(0).normal(size=(64 * 10, 64)), np.float32)
        labels = np.random.RandomState(1).randint(10, size=640)
        data = pc.data.from_arrays(inputs, labels, batch_size=64, shuffle=False)
        data.inputs[64 * 6] = np.nan  # a bad example in batch 6, unseen by from_arrays
        trainer = digits_trainer(tmp_path, keep={"every": 4})
        with pytest.raises(
            pc.NonFiniteEnergyError,
            match=r"not finite at step 7: layer 'layer_0' has energy nan.*last good checkpoint is .*4; "
            r"inputs of 'arrays' are not finite in 1 of the batch's 64 examples, first in example 384: drop",
        ):
            trainer.fit(data, num_steps=10)
        assert trainer.step == 6
        straight = digits_trainer()
        straight.fit(data, num_steps=6)
        assert_same(parameters_of(trainer.network), parameters_of(straight.network))

    def test_without_checkpoints_it_says_so(self):
        trainer = digits_trainer(
            learning=pc.learning.PredictiveCoding(
                pc.inference.GradientDescent(optax.sgd(1e30), num_steps=5)
            )
        )
        with pytest.raises(pc.NonFiniteEnergyError, match="there is no checkpoint; lower the step"):
            trainer.fit(digits(), num_steps=10)

    def test_parameters_that_are_not_finite_are_never_saved(self, tmp_path):
        trainer = digits_trainer(tmp_path)
        trainer.fit(digits(), num_steps=2)
        trainer.network.layers[0].linear.bias[...] = jnp.full(20, jnp.nan)
        with pytest.raises(pc.NonFiniteEnergyError, match=r"layer_0.linear.bias' is not finite"):
            trainer.save()
        assert trainer.checkpoints.steps() == [2]

    def test_an_error_in_a_callback_leaves_the_network_usable(self, tmp_path):
        class Failing:
            def on_log(self, trainer, step, metrics):
                raise RuntimeError("mine")

        trainer = digits_trainer(tmp_path, callbacks=[Failing()])
        with pytest.raises(RuntimeError, match="mine"):
            trainer.fit(digits(), num_steps=60)
        assert np.isfinite(trainer.predict(held_out())).all()

    @pytest.mark.parametrize("event", ["on_progress", "on_evaluate", "on_epoch_end"])
    def test_after_an_error_network_step_and_optimizer_state_agree(self, event):
        """A step count ahead of the parameters would skip batches without a word."""

        def fail(*arguments):
            if arguments[0].step > 10:
                raise RuntimeError("mine")

        callback = type("Failing", (), {event: staticmethod(fail)})()
        trainer = digits_trainer(callbacks=[callback])
        with pytest.raises(RuntimeError, match="mine"):
            trainer.fit(digits(), num_steps=60, eval_data=held_out(), eval_every=15)
        assert trainer.step > 10
        straight = digits_trainer()
        straight.fit(digits(), num_steps=trainer.step)
        assert_same(parameters_of(trainer.network), parameters_of(straight.network))
        trainer.callbacks.callbacks.clear()
        trainer.fit(digits(), num_steps=60)
        straight.fit(digits(), num_steps=60)
        assert_same(parameters_of(trainer.network), parameters_of(straight.network))

    def test_a_stop_between_events_leaves_the_newest_parameters(self):
        class Stop:
            def on_progress(self, trainer, step):
                if step >= 9:
                    trainer.stop()

        trainer = digits_trainer(callbacks=[Stop()])
        trainer.fit(digits(), num_steps=60)
        straight = digits_trainer()
        straight.fit(digits(), num_steps=trainer.step)
        assert 9 <= trainer.step < 60
        assert_same(parameters_of(trainer.network), parameters_of(straight.network))

    @pytest.mark.parametrize(
        ("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
    )
    def test_signals_save_and_stop(self, tmp_path, number, error):
        class Signal:
            def on_progress(self, trainer, step):
                if step >= 20:
                    os.kill(os.getpid(), number)

        before = signal.getsignal(number)
        trainer = digits_trainer(tmp_path, callbacks=[Signal()])
        with pytest.raises(error) as raised:
            trainer.fit(digits(), num_steps=2000)
        if error is SystemExit:
            assert raised.value.code == 143
        assert 20 <= trainer.step < 2000
        assert trainer.checkpoints.steps()[-1] == trainer.step
        assert signal.getsignal(number) is before

    def test_fit_works_outside_the_main_thread(self):
        trainer = digits_trainer()
        thread = threading.Thread(target=lambda: trainer.fit(digits(), num_steps=2))
        thread.start()
        thread.join()
        assert trainer.step == 2


ARRAYS = np.ones((20, 64), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t: t.fit(ARRAYS, num_steps=1), TypeError, "wrap arrays: pc.data.from_arrays"),
        (lambda t: t.evaluate(ARRAYS), TypeError, "expected the evaluation data from pc.data.load"),
        (lambda t: t.fit(digits()), ValueError, "give either epochs or num_steps"),
        (
            lambda t: t.fit(digits(), epochs=1, num_steps=1),
            ValueError,
            "either epochs or num_steps",
        ),
        (
            lambda t: t.fit(digits(), num_steps=-3),
            ValueError,
            "fit expected num_steps of at least 0, got -3",
        ),
        (
            lambda t: t.fit(digits(), num_steps=3, log_every=0),
            ValueError,
            "fit expected log_every of at least 1, got 0",
        ),
        (
            lambda t: t.fit(digits(), num_steps=3, eval_every=0),
            ValueError,
            "fit expected eval_every of at least 1, got 0",
        ),
        (
            lambda t: t.fit(pc.data.from_arrays(ARRAYS[:, :60], ARRAYS, batch_size=5), num_steps=1),
            ValueError,
            r"the training data 'arrays' does not fit the network: layer 'layer_0' .*\(batch, 64\)",
        ),
        (
            lambda t: t.fit(pc.data.from_arrays(ARRAYS, np.arange(20), batch_size=5), num_steps=1),
            ValueError,
            r"layer 'layer_1' predicts shape \(5, 10\) but is clamped to \(5, 20\).* labels show 20 classes: "
            r"where there are more, give from_arrays num_classes$",
        ),
        (
            lambda t: t.predict(ARRAYS, batch_size=0),
            ValueError,
            "predict expected batch_size of at least 1",
        ),
        (
            lambda t: pc.Trainer(t.network, t.optimizer, learning=t.learning, seed=1.5),
            TypeError,
            "Trainer expected an int seed, got 1.5",
        ),
        (  # jax would take it for seed 0
            lambda t: pc.Trainer(t.network, t.optimizer, learning=t.learning, seed=2**32),
            ValueError,
            r"Trainer expected seed < 2\*\*32, got 4294967296",
        ),
        (lambda t: t.save(), ValueError, "this Trainer has no checkpoints"),
        (lambda t: t.restore(), ValueError, "this Trainer has no checkpoints"),
        (lambda t: t.predict(np.ones((2, 64), int)), TypeError, "expected inputs of a floating"),
        (lambda t: pc.Trainer(3, 4, learning=5), TypeError, "Trainer expected network such as"),
        (
            lambda t: pc.Trainer(t.network, "adam", learning=t.learning),
            TypeError,
            "Trainer expected optimizer such as optax.adam",
        ),
        (
            lambda t: pc.Trainer(t.network, optax.sgd(1.0), learning="pc"),
            TypeError,
            "Trainer expected learning such as pc.learning.PredictiveCoding",
        ),
        (
            lambda t: setattr(t, "learning", "pc"),
            TypeError,
            "Trainer expected learning such as pc.learning.PredictiveCoding",
        ),
        (lambda t: setattr(t, "optimizer", "adam"), TypeError, "Trainer expected optimizer such"),
        (lambda t: setattr(t, "metrics", {"m": 3}), TypeError, "'m' expected a function of .pred"),
        (lambda t: setattr(t, "metrics", ["m"]), TypeError, "Trainer expected metrics such as {"),
    ],
)
def test_refusals(call, error, message):
    trainer = digits_trainer()
    before = parameters_of(trainer.network)
    with pytest.raises(error, match=message):
        call(trainer)
    assert_same(parameters_of(trainer.network), before)


class TestAnotherOptimizer:
    """What is set in a Trainer counts from the next fit on, and `wrt` still holds."""

    def trainer(self, optimizer):
        network = pc.models.mlp(64, 8, 10, rngs=nnx.Rngs(0))
        learning = pc.learning.Backprop()
        trainer = pc.Trainer(network, optimizer, learning=learning, wrt="output", progress=False)
        trainer.fit(digits(), num_steps=2)
        return trainer

    def test_of_the_same_form_goes_on_with_the_state(self):
        trainer = self.trainer(optax.adam(1e-3))
        before = trainer.optimizer_state
        trainer.optimizer = optax.adam(1e-4)
        assert_same(jax.tree.leaves(trainer.optimizer_state), jax.tree.leaves(before))
        trainer.optimizer = trainer.optimizer
        assert_same(jax.tree.leaves(trainer.optimizer_state), jax.tree.leaves(before))

    def test_an_injected_rate_that_stays_the_states_is_told(self):
        trainer = digits_trainer(optimizer=optax.inject_hyperparams(optax.sgd)(learning_rate=0.5))
        text = (
            r"goes on with the state's learning_rate 0.5, and not 0.25: .*trainer.optimizer_state"
        )
        with pytest.warns(UserWarning, match=text) as caught:
            trainer.optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.25)
        assert caught[0].filename == __file__
        assert trainer.optimizer_state.hyperparams["learning_rate"] == 0.5

    def test_set_by_a_callback_it_counts_from_the_next_fit_on(self, tmp_path):
        """The fit that trains goes on with its own, whose state it saves."""
        other = optax.sgd(0.05, momentum=0.9)

        class Switch(pc.Callback):
            def on_log(self, trainer, step, metrics):
                if step == 2:
                    trainer.optimizer = other

        def fit(num_steps, callbacks=(), folder=None):
            trainer = digits_trainer(folder, optimizer=optax.adam(1e-2), callbacks=callbacks)
            trainer.fit(digits(), num_steps=num_steps, log_every=1)
            return trainer

        switched, plain = fit(4, [Switch()], tmp_path), fit(4)
        assert_same(parameters_of(switched.network), parameters_of(plain.network))
        plain.optimizer = other
        assert_same(
            jax.tree.leaves(switched.optimizer_state), jax.tree.leaves(plain.optimizer_state)
        )
        for trainer in (switched, plain):
            trainer.fit(digits(), num_steps=6)
        assert_same(parameters_of(switched.network), parameters_of(plain.network))
        resumed = digits_trainer(tmp_path, optimizer=optax.adam(1e-2))
        assert resumed.restore(4) == 4

    def test_of_another_form_begins_anew(self):
        trainer = self.trainer(optax.adam(1e-3))
        before = parameters_of(trainer.network)
        optimizer = optax.sgd(0.1, momentum=0.9)
        trainer.optimizer = optimizer
        trainer.fit(digits(), num_steps=3)
        after = parameters_of(trainer.network)
        moved = [bool((a != b).any()) for a, b in zip(before, after, strict=True)]
        assert moved == [False, False, True, True]
        # the first step of the momentum, from a state of 0
        (batch,) = list(digits().epoch(0))[2:3]
        network = self.trainer(optax.adam(1e-3)).network
        gradients, _ = pc.learning.Backprop().gradients(
            pc.networks.split(network), batch, key=jax.random.key(0)
        )
        expected = before[2] - 0.1 * gradients["output"]["linear"]["bias"]
        np.testing.assert_allclose(after[2], expected, rtol=1e-5, atol=1e-7)


def test_the_second_fit_compiles_nothing():
    """A retrace at each fit would make short fits a hundred times slower."""
    traces = []

    def counted(values):
        traces.append(1)
        return jnp.tanh(values)

    network = pc.PCNetwork([pc.PCDense(64, 10, activation=counted, rngs=nnx.Rngs(0))])
    trainer = pc.Trainer(network, optax.sgd(0.1), learning=pc.learning.Backprop(), progress=False)
    data = digits()
    trainer.fit(data, num_steps=5)
    checked = len(traces)
    trainer.fit(data, num_steps=300)
    # each fit checks shapes once without compiling; compiling would trace several times more
    assert len(traces) - checked <= 3


class TestCallbacksThatChangeThings:
    """What a callback changes must be trained on, not overwritten by the loop's own copy."""

    def test_parameters_and_learning_rate(self):
        class Change:
            def on_log(self, trainer, step, metrics):
                if step == 10:
                    trainer.network.layers[0].linear.bias[...] = jnp.full(20, 0.5)
                    trainer.optimizer_state.hyperparams["learning_rate"] = jnp.asarray(0.0)

        optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
        trainer = digits_trainer(optimizer=optimizer, callbacks=[Change()])
        trainer.fit(digits(), num_steps=20, log_every=10)
        np.testing.assert_array_equal(trainer.network.layers[0].linear.bias[...], np.full(20, 0.5))

    @pytest.mark.parametrize("event", ["on_progress", "on_log", "on_evaluate"])
    def test_going_back(self, tmp_path, event):
        """A restore in a callback must not leave the loop on other parameters than its step says."""
        gone_back = []

        def go_back(trainer, step, *metrics):
            if step >= 10 and not gone_back:
                gone_back.append(step)
                trainer.restore(5)

        callback = type("GoBack", (), {event: staticmethod(go_back)})()
        options = {"eval_data": held_out(), "eval_every": 10, "log_every": 10}
        trainer = digits_trainer(tmp_path, keep={"every": 5}, callbacks=[callback])
        trainer.fit(digits(), num_steps=20, **options)
        assert gone_back
        straight = digits_trainer()
        straight.fit(digits(), num_steps=20, **options)
        assert trainer.step == 20
        assert_same(parameters_of(trainer.network), parameters_of(straight.network))
        assert trainer.history.rows == straight.history.rows


def test_an_early_stopped_run_stays_stopped_when_restored(tmp_path):
    def make():
        stop = pc.EarlyStopping("eval/energy", "max", patience=2)  # the energy falls: it stops soon
        return digits_trainer(tmp_path, callbacks=[stop])

    first = make()
    first.fit(digits(), num_steps=100, eval_data=held_out(), eval_every=5)
    assert first.step < 100
    second = make()
    second.restore()
    with pytest.warns(UserWarning, match="nothing to do: the run had stopped at step .* patience"):
        second.fit(digits(), num_steps=100, eval_data=held_out(), eval_every=5)
    assert second.step == first.step
    assert second.history.rows == first.history.rows


def test_dropout_has_one_mask_a_step_and_none_in_evaluation():
    """One mask for a whole run would train half a network; a mask in evaluation would cost accuracy."""
    seen = []

    class Dropping(pc.PCLayer):
        def __init__(self, rngs):
            super().__init__()
            self.linear = nnx.Linear(64, 10, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def predict(self, below):
            mask = self.dropout(jnp.ones_like(below))
            if not self.dropout.deterministic:
                jax.debug.callback(lambda m: seen.append(np.asarray(m).tobytes()), mask)
            return self.linear(below * mask)

    def make():
        return pc.Trainer(
            pc.PCNetwork([Dropping(nnx.Rngs(0)), pc.PCDense(10, 10, rngs=nnx.Rngs(1))]),
            optax.sgd(0.01),
            learning=pc.learning.PredictiveCoding(
                pc.inference.GradientDescent(optax.sgd(0.1), num_steps=4)
            ),
            progress=False,
        )

    trainer = make()
    trainer.fit(digits(), num_steps=6)
    jax.effects_barrier()
    assert len(set(seen)) == 6  # by step, and the same at each of a step's evaluations
    test = held_out()
    assert trainer.evaluate(test) == trainer.evaluate(test)
    np.testing.assert_array_equal(trainer.predict(test), trainer.predict(test))


def test_a_gradient_that_is_not_finite_is_not_applied():
    """Sqrt has an infinite slope at 0: the energy is finite, the update is not."""

    class Root(pc.PCLayer):
        def __init__(self):
            super().__init__()
            self.scale = nnx.Param(jnp.zeros(10))

        def predict(self, below):
            return below[:, :10] + jnp.sqrt(self.scale[...])[None]

    trainer = pc.Trainer(
        pc.PCNetwork([Root()]), optax.sgd(0.1), learning=pc.learning.Backprop(), progress=False
    )
    with pytest.raises(pc.NonFiniteEnergyError, match="update of step 1 is not finite, though the"):
        trainer.fit(digits(), num_steps=3)
    np.testing.assert_array_equal(trainer.network.layers[0].scale[...], np.zeros(10))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: digits_trainer(metrics={"m": lambda p, t: jnp.mean((p - t) ** 2)}),
            ValueError,
            r"metric 'm' returned shape \(\), expected one number an example, \(100,\)",
        ),
        (
            lambda: digits_trainer(metrics={"m": lambda p, t: p[:, :1]}),
            ValueError,
            r"metric 'm' returned shape \(100, 1\)",
        ),
        (lambda: digits_trainer(metrics={"loss": pc.metrics.accuracy}), ValueError, "another name"),
    ],
)
def test_metrics_that_would_measure_wrong_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call().evaluate(held_out())


def test_a_rule_that_cannot_be_hashed_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Mine(pc.learning.AbstractGradientLearning):
        names: set

        def gradients(self, network, evidence, *, key):
            raise NotImplementedError

    with pytest.raises(TypeError, match=r"Mine cannot be hashed.*dataclass\(frozen=True\)"):
        digits_trainer(learning=Mine({"hidden"}))


def test_an_energy_that_branches_on_values_is_told_as_a_misfit():
    class Branching(pc.Energy):
        def __call__(self, activity, prediction):
            return activity.sum(-1) if (activity > 0).all() else prediction.sum(-1)

    network = pc.PCNetwork([pc.PCDense(64, 10, energy=Branching(), rngs=nnx.Rngs(0))])
    trainer = pc.Trainer(network, optax.sgd(0.1), learning=pc.learning.Backprop(), progress=False)
    with pytest.raises(TypeError, match="'digits/train' does not fit the network: .*boolean"):
        trainer.fit(digits(), num_steps=1)


def test_whole_numbers_of_numpy_are_whole_numbers(tmp_path):
    base = digits_trainer()
    trainer = pc.Trainer(
        base.network,
        base.optimizer,
        learning=base.learning,
        checkpoints=pc.Checkpoints(tmp_path),
        seed=np.int64(3),
        progress=False,
    )
    data = pc.data.load("digits", seed=np.int64(1), batch_size=np.int32(64))
    trainer.fit(
        data, num_steps=np.int64(2), eval_data=data, eval_every=np.int8(2), log_every=np.uint8(1)
    )
    assert trainer.step == 2
    with pytest.raises(TypeError, match="fit expected an int num_steps, got 1000.0"):
        trainer.fit(data, num_steps=1e3)


def test_results_keep_the_networks_order():
    rngs = nnx.Rngs(0)
    network = pc.PCNetwork(
        {
            "z": pc.PCDense(3, 4, rngs=rngs),
            "a": pc.PCDense(4, 5, rngs=rngs),
            "m": pc.PCDense(5, 2, rngs=rngs),
        }
    )
    inference = pc.inference.GradientDescent(optax.sgd(0.1), num_steps=2)
    result = network.infer(jnp.ones((2, 3)), jnp.ones((2, 2)), inference=inference, trace=True)
    for part in (result.activities, result.energies, result.trace.energies):
        assert list(part) == ["z", "a", "m"]


@pytest.mark.parametrize("log_every", [2, 4])
def test_a_fault_within_a_call_loses_only_that_call(monkeypatch, log_every):
    """Network, step and rows are those before it, and the next fit goes on from there."""

    def fit(trainer):
        return trainer.fit(
            digits(), num_steps=12, eval_data=held_out(), eval_every=4, log_every=log_every
        )

    whole = digits_trainer()
    fit(whole)
    trainer, begun = digits_trainer(), []
    real = fitting.learn_batches

    def failing(state, constants, items, count, *args, **options):
        begun.append(int(state.step))
        result = real(state, constants, items, count, *args, **options)
        if len(begun) == len(set(begun)) and begun[-1] == 8:
            raise RuntimeError("the device is lost")
        return result

    monkeypatch.setattr(fitting, "learn_batches", failing)
    with pytest.raises(RuntimeError, match="lost"):
        fit(trainer)
    assert trainer.step == 8
    assert max(row["step"] for row in trainer.history.rows) == 8
    fit(trainer)
    assert begun.count(8) == 2
    assert_same(parameters_of(trainer.network), parameters_of(whole.network))
    assert trainer.history.rows == whole.history.rows


@pytest.mark.parametrize(("reads", "steps"), [(True, [2, 4, 6]), (False, [6])])
def test_the_network_is_written_when_it_is_read(monkeypatch, reads, steps):
    """A logger looks at its arguments and costs nothing; a reader finds the network as of its step."""
    written = []
    real = TrainState.lend_to

    def write(state, network):
        written.append(int(state.step))
        real(state, network)

    class Reader(pc.Callback):
        def on_log(self, trainer, step, metrics):
            if reads:
                held = parameters_of(trainer.network)  # and another look writes nothing
                assert_same(held, parameters_of(trainer.network))

    monkeypatch.setattr(TrainState, "lend_to", write)
    digits_trainer(callbacks=[Reader()]).fit(digits(), num_steps=6, log_every=2)
    assert written == steps


QUICK = pc.learning.PredictiveCoding(pc.inference.GradientDescent(optax.sgd(0.1), num_steps=2))


def small_trainer(layers, *, optimizer=None, learning=QUICK, **options):
    network = layers if isinstance(layers, nnx.Module) else pc.PCNetwork(layers)
    return pc.Trainer(
        network, optimizer or optax.sgd(0.1), learning=learning, progress=False, **options
    )


@pytest.mark.parametrize("steps", [8, 10])
def test_another_data_set_begins_with_its_first_epoch(tmp_path, steps):
    """Tasks one after the other: a pass over the second must hold each of its examples once."""
    a = pc.data.from_arrays(np.ones((20, 1)), np.ones((20, 1)), batch_size=2)
    b = pc.data.from_arrays(np.ones((8, 1)), 4.0 ** np.arange(8)[:, None], batch_size=2)
    epochs = []

    class Epochs:
        def on_epoch_end(self, trainer, epoch):
            epochs.append((trainer.step, epoch))

    def make():
        return small_trainer(
            [pc.PCDense(1, 1, rngs=nnx.Rngs(0))],
            optimizer=STILL,
            metrics={"target": lambda prediction, targets: targets[:, 0]},
            callbacks=[Epochs()],
            checkpoints=pc.Checkpoints(tmp_path, every=1, keep_latest=9),
        )

    def seen(rows):
        total = sum(round(2 * mean) for mean in rows)
        return [total // 4**k % 4 for k in range(8)]  # digits in base 4: how often each was seen

    trainer = make()
    trainer.fit(a, num_steps=steps)
    trainer.fit(b, num_steps=steps + 3, log_every=1)
    # interrupted after three of its four batches, it goes on with the fourth
    resumed = make()
    resumed.restore()
    history = resumed.fit(b, num_steps=steps + len(b), log_every=1)
    assert seen(history["train/target"][-len(b) :]) == [1] * 8
    assert epochs[-1] == (steps + len(b), 0)


def test_other_examples_of_the_same_description_are_another_data_set():
    """Permuted tasks have equal sizes: the second would begin where the first one's epoch stood."""

    def make(value):
        inputs = np.full((8, 1), value)
        return pc.data.from_arrays(inputs, inputs, batch_size=2)

    trainer = small_trainer([pc.PCDense(1, 1, rngs=nnx.Rngs(0))], optimizer=STILL)
    for data, steps, start in ((make(1.0), 3, 0), (make(1.0), 6, 0), (make(2.0), 9, 6)):
        trainer.fit(data, num_steps=steps)
        assert trainer._run.record.data_start == start


def test_an_output_without_targets_stays_at_its_prediction_and_does_not_learn():
    """As in a loop by hand, where `infer` leaves it free; its loss and metrics are the other's alone."""

    def graph():
        rngs = nnx.Rngs(0)
        return pc.PCGraph(
            {
                "h": pc.PCDense(3, 4, activation=jnp.tanh, rngs=rngs),
                "a": pc.PCDense(4, 2, rngs=rngs),
                "b": pc.PCDense(4, 3, rngs=rngs),
            },
            parents={"h": "x", "a": "h", "b": "h"},
            inputs={"x": 3},
            output=("a", "b"),
        )

    draw = np.random.RandomState(0)
    x, y = draw.randn(8, 3).astype(np.float32), draw.randn(8, 2).astype(np.float32)
    by_hand, trained = graph(), graph()
    squared = np.mean((np.asarray(trained.predict(x)["a"]) - y) ** 2)
    by_hand.infer(x, {"a": y}, inference=QUICK.inference)
    nnx.Optimizer(by_hand, optax.sgd(0.1), wrt=nnx.Param).update(
        by_hand, by_hand.parameter_gradients(x)
    )
    data = pc.data.from_arrays(x, {"a": y}, batch_size=8, shuffle=False)
    trainer = small_trainer(trained)
    measured = trainer.evaluate(data)
    history = trainer.fit(data, num_steps=1, log_every=1)
    for got, expected in zip(parameters_of(trained), parameters_of(by_hand), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert measured == pytest.approx({"squared_error": squared, "energy": squared}, rel=1e-5)
    assert history["train/loss"] == pytest.approx(
        [squared], rel=1e-5
    )  # half a sum over two features


def test_a_network_without_parameters_is_measured():
    """0.5 * mean ||y - 2 tanh(x)||^2 where nothing is inferred."""
    x = np.random.RandomState(0).randn(8, 3).astype(np.float32)
    rule = pc.learning.PredictiveCoding(pc.inference.GradientDescent(optax.sgd(0.1), num_steps=0))
    trainer = small_trainer([pc.PCLayer(jnp.tanh), pc.PCLayer(lambda z: 2 * z)], learning=rule)
    data = pc.data.from_arrays(x, x, batch_size=8, shuffle=False)
    history = trainer.fit(data, num_steps=1)
    expected = 0.5 * np.mean(np.sum((x - 2 * np.tanh(x)) ** 2, axis=1))
    assert history["train/energy"] == pytest.approx([expected], rel=1e-5)


class TestTrainingMode:
    """Training is in training mode and evaluation in the other, whatever `network.eval()` said."""

    def network(self):
        rngs = nnx.Rngs(0)
        hidden = pc.PCDense(3, 8, dropout=0.5, rngs=rngs)
        norm = pc.PCLayer(nnx.BatchNorm(8, rngs=rngs))
        return pc.PCNetwork({"h": hidden, "n": norm, "o": pc.PCDense(8, 2, rngs=rngs)})

    def data(self):
        draw = np.random.RandomState(0)
        return pc.data.from_arrays(draw.randn(8, 3), draw.randn(8, 2), batch_size=4)

    def test_a_look_by_hand_before_or_between_changes_nothing(self):
        """Else dropout would be off and running statistics stand still, without a word."""

        class Look(pc.Callback):
            def on_evaluate(self, trainer, step, metrics):
                trainer.network.eval()

        options = {"eval_data": self.data(), "eval_every": 2}
        plain, looked, twice = self.network(), self.network(), self.network()
        looked.eval()
        small_trainer(plain).fit(self.data(), num_steps=4, **options)
        small_trainer(looked, callbacks=[Look()]).fit(self.data(), num_steps=4, **options)
        trainer = small_trainer(twice, callbacks=[Look()])
        trainer.fit(self.data(), num_steps=2, **options)
        trainer.fit(self.data(), num_steps=4, **options)
        for network in (looked, twice):
            assert_same(parameters_of(network), parameters_of(plain))
            norms = [n.layer("n").module for n in (network, plain)]
            assert_same(*([norm.mean[...], norm.var[...]] for norm in norms))
        assert np.abs(plain.layer("n").module.mean[...]).max() > 0
        assert looked.layer("n").module.use_running_average is True  # the object keeps its mode


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_metrics_of_few_bits_are_summed_in_more(dtype):
    """Sums of ones in bfloat16 end at 256, and energies of float16 overflow."""
    draw = np.random.RandomState(0)
    inputs = draw.randn(1201, 3).astype(dtype)
    trainer = small_trainer([pc.PCDense(3, 4, rngs=nnx.Rngs(0))])
    network = trainer.network
    nnx.update(
        network, jax.tree.map(lambda leaf: leaf.astype(dtype), nnx.state(network, nnx.Param))
    )
    guess = trainer.predict(inputs).astype(np.float32).argmax(1)
    labels = np.where(draw.rand(1201) < 0.9, guess, (guess + 1) % 4)
    for size in (400, 1201):
        data = pc.data.from_arrays(inputs, labels, num_classes=4, batch_size=size, shuffle=False)
        assert trainer.evaluate(data)["accuracy"] == pytest.approx((guess == labels).mean())
    targets = np.full((400, 4), 20, dtype)  # energies of about 800 each, 320,000 together
    far = pc.data.from_arrays(inputs[:400], targets, batch_size=400)
    assert np.isfinite(trainer.evaluate(far)["energy"])


@pytest.mark.usefixtures("double")
def test_metrics_of_64_bits_are_kept():
    """1 + 2^-40 has no neighbour in 32 bits."""
    data = pc.data.from_arrays(np.ones((4, 1)), np.full((4, 1), 1 + 2.0**-40), batch_size=4)
    trainer = small_trainer(
        [in_double(pc.PCDense(1, 1, rngs=nnx.Rngs(0)))], metrics={"target": lambda p, t: t[:, 0]}
    )
    assert trainer.evaluate(data)["target"] == 1 + 2.0**-40
    assert trainer.fit(data, num_steps=1)["train/target"] == [1 + 2.0**-40]


def test_rates_fall_where_the_energy_does_not():
    """Targets of pure noise: nothing improves, and the scale is halved again and again."""
    draw = np.random.RandomState(0)
    data = pc.data.from_arrays(draw.randn(16, 3), draw.randn(16, 1), batch_size=8)
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=3)
    trainer = small_trainer(
        [pc.PCDense(3, 1, rngs=nnx.Rngs(0))],
        optimizer=optax.chain(optax.sgd(0.1), plateau),
        learning=pc.learning.Backprop(),
    )
    trainer.fit(data, num_steps=100)
    assert float(trainer.optimizer_state[1].scale) < 0.1


def test_the_optimizer_state_can_be_given():
    """A state that is assigned is trained on from there."""
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
    trainer = small_trainer([pc.PCDense(3, 1, rngs=nnx.Rngs(0))], optimizer=optimizer)
    data = pc.data.from_arrays(np.ones((4, 3)), np.ones((4, 1)), batch_size=4)
    trainer.fit(data, num_steps=2)
    before = parameters_of(trainer.network)
    state = trainer.optimizer_state
    trainer.optimizer_state = state._replace(hyperparams={"learning_rate": jnp.float32(0)})
    trainer.fit(data, num_steps=4)
    assert_same(parameters_of(trainer.network), before)


def test_every_reader_of_the_network_object_sees_the_newest_parameters_after_fit():
    """The object given to the Trainer is trained in place, after an error too."""

    class Fails(pc.Callback):
        def on_log(self, trainer, step, metrics):
            if step == 3:
                raise RuntimeError("mine")

    data = pc.data.from_arrays(np.ones((4, 3)), np.ones((4, 1)), batch_size=4)
    trainer = small_trainer([pc.PCDense(3, 1, rngs=nnx.Rngs(0))], callbacks=[Fails()])
    network = trainer._run._network  # as the caller holds it
    with pytest.raises(RuntimeError, match="mine"):
        trainer.fit(data, num_steps=5, log_every=1)
    straight = small_trainer([pc.PCDense(3, 1, rngs=nnx.Rngs(0))])
    straight.fit(data, num_steps=3)
    assert_same(parameters_of(network), parameters_of(straight.network))


def test_a_start_that_is_trained_beside_is_read_at_every_step():
    """An amortised one: without a step of inference, its own error is the energy."""

    class Amortised(nnx.Module):
        def __init__(self):
            self.guess = nnx.Param(jnp.zeros(()))

        def __call__(self, network, inputs, *, batch_size, clamps, key):
            start = network.feedforward(inputs, batch_size=batch_size, clamps=clamps)
            return {**start, "z": jnp.full((batch_size, 2), self.guess[...])}

    start = Amortised()

    class Train(pc.Callback):
        def on_log(self, trainer, step, metrics):
            start.guess[...] = start.guess[...] + 1.0

    output = pc.PCDense(2, 1, rngs=nnx.Rngs(0))
    output.linear.kernel.set_value(jnp.zeros((2, 1)))
    network = pc.PCNetwork({"z": pc.PCRoot(2), "x": output})
    still = pc.inference.GradientDescent(0.1, num_steps=0)
    rule = pc.learning.PredictiveCoding(still, initializer=start)
    trainer = pc.Trainer(network, STILL, learning=rule, callbacks=[Train()], progress=False)
    data = pc.data.from_arrays(None, np.zeros((4, 1)), batch_size=4)
    energies = trainer.fit(data, num_steps=3, log_every=1)["train/energy"]
    assert energies == pytest.approx([0.0, 1.0, 4.0])  # two units at 0, 1 and 2 from their mean
