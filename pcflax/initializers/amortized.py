"""The amortized start: a network of its own guesses the activities, and learns from what they become."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax

from pcflax.energies import total_energy
from pcflax.layers import Clamp, Evidence
from pcflax.layers.clamps import Known, weighted_mean
from pcflax.layers.evaluate import evaluate
from pcflax.networks import AbstractPCNetwork, SplitNetwork
from pcflax.networks.amortize import Guess, amortize
from pcflax.settings import Settings
from pcflax.typing import Activities, Energies, Initializer, PyTree


@dataclasses.dataclass(frozen=True)
class Amortized(Settings, Initializer):
    """z_k = g_k, the guess of the network's amortizers; other nodes follow by the pass upward.

    The amortizers of a `PCGraph` are passed over from what is clamped: g_k = f_k(g_{k-1}). What is known
    of a node stands in the place of its guess. Predictive coding then infers z* from there, and the
    amortizers learn to have guessed it: each descends E_k(z*_k, f_k(g_{k-1})) with z* and g_{k-1} held fixed,
    so that what each learns is local. The rules `PredictiveCoding` and `IncrementalPC` add these gradients to
    theirs.

    Raises:
        ValueError: on use, in a network without amortizers, or where one predicts from a node that is
            neither known nor amortized.

    Source: Tschantz et al. (2023), hybrid predictive coding, arXiv 2204.02169.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> network = pc.models.hybrid(3, 8, 5, rngs=nnx.Rngs(0))
    >>> descent = pc.inference.GradientDescent(0.1, num_steps=0)
    >>> start = network.infer(None, jnp.ones((2, 5)), inference=descent,
    ...                       initializer=pc.initializers.Amortized())
    >>> start.activities["latent"].shape
    (2, 3)
    """

    def __call__(self, network, inputs, *, batch_size, clamps, key) -> Activities:
        """Return the start of every activity by layer name."""
        del key  # deterministic
        guesses = {
            guess.node: Clamp(guess.start) for guess in _guesses(network, inputs, clamps).values()
        }
        return network.feedforward(inputs, batch_size=batch_size, clamps={**clamps, **guesses})

    def learn(
        self, network: SplitNetwork, evidence: Evidence | Known, activities: Activities
    ) -> tuple[PyTree, Energies]:
        """Return the gradient of the batch-mean energy of all guesses, and the energies by amortizer.

        Args:
            network: the network, whose amortizers learn.
            evidence: what the guesses begin at.
            activities: z*, where inference ended; held fixed.

        Raises:
            ValueError: for a network without amortizers, or one that guesses from what is not known.
        """

        def mean_energy(parameters):
            bound = network.replace(parameters=parameters).bind()
            known = bound.known(evidence)
            energies = {}
            # guesses of the network as it is, which `parameters` do not reach: what is below is held fixed
            for name, guess in _guesses(network.bind(), known.inputs, known.clamps).items():
                layer = bound.layer(name)
                prediction = evaluate(layer, guess.belows, bound.numerics)[0]
                energies[name] = layer.energy(activities[guess.node], prediction)
            return weighted_mean(total_energy(energies), known.weights), energies

        return jax.grad(mean_energy, has_aux=True)(network.parameters)


def _guesses(network: AbstractPCNetwork, inputs, clamps: Mapping[str, Clamp]) -> dict[str, Guess]:
    if not network.wiring.amortizers:
        raise ValueError(
            "the Amortized start needs a network with amortizers, and this one has none; take "
            "pc.models.hybrid, or pc.PCGraph(..., amortizers={layer: node})"
        )
    return amortize(network, inputs, clamps)
