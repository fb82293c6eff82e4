"""Many seeds in one program. Oracle: the run that each seed gives alone."""

import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from pcflax.experiments import replicas as module
from pcflax.experiments.mapped import learn_mapped

pytestmark = pytest.mark.slow

DRAW = np.random.default_rng(0)
IMAGES, LABELS = DRAW.normal(size=(22, 6)), np.eye(3)[DRAW.integers(3, size=22)]
SEEDS = (3, 0, 5)
with jax.enable_x64(True):  # as the weights are
    DATA = pc.data.from_arrays(IMAGES, LABELS, batch_size=4, name="noise")  # five batches an epoch
    TEST = pc.data.from_arrays(IMAGES[:9], LABELS[:9], batch_size=4, shuffle=False)
STEPS = {"num_steps": 14, "eval_data": TEST, "eval_every": 5, "log_every": 3}


@pytest.fixture(scope="module", autouse=True)
def double():
    """Rounding is then far from what a wrong key or order would change."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def network_of(seed, width=5, activation=jnp.tanh, precision=1.0):
    rngs = nnx.Rngs(seed)
    energy = pc.energies.Gaussian(jnp.full(5, precision)) if width == 5 else None
    hidden = pc.PCDense(
        6, width, activation=activation, dropout=0.2, param_dtype=float, energy=energy, rngs=rngs
    )
    return pc.PCNetwork([hidden, pc.PCDense(width, 3, param_dtype=float, rngs=rngs)])


def make(
    seed,
    step_size=0.1,
    rate=0.03,
    optimizer=optax.adam,
    num_steps=3,
    initializer=None,
    network=None,
    **options,
):
    inference = pc.inference.GradientDescent(step_size, num_steps=num_steps)
    return pc.Trainer(
        network or network_of(seed),
        optimizer(rate),
        learning=pc.learning.PredictiveCoding(inference, initializer),
        progress=False,
        **{"seed": seed, **options},
    )


def alone(seed, data=None, steps=STEPS, **options):
    trainer = make(seed, **options)
    trainer.fit(DATA.with_seed(seed) if data is None else data, **steps)
    return trainer


def replicate(make_trainer=make, seeds=SEEDS, **options):
    return pc.experiments.replicate(make_trainer, seeds, progress=False, **options)


def state_of(trainer):
    return [
        np.asarray(leaf)
        for leaf in jax.tree.leaves(
            (pc.networks.split(trainer.network).parameters, trainer.optimizer_state)
        )
    ]


def assert_same(found, expected, tolerance=1e-11):
    """Exactly where the tolerance is 0; rounding in 64 bits grows to about 1e-13 in these few steps."""
    for one, other in zip(state_of(found), state_of(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)
    assert found.step == expected.step
    rows, expected_rows = found.history.rows, expected.history.rows
    assert [list(row) for row in rows] == [list(row) for row in expected_rows]
    for row, expected_row in zip(rows, expected_rows, strict=True):
        assert row == pytest.approx(expected_row, rel=tolerance, abs=tolerance)


@pytest.fixture(scope="module")
def each_alone(double):
    return [alone(seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def mapped(double, tmp_path_factory):
    """Trained in one program, with checkpoints."""
    folder = tmp_path_factory.mktemp("mapped") / "runs"
    replicas = replicate(how="mapped", checkpoints=pc.Checkpoints(folder, every=5), name="pc")
    replicas.fit(DATA, **STEPS)
    return replicas


class TestEachSeed:
    def test_mapped_is_as_alone_up_to_rounding(self, mapped, each_alone):
        """Parameters, optimizer, rows: its own weights, order of examples and dropout masks."""
        for found, expected in zip(mapped.trainers, each_alone, strict=True):
            assert_same(found, expected)

    def test_in_turn_is_as_alone_bitwise(self, each_alone):
        replicas = replicate(how="in turn")
        replicas.fit(DATA, **STEPS)
        for found, expected in zip(replicas.trainers, each_alone, strict=True):
            assert_same(found, expected, tolerance=0)

    def test_orders_differ_and_may_be_shared(self, each_alone):
        """A function of the seed says what a seed trains on; here the same order for all."""
        replicas = replicate(how="mapped")
        replicas.fit(lambda seed: DATA, **STEPS)
        assert_same(replicas.trainers[1], each_alone[1])  # the order of seed 0 is the data's own
        expected = alone(3, DATA)
        assert_same(replicas.trainers[0], expected)
        assert not np.allclose(state_of(expected)[0], state_of(each_alone[0])[0], rtol=1e-3)

    def test_each_may_have_its_own_examples_and_starts(self):
        """Data that are stacked, and a start that is kept for each example."""

        def data_of(seed):
            return pc.data.from_arrays(IMAGES[seed:][:16], LABELS[seed:][:16], batch_size=4, seed=7)

        kept = pc.initializers.Persistent()
        replicas = replicate(lambda seed: make(seed, initializer=kept), how="mapped")
        replicas.fit(data_of, num_steps=9, log_every=3)
        for seed, found in zip(SEEDS, replicas.trainers, strict=True):
            steps = {"num_steps": 9, "log_every": 3}
            assert_same(found, alone(seed, data_of(seed), steps, initializer=kept))

    def test_one_program_serves_every_fit(self, mapped):
        """Neither the length of a call nor new trainers of the same settings compile anew."""
        before = learn_mapped._cache_size()
        replicas = replicate(how="mapped")
        replicas.fit(DATA, num_steps=3)
        replicas.fit(DATA, num_steps=7)
        assert learn_mapped._cache_size() == before

    def test_numbers_are_mapped_over(self, each_alone):
        """Inference's step size, a learning rate in optax's closures, an array of the network."""

        def vary(seed, step_size, rate, precision):
            return make(seed, step_size, rate, network=network_of(seed, precision=precision))

        over = {"step_size": [0.1, 0.05], "rate": [0.03, 0.01], "precision": [1.0, 2.0]}
        replicas = replicate(vary, SEEDS[:1], over=over, how="mapped")
        runs = replicas.fit(DATA, **STEPS)
        assert len(runs) == len(runs.points) == 8
        point = {"step_size": 0.05, "rate": 0.03, "precision": 2.0}
        place = replicas.points.index(point)
        expected = alone(3, step_size=0.05, network=network_of(3, precision=2.0))
        assert_same(replicas.trainers[place], expected)
        assert_same(replicas.trainers[0], each_alone[0])
        (found,) = runs.at(**point).histories
        assert found is replicas.trainers[place].history
        with pytest.raises(
            ValueError, match=r"runs of 8 settings; take those of one by runs.at\(step"
        ):
            runs["eval/energy"]


class StopAt(pc.Callback):
    def __init__(self, step):
        self.step = step

    def on_log(self, trainer, step, metrics):
        if step == self.step:
            trainer.stop()


class Scaled(pc.learning.AbstractGradientLearning):
    """A rule of a plain class: what it holds may be changed."""

    def __init__(self):
        self.factor = 1.0

    def gradients(self, network, evidence, *, key, step=0):
        found, info = pc.learning.Backprop().gradients(network, evidence, key=key, step=step)
        return jax.tree.map(lambda leaf: self.factor * leaf, found), info


class Scales(pc.Callback):
    """Changes the factor at a step; -1 at none."""

    def __init__(self, rule, step):
        self.rule, self.step, self.stops = rule, step, (max(step, 1),)

    def on_progress(self, trainer, step):
        if step == self.step:
            self.rule.factor = 0.0


class TestWhatACallbackChanges:
    def replicas(self, steps, **options):
        def scaled(seed):
            rule, step = Scaled(), steps[SEEDS.index(seed)]
            return pc.Trainer(
                network_of(seed),
                optax.sgd(0.1),
                learning=rule,
                progress=False,
                seed=seed,
                callbacks=[Scales(rule, step)],
            )

        return replicate(scaled, **options)

    def test_in_a_rule_is_learned_by_mapped_as_in_turn(self):
        mapped, in_turn, before = (
            self.replicas((4, 4, 4), how=how) for how in ("mapped", "in turn", "mapped")
        )
        mapped.fit(DATA, **STEPS)
        in_turn.fit(DATA, **STEPS)
        before.fit(DATA, **{**STEPS, "num_steps": 4})
        for one, other, earlier in zip(
            mapped.trainers, in_turn.trainers, before.trainers, strict=True
        ):
            assert_same(one, other)
            for found, expected in zip(state_of(one), state_of(earlier), strict=True):
                np.testing.assert_array_equal(found, expected)

    def test_in_some_runs_alone_keeps_them_out_of_one_program(self):
        replicas = self.replicas((4, -1, 4), how="mapped")
        with pytest.raises(ValueError, match="a callback changed .* of some runs .*'in turn'"):
            replicas.fit(DATA, **STEPS)
        assert [trainer.step for trainer in replicas.trainers] == [4, 1, 4]  # nothing is lost

    def test_does_not_wait_for_a_run_that_is_over(self):
        """A run that was stopped before is told nothing any more."""
        replicas = self.replicas((6, 6, 6), how="mapped")
        replicas.trainers[1].callbacks.callbacks.append(StopAt(3))
        replicas.fit(DATA, **STEPS)
        assert [trainer.step for trainer in replicas.trainers] == [14, 3, 14]


class TestOneOfThemEnds:
    @pytest.mark.parametrize("how", ["mapped", "in turn"])
    def test_numbers_that_are_not_finite_end_one_seed(self, each_alone, how, tmp_path):
        """It keeps the state before that step, is named, and changes nothing in the others."""

        def diverging(seed):
            return make(seed, rate=1e308 if seed == 0 else 0.03)

        replicas = replicate(diverging, how=how, checkpoints=pc.Checkpoints(tmp_path, every=5))
        with pytest.warns(
            UserWarning, match="^seed 0 ended: the .* of step 1|^seed 0 ended: .*step 2"
        ):
            runs = replicas.fit(DATA, **STEPS)
        assert_same(replicas.trainers[0], each_alone[0])
        assert_same(replicas.trainers[2], each_alone[2])
        failed = replicas.trainers[1]
        with pytest.raises(pc.NonFiniteEnergyError):
            make(0, rate=1e308).fit(DATA, **STEPS)
        assert failed.step <= 1
        assert list(runs.ended) == ["seed 0"]
        assert runs.finished.seeds == (3, 5)
        curves = runs["eval/energy"]
        assert np.isnan(curves.values[1]).all()
        assert np.isnan(curves.mean).all()  # of all seeds, nothing is known
        assert np.isnan(replicas.evaluate(TEST)["energy"].last.values).tolist() == [
            False,
            True,
            False,
        ]
        assert list(pc.experiments.load_runs(tmp_path).ended) == ["seed 0"]

    def test_a_callback_stops_its_seed_alone(self, each_alone):
        def stopping(seed):
            return make(seed, callbacks=[StopAt(6)] if seed == 0 else [])

        replicas = replicate(stopping, how="mapped")
        curves = replicas.fit(DATA, **STEPS)["eval/energy"]
        assert [trainer.step for trainer in replicas.trainers] == [14, 6, 14]
        assert_same(replicas.trainers[2], each_alone[2])
        assert curves.steps.tolist() == [5, 10, 14]
        assert np.isnan(curves.values).tolist() == [[False] * 3, [False, True, True], [False] * 3]
        assert curves.last.values[1] == curves.values[1, 0]

    @pytest.mark.parametrize("how", ["mapped", "in turn"])
    def test_a_callback_that_raises_ends_all_and_they_go_on_from_checkpoints(self, how, tmp_path):
        """The error comes through, and from what was saved each seed ends as if nothing had been."""

        class Raises(pc.Callback):
            def on_log(self, trainer, step, row):
                if step == 6:
                    raise RuntimeError("no such tracker")

        def build(place, raises=False):
            return replicate(
                lambda seed: make(seed, callbacks=[Raises()] if raises and seed == 0 else []),
                how=how,
                checkpoints=pc.Checkpoints(tmp_path / place, every=5),
            )

        whole = build("whole")
        whole.fit(DATA, **STEPS)
        with pytest.raises(RuntimeError, match="^no such tracker$"):
            build("broken", raises=True).fit(DATA, **STEPS)
        again = build("broken")
        assert again.restore() == (5, 5, 5)
        again.fit(DATA, **STEPS)
        for found, expected in zip(again.trainers, whole.trainers, strict=True):
            assert_same(found, expected, tolerance=0)


class TestFolders:
    def test_one_seed_is_restored_by_an_ordinary_trainer(self, mapped):
        trainer = make(0, checkpoints=pc.Checkpoints(mapped.folder / "seed-0"))
        assert trainer.restore() == 14
        assert_same(trainer, mapped.trainers[1], tolerance=0)

    @pytest.mark.parametrize("lost", [(), (0,), (0, 1)], ids=["none", "one", "two"])
    def test_interrupted_between_its_seeds_checkpoints_it_ends_bitwise(
        self, lost, mapped, tmp_path
    ):
        """Of a kill, some seeds have the newest checkpoint and others the one before, or none."""
        folder = tmp_path / "runs"
        options = {"how": "mapped", "checkpoints": pc.Checkpoints(folder, every=5)}
        replicate(**options).fit(DATA, **{**STEPS, "num_steps": 10})
        for seed in lost:
            for path in (folder / f"seed-{SEEDS[seed]}").glob("10*" if seed == 0 else "*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        resumed = replicate(**options)
        steps = resumed.restore()
        assert steps == tuple({0: 5, 1: 0}[place] if place in lost else 10 for place in range(3))
        # the last row of training of a fit to step 10 is of one step
        resumed.fit(DATA, **STEPS)
        for found, expected in zip(resumed.trainers, mapped.trainers, strict=True):
            assert all(
                (one == other).all()
                for one, other in zip(state_of(found), state_of(expected), strict=True)
            )

    def test_histories_are_read_from_the_folder(self, mapped):
        runs = pc.experiments.load_runs(mapped.folder)
        assert (runs.seeds, runs.name, runs.how) == (SEEDS, "pc", "mapped")
        for found, expected in zip(runs.histories, mapped.runs.histories, strict=True):
            assert found.rows == expected.rows

    def test_a_folder_goes_on_as_it_was_begun(self, mapped, monkeypatch, tmp_path):
        folder = shutil.copytree(mapped.folder, tmp_path / "runs")
        monkeypatch.setattr(module, "_MAPPED_SIZE", 1)
        automatic = replicate(checkpoints=pc.Checkpoints(folder))
        automatic.restore()
        automatic.fit(DATA, num_steps=15)
        assert automatic.how == "mapped"
        other = replicate(how="in turn", checkpoints=pc.Checkpoints(folder))
        other.restore()
        with pytest.warns(pc.CheckpointWarning, match="were trained mapped and go on in turn"):
            other.fit(DATA, num_steps=16)

    def test_more_seeds_join_a_folder(self, tmp_path):
        for seeds in ([0], [1]):
            replicate(seeds=seeds, how="in turn", checkpoints=pc.Checkpoints(tmp_path)).fit(
                DATA, **STEPS
            )
        assert pc.experiments.load_runs(tmp_path).seeds == (0, 1)

    def test_checkpoints_of_make_trainer_lie_in_subfolders(self, tmp_path):
        def own(seed, rate):
            return make(seed, rate=rate, checkpoints=pc.Checkpoints(tmp_path / "x", keep_latest=1))

        replicas = replicate(own, SEEDS[:2], over={"rate": [0.1, 0.2]})
        assert replicas.folder == tmp_path / "x"
        names = [trainer.checkpoints.directory.name for trainer in replicas.trainers]
        assert names == [f"rate-{rate},seed-{seed}" for rate in (0.1, 0.2) for seed in (3, 0)]
        assert all(trainer.checkpoints.keep_latest == 1 for trainer in replicas.trainers)
        elsewhere = replicate(
            lambda seed: make(seed, checkpoints=pc.Checkpoints(tmp_path / f"{seed}"))
        )
        assert elsewhere.folder is None
        assert elsewhere.trainers[0].checkpoints.directory == tmp_path / "3"

    def test_each_value_has_a_folder_of_its_own(self, tmp_path):
        """A place in the list may be another value's word."""

        def shaped(seed, widths):
            network = network_of(seed, width=widths[0] if widths else 4)
            return make(seed, network=network)

        over = {"widths": [(5,), 0, (7,)]}
        replicas = replicate(shaped, [0], over=over, checkpoints=pc.Checkpoints(tmp_path))
        names = [trainer.checkpoints.directory.name for trainer in replicas.trainers]
        assert names == ["widths-@0,seed-0", "widths-0,seed-0", "widths-2,seed-0"]
        replicas.fit(DATA, **STEPS)
        points = [run.point for run in pc.experiments.load_runs(tmp_path)]
        assert points == [{"widths": [5]}, {"widths": 0}, {"widths": [7]}]

    def test_another_value_of_the_same_place_is_refused(self, tmp_path):
        """Two calls would share a folder: (5,) and (7,) are both the first of their lists."""

        def shaped(seed, widths, start):
            assert start is not None
            return make(seed, network=network_of(seed, width=widths[0]))

        def over(width):
            return {"widths": [(width,)], "start": [lambda: 0]}  # a function is known by its name

        kept = pc.Checkpoints(tmp_path)
        replicate(shaped, [0], over=over(5), checkpoints=kept).fit(DATA, **STEPS)
        told = r"widths-0,start-0,seed-0 is of the settings .*\[5\].*, got .*\[7\].*; give replicate ano"
        with pytest.raises(ValueError, match=told):
            replicate(shaped, [0], over=over(7), checkpoints=kept)
        again = replicate(shaped, [0], over=over(5), checkpoints=kept)
        assert again.restore() == (STEPS["num_steps"],)

    def test_two_runs_of_one_folder_are_refused(self, tmp_path):
        with pytest.raises(ValueError, match="would have one folder, rate-.*,seed-3; give"):
            replicate(
                lambda seed, rate: make(seed),
                over={"rate": [0.1, "0.1"]},
                checkpoints=pc.Checkpoints(tmp_path),
            )

    def test_a_signal_saves_every_seed(self, each_alone, tmp_path):
        class Terminate(pc.Callback):
            def on_log(self, trainer, step, metrics):
                if step == 6:
                    os.kill(os.getpid(), signal.SIGTERM)

        def killed(seed):
            return make(seed, callbacks=[Terminate()] if seed == 0 else [])

        options = {"how": "in turn", "checkpoints": pc.Checkpoints(tmp_path)}
        with pytest.raises(pc.training.Terminated):
            replicate(killed, **options).fit(DATA, **STEPS)
        resumed = replicate(**options)
        assert resumed.restore() == (6, 6, 6)
        resumed.fit(DATA, **STEPS)
        for found, expected in zip(resumed.trainers, each_alone, strict=True):
            assert_same(found, expected, tolerance=0)


class TestHow:
    def test_auto_maps_small_networks_that_can_share_a_program(self, monkeypatch):
        monkeypatch.setattr(
            module, "train", lambda *arguments, **options: None
        )  # it is settled before

        def how_of(*arguments, **options):
            replicas = replicate(*arguments, **options)
            replicas.fit(DATA, num_steps=1)
            return replicas.how

        assert how_of() == "mapped"
        monkeypatch.setattr(module, "_MAPPED_SIZE", 29)  # the hidden kernel has 30
        assert how_of() == "in turn"
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        assert how_of() == "mapped"
        assert how_of(lambda seed: make(seed, num_steps=3 + (seed == 0))) == "in turn"

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            (
                lambda s: {"network": network_of(s, width=7 + s)},
                r"array network\S*bias is \(10,\) float64 and \(7,",
            ),
            (
                lambda s: {"network": network_of(s, activation=[jnp.tanh, jax.nn.relu][s == 0])},
                "layer layer_0.activation is tanh and relu",
            ),
            (
                lambda s: {"network": network_of(s, activation=lambda x: jnp.tanh(x))},
                "a function of the networks is another for each",
            ),
            (lambda s: {"num_steps": 3 + (s == 0)}, "the rule's inference.num_steps is 3 and 4"),
            (
                lambda s: {"optimizer": [optax.adam, optax.sgd][s == 0]},
                r"array optimizer_state\S* is",
            ),
            (
                lambda s: {
                    "optimizer": [optax.sgd, lambda rate: optax.sgd(lambda step: rate)][s == 0]
                },
                r"array optimizer_state\S* is|rule or optimizer differ in more than floats",
            ),
            (
                lambda s: {"metrics": {"own": lambda prediction, targets: prediction[:, s]}},
                "the metrics are others",
            ),
        ],
        ids=["width", "activation", "lambda", "steps", "optimizer", "schedule", "metrics"],
    )
    def test_what_cannot_share_a_program_is_told(self, change, told):
        replicas = replicate(lambda seed: make(seed, **change(seed)), how="mapped")
        with pytest.raises(ValueError, match=f"cannot share a program: .*{told}"):
            replicas.fit(DATA, num_steps=1)

    def test_data_of_other_shapes_are_told(self):
        def longer(seed):
            return pc.data.from_arrays(IMAGES[seed:], LABELS[seed:], batch_size=4)

        with pytest.raises(
            ValueError, match=r"of the data, \S* is \(19, 6\) float64 and \(22, 6\)"
        ):
            replicate(how="mapped").fit(longer, num_steps=1)

        def scaled(seed):
            images = (IMAGES[:, :, None] * 9 % 255).astype(np.uint8) if seed else IMAGES[:, :, None]
            return pc.data.from_arrays(images, LABELS, batch_size=4, flatten=True)

        with pytest.raises(ValueError, match="of the data, |the data are scaled"):
            replicate(how="mapped").fit(scaled, num_steps=1)


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"how": "fast"}, "expected how 'auto', 'mapped' or 'in turn', got 'fast'"),
            ({"seeds": []}, r"expected seeds, each once, got \[\]"),
            ({"seeds": [1, 1]}, r"expected seeds, each once, got \[1, 1\]"),
            ({"over": {"rate": []}}, r"expected values of each of \['rate'\]"),
            ({"over": {"rate": [0.1, 0.2, 0.1]}}, "values of rate, each once, got 0.1 twice"),
            ({"over": {"widths": [(1,), (True,)]}}, r"values of widths, each once, got \(True,\)"),
            (
                {"make_trainer": lambda seed: make(0)},
                r"make_trainer\(3\) returned a Trainer of seed 0; give it seed=seed",
            ),
        ],
    )
    def test_of_arguments(self, options, told):
        with pytest.raises(ValueError, match=told):
            replicate(**options)

    def test_of_what_is_no_trainer(self):
        with pytest.raises(TypeError, match=r"make_trainer's result such as pc\.Trainer"):
            replicate(lambda seed: None)
        with pytest.raises(TypeError, match="expected data such as"):
            replicate().fit(None, num_steps=1)

    def test_of_values_that_do_not_compare_as_one(self):
        with pytest.raises(
            TypeError, match=r"values of precision such as .* of shape \(2,\); give"
        ):
            replicate(over={"precision": [np.ones(2), np.zeros(2)]})
        with pytest.raises(TypeError, match=r"values of rate such as \[0\.1, 0\.2\], got 0\.1"):
            replicate(over={"rate": 0.1})

    def test_of_what_is_shared(self, tmp_path):
        network, callback = network_of(0), StopAt(3)
        with pytest.raises(ValueError, match="seed 3 and seed 0 have one network between them"):
            replicate(lambda seed: make(seed, network=network))
        with pytest.raises(ValueError, match="have one callback StopAt between them; make it in"):
            replicate(lambda seed: make(seed, callbacks=[callback]))

        def logging(seed):
            return make(seed, callbacks=[pc.JSONLinesLogger(tmp_path / "metrics.jsonl")])

        with pytest.raises(
            ValueError, match=r"one path of JSONLinesLogger, \S*metrics.jsonl, between"
        ):
            replicate(logging)

    def test_of_checkpoints(self, tmp_path):
        here, there = pc.Checkpoints(tmp_path / "here"), pc.Checkpoints(tmp_path / "there")
        with pytest.raises(ValueError, match="given to replicate and by make_trainer, too"):
            replicate(lambda seed: make(seed, checkpoints=here), checkpoints=there)
        with pytest.raises(ValueError, match="gave 1 of 3 runs checkpoints, in 1 folders"):
            replicate(lambda seed: make(seed, checkpoints=None if seed else here))
        with pytest.raises(TypeError, match="checkpoints such as pc.Checkpoints"):
            replicate(checkpoints="here")
        replicas = replicate(checkpoints=here)
        with pytest.raises(FileNotFoundError, match="no checkpoint in .*seed-3"):
            replicas.restore()
        with pytest.raises(FileNotFoundError, match="holds no replicas.json"):
            pc.experiments.load_runs(tmp_path)
        (tmp_path / "replicas.json").write_text("{")
        with pytest.raises(ValueError, match="replicas.json cannot be read"):
            pc.experiments.load_runs(tmp_path)

    def test_a_folder_without_a_checkpoint_has_no_runs(self, tmp_path):
        replicas = replicate(
            checkpoints=pc.Checkpoints(tmp_path), make_trainer=lambda s: make(s, rate=1e308)
        )
        with pytest.warns(UserWarning, match="ended"):
            replicas.fit(DATA, num_steps=5)
        with pytest.raises(FileNotFoundError, match="there is no checkpoint in"):
            pc.experiments.load_runs(tmp_path)

    def test_nothing_to_do_is_told(self, mapped):
        with pytest.warns(UserWarning, match="nothing to do: all 3 runs are at step 14"):
            runs = mapped.fit(DATA, **STEPS)
        assert runs.seeds == SEEDS


def test_progress_is_one_for_all(capsys):
    """A line an evaluation, of means over seeds, in the place of one a seed."""
    replicas = pc.experiments.replicate(
        lambda seed, rate: make(seed, rate=rate, callbacks=[pc.ConsoleLogger()]),
        SEEDS[:2],
        over={"rate": [0.01, 0.03]},
        how="in turn",
    )
    runs = replicas.fit(DATA, **STEPS)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6  # three evaluations of two settings
    energy = runs.at(rate=0.03)["eval/energy"].at(10).mean
    assert lines[3].startswith("step     10  rate 0.03  ")
    assert f"eval/energy {energy:.4g}" in lines[3]
    assert lines[3].endswith("(means of 2 seeds)")
    assert repr(replicas) == "Replicas(4 seeds and settings, at step 14, in turn)"
