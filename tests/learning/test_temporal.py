"""Learning along sequences. Oracle: two and more steps written out in NumPy, z_t = A z_{t-1} + B u_t."""

import jax
import jax.numpy as jnp
import lineax
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc

pytestmark = pytest.mark.slow

EXACT = pc.inference.LinearSolve(lineax.Cholesky())
FEW = pc.inference.GradientDescent(0.1, num_steps=4)
RANDOM = np.random.default_rng(0)
U, X = RANDOM.normal(size=(5, 6, 1)), RANDOM.normal(size=(5, 6, 4))
LENGTHS = np.array([6, 2, 1, 4, 6])
KNOWN = np.arange(6) < LENGTHS[:, None]


def model(**options):
    """In 64 bits where jax has them."""
    network = pc.models.temporal(2, 4, controls=1, rngs=nnx.Rngs(0), **options)
    for _, parameter in nnx.to_flat_state(nnx.state(network, nnx.Param)):
        parameter.set_value(parameter[...].astype(jnp.result_type(float)))
    return network


def matrices(network):
    layers = network.layer("z"), network.layer("x")
    kernels = (layers[0].recurrent, layers[0].control, layers[1].linear)
    return [np.asarray(kernel.kernel[...], np.float64) for kernel in kernels]


def by_hand(a, b, c, u, x, z, weights):
    """One step: the equilibrium z, its energies, and the gradients of the weighted batch mean."""
    mu = z @ a + u @ b
    new = mu + (x - mu @ c) @ c.T @ np.linalg.inv(np.eye(len(a)) + c @ c.T)
    e_z, e_x = new - mu, x - new @ c
    w = weights[:, None] / len(x)
    gradients = [-z.T @ (w * e_z), -u.T @ (w * e_z), -new.T @ (w * e_x)]
    return new, (e_z**2).sum(1) / 2, (e_x**2).sum(1) / 2, gradients


def along_by_hand(network, u, x, counts, start=0.0, rate=None):
    """Energies and summed gradients of all steps; with a rate, weights that move at each."""
    a, b, c = matrices(network)
    z, total = np.full((len(x), len(a)), start), [np.zeros_like(m) for m in (a, b, c)]
    energies = np.zeros((2, len(x)))
    for t in range(x.shape[1]):
        z, of_z, of_x, gradients = by_hand(a, b, c, u[:, t], x[:, t], z, counts[:, t] * 1.0)
        energies += np.where(counts[:, t], [of_z, of_x], 0)
        total = [m + g for m, g in zip(total, gradients, strict=True)]
        if rate is not None:
            a, b, c = (m - rate * g for m, g in zip((a, b, c), gradients, strict=True))
    return energies, total, [a, b, c]


def updated(network, rule, evidence, rate=1.0, optimizer=None):
    optimizer = optax.sgd(rate) if optimizer is None else optimizer
    pure = pc.networks.split(network)
    state = optimizer.init(pure.parameters)
    new, _, info = jax.jit(
        lambda pure, evidence: rule.update(pure, optimizer, state, evidence, key=jax.random.key(0))
    )(pure, evidence)
    pc.networks.write(network, new.parameters)
    return matrices(network), info


@pytest.mark.parametrize("every", ["sequence", "step"])
@pytest.mark.parametrize("ends", ["together", "early"])
def test_energies_and_updates_are_those_by_hand(every, ends, double):
    """Also that the filling of short sequences has no influence: here it is NaN."""
    counts = KNOWN if ends == "early" else np.ones_like(KNOWN)
    u, x = (np.where(counts[..., None], values, 0) for values in (U, X))
    network, rule = model(), pc.learning.Temporal(EXACT, every=every)
    rate = 0.3 if every == "step" else None
    energies, total, moved = along_by_hand(network, u, x, counts, rate=rate)
    before = matrices(network)
    filled = [np.where(counts[..., None], values, np.nan) for values in (U, X)]
    targets = pc.Clamp(filled[1], counts[..., None]) if ends == "early" else X
    found, info = updated(network, rule, pc.Evidence(filled[0], targets), 0.3)
    if every == "sequence":
        moved = [m - 0.3 * g for m, g in zip(before, total, strict=True)]
    for got, expected in zip(found, moved, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(info.energies["z"], energies[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(info.energies["x"], energies[1], rtol=1e-9, atol=1e-12)
    assert info.activities["z"].shape == (5, 6, 2)


def test_what_is_known_of_the_time_before_is_where_it_begins(double):
    network = model()
    _, total, _ = along_by_hand(network, U, X, np.ones_like(KNOWN), start=0.7)
    before = matrices(network)
    inputs = {"u": U, "z@-1": np.full((5, 2), 0.7)}
    found, _ = updated(network, pc.learning.Temporal(EXACT), pc.Evidence(inputs, X))
    for got, start, gradient in zip(found, before, total, strict=True):
        np.testing.assert_allclose(got, start - gradient, rtol=1e-9, atol=1e-12)


def test_weights_of_examples_count_their_sequences(double):
    """Weights of 0 and 5/2: the mean over the two that count, of a batch of five."""
    rule, weights = pc.learning.Temporal(EXACT), np.array([2.5, 0, 0, 2.5, 0])
    some, _ = updated(model(), rule, pc.Evidence(U, X, weights=weights))
    two, _ = updated(model(), rule, pc.Evidence(U[[0, 3]], X[[0, 3]]))
    for got, expected in zip(some, two, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_momentum_stands_still_where_no_sequence_goes_on():
    """Two steps and four of filling are two steps, in Adam's count, too."""
    rule, known = pc.learning.Temporal(FEW, every="step"), np.broadcast_to(np.arange(6) < 2, (5, 6))
    u, x = U.astype("f"), X.astype("f")
    filled = pc.Evidence(u, pc.Clamp(x, known[..., None].copy()))
    long, _ = updated(model(), rule, filled, optimizer=optax.adam(0.1))
    short, _ = updated(model(), rule, pc.Evidence(u[:, :2], x[:, :2]), optimizer=optax.adam(0.1))
    for got, expected in zip(long, short, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("every", ["sequence", "step"])
def test_training_resumes_exactly(every, tmp_path):
    x = np.where(KNOWN[..., None], X, np.nan)
    data = pc.data.from_sequences(U, x, lengths=LENGTHS, batch_size=2)

    def trainer(folder):
        return pc.Trainer(
            model(activation=jnp.tanh),
            optax.adam(0.01),
            learning=pc.learning.Temporal(FEW, every=every),
            checkpoints=pc.Checkpoints(tmp_path / folder, activities=True),
            progress=False,
        )

    whole, first, second = trainer("whole"), trainer("parts"), trainer("parts")
    whole.fit(data, num_steps=4)
    first.fit(data, num_steps=2)
    second.restore()
    second.fit(data, num_steps=4)
    for left, right in zip(
        jax.tree.leaves(nnx.state(whole.network)),
        jax.tree.leaves(nnx.state(second.network)),
        strict=True,
    ):
        np.testing.assert_array_equal(left, right)
    assert whole.evaluate(data) == second.evaluate(data)


def test_the_trainer_measures_what_the_past_predicts_of_known_steps():
    """The default reading is the forecast; a step that is not known counts in no metric."""
    network = model()
    x = np.where(KNOWN[..., None], X, np.nan).astype("f")
    data = pc.data.from_sequences(U.astype("f"), x, lengths=LENGTHS, batch_size=5)
    trainer = pc.Trainer(
        network, optax.sgd(0.0), learning=pc.learning.Temporal(EXACT), progress=False
    )
    a, b, c = matrices(network)
    z, errors = np.zeros((5, 2)), []
    for t in range(6):
        mu = z @ a + U[:, t] @ b
        errors.append(((X[:, t] - mu @ c) ** 2).mean(1))
        z = by_hand(a, b, c, U[:, t], X[:, t], z, np.ones(5))[0]
    errors = np.where(KNOWN, np.stack(errors, 1), 0).sum(1) / LENGTHS
    assert trainer.evaluate(data)["squared_error"] == pytest.approx(errors.mean(), rel=1e-4)
    history = trainer.fit(data, num_steps=1, log_every=1)
    assert history["train/squared_error"][0] == pytest.approx(errors.mean(), rel=1e-4)


def test_labels_at_each_step_are_learned_from_sequences_that_end_early():
    random = np.random.default_rng(0)
    inputs, labels = random.normal(size=(8, 5, 3)).astype("f"), random.integers(0, 4, (8, 5))
    rngs = nnx.Rngs(0)
    network = pc.PCGraph(
        {
            "z": pc.PCDense(5, 2, activation=jnp.tanh, rngs=rngs),
            "label": pc.PCDense(2, 4, energy=pc.energies.Categorical(), rngs=rngs),
        },
        parents={"z": pc.networks.Concatenate("x", pc.networks.Previous("z")), "label": "z"},
        inputs={"x": 3},
        output="label",
    )
    data = pc.data.from_sequences(
        inputs, labels, lengths=[5, 5, 3, 2, 1, 5, 4, 5], num_classes=4, batch_size=4
    )
    rule = pc.learning.Temporal(pc.learning.IncrementalPC(FEW), every="step")
    trainer = pc.Trainer(network, optax.adam(0.01), learning=rule, progress=False)
    before = trainer.evaluate(data)
    trainer.fit(data, epochs=40)
    after = trainer.evaluate(data)
    assert list(after) == ["accuracy", "perplexity", "energy"]
    assert after["perplexity"] < 0.9 * before["perplexity"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0.1,), TypeError, "Temporal expected rule"),
        ((EXACT, "week"), ValueError, "every='sequence' or every='step', got 'week'"),
        ((pc.learning.IncrementalPC(FEW),), ValueError, "IncrementalPC moves the weights itself"),
        (
            (pc.learning.PredictiveCoding(FEW, initializer=pc.initializers.Persistent()),),
            ValueError,
            "keeps no starts of examples",
        ),
    ],
)
def test_wrong_settings_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        pc.learning.Temporal(*arguments)


def test_normalizations_over_the_batch_are_refused():
    class Normed(pc.PCDense):
        def __init__(self, rngs):
            super().__init__(2, 2, rngs=rngs)
            self.normal = nnx.BatchNorm(2, rngs=rngs)

        def predict(self, z):
            return self.normal(super().predict(z))

    network = pc.PCGraph(
        {"z": Normed(nnx.Rngs(0))}, parents={"z": pc.networks.Previous("z")}, output="z"
    )
    with pytest.raises(ValueError, match="whose statistics are another at each step of time"):
        pc.Trainer(network, optax.sgd(0.1), learning=pc.learning.Temporal(FEW))


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (
            U[:, 0],
            X,
            r"'u' of shape \(batch, time, features\), got \(5, 1\): a sequence without time",
        ),
        (U[:, :3], X, r"'u' has \(batch, time\) \(5, 3\) but the target 'x' \(5, 6\); give both"),
        ({"u": U, "z@-1": np.ones((5, 3))}, X, r"of shape \(5, 2\), got \(5, 3\); give one row"),
    ],
)
def test_sequences_that_do_not_fit_are_refused(inputs, targets, message):
    with pytest.raises(ValueError, match=message):
        updated(model(), pc.learning.Temporal(FEW), pc.Evidence(inputs, targets))


def test_a_rule_that_counts_all_alike_takes_no_sequences_that_end_early():
    class Alike(pc.learning.PredictiveCoding):
        weighs_examples = False

    evidence = pc.Evidence(U, pc.Clamp(X, KNOWN[..., None]))
    with pytest.raises(ValueError, match="some sequences end early, but Alike counts all steps"):
        updated(model(), pc.learning.Temporal(Alike(FEW)), evidence)
