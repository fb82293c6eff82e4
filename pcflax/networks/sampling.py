"""Ancestral sampling: every activity is drawn from its energy, parents first.

z_l ~ p(z_l | z_{l-1}), which is proportional to exp(-E_l(z_l, mu_l)), from the priors of the roots to the
outputs: samples of the network's joint distribution, exactly and in one pass. Given an activity further
up, `pc.inference.Langevin` samples the rest instead. Next file to read: `base.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jaxtyping import Array, Float

from pcflax.checks import did_you_mean, expect_count
from pcflax.layers import Clamp, Evidence, PCLayer
from pcflax.layers.clamps import Known, held_at
from pcflax.layers.evaluate import failed
from pcflax.typing import PRNGKey

from .given import parse
from .wired import WiredLayers


class SampledLayers(WiredLayers):
    """Layers whose activities can be drawn from their energies; see `AbstractPCNetwork`."""

    def sample(
        self,
        batch_size: int | None = None,
        *,
        key: PRNGKey,
        inputs: Float[Array, " batch *in"] | None = None,
        clamps: Mapping[str, Clamp | Array] | None = None,
        nodes: str | Sequence[str] | None = None,
        means: str | Sequence[str] = (),
    ) -> Any:
        """Draw activities from the network's own distribution, parents first; store none.

        Each z_l is drawn from exp(-E_l(z_l, mu_l)) at the prediction mu_l from the activities drawn below
        it, a root from its prior. What is clamped stays: a class of a labels' root, or a code to draw the
        image of. A clamp says nothing of the nodes below it, which are drawn as if it were not there; to
        sample what explains an image, take `pc.inference.Langevin`.

        Args:
            batch_size: how many to draw; that of inputs and clamps where there are some.
            key: randomness; the same key draws the same samples.
            inputs: what the first layer is predicted from, or the root is clamped to.
            clamps: {node: array or `pc.Clamp(value, mask)`} of activities that are given.
            nodes: whose activities are returned, one name or several; the outputs unless given.
            means: nodes that stand at the mean of their prediction instead of being drawn: images are
                shown without the noise of their pixels by `means="image"`.

        Returns:
            (batch, *features) of one node, or {node: array} where several are asked for.

        Raises:
            ValueError: for an unknown node, a batch size that is missing or another than that of what is
                given, an energy without a distribution (a flat prior, say), a network with cycles, or a
                node with several predictors.

        >>> import jax, jax.numpy as jnp, pcflax as pc
        >>> from flax import nnx
        >>> network = pc.PCNetwork({"latent": pc.PCRoot(2), "image": pc.PCDense(2, 5, rngs=nnx.Rngs(0))})
        >>> network.sample(3, key=jax.random.key(0), means="image").shape
        (3, 5)
        """
        self._check_sampled()
        named = [node for name in self.names for node in self.layer(name).each_node_name(name)]
        tops = [self.layer(name).each_node_name(name)[-1] for name in self.outputs]
        asked = [nodes] if isinstance(nodes, str) else list(nodes or tops)
        at_mean = [means] if isinstance(means, str) else list(means)
        for name in (*asked, *at_mean):
            if name not in named:
                raise ValueError(
                    f"no node '{name}' to sample; the nodes are {', '.join(named)}"
                    f"{did_you_mean(name, named)}"
                )
        known = Known(inputs, {})
        if inputs is not None or clamps:
            known = parse(self, Evidence(inputs, None, clamps))  # type: ignore[arg-type]
        batch_size = _batch_size(batch_size, known)
        drawn: dict[str, Array] = {}
        seen = self.wiring.external(inputs)
        for name, parents in self.wiring.parents:
            belows = self.wiring.below(name, parents, seen)
            for place, (node, layer) in enumerate(self.layer(name).each_node(name).items()):
                clamp = known.clamps.get(name)
                if clamp is not None and self.layer(name).node_axes > 1:  # of a whole stack
                    mask = None if clamp.mask is None else clamp.held()[:, place]
                    clamp = Clamp(clamp.value[:, place], mask)
                own = None if node in at_mean else jax.random.fold_in(key, len(drawn))
                drawn[node] = self._draw(node, layer, belows, batch_size, clamp, own)
                belows = (drawn[node],)
            seen |= {name: belows[0]}
        if isinstance(nodes, str) or (nodes is None and self.one_output):
            return drawn[asked[0]]
        return {name: drawn[name] for name in asked}

    def _draw(
        self,
        name: str,
        layer: PCLayer,
        belows: tuple[Array, ...],
        batch_size: int,
        clamp: Clamp | None,
        key: PRNGKey | None,
    ) -> Array:
        """One node's activity: under its clamp, drawn, or at its mean where there is no key."""
        try:
            activity, prediction, _ = layer.advance_nodes(
                belows, self.numerics, batch_size=batch_size, clamp=clamp
            )
        except (TypeError, ValueError) as error:
            raise failed(name, layer, belows, error) from error
        if key is None or (clamp is not None and clamp.mask is None):
            return activity
        try:
            activity = layer.energy.sample(prediction, key)
        except ValueError as error:
            raise ValueError(f"layer '{name}' cannot be sampled: {error}") from None
        return activity if clamp is None else held_at(name, clamp, activity)

    def _check_sampled(self) -> None:
        """Refuse a network that has no order in which each node is drawn once."""
        if self.cyclic:
            reason = f"layer '{self.cyclic[0]}' is on a cycle ({', '.join(self.cyclic)})"
        elif self.wiring.predictors:
            name, _, node = self.wiring.predictors[0]
            reason = f"node '{node}' is predicted by '{name}' besides its own layer"
        else:
            return
        raise ValueError(
            f"{reason}, so that no order draws each node once; take samples by network.infer(..., "
            f"inference=pc.inference.Langevin(0.01, burn_in=1000), key=key)"
        )


def _batch_size(given: int | None, known: Known) -> int:
    if given is not None:
        given = expect_count("sample", "batch_size", given, least=1)
    if known.inputs is None and not known.clamps:
        if given is None:
            raise ValueError("sample expected how many to draw: network.sample(16, key=key)")
        return given
    if given not in (None, known.batch_size):
        raise ValueError(
            f"sample got batch_size={given} and values of {known.batch_size} examples; leave batch_size out"
        )
    return known.batch_size
