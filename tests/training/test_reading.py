"""Readings: what is asked is hidden, what is read is what inference finds, and metrics compare it.

Oracles: closed forms of linear Gaussian networks, and `network.infer` example by example.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcflax as pc

pytestmark = pytest.mark.slow

NEWTON = pc.inference.NewtonCG(num_steps=4)
DESCENT = pc.inference.GradientDescent(0.1, num_steps=30)


def generator(seed=0, prior=1.0):
    """Z of 3 with a prior, x = W z + b of 5."""
    root = pc.PCRoot(3, energy=pc.energies.Gaussian(prior))
    return pc.PCNetwork({"label": root, "image": pc.PCDense(3, 5, rngs=nnx.Rngs(seed))})


def posterior_mean(network, images, prior=1.0):
    """argmin_z prior/2 |z|^2 + 1/2 |x - z W - b|^2."""
    linear = network.layers["image"].linear
    weights, bias = np.asarray(linear.kernel[...], np.float64), np.asarray(linear.bias[...])
    precision = prior * np.eye(3) + weights @ weights.T
    return np.linalg.solve(precision, weights @ (images - bias).T).T


def trainer_of(network, **options):
    rule = pc.learning.PredictiveCoding(DESCENT)
    return pc.Trainer(network, optax.sgd(0.01), learning=rule, progress=False, **options)


@pytest.fixture(scope="module")
def arrays():
    random = np.random.default_rng(0)
    labels = np.eye(3, dtype=np.float32)[random.integers(3, size=10)]
    return labels, random.normal(size=(10, 5)).astype(np.float32)


def data_of(labels, images, batch_size=4, **options):
    return pc.data.from_arrays(labels, images, batch_size=batch_size, shuffle=False, **options)


class TestEquilibrium:
    def test_a_hidden_root_is_inferred_as_the_posterior_mean(self, arrays):
        labels, images = arrays
        network = generator()
        reading = pc.Equilibrium(NEWTON, read="label")
        trainer = trainer_of(network, reads=reading, metrics={"error": pc.metrics.squared_error})
        expected = posterior_mean(network, images)
        data = data_of(labels, images)
        np.testing.assert_allclose(trainer.predict(data), expected, atol=1e-5)
        found = trainer.evaluate(data)
        np.testing.assert_allclose(found["error"], np.mean((expected - labels) ** 2), rtol=1e-5)
        linear = network.layers["image"].linear
        residual = images - expected @ np.asarray(linear.kernel[...])
        energy = 0.5 * (expected**2).sum(1) + 0.5 * (residual**2).sum(1)
        np.testing.assert_allclose(found["energy"], energy.mean(), rtol=1e-5)

    def test_the_answer_does_not_depend_on_what_is_hidden(self, arrays):
        labels, images = arrays
        trainer = trainer_of(generator(), reads=pc.Equilibrium(NEWTON, read="label"))
        told = trainer.predict(data_of(labels, images))
        other = trainer.predict(data_of(labels[::-1].copy() * 7, images))
        np.testing.assert_array_equal(told, other)

    def test_evidence_is_predicted_from_as_a_data_set_is(self, arrays):
        labels, images = arrays
        trainer = trainer_of(generator(), reads=pc.Equilibrium(NEWTON, read="label"))
        found = trainer.predict(pc.Evidence(labels, images), batch_size=4)
        np.testing.assert_allclose(found, trainer.predict(data_of(labels, images)), atol=1e-6)

    def test_the_batch_size_changes_nothing_but_rounding(self, arrays):
        trainer = trainer_of(generator(), reads=pc.Equilibrium(NEWTON, read="label"))
        few, many = (trainer.evaluate(data_of(*arrays, batch_size=size)) for size in (3, 10))
        assert few.keys() == many.keys() == {"squared_error", "energy"}
        for name in few:
            np.testing.assert_allclose(few[name], many[name], rtol=1e-5)

    def test_hidden_elements_alone_are_filled_in(self, arrays):
        _, images = arrays
        network = generator()
        mask = np.array([False, False, False, True, True])
        reading = pc.Equilibrium(NEWTON, read="image", hide={"image": mask})
        found = trainer_of(network, reads=reading).predict(pc.Evidence(targets=images))
        np.testing.assert_array_equal(found[:, :3], images[:, :3])
        # free elements stand at their prediction, so the code is the posterior given the others
        linear = network.layers["image"].linear
        weights, bias = np.asarray(linear.kernel[...]), np.asarray(linear.bias[...])
        seen = weights[:, :3]
        codes = np.linalg.solve(np.eye(3) + seen @ seen.T, seen @ (images - bias)[:, :3].T).T
        np.testing.assert_allclose(found[:, 3:], codes @ weights[:, 3:] + bias[3:], atol=1e-4)

    @pytest.mark.parametrize("shape", [(5,), (1, 5), (10, 1), (10, 5), ()], ids=str)
    @pytest.mark.parametrize("batch_size", [1, 4, 5])
    def test_a_mask_that_broadcasts_is_cut_with_its_values(self, arrays, shape, batch_size):
        """Cut by rows as it stands, a mask of one example's elements holds others in each batch."""
        images = arrays[1]
        mask = np.random.default_rng(3).random(shape) > 0.4
        trainer = trainer_of(generator(), reads=pc.Equilibrium(NEWTON, read="label"))
        found = [
            trainer.predict(pc.Evidence(targets=pc.Clamp(images, each)), batch_size=batch_size)
            for each in (mask, np.broadcast_to(mask, images.shape))
        ]
        np.testing.assert_array_equal(*found)

    def test_metrics_of_the_hidden_elements_alone(self, arrays):
        """The mean over these by hand, with a mask for each example as well."""
        _, images = arrays
        shared = np.array([False, False, False, True, True])
        each = np.random.default_rng(1).random((10, 5)) > 0.5
        each[0] = False  # of which nothing is hidden: it does not count
        for mask in (shared, each):
            reading = pc.Equilibrium(NEWTON, read="image", hide={"image": mask}, hidden_only=True)
            trainer = trainer_of(generator(), reads=reading)
            data = data_of(None, images, batch_size=10)
            found = trainer.predict(data)
            assert found.shape == images.shape
            hidden = np.broadcast_to(mask, images.shape)
            expected = [
                np.mean((row - image)[m] ** 2)
                for row, image, m in zip(found, images, hidden, strict=True)
                if m.any()
            ]
            error = trainer.evaluate(data)["squared_error"]
            np.testing.assert_allclose(error, np.mean(expected), rtol=1e-5)
            whole = pc.Equilibrium(NEWTON, read="image", hide={"image": mask})
            all_of = trainer.evaluate(data, reads=whole)["squared_error"]
            np.testing.assert_allclose(all_of, np.mean((found - images) ** 2), rtol=1e-5)
        for wrong in ({"hide": ("image",)}, {"hide": {"label": shared}}, {}):
            with pytest.raises(ValueError, match="compares hidden elements alone, so it reads one"):
                pc.Equilibrium(NEWTON, read="image", hidden_only=True, **wrong)

    def test_several_nodes_are_read_by_name_and_measured_by_name(self, arrays):
        labels, images = arrays
        data = data_of(labels, images, clamps={"hidden": np.ones((10, 4), np.float32)})
        rngs = nnx.Rngs(0)
        network = pc.PCNetwork(
            {
                "label": pc.PCRoot(3),
                "hidden": pc.PCDense(3, 4, rngs=rngs),
                "image": pc.PCDense(4, 5, rngs=rngs),
            }
        )
        trainer = trainer_of(
            network,
            reads=pc.Equilibrium(NEWTON, read=("label", "hidden")),
            metrics={
                "label": {"accuracy": pc.metrics.accuracy},
                "hidden": {"error": pc.metrics.squared_error},
            },
        )
        found = trainer.evaluate(data)
        assert list(found) == ["label/accuracy", "hidden/error", "energy"]
        read = trainer.predict(data)
        result = pc.PCNetwork.infer(network, None, jnp.asarray(images), inference=NEWTON)
        for name in ("label", "hidden"):
            np.testing.assert_allclose(read[name], result.activities[name], atol=1e-5)
        correct = np.argmax(read["label"], 1) == np.argmax(labels, 1)
        np.testing.assert_allclose(found["label/accuracy"], correct.mean(), rtol=1e-6)
        np.testing.assert_allclose(
            found["hidden/error"], np.mean((read["hidden"] - 1) ** 2), rtol=1e-5
        )

    def test_a_stacks_layer_is_read_by_its_nodes_name(self, arrays):
        _, images = arrays
        rngs = nnx.Rngs(0)
        network = pc.PCNetwork(
            {
                "label": pc.PCRoot(5),
                "hidden": pc.PCStack([pc.PCDense(5, 5, rngs=rngs) for _ in range(3)]),
            }
        )
        reading = pc.Equilibrium(NEWTON, read="hidden/1", hide=())
        found = trainer_of(network, reads=reading, metrics={}).predict(pc.Evidence(targets=images))
        result = network.infer(None, jnp.asarray(images), inference=NEWTON)
        np.testing.assert_allclose(found, result.activities["hidden"][:, 1], atol=1e-5)

    def test_examples_whose_answer_is_not_known_do_not_count(self, arrays):
        labels, images = arrays
        known = np.arange(10) < 6
        clamps = {"label": (labels, known[:, None])}
        data = pc.data.from_arrays(None, images, clamps=clamps, batch_size=4, shuffle=False)
        reading = pc.Equilibrium(NEWTON, read="label")
        metrics = {"accuracy": pc.metrics.accuracy}
        network = generator()
        trainer = trainer_of(network, reads=reading, metrics=metrics)
        correct = np.argmax(posterior_mean(network, images), 1) == np.argmax(labels, 1)
        np.testing.assert_allclose(
            trainer.evaluate(data)["accuracy"], correct[:6].mean(), rtol=1e-6
        )

    def test_a_sampler_draws_the_same_at_every_evaluation(self, arrays):
        sampler = pc.inference.Langevin(0.05, burn_in=5)
        trainer = trainer_of(generator(), reads=pc.Equilibrium(sampler, read="label"))
        data = data_of(*arrays)
        first, second = trainer.predict(data), trainer.predict(data)
        np.testing.assert_array_equal(first, second)
        assert np.ptp(first, axis=0).min() > 0

    def test_the_share_that_converged_is_measured_where_there_is_a_tolerance(self, arrays):
        settle = pc.inference.GradientDescent(0.1, tolerance=1e-3, max_steps=500)
        trainer = trainer_of(generator(), reads=pc.Equilibrium(settle, read="label"))
        assert trainer.evaluate(data_of(*arrays))["converged"] == 1.0
        hasty = pc.inference.GradientDescent(0.1, tolerance=1e-6, max_steps=1)
        reads = pc.Equilibrium(hasty, read="label")
        assert trainer.evaluate(data_of(*arrays), reads=reads)["converged"] == 0.0

    def test_the_best_checkpoint_is_chosen_by_what_is_inferred(self, arrays, tmp_path):
        trainer = trainer_of(
            generator(),
            reads=pc.Equilibrium(NEWTON, read="label"),
            metrics={"label": {"error": pc.metrics.squared_error}},
            checkpoints=pc.Checkpoints(tmp_path, every=1, keep_best=("eval/label/error", "min")),
        )
        data = data_of(*arrays)
        history = trainer.fit(data, num_steps=4, eval_data=data, eval_every=1)
        assert "train/label/error" not in history.names()
        best = int(np.argmin(history["eval/label/error"])) + 1
        assert trainer.restore(best=True) == best
        assert trainer.evaluate(data)["label/error"] == min(history["eval/label/error"])

    def test_dropout_is_of_training_only(self, arrays):
        _, images = arrays
        root = pc.PCRoot(3)
        layer = pc.PCDense(3, 5, dropout=0.5, rngs=nnx.Rngs(0))
        network = pc.PCNetwork({"label": root, "image": layer})
        trainer = trainer_of(network, reads=pc.Equilibrium(NEWTON, read="label", hide=()))
        np.testing.assert_allclose(
            trainer.predict(pc.Evidence(targets=images)), posterior_mean(network, images), atol=1e-5
        )


class TestReconstruction:
    def test_it_reads_what_the_inferred_code_predicts(self, arrays):
        _, images = arrays
        network = generator()
        trainer = trainer_of(network, reads=pc.Reconstruction(NEWTON))
        linear = network.layers["image"].linear
        kernel, bias = np.asarray(linear.kernel[...]), np.asarray(linear.bias[...])
        expected = posterior_mean(network, images) @ kernel + bias
        data = data_of(None, images)
        np.testing.assert_allclose(trainer.predict(data), expected, atol=1e-5)
        error = trainer.evaluate(data)["squared_error"]
        np.testing.assert_allclose(error, np.mean((expected - images) ** 2), rtol=1e-4)

    def test_a_bernoulli_nodes_mean_is_compared_and_its_logits_are_read(self):
        rngs = nnx.Rngs(0)
        layer = pc.PCDense(3, 5, energy=pc.energies.Bernoulli(), rngs=rngs)
        network = pc.PCNetwork({"label": pc.PCRoot(3), "image": layer})
        images = (np.random.default_rng(0).random((6, 5)) > 0.5).astype(np.float32)
        trainer = trainer_of(network, reads=pc.Reconstruction(DESCENT))
        logits = trainer.predict(pc.Evidence(targets=images))
        error = trainer.evaluate(data_of(None, images, batch_size=6))["squared_error"]
        np.testing.assert_allclose(
            error, np.mean((jax.nn.sigmoid(logits) - images) ** 2), rtol=1e-5
        )


class TestRefusals:
    @pytest.mark.parametrize(
        ("reads", "message"),
        [
            (pc.Equilibrium(NEWTON, read="lable"), "no layer 'lable'.*did you mean 'label'"),
            (
                pc.Equilibrium(NEWTON, read="image", hide=("label",)),
                "'image' is read and clamped at once",
            ),
            (pc.Equilibrium(NEWTON, read=("label", "image")), "nothing is known"),
            (
                pc.Equilibrium(NEWTON, read="image", hide={"image": np.ones(4, bool)}),
                r"mask of shape \(4,\), but one example has \(5,\)",
            ),
            (pc.Equilibrium(NEWTON, read="image", hide=("imag",)), "no layer 'imag'"),
            (pc.Reconstruction(NEWTON, node="imag"), "no layer 'imag'"),
        ],
    )
    def test_a_wrong_question_gets_one_sentence(self, reads, message, arrays):
        trainer = trainer_of(generator())
        with pytest.raises(ValueError, match=message):
            trainer.evaluate(data_of(*arrays), reads=reads)

    def test_a_pass_upward_from_nothing_determines_no_answer(self, arrays):
        """All examples would get the prior's prediction."""
        _, images = arrays
        trainer = trainer_of(generator())
        for ask in (
            lambda: trainer.evaluate(data_of(None, images)),
            lambda: trainer.predict(data_of(None, images)),
            lambda: trainer.predict(pc.Evidence(targets=images)),
            lambda: trainer.fit(
                data_of(None, images), num_steps=1, eval_data=data_of(None, images)
            ),
        ):
            with pytest.raises(
                ValueError, match=r"no evidence determines an answer.*Reconstruction"
            ):
                ask()
        history = trainer.fit(
            data_of(None, images), num_steps=1
        )  # by inference, which has an answer
        layers = ["train/energy/image", "train/energy/label"]
        assert sorted(history.names()) == ["train/energy", *layers, "train/loss"]

    def test_what_is_clamped_below_determines_a_pass(self, arrays):
        labels, images = arrays
        network = generator()
        asked = pc.Evidence(None, images, clamps={"label": labels})
        linear = network.layers["image"].linear
        expected = labels @ np.asarray(linear.kernel[...]) + np.asarray(linear.bias[...])
        np.testing.assert_allclose(trainer_of(network).predict(asked), expected, rtol=1e-5)

    def test_nothing_to_compare_with_is_told(self, arrays):
        _, images = arrays
        trainer = trainer_of(generator(), reads=pc.Equilibrium(NEWTON, read="label", hide=()))
        with pytest.raises(ValueError, match="the data say nothing of what Equilibrium reads"):
            trainer.evaluate(data_of(None, images))

    def test_an_outside_input_cannot_be_read(self):
        network = pc.PCNetwork([pc.PCDense(3, 5, rngs=nnx.Rngs(0))])
        data = data_of(np.ones((4, 3), np.float32), np.ones((4, 5), np.float32))
        trainer = trainer_of(network)
        with pytest.raises(ValueError, match="is an input from outside.*pc.PCRoot"):
            trainer.evaluate(data, reads=pc.Equilibrium(NEWTON, read="<inputs>"))

    def test_inference_that_diverges_is_told_and_not_read_as_class_0(self, arrays):
        wild = pc.Equilibrium(pc.inference.GradientDescent(50.0, num_steps=200), read="label")
        with pytest.raises(pc.NonFiniteEnergyError, match="not finite in 10 of 10 examples"):
            trainer_of(generator()).evaluate(data_of(*arrays), reads=wild)

    def test_a_prediction_that_diverges_is_told_too(self, arrays):
        wild = pc.Equilibrium(pc.inference.GradientDescent(50.0, num_steps=200), read="label")
        trainer = trainer_of(generator(), reads=wild)
        for asked in (data_of(*arrays), pc.Evidence(targets=arrays[1])):
            with pytest.raises(pc.NonFiniteEnergyError, match="not finite in"):
                trainer.predict(asked)

    def test_a_mask_that_hides_nothing_is_refused(self):
        with pytest.raises(ValueError, match="hides no element of 'image'"):
            pc.Equilibrium(NEWTON, hide={"image": np.zeros(5, bool)})

    def test_what_is_no_reading_or_no_mask_is_refused(self):
        with pytest.raises(TypeError, match="expected reads such as pc.Equilibrium"):
            trainer_of(generator(), reads=NEWTON)
        with pytest.raises(TypeError, match="expected a Boolean array"):
            pc.Equilibrium(NEWTON, hide={"image": np.ones(5)})
        with pytest.raises(TypeError, match="Equilibrium expected an inference"):
            pc.Equilibrium(0.1)

    def test_a_metric_of_a_node_that_is_not_read_is_refused(self, arrays):
        trainer = trainer_of(
            generator(),
            reads=pc.Equilibrium(NEWTON, read=("label",)),
            metrics={"image": {"error": pc.metrics.squared_error}},
        )
        with pytest.raises(ValueError, match="metric of node 'image', but what is read is label"):
            trainer.evaluate(data_of(*arrays))

    @pytest.mark.parametrize(
        ("node", "message"),
        [
            ("lable", "did you mean 'label'"),
            ("image", "of node 'image', which Equilibrium does not"),
        ],
    )
    def test_a_metric_of_another_node_than_the_one_that_is_read_is_refused(
        self, node, message, arrays
    ):
        metrics = {node: {"accuracy": pc.metrics.accuracy}}
        trainer = trainer_of(
            generator(), reads=pc.Equilibrium(NEWTON, read="label"), metrics=metrics
        )
        with pytest.raises(ValueError, match=message):
            trainer.evaluate(data_of(*arrays))


class TestCode:
    def test_a_reconstruction_of_a_layer_of_a_stack_is_of_that_layer(self):
        """The prediction of the lowest of three layers, from the code, by hand."""
        rngs = nnx.Rngs(0)

        def dense():
            return pc.PCDense(3, 3, activation=jnp.tanh, rngs=rngs)

        network = pc.PCNetwork(
            {"code": pc.PCRoot(3), "hidden": pc.PCStack(dense, 3), "top": dense()}
        )
        seen = jnp.asarray(np.random.RandomState(0).normal(size=(4, 3)), jnp.float32)
        evidence = pc.Evidence(clamps={"hidden/0": pc.Clamp(seen)})
        newton = pc.inference.NewtonCG(num_steps=4)
        reading = pc.Reconstruction(newton, node="hidden/0", code="code")
        found = pc.training.answer(network, evidence, reading)
        code = network.infer(clamps={"hidden/0": seen}, inference=newton).activities["code"]
        np.testing.assert_allclose(
            found.values, network.layers["hidden"].layer_at(0).predict(code), atol=1e-5
        )

    def test_a_reconstruction_from_the_code_leaves_the_errors_between_out(self):
        """The code is the Newton solution's; the prediction is that of the network from it."""
        network = pc.models.decoder(2, 6, 5, rngs=nnx.Rngs(0), prior=pc.energies.Gaussian(0.1))
        images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5)), jnp.float32)
        evidence, newton = pc.Evidence(targets=images), pc.inference.NewtonCG(num_steps=10)
        full = pc.training.answer(network, evidence, pc.Reconstruction(newton)).values
        found = pc.training.answer(network, evidence, pc.Reconstruction(newton, code="latent"))
        code = network.infer(None, images, inference=newton).activities["latent"]
        np.testing.assert_allclose(found.values, network.predict(code), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found.truth, images)
        assert ((full - images) ** 2).mean() < 0.9 * ((found.values - images) ** 2).mean()

    def test_a_code_that_is_given_or_unknown_is_refused(self):
        network = pc.models.decoder(2, 6, 5, rngs=nnx.Rngs(0))
        both = pc.Evidence(jnp.ones((4, 2)), jnp.ones((4, 5)))
        for name, message in (
            ("latent", "is given by the data"),
            ("latnet", "did you mean 'latent'"),
        ):
            reading = pc.Reconstruction(pc.inference.GradientDescent(0.1), code=name)
            with pytest.raises(ValueError, match=message):
                pc.training.answer(network, both, reading)
