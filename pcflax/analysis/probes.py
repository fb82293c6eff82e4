"""Probes of representations: what can be read off a node's activities, and in how many dimensions they live.

Activities come from `representations`; the probes take any arrays. Linear and nearest-neighbor probes are
scikit-learn's, which `pip install 'pcflax[probes]'` brings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from pcflax.checks import expect_count, expect_number, wanting
from pcflax.networks import AbstractPCNetwork, split
from pcflax.typing import Inference, PRNGKey


def representations(
    network: AbstractPCNetwork,
    inputs: ArrayLike | Mapping[str, ArrayLike] | None = None,
    targets: ArrayLike | Mapping[str, ArrayLike] | None = None,
    *,
    inference: Inference | None = None,
    batch_size: int = 500,
    key: PRNGKey | None = None,
) -> dict[str, Float[np.ndarray, " examples features"]]:
    """Return the activities of all nodes for many examples, in batches, each as one row of features.

    Without an algorithm they are those of a feedforward pass; with one, those where inference ends, given
    what is clamped. Labels that a probe is to find belong in neither inputs nor targets.

    Args:
        network: its stored activities do not change.
        inputs: (examples, *features), {name: array} of several, or None with a root.
        targets: (examples, *out), such as the images of a generative network; with an algorithm only.
        inference: the algorithm, or None for a pass.
        batch_size: how many examples at once.
        key: randomness for what wants it.

    Returns:
        {node name: (examples, features)}; a stack's layers by their nodes' names.

    Raises:
        ValueError, TypeError: for targets without an algorithm, wrong shapes or dtypes.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> network = pc.models.mlp(3, 8, 4, rngs=nnx.Rngs(0))
    >>> {name: array.shape for name, array in pc.analysis.representations(network, jnp.ones((5, 3))).items()}
    {'hidden_1': (5, 8), 'output': (5, 4)}
    """
    if inference is None and (inputs is None or targets is not None):
        raise ValueError(
            "representations of a pass want inputs and no targets, which a pass does not look at; give "
            "inference=pc.inference.GradientDescent(...) to infer from targets"
        )
    expect_count("representations", "batch_size", batch_size, least=1)
    size = network.check_batch(inputs, targets)
    bound, kept = split(network).bind(), []  # a copy
    for start in range(0, size, batch_size):
        end = start + batch_size
        rows: Any = jax.tree.map(
            lambda array, start=start, end=end: jnp.asarray(array[start:end]), (inputs, targets)
        )
        if inference is None:
            activities = _feedforward(split(network), rows[0])
        else:
            own = None if key is None else jax.random.fold_in(key, start)
            activities = bound.infer(*rows, inference=inference, key=own).activities
        nodes = network.by_node(activities, lambda value, index: value[:, index])
        kept.append({name: np.asarray(value) for name, value in nodes.items()})
    return {
        name: np.concatenate([part[name].reshape(len(part[name]), -1) for part in kept])
        for name in kept[0]
    }


@jax.jit
def _feedforward(network, inputs):
    return network.bind().feedforward(inputs)


def linear_probe(
    features: ArrayLike,
    labels: ArrayLike,
    test_features: ArrayLike,
    test_labels: ArrayLike,
    *,
    penalty: float = 1.0,
) -> float:
    """Return the share of test labels that a linear classifier reads off the features.

    A logistic regression on features scaled to mean 0 and variance 1.

    Args:
        features: (examples, features) to learn from.
        labels: (examples,) whole numbers, or one-hot rows.
        test_features: as features, of other examples.
        test_labels: theirs.
        penalty: of the squared weights, 1/C of scikit-learn's, above 0.

    Raises:
        ImportError: without scikit-learn.
        ValueError: for arrays that do not fit each other.

    >>> import numpy as np, pcflax as pc
    >>> x = np.random.default_rng(0).normal(size=(200, 2))
    >>> y = x @ [1, 2] > 0  # a line divides them
    >>> pc.analysis.linear_probe(x[:100], y[:100], x[100:], y[100:]) > 0.95
    True
    """
    penalty = expect_number("linear_probe", "penalty", penalty, above=0)
    sklearn = _sklearn()
    model = sklearn.linear_model.LogisticRegression(C=1 / penalty, max_iter=1000)
    return _score(model, features, labels, test_features, test_labels)


def knn_probe(
    features: ArrayLike,
    labels: ArrayLike,
    test_features: ArrayLike,
    test_labels: ArrayLike,
    *,
    num_neighbors: int = 5,
) -> float:
    """Return the share of test labels that the nearest neighbors among the features vote for.

    Distances are Euclidean, on features scaled to mean 0 and variance 1.

    Args:
        features: (examples, features) to look among.
        labels: (examples,) whole numbers, or one-hot rows.
        test_features: as features, of other examples.
        test_labels: theirs.
        num_neighbors: how many vote.

    Raises:
        ImportError: without scikit-learn.
        ValueError: for arrays that do not fit each other.

    >>> import numpy as np, pcflax as pc
    >>> x = np.random.default_rng(0).normal(size=(400, 2))
    >>> y = (x**2).sum(axis=1) > 1  # a circle divides them, and no line does
    >>> arrays = x[:300], y[:300], x[300:], y[300:]
    >>> pc.analysis.knn_probe(*arrays) > 0.9 > pc.analysis.linear_probe(*arrays)
    True
    """
    num_neighbors = expect_count("knn_probe", "num_neighbors", num_neighbors, least=1)
    model = _sklearn().neighbors.KNeighborsClassifier(num_neighbors)
    return _score(model, features, labels, test_features, test_labels)


def effective_rank(features: ArrayLike) -> float:
    """Return exp of the entropy of the singular values' shares: in how many dimensions features live.

        exp(-sum_k p_k log p_k),    p_k = s_k / sum s,    s the singular values of the features

    It is the rank where all singular values that are not 0 are equal, and less otherwise. Features are not
    centered.

    Args:
        features: (examples, features).

    Raises:
        ValueError: for another number of axes, or features that are all 0 or not finite.

    Source: Roy & Vetterli (2007), EUSIPCO; Garrido et al. (2023), arXiv 2210.02885 (RankMe).

    >>> import numpy as np, pcflax as pc
    >>> round(pc.analysis.effective_rank(np.eye(6)[:, :3]), 6)
    3.0
    """
    shares = _shares("effective_rank", np.linalg.svd(_matrix(features), compute_uv=False))
    shares = shares[shares > 0]
    return float(np.exp(-np.sum(shares * np.log(shares))))


def participation_ratio(features: ArrayLike) -> float:
    """Return (sum_k v_k)^2 / sum_k v_k^2 of the covariance's eigenvalues v: in how many directions they vary.

    It is the number of eigenvalues that are not 0 where these are equal, and less otherwise.

    Args:
        features: (examples, features); centered here.

    Raises:
        ValueError: for another number of axes, or features that do not vary or are not finite.

    Source: Gao et al. (2017), bioRxiv 214262.

    >>> import numpy as np, pcflax as pc
    >>> axes = np.concatenate([np.eye(3), -np.eye(3)])
    >>> round(pc.analysis.participation_ratio(axes), 6)
    3.0
    """
    matrix = _matrix(features)
    deviations = np.linalg.svd(matrix - matrix.mean(axis=0), compute_uv=False)
    rounding = np.finfo(float).eps * max(matrix.shape) * np.linalg.norm(matrix)  # that of the mean
    deviations = np.where(deviations > rounding, deviations, 0)
    return float(1 / np.sum(_shares("participation_ratio", deviations**2) ** 2))


def _matrix(features: Any) -> np.ndarray:
    matrix = np.asarray(features, np.float64)
    if matrix.ndim != 2:
        raise ValueError(
            f"expected features of shape (examples, features), got {matrix.shape}; flatten the rest"
        )
    if not np.isfinite(matrix).all():
        raise ValueError("expected finite features, got NaN or infinity; drop these examples")
    return matrix


def _shares(owner: str, values: np.ndarray) -> np.ndarray:
    total = values.sum()
    if not total > 0:
        raise ValueError(f"{owner} expected features that vary, got constant ones")
    return values / total


def _classes(labels: Any) -> Array:
    labels = np.asarray(labels)
    if labels.ndim not in (1, 2) or (labels.ndim == 2 and labels.shape[1] < 2):
        raise ValueError(
            f"expected labels of shape (examples,), or one-hot rows, got {labels.shape}; flatten numbers"
        )
    return labels.argmax(axis=1) if labels.ndim == 2 else labels  # type: ignore[return-value]


def _score(model: Any, features: Any, labels: Any, test_features: Any, test_labels: Any) -> float:
    scaled = _sklearn().pipeline.make_pipeline(_sklearn().preprocessing.StandardScaler(), model)
    scaled.fit(_matrix(features), _classes(labels))
    return float(scaled.score(_matrix(test_features), _classes(test_labels)))


def _sklearn() -> Any:
    with wanting("a probe", "scikit-learn", "probes"):
        import sklearn
        import sklearn.linear_model
        import sklearn.neighbors
        import sklearn.pipeline
        import sklearn.preprocessing
    return sklearn
