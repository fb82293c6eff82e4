"""Errors that every part of the library may raise; those of training stand in `training/errors.py`."""

from __future__ import annotations


class NonFiniteEnergyError(FloatingPointError):
    """Inference or training met numbers that are NaN or infinite."""


class ConvergenceError(RuntimeError):
    """Inference ended before an example reached its tolerance."""
