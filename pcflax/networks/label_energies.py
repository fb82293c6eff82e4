"""Label energies: what the network pays for each class, with inference done under that class."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pcflax.checks import expect_count
from pcflax.layers import Evidence
from pcflax.typing import Inference, Initializer, Network, PRNGKey

from .pure import split


def label_energies(
    network: Network,
    inputs: Any,
    targets: Any,
    *,
    inference: Inference,
    num_classes: int | None,
    initializer: Initializer | None,
    key: PRNGKey | None,
) -> Float[Array, " batch classes"]:
    """Return F of every example under every class; see `AbstractPCNetwork.label_energies`."""
    if (inputs is None) == (targets is None):
        raise ValueError(
            "label_energies expected inputs, where labels are the targets, or targets=, where labels are the "
            "inputs, and just one of them"
        )
    network.check_one_output("label_energies clamps the labels at one end")
    given = jnp.asarray(targets if inputs is None else inputs)
    batch_size = network.check_batch(inputs, targets)
    if num_classes is None:
        num_classes = _width(network, inputs, batch_size)
    num_classes = expect_count("label_energies", "num_classes", num_classes, least=1)
    # example after example, each with all classes
    rows = jnp.repeat(given, num_classes, axis=0)
    floats = given.dtype if jnp.issubdtype(given.dtype, jnp.floating) else jnp.result_type(float)
    labels = jnp.tile(jnp.eye(num_classes, dtype=floats), (batch_size, 1))
    evidence = Evidence(labels, rows) if inputs is None else Evidence(rows, labels)
    # a copy, so that the network's own activities stay
    result = inference.run(split(network).bind(), evidence, initializer=initializer, key=key)
    return result.energy.reshape(batch_size, num_classes)


def _width(network: Network, inputs: Any, batch_size: int) -> int:
    """How many classes there are: the features of the output, or of the root that inputs clamp."""
    if inputs is not None:
        energy = network.output_layer.energy
        means = jax.eval_shape(lambda x: energy.mean(network.predict(x)), inputs)
        return means.shape[-1]
    roots = [name for name in network.wiring.inputs if name in network.names]
    if len(roots) != 1:
        raise ValueError(
            "label_energies cannot see how many classes the inputs have, since the network has not one root "
            "that they clamp; give num_classes"
        )
    start = jax.eval_shape(lambda: network.feedforward(batch_size=batch_size))
    return start[roots[0]].shape[-1]
