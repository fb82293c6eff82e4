"""Readings: how an answer is had from what is known of a batch.

`Feedforward` reads the output of the pass upward, which on a chain is already the minimum of the energy.
`Equilibrium` hides what is asked, infers everything that is free, and reads any node. `Reconstruction`
infers with all that is known and reads what the network predicts of a node that was given. Metrics compare
what was read with what the data say of it. Next file to read: `evaluation.py`.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pcflax.checks import expect_kind
from pcflax.inference import AbstractInference, expect_algorithm, make_problem
from pcflax.initializers import AbstractKeptStart
from pcflax.layers import Clamp, Evidence
from pcflax.layers.clamps import Known
from pcflax.networks import AbstractPCNetwork, SplitNetwork, split
from pcflax.networks.along import known_along
from pcflax.networks.given import node_of
from pcflax.settings import Settings
from pcflax.typing import Initializer, PRNGKey, PyTree

from .hiding import (
    check_node,
    expect_mask,
    is_clamped,
    known_rows,
    part_of,
    told_of,
    without,
)


class Answer(NamedTuple):
    """What was read of a batch, and what it is compared with; an array, or several by node.

    Attributes:
        values: as metrics see them: activities, or predictions, which are logits under a categorical
            energy.
        means: what these stand for, as metrics marked by `reads_mean` see them.
        truth: what the data say of the same nodes, or None; of sequences that are known in part a
            `pc.Clamp` with a mask of steps, (batch, time); with one of elements where these alone count.
        known: (batch,), whether the data say all of it, by example; None where they do of every one.
        energy: (batch,), F of each example.
        status: (batch,), the `pc.inference.Status` of each example; None without inference.
    """

    values: PyTree
    means: PyTree
    truth: PyTree
    known: Array | None
    energy: Float[Array, " batch"]
    status: Int[Array, " batch"] | None


class AbstractReading(Settings, abc.ABC):
    """A way to read an answer from a network; a frozen dataclass, pure, called in compiled code."""

    along_time: ClassVar[bool] = False  # whether it reads sequences, (batch, time, *features)

    @property
    def stops_at_tolerance(self) -> bool:
        """Whether an example's inference, where there is one, ends where it converged."""
        inference = getattr(self, "inference", None)
        return inference is not None and inference.stops_at_tolerance

    def role(self, network: SplitNetwork) -> str | None:
        """Return whether what is read are the data's "inputs" or "targets"; None for anything else."""
        del network
        return "targets"

    @abc.abstractmethod
    def answer(self, network: SplitNetwork, evidence: Evidence, *, key: PRNGKey) -> Answer:
        """Return what was read of a batch, in evaluation mode.

        Args:
            network: taken apart in evaluation mode.
            evidence: what the data say of the batch.
            key: randomness for an algorithm that samples.

        Raises:
            ValueError: for a question that cannot be answered, saying why.
        """


@dataclasses.dataclass(frozen=True)
class Feedforward(AbstractReading):
    """Read the outputs' prediction after a pass upward from the inputs; no inference.

    The energy is F at the activities of that pass with the targets scored on top, which on a chain is the
    output's energy. Of data that say nothing below the outputs, such as images alone to a network with a free
    root, the pass would be the prior's own prediction, the same for every example: it refuses these.

    Raises:
        ValueError: on use, where nothing is known below the outputs; `Equilibrium` or `Reconstruction` infer
            there.

    >>> import pcflax as pc
    >>> pc.Feedforward()
    Feedforward()
    """

    def answer(self, network: SplitNetwork, evidence: Evidence, *, key: PRNGKey) -> Answer:
        """Pass upward and read the outputs."""
        del key  # deterministic
        bound = network.bind()
        known = bound.known(evidence)
        prediction = self.prediction(bound, known)
        bound.set_activities(bound.start(known))
        energy = bound.energy(known.inputs)
        return Answer(*predicted(bound, prediction, evidence.targets), energy, None)

    def prediction(self, bound: AbstractPCNetwork, known: Known) -> Any:
        """Return what the pass upward predicts of the outputs."""
        if not is_told_below(bound, known):
            raise ValueError(
                "nothing is known below the outputs, so no evidence determines an answer: a pass upward is "
                "the same for every example; give inputs, or infer by pc.Equilibrium(inference, read=...) "
                "or pc.Reconstruction(inference)"
            )
        return bound.predict(known.inputs, batch_size=known.batch_size, clamps=known.clamps)


@dataclasses.dataclass(frozen=True)
class Equilibrium(AbstractReading):
    """Hide what is asked, infer all that is free from the rest, and read any node.

    F_i is minimized over the free activities of each example i, with what is read among them: the class of
    an image by a generative network, an image from its class, pixels that are covered, the output of a
    network with cycles. Inference never sees what it is asked.

    Args:
        inference: the algorithm, such as `pc.inference.GradientDescent(0.1, num_steps=100)`.
        read: the node that is read, or several; the outputs unless given. One node of a stack goes by its
            name, `hidden/3`.
        hide: what the data say and inference does not get: names of nodes, or {name: mask} to hide those
            elements alone where the mask is True, of one example's shape or (batch, *features); unless
            given, the nodes that are read.
        initializer: where the free activities start: the feedforward pass unless given.
        hidden_only: whether metrics compare the hidden elements alone, not those that stayed known. They see
            one element at a time, and their mean over these is an example's.

    Raises:
        TypeError: where `inference` is no algorithm.
        ValueError: for `hidden_only` without a mask of the one node that is read; on use, for a node that is
            not there, a mask of another shape, a node to read that stays clamped, or a question in which
            nothing is known.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> network = pc.models.decoder(2, 8, 5, rngs=nnx.Rngs(0))
    >>> images = pc.Evidence(targets=jnp.ones((3, 5)))
    >>> codes = pc.Equilibrium(pc.inference.GradientDescent(0.1), read="latent", hide=())
    >>> pc.training.answer(network, images, codes).values.shape
    (3, 2)
    """

    inference: AbstractInference
    read: str | tuple[str, ...] | None = None
    hide: Any = None
    initializer: Initializer | None = None
    hidden_only: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self):
        expect_algorithm(self, self.inference)
        expect_start(self, self.initializer)
        if self.read is not None and not isinstance(self.read, str):
            object.__setattr__(self, "read", tuple(self.read))
        hide = self.hide
        if isinstance(hide, str):
            hide = (hide,)
        if isinstance(hide, Mapping):
            hide = {name: expect_mask(name, mask) for name, mask in hide.items()}
        elif hide is not None:
            hide = tuple(hide)
        object.__setattr__(self, "hide", hide)
        masks = hide if isinstance(hide, dict) else {}
        if self.hidden_only and (isinstance(self.read, tuple) or masks.get(self.read) is None):
            raise ValueError(
                "Equilibrium compares hidden elements alone, so it reads one node of which a mask hides "
                "some; give read=node and hide={node: mask}, or leave hidden_only out"
            )

    def role(self, network: SplitNetwork) -> str | None:
        """Return whether the node that is read is the data's "inputs" or "targets"."""
        return role_of(network.bind(), self.read)

    def answer(self, network: SplitNetwork, evidence: Evidence, *, key: PRNGKey) -> Answer:
        """Infer, and read the activities."""
        bound = network.bind()
        self.inference.check(bound)
        known = bound.known(evidence)
        several = not bound.one_output if self.read is None else not isinstance(self.read, str)
        nodes = (self.read,) if isinstance(self.read, str) else self.read or top_nodes(bound)
        hidden = self._hidden(bound, known, nodes)
        question = known
        for name, mask in hidden.items():
            question = without(bound, question, name, mask)
        if not jax.tree.leaves((question.inputs, question.clamps)):
            raise ValueError(
                f"the reading hides {', '.join(repr(n) for n in hidden)} and then nothing is known of the "
                f"examples, so no evidence determines an answer; hide less"
            )
        for name in nodes:
            if is_clamped(bound, question, name):
                raise ValueError(
                    f"node '{name}' is read and clamped at once, so nothing is inferred of it; hide it, or "
                    f"take pc.Reconstruction to read its prediction"
                )
        result = infer_known(network, question, self.inference, self.initializer, key)
        values = {name: part_of(bound, result.activities, name) for name in nodes}
        found = {name: told_of(bound, known, name) for name in nodes}
        truth: Any = {name: clamp.value for name, clamp in found.items() if clamp is not None}
        masks = [c.mask for c in found.values() if c is not None and c.mask is not None]
        if len(truth) < len(nodes):
            truth = None
        if not several:
            values, truth = values[nodes[0]], None if truth is None else truth[nodes[0]]
        known_of = known_rows(masks)
        if self.hidden_only and (told := found[nodes[0]]) is not None:
            mask = hidden[nodes[0]]
            truth = Clamp(truth, jnp.broadcast_to(mask, told.value.shape) & told.held())
            known_of = jnp.any(truth.mask, axis=tuple(range(1, truth.mask.ndim)))
        return Answer(values, values, truth, known_of, result.energy, result.status)

    def _hidden(
        self, bound: AbstractPCNetwork, known: Known, nodes: tuple[str, ...]
    ) -> dict[str, Any]:
        """Return what is hidden: {name: mask, or None for the whole node}."""
        for name in nodes:
            check_node(bound, name)
        if self.hide is None:
            return {name: None for name in nodes if told_of(bound, known, name) is not None}
        hidden = self.hide if isinstance(self.hide, Mapping) else dict.fromkeys(self.hide)
        for name, mask in hidden.items():
            check_node(bound, name)
            told = told_of(bound, known, name)
            if told is None:
                raise ValueError(
                    f"the reading hides '{name}', of which the data say nothing; leave it out of hide"
                )
            if mask is not None:
                shape = told.value.shape
                if np.shape(mask) not in (shape, shape[1:]):
                    raise ValueError(
                        f"the reading hides elements of '{name}' by a mask of shape {np.shape(mask)}, but "
                        f"one example has {shape[1:]}; give a mask of that shape"
                    )
        return dict(hidden)


def answer(
    network: AbstractPCNetwork,
    evidence: Evidence,
    reading: AbstractReading,
    *,
    key: PRNGKey | None = None,
) -> Answer:
    """Return what a reading reads of a network object and one batch.

    `Trainer.evaluate` and `Trainer.predict` do so for whole data sets.
    """
    expect_kind("answer", "reading", reading, AbstractReading, "pc.Equilibrium(inference)")
    key = jax.random.key(0) if key is None else key
    return _answer(split(network), evidence, reading, key)


@jax.jit
def _answer(network: SplitNetwork, evidence, reading: AbstractReading, key: PRNGKey) -> Answer:
    return reading.answer(in_evaluation(network), evidence, key=key)


def in_evaluation(network: SplitNetwork) -> SplitNetwork:
    """Return the network in evaluation mode: no dropout, running statistics."""
    bound = network.bind()
    bound.eval()
    return split(bound)


def predicted(
    bound: AbstractPCNetwork, prediction: Any, targets: Any, *, along_time: bool = False
) -> tuple[Any, Any, Any, Array | None]:
    """Return an output's prediction, its mean, its truth and of which examples all of that is known.

    Of several outputs, of those with targets. Of a sequence, of which examples some of it is.
    """
    if along_time:
        values, steps = known_along(targets)
        values, means, truth, _ = predicted(bound, prediction, values)
        if steps is None:
            return values, means, truth, None
        return values, means, Clamp(truth, steps), steps.any(axis=1)
    given = targets.values() if isinstance(targets, Mapping) else [targets]
    known = known_rows(
        [clamp.held() for clamp in given if isinstance(clamp, Clamp) and clamp.mask is not None]
    )
    targets = jax.tree.map(
        lambda truth: truth.value if isinstance(truth, Clamp) else truth,
        targets,
        is_leaf=lambda truth: isinstance(truth, Clamp),
    )
    if not isinstance(prediction, Mapping):
        truth = next(iter(targets.values())) if isinstance(targets, Mapping) else targets
        return prediction, mean_of(bound, bound.output, prediction), truth, known
    if isinstance(targets, Mapping):
        targets = {name: array for name, array in targets.items() if array is not None}
        prediction = {name: prediction[name] for name in targets}
    means = {name: mean_of(bound, name, value) for name, value in prediction.items()}
    return prediction, means, targets, known


def is_told_below(bound: AbstractPCNetwork, known: Known | Evidence) -> bool:
    """Return whether anything is known below the outputs, which a pass upward would begin from."""
    below = [clamp for name, clamp in (known.clamps or {}).items() if name not in bound.outputs]
    return bool(jax.tree.leaves((known.inputs, below)))


def expect_start(reading: AbstractReading, initializer: Any) -> None:
    """Refuse a start that is kept of training examples."""
    if isinstance(initializer, AbstractKeptStart):
        raise ValueError(
            f"{type(reading).__name__} starts anew at every question, but {type(initializer).__name__} keeps "
            f"starts of training examples; take pc.initializers.Feedforward()"
        )


def infer_known(network, known, inference, initializer, key):
    """Solve for what the evidence leaves free, from this start."""
    start_key, solve_key = jax.random.split(key)
    problem = make_problem(network, known, initializer=initializer, key=start_key)
    return inference.solve(problem, key=solve_key)


def mean_of(bound: AbstractPCNetwork, name: str, prediction: Array) -> Array:
    """Return what a node's prediction stands for."""
    layer, _ = node_of(bound, name)
    return bound.layer(layer).top_node_layer().energy.mean(prediction)


def top_nodes(bound: AbstractPCNetwork) -> tuple[str, ...]:
    """Return the nodes that targets clamp."""
    return tuple(bound.layer(name).each_node_name(name)[-1] for name in bound.outputs)


def role_of(bound: AbstractPCNetwork, read: Any) -> str | None:
    """Return whether a node is what the data's inputs or targets are of."""
    if read is None or read in (*top_nodes(bound), *bound.outputs):
        return "targets"
    return "inputs" if read in bound.wiring.inputs else None
