"""Every error and warning that a caller may want to tell apart, and the sentence about a step that failed."""

from __future__ import annotations

import math
import signal

from pcflax.typing import Metrics


class NonFiniteEnergyError(FloatingPointError):
    """Inference or training met numbers that are NaN or infinite; a step that did was not applied."""


class ConvergenceError(RuntimeError):
    """Inference ended before an example reached its tolerance."""


class CheckpointError(Exception):
    """A checkpoint is damaged, or does not fit what it is restored into."""


class CheckpointWarning(UserWarning):
    """A checkpoint was skipped, or a resumed run is not the run that was saved."""


class Terminated(SystemExit):
    """A signal asked the run to end, and it was saved.

    The exit code is the shell's: 128 and the signal's number, 143 for SIGTERM and 129 for SIGHUP.
    """

    def __init__(self, number: int = signal.SIGTERM):
        super().__init__(128 + number)


_NAMED = 4  # layers in one sentence


def non_finite_error(
    step: int, measured: Metrics, last_good: str, given: str | None = None
) -> NonFiniteEnergyError:
    """Return the error of a step, counted from 1, that was not applied.

    `measured` tells the layers by "energy/<layer>", `last_good` is where the last good checkpoint is, and
    `given` what of the data is not finite, where that is the reason.
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
    remedy = "lower the step sizes of inference or learning, or look at the data"
    if given is not None:
        remedy = f"{given}: drop or mend them"
    return NonFiniteEnergyError(f"{what}; the step was not applied; {last_good}; {remedy}")
