"""What a contender is: one file a contender, each with a class `Contender` of this protocol.

`benchmarks/worker.py` runs one of them in an environment of its own, so this package imports nothing but
the jobs. A peer is driven through its public API with its whole training step jitted, one call a batch.
Where a class `Tuned` stands beside it, that goes beyond what the library offers its users: K steps scanned
in one call, to see how far it could go. Next file to read: `notebook_loop.py`.
"""

from typing import Protocol

import numpy as np

from benchmarks.jobs import Job, Parameters, Unsupported

__all__ = ["Contender", "Job", "Parameters", "Unsupported"]


class Contender(Protocol):
    """One implementation of the jobs.

    Attributes:
        name: in tables.
        packages: distributions whose versions are reported.
        rule: "pc", or "backprop" for the price of not inferring activities.
    """

    name: str
    packages: tuple[str, ...]
    rule: str

    def __init__(self, job: Job, parameters: Parameters) -> None:
        """Copy the parameters (float32, as `Job.make_parameters` makes them).

        Raises:
            Unsupported: for a job that the library cannot express.
        """
        ...

    def run(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        """Train on K batches in order, and return when the device is done.

        Parameters, optimizer state and the count of iterations carry over from call to call. With
        `job.learns` False, infer the activities of every batch and leave the parameters.

        Args:
            inputs: float32, (K, batch, *job.input_shape).
            targets: float32, one-hot, (K, batch, classes).
        """
        ...

    def parameters(self) -> Parameters:
        """Return a copy of the parameters, in the form in which they were given."""
        ...

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Return the feedforward outputs (batch, classes) of inputs (batch, *job.input_shape)."""
        ...
