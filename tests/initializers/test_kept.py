"""Starts that training keeps: each example's last equilibrium, and the average of its class."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from pcflax.training import TrainState, fitting, make_step

pytestmark = pytest.mark.slow

DRAW = np.random.RandomState(0)
X, LABELS = DRAW.randn(12, 3), np.arange(12) % 3
FEW = pc.inference.GradientDescent(0.1, num_steps=4)
KEY = jax.random.key(0)
STARTS = {
    "persistent": pc.initializers.Persistent(),
    "class average": pc.initializers.ClassAverage(0.7),
}


def network(dtype=jnp.float32):
    rngs = nnx.Rngs(0)
    options = {"rngs": rngs, "param_dtype": dtype}
    return pc.PCNetwork(
        {
            "first": pc.PCDense(3, 5, activation=jnp.tanh, **options),
            "second": pc.PCDense(5, 4, activation=jnp.tanh, **options),
            "output": pc.PCDense(4, 3, **options),
        }
    )


def data_of(x=X, targets=LABELS, **options):
    return pc.data.from_arrays(x, targets, **{"batch_size": 4, "seed": 1, **options})


def numpy_step(weights, x, y, start, num_steps=4, step_size=0.1, rate=0.05):
    """One step of predictive coding on a chain tanh, tanh, linear: new weights, and where z ended."""
    (w1, b1), (w2, b2), (w3, b3) = weights
    z1, z2 = start
    for step in range(num_steps + 1):
        p1, p2, p3 = np.tanh(x @ w1 + b1), np.tanh(z1 @ w2 + b2), z2 @ w3 + b3
        e1, e2, e3 = z1 - p1, z2 - p2, y - p3
        s1, s2 = e1 * (1 - p1**2), e2 * (1 - p2**2)
        if step < num_steps:
            z1, z2 = (
                z1 - step_size * (e1 - s2 @ w2.T),
                z2 - step_size * (e2 - e3 @ w3.T),
            )
    size = len(x)
    new = []
    for (w, b), below, error in zip(weights, (x, z1, z2), (s1, s2, e3), strict=True):
        new.append((w + rate * below.T @ error / size, b + rate * error.mean(axis=0)))
    return new, (z1, z2)


def forward(weights, x):
    z1 = np.tanh(x @ weights[0][0] + weights[0][1])
    return [z1, np.tanh(z1 @ weights[1][0] + weights[1][1])]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", STARTS)
def test_training_is_that_of_numpy(name):
    """Seven steps, in which every example is seen twice: weights and what is kept, in float64."""
    net, data, optimizer = network(jnp.float64), data_of(), optax.sgd(0.05)
    weights = [
        tuple(np.asarray(leaf[...]) for leaf in (layer.linear.kernel, layer.linear.bias))
        for layer in net.layers
    ]
    rule = pc.learning.PredictiveCoding(FEW, STARTS[name])
    step = jax.jit(make_step(net, optimizer, rule))
    state = TrainState.of(net, optimizer, starts=rule.initializer.begin(net, data))
    kept: dict = {}  # by example, or by class
    for number in range(7):
        rows = data.indices(number, 1)[0]
        state, info = step(state, pc.Evidence(X[rows], np.eye(3)[LABELS[rows]], examples=rows), KEY)
        assert info.finite
        keys = rows if name == "persistent" else LABELS[rows]
        start = forward(weights, X[rows])
        for place, key in enumerate(keys):
            if key in kept:
                for layer in range(2):
                    start[layer][place] = kept[key][layer]
        weights, ended = numpy_step(weights, X[rows], np.eye(3)[LABELS[rows]], start)
        if name == "persistent":
            kept |= {key: [z[place] for z in ended] for place, key in enumerate(keys)}
            continue
        for key in set(keys):
            means = [z[keys == key].mean(axis=0) for z in ended]
            old = kept.get(key, means)
            kept[key] = [0.7 * o + 0.3 * m for o, m in zip(old, means, strict=True)]
    state.write_to(net)
    for layer, (kernel, bias) in zip(net.layers, weights, strict=True):
        np.testing.assert_allclose(layer.linear.kernel[...], kernel, rtol=1e-10)
        np.testing.assert_allclose(layer.linear.bias[...], bias, rtol=1e-10)
    found = state.starts
    np.testing.assert_array_equal(np.flatnonzero(found["seen"]), sorted(kept))
    for key, values in kept.items():
        for layer, value in zip(("first", "second"), values, strict=True):
            np.testing.assert_allclose(found["activities"][layer][key], value, rtol=1e-10)


def test_a_class_that_is_not_known_starts_forward_and_is_not_averaged():
    net, average = network(), pc.initializers.ClassAverage(0.5)
    state = average.begin(net, data_of())
    known = np.array([[True], [False], [True]])
    evidence = pc.Evidence(X[:3], pc.Clamp(jnp.eye(3)[jnp.array([1, 1, 1])], known))
    ended = {name: jnp.full((3, width), 2.0) for name, width in (("first", 5), ("second", 4))}
    ended = {name: rows.at[1].set(100.0) for name, rows in ended.items()}
    state = average.after(state, evidence, ended, network=pc.networks.split(net))
    np.testing.assert_array_equal(state["seen"], [False, True, False])
    np.testing.assert_array_equal(state["activities"]["first"][1], np.full(5, 2.0))
    start = net.start(evidence, initializer=average.at(state, evidence))
    plain = net.start(evidence)
    np.testing.assert_array_equal(start["first"][1], plain["first"][1])
    np.testing.assert_array_equal(start["first"][::2], np.full((2, 5), 2.0))


def test_an_average_of_bfloat16_is_kept_in_32_bits():
    """Moves of a thousandth reach their goal, which in 16 bits would all round to nothing."""
    net = pc.PCNetwork(
        {
            "first": pc.PCDense(3, 5, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)),
            "output": pc.PCDense(5, 3, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)),
        }
    )
    average = pc.initializers.ClassAverage(0.999)
    state = average.begin(net, data_of())
    evidence = pc.Evidence(X[:3].astype(np.float32), jnp.eye(3)[jnp.array([1, 1, 1])])
    pure = pc.networks.split(net)
    for value, times in ((1.0, 1), (2.0, 200)):
        ended = {"first": jnp.full((3, 5), value, jnp.bfloat16)}
        for _ in range(times):
            state = average.after(state, evidence, ended, network=pure)
    np.testing.assert_allclose(state["activities"]["first"][1], 2 - 0.999**200, rtol=1e-5)
    start = net.start(evidence, initializer=average.at(state, evidence))
    assert start["first"].dtype == jnp.bfloat16


def test_labels_may_be_the_inputs():
    rngs = nnx.Rngs(0)
    net = pc.PCNetwork({"first": pc.PCDense(3, 4, rngs=rngs), "out": pc.PCDense(4, 3, rngs=rngs)})
    data = pc.data.from_arrays(LABELS, X, num_classes=3, batch_size=4)
    rule = pc.learning.PredictiveCoding(FEW, pc.initializers.ClassAverage(labels="inputs"))
    trainer = pc.Trainer(net, optax.sgd(0.01), learning=rule, progress=False)
    energies = trainer.fit(data, num_steps=20, log_every=10)["train/energy"]
    assert energies[-1] < energies[0]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("persistent", pc.learning.PredictiveCoding),
        ("class average", pc.learning.IncrementalPC),
    ],
)
def test_a_resumed_run_is_the_run(name, kind, tmp_path):
    """Bitwise, parameters and starts; and it is not that of a rule that keeps nothing."""

    def trainer_of(folder, initializer=STARTS[name]):
        return pc.Trainer(
            network(),
            optax.adam(1e-2),
            learning=kind(FEW, initializer),
            checkpoints=pc.Checkpoints(folder, keep_latest=9),
            progress=False,
        )

    whole = trainer_of(tmp_path / "whole")
    whole.fit(data_of(), num_steps=9)
    first = trainer_of(tmp_path / "parts")
    first.fit(data_of(), num_steps=5)
    second = trainer_of(tmp_path / "parts")
    second.restore()
    second.save()  # before a fit it holds what it read
    second.fit(data_of(), num_steps=9)
    stored = [pc.load_checkpoint(tmp_path / run, step=9) for run in ("whole", "parts")]
    assert stored[0].digest() == stored[1].digest()
    for path, array in stored[0].sections["starts"].items():
        np.testing.assert_array_equal(array, stored[1].sections["starts"][path])
    assert set(stored[0].sections["starts"]) == {"seen", "activities.first", "activities.second"}
    plain = trainer_of(tmp_path / "plain", None)
    plain.fit(data_of(), num_steps=9)
    last = pc.load_checkpoint(tmp_path / "plain")
    assert last.digest() != stored[0].digest()
    assert last.sections["starts"] == {}
    # a run without starts goes on with them, and other data begin anew
    going_on = trainer_of(tmp_path / "plain")
    going_on.restore()
    going_on.fit(data_of(), num_steps=10)
    other = data_of(X[:8], LABELS[:8])
    going_on.fit(other, num_steps=11)
    rows = other.indices(0, 1)[0]
    seen = pc.load_checkpoint(tmp_path / "plain").sections["starts"]["seen"]
    expected = rows if name == "persistent" else sorted(set(LABELS[rows]))
    np.testing.assert_array_equal(np.flatnonzero(seen), sorted(expected))


def test_streams_keep_places_as_arrays_do():
    class Source:
        def __len__(self):
            return 12

        def __getitem__(self, index):
            return X[index].astype(np.float32), np.int32(LABELS[index])

    decoder = pc.data.Decoder(num_classes=3)
    stream = pc.data.StreamDataset(Source(), decoder=decoder, batch_size=4, seed=1)
    found = []
    for data in (stream, data_of(X.astype(np.float32))):
        net = network()
        rule = pc.learning.PredictiveCoding(FEW, STARTS["persistent"])
        pc.Trainer(net, optax.sgd(0.05), learning=rule, progress=False).fit(data, num_steps=7)
        found.append(jax.tree.leaves(nnx.state(net, nnx.Param)))
    for left, right in zip(*found, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("name", STARTS)
def test_a_step_is_mapped_and_scanned(name):
    net, data, optimizer = network(), data_of(), optax.sgd(0.05)
    rule = pc.learning.PredictiveCoding(FEW, STARTS[name])
    step = make_step(net, optimizer, rule)
    state = TrainState.of(net, optimizer, starts=rule.initializer.begin(net, data))
    batches = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[*data.epoch(0), *data.epoch(1)])
    run = jax.jit(lambda s: jax.lax.scan(lambda s, batch: step(s, batch, KEY), s, batches)[0])
    one = run(state)
    two = jax.jit(jax.vmap(run))(jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state))
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(left, right[1], rtol=2e-6, atol=1e-6)


def with_place(place):
    return lambda batch: dataclasses.replace(batch, examples=batch.examples.at[1].set(place))


@pytest.mark.parametrize(
    "spoiled",
    [
        pytest.param(lambda b: dataclasses.replace(b, inputs=b.inputs * np.nan), id="inputs"),
        pytest.param(with_place(12), id="the first place beyond the data"),
        pytest.param(with_place(10_000), id="a place far beyond the data"),
    ],
)
def test_a_step_that_is_not_finite_keeps_the_starts(spoiled):
    """As one is from a place that the data do not have, where another example's row would be wrong."""
    net, data, optimizer = network(), data_of(), optax.sgd(0.05)
    rule = pc.learning.PredictiveCoding(FEW, STARTS["persistent"])
    step = jax.jit(make_step(net, optimizer, rule))
    state = TrainState.of(net, optimizer, starts=rule.initializer.begin(net, data))
    batch = next(iter(data))
    state, _ = step(state, batch, KEY)
    after, info = step(state, spoiled(batch), KEY)
    assert not info.finite
    for left, right in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(left, right)


def kept_trainer(name="persistent"):
    rule = pc.learning.PredictiveCoding(FEW, STARTS.get(name))
    return pc.Trainer(network(), optax.sgd(0.05), learning=rule, progress=False)


def held_by(trainer):
    return jax.tree.leaves((trainer._run._starts, nnx.state(trainer.network, nnx.Param)))


@pytest.mark.parametrize("name", [None, "persistent"])
def test_a_fit_ends_before_the_first_step_that_is_not_finite(name):
    """Bit for bit where a fit of so many steps ends, its starts too, though a call is of many steps."""
    targets = np.eye(3)[np.tile(LABELS, 3)]
    targets[20] = 1e30  # in the sixth batch of nine
    data, held = data_of(np.tile(X, (3, 1)), targets, shuffle=False), []
    for num_steps in (5, 9):
        trainer = kept_trainer(name)
        if num_steps == 9:
            with pytest.raises(pc.NonFiniteEnergyError, match="step 6"):
                trainer.fit(data, num_steps=num_steps)
        else:
            trainer.fit(data, num_steps=num_steps)
        assert trainer.step == 5
        held.append(held_by(trainer))
    for left, right in zip(*held, strict=True):
        np.testing.assert_array_equal(left, right)


def test_starts_that_are_lost_with_a_call_begin_anew(monkeypatch):
    trainer, data = kept_trainer(), data_of()
    trainer.fit(data, num_steps=3)
    real = fitting.learn_batches

    def lost(*arguments, **options):
        real(*arguments, **options)
        raise RuntimeError("the device is lost")

    with monkeypatch.context() as patched:
        patched.setattr(fitting, "learn_batches", lost)
        with (
            pytest.warns(
                UserWarning, match="kept starts were lost .* begin anew in the next fit"
            ) as told,
            pytest.raises(RuntimeError, match="the device is lost"),
        ):
            trainer.fit(data, num_steps=6)
    assert trainer.step == 3
    assert [each.filename for each in told] == [__file__]
    trainer.fit(data, num_steps=6)
    assert all(np.isfinite(leaf).all() for leaf in held_by(trainer))


@pytest.mark.parametrize("kind", [np.array, jnp.array])
def test_what_an_initializer_began_with_stays_its_own(monkeypatch, kind):
    """A call consumes the starts: not the arrays of which an initializer makes them in each fit."""

    class FromTable(pc.initializers.Persistent):
        def begin(self, network, data):
            if not held:
                held.append(jax.tree.map(kind, super().begin(network, data)))
            return held[0]

    def lost(*arguments, **options):
        raise RuntimeError("the device is lost")

    held, ended = [], []
    for _ in range(2):
        rule = pc.learning.PredictiveCoding(FEW, FromTable())
        trainer = pc.Trainer(network(), optax.sgd(0.05), learning=rule, progress=False)
        with monkeypatch.context() as patched:
            patched.setattr(fitting, "learn_batches", lost)
            with pytest.raises(RuntimeError, match="the device is lost"):
                trainer.fit(data_of(), num_steps=2)
        trainer.fit(data_of(), num_steps=4)
        ended.append(held_by(trainer))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(held))
    for left, right in zip(*ended, strict=True):
        np.testing.assert_array_equal(left, right)


class TestRefusals:
    def fit(self, initializer, data):
        rule = pc.learning.PredictiveCoding(FEW, initializer)
        pc.Trainer(network(), optax.sgd(0.1), learning=rule, progress=False).fit(data, num_steps=1)

    def test_windows_of_a_text_have_no_place(self):
        text = pc.data.TextDataset("abracadabra" * 3, sequence_length=4, batch_size=2)
        with pytest.raises(ValueError, match="Persistent starts need each example's place in the"):
            pc.initializers.Persistent().begin(network(), text)

    def test_class_averages_need_classes(self):
        with pytest.raises(ValueError, match="the targets of 'arrays' are no labels; give integer"):
            self.fit(STARTS["class average"], data_of(targets=np.eye(3)[LABELS]))

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"momentum": 1.5}, "ClassAverage expected a momentum of at least 0 and of at most 1"),
            ({"labels": "output"}, "ClassAverage expected labels 'targets' or 'inputs', got 'outp"),
        ],
    )
    def test_settings_are_checked(self, options, text):
        with pytest.raises(ValueError, match=text):
            pc.initializers.ClassAverage(**options)

    @pytest.mark.parametrize("reading", [pc.Equilibrium, pc.Reconstruction])
    def test_evaluation_has_starts_of_its_own(self, reading):
        text = f"{reading.__name__} starts anew at every question, but Persistent keeps starts"
        with pytest.raises(ValueError, match=text):
            reading(FEW, initializer=pc.initializers.Persistent())

    def test_a_step_wants_the_state_and_the_places(self):
        net, optimizer = network(), optax.sgd(0.1)
        rule = pc.learning.PredictiveCoding(FEW, STARTS["persistent"])
        step = make_step(net, optimizer, rule)
        batch = next(iter(data_of()))
        with pytest.raises(
            ValueError, match="Persistent starts are kept in the state, and this one"
        ):
            step(TrainState.of(net, optimizer), batch, KEY)
        state = TrainState.of(net, optimizer, starts=rule.initializer.begin(net, data_of()))
        with pytest.raises(ValueError, match="Persistent starts need each example's place; give"):
            step(state, pc.Evidence(batch.inputs, batch.targets), KEY)
