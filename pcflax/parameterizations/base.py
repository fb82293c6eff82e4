"""The contract of a parameterization: multipliers, initial weights and learning rates, together.

A layer predicts mu_l = a_l W_l phi(z_{l-1}) + b_l. How large the multiplier a_l is, at what variance
W_l starts and at what rate it learns decide what happens when a network grows wider or deeper:
whether activities keep their size and whether features still learn. One parameterization answers all
three. Layers are counted from the input: index 0 is first, index depth - 1 last, where depth L is the
number of layers that predict. `mupc.py` is the example to read next.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable

from jaxtyping import Array


@dataclasses.dataclass(frozen=True)
class AbstractParameterization(abc.ABC):
    """How multipliers, initial weights and learning rates depend on width and depth.

    A subclass gives `base_multiplier`, and `kernel_init` and the learning rates where they are not the
    usual ones.

    Args:
        gamma: divides the last layer's multiplier; above 1 the network's output starts small and its
            features learn more (the gamma_0 of mean-field theory).

    Raises:
        ValueError: for a gamma that is not a finite number above 0.

    >>> import dataclasses, pcflax as pc
    >>> @dataclasses.dataclass(frozen=True)
    ... class Halved(pc.parameterizations.AbstractParameterization):
    ...     def base_multiplier(self, *, index, depth, in_features, skip):
    ...         return 0.5
    >>> print(*[Halved(gamma=2.0).multiplier(index=i, depth=3, in_features=8, skip=False) for i in range(3)])
    0.5 0.5 0.25
    """

    gamma: float = 1.0

    def __post_init__(self):
        if not 0 < self.gamma < math.inf:
            raise ValueError(
                f"{type(self).__name__} expected a finite gamma above 0, got {self.gamma}"
            )

    @property
    def kernel_init(self) -> Callable[..., Array] | None:
        """The initializer of the weights; None leaves the module its own."""
        return None

    @abc.abstractmethod
    def base_multiplier(self, *, index: int, depth: int, in_features: int, skip: bool) -> float:
        """The multiplier a_l before gamma divides the last one; the arguments are `multiplier`'s."""

    def multiplier(self, *, index: int, depth: int, in_features: int, skip: bool) -> float:
        """The multiplier a_l of a layer's weights, the last one divided by gamma.

        The only layer of a network is its first and its last: it has the first one's multiplier,
        since there is no width to grow, divided by gamma.

        Args:
            index: which of the layers that predict this one is, from 0.
            depth: how many layers predict, L.
            in_features: width of the activity below: D for the first layer, N for the others. Where
                widths differ, each layer goes by its own.
            skip: whether the layer adds the activity below to its prediction.

        Raises:
            ValueError: for an index outside 0 to depth - 1.
        """
        if not 0 <= index < depth:
            raise ValueError(
                f"{type(self).__name__} expected an index from 0 to {depth - 1} in a network of "
                f"{depth} layers, got {index}"
            )
        multiplier = self.base_multiplier(
            index=index, depth=depth, in_features=in_features, skip=skip
        )
        return multiplier / self.gamma if index == depth - 1 else multiplier

    def sgd_learning_rate(self, base: float, *, width: int) -> float:
        """The rate of gradient descent at this width: `base` itself unless a subclass scales it.

        Args:
            base: the rate that was found good, free of width.
            width: N, the width of the hidden layers.
        """
        del width  # no rule
        return base

    def adam_learning_rate(self, base: float, *, width: int, depth: int | None = None) -> float:
        """The rate of Adam at this width and depth: `base` itself unless a subclass scales it.

        Args:
            base: the rate that was found good, free of width and depth.
            width: N, the width of the hidden layers.
            depth: L, the number of layers that predict, where the hidden ones have skips; None where
                they have none.
        """
        del width, depth  # no rule
        return base


def fan_in_multiplier(*, index: int, depth: int, in_features: int, skip: bool) -> float:
    """1/sqrt(in_features), and 1/sqrt(in_features * depth) for a hidden layer with a skip.

    Weights of variance 1 then give predictions of the size of what is below, and L skips together add
    no more than one layer would. Skips of the first and the last layer change nothing.

    >>> fan_in_multiplier(index=1, depth=4, in_features=16, skip=True)
    0.125
    """
    hidden = 0 < index < depth - 1
    return 1 / math.sqrt(in_features * depth if skip and hidden else in_features)
