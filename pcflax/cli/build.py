"""From options to objects: the data sets, the network and the Trainer of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import pcflax as pc
from pcflax import recipes
from pcflax.data.sources.catalogue import testing_split
from pcflax.layers import Evidence
from pcflax.networks import AbstractPCNetwork

from .checking import CONVOLUTIONAL
from .devices import divided, placement
from .fields import settings
from .options import TrainOptions, as_record
from .usage import UsageError, wrong_usage

_ACTIVATIONS = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "sigmoid": jax.nn.sigmoid,
    "identity": None,
}
_PARAMETERIZATIONS = {
    "standard": pc.parameterizations.Standard,
    "ntk": pc.parameterizations.NTK,
    "mupc": pc.parameterizations.MuPC,
    "completep": pc.parameterizations.CompleteP,
}
_OUTPUTS = {"gaussian": pc.energies.Gaussian, "categorical": pc.energies.Categorical}


def load_data(
    options: TrainOptions,
    split: str,
    *,
    batch_size: int | None = None,
    num_classes: int | None = None,
) -> pc.data.Dataset:
    """Return one split of the run's data; with a batch size, whole, in order, as they are."""
    own: dict[str, Any] = {"split": _part(options, split), "data_dir": options.data_dir}
    if str(options.data).endswith(".npz"):
        own["num_classes"] = num_classes
    if options.model == "transformer":
        own["sequence_length"] = options.sequence_length
    if options.model in CONVOLUTIONAL:
        own["flatten"] = False
    if options.model == "generator":
        own |= {
            "inputs": None if options.latent else "label",
            "targets": "image",
            "normalize": False,
        }
    if options.model == "hybrid":  # which predicts images from labels
        own |= {"inputs": "label", "targets": "image"}
    if batch_size is None:
        if options.augment:
            own["augment"] = (pc.data.Flip(), pc.data.Crop())
        return pc.data.load(options.data, batch_size=options.batch_size, seed=options.seed, **own)
    data = pc.data.load(options.data, batch_size=1, **own)
    data.batch_size = divided(min(batch_size, data.num_examples), options.mesh)
    return data


def _part(options: TrainOptions, split: str) -> str:
    """Return what is called train, validation or test here, as `pc.data.load` takes it."""
    if split == "test":
        return testing_split(str(options.data), options.data_dir)
    if split == "train" and not options.validation:
        return split
    if not options.validation:
        raise ValueError(
            "there is no validation part: the run was trained with --validation 0; take --split test"
        )
    kept = 100 - options.validation
    return f"train[:{kept}%]" if split == "train" else f"train[{kept}%:]"


def build_network(options: TrainOptions, spec: Evidence) -> AbstractPCNetwork:
    """Return the model that the options name, sized for batches of these shapes."""
    assert spec.targets is not None
    shape: tuple = () if spec.inputs is None else spec.inputs.shape[1:]
    out_features = spec.targets.shape[-1]
    own: dict[str, Any] = {"rngs": nnx.Rngs(options.seed)}
    if options.activation is not None:
        none = None if options.model == "mlp" else _identity
        own["activation"] = _ACTIVATIONS[options.activation] or none
    if options.parameterization is not None:
        own["parameterization"] = _PARAMETERIZATIONS[options.parameterization]()
    if options.model == "transformer":
        return pc.models.transformer(
            out_features, shape[0], options.width, num_blocks=options.depth, **own
        )
    if options.model == "generator":
        sizes = (options.latent or shape[0], *options.widths, out_features)
        return pc.models.decoder(*sizes, **own)
    if options.model == "bidirectional":
        return pc.models.bidirectional(math.prod(shape), *options.widths, out_features, **own)
    if options.model == "hybrid":
        return pc.models.hybrid(math.prod(shape), *options.widths[::-1], out_features, **own)
    own["energy"] = _OUTPUTS[options.output]()
    if options.model == "mlp":
        own |= {"activation_first": options.activation_first, "skip": options.skip}
        return pc.models.mlp(math.prod(shape), *options.widths, out_features, **own)
    if options.model == "residual-mlp":
        sizes = (math.prod(shape), options.width, out_features)
        return pc.models.residual_mlp(*sizes, depth=options.depth, **own)
    if len(shape) != 3:
        raise ValueError(
            f"--model {options.model} wants images of shape (height, width, channels), got examples of "
            f"shape {shape}; take --data cifar10, or --model mlp"
        )
    make: Any = getattr(pc.models, options.model)
    return make(shape, out_features, **own)


def _identity(features: jax.Array) -> jax.Array:
    return features


def build_inference(options: TrainOptions) -> pc.inference.AbstractInference:
    """Return the algorithm that infers activities."""
    own = _own("inference", options)
    if "max_steps" in own and "num_steps" in own:  # --inference-steps stands for both
        own.pop("num_steps" if "tolerance" in own else "max_steps")
    return recipes.inference(options.inference, **own)


def build_learning(options: TrainOptions) -> pc.learning.AbstractLearning:
    """Return the rule that learns.

    Raises:
        ValueError: for an inference that the rule cannot take, naming both options.
    """
    own = _own("learning", options)
    infers = "inference" in settings("learning", options.learning)
    inference = build_inference(options) if infers else None
    try:
        return recipes.learning(options.learning, inference, **own)
    except (TypeError, ValueError) as error:
        if any(name in str(error) for name in own):
            raise
        stop = "" if options.tolerance is None else f" --tolerance {options.tolerance}"
        raise ValueError(
            f"--learning {options.learning} cannot take --inference {options.inference}{stop}: {error}"
        ) from error


def _label() -> pc.Equilibrium:
    """Return the reading of a generator's label, which is hidden from inference."""
    descent = pc.inference.GradientDescent(0.02, momentum=0.9, num_steps=100)
    return pc.Equilibrium(descent, read="latent", initializer=pc.initializers.Amortized())


def _own(option: str, options: TrainOptions) -> dict[str, Any]:
    """Return what the options say of a rule's or an algorithm's settings."""
    found = settings(option, getattr(options, option)).values()
    values = {one.name: one.value(options) for one in found if one.kind is not None}
    return {name: value for name, value in values.items() if value is not None}


def build_reading(options: TrainOptions) -> pc.training.AbstractReading:
    """Return how evaluations read an answer: a generator's label, or its image from the code, inferred."""
    if options.model == "hybrid":
        return _label()
    if options.model != "generator":
        return pc.Feedforward()
    # longer than while learning: the label of an image takes its time to settle
    settle = pc.inference.GradientDescent(options.step_size, momentum=0.9, num_steps=100)
    if options.latent:
        return pc.Reconstruction(settle, code="latent")
    return pc.Equilibrium(settle, read="latent")


def _check_probabilities(data: pc.data.Dataset) -> None:
    """Refuse targets that cross-entropy cannot score."""
    targets = np.asarray(data.targets)  # type: ignore[attr-defined]
    if (targets < 0).any() or not np.allclose(targets.sum(axis=-1), 1, atol=1e-3):
        raise ValueError(
            f"--output categorical expects labels or rows of probabilities, and the targets of "
            f"'{data.name}' are neither; add --output gaussian"
        )


def infers_labels(options: TrainOptions) -> bool:
    """Return whether the labels of images are what the run's network infers."""
    return options.model == "hybrid" or (options.model == "generator" and not options.latent)


def best_metric(options: TrainOptions, data: pc.data.Dataset) -> tuple[str, Any]:
    """Return the metric of evaluations that a run chooses its best checkpoint by, and "max" or "min"."""
    if options.model == "transformer":
        return ("eval/perplexity", "min")
    if data.num_classes or infers_labels(options):
        return ("eval/accuracy", "max")
    return ("eval/squared_error", "min")


def metrics_callbacks(options: TrainOptions, data: pc.data.Dataset, run_dir: Path) -> list[Any]:
    """Return what a run writes its metrics by, and measures its health by where that is wanted."""
    callbacks: list[Any] = [pc.JSONLinesLogger(run_dir / "metrics.jsonl")]
    config = as_record(options)
    trackers = {
        "csv": lambda: pc.CSVLogger(run_dir / "metrics.csv"),
        "wandb": lambda: pc.WandbLogger(run_dir, config=config),
        "mlflow": lambda: pc.MLflowLogger(run_dir, config=config),
    }
    callbacks += [trackers[name]() for name in dict.fromkeys(options.logger)]
    if options.health:
        batch = next(iter(data))
        callbacks.insert(0, pc.analysis.HealthMonitor(batch.inputs, batch.targets))
    return callbacks


def build_trainer(
    options: TrainOptions,
    data: pc.data.Dataset,
    run_dir: Path,
    callbacks: Iterable[Any] = (),
    *,
    begin: Callable[[AbstractPCNetwork], Any] | None = None,
) -> pc.Trainer:
    """Return the Trainer of a run, with a network sized for its data; `begin` is given it first."""
    spec = data.spec()
    if spec.targets is None or (spec.targets.ndim != 2 and options.model != "transformer"):
        raise ValueError(f"the targets of '{data.name}' must have shape (examples, features)")
    if (
        options.output == "categorical"
        and data.num_classes is None
        and options.model != "transformer"
    ):
        _check_probabilities(data)
    mesh = placement(options.mesh)
    with wrong_usage():
        rule: Any = build_learning(options)
    updates = options.num_steps
    if isinstance(rule, pc.learning.IncrementalPC):  # an update at every step of inference
        updates *= rule.inference.num_steps or 1
    network = build_network(options, spec)
    if isinstance(options.step_size, dict) and hasattr(rule, "inference"):
        descent: Any = getattr(rule.inference, "inference", rule.inference)
        with wrong_usage():  # a pattern that fits no layer
            descent.transformation(network.names[:-1], network.names)
    rate = recipes.schedule(options.decay, options.learning_rate, updates)
    with wrong_usage():
        optimizer = recipes.optimizer(options.optimizer, rate)
    if begin is not None:
        begin(network)
    with wrong_usage():  # a mesh that the network does not fit, too few checkpoints
        return pc.Trainer(
            network,
            optimizer,
            learning=rule,
            reads=build_reading(options),
            checkpoints=pc.Checkpoints(
                run_dir / "checkpoints",
                keep_latest=options.keep_latest,
                keep_best=best_metric(options, data),
            ),
            callbacks=callbacks,
            seed=options.seed,
            progress=False,
            mesh=mesh,
        )


def rebuilt(options: TrainOptions, data: pc.data.Dataset, run_dir: Path) -> pc.Trainer:
    """Return the Trainer of a run to look at: what does not fit is the run's, not the command line's."""
    try:
        return build_trainer(options, data, run_dir)
    except UsageError as error:
        raise ValueError(str(error)) from error


def inferred_energies(
    options: TrainOptions, network: AbstractPCNetwork, batch: Evidence
) -> dict[str, np.ndarray]:
    """Return the energy of each node by inference step, averaged over a batch: {name: (num_steps + 1,)}."""
    trace = network.infer(
        batch.inputs,
        batch.targets,
        inference=build_inference(options),
        key=jax.random.key(options.seed),
        trace=True,
    ).trace
    assert trace is not None  # it was asked for
    energies = jax.device_get(trace.energies)
    return network.by_node({name: energy.mean(axis=1) for name, energy in energies.items()})
