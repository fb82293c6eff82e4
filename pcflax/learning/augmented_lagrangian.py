"""Augmented Lagrangian predictive coding: multipliers sum up errors until they are backpropagation's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array

from pcflax.checks import expect_count, expect_number
from pcflax.dtypes import product
from pcflax.energies import Gaussian, total_energy
from pcflax.inference import (
    AbstractIterativeInference,
    InferenceProblem,
    expect_algorithm,
    make_problem,
)
from pcflax.layers import Evidence
from pcflax.layers.clamps import weighted_mean
from pcflax.networks import AbstractPCNetwork, SplitNetwork
from pcflax.typing import Activities, Energies, PRNGKey, PyTree

from .base import AbstractGradientLearning, LearningInfo


@dataclasses.dataclass(frozen=True)
class ShiftedProblem(InferenceProblem):
    """Inference with a shift u_l of each free layer's error: sum_l E_l(z_l + u_l, mu_l), weighed as ever.

    Attributes:
        shifts: {layer name: (batch, *features)}, lambda_l / rho; none for a layer that is not named.
        ratio: alpha/rho, how far the shifts follow the errors after `inner_steps` steps.
        inner_steps: of z, for each of the shifts.
    """

    shifts: Mapping[str, Array] = dataclasses.field(default_factory=dict, kw_only=True)
    ratio: float = dataclasses.field(default=1.0, kw_only=True)
    inner_steps: int = dataclasses.field(default=1, kw_only=True)

    @property
    def stable_part(self) -> Any:
        """The part of plain descent's largest step at which z and shifts are stable together.

        With a = ratio, k = inner_steps, an eigenvalue mu of F_rho's Hessian and a step h, one round is a
        linear map of trace 1 - a + (1 + a) q and determinant q = (1 - h mu)^k, which is stable for
        q > -w, w = (2 - a)/(2 + a): for h mu < 1 + w^(1/k), the root with the sign of w.
        """
        w = (2 - self.ratio) / (2 + self.ratio)
        return (1 + jnp.sign(w) * jnp.abs(w) ** (1 / self.inner_steps)) / 2

    def energies(self, coordinates: PyTree) -> Energies:
        """Return the energy of each example at each layer, with the errors shifted."""
        activities, predictions = self.activities_and_predictions(coordinates)
        # a layer's own error sees the shift, the layer above does not
        own = {name: activities[name] + shift for name, shift in self.shifts.items()}
        for name, clamp in self.partial.items():
            # the layer's weight is for what is free; data count as they do without a mask
            error = activities[name] - predictions[name]
            once = product(jnp.asarray(self.weights[name]) ** -0.5, error).astype(error.dtype)
            own[name] = jnp.where(clamp.held(), predictions[name] + once, own[name])
        return self.energies_of_pairs(({**activities, **own}, predictions))

    def errors(self, coordinates: PyTree) -> Activities:
        """Return r_l = z_l - mu_l of the free layers; 0 for elements that a mask clamps."""
        activities, predictions = self.activities_and_predictions(coordinates)
        errors = {name: activities[name] - predictions[name] for name in self.start}
        for name, clamp in self.partial.items():
            errors[name] = jnp.where(clamp.held(), 0, errors[name])
        return errors


@dataclasses.dataclass(frozen=True)
class AugmentedLagrangian(AbstractGradientLearning):
    """Descend F_rho over z, ascend it over a multiplier a free layer, then descend it over theta (PC-ALM).

    F_rho = E_out + sum over free layers of lambda_l . r_l + rho E_l, with the error r_l = z_l - mu_l: for
    precision 1 rho/2 ||r_l + lambda_l/rho||^2, up to what neither z nor theta moves. Multipliers begin at 0,
    and lambda_l <- lambda_l + alpha r_l after every `inner_steps` steps of z. At a precision p, rho p and
    alpha p stand in the places of rho and alpha. Without multipliers (alpha 0) it is predictive coding.

    An element that a mask holds has neither rho nor a multiplier: it counts as the output does.

    Minimizes: E_out subject to r_l = 0, for each example on its own.

    Fixed point: r_l = 0 and lambda_l = J_{l+1}^T lambda_{l+1}: the feedforward pass, and backpropagation's
    deltas. **In the limit this is backpropagation by another name**, not the equilibrium of predictive
    coding; what differs is that every step is local and that all layers move at once.

    Rate: an error still travels one layer a step, but arrives undiminished. Published, to 90 % of
    backpropagation's accuracy: steps as depth^1.27, where predictive coding takes depth^1.92.

    Cost a step: one evaluation of F_rho and its gradient, as predictive coding's; and the multipliers, as
    much memory as the activities.

    Fails: where steps are too large, though F_rho falls at every one, since the multipliers run away. With
    a = alpha/rho, w = (2 - a)/(2 + a) and k inner steps a linear network needs step_size < (1 + w^(1/k)) /
    lambda_max, the root with the sign of w: 4/3 of 1/lambda_max by default where plain inference has 2
    (lambda_max of F_rho's Hessian); a guard "clip" of the descent and `CurvatureDescent` hold to that,
    `backoff` does not help. A momentum of 1/(1 + a) or more is unstable at any step size, and refused. Deep
    networks do not come to rest at it. Of 32 layers with relu at their initial weights, the gradient's cosine
    with backpropagation's is .93 after 64 steps, .97 after 128 and .93 to .95 after 256 to 2,048, while
    errors stay where they were: it is accurate at a budget of two to four times the depth, and not in a
    limit. So residuals say nothing and there is no tolerance to stop at; choose `num_steps`. Where
    activations are curved and the output's error is of their size, F_rho is convex around the fixed point
    only for a larger rho (3, say, with alpha as large).

    Args:
        inference: the iterative algorithm that moves z, its `num_steps` those of the whole batch, such as
            `pc.inference.CurvatureDescent(num_steps=64)`, each example with 1/lambda_max of its own.
        rho: weight of the free layers' energies, above 0.
        alpha: step size of the multipliers, at least 0.
        inner_steps: steps of z for each of the multipliers; `num_steps` is a multiple of it.
        credit: whether weights learn with the multipliers from "before" or "after" their last step, which
            adds the last errors once more.

    Raises:
        TypeError: where `inference` is no iterative algorithm, or a number is none; on use, for `Sweeps`.
        ValueError: where it has momentum="auto" or too much, is `Chebyshev` or of Newton's kind; where it
            stops at a tolerance or its steps are no multiple of `inner_steps`; for numbers out of range,
            another `credit`; on use, for cycles, two predictors of a node, a free root, and a free layer
            whose energy is not `Gaussian`.

    Source: Seely & Gould (2026), arXiv 2605.31022, whose duals are these multipliers; the rates are a later
    public study's of their code. Precisions, masks and graphs are ours.

    >>> import pcflax as pc
    >>> descent = pc.inference.GradientDescent(0.25, guard="clip", num_steps=64)
    >>> rule = pc.learning.AugmentedLagrangian(descent)
    >>> rule.rho, rule.alpha, rule.inner_steps, rule.credit
    (1.0, 1.0, 1, 'before')
    """

    weighs_examples: ClassVar[bool] = True
    inference: AbstractIterativeInference
    rho: float = dataclasses.field(default=1.0, kw_only=True)
    alpha: float = dataclasses.field(default=1.0, kw_only=True)
    inner_steps: int = dataclasses.field(default=1, kw_only=True)
    credit: Literal["before", "after"] = dataclasses.field(default="before", kw_only=True)

    def __post_init__(self):
        expect_algorithm(self, self.inference, AbstractIterativeInference)
        checked = {
            "rho": expect_number(self, "rho", self.rho, above=0),
            "alpha": expect_number(self, "alpha", self.alpha, least=0),
            "inner_steps": expect_count(self, "inner_steps", self.inner_steps, least=1),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.inference.stops_at_tolerance:
            raise ValueError(
                "AugmentedLagrangian never comes to rest, so that a tolerance says nothing; give the "
                "algorithm num_steps instead, about twice the network's depth"
            )
        if self.inference.compares_energies or self.inference.finds_equilibrium:
            raise ValueError(
                f"AugmentedLagrangian moves its multipliers, and with them the energy, between the steps of "
                f"{type(self.inference).__name__}, whose steps compare energies or lead to an equilibrium; "
                f"give GradientDescent or CurvatureDescent, without momentum='auto'"
            )
        for one in (self.inference, *self.inference.parts):
            momentum = getattr(one, "momentum", None)
            numbers = (momentum, self.rho, self.alpha)
            if momentum is None or any(isinstance(number, Tracer) for number in numbers):
                continue
            most = self.rho / (self.rho + self.alpha)
            if momentum >= most:
                raise ValueError(
                    f"AugmentedLagrangian expected a momentum below rho/(rho + alpha) = {most:.3g}, since "
                    f"its multipliers sum up errors as it does, got {momentum}; lower it, or leave it out"
                )
        num_steps = self.inference.num_steps or 0
        if num_steps < 1 or num_steps % self.inner_steps:
            raise ValueError(
                f"AugmentedLagrangian expected num_steps, {num_steps}, to be a multiple of inner_steps, "
                f"{self.inner_steps}: the multipliers move after so many each; give the algorithm another"
            )
        if self.credit not in ("before", "after"):
            raise ValueError(
                f'AugmentedLagrangian expected credit "before" or "after", got {self.credit!r}'
            )

    def check(self, network: AbstractPCNetwork) -> None:
        """Refuse cycles, and nodes with two predictions, which no activity can satisfy at once."""
        super().check(network)
        network.check_acyclic("AugmentedLagrangian ends where a feedforward pass does")
        network.check_one_predictor("AugmentedLagrangian holds a node to its one prediction")

    def problem(self, network: SplitNetwork, evidence: Evidence, *, key: PRNGKey) -> ShiftedProblem:
        """Return what is inferred before the multipliers move: the free activities, with shifts of 0.

        Raises:
            ValueError: for a free root, or a free layer whose energy is not Gaussian.
        """
        plain = make_problem(network, evidence, key=key)
        bound = plain.network.bind()
        for name in plain.start:
            layer = bound.layer(name)
            energy = type(layer.top_node_layer().energy)
            if layer.is_root_node:
                raise ValueError(
                    f"layer '{name}' is a free root, which its prior does not determine, but "
                    f"AugmentedLagrangian holds free layers to their predictions; give inputs, or take "
                    f"pc.learning.PredictiveCoding"
                )
            if energy is not Gaussian:
                raise ValueError(
                    f"layer '{name}' is free and has the energy {energy.__name__}, but "
                    f"AugmentedLagrangian shifts the errors of Gaussian ones; give the layer "
                    f"pc.energies.Gaussian(), or take pc.learning.PredictiveCoding"
                )
        return ShiftedProblem(
            plain.network,
            plain.inputs,
            plain.clamps,
            plain.start,
            weights=dict.fromkeys(plain.start, self.rho),
            shifts=jax.tree.map(jnp.zeros_like, plain.start),
            ratio=self.alpha / self.rho,
            inner_steps=self.inner_steps,
            from_feedforward=plain.from_feedforward,
        )

    def gradients(self, network, evidence, *, key, step=0) -> tuple[PyTree, LearningInfo]:
        """Return the gradient of the batch-mean F_rho; the energies seen are the network's own, of z."""
        del step  # alike at every step
        self.check(network.bind())
        start_key, solve_key = jax.random.split(key)
        problem = self.problem(network, evidence, key=start_key)
        coordinates, problem = self._solve(problem, solve_key)
        untouched = self.inference.untouched(problem)  # their errors are 0, or rounding
        bound = problem.network.bind()
        reaches = {  # by node, of which a stack has several
            name: [node not in untouched for node in bound.layer(name).each_node_name(name)]
            for name in bound.layer_names
        }

        def mean_energy(parameters):
            now = problem.network.replace(parameters=parameters)
            energies = dataclasses.replace(problem, network=now).energies(coordinates)
            reached = {
                name: jnp.where(jnp.asarray(reaches[name]), own, 0)
                for name, own in energies.items()
            }
            return weighted_mean(total_energy(reached), evidence.weights)

        activities = problem.decode(coordinates)
        energies = problem.network.energies(activities, problem.inputs)
        prediction = problem.predicted(network)
        return (
            jax.grad(mean_energy)(problem.network.parameters),
            LearningInfo(activities, energies, prediction),
        )

    def _solve(self, problem: ShiftedProblem, key: PRNGKey) -> tuple[PyTree, ShiftedProblem]:
        """Return the free activities after all steps, and the problem with the shifts of the credit."""

        def moved(problem: ShiftedProblem, coordinates: PyTree) -> ShiftedProblem:
            # lambda/rho, so that alpha/rho; a precision then scales both steps by itself
            step = problem.ratio
            errors = problem.errors(coordinates)
            shifts = {
                name: (shift + step * errors[name]).astype(shift.dtype)
                for name, shift in problem.shifts.items()
            }
            return dataclasses.replace(problem, shifts=shifts)

        def both(carry, first):
            # the multipliers' step of the last round is made at the head of this one, where their errors
            # are had with the gradient; errors are 0 at the start, so that the first round's does nothing
            coordinates, state, shifts = carry
            now = moved(dataclasses.replace(problem, shifts=shifts), coordinates)

            def descend(carry, number):
                step_key = jax.random.fold_in(key, number)
                return self.inference.step(now, *carry, step=number, key=step_key)[:2], None

            numbers = first + jnp.arange(self.inner_steps)
            (coordinates, state), _ = jax.lax.scan(descend, (coordinates, state), numbers)
            return (coordinates, state, now.shifts), None

        carry = (problem.start, self.inference.init(problem), problem.shifts)
        numbers = jnp.arange(0, self.inference.num_steps or 0, self.inner_steps)
        (coordinates, _, shifts), _ = jax.lax.scan(both, carry, numbers)
        problem = dataclasses.replace(problem, shifts=shifts)
        return coordinates, moved(problem, coordinates) if self.credit == "after" else problem
