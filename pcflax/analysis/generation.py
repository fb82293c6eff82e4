"""How good a generative network is: a bound of its likelihood, bits per dimension, the Fréchet distance.

The likelihood of an example x is an integral over the free activities z, p(x) = integral of p(x, z).
Inference finds the z* of the largest integrand; drawing around it by its curvature gives a bound.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Float

from pcflax.checks import expect_count, expect_kind
from pcflax.energies import total_energy
from pcflax.errors import NonFiniteEnergyError
from pcflax.inference import AbstractInference, InferenceProblem, make_problem
from pcflax.layers import Evidence
from pcflax.layers.clamps import Known
from pcflax.networks import AbstractPCNetwork, SplitNetwork, split
from pcflax.settings import Argument
from pcflax.typing import Initializer, PRNGKey, PyTree

_LEAST_CURVATURE = 1e-3


def log_likelihood_bound(
    network: AbstractPCNetwork,
    evidence: Evidence,
    *,
    inference: AbstractInference,
    key: PRNGKey,
    num_samples: int = 16,
    initializer: Initializer | None = None,
) -> Float[Array, " batch"]:
    """Return a lower bound of log p(x) of each example, in nats, by samples around inference's answer.

    With z_s ~ q = N(z*, H^-1), H the Hessian of F at z*, it is log mean_s p(x, z_s)/q(z_s). Its expectation
    is at most log p(x), for any z* and H, and rises with `num_samples`; for one sample it is the evidence
    lower bound. Where the network is linear and Gaussian, and inference at its equilibrium, q is the
    posterior, and every sample gives log p(x) itself. Directions in which H is not positive, as those that a
    saturated activation leaves without curvature may be, are drawn as under a curvature of 0.001.

    It costs the Hessian of all free elements of an example, and its eigenvalues: a few hundred elements are
    soon done.

    Args:
        network: every prior proper, and its energies negative logs of densities (`log_normalizer`).
        evidence: what is known, such as `pc.Evidence(targets=images)`; the likelihood is that of all
            clamped layers together, but for clamped roots, which it is conditioned on.
        inference: the algorithm that finds z*.
        key: randomness of the samples.
        num_samples: how many are drawn for each example.
        initializer: where inference starts: the feedforward pass unless given.

    Raises:
        NonFiniteEnergyError: where inference diverged.
        ValueError: for a flat prior, an energy without a density, or a clamp of some elements only.
        TypeError: for what is no algorithm, or a num_samples that is no whole number.

    Source: Burda, Grosse & Salakhutdinov (2016), ICLR, the importance-weighted bound; its q by Laplace's
    method.

    >>> import jax, jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> network = pc.models.decoder(2, 5, prior=pc.energies.Gaussian(), rngs=nnx.Rngs(0))
    >>> x = pc.Evidence(targets=jnp.ones((3, 5)))
    >>> newton = pc.inference.NewtonCG(num_steps=3)
    >>> pc.analysis.log_likelihood_bound(network, x, inference=newton, key=jax.random.key(0)).shape
    (3,)
    """
    expect_kind("log_likelihood_bound", "inference", inference, AbstractInference, "NewtonCG()")
    num_samples = expect_count("log_likelihood_bound", "num_samples", num_samples, least=1)
    inference.check(network)
    if network.layer_names != network.names:
        raise ValueError(
            "a node with several predictors has no density that is known, so its network has no likelihood"
        )
    network.check_acyclic("the densities of its layers multiply to one only in an order")
    known = network.known(evidence)
    partial = [name for name, clamp in known.clamps.items() if clamp.mask is not None]
    if partial:
        raise ValueError(
            f"layer '{partial[0]}' is clamped in part, of which no likelihood is computed; clamp all of it"
        )
    shapes = jax.eval_shape(lambda: network.start(known, initializer=initializer, key=key))
    counted = [
        name
        for name in network.names
        if not (network.layer(name).is_root_node and name in known.clamps)
    ]
    normalizer = sum(
        node.energy.log_normalizer(shapes[name].shape[network.layer(name).node_axes :])
        for name in counted
        for node in network.layer(name).each_node(name).values()
    )
    bound = _bound(
        split(network), known, inference, Argument(initializer), key, tuple(counted), num_samples
    )
    if not isinstance(bound, Tracer) and not bool(jnp.isfinite(bound).all()):
        raise NonFiniteEnergyError(
            "inference of the likelihood's peak diverged; lower its step size, or take "
            "pc.inference.NewtonCG(num_steps=10)"
        )
    return bound - normalizer


@functools.partial(jax.jit, static_argnames=("counted", "num_samples"))
def _bound(
    network: SplitNetwork,
    known: Known,
    inference: AbstractInference,
    initializer: Argument,
    key: PRNGKey,
    counted: tuple[str, ...],
    num_samples: int,
) -> Array:
    start_key, solve_key, draw_key = jax.random.split(key, 3)
    problem = make_problem(network, known, initializer=initializer.value, key=start_key)
    found = problem.encode(inference.solve(problem, key=solve_key).activities)

    def of_one(alone: InferenceProblem, coordinates: PyTree, keys: Array) -> Array:
        peak, unravel = ravel_pytree(coordinates)

        def energy(flat: Array) -> Array:
            energies = alone.energies(unravel(flat))
            return total_energy({name: energies[name] for name in counted})[0]

        curvatures, axes = jnp.linalg.eigh(jax.hessian(energy)(peak))
        curvatures = jnp.maximum(curvatures, _LEAST_CURVATURE)
        noise = jax.random.normal(keys[0], (num_samples, peak.size), peak.dtype)
        curvatures = curvatures[None]  # of each draw
        draws = peak[None] + (noise * curvatures**-0.5) @ axes.T
        of_draws = 0.5 * jnp.sum(jnp.log(curvatures) - noise**2 - jnp.log(2 * jnp.pi), axis=1)
        weights = -jax.vmap(energy)(draws) - of_draws
        return jax.nn.logsumexp(weights, keepdims=True) - jnp.log(num_samples)

    keys = jax.random.split(draw_key, problem.batch_size)
    return problem.for_each_example(of_one, found, keys)


def bits_per_dimension(
    log_likelihood: ArrayLike, features: tuple[int, ...] | int, *, levels: int = 256
) -> Float[Array, " batch"]:
    """Return -log2 p(x) for each of an example's features: what a code by this model needs, in bits.

    Pixels that take `levels` values are spread over [0, 1], so that a density over it counts each as
    1/levels: -log p(x) / (D log 2) + log2(levels). A bound of the likelihood from below is one of the bits
    from above.

    Args:
        log_likelihood: in nats, of examples in [0, 1].
        features: how many features an example has, or its shape.
        levels: values that a pixel takes; 1 for a likelihood of discrete data, such as bits.

    Raises:
        TypeError, ValueError: for levels that are no whole number, or below 1.

    >>> import pcflax as pc
    >>> float(pc.analysis.bits_per_dimension(0.0, (28, 28)))  # a uniform density knows nothing
    8.0
    """
    levels = expect_count("bits_per_dimension", "levels", levels, least=1)
    count = features if isinstance(features, int) else math.prod(features)
    return -jnp.asarray(log_likelihood) / (count * math.log(2)) + math.log2(levels)


def frechet_distance(first: ArrayLike, second: ArrayLike) -> float:
    """Return the squared Fréchet distance of two sets of features, as if both were Gaussian.

    |m1 - m2|^2 + trace(C1 + C2 - 2 (C1 C2)^(1/2)), of their means and covariances: FID where the features
    are those of the Inception network, which is for photographs. `scripts/fid_features.py` trains a small
    classifier of digits whose features are compared here; distances by one classifier do not compare with
    those by another, nor those of few examples with those of many.

    Args:
        first: (examples, features), at least two examples.
        second: of the same width.

    Raises:
        ValueError: for other shapes, and features that are not finite.

    Source: Heusel et al. (2017), NeurIPS; the formula is Dowson & Landau's (1982).

    >>> import numpy as np, pcflax as pc
    >>> features = np.random.default_rng(0).normal(size=(100, 3))
    >>> round(pc.analysis.frechet_distance(features, features + 2.0), 6)
    12.0
    """
    a, b = (np.asarray(features, np.float64) for features in (first, second))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(
            f"frechet_distance expected two arrays of (examples, features) of one width with at least 2 "
            f"examples each, got {a.shape} and {b.shape}"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("frechet_distance expected finite features, got NaN or infinity")
    c, d = (np.atleast_2d(np.cov(features.T)) for features in (a, b))
    # trace (C1 C2)^(1/2) is the sum of the singular values of C1^(1/2) C2^(1/2)
    roots = [_root(covariance) for covariance in (c, d)]
    shared = np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum()
    return float(np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(c) + np.trace(d) - 2 * shared)


def _root(covariance: np.ndarray) -> np.ndarray:
    values, axes = np.linalg.eigh(covariance)
    return (axes * np.maximum(values, 0) ** 0.5) @ axes.T
