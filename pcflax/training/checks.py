"""Checks: what would go wrong in a run, said before it begins.

Shapes go through the network without being computed, so nothing is compiled and nothing is lost.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import optax

from pcflax.data import Dataset
from pcflax.layers import Evidence
from pcflax.learning import AbstractLearning
from pcflax.networks import AbstractPCNetwork, SplitNetwork
from pcflax.typing import PyTree

from .checkpoints import Checkpoints
from .loop import MetricFunctions


def check_parts(
    network: AbstractPCNetwork,
    optimizer: optax.GradientTransformation,
    learning: AbstractLearning,
    checkpoints: Checkpoints | None,
) -> None:
    """Refuse what a Trainer cannot be made of, and a rule that cannot be hashed or does not fit."""
    for argument, value, kind, example in (
        ("network", network, AbstractPCNetwork, "pc.PCNetwork([...])"),
        ("optimizer", optimizer, optax.GradientTransformation, "optax.adam(1e-3)"),
        ("learning", learning, AbstractLearning, "pc.learning.PredictiveCoding(...)"),
        ("checkpoints", checkpoints, Checkpoints | None, "pc.Checkpoints('runs/mnist')"),
    ):
        if not isinstance(value, kind):
            raise TypeError(f"Trainer expected {argument} such as {example}, got {value!r}")
    try:
        hash(learning)
    except TypeError:
        raise TypeError(
            f"{type(learning).__name__} cannot be hashed, which finding its compiled program needs; "
            f"make it (and what it holds) a @dataclasses.dataclass(frozen=True)"
        ) from None
    learning.check(network)


def check_metric_names(names: Iterable[str]) -> None:
    """Refuse names that the Trainer's own measurements have."""
    for name in names:
        if name in ("energy", "loss") or "/" in name:
            raise ValueError(
                f"metric '{name}' needs another name; 'energy', 'loss' and slashes are taken"
            )


def check_keep_best(keep_best: tuple[str, str] | None, measured: list[str]) -> None:
    """Refuse a metric that no evaluation will measure."""
    known = [f"eval/{name}" for name in (*measured, "energy")]
    if keep_best is not None and keep_best[0] not in known:
        raise ValueError(
            f"keep_best names the metric '{keep_best[0]}', but evaluations measure {', '.join(known)}"
        )


def check_is_dataset(data: object, role: str) -> None:
    """Refuse what is not a data set, arrays above all."""
    if not isinstance(data, Dataset):
        raise TypeError(
            f"expected the {role} from pc.data.load or pc.data.from_arrays, got "
            f"{type(data).__name__}; wrap arrays: pc.data.from_arrays(inputs, targets, batch_size=64)"
        )


def check_data(
    network: SplitNetwork,
    data: Dataset,
    metrics: Callable[[Dataset], MetricFunctions],
    role: str,
) -> None:
    """Run one batch's shapes through network and metrics."""
    check_is_dataset(data, role)
    spec = data.spec()
    try:
        _run_shapes.eval_shape(network, spec.inputs, spec.targets, metrics=metrics(data))
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"the {role} '{data.name}' does not fit the network: {error}") from error


@functools.partial(jax.jit, static_argnames="metrics")  # whose cache knows what was checked before
def _run_shapes(
    network: SplitNetwork, inputs: PyTree, targets: PyTree, *, metrics: MetricFunctions
) -> None:
    bound = network.bind()
    bound.set_activities(bound.start(Evidence(inputs, targets)))
    batch = next(iter(bound.energies(inputs).values())).shape[:1]
    prediction = bound.predict(inputs, batch_size=batch[0])
    if targets is None:
        return
    for name, metric in metrics:
        shape = jnp.shape(metric(prediction, targets))
        if shape != batch:
            raise ValueError(
                f"metric '{name}' returned shape {shape}, expected one number an example, {batch}"
            )


def total_steps(data: Dataset, epochs: int | None, num_steps: int | None) -> int:
    """The step at which a fit ends."""
    check_is_dataset(data, "training data")
    if (epochs is None) == (num_steps is None):
        raise ValueError("give either epochs or num_steps, the total to train until")
    name, value = ("epochs", epochs) if epochs is not None else ("num_steps", num_steps)
    try:
        count = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"expected {name} to be an int, got {value!r}") from None
    if count < 0:
        raise ValueError(f"expected {name} of at least 0, got {count}")
    return count * data.num_batches if name == "epochs" else count
