"""The contract of an energy: E(activity, prediction), one number for each example.

An energy is the negative log-likelihood of an activity z under its prediction mu, up to a constant.
It is summed over features and **never averaged over the batch**: inference descends each example's
own energy, so a step size means the same at every batch size. To add one, subclass `Energy` and
write `__call__`; nothing else has to know about it. `huber.py` is the shortest example.
"""

from __future__ import annotations

import abc
from typing import Any, ClassVar, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from pcflax.dtypes import total
from pcflax.typing import Energies, PRNGKey

Values: TypeAlias = Float[Array, " batch *features"]
PerExample: TypeAlias = Float[Array, " batch"]


class Energy(nnx.Module, abc.ABC):
    """What a layer pays for an activity that differs from its prediction.

    An `nnx.Module`, so that an energy may hold parameters of its own (a learned precision, say).

    Attributes:
        clamped_only: True where the energy has no minimum over a free activity (it is linear in it,
            as a cross-entropy is), so that the layer must be clamped. False unless a subclass says so.
        silent_at_zero: True where an activity of zeros along the last axis has energy 0 under any
            prediction, as a row without a label has then. False unless a subclass says so.

    >>> import jax.numpy as jnp
    >>> import pcflax as pc
    >>> class Quartic(pc.Energy):
    ...     def __call__(self, activity, prediction):
    ...         return pc.energies.sum_features((activity - prediction) ** 4) / 4
    >>> Quartic()(jnp.ones((2, 3)), jnp.zeros((2, 3)))
    Array([0.75, 0.75], dtype=float32)
    """

    clamped_only: bool = False
    silent_at_zero: bool = False

    @abc.abstractmethod
    def __call__(self, activity: Values, prediction: Values) -> PerExample:
        """Return the energy of each example in nats, up to a constant: summed over features only.

        Raises:
            ValueError: where the shapes differ.
        """

    def mean(self, prediction: Values) -> Values:
        """Return the activity that a prediction stands for: where a feedforward start puts the layer.

        The identity unless a subclass predicts something else than the activity itself (logits).
        """
        return prediction

    def sample(self, prediction: Values, key: PRNGKey) -> Values:
        """Draw an activity from the distribution whose negative log is this energy, given a prediction.

        Args:
            prediction: mu, (batch, *features).
            key: randomness; each example and feature draws for itself.

        Raises:
            ValueError: for an energy that has no distribution, or none that we draw from.
        """
        del prediction, key
        raise ValueError(
            f"{type(self).__name__} has no distribution to draw from; give the layer "
            f"pc.energies.Gaussian(), LearnedGaussian(), Laplace(), Bernoulli() or Categorical(), or write "
            f"`def sample(self, prediction, key)`"
        )

    def log_normalizer(self, features: tuple[int, ...]) -> Float[Array, ""]:
        """Return log of the integral of exp(-E(z, mu)) over z: what makes a density of exp(-E).

        The log-likelihood of an activity is -E - log_normalizer, in nats, for one example.

        Args:
            features: the shape of one example's activity.

        Raises:
            ValueError: for an energy that is no negative log of a density.
        """
        del features
        raise ValueError(
            f"{type(self).__name__} is not the negative log of a density, so that no likelihood can be "
            f"had; write `def log_normalizer(self, features)`"
        )

    # Whether a prediction is the activity that it stands for, and not logits of it, say.
    predicts_activity: ClassVar[bool] = True

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        cls.predicts_activity = cls.mean is Energy.mean

    @property
    def observes(self) -> bool:
        """Whether the energy keeps something of every batch's errors; see `observe`."""
        return type(self).observe is not Energy.observe

    def observe(self, activity: Values, prediction: Values) -> None:
        """Keep what the energy wants of a batch, once the batch is learned from: nothing, unless overridden.

        Training calls it once a batch, at the activities where inference ended. What is kept are variables
        that are no `nnx.Param`.
        """
        del activity, prediction

    def check_targets(self, targets: ArrayLike) -> None:
        """Refuse targets that the energy has no meaning for; any number will do by default.

        For whoever gives data, once, with concrete arrays: inside of compiled code, where an energy is
        evaluated, values are not known. NaN passes here, and makes an energy that is not finite.

        Args:
            targets: what the layer is to be clamped to, with any number of axes for examples.

        Raises:
            ValueError: with the numbers found and the remedy.
        """
        del targets


def sum_features(values: Float[Array, " batch *features"]) -> Float[Array, " batch"]:
    """Sum over every axis but the first.

    >>> import jax.numpy as jnp
    >>> sum_features(jnp.ones((2, 3, 4)))
    Array([12., 12.], dtype=float32)
    """
    return jnp.sum(values, axis=range(1, values.ndim))


def check_same_shape(energy: Energy, activity: jax.Array, prediction: jax.Array) -> None:
    """Refuse shapes that would broadcast: a (batch, 1) prediction of a (batch, 10) activity, say.

    Raises:
        ValueError: where the two shapes differ.
    """
    if activity.shape != prediction.shape:
        raise ValueError(
            f"{type(energy).__name__} expected an activity and a prediction of one shape, got "
            f"{activity.shape} and {prediction.shape}"
        )


def total_energy(energies: Energies, *, leading: int = 1) -> Float[Array, " batch"]:
    """Return F of each example, the sum of its energies over layers, and over the nodes of stacks.

    Args:
        energies: by layer name.
        leading: how many axes to keep; 1 is the batch, 2 steps and the batch.

    >>> import jax.numpy as jnp
    >>> total_energy({"a": jnp.array([1.0, 2.0]), "b": jnp.array([3.0, 4.0])})
    Array([4., 6.], dtype=float32)
    """
    by_layer = (
        energy if energy.ndim == leading else jnp.sum(energy, axis=range(leading, energy.ndim))
        for energy in energies.values()
    )
    return total(by_layer)


def check_range(energy: Energy, targets: ArrayLike, least: float, most: float, remedy: str) -> None:
    """Refuse targets outside of a range, for `Energy.check_targets`; traced ones pass unchecked.

    Raises:
        ValueError: naming the smallest and the largest of them.
    """
    if isinstance(targets, Tracer):
        return
    values = np.asarray(targets, np.float32)
    values = values[~np.isnan(values)]
    low, high = values.min(initial=np.inf), values.max(initial=-np.inf)
    if low < least - 1e-3 or high > most + 1e-3:  # but for rounding in a short format
        raise ValueError(
            f"{type(energy).__name__} expected targets from {least:g} to {most:g}, got numbers from "
            f"{low:.3g} to {high:.3g}, under which its energy may fall without bound; {remedy}"
        )
