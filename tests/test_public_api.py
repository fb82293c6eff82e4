"""The names that users rely on, and that each of them is documented with an example that runs."""

import inspect

import pytest

import pcflax as pc

TOP = """Activity Callback Checkpoint CheckpointError CheckpointWarning Checkpoints Clamp
ConsoleLogger EarlyStopping Energy History JSONLinesLogger NonFiniteEnergyError PCAttention PCConv
PCConvTranspose PCDense PCEmbedding PCGraph PCLayer PCMLP PCNetwork PCResidual PCRoot PCStack
TensorBoardLogger Trainer analysis data energies inference initializers layers learning
load_checkpoint metrics models networks parameterizations""".split()

FOLDERS = {
    "layers": [
        "Flatten",
        "PCAffine",
        "PCAttention",
        "PCConv",
        "PCConvTranspose",
        "PCDense",
        "PCEmbedding",
    ]
    + ["PCLayer", "PCMLP", "PCResidual", "PCRoot", "PCStack", "Reshape"],
    "networks": [
        "AbstractPCNetwork",
        "Clamp",
        "Concatenate",
        "PCGraph",
        "PCNetwork",
        "SplitNetwork",
    ]
    + ["Sum", "split"],
    "models": ["decoder", "mlp", "residual_mlp", "resnet18", "transformer", "vgg5", "vgg7"],
    "energies": ["ActivityDecay", "Bernoulli", "Categorical", "Energy", "Gaussian", "Huber", "KL"]
    + ["Laplace", "LearnedGaussian"],
    "inference": ["AbstractInference", "AbstractIterativeInference", "ErrorCoordinates"]
    + ["GaussNewton", "GradientDescent", "GradientFlow", "InferenceProblem", "InferenceResult"]
    + ["Langevin", "LinearSolve", "NewtonCG", "Sequence", "StepInfo", "Trace", "make_problem"],
    "initializers": ["Feedforward", "Normal", "Zeros"],
    "learning": ["AbstractGradientLearning", "AbstractLearning", "Backprop", "FixedPrediction"]
    + ["IncrementalPC", "LearningInfo", "Nudged", "PredictiveCoding", "ZIL", "spectral_penalty"]
    + ["weight_decay"],
    "data": ["ArrayDataset", "Augmentation", "Crop", "Dataset", "Decoder", "Flip", "StreamDataset"]
    + ["TextDataset", "from_arrays", "load"],
    "parameterizations": ["AbstractParameterization", "MuPC", "NTK", "Standard"],
    "analysis": ["Credit", "DeepLinear", "Health", "HealthMonitor", "InferenceHealth", "Spectrum"]
    + ["activity_spectrum", "gradient_alignment", "health", "inference_health", "trajectories"]
    + ["unit_health"],
    "metrics": ["OfMean", "accuracy", "cross_entropy", "default_metrics", "perplexity"]
    + ["squared_error"],
}

PUBLIC = {
    f"pc.{name}": getattr(pc, name) for name in TOP if not inspect.ismodule(getattr(pc, name))
}
PUBLIC |= {
    f"pc.{folder}.{name}": getattr(getattr(pc, folder), name)
    for folder, names in FOLDERS.items()
    for name in names
}

# Contracts, results and errors are shown at work in the examples of what uses them.
WITHOUT_EXAMPLE = {
    "pc.networks.AbstractPCNetwork",
    "pc.networks.SplitNetwork",
    "pc.Checkpoint",
    "pc.CheckpointError",
    "pc.CheckpointWarning",
    "pc.NonFiniteEnergyError",
    "pc.ConsoleLogger",
    "pc.JSONLinesLogger",
    "pc.TensorBoardLogger",
    "pc.load_checkpoint",
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
    "pc.analysis.Credit",
    "pc.analysis.Health",
    "pc.analysis.InferenceHealth",
    "pc.analysis.Spectrum",
    "pc.analysis.inference_health",
    "pc.analysis.unit_health",
    "pc.data.ArrayDataset",
    "pc.data.Dataset",
    "pc.data.Decoder",
    "pc.data.StreamDataset",
}


def public_names(module):
    return {name for name in vars(module) if not name.startswith("_")}


def test_the_top_level_holds_these_names_and_no_others():
    submodules = {"checks", "plotting", "training", "typing", "variables", "cli"}
    assert public_names(pc) - submodules == set(TOP)


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_folder_offers_its_names(folder):
    assert set(FOLDERS[folder]) <= public_names(getattr(pc, folder))


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


def test_the_package_says_that_it_is_typed():
    import importlib.resources

    assert importlib.resources.files("pcflax").joinpath("py.typed").is_file()
