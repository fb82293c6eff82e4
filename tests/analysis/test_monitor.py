"""The health monitor and `on_measure`: more numbers in the training rows, the same after a resume.

Oracles: the functions the numbers come from at the weights of that step, a run never interrupted, and
the names that the docstring promises.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from pcflax.analysis import HealthMonitor, gradient_alignment, inference_health, unit_health
from pcflax.training.callbacks import CallbackList

pytestmark = pytest.mark.slow

# Made once, so that the fits of this file share one compiled loop.
INFERENCE = pc.inference.GradientDescent(optax.sgd(0.1), num_steps=3)
LEARNING = pc.learning.PredictiveCoding(INFERENCE)
OPTIMIZER = optax.adam(1e-2)
NAMES = ("zeta", "middle", "alpha")  # not in alphabetical order


def make_data():
    """12 examples of width 3 in 4 batches of 3."""
    inputs = np.random.default_rng(0).normal(size=(12, 3))
    return pc.data.from_arrays(inputs, np.arange(12) % 2, batch_size=3)


def a_batch():
    """5 examples to look at; not those trained on."""
    random = np.random.default_rng(1)
    inputs = random.normal(size=(5, 3)).astype(np.float32)
    return inputs, np.eye(2, dtype=np.float32)[np.arange(5) % 2]


def make_trainer(callbacks, *, folder=None, learning=LEARNING, activation=jnp.tanh, bias=0.0):
    rngs = nnx.Rngs(0)
    layers = [
        pc.PCDense(3, 5, activation=jnp.tanh, rngs=rngs),
        pc.PCDense(5, 4, activation=activation, rngs=rngs),
        pc.PCDense(4, 2, rngs=rngs),
    ]
    layers[1].linear.bias.set_value(jnp.full(4, bias))
    checkpoints = None
    if folder is not None:
        callbacks = [
            *callbacks,
            pc.JSONLinesLogger(folder / "metrics.jsonl"),
            pc.TensorBoardLogger(folder / "tensorboard"),
        ]
        checkpoints = pc.Checkpoints(folder / "checkpoints")
    return pc.Trainer(
        pc.PCNetwork(dict(zip(NAMES, layers, strict=True))),
        OPTIMIZER,
        learning=learning,
        callbacks=callbacks,
        checkpoints=checkpoints,
        progress=False,
    )


def promised(*, infers=True):
    """The names of the docstring."""
    kinds = ["alignment", "gradient_norm", "dead"] + ["energy_share"] * infers
    whole = ["alignment"] + ["residual", "largest_eigenvalue", "stability"] * infers
    return {f"health/{kind}/{name}" for kind in kinds for name in NAMES} | {
        f"health/{name}" for name in whole
    }


def strictly(line):
    """JSON as every reader takes it: RFC 8259 has no NaN and no Infinity."""

    def refuse(word):
        raise ValueError(f"{word} is no JSON")

    return json.loads(line, parse_constant=refuse)


def lines_of(folder):
    return [strictly(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of 8 steps with a row every 2, never interrupted: its folder and its Trainer."""
    folder = tmp_path_factory.mktemp("straight")
    trainer = make_trainer([HealthMonitor(*a_batch())], folder=folder)
    trainer.fit(make_data(), num_steps=8, log_every=2)
    return folder, trainer


class TestRows:
    def test_every_training_row_holds_the_promised_names(self, straight):
        _, trainer = straight
        assert [row["step"] for row in trainer.history.rows] == [2, 4, 6, 8]
        for row in trainer.history.rows:
            assert {name for name in row if name.startswith("health/")} == promised()
            assert {"train/energy", "train/accuracy"} <= row.keys()

    def test_so_does_the_file_that_programs_read(self, straight):
        folder, trainer = straight
        assert lines_of(folder) == trainer.history.rows

    def test_tensorboard_has_every_name(self, straight):
        folder, _ = straight
        (events,) = (folder / "tensorboard").iterdir()
        written = events.read_bytes()
        assert not [name for name in promised() if name.encode() not in written]

    def test_numbers_are_those_of_the_weights_at_that_step(self, straight):
        """Measured before the step instead, a curve of alignment would be a step off."""
        _, trainer = straight
        row = trainer.history.rows[-1]
        batch = a_batch()
        credit = gradient_alignment(trainer.network, *batch, learning=LEARNING)
        found = inference_health(trainer.network, *batch, learning=LEARNING)
        dead, _ = unit_health(trainer.network, batch[0])
        expected = {
            "health/alignment": credit.cosine["total"],
            "health/residual": found.residual,
            "health/largest_eigenvalue": found.largest_eigenvalue,
            "health/stability": found.step_size * found.largest_eigenvalue / 2,
        }
        for name in NAMES:
            expected[f"health/alignment/{name}"] = credit.cosine[name]
            expected[f"health/gradient_norm/{name}"] = credit.norm[name]
            expected[f"health/dead/{name}"] = dead[name]
            expected[f"health/energy_share/{name}"] = found.energy_share[name]
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=1e-6), name  # float32
        first = trainer.history.rows[0]
        assert first["health/gradient_norm/alpha"] != row["health/gradient_norm/alpha"]

    def test_a_rule_that_does_not_infer_has_no_numbers_of_inference(self):
        trainer = make_trainer([HealthMonitor(*a_batch())], learning=pc.learning.Backprop())
        (row,) = trainer.fit(make_data(), num_steps=1, log_every=1).rows
        assert {name for name in row if name.startswith("health/")} == promised(infers=False)
        assert row["health/alignment"] == pytest.approx(1)

    def test_watching_changes_nothing_that_is_learned(self, straight):
        _, watched = straight
        trainer = make_trainer([])
        trainer.fit(make_data(), num_steps=8, log_every=2)
        for left, right in zip(
            jax.tree.leaves(nnx.state(watched.network, nnx.Param)),
            jax.tree.leaves(nnx.state(trainer.network, nnx.Param)),
            strict=True,
        ):
            np.testing.assert_array_equal(left, right)
        own = [
            {name: value for name, value in row.items() if not name.startswith("health/")}
            for row in watched.history.rows
        ]
        assert own == trainer.history.rows

    def test_a_row_of_a_dead_layer_can_be_read_by_every_program(self, tmp_path):
        """Its gradient is zero and has no angle; NaN as a word in the file is no JSON."""
        trainer = make_trainer(
            [HealthMonitor(*a_batch())], folder=tmp_path, activation=jax.nn.relu, bias=-50.0
        )
        trainer.fit(make_data(), num_steps=1, log_every=1)
        assert trainer.history.rows[0]["health/dead/middle"] == 1.0
        (row,) = lines_of(tmp_path)
        assert row["step"] == 1


def test_a_run_stopped_at_half_and_restored_logs_the_rows_of_the_straight_one(straight, tmp_path):
    """Resume is promised to be exact, of what is measured too."""
    _, expected = straight
    first = make_trainer([HealthMonitor(*a_batch())], folder=tmp_path)
    first.fit(make_data(), num_steps=5, log_every=2)  # between two rows
    second = make_trainer([HealthMonitor(*a_batch())], folder=tmp_path)
    assert second.restore() == 5
    second.fit(make_data(), num_steps=8, log_every=2)
    measured = [row for row in second.history.rows if row["step"] % 2 == 0]
    for row, want in zip(measured, expected.history.rows, strict=True):
        health = {name: value for name, value in want.items() if name.startswith("health/")}
        assert health.items() <= row.items()
    assert lines_of(tmp_path) == second.history.rows


def test_stopped_at_a_row_the_two_files_are_equal(straight, tmp_path):
    folder, _ = straight
    for num_steps in (4, 8):
        trainer = make_trainer([HealthMonitor(*a_batch())], folder=tmp_path)
        if num_steps == 8:
            assert trainer.restore() == 4
        trainer.fit(make_data(), num_steps=num_steps, log_every=2)
    name = "metrics.jsonl"
    assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


class TestWarnings:
    """Once each; `INFERENCE` above, three steps of 0.1, closes more than half of the gap."""

    def watched(self, learning, bias=0.0):
        """A fit of two rows."""
        trainer = make_trainer([HealthMonitor(*a_batch())], learning=learning, bias=bias)
        return trainer.fit(make_data(), num_steps=2, log_every=1)

    def test_a_run_that_has_become_backpropagation(self):
        """Twenty steps of 0.003 close a twentieth, and every layer is parallel."""
        rule = pc.learning.PredictiveCoding(pc.inference.GradientDescent(0.003, num_steps=20))
        with pytest.warns(
            UserWarning, match="at step 1 inference closes .*backpropagation"
        ) as told:
            self.watched(rule)
        assert len(told) == 1

    def test_a_step_size_near_the_edge_and_beyond(self):
        """Of what the row calls stability."""
        rate = 0.95 * 2 / self.watched(LEARNING)["health/largest_eigenvalue"][0]
        rule = pc.learning.PredictiveCoding(pc.inference.GradientDescent(rate, num_steps=40))
        text = (
            r"inference is near the edge of stability: its step size of \S+ is 9\d% of the largest"
        )
        with pytest.warns(UserWarning, match=text):
            history = self.watched(rule)
        assert history["health/stability"][0] == pytest.approx(0.95, abs=0.01)

    def test_a_layer_whose_gradient_adam_swallows(self):
        """A head of 1e-10 hands down errors of as much, also by backpropagation."""
        trainer = make_trainer([HealthMonitor(*a_batch())], learning=pc.learning.Backprop())
        top = trainer.network.layers[-1].linear
        top.kernel.set_value(1e-12 * top.kernel[...])
        with pytest.warns(
            UserWarning, match="eps of 1e-08 swallows the gradient of 'zeta', 'middle'"
        ):
            HealthMonitor(*a_batch()).on_measure(trainer, 0)


class TestOnMeasure:
    def test_what_any_callback_measures_is_in_the_row_before_it_is_told(self):
        told = []

        class Own:
            def on_measure(self, trainer, step):
                assert trainer.step == step
                return {"own/kernel": float(np.sum(trainer.network.layers[0].linear.kernel[...]))}

            def on_log(self, trainer, step, metrics):
                told.append(metrics["own/kernel"])

        trainer = make_trainer([Own()])
        history = trainer.fit(make_data(), num_steps=4, log_every=2)
        assert history.steps("own/kernel") == [2, 4]
        assert history["own/kernel"] == told
        kernel = trainer.network.layers[0].linear.kernel[...]
        assert told[-1] == float(np.sum(kernel))  # of the weights after the last step

    def test_none_and_nothing_add_nothing(self):
        class Nothing(pc.Callback):
            def on_measure(self, trainer, step):
                return None

        class Empty:
            def on_measure(self, trainer, step):
                return {}

        without = make_trainer([]).fit(make_data(), num_steps=2, log_every=2)
        history = make_trainer([Nothing(), Empty(), pc.Callback()]).fit(
            make_data(), num_steps=2, log_every=2
        )
        assert history.rows == without.rows

    def test_only_training_rows_are_measured(self):
        steps = []

        class Own:
            def on_measure(self, trainer, step):
                steps.append(step)
                return {"own/step": float(step)}

        history = make_trainer([Own()]).fit(
            make_data(), num_steps=4, log_every=4, eval_data=make_data(), eval_every=2
        )
        assert steps == [4]
        assert history.steps("own/step") == [4]
        assert all("own/step" not in row for row in history.rows if "eval/energy" in row)

    def test_several_are_asked_in_order_and_put_together(self):
        class Named:
            def __init__(self, **row):
                self.row = row

            def on_measure(self, trainer, step):
                return self.row

        asked = CallbackList([Named(a=1.0, b=2.0), pc.Callback(), Named(c=3.0)])
        assert list(asked.measure(None, 7).items()) == [("a", 1.0), ("b", 2.0), ("c", 3.0)]
        assert CallbackList([]).measure(None, 7) == {}


class Measures:
    def __init__(self, **row):
        self.row = row

    def on_measure(self, trainer, step):
        return self.row


@pytest.mark.parametrize("kind", [int, np.float32, np.array, jnp.float32, jnp.bfloat16])
def test_numbers_of_numpy_and_jax_are_saved(kind, tmp_path):
    """JSON has no word for them, and every save failed."""
    trainer = make_trainer([Measures(norm=kind(2))], folder=tmp_path)
    trainer.fit(make_data(), num_steps=2, log_every=2)
    (value,) = pc.History(pc.load_checkpoint(tmp_path).rows())["norm"]
    assert (type(value), value) == (float, 2.0)


@pytest.mark.parametrize("value", [None, "much", "2", np.ones(1), np.ones(3), 1j, [1.0]], ids=repr)
def test_what_is_no_number_is_refused_and_the_callback_named(value):
    with pytest.raises(TypeError, match="^on_measure of callback Measures expected one number as"):
        CallbackList([Measures(norm=value)]).measure(None, 7)


def test_no_callback_measures_the_rows_step():
    with pytest.raises(ValueError, match="callback Measures measured 'step', .* another name"):
        CallbackList([Measures(step=1.0)]).measure(None, 7)


class TestRefusals:
    @pytest.mark.parametrize(
        ("targets", "kind", "text"),
        [
            (None, ValueError, "HealthMonitor expected targets.*got None; give those of the batch"),
            (np.arange(5), TypeError, "expected targets of a floating dtype, got int64; make them"),
            (np.ones((4, 2)), ValueError, "inputs have batch size 5 but targets 4"),
            (np.ones(5), ValueError, r"expected targets of shape \(batch, features\), got \(5,\)"),
        ],
    )
    def test_a_batch_that_is_none_is_refused_before_training(self, targets, kind, text):
        with pytest.raises(kind, match=text):
            HealthMonitor(a_batch()[0], targets)
