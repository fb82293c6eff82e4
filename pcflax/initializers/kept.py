"""Starts that keep something from one batch to the next: each example's last equilibrium, or its class's.

What is kept is a pytree of its own, `TrainState.starts`, saved, resumed and mapped over as parameters are. A
step of learning asks the start for an initializer at the batch (`at`), infers from there, and hands
over what was inferred (`after`). Evaluation has starts of its own and never sees these.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from pcflax.checks import expect_number
from pcflax.dtypes import common_dtype
from pcflax.layers import Clamp, Evidence
from pcflax.layers.clamps import whole_values
from pcflax.networks import AbstractPCNetwork, SplitNetwork, split
from pcflax.settings import Settings
from pcflax.typing import Activities, Initializer, PyTree


class AbstractKeptStart(Settings, Initializer, abc.ABC):
    """An initializer with state, which training carries along.

    Called by itself, as `network.infer` does, it has kept nothing and starts at the feedforward pass.

    >>> import pcflax as pc
    >>> isinstance(pc.initializers.Persistent(), pc.initializers.AbstractKeptStart)
    True
    """

    def __call__(self, network, inputs, *, batch_size, clamps, key) -> Activities:
        """Return the start of every activity by layer name: the feedforward pass."""
        del key  # deterministic
        return network.feedforward(inputs, batch_size=batch_size, clamps=clamps)

    @abc.abstractmethod
    def begin(self, network: AbstractPCNetwork | SplitNetwork, data: Any) -> PyTree:
        """Return what is kept before the first batch of a data set.

        Raises:
            ValueError: for data that the start cannot tell examples of by.
        """

    @abc.abstractmethod
    def at(self, state: PyTree, evidence: Evidence) -> Kept:
        """Return the initializer for one batch; pure, called inside jit."""

    @abc.abstractmethod
    def after(
        self,
        state: PyTree,
        evidence: Evidence,
        activities: Activities,
        *,
        network: SplitNetwork,
        applied: Bool[Array, ""] | bool = True,
    ) -> PyTree:
        """Return what is kept after a batch whose inference ended at these activities; pure.

        `network` is that before the step. What is kept stays where the step was not `applied`, as one that is
        not finite: row by row, since a choice between two whole states would copy them.
        """


@dataclasses.dataclass(frozen=True)
class Kept(Settings, Initializer):
    """Begin each example at a given row where there is one, and at the feedforward pass elsewhere.

    Attributes:
        rows: {layer name: (batch, *features)}.
        seen: (batch,), which rows count.
    """

    rows: dict[str, Array]
    seen: Bool[Array, " batch"]

    def __call__(self, network, inputs, *, batch_size, clamps, key) -> Activities:
        """Return the start of every activity by layer name."""
        del key  # deterministic
        start = network.feedforward(inputs, batch_size=batch_size, clamps=clamps)
        for name, rows in self.rows.items():
            seen = self.seen.reshape(-1, *[1] * (rows.ndim - 1))
            start[name] = jnp.where(seen, rows.astype(start[name].dtype), start[name])
        return start


@dataclasses.dataclass(frozen=True)
class Persistent(AbstractKeptStart):
    """Begin each example where its own inference ended last; at the feedforward pass on its first visit.

    Where the weights change little in an epoch, few steps of inference follow the equilibrium. Kept are
    num_examples times the number of free activities, on the device and in every checkpoint: 60,000 examples
    with 300 hidden units are 72 MB.

    Raises:
        ValueError: on `begin`, for data whose examples have no place of their own (windows of a text); on
            use, for a question that does not say the examples' places. A place beyond the data makes a step
            that is not finite.

    Source: Tieleman (2008), ICML, persistent chains, in whose place are activities here.

    >>> import pcflax as pc
    >>> descent = pc.inference.GradientDescent(0.1, num_steps=5)
    >>> rule = pc.learning.PredictiveCoding(descent, pc.initializers.Persistent())
    """

    def begin(self, network: AbstractPCNetwork | SplitNetwork, data: Any) -> PyTree:
        """Return zeros for every example of the data, none of them seen."""
        if data.spec().examples is None:
            raise ValueError(
                f"Persistent starts need each example's place in the data, and those of '{data.name}' have "
                f"none; take pc.initializers.Feedforward()"
            )
        return _nothing(network, data, data.num_examples)

    def at(self, state: PyTree, evidence: Evidence) -> Kept:
        """Return where these examples ended last; NaN at a place that the data do not have."""
        places = _places(evidence)
        rows = {
            name: kept.at[places].get(mode="fill", fill_value=jnp.nan)
            for name, kept in state["activities"].items()
        }
        return Kept(rows, state["seen"].at[places].get(mode="fill", fill_value=True))

    def after(self, state, evidence, activities, *, network, applied=True) -> PyTree:
        """Return the state with these examples' activities in their places."""
        del network  # where inference ended is all
        places = _places(evidence)

        def put(kept, new):
            return kept.at[places].set(jnp.where(applied, new, kept[places]))

        kept = {
            name: put(rows, activities[name].astype(rows.dtype))
            for name, rows in state["activities"].items()
        }
        return {"seen": put(state["seen"], True), "activities": kept}


@dataclasses.dataclass(frozen=True)
class ClassAverage(AbstractKeptStart):
    """Begin each example at the running average of where examples of its class ended.

    m_c <- momentum m_c + (1 - momentum) mean_{i in c} z*_i after each batch that has some of class c, and m_c
    the first such mean. Before that, and for examples whose label is unknown, the start is the feedforward
    pass. Kept are num_classes times the number of free activities, in 32 bits at least: a running average in
    bfloat16 stands still once its moves are below a 256th of it.

    Args:
        momentum: from 0 (the newest batch alone) to 1.
        labels: which the labels are, "targets" or "inputs".

    Raises:
        ValueError: for a momentum outside of [0, 1], or other labels; on `begin`, for data without labels.

    Source: Pinchetti et al. (2026), arXiv 2601.20895, for starts at averages of a class; momentum and first
    visit are ours.

    >>> import pcflax as pc
    >>> pc.initializers.ClassAverage(momentum=0.95).labels
    'targets'
    """

    momentum: float = 0.9
    labels: str = "targets"

    def __post_init__(self):
        momentum = expect_number(self, "momentum", self.momentum, least=0, most=1)
        object.__setattr__(self, "momentum", momentum)
        if self.labels not in ("targets", "inputs"):
            raise ValueError(
                f"ClassAverage expected labels 'targets' or 'inputs', got {self.labels!r}"
            )

    def begin(self, network: AbstractPCNetwork | SplitNetwork, data: Any) -> PyTree:
        """Return zeros for every class, none of them seen."""
        num_classes = data.classes_of(self.labels)
        if num_classes is None:
            raise ValueError(
                f"ClassAverage starts need classes, and the {self.labels} of '{data.name}' are no labels; "
                f"give integer labels, or ClassAverage(labels=...)"
            )
        nothing = _nothing(network, data, num_classes)
        averages = jax.tree.map(
            lambda a: a.astype(common_dtype(a.dtype, jnp.float32)), nothing["activities"]
        )
        return {**nothing, "activities": averages}

    def at(self, state: PyTree, evidence: Evidence) -> Kept:
        """Return the averages of these examples' classes."""
        label, known = self._label(evidence)
        rows = {name: kept[label] for name, kept in state["activities"].items()}
        return Kept(rows, state["seen"][label] & known)

    def after(self, state, evidence, activities, *, network, applied=True) -> PyTree:
        """Return the averages with those of this batch."""
        del network  # where inference ended is all
        label, known = self._label(evidence)
        seen, known = state["seen"], known & applied
        counts = jax.ops.segment_sum(known.astype(jnp.int32), label, len(seen))
        kept = {}
        for name, old in state["activities"].items():
            there = known.reshape(-1, *[1] * (old.ndim - 1))
            rows = jnp.where(there, activities[name].astype(old.dtype), 0)
            by_class = [-1, *[1] * (old.ndim - 1)]
            number = jnp.maximum(counts, 1).astype(old.dtype).reshape(by_class)
            mean = jax.ops.segment_sum(rows, label, len(seen)) / number
            momentum = jnp.asarray(self.momentum, old.dtype)
            moved = momentum * old + (1 - momentum) * mean
            new = jnp.where(seen.reshape(by_class), moved, mean)
            kept[name] = jnp.where((counts > 0).reshape(by_class), new, old)
        return {"seen": seen | (counts > 0), "activities": kept}

    def _label(self, evidence: Evidence) -> tuple[Array, Array]:
        """Return each example's class, and whether it is known."""
        rows = getattr(evidence, self.labels)
        known = jnp.ones((), bool)
        if isinstance(rows, Clamp):
            known, rows = rows.held().all(axis=-1), rows.value
        label = jnp.argmax(rows, axis=-1)
        return label, jnp.broadcast_to(known, label.shape)


def _places(evidence: Evidence) -> Array:
    if evidence.examples is None:
        raise ValueError(
            "Persistent starts need each example's place; give pc.Evidence(..., examples=places)"
        )
    return evidence.examples


def free_shapes(network: AbstractPCNetwork | SplitNetwork, data: Any) -> PyTree:
    """Return shape and dtype of a batch's activities that are free, by layer."""
    pure = network if isinstance(network, SplitNetwork) else split(network)

    def free(evidence):
        bound = pure.bind()
        known = bound.known(evidence)
        whole = whole_values(known.clamps)
        return {k: value for k, value in bound.start(known).items() if k not in whole}

    return jax.eval_shape(free, data.spec())


def _nothing(network: AbstractPCNetwork | SplitNetwork, data: Any, number: int) -> PyTree:
    """Return zeros for the free activities of so many examples, and that none of them is seen."""
    shapes = free_shapes(network, data)
    return {
        "seen": jnp.zeros(number, bool),
        "activities": {k: jnp.zeros((number, *v.shape[1:]), v.dtype) for k, v in shapes.items()},
    }
