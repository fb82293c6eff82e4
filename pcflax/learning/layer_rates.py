"""Learning rates by layer: an optax transformation that follows each layer's parameterization."""

from __future__ import annotations

from typing import Any

import jax
import optax

from pcflax.checks import expect_kind, expect_number, shown
from pcflax.layers import PCLayer
from pcflax.networks import AbstractPCNetwork, split
from pcflax.networks.wiring import places
from pcflax.typing import PyTree

from .regularizers import in_layer


def scale_by_layer(network: AbstractPCNetwork) -> optax.GradientTransformation:
    """Multiply each parameter's update by the factor that its layer's parameterization gives it.

    The factors are `weight_rate` and `bias_rate` of `pc.parameterizations`, for steps whose size does not
    depend on the gradient's: put it behind Adam (Lion, or another by signs), whose one rate is then the
    size by which each layer's prediction may move:

        optax.chain(optax.adam(0.01), scale_by_layer(network))

    Layers without a parameterization, energies and parameters of one's own layers and networks keep the
    optimizer's rate. A decay that is to be scaled, too, stands before this, one that is not behind it.

    Args:
        network: whose parameters are to be trained; its arrays are not kept.

    Returns:
        A transformation without a state.

    Raises:
        TypeError: for what is no network, and for a layer's rate that is no number.
        ValueError: for one that is not finite, or a stack whose layers have different ones; at `update`, for
            a parameter that the network does not have.

    Source: the rates by layer of Yang et al. (2022), arXiv 2203.03466, table 8, and for the depth of Dey
    et al. (2025), arXiv 2505.01618; for convolutional predictive coding networks the code that accompanies
    arXiv 2602.07697 leaves the first layer's rate as it is, too.

    >>> import jax.numpy as jnp, optax, pcflax as pc
    >>> from flax import nnx
    >>> network = pc.models.residual_mlp(4, 25, 2, depth=4, rngs=nnx.Rngs(0))
    >>> rates = scale_by_layer(network)
    >>> ones = optax.tree.ones_like(pc.networks.split(network).parameters)
    >>> updates, _ = rates.update(ones, rates.init(ones))
    >>> [float(jnp.max(updates[name]["linear"]["kernel"])) for name in ("first", "output")]  # 1/sqrt(4), 1
    [0.5, 1.0]
    >>> print(jnp.max(updates["hidden"]["stacked-layers"]["linear"]["kernel"]))  # 1/sqrt(25 * 4)
    0.1
    """
    expect_kind("scale_by_layer", "network", network, AbstractPCNetwork, "pc.PCNetwork([...])")
    where = places({name: network.layer(name) for name in network.layer_names}, network.wiring)
    factors = {}
    for name, own in split(network).parameters.items():
        for path, _ in jax.tree_util.tree_leaves_with_path({name: own}):
            key = in_layer(path)
            rate = 1.0  # of what the network itself holds
            if name in network.layer_names:
                inner = key[1:] if key[0] == name else key  # of a layer that is called "layers"
                rate = _rate(name, network.layer(name), inner, *where.get(name, (0, 1)))
            factors[tuple(key)] = expect_number("scale_by_layer", f"rate of {'.'.join(key)}", rate)

    def scale(updates: PyTree, parameters: PyTree | None) -> PyTree:
        del parameters

        def scaled(path: Any, update: Any) -> Any:
            key = tuple(in_layer(path))
            if key not in factors:
                raise ValueError(
                    f"scale_by_layer was made for another network: it knows no parameter "
                    f"{'.'.join(key)}; make it for the network that is trained"
                )
            return factors[key] * update

        return jax.tree_util.tree_map_with_path(scaled, updates)

    return optax.stateless(scale)


def _rate(name: str, layer: PCLayer, path: list[str], index: int, depth: int) -> Any:
    """Return the rate of a layer's parameter; of a stack that of all of its layers, which are one array."""
    rates = [layer.rate_of(path, index + number, depth) for number in range(layer.num_nodes)]
    if any(rate != rates[0] for rate in rates):
        raise ValueError(
            f"scale_by_layer expected one rate of all layers of the stack '{name}', got "
            f"{shown([float(rate) for rate in rates])} for {'.'.join(path)}; put the layers into the network "
            f"one by one, without a PCStack"
        )
    return rates[0]
