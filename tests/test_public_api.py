"""The names that users rely on, and that each of them is documented with an example that runs."""

import ast
import inspect
import operator
import pathlib
import pkgutil
import re
import subprocess
import sys

import pytest

import pcflax as pc
from tests.conftest import ROOT

TOP = """Activity Callback Checkpoint CheckpointError CheckpointWarning Checkpoints Clamp ConvergenceError
ConsoleLogger CSVLogger EarlyStopping Energy Equilibrium Evidence Feedforward Filter Forecast History
JSONLinesLogger MLflowLogger
NonFiniteEnergyError PCAttention PCConv PCConvTranspose PCDense PCEmbedding PCGraph PCLayer PCMLP PCNetwork
PCResidual PCRoot PCStack Reconstruction Smoother
 TensorBoardLogger Trainer WandbLogger analysis citation data energies experiments inference initializers
 layers learning
errors load_checkpoint load_partial load_weights metrics models networks parameterizations plotting
save_weights sharding""".split()

FOLDERS = {  # those of training are at the top level, with these exceptions
    "layers": """Clamp Evidence Feedback Flatten PCAffine PCAttention PCConv PCConvTranspose PCDense
        PCEmbedding PCLayer PCMLP PCResidual PCRoot PCStack Reshape""",
    "networks": """AbstractPCNetwork Clamp Combine Concatenate Cost LayerSummary PCGraph PCNetwork Previous
        SplitNetwork Sum Summary Wiring after_batch from_adjacency split write""",
    "models": """Transition bidirectional conv_decoder decoder hybrid mlp residual_mlp resnet18 temporal
        transformer vgg10 vgg5 vgg7""",
    "energies": """ActivityDecay Bernoulli Categorical Energy FullGaussian Gaussian Heteroscedastic Huber
        KL Laplace LearnedGaussian RunningGaussian check_range check_same_shape sum_features
        total_energy""",
    "inference": """AbstractInference AbstractIterativeInference Chebyshev CurvatureDescent
        ErrorCoordinates FixedSteps GaussNewton GradientDescent GradientFlow InferenceProblem
        InferenceResult Langevin LinearSolve NewtonCG OutputNewton Scheduled Seen Sequence Status
        StepInfo Sweeps Trace UntilTolerance VectorField expect_algorithm finished make_problem
        observe""",
    "initializers": """AbstractKeptStart Amortized ClassAverage DirectFeedback Downward Feedforward
        Normal Persistent Zeros""",
    "learning": """AbstractGradientLearning AbstractLearning AugmentedLagrangian Backprop FixedPrediction
        Implicit IncrementalPC LearningInfo MetaPCN Nudged PredictiveCoding Temporal ZIL
        apply matrix_steps normalize_spectral scale_by_layer spectral_penalty
        weight_decay""",
    "data": """ArrayDataset Augmentation Crop Dataset Decoder Flip LoaderDataset StreamDataset TextDataset
        from_arrays from_loader from_sequences load""",
    "data.scenarios": "permuted rotated split",
    "parameterizations": "AbstractParameterization CompleteP MuPC NTK Standard",
    "analysis": """Continual Credit DeepLinear Health HealthMonitor InferenceHealth Spectrum
        StepProfile StepSizeRange activity_spectrum bits_per_dimension chain_diagnostics continual
        displacement_alignment effective_rank frechet_distance gradient_alignment health inference_health
        knn_probe linear_probe log_likelihood_bound participation_ratio profile_step representations
        step_size_range target_alignment trajectories unit_health""",
    "experiments": """AccuracyMatrix Comparison Contrast Curves Interval OneRun Outcome Plan Replicas Runs
        Sample Sweep TaskAccuracies Trial compare learn_tasks load_runs replicate sweep""",
    "plotting": """alignment_figure band_figure graph_figure image_figure inference_figure recall_figure
        sweep_figure training_figure trajectory_figure""",
    "metrics": """AccuracyAmong OfMean accuracy cross_entropy default_metrics perplexity reads_mean
        squared_error""",
    "sharding": "Placement data features layers rules",
    "training": "RunningTrainer Terminated TrainInfo TrainState make_step",
}
FOLDERS = {folder: names.split() for folder, names in FOLDERS.items()}

PUBLIC = {
    f"pc.{name}": getattr(pc, name) for name in TOP if not inspect.ismodule(getattr(pc, name))
}
PUBLIC |= {
    f"pc.{folder}.{name}": operator.attrgetter(f"{folder}.{name}")(pc)
    for folder, names in FOLDERS.items()
    for name in names
}

SOURCE = pathlib.Path(pc.__file__).read_text()

# Contracts, results and errors are shown at work in the examples of what uses them.
WITHOUT_EXAMPLE = {
    "pc.networks.AbstractPCNetwork",
    "pc.networks.SplitNetwork",
    "pc.Checkpoint",
    "pc.CheckpointError",
    "pc.CheckpointWarning",
    "pc.ConvergenceError",
    "pc.NonFiniteEnergyError",
    "pc.ConsoleLogger",
    "pc.JSONLinesLogger",
    "pc.TensorBoardLogger",
    "pc.load_checkpoint",
    "pc.training.RunningTrainer",
    "pc.training.Terminated",
    "pc.training.TrainInfo",
    "pc.training.TrainState",
    "pc.inference.AbstractInference",
    "pc.inference.AbstractIterativeInference",
    "pc.inference.InferenceProblem",
    "pc.inference.InferenceResult",
    "pc.inference.StepInfo",
    "pc.inference.Trace",
    "pc.inference.make_problem",
    "pc.learning.AbstractGradientLearning",
    "pc.learning.AbstractLearning",
    "pc.learning.LearningInfo",
    "pc.parameterizations.AbstractParameterization",
    "pc.analysis.Continual",
    "pc.analysis.Credit",
    "pc.analysis.Health",
    "pc.analysis.InferenceHealth",
    "pc.analysis.Spectrum",
    "pc.analysis.StepSizeRange",
    "pc.analysis.inference_health",
    "pc.analysis.unit_health",
    "pc.experiments.AccuracyMatrix",
    "pc.experiments.Outcome",
    "pc.experiments.TaskAccuracies",
    "pc.experiments.Sweep",
    "pc.data.ArrayDataset",
    "pc.data.Dataset",
    "pc.data.Decoder",
    "pc.data.StreamDataset",
    "pc.energies.check_range",
    "pc.experiments.Comparison",
    "pc.experiments.Contrast",
    "pc.experiments.Interval",
    "pc.experiments.OneRun",
    "pc.experiments.Replicas",
    "pc.experiments.load_runs",
    "pc.energies.check_same_shape",
    "pc.inference.Seen",
    "pc.inference.VectorField",
    "pc.inference.expect_algorithm",
    "pc.inference.finished",
    "pc.inference.observe",
    "pc.learning.apply",
    "pc.networks.Cost",
    "pc.networks.LayerSummary",
    "pc.networks.Summary",
    "pc.networks.Wiring",
    "pc.networks.after_batch",
    "pc.networks.write",
}


def public_names(module):
    return {name for name in dir(module) if not name.startswith("_")}


def test_the_top_level_holds_these_names_and_no_others():
    assert public_names(pc) - {"citations", "training", "typing", "variables"} == set(TOP)
    assert set(pc.__all__) == set(TOP)


def test_a_star_import_brings_every_name():
    names = {}
    exec("from pcflax import *", names)
    assert all(names[name] is getattr(pc, name) for name in TOP)


def test_editors_are_told_of_the_names_that_load_when_used():
    """The imports that only type checkers read, against the table that Python reads."""
    (block,) = (node for node in ast.parse(SOURCE).body if isinstance(node, ast.If))
    told = {
        alias.asname: f"pcflax.{node.module}" if node.module else "pcflax"
        for node in block.body
        for alias in node.names
    }
    assert set(told) == public_names(pc)
    for name, module in told.items():
        assert getattr(pc, name) is getattr(sys.modules[module], name)


def test_an_unknown_name_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match="module 'pcflax' has no attribute 'PCDens'") as caught:
        pc.PCDens  # noqa: B018
    assert caught.value.obj is pc  # by which Python adds "Did you mean: 'PCDense'?"


HEAVY = "diffrax equinox grain lineax matplotlib orbax scipy tensorboardX tensorflow_datasets tyro"


@pytest.mark.parametrize(
    ("program", "without"),
    [
        ("import pcflax; pcflax.__version__", f"jax flax optax {HEAVY}"),
        (
            "import optax, pcflax as pc; pc.PCNetwork, pc.models.mlp, pc.data.load, pc.energies.Gaussian;"
            "pc.learning.PredictiveCoding(pc.inference.GradientDescent(optax.sgd(0.1)));pc.inference.NewtonCG()",
            HEAVY,
        ),
        (
            "import pcflax as pc; pc.Trainer, pc.Checkpoints, pc.EarlyStopping, pc.metrics.accuracy;"
            "pc.experiments.replicate, pc.experiments.Runs",
            "diffrax equinox grain lineax matplotlib orbax scipy tensorboardX tensorflow_datasets tyro",
        ),
        ("from pcflax.cli.options import TrainOptions", "jax flax optax matplotlib"),
        ("import pcflax.cli.train", "scipy diffrax equinox grain optuna tensorflow_datasets"),
    ],
    ids=["pcflax", "networks", "training", "command line", "its training"],
)
def test_what_is_heavy_loads_when_it_is_first_used(program, without):
    """In a fresh process: what one of these has loaded stays."""
    check = f"import sys; sys.exit(str(sorted(set({without.split()}) & set(sys.modules)) or ''))"
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\n{check}"], capture_output=True, text=True
    )
    assert done.stderr.strip() == ""


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_folder_offers_its_names(folder):
    assert set(FOLDERS[folder]) <= public_names(operator.attrgetter(folder)(pc))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_documented(name):
    value = PUBLIC[name]
    assert value.__doc__
    if name not in WITHOUT_EXAMPLE:
        assert ">>>" in value.__doc__, f"{name} has no example"
    if inspect.isclass(value):
        for method, function in vars(value).items():
            if not method.startswith("_") and inspect.isfunction(function):
                assert inspect.getdoc(getattr(value, method)), f"{name}.{method} has no docstring"


def offered(folder):
    """What a folder's `__init__.py` imports under its own name; of a single file, the names above."""
    source = pathlib.Path(operator.attrgetter(folder)(pc).__file__)
    names = {
        alias.asname
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.ImportFrom) and source.name == "__init__.py"
        for alias in node.names
        if alias.asname
    }
    return names or set(FOLDERS[folder])


def test_every_public_name_is_on_a_page_of_the_documentation():
    """And every name on a page exists; a page that shows a module shows all of it."""
    shown = set()
    for page in (ROOT / "docs/api").glob("*.md"):
        for path in re.findall(r"^::: (\S+)$", page.read_text(), flags=re.MULTILINE):
            value = pkgutil.resolve_name(path)
            shown |= (
                {id(part) for part in vars(value).values()} if inspect.ismodule(value) else set()
            )
            shown.add(id(value))
    public = {f"pc.{name}": getattr(pc, name) for name in TOP}
    public = {name: value for name, value in public.items() if not inspect.ismodule(value)}
    for folder in FOLDERS:
        public |= {
            f"pc.{folder}.{name}": operator.attrgetter(f"{folder}.{name}")(pc)
            for name in offered(folder)
        }
    assert len(public) > 150
    assert [name for name, value in public.items() if id(value) not in shown] == []


def test_the_package_says_that_it_is_typed():
    import importlib.resources

    assert importlib.resources.files("pcflax").joinpath("py.typed").is_file()
