"""What `pcflax train` can be told, and the run folder that remembers it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pcflax import recipes

from .devices import parse_mesh
from .fields import derived
from .usage import UsageError


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Train a network and keep the run in a folder.

    With no option: the network and the rates of the reference notebook, in-300-300-out with tanh, on the
    embedded 8x8 digits, in well under a minute. `--data mnist` is the notebook's own job. Its inference
    hardly moves, so that each layer learns all but as by backpropagation; `--preset pc` does predictive
    coding.
    """

    preset: Literal[tuple(recipes.PRESETS)] = "notebook"  # type: ignore[valid-type]
    """Defaults to start from, which other options go over. notebook: the published job's, whose inference
    closes less than a fifth of the energy gap, near backpropagation. pc: predictive coding, inference with
    steps of 0.1 and momentum 0.7, which closes 95 percent and more in every layer of an mlp. fast: soon
    done, and near backpropagation too: gelu and cross-entropy, 3 inference steps of 0.1, batches of 128,
    300 steps at a rate that falls to zero."""
    data: str = "digits"
    """digits, the name of a TFDS set of labeled images (mnist, fashion_mnist, cifar10, cifar100, kmnist,
    svhn_cropped, emnist/balanced, imagenet_resized/32x32), the path of an .npz file with x_train, y_train,
    x_test and y_test, or text:PATH, the characters of a file. A set without test split is tested on its
    validation split."""
    data_dir: Path | None = None
    """Folder of prepared TFDS sets; TFDS's default folder unless given."""
    validation: int = 10
    """Percent of the training split that are not trained on: evaluations measure them, and the best
    checkpoint is chosen by them; the test split is measured once, at the end. 0 trains on the whole split,
    and evaluates and chooses on the test split."""
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
    with; only --num-steps, --data-dir, --logger, --mesh, --profile, --quiet, --json and --debug may
    change."""
    begin_from: Path | None = None
    """Another run's folder, whose newest good checkpoint counts, or one checkpoint in it: its parameters, by
    name, are those that training begins with; what it lacks begins as it would."""
    mesh: str | None = None
    """Devices that share the work: data=2,layers=4 spreads each batch over two and the stacked layers over
    four for each half, features=2 the last axis of parameters; without a number an axis takes all devices
    that are left. One device unless given."""
    model: Literal[tuple(recipes.MODELS)] = "mlp"  # type: ignore[valid-type]
    """The network: dense layers of --widths; --depth dense layers of --width with skips, stacked
    (residual-mlp, those of muPC); convolutions for images (cifar10); dense layers that predict every node
    from below and from above (bidirectional), images from labels or a free code (generator), or images from
    labels, with amortizers that guess the label (hybrid); a causal transformer of --depth blocks for text.
    Each has defaults of its own, which --model NAME --help shows."""
    widths: tuple[int, ...] = (300, 300)
    """Widths of the hidden layers: of an mlp, a bidirectional or a hybrid from the images on, of a generator
    towards them."""
    latent: int = 0
    """Width of the code that a generator draws images from, inferred for each image; 0 draws them from the
    labels, and evaluations infer these."""
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
    parameterization: Literal["standard", "ntk", "mupc", "completep"] | None = None
    """Scale of the weights with width and depth: standard in an mlp, mupc in a residual-mlp, unless
    given."""
    learning: Literal[tuple(recipes.LEARNING)] = "pc"  # type: ignore[valid-type]
    """Rule of learning: predictive coding, incremental (a weight step at every inference step), fixed
    prediction or Meta-PCN, zero-divergence, nudged, or backpropagation through the same network."""
    inference: Literal[tuple(recipes.INFERENCE)] = "gradient"  # type: ignore[valid-type]
    """How activities are inferred: gradient descent with --step-size or one chosen by curvature (auto),
    layer after layer (sweeps), gradient descent on errors, a differential equation, second order,
    sampling, or exactly (linear networks)."""
    inference_steps: int = 20
    """Steps of inference for each batch; the most that are taken where there is a --tolerance; the
    samples of langevin."""
    optimizer: str = "adam"
    """Optimizer of the weights: a name of optax that takes a learning rate, with other arguments of its
    own if wanted: sgd, "adamw(weight_decay=0.01)"."""
    learning_rate: float = 1e-3
    """Its rate."""
    decay: Literal[recipes.SCHEDULES] = "constant"  # type: ignore[valid-type]
    """How that rate falls until --num-steps, which then cannot change when a run is resumed; --decay
    alone is linear, to zero."""
    health: bool = False
    """Log, beside the training metrics, whether each layer learns: alignment with backpropagation,
    gradient norms, dead units, energy shares; and draw the alignment."""
    logger: tuple[Literal["csv", "wandb", "mlflow"], ...] = ()
    """Trackers beside metrics.jsonl and TensorBoard, in the run's folder: a table (metrics.csv), Weights &
    Biases (offline, unless WANDB_MODE says otherwise) and MLflow (mlflow.db, unless MLFLOW_TRACKING_URI names
    another store)."""
    profile: str | None = None
    """A:B leaves a trace of the updates from A to B in RUN/profile, and shows where an update's time goes."""
    eval_every: int = 50
    """Steps between evaluations, and between checkpoints."""
    keep_latest: int = 3
    """Newest checkpoints to keep; the one with the best accuracy in evaluations is kept besides."""
    config: Path | None = None
    """A .yaml or .json file of options, a run's own config.json among them; options on the line go
    first."""
    quiet: bool = False
    """Print nothing but warnings and errors."""
    json: bool = False
    """Print one JSON object, at the end, and nothing else but warnings and errors."""
    debug: bool = False
    """Show the traceback of an error."""


if TYPE_CHECKING:

    class TrainOptions(RunOptions):
        """`RunOptions`, and every setting of an algorithm or a rule."""

        def __init__(self, **options: Any): ...

        def __getattr__(self, name: str) -> Any: ...

else:
    TrainOptions = dataclasses.make_dataclass(
        "TrainOptions",
        derived(),
        bases=(RunOptions,),
        namespace={"__doc__": RunOptions.__doc__, "__module__": __name__},
        frozen=True,
    )


# Of one call, and not of the run.
OF_THE_CALL = ("run_dir", "resume", "config", "profile", "quiet", "json", "debug")
# A resumed run may be told these anew; everything else is as it was.
MAY_CHANGE = ("num_steps", "data_dir", "logger", "mesh", *OF_THE_CALL)


def preset(name: str, model: str = "mlp") -> TrainOptions:
    """Return the defaults of a preset and a model."""
    if name not in recipes.PRESETS:
        raise UsageError(f"expected --preset {' or '.join(recipes.PRESETS)}, got {name}")
    model = model if model in recipes.MODELS else "mlp"  # tyro refuses it
    chosen = recipes.MODELS[model] | recipes.PRESETS[name]
    return TrainOptions(preset=name, model=model, **chosen)


def config_path(run_dir: Path, kind: type[TrainOptions] = TrainOptions) -> Path:
    """Return where a run's or a sweep's folder keeps its options."""
    return run_dir / ("config.json" if kind is TrainOptions else "sweep.json")


def write_config(run_dir: Path, options: TrainOptions) -> None:
    """Make the folder of a run or a sweep and write its options and versions."""
    from pcflax.training.checkpoints.disk import telling, write_atomically  # loads jax

    record = {"options": as_record(options), "versions": recipes.versions()}
    with telling(f"the run folder {run_dir}", "choose another --run-dir"):
        run_dir.mkdir(parents=True, exist_ok=True)
        path = config_path(run_dir, type(options))
        write_atomically(path, json.dumps(record, indent=2) + "\n")


def as_record(options: TrainOptions) -> dict[str, Any]:
    """Return the options of the run itself by name, paths as seen from anywhere: what JSON can hold."""
    return {
        name: str(value.absolute()) if isinstance(value, Path) else value
        for name, value in dataclasses.asdict(absolute_data(options)).items()
        if name not in OF_THE_CALL
    }


def absolute_data(options: TrainOptions) -> TrainOptions:
    """Return the same options with the path of a data file as seen from anywhere."""
    kind, _, path = options.data.partition(":")
    if kind != "text" and not options.data.endswith(".npz"):
        return options
    prefix, path = ("text:", path) if kind == "text" else ("", options.data)
    return dataclasses.replace(options, data=prefix + str(Path(path).absolute()))


def read_run(run_dir: Path, *, data_dir: Path | None = None, mesh: str | None = None) -> Any:
    """Return the options of a run to look at: its data may have moved, and its devices may be others."""
    if mesh is not None:
        parse_mesh(mesh)  # what is wrong by itself is told before files are looked at
    return dataclasses.replace(read_config(run_dir, data_dir=data_dir), mesh=mesh)


def read_config(run_dir: Path, kind: Any = TrainOptions, *, data_dir: Path | None = None) -> Any:
    """Return the options that a run, or a sweep (`kind`), was started with; its data may have moved since."""
    path = config_path(run_dir, kind)
    if not path.is_file():
        what, verb = ("run", "train") if kind is TrainOptions else ("sweep", "sweep")
        raise FileNotFoundError(
            f"there is no {what} in {run_dir} (no {path.name}); start one: pcflax {verb} --run-dir "
            f"{run_dir}"
        )
    try:
        stored: dict[str, Any] = json.loads(path.read_text())["options"]
        stored.setdefault("logger", ())  # there was none
        for name in (
            ("widths", "logger") if kind is TrainOptions else ("widths", "logger", "search")
        ):
            stored[name] = tuple(stored[name])
        if (place := data_dir or stored["data_dir"]) is not None:
            stored["data_dir"] = Path(place)
        if (begun := stored.get("begin_from")) is not None:
            stored["begin_from"] = Path(begun)
        stored.setdefault("validation", 0)  # of before 0.2, when evaluations were of the test split
        if isinstance(decay := stored.get("decay", False), bool):  # of 0.1
            stored["decay"] = "linear" if decay else "constant"
        return kind(**stored, run_dir=run_dir)
    except (ValueError, KeyError, TypeError) as error:
        reason = {
            KeyError: f"it lacks {error}",
            TypeError: "it holds something else, or options of another version",
        }.get(type(error), f"it is no JSON ({error})")
        raise ValueError(f"{path} cannot be read as a run's options: {reason}") from error


def flag(name: str) -> str:
    """Return the option as it is typed."""
    return "--" + name.replace("_", "-")


def words(value: Any) -> str:
    """Return a value as it is typed."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
