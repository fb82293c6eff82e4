"""Trajectories: where every activity goes during inference, step by step, to be drawn."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array

from pcflax.inference import make_problem
from pcflax.inference.base import AbstractIterativeInference, check_algorithm
from pcflax.networks import AbstractPCNetwork, SplitNetwork, split
from pcflax.networks.base import Initializer
from pcflax.typing import Activities, PRNGKey


def trajectories(
    network: AbstractPCNetwork,
    inputs: Array | None,
    targets: Array | None,
    *,
    inference: AbstractIterativeInference,
    initializer: Initializer | None = None,
    key: PRNGKey | None = None,
) -> Activities:
    """Every activity at every step of an iterative algorithm, start and end included.

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
    check_algorithm(trajectories, inference, AbstractIterativeInference)
    if inference.num_steps is None:
        raise ValueError("trajectories need a fixed num_steps, got an algorithm with a tolerance")
    network.check_batch(inputs, targets)
    found = _trajectories(
        split(network), inputs, targets, key, inference=inference, initializer=initializer
    )
    return {name: found[name] for name in network.names}


@functools.partial(jax.jit, static_argnames=("inference", "initializer"))
def _trajectories(network: SplitNetwork, inputs, targets, key, *, inference, initializer):
    start_key, solve_key = (None, None) if key is None else jax.random.split(key)
    problem = make_problem(network, inputs, targets, initializer=initializer, key=start_key)

    def body(carry, step):
        own = None if solve_key is None else jax.random.fold_in(solve_key, step)
        coordinates, state, _ = inference.step(problem, *carry, step=step, key=own)
        return (coordinates, state), problem.decode(coordinates)

    carry = (problem.start, inference.init(problem))
    _, later = jax.lax.scan(body, carry, jnp.arange(inference.num_steps))
    return jax.tree.map(
        lambda first, rest: jnp.concatenate([first[None], rest]),
        problem.decode(problem.start),
        later,
    )
