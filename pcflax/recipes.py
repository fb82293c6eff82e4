"""Recipes: what the command, the scripts and the benchmarks have in common.

Words for rules and algorithms, defaults under which each model learns, presets, optimizers and schedules by
name, and the versions that a result is kept with. Nothing heavy loads before a function here is called.

>>> from pcflax import recipes
>>> recipes.learning("nudged", recipes.inference("gradient", step_size=0.1, num_steps=5), beta=0.3)
Nudged(inference=GradientDescent(num_steps=5, ...), beta=0.3, ...)
"""

from __future__ import annotations

import ast
import inspect
import platform
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optax

    from pcflax.inference import AbstractInference
    from pcflax.learning import AbstractLearning

# Each word's class; of two, the first works on what the second does.
INFERENCE: dict[str, tuple[str, ...]] = {
    "gradient": ("GradientDescent",),
    "auto": ("CurvatureDescent",),
    "chebyshev": ("Chebyshev",),
    "sweeps": ("Sweeps",),
    "error-coordinates": ("ErrorCoordinates", "GradientDescent"),
    "flow": ("GradientFlow",),
    "gauss-newton": ("GaussNewton",),
    "newton": ("NewtonCG",),
    "output-newton": ("OutputNewton",),
    "langevin": ("Langevin",),
    "linear": ("LinearSolve",),
}
LEARNING: dict[str, tuple[str, ...]] = {
    "pc": ("PredictiveCoding",),
    "ipc": ("IncrementalPC",),
    "fpa": ("FixedPrediction",),
    "meta-pcn": ("MetaPCN",),
    "alm": ("AugmentedLagrangian",),
    "zil": ("ZIL",),
    "nudged": ("Nudged",),
    "backprop": ("Backprop",),
}

SCHEDULES = ("constant", "linear", "cosine", "warmup-cosine", "exponential")

# A rate of 0.1 on the mean over 64 examples, without the 1/2 of the energy, is this on each one's own.
DEFAULTS: dict[str, Any] = {"step_size": 2 * 0.1 / 64}
# What a model changes of the command's defaults, which are those of the reference notebook's mlp.
# Chosen on digits (enlarged for images), or a part of a text, that were left out of the training split.
MODELS: dict[str, dict[str, Any]] = {
    "mlp": {},
    "residual-mlp": {"step_size": 0.1, "learning_rate": 0.1},
    "vgg5": {"inference_steps": 7, "step_size": 0.02},
    "vgg7": {"inference_steps": 7, "step_size": 0.1},
    "resnet18": {"inference_steps": 7, "step_size": 0.1, "learning_rate": 3e-3},
    "generator": {"activation": "tanh", "step_size": 0.05, "learning_rate": 5e-4},
    "bidirectional": {"step_size": 0.01},
    "hybrid": {
        "initializer": "amortized",
        "inference_steps": 80,
        "step_size": 0.05,
    },
    "transformer": {
        "inference": "error-coordinates",  # in activities, no credit reaches the first of 4 blocks
        "inference_steps": 8,
        "step_size": 1e-4,
        "learning_rate": 3e-3,
    },
}
# What a preset changes after that. `notebook` is a published job and no example of predictive coding: its
# inference closes 18 % of the energy gap on digits, and every layer learns as by backpropagation. `pc` closes
# at least 95 % in every layer of an mlp all through training: 98, 97, 98 and 95 % in the least at 0, 100,
# 500 and 1,500 batches of MNIST, 99 % in 500 of digits, at 12 to 15 % of the stable step size. (Steps of 0.2
# without momentum close 81 to 86 % at 47 % of theirs. Chosen on a tenth of the training images, left out.)
# `fast` is measured by benchmarks/time_to_accuracy.py; it closes 39 %, and is near backpropagation too.
PRESETS: dict[str, dict[str, Any]] = {
    "notebook": {},
    "pc": {"inference": "gradient", "inference_steps": 20, "step_size": 0.1, "momentum": 0.7},
    "fast": {
        "num_steps": 300,
        "batch_size": 128,
        "activation": "gelu",
        "output": "categorical",
        "inference_steps": 3,
        "step_size": 0.1,
        "learning_rate": 3e-3,
        "decay": "linear",
    },
}


def inference(word: str, **settings: Any) -> AbstractInference:
    """Return the algorithm of this word, with settings of its own.

    >>> from pcflax import recipes
    >>> recipes.inference("newton", num_steps=5).num_steps
    5
    """
    *outer, inner = INFERENCE[word]
    module = import_module("pcflax.inference")
    made = getattr(module, inner)(**settings)
    for name in reversed(outer):
        made = getattr(module, name)(made)
    return made


def learning(
    word: str, inference: AbstractInference | None = None, **settings: Any
) -> AbstractLearning:
    """Return the rule of this word, with the algorithm that it infers by, if it does."""
    (name,) = LEARNING[word]
    own = {} if inference is None else {"inference": inference}
    return getattr(import_module("pcflax.learning"), name)(**own, **settings)


def schedule(name: str, rate: float, num_updates: int) -> float | optax.Schedule:
    """Return a learning rate that falls over `num_updates` steps of the optimizer.

    linear and cosine end at 0; exponential at a hundredth of the rate; warmup-cosine begins at the rate,
    is 1.1 times that after a tenth of the steps, and a tenth of it at the end.

    >>> from pcflax import recipes
    >>> falling = recipes.schedule("linear", 0.5, 100)
    >>> float(falling(50)), float(falling(100))
    (0.25, 0.0)
    """
    import optax

    if name == "linear":
        return optax.linear_schedule(rate, 0.0, num_updates)
    if name == "cosine":
        return optax.cosine_decay_schedule(rate, num_updates)
    if name == "exponential":
        return optax.exponential_decay(rate, num_updates, 0.01)
    if name == "warmup-cosine":
        warm, last = max(num_updates // 10, 1), max(num_updates, 2)
        return optax.warmup_cosine_decay_schedule(rate, 1.1 * rate, warm, last, 0.1 * rate)
    return rate


def call(text: str, module: str, **given: Any) -> Any:
    """Return what a name of a module makes, such as "adamw" or "adamw(weight_decay=0.01)" of optax.

    The arguments are plain numbers, words and tuples; upper and lower case are one.

    Raises:
        ValueError: for a name that the module lacks, with the nearest; for arguments that are not plain,
            or that it does not take.

    >>> from pcflax import recipes
    >>> recipes.call("normal(stddev=0.1)", "pcflax.initializers")
    Normal(stddev=0.1)
    """
    from pcflax.checks import did_you_mean

    found = import_module(module)
    public = {name.lower(): name for name in dir(found) if callable(getattr(found, name))}
    name, bracket, rest = text.partition("(")
    if (key := name.strip().lower()) not in public:
        guess = did_you_mean(key, public)
        raise ValueError(f"expected a name of {module}, got '{name}'{guess or f'; see {module}'}")
    try:
        tree = ast.parse(f"f({rest}" if bracket else "f()", mode="eval").body
        values = [ast.literal_eval(one) for one in tree.args]  # type: ignore[attr-defined]
        options = {one.arg: ast.literal_eval(one.value) for one in tree.keywords}  # type: ignore[attr-defined]
    except (SyntaxError, ValueError, AttributeError):
        reason = "its arguments are not plain numbers, words in quotes or tuples"
    else:
        try:
            return getattr(found, public[key])(*values, **given, **options)
        except (TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
    raise ValueError(
        f"'{text}' cannot be made by {module}.{public[key]}: {reason}; write it as {name}(argument=number)"
    )


def optimizer(text: str, learning_rate: float | optax.Schedule) -> optax.GradientTransformation:
    """Return an optimizer of optax with this rate: "adam", "adamw(weight_decay=0.01)", "sgd", ...

    Raises:
        ValueError: for what is no optimizer of optax with a learning rate.
    """
    import optax

    name = text.partition("(")[0].strip().lower()
    found = getattr(optax, name, None)
    if callable(found) and "learning_rate" not in inspect.signature(found).parameters:
        raise ValueError(
            f"expected an optimizer of optax that takes a learning rate, such as adam, adamw or sgd, got "
            f"'{name}'"
        )
    return call(text, "optax", learning_rate=learning_rate)


def versions(*packages: str) -> dict[str, str]:
    """Return the versions that a result is kept with: Python's, ours, jax's, flax's, optax's and others.

    >>> from pcflax import recipes
    >>> list(recipes.versions("numpy"))
    ['python', 'pcflax', 'jax', 'flax', 'optax', 'numpy']
    """
    names = ("pcflax", "jax", "flax", "optax", *packages)
    return {"python": platform.python_version()} | {name: version(name) for name in names}
