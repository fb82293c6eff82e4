"""Checkpoints: sealed, kept, skipped where damaged, and refused where they do not fit."""

import json
import shutil
import subprocess
import warnings

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from pcflax.training.checkpoints.seals import find_damage
from tests.conftest import digits_trainer, parameters_of


def digits():
    return pc.data.load("digits")


def held_out():
    return pc.data.load("digits", split="test", batch_size=360)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with checkpoints of steps 10, 20 and 30, and the parameters at each."""
    folder = tmp_path_factory.mktemp("run")
    trainer = digits_trainer(folder, keep={"every": 10, "keep_latest": 3})
    at = {}

    class Remember(pc.Callback):
        def on_checkpoint(self, trainer, step, path):
            at[step] = parameters_of(trainer.network)

    trainer.callbacks.callbacks.append(Remember())
    trainer.fit(digits(), num_steps=30)
    return folder, at


@pytest.fixture
def copy(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    return tmp_path / "run"


def files_of_a_checkpoint(folder):
    return sorted(
        path.relative_to(folder) for path in (folder / "30").rglob("*") if path.is_file()
    ) + [(folder / "30.sha256").relative_to(folder)]


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGE = {
    "flipped byte": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.parametrize("harm", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_to_any_file_is_named_and_the_newest_good_one_used(run, copy, harm):
    """Orbax restores a flipped byte as if nothing had happened; a result would be silently wrong."""
    for name in files_of_a_checkpoint(copy):
        path = copy / name
        content = path.read_bytes()
        if content == b"" and harm is not DAMAGE["deleted"]:
            continue  # a marker without content: nothing to flip or cut
        harm(path)
        trainer = digits_trainer(copy, seed=9)
        with pytest.warns(pc.CheckpointWarning, match="30 is skipped: .*") as caught:
            assert trainer.restore() == 20, name
        told = str(caught[0].message)
        assert path.name in told or name.name in told, (name, told)
        for got, expected in zip(parameters_of(trainer.network), run[1][20], strict=True):
            np.testing.assert_array_equal(got, expected)
        path.write_bytes(content)
    assert digits_trainer(copy).restore() == 30  # whole again


def test_every_byte_of_the_seal_matters(copy):
    seal = copy / "30.sha256"
    content = seal.read_bytes()
    for position in range(0, len(content), 7):
        seal.write_bytes(
            content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]
        )
        assert find_damage(copy / "30") is not None, position
    seal.write_bytes(content)
    assert find_damage(copy / "30") is None


def test_an_added_file_and_a_missing_folder_are_damage(copy):
    (copy / "30" / "extra").write_text("x")
    assert "is not listed" in find_damage(copy / "30")
    shutil.rmtree(copy / "30")
    with pytest.warns(pc.CheckpointWarning, match="is missing"):
        assert digits_trainer(copy).restore() == 20


def test_the_seal_is_what_sha256sum_reads(run):
    if shutil.which("sha256sum") is None:
        pytest.skip("there is no sha256sum here")
    subprocess.run(
        ["sha256sum", "--check", "--quiet", "../30.sha256"], cwd=run[0] / "30", check=True
    )


def test_when_all_are_damaged_it_says_so_and_changes_nothing(copy):
    for step in (10, 20, 30):
        flip(copy / f"{step}.sha256")
    trainer = digits_trainer(copy, seed=9)
    before = parameters_of(trainer.network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pc.CheckpointWarning)
        with pytest.raises(pc.CheckpointError, match="none of the 3 checkpoints"):
            trainer.restore()
    for got, expected in zip(parameters_of(trainer.network), before, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_damaged_one_that_was_asked_for_is_refused_with_the_newest_good_one(copy):
    flip(copy / "30" / "meta" / "metadata")
    with pytest.raises(pc.CheckpointError, match=r"damaged: .*metadata.*newest good one is .*20"):
        pc.load_checkpoint(copy, step=30)


def test_training_goes_on_over_a_damaged_checkpoint(copy, tmp_path):
    """After falling back to 20, step 30 is made again and takes the place of the damaged one."""
    flip(copy / "30" / "meta" / "metadata")
    trainer = digits_trainer(copy, keep={"every": 10})
    with pytest.warns(pc.CheckpointWarning):
        trainer.restore()
    trainer.fit(digits(), num_steps=40)
    assert trainer.checkpoints.steps() == [20, 30, 40]
    assert not list(copy.glob("*.superseded*"))
    straight = digits_trainer()
    straight.fit(digits(), num_steps=40)
    for got, expected in zip(
        parameters_of(trainer.network), parameters_of(straight.network), strict=True
    ):
        np.testing.assert_array_equal(got, expected)


def test_going_back_on_purpose_moves_the_later_ones_aside(copy):
    trainer = digits_trainer(copy, keep={"every": 10})
    assert trainer.restore(step=10) == 10
    trainer.fit(digits(), num_steps=20)
    assert trainer.checkpoints.steps() == [10, 20]
    assert (copy / "30.superseded").is_dir()
    assert find_damage(copy / "30.superseded") is None


def test_the_latest_is_never_deleted_for_the_best(tmp_path):
    """Orbax's own best_fn with max_to_keep deletes the latest, and resuming goes backwards."""
    values = iter([0.5, 0.9, 0.4, 0.3, 0.2])

    class Scripted(pc.Trainer):
        def evaluate(self, data):
            return {"accuracy": next(values)}

    base = digits_trainer()
    trainer = Scripted(
        base.network,
        base.optimizer,
        learning=base.learning,
        checkpoints=pc.Checkpoints(
            tmp_path, keep_latest=1, keep_best=("eval/accuracy", "max"), every=10
        ),
        progress=False,
    )
    trainer.fit(digits(), num_steps=50, eval_data=held_out(), eval_every=10)
    assert trainer.checkpoints.steps() == [20, 50]
    assert trainer.checkpoints.best_step() == 20
    assert trainer.restore(best=True) == 20
    assert trainer.restore() == 50
    assert pc.load_checkpoint(tmp_path, best=True).step == 20


def test_a_nan_metric_never_wins(tmp_path):
    values = iter([0.5, float("nan"), 0.4])

    class Scripted(pc.Trainer):
        def evaluate(self, data):
            return {"accuracy": next(values)}

    base = digits_trainer()
    trainer = Scripted(
        base.network,
        base.optimizer,
        learning=base.learning,
        checkpoints=pc.Checkpoints(tmp_path, keep_best=("eval/accuracy", "max")),
        progress=False,
    )
    trainer.fit(digits(), num_steps=3, eval_data=held_out(), eval_every=1)
    assert trainer.checkpoints.best_step() == 1


def test_load_checkpoint_needs_no_trainer(run):
    folder, at = run
    network = digits_trainer(seed=9).network
    checkpoint = pc.load_checkpoint(folder, network)
    assert checkpoint.step == 30
    for got, expected in zip(parameters_of(network), at[30], strict=True):
        np.testing.assert_array_equal(got, expected)
    kernel = checkpoint.parameters["layer_0"]["linear"]["kernel"]
    assert isinstance(kernel, np.ndarray)
    assert kernel.shape == (64, 20)
    assert pc.load_checkpoint(folder / "20").step == 20
    assert pc.load_checkpoint(folder, step=10).step == 10
    assert len(checkpoint.digest()) == 64
    assert checkpoint.digest() != pc.load_checkpoint(folder / "20").digest()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda folder: digits_trainer(folder, widths=(64, 21, 10)),
            r"parameter 'layer_0.linear.bias' has shape \(20,\) in the checkpoint but \(21,\) in the",
        ),
        (
            lambda folder: digits_trainer(folder, widths=(64, 20, 20, 10)),
            "parameter 'layer_1.linear.bias' has shape",
        ),
        (
            lambda folder: digits_trainer(folder, widths=(64, 10)),
            r"parameter 'layer_0.linear.bias' has shape",
        ),
        (
            lambda folder: digits_trainer(folder, optimizer=optax.sgd(0.1, momentum=0.9)),
            "optimizer state .* in the checkpoint|the checkpoint has no optimizer state",
        ),
        (
            lambda folder: digits_trainer(folder, optimizer=optax.sgd(0.1)),
            r"the checkpoint has optimizer state .* build the optimizer as it was when saved, or begin "
            r"with another: pc.load_checkpoint\(folder, network\) takes the network alone",
        ),
    ],
)
def test_another_network_or_optimizer_is_refused_with_the_first_difference(run, make, message):
    trainer = make(run[0])
    before = parameters_of(trainer.network)
    with pytest.raises(pc.CheckpointError, match=message):
        trainer.restore()
    for got, expected in zip(parameters_of(trainer.network), before, strict=True):
        np.testing.assert_array_equal(got, expected)
    assert trainer.step == 0


def test_another_dtype_and_another_layer_are_refused(run):
    network = digits_trainer().network
    network.layers[0].linear.bias.set_value(jnp.zeros(20, jnp.float16))
    with pytest.raises(pc.CheckpointError, match="has dtype float32 in the checkpoint but float16"):
        pc.load_checkpoint(run[0], network)
    other = pc.PCNetwork([pc.PCLayer(nnx.Linear(64, 20, rngs=nnx.Rngs(0)))])
    with pytest.raises(pc.CheckpointError, match=r"has no parameter 'layer_0.module.bias'"):
        pc.load_checkpoint(run[0], other)
    shorter = digits_trainer(widths=(64, 20)).network
    with pytest.raises(pc.CheckpointError, match=r"has parameter 'layer_1.linear.bias'.*lacks"):
        pc.load_checkpoint(run[0], shorter)


def test_missing_checkpoints_are_told(run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint in .*; train first"):
        pc.load_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 7 .*; there are 10, 20, 30"):
        pc.load_checkpoint(run[0], step=7)
    with pytest.raises(ValueError, match="step or best, not both"):
        pc.load_checkpoint(run[0], step=10, best=True)
    with pytest.raises(ValueError, match="best needs a metric"):
        pc.load_checkpoint(run[0], best=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_latest": 0}, "keep_latest of at least 1"),
        ({"every": 0}, "every of at least 1"),
        ({"keep_best": ("eval/accuracy", "up")}, "expected keep_best as"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        pc.Checkpoints(tmp_path, **options)


def test_a_folder_that_cannot_be_written_is_told_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    trainer = digits_trainer(tmp_path / "file" / "run")
    with pytest.raises(OSError, match="cannot write checkpoints to .*; choose another folder"):
        trainer.fit(digits(), num_steps=2)
    assert trainer.step == 0


def test_an_error_while_writing_is_not_swallowed(tmp_path, monkeypatch):
    """Saving runs in the background; what goes wrong there must reach the user."""
    checkpoints = pc.Checkpoints(tmp_path)
    monkeypatch.setattr(
        "pcflax.training.checkpoints.seals.write_atomically",
        lambda path, text: (_ for _ in ()).throw(OSError("disk full")),
    )
    checkpoints.save(1, {"parameters": {"a": jnp.ones(2)}}, {"metrics": {}, "evaluated": {}})
    with pytest.raises(OSError, match="disk full"):
        checkpoints.close()


def test_reading_while_another_process_writes_disturbs_nothing(copy):
    """`pcflax inspect` on a live run must not clean up the writer's unfinished folders."""
    unfinished = copy / "40.orbax-checkpoint-tmp"
    unfinished.mkdir()
    (unfinished / "half").write_text("x")
    assert pc.load_checkpoint(copy).step == 30
    assert (unfinished / "half").exists()


def test_meta_is_plain_json(run):
    meta = json.loads((run[0] / "30" / "meta" / "metadata").read_text())
    assert meta["step"] == 30
    assert meta["data"]["name"] == "digits/train"
    assert meta["arrays"]["parameters"]["layer_0.linear.kernel"] == [[64, 20], "float32"]


class TestNothingIsGivenUpEarly:
    """Whatever interrupts a save, the newest sealed checkpoint must survive it."""

    def interrupted(self, folder, monkeypatch, name):
        """A Trainer at step 30 whose next save is cut off when it calls `name`."""
        trainer = digits_trainer(folder, keep={"every": 10})
        trainer.restore()

        def cut(*arguments, **options):
            raise RuntimeError("killed")

        monkeypatch.setattr(name, cut)
        with pytest.raises(RuntimeError, match="killed"):
            trainer.save()
        monkeypatch.undo()

    @pytest.mark.parametrize(
        "name",
        [
            "orbax.checkpoint.AsyncCheckpointer.save",
            "pcflax.training.checkpoints.folder.Folder.move_aside",
            "pcflax.training.checkpoints.store.seal",
        ],
    )
    def test_a_save_over_the_same_step_that_is_cut_off(self, copy, run, monkeypatch, name):
        for step in (10, 20):  # leave one checkpoint only
            shutil.rmtree(copy / str(step))
            (copy / f"{step}.sha256").unlink()
        self.interrupted(copy, monkeypatch, name)
        trainer = digits_trainer(copy, seed=9)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pc.CheckpointWarning)
            assert trainer.restore() == 30
        for got, expected in zip(parameters_of(trainer.network), run[1][30], strict=True):
            np.testing.assert_array_equal(got, expected)
        trainer.save()  # and the next save cleans up
        assert trainer.checkpoints.steps() == [30]
        assert find_damage(copy / "30") is None

    def test_what_json_cannot_hold_is_refused_before_anything_is_touched(self, copy):
        trainer = digits_trainer(copy)
        trainer.restore()
        trainer.history.rows.append({"step": 30, "x": np.float32(1)})
        with pytest.raises(TypeError, match="not JSON serializable"):
            trainer.save()
        assert trainer.checkpoints.steps() == [10, 20, 30]

    def test_a_trainer_that_restored_nothing_does_not_write_over_a_run(self, copy):
        before = sorted(path.name for path in copy.iterdir())
        trainer = digits_trainer(copy)
        for call in (lambda: trainer.fit(digits(), num_steps=5), trainer.save):
            with pytest.raises(
                FileExistsError,
                match=r"holds checkpoints up to step 30, but this .* call trainer.res",
            ):
                call()
        assert sorted(path.name for path in copy.iterdir()) == before

    @pytest.mark.parametrize("step", [30, 35])
    def test_nor_does_one_that_is_further(self, copy, step):
        """The other run's checkpoints would be deleted as the oldest."""
        before = sorted(path.name for path in copy.iterdir())
        trainer = digits_trainer(seed=1)
        trainer.fit(digits(), num_steps=step)
        trainer.checkpoints = pc.Checkpoints(copy, keep_latest=1)
        for call in (lambda: trainer.fit(digits(), num_steps=40), trainer.save):
            with pytest.raises(
                FileExistsError,
                match=f"up to step 30, but .* at step {step} and has neither .* call trainer.res",
            ):
                call()
        assert sorted(path.name for path in copy.iterdir()) == before
        trainer.restore()
        trainer.fit(digits(), num_steps=31)
        assert trainer.checkpoints.steps() == [31]

    def test_a_runs_own_folder_may_be_set_again(self, tmp_path):
        """As one does to save more often."""
        trainer = digits_trainer(tmp_path / "own", keep={"every": 2})
        trainer.fit(digits(), num_steps=2)
        trainer.checkpoints = None
        trainer.fit(digits(), num_steps=3)
        trainer.checkpoints = pc.Checkpoints(tmp_path / "other")
        trainer.fit(digits(), num_steps=4)
        trainer.checkpoints = pc.Checkpoints(tmp_path / "own", every=1)
        trainer.fit(digits(), num_steps=6)
        assert trainer.checkpoints.steps() == [2, 5, 6]

    def test_saving_again_keeps_the_best(self, tmp_path):
        trainer = digits_trainer(tmp_path, keep={"keep_best": ("eval/accuracy", "max")})
        trainer.fit(digits(), num_steps=10, eval_data=held_out())
        assert trainer.checkpoints.best_step() == 10
        trainer.save()
        assert trainer.checkpoints.best_step() == 10


def test_a_damaged_best_is_named(tmp_path):
    trainer = digits_trainer(tmp_path, keep={"keep_best": ("eval/energy", "min")})
    trainer.fit(digits(), num_steps=30, eval_data=held_out(), eval_every=10)
    assert trainer.checkpoints.best_step() == 30  # the energy still falls
    flip(tmp_path / "30" / "state" / "manifest.ocdbt")
    with pytest.warns(pc.CheckpointWarning, match="30 is skipped: state/manifest.ocdbt does not"):
        assert trainer.restore(best=True) == 20


def test_keep_best_of_a_metric_that_nobody_measures_is_refused(tmp_path):
    trainer = digits_trainer(tmp_path, keep={"keep_best": ("accuracy", "max")})
    with pytest.raises(
        ValueError, match="'accuracy', but evaluations measure eval/accuracy, eval/en"
    ):
        trainer.fit(digits(), num_steps=3, eval_data=held_out())


def test_an_injected_rate_of_the_checkpoint_that_is_not_the_users_is_told(tmp_path):
    """It is state, so the rate in the line that builds the optimizer would count for nothing."""

    def trainer(rate, folder=tmp_path / "fixed"):
        optimizer = optax.MultiSteps(optax.inject_hyperparams(optax.sgd)(learning_rate=rate), 2)
        return digits_trainer(folder, optimizer=optimizer)

    trainer(0.5).save()
    assert trainer(0.5).restore() == 0
    half, quarter = map(optax.constant_schedule, (0.5, 0.25))
    trainer(half, tmp_path / "scheduled").save()
    assert trainer(quarter, tmp_path / "scheduled").restore() == 0  # whose rate is the schedule's
    text = (
        r"goes on with the checkpoint's learning_rate 0.5, and not 0.25: .*trainer.optimizer_state"
    )
    with pytest.warns(pc.CheckpointWarning, match=text) as caught:
        trainer(0.25).restore()
    assert caught[0].filename == __file__


def test_keep_best_without_an_evaluation_is_told(tmp_path):
    """After days of training `restore(best=True)` would find no best."""
    trainer = digits_trainer(tmp_path, keep={"keep_best": ("eval/accuracy", "max")})
    text = (
        "keep_best judges 'eval/accuracy' after evaluations, and this fit has none, .*give fit eval"
    )
    with pytest.warns(UserWarning, match=text) as caught:
        trainer.fit(digits(), num_steps=1)
    assert caught[0].filename == __file__


def test_float64_is_not_rounded_where_64_bit_mode_is_off(tmp_path):
    """A device would make float32 of it without a word, and the digest would change."""
    exact = np.array([1 + 2.0**-40])
    checkpoints = pc.Checkpoints(tmp_path)
    checkpoints.save(1, {"parameters": {"a": exact}}, {"metrics": {}, "evaluated": {}})
    checkpoints.close()
    stored = pc.load_checkpoint(tmp_path).sections["parameters"]["a"]
    assert stored.dtype == np.float64
    np.testing.assert_array_equal(stored, exact)


def test_two_arrays_of_one_path_are_refused():
    from pcflax.training.checkpoints.arrays import flatten

    with pytest.raises(ValueError, match=r"two arrays have the path 'a.b'"):
        flatten({"a.b": np.ones(1), "a": {"b": np.ones(1)}})


def test_a_stray_line_in_a_seal_is_damage(copy):
    with (copy / "30.sha256").open("a") as file:
        file.write("\n")
    assert find_damage(copy / "30") == "30.sha256 is not as it was written"


def test_reading_looks_again_where_a_live_run_has_deleted_what_it_saw(copy, monkeypatch):
    from pcflax.training.checkpoints import reading as module

    read_meta, deleted = module.read_meta, []

    def late(path):
        if not deleted:  # the run prunes between our look and our reading
            deleted.append(path)
            shutil.rmtree(copy / "30")
            (copy / "30.sha256").unlink()
        return read_meta(path)

    monkeypatch.setattr(module, "read_meta", late)
    assert pc.load_checkpoint(copy).step == 20
