"""Trajectories: where every activity goes during inference, step by step, to be drawn."""

from __future__ import annotations

import jax
from jaxtyping import Array

from pcflax.inference import AbstractIterativeInference, expect_algorithm, make_problem
from pcflax.layers import Evidence
from pcflax.networks import AbstractPCNetwork, SplitNetwork, split
from pcflax.settings import Argument
from pcflax.typing import Activities, Initializer, PRNGKey


def trajectories(
    network: AbstractPCNetwork,
    inputs: Array | None,
    targets: Array | None,
    *,
    inference: AbstractIterativeInference,
    initializer: Initializer | None = None,
    key: PRNGKey | None = None,
) -> Activities:
    """Return every activity at every step of an iterative algorithm, start and end included.

    Args:
        network: not changed.
        inputs: clamped below, or None.
        targets: clamped above, or None.
        inference: an iterative algorithm with a fixed number of steps.
        initializer: where the free activities start: the feedforward pass unless given.
        key: randomness for algorithms and initializers that want it.

    Returns:
        {layer name: (num_steps + 1, batch, *features)}.

    Raises:
        TypeError: where `inference` is no iterative algorithm.
        ValueError: where it stops adaptively.

    >>> import jax.numpy as jnp, optax, pcflax as pc
    >>> from flax import nnx
    >>> rngs = nnx.Rngs(0)
    >>> network = pc.PCNetwork([pc.PCDense(3, 4, rngs=rngs), pc.PCDense(4, 2, rngs=rngs)])
    >>> descent = pc.inference.GradientDescent(optax.sgd(0.1), num_steps=5)
    >>> ways = pc.analysis.trajectories(network, jnp.ones((1, 3)), jnp.ones((1, 2)), inference=descent)
    >>> ways["layer_0"].shape
    (6, 1, 4)
    """
    expect_algorithm(trajectories, inference, AbstractIterativeInference)
    if inference.num_steps is None:
        raise ValueError("trajectories need a fixed num_steps, got an algorithm with a tolerance")
    known = network.known(Evidence(inputs, targets))
    found = _trajectories(split(network), known, key, inference, Argument(initializer))
    return {name: found[name] for name in network.names}


@jax.jit
def _trajectories(network: SplitNetwork, known, key, inference, initializer):
    start_key, solve_key = (None, None) if key is None else jax.random.split(key)
    problem = make_problem(network, known, initializer=initializer.value, key=start_key)
    return inference.solve(problem, key=solve_key, record=lambda seen: seen.activities).records
