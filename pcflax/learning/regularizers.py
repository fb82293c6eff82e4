"""Regularizers: optax transformations that add the gradient of a penalty on the weights, or constrain them.

Penalties stand before the optimizer, so every learning rule can use them, and learning descends the batch
mean of the energy plus the penalty; a constraint stands behind it:

    optax.chain(spectral_penalty(1e-3), optax.adam(1e-3), normalize_spectral())

A regularizer that finds nothing to act on says so when the optimizer is initialized.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from pcflax.checks import expect_number
from pcflax.typing import PyTree
from pcflax.variables import STACKED

Mask: TypeAlias = PyTree | Callable[[PyTree], PyTree]
"""Booleans in the structure of the parameters (or a prefix of it), or what makes them of parameters."""


def weight_decay(rate: float, *, mask: Mask | None = None) -> optax.GradientTransformation:
    """Add rate * theta, the gradient of rate/2 * ||theta||^2, to the gradient of every weight.

    The sum runs over all elements of all weights. Before Adam the decay passes through its scaling;
    for a decay that does not, take `optax.adamw`.

    Args:
        rate: strength, at least 0. The energy's gradient is a batch mean, so that a rate means the
            same at every batch size.
        mask: which parameters decay, as in `optax.masked`; unless given, those with two axes or more
            that are called no bias, and neither a prior's mean nor an energy's (no learned precisions).

    Returns:
        A transformation to put before the optimizer. It needs the parameters in `update`.

    Raises:
        TypeError: for a rate that is no number.
        ValueError: for a rate that is negative or not finite; at `init`, where the mask leaves
            nothing to decay, or is of single elements; at `update`, without parameters.

    Source: Hanson & Pratt (1988), NeurIPS 1; the sum is `optax.add_decayed_weights`.

    >>> import jax.numpy as jnp, optax
    >>> parameters = {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)}
    >>> optimizer = optax.chain(weight_decay(0.5), optax.sgd(1.0))
    >>> no_gradients = optax.tree.zeros_like(parameters)
    >>> updates, _ = optimizer.update(no_gradients, optimizer.init(parameters), parameters)
    >>> optax.apply_updates(parameters, updates)["kernel"].tolist()
    [[0.5], [0.5]]
    """
    rate = expect_number("weight_decay", "rate", rate, least=0)
    return _on_weights("weight_decay", optax.add_decayed_weights(rate), mask)


def spectral_penalty(rate: float, *, mask: Mask | None = None) -> optax.GradientTransformation:
    """Add the gradient of rate/2 * sum over weights W of ||I - W^T W||_F^2, 2 rate (W W^T W - W).

    It vanishes where every singular value of W is 1 (or 0, from where the least disturbance leads
    away), so that activities and errors pass through a layer without growing or shrinking. W W^T in the
    place of W^T W differs by a constant only, and the smaller of the two is computed. A weight with
    more than two axes is taken as the matrix (product of the leading axes, last axis): inputs times
    outputs of a convolution. The parameters themselves are meant: a multiplier that a layer applies to
    its weights is not seen. A weight that is 0 and has a gradient of 0 stays 0, as one that a layer's mask
    leaves out.

    It is cubic in W: under `optax.sgd(step_size)` singular values settle at 1 for step_size * rate <
    1/2, but one that starts at s grows without bound where step_size * rate * (s^2 - 1) > 1.

    Args:
        rate: strength, at least 0. The energy's gradient is a batch mean, so that a rate means the
            same at every batch size.
        mask: which parameters are penalized, as in `optax.masked`; unless given, those with two axes
            or more that are called no bias, and neither a prior's mean nor an energy's.

    Returns:
        A transformation to put before the optimizer. It needs the parameters in `update`.

    Raises:
        TypeError: for a rate that is no number.
        ValueError: for a rate that is negative or not finite; at `init`, where the mask leaves
            nothing to penalize, or is of single elements; at `update`, without parameters or for a
            parameter that is no matrix.

    Source: the `spectral_penalty` of the JPC library's energies, arXiv 2412.03676.

    >>> import jax.numpy as jnp, optax
    >>> parameters = {"kernel": jnp.diag(jnp.array([2., 1.])), "bias": jnp.ones(2)}
    >>> optimizer = optax.chain(spectral_penalty(0.01), optax.sgd(1.0))
    >>> no_gradients = optax.tree.zeros_like(parameters)
    >>> updates, _ = optimizer.update(no_gradients, optimizer.init(parameters), parameters)
    >>> jnp.diag(optax.apply_updates(parameters, updates)["kernel"])  # 2 - 2 * 0.01 * (2^3 - 2), 1
    Array([1.88, 1.  ], dtype=float32)
    """
    rate = expect_number("spectral_penalty", "rate", rate, least=0)

    def add(updates: PyTree, parameters: PyTree | None) -> PyTree:
        if parameters is None:
            raise ValueError(
                "spectral_penalty needs the parameters: optimizer.update(gradients, state, parameters)"
            )

        def added(path, update, weight):
            gradient = jax.vmap(penalty_gradient) if in_stack(path) else penalty_gradient
            there = (weight != 0) | (update != 0)
            return update + rate * jnp.where(there, gradient(weight), 0)

        return jax.tree_util.tree_map_with_path(added, updates, parameters)

    return _on_weights("spectral_penalty", optax.stateless(add), mask)


def penalty_gradient(weight: Float[Array, " *leading last"]) -> Float[Array, " *leading last"]:
    """Return 2 (W W^T W - W), the gradient of ||I - W^T W||_F^2 / 2 with W of shape (leading, last).

    >>> import jax.numpy as jnp
    >>> penalty_gradient(jnp.array([[2.]]))
    Array([[12.]], dtype=float32)
    """
    if weight.ndim < 2:
        raise ValueError(
            f"spectral_penalty expected weights with two axes or more, got a parameter of shape "
            f"{weight.shape}; leave it out of the mask"
        )
    matrix = weight.reshape(-1, weight.shape[-1])
    rows, columns = matrix.shape
    if rows < columns:  # the smaller Gram matrix costs less, and gives the same gradient
        gradient = 2 * (matrix @ matrix.T - jnp.eye(rows, dtype=matrix.dtype)) @ matrix
    else:
        gradient = 2 * matrix @ (matrix.T @ matrix - jnp.eye(columns, dtype=matrix.dtype))
    return gradient.reshape(weight.shape)


def normalize_spectral(*, mask: Mask | None = None) -> optax.GradientTransformation:
    """Set W <- W / ((sqrt(m) + sqrt(n)) std(W)) after each step, for weights W of shape (m, n).

    (sqrt(m) + sqrt(n)) std(W) is what the largest singular value of a matrix of independent numbers goes
    to as it grows, so that W's is then about 1, at the price of a mean: activities and errors neither grow
    nor vanish on their way through layers. A weight that has learned a direction of its own has a larger
    one, up to sqrt(m n) std(W) for one of rank 1. A weight with more than two axes is taken as the matrix
    (product of the leading axes, last axis), as in `spectral_penalty`; each layer of a stack goes by
    itself. A weight whose numbers are all equal stays as it is. A layer keeps its function only up to a
    factor: where the outputs' size matters, leave the last one out by the mask.

    Args:
        mask: which parameters are normalized, as in `optax.masked`; unless given, those with two axes or
            more that are called no bias, and neither a prior's mean nor an energy's.

    Returns:
        A transformation to put behind the optimizer, last. It needs the parameters in `update`.

    Raises:
        ValueError: at `init`, where the mask leaves nothing to normalize, or is of single elements; at
            `update`, without parameters.

    Source: the normalization of Meta-PCN (`pc.learning.MetaPCN`), ICLR 2026, openreview kE5jJUHl9i, by a
    published summary; we take the standard deviation with the divisor m n.

    >>> import jax.numpy as jnp, optax
    >>> parameters = {"kernel": jnp.array([[3., -3.]]), "bias": jnp.ones(2)}
    >>> optimizer = optax.chain(optax.sgd(1.0), normalize_spectral())
    >>> no_gradients = optax.tree.zeros_like(parameters)
    >>> updates, _ = optimizer.update(no_gradients, optimizer.init(parameters), parameters)
    >>> kernel = optax.apply_updates(parameters, updates)["kernel"]
    >>> print(*[f"{weight:.4f}" for weight in kernel[0]])  # 1 / (1 + sqrt(2))
    0.4142 -0.4142
    """

    def normalize(updates: PyTree, parameters: PyTree | None) -> PyTree:
        if parameters is None:
            raise ValueError(
                "normalize_spectral needs the parameters: optimizer.update(gradients, state, parameters)"
            )

        def change(path, update, weight):
            own = jax.vmap(_normalized) if in_stack(path) else _normalized
            return own(weight + update) - weight

        return jax.tree_util.tree_map_with_path(change, updates, parameters)

    return _on_weights("normalize_spectral", optax.stateless(normalize), mask)


def _normalized(weight: Float[Array, " *leading last"]) -> Float[Array, " *leading last"]:
    """Divide by the largest singular value that independent numbers of this variance would have."""
    columns = weight.shape[-1]
    norm = (math.sqrt(weight.size // columns) + math.sqrt(columns)) * jnp.std(weight)
    return weight / jnp.where(norm > 0, norm, 1)


def _weights(parameters: PyTree) -> PyTree:
    """Return True for what has two axes or more in its layer, but for biases, means and energies' own."""

    def is_weight(path, parameter):
        axes = jnp.ndim(parameter) - in_stack(path)  # a stack's arrays begin with the axis depth
        names = in_layer(path)
        # attention has biases by head, and a root of images a mean
        bias = names[-1:] == ["bias"] or names[1:] == ["mean"]
        return axes >= 2 and not bias and names[1:2] != ["energy"]

    return jax.tree_util.tree_map_with_path(is_weight, parameters)


def in_stack(path: Any) -> bool:
    """Return whether a parameter is one of a `PCStack`, with a leading axis of layers."""
    return STACKED in [_name(key) for key in path]


def in_layer(path: Any) -> list[str]:
    """Return a layer's name and the path within it, without a stack's mark."""
    if path and isinstance(path[-1], jax.tree_util.GetAttrKey):  # the value of a Variable
        path = path[:-1]
    names = [_name(key) for key in path if _name(key) != STACKED]
    return names[1:] if names[:1] == ["layers"] else names  # of an nnx.State, or of a SplitNetwork


def _name(key: Any) -> str:
    return jax.tree_util.keystr((key,), simple=True)


def _on_weights(
    name: str, transformation: optax.GradientTransformation, mask: Mask | None
) -> optax.GradientTransformation:
    """Return the transformation where the mask is True; it refuses to be initialized where it never is."""
    mask = _weights if mask is None else mask
    masked = optax.masked(transformation, mask)

    def init(params):
        chosen = jax.tree.leaves(mask(params) if callable(mask) else mask)
        for one in chosen:
            if jnp.ndim(one):
                raise ValueError(
                    f"{name} expected a mask of one Boolean for each parameter, got an array of shape "
                    f"{jnp.shape(one)}; to leave single weights out, give the layer a mask"
                )
        if not any(chosen):
            raise ValueError(
                f"{name} found no parameter to act on, so it would do nothing; give a mask that is "
                f"True for some, or leave {name} out"
            )
        return masked.init(params)

    return optax.GradientTransformationExtraArgs(init, masked.update)
