"""Feedback weights: errors go down through weights of their own, not through those that predict.

Predictive coding sends the error of a node down through W^T, the transpose of the weights that made its
prediction. Here they go through B^T, and B has the shape of W, so that the two can be compared:

    dz_{l-1} = -e_{l-1} + f'(z_{l-1}) * (e_l B^T),    dW = f(z_{l-1})^T e_l.

The forward pass and the gradient of W are unchanged. Inference then follows a vector field that is the
gradient of no energy, unless B = W. Next file to read: `affine.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array

from pcflax.checks import expect_kind
from pcflax.variables import FeedbackWeights

# Where dense layers and convolutions keep their module.
_MODULES = ("linear", "conv")


@dataclasses.dataclass(frozen=True)
class Feedback:
    """That a layer has feedback weights B, random at the start, and whether they learn.

    Fixed, this is feedback alignment: W turns towards B. Learned, it is the rule of Kolen and Pollack: B
    moves as W does, by f(z_{l-1})^T e_l, and both decay, so that B - W shrinks by the factor
    1 - learning_rate * decay at every step of `optax.sgd` after `optax.add_decayed_weights(decay)`; `adamw`
    likewise. Without a decay the difference stays as it is.

    Every learning rule works with it; in `Backprop` the delta goes down through B as well. Algorithms that
    want a curvature (`NewtonCG`, `GaussNewton`, `LinearSolve`, step_size="auto") refuse it.

    Args:
        learns: whether B learns.
        kernel_init: initializer of B; that of the layer's weights unless given.

    Source: Lillicrap et al. (2016), Nature Communications 7:13276; Kolen & Pollack (1994), ICNN;
    Akrout et al. (2019), arXiv 1904.05391; Millidge et al. (2020), arXiv 2010.01047, for predictive coding.

    >>> import pcflax as pc
    >>> from flax import nnx
    >>> layer = pc.PCDense(3, 5, feedback=pc.layers.Feedback(learns=True), rngs=nnx.Rngs(0))
    >>> layer.feedback.shape
    (3, 5)
    """

    learns: bool = False
    kernel_init: Callable[..., Array] | None = None


def make_feedback(
    owner: Any, feedback: Any, kernel: Any, kernel_init: Callable[..., Array], rngs: nnx.Rngs
) -> nnx.Variable:
    """Make a layer's feedback weights: parameters where they learn, else what nothing writes."""
    expect_kind(owner, "feedback", feedback, Feedback, "pc.layers.Feedback()")
    init = feedback.kernel_init or kernel_init
    kind = nnx.Param if feedback.learns else FeedbackWeights
    weights = init(rngs.params(), kernel.shape, kernel.dtype)
    return kind(weights if owner.mask is None else weights * owner.mask[...].astype(weights.dtype))


def through_feedback(layer: Any, features: Array) -> Array:
    """Compute a layer's affine map, whose error comes back through the feedback weights."""
    graphdef, parameters, rest = nnx.split(layer, nnx.Param, ...)
    name = next(name for name in _MODULES if name in parameters)
    learns = isinstance(layer.feedback, nnx.Param)

    def affine(parameters, rest, features):
        return nnx.merge(graphdef, parameters, rest, copy=True).affine(features)

    def forward(*arguments):
        return affine(*arguments), arguments

    def backward(arguments, error):
        parameters, rest, features = arguments
        (moves,) = jax.vjp(lambda own: affine(own, rest, features), parameters)[1](error)
        feedback = (parameters if learns else rest)["feedback"]
        if learns:
            moves = moves | {"feedback": moves[name]["kernel"]}
        kernel = feedback.astype(parameters[name]["kernel"].dtype)
        back = parameters | {name: parameters[name] | {"kernel": kernel}}
        (down,) = jax.vjp(lambda below: affine(back, rest, below), features)[1](error)
        return moves, None, down

    call = jax.custom_vjp(affine)
    call.defvjp(forward, backward)
    return call(nnx.to_pure_dict(parameters), nnx.to_pure_dict(rest), features)


def without_feedback(network: nnx.Module) -> None:
    """Set B to W in every layer, in place: errors then are those of the energy."""
    layer: Any
    for _, layer in nnx.iter_modules(network):
        if getattr(layer, "has_feedback", False):
            layer.feedback.set_value(
                next(getattr(layer, name).kernel[...] for name in _MODULES if hasattr(layer, name))
            )
