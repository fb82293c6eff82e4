"""Whether chains of samples have mixed: R-hat and the effective sample size, through arviz-stats."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from pcflax.checks import expect_count, wanting
from pcflax.typing import PyTree


def chain_diagnostics(samples: PyTree, *, chains: int = 4) -> dict[str, PyTree]:
    """Return R-hat and the effective number of samples of every element.

    Chains of one example are neighboring rows of the batch that was sampled, as
    `jnp.repeat(x, chains, axis=0)` makes them. R-hat compares the spread between chains with that within:
    1 where they have forgotten their start, above 1.01 where they have not. The effective sample size is
    the number of independent samples that the mean over all chains is worth.

    Args:
        samples: of `pc.inference.Langevin(..., keep_samples=True)`, as `result.samples` has them:
            arrays of (num_samples, batch, *features), one or {layer name: array}.
        chains: how many rows of the batch belong to one example, at least 2.

    Returns:
        {"r_hat": ..., "ess": ...}, each shaped as `samples` but for (batch // chains, *features), in NumPy.

    Raises:
        ModuleNotFoundError: where arviz-stats is missing.
        ValueError: for less than 4 samples, or rows that the chains do not divide.

    Source: Vehtari, Gelman, Simpson, Carpenter & Bürkner (2021), Bayesian Analysis 16(2): rank-normalized
    split R-hat and bulk effective sample size.

    >>> import jax, pcflax as pc
    >>> samples = jax.random.normal(jax.random.key(0), (500, 8, 3))
    >>> found = pc.analysis.chain_diagnostics(samples, chains=4)
    >>> found["r_hat"].shape, bool((found["r_hat"] < 1.02).all())
    ((2, 3), True)
    """
    with wanting("chain_diagnostics", "arviz-stats", "sampling"):
        from arviz_stats.base import array_stats  # pyright: ignore[reportMissingImports]
    chains = expect_count("chain_diagnostics", "chains", chains, least=2)

    def by_chain(leaf: Any) -> np.ndarray:
        draws, rows = np.shape(leaf)[:2]
        if draws < 4 or rows % chains:
            raise ValueError(
                f"chain_diagnostics expected at least 4 samples of rows in groups of {chains} chains, got an "
                f"array of shape {np.shape(leaf)}; repeat each example {chains} times and keep the samples"
            )
        whole = np.asarray(leaf, np.float64)
        return whole.reshape(draws, rows // chains, chains, *whole.shape[2:])

    arrays = jax.tree.map(by_chain, samples)
    axes: Any = {"chain_axis": 2, "draw_axis": 0}
    return {
        "r_hat": jax.tree.map(lambda array: np.asarray(array_stats.rhat(array, **axes)), arrays),
        "ess": jax.tree.map(lambda array: np.asarray(array_stats.ess(array, **axes)), arrays),
    }
