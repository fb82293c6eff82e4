"""Which options go together: what `pcflax train` refuses before there is a folder or data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .devices import parse_mesh
from .fields import counting
from .options import MAY_CHANGE, TrainOptions, absolute_data, flag, preset, words
from .usage import UsageError

# Models of images, (height, width, channels), instead of flat features.
CONVOLUTIONAL = ("vgg5", "vgg7", "resnet18")

# Options that only some models have.
_MODELS: dict[str, tuple[str, ...]] = {
    "widths": ("mlp", "bidirectional", "hybrid", "generator"),
    "latent": ("generator",),
    "skip": ("mlp",),
    "activation_first": ("mlp",),
    "parameterization": ("mlp", "residual-mlp"),
    "depth": ("residual-mlp", "transformer"),
    "width": ("residual-mlp", "transformer"),
    "output": ("mlp", "residual-mlp", *CONVOLUTIONAL),
    "sequence_length": ("transformer",),
    "augment": CONVOLUTIONAL,
}

_RANGES = (
    (
        "num_steps batch_size eval_every keep_latest trials count",
        lambda value: value >= 1,
        "of at least 1",
    ),
    ("inference_steps step", lambda value: value >= 0, "of at least 0"),
    ("confidence", lambda value: 0 < value < 1, "above 0 and below 1"),
    ("step_size learning_rate", lambda value: 0 < value < math.inf, "above 0"),
    ("validation", lambda value: 0 <= value <= 90, "from 0 to 90 percent"),
    ("temperature", lambda value: 0 <= value < math.inf, "from 0"),
    ("momentum", lambda value: 0 <= value < 1, "from 0 to below 1"),
    ("seed", lambda value: 0 <= value < 2**32, "from 0 to 2**32 - 1"),
)


def check_ranges(options: Any) -> None:
    """Refuse a number that an option of a verb cannot be."""
    for names, fits, wanted in _RANGES:
        for name in names.split():
            value = getattr(options, name, None)
            if isinstance(value, int | float) and not fits(value):
                raise UsageError(f"expected {flag(name)} {wanted}, got {value}")


def check_options(options: TrainOptions) -> None:
    """Refuse what would fail once training has begun, before a folder is made."""
    check_ranges(options)
    for _, reason in idle(options):
        raise UsageError(reason)
    if options.data.startswith("text:") != (options.model == "transformer"):
        raise UsageError(
            f"--model {options.model} does not fit --data {options.data}; text wants --model transformer, "
            f"and a transformer --data text:PATH"
        )
    layers = 1 if options.model == "transformer" else 2  # first and last
    for name, least in (("depth", layers), ("width", 1), ("sequence_length", 1)):
        if getattr(options, name) < least:
            raise UsageError(f"expected a larger {flag(name)}, got {getattr(options, name)}")
    count = None if options.mesh is None else parse_mesh(options.mesh).get("data")
    if count is not None and options.batch_size % count:
        raise UsageError(
            f"expected --batch-size that --mesh {options.mesh} divides among {count} devices, got "
            f"{options.batch_size}; give a multiple of {count}"
        )
    linear = options.activation == "identity" and options.output == "gaussian"
    if options.inference == "linear" and not linear:
        raise UsageError(
            "--inference linear solves linear networks only; add --activation identity (and --output "
            "gaussian), or take --inference newton"
        )
    if options.latent < 0:
        raise UsageError(f"expected --latent of at least 0, got {options.latent}")
    if any(width < 1 for width in options.widths):
        raise UsageError(f"expected hidden widths of at least 1, got {options.widths}")


def idle(options: TrainOptions) -> Iterator[tuple[str, str]]:
    """Return each option that the chosen model, rule or algorithm does not have, and the refusal."""
    defaults = preset(options.preset, options.model)
    for field in dataclasses.fields(TrainOptions):
        value = getattr(options, field.name)
        if value == getattr(defaults, field.name):
            continue
        if field.name in _MODELS:
            owners = [("model", _MODELS[field.name])]
        else:
            owners = [(kind, counting(kind, field.name)) for kind in ("learning", "inference")]
            if owners[1][1]:  # an algorithm's option wants a rule that infers
                owners[0] = ("learning", counting("learning", "inference"))
        for kind, found in owners:
            if found and (word := getattr(options, kind)) not in found:
                yield (
                    field.name,
                    f"{flag(field.name)} does nothing with {flag(kind)} {word}; leave it out, or take "
                    f"{flag(kind)} {' or '.join(found)}",
                )
                break


def check_resumable(stored: TrainOptions, given: TrainOptions) -> None:
    """See that a resumed run is told nothing new but what may change."""
    given = absolute_data(given)
    if stored.decay != "constant" and given.num_steps != stored.num_steps:
        lowest = "to zero " if stored.decay in ("linear", "cosine") else ""
        raise ValueError(
            f"the run in {given.run_dir} lets its rate fall {lowest}at step {stored.num_steps} (--decay), "
            f"got --num-steps {given.num_steps}; leave it out to resume, or start a new run"
        )
    # other examples are told by the Trainer
    moved = Path(given.data.removeprefix("text:")).is_file()
    for field in dataclasses.fields(TrainOptions):
        if field.name == "data" and moved:
            continue
        old, new = getattr(stored, field.name), getattr(given, field.name)
        if field.name == "begin_from" and old and new and old.is_relative_to(new.absolute()):
            continue  # the run whose checkpoint it was
        if field.name not in MAY_CHANGE and (old or new) and old != new:
            own = flag(field.name)
            raise ValueError(
                f"the run in {given.run_dir} was started with {own} {words(old)}, got {own} "
                f"{words(new)}; leave the option out to resume, or start a new run in another "
                f"--run-dir"
            )
