"""A callback that logs the cheap numbers of health while a network trains."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from pcflax.networks.given import check_batch

from .alignment import Credit, gradient_alignment
from .diagnosis import (
    InferenceHealth,
    backpropagation_words,
    edge_words,
    find_swallowed,
    find_unreached,
    is_backpropagation,
    is_near_the_edge,
    is_parallel,
    swallowed_words,
    unreached_words,
)
from .health import REFERENCE, inference_health, unit_health


class HealthMonitor:
    """A callback that logs, beside the training metrics, how the network does on one fixed batch.

    In each training row of the history, of metrics.jsonl and of TensorBoard: `health/alignment/<layer>`, the
    cosine of the rule's weight gradient with backpropagation's, and `health/alignment`, the mean over the
    layers; `health/gradient_norm/<layer>`; `health/dead/<layer>`; and for a rule that infers,
    `health/residual`, `health/largest_eigenvalue`, `health/stability`, the largest step size over the
    largest stable one, and `health/energy_share/<layer>`. The numbers are functions of the parameters
    alone, so a resumed run logs the same; one that is not finite (the cosine of a gradient that is zero)
    is left out of its row.

    Warns:
        UserWarning: once each, where the last layers alone learn (a layer's gradient, relative to
            backpropagation's, is below a thousandth of the largest layer's); where a layer's gradient is
            so small that Adam's eps swallows it; where the step size of inference is within 10 % of the
            stable limit, or beyond it; and where the run has become backpropagation: every layer's cosine
            is above .99 while inference closes less than half of the energy gap. That gap costs an
            equilibrium, and is measured only where the cosines ask for it.

    Args:
        inputs: a batch to look at, (batch, *features); 64 examples will do.
        targets: its targets, (batch, *out).

    Raises:
        ValueError, TypeError: for inputs or targets of a wrong shape or dtype.

    >>> import optax, pcflax as pc
    >>> from flax import nnx
    >>> data = pc.data.load("digits")
    >>> batch = next(iter(data))
    >>> trainer = pc.Trainer(
    ...     pc.PCNetwork([pc.PCDense(64, 10, rngs=nnx.Rngs(0))]), optax.adam(1e-2),
    ...     learning=pc.learning.Backprop(), progress=False,
    ...     callbacks=[pc.analysis.HealthMonitor(batch.inputs, batch.targets)])
    >>> history = trainer.fit(data, num_steps=2, log_every=1)
    >>> print(*[round(value, 5) for value in history["health/alignment"]])
    1.0 1.0
    """

    def __init__(self, inputs: Any, targets: Any):
        if targets is None:
            raise ValueError(
                "HealthMonitor expected targets, since it compares the rule's gradients with those of "
                "backpropagation, got None; give those of the batch"
            )
        check_batch(inputs, targets, integers=True)  # a network that takes none will say so
        self.inputs, self.targets = inputs, targets
        self._warned: set[str] = set()

    def on_measure(self, trainer: Any, step: int) -> dict[str, float]:
        """Return the numbers of this step.

        Raises:
            TypeError, ValueError: for a batch that the network cannot take.
        """
        del step  # the parameters are all that counts
        network, learning = trainer.network, trainer.learning
        credit = gradient_alignment(network, self.inputs, self.targets, learning=learning)
        row = {"health/alignment": credit.cosine["total"]}
        for name, cosine in credit.cosine.items():
            if name != "total":
                row[f"health/alignment/{name}"] = cosine
                row[f"health/gradient_norm/{name}"] = credit.norm[name]
        dead, _ = unit_health(network, self.inputs)
        row |= {f"health/dead/{name}": fraction for name, fraction in dead.items()}
        found = inference_health(network, self.inputs, self.targets, learning=learning)
        self._tell(trainer, credit, found)
        if found is not None:
            row["health/stability"] = found.stability
            row["health/residual"] = found.residual
            row["health/largest_eigenvalue"] = found.largest_eigenvalue
            row |= {f"health/energy_share/{k}": share for k, share in found.energy_share.items()}
        # without what is not a number (the cosine of a gradient that is zero): JSON has no word for it
        return {name: float(value) for name, value in row.items() if np.isfinite(value)}

    def _tell(self, trainer: Any, credit: Credit, found: InferenceHealth | None) -> None:
        """Warn of what is new."""
        remedy = (
            "take more inference steps, a larger step size, ErrorCoordinates or "
            "pc.parameterizations.MuPC()"
        )
        words = {}
        if names := find_unreached(credit):
            words["unreached"] = f"{unreached_words(names, credit)}; {remedy}"
        if names := find_swallowed(credit):
            words["swallowed"] = f"{swallowed_words(names, credit)}; {remedy}"
        if found is not None and is_near_the_edge(found):
            words["edge"] = f"inference is near the edge of stability: {edge_words(found)}"
        if found is not None and is_parallel(credit) and "backprop" not in self._warned:
            whole = inference_health(
                trainer.network,
                self.inputs,
                self.targets,
                learning=trainer.learning,
                reference=REFERENCE,
            )
            if is_backpropagation(whole, credit):
                assert whole is not None  # it is predictive coding's
                words["backprop"] = (
                    f"{backpropagation_words(whole)}; take more inference steps or a larger step size"
                )
        for kind, text in words.items():
            if kind not in self._warned:
                self._warned.add(kind)
                warnings.warn(f"at step {trainer.step} {text}", UserWarning, stacklevel=3)
