"""An affine layer with a parameterization: a multiplier of its weights, and the rates that go with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pcflax.checks import expect_kind
from pcflax.parameterizations import AbstractParameterization, Standard

from .affine import PCAffine


class PCScaled(PCAffine):
    """What `PCDense`, `PCConv` and `PCConvTranspose` share: a * weights, where a depends on the place."""

    parameterization: AbstractParameterization
    multiplier: float

    @property
    def fan_in(self) -> float:
        """How many products each unit sums up."""
        raise NotImplementedError

    def set_place(self, index: int, depth: int) -> None:
        """Choose the multiplier of this place: the layer is number `index` of `depth`, from 0."""
        place = {"index": index, "depth": depth, "skip": self.skip}
        self.multiplier = self.parameterization.multiplier(**place, in_features=self.fan_in)

    def rate_of(self, path: Sequence[str], index: int, depth: int) -> float:
        """Return the parameterization's factor of Adam's rate: one for weights, one for biases and norms."""
        place = {"index": index, "depth": depth, "skip": self.skip}
        if path[0] == "energy":
            return 1.0
        if path[0] == "feedback" or path[-1] == "kernel":
            return self.parameterization.weight_rate(**place, in_features=self.fan_in)
        return self.parameterization.bias_rate(**place)


def as_parameterization(owner: Any, value: Any) -> AbstractParameterization:
    """Return the parameterization, `Standard()` for None; refuse all else."""
    value = Standard() if value is None else value
    example = "pc.parameterizations.MuPC()"
    return expect_kind(owner, "parameterization", value, AbstractParameterization, example)
