"""The root of a generative network: an activity with a prior and nothing below it."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, ArrayLike, Float

from pcflax.checks import expect_count
from pcflax.dtypes import common_dtype
from pcflax.energies import Energy
from pcflax.typing import PyTree

from .base import PCLayer
from .clamps import ClampShapeError


class PCRoot(PCLayer):
    """A first layer without a layer below: z_0 ~ N(mean, I/precision), clamped or free.

    Put it first in a network. `inputs` then clamp its activity; without inputs it is free, and
    inference finds the z_0 that best explains what is clamped above. A prior whose mean depends on a
    class is no root: it is a layer that a clamped root of labels predicts, `pc.PCDense(10, 16)`. A prior of
    one's own is a subclass whose `predict` takes nothing and returns the prior's mean, of shape
    (*features,).

    Args:
        *features: the shape of one example's activity.
        mean: of the prior: an array of that shape, or one number for all; 0 unless given.
        learn_mean: whether learning moves the mean, from there on.
        energy: the prior; `Gaussian()` is a standard normal, `Gaussian(precision=0.0)` is flat, and
            `LearnedGaussian(*features)` learns its precisions.

    Raises:
        TypeError: for features that are not ints.
        ValueError: for features below 1, a mean of another shape, or to be learned under a flat prior.

    >>> import pcflax as pc
    >>> pc.PCRoot(10).predict().shape
    (10,)
    """

    is_root_node = True
    mean: nnx.Variable | None = None

    def __init__(
        self,
        *features: int,
        mean: ArrayLike | None = None,
        learn_mean: bool = False,
        energy: Energy | None = None,
    ):
        super().__init__(energy=energy)
        self.features = tuple(
            expect_count(self, "number of features", size, least=1) for size in features
        )
        if mean is None and not learn_mean:
            return
        if learn_mean and getattr(energy, "precision", None) == 0.0:
            raise ValueError(
                "PCRoot has a flat prior, Gaussian(0.0), under which no mean can be learned; give "
                "energy=pc.energies.Gaussian() or leave learn_mean out"
            )
        start = jnp.zeros(()) if mean is None else jnp.asarray(mean)
        if start.shape not in ((), self.features):
            raise ValueError(
                f"PCRoot{self.features} expected a mean of that shape or one number, got {start.shape}"
            )
        start = jnp.broadcast_to(start, self.features).astype(common_dtype(float, start))
        self.mean = (nnx.Param if learn_mean else nnx.Variable)(start)

    @property
    def known_shape(self) -> tuple[int, ...]:
        """The shape that the root was made with."""
        return self.features

    def predict(self) -> Float[Array, " *features"]:  # type: ignore[override]
        """Return the mean of the prior, alike for every example, hence without a batch axis."""
        return jnp.zeros(self.features) if self.mean is None else self.mean[...]

    def predict_nodes(self, belows, activity, numerics) -> tuple[Array, PyTree]:
        """Repeat the prior's mean for every example."""
        return self._mean(activity.shape[0]), {}

    def advance_nodes(
        self, belows, numerics, *, batch_size, clamp=None, error=None
    ) -> tuple[Array, Array, PyTree]:
        """Stand at the clamp, or at the prior's mean + error.

        Raises:
            ValueError: where neither inputs nor a batch size tell how many examples there are, or inputs
                have another shape than the root.
        """
        if batch_size is None:
            raise ValueError("a feedforward pass without inputs needs batch_size")
        prediction = self._mean(batch_size)
        activity = self.energy.mean(prediction)
        if error is not None:
            activity = activity + error
        if clamp is not None and clamp.mask is None:
            if clamp.value.shape != activity.shape:
                raise ClampShapeError(
                    f"is a root of shape {activity.shape} but the inputs are {clamp.value.shape}; make "
                    f"it PCRoot{clamp.value.shape[1:]}"
                )
            return clamp.value, prediction, {}  # in its own dtype, which the layers above follow
        return activity if clamp is None else clamp.placed(activity), prediction, {}

    def _mean(self, batch_size: int) -> Array:
        mean = self.predict()
        return jnp.broadcast_to(mean, (batch_size, *mean.shape))
