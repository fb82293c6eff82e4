"""Where arrays lie, that they stay there, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import pcflax as pc
from pcflax.cli.main import main
from pcflax.cli.options import read_config
from pcflax.sharding import data, features, layers, rules
from pcflax.training import evaluation, loop
from tests.sharding.eight.common import (
    ADAM,
    PLACEMENTS,
    arrays_of,
    difference,
    digits,
    network,
    trainer,
)

# as many steps as an error takes from the output to the first layer, and some more
DESCENT = pc.inference.GradientDescent(0.1, num_steps=12)
RULE = pc.learning.PredictiveCoding(DESCENT)


def specs(trained):
    """{path: spec} of parameters and optimizer state."""
    tree = nnx.as_pure(nnx.state(trained.network, nnx.Param))["layers"], trained.optimizer_state
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf.sharding.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.fixture(scope="module")
def uninterrupted():
    made = trainer(RULE)
    made.fit(digits(), num_steps=4, log_every=1)
    return made


# Places.


def test_parameters_and_what_the_optimizer_keeps_of_them_lie_alike():
    made = trainer(RULE, layers(4) | features(2))
    found = specs(made)
    kernel = "hidden.stacked-layers.linear.kernel"
    assert found[f"0.{kernel}"] == found[f"1.0.mu.{kernel}"] == found[f"1.0.nu.{kernel}"]
    assert found[f"0.{kernel}"] == PartitionSpec("layers", None, "features")
    assert found["0.hidden.stacked-layers.linear.bias"] == PartitionSpec("layers", "features")
    assert found["0.first.linear.kernel"] == PartitionSpec(None, "features")
    assert found["1.0.count"] == PartitionSpec()


def test_what_a_layer_or_a_rule_says_goes_first():
    """A rule of the user's before what the layer says, and that before the axis of features."""
    rngs = nnx.Rngs(0)
    metadata = {"out_sharding": ("features", None), "eager_sharding": False}
    said = {"kernel_metadata": metadata, "param_dtype": float}
    made = pc.PCNetwork(
        {
            "first": pc.PCDense(16, 8, rngs=rngs, **said),
            "second": pc.PCDense(8, 8, rngs=rngs, **said),
            "deep": pc.PCStack(lambda: pc.PCDense(8, 8, rngs=rngs, **said), 2),
        }
    )
    placement = (
        features(4) | layers(2) | rules({"second": PartitionSpec(), "*.bias": PartitionSpec()})
    )
    trained = pc.Trainer(made, ADAM, learning=RULE, mesh=placement, progress=False)
    found = specs(trained)
    assert found["0.first.linear.kernel"] == PartitionSpec("features")
    assert found["1.0.mu.first.linear.kernel"] == PartitionSpec("features")
    assert found["0.second.linear.kernel"] == PartitionSpec()
    assert found["0.first.linear.bias"] == PartitionSpec()
    assert found["0.deep.stacked-layers.linear.kernel"] == PartitionSpec("layers", "features")
    random = np.random.default_rng(0)
    x, y = random.normal(size=(16, 16)), random.normal(size=(16, 8))
    trained.fit(pc.data.from_arrays(x, y, batch_size=8), num_steps=2)
    assert specs(trained) == found


def test_every_state_stays_in_its_place_and_compiles_once():
    """What XLA chose would move weights at every call, and compile anew for each new choice."""
    made = trainer(RULE, PLACEMENTS["all"])
    before = specs(made)
    programs = loop.learn_batches._cache_size(), evaluation.measure_batches._cache_size()
    for steps in (2, 4, 6):
        made.fit(digits(), num_steps=steps, eval_data=digits("test"), eval_every=1)
    assert specs(made) == before
    assert loop.learn_batches._cache_size() == programs[0] + 1
    assert evaluation.measure_batches._cache_size() == programs[1] + 1


# Checkpoints.


@pytest.mark.parametrize(
    ("saved_on", "restored_on"),
    [("all", None), ("data, layers", "features"), (None, "all")],
)
def test_a_run_goes_on_on_other_devices(uninterrupted, tmp_path, saved_on, restored_on):
    """As if it had never stopped: the checkpoint knows nothing of devices."""
    folder = pc.Checkpoints(tmp_path, activities=True)
    first = trainer(RULE, PLACEMENTS.get(saved_on), checkpoints=folder)
    first.fit(digits(), num_steps=2, log_every=1)
    second = trainer(
        RULE, PLACEMENTS.get(restored_on), checkpoints=pc.Checkpoints(tmp_path, activities=True)
    )
    assert second.restore() == 2
    second.fit(digits(), num_steps=4, log_every=1)
    assert difference(arrays_of(uninterrupted), arrays_of(second)) < 1e-12
    energy = "train/energy"
    np.testing.assert_allclose(second.history[energy], uninterrupted.history[energy], rtol=1e-12)


def test_a_restored_run_lies_where_it_lay_and_goes_on_bitwise(tmp_path):
    """Restored onto one device, the next fit would train there alone, and nobody would be told."""
    whole = trainer(
        RULE, PLACEMENTS["data, layers"], checkpoints=pc.Checkpoints(tmp_path, keep_latest=9)
    )
    before = specs(whole)
    whole.fit(digits(), num_steps=2)
    whole.fit(digits(), num_steps=4)
    expected = arrays_of(whole)
    whole.restore(2)
    assert specs(whole) == before
    whole.fit(digits(), num_steps=4)
    assert difference(expected, arrays_of(whole)) == 0
    pc.load_checkpoint(tmp_path, whole.network)
    assert specs(whole) == before


@pytest.mark.parametrize("axis", ["x", "data"])
def test_parameters_placed_by_hand_are_restored_there(tmp_path, axis):
    """Whether the mesh has an axis that we know, or not."""
    made = network()
    place = NamedSharding(
        jax.make_mesh((8,), (axis,), axis_types=(AxisType.Auto,)), PartitionSpec()
    )
    nnx.update(made, jax.device_put(nnx.as_pure(nnx.state(made, nnx.Param)), place))
    hand = pc.Trainer(
        made,
        ADAM,
        learning=RULE,
        checkpoints=pc.Checkpoints(tmp_path),
        progress=False,
    )
    hand.fit(digits(), num_steps=1)
    hand.restore()
    leaves = jax.tree.leaves(
        (nnx.as_pure(nnx.state(hand.network, nnx.Param)), hand.optimizer_state)
    )
    assert {len(leaf.sharding.device_set) for leaf in leaves} == {8}


def test_a_network_stays_where_it_lies_until_another_mesh_is_given(uninterrupted):
    """The next Trainer goes on there, with the places that rules gave it."""
    placement = layers(4) | features(2) | rules({"first": PartitionSpec()})
    first = trainer(RULE, placement)
    x = np.ones((8, 64))
    first.network.infer(x, inference=DESCENT)
    options = {"learning": RULE, "progress": False}
    second = pc.Trainer(first.network, ADAM, **options)
    assert specs(second) == specs(first)
    second.fit(digits(), num_steps=4)
    assert difference(arrays_of(uninterrupted), arrays_of(second)) < 1e-12
    second.network.infer(x, inference=DESCENT)
    third = pc.Trainer(second.network, ADAM, mesh=data(2), **options)
    assert set(specs(third).values()) == {PartitionSpec()}
    energies = third.network.energies(x)  # at the activities that were stored
    assert {len(energy.sharding.device_set) for energy in energies.values()} == {2}


# Questions.


def test_evaluation_prediction_and_inference_on_a_mesh(uninterrupted):
    """Answers of one device, from batches that divide and, in `predict` and `infer`, others."""
    many = trainer(RULE, PLACEMENTS["data, layers"])
    one = trainer(RULE)
    expected = one.evaluate(digits("test"))
    assert many.evaluate(digits("test")) == pytest.approx(expected, rel=1e-12)
    x = np.random.default_rng(0).normal(size=(7, 64))
    np.testing.assert_allclose(many.predict(x), one.predict(x), atol=1e-12)
    many_digits, one_digits = many.predict(digits("test")), one.predict(digits("test"))
    np.testing.assert_allclose(many_digits, one_digits, atol=1e-12)
    reads = pc.Equilibrium(DESCENT, read="hidden/2")
    np.testing.assert_allclose(
        many.predict(x, reads=reads), one.predict(x, reads=reads), atol=1e-12
    )
    y = np.eye(10)[[1, 2, 3, 4, 5, 6]]
    for rows in (6, 3):
        results = [
            made.network.infer(x[:rows], y[:rows], inference=DESCENT, trace=True)
            for made in (one, many)
        ]
        assert len(results[1].energy.sharding.device_set) == 8
        np.testing.assert_allclose(results[1].energy, results[0].energy, rtol=1e-12)
        np.testing.assert_allclose(results[1].trace.residual, results[0].trace.residual, rtol=1e-9)
        hidden = [result.activities["hidden"] for result in results]
        np.testing.assert_allclose(hidden[1], hidden[0], atol=1e-12)
    gradients = [made.network.parameter_gradients(x[:3]) for made in (one, many)]
    for ours, expected in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(expected, ours, atol=1e-12)


@pytest.mark.parametrize("placement", ["layers", "all"])
def test_clamps_within_a_stack_go_through_the_pipeline(placement):
    """Values, masks and errors are cut as the batch is, and each part meets its own."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(16, 64)), np.eye(10)[np.arange(16) % 10]
    clamps = {
        "hidden/2": pc.Clamp(random.normal(size=(16, 16)), random.random((16, 16)) < 0.3),
        "hidden/5": random.normal(size=(16, 16)),
    }
    descent = pc.inference.GradientDescent(0.02, num_steps=3)
    inference = pc.inference.ErrorCoordinates(descent)
    one, many = trainer(RULE).network, trainer(RULE, PLACEMENTS[placement]).network
    results = [made.infer(x, y, clamps=clamps, inference=inference) for made in (one, many)]
    for name, activity in results[0].activities.items():
        np.testing.assert_allclose(results[1].activities[name], activity, atol=1e-12)
    assert np.ptp(results[0].energy) > 1


@pytest.mark.parametrize("algorithm", ["NewtonCG", "guard"])
def test_other_algorithms_on_a_mesh(algorithm):
    x = np.random.default_rng(0).normal(size=(8, 64))
    y = np.eye(10)[np.arange(8)]
    inference = {
        "NewtonCG": pc.inference.NewtonCG(num_steps=2),
        "guard": pc.inference.GradientDescent(0.1, guard="clip", backoff=0.5, num_steps=3),
    }[algorithm]
    one, many = trainer(RULE).network, trainer(RULE, PLACEMENTS["data, layers"]).network
    key = jax.random.key(0)
    results = [made.infer(x, y, inference=inference, key=key) for made in (one, many)]
    # conjugate gradients end at their tolerance
    np.testing.assert_allclose(results[1].energy, results[0].energy, rtol=1e-7)


@pytest.mark.promotes("flax's BatchNorm does not run in 64 bits under strict promotion of dtypes")
def test_batch_statistics_and_kept_starts_on_a_mesh():
    """A mean over the batch is over all devices' examples; a start is kept for each example."""

    def made(mesh):
        rngs = nnx.Rngs(0)

        class Normalized(pc.PCLayer):
            def __init__(self, rngs):
                super().__init__()
                self.linear = nnx.Linear(64, 16, param_dtype=jnp.float64, rngs=rngs)
                self.norm = nnx.BatchNorm(16, param_dtype=jnp.float64, rngs=rngs)
                for statistic in (self.norm.mean, self.norm.var):
                    statistic.set_value(statistic[...].astype(jnp.float64))

            def predict(self, below):
                return jnp.tanh(self.norm(self.linear(below)))

        net = pc.PCNetwork(
            {
                "first": Normalized(rngs),
                "output": pc.PCDense(16, 10, param_dtype=jnp.float64, rngs=rngs),
            }
        )
        rule = pc.learning.PredictiveCoding(DESCENT, pc.initializers.Persistent())
        trained = pc.Trainer(net, ADAM, learning=rule, mesh=mesh, progress=False)
        trained.fit(digits(), num_steps=3)
        arrays = arrays_of(trained)
        statistics = nnx.to_flat_state(nnx.state(trained.network, nnx.BatchStat))
        return arrays | {str(path): np.asarray(variable[...]) for path, variable in statistics}

    assert difference(made(None), made(data())) < 1e-12


def test_streamed_and_augmented_data_on_a_mesh():
    """Examples that come from the host with each call, and draws of their own."""
    random = np.random.default_rng(0)
    images = random.integers(0, 255, size=(64, 8, 8, 1)).astype(np.uint8)
    labels = random.integers(0, 10, size=64)

    class Source:
        def __len__(self):
            return 64

        def __getitem__(self, index):
            return images[index], labels[index]

    def made(mesh, stream):
        change = {"batch_size": 16, "augment": pc.data.Crop(1)}
        decoder = pc.data.Decoder(scale=1 / 255, flatten=True, num_classes=10)
        examples = (
            pc.data.StreamDataset(Source(), decoder=decoder, num_threads=1, **change)
            if stream
            else pc.data.from_arrays(images, labels, num_classes=10, flatten=True, **change)
        )
        trained = trainer(RULE, mesh)
        trained.fit(examples, num_steps=3)
        return arrays_of(trained)

    expected = made(None, stream=False)
    assert difference(expected, made(data(), stream=False)) < 1e-12
    assert difference(expected, made(data(), stream=True)) < 1e-12


def test_a_callback_looks_at_a_network_on_a_mesh():
    seen = []

    class Looks(pc.Callback):
        def on_log(self, running, step, row):
            kernel = running.network.layers["hidden"].stacked.linear.kernel
            kernel.set_value(kernel[...] * 1.5)  # which training goes on with
            seen.append(kernel[...].sharding.spec)

    trainer(RULE, layers(), callbacks=[Looks()]).fit(digits(), num_steps=2, log_every=1)
    assert seen == [PartitionSpec("layers")] * 2


# Meshes of the user's own.


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_mesh_of_the_users_own(uninterrupted, kind):
    mesh = jax.make_mesh((4, 2), ("layers", "data"), axis_types=(kind, kind))
    made = trainer(RULE, mesh)
    made.fit(digits(), num_steps=4)
    assert difference(arrays_of(uninterrupted), arrays_of(made)) < 1e-12


def test_a_number_of_devices():
    assert dict(data(2).mesh().shape) == {"data": 2, "layers": 1, "features": 1}
    assert dict((data() | layers(4)).mesh().shape) == {"data": 2, "layers": 4, "features": 1}
    assert list(data(3).mesh().devices.flat) == jax.devices()[:3]


# Refusals.


@pytest.mark.parametrize(
    ("mesh", "text"),
    [
        (data(9), r"^data\(9\) takes 9 devices, and there are 8; give smaller numbers$"),
        (
            data() | layers(3),
            r"^data\(\) \| layers\(3\) leaves 8 devices to be divided by 3; give numbers that divide them$",
        ),
        (
            layers(3),
            r"^layer 'hidden' stacks 8 layers, which do not divide among the 3 devices of the axis 'layers'; "
            r"choose a multiple, or other devices$",
        ),
        (
            features(7),
            r"^the mesh spreads features over 7 devices, which divide the last axis of no parameter; choose "
            r"widths that are multiples of 7, or leave features out$",
        ),
        (
            rules({"hiden": PartitionSpec()}),
            r"^pc.sharding.rules names 'hiden', which fits no layer and no parameter; did you mean "
            r"'hidden'\?; the layers are first, hidden, output$",
        ),
        (
            features(4) | rules({"output": PartitionSpec(None, "features")}),
            r"^pc.sharding.rules place 'output.linear.bias' at PartitionSpec\(None, 'features'\), but its "
            r"shape \(10,\) has no axis 1 that divides among 4 devices; choose another place$",
        ),
        (
            rules({"first": PartitionSpec("model")}),
            r"^pc.sharding.rules place 'first.linear.bias' on the axis 'model'; expected the axes data, "
            r"layers, features$",
        ),
        (
            jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,)),
            r"^Trainer got a mesh with the axis 'model'; expected axes named data, layers, features$",
        ),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value)[:20],
)
def test_what_does_not_fit_is_told_in_one_sentence(mesh, text):
    with pytest.raises(ValueError, match=text):
        trainer(RULE, mesh)


def test_layers_want_a_stack():
    made = pc.models.mlp(64, 8, 10, rngs=nnx.Rngs(0))
    with pytest.raises(
        ValueError,
        match=r"^the mesh spreads layers over 8 devices, but the network has no pc.PCStack whose layers "
        r"could be; leave layers out, or stack equal layers$",
    ):
        pc.Trainer(made, ADAM, learning=RULE, mesh=layers(), progress=False)


def test_batches_that_do_not_divide():
    made = trainer(RULE, data(8))
    odd = pc.data.load("digits", batch_size=12)
    text = (
        r"^the {} 'digits/train' has batches of 12 examples, which do not divide among the 8 devices of the "
        r"axis 'data'; give a batch_size that is a multiple of 8$"
    )
    with pytest.raises(ValueError, match=text.format("training data")):
        made.fit(odd, num_steps=1)
    with pytest.raises(ValueError, match=text.format("evaluation data")):
        made.fit(digits(), num_steps=1, eval_data=odd)
    with pytest.raises(ValueError, match=text.format("data set")):
        made.predict(odd)


@pytest.mark.promotes("the command makes weights of 32 bits, and its images have 64 here")
def test_a_command_shares_its_run_and_goes_on_with_other_devices(tmp_path, capsys):
    run = ["train", "--run-dir", str(tmp_path / "run"), "--eval-every", "2", "--quiet"]
    model = ["--model", "residual-mlp", "--depth", "6", "--width", "8", "--validation", "0"]
    main([*run, *model, "--num-steps", "2", "--mesh", "data=2,layers=4"])
    shared = [*run, "--resume", "--num-steps"]
    main([*shared, "3"])  # on those of before
    assert read_config(tmp_path / "run").mesh == "data=2,layers=4"
    main([*shared, "4", "--mesh", "data=4"])
    assert read_config(tmp_path / "run").mesh == "data=4"
    alone = ["train", "--run-dir", str(tmp_path / "alone"), "--eval-every", "2", "--quiet"]
    main([*alone, *model, "--num-steps", "4"])
    many, one = (
        pc.load_checkpoint(tmp_path / name).sections["parameters"] for name in ("run", "alone")
    )
    for name in one:
        np.testing.assert_allclose(many[name], one[name], rtol=1e-4, atol=1e-6)
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(tmp_path / "run"), "--mesh", "layers=3"])
    assert ended.value.code == 1  # of the run, not of the line
    assert "do not divide among the 3 devices" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["train", "--run-dir", str(tmp_path / "new"), *model, "--mesh", "layers=3"])
    assert ended.value.code == 2  # the same of a line that says both
    assert "do not divide among the 3 devices" in capsys.readouterr().err
