"""The start by direct feedback: the output's error moves every free activity at once, before inference."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pcflax.checks import expect_count, expect_number
from pcflax.dtypes import common_dtype
from pcflax.layers import Evidence
from pcflax.layers.clamps import Clamps
from pcflax.networks import AbstractPCNetwork, SplitNetwork
from pcflax.networks.batch_state import with_batch_statistics
from pcflax.settings import Settings
from pcflax.typing import Activities, Initializer, PyTree

from .kept import AbstractKeptStart, free_shapes


@dataclasses.dataclass(frozen=True)
class DirectFeedback(AbstractKeptStart):
    """z_l = mu_l + scale * e_L Psi_l: the pass upward, moved by the output's error through learned weights.

    Ordinary steps of inference bring an error down one layer a step, and smaller at each. Here every layer
    has some of it before the first step. The weights Psi_l learn from where inference ended, as those of
    Kolen and Pollack do, by what the output's error and the activity say alone:

        Psi_l <- Psi_l + rate * (mean_i w_i e_L z_l^T - decay * Psi_l), where examples have weights w_i.

    Below the output that is the update of the output's own weights, so that Psi and these come to each other
    where both decay alike. e_L is the output's activity less the mean of its prediction; where a target is
    not known it is 0, and the start the feedforward pass.

    It is for few steps in a deep chain, where none of the error would arrive below. Where `scale` is large,
    the start is further from the equilibrium than the pass upward is, and learning is worse than without.

    Kept are (output features) x (free activities) numbers, in checkpoints as well, of 32 bits at least; they
    begin as N(0, 2 / (n_l + n_L)), anew for other data.

    Args:
        rate: of Psi, positive.
        decay: of Psi, at least 0; Psi shrinks by rate * decay a step.
        scale: how far the start is moved, positive.
        seed: of the first weights.

    Raises:
        TypeError, ValueError: for numbers out of range; on `begin`, for several outputs or a stack on top.

    Source: after Casnici et al. (2026), direct Kolen-Pollack predictive coding, arXiv 2602.15571, whose
    abstract we have read; Kolen & Pollack (1994), ICNN, for the rule. Deepity, which implements the former,
    moves the weights below each layer by this feedback instead of the activities, and Psi by AdamW.

    >>> import pcflax as pc
    >>> descent = pc.inference.GradientDescent(0.15, num_steps=2)
    >>> rule = pc.learning.PredictiveCoding(descent, pc.initializers.DirectFeedback(rate=1e-3))
    """

    rate: float = 1e-3
    decay: float = 1e-4
    scale: float = 0.1
    seed: int = 0

    def __post_init__(self):
        object.__setattr__(self, "rate", expect_number(self, "rate", self.rate, above=0))
        object.__setattr__(self, "decay", expect_number(self, "decay", self.decay, least=0))
        object.__setattr__(self, "scale", expect_number(self, "scale", self.scale, above=0))
        object.__setattr__(self, "seed", expect_count(self, "seed", self.seed))

    def begin(self, network: AbstractPCNetwork | SplitNetwork, data: Any) -> PyTree:
        """Return random weights from the output's error to every free activity, by layer."""
        bound = network.bind() if isinstance(network, SplitNetwork) else network
        name = bound.outputs[0]
        if not bound.one_output or bound.layer(name).num_nodes > 1:
            raise ValueError(
                "DirectFeedback sends the error of one output down, and this network has several, or a stack "
                "on top; give it one output of one node"
            )
        shapes = free_shapes(network, data)
        output = jax.eval_shape(lambda evidence: bound.start(evidence)[name], data.spec())
        out = math.prod(output.shape[1:])
        keys = jax.random.split(jax.random.key(self.seed), len(shapes))
        weights = {}
        for key, (layer, shape) in zip(keys, shapes.items(), strict=True):
            size = math.prod(shape.shape[1:])
            dtype = common_dtype(shape.dtype, jnp.float32)  # 16 bits would round the moves away
            first = jax.random.normal(key, (out, *shape.shape[1:]), dtype)
            weights[layer] = math.sqrt(2 / (size + out)) * first
        return weights

    def at(self, state: PyTree, evidence: Evidence) -> FedBack:
        """Return the start by these weights, alike for every batch."""
        del evidence
        return FedBack(state, self.scale)

    def after(self, state, evidence, activities, *, network, applied=True) -> PyTree:
        """Return the weights after a step of learning from where inference ended."""
        known = network.bind().known(evidence)
        # at the statistics that inference ran with, where layers normalize over the batch
        bound = with_batch_statistics(network, known).bind(activities)
        error = output_error(bound, activities, bound.predictions(known.inputs), known.clamps)
        if known.weights is not None:
            error = jnp.asarray(known.weights, error.dtype)[:, None] * error

        def moved(weights, activity):
            errors, activity = error.astype(weights.dtype), activity.astype(weights.dtype)
            outer = jnp.tensordot(errors, activity, axes=[0, 0]) / len(error)
            new = weights + self.rate * (outer - self.decay * weights)
            return jnp.where(applied, new.astype(weights.dtype), weights)

        return {name: moved(weights, activities[name]) for name, weights in state.items()}


@dataclasses.dataclass(frozen=True)
class FedBack(Settings, Initializer):
    """Begin at the feedforward pass, moved by the output's error through given weights.

    Attributes:
        weights: {layer name: (output features, *features)}.
        scale: how far.
    """

    weights: dict[str, Array]
    scale: float

    def __call__(self, network, inputs, *, batch_size, clamps, key) -> Activities:
        """Return the start of every activity by layer name."""
        del key  # deterministic
        passed = network.pass_upward(inputs, batch_size=batch_size, clamps=clamps)
        start = dict(passed.activities)
        error = output_error(network, start, passed.predictions, clamps)
        for name, weights in self.weights.items():
            move = self.scale * jnp.tensordot(error.astype(weights.dtype), weights, axes=1)
            start[name] = (start[name].astype(move.dtype) + move).astype(start[name].dtype)
        return start


def output_error(
    network: AbstractPCNetwork,
    activities: Activities,
    predictions: Mapping[str, Array],
    clamps: Clamps,
) -> Float[Array, "batch out"]:
    """Return the output's activity less the mean of its prediction, 0 where it is not known, by example."""
    name = network.outputs[0]
    activity = activities[name]
    error = activity - network.layer(name).energy.mean(predictions[name])
    if name not in clamps:
        error = jnp.zeros_like(error)
    elif clamps[name].mask is not None:
        error = jnp.where(clamps[name].held(), error, 0)
    return error.reshape(len(error), -1)
