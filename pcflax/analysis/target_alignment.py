"""Target alignment: whether an update moves the output towards its target."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from pcflax.layers import Evidence
from pcflax.learning import AbstractLearning
from pcflax.networks import AbstractPCNetwork, split
from pcflax.settings import Argument
from pcflax.typing import PRNGKey


def target_alignment(
    network: AbstractPCNetwork,
    inputs: Array | None,
    targets: Array,
    *,
    learning: AbstractLearning,
    optimizer: optax.GradientTransformation,
    key: PRNGKey | None = None,
) -> Float[np.ndarray, " batch"]:
    """Return, for each example, the cosine of the output's change by one update with the output's error.

        cos(f(x; theta') - f(x; theta), -dE/dmu),    theta' after one update on this batch

    The error is minus the slope of the output's energy at the feedforward prediction: y - f(x) of a Gaussian
    output, y - softmax(f(x)) of a categorical one. 1 means straight to the target; gradient descent on
    weights bends the way, since all weights change at once. On a deep linear network and one example with
    small steps of backpropagation it is the cosine of r and sum_l |h_{l-1}|^2 P_l P_l^T r, where r is the
    error, h_{l-1} what layer l sees, and P_l the product of the weights above it.

    An update is one call of the rule with the optimizer's state anew: as many weight steps as the rule makes
    of a batch. Steps that are very small drown in rounding.

    Args:
        network: not changed.
        inputs: (batch, *features), or None with a root.
        targets: (batch, *out).
        learning: the rule.
        optimizer: an optax transformation, such as `optax.sgd(0.01)`.
        key: randomness for rules that want it; `jax.random.key(0)` unless given.

    Returns:
        (batch,), from -1 to 1; NaN where the output does not change, or has no error.

    Raises:
        TypeError: where `learning` is no learning rule.
        ValueError, TypeError: for inputs or targets of a wrong shape or dtype, or several outputs.

    Source: Oliviers, Lominadze & Bogacz (2026), arXiv 2605.11911, after Song et al. (2024), Nature
    Neuroscience 27; the slope in the place of the error, for other energies, is ours.

    >>> import jax.numpy as jnp, optax, pcflax as pc
    >>> from flax import nnx
    >>> network = pc.PCNetwork([pc.PCDense(3, 2, rngs=nnx.Rngs(0))])  # of one layer: straight
    >>> x, y = jnp.ones((1, 3)), jnp.array([[1.0, 2.0]])
    >>> rule = pc.learning.Backprop()
    >>> found = pc.analysis.target_alignment(network, x, y, learning=rule, optimizer=optax.sgd(0.1))
    >>> found.round(4)
    array([1.], dtype=float32)
    """
    if not isinstance(learning, AbstractLearning):
        raise TypeError(f"expected a learning rule such as pc.learning.ZIL(), got {learning!r}")
    learning.check(network)
    network.check_one_output("target_alignment compares the output with its target")
    network.check_batch(inputs, targets)
    key = jax.random.key(0) if key is None else key
    evidence = Evidence(inputs, targets)
    return np.asarray(_cosines(split(network), evidence, key, learning, Argument(optimizer)))


@jax.jit
def _cosines(network, evidence: Evidence, key, learning, optimizer: Argument) -> Array:
    state = optimizer.value.init(network.parameters)
    updated = learning.update(network, optimizer.value, state, evidence, key=key)[0]
    size = evidence.targets.shape[0]
    before: Any = network.bind().predict(evidence.inputs, batch_size=size)
    after = updated.bind().predict(evidence.inputs, batch_size=size)

    def energy(prediction):
        return jnp.sum(network.bind().output_energy(prediction, evidence.targets))

    pairs = after - before, -jax.grad(energy)(before)
    change, error = (array.reshape(size, -1) for array in pairs)
    lengths = jnp.linalg.norm(change, axis=1) * jnp.linalg.norm(error, axis=1)
    return jnp.sum(change * error, axis=1) / lengths
