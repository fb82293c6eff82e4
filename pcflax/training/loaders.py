"""A user's own loader in the place of a data set, its labels as many as the network has outputs."""

from __future__ import annotations

from typing import Any

import jax

from pcflax.data import LoaderDataset
from pcflax.data.passes import is_loader
from pcflax.layers import Evidence
from pcflax.networks import SplitNetwork
from pcflax.typing import PyTree

from .reading import AbstractReading


def as_dataset(data: Any, network: SplitNetwork, passes: AbstractReading, *known: object) -> Any:
    """Return a pipeline of grain's or torch's `DataLoader` as a data set, and all else as it is.

    Args:
        data: what a Trainer was given.
        network: whose output is as wide as there are classes, where labels are whole numbers.
        passes: how a pass upward is read.
        known: data sets, one of which may be this loader's already.

    Raises:
        TypeError, ValueError: where the loader gives what no network can take, or not this one.
    """
    if not is_loader(data):
        return data
    for one in known:
        if isinstance(one, LoaderDataset) and one.loader is data:
            return one

    def width(inputs: PyTree) -> int | None:
        def answer(evidence: Evidence) -> PyTree:
            return passes.answer(network, evidence, key=jax.random.key(0)).values

        try:
            answered = jax.eval_shape(answer, Evidence(inputs))
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"the loader's inputs do not fit the network: {error}") from error
        return None if isinstance(answered, dict) else answered.shape[-1]

    return LoaderDataset(data, num_classes=width)
