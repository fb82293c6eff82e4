"""Error coordinates: the free variables are the prediction errors, and activities follow from them."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Collection

import jax.numpy as jnp
from jaxtyping import Array, Float

from pcflax.layers.evaluate import reads_itself
from pcflax.networks import AbstractPCNetwork
from pcflax.typing import Activities, Energies, PRNGKey, PyTree

from .base import AbstractInference, expect_algorithm
from .gradient import GradientDescent
from .problem import InferenceProblem
from .result import InferenceResult, Seen, Status
from .solve import expect_energy, finished


@dataclasses.dataclass(frozen=True)
class ErrorProblem(InferenceProblem):
    """The same energy over the errors e_l of the free layers: z_l = mu_l(z_{l-1}) + e_l, in order.

    Attributes:
        predicts_once: whether the predictions that make the activities are those that the energies see.
    """

    predicts_once: bool = dataclasses.field(default=False, kw_only=True)

    def decode(self, coordinates: PyTree) -> Activities:
        """Return all activities, from the bottom up; a clamped layer stands at its clamp."""
        return self.network.bind().feedforward(
            self.inputs, batch_size=self.batch_size, clamps=self.clamps, errors=coordinates
        )

    def encode(self, activities: Activities) -> PyTree:
        """Return e_l = z_l - mu_l(z_{l-1}) of the free layers."""
        bound = self.network.bind(activities)
        predictions = bound.predictions(self.inputs)
        return {
            name: activities[name] - bound.layer(name).energy.mean(predictions[name])
            for name in self.start
        }

    def energies(self, coordinates: PyTree, layers: Collection[str] | None = None) -> Energies:
        """Return the energies of all layers, by one prediction of each."""
        if layers is not None or not self.predicts_once:
            return super().energies(coordinates, layers)
        return self.energies_of_pairs(self.activities_and_predictions(coordinates))

    def activities_and_predictions(self, coordinates: PyTree) -> tuple[Activities, Activities]:
        """Return every layer's z and mu, from the bottom up."""
        if not self.predicts_once:
            return super().activities_and_predictions(coordinates)
        passed = self.network.bind().pass_upward(
            self.inputs, batch_size=self.batch_size, clamps=self.clamps, errors=coordinates
        )
        return passed.activities, passed.predictions


def error_problem(problem: InferenceProblem) -> ErrorProblem:
    """Return the same problem over errors, begun at the same activities."""
    fields = {field.name: getattr(problem, field.name) for field in dataclasses.fields(problem)}
    errors = ErrorProblem(**fields)
    activities = problem.decode(problem.start)
    return dataclasses.replace(
        errors,
        start=errors.encode(activities),
        predicts_once=_predicts_once(problem.network.bind(activities), problem.inputs),
    )


def _predicts_once(bound: AbstractPCNetwork, inputs: PyTree) -> bool:
    """Return whether a pass upward predicts as the energies do.

    Not where a layer reads its own activity, which is zero on the way up, where a layer that is not passed
    predicts another one's node, or where errors of rounding are left out.
    """
    numerics = bound.numerics
    if bound.layer_names != bound.names or numerics.rounds or numerics.untouched:
        return False
    belows = bound.belows(inputs)
    return not any(reads_itself(bound.layer(name), belows[name], numerics) for name in bound.names)


@dataclasses.dataclass(frozen=True)
class ErrorCoordinates(AbstractInference):
    """Run any algorithm on the errors e_l = z_l - mu_l instead of the activities (ePC).

    Minimizes: F(e) = sum over hidden layers of E_l(mu_l + e_l, mu_l), plus E_L(y, mu_L): the energy
    itself in other coordinates, with no error of the output beside it. A change of coordinates with
    unit Jacobian, so minima, and samples, are those of F(z).

    Fixed point: dF/de = 0, which is dF/dz = 0.

    Rate: that of the algorithm on a far better conditioned Hessian: each error reaches the output in
    one step, where an activity's change travels one layer a step.

    Cost a step: one evaluation of the energy and its gradient, as in activities, but layer after layer.

    Fails: where the feedforward map explodes, and with it dF/de.

    Source: Goemaere et al. (2025), arXiv 2505.20137.

    From the feedforward start, where e = 0, the first gradient dF/de is backpropagation's delta: one step
    makes the errors backpropagation's times the step size, exactly, and each layer's weight gradient
    parallel to its to first order in the step size. Small steps stay there, however many;
    `pc.analysis.health` tells how far inference went.

    The result's residual is of dF/dz, comparable with other algorithms; the tolerance of an adaptive
    stop, and the residuals of a trace, are of dF/de.

    Args:
        inference: the algorithm that moves the errors.

    Raises:
        TypeError: where `inference` is not an algorithm.

    Warns:
        UserWarning: where `inference` takes one step of gradient descent.

    >>> import optax, pcflax as pc
    >>> pc.inference.ErrorCoordinates(pc.inference.GradientDescent(optax.sgd(0.1))).inference.num_steps
    20
    """

    inference: AbstractInference

    def __post_init__(self):
        expect_algorithm(self, self.inference)
        inner = self.inference
        if isinstance(inner, GradientDescent) and 1 in (inner.num_steps, inner.max_steps):
            warnings.warn(
                "one step in error coordinates from the feedforward start is backpropagation, not "
                "predictive coding; take more steps to approach the equilibrium",
                UserWarning,
                stacklevel=3,
            )

    @property
    def parts(self) -> tuple[AbstractInference, ...]:
        """The algorithm that moves the errors."""
        return (self.inference,)

    @property
    def finds_equilibrium(self) -> bool:  # type: ignore[override]
        """Whether that algorithm does."""
        return self.inference.finds_equilibrium

    def check(self, network: AbstractPCNetwork) -> None:
        """Refuse cycles."""
        network.check_acyclic("error coordinates make activities of errors in an order")
        super().check(network)

    def overstep(self, problem: InferenceProblem) -> Float[Array, " batch"] | None:
        """Return how far steps in errors are above the largest stable one, if it warns."""
        return super().overstep(error_problem(problem))

    def solve(
        self, problem: InferenceProblem, *, key=None, trace=False, record=None
    ) -> InferenceResult:
        """Solve over errors, then tell energies and residual at the activities they stand for."""
        solve = self.inference.solve
        return solve_over_errors(self, problem, solve, key=key, trace=trace, record=record)


def solve_over_errors(
    owner: object,
    problem: InferenceProblem,
    solve: Callable[..., InferenceResult],
    *,
    key: PRNGKey | None,
    trace: bool,
    record: Callable[[Seen], PyTree] | None,
) -> InferenceResult:
    """Solve over errors, and tell energies and residual at the activities they stand for."""
    more = {} if record is None else {"record": record}
    expect_energy(owner, problem)
    result = solve(error_problem(problem), key=key, trace=trace, **more)
    ended = finished(problem, problem.encode(result.activities), result.num_steps)
    broken = ended.status == Status.NOT_FINITE
    return result._replace(
        energies=ended.energies,
        residual=ended.residual,
        status=jnp.where(broken, ended.status, result.status),
    )
