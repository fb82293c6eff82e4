"""Options of benchmarks and scripts: checked before any work; and errors in one sentence."""

from __future__ import annotations

import json
import math
import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from pathlib import Path


def read_count(text: str) -> int:
    """Return a whole number of at least 1.

    >>> read_count("3")
    3
    """
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def read_index(text: str) -> int:
    """Return a whole number from 0 on, such as a seed, of which jax keeps 32 bits."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise ArgumentTypeError(f"expected a whole number from 0 to 2**32 - 1, got {text!r}")
    return int(text)


def read_seeds(text: str) -> list[int]:
    """Return the seeds 0, 1, ... of a number of them, or those that are listed.

    >>> read_seeds("3"), read_seeds("5,7"), read_seeds("5,")
    ([0, 1, 2], [5, 7], [5])
    """
    if "," not in text:
        return list(range(read_count(text)))
    return [read_index(seed) for seed in text.split(",") if seed]


def read_number(text: str) -> float:
    """Return a finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return number


def read_record(text: str | Path) -> dict:
    """Return what a results file holds."""
    try:
        record = json.loads(Path(text).read_text())
    except (OSError, ValueError):
        record = None
    if not isinstance(record, dict):
        raise ArgumentTypeError(f"expected a results file in JSON, got '{text}'")
    return record


def read_output(text: str) -> Path:
    """Return where a results file can be written: a new one, or in place of another."""
    path = Path(text)
    if path.is_dir():
        raise ArgumentTypeError(f"expected a file, got the folder {text!r}; name a file in it")
    if path.exists():
        read_record(text)
    parent = next(one for one in path.absolute().parents if one.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ArgumentTypeError(f"expected a file that can be written, got {text!r}; see {parent}")
    return path


def output_of(parser: ArgumentParser, options: Namespace, committed: Path) -> Path | None:
    """Return where results go: to `--output`, else to the committed file; None where other options are given.

    The committed results are those of a run as it is by itself, which a smaller one is not to write over;
    in how many rounds it was timed is free.
    """
    if options.output is not None:
        return options.output
    own = [name for name, value in vars(options).items() if value != parser.get_default(name)]
    given = [f"--{name.replace('_', '-')}" for name in own if name not in ("data_dir", "rounds")]
    if not given:
        return committed
    print(f"nothing is written with {' '.join(given)}, unless --output names a file")
    return None


def run_main(main: Callable[[], int | None]) -> None:
    """End the process as `main` says; with a sentence where a file is missing or Ctrl-C stopped it."""
    try:
        code = main()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        code = 130
    except OSError as error:
        where = f"{error.strerror}: {error.filename}" if error.strerror else error
        print(f"error: {where}", file=sys.stderr)
        code = 1
    sys.exit(code)
