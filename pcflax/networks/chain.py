"""The chain: each layer is predicted from the one before it.

mu_1 = f_1(x) from the clamped input (or mu_0 from the prior of a `PCRoot`), mu_l = f_l(z_{l-1}), and
F = sum_l E_l(z_l, mu_l) for each example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from pcflax.layers import PCLayer, PCRoot, PCStack
from pcflax.typing import Activities

from .base import AbstractPCNetwork
from .clamps import Clamp, Clamps
from .nodes import forward_of, top_of


class PCNetwork(AbstractPCNetwork):
    """A chain of layers, the first nearest the input.

    `inputs` are what the first layer is predicted from. Where the first layer is a `PCRoot`, they
    clamp its activity instead, and None leaves it free. `targets` clamp the last activity. A `PCStack`
    stands for as many layers as it has.

    Args:
        layers: a list of layers, called layer_0, layer_1, ..., or a mapping from name to layer.
        compute_dtype: dtype in which predictions are computed, such as `jnp.bfloat16`; activities,
            energies, weights and their gradients keep theirs. None computes in theirs.
        remat: whether what a prediction computes on its way is computed again for its derivative
            instead of kept: less memory, more time.

    Raises:
        ValueError: for no layers, one layer in two places, or a root that is not first.
        TypeError: for something that is not a `PCLayer`.

    >>> import jax.numpy as jnp, optax, pcflax as pc
    >>> from flax import nnx
    >>> rngs = nnx.Rngs(0)
    >>> network = pc.PCNetwork([pc.PCDense(3, 5, activation=jnp.tanh, rngs=rngs),
    ...                         pc.PCDense(5, 2, rngs=rngs)])
    >>> x, y = jnp.ones((4, 3)), jnp.ones((4, 2))
    >>> result = network.infer(x, y, inference=pc.inference.GradientDescent(optax.sgd(0.1)))
    >>> result.energy.shape, network.layers[0].activity[...].shape
    ((4,), (4, 5))
    """

    def __init__(
        self,
        layers: Sequence[PCLayer] | Mapping[str, PCLayer],
        *,
        compute_dtype: Any = None,
        remat: bool = False,
    ):
        super().__init__(layers, compute_dtype=compute_dtype, remat=remat)
        for name, layer in list(self._named_layers())[1:]:
            if isinstance(layer, PCRoot):
                raise ValueError(
                    f"layer '{name}' is a PCRoot but not the first layer; a root has nothing below it"
                )
        predicting = [layer for layer in self.layers if not isinstance(layer, PCRoot)]
        depths = [layer.depth if isinstance(layer, PCStack) else 1 for layer in predicting]
        for number, layer in enumerate(predicting):
            layer.set_place(sum(depths[:number]), sum(depths))

    @property
    def has_root(self) -> bool:
        """Whether the first layer is a `PCRoot`, whose activity the inputs clamp."""
        return isinstance(self.layers[0], PCRoot)

    @property
    def takes_integers(self) -> bool:
        """Whether the first layer predicts from integers (tokens)."""
        return self.layers[0].takes_integers

    def belows(
        self, inputs: Float[Array, " batch *in"] | None = None
    ) -> dict[str, tuple[Array, ...]]:
        """z_{l-1} for every layer l, from the stored activities; the inputs for the first."""
        activities = self.activities()
        below = self._input_of_first_layer(inputs)
        belows: dict[str, tuple[Array, ...]] = {}
        for name, layer in self._named_layers():
            belows[name] = () if below is None else (below,)
            below = top_of(layer, activities[name])
        return belows

    def feedforward(
        self,
        inputs: Float[Array, " batch *in"] | None = None,
        *,
        batch_size: int | None = None,
        clamps: Clamps | None = None,
        errors: Activities | None = None,
    ) -> Activities:
        """z_l at the mean of f_l(z_{l-1}), in order, from the input (or the root's clamp or prior).

        Args:
            inputs: (batch, *features); None starts from the prior of the root.
            batch_size: how many examples there are, needed where there are no inputs.
            clamps: layers that stand at their clamp instead; the layers above follow from there.
            errors: e_l by layer name, added to the mean: z_l = mean of f_l(z_{l-1}) + e_l.

        Returns:
            Every layer's activity by name. Where all means are the predictions themselves
            (Gaussian layers) and no errors or clamps are given, every error is zero there.
        """
        return self._forward(inputs, batch_size, clamps or {}, errors or {})[0]

    def predict(
        self, inputs: Float[Array, " batch *in"] | None = None
    ) -> Float[Array, " batch *out"]:
        """The last layer's prediction after a feedforward pass; stores no activity.

        On a chain with a free output this is already the minimum of the energy. For an energy that
        works on logits (Categorical, Bernoulli) these are the logits. Without inputs, a network with
        a root predicts from its prior, for one example.

        Raises:
            ValueError, TypeError: for inputs of a wrong shape or dtype.
        """
        batch_size = 1 if inputs is None else self.check_batch(inputs, None)
        return self._forward(inputs, batch_size, {}, {})[1]

    def ends(self, inputs: Array | None, targets: Array | None) -> dict[str, Clamp]:
        """The root where inputs are given, the last node where targets are."""
        held: dict[str, Clamp] = {}
        if inputs is not None and self.has_root:
            held[self.names[0]] = Clamp(jnp.asarray(inputs))
        if targets is not None:
            held[self.nodes[-1]] = Clamp(jnp.asarray(targets))
        return held

    def _input_of_first_layer(self, inputs: Array | None) -> Array | None:
        if inputs is None and not self.has_root:
            raise ValueError(
                "inputs are None, but the network has no root; give inputs, or put "
                "pc.PCRoot(features) first to leave the root free"
            )
        return None if self.has_root else inputs

    def _forward(
        self, inputs: Array | None, batch_size: int | None, clamps: Clamps, errors: Activities
    ) -> tuple[Activities, Array]:
        below = self._input_of_first_layer(inputs)
        activities: Activities = {}
        prediction = None
        for name, layer in self._named_layers():
            if isinstance(layer, PCRoot) and inputs is not None:
                # they clamp the root, so the rest follows from them
                mean = layer.predict()
                if inputs.shape[1:] != mean.shape:
                    raise ValueError(
                        f"layer '{name}' is a root of shape {(len(inputs), *mean.shape)} but the inputs "
                        f"are {inputs.shape}; make it PCRoot{inputs.shape[1:]}"
                    )
                prediction = jnp.broadcast_to(mean, inputs.shape)
                activities[name] = below = inputs
                continue
            activities[name], prediction = forward_of(
                name,
                layer,
                (below,),  # type: ignore[arg-type]
                self.precision,
                batch_size=batch_size,
                clamp=clamps.get(name),
                error=errors.get(name),
            )
            below = top_of(layer, activities[name])
        return activities, prediction  # type: ignore[return-value]
