"""muPC: the maximal-update parameterization in width and depth, for predictive coding."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
from jaxtyping import Array

from .base import AbstractParameterization, fan_in_multiplier

_kernel_init = jax.nn.initializers.normal(1.0)


@dataclasses.dataclass(frozen=True)
class MuPC(AbstractParameterization):
    """Multipliers under which features learn at every width and depth, and W_l ~ N(0, 1).

    a_1 = 1/sqrt(D), hidden 1/sqrt(N), with skips 1/sqrt(N L), a_L = 1/(gamma N), for input width D,
    width N and L layers. Hidden activities keep their size, the output starts at size 1/sqrt(N), and
    learning rates carry over from one width and depth to another. The networks of the source have
    identity skips on layers 2 to L-1 and the activation before the weights: `PCDense` with
    `skip=True, activation_first=True`. They have no biases; ours are not multiplied.

    The source's own figures are made with one Adam rate for all widths; the rules of
    `sgd_learning_rate` and `adam_learning_rate` are those of its successor.

    Args:
        gamma: divides the last layer's multiplier.

    Source: Innocenti, Achour & Buckley (2025), arXiv 2505.13124; gamma and the learning rates:
    Innocenti, Achour & Bogacz (2026), arXiv 2602.07697; both as in the code that accompanies them.

    >>> import pcflax as pc
    >>> mupc = pc.parameterizations.MuPC()
    >>> print(*[mupc.multiplier(index=i, depth=4, in_features=16, skip=i in (1, 2)) for i in range(4)])
    0.25 0.125 0.125 0.0625
    >>> mupc.sgd_learning_rate(0.1, width=100), mupc.adam_learning_rate(0.1, width=25, depth=4)
    (10.0, 0.01)
    """

    @property
    def kernel_init(self) -> Callable[..., Array]:
        """N(0, 1) for every weight."""
        return _kernel_init

    def base_multiplier(self, *, index: int, depth: int, in_features: int, skip: bool) -> float:
        """1/sqrt(in_features), with a skip 1/sqrt(in_features * depth); the last 1/in_features."""
        if 0 < index == depth - 1:
            return 1 / in_features
        return fan_in_multiplier(index=index, depth=depth, in_features=in_features, skip=skip)

    def sgd_learning_rate(self, base: float, *, width: int) -> float:
        """The rate base * gamma^2 * N, on the batch-mean gradient."""
        return base * self.gamma**2 * width

    def adam_learning_rate(self, base: float, *, width: int, depth: int | None = None) -> float:
        """The rate base / sqrt(N), or base / sqrt(N L) where depth is given, for layers with skips.

        One rate for all layers, under which the first layer, whose input does not widen, moves its
        features as 1/sqrt(N). Adam's epsilon wants care: gradients shrink as the width grows, and where
        they are no longer large against it, steps are smaller than the rate says.
        """
        return base / math.sqrt(width if depth is None else width * depth)
