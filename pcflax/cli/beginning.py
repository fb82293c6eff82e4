"""`--begin-from RUN`: parameters that another run has learned, by name, as those that a run begins with."""

from __future__ import annotations

import warnings
from pathlib import Path

import pcflax as pc
from pcflax.networks import AbstractPCNetwork
from pcflax.training.checkpoints.fingerprint import describe, differences


def checkpoint_in(path: Path | None) -> Path | None:
    """Return the checkpoint that a run would begin from: of a run's folder the newest good one.

    Raises:
        FileNotFoundError, CheckpointError: where there is none, or all are damaged.
    """
    return None if path is None else pc.load_checkpoint(path).path


def begin(network: AbstractPCNetwork, checkpoint: Path) -> str:
    """Write a checkpoint's parameters into a new network; return a sentence that says which.

    Warns where layers compute otherwise than those that learned them.

    Raises:
        ValueError: for parameters of another shape, and where no name is the network's.
    """
    wrong = f"--begin-from {checkpoint} does not fit"
    remedy = "give the model and the sizes of the run that it is of"
    try:
        report = pc.load_partial(checkpoint, network)
    except ValueError as error:  # nothing fits
        why = str(error).partition("; give rename")[0]
        raise ValueError(f"{wrong}: {why}; {remedy}") from error
    if report.skipped:
        name, why = next(iter(report.skipped.items()))
        more = f" (and {len(report.skipped) - 1} more)" if len(report.skipped) > 1 else ""
        raise ValueError(f"{wrong}: its '{name}' is {why}{more}; {remedy}")
    told = pc.load_checkpoint(checkpoint).meta.get("architecture") or {}
    if others := differences(told, describe(network)):
        more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
        warnings.warn(
            f"--begin-from {checkpoint}: {others[0]}{more}, so that the parameters do something else",
            UserWarning,
            stacklevel=2,
        )
    sentence = f"begun from {checkpoint}: {len(report.loaded)} arrays loaded"
    for what, paths in (("new", report.missing), ("left out", report.unused)):
        if paths:
            sentence += f", {what} {', '.join(paths)}"
    return sentence
