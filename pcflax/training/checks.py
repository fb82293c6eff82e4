"""Checks: what would go wrong in a run, said before it begins.

Shapes go through the network without being computed, so nothing is compiled and nothing is lost.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from pcflax.checks import did_you_mean, expect_count, expect_kind
from pcflax.data import Dataset
from pcflax.energies import Energy
from pcflax.layers import Evidence
from pcflax.learning import AbstractLearning
from pcflax.networks import AbstractPCNetwork, SplitNetwork
from pcflax.settings import Argument
from pcflax.sharding.placement import DATA
from pcflax.typing import PyTree

from .hiding import check_node
from .measure import measure
from .metrics import AtNode, MetricFunctions, OfMean
from .reading import AbstractReading, Feedforward, role_of


def as_optimizer(
    owner: str, optimizer: Any, parameters: PyTree
) -> optax.GradientTransformationExtraArgs:
    """Return an optax transformation that training can give what it wants."""
    if hasattr(optimizer, "gradient_transformation"):  # optax.MultiSteps
        optimizer = optimizer.gradient_transformation()
    expect_kind(owner, "optimizer", optimizer, optax.GradientTransformation, "optax.adam(1e-3)")
    try:
        _update_once.eval_shape(Argument(optimizer), parameters)
    except (AttributeError, TypeError) as error:
        if "required keyword-only argument" not in str(error):
            raise TypeError(
                f"the optimizer cannot update this network's parameters, given their gradients, themselves "
                f"and the value ({error}); take another, such as optax.adam(1e-3)"
            ) from error
        raise TypeError(
            f"the optimizer wants more than gradients, parameters and value, which is all that training "
            f"gives ({error}); take one without a line search, such as optax.adam(1e-3)"
        ) from error
    return optimizer


@jax.jit  # whose cache knows what was checked before
def _update_once(optimizer: Argument, parameters: PyTree) -> PyTree:
    made = optax.with_extra_args_support(optimizer.value)
    with jax.numpy_dtype_promotion("standard"):  # as training does
        return made.update(parameters, made.init(parameters), parameters, value=jnp.float32(0))


def check_rule(owner: str, rule: Any, network: AbstractPCNetwork) -> AbstractLearning:
    """Return the rule; refuse what is none, one that cannot be hashed, and a network that it cannot train."""
    expect_kind(owner, "learning", rule, AbstractLearning, "pc.learning.PredictiveCoding(...)")
    try:
        hash(jax.tree.structure(rule))
    except TypeError as error:
        raise TypeError(
            f"{type(rule).__name__} cannot be hashed, which finding its compiled program needs "
            f"({error}); make it (and what it holds) a @dataclasses.dataclass(frozen=True)"
        ) from None
    rule.check(network)
    return rule


def measured_names(
    train: MetricFunctions | None, evaluate: MetricFunctions | None
) -> tuple[str, ...]:
    """Return the names of what rows of training and of evaluation hold, but for energies of layers."""
    names = []
    if train is not None:
        names += ["train/energy", "train/loss", *(f"train/{name}" for name, _ in train)]
    if evaluate is not None:
        names += [*(f"eval/{name}" for name, _ in evaluate), "eval/energy"]
    return tuple(names)


def check_measured(owner: str, metric: str, measured: Iterable[str]) -> None:
    """Refuse a metric that nothing will measure."""
    known = [name for name in measured if name.startswith(metric.partition("/")[0] + "/")]
    if metric not in known:
        raise ValueError(
            f"{owner} names the metric '{metric}', but evaluations measure "
            f"{', '.join(known or measured)}{did_you_mean(metric, known)}"
        )


def check_is_dataset(data: object, role: str) -> None:
    """Refuse what is not a data set, arrays above all."""
    if not isinstance(data, Dataset):
        raise TypeError(
            f"expected the {role} from pc.data.load or pc.data.from_arrays, got "
            f"{type(data).__name__}; wrap arrays: pc.data.from_arrays(inputs, targets, batch_size=64), and "
            f"other batches: pc.data.from_loader(batches)"
        )


def check_data(
    network: SplitNetwork,
    bound: AbstractPCNetwork,
    data: Dataset,
    metrics: Callable[[Dataset], MetricFunctions],
    role: str,
    reads: AbstractReading | None,
) -> None:
    """Run one batch's shapes through network, reading (if any) and metrics; `bound` is the network's."""
    check_is_dataset(data, role)
    check_batch_size(network.mesh, data, role)
    spec = data.spec()
    try:
        _run_shapes.eval_shape(network, spec, reads, metrics=metrics(data))
    except (TypeError, ValueError) as error:
        kind, hint = TypeError if isinstance(error, TypeError) else ValueError, ""
        if data.counts_classes and "is clamped to" in str(error):
            shown = f"the labels show {data.num_classes} classes"
            hint = f"; {shown}: where there are more, give from_arrays num_classes"
        raise kind(f"the {role} '{data.name}' does not fit the network: {error}{hint}") from error
    picky = any(
        type(layer.top_node_layer().energy).check_targets is not Energy.check_targets
        for layer in bound.layers
    )
    if picky and (spec.targets is not None or spec.clamps):
        try:
            bound.known(data.first_batch())
        except ValueError as error:
            raise ValueError(f"the {role} '{data.name}' does not fit: {error}") from error


def check_batch_size(mesh: Mesh | None, data: Dataset, role: str) -> None:
    """Refuse batches that do not divide among the devices of a mesh."""
    count = 1 if mesh is None else mesh.shape.get(DATA, 1)
    if data.batch_size % count:
        raise ValueError(
            f"the {role} '{data.name}' has batches of {data.batch_size} examples, which do not divide among "
            f"the {count} devices of the axis '{DATA}'; give a batch_size that is a multiple of {count}"
        )


@functools.partial(jax.jit, static_argnames="metrics")  # whose cache knows what was checked before
def _run_shapes(
    network: SplitNetwork,
    evidence: Evidence,
    reads: AbstractReading | None,
    *,
    metrics: MetricFunctions,
) -> None:
    bound = network.bind()
    batch = (bound.known(evidence).batch_size,)
    if reads is None or not reads.along_time:
        bound.set_activities(bound.start(evidence))
        batch = next(iter(bound.energies(evidence.inputs).values())).shape[:1]
    if reads is None:
        return
    answer = reads.answer(network, evidence, key=jax.random.key(0))
    if not isinstance(answer.values, Mapping):
        _check_nodes(bound, reads.role(network), reads, metrics)
    if answer.truth is None:
        if metrics and not isinstance(reads, Feedforward):
            raise ValueError(
                f"the data say nothing of what {type(reads).__name__} reads, so "
                f"{', '.join(repr(name) for name, _ in metrics)} compares it with nothing; give these data, "
                f"or metrics={{}}"
            )
        return
    for name, values in measure(answer.values, answer.means, answer.truth, metrics).items():
        if jnp.shape(values) != batch:
            raise ValueError(
                f"metric '{name}' returned shape {jnp.shape(values)}, expected one number an example, "
                f"{batch}"
            )


def _check_nodes(
    bound: AbstractPCNetwork, role: str | None, reads: AbstractReading, metrics: MetricFunctions
) -> None:
    """Refuse metrics of a node that is not there, or is not the one that is read."""
    for name, metric in metrics:
        at = metric.metric if isinstance(metric, OfMean) else metric
        if not isinstance(at, AtNode):
            continue
        check_node(bound, at.node)
        if at.node != getattr(reads, "read", None) and role_of(bound, at.node) != role:
            raise ValueError(
                f"metric '{name}' is of node '{at.node}', which {type(reads).__name__} does not read; take "
                f"pc.Equilibrium(inference, read='{at.node}')"
            )


def total_steps(data: Dataset, epochs: int | None, num_steps: int | None) -> int:
    """Return the step at which a fit ends."""
    check_is_dataset(data, "training data")
    if (epochs is None) == (num_steps is None):
        raise ValueError("give either epochs or num_steps, the total to train until")
    if epochs is not None:
        return expect_count("fit", "epochs", epochs) * data.num_batches
    return expect_count("fit", "num_steps", num_steps)


def warn_done(step: int, total: int, data: Dataset) -> None:
    """Tell that a fit was asked for no more than is done."""
    more = data.num_batches if data.has_length else 1
    what = f"one more pass over '{data.name}'" if data.has_length else f"one more of '{data.name}'"
    warnings.warn(
        f"nothing to do: {step} steps are done and {total} were asked for (epochs and num_steps are totals, "
        f"counted from step 0); for {what} give num_steps={step + more}",
        UserWarning,
        stacklevel=4,  # where fit was called
    )
