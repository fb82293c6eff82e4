"""Health: whether a network is really doing predictive coding, and what to try where it is not.

Each number answers a question: does inference reach its equilibrium (residual, fraction of the energy
gap closed, in total and by each layer's own energy), does the error reach the early layers (energy share,
gradient norms), do they learn what backpropagation would teach them (alignment of gradients, and of what
the optimizer makes of them), and can their units respond at all (dead and saturated units). All judge layer
by layer: in the whole gradient, and in the whole energy, the output outweighs the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from pcflax.energies import LearnedGaussian, total_energy
from pcflax.inference import (
    AbstractInference,
    CurvatureDescent,
    ErrorCoordinates,
    InferenceProblem,
    NewtonCG,
    make_problem,
)
from pcflax.inference.curvature import largest_eigenvalue, random_direction
from pcflax.inference.error_coordinates import error_problem
from pcflax.inference.newton import AbstractNewton
from pcflax.inference.solve import choose
from pcflax.layers import Evidence, PCDense, PCLayer
from pcflax.learning import AbstractLearning, AugmentedLagrangian, FixedPrediction, Implicit
from pcflax.networks import AbstractPCNetwork, SplitNetwork, split
from pcflax.typing import PRNGKey

from .alignment import Credit, displacement_alignment, gradient_alignment
from .diagnosis import (
    UNBOUNDED,
    InferenceHealth,
    largest_step_size,
    layer_sentence,
    step_limit,
    summary,
)

# As `unit_health` says.
_DEAD, _SATURATED = 1e-5, 0.1


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
        displacement: the cosine of what the optimizer adds to the weights with what it adds by
            backpropagation, by layer and in total; None where none was given.
    """

    credit: Credit
    dead: dict[str, float]
    saturated: dict[str, float]
    inference: InferenceHealth | None
    sentences: dict[str, str]
    summary: str
    displacement: dict[str, float] | None = None


# What finds the equilibrium, where examples can be solved apart (not with dropout).
REFERENCE = NewtonCG(num_steps=15)


def health(
    network: AbstractPCNetwork,
    inputs: Array | None,
    targets: Array,
    *,
    learning: AbstractLearning,
    optimizer: optax.GradientTransformation | None = None,
    key: PRNGKey | None = None,
    reference: AbstractInference | None = None,
) -> Health:
    """Examine a network and the rule it is trained by on one batch, layer by layer.

    It is called close to backpropagation where every layer's gradient has a cosine above .99 with
    backpropagation's while less than half of the energy gap is closed.

    Args:
        network: not changed.
        inputs: (batch, *features), or None with a root.
        targets: (batch, *out).
        learning: the rule it is trained by.
        optimizer: what it is trained with, for the displacement: an optax transformation.
        key: randomness for rules that want it; `jax.random.key(0)` unless given.
        reference: what finds the equilibrium that the gap is measured to; `NewtonCG(num_steps=15)`
            unless given (with dropout, 200 steps of gradient descent).

    Raises:
        TypeError: where `learning` is no learning rule, or `optimizer` no optax transformation.
        ValueError, TypeError: for inputs or targets of a wrong shape or dtype.

    >>> import jax.numpy as jnp, optax, pcflax as pc
    >>> from flax import nnx
    >>> rngs = nnx.Rngs(0)
    >>> network = pc.PCNetwork([pc.PCDense(3, 4, activation=jnp.tanh, rngs=rngs),
    ...                         pc.PCDense(4, 2, rngs=rngs)])
    >>> rule = pc.learning.PredictiveCoding(pc.inference.GradientDescent(optax.sgd(0.2), num_steps=200))
    >>> x, y = jnp.eye(3), jnp.ones((3, 2))
    >>> found = pc.analysis.health(network, x, y, learning=rule)
    >>> round(found.inference.gap_closed, 3), round(found.inference.layer_gap_closed["layer_0"], 3)
    (1.0, 1.0)
    """
    network.check_batch(inputs, targets)
    credit = gradient_alignment(network, inputs, targets, learning=learning, key=key)
    displacement = None
    if optimizer is not None:
        displacement = displacement_alignment(
            network, inputs, targets, learning=learning, optimizer=optimizer, key=key
        )
    dead, saturated = unit_health(network, inputs)
    inference = inference_health(
        network,
        inputs,
        targets,
        learning=learning,
        key=key,
        reference=REFERENCE if reference is None else reference,
    )
    sentences = {
        name: layer_sentence(
            name, network.nodes, credit, dead[name], saturated.get(name), inference
        )
        for name in network.nodes
    }
    if inference is not None and not getattr(learning.inference, "temperature", 0):  # type: ignore[attr-defined]
        clamped = network.known(Evidence(inputs, targets)).clamps
        sentences |= dict.fromkeys(_unbounded(network, clamped), UNBOUNDED)
    told = summary(inference, credit, learning, displacement)
    return Health(credit, dead, saturated, inference, sentences, told, displacement)


def _unbounded(network: AbstractPCNetwork, clamped: Mapping[str, Any]) -> list[str]:
    """Return the hidden layers and free roots whose learned precision has no bound."""
    return [
        node
        for name in network.layer_names
        for node, layer in network.layer(name).each_node(name).items()
        if isinstance(layer.energy, LearnedGaussian)
        and not layer.energy.least_variance
        and node in network.nodes[:-1]
        and not (layer.is_root_node and name in clamped)
    ]


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
    # what these follow is not the energy alone, or knows no targets
    other = isinstance(learning, FixedPrediction | AugmentedLagrangian | Implicit)
    if not isinstance(inference, AbstractInference) or other:
        return None
    if network.fed_back:
        return None
    key = jax.random.key(0) if key is None else key
    found = _inference_health(split(network), Evidence(inputs, targets), key, learning, reference)
    for part in ("layers", "closed"):  # in the network's order, which jax.tree.map would sort
        by_node = network.by_node(found[part])
        found[part] = {name: float(by_node[name]) for name in network.nodes}
    for part in ("start", "equilibrium", "residual", "eigenvalue"):
        found[part] = float(found[part])
    gap = found["start"] - found["equilibrium"]
    total = sum(found["layers"].values())
    step_size = largest_step_size(learning)
    limit = step_limit(found["eigenvalue"], learning)
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
        layer_gap_closed=found["closed"],
        step_size=step_size,
        stability=float("nan") if limit is None else step_size / limit,
    )


def unit_health(
    network: AbstractPCNetwork, inputs: Float[Array, " batch *in"] | None
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the fractions of dead and of saturated units by layer, at the feedforward activities.

    Dead: the activity varies over the batch by less than 1e-5 of the layer's root mean square.
    Saturated: the slope of the activation, averaged over the batch, is below a tenth of its steepest;
    for `PCDense` layers with an activation, and not counting dead units. A batch of one says nothing
    of dead units.
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
    start = problem.energies(problem.start)
    if isinstance(reference, AbstractNewton) and not problem.separable:
        reference = CurvatureDescent(num_steps=200)
    if reference is None:
        equilibrium = jax.tree.map(lambda energy: jnp.full_like(energy, jnp.nan), start)
    else:
        # where inference got lower than the reference, that is the lowest energy known
        equilibrium = _lower(reference.solve(problem, key=key).energies, result.energies)
        equilibrium = _lower(equilibrium, start)
    return {
        "layers": {name: jnp.mean(energy, axis=0) for name, energy in result.energies.items()},
        "closed": jax.tree.map(_closed, start, result.energies, equilibrium),
        "start": jnp.mean(total_energy(start)),
        "equilibrium": jnp.mean(total_energy(equilibrium)),
        "residual": jnp.mean(result.residual),
        "eigenvalue": _eigenvalue(
            error_problem(problem) if isinstance(inference, ErrorCoordinates) else problem
        ),
    }


def _lower(one: dict, other: dict) -> dict:
    """Take each example from where its energy is lower; what is no number is not."""
    first = ~(total_energy(other) < total_energy(one))
    return choose(first, one, other)


def _closed(start: Array, end: Array, equilibrium: Array) -> Array:
    """Return `InferenceHealth.layer_gap_closed` of one layer, from energies with the batch first."""
    way = jnp.sum(jnp.abs(start - equilibrium), axis=0)
    left = jnp.sum(jnp.abs(end - equilibrium), axis=0)
    # less is rounding
    moves = way > 1e-6 * jnp.sum(jnp.abs(start) + jnp.abs(equilibrium), axis=0)
    return jnp.where(moves, 1 - left / jnp.where(moves, way, 1), jnp.nan)


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
