"""A layer is a node and its prediction.

Layer l holds an activity z_l, predicts it from the activity below, mu_l = f_l(z_{l-1}), and scores
the mismatch with an energy E_l(z_l, mu_l). `PCLayer` wraps any nnx module as f_l, or is subclassed
with a `predict` of its own: nothing else is needed to add an architecture. Layers know nothing of
each other; a network wires them. Next file to read: `pcflax/networks/chain.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pcflax.energies import Energy, Gaussian
from pcflax.variables import Activity

from .closures import refuse_hidden_modules


class PCLayer(nnx.Module):
    """One node of a predictive coding network: an activity, its prediction and their energy.

    Wrap a module, `PCLayer(nnx.Linear(300, 10, rngs=rngs))`, or subclass and write `predict`. A
    subclass calls `super().__init__(energy=...)` and then makes its own modules and parameters, as in
    any `nnx.Module`.

    Args:
        module: a callable from the activity below, (batch, *features_below), to this layer's
            prediction, (batch, *features). Leave it out in a subclass with its own `predict`.
        energy: how a mismatch is scored; `Gaussian()` unless given.

    Attributes:
        activity: the `Activity` z_l, batch first; of shape (0,) until a network gives it a size.
        energy: the `Energy` object.
        takes_integers: True where the layer predicts from integers (tokens); False unless a subclass
            says so.

    Raises:
        TypeError: where `energy` is not an `Energy`, or `module` cannot be called or is a function that
            hides a module of NNX.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> class Doubling(pc.PCLayer):
    ...     def predict(self, below):
    ...         return 2 * below
    >>> Doubling().predict(jnp.ones((1, 2)))
    Array([[2., 2.]], dtype=float32)
    """

    takes_integers: bool = False

    def __init__(
        self,
        module: Callable[[Array], Array] | None = None,
        *,
        energy: Energy | None = None,
    ):
        if energy is not None and not isinstance(energy, Energy):
            raise TypeError(
                f"{type(self).__name__} expected energy to be an Energy object such as "
                f"pc.energies.Gaussian(), got {energy!r}"
            )
        if module is not None and not callable(module):
            raise TypeError(
                f"{type(self).__name__} expected a module that can be called on the activity below, "
                f"got {module!r}"
            )
        refuse_hidden_modules(self, module=module)
        self.activity = Activity(jnp.zeros((0,)))
        self.energy = Gaussian() if energy is None else energy
        if module is not None:
            self.module: Any = module

    def predict(self, below: Float[Array, " batch *below"]) -> Float[Array, " batch *features"]:
        """The prediction mu_l = f_l(z_{l-1}) of this layer's activity, one row for each example.

        Args:
            below: the activity of the layer below, or the clamped input of the first layer.

        Raises:
            NotImplementedError: where the layer wraps no module and a subclass wrote no `predict`.
        """
        if not hasattr(self, "module"):
            raise NotImplementedError(
                f"{type(self).__name__} predicts nothing yet: give PCLayer a module, or write "
                f"`def predict(self, below)` in the subclass"
            )
        return self.module(below)

    def set_place(self, index: int, depth: int) -> None:
        """Take note of where in the network this layer stands; does nothing unless a subclass wants it.

        Told by the network at construction, of its layers that predict from one below: a root does
        not count. A layer that stands in several networks keeps what the last one told it.

        Args:
            index: which of those layers this one is; 0 is nearest the input.
            depth: how many of them there are.
        """
        del index, depth  # predictions depend on the place only where a subclass says so
