"""The neural tangent parameterization: every layer divided by the square root of its width below."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
from jaxtyping import Array

from .base import AbstractParameterization, fan_in_multiplier

_kernel_init = jax.nn.initializers.normal(1.0)


@dataclasses.dataclass(frozen=True)
class NTK(AbstractParameterization):
    """Multipliers that hold activities and the tangent kernel at one size, and W_l ~ N(0, 1).

    a_1 = 1/sqrt(D), hidden 1/sqrt(N), with skips 1/sqrt(N L), a_L = 1/(gamma sqrt(N)), for input
    width D, width N and L layers. With growing width the features move ever less (as 1/sqrt(N)) and
    training becomes that of a kernel machine.

    Gradient descent needs no rule: one learning rate serves every width. For Adam no rule is
    known to the sources; the rate is returned as given. (The code that accompanies arXiv 2602.07697 has
    one branch for all that is not standard, and would scale these rates as `MuPC` does; gradient
    descent then diverges with width.)

    Args:
        gamma: divides the last layer's multiplier.

    Source: Jacot, Gabriel & Hongler (2018), arXiv 1806.07572; with skips as in arXiv 2505.13124.

    >>> import pcflax as pc
    >>> ntk = pc.parameterizations.NTK()
    >>> print(*[ntk.multiplier(index=i, depth=4, in_features=16, skip=i in (1, 2)) for i in range(4)])
    0.25 0.125 0.125 0.25
    """

    @property
    def kernel_init(self) -> Callable[..., Array]:
        """N(0, 1) for every weight."""
        return _kernel_init

    def base_multiplier(self, *, index: int, depth: int, in_features: int, skip: bool) -> float:
        """1/sqrt(in_features), for a hidden layer with a skip 1/sqrt(in_features * depth)."""
        return fan_in_multiplier(index=index, depth=depth, in_features=in_features, skip=skip)
