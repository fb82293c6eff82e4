"""The spectrum of the activity Hessian: how fast, and at what step size, inference can go.

Gradient descent is stable below 2/lambda_max and shrinks the slowest direction by 1 - step * lambda_min
a step, so the condition number lambda_max/lambda_min says how many steps an equilibrium costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from pcflax.inference import InferenceProblem, make_problem
from pcflax.inference.curvature import expect_curvature, hessian_vector
from pcflax.layers import Clamp, Evidence
from pcflax.networks import AbstractPCNetwork, split

# A Hessian this small is formed column by column; Lanczos needs room to iterate.
_DENSE = 64


class Spectrum(NamedTuple):
    """The smallest and the largest eigenvalue of each example's Hessian.

    Attributes:
        smallest: (batch,), the smallest eigenvalue; negative where F is not convex there.
        largest: (batch,), the largest; gradient descent is stable for step sizes below 2/largest.
    """

    smallest: Float[np.ndarray, " batch"]
    largest: Float[np.ndarray, " batch"]

    @property
    def condition_number(self) -> Float[np.ndarray, " batch"]:
        """The largest eigenvalue over the smallest."""
        return self.largest / self.smallest


def activity_spectrum(
    network: AbstractPCNetwork,
    inputs: Array | None,
    targets: Array | None,
    *,
    clamps: Mapping[str, Clamp | Array] | None = None,
    stored: bool = False,
    tolerance: float = 1e-3,
) -> Spectrum:
    """Return the smallest and the largest eigenvalue of each example's d2F_i/dz_i2, by Lanczos iteration.

    Matrix-free: Hessian-vector products under SciPy's implicitly restarted Lanczos (ARPACK). One example
    after the other on the host, so give a few. Elements that a mask holds are left out.

    Args:
        network: not changed.
        inputs: clamped below, or None.
        targets: clamped above, or None.
        clamps: {layer name: value or `pc.Clamp(value, mask)`} for any other layer.
        stored: whether to look at the stored activities (after `network.infer`, an equilibrium) instead
            of the feedforward start. In a linear network they are the same.
        tolerance: relative accuracy of the eigenvalues.

    Raises:
        ValueError: where no activity is free, or the iteration does not converge.

    Source: Lanczos (1950); Lehoucq, Sorensen & Yang (1998), ARPACK.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> network = pc.PCNetwork([pc.PCRoot(3, energy=pc.energies.Gaussian(jnp.array([1., 2., 4.])))])
    >>> spectrum = pc.analysis.activity_spectrum(network, None, None,
    ...     clamps={"layer_0": pc.Clamp(jnp.zeros((1, 3)), jnp.array([False, True, False]))})
    >>> spectrum.smallest, spectrum.largest
    (array([1.], dtype=float32), array([4.], dtype=float32))
    """
    known = network.known(Evidence(inputs, targets, clamps))
    problem = make_problem(split(network), known)
    expect_curvature("a spectrum", problem)
    if stored:
        problem = problem.restarted(network.activities())
    if not problem.start:
        raise ValueError("no activity is free: inputs, targets and clamps hold them all")
    ends = [_ends(problem, example, tolerance) for example in range(problem.batch_size)]
    smallest, largest = zip(*ends, strict=True)
    return Spectrum(np.array(smallest), np.array(largest))


def _ends(problem: InferenceProblem, example: int, tolerance: float):
    """Return the smallest and the largest eigenvalue of one example."""
    alone = problem.take(jnp.array([example]))
    held = np.asarray(ravel_pytree(alone.held())[0])
    free = np.flatnonzero(~held)
    if free.size == 0:
        raise ValueError(f"no activity is free in example {example}: its clamps hold them all")
    flat, unravel = ravel_pytree(alone.start)
    wide = np.promote_types(flat.dtype, np.float32)  # what LAPACK and ARPACK know

    def product(vector):
        return _product(alone.network, alone.inputs, alone.clamps, alone.start, unravel(vector))

    def on_free(vector):
        whole = np.zeros(flat.size, wide)
        whole[free] = np.ravel(vector)
        return np.asarray(product(jnp.asarray(whole, flat.dtype))).astype(wide)[free]

    if free.size <= _DENSE:
        columns = [on_free(row) for row in np.eye(free.size, dtype=wide)]
        values = np.linalg.eigvalsh(np.stack(columns))
        return values[0], values[-1]
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    operator = LinearOperator((free.size, free.size), on_free, dtype=wide)  # type: ignore
    basis = min(free.size, 200)
    begin = np.random.default_rng(0).standard_normal(free.size).astype(wide)
    options = {"k": 1, "return_eigenvectors": False, "tol": tolerance, "v0": begin}
    try:
        largest = eigsh(operator, which="LA", **options)[0]
        smallest = eigsh(operator, which="SA", ncv=basis, maxiter=20 * free.size, **options)[0]
    except ArpackNoConvergence:
        raise ValueError(
            f"the Lanczos iteration did not find the ends of example {example}'s spectrum to a relative "
            f"{tolerance}; give a larger tolerance, or 64-bit floats"
        ) from None
    return smallest, largest


@jax.jit
def _product(network, inputs, clamps, start, vector):
    problem = InferenceProblem(network, inputs, clamps, start)
    return ravel_pytree(hessian_vector(problem, start, vector))[0]
