"""Metrics: one number for each example from its prediction and its targets.

The Trainer takes the mean over examples. Any function with the signature of `MetricFunction` will do.
What is no mean but follows from one (the perplexity, a root mean square) is an `OfMean`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from pcflax.typing import MetricFunction


def accuracy(
    prediction: Float[Array, " batch *positions classes"],
    targets: Float[Array, " batch *positions classes"],
) -> Float[Array, " batch"]:
    """1 where the largest prediction stands at the largest target, else 0; the mean over positions.

    Ties go to the lower class.

    >>> import jax.numpy as jnp
    >>> accuracy(jnp.array([[0.1, 0.9], [0.8, 0.2]]), jnp.array([[0., 1.], [0., 1.]]))
    Array([1., 0.], dtype=float32)
    """
    correct = jnp.argmax(prediction, axis=-1) == jnp.argmax(targets, axis=-1)
    return _mean_over_positions(correct.astype(prediction.dtype))


def cross_entropy(
    prediction: Float[Array, " batch *positions classes"],
    targets: Float[Array, " batch *positions classes"],
) -> Float[Array, " batch"]:
    """-sum_k targets_k log softmax(prediction)_k in nats; the mean over positions, as of tokens.

    The predictions are logits, as a `Categorical` output has them. With one position for each example
    it is that output's energy; with several, the energy is their sum and this their mean.

    >>> import jax.numpy as jnp
    >>> cross_entropy(jnp.zeros((1, 3, 4)), jnp.eye(4)[None, :3])  # log 4 for four equal classes
    Array([1.3862944], dtype=float32)
    """
    return _mean_over_positions(optax.losses.safe_softmax_cross_entropy(prediction, targets))


def squared_error(
    prediction: Float[Array, " batch *features"], targets: Float[Array, " batch *features"]
) -> Float[Array, " batch"]:
    """The mean over features of (prediction - targets)^2, for each example.

    Of several outputs, the mean of theirs.

    >>> import jax.numpy as jnp
    >>> squared_error(jnp.array([[1.0, 3.0]]), jnp.zeros((1, 2)))
    Array([5.], dtype=float32)
    """

    def of_one(prediction, targets):
        return jnp.mean((prediction - targets) ** 2, axis=range(1, prediction.ndim))

    means = jax.tree.leaves(jax.tree.map(of_one, prediction, targets))
    return means[0] if len(means) == 1 else jnp.mean(jnp.stack(means), axis=0)


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

    def __call__(
        self,
        prediction: Float[Array, " batch *features"],
        targets: Float[Array, " batch *features"],
    ) -> Float[Array, " batch"]:
        """What is averaged: the metric of each example."""
        return self.metric(prediction, targets)


def _exponential(mean: float) -> float:
    try:
        return math.exp(mean)
    except OverflowError:  # early in a run that diverges
        return math.inf


perplexity = OfMean(_exponential, cross_entropy)
"""exp of the mean cross-entropy over all tokens: among how many equally likely ones it is to guess."""


def of_means(
    means: Mapping[str, float], metrics: Iterable[tuple[str, MetricFunction]], prefix: str = ""
) -> dict[str, float]:
    """Means by name, where those of an `OfMean` have become what it reports.

    >>> of_means({"train/perplexity": 0.0, "train/energy": 2.0}, [("perplexity", perplexity)], "train/")
    {'train/perplexity': 1.0, 'train/energy': 2.0}
    """
    functions = {
        f"{prefix}{name}": metric.function for name, metric in metrics if isinstance(metric, OfMean)
    }
    return {
        name: functions[name](mean) if name in functions else mean for name, mean in means.items()
    }


def default_metrics(
    num_classes: int | None, *, sequences: bool = False
) -> dict[str, MetricFunction]:
    """Accuracy for labels, with the perplexity for sequences of them; the squared error for others.

    >>> list(default_metrics(10)), list(default_metrics(None))
    (['accuracy'], ['squared_error'])
    >>> list(default_metrics(65, sequences=True))
    ['accuracy', 'perplexity']
    """
    if num_classes is None:
        return {"squared_error": squared_error}
    return {"accuracy": accuracy, **({"perplexity": perplexity} if sequences else {})}


def _mean_over_positions(values: Float[Array, " batch *positions"]) -> Float[Array, " batch"]:
    return jnp.mean(values, axis=range(1, values.ndim)) if values.ndim > 1 else values
