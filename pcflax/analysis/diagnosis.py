"""Diagnosis: what the numbers of health mean, in sentences, with what to try."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pcflax.inference import (
    AbstractIterativeInference,
    ErrorCoordinates,
    GradientDescent,
    Langevin,
)
from pcflax.learning import AbstractLearning, AugmentedLagrangian, Implicit

from .alignment import Credit

# Above which two directions are one to an optimizer, and which part of the stable limit is near its edge.
_PARALLEL, _EDGE = 0.99, 0.9
# Of optax.adam and of its kin: an element of the gradient far below it moves nothing.
_ADAMS_EPS = 1e-8


UNBOUNDED = (
    "its learned precision grows without end, since a free layer's error can go to 0, where the energy has "
    "no minimum: give its LearnedGaussian a least_variance, or infer by Langevin"
)


class InferenceHealth(NamedTuple):
    """The reach of a rule's inference, as means over the batch.

    Attributes:
        energy: F where it ended.
        start_energy: F where it began.
        equilibrium_energy: F at the equilibrium that a reference reached from there; NaN without one.
        gap_closed: (start - end) / (start - equilibrium): 1 at the equilibrium, 0 where nothing moved,
            negative where the energy rose; NaN without a reference.
        residual: root mean square of dF/dz where it ended.
        largest_eigenvalue: of the Hessian at the start, in the coordinates that the algorithm moves
            (activities, or errors), the largest over the batch; gradient descent is stable for step
            sizes below 2 over it.
        energy_share: {layer: its part of the energy where inference ended}.
        layer_gap_closed: {layer: 1 - sum_i |E_i - E*_i| / sum_i |E0_i - E*_i|}, of its own energy at the
            end, the start and the equilibrium, over the examples i: 1 at the equilibrium, 0 at the start,
            negative where it went away, and as much where a layer's energy has to rise (a hidden one's
            begins at 0) as where it has to fall. NaN without a reference, and where a layer's energy has
            no way to go (less than a millionth of it).
        step_size: the largest that the rule's gradient descent or sampling takes; NaN where there is none
            to tell (chosen by curvature, held by a guard, an optimizer that scales).
        stability: that over the largest stable one; near 1 at the edge, NaN where there is none to tell.
    """

    energy: float
    start_energy: float
    equilibrium_energy: float
    gap_closed: float
    residual: float
    largest_eigenvalue: float
    energy_share: dict[str, float]
    layer_gap_closed: dict[str, float]
    step_size: float
    stability: float


def layer_sentence(
    name: str,
    names: tuple[str, ...],
    credit: Credit,
    dead: float,
    saturated: float | None,
    inference: InferenceHealth | None,
) -> str:
    """Say what is most wrong with a layer and what to try."""
    norms = {key: norm for key, norm in credit.norm.items() if key != "total"}
    norm, largest = norms.get(name), max(norms.values(), default=0.0)
    cosine = credit.cosine.get(name, float("nan"))
    if norm is not None and not math.isfinite(norm):
        return "its gradient is not finite: lower the step size of inference or the learning rate"
    if dead >= 0.5:
        return (
            f"{dead:.0%} of its units are dead (the same for every example): lower the learning rate, or "
            f"try another activation or initializer"
        )
    if saturated is not None and saturated >= 0.5:
        return (
            f"{saturated:.0%} of its activations are saturated: smaller initial weights, normalized "
            f"inputs or a lower learning rate"
        )
    if norm is None:
        return "it has no weights to learn"
    if 0 < largest < math.inf and norm < 1e-6 * largest:
        return (
            f"it hardly learns (a gradient {norm / largest:.0e} times the largest layer's, where Adam's "
            f"eps may swallow it): the error does not reach it{_more(inference)}"
        )
    if name in find_swallowed(credit):
        return (
            f"it does not learn by Adam, whose eps of {_ADAMS_EPS:g} swallows its gradient, "
            f"{credit.rms[name]:.0e} an element: the error does not reach it{_more(inference)}"
        )
    if inference is not None and name != names[-1] and 0 <= inference.energy_share[name] < 1e-6:
        return (
            "inference leaves it no part of the error to speak of, so what it learns is close to "
            "backpropagation: more steps or a larger step size"
        )
    if cosine < 0:
        return (
            f"its gradient points away from backpropagation's (cosine {cosine:.2f}): see whether "
            f"inference converges, and with what step size"
        )
    if (
        inference is not None
        and inference.gap_closed >= 0
        and inference.layer_gap_closed[name] < 0.5
    ):
        closed = inference.layer_gap_closed[name]
        close = ", and it learns as by backpropagation" if cosine > _PARALLEL else ""
        return (
            f"inference takes its energy {closed:.0%} of the way to the equilibrium{close} (cosine "
            f"{cosine:.3f}): more steps or a larger step size"
        )
    return "nothing wrong"


def _more(inference: InferenceHealth | None) -> str:
    descends = inference is not None and not inference.gap_closed < 0
    return "; more steps, a larger step size or ErrorCoordinates" if descends else ""


def step_limit(largest_eigenvalue: float, learning: AbstractLearning) -> float | None:
    """Return the step size below which the rule's inference is stable; None where it takes no such step."""
    algorithm = _descent(learning)
    stable = None
    if isinstance(algorithm, AbstractIterativeInference) and largest_eigenvalue > 0:
        stable = algorithm.stable_curvature
    return None if stable is None else float(stable) / largest_eigenvalue


def largest_step_size(learning: AbstractLearning) -> float:
    """Return the largest step size that a rule's inference is told to take; NaN where it is told none."""
    algorithm: Any = _descent(learning)
    if isinstance(algorithm, Langevin) and not algorithm.preconditioner:
        return float(algorithm.step_size)
    if not isinstance(algorithm, GradientDescent):
        return math.nan
    if (
        algorithm.guard == "clip" or algorithm.backoff is not None
    ):  # it takes smaller ones by itself
        return math.nan
    if algorithm.optimizer is not None:
        return _plain_rate(algorithm.optimizer)
    rates = algorithm.step_size
    return float(max(rates.values()) if isinstance(rates, Mapping) else rates)


def _descent(learning: AbstractLearning) -> Any:
    algorithm = getattr(learning, "inference", None)
    return algorithm.inference if isinstance(algorithm, ErrorCoordinates) else algorithm


def _plain_rate(optimizer: optax.GradientTransformation) -> float:
    """Return r where an optimizer adds -r times the gradient, again and again; else NaN."""
    optimizer, one = optax.with_extra_args_support(optimizer), {"x": jnp.ones(1)}
    try:
        state, rates = optimizer.init(one), []
        for size in (1.0, 2.0):
            gradient = {"x": jnp.full(1, size)}
            with jax.numpy_dtype_promotion("standard"):  # as training does
                updates, state = optimizer.update(gradient, state, one, value=jnp.zeros(()))
            rates.append(-float(updates["x"][0]) / size)  # type: ignore[index]
    except Exception:  # an optimizer of one's own may want other coordinates
        return math.nan
    return rates[0] if math.isclose(*rates, rel_tol=1e-5) else math.nan


def find_swallowed(credit: Credit) -> list[str]:
    """Return the layers whose gradient is below Adam's eps, element by element, while an error is there."""
    return [
        name
        for name, norm in credit.backprop_norm.items()
        if name != "total" and norm > 0 and credit.rms[name] < _ADAMS_EPS
    ]


def is_parallel(credit: Credit) -> bool:
    """Return whether every layer's gradient that is not zero has the direction of backpropagation's."""
    return _all_parallel(credit.cosine)


def _all_parallel(cosine: Mapping[str, float]) -> bool:
    """Return whether all directions are one; a layer without a gradient has none."""
    known = [own for name, own in cosine.items() if name != "total" and not math.isnan(own)]
    return bool(known) and min(known) > _PARALLEL


def is_backpropagation(inference: InferenceHealth | None, credit: Credit) -> bool:
    """Return whether a rule that infers does as backpropagation: half the gap open, all layers parallel."""
    return inference is not None and inference.gap_closed < 0.5 and is_parallel(credit)


def is_near_the_edge(inference: InferenceHealth | None) -> bool:
    """Return whether the step size of inference is within 10 % of the stable limit, or beyond it."""
    return inference is not None and inference.stability >= _EDGE


def edge_words(inference: InferenceHealth) -> str:
    """Describe how near the edge of stability inference is."""
    return (
        f"its step size of {inference.step_size:.3g} is {inference.stability:.0%} of the largest stable one, "
        f"which shrinks as training goes on: take a smaller one, or "
        f'GradientDescent(step_size="auto")'
    )


def find_unreached(credit: Credit) -> list[str]:
    """Return the layers that hardly learn while others do: the error does not reach them.

    Each layer's gradient norm is taken relative to backpropagation's; those are named whose part is
    below a thousandth of the largest layer's.
    """
    parts = {
        name: norm / credit.backprop_norm[name]
        for name, norm in credit.norm.items()
        if name != "total" and credit.backprop_norm[name] > 0
    }
    largest = max(parts.values(), default=0.0)
    return [name for name, part in parts.items() if part < 1e-3 * largest]


def unreached_words(names: list[str], credit: Credit) -> str:
    """Describe which layers get no gradient."""
    return (
        f"only some layers learn, the gradient hardly reaches {_listed(names, credit)}, though accuracy may "
        f"look fine"
    )


def swallowed_words(names: list[str], credit: Credit) -> str:
    """Describe which layers have too small a gradient for Adam."""
    return f"Adam's eps of {_ADAMS_EPS:g} swallows the gradient of {_listed(names, credit)}"


def backpropagation_words(inference: InferenceHealth) -> str:
    """Say that inference has not left backpropagation."""
    return (
        f"inference closes {inference.gap_closed:.1%} of the energy gap, so this is close to "
        f"backpropagation: every layer's weight gradient has its direction, which is all that Adam follows"
    )


def _listed(names: list[str], credit: Credit) -> str:
    named = ", ".join(f"'{name}'" for name in names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{named} ({len(names)} of {len(credit.norm) - 1} layers)"


def _range(cosine: Mapping[str, float]) -> str:
    """Return the least and the largest cosine of the layers."""
    found = [value for name, value in cosine.items() if name != "total" and not math.isnan(value)]
    ends = [f"{value:.3f}" for value in (min(found), max(found))] if found else ["unknown"]
    return " to ".join(dict.fromkeys(ends))


def _credit_words(credit: Credit, displacement: Mapping[str, float] | None) -> str:
    if math.isnan(credit.cosine["total"]):
        return "its weight gradient or backpropagation's is zero, or not finite"
    words = f"layer by layer, its weight gradient has cosine {_range(credit.cosine)} with backpropagation's"
    if displacement is not None:
        words += f", and what the optimizer makes of it {_range(displacement)}"
        if _all_parallel(displacement):
            words += ", so that the weights move as by backpropagation"
    if names := find_unreached(credit):
        words += f"; {unreached_words(names, credit)}"
    if names := find_swallowed(credit):
        words += f"; {swallowed_words(names, credit)}"
    return words


def summary(
    inference: InferenceHealth | None,
    credit: Credit,
    learning: AbstractLearning,
    displacement: Mapping[str, float] | None = None,
) -> str:
    """Say in a sentence or two whether this is predictive coding."""
    cosine = _credit_words(credit, displacement)
    if inference is None:
        what = "does no inference on the energy"
        if isinstance(learning, AugmentedLagrangian):
            what = "moves activities and multipliers at once, towards backpropagation's fixed point"
        if isinstance(learning, Implicit):
            what = "backpropagates through an equilibrium that knows no target"
        return f"{type(learning).__name__} {what}; {cosine}"
    if inference.largest_eigenvalue == 0 and inference.residual == 0:
        return (
            f"no activity is free, or the energy has no slope: there is nothing to infer; {cosine}"
        )
    algorithm, closed = getattr(learning, "inference", None), inference.gap_closed
    limit = step_limit(inference.largest_eigenvalue, learning)
    stable = "" if limit is None else f" (stable below {limit:.3g})"
    samples = getattr(getattr(algorithm, "inference", algorithm), "temperature", 0) > 0
    if not math.isfinite(inference.energy) or (closed < 0 and not samples):
        return (
            f"inference diverges: take a smaller step size{stable}, or "
            f'GradientDescent(step_size="auto")'
        )
    if is_near_the_edge(inference):
        cosine += f"; {edge_words(inference)}"
    if samples:
        above = inference.energy - inference.equilibrium_energy
        return (
            f"inference samples, at {above:.3g} nats above the least energy (half a nat for each free "
            f"unit at temperature 1); {cosine}"
        )
    if math.isnan(closed):
        return f"the energy is at its minimum at the start: there is nothing to infer; {cosine}"
    told = f"inference closes {closed:.1%} of the energy gap"
    by_layer = {n: part for n, part in inference.layer_gap_closed.items() if not math.isnan(part)}
    name = min(by_layer, key=lambda name: by_layer[name], default=None)
    remedy = (
        f"to reach the equilibrium take more steps, a larger step size{stable}, ErrorCoordinates or "
        f"NewtonCG"
    )
    if closed < 0.5:
        if is_backpropagation(inference, credit):
            told = backpropagation_words(inference)
        return f"{told}; {cosine}; {remedy}"
    if name is not None and by_layer[name] < 0.5:
        return f"{told}, but {by_layer[name]:.1%} in layer '{name}'; {cosine}; {remedy}"
    if name is not None:
        told += f", and at least {by_layer[name]:.1%} in every layer"
    return f"{told}: this is predictive coding; {cosine}"
