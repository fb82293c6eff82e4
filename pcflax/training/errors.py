"""What stops a run: numbers that are not finite."""

from __future__ import annotations

import math

from pcflax.typing import Metrics


class NonFiniteEnergyError(FloatingPointError):
    """Training met an energy that is NaN or infinite; the step was not applied."""


_NAMED = 4  # layers in one sentence


def non_finite_error(step: int, measured: Metrics, last_good: str) -> NonFiniteEnergyError:
    """The error of a step that was not applied.

    Args:
        step: its number, from 1.
        measured: what it measured; "energy/<layer>" tells the layer.
        last_good: where the last good checkpoint is, in words.
    """
    layers = [
        f"layer '{name.removeprefix('energy/')}' has energy {value}"
        for name, value in measured.items()
        if name.startswith("energy/") and not math.isfinite(value)
    ]
    if len(layers) > _NAMED:
        layers = [*layers[:_NAMED], f"and {len(layers) - _NAMED} more"]
    what = f"the energy is not finite at step {step}: {', '.join(layers)}"
    if not layers:
        what = (
            f"the update of step {step} is not finite, though the energy is: a gradient or the "
            f"optimizer is"
        )
    return NonFiniteEnergyError(
        f"{what}; the step was not applied; {last_good}; lower the step sizes of inference or learning, "
        f"or look at the data"
    )
