"""Reconstruction: what the network predicts of a node that was given."""

from __future__ import annotations

import dataclasses

from pcflax.inference import AbstractInference, expect_algorithm
from pcflax.layers import Clamp, Evidence
from pcflax.networks import SplitNetwork
from pcflax.networks.given import node_of
from pcflax.typing import Initializer, PRNGKey

from .hiding import check_node, is_clamped, known_rows, part_of, told_of
from .reading import (
    AbstractReading,
    Answer,
    expect_start,
    infer_known,
    mean_of,
    role_of,
    top_nodes,
)


@dataclasses.dataclass(frozen=True)
class Reconstruction(AbstractReading):
    """Infer with all that is known, and read the mean that the network predicts of a node that was given.

    z* = argmin_z F_i(z) with the node clamped; read is the mean of mu(z*). With a `code` it is what the pass
    upward from z* of that node alone predicts, errors of the layers between left out: the measure of a
    decoder, since the code is all that is kept of the example.

    Args:
        inference: the algorithm.
        node: the node, known in the data; the output unless given.
        initializer: where the free activities start: the feedforward pass unless given.
        code: the layer whose inferred activity the node is predicted from again, or None.

    Raises:
        TypeError: where `inference` is no algorithm.
        ValueError: on use, for a node that is not there, or of which the data say nothing, or a code that
            is given instead of inferred.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> network = pc.models.decoder(2, 8, 5, rngs=nnx.Rngs(0))
    >>> reading = pc.Reconstruction(pc.inference.GradientDescent(0.1))
    >>> pc.training.answer(network, pc.Evidence(targets=jnp.ones((3, 5))), reading).values.shape
    (3, 5)
    """

    inference: AbstractInference
    node: str | None = None
    initializer: Initializer | None = None
    code: str | None = None

    def __post_init__(self):
        expect_algorithm(self, self.inference)
        expect_start(self, self.initializer)

    def role(self, network: SplitNetwork) -> str | None:
        """Return whether the node that is read is the data's "inputs" or "targets"."""
        return role_of(network.bind(), self.node)

    def answer(self, network: SplitNetwork, evidence: Evidence, *, key: PRNGKey) -> Answer:
        """Infer, and read the prediction."""
        bound = network.bind()
        self.inference.check(bound)
        name = top_nodes(bound)[0] if self.node is None else self.node
        check_node(bound, name)
        known = bound.known(evidence)
        told = told_of(bound, known, name)
        if told is None:
            raise ValueError(
                f"node '{name}' is to be reconstructed, but the data say nothing of it; give it, or read it "
                f"by pc.Equilibrium"
            )
        if self.code is not None:
            check_node(bound, self.code)
            if is_clamped(bound, known, self.code):
                raise ValueError(
                    f"code '{self.code}' is given by the data, so nothing is inferred of it; free it"
                )
        result = infer_known(network, known, self.inference, self.initializer, key)
        if self.code is None:
            predictions = network.bind(result.activities).predictions(known.inputs)
            prediction = part_of(bound, predictions, name)
        else:
            layer, own = node_of(bound, name)[0], node_of(bound, self.code)[0]
            others = {key: clamp for key, clamp in known.clamps.items() if key != layer}
            passed = bound.pass_upward(
                known.inputs,
                batch_size=known.batch_size,
                clamps=others | {own: Clamp(result.activities[own])},
            )
            prediction = part_of(bound, passed.predictions, name)
        mean = mean_of(bound, name, prediction)
        rows = known_rows([] if told.mask is None else [told.mask])
        return Answer(prediction, mean, told.value, rows, result.energy, result.status)
