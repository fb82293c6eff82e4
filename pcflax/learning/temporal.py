"""Learning along sequences: a rule of one step, carried on in time."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from pcflax.checks import expect_kind
from pcflax.inference import AbstractInference, InferenceProblem
from pcflax.layers import Evidence
from pcflax.networks import AbstractPCNetwork, SplitNetwork
from pcflax.networks.along import along, left_behind
from pcflax.networks.batch_state import find_normalizations
from pcflax.typing import PRNGKey, PyTree

from .base import AbstractGradientLearning, AbstractLearning, LearningInfo, apply
from .predictive_coding import PredictiveCoding


@dataclasses.dataclass(frozen=True)
class Temporal(AbstractLearning):
    """Infer step by step along a sequence, handing the activities on, and learn from every step.

    At step t the network infers z_t from what is known then and from z_{t-1}, which is held fixed. Batches
    are (batch, time, features), and F of a sequence is the sum of its steps'. No gradient goes through time:
    each step's weights change by its own errors, so the rule is local in time as in space. It is an
    approximation to backpropagation through time, which it does not compute. Activities are 0 before the
    first step unless the inputs say otherwise ("z@-1"), and every sequence begins there anew: training
    carries no state from one window to the next. In a loop of your own, give a window the last activities of
    the one before, `info.activities["z"][:, -1]`, as its "z@-1"; no gradient goes through them.

    Masks of the targets may end some sequences early: steps after the last that is known count nothing.

    Args:
        rule: the rule of one step, `pc.learning.IncrementalPC(...)` say; an inference algorithm stands for
            `pc.learning.PredictiveCoding` by it.
        every: "sequence" sums the gradients of all steps and makes one update a batch; "step" makes one at
            each step, so that what is learned serves the next.

    Raises:
        TypeError: where `rule` is neither.
        ValueError: for another `every`, or "sequence" with a rule that moves the weights itself; on use, for
            a network that normalizes over the batch, arrays without an axis of time or of several lengths,
            and sequences that end early where all steps count alike.

    Source: Millidge et al. (2024), PLoS Computational Biology 20(4), for prediction errors in time.

    >>> import pcflax as pc
    >>> pc.learning.Temporal(pc.inference.GradientDescent(0.1), every="step").rule.inference.num_steps
    20
    """

    along_time: ClassVar[bool] = True
    rule: Any
    every: str = "sequence"

    def __post_init__(self):
        if isinstance(self.rule, AbstractInference):
            object.__setattr__(self, "rule", PredictiveCoding(self.rule))
        expect_kind(self, "rule", self.rule, AbstractLearning, "pc.learning.PredictiveCoding(...)")
        if self.every not in ("sequence", "step"):
            raise ValueError(
                f"Temporal expected every='sequence' or every='step', got {self.every!r}"
            )
        sums = self.every == "sequence"
        if sums and not isinstance(self.rule, AbstractGradientLearning):
            raise ValueError(
                f"{type(self.rule).__name__} moves the weights itself, so there are no gradients to sum over "
                f"a sequence; give every='step'"
            )
        if hasattr(getattr(self.rule, "initializer", None), "begin"):
            raise ValueError(
                "Temporal begins every step at the step before, and keeps no starts of examples; give its "
                "rule another initializer"
            )

    @property
    def weighs_examples(self) -> bool:  # type: ignore[override]
        """Whether the rule of a step counts each example by its weight."""
        return self.rule.weighs_examples

    @property
    def inference(self) -> AbstractInference | None:
        """The algorithm of a step; None where its rule has none."""
        return getattr(self.rule, "inference", None)

    def check(self, network: AbstractPCNetwork) -> None:
        """Refuse what the rule of a step refuses, and normalizations over the batch."""
        self.rule.check(network)
        if find_normalizations(network):
            raise ValueError(
                "a layer normalizes over the batch, whose statistics are another at each step of time; take "
                "nnx.LayerNorm or nnx.GroupNorm"
            )

    def problem(
        self, network: SplitNetwork, evidence: Evidence, *, key: PRNGKey
    ) -> InferenceProblem:
        """Return what is inferred at the first step.

        Raises:
            ValueError: for arrays without an axis of time, or that do not fit each other.
        """
        line = along(network.bind(), evidence)
        first = jax.tree.map(lambda leaf: leaf[0], line.steps)
        return self.rule.problem(network, line.at(line.before, first), key=key)

    def update(
        self, network, optimizer, optimizer_state, evidence, *, key, step=0
    ) -> tuple[SplitNetwork, PyTree, LearningInfo]:
        """Go along the sequences of a batch; energies are sums over their steps."""
        bound = network.bind()
        line = along(bound, evidence)
        if line.counts is not None and not self.weighs_examples:
            raise ValueError(
                f"some sequences end early, but {type(self.rule).__name__} counts all steps alike; give "
                f"sequences of one length, or take a rule that says weighs_examples = True"
            )

        def go(carry, now):
            before, parameters, state, total = carry
            number, own, counts = now
            current = network.replace(parameters=parameters)
            given = line.at(before, own)
            step_key = jax.random.fold_in(key, number)
            if self.every == "step":
                after, new_state, info = self.rule.update(
                    current, optimizer, state, given, key=step_key, step=step
                )
                moved = (after.parameters, new_state)
                if counts is not None:  # where no sequence goes on, momentum stands still, too
                    stay = (parameters, state)
                    moved = jax.lax.cond(counts.any(), lambda: moved, lambda: stay)
                parameters, state = moved
            else:
                gradients, info = self.rule.gradients(current, given, key=step_key, step=step)
                total = jax.tree.map(jnp.add, total, gradients)
            return (left_behind(bound, info.activities), parameters, state, total), info

        total = (
            None
            if self.every == "step"
            else jax.tree.map(lambda p: jnp.zeros_like(p), network.parameters)
        )
        carry = (line.before, network.parameters, optimizer_state, total)
        steps = (jnp.arange(line.length), line.steps, line.counts)
        (_, parameters, state, total), seen = jax.lax.scan(go, carry, steps)
        energies = {name: e.sum(axis=0) for name, e in line.counted(seen.energies).items()}
        by_example = jax.tree.map(
            lambda leaf: jnp.moveaxis(leaf, 0, 1), (seen.activities, seen.prediction)
        )
        # the least of the codes for "ran", "converged" and "still above" that says how all steps ended
        status = None if seen.status is None else seen.status.max(axis=0)
        info = LearningInfo(by_example[0], energies, by_example[1], status)
        if total is None:
            return network.replace(parameters=parameters), state, info
        network, state = apply(
            network, optimizer, optimizer_state, total, energies, weights=evidence.weights
        )
        return network, state, info
