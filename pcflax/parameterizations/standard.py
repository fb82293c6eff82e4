"""The standard parameterization: no multipliers, the modules' own initial weights."""

from __future__ import annotations

import dataclasses

from .base import AbstractParameterization


@dataclasses.dataclass(frozen=True)
class Standard(AbstractParameterization):
    """a_l = 1, the last one 1/gamma; weights as the module draws them; learning rates as given.

    What a layer does unless told otherwise. Rates found good at one width or depth are not good at
    another, and with skips activities grow with depth.

    Args:
        gamma: divides the last layer's multiplier.

    Source: the columns "standard" (SP) of Innocenti, Achour & Buckley (2025), arXiv 2505.13124.

    >>> import pcflax as pc
    >>> pc.parameterizations.Standard().multiplier(index=1, depth=4, in_features=16, skip=True)
    1.0
    """

    def base_multiplier(self, *, index: int, depth: int, in_features: int, skip: bool) -> float:
        """1 everywhere."""
        del index, depth, in_features, skip  # the same for every layer
        return 1.0
