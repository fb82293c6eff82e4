"""Diagnosis: what the numbers of health mean, in sentences, with what to try."""

from __future__ import annotations

import math
from typing import NamedTuple

from pcflax.inference import CurvatureDescent, ErrorCoordinates, GradientDescent, Langevin
from pcflax.learning import AbstractLearning

from .alignment import Credit


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
    """

    energy: float
    start_energy: float
    equilibrium_energy: float
    gap_closed: float
    residual: float
    largest_eigenvalue: float
    energy_share: dict[str, float]


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
            f"{saturated:.0%} of its activations are saturated: smaller initial weights, normalised "
            f"inputs or a lower learning rate"
        )
    if norm is None:
        return "it has no parameters to learn"
    if 0 < largest < math.inf and norm < 1e-6 * largest:
        remedy = "; more steps, a larger step size or ErrorCoordinates" if inference else ""
        return (
            f"it hardly learns (a gradient {norm / largest:.0e} times the largest layer's, where Adam's "
            f"eps may swallow it): the error does not reach it{remedy}"
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
    return "nothing wrong"


def step_limit(inference: InferenceHealth | None, learning: AbstractLearning) -> float | None:
    """Return the step size below which the rule's inference is stable; None where it takes no such step."""
    algorithm = getattr(learning, "inference", None)
    if isinstance(algorithm, ErrorCoordinates):
        algorithm = algorithm.inference
    if inference is None or not isinstance(
        algorithm, GradientDescent | CurvatureDescent | Langevin
    ):
        return None
    return 2 / inference.largest_eigenvalue if inference.largest_eigenvalue > 0 else None


def unreached(credit: Credit) -> list[str]:
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
    named = ", ".join(f"'{name}'" for name in names[:3]) + (", ..." if len(names) > 3 else "")
    return (
        f"only some layers learn, the gradient hardly reaches {named} ({len(names)} of "
        f"{len(credit.norm) - 1} layers), though accuracy may look fine"
    )


def summary(inference: InferenceHealth | None, credit: Credit, learning: AbstractLearning) -> str:
    """Say in a sentence or two whether this is predictive coding."""
    total = credit.cosine["total"]
    cosine = f"its weight gradient has cosine {total:.3f} with backpropagation's"
    unlearning = unreached(credit)
    if unlearning:
        cosine += f"; {unreached_words(unlearning, credit)}"
    if math.isnan(total):
        cosine = "its weight gradient or backpropagation's is zero, or not finite"
    if inference is None:
        return f"{type(learning).__name__} does no inference on the energy; {cosine}"
    if inference.largest_eigenvalue == 0 and inference.residual == 0:
        return (
            f"no activity is free, or the energy has no slope: there is nothing to infer; {cosine}"
        )
    algorithm, closed = getattr(learning, "inference", None), inference.gap_closed
    limit = step_limit(inference, learning)
    stable = "" if limit is None else f" (stable below {limit:.3g})"
    samples = getattr(getattr(algorithm, "inference", algorithm), "temperature", 0) > 0
    if not math.isfinite(inference.energy) or (closed < 0 and not samples):
        return (
            f"inference diverges: take a smaller step size{stable}, or "
            f'GradientDescent(step_size="auto")'
        )
    if samples:
        above = inference.energy - inference.equilibrium_energy
        return (
            f"inference samples, at {above:.3g} nats above the least energy (half a nat for each free "
            f"unit at temperature 1); {cosine}"
        )
    if math.isnan(closed):
        return f"the energy is at its minimum at the start: there is nothing to infer; {cosine}"
    if closed < 0.5:
        close = ", so this is close to backpropagation" if total > 0.95 else ""
        return (
            f"inference closes {closed:.1%} of the energy gap{close}; {cosine}; to reach the equilibrium "
            f"take more steps, a larger step size{stable}, ErrorCoordinates or NewtonCG"
        )
    return f"inference closes {closed:.1%} of the energy gap: this is predictive coding; {cosine}"
