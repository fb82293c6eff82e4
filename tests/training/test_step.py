"""The pure step: what the Trainer runs is what a loop of one's own runs.

Oracles: `Trainer.fit`, optax by hand, and the equations of dropout and running means.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc
from pcflax.layers import Evidence
from pcflax.training import TrainState, make_step
from tests.conftest import parameters_of

RULE = pc.learning.PredictiveCoding(pc.inference.GradientDescent(optax.sgd(0.1), num_steps=2))
OPTIMIZER = optax.adam(0.05)


def make_network(seed=0, *, dropout=0.0, norm=False):
    rngs = nnx.Rngs(seed)
    hidden = pc.PCDense(3, 6, activation=jnp.tanh, dropout=dropout, rngs=rngs)
    if norm:
        hidden = pc.PCLayer(
            nnx.Sequential(nnx.BatchNorm(3, rngs=rngs), nnx.Linear(3, 6, rngs=rngs))
        )
    return pc.PCNetwork({"hidden": hidden, "output": pc.PCDense(6, 2, rngs=rngs)})


def make_data(examples=12, batch_size=4):
    draw = np.random.RandomState(0)
    x, y = (5 + draw.randn(examples, 3)).astype(np.float32), draw.randn(examples, 2)
    return pc.data.from_arrays(x, y.astype(np.float32), batch_size=batch_size, shuffle=False)


def take_steps(network, count, *, data, optimizer=OPTIMIZER, rule=RULE, seed=0):
    step = make_step(network, optimizer, rule)
    state, key, batches = TrainState.of(network, optimizer), jax.random.key(seed), list(data)
    for number in range(count):
        state, info = step(state, batches[number % len(batches)], key)
    return state, info


def test_a_step_within_no_other_program_is_compiled_once(caplog):
    """A choice outside of the compiled step was compiled anew at each, for thirty times its time."""
    step, batch = make_step(make_network(), OPTIMIZER, RULE), next(iter(make_data()))
    state, key = TrainState.of(make_network(), OPTIMIZER), jax.random.key(0)
    state, _ = step(state, batch, key)
    with jax.log_compiles(True):
        state, _ = step(state, batch, key)
        assert not [record for record in caplog.records if "ompil" in record.getMessage()]
        jax.jit(lambda x: 2 * x)(jnp.ones(3))
    assert [record for record in caplog.records if "ompil" in record.getMessage()]


@pytest.mark.parametrize("options", [{"dropout": 0.5}, {"norm": True}], ids=["dropout", "norm"])
def test_a_loop_of_ones_own_trains_as_the_trainer_does(options):
    """Dropout masks and running statistics that only the Trainer kept would make hand-made loops wrong."""
    data, one, other = make_data(), make_network(**options), make_network(**options)
    state, info = take_steps(one, 7, data=data, seed=3)
    state.write_to(one)
    trainer = pc.Trainer(other, OPTIMIZER, learning=RULE, seed=3, progress=False)
    history = trainer.fit(data, num_steps=7, log_every=1)
    left, right = (nnx.as_pure(nnx.state(n, nnx.Not(pc.Activity))) for n in (one, other))
    for got, expected in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        if jnp.issubdtype(got.dtype, jax.dtypes.prng_key):
            got, expected = jax.random.key_data(got), jax.random.key_data(expected)
        np.testing.assert_allclose(
            got, expected, rtol=1e-5, atol=1e-6
        )  # another program's rounding
    assert float(info.energy) == pytest.approx(history["train/energy"][-1], rel=1e-5)
    assert float(info.loss) == pytest.approx(history["train/loss"][-1], rel=1e-5)


def test_every_step_draws_a_mask_of_its_own_and_every_unit_learns():
    """One mask for a whole run would leave half of the units as they were."""
    data, network = make_data(examples=1, batch_size=1), make_network(dropout=0.5)
    before = np.asarray(network.layer("output").linear.kernel[...])
    state, _ = take_steps(network, 12, data=data, optimizer=optax.sgd(0.01))
    state.write_to(network)
    moved = np.asarray(network.layer("output").linear.kernel[...]) != before
    assert moved.any(axis=1).all()  # a unit that is dropped at all 12 steps: 6 in 4096


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_every_step_draws_a_mask_of_its_own_with_keys_of_any_implementation(implementation):
    """A network may be built with other keys than the Trainer's, which are jax's default."""
    rngs = nnx.Rngs(jax.random.key(0, impl=implementation))
    hidden = pc.PCDense(3, 64, dropout=0.5, rngs=rngs)
    network = pc.PCNetwork({"hidden": hidden, "output": pc.PCDense(64, 2, rngs=rngs)})
    trainer = pc.Trainer(
        network, optax.sgd(0.0), learning=pc.learning.Backprop(), metrics={}, progress=False
    )
    data = make_data(examples=4)
    losses = trainer.fit(data, num_steps=6, log_every=1)["train/loss"]
    assert len(set(losses)) == 6  # of one batch and one network: only the masks differ
    keys = jax.tree.leaves(nnx.state(network, nnx.RngKey))
    assert {str(jax.random.key_impl(key[...])) for key in keys} == {implementation}


def test_running_means_follow_the_batches():
    """The mean after n batches of one and the same is (1 - momentum^n) of it."""
    data, network = make_data(examples=4), make_network(norm=True)
    state, _ = take_steps(network, 20, data=data)
    state.write_to(network)
    norm = network.layer("hidden").module.layers[0]
    expected = (1 - norm.momentum**20) * np.asarray(next(iter(data)).inputs).mean(axis=0)
    np.testing.assert_allclose(norm.mean[...], expected, rtol=1e-4)


def test_it_passes_through_scan_and_vmap():
    """Outer loops map over seeds and scan over batches: the numbers are those of single steps."""
    data, network = make_data(), make_network(dropout=0.5)
    step, key = make_step(network, OPTIMIZER, RULE), jax.random.key(0)
    expected, last = take_steps(network, 3, data=data)
    batches = jax.tree.map(lambda *leaves: jnp.stack(leaves), *data)
    start = TrainState.of(network, OPTIMIZER)
    state, info = jax.jit(
        lambda state: jax.lax.scan(lambda s, batch: step(s, batch, key), state, batches)
    )(start)
    assert int(state.step) == 3
    assert float(info.energy[-1]) == pytest.approx(float(last.energy), rel=1e-5)
    for got, want in zip(
        jax.tree.leaves(state.network.parameters),
        jax.tree.leaves(expected.network.parameters),
        strict=True,
    ):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    # two seeds at once, from networks made under vmap
    keys, batch = jax.random.split(key, 2), next(iter(data))
    many = jax.vmap(lambda _: TrainState.of(make_network(dropout=0.5), OPTIMIZER))(jnp.arange(2))
    _, infos = jax.vmap(step, (0, None, 0))(many, batch, keys)
    alone = [float(step(start, batch, one)[1].energy) for one in keys]
    np.testing.assert_allclose(infos.energy, alone, rtol=1e-5)
    assert alone[0] != alone[1]


def test_layers_come_in_the_networks_order():
    """A step that is within no other program; jax sorts by name, here the other way round."""
    rngs = nnx.Rngs(0)
    network = pc.PCNetwork(
        {
            "zeta": pc.PCDense(3, 5, rngs=rngs),
            "alpha": pc.PCDense(5, 4, rngs=rngs),
            "mid": pc.PCDense(4, 2, rngs=rngs),
        }
    )
    _, info = take_steps(network, 1, data=make_data())
    assert list(info.energies) == list(info.activities) == ["zeta", "alpha", "mid"]
    assert [activity.shape[1] for activity in info.activities.values()] == [5, 4, 2]


def test_states_and_objects_share_no_arrays():
    """A donated state would otherwise take the network's parameters with it."""
    data, network = make_data(), make_network()
    step = jax.jit(make_step(network, OPTIMIZER, RULE), donate_argnums=0)
    state, key = TrainState.of(network, OPTIMIZER), jax.random.key(0)
    for batch in data:
        state.write_to(network)
        state, _ = step(state, batch, key)
        parameters_of(network)  # raises where a buffer was deleted


def test_a_step_that_is_not_finite_is_told_and_not_applied():
    network = make_network()
    step, state = make_step(network, OPTIMIZER, RULE), TrainState.of(network, OPTIMIZER)
    batch = Evidence(jnp.full((4, 3), jnp.nan), jnp.zeros((4, 2)))
    new, info = step(state, batch, jax.random.key(0))
    assert not info.finite
    assert int(new.step) == 0
    for after, before in zip(jax.tree.leaves(new), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(after, before)


def value_keeper():
    """An optax transformation whose state is the value that it was given last."""
    return optax.GradientTransformationExtraArgs(
        lambda parameters: jnp.float32(0),
        lambda updates, state, parameters=None, *, value, **more: (updates, value),
    )


@pytest.mark.parametrize(
    "rule",
    [RULE, pc.learning.Backprop(), pc.learning.IncrementalPC(RULE.inference)],
    ids=["PredictiveCoding", "Backprop", "IncrementalPC"],
)
def test_transformations_that_want_the_value_get_the_batch_mean_energy(rule):
    """Rates that fall on a plateau go by it."""
    optimizer = optax.chain(optax.sgd(0.01), value_keeper())
    state, info = take_steps(make_network(), 2, data=make_data(), optimizer=optimizer, rule=rule)
    assert float(state.optimizer_state[1]) == pytest.approx(float(info.energy), rel=1e-6)


def test_an_optimizer_that_wants_more_is_refused_before_training():
    with pytest.raises(TypeError, match="make_step|Trainer"):
        make_step(make_network(), "adam", RULE)
    for make in (
        lambda: make_step(make_network(), optax.lbfgs(), RULE),
        lambda: pc.Trainer(make_network(), optax.lbfgs(), learning=RULE, progress=False),
    ):
        with pytest.raises(TypeError, match=r"value_fn.*take one without a line search"):
            make()
    fast = optax.lookahead(optax.sgd(0.1), 3, 0.5)  # wants parameters of a kind of its own
    alone = optax.contrib.sam(
        optax.sgd(0.1), optax.sgd(0.1)
    )  # says that it takes a value, and does not
    for optimizer, told in ((fast, "attribute 'fast'"), (alone, "argument 'value'")):
        with pytest.raises(
            TypeError, match=f"cannot update this network's .*{told}.*; take another"
        ):
            make_step(make_network(), optimizer, RULE)


def test_gradients_accumulate_over_steps_by_multi_steps():
    """Two steps on halves of a batch are one step on the whole: w - 0.1 * the mean gradient."""
    whole, halves = make_network(), make_network()
    rule, data = pc.learning.Backprop(), make_data(examples=8, batch_size=8)
    take_steps(whole, 1, data=data, optimizer=optax.sgd(0.1), rule=rule)[0].write_to(whole)
    optimizer = optax.MultiSteps(optax.sgd(0.1), 2)
    trainer = pc.Trainer(halves, optimizer, learning=rule, progress=False)
    trainer.fit(make_data(examples=8, batch_size=4), num_steps=2)
    for got, expected in zip(parameters_of(halves), parameters_of(whole), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_a_step_computes_each_product_once_and_none_that_nobody_reads():
    """Matrix products of the compiled step of a chain of L layers, counted in its program.

    The start predicts L layers. A step of inference predicts L - 1 (the first one's input stands still) and
    takes L - 1 errors down. Then L - 1 predictions at the inferred activities and L products for the
    weights: energies and residual after the last step cost nothing, as nobody looks at them.
    """
    layers = 4
    network = pc.models.mlp(12, 16, 20, 24, 10, activation=jnp.tanh, rngs=nnx.Rngs(0))
    rule = pc.learning.PredictiveCoding(pc.inference.GradientDescent(0.1, num_steps=20))
    optimizer = optax.adam(1e-3)
    step = pc.training.make_step(network, optimizer, rule)
    state = pc.training.TrainState.of(network, optimizer)
    batch = Evidence(jnp.ones((8, 12)), jnp.ones((8, 10)))
    text = jax.jit(step).lower(state, batch, jax.random.key(0)).compile().as_text()
    assert text.count(" while(") == 1
    assert text.count(" dot(") == layers + 2 * (layers - 1) + (layers - 1) + layers
