"""What `pcflax train` can be told, and the run folder that remembers it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Train a network and keep the run in a folder.

    With no option: the network of the reference notebook, in-300-300-out with tanh, on the embedded
    8x8 digits, in well under a minute. `--data mnist` is the notebook's own job.
    """

    preset: Literal["notebook", "fast"] = "notebook"
    """Defaults to start from, which other options go over: the notebook's, or a recipe that is soon
    done, fast: gelu and cross-entropy, 3 larger inference steps, batches of 128, 300 steps at a rate
    that falls to zero."""
    data: str = "digits"
    """digits, mnist, fashion_mnist, cifar10, the path of an .npz file with x_train, y_train, x_test and
    y_test, or text:PATH, the characters of a file."""
    data_dir: Path | None = None
    """Folder of prepared TFDS sets; TFDS's default folder unless given."""
    num_steps: int = 500
    """Batches to train on, counted from the start of the run."""
    batch_size: int = 64
    """Examples in a batch."""
    seed: int = 0
    """Seed of the weights, the order of the data and everything else."""
    run_dir: Path | None = None
    """Folder of the run; runs/<data>-<date>-<time> unless given."""
    resume: bool = False
    """Go on with the run in --run-dir from its newest good checkpoint, with the options it was started
    with; only --num-steps, --data-dir and --debug may change."""
    model: Literal["mlp", "residual-mlp", "vgg5", "vgg7", "resnet18", "transformer"] = "mlp"
    """The network: dense layers of --widths; --depth dense layers of --width with skips, stacked
    (residual-mlp, those of muPC); convolutions for images (cifar10); a
    causal transformer of --depth blocks for text."""
    widths: tuple[int, ...] = (300, 300)
    """Widths of the hidden layers of an mlp."""
    depth: int = 4
    """Layers of a residual-mlp, first and last included, or blocks of a transformer."""
    width: int = 128
    """Width of a residual-mlp or a transformer."""
    augment: bool = False
    """Flip and crop the training images at random, as a function of --seed and the step."""
    sequence_length: int = 64
    """Characters of text in one example."""
    activation: Literal["tanh", "relu", "gelu", "sigmoid", "identity"] | None = None
    """Activation after every layer but the last (before the weights in a residual-mlp): tanh in an mlp,
    and the other models' own, unless given."""
    output: Literal["gaussian", "categorical"] = "gaussian"
    """Energy of the last layer: squared errors, or softmax cross-entropy (a transformer's always)."""
    activation_first: bool = False
    """Activation before the weights of every layer but the first, instead of after them."""
    skip: bool = False
    """Identity skips around the layers between equal widths."""
    parameterization: Literal["standard", "ntk", "mupc"] | None = None
    """Scale of the weights with width and depth: standard in an mlp, mupc in a residual-mlp, unless
    given."""
    learning: Literal["pc", "ipc", "fpa", "zil", "nudged", "backprop"] = "pc"
    """Rule of learning: predictive coding, incremental (a weight step at every inference step), fixed
    prediction, zero-divergence, nudged, or backpropagation through the same network."""
    beta: float = 0.5
    """How far nudged learning holds the output from its prediction to the target; below 0 away."""
    centred: bool = False
    """Average nudged learning over beta and -beta."""
    inference: Literal[
        "gradient",
        "auto",
        "error-coordinates",
        "flow",
        "gauss-newton",
        "newton",
        "langevin",
        "linear",
    ] = "gradient"
    """How activities are inferred: gradient descent with --step-size or one chosen by curvature (auto),
    gradient descent on errors, a differential equation, second order, sampling, or exactly (linear
    networks)."""
    inference_steps: int = 20
    """Steps of inference for each batch; the most that are taken where there is a --tolerance."""
    step_size: float = 0.003125
    """Size of those steps, on each example's own energy with the 1/2: the notebook's rate of 0.1 on the
    mean over 64 examples without the 1/2 is 2 * 0.1 / 64."""
    momentum: float = 0.0
    """Momentum of gradient descent on activities or errors."""
    tolerance: float | None = None
    """Stop each example where the root mean square of its dF/dz is this small."""
    temperature: float = 1.0
    """Temperature of Langevin sampling."""
    learning_rate: float = 1e-3
    """Adam's rate for the weights."""
    decay: bool = False
    """Let that rate fall linearly to zero at --num-steps, which then cannot change when a run is resumed."""
    health: bool = False
    """Log, beside the training metrics, whether each layer learns: alignment with backpropagation,
    gradient norms, dead units, energy shares; and draw the alignment."""
    eval_every: int = 50
    """Steps between evaluations on the test split, and between checkpoints."""
    keep_latest: int = 3
    """Newest checkpoints to keep; the one with the best test accuracy is kept besides."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Measure a trained run on a data set."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""
    data: str | None = None
    """Another data set than the run's own."""
    data_dir: Path | None = None
    """Folder of prepared TFDS sets; the run's own unless given."""
    split: Literal["train", "test"] = "test"
    """Which part of the data."""
    batch_size: int = 500
    """Examples in one compiled step; the result does not depend on it."""
    step: int | None = None
    """Measure this checkpoint instead of the newest good one."""
    best: bool = False
    """Measure the checkpoint with the best test accuracy."""
    json: bool = False
    """Print one JSON object."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclasses.dataclass(frozen=True)
class InspectOptions:
    """Show what a run holds: step, metrics, shapes, and a digest that tells two runs equal."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""
    step: int | None = None
    """Look at this checkpoint instead of the newest good one."""
    best: bool = False
    """Look at the checkpoint with the best test accuracy."""
    health: bool = False
    """Examine the network on a batch of its training data: does inference reach its equilibrium, do the
    early layers learn; a sentence for each layer."""
    data_dir: Path | None = None
    """Folder of prepared TFDS sets, for --health; the run's own unless given."""
    json: bool = False
    """Print one JSON object."""
    debug: bool = False
    """Show the traceback of an error."""


# What a preset changes of the defaults; `fast` is measured by benchmarks/time_to_accuracy.py.
PRESETS: dict[str, dict[str, Any]] = {
    "notebook": {},
    "fast": {
        "num_steps": 300,
        "batch_size": 128,
        "activation": "gelu",
        "output": "categorical",
        "inference_steps": 3,
        "step_size": 0.1,
        "learning_rate": 3e-3,
        "decay": True,
    },
}

# A resumed run may be told these anew; everything else is as it was.
MAY_CHANGE = ("num_steps", "data_dir", "run_dir", "resume", "debug")


def preset(name: str) -> TrainOptions:
    """The options that a preset stands for.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in PRESETS:
        raise ValueError(f"expected --preset {' or '.join(PRESETS)}, got {name}")
    return TrainOptions(preset=name, **PRESETS[name])  # type: ignore[arg-type]


def config_path(run_dir: Path) -> Path:
    """Where a run folder keeps its options."""
    return run_dir / "config.json"


def write_config(run_dir: Path, options: TrainOptions) -> None:
    """Make the run folder and write its options and versions.

    Raises:
        OSError: where the folder cannot be written, naming it.
    """
    record = {
        "options": {
            name: str(value.absolute()) if isinstance(value, Path) else value
            for name, value in dataclasses.asdict(absolute_data(options)).items()
            if name not in ("run_dir", "resume", "debug")
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("pcflax", "jax", "flax", "optax")},
        },
    }
    path = config_path(run_dir)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        part = path.with_name("config.json.part")
        part.write_text(json.dumps(record, indent=2) + "\n")
        os.replace(part, path)
    except OSError as error:
        raise OSError(
            f"cannot write the run folder {run_dir}: {error.strerror}; choose another --run-dir"
        ) from error


def absolute_data(options: TrainOptions) -> TrainOptions:
    """The same options with the path of a data file as seen from anywhere."""
    kind, _, path = options.data.partition(":")
    if kind != "text" and not options.data.endswith(".npz"):
        return options
    prefix, path = ("text:", path) if kind == "text" else ("", options.data)
    return dataclasses.replace(options, data=prefix + str(Path(path).absolute()))


def read_config(run_dir: Path) -> TrainOptions:
    """The options a run was started with.

    Raises:
        FileNotFoundError: where the folder holds no run.
        ValueError: where its config.json cannot be read.
    """
    path = config_path(run_dir)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no run in {run_dir} (no config.json); start one: pcflax train --run-dir "
            f"{run_dir}"
        )
    try:
        stored: dict[str, Any] = json.loads(path.read_text())["options"]
        stored["widths"] = tuple(stored["widths"])
        stored["data_dir"] = None if stored["data_dir"] is None else Path(stored["data_dir"])
        return TrainOptions(**stored, run_dir=run_dir)
    except (ValueError, KeyError, TypeError) as error:
        reason = {
            KeyError: f"it lacks {error}",
            TypeError: "it holds something else, or options of another version",
        }.get(type(error), f"it is no JSON ({error})")
        raise ValueError(f"{path} cannot be read as a run's options: {reason}") from error


_INFERRING = ("pc", "ipc", "fpa", "nudged")
_DESCENDING = ("gradient", "error-coordinates")
_STOPPING = (*_DESCENDING, "auto", "flow", "gauss-newton", "newton")

# Models of images, (height, width, channels), instead of flat features.
CONVOLUTIONAL = ("vgg5", "vgg7", "resnet18")

# Options that count only where another has one of these values.
_COUNTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "beta": ("learning", ("nudged",)),
    "centred": ("learning", ("nudged",)),
    "inference": ("learning", _INFERRING),
    "momentum": ("inference", _DESCENDING),
    "step_size": ("inference", (*_DESCENDING, "langevin")),
    "tolerance": ("inference", _STOPPING),
    "temperature": ("inference", ("langevin",)),
    "widths": ("model", ("mlp",)),
    "skip": ("model", ("mlp",)),
    "activation_first": ("model", ("mlp",)),
    "parameterization": ("model", ("mlp", "residual-mlp")),
    "depth": ("model", ("residual-mlp", "transformer")),
    "width": ("model", ("residual-mlp", "transformer")),
    "output": ("model", ("mlp", "residual-mlp", "vgg5", "vgg7", "resnet18")),
    "sequence_length": ("model", ("transformer",)),
    "augment": ("model", CONVOLUTIONAL),
}


def check_options(options: TrainOptions) -> None:
    """Refuse what would fail once training has begun, before a folder is made.

    Raises:
        ValueError: naming the option.
    """
    for name in ("num_steps", "batch_size", "eval_every"):
        if getattr(options, name) < 1:
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"expected {flag} of at least 1, got {getattr(options, name)}")
    if options.inference_steps < 0:
        raise ValueError(f"expected --inference-steps of at least 0, got {options.inference_steps}")
    for name, least in (("step_size", None), ("learning_rate", None), ("temperature", 0.0)):
        value = getattr(options, name)
        if not (value > 0 if least is None else value >= least) or not math.isfinite(value):
            flag = "--" + name.replace("_", "-")
            raise ValueError(
                f"expected {flag} {'above' if least is None else 'from'} 0, got {value}"
            )
    if not 0 <= options.momentum < 1:
        raise ValueError(f"expected --momentum from 0 to below 1, got {options.momentum}")
    for name, (option, values) in _COUNTS.items():
        flag, needed = "--" + name.replace("_", "-"), "--" + option.replace("_", "-")
        default = getattr(preset(options.preset), name)
        if getattr(options, name) != default and getattr(options, option) not in values:
            raise ValueError(
                f"{flag} does nothing with {needed} {getattr(options, option)}; leave it out, or take "
                f"{needed} {' or '.join(values)}"
            )
    if options.data.startswith("text:") != (options.model == "transformer"):
        raise ValueError(
            f"--model {options.model} does not fit --data {options.data}; text wants --model transformer, "
            f"and a transformer --data text:PATH"
        )
    for name in ("depth", "width", "sequence_length"):
        if getattr(options, name) < (
            2 if name == "depth" and options.model != "transformer" else 1
        ):
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"expected a larger {flag}, got {getattr(options, name)}")
    linear = options.activation == "identity" and options.output == "gaussian"
    if options.inference == "linear" and not linear:
        raise ValueError(
            "--inference linear solves linear networks only; add --activation identity (and --output "
            "gaussian), or take --inference newton"
        )
    if any(width < 1 for width in options.widths):
        raise ValueError(f"expected hidden widths of at least 1, got {options.widths}")
    if not 0 <= options.seed < 2**32:
        raise ValueError(f"expected a seed from 0 to 2**32 - 1, got {options.seed}")


def check_resumable(stored: TrainOptions, given: TrainOptions) -> None:
    """See that a resumed run is told nothing new but what may change.

    Raises:
        ValueError: naming the first option that differs.
    """
    given = absolute_data(given)
    if stored.decay and given.num_steps != stored.num_steps:
        raise ValueError(
            f"the run in {given.run_dir} lets its rate fall to zero at step {stored.num_steps} (--decay), "
            f"got --num-steps {given.num_steps}; leave it out to resume, or start a new run"
        )
    moved = Path(
        given.data.removeprefix("text:")
    ).is_file()  # other examples are told by the Trainer
    for field in dataclasses.fields(TrainOptions):
        if field.name == "data" and moved:
            continue
        old, new = getattr(stored, field.name), getattr(given, field.name)
        if field.name not in MAY_CHANGE and old != new:
            flag = "--" + field.name.replace("_", "-")
            raise ValueError(
                f"the run in {given.run_dir} was started with {flag} {_words(old)}, got {flag} "
                f"{_words(new)}; leave the option out to resume, or start a new run in another "
                f"--run-dir"
            )


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
