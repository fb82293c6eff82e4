"""Credit: which way a learning rule moves each layer's weights, beside backpropagation.

Accuracy looks fine where only the last layers learn; the gradients of each layer tell. An optimizer that
scales each element takes their lengths away, so that its displacements tell more than gradients do.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from pcflax.checks import expect_kind
from pcflax.inference.solve import over
from pcflax.layers import Evidence
from pcflax.layers.feedback import without_feedback
from pcflax.learning import AbstractLearning, Backprop
from pcflax.learning.regularizers import in_layer
from pcflax.networks import AbstractPCNetwork, SplitNetwork, split
from pcflax.settings import Argument
from pcflax.typing import PRNGKey, PyTree

# Enough for the path to count, and not only the sign of the first gradient.
_UPDATES = 20


class Credit(NamedTuple):
    """A rule's weight gradients beside backpropagation's, by node and in "total".

    Attributes:
        cosine: of the angle between the two, 1 where they are parallel; NaN where one of them is zero.
            In total the mean over the nodes that have one, so that no layer counts more for the size of
            its gradient, which an optimizer such as Adam takes away.
        norm: Euclidean norm of the rule's gradient.
        backprop_norm: that of backpropagation's.
        rms: root mean square of the elements of the rule's gradient, beside which Adam's eps stands.
    """

    cosine: dict[str, float]
    norm: dict[str, float]
    backprop_norm: dict[str, float]
    rms: dict[str, float]


def gradient_alignment(
    network: AbstractPCNetwork,
    inputs: Array | None,
    targets: Array,
    *,
    learning: AbstractLearning,
    key: PRNGKey | None = None,
) -> Credit:
    """Return the cosine of a rule's weight gradient with backpropagation's, for each layer and in total.

    Both gradients are of batch means, at the network's present weights. Of a rule that moves the weights
    during inference (`IncrementalPC`) it is the sum of the gradients of all its steps, at fixed weights.
    Gradients whose squares are no numbers of 32 bits are compared like any others; one below 1e-38 is 0
    in 32 bits and has no angle. Layers without weights, and those that predict another layer's node, are
    left out. So are the parameters of energies: a hidden layer's learned precision has a gradient where no
    error is, and none by backpropagation.

    Args:
        network: not changed.
        inputs: (batch, *features), or None with a root.
        targets: (batch, *out).
        learning: the rule.
        key: randomness for rules that want it; `jax.random.key(0)` unless given.

    Raises:
        TypeError: where `learning` is no learning rule.
        ValueError, TypeError: for inputs or targets of a wrong shape or dtype.

    Source: the measure is common; Rosenbaum (2022), PLOS ONE 17(3), uses it for predictive coding.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> rngs = nnx.Rngs(0)
    >>> network = pc.PCNetwork([pc.PCDense(3, 4, rngs=rngs), pc.PCDense(4, 2, rngs=rngs)])
    >>> x, y = jnp.ones((1, 3)), jnp.ones((1, 2))
    >>> credit = pc.analysis.gradient_alignment(network, x, y, learning=pc.learning.ZIL())
    >>> round(credit.cosine["total"], 5)
    1.0
    """
    found = _measured(network, inputs, targets, learning, key, None)
    cosine = _cosines(found)
    squares = {
        kind: {name: (sums[f"{kind}_scale"] ** 2) * sums[kind] for name, sums in found.items()}
        for kind in ("own", "other")
    }
    sizes = {name: sums["size"] for name, sums in found.items()}
    for numbers in (*squares.values(), sizes):
        numbers["total"] = sum(numbers.values())
    norm, backprop_norm = (
        {name: square**0.5 for name, square in squares[kind].items()} for kind in ("own", "other")
    )
    rms = {name: norm[name] / max(size, 1) ** 0.5 for name, size in sizes.items()}
    return Credit(cosine, norm, backprop_norm, rms)


def displacement_alignment(
    network: AbstractPCNetwork,
    inputs: Array | None,
    targets: Array,
    *,
    learning: AbstractLearning,
    optimizer: optax.GradientTransformation,
    key: PRNGKey | None = None,
) -> dict[str, float]:
    """Return the cosine of the weights' displacement with backpropagation's, for each layer and in total.

    A displacement is what an optimizer adds to the weights in 20 updates on one batch, its state fresh, by
    the rule and, from the same weights, by backpropagation. Adam's first update is the sign of each element
    of the gradient, less where its eps is not small beside it. Two rules whose displacements are parallel in
    every layer make one run, whatever the lengths of their gradients. In total it is the mean over the
    layers that have an angle. Parameters of energies are left out.

    Args:
        network: not changed.
        inputs: (batch, *features), or None with a root.
        targets: (batch, *out).
        learning: the rule.
        optimizer: an optax transformation, such as `optax.adam(1e-3)`.
        key: randomness for rules that want it; `jax.random.key(0)` unless given.

    Raises:
        TypeError: where `learning` is no learning rule, or `optimizer` no optax transformation.
        ValueError, TypeError: for inputs or targets of a wrong shape or dtype.

    >>> import jax.numpy as jnp, optax, pcflax as pc
    >>> from flax import nnx
    >>> rngs = nnx.Rngs(0)
    >>> network = pc.PCNetwork([pc.PCDense(3, 4, rngs=rngs), pc.PCDense(4, 2, rngs=rngs)])
    >>> x, y = jnp.ones((1, 3)), jnp.ones((1, 2))
    >>> found = pc.analysis.displacement_alignment(
    ...     network, x, y, learning=pc.learning.ZIL(), optimizer=optax.adam(1e-3))
    >>> round(found["total"], 5)
    1.0
    """
    expect_kind(
        "displacement_alignment",
        "optimizer",
        optimizer,
        optax.GradientTransformation,
        "optax.adam(1e-3)",
    )
    return _cosines(_measured(network, inputs, targets, learning, key, Argument(optimizer)))


def _cosines(found: dict[str, dict[str, float]]) -> dict[str, float]:
    cosine = {}
    for name, sums in found.items():
        scale = (sums["own"] * sums["other"]) ** 0.5
        cosine[name] = sums["both"] / scale if scale > 0 else float("nan")
    angles = [value for value in cosine.values() if not np.isnan(value)]
    return cosine | {"total": float(np.mean(angles)) if angles else float("nan")}


def _measured(network, inputs, targets, learning, key, optimizer) -> dict[str, dict[str, float]]:
    """Return the products of `_products` by node, as numbers of 64 bits."""
    if not isinstance(learning, AbstractLearning):
        raise TypeError(f"expected a learning rule such as pc.learning.ZIL(), got {learning!r}")
    learning.check(network)
    network.check_batch(inputs, targets)
    key = jax.random.key(0) if key is None else key
    found = _products(split(network), Evidence(inputs, targets), key, learning, optimizer)
    found = jax.tree.map(lambda value: np.asarray(value, np.float64), found)
    found = network.by_node(
        found, lambda sums, index: {kind: value[..., index] for kind, value in sums.items()}
    )
    return {name: jax.tree.map(float, sums) for name, sums in found.items()}


def rule_gradient(
    network: SplitNetwork, evidence: Evidence, *, learning: AbstractLearning, key: PRNGKey
) -> PyTree:
    """Return the gradient that a rule hands to its optimizer, summed over all the times it does so."""
    zeros = jax.tree.map(jnp.zeros_like, network.parameters)
    collect = optax.GradientTransformation(
        lambda parameters: jax.tree.map(jnp.zeros_like, parameters),  # type: ignore[arg-type]
        lambda gradients, total, _=None: (zeros, jax.tree.map(jnp.add, total, gradients)),  # type: ignore
    )
    return learning.update(network, collect, collect.init(network.parameters), evidence, key=key)[1]


def _displacement(
    network: SplitNetwork, evidence: Evidence, learning: AbstractLearning, key: PRNGKey, optimizer
) -> PyTree:
    """Return the sum of what an optimizer adds to the weights in `_UPDATES` steps on one batch."""
    inner = optax.with_extra_args_support(optimizer)

    def update(updates, state, params=None, **more):
        total, state = state
        updates, state = inner.update(updates, state, params, **more)
        return updates, (jax.tree.map(jnp.add, total, updates), state)

    collect = optax.GradientTransformationExtraArgs(inner.init, update)

    def step(carry, number):
        network, state = carry
        own = jax.random.fold_in(key, number)
        return learning.update(network, collect, state, evidence, key=own, step=number)[:2], None

    zeros = jax.tree.map(jnp.zeros_like, network.parameters)
    start = (network, (zeros, inner.init(network.parameters)))
    (_, (total, _)), _ = jax.lax.scan(step, start, jnp.arange(_UPDATES))
    return total


@jax.jit
def _products(
    network: SplitNetwork, evidence, key, learning, optimizer: Argument | None
) -> dict[str, dict]:
    """Return, by layer, the inner products of the two gradients (or displacements), each scaled.

    Their squares would leave the range of 32 bits where they do not: each is divided by the sum of its
    magnitudes.
    """

    def of(network, learning):
        if optimizer is None:
            return rule_gradient(network, evidence, learning=learning, key=key)
        return _displacement(network, evidence, learning, key, optimizer.value)

    own = of(network, learning)
    bound = network.bind()
    without_feedback(bound)
    other = of(split(bound), Backprop())

    def sums(name):
        layer, left, right = bound.layer(name), _weights(own[name]), _weights(other[name])

        def scaled(leaves):
            scale = functools.reduce(jnp.add, [layer.sum_nodes(jnp.abs(x)) for x in leaves])
            safe = jnp.where(scale > 0, scale, 1)
            return scale, [x / over(safe, x) for x in leaves]

        def product(left, right):
            return sum(layer.sum_nodes(a * b) for a, b in zip(left, right, strict=True))

        own_scale, left = scaled(left)
        other_scale, right = scaled(right)
        size = sum(x.size for x in left) // max(own_scale.size, 1)
        return {
            "both": product(left, right),
            "own": product(left, left),
            "other": product(right, right),
            "own_scale": own_scale,
            "other_scale": other_scale,
            "size": jnp.full(own_scale.shape, size),
        }

    return {name: sums(name) for name in bound.names if _weights(own.get(name))}


def _weights(gradients: PyTree) -> list[Array]:
    """Return the leaves of one layer's gradients but for its energy's."""
    leaves = jax.tree.leaves_with_path(gradients)
    return [leaf for path, leaf in leaves if in_layer(path)[:1] != ["energy"]]
