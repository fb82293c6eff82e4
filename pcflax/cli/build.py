"""From options to objects: the data sets, the network and the Trainer of a run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import pcflax as pc

from .options import TrainOptions

_ACTIVATIONS = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "sigmoid": jax.nn.sigmoid,
}
_OUTPUTS = {"gaussian": pc.energies.Gaussian, "categorical": pc.energies.Categorical}


def load_data(
    options: TrainOptions, split: str, *, batch_size: int | None = None
) -> pc.data.Dataset:
    """The run's data; the test split in batches as large as the set allows."""
    if batch_size is None:
        return pc.data.load(
            options.data,
            split=split,
            batch_size=options.batch_size,
            data_dir=options.data_dir,
            seed=options.seed,
        )
    data = pc.data.load(options.data, split=split, batch_size=1, data_dir=options.data_dir)
    data.batch_size = min(batch_size, data.num_examples)
    return data


def build_network(options: TrainOptions, in_features: int, out_features: int) -> pc.PCNetwork:
    """in-widths-out, the activation after every layer but the last."""
    rngs = nnx.Rngs(options.seed)
    activation = _ACTIVATIONS[options.activation]
    sizes = (in_features, *options.widths)
    layers: dict[str, pc.PCLayer] = {
        f"hidden_{number}": pc.PCDense(below, above, activation=activation, rngs=rngs)
        for number, (below, above) in enumerate(itertools.pairwise(sizes), start=1)
    }
    layers["output"] = pc.PCDense(
        sizes[-1], out_features, energy=_OUTPUTS[options.output](), rngs=rngs
    )
    return pc.PCNetwork(layers)


def build_inference(options: TrainOptions) -> pc.inference.AbstractInference:
    """The algorithm that infers activities."""
    return pc.inference.GradientDescent(
        optax.sgd(options.step_size), num_steps=options.inference_steps
    )


def build_trainer(
    options: TrainOptions, data: pc.data.Dataset, run_dir: Path, callbacks: Iterable[Any] = ()
) -> pc.Trainer:
    """The Trainer of a run, with a network sized for its data."""
    spec = data.spec()
    assert spec.inputs is not None  # `load` always gives inputs
    if spec.targets is None or spec.targets.ndim != 2:
        raise ValueError(f"the targets of '{data.name}' must have shape (examples, features)")
    learning = pc.learning.Backprop()
    if options.learning == "pc":
        learning = pc.learning.PredictiveCoding(build_inference(options))
    best = ("eval/accuracy", "max") if data.num_classes else ("eval/squared_error", "min")
    return pc.Trainer(
        build_network(options, math.prod(spec.inputs.shape[1:]), spec.targets.shape[1]),
        optax.adam(options.learning_rate),
        learning=learning,
        checkpoints=pc.Checkpoints(
            run_dir / "checkpoints", keep_latest=options.keep_latest, keep_best=best
        ),
        callbacks=callbacks,
        seed=options.seed,
        progress=False,
    )
