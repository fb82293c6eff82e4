"""Credit: which way a learning rule moves each layer's weights, beside backpropagation.

Accuracy looks fine where only the last layers learn; the gradients of each layer tell.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from pcflax.layers import Evidence
from pcflax.layers.feedback import without_feedback
from pcflax.learning import AbstractLearning, Backprop
from pcflax.networks import AbstractPCNetwork, SplitNetwork, split
from pcflax.typing import PRNGKey, PyTree


class Credit(NamedTuple):
    """A rule's weight gradients beside backpropagation's, by node and in "total".

    Attributes:
        cosine: of the angle between the two, 1 where they are parallel; NaN where one of them is zero.
        norm: Euclidean norm of the rule's gradient.
        backprop_norm: that of backpropagation's.
    """

    cosine: dict[str, float]
    norm: dict[str, float]
    backprop_norm: dict[str, float]


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
    Layers without parameters, and those that predict another layer's node, are left out.

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
    if not isinstance(learning, AbstractLearning):
        raise TypeError(f"expected a learning rule such as pc.learning.ZIL(), got {learning!r}")
    learning.check(network)
    network.check_batch(inputs, targets)
    found = _products(split(network), Evidence(inputs, targets), _key(key), learning)
    found = jax.tree.map(lambda value: np.asarray(value, np.float64), found)
    found = network.by_node(
        found, lambda sums, index: {kind: value[index] for kind, value in sums.items()}
    )
    found = {name: jax.tree.map(float, sums) for name, sums in found.items()}
    total = {key: sum(layer[key] for layer in found.values()) for key in ("both", "own", "other")}
    found["total"] = total
    cosine = {}
    for name, sums in found.items():
        scale = float(np.sqrt(sums["own"]) * np.sqrt(sums["other"]))
        cosine[name] = sums["both"] / scale if scale > 0 else float("nan")
    return Credit(
        cosine,
        {name: sums["own"] ** 0.5 for name, sums in found.items()},
        {name: sums["other"] ** 0.5 for name, sums in found.items()},
    )


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


def _key(key: PRNGKey | None) -> PRNGKey:
    return jax.random.key(0) if key is None else key


@jax.jit
def _products(network: SplitNetwork, evidence, key, learning) -> dict[str, dict]:
    own = rule_gradient(network, evidence, learning=learning, key=key)
    bound = network.bind()
    without_feedback(bound)
    other = rule_gradient(split(bound), evidence, learning=Backprop(), key=key)

    def product(name, left, right):
        pairs = zip(jax.tree.leaves(left[name]), jax.tree.leaves(right[name]), strict=True)
        return sum(bound.layer(name).sum_nodes(a * b) for a, b in pairs)

    return {
        name: {
            "both": product(name, own, other),
            "own": product(name, own, own),
            "other": product(name, other, other),
        }
        for name in bound.names
        if jax.tree.leaves(own.get(name))
    }
