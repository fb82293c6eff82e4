"""The entry: a function that makes a seed's Trainer in, `Replicas` out. Next file to read: `replicas.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pcflax.sharding.processes import check_alone
from pcflax.training import Checkpoints, Trainer

from .replicas import How, Replicas


def replicate(
    make_trainer: Callable[..., Trainer],
    seeds: Iterable[int] = range(8),
    *,
    over: Mapping[str, Sequence[Any]] | None = None,
    how: How = "auto",
    checkpoints: Checkpoints | None = None,
    name: str = "",
    progress: bool = True,
) -> Replicas:
    """Return the Trainers of several seeds, which train together.

    Seed s is the run that it is alone, `make_trainer(s).fit(data.with_seed(s), ...)`: its own parameters,
    random choices, order of examples, history, callbacks and checkpoints. In turn it is so bitwise, mapped up
    to rounding. Resumed after a kill, either ends bitwise as the one never interrupted.

    Args:
        make_trainer: function of a seed (and of the names in `over`) that returns a Trainer, of `seed=seed`.
            What it shares between seeds is shared, so make the network inside.
        seeds: the seeds, each once.
        over: {name: values}; every combination is trained with every seed, `make_trainer(seed, name=value)`.
            Step sizes, rates, precisions and other floats of rule and optimizer, and arrays of networks, may
            differ in one program; widths, numbers of steps and functions may not.
        how: "mapped", one compiled program for all; "in turn", one call after the other of the Trainer's own;
            "auto", mapped where the runs can share a program and, on CPUs, no array of parameters has more
            than 4,096 elements: XLA's products mapped over seeds are slower than single ones of larger
            matrices there. A folder that is resumed keeps to what it was begun with.
        checkpoints: where and what to save; each seed gets the subfolder `seed-<s>`, which a Trainer of
            `make_trainer` restores, too. Checkpoints that `make_trainer` puts into one folder are placed so.
        name: what tables call the runs.
        progress: whether to show a progress bar and a line for each evaluation, of means over seeds, in the
            place of the Trainers' own.

    Raises:
        TypeError: where `make_trainer` returns no Trainer, and for values in `over` that are arrays.
        ValueError: for a Trainer of another seed, for Trainers that share a network, a callback or a file
            that is written, for seeds or values given twice, and for another `how`.

    >>> import jax.numpy as jnp, optax, pcflax as pc
    >>> from flax import nnx
    >>> def make_trainer(seed):
    ...     network = pc.models.mlp(64, 16, 10, activation=jnp.tanh, rngs=nnx.Rngs(seed))
    ...     rule = pc.learning.PredictiveCoding(pc.inference.GradientDescent(0.1, num_steps=5))
    ...     return pc.Trainer(network, optax.adam(1e-2), learning=rule, seed=seed)
    >>> replicas = pc.experiments.replicate(make_trainer, seeds=range(3), progress=False)
    >>> test = pc.data.load("digits", split="test")
    >>> runs = replicas.fit(pc.data.load("digits"), num_steps=40, eval_data=test)
    >>> runs["eval/accuracy"].values.shape, runs["eval/accuracy"].last.mean > 0.8
    ((3, 2), True)
    """
    check_alone("replicate")
    return Replicas(
        make_trainer,
        seeds,
        over=dict(over or {}),
        how=how,
        checkpoints=checkpoints,
        name=name,
        progress=progress,
    )
