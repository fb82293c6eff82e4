"""The limit of inference's step size while a network trains: told once, where the algorithm asks for it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from pcflax.data import Dataset
from pcflax.inference.result import warn_of_steps
from pcflax.initializers import AbstractKeptStart
from pcflax.layers import Evidence
from pcflax.networks import SplitNetwork
from pcflax.sharding.inside import readable
from pcflax.typing import PRNGKey

from .run import Run


class StepLimit:
    """Look with each row that is logged at the newest batch, and warn the first time steps are too large."""

    def __init__(self):
        self._told = False

    def asks(self, rule: Any) -> bool:
        """Return whether there is something to look at, and nothing told yet."""
        inference = getattr(rule, "inference", None)
        asked = inference is not None and inference.warns_of_steps and hasattr(rule, "problem")
        return asked and not self._told

    def look(self, rule: Any, run: Run, data: Dataset, batches: int) -> None:
        """Look at the last of so many batches; nothing is computed for a rule that does not ask.

        Warns:
            UserWarning: once, saying at what step, in how many examples and by how much.
        """
        if not self.asks(rule) or not batches:
            return
        if isinstance(
            getattr(rule, "initializer", None), AbstractKeptStart
        ):  # curvature hardly depends on the start
            rule = dataclasses.replace(rule, initializer=None)
        item = jax.tree.map(lambda leaf: leaf[0], data.items(batches - 1, 1))
        batch, network = data.reader(data.constants(), item), run.state().network
        with network.on_mesh():
            overstep = _overstep(network, batch, run.key, rule)
        self._told = warn_of_steps(overstep, f"at step {run.step} ", stacklevel=6)


@jax.jit
def _overstep(network: SplitNetwork, batch: Evidence, key: PRNGKey, rule: Any):
    return readable(rule.inference.overstep(rule.problem(network, batch, key=key)))
