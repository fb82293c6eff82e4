"""Metrics: one number for each example from its prediction and its targets.

The Trainer takes the mean over examples. Any function with the signature of `MetricFunction` will do.
What is no mean but follows from one (the perplexity, a root mean square) is an `OfMean`. A metric sees the
prediction, which is logits under a categorical output; one marked by `reads_mean` sees what these stand for.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from pcflax.checks import expect_count, expect_kind, shown
from pcflax.dtypes import common_dtype
from pcflax.typing import MetricFunction, PyTree

MetricFunctions: TypeAlias = tuple[tuple[str, MetricFunction], ...]
"""Metrics by name, hashable."""

Marked = TypeVar("Marked", bound=MetricFunction)

# What evaluation and training rows measure themselves; the last two are counts that no row holds.
_TAKEN = ("energy", "loss", "converged", "known", "failed")


def reads_mean(metric: Marked) -> Marked:
    """Mark a metric that compares targets with the output's mean, softmax(logits) say, not with logits.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> @pc.metrics.reads_mean
    ... def absolute_error(prediction, targets):
    ...     return jnp.abs(prediction - targets).mean(axis=-1)
    """
    metric.reads_mean = True  # type: ignore[attr-defined]
    return metric


def accuracy(
    prediction: Float[Array, " batch *positions classes"],
    targets: Float[Array, " batch *positions classes"],
) -> Float[Array, " batch"]:
    """Return 1 where the largest prediction stands at the largest target, else 0; the mean over positions.

    Ties go to the lower class. Of several outputs, the mean of theirs.

    >>> import jax.numpy as jnp
    >>> accuracy(jnp.array([[0.1, 0.9], [0.8, 0.2]]), jnp.array([[0., 1.], [0., 1.]]))
    Array([1., 0.], dtype=float32)
    """

    def of_one(prediction, targets):
        correct = jnp.argmax(prediction, axis=-1) == jnp.argmax(targets, axis=-1)
        # in 32 bits at least: sums of ones in 16 bits end at 256
        return _mean_over_positions(correct.astype(common_dtype(prediction.dtype, jnp.float32)))

    return _mean_over_outputs(of_one, prediction, targets)


@dataclasses.dataclass(frozen=True)
class AccuracyAmong:
    """The accuracy where it is told that the answer is one of these classes: the largest of theirs counts.

    This is the task-incremental accuracy, of an example of another class 0.

    Raises:
        ValueError: for no classes, and where the output has fewer.

    Source: van de Ven & Tolias (2019), arXiv 1904.07734.

    >>> import jax.numpy as jnp
    >>> prediction, targets = jnp.array([[0.1, 0.2, 0.9]]), jnp.array([[0.0, 1.0, 0.0]])
    >>> accuracy(prediction, targets), AccuracyAmong((0, 1))(prediction, targets)
    (Array([0.], dtype=float32), Array([1.], dtype=float32))
    """

    classes: tuple[int, ...]

    def __post_init__(self) -> None:
        classes = tuple(expect_count(self, "classes", one) for one in self.classes)
        if not classes:
            raise ValueError("AccuracyAmong expected at least one class, got none")
        object.__setattr__(self, "classes", classes)

    def __call__(
        self,
        prediction: Float[Array, " batch *positions classes"],
        targets: Float[Array, " batch *positions classes"],
    ) -> Float[Array, " batch"]:
        """Return 1 where the largest of these predictions stands at the largest target, else 0."""

        def told(prediction):
            width = prediction.shape[-1]
            if max(self.classes) >= width:
                raise ValueError(
                    f"AccuracyAmong expected classes below {width}, the width of the output, got "
                    f"{max(self.classes)}"
                )
            among = jnp.zeros(width, bool).at[jnp.array(self.classes)].set(True)
            return jnp.where(among, prediction, -jnp.inf)

        return accuracy(jax.tree.map(told, prediction), targets)


def cross_entropy(
    prediction: Float[Array, " batch *positions classes"],
    targets: Float[Array, " batch *positions classes"],
) -> Float[Array, " batch"]:
    """Return -sum_k targets_k log softmax(prediction)_k in nats; the mean over positions, as of tokens.

    The predictions are logits, as a `Categorical` output has them. With one position for each example
    it is that output's energy; with several, the energy is their sum and this their mean. Of several
    outputs, the mean of theirs.

    >>> import jax.numpy as jnp
    >>> cross_entropy(jnp.zeros((1, 3, 4)), jnp.eye(4)[None, :3])  # log 4 for four equal classes
    Array([1.3862944], dtype=float32)
    """

    def of_one(prediction, targets):
        return _mean_over_positions(optax.losses.safe_softmax_cross_entropy(prediction, targets))

    return _mean_over_outputs(of_one, prediction, targets)


@reads_mean
def squared_error(
    prediction: Float[Array, " batch *features"], targets: Float[Array, " batch *features"]
) -> Float[Array, " batch"]:
    """Return the mean over features of (prediction - targets)^2, for each example.

    The Trainer hands it the output's mean: probabilities, where the prediction is logits. Of several
    outputs, the mean of theirs.

    >>> import jax.numpy as jnp
    >>> squared_error(jnp.array([[1.0, 3.0]]), jnp.zeros((1, 2)))
    Array([5.], dtype=float32)
    """

    def of_one(prediction, targets):
        return jnp.mean((prediction - targets) ** 2, axis=range(1, prediction.ndim))

    return _mean_over_outputs(of_one, prediction, targets)


@dataclasses.dataclass(frozen=True)
class OfMean:
    """A function of a metric's mean: function(mean over examples of metric), not the mean of functions.

    Called, it gives each example's share, which is the metric's; evaluation and training rows apply
    the function after they have taken the mean.

    Args:
        function: from the mean to the number reported, on the host.
        metric: one number for each example.

    >>> import math, pcflax as pc
    >>> root_mean_square = pc.metrics.OfMean(math.sqrt, pc.metrics.squared_error)
    >>> bits_per_token = pc.metrics.OfMean(lambda nats: nats / math.log(2), pc.metrics.cross_entropy)
    >>> root_mean_square.function(9.0)
    3.0
    """

    function: Callable[[float], float]
    metric: MetricFunction

    @property
    def reads_mean(self) -> bool:
        """Whether the metric does."""
        return getattr(self.metric, "reads_mean", False)

    def __call__(
        self,
        prediction: Float[Array, " batch *features"],
        targets: Float[Array, " batch *features"],
    ) -> Float[Array, " batch"]:
        """Return what is averaged: the metric of each example."""
        return self.metric(prediction, targets)


def _exponential(mean: float) -> float:
    try:
        return math.exp(mean)
    except OverflowError:  # early in a run that diverges
        return math.inf


perplexity = OfMean(_exponential, cross_entropy)
"""exp of the mean cross-entropy over all tokens: among how many equally likely ones it is to guess."""


@dataclasses.dataclass(frozen=True)
class AtNode:
    """A metric of one of the nodes that are read."""

    node: str
    metric: MetricFunction

    @property
    def reads_mean(self) -> bool:
        """Whether the metric does."""
        return getattr(self.metric, "reads_mean", False)

    def __call__(self, prediction: PyTree, targets: PyTree) -> Float[Array, " batch"]:
        """Return the metric of the node's own."""
        if not isinstance(prediction, Mapping):
            return self.metric(prediction, targets)
        if self.node not in prediction:
            raise ValueError(
                f"there is a metric of node '{self.node}', but what is read is {', '.join(prediction)}"
            )
        return self.metric(prediction[self.node], targets[self.node])


def by_node(metrics: Mapping[str, Any]) -> dict[str, MetricFunction]:
    """Return metrics by name, those of a node as "node/name".

    Raises:
        ValueError: for a name that the Trainer's own measurements have.
        TypeError: for what is no dictionary of functions.

    >>> list(by_node({"label": {"accuracy": accuracy}}))
    ['label/accuracy']
    """
    expect_kind("Trainer", "metrics", metrics, Mapping, "{'accuracy': pc.metrics.accuracy}")
    found = {}
    for name, metric in metrics.items():
        own = metric if isinstance(metric, Mapping) else {name: metric}
        for key in own:
            if key in _TAKEN or "/" in key:
                raise ValueError(
                    f"metric '{key}' needs another name; {', '.join(map(repr, _TAKEN))} and slashes are taken"
                )
            if not callable(own[key]):
                raise TypeError(
                    f"metric '{key}' expected a function of (prediction, targets) such as "
                    f"pc.metrics.accuracy, got {own[key]!r}"
                )
        if isinstance(metric, Mapping):
            own = {f"{name}/{key}": _at(name, one) for key, one in metric.items()}
        found |= own
    return found


def _at(node: str, metric: MetricFunction) -> MetricFunction:
    if isinstance(metric, OfMean):
        return OfMean(metric.function, AtNode(node, metric.metric))
    return AtNode(node, metric)


def of_means(
    means: Mapping[str, float], metrics: Iterable[tuple[str, MetricFunction]], prefix: str = ""
) -> dict[str, float]:
    """Return means by name, where those of an `OfMean` have become what it reports.

    Raises:
        TypeError: where a function reports no number.

    >>> of_means({"train/perplexity": 0.0, "train/energy": 2.0}, [("perplexity", perplexity)], "train/")
    {'train/perplexity': 1.0, 'train/energy': 2.0}
    """
    functions = {
        f"{prefix}{name}": metric.function for name, metric in metrics if isinstance(metric, OfMean)
    }
    return {
        name: as_number("the function of an OfMean", name, functions[name](mean))
        if name in functions
        else mean
        for name, mean in means.items()
    }


def as_number(owner: str, name: str, value: Any) -> float:
    """Return a number of NumPy's or jax's as Python's, which checkpoints and loggers can write.

    Raises:
        TypeError: for what is no number.
    """
    try:
        if np.ndim(value) == 0 and not isinstance(value, str):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise TypeError(
        f"{owner} expected one number as '{name}', got {shown(value)}; return float(...) of it"
    )


def default_metrics(
    num_classes: int | None, *, sequences: bool = False
) -> dict[str, MetricFunction]:
    """Return accuracy for labels, with the perplexity for sequences of them; the squared error for others.

    >>> list(default_metrics(10)), list(default_metrics(None))
    (['accuracy'], ['squared_error'])
    >>> list(default_metrics(65, sequences=True))
    ['accuracy', 'perplexity']
    """
    if num_classes is None:
        return {"squared_error": squared_error}
    return {"accuracy": accuracy, **({"perplexity": perplexity} if sequences else {})}


def _mean_over_outputs(of_one: Callable, prediction: PyTree, targets: PyTree) -> jax.Array:
    means = jax.tree.leaves(jax.tree.map(of_one, prediction, targets))
    return means[0] if len(means) == 1 else jnp.mean(jnp.stack(means), axis=0)


def _mean_over_positions(values: Float[Array, " batch *positions"]) -> Float[Array, " batch"]:
    return jnp.mean(values, axis=range(1, values.ndim)) if values.ndim > 1 else values
