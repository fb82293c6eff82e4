"""Nudged predictive coding: the output is clamped a little way from its prediction to the target."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array

from pcflax.checks import expect_number
from pcflax.dtypes import product, promoted
from pcflax.inference import AbstractInference, InferenceProblem, expect_algorithm, make_problem
from pcflax.layers import Clamp, Evidence
from pcflax.networks import AbstractPCNetwork, SplitNetwork
from pcflax.typing import Initializer, PRNGKey, PyTree

from .base import AbstractGradientLearning, LearningInfo


@dataclasses.dataclass(frozen=True)
class Nudged(AbstractGradientLearning):
    """Clamp the output to p - beta * (p - y), infer, and take 1/beta times the gradient over theta.

    p is the mean of the output's feedforward prediction (for logits, the probabilities); it is held
    for the batch. beta > 0 is positive nudging (PN; 1 is predictive coding itself), beta < 0 pushes
    the output away from the target and turns the gradient round (NN), and `centred` averages both
    signs, which removes the gradient's error of first order in beta (CN).

    As beta goes to 0 at equilibrium, the errors of a linear chain go to beta * J^T S^-1 r, where
    backpropagation has J^T r: r is the output's error and S (see `pc.analysis.DeepLinear`) tells how
    much of it the hidden layers take over, since the output is clamped. The two are parallel only
    where S is a multiple of the identity. `weighted` instead clamps the output to the target itself
    and weighs its energy by beta, as equilibrium propagation does: that gradient goes to
    backpropagation's as beta goes to 0. Both limits want a network that is at its minimum, with no
    gradient, where the output is free; `ActivityDecay` and `LearnedGaussian` layers are not, and a part
    of the order 1/beta is then left, which only `centred` cancels.

    Args:
        inference: the algorithm that infers z.
        beta: the strength, not 0; or a schedule, a function of the number of batches learned from, as
            optax's are.
        centred: whether to infer with beta and with -beta, at twice the cost, and average.
        weighted: whether to weigh the output's energy by beta instead of moving its clamp.
        initializer: where the free activities start: the feedforward pass unless given.

    Raises:
        TypeError: where `inference` is not an algorithm, or `beta` neither number nor schedule.
        ValueError: for beta 0; on use without targets.

    Source: Pinchetti et al. (2024), arXiv 2407.01163, for the clamp; Scellier & Bengio (2017), Frontiers
    in Computational Neuroscience 11, for the weight; Laborieux et al. (2021), Frontiers in Neuroscience
    15, for the centred estimate.

    >>> import pcflax as pc
    >>> inference = pc.inference.GradientDescent(0.1, num_steps=20)
    >>> pc.learning.Nudged(inference, beta=0.5, centred=True).beta
    0.5
    """

    weighs_examples: ClassVar[bool] = True
    inference: AbstractInference
    beta: float | Callable[[Array], Array] = dataclasses.field(default=0.5, kw_only=True)
    centred: bool = dataclasses.field(default=False, kw_only=True)
    weighted: bool = dataclasses.field(default=False, kw_only=True)
    initializer: Initializer | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self):
        expect_algorithm(self, self.inference)
        if callable(self.beta):
            return
        beta = expect_number(self, "beta", self.beta)
        if not isinstance(beta, Tracer) and beta == 0:
            raise ValueError(
                f"Nudged expected a beta that is not 0 (above 0 towards the target, below 0 away from "
                f"it), got {beta}"
            )
        object.__setattr__(self, "beta", beta)

    def check(self, network: AbstractPCNetwork) -> None:
        """Refuse several outputs."""
        network.check_one_output("Nudged moves the clamp of one")
        super().check(network)

    def gradients(self, network, evidence, *, key, step=0) -> tuple[PyTree, LearningInfo]:
        """Return the gradient of the batch-mean energy at the nudged equilibrium, divided by beta."""
        if evidence.targets is None:
            raise ValueError("Nudged needs targets: the output is nudged towards them")
        self.check(network.bind())
        beta = self._beta(step)
        prediction = _predicted(network, evidence)

        def nudged(beta) -> tuple[PyTree, LearningInfo]:
            start_key, solve_key = jax.random.split(key)
            problem = self._problem(network, evidence, prediction, beta, start_key)
            result = self.inference.solve(problem, key=solve_key)
            gradients, energies = problem.network.mean_gradients(
                result.activities,
                problem.inputs,
                problem.weights,
                untouched=self.inference.untouched(problem),
                of_examples=evidence.weights,
            )
            gradients = jax.tree.map(
                lambda g: jnp.divide(*promoted(g, beta)).astype(g.dtype), gradients
            )
            status = result.status if self.inference.stops_at_tolerance else None
            return gradients, LearningInfo(result.activities, energies, prediction, status)

        gradients, info = nudged(beta)
        if self.centred:
            others, _ = nudged(-beta)
            gradients = jax.tree.map(lambda g, other: (g + other) / 2, gradients, others)
        return gradients, info

    def problem(
        self, network: SplitNetwork, evidence: Evidence, *, key: PRNGKey
    ) -> InferenceProblem:
        """Return what is inferred, at the beta of the first batch."""
        prediction = _predicted(network, evidence)
        return self._problem(network, evidence, prediction, self._beta(0), key)

    def _beta(self, step):
        return self.beta(jnp.asarray(step)) if callable(self.beta) else self.beta

    def _problem(self, network, evidence, prediction, beta, key) -> InferenceProblem:
        bound = network.bind()
        mean = bound.output_layer.energy.mean(prediction)
        target = evidence.targets
        if not self.weighted:
            known = target if isinstance(target, Clamp) else Clamp(target)
            back = product(beta, mean - known.value.astype(mean.dtype))
            moved = jnp.subtract(*promoted(mean, back))
            target = known._replace(value=moved) if isinstance(target, Clamp) else moved
        nudged = dataclasses.replace(evidence, targets=target)
        problem = make_problem(network, nudged, initializer=self.initializer, key=key)
        if not self.weighted:
            return problem
        weight = bound.layer(bound.output).weigh_top_node(beta)
        return dataclasses.replace(problem, weights={bound.output: weight})


def _predicted(network: SplitNetwork, evidence: Evidence) -> Array:
    """Return the output's feedforward prediction, from all that is known but targets."""
    bound = network.bind()
    known = bound.known(evidence)
    return bound.predict(evidence.inputs, batch_size=known.batch_size, clamps=known.clamps)
