"""Probes of representations, on features whose rank and separability are known."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pcflax as pc
from pcflax.analysis import (
    effective_rank,
    knn_probe,
    linear_probe,
    participation_ratio,
    representations,
)


def random(seed=0):
    return np.random.default_rng(seed)


class TestRanks:
    def test_equal_directions_are_counted(self):
        """An orthogonal basis of 4 of 10 dimensions, rotated: rank 4 by both."""
        basis = np.linalg.qr(random().normal(size=(10, 10)))[0][:, :4].T
        features = np.concatenate([basis, -basis])
        np.testing.assert_allclose(effective_rank(features), 4, rtol=1e-12)
        np.testing.assert_allclose(participation_ratio(features), 4, rtol=1e-12)

    def test_unequal_ones_count_by_their_formulas(self):
        s = np.array([3.0, 2.0, 1.0])
        features = np.concatenate([np.diag(s), -np.diag(s)])  # its mean is 0
        p = s / s.sum()
        np.testing.assert_allclose(effective_rank(features), np.prod(p**-p), rtol=1e-12)
        expected = (s**2).sum() ** 2 / (s**4).sum()
        np.testing.assert_allclose(participation_ratio(features), expected, rtol=1e-12)
        np.testing.assert_allclose(participation_ratio(features + 5), expected, rtol=1e-9)

    def test_refusals(self):
        with pytest.raises(ValueError, match="that vary"):
            participation_ratio(np.ones((3, 2)))
        with pytest.raises(ValueError, match="that vary"):
            participation_ratio(np.full((7, 3), 0.1))  # whose mean is rounded
        with pytest.raises(ValueError, match="expected finite features, got NaN or infinity"):
            effective_rank(np.full((3, 2), np.nan))
        with pytest.raises(ValueError, match=r"\(examples, features\), got \(3,\)"):
            effective_rank(np.ones(3))


class TestProbes:
    def test_a_line_and_a_checkerboard(self):
        """What a plane divides both find; of a checkerboard of two by two a plane knows nothing."""
        pytest.importorskip("sklearn")
        x = random().normal(size=(1200, 2))
        plane, board = x @ [1, -2] > 0, x[:, 0] * x[:, 1] > 0
        split = lambda labels: (x[:800], labels[:800], x[800:], labels[800:])  # noqa: E731
        assert linear_probe(*split(plane)) > 0.98
        assert knn_probe(*split(plane)) > 0.93
        assert 0.4 < linear_probe(*split(board)) < 0.6
        assert knn_probe(*split(board)) > 0.93
        assert knn_probe(*split(np.eye(2)[board.astype(int)])) == knn_probe(*split(board))

    def test_labels_in_a_column_are_refused(self):
        """As one-hot rows of one class all would be alike, and each guess right."""
        pytest.importorskip("sklearn")
        x, labels = random().normal(size=(50, 3)), random(1).integers(0, 4, (50, 1))
        for probe in (knn_probe, linear_probe):
            with pytest.raises(
                ValueError, match=r"labels of shape \(examples,\), or one-hot rows, got"
            ):
                probe(x, labels, x, labels)

    def test_one_neighbor_knows_what_it_has_seen(self):
        pytest.importorskip("sklearn")
        x, labels = random().normal(size=(50, 3)), random(1).integers(0, 4, 50)
        assert knn_probe(x, labels, x, labels, num_neighbors=1) == 1

    def test_without_scikit_learn_the_line_to_type_is_told(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "sklearn", None)
        with pytest.raises(ImportError, match=r"pip install 'pcflax\[probes\]'"):
            linear_probe(np.eye(2), [0, 1], np.eye(2), [0, 1])


class TestRepresentations:
    def test_of_several_inputs(self):
        rngs = nnx.Rngs(0)
        network = pc.PCGraph(
            {
                "h": pc.PCDense(5, 4, activation=jnp.tanh, rngs=rngs),
                "y": pc.PCDense(4, 2, rngs=rngs),
            },
            parents={"h": pc.networks.Concatenate("a", "b"), "y": "h"},
            inputs={"a": 3, "b": 2},
            output="y",
        )
        inputs = {
            name: random().normal(size=(7, n)).astype("f") for name, n in (("a", 3), ("b", 2))
        }
        whole = network.feedforward({name: jnp.asarray(value) for name, value in inputs.items()})
        for inference in (None, pc.inference.GradientDescent(0.1, num_steps=2)):
            found = representations(network, inputs, inference=inference, batch_size=3)
            np.testing.assert_allclose(found["h"], whole["h"], rtol=1e-5, atol=1e-7)

    def test_are_those_of_a_pass_or_of_inference(self):
        rngs = nnx.Rngs(0)
        network = pc.PCNetwork(
            {
                "s": pc.PCStack(lambda: pc.PCDense(3, 3, activation=jnp.tanh, rngs=rngs), 2),
                "y": pc.PCDense(3, 2, rngs=rngs),
            }
        )
        x, y = (random(seed).normal(size=(7, n)).astype(np.float32) for seed, n in ((0, 3), (1, 2)))
        passed, found = (
            network.feedforward(jnp.asarray(x)),
            representations(network, x, batch_size=3),
        )
        assert list(found) == ["s/0", "s/1", "y"]
        np.testing.assert_allclose(found["s/1"], passed["s"][:, 1], rtol=1e-6)
        descent = pc.inference.GradientDescent(0.1)
        inferred = network.infer(x, y, inference=descent).activities["s"]
        found = representations(network, x, y, inference=descent, batch_size=3)
        np.testing.assert_allclose(found["s/0"], inferred[:, 0], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(network.activities()["s"], inferred)  # these stay

    def test_a_code_is_inferred_from_the_images_of_a_decoder(self):
        network, images = pc.models.decoder(4, 8, 6, rngs=nnx.Rngs(0)), np.ones((5, 6), np.float32)
        found = representations(network, None, images, inference=pc.inference.GradientDescent(0.1))
        assert found["latent"].shape == (5, 4)
        with pytest.raises(ValueError, match="a pass want inputs and no targets"):
            representations(network, None, images)
