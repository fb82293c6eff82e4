"""What the other verbs can be told: those that look at runs, and those that make many."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from .options import TrainOptions


@dataclasses.dataclass(frozen=True)
class CheckpointOptions:
    """Which checkpoint of a run to look at."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""
    step: int | None = None
    """This checkpoint instead of the newest good one."""
    best: bool = False
    """The checkpoint with the best accuracy in the run's evaluations."""
    data_dir: Path | None = None
    """Folder of prepared TFDS sets; the run's own unless given."""
    json: bool = False
    """Print one JSON object."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclasses.dataclass(frozen=True)
class ComputingOptions(CheckpointOptions):
    """Which checkpoint of a run to compute with, and where."""

    mesh: str | None = None
    """Devices that share the work, as in pcflax train; one unless given, whatever the run had."""


@dataclasses.dataclass(frozen=True)
class EvaluateOptions(ComputingOptions):
    """Measure a trained run on a data set."""

    data: str | None = None
    """Another data set than the run's own."""
    split: Literal["train", "validation", "test"] = "test"
    """Which part of the data: what was trained on, what was left out of that, or the test split."""
    batch_size: int = 500
    """Examples in one compiled step; the result does not depend on it."""


@dataclasses.dataclass(frozen=True)
class InspectOptions(CheckpointOptions):
    """Show what a run holds: step, metrics, shapes, and a digest that tells two runs equal."""

    health: bool = False
    """Examine the network on a batch of its training data: does inference reach its equilibrium, do the
    early layers learn; a sentence for each layer."""
    summary: bool = False
    """Show the layers, and what a batch costs: the pass upward, inference, the rule, backpropagation."""


@dataclasses.dataclass(frozen=True)
class SampleOptions(ComputingOptions):
    """Draw images with a trained generator, into a picture."""

    count: int = 50
    """Images to draw from codes; a generator of labels draws one of each class."""
    seed: int = 0
    """Seed of the codes."""
    quiet: bool = False
    """Print nothing but warnings and errors."""
    output: Path | None = None
    """The picture, a .png, .pdf or .svg file; samples.png in the run's folder unless given."""


@dataclasses.dataclass(frozen=True)
class _Searching:
    """What `pcflax sweep` can be told beside the options of `pcflax train`."""

    search: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """An option and what to try: learning-rate=1e-4:1e-2:log, inference-steps=4:32,
    activation=tanh,relu,gelu, widths=300x300,128. Once for each option."""
    trials: int = 50
    """How many trials are to have ended; a total, which may grow when a sweep is resumed."""
    objective: str | None = None
    """Metric of evaluations to choose by, a trial's best: accuracy, squared_error, perplexity or energy;
    unless given the one that runs choose their best checkpoint by."""
    pruner: Literal["median", "halving", "none"] = "median"
    """What stops a trial early: that it is behind the median of those before it, successive halving, or
    nothing."""
    cost: Literal["gradients", "seconds"] | None = None
    """What a trial's batches cost, as a part of the objective: operations in gradients of backpropagation,
    or seconds, which do not repeat."""
    cost_weight: float = 0.01
    """How much of the metric twice the cost must bring."""


@dataclasses.dataclass(frozen=True)
class SweepOptions(TrainOptions, _Searching):
    """Train with many settings, and find the best on the part of the training split that is left out.

    Takes the options of `pcflax train`, which hold for every trial, and --search for those that differ.
    --run-dir is the sweep's folder, sweeps/<data>-<date>-<time> unless given; each trial is a run in it. A
    sweep that was stopped, killed too, goes on with --resume and loses no trial. The test split is never
    looked at.
    """

    if TYPE_CHECKING:

        def __init__(self, **options: Any): ...


@dataclasses.dataclass(frozen=True)
class CompareOptions:
    """Compare runs by a metric: differences with intervals over seeds, effect sizes and tests.

    Runs that differ in nothing but the seed count as one; each of the others is compared with the first.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of runs, of `pcflax train` or of many seeds (pc.experiments.replicate)."""
    metric: str | None = None
    """What is compared: the plan's unless given, and without one eval/accuracy."""
    at: str | None = None
    """Where it is read: last, a step, or max:METRIC or min:METRIC, the step at which that metric, of other
    data, was best. The plan's unless given, and without one last."""
    plan: Path | None = None
    """Folder of a plan that was written before the first step (pc.experiments.Plan)."""
    finished: bool = False
    """Leave out seeds that ended because their numbers were not finite."""
    confidence: float = 0.95
    """Of the intervals."""
    format: Literal["text", "markdown", "latex", "csv"] = "text"
    """Form of the table."""
    json: bool = False
    """Print one JSON object in the place of the table."""
    output: Path | None = None
    """File for the table, in the place of the screen."""
    figure: Path | None = None
    """A .png, .pdf or .svg file for curves with intervals."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclasses.dataclass(frozen=True)
class DoctorOptions:
    """Say whether everything is there that a run wants: packages, devices, data, a folder to write in.

    Ends with exit code 1 where something is wrong.
    """

    run_dir: Path = Path("runs")
    """Where runs are to be written."""
    data_dir: Path | None = None
    """Folder of prepared TFDS sets; TFDS_DATA_DIR or TFDS's default folder unless given."""
    quiet: bool = False
    """Print nothing: the exit code tells."""
    json: bool = False
    """Print one JSON object."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclasses.dataclass(frozen=True)
class PredictOptions(ComputingOptions):
    """Answer for the examples of a file with a trained run.

    Whole numbers are examples as the run's data set stores them, bytes of images as a rule, and are scaled
    and normalized as those are; floating numbers go into the network as they are.
    """

    file: tyro.conf.Positional[Path] = dataclasses.field(kw_only=True)
    """The examples, (examples, *features), in a .npy or .npz file."""
    array: str | None = None
    """Which array of an .npz file that holds several."""
    output: Path | None = None
    """Where the answers go, a .csv, .npz or .json file; the first rows are shown unless given."""
    batch_size: int = 500
    """Examples in one compiled step; the result does not depend on it."""
    quiet: bool = False
    """Print nothing but warnings and errors."""


@dataclasses.dataclass(frozen=True)
class ReportOptions(CheckpointOptions):
    """Write what a run did into one HTML file: curves, inference, health, options and the command.

    The file holds its figures and needs no network.
    """

    output: Path | None = None
    """The page, an .html file; report.html in the run's folder unless given."""
    health: bool = True
    """Examine the network as `pcflax inspect --health` does."""
    quiet: bool = False
    """Print nothing but warnings and errors."""
