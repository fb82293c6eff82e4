"""The `pcflax` command: options to a verb, and errors to one sentence and an exit code.

0 done; 1 an error of files, data, devices or the run; 2 a command line that is wrong by itself; 130
stopped by Ctrl-C; 143 and 129 stopped by SIGTERM and SIGHUP after saving. An error is told in one sentence
on standard error (--debug shows where it came from). A pipe that nobody reads any more is no error. What is
slow to load is loaded where these rules hold already.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pcflax import __version__

from .usage import UsageError, check_names

if TYPE_CHECKING:
    from .options import TrainOptions


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; ends the process with its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    # What goes wrong in Orbax's threads reaches us as an error, and need not be told twice.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    if not debug:
        sys.unraisablehook = _tell_ignored
    with contextlib.suppress(AttributeError):  # an ASCII terminal shows what it can
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore
    try:
        if arguments == ["--version"]:
            print(f"pcflax {__version__}")
            return
        with warnings.catch_warnings(), _stopping_at_once(_stopped(arguments)):
            warnings.showwarning = _show_warning
            _run(arguments)
        print(end="", flush=True)  # what fails is told here
    except BrokenPipeError:
        # what Python writes at its end would fail again
        with contextlib.suppress(AttributeError, OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # type: ignore
    except KeyboardInterrupt:
        print(_stopped(arguments), file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        if debug:
            raise
        print(f"error: {_sentence(error)}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, UsageError) else 1) from None


def _tell_ignored(what) -> None:
    """Show an error that nobody could catch; not what TensorStore says of writes that were given up."""
    if str(what.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(what)


# Verbs that go on with --resume, and return what --json prints, in the place of what they tell on the way.
_TELLING = ("train", "sweep")


def _stopped(arguments: Sequence[str]) -> str:
    """Return what is told of a Ctrl-C."""
    return "stopped; go on with --resume" if set(arguments[:1]) & set(_TELLING) else "stopped"


@contextlib.contextmanager
def _stopping_at_once(told: str) -> Iterator[None]:
    """End the process on Ctrl-C, but for while `fit` trains, which saves first.

    What is raised while modules load may be lost there, or become another error.
    """

    def stop(number, frame):
        print(told, file=sys.stderr, flush=True)
        os._exit(130)

    main_thread = threading.current_thread() is threading.main_thread()
    ours = main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _run(arguments: list[str]) -> None:
    import tyro

    from .checking import check_options, check_ranges
    from .config import with_config
    from .fields import join_lines
    from .options import TrainOptions
    from .verbs import (
        CompareOptions,
        DoctorOptions,
        EvaluateOptions,
        InspectOptions,
        PredictOptions,
        ReportOptions,
        SampleOptions,
        SweepOptions,
    )

    kinds = (TrainOptions, SweepOptions, EvaluateOptions, InspectOptions, SampleOptions)
    kinds = (*kinds, CompareOptions, PredictOptions, ReportOptions, DoctorOptions)
    check_names(arguments, {_verb(kind): _names(kind) for kind in kinds})
    if {"--help", "-h"} & set(arguments):
        for kind in kinds:
            join_lines(kind)
    for kind in (TrainOptions, SweepOptions):
        if arguments[:1] == [_verb(kind)]:
            arguments = with_config(arguments, kind)
    train, sweep = (_defaults(arguments, kind) for kind in (TrainOptions, SweepOptions))
    verbs = (
        Annotated[TrainOptions, tyro.conf.subcommand("train", default=train)]
        | Annotated[SweepOptions, tyro.conf.subcommand("sweep", default=sweep)]
        | Annotated[EvaluateOptions, tyro.conf.subcommand("evaluate")]
        | Annotated[InspectOptions, tyro.conf.subcommand("inspect")]
        | Annotated[SampleOptions, tyro.conf.subcommand("sample")]
        | Annotated[CompareOptions, tyro.conf.subcommand("compare")]
        | Annotated[PredictOptions, tyro.conf.subcommand("predict")]
        | Annotated[ReportOptions, tyro.conf.subcommand("report")]
        | Annotated[DoctorOptions, tyro.conf.subcommand("doctor")]
    )
    options = tyro.cli(
        verbs,
        args=_spelt_out(arguments),
        prog="pcflax",
        description="Predictive coding networks on Flax NNX and JAX.",
    )
    step_given = getattr(options, "step", None) is not None
    if getattr(options, "best", False) and step_given:
        raise UsageError("give --step or --best, not both")
    if getattr(options, "summary", False) and step_given:  # which is of no checkpoint
        raise UsageError("give --summary or --step, not both")
    for one, other in (("quiet", "json"), ("health", "summary"), ("best", "summary")):
        if getattr(options, one, False) and getattr(options, other, False) is True:
            raise UsageError(f"give --{one} or --{other}, not both")
    # What is wrong by itself is told before a verb is imported, which takes seconds.
    if type(options) is TrainOptions:
        check_options(options)
    else:
        check_ranges(options)
    # A verb is imported when it is used, with the plotting and the loggers it needs.
    verb = _verb(type(options))
    with contextlib.ExitStack() as stack:
        if getattr(options, "quiet", False) or (verb in _TELLING and options.json):
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        found = getattr(importlib.import_module(f".{verb}", __package__), verb)(
            _with_homes(options)
        )
    if verb in _TELLING and options.json:
        from pcflax.training.plain_json import dumps

        print(dumps(found))


def _verb(kind: type) -> str:
    return kind.__name__.removesuffix("Options").lower()


def _names(kind: type) -> list[str]:
    """Return a verb's options as they are typed, without dashes before them."""
    places = ("run", "runs", "file")  # which have no name on the line
    fields = [field.name for field in dataclasses.fields(kind) if field.name not in places]
    return [name.replace("_", "-") for name in fields]


def _defaults(arguments: list[str], kind: type[TrainOptions]) -> Any:
    """Return the defaults of `train` or `sweep`: of the preset, or of what is resumed, where one is named."""
    from .config import value_of
    from .options import preset, read_config

    if arguments[:1] != [_verb(kind)]:
        return kind()
    run_dir = value_of("run-dir", arguments)
    if "--resume" in arguments and run_dir is not None:
        stored = read_config(Path(os.path.expanduser(run_dir)), kind)
        if value_of("search", arguments) is not None:  # what is typed is added to the default
            stored = dataclasses.replace(stored, search=())
        return stored
    chosen = preset(
        value_of("preset", arguments) or "notebook", value_of("model", arguments) or "mlp"
    )
    return kind(**vars(chosen))


def _spelt_out(arguments: list[str]) -> list[str]:
    """Return the same arguments, with the word that `--decay` and `--no-decay` stand for."""
    found: list[str] = []
    for position, argument in enumerate(arguments):
        following = arguments[position + 1 : position + 2]
        if argument == "--no-decay":
            found += ["--decay", "constant"]
        elif argument == "--decay" and (not following or following[0].startswith("-")):
            found += [argument, "linear"]
        else:
            found.append(argument)
    return found


def _with_homes(options: Any) -> Any:
    """Return the options with `~` expanded in every path, as the shell does not behind a `=`."""
    changed: dict[str, Any] = {
        field.name: Path(os.path.expanduser(value))
        for field in dataclasses.fields(options)
        if isinstance(value := getattr(options, field.name), Path)
    }
    if getattr(options, "data", None) is not None:
        *kind, path = options.data.rpartition("text:")
        changed["data"] = "".join(kind) + os.path.expanduser(path)
    return dataclasses.replace(options, **changed)


def _sentence(error: Exception) -> str:
    """Return the first line of an error; kinds that are nobody's own words get their name before it."""
    text = str(error).strip() or repr(error)
    if isinstance(error, OSError) and error.strerror:  # "[Errno 28] No space left on device"
        where = f": {error.filename}" if error.filename is not None else ""
        from pcflax.training.checkpoints.disk import FULL

        remedy = "; make room" if error.errno in FULL else ""
        return f"{error.strerror}{where}{remedy}"
    if isinstance(error, KeyError):
        text = str(error.args[0]) if error.args else text
    first = text.splitlines()[0]
    if first.startswith("RESOURCE_EXHAUSTED: "):  # jax's, while a network is built
        told = first.removeprefix("RESOURCE_EXHAUSTED: ").rstrip(".")
        return f"{told[0].lower()}{told[1:]}; choose a smaller network"
    named = (ValueError, TypeError, OSError, FloatingPointError, LookupError, MemoryError)
    ours = type(error).__module__.startswith("pcflax") or "pip install" in first  # an extra's line
    if isinstance(error, named) or ours:
        return first
    return f"{type(error).__name__}: {first} (add --debug for the traceback)"


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    del category, filename, lineno, file, line
    print(f"warning: {message}", file=sys.stderr)
