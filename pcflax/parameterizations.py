"""Parameterizations: how weights and learning rates scale with width and depth.

A layer predicts mu_l = a_l W_l phi(z_{l-1}) + b_l. How large the multiplier a_l is, at what variance
W_l starts and at what rate it learns decide what happens when a network grows wider or deeper:
whether activities keep their size and whether features still learn. One parameterization answers all
three. Layers are counted from the input: index 0 is first, index depth - 1 last, where depth L is the
number of layers that predict.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable

import jax
from jaxtyping import Array

from pcflax.checks import expect_number

_unit_normal = jax.nn.initializers.normal(1.0)


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
        gamma = expect_number(self, "gamma", self.gamma, above=0)
        if type(self.gamma) is not int:  # as which a checkpoint may know it
            object.__setattr__(self, "gamma", gamma)

    @property
    def kernel_init(self) -> Callable[..., Array] | None:
        """The initializer of the weights; None leaves the module its own."""
        return None

    @abc.abstractmethod
    def base_multiplier(self, *, index: int, depth: int, in_features: float, skip: bool) -> float:
        """Return the multiplier a_l before gamma divides the last one; the arguments are `multiplier`'s."""

    def multiplier(self, *, index: int, depth: int, in_features: float, skip: bool) -> float:
        """Return the multiplier a_l of a layer's weights, the last one divided by gamma.

        The only layer of a network is its first and its last: it has the first one's multiplier,
        since there is no width to grow, divided by gamma.

        Args:
            index: which of the layers that predict this one is, from 0.
            depth: how many layers predict, L.
            in_features: how many products a unit sums up: the width of the activity below (D for the
                first layer, N for the others), in a convolution the area of its kernel times the channels
                of a group. Where widths differ, each layer goes by its own.
            skip: whether the layer adds the activity below to its prediction.

        Raises:
            TypeError: for a `base_multiplier` that is no number.
            ValueError: for an index outside 0 to depth - 1, or a multiplier that is not finite.
        """
        if not 0 <= index < depth:
            raise ValueError(
                f"{type(self).__name__} expected an index from 0 to {depth - 1} in a network of "
                f"{depth} layers, got {index}"
            )
        multiplier = self.base_multiplier(
            index=index, depth=depth, in_features=in_features, skip=skip
        )
        # a number of NumPy's would raise 16 bits to 32, and an array is no part of a static structure
        multiplier = expect_number(self, "multiplier", multiplier)
        return multiplier / self.gamma if index == depth - 1 else multiplier

    def sgd_learning_rate(self, base: float, *, width: int) -> float:
        """Return the rate of gradient descent at this width: `base` itself unless a subclass scales it.

        Args:
            base: the rate that was found good, free of width.
            width: N, the width of the hidden layers.
        """
        del width  # no rule
        return base

    def adam_learning_rate(self, base: float, *, width: int, depth: int | None = None) -> float:
        """Return the rate of Adam at this width and depth: `base` itself unless a subclass scales it.

        Args:
            base: the rate that was found good, free of width and depth.
            width: N, the width of the hidden layers.
            depth: L, the number of layers that predict, where the hidden ones have skips; None where
                they have none.
        """
        del width, depth  # no rule
        return base

    def weight_rate(self, *, index: int, depth: int, in_features: float, skip: bool) -> float:
        """Return the factor of Adam's rate for the weights of one layer, 1 unless a subclass scales it.

        Adam's steps have the size of its rate whatever the gradient, so that a layer's prediction moves by
        multiplier * rate * in_features where all weights of a unit push one way. The arguments are
        `multiplier`'s; `pc.learning.scale_by_layer` puts the factors of all layers behind Adam.
        """
        del index, depth, in_features, skip  # no rule
        return 1.0

    def bias_rate(self, *, index: int, depth: int, skip: bool, within: bool = False) -> float:
        """Return the factor of Adam's rate for biases and norms, which have no multiplier: 1 unless scaled.

        `within` says that they are inside of a branch, at whose end the skip's multiplier stands.
        """
        del index, depth, skip, within  # no rule
        return 1.0

    def attention_multiplier(self, head_features: int) -> float:
        """Return what queries are multiplied by beside the usual 1/sqrt(head_features): 1 unless scaled."""
        del head_features
        return 1.0


@dataclasses.dataclass(frozen=True)
class Standard(AbstractParameterization):
    """a_l = 1, the last one 1/gamma; weights as the module draws them; learning rates as given.

    What a layer does unless told otherwise. Rates found good at one width or depth are not good at
    another, and with skips activities grow with depth.

    Source: the columns "standard" (SP) of Innocenti, Achour & Buckley (2025), arXiv 2505.13124.

    >>> import pcflax as pc
    >>> pc.parameterizations.Standard().multiplier(index=1, depth=4, in_features=16, skip=True)
    1.0
    """

    def base_multiplier(self, *, index: int, depth: int, in_features: float, skip: bool) -> float:
        """Return 1 everywhere."""
        del index, depth, in_features, skip  # the same for every layer
        return 1.0


@dataclasses.dataclass(frozen=True)
class _FanIn(AbstractParameterization):
    """Weights of variance 1, and multipliers under which predictions have the size of what is below."""

    @property
    def kernel_init(self) -> Callable[..., Array]:
        """N(0, 1) for every weight."""
        return _unit_normal

    def base_multiplier(self, *, index: int, depth: int, in_features: float, skip: bool) -> float:
        """Return 1/sqrt(in_features), for a hidden layer with a skip 1/sqrt(in_features * depth).

        L skips together then add no more than one layer would. Skips of the first and the last layer
        change nothing.
        """
        share = depth if _in_between(index, depth, skip) else 1
        return 1 / math.sqrt(in_features * share)


def _in_between(index: int, depth: int, skip: bool) -> bool:
    """Return whether this is one of the layers that add to what passes by them."""
    return skip and 0 < index < depth - 1


@dataclasses.dataclass(frozen=True)
class NTK(_FanIn):
    """Multipliers that hold activities and the tangent kernel at one size, and W_l ~ N(0, 1).

    a_1 = 1/sqrt(D), hidden 1/sqrt(N), with skips 1/sqrt(N L), a_L = 1/(gamma sqrt(N)), for input
    width D, width N and L layers. With growing width the features move ever less (as 1/sqrt(N)) and
    training becomes that of a kernel machine.

    Gradient descent needs no rule: one learning rate serves every width. For Adam no rule is
    known to the sources; the rate is returned as given. (The code that accompanies arXiv 2602.07697 has
    one branch for all that is not standard, and would scale these rates as `MuPC` does; gradient
    descent then diverges with width.)

    Source: Jacot, Gabriel & Hongler (2018), arXiv 1806.07572; with skips as in arXiv 2505.13124.

    >>> import pcflax as pc
    >>> ntk = pc.parameterizations.NTK()
    >>> print(*[ntk.multiplier(index=i, depth=4, in_features=16, skip=i in (1, 2)) for i in range(4)])
    0.25 0.125 0.125 0.25
    """


@dataclasses.dataclass(frozen=True)
class MuPC(_FanIn):
    """Multipliers under which features learn at every width and depth, and W_l ~ N(0, 1).

    a_1 = 1/sqrt(D), hidden 1/sqrt(N), with skips 1/sqrt(N L), a_L = 1/(gamma N), for input width D,
    width N and L layers. Hidden activities keep their size, the output starts at size 1/sqrt(N), and
    learning rates carry over from one width and depth to another, though between widths of 64 and 256
    what an update moves still falls as N^-0.18 to N^-0.24. The networks of the source have
    identity skips on layers 2 to L-1 and the activation before the weights: `PCDense` with
    `skip=True, activation_first=True`. They have no biases; ours are not multiplied.

    The source's own figures are made with one Adam rate for all widths; the rules of
    `sgd_learning_rate` and `adam_learning_rate` are those of its successor.

    Source: Innocenti, Achour & Buckley (2025), arXiv 2505.13124; gamma and the learning rates:
    Innocenti, Achour & Bogacz (2026), arXiv 2602.07697; both as in the code that accompanies them.

    >>> import pcflax as pc
    >>> mupc = pc.parameterizations.MuPC()
    >>> print(*[mupc.multiplier(index=i, depth=4, in_features=16, skip=i in (1, 2)) for i in range(4)])
    0.25 0.125 0.125 0.0625
    >>> mupc.sgd_learning_rate(0.1, width=100), mupc.adam_learning_rate(0.1, width=25, depth=4)
    (10.0, 0.01)
    """

    def base_multiplier(self, *, index: int, depth: int, in_features: float, skip: bool) -> float:
        """Return 1/sqrt(in_features), with a skip 1/sqrt(in_features * depth); the last 1/in_features."""
        if 0 < index == depth - 1:
            return 1 / in_features
        return super().base_multiplier(index=index, depth=depth, in_features=in_features, skip=skip)

    def sgd_learning_rate(self, base: float, *, width: int) -> float:
        """Return the rate base * gamma^2 * N, on the batch-mean gradient."""
        return base * self.gamma**2 * width

    def adam_learning_rate(self, base: float, *, width: int, depth: int | None = None) -> float:
        """Return the rate base / sqrt(N), or base / sqrt(N L) where depth is given, for layers with skips.

        The source's one rate for all layers, which is right for the hidden ones. Two others move less than
        they could: the first layer, whose input does not widen, as 1/sqrt(N), with depth as 1/sqrt(N L),
        and the last one's own weights as much. Rates by layer (`weight_rate`, put to use by
        `pc.learning.scale_by_layer`) mend both. Adam's epsilon wants care: gradients shrink as the width
        grows, and where they are no longer large against it, steps are smaller than the rate says.
        """
        return base / math.sqrt(width if depth is None else width * depth)

    def weight_rate(self, *, index: int, depth: int, in_features: float, skip: bool) -> float:
        """Return 1/sqrt(in_features), with a skip 1/sqrt(in_features * depth), of the last layer 1.

        Under these factors each layer's prediction moves by as much as the rate says, with a skip by
        1/depth of it, so that all skips together move what passes by them as one layer does. The factors
        of hidden layers are those of `adam_learning_rate`.
        """
        if 0 < index == depth - 1:
            return 1.0
        share = depth if _in_between(index, depth, skip) else 1
        return 1 / math.sqrt(in_features * share)

    def bias_rate(self, *, index: int, depth: int, skip: bool, within: bool = False) -> float:
        """Return 1, with a skip 1/depth, since all skips add up, unmultiplied; within 1/sqrt(depth)."""
        share = depth if _in_between(index, depth, skip) else 1
        return 1 / math.sqrt(share) if within else 1 / share

    def attention_multiplier(self, head_features: int) -> float:
        """Return 1/sqrt(head_features), so that products of queries and keys are divided by head_features.

        As they learn, queries and keys line up, and their product grows as their width.

        Source: Yang et al. (2022), arXiv 2203.03466, definition 4.1.
        """
        return 1 / math.sqrt(head_features)


@dataclasses.dataclass(frozen=True)
class CompleteP(MuPC):
    """muPC with 1/L in the place of 1/sqrt(L) where a layer has a skip, and Adam's rates free of depth.

    a_l = 1/(L sqrt(N)) for hidden layers with skips; all else is `MuPC`'s. What L layers add at the start
    then goes to 0 as 1/sqrt(L), and each of them still moves what passes by it by 1/L as it learns: as the
    network deepens, no layer's learning becomes that of its linearization. The rate of gradient descent is
    muPC's, which has no rule for the depth here: hidden layers with skips would want L times that.

    Source: Dey et al. (2025), arXiv 2505.01618, table 1 at alpha = 1, in the form of multipliers and
    weights of variance 1. The rates of its input layer do not count that layer's width, which is constant.

    >>> import pcflax as pc
    >>> mupc, complete = pc.parameterizations.MuPC(), pc.parameterizations.CompleteP()
    >>> place = {"index": 1, "depth": 4, "in_features": 16, "skip": True}
    >>> mupc.multiplier(**place), complete.multiplier(**place)
    (0.125, 0.0625)
    >>> mupc.weight_rate(**place), complete.weight_rate(**place)
    (0.125, 0.25)
    """

    def base_multiplier(self, *, index: int, depth: int, in_features: float, skip: bool) -> float:
        """Return that of `MuPC`, with a skip 1/(sqrt(in_features) * depth)."""
        base = super().base_multiplier(
            index=index, depth=depth, in_features=in_features, skip=False
        )
        return base / depth if _in_between(index, depth, skip) else base

    def adam_learning_rate(self, base: float, *, width: int, depth: int | None = None) -> float:
        """Return the rate base / sqrt(N) at every depth."""
        del depth  # the multipliers have it
        return super().adam_learning_rate(base, width=width)

    def weight_rate(self, *, index: int, depth: int, in_features: float, skip: bool) -> float:
        """Return 1/sqrt(in_features), of the last layer 1."""
        return super().weight_rate(index=index, depth=depth, in_features=in_features, skip=False)

    def bias_rate(self, *, index: int, depth: int, skip: bool, within: bool = False) -> float:
        """Return 1, with a skip 1/depth; within 1, since the multiplier at the branch's end has the depth."""
        return 1.0 if within else super().bias_rate(index=index, depth=depth, skip=skip)
