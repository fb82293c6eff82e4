"""One voice of refusals: what was expected, what came, where, and what to write instead.

Every check returns the value in the form that the code works with, so that a caller keeps that: NumPy's
own numbers become Python's. Values that a compiled program traces pass unchecked, since nothing is known
of them but their shape.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import numbers
import operator
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.core import Tracer


def expect_count(owner: object, name: str, value: Any, least: int = 0) -> int:
    """Return a whole number of at least `least` as an int; refuse all else, booleans included.

    >>> import numpy as np
    >>> expect_count("PCStack", "depth", np.int64(3), least=1)
    3
    """
    try:
        if isinstance(value, bool | np.bool_) or np.ndim(value):
            raise TypeError
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{_name(owner)} expected an int {name}, got {shown(value)}") from None
    if count < least:
        raise ValueError(f"{_name(owner)} expected {name} of at least {least}, got {count}")
    return count


def expect_seed(owner: object, seed: Any) -> int:
    """Return a seed as an int; jax keeps 32 bits of one, so that 2**32 would be 0.

    >>> expect_seed("Trainer", 3)
    3
    """
    if (found := expect_count(owner, "seed", seed)) >= 2**32:
        raise ValueError(f"{_name(owner)} expected seed < 2**32, got {found}")
    return found


def expect_number(
    owner: object,
    name: str,
    value: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
) -> Any:
    """Return a finite number within its bounds as a float; refuse all else, booleans included.

    >>> expect_number("Gaussian", "precision", 2, above=0)
    2.0
    """
    if isinstance(value, Tracer):
        return value
    scalar = isinstance(value, np.ndarray | jax.Array) and value.ndim == 0
    number = value.item() if scalar else value
    if isinstance(number, bool | np.bool_) or not isinstance(number, numbers.Real):
        raise TypeError(f"{_name(owner)} expected {name} to be a number, got {shown(value)}")
    number = float(number)
    low = (above is not None and not number > above) or (least is not None and not number >= least)
    if low or not math.isfinite(number) or (most is not None and number > most):
        bounds = [f"above {above:g}"] if above is not None else []
        bounds += [f"of at least {least:g}"] if least is not None else []
        bounds += [f"of at most {most:g}"] if most is not None else []
        wanted = f"a {name} {' and '.join(bounds)}" if bounds else f"a finite {name}"
        raise ValueError(f"{_name(owner)} expected {wanted}, got {value}")
    return number


def expect_kind(owner: object, name: str, value: Any, kind: Any, example: str) -> Any:
    """Return the value if it is of this kind, a class or a union of them; else name an example of it.

    >>> expect_kind("Trainer", "seed", 3, int, "0")
    3
    """
    if not isinstance(value, kind):
        raise TypeError(f"{_name(owner)} expected {name} such as {example}, got {shown(value)}")
    return value


def expect_key(owner: object, key: Any) -> Any:
    """Return a random key of jax's, or None; refuse a number, which is no key yet.

    >>> import jax
    >>> expect_key("infer", jax.random.key(0)).shape
    ()
    """
    if key is not None and not isinstance(key, jax.Array | np.ndarray):
        raise TypeError(f"{_name(owner)} expected key such as jax.random.key(0), got {shown(key)}")
    return key


def expect_local_path(owner: object, name: str, value: Any) -> Path:
    """Return a path on this machine: absolute, so that a later change of folder moves nothing.

    A `~` at its beginning is the user's home. An address, such as that of a bucket, is refused.

    >>> expect_local_path("Checkpoints", "directory", "/runs/mnist")
    PosixPath('/runs/mnist')
    """
    expect_kind(owner, name, value, str | os.PathLike, "'runs/mnist'")
    if re.match(r"[a-zA-Z][\w+.-]+:/", os.fspath(value)):  # a drive has one letter
        raise ValueError(
            f"{_name(owner)} expected {name} on a local disk, got the address {str(value)!r}; give a "
            f"folder of this machine, and copy it there afterwards"
        )
    return Path(os.path.expanduser(value)).absolute()


@contextlib.contextmanager
def wanting(owner: str, package: str, extra: str) -> Iterator[None]:
    """Name the extra that brings a package, where what is imported within is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{owner} wants {package}; pip install 'pcflax[{extra}]'", name=error.name
        ) from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the known name that is nearest, or nothing.

    >>> did_you_mean("hiden", ["hidden", "output"])
    "; did you mean 'hidden'?"
    """
    near = difflib.get_close_matches(str(name), [str(one) for one in known], n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def shown(value: Any, most: int = 120) -> str:
    """Return a value as a sentence shows it: on one line, and cut where that is long.

    >>> shown("a" * 200, most=8), shown("runs/x")
    ("'aaaaaaa...", "'runs/x'")
    """
    line = " ".join(repr(value).split())
    return line if len(line) <= most else f"{line[:most]}..."


def _name(owner: object) -> str:
    if isinstance(owner, str):
        return owner
    return getattr(owner, "__name__", type(owner).__name__)
