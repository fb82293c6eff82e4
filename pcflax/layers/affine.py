"""A layer around an affine map, with all that belongs to it: norm, activation, dropout, pool and skip.

All of it is one layer with one energy. A norm or a pool with an energy of its own would be one more thing
for inference to settle. Next files to read: `dense.py` and `conv.py`, which make the affine map.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from pcflax.checks import did_you_mean, expect_number, shown
from pcflax.energies import Energy
from pcflax.variables import Connectivity

from .base import PCLayer
from .closures import refuse_hidden_modules
from .feedback import through_feedback
from .kernels.pooling import POOLS, pool_by
from .weights import zeros

Function = Callable[[Array], Array]
Sizes: TypeAlias = int | Sequence[int]


class PCAffine(PCLayer):
    """mu = pool(dropout(activation(norm(module(below))))), and with a skip the activity below added.

    With `activation_first` it is pool(dropout(module(activation(below)))). `PCDense`, `PCConv` and
    `PCConvTranspose` are this layer around a module that they make; they take the same options.

    Args:
        module: a ready affine map, such as `nnx.LoRALinear(3, 5, lora_rank=2, rngs=rngs)`.
        activation: elementwise function such as `jnp.tanh`; None for the identity.
        activation_first: apply the activation to the activity below, before the weights, instead of
            after them.
        norm: a ready module called on the affine map, before the activation, such as
            `nnx.LayerNorm(5, rngs=rngs)`; not with `activation_first`.
        pool: "max", "average" or None, over the dimensions of space.
        pool_size: window of the pool and its stride, an int or one for each dimension.
        dropout: the share of features set to zero, of all but the skip, while the network is not in
            `eval()`; the rest are divided by 1 - dropout.
        skip: add the activity below; needs equal shapes.
        energy: `Gaussian()` unless given.
        rngs: source of the masks of dropout.

    Raises:
        TypeError: for a norm that is not a ready module, or a function that hides a module.
        ValueError: for a skip between different widths, a norm with `activation_first`, another name of
            a pool, or a rate of dropout outside [0, 1); on use, for an activity below that is smaller than
            a window of the pool, or that a shortcut does not fit.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> low_rank = nnx.LoRA(3, 2, 5, rngs=nnx.Rngs(0))
    >>> pc.layers.PCAffine(low_rank, activation=jnp.tanh).predict(jnp.ones((4, 3))).shape
    (4, 5)
    """

    feedback: Any = None  # weights that errors go down through, where they are others
    mask: Any = None  # which weights there are, where some are not

    def __init__(
        self,
        module: Function | None = None,
        *,
        activation: Function | None = None,
        activation_first: bool = False,
        norm: Function | None = None,
        pool: str | None = None,
        pool_size: Sizes = 2,
        dropout: float = 0.0,
        skip: bool = False,
        energy: Energy | None = None,
        rngs: nnx.Rngs | None = None,
    ):
        super().__init__(module, energy=energy)
        name = type(self).__name__
        # a subclass that makes its module has noted the widths
        below, above = (
            getattr(self if module is None else module, width, None)
            for width in ("in_features", "out_features")
        )
        if skip and below != above:
            raise ValueError(
                f"{name} expected as many in_features as out_features with a skip, which adds the "
                f"activity below to the prediction, got {below} and {above}; make them equal or set "
                f"skip=False"
            )
        if norm is not None and (isinstance(norm, type) or not callable(norm)):
            raise TypeError(
                f"{name} expected norm to be a ready module such as nnx.LayerNorm({above}, rngs=rngs), "
                f"got {norm!r}"
            )
        if norm is not None and activation_first:
            raise ValueError(
                f"{name} applies a norm between the weights and the activation, got a norm and "
                f"activation_first=True; drop one of them, or write the order you mean in a "
                f"subclass's predict"
            )
        if pool is not None and pool not in POOLS:
            raise ValueError(f"{name} expected pool to be 'max', 'average' or None, got {pool!r}")
        check_activation(self, activation)
        refuse_hidden_modules(self, norm=norm)
        self.activation, self.activation_first = activation, activation_first
        self.norm: Any = norm
        self.pool, self.pool_size = pool, as_window(self, pool_size)
        self.dropout = make_dropout(self, dropout, rngs)
        self.skip = skip

    @property
    def has_feedback(self) -> bool:
        """Whether the layer was given feedback weights."""
        return self.feedback is not None

    def affine(self, features: Float[Array, " batch *below"]) -> Float[Array, " batch *features"]:
        """Compute the affine map alone, without norm, activation, dropout, pool and skip."""
        return self.module(features)

    def predict(self, below: Float[Array, " batch *below"]) -> Float[Array, " batch *features"]:
        """Predict this layer's activity from the one below."""
        activation, features = self.activation, below
        if activation is not None and self.activation_first:
            features = activation(features)
        features = (
            self.affine(features) if self.feedback is None else through_feedback(self, features)
        )
        if self.norm is not None:
            features = self.norm(features)
        if activation is not None and not self.activation_first:
            features = activation(features)
        if self.dropout is not None:
            features = self.dropout(features)
        if self.pool is not None:
            features = pool_by(self.pool, features, self.pool_size)
        return add_shortcut(self, below, features) if self.skip else features


def as_ints(value: Any) -> Any:
    """Return ints, or tuples of them, for NumPy's integers and lists; text stays as it is.

    >>> import numpy as np
    >>> as_ints(np.int64(3)), as_ints([[1, np.int64(0)], [2, 1]]), as_ints("SAME")
    (3, ((1, 0), (2, 1)), 'SAME')
    """
    if isinstance(value, str):
        return value
    try:
        return operator.index(value)
    except TypeError:
        return tuple(map(as_ints, value))


def as_window(owner: PCLayer, value: Any) -> Any:
    """Return the size of a pool's window, of ints: one for all dimensions of space, or one for each."""
    try:
        window = as_ints(value)
    except TypeError:  # a float, say
        window = ()
    sizes = (window,) if isinstance(window, int) else window
    if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(
            f"{type(owner).__name__} expected pool_size to be an int of at least 1, or one for each "
            f"dimension of space, got {value!r}"
        )
    return window


def check_activation(owner: Any, activation: Any) -> None:
    """Refuse an activation that is neither None nor a function without a module."""
    if activation is not None and not callable(activation):
        raise TypeError(
            f"{type(owner).__name__} expected activation to be a function such as jnp.tanh, got "
            f"{activation!r}"
        )
    refuse_hidden_modules(owner, activation=activation)


def make_affine(owner: PCLayer, make: Any, *sizes: Any, rngs: nnx.Rngs, **options: Any) -> Any:
    """Make a layer's module with the options that the layer was given for it; refuse unknown ones."""
    known = inspect.signature(make.__init__).parameters
    for name in options:
        if name not in known:
            own = inspect.signature(type(owner).__init__).parameters
            raise TypeError(
                f"{type(owner).__name__} and its nnx.{make.__name__} have no option {name!r}"
                f"{did_you_mean(name, [*own, *known])}"
            )
    if not isinstance(rngs, nnx.Rngs):
        raise TypeError(
            f"{type(owner).__name__} expected rngs such as nnx.Rngs(0), got {shown(rngs)}"
        )
    if "bias_init" in known:
        options.setdefault("bias_init", zeros)
    return make(*sizes, rngs=rngs, **options)


def multiplied(features: Array, multiplier: float) -> Array:
    """Multiply what weights are about to: it leaves biases alone, and N(0, 1) weights sum to O(1)."""
    return features if multiplier == 1.0 else multiplier * features


def mask_weights(owner: PCAffine, kernel: Any, mask: Any) -> None:
    """Keep a mask of a layer's weights in it, and set those that it leaves out to 0."""
    if mask is None:
        return
    name, found = type(owner).__name__, np.asarray(mask)
    if found.shape != kernel.shape:
        raise ValueError(
            f"{name} expected a mask of shape {kernel.shape}, that of its weights, got {found.shape}"
        )
    if not np.isin(found, (0, 1)).all():
        raise ValueError(f"{name} expected a mask of Booleans, or of 0 and 1; compare: mask > 0.5")
    owner.mask = Connectivity(jnp.asarray(found, bool))
    kernel.set_value(kernel[...] * owner.mask[...].astype(kernel.dtype))


def make_dropout(owner: PCLayer, rate: float, rngs: nnx.Rngs | None) -> nnx.Dropout | None:
    """Make a dropout of this rate; none for 0, so that no random state is kept for nothing."""
    rate = expect_number(owner, "dropout", rate)
    if not 0 <= rate < 1:
        raise ValueError(
            f"{type(owner).__name__} expected dropout to be at least 0 and below 1, the share of "
            f"features that are set to zero, got {rate}"
        )
    if rate and rngs is None:
        raise ValueError(f"{type(owner).__name__} expected rngs with dropout={rate}, got None")
    return nnx.Dropout(rate, rngs=rngs) if rate else None


def add_shortcut(owner: PCLayer, shortcut: Array, branch: Array) -> Array:
    """Return the sum of equal shapes; sums that would broadcast are refused."""
    if shortcut.shape != branch.shape:
        raise ValueError(
            f"{type(owner).__name__} adds a shortcut of shape {shortcut.shape} to a branch of shape "
            f"{branch.shape}; give the branch equal features and, in space, strides of 1 with "
            f"padding='SAME', or project the shortcut"
        )
    return shortcut + branch
