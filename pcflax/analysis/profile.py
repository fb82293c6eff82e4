"""Where the time of an update goes: start, inference, weight gradient, optimizer.

Each part is a program of its own on the same batch, and so is the whole update. The whole is not the sum of
its parts: XLA fuses across them and computes once what several need, and each call has a cost of its own.
What is left between the two is told, not spread over the parts.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from pcflax.checks import expect_count, expect_kind
from pcflax.layers import Evidence
from pcflax.learning import AbstractGradientLearning, AbstractLearning, PredictiveCoding
from pcflax.learning.base import apply
from pcflax.networks import AbstractPCNetwork, split
from pcflax.typing import PRNGKey


@dataclasses.dataclass(frozen=True)
class StepProfile:
    """Medians of one update's parts, each compiled alone; `print` shows a table.

    Attributes:
        parts: {part: milliseconds}.
        update: milliseconds of the whole update as one program.
        batch_size: how many examples it learned from.

    >>> print(StepProfile({"gradient": 2.0, "optimizer": 0.5}, 4.0, 64))
    part                    ms     %
    gradient             2.000    50
    optimizer            0.500    12
    remainder            1.500    38
    update               4.000   100
    """

    parts: Mapping[str, float]
    update: float
    batch_size: int

    @property
    def remainder(self) -> float:
        """The whole update less the sum of its parts, milliseconds.

        Below 0 where parts alone do more than together, as they do where XLA shares work between them; on
        small networks a call itself, some 0.05 ms, is most of a part.
        """
        return self.update - sum(self.parts.values())

    def rows(self) -> list[tuple[str, str, str]]:
        """Return (part, milliseconds, percent of the update), the remainder and the whole last."""
        every = {**self.parts, "remainder": self.remainder, "update": self.update}
        return [(n, f"{ms:.3f}", f"{100 * ms / self.update:.0f}") for n, ms in every.items()]

    def _repr_html_(self) -> str:
        return f"<pre>{self}</pre>"

    def __str__(self) -> str:
        rows = [("part", "ms", "%"), *self.rows()]
        return "\n".join(f"{name:<16}{ms:>10}{share:>6}" for name, ms, share in rows)


def profile_step(
    network: AbstractPCNetwork,
    evidence: Evidence,
    *,
    learning: AbstractLearning,
    optimizer: optax.GradientTransformation,
    key: PRNGKey | None = None,
    repeats: int = 20,
) -> StepProfile:
    """Measure where the time of one update goes, on one batch.

    Of `pc.learning.PredictiveCoding` the parts are start, inference, weight gradient and optimizer; of other
    rules with a gradient, gradient and optimizer; of a rule whose weights move within inference there are no
    parts. Each is compiled alone, called once, and then all in turn, `repeats` times; the median is told.
    What a start learns, and gradients at more samples than the last, are in the remainder. Reading data,
    metrics and everything else around the update is not in it.

    Args:
        network: not changed; measured in the mode that it is in.
        evidence: one batch, as a data set yields it, or `pc.Evidence(x, y)`.
        learning: the rule.
        optimizer: an optax transformation, measured from its first state.
        key: randomness for rules that want it; `jax.random.key(0)` unless given.
        repeats: how often each program is timed.

    Raises:
        TypeError: where `learning` is no learning rule.
        ValueError: for no repeats, or a network that the rule cannot train.

    >>> import jax.numpy as jnp, optax, pcflax as pc
    >>> from flax import nnx
    >>> network = pc.models.mlp(3, 4, 2, rngs=nnx.Rngs(0))
    >>> rule = pc.learning.PredictiveCoding(pc.inference.GradientDescent(0.1, num_steps=20))
    >>> found = pc.analysis.profile_step(network, pc.Evidence(jnp.ones((8, 3)), jnp.ones((8, 2))),
    ...                                  learning=rule, optimizer=optax.adam(1e-3), repeats=3)
    >>> list(found.parts)
    ['start', 'inference', 'weight gradient', 'optimizer']
    """
    repeats = expect_count("profile_step", "repeats", repeats, least=1)
    example = "pc.learning.PredictiveCoding(pc.inference.GradientDescent(0.1))"
    rule: Any = expect_kind("profile_step", "learning", learning, AbstractLearning, example)
    rule.check(network)
    pure, key = split(network), jax.random.key(0) if key is None else key
    state = optimizer.init(pure.parameters)
    size = network.known(evidence).batch_size

    def update(pure, state, evidence):
        new, state, _ = rule.update(pure, optimizer, state, evidence, key=key)
        return new.parameters, state

    programs: dict[str, tuple[Callable, tuple]] = {}

    def add(name: str, function: Callable, *arguments: Any) -> Any:
        compiled = jax.jit(function).lower(*arguments).compile()
        programs[name] = (compiled, arguments)
        return jax.block_until_ready(compiled(*arguments))

    if type(rule) is PredictiveCoding:
        start, inference, gradient = _parts(rule, key)
        begun = add("start", start, pure, evidence)
        activities = add("inference", inference, pure, evidence, begun)
        gradients, energies = add("weight gradient", gradient, pure, evidence, activities)
    elif isinstance(rule, AbstractGradientLearning):

        def whole(pure, evidence):
            found, info = rule.gradients(pure, evidence, key=key)
            return found, info.energies

        gradients, energies = add("gradient", whole, pure, evidence)
    if programs:

        def move(pure, state, gradients, energies):
            new, state = apply(pure, optimizer, state, gradients, energies)
            return new.parameters, state

        add("optimizer", move, pure, state, gradients, energies)  # type: ignore[possibly-undefined]
    add("update", update, pure, state, evidence)
    medians = _medians(programs, repeats)
    return StepProfile(
        {n: ms for n, ms in medians.items() if n != "update"}, medians["update"], size
    )


def _parts(rule: Any, key: PRNGKey) -> tuple[Callable, Callable, Callable]:
    """Return start, inference from there, and the gradient at its end; what a part is given it leaves out."""
    start_key, solve_key = jax.random.split(key)

    def problem(pure, evidence):
        return rule.problem(pure, evidence, key=start_key)

    def start(pure, evidence):
        return problem(pure, evidence).start

    def inference(pure, evidence, start):
        begun = dataclasses.replace(problem(pure, evidence), start=start)
        return rule.inference.solve(begun, key=solve_key).activities

    def gradient(pure, evidence, activities):
        asked = problem(pure, evidence)
        return asked.network.mean_gradients(
            activities,
            asked.inputs,
            asked.weights,
            untouched=rule.inference.untouched(asked),
            of_examples=evidence.weights,
        )

    return start, inference, gradient


def _medians(programs: Mapping[str, tuple[Callable, tuple]], repeats: int) -> dict[str, float]:
    """Return the median milliseconds of each, timed in turn, so that a slow moment meets all."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, (program, arguments) in programs.items():
            began = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            times[name].append(1e3 * (time.perf_counter() - began))
    return {name: float(np.median(own)) for name, own in times.items()}
