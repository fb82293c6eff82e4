"""The chain: each layer is predicted from the one before it.

mu_1 = f_1(x) from the clamped input (or mu_0 from the prior of a `PCRoot`), mu_l = f_l(z_{l-1}), and
F = sum_l E_l(z_l, mu_l) for each example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from pcflax.layers import PCLayer, PCRoot
from pcflax.typing import Activities

from .base import AbstractPCNetwork, check_batch, held_at
from .clamps import Clamp, Clamps


class PCNetwork(AbstractPCNetwork):
    """A chain of layers, the first nearest the input.

    `inputs` are what the first layer is predicted from. Where the first layer is a `PCRoot`, they
    clamp its activity instead, and None leaves it free. `targets` clamp the last activity.

    Args:
        layers: a list of layers, called layer_0, layer_1, ..., or a mapping from name to layer.

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

    def __init__(self, layers: Sequence[PCLayer] | Mapping[str, PCLayer]):
        super().__init__(layers)
        for name, layer in list(self._named_layers())[1:]:
            if isinstance(layer, PCRoot):
                raise ValueError(
                    f"layer '{name}' is a PCRoot but not the first layer; a root has nothing below it"
                )
        predicting = [layer for layer in self.layers if not isinstance(layer, PCRoot)]
        for index, layer in enumerate(predicting):
            layer.set_place(index, len(predicting))

    @property
    def has_root(self) -> bool:
        """Whether the first layer is a `PCRoot`, whose activity the inputs clamp."""
        return isinstance(self.layers[0], PCRoot)

    def predictions(self, inputs: Float[Array, " batch *in"] | None = None) -> Activities:
        """mu_l = f_l(z_{l-1}) for every layer, from the stored activities."""
        activities = self.activities()
        below = self._input_of_first_layer(inputs)
        predictions: Activities = {}
        for name, layer in self._named_layers():
            if isinstance(layer, PCRoot):
                predictions[name] = _root_mean(layer, activities[name].shape[0])
            else:
                predictions[name] = _predict(name, layer, below)
            below = activities[name]
        return predictions

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
        batch_size = 1 if inputs is None else check_batch(inputs, None)
        return self._forward(inputs, batch_size, {}, {})[1]

    def ends(self, inputs: Array | None, targets: Array | None) -> dict[str, Clamp]:
        """The root where inputs are given, the last layer where targets are."""
        held: dict[str, Clamp] = {}
        if inputs is not None and self.has_root:
            held[self.names[0]] = Clamp(jnp.asarray(inputs))
        if targets is not None:
            held[self.names[-1]] = Clamp(jnp.asarray(targets))
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
            if isinstance(layer, PCRoot):
                if batch_size is None:
                    raise ValueError("a feedforward pass without inputs needs batch_size")
                prediction = _root_mean(layer, batch_size)
                if inputs is not None:  # they clamp the root, so the rest follows from them
                    if inputs.shape != prediction.shape:
                        raise ValueError(
                            f"layer '{name}' is a root of shape {prediction.shape} but the inputs "
                            f"are {inputs.shape}; make it PCRoot{inputs.shape[1:]}"
                        )
                    activities[name] = below = inputs
                    continue
            else:
                prediction = _predict(name, layer, below)
            activity = layer.energy.mean(prediction)
            if name in errors:
                activity = activity + errors[name]
            if name in clamps:
                activity = held_at(name, clamps[name], activity)
            activities[name] = below = activity
        return activities, prediction  # type: ignore[return-value]


def _root_mean(layer: PCRoot, batch_size: int) -> Array:
    mean = layer.predict()
    return jnp.broadcast_to(mean, (batch_size, *mean.shape))


def _predict(name: str, layer: PCLayer, below) -> Array:
    """A layer's prediction; what goes wrong in it is told with the layer's name."""
    try:
        prediction = layer.predict(below)
    except (TypeError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ValueError(
            f"layer '{name}' ({type(layer).__name__}) could not predict from an activity of shape "
            f"{below.shape}: {first_line}"
        ) from error
    if not hasattr(prediction, "shape") or prediction.shape[:1] != below.shape[:1]:
        got = getattr(prediction, "shape", type(prediction).__name__)
        raise ValueError(
            f"layer '{name}' ({type(layer).__name__}) predicted {got} from an activity of shape "
            f"{below.shape}; expected one row an example, ({below.shape[0]}, ...)"
        )
    return prediction
