"""Health: whether a network is really doing predictive coding, and what to try where it is not.

Each number answers a question: does inference reach its equilibrium (residual, fraction of the energy
gap closed), does the error reach the early layers (energy share, gradient norms), do they learn what
they should (alignment), and can their units respond at all (dead and saturated units).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pcflax.inference import (
    AbstractInference,
    CurvatureDescent,
    ErrorCoordinates,
    GradientDescent,
    InferenceProblem,
    Langevin,
    NewtonCG,
    make_problem,
)
from pcflax.inference.curvature import largest_eigenvalue, random_direction
from pcflax.inference.error_coordinates import error_problem
from pcflax.inference.newton import AbstractNewton
from pcflax.layers import Evidence, PCDense, PCLayer
from pcflax.learning import AbstractLearning, FixedPrediction
from pcflax.networks import AbstractPCNetwork, SplitNetwork, split
from pcflax.typing import PRNGKey

from .alignment import Credit, gradient_alignment

# A unit is dead where it varies over the batch by less than this fraction of its layer's size, and
# saturated where its activation's slope is below this fraction of the steepest, on average.
_DEAD, _SATURATED = 1e-5, 0.1


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


class Health(NamedTuple):
    """The measures of `health`.

    Attributes:
        credit: the rule's weight gradients beside backpropagation's, by layer and in total.
        dead: {layer: fraction of its units that are the same for all examples}.
        saturated: {layer: fraction of its units on the flat part of their activation}; only layers
            whose activation is known (`PCDense`).
        inference: how far inference went; None for a rule without inference of its own.
        sentences: {layer: what is wrong and what to try, or that nothing is}.
        summary: the same for the inference and the network.
    """

    credit: Credit
    dead: dict[str, float]
    saturated: dict[str, float]
    inference: InferenceHealth | None
    sentences: dict[str, str]
    summary: str


# What finds the equilibrium, where examples can be solved apart (not with dropout).
_REFERENCE = NewtonCG(num_steps=15)


def health(
    network: AbstractPCNetwork,
    inputs: Array | None,
    targets: Array,
    *,
    learning: AbstractLearning,
    key: PRNGKey | None = None,
    reference: AbstractInference | None = None,
) -> Health:
    """Examine a network and the rule it is trained by on one batch.

    Args:
        network: not changed.
        inputs: (batch, *features), or None with a root.
        targets: (batch, *out).
        learning: the rule it is trained by.
        key: randomness for rules that want it; `jax.random.key(0)` unless given.
        reference: what finds the equilibrium that the gap is measured to; `NewtonCG(num_steps=15)`
            unless given (with dropout, 200 steps of gradient descent).

    Raises:
        TypeError: where `learning` is no learning rule.
        ValueError, TypeError: for inputs or targets of a wrong shape or dtype.

    >>> import jax.numpy as jnp, optax, pcflax as pc
    >>> from flax import nnx
    >>> rngs = nnx.Rngs(0)
    >>> network = pc.PCNetwork([pc.PCDense(3, 4, activation=jnp.tanh, rngs=rngs),
    ...                         pc.PCDense(4, 2, rngs=rngs)])
    >>> rule = pc.learning.PredictiveCoding(pc.inference.GradientDescent(optax.sgd(0.2), num_steps=200))
    >>> x, y = jnp.eye(3), jnp.ones((3, 2))
    >>> found = pc.analysis.health(network, x, y, learning=rule)
    >>> round(found.inference.gap_closed, 3)
    1.0
    """
    network.check_batch(inputs, targets)
    credit = gradient_alignment(network, inputs, targets, learning=learning, key=key)
    dead, saturated = unit_health(network, inputs)
    inference = inference_health(
        network,
        inputs,
        targets,
        learning=learning,
        key=key,
        reference=_REFERENCE if reference is None else reference,
    )
    sentences = {
        name: _layer_sentence(
            name, network.nodes, credit, dead[name], saturated.get(name), inference
        )
        for name in network.nodes
    }
    return Health(
        credit, dead, saturated, inference, sentences, _summary(inference, credit, learning)
    )


def inference_health(
    network: AbstractPCNetwork,
    inputs: Array | None,
    targets: Array | None,
    *,
    learning: AbstractLearning,
    key: PRNGKey | None = None,
    reference: AbstractInference | None = None,
) -> InferenceHealth | None:
    """Measure how far the inference of a rule goes on one batch; None where it has none on the energy.

    Without a `reference`, which costs as much as it takes to an equilibrium, no gap is measured.
    """
    inference = getattr(learning, "inference", None)
    if not isinstance(inference, AbstractInference) or isinstance(learning, FixedPrediction):
        return None
    key = jax.random.key(0) if key is None else key
    found = _inference_health(split(network), Evidence(inputs, targets), key, learning, reference)
    layers = network.by_node(found["layers"])
    found = jax.tree.map(float, found | {"layers": layers})
    gap = found["start"] - found["equilibrium"]
    total = sum(found["layers"].values())
    return InferenceHealth(
        energy=total,
        start_energy=found["start"],
        equilibrium_energy=found["equilibrium"],
        gap_closed=(found["start"] - total) / gap if gap > 0 else float("nan"),
        residual=found["residual"],
        largest_eigenvalue=found["eigenvalue"],
        energy_share={
            name: energy / total if total > 0 else float("nan")
            for name, energy in found["layers"].items()
        },
    )


def unit_health(
    network: AbstractPCNetwork, inputs: Float[Array, " batch *in"] | None
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the fractions of dead and of saturated units of each layer, at the feedforward activities.

    Dead: the activity varies over the batch by less than 1e-5 of the layer's root mean square.
    Saturated: the slope of the activation, averaged over the batch, is below a tenth of its steepest;
    for `PCDense` layers with an activation, and not counting dead units. A batch of one says nothing
    of dead units.

    Returns:
        ({layer: dead}, {layer: saturated}), fractions from 0 to 1.
    """
    dead, saturated = _unit_health(split(network), inputs)
    dead = {name: float(value) for name, value in network.by_node(dead).items()}
    return dead, {name: float(value) for name, value in network.by_node(saturated).items()}


@jax.jit
def _inference_health(network: SplitNetwork, evidence, key, learning, reference) -> Any:
    inference = learning.inference
    if hasattr(learning, "problem"):
        problem = learning.problem(network, evidence, key=key)
    else:
        problem = make_problem(network, evidence)
    result = inference.solve(problem, key=key)
    start = problem.energy(problem.start)
    equilibrium = jnp.full_like(start, jnp.nan)
    if isinstance(reference, AbstractNewton) and not problem.separable:
        reference = CurvatureDescent(num_steps=200)
    if reference is not None:
        # where inference got lower than the reference, that is the lowest energy known
        equilibrium = reference.solve(problem, key=key).energy
        equilibrium = jnp.minimum(equilibrium, jnp.minimum(start, result.energy))
    return {
        "layers": {name: jnp.mean(energy, axis=0) for name, energy in result.energies.items()},
        "start": jnp.mean(start),
        "equilibrium": jnp.mean(equilibrium),
        "residual": jnp.mean(result.residual),
        "eigenvalue": _eigenvalue(
            error_problem(problem) if isinstance(inference, ErrorCoordinates) else problem
        ),
    }


def _eigenvalue(problem: InferenceProblem) -> Array:
    if not problem.start:
        return jnp.zeros(())
    found = largest_eigenvalue(problem, problem.start, random_direction(problem), 30)
    return jnp.max(found.eigenvalue)


@jax.jit
def _unit_health(network: SplitNetwork, inputs) -> tuple[dict, dict]:
    bound = network.bind()
    batch_size = 1 if inputs is None else jax.tree.leaves(inputs)[0].shape[0]
    activities = bound.feedforward(inputs, batch_size=batch_size)
    bound.set_activities(activities)
    belows = bound.belows(inputs)
    dead, saturated = {}, {}
    for name in bound.names:
        layer, activity = bound.layer(name), activities[name]

        def units(layer, activity, below):
            return _units(layer, activity, below, batch_size)

        found = layer.map_nodes(units, activity, belows[name])
        dead[name] = found[0]
        if found[1] is not None:
            saturated[name] = found[1]
    return dead, saturated


def _units(
    layer: PCLayer, activity: Array, below: Array | None, batch_size: int
) -> tuple[Array, Array | None]:
    """Return the fractions of dead and of saturated units of one layer."""
    size = jnp.sqrt(jnp.mean(activity**2))
    constant = (jnp.std(activity, axis=0) <= _DEAD * size) & (batch_size > 1)
    # what stands at the input is data
    constant = constant & (not layer.is_root_node)
    activation = getattr(layer, "activation", None)
    if not isinstance(layer, PCDense) or activation is None or below is None:
        return jnp.mean(constant), None
    before = below if layer.activation_first else layer.affine(below)
    if layer.norm is not None:
        before = layer.norm(before)
    steepest = jnp.max(jnp.abs(_slope(activation, jnp.linspace(-5.0, 5.0, 101))))
    flat = jnp.mean(jnp.abs(_slope(activation, before)), axis=0) < _SATURATED * steepest
    if not layer.activation_first:
        flat = flat & ~constant
    return jnp.mean(constant), jnp.mean(flat)


def _slope(activation, at: Array) -> Array:
    return jax.jvp(activation, (at,), (jnp.ones_like(at),))[1]


def _layer_sentence(
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


def _summary(inference: InferenceHealth | None, credit: Credit, learning: AbstractLearning) -> str:
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
